"""Pooling."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, fractional_images, images, optional
from ._arguments import pair as pair_of
from ._common import accumulator, library, pair, plain
from .convolution import Geometry
from .indexing import getitem
from .joining import stack
from .reductions import mean
from .shapes import narrow, reshape, wide


@arguments(x=images)
def global_avg_pool(x: Any) -> Any:
    """Mean over the image: (N, C, H, W) -> (N, C, 1, 1).

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.

    Returns
    -------
    array, (N, C, 1, 1)
        The means; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.global_avg_pool(np.arange(8.0).reshape(1, 2, 2, 2)).tolist()
    [[[[1.5]], [[5.5]]]]
    """
    return mean(x, (2, 3), keepdims=True)


@arguments(x=fractional_images, kernel_size=pair_of(1), stride=optional(pair_of(1)), padding=pair_of())
@differentiable("x", x=("", lambda g, s: _spread_windows(g, s.shapes[0], s.kernel_size, s.stride, s.padding)))
def avg_pool2d(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Any:
    """Mean over windows of x (N, C, H, W); zeros of the padding count. `stride` defaults to the window.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.
    kernel_size : int or (y, x)
        Of the windows, in pixels.
    stride : int or (y, x), optional
        Step between windows; None: the size of a window.
    padding : int or (y, x)
        Pixels added on each side, at most half of a window.

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = (H + 2*pad_y - kh)//s_y + 1``; floats keep their dtype, integers give float64.

    Raises
    ------
    ValueError
        If x has not four axes, or the padding is too wide.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.avg_pool2d(np.arange(8.0).reshape(1, 1, 2, 4), 2).tolist()
    [[[[2.5, 4.5]]]]
    """
    kernel, geometry = _window(kernel_size, stride, padding)
    total = _fold(x, kernel, geometry)
    return narrow(total / (kernel[0] * kernel[1]), x.dtype)


@differentiable("grad", grad=("", lambda g, s: avg_pool2d(g, s.kernel_size, s.stride, s.padding)))
def _spread_windows(grad: Any, shape: Any, kernel_size: Any, stride: Any, padding: Any) -> Any:
    """The adjoint of `avg_pool2d`."""
    kernel, geometry = _window(kernel_size, stride, padding)
    kind = accumulator(grad.dtype) or grad.dtype
    result = np.zeros_like(grad, shape=shape, dtype=kind)
    share = wide(grad) / (kernel[0] * kernel[1])
    for out, inside in _overlaps(kernel, geometry, grad.shape[2:], shape[2:]):
        result[inside] += share[out]
    return narrow(result, grad.dtype)


def _window(kernel_size: Any, stride: Any, padding: Any) -> tuple[tuple[int, int], Geometry]:
    kernel = pair("pooling: kernel_size", kernel_size, 1)
    steps = kernel if stride is None else pair("pooling: stride", stride, 1)
    margin = pair("pooling: padding", padding)
    if 2 * margin[0] > kernel[0] or 2 * margin[1] > kernel[1]:
        raise ValueError(f"pooling: padding must be at most half of the window {kernel}, got {padding!r}")
    return kernel, Geometry(steps, margin, (1, 1), 1)


def _fold(x: Any, kernel: tuple[int, int], geometry: Geometry) -> Any:
    """Sum over windows, of 16-bit values in float32."""
    high, wide = geometry.output(x.shape[2:], kernel)
    kind = accumulator(x.dtype) or x.dtype
    result = np.zeros_like(x, shape=(*x.shape[:2], high, wide), dtype=kind)
    for out, inside in _overlaps(kernel, geometry, (high, wide), x.shape[2:]):
        result[out] += x[inside]
    return result


@arguments(x=images, kernel_size=pair_of(1), stride=optional(pair_of(1)), padding=pair_of())
@differentiable(
    "x",
    x=("x output", lambda g, s: _route(g, plain(s.x), plain(s.output), s.kernel_size, s.stride, s.padding)),
)
def max_pool2d(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Any:
    """Maximum over windows of x (N, C, H, W); the padding never wins. `stride` is the window size by default.

    The gradient of a window goes to its first maximum, in the order of rows. NaN is larger than any number.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.
    kernel_size : int or (y, x)
        Of the windows, in pixels.
    stride : int or (y, x), optional
        Step between windows; None: the size of a window.
    padding : int or (y, x)
        Pixels added on each side, at most half of a window.

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = (H + 2*pad_y - kh)//s_y + 1``; the dtype of x.

    Raises
    ------
    ValueError
        If x has not four axes, or the padding is too wide.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.max_pool2d(np.arange(8.0).reshape(1, 1, 2, 4), 2).tolist()
    [[[[5.0, 7.0]]]]
    """
    kernel, geometry = _window(kernel_size, stride, padding)
    high, wide = geometry.output(x.shape[2:], kernel)
    result = np.full_like(x, _least(x.dtype), shape=(*x.shape[:2], high, wide))
    for out, inside in _overlaps(kernel, geometry, (high, wide), x.shape[2:]):
        np.maximum(result[out], x[inside], out=result[out])
    return result


def _least(dtype: Any) -> Any:
    """What no value of this dtype is less than."""
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


@differentiable(
    "grad", grad=("", lambda g, s: _collect(g, s.x, s.pooled, s.kernel_size, s.stride, s.padding))
)
def _route(grad: Any, x: Any, pooled: Any, kernel_size: Any, stride: Any, padding: Any) -> Any:
    """The gradient of each window at the place of its maximum."""
    result = np.zeros_like(grad, shape=x.shape, dtype=accumulator(grad.dtype) or grad.dtype)
    for out, inside, chosen in _maxima(x, pooled, kernel_size, stride, padding):
        # Not a product with 0: an infinite gradient stays where it belongs.
        result[inside] += np.where(chosen, grad[out], 0)
    return narrow(result, grad.dtype)


@differentiable(
    "values", values=("", lambda g, s: _route(g, s.x, s.pooled, s.kernel_size, s.stride, s.padding))
)
def _collect(values: Any, x: Any, pooled: Any, kernel_size: Any, stride: Any, padding: Any) -> Any:
    """The value at the place of the maximum of each window: the adjoint of `_route`."""
    result = np.zeros_like(values, shape=pooled.shape)
    for out, inside, chosen in _maxima(x, pooled, kernel_size, stride, padding):
        result[out] += np.where(chosen, values[inside], 0)
    return result


def _maxima(
    x: Any, output: Any, kernel_size: Any, stride: Any, padding: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """For each tap: the windows it lies in, the pixels it reads, and which of these are the first maximum."""
    kernel, geometry = _window(kernel_size, stride, padding)
    free, hollow = np.ones_like(output, dtype=bool), output != output
    some = library(output) is not np or hollow.any()  # on a device, looking would mean waiting
    for out, inside in _overlaps(kernel, geometry, output.shape[2:], x.shape[2:]):
        read = x[inside]
        chosen = read == output[out]
        if some:
            chosen |= (read != read) & hollow[out]
        chosen &= free[out]
        free[out] &= ~chosen
        yield out, inside, chosen


def _overlaps(
    kernel: tuple[int, int], geometry: Geometry, outputs: tuple[int, int], image: tuple[int, int]
) -> Iterator[tuple[tuple, tuple]]:
    """For each tap, the index of the outputs that read inside the image, and the index of what they read."""
    for a in range(kernel[0]):
        out_y, in_y = geometry.overlap(0, a, (0, outputs[0]), image[0])
        for b in range(kernel[1]):
            out_x, in_x = geometry.overlap(1, b, (0, outputs[1]), image[1])
            yield (..., out_y, out_x), (..., in_y, in_x)


@arguments(x=images, output_size=pair_of(1))
def adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    """Mean over cells that divide x (N, C, H, W) into `output_size` parts, as equal as whole pixels allow.

    Cell i covers the rows from ``floor(i*H/Ho)`` to ``ceil((i+1)*H/Ho)``, so neighbours may share a row.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.
    output_size : int or (y, x)
        Number of cells along each axis.

    Returns
    -------
    array, (N, C, Ho, Wo)
        The means; floats keep their dtype, integers give float64.

    Raises
    ------
    ValueError
        If H or W is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.adaptive_avg_pool2d(np.arange(6.0).reshape(1, 1, 1, 6), (1, 2)).tolist()
    [[[[1.0, 4.0]]]]
    """
    high, wide = output_size
    n, c, h, w = x.shape
    if not h or not w:
        raise ValueError(f"adaptive_avg_pool2d: x must have H and W of at least 1, got {tuple(x.shape)}")
    if h % high == 0 and w % wide == 0:
        return mean(reshape(x, (n, c, high, h // high, wide, w // wide)), (3, 5))
    rows = [mean(getitem(x, (..., _cell(i, h, high), slice(None))), 2) for i in range(high)]
    x = stack(rows, 2)
    return stack([mean(getitem(x, (..., _cell(j, w, wide))), 3) for j in range(wide)], 3)


def _cell(i: int, size: int, parts: int) -> slice:
    return slice(i * size // parts, -(-(i + 1) * size // parts))
