"""Fixed bases of filters, of which per-pixel filter atoms are composed: plain functions that need SciPy."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ._check import check_int

__all__ = [
    "fourier_bessel_bases",
    "multiscale_bases",
]


_LARGEST_ORDER = 15  # of the Bessel functions


def fourier_bessel_bases(kernel_size: int, num_bases: int | None = None) -> np.ndarray:
    """Fourier-Bessel functions on a square grid: smooth filters, from low to high frequency.

    On the unit disc, functions ``J_q(R_qp rho)``, for q > 0 times ``cos(q theta)`` and ``sin(q theta)``,
    are orthogonal; R_qp is the p-th root of the Bessel function J_q. Those whose next root is at most
    ``pi * (L + 1/2) * f`` (f = 2 if L < 2, else 1.5, with ``kernel_size = 2L + 1``) are sampled, in order of
    R_qp, on a disc of radius L + 1/2 pixels.

    Parameters
    ----------
    kernel_size : int
        Odd size of the filters, at least 3.
    num_bases : int, optional
        Keep the first so many; by default all there are: 6, 14, 38, 71 for sizes 3, 5, 7, 9, and never more
        than ``kernel_size**2 - 1``.

    Returns
    -------
    ndarray, (B, kernel_size, kernel_size), float64
        The bases, all divided by the root mean square of their norms.

    Raises
    ------
    TypeError, ValueError
        If `kernel_size` is not an odd int of at least 3, or `num_bases` more than this size offers.

    References
    ----------
    Qiu et al., "DCFNet: Deep Neural Network with Decomposed Convolutional Filters", ICML 2018.

    Examples
    --------
    >>> import dynarray as dyn
    >>> dyn.fourier_bessel_bases(3)[0].round(3).tolist()
    [[0.049, 0.305, 0.049], [0.305, 0.673, 0.305], [0.049, 0.305, 0.049]]
    """
    name = "fourier_bessel_bases"
    kernel_size = _odd(name, kernel_size)
    half = kernel_size // 2
    steps = np.arange(-half, half + 1) / (half + 0.5)
    y, x = steps[:, None], steps[None, :]
    made = np.array(list(_sampled(np.hypot(y, x), np.arctan2(x, y), half)))
    bases = made[: kernel_size**2 - 1]
    bases /= math.sqrt((bases**2).sum(axis=(1, 2)).mean())
    if num_bases is None:
        return bases
    wanted = check_int(name, "num_bases", num_bases, 1)
    if wanted > len(bases):
        raise ValueError(
            f"{name}: num_bases must be at most {len(bases)}, all that kernel size {kernel_size} offers, "
            f"got {num_bases!r}"
        )
    return bases[:wanted]


def multiscale_bases(kernel_size: int, num_bases: int = 6) -> np.ndarray:
    """Fourier-Bessel bases of every odd size from 3 to `kernel_size`, zero-padded to the largest.

    Parameters
    ----------
    kernel_size : int
        Odd size of the filters, at least 3.
    num_bases : int
        Bases of each size; size 3 offers 6.

    Returns
    -------
    ndarray, (num_bases * (kernel_size // 2), kernel_size, kernel_size), float64
        The bases of size 3, then of size 5, and so on.

    Raises
    ------
    TypeError, ValueError
        If `kernel_size` is not an odd int of at least 3, or `num_bases` more than size 3 offers.

    References
    ----------
    Wang et al., "Adaptive Convolutions with Per-pixel Dynamic Filter Atom", ICCV 2021.

    Examples
    --------
    >>> import dynarray as dyn
    >>> dyn.multiscale_bases(7).shape
    (18, 7, 7)
    """
    name = "multiscale_bases"
    kernel_size = _odd(name, kernel_size)
    wanted = check_int(name, "num_bases", num_bases, 1)
    scales = range(3, kernel_size + 1, 2)
    offered = min(len(fourier_bessel_bases(size)) for size in scales)
    if wanted > offered:
        raise ValueError(
            f"{name}: num_bases must be at most {offered}, all that its smallest size 3 offers, "
            f"got {num_bases!r}"
        )
    margins = [(kernel_size - size) // 2 for size in scales]
    return np.concatenate(
        [
            np.pad(fourier_bessel_bases(size, wanted), ((0, 0), (margin, margin), (margin, margin)))
            for size, margin in zip(scales, margins, strict=True)
        ]
    )


def _sampled(rho: np.ndarray, theta: np.ndarray, half: int) -> Iterator[np.ndarray]:
    """Every function of low enough frequency on a grid in polar coordinates, by rising frequency."""
    from scipy.special import jv

    for root, order in sorted(_roots(math.pi * (half + 0.5) * (2 if half < 2 else 1.5))):
        radial = np.where(rho < 1, jv(order, root * rho), 0) / abs(jv(order + 1, root))
        if order == 0:
            yield radial
        else:
            yield math.sqrt(2) * np.cos(order * theta) * radial
            yield math.sqrt(2) * np.sin(order * theta) * radial


def _roots(limit: float) -> Iterator[tuple[float, int]]:
    """The pairs (R_qp, q) with R_q,p+1 <= limit."""
    from scipy.special import jn_zeros

    # Roots of J_q are more than 3 apart, so that these are more than enough.
    count = int(limit / 3) + 2
    for order in range(_LARGEST_ORDER + 1):
        roots = jn_zeros(order, count)
        for root, following in pairwise(roots):
            if following <= limit:
                yield float(root), order


def _odd(name: str, kernel_size: int) -> int:
    size = check_int(name, "kernel_size", kernel_size, 3)
    if size % 2 == 0:
        raise ValueError(f"{name}: kernel_size must be odd, got {kernel_size!r}")
    return size
