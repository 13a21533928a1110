"""Blur along lines: motion during an exposure."""

from typing import Any

import numpy as np

from .._check import check_int
from .._photograph import functions_of, values_of
from .mixed import check_map, check_odd, offsets


def motion(velocity: Any, size: int | None = None, *, samples: int | None = None) -> Any:
    """Kernels of motion blur: the mean over a line through the pixel, along its velocity.

    ``w_p[a,b] = mean_i hat(dy - t_i * velocity[p,0]) * hat(dx - t_i * velocity[p,1])`` with the tent of
    bilinear interpolation, ``hat(u) = max(0, 1 - |u|)``, and times ``t_i = (i + 1/2) / samples - 1/2`` over
    the exposure. What is filtered is thus the mean of the photograph, bilinearly interpolated, at these
    points of the line.

    Parameters
    ----------
    velocity : array, (H, W, 2) or (N, H, W, 2)
        How far (dy, dx) the picture moves at each pixel during the exposure, in pixels.
    size : int, optional
        Odd size of the kernels, more than all components of `velocity`. By default as large as need be.
    samples : int, optional
        Points of a line; `size` by default, at most a pixel apart.

    Returns
    -------
    array, (size, size, H, W) or (N, size, size, H, W)
        The kernels, of sum 1, in the dtype of `velocity`, float64 for integers.

    Raises
    ------
    TypeError, ValueError
        For a `velocity` that is no array of real numbers or of another shape, or a size too small for it.

    Notes
    -----
    With a Variable for `velocity` the gradient is exact: that of the interpolation.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> kernels = dyn.kernels.motion(np.array([[[0.0, 2.0]]]), samples=4)
    >>> kernels[..., 0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 0.0]]
    """
    velocity = check_map("motion", "velocity", velocity)
    if velocity.ndim not in (3, 4) or velocity.shape[-1] != 2:
        raise ValueError(
            f"motion: velocity must have shape (H, W, 2) or (N, H, W, 2), with (dy, dx) along the last axis, "
            f"got {tuple(velocity.shape)}"
        )
    plain = values_of(velocity)
    fastest = float(abs(plain).max()) if plain.size else 0.0
    if size is None:
        if not np.isfinite(fastest):
            raise ValueError("motion: velocity must be finite where no size is given")
        size = 2 * int(np.ceil(fastest / 2)) + 1
    elif check_odd("motion", "size", size) < fastest + 1:
        raise ValueError(f"motion: size must be at least {fastest:g} + 1, for such velocities, got {size}")
    count = size if samples is None else check_int("motion", "samples", samples, 1)
    xp = functions_of(velocity)
    steps = offsets(size, velocity)[:, None, None, None]
    times = ((offsets(count, velocity) - offsets(count, velocity).mean()) / count)[:, None, None]
    lines = [
        xp.maximum(1 - abs(steps - times * velocity[..., axis][..., None, None, :, :]), 0) for axis in (0, 1)
    ]
    return xp.einsum("...aihw,...bihw->...abhw", *lines) / count
