"""`deform_conv2d` and `sample_points` in elementary functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._geometry import FARTHEST_OFFSET, input_positions
from .._outside import inside_pixels


def _sampler(functions: Any, x: Any, offset_groups: int, border: str) -> Callable[[Any, Any], Any]:
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
        whole = np.floor(np.where(np.isfinite(offset), offset, 0))
        at = base + np.where(reaching, whole, 0).astype(int)
        return at, whole, reaching & (at < size) & ((at >= 0) | (at == -1) & (offset > whole))

    def around(base: Any, offset: Any, at: Any, size: int) -> tuple[Any, Any]:
        """The pixels before and after a coordinate, each a copy of one inside if it is outside."""
        if border == "constant":
            return np.clip(at, -1, size), np.clip(at + 1, -1, size)
        whole = np.floor(np.where(np.isnan(offset), 0, offset))
        if border == "edge":  # from some place on all are alike
            steps = np.clip(whole, -FARTHEST_OFFSET, FARTHEST_OFFSET)
        else:  # all are again after a period, and a remainder is exact
            period = {"wrap": size, "symmetric": 2 * size, "reflect": max(1, 2 * size - 2)}[border]
            far = abs(offset) >= FARTHEST_OFFSET
            steps = np.where(far, np.fmod(np.where(np.isinf(whole), 0, whole), period), whole)
        first = base + steps.astype(int)
        return inside_pixels(first, size, border), inside_pixels(first + 1, size, border)

    def sample(y: tuple[Any, Any], x: tuple[Any, Any]) -> Any:
        dy, dx = plain(y[1]), plain(x[1])
        (row, whole_y, near_y), (column, whole_x, near_x) = pixel(y[0], dy, height), pixel(x[0], dx, width)
        lost = np.isnan(dy) | np.isnan(dx)
        if border == "constant":
            near = near_y & near_x
        else:
            lost |= (np.isinf(dy) | np.isinf(dx)) & (border != "edge")
            near = ~lost
        rest = np.where(lost, np.nan, 0).astype(dy.dtype)
        rows, columns = (
            [np.where(near, at, -1)[:, :, None] + 1 for at in around(base, offset, at, size)]
            for (base, offset), at, size in (((y[0], dy), row, height), ((x[0], dx), column, width))
        )
        fractions = [
            functions.expand_dims(functions.where(near & np.isfinite(plain(offset)), offset - whole, rest), 2)
            for offset, whole in ((y[1], whole_y), (x[1], whole_x))
        ]
        ly, lx = fractions
        sampled: Any = 0
        for i in range(2):
            for j in range(2):
                value = image[count(0), count(1), count(2), rows[i], columns[j]]
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
    border: str,
    deterministic: bool,
) -> Any:
    """y = bias + sum over taps of weight * mask * sampled image."""
    n, (kh, kw), outputs = x.shape[0], weight.shape[2:], offset.shape[5:]
    groups = x.shape[1] // max(1, weight.shape[1]) or 1
    sample = _sampler(functions, x, offset.shape[1], border)
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


def sample_forward(functions: Any, x: Any, points: Any, *, border: str, deterministic: bool) -> Any:
    """y[n,c,i] = x[n,c] at the points i."""
    n, count, _, high, wide = points.shape
    sample = _sampler(functions, x, 1, border)
    at_y, at_x = (functions.reshape(points[:, :, axis], (n, 1, count * high, wide)) for axis in range(2))
    return functions.reshape(sample((0, at_y), (0, at_x)), (n, x.shape[1], count, high, wide))
