"""`deform_conv2d` and `sample_points` in elementary functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._geometry import input_positions


def _sampler(functions: Any, x: Any, offset_groups: int) -> Callable[[Any, Any], Any]:
    """A function of points (y, x), each (N, D, Ho, Wo), that gives the image there: (N, D, C/D, Ho, Wo).

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

    def sample(at_y: Any, at_x: Any) -> Any:
        y, x = plain(at_y), plain(at_x)
        near = (y > -1) & (y < height) & (x > -1) & (x < width)
        lost = np.isnan(y) | np.isnan(x)
        first, fractions = [], []
        for at, values in ((at_y, y), (at_x, x)):
            pixel = np.floor(np.where(near, values, -2))
            fraction = functions.where(near, at - pixel, np.where(lost, np.nan, 0).astype(values.dtype))
            first.append(pixel.astype(int))
            fractions.append(functions.expand_dims(fraction, 2))
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
        return np.asarray(found, plain.dtype, like=plain)

    y: Any = 0
    for a in range(kh):
        for b in range(kw):
            sampled = sample(
                offset[:, :, a, b, 0] + positions(0, a)[:, None], offset[:, :, a, b, 1] + positions(1, b)
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
    return functions.reshape(sample(at_y, at_x), (n, x.shape[1], count, high, wide))
