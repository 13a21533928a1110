"""`deform_conv2d` and `sample_points` in elementary functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._geometry import FARTHEST_OFFSET, input_positions


def _sampler(functions: Any, x: Any, offset_groups: int) -> Callable[[Any, Any], Any]:
    """A function of points (y, x), each (N, D, Ho, Wo), that gives the image there: (N, D, C/D, Ho, Wo).

    Either coordinate is a pair, whole pixels and an offset from there, that are never added up in one float.
    Which pixels surround a point is a constant to the derivatives; how they are weighted is not.
    """
    plain = getattr(functions, "stop_gradient", lambda array: array)
    n, channels, height, width = x.shape
    image = functions.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    image = functions.reshape(image, (n, offset_groups, channels // offset_groups, height + 2, width + 2))

    def count(axis: int) -> Any:
        shape = [1] * 5
        shape[axis] = image.shape[axis]
        return np.arange(image.shape[axis], like=plain(x)).reshape(shape)

    def pixel(base: Any, offset: Any, size: int) -> tuple[Any, Any, Any]:
        """The whole pixel of a coordinate, the whole part of its offset, and whether it is near the image."""
        reaching = abs(offset) < FARTHEST_OFFSET  # not NaN
        whole = np.floor(np.where(reaching, offset, 0))
        at = base + whole.astype(int)
        return at, whole, reaching & (at < size) & ((at >= 0) | (at == -1) & (offset > whole))

    def sample(y: tuple[Any, Any], x: tuple[Any, Any]) -> Any:
        dy, dx = plain(y[1]), plain(x[1])
        (row, whole_y, near_y), (column, whole_x, near_x) = pixel(y[0], dy, height), pixel(x[0], dx, width)
        near, lost = near_y & near_x, np.where(np.isnan(dy) | np.isnan(dx), np.nan, 0).astype(dy.dtype)
        first = [np.where(near, at, -2) for at in (row, column)]
        fractions = [
            functions.expand_dims(functions.where(near, offset - whole, lost), 2)
            for offset, whole in ((y[1], whole_y), (x[1], whole_x))
        ]
        ly, lx = fractions
        sampled: Any = 0
        for i in range(2):
            for j in range(2):
                rows = np.clip(first[0] + i, -1, height)[:, :, None] + 1
                columns = np.clip(first[1] + j, -1, width)[:, :, None] + 1
                value = image[count(0), count(1), count(2), rows, columns]
                sampled = sampled + (ly if i else 1 - ly) * (lx if j else 1 - lx) * value
        return sampled

    return sample


def forward(
    functions: Any,
    x: Any,
    offset: Any,
    weight: Any,
    mask: Any,
    bias: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    deterministic: bool,
) -> Any:
    """y = bias + sum over taps of weight * mask * sampled image."""
    n, (kh, kw), outputs = x.shape[0], weight.shape[2:], offset.shape[5:]
    groups = x.shape[1] // max(1, weight.shape[1]) or 1
    sample = _sampler(functions, x, offset.shape[1])
    plain = getattr(functions, "stop_gradient", lambda array: array)(x)

    def positions(axis: int, tap: int) -> Any:
        found = input_positions(outputs[axis], tap, stride[axis], dilation[axis], padding[axis])
        return np.asarray(found, like=plain)

    y: Any = 0
    for a in range(kh):
        for b in range(kw):
            sampled = sample(
                (positions(0, a)[:, None], offset[:, :, a, b, 0]), (positions(1, b), offset[:, :, a, b, 1])
            )
            if mask is not None:
                sampled = sampled * functions.expand_dims(mask[:, :, a, b], 2)
            columns = functions.reshape(sampled, (n, groups, weight.shape[1], outputs[0] * outputs[1]))
            by_group = functions.reshape(
                weight[:, :, a, b], (groups, weight.shape[0] // groups, weight.shape[1])
            )
            y = y + functions.matmul(by_group, columns)
    y = functions.reshape(y, (n, weight.shape[0], *outputs))
    return y if bias is None else y + functions.reshape(bias, (1, weight.shape[0], 1, 1))


def sample_forward(functions: Any, x: Any, points: Any, *, deterministic: bool) -> Any:
    """y[n,c,i] = x[n,c] at the points i."""
    n, count, _, high, wide = points.shape
    sample = _sampler(functions, x, 1)
    at_y, at_x = (functions.reshape(points[:, :, axis], (n, 1, count * high, wide)) for axis in range(2))
    return functions.reshape(sample((0, at_y), (0, at_x)), (n, x.shape[1], count, high, wide))
