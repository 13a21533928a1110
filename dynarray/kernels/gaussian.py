"""Gaussian blur whose width varies."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._check import check_int
from .._photograph import functions_of, library_of_values, values_of
from .mixed import MixedKernels, check_map, check_no_negative, check_odd, check_positive, offsets, stacked

_NARROWEST = 0.01  # pixels: beside its centre such a Gaussian is zero in any dtype, as that of width zero is


def gaussian(sigma: Any, size: int | None = None, *, truncate: float = 4.0) -> Any:
    """Gaussian kernels, of a width of its own for each pixel.

    ``w_p[a,b] = exp(-(dy**2 + dx**2) / (2 * sigma[p]**2))`` at the pixels of the window, divided by its sum:
    the kernel of `scipy.ndimage.gaussian_filter`.

    Parameters
    ----------
    sigma : array, (H, W) or (N, H, W), or a number
        Standard deviation in pixels; 0 leaves a pixel as it is.
    size : int, optional
        Odd size of the kernels. By default as large as the widest needs.
    truncate : float
        Where that ends: this many standard deviations from the centre.

    Returns
    -------
    array, (size, size, H, W) or (N, size, size, H, W); (size, size) of a number
        The kernels, in the dtype of `sigma`, float64 for integers.

    Raises
    ------
    TypeError, ValueError
        For a `sigma` that is no array of real numbers, or is negative somewhere, and a size that is not odd.

    Notes
    -----
    A kernel for each pixel takes size**2 numbers for it; `gaussian_mixture` takes less. With a Variable for
    `sigma` the gradient is exact.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> sigma = np.array([[0.0, 1.0]])
    >>> dyn.kernels.gaussian(sigma, 3)[1, :, 0].round(3).T.tolist()
    [[0.0, 1.0, 0.0], [0.124, 0.204, 0.124]]
    """
    sigma = check_map("gaussian", "sigma", sigma)
    check_no_negative("gaussian", "sigma", sigma)
    if sigma.ndim not in (0, 2, 3):
        raise ValueError(f"gaussian: sigma must have shape (H, W) or (N, H, W), got {tuple(sigma.shape)}")
    k = _size("gaussian", values_of(sigma), size, truncate)
    return _sampled(sigma[None, None], k)[..., 0, 0] if sigma.ndim == 0 else _sampled(sigma, k)


def _size(name: str, sigma: Any, size: Any, truncate: Any) -> int:
    if size is not None:
        return check_odd(name, "size", size)
    check_positive(name, "truncate", truncate)
    widest = float(sigma.max()) if sigma.size else 0.0
    if not np.isfinite(widest):
        raise ValueError(f"{name}: sigma must be finite where no size is given, got {widest}")
    return 2 * int(truncate * widest + 0.5) + 1


def _sampled(sigma: Any, size: int) -> Any:
    """Kernels for a map: products of two lines, each divided by its sum, as their product is then by its."""
    xp = functions_of(sigma)
    steps = offsets(size, sigma)[:, None, None]
    line = xp.exp(-0.5 * xp.square(steps / xp.maximum(sigma, _NARROWEST)[..., None, :, :]))
    line = line / line.sum(axis=-3, keepdims=True)
    return line[..., :, None, :, :] * line[..., None, :, :, :]


def gaussian_mixture(
    sigma: Any, widths: int | Sequence[float] = 6, size: int | None = None, *, truncate: float = 4.0
) -> MixedKernels:
    """Gaussian kernels of a few widths, mixed at each pixel for a blur of the width that it asks for.

    Between two neighbouring widths ``s < sigma[p] < t`` the kernel of p is ``(1 - m) * gaussian(s) + m *
    gaussian(t)`` with ``m = (sigma[p]**2 - s**2) / (t**2 - s**2)``: it is positive, of sum 1, and its
    variance is ``sigma[p]**2``, as far as those of the sampled Gaussians are s**2 and t**2.

    Parameters
    ----------
    sigma : array, (H, W) or (N, H, W)
        Standard deviation in pixels. Beyond the widths it counts as the nearest of them.
    widths : int or sequence of float
        The widths, rising, or how many: these are evenly spaced between the least and the largest of `sigma`.
    size, truncate
        As of `gaussian`, for the largest of the widths.

    Returns
    -------
    MixedKernels
        ``kernels`` (B, size, size) and ``mixture`` (B, H, W) or (N, B, H, W).

    Raises
    ------
    TypeError, ValueError
        As `gaussian`; and for widths that are negative or do not rise.

    Notes
    -----
    B numbers for a pixel in place of size**2: for photographs of any size. With a Variable for `sigma` the
    gradient is exact: widths that are given are constants, at which it is that of one side; where only their
    number is given, kernels and mixture follow the least and the largest `sigma`, and the gradient with them.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> kernels, mixture = dyn.kernels.gaussian_mixture(np.array([[0.5, 1.0, 1.5]]), (1, 2), size=5)
    >>> kernels.shape, mixture[:, 0].round(3).tolist()
    ((2, 5, 5), [[1.0, 1.0, 0.583], [0.0, 0.0, 0.417]])
    """
    name = "gaussian_mixture"
    sigma = check_map(name, "sigma", sigma)
    check_no_negative(name, "sigma", sigma)
    if sigma.ndim not in (2, 3):
        raise ValueError(f"{name}: sigma must have shape (H, W) or (N, H, W), got {tuple(sigma.shape)}")
    known = _given_widths(widths, sigma)
    if known is None:
        column = _widths_between_ends(sigma, check_int(name, "widths", widths, 1))
        variances = [column[b] ** 2 for b in range(len(column))]
        variance = sigma**2
    else:
        column = library_of_values(sigma).asarray(known.astype(sigma.dtype))
        variances = [float(width) ** 2 for width in known]
        variance = functions_of(sigma).clip(sigma**2, variances[0], variances[-1])
    kernels = _sampled(column.reshape(-1, 1, 1), _size(name, values_of(column), size, truncate))[..., 0, 0]
    return MixedKernels(kernels, _shares(variance, variances))


def _given_widths(widths: Any, sigma: Any) -> np.ndarray | None:
    name = "gaussian_mixture"
    if not isinstance(widths, Sequence | np.ndarray):
        return None
    known = np.asarray(widths)
    if known.ndim != 1 or not known.size or known.dtype.kind not in "iuf":
        raise TypeError(f"{name}: widths must be an int or numbers, got {widths!r}")
    if not np.isfinite(known).all() or known[0] < 0 or (np.diff(known) <= 0).any():
        raise ValueError(f"{name}: widths must rise from at least 0, got {widths!r}")
    return known.astype(np.float64)


def _widths_between_ends(sigma: Any, count: int) -> Any:
    """So many widths from the least sigma to the largest, which they follow; one, if these are the same."""
    values = values_of(sigma)
    if not values.size:
        return np.zeros(1, values.dtype)
    least, largest = sigma.min(), sigma.max()
    if not all(np.isfinite(float(values_of(end))) for end in (least, largest)):
        raise ValueError("gaussian_mixture: sigma must be finite where the widths are not given")
    share = library_of_values(sigma).asarray(np.linspace(0, 1, count, dtype=values.dtype))
    column = least * (1 - share) + largest * share
    told_apart = count > 1 and bool((values_of(column[1:]) > values_of(column[:-1])).all())
    return column if told_apart else largest.reshape(1)


def _shares(variance: Any, variances: list[Any]) -> Any:
    """How much of each: a hat over its variance, which falls to zero at the next ones."""
    xp = functions_of(variance)

    def hat(b: int) -> Any:
        middle, sides = variances[b], []
        if b:
            sides.append((variance - variances[b - 1]) / (middle - variances[b - 1]))
        if b + 1 < len(variances):
            sides.append((variances[b + 1] - variance) / (variances[b + 1] - middle))
        share = xp.minimum(*sides) if len(sides) == 2 else sides[0] if sides else 0 * variance + 1
        return xp.maximum(share, 0)

    return stacked((hat(b) for b in range(len(variances))), (len(variances),))
