"""Convolution, and its two adjoints, which are differentiable in turn.

NumPy arrays of one real dtype go to the kernels of `dynarray.cpu.engine.convolution`; others, CuPy's among
them, to BLAS over bounded column tiles. A tile of columns holds, for some rows of outputs, every input value
that these rows read; it is never larger than about `TILE_BYTES`. A 1 x 1 convolution with stride 1 is one
matrix product and needs no columns. A depthwise convolution has no sum over channels for BLAS to do, so it
runs tap by tap over blocks of channels that stay in cache.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dynarray._check import check_pair
from dynarray._geometry import output_size, reading_inside
from dynarray._operator import load

from ..function import differentiable
from ._arguments import arguments, array, as_parameters, integer, optional
from ._arguments import pair as pair_of
from ._common import accumulator, library
from .shapes import reshape, sum

TILE_BYTES = 4 << 20


# A range of output rows and a range of output columns.
Block = tuple[tuple[int, int], tuple[int, int]]


class Geometry(NamedTuple):
    """Stride, padding and dilation as (y, x) pairs, and the number of groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def along(self, axis: int) -> tuple[int, int, int]:
        """Stride, dilation and padding of one axis."""
        return self.stride[axis], self.dilation[axis], self.padding[axis]

    def output(self, image: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Ho, Wo."""
        high, wide = (output_size(image[i], kernel[i], *self.along(i)) for i in (0, 1))
        return high, wide

    def overlap(self, axis: int, tap: int, outputs: tuple[int, int], size: int) -> tuple[slice, slice]:
        """Which outputs of a range have this tap inside the image, and the inputs they read."""
        return reading_inside(outputs, tap, size, *self.along(axis))


def _parametric(function: Callable) -> Callable:
    """A convolution whose x has the dtype of its weights."""

    @functools.wraps(function)
    def call(x: Any, weight: Any, bias: Any = None, **params: Any) -> Any:
        x, weight, bias = as_parameters(function.__name__, x, weight=weight, bias=bias)
        return function(x, weight, bias, **params)

    return call


@arguments(
    x=array,
    weight=array,
    bias=optional(array),
    stride=pair_of(1),
    padding=pair_of(),
    dilation=pair_of(1),
    groups=integer(1),
)
@_parametric
@differentiable(
    "x weight bias",
    x=(
        "weight",
        lambda g, s: _input_gradient(g, s.weight, s.shapes[0], s.stride, s.padding, s.dilation, s.groups),
    ),
    weight=(
        "x",
        lambda g, s: _weight_gradient(g, s.x, s.shapes[1], s.stride, s.padding, s.dilation, s.groups),
    ),
    bias=("", lambda g, s: sum(g, (0, 2, 3))),
)
def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Cross-correlation of images with a bank of kernels.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    weight : array, (O, C/groups, kh, kw)
        The kernels.
    bias : array, (O,), optional
        Added to the output.
    stride, padding, dilation : int or (y, x)
        Step between outputs, zeros added on each side, step between taps.
    groups : int
        Output channels of one group see the input channels of that group only; it divides C and O.

    Returns
    -------
    array, (N, O, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``.

    Raises
    ------
    ValueError
        If shapes do not fit, or `groups` does not divide C and O.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x = np.arange(12.0).reshape(1, 1, 3, 4)
    >>> difference = np.array([[-1.0, 1.0]]).reshape(1, 1, 1, 2)  # of neighbours in a row
    >>> F.conv2d(x, difference).tolist()
    [[[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]]
    """
    geometry = _geometry(stride, padding, dilation, groups)
    _check(x, weight, bias, geometry)
    output = _correlate(x, weight, geometry)
    if bias is not None:
        output += bias[:, None, None]
    return output


@arguments(
    x=array,
    weight=array,
    bias=optional(array),
    stride=pair_of(1),
    padding=pair_of(),
    output_padding=pair_of(),
    dilation=pair_of(1),
    groups=integer(1),
)
@_parametric
def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """The transpose of `conv2d`: every input pixel adds a scaled kernel to the output.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    weight : array, (C, O/groups, kh, kw)
        The kernels, as `conv2d` takes them to go from O to C channels.
    bias : array, (O,), optional
        Added to the output.
    stride, padding : int or (y, x)
        Step between the kernels in the output, pixels cut off each side.
    output_padding : int or (y, x)
        Rows and columns added at the bottom and on the right, less than stride: `conv2d` maps images that
        differ by so little to one size.
    dilation : int or (y, x)
        Step between taps.
    groups : int
        Divides C and O.

    Returns
    -------
    array, (N, O, Ho, Wo)
        ``Ho = (H - 1)*s_y - 2*pad_y + d_y*(kh-1) + output_pad_y + 1``.

    Raises
    ------
    ValueError
        If shapes do not fit, or `output_padding` or `padding` is too large.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x = np.array([[1.0, 2.0]]).reshape(1, 1, 1, 2)
    >>> F.conv_transpose2d(x, np.ones((1, 1, 2, 2)), stride=2).tolist()
    [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]
    """
    name = "conv_transpose2d"
    steps, spread = check_pair(name, "stride", stride, 1), check_pair(name, "dilation", dilation, 1)
    margin, extra = (
        check_pair(name, "padding", padding, 0),
        check_pair(name, "output_padding", output_padding, 0),
    )
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"{name}: x must be (N, C, H, W) and weight (C, O/groups, kh, kw), "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if not isinstance(groups, int | np.integer) or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"{name}: groups must divide C = {weight.shape[0]}, got {groups!r}")
    channels = weight.shape[1] * groups
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"{name}: bias must be (O,) = {(channels,)}, got {tuple(bias.shape)}")
    if any(e >= s for e, s in zip(extra, steps)):
        raise ValueError(f"{name}: output_padding must be less than stride, got {output_padding!r}")
    size = [
        (x.shape[2 + i] - 1) * steps[i] - 2 * margin[i] + spread[i] * (weight.shape[2 + i] - 1) + extra[i] + 1
        for i in (0, 1)
    ]
    if min(size) < 0:
        raise ValueError(f"{name}: padding {padding!r} cuts off more than there is")
    y = _input_gradient(x, weight, (x.shape[0], channels, *size), steps, margin, spread, groups)
    return y if bias is None else y + reshape(bias, (-1, 1, 1))


@differentiable(
    "grad weight",
    grad=("weight", lambda g, s: conv2d(g, s.weight, **_same(s))),
    weight=("grad", lambda g, s: _weight_gradient(s.grad, g, s.shapes[1], *_same(s).values())),
)
def _input_gradient(
    grad: Any, weight: Any, shape: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    return _correlate_input(grad, weight, shape, _geometry(stride, padding, dilation, groups))


@differentiable(
    "grad x",
    grad=("x", lambda g, s: conv2d(s.x, g, **_same(s))),
    x=("grad", lambda g, s: _input_gradient(s.grad, g, s.shapes[1], *_same(s).values())),
)
def _weight_gradient(
    grad: Any, x: Any, shape: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    return _correlate_weight(grad, x, shape, _geometry(stride, padding, dilation, groups))


def _same(s: Any) -> dict[str, Any]:
    return {"stride": s.stride, "padding": s.padding, "dilation": s.dilation, "groups": s.groups}


def _geometry(stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    return Geometry(
        check_pair("conv2d", "stride", stride, 1),
        check_pair("conv2d", "padding", padding, 0),
        check_pair("conv2d", "dilation", dilation, 1),
        groups,
    )


def _check(x: Any, weight: Any, bias: Any, geometry: Geometry) -> None:
    groups = geometry.groups
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            "conv2d: x must be (N, C, H, W) and weight (O, C/groups, kh, kw), "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if (
        not isinstance(groups, int | np.integer)
        or groups < 1
        or x.shape[1] % groups
        or weight.shape[0] % groups
    ):
        raise ValueError(
            f"conv2d: groups must divide C = {x.shape[1]} and O = {weight.shape[0]}, got {groups!r}"
        )
    if weight.shape[1] * groups != x.shape[1]:
        raise ValueError(
            f"conv2d: weight must be (O, C/groups, kh, kw) with C/groups = {x.shape[1] // groups}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv2d: bias must be (O,) = {weight.shape[:1]}, got {bias.shape}")


def _is_matmul(kernel: tuple[int, ...], geometry: Geometry) -> bool:
    return kernel == (1, 1) and geometry.stride == (1, 1) and geometry.padding == (0, 0)


def _is_depthwise(weight: tuple[int, ...], geometry: Geometry) -> bool:
    return weight[1] == 1 and weight[0] == geometry.groups


def _native(x: Any, weight: Any) -> Any:
    """The module of kernels that takes these arrays; None where BLAS does the work."""
    convolution = load("dynarray.cpu.engine.convolution")
    return convolution if convolution.suits(x, weight) else None


def _in_float32(function: Callable) -> Callable:
    """A sum of products of two arrays: 16-bit values are added up in float32."""

    @functools.wraps(function)
    def call(a: Any, b: Any, *rest: Any) -> Any:
        dtype = np.result_type(a, b)
        kind = accumulator(dtype)
        if kind is None:
            return function(a, b, *rest)
        return function(a.astype(kind), b.astype(kind), *rest).astype(dtype)

    return call


@_in_float32
def _correlate(x: Any, weight: Any, geometry: Geometry) -> Any:
    n, _, h, w = x.shape
    o, per, kh, kw = weight.shape
    high, wide = geometry.output((h, w), (kh, kw))
    groups = geometry.groups
    kernels = weight.reshape(groups, o // groups, per * kh * kw)
    dtype = np.result_type(x, weight)
    if _is_depthwise(weight.shape, geometry):
        return _depthwise(x, weight, geometry, (high, wide), dtype)
    if native := _native(x, weight):
        return native.correlate(x, weight, (high, wide), native.Steps(*geometry))
    if _is_matmul((kh, kw), geometry):
        return np.matmul(kernels, x.reshape(n, groups, per, h * w)).reshape(n, o, h, w)
    output = library(x).empty((n, groups, o // groups, high * wide), dtype)
    for i, pixels, columns in _tiles(x, (kh, kw), geometry, dtype):
        np.matmul(kernels, columns, out=output[i, :, :, pixels])
    return output.reshape(n, o, high, wide)


@_in_float32
def _correlate_weight(grad: Any, x: Any, shape: tuple, geometry: Geometry) -> Any:
    n, o, high, wide = grad.shape
    groups, dtype = geometry.groups, np.result_type(x, grad)
    if _is_depthwise(shape, geometry):
        return _depthwise_weight(grad, x, shape, geometry, dtype)
    if native := _native(grad, x):
        return native.correlate_weight(grad, x, shape, native.Steps(*geometry))
    result = library(x).zeros((groups, o // groups, shape[1] * shape[2] * shape[3]), dtype)
    if _is_matmul(shape[2:], geometry):
        images = x.reshape(n, groups, shape[1], high * wide)
        parts = grad.reshape(n, groups, o // groups, high * wide)
        for i in range(n):
            result += np.matmul(parts[i], images[i].swapaxes(1, 2))
        return result.reshape(shape)
    grad = grad.reshape(n, groups, o // groups, high * wide)
    for i, pixels, columns in _tiles(x, shape[2:], geometry, dtype):
        result += np.matmul(grad[i, :, :, pixels], columns.swapaxes(1, 2))
    return result.reshape(shape)


@_in_float32
def _correlate_input(grad: Any, weight: Any, shape: tuple, geometry: Geometry) -> Any:
    n, c, h, w = shape
    o, per, kh, kw = weight.shape
    high, wide = grad.shape[2:]
    groups, dtype = geometry.groups, np.result_type(weight, grad)
    if _is_depthwise(weight.shape, geometry):
        return _depthwise_input(grad, weight, shape, geometry, dtype)
    if native := _native(grad, weight):
        return native.correlate_input(grad, weight, shape, native.Steps(*geometry))
    margin = [geometry.dilation[i] * (weight.shape[2 + i] - 1) - geometry.padding[i] for i in (0, 1)]
    if geometry.stride == (1, 1) and min(margin) >= 0 and o <= 2 * c:
        # Gathering columns of grad is quicker than adding up columns of the result.
        kernels = weight[:, :, ::-1, ::-1].reshape(groups, o // groups, per, kh, kw).swapaxes(1, 2)
        adjoint = geometry._replace(padding=(margin[0], margin[1]))
        return _correlate(grad, kernels.reshape(c, o // groups, kh, kw), adjoint)
    kernels = weight.reshape(groups, o // groups, per * kh * kw).swapaxes(1, 2)
    grad = grad.reshape(n, groups, o // groups, high * wide)
    if _is_matmul((kh, kw), geometry):
        return np.matmul(kernels, grad).reshape(shape)
    result = library(grad).zeros(shape, dtype)
    taps = c * kh * kw
    blocks = list(_blocks(taps * dtype.itemsize, high, wide))
    buffer = library(grad).empty(taps * max(map(_area, blocks), default=0), dtype)
    for i in range(n):
        for block in blocks:
            columns = buffer[: taps * _area(block)].reshape(groups, taps // groups, _area(block))
            np.matmul(kernels, grad[i, :, :, _flat(block, wide)], out=columns)
            columns = columns.reshape(c, kh, kw, *_sides(block))
            for a, b, out, into in _taps((kh, kw), geometry, block, (h, w)):
                result[i][:, *into] += columns[:, a, b, *out]
    return result


def _blocks(column_bytes: int, high: int, wide: int) -> Iterator[Block]:
    """The output in blocks whose columns fit into a tile: whole rows, or parts of a row that is too long."""
    fitting = max(TILE_BYTES // max(column_bytes, 1), 1)
    rows, columns = max(fitting // max(wide, 1), 1), max(min(fitting, wide), 1)
    for top in range(0, high, rows):
        for left in range(0, wide, columns):
            yield (top, min(top + rows, high)), (left, min(left + columns, wide))


def _sides(block: Block) -> tuple[int, int]:
    return block[0][1] - block[0][0], block[1][1] - block[1][0]


def _area(block: Block) -> int:
    rows, columns = _sides(block)
    return rows * columns


def _flat(block: Block, wide: int) -> slice:
    """The outputs of a block, which follow one another in memory."""
    (top, bottom), (left, right) = block
    return slice(top * wide + left, (bottom - 1) * wide + right)


def _taps(
    kernel: Any, geometry: Geometry, block: Block, image: tuple[int, int]
) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
    """For each tap (a, b): outputs of the block that read inside the image, and the inputs they read."""
    for a in range(kernel[0]):
        out_y, in_y = geometry.overlap(0, a, block[0], image[0])
        for b in range(kernel[1]):
            out_x, in_x = geometry.overlap(1, b, block[1], image[1])
            yield a, b, (out_y, out_x), (in_y, in_x)


def _tiles(x: Any, kernel: Any, geometry: Geometry, dtype: Any) -> Iterator[tuple[int, slice, Any]]:
    """Per tile: the image, the outputs, and their columns (groups, C/groups*kh*kw, outputs) in one buffer."""
    n, c, h, w = x.shape
    kh, kw = kernel
    high, wide = geometry.output((h, w), (kh, kw))
    taps = c * kh * kw
    blocks = list(_blocks(taps * dtype.itemsize, high, wide))
    buffer = library(x).empty(taps * max(map(_area, blocks), default=0), dtype)
    for i in range(n):
        for block in blocks:
            columns = buffer[: taps * _area(block)].reshape(c, kh, kw, *_sides(block))
            for a, b, (out_y, out_x), inside in _taps(kernel, geometry, block, (h, w)):
                tap = columns[:, a, b]
                tap[:, : out_y.start] = 0
                tap[:, out_y.stop :] = 0
                tap[:, out_y, : out_x.start] = 0
                tap[:, out_y, out_x.stop :] = 0
                tap[:, out_y, out_x] = x[i][:, *inside]
            yield (
                i,
                _flat(block, wide),
                columns.reshape(geometry.groups, taps // geometry.groups, _area(block)),
            )


def _channel_blocks(c: int, plane_bytes: int) -> Iterator[slice]:
    size = max(1, (256 << 10) // max(plane_bytes, 1))
    for start in range(0, c, size):
        yield slice(start, min(start + size, c))


def _depthwise(x: Any, weight: Any, geometry: Geometry, output: tuple[int, int], dtype: Any) -> Any:
    n, c, h, w = x.shape
    result = library(x).zeros((n, c, *output), dtype)
    for i in range(n):
        for block in _channel_blocks(c, output[0] * output[1] * dtype.itemsize):
            for a, b, out, inside in _taps(
                weight.shape[2:], geometry, ((0, output[0]), (0, output[1])), (h, w)
            ):
                result[i, block][:, *out] += weight[block, 0, a, b, None, None] * x[i, block][:, *inside]
    return result


def _depthwise_input(grad: Any, weight: Any, shape: tuple, geometry: Geometry, dtype: Any) -> Any:
    high, wide = grad.shape[2:]
    result = library(grad).zeros(shape, dtype)
    for i in range(shape[0]):
        for block in _channel_blocks(shape[1], high * wide * dtype.itemsize):
            for a, b, out, inside in _taps(weight.shape[2:], geometry, ((0, high), (0, wide)), shape[2:]):
                result[i, block][:, *inside] += weight[block, 0, a, b, None, None] * grad[i, block][:, *out]
    return result


def _depthwise_weight(grad: Any, x: Any, shape: tuple, geometry: Geometry, dtype: Any) -> Any:
    high, wide = grad.shape[2:]
    result = library(grad).zeros(shape, dtype)
    for i in range(grad.shape[0]):
        for block in _channel_blocks(shape[0], high * wide * dtype.itemsize):
            for a, b, out, inside in _taps(shape[2:], geometry, ((0, high), (0, wide)), x.shape[2:]):
                product = grad[i, block][:, *out] * x[i, block][:, *inside]
                result[block, 0, a, b] += product.sum(axis=(1, 2))
    return result
