"""Kernels of anisotropic diffusion: one step in time of the equation of Perona and Malik."""

from typing import Any

import numpy as np

from .._check import check_choice
from .._photograph import functions_of
from .mixed import Guide, check_positive, number, stacked

_NEIGHBOURS = {(-1, 0): 1, (0, -1): 3, (0, 1): 5, (1, 0): 7}  # and which tap each is of a 3 x 3 kernel


def diffusion(
    guide: Any,
    kappa: Any,
    step: float = 0.25,
    *,
    conductance: str = "exponential",
    channel_axis: int | None = -1,
) -> Any:
    """Kernels of one step of anisotropic diffusion: neighbours even out, but across edges they do not.

    A neighbour q of p, one of four, gets the weight ``step * g(|guide[q] - guide[p]| / kappa)``, p itself
    what is left of 1. With conductance "exponential" ``g(u) = exp(-u**2)``, with "rational"
    ``g(u) = 1 / (1 + u**2)``. Nothing flows through the border of the picture.

    Parameters
    ----------
    guide : array, (H, W), (H, W, C) or (N, H, W, C)
        The photograph that says where edges are: in diffusion itself, what is filtered. Of colours the
        Euclidean distance counts.
    kappa : float, or array (H, W)
        How large a difference is an edge, in the units of `guide`.
    step : float
        The step in time; up to 1/4 all weights are positive.
    conductance : {"exponential", "rational"}
        The first favours edges of high contrast, the second wide regions.
    channel_axis
        As `dynarray.images.filter` takes it.

    Returns
    -------
    array, (3, 3, H, W) or (N, 3, 3, H, W)
        The kernels, of sum 1, in the dtype of `guide`, in float64 for integers and float32 for 16 bits. They
        read nothing outside of the picture, so that any border will do.

    Raises
    ------
    TypeError, ValueError
        For arrays and shapes that do not fit, and numbers that are not above zero.

    Notes
    -----
    Where `guide` or `kappa` is a Variable, gradients are exact.

    References
    ----------
    Perona and Malik, "Scale-space and edge detection using anisotropic diffusion", PAMI 1990.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> photo = np.array([[0.0, 1.0, 100.0]])
    >>> for _ in range(20):
    ...     photo = dyn.images.filter(photo, dyn.kernels.diffusion(photo, kappa=5.0))
    >>> photo.round(2).tolist()
    [[0.5, 0.5, 100.0]]
    """
    name = "diffusion"
    check_choice(name, "conductance", conductance, ("exponential", "rational"))
    check_positive(name, "step", step)
    pixels = Guide(name, guide, channel_axis, "edge", 1)
    scale = number(name, "kappa", kappa, pixels.centre)
    xp = functions_of(pixels.centre, scale)

    def weight(dy: int, dx: int) -> Any:
        with np.errstate(over="ignore", under="ignore"):
            apart = xp.square(pixels.at(dy, dx) - pixels.centre).sum(axis=1) / scale / scale
            flow = xp.exp(-apart) if conductance == "exponential" else 1 / (1 + apart)
        return step * flow * pixels.inside(dy, dx)

    weights = {tap: weight(*place) for place, tap in _NEIGHBOURS.items()}
    nothing = 0 * weights[1]
    weights[4] = 1 - (weights[1] + weights[3] + weights[5] + weights[7])
    return pixels.given(stacked((weights.get(tap, nothing) for tap in range(9)), (3, 3)))
