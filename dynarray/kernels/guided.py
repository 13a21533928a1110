"""Kernels of the guided filter."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from .._check import check_int
from .._photograph import cast, functions_of, library_of_values
from ..typing import Border
from .mixed import Guide, check_positive, number, shifted, stacked


def guided(
    guide: Any, radius: int, epsilon: Any, *, channel_axis: int | None = -1, border: Border = "reflect"
) -> Any:
    """Kernels of the guided filter: in every window around the pixel a line is fitted to the guide.

    With windows ``o_k`` of ``n = (2*radius + 1)**2`` pixels, and mean ``m_k`` and covariance ``S_k`` of the
    guide I in them, the weight of pixel q at p is

        w_p[q] = 1/n**2 * sum over k with p, q in o_k of 1 + (I_p - m_k)^T (S_k + epsilon)^-1 (I_q - m_k)

    which is what `He, Sun and Tang` derive of their filter: with a grey guide, ``mean(a) * I + mean(b)`` with
    ``a = cov(I, photo) / (var(I) + epsilon)`` and ``b = mean(photo) - a * mean(I)``.

    Parameters
    ----------
    guide : array, (H, W), (H, W, C) or (N, H, W, C)
        The photograph whose edges are kept, as `dynarray.images.filter` takes it.
    radius : int
        Of the windows. A kernel reaches twice as far.
    epsilon : float
        Variance of the guide, in its units squared, below which a window counts as flat.
    channel_axis, border
        As `dynarray.images.filter` takes them; filter with the same border.

    Returns
    -------
    array, (k, k, H, W) or (N, k, k, H, W), with k = 4*radius + 1
        The kernels, of sum 1, in the dtype of `guide`, in float64 for integers and float32 for 16 bits.

    Raises
    ------
    TypeError, ValueError
        For arrays and shapes that do not fit, and an `epsilon` not above zero.

    Notes
    -----
    Computed in float64. Weights may be negative. Where `guide` or `epsilon` is a Variable, gradients are
    exact.

    References
    ----------
    He, Sun and Tang, "Guided image filtering", ECCV 2010, equation (11).

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> step = np.repeat([[0.0, 100.0]], 4, axis=1)
    >>> noisy = step + [[3, -3, 3, -3, 3, -3, 3, -3]]
    >>> dyn.images.filter(noisy, dyn.kernels.guided(step, 1, 1.0)).round(1).tolist()
    [[0.3, -0.3, 0.0, -1.3, 101.3, 100.0, 100.3, 99.7]]
    """
    name = "guided"
    r = check_int(name, "radius", radius, 0)
    check_positive(name, "epsilon", epsilon)
    pixels = Guide(name, guide, channel_axis, border, 2 * r, np.float64)
    centre = pixels.centre
    epsilon = number(name, "epsilon", epsilon, centre)
    windows, xp = _Windows(pixels, r, epsilon), functions_of(centre, epsilon)

    def shares(dy: int, dx: int) -> Any:
        """How the window around (dy, dx) weighs differences from p, and, behind them, p itself."""
        mean, sharpness = windows.at(dy, dx)
        apart = centre - mean
        slope = xp.einsum("ncdhw,ndhw->nchw", sharpness, apart)
        return xp.concatenate((slope, 1 + (slope * apart).sum(axis=1)[:, None]), 1)

    reach = range(-r, r + 1)
    lines = [_overlapping([shares(dy, dx) for dx in reach]) for dy in reach]
    sums = [_overlapping(list(column)) for column in zip(*lines)]  # one for each dx, of one for each dy

    def weights() -> Iterator[Any]:
        for dy in range(-2 * r, 2 * r + 1):
            for dx in range(-2 * r, 2 * r + 1):
                found = sums[dx + 2 * r][dy + 2 * r]
                apart = pixels.at(dy, dx) - centre
                weight = ((found[:, :-1] * apart).sum(axis=1) + found[:, -1]) / (2 * r + 1) ** 4
                yield cast(weight, pixels.result)

    return pixels.given(stacked(weights(), (4 * r + 1, 4 * r + 1)))


def _overlapping(values: list[Any]) -> list[Any]:
    """Of 2r + 1 windows along an axis the sums over those that reach each of the 4r + 1 pixels."""
    backwards = list(accumulate(reversed(values)))[:-1]
    return [*accumulate(values), *reversed(backwards)]


class _Windows:
    """Means and inverse covariances of the windows around each pixel."""

    def __init__(self, pixels: Guide, radius: int, epsilon: Any) -> None:
        self.radius, self.shape, channels = radius, pixels.shape[2:], pixels.shape[1]
        values, xp = pixels.surroundings, functions_of(pixels.surroundings, epsilon)
        self.means = self._box(values)
        products = self._box(values[:, :, None] * values[:, None])
        ridge = library_of_values(values).asarray(np.eye(channels)[..., None, None])
        covariance = products - self.means[:, :, None] * self.means[:, None] + epsilon * ridge
        inverse = xp.linalg.inv(covariance.transpose((0, 3, 4, 1, 2)))
        self.sharpness = inverse.transpose((0, 3, 4, 1, 2))

    def _box(self, values: Any) -> Any:
        """Means over the windows that lie inside."""
        width = 2 * self.radius + 1
        for axis in (-2, -1):
            size = values.shape[axis] - width + 1
            after = (slice(None),) * (-axis - 1)
            values = sum(values[(..., slice(i, i + size), *after)] for i in range(width)) / width
        return values

    def at(self, dy: int, dx: int) -> tuple[Any, Any]:
        """(N, C, H, W) and (N, C, C, H, W): of the window so far from each pixel."""
        mean, sharpness = (
            shifted(array, self.radius, self.shape, dy, dx) for array in (self.means, self.sharpness)
        )
        return mean, sharpness
