"""A few kernels of which all point-spread functions of a lens are sums."""

from typing import Any

import numpy as np

from rawkernels.launch import module_of

from .._check import check_int
from .._photograph import cast, check_array, is_followed
from .mixed import MixedKernels, check_map


def psf_basis(
    psfs: Any, num_kernels: int | None = None, *, shape: tuple[int, int] | None = None
) -> MixedKernels:
    """The kernels of which point-spread functions are best composed, by singular value decomposition.

    ``psfs[p] ~ sum_b mixture[b, p] * kernels[b]``: of all sums of so many kernels the one with the least
    squared error over all `psfs`. The kernels are orthonormal, by falling share, each with its largest entry
    positive.

    Parameters
    ----------
    psfs : array, (P, kh, kw), (gy, gx, kh, kw)
        Point-spread functions that were measured or computed, at P places or on a grid.
    num_kernels : int, optional
        How many kernels; by default as many as reproduce `psfs` to rounding.
    shape : (H, W), optional
        For a grid, whose corners are those of the picture: the mixture of each pixel, linearly interpolated
        between the places, as the point-spread functions then are.

    Returns
    -------
    MixedKernels
        ``kernels`` (B, kh, kw) and ``mixture`` (B, P) or (B, gy, gx), (B, H, W) with `shape`, in the dtype of
        `psfs`, float64 for integers.

    Raises
    ------
    TypeError, ValueError
        For an array that does not fit, or is a Variable: there is no gradient. For values that are not
        finite.

    Notes
    -----
    The filters of this package are cross-correlations: what is filtered with ``kernel_p`` reads
    ``photo[p + t]``. A point becomes its point-spread function under convolution, so give
    ``psfs[..., ::-1, ::-1]`` where these are not symmetric.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> widths = np.linspace(0.5, 2, 12).reshape(3, 4)
    >>> psfs = np.moveaxis(dyn.kernels.gaussian(widths, 9), (0, 1), (2, 3))
    >>> kernels, mixture = dyn.kernels.psf_basis(psfs, 3, shape=(60, 80))
    >>> kernels.shape, mixture.shape
    ((3, 9, 9), (3, 60, 80))
    >>> photo = np.full((60, 80, 3), 100, np.uint8)
    >>> dyn.images.filter(photo, kernels, mixture).shape
    (60, 80, 3)
    """
    name = "psf_basis"
    if is_followed(psfs):
        raise TypeError(
            f"{name}: psfs must not be a Variable: there is no gradient; give stop_gradient(psfs)"
        )
    psfs = check_map(name, "psfs", check_array(name, "psfs", psfs))
    if psfs.ndim not in (3, 4) or not psfs.size:
        raise ValueError(
            f"{name}: psfs must have shape (P, kh, kw) or (gy, gx, kh, kw), got {tuple(psfs.shape)}"
        )
    xp, places, size = module_of(psfs), psfs.shape[:-2], psfs.shape[-2:]
    if not bool(xp.isfinite(psfs).all()):
        raise ValueError(f"{name}: psfs must be finite")
    flat = cast(psfs, np.dtype(np.float64)).reshape((-1, size[0] * size[1]))
    left, values, kernels = xp.linalg.svd(flat, full_matrices=False)
    least = max(flat.shape) * np.finfo(psfs.dtype).eps * values[0]
    rank = max(1, int((values > least).sum()))
    if num_kernels is not None:
        wanted = check_int(name, "num_kernels", num_kernels, 1)
        if wanted > len(values):
            raise ValueError(f"{name}: num_kernels must be at most {len(values)}, got {num_kernels!r}")
        rank = wanted
    kernels, mixture = kernels[:rank], (left * values).T[:rank]
    signs = xp.where(kernels.max(axis=1) >= -kernels.min(axis=1), 1.0, -1.0)[:, None]
    kernels, mixture = kernels * signs, (mixture * signs).reshape((rank, *places))
    if shape is not None:
        mixture = _spread(name, mixture, shape)
    return MixedKernels(cast(kernels.reshape((rank, *size)), psfs.dtype), cast(mixture, psfs.dtype))


def _spread(name: str, mixture: Any, shape: Any) -> Any:
    """Linear interpolation of maps (B, gy, gx), from corner to corner."""
    if mixture.ndim != 3:
        raise ValueError(f"{name}: shape goes with psfs on a grid, (gy, gx, kh, kw)")
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise TypeError(f"{name}: shape must be a pair (H, W), got {shape!r}")
    xp = module_of(mixture)
    hats = []
    for places, pixels in zip(mixture.shape[1:], shape):
        count = check_int(name, "shape", pixels, 1)
        at = np.linspace(0, places - 1, count)[:, None]
        hats.append(xp.asarray(np.maximum(0, 1 - abs(at - np.arange(places)))))
    return xp.einsum("hy,wx,byx->bhw", *hats, mixture)
