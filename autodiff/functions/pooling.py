"""Pooling."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._common import pair
from .convolution import Geometry
from .reductions import max, mean
from .shapes import getitem, pad, reshape, stack


def global_avg_pool(x: Any) -> Any:
    """Mean over the image: (N, C, H, W) -> (N, C, 1, 1)."""
    return mean(x, (2, 3), keepdims=True)


@differentiable("x", x=("", lambda g, s: _spread_windows(g, s.shapes[0], s.kernel_size, s.stride, s.padding)))
def avg_pool2d(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Any:
    """Mean over windows of x (N, C, H, W); zeros of the padding count. `stride` is the window size by default."""
    kernel, geometry = _window(kernel_size, stride, padding)
    return _fold(x, kernel, geometry) / (kernel[0] * kernel[1])


@differentiable("grad", grad=("", lambda g, s: avg_pool2d(g, s.kernel_size, s.stride, s.padding)))
def _spread_windows(grad: Any, shape: Any, kernel_size: Any, stride: Any, padding: Any) -> Any:
    """The adjoint of `avg_pool2d`."""
    kernel, geometry = _window(kernel_size, stride, padding)
    result = np.zeros_like(grad, shape=shape)
    share = grad / (kernel[0] * kernel[1])
    for a in range(kernel[0]):
        out_y, in_y = geometry.overlap(0, a, (0, grad.shape[2]), shape[2])
        for b in range(kernel[1]):
            out_x, in_x = geometry.overlap(1, b, (0, grad.shape[3]), shape[3])
            result[:, :, in_y, in_x] += share[:, :, out_y, out_x]
    return result


def _window(kernel_size: Any, stride: Any, padding: Any) -> tuple[tuple[int, int], Geometry]:
    kernel = pair("pooling: kernel_size", kernel_size, 1)
    steps = kernel if stride is None else pair("pooling: stride", stride, 1)
    margin = pair("pooling: padding", padding)
    if 2 * margin[0] > kernel[0] or 2 * margin[1] > kernel[1]:
        raise ValueError(f"pooling: padding must be at most half of the window {kernel}, got {padding!r}")
    return kernel, Geometry(steps, margin, (1, 1), 1)


def _fold(x: Any, kernel: tuple[int, int], geometry: Geometry) -> Any:
    """Sum over windows."""
    high, wide = geometry.output(x.shape[2:], kernel)
    result = np.zeros_like(x, shape=(*x.shape[:2], high, wide))
    for a in range(kernel[0]):
        out_y, in_y = geometry.overlap(0, a, (0, high), x.shape[2])
        for b in range(kernel[1]):
            out_x, in_x = geometry.overlap(1, b, (0, wide), x.shape[3])
            result[:, :, out_y, out_x] += x[:, :, in_y, in_x]
    return result


def max_pool2d(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Any:
    """Maximum over windows of x (N, C, H, W); the padding never wins. `stride` is the window size by default.

    Elements of a window that share the maximum share its gradient equally.
    """
    kernel, geometry = _window(kernel_size, stride, padding)
    margin_y, margin_x = geometry.padding
    high, wide = geometry.output(x.shape[2:], kernel)
    if margin_y or margin_x:
        x = pad(x, ((0, 0), (0, 0), (margin_y, margin_y), (margin_x, margin_x)), -np.inf)
    step_y, step_x = geometry.stride
    taps = [
        getitem(x, (..., slice(a, a + (high - 1) * step_y + 1, step_y), slice(b, b + (wide - 1) * step_x + 1, step_x)))
        for a in range(kernel[0])
        for b in range(kernel[1])
    ]
    return max(stack(taps), axis=0)


def adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    """Mean over cells that divide x (N, C, H, W) into `output_size` parts, as equal as whole pixels allow.

    Cell i covers the rows from ``floor(i*H/Ho)`` to ``ceil((i+1)*H/Ho)``, so neighbours may share a row.
    """
    high, wide = pair("adaptive_avg_pool2d: output_size", output_size, 1)
    n, c, h, w = x.shape
    if h % high == 0 and w % wide == 0:
        return mean(reshape(x, (n, c, high, h // high, wide, w // wide)), (3, 5))
    rows = [mean(getitem(x, (..., _cell(i, h, high), slice(None))), 2) for i in range(high)]
    x = stack(rows, 2)
    return stack([mean(getitem(x, (..., _cell(j, w, wide))), 3) for j in range(wide)], 3)


def _cell(i: int, size: int, parts: int) -> slice:
    return slice(i * size // parts, -(-(i + 1) * size // parts))
