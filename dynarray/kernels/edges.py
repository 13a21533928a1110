"""Kernels that stop at edges of a guide: bilateral filtering, and joint bilateral filtering."""

from math import ceil
from typing import Any

import numpy as np

from .._photograph import functions_of, values_of
from ..typing import Border
from .mixed import Guide, check_odd, check_positive, number, stacked


def bilateral(
    guide: Any,
    sigma_space: float,
    sigma_color: Any,
    size: int | None = None,
    *,
    channel_axis: int | None = -1,
    border: Border = "reflect",
) -> Any:
    """Kernels of the bilateral filter: means over pixels that are near, and alike.

    ``w_p[t] = exp(-|t|**2 / (2*sigma_space**2) - |guide[p + t] - guide[p]|**2 / (2*sigma_color**2))``,
    divided by the sum over t; ``|.|`` of colours is the Euclidean distance. Guided by the photograph that is
    filtered this is bilateral filtering, by another one joint, or cross, bilateral filtering.

    Parameters
    ----------
    guide : array, (H, W), (H, W, C) or (N, H, W, C)
        The photograph that says what is alike, as `dynarray.images.filter` takes it.
    sigma_space : float
        Standard deviation of distances, in pixels.
    sigma_color : float, or array (H, W)
        Standard deviation of differences, in the units of `guide`: of bytes, perhaps 25.
    size : int, optional
        Odd size of the kernels; by default ``max(5, 2 * ceil(3 * sigma_space) + 1)``, as scikit-image has it.
    channel_axis, border
        As `dynarray.images.filter` takes them; filter with the same border.

    Returns
    -------
    array, (size, size, H, W) or (N, size, size, H, W)
        The kernels, in the dtype of `guide`, in float64 for integers and float32 for 16 bits.

    Raises
    ------
    TypeError, ValueError
        For arrays and shapes that do not fit, a size that is not odd, and standard deviations not above zero.

    Notes
    -----
    Where `guide` or one of the standard deviations is a Variable, gradients are exact. The weights themselves
    are constants to whoever filters by them, unless `guide` is a Variable.

    References
    ----------
    Tomasi and Manduchi, "Bilateral filtering for gray and color images", ICCV 1998; Petschnigg et al.,
    "Digital photography with flash and no-flash image pairs", SIGGRAPH 2004.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> step = np.array([[0, 0, 100, 100]], np.uint8)
    >>> dyn.kernels.bilateral(step, 1.0, 10.0, 3, border="edge")[:, :, 0, 1].sum(axis=0).round(3).tolist()
    [0.378, 0.622, 0.0]
    """
    name = "bilateral"
    check_positive(name, "sigma_space", sigma_space)
    if size is None:
        size = max(5, 2 * ceil(3 * float(values_of(sigma_space))) + 1)
    k = check_odd(name, "size", size)
    pixels = Guide(name, guide, channel_axis, border, k // 2)
    color = number(name, "sigma_color", sigma_color, pixels.centre)
    space = number(name, "sigma_space", sigma_space, pixels.centre)
    xp = functions_of(pixels.centre, color, space)

    def weight(dy: int, dx: int) -> Any:
        apart = xp.square(pixels.at(dy, dx) - pixels.centre).sum(axis=1)
        # Divided twice: the square of what is very small would be zero.
        with np.errstate(over="ignore", under="ignore"):
            return xp.exp(-0.5 * (apart / color / color + float(dy * dy + dx * dx) / space / space))

    steps = range(-(k // 2), k // 2 + 1)
    kernels = stacked((weight(dy, dx) for dy in steps for dx in steps), (k, k))
    return pixels.given(kernels / kernels.sum(axis=(-4, -3), keepdims=True))
