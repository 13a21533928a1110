"""Grid, block and arguments of the kernels in local_filter.cu.

Parameters arrive resolved and checked: ``combine`` is "mul" or "add"; ``stride``, ``dilation`` and
``padding`` are (y, x) pairs of ints; ``upsample`` is an int, and stride is (1, 1) where it exceeds 1. Arrays
are all NumPy or all CuPy, with any strides:

- x (N, C, H, W), weight (N, G, kh, kw, Ho, Wo), channel_weight None or (N, u, u, C, kh, kw).

They are of one dtype, but where x has 16 bits, weight and channel_weight may each be float32. The output and
its gradient have the dtype of x. Kernels take channel_weight, which is small, as float32 then in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from rawkernels.launch import (
    accumulator_dtype,
    blocks,
    contiguous,
    empty,
    int32s,
    launch,
    needs_wide_index,
    type_constants,
    zeros,
)
from rawkernels.source import Program, constants, program

FILE = "local_filter.cu"
BLOCK = 128  # as the launch bounds of the kernels
STRIP = 8  # as in local_filter.cu
WARP = 32

# Enough threads to fill a large GPU twice: at 128 registers a thread, an H200 holds 67 thousand. Constants,
# and not properties of the device at hand, so that every device adds up in the same order.
_THREADS_WANTED = 1 << 17
_SUMMED = 128  # channels that a thread adds up one after the other, of which each addition rounds
_CHUNK = (4, 32)  # channels that share one reading of the filters: at least, at most
_WARPS_WANTED = 1 << 13
_ROWS_A_LANE = 8  # least work worth a slot of its own, in the gradient of channel_weight


class Shape(NamedTuple):
    """Sizes of one call, and the constants they lead to."""

    batch: int
    channels: int
    groups: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    upsample: int
    dtype: Any
    filter_dtype: Any

    @property
    def unit_steps(self) -> bool:
        """Whether neighbouring taps and neighbouring windows are one pixel apart."""
        return self.stride == (1, 1) and self.dilation == (1, 1)

    @property
    def taps(self) -> int:
        """Values in one filter."""
        return self.kernel[0] * self.kernel[1]

    @property
    def group_channels(self) -> int:
        """Channels that share a filter."""
        return self.channels // self.groups

    @property
    def arguments(self) -> tuple[np.int32, ...]:
        """The numbers that every kernel takes last."""
        values = (self.channels, self.groups, self.height, self.width, self.out_height, self.out_width)
        pairs = (*self.kernel, *self.stride, *self.dilation, *self.padding)
        return int32s(*values, *pairs, self.upsample)


@dataclass(frozen=True)
class Blocking:
    """How much work a thread takes: constants of the kernels, which local_filter.cu explains.

    ROWS filters live in a thread's registers, so rows shrink as kernels grow; tests/registers.json shows what
    the compiler makes of it.
    """

    size: int  # KH and KW, or 0 for any size
    rows: int
    row_shift: int
    base_rows: int
    channel_set: int
    min_blocks: int
    min_blocks_grad: int


def compiled_size(kernel: tuple[int, int], *, double: bool, unit_steps: bool, wide_index: bool) -> int:
    """Kernel size to compile in; 0, any size, where its filters and offsets would not fit in registers."""
    largest = 3 if not unit_steps else 5 if double or wide_index else 7
    square = kernel[0] == kernel[1] and kernel[0] in (1, 3, 5, 7)
    return kernel[0] if square and kernel[0] <= largest else 0


def choose_blocking(
    kernel: tuple[int, int], *, double: bool, unit_steps: bool, upsample: int, wide_index: bool
) -> Blocking:
    """Blocking of one kind of call."""
    size = compiled_size(kernel, double=double, unit_steps=unit_steps, wide_index=wide_index)
    if size == 0:
        return Blocking(0, 1, 0, 1, 1, 4, 4)
    sliding = {1: 4, 3: 2 if double else 4, 5: 1 if double else 2, 7: 1}[size]
    base_rows = {1: 4, 3: 2, 5: 1, 7: 1}[size] if unit_steps else 1
    channel_set = {1: 4, 3: 1 if double else 2, 5: 1, 7: 1}[size]
    bounds = {1: (4, 4), 3: (3 if wide_index else 4, 3), 5: (3, 2), 7: (2, 2)}[size]
    if upsample > 1:
        # Two rows of one phase pair see the same window of x.
        rows = 2 if upsample % 2 == 0 and size < 7 and not (double and size == 5) else 1
        return Blocking(size, rows, 0, base_rows, channel_set, *bounds)
    if unit_steps:
        return Blocking(size, sliding, 1 if sliding > 1 else 0, base_rows, channel_set, *bounds)
    return Blocking(size, 1, 0, base_rows, channel_set, *bounds)


def choose_program(
    dtype: Any,
    filter_dtype: Any,
    kernel: tuple[int, int],
    combine: str | None,
    *,
    unit_steps: bool,
    upsample: int,
    wide_index: bool = False,
) -> tuple[Program, Blocking]:
    """Program for one kind of call; `combine` is None where there is no channel_weight."""
    defines, blocking = _constants(dtype, filter_dtype, kernel, combine, unit_steps, upsample, wide_index)
    return program(FILE, defines), blocking


@cache
def _constants(
    dtype: Any,
    filter_dtype: Any,
    kernel: tuple[int, int],
    combine: str | None,
    unit_steps: bool,
    upsample: int,
    wide_index: bool,
) -> tuple[tuple[tuple[str, str], ...], Blocking]:
    double = getattr(dtype, "name", dtype) == "float64"
    blocking = choose_blocking(
        kernel, double=double, unit_steps=unit_steps, upsample=upsample, wide_index=wide_index
    )
    chosen = constants(
        KH=blocking.size,
        KW=blocking.size,
        COMBINE={None: 0, "mul": 1, "add": 2}[combine],
        UNIT_STEPS=int(unit_steps),
        UPSAMPLED=int(upsample > 1),
        ROWS=blocking.rows,
        ROW_SHIFT=blocking.row_shift,
        BASE_ROWS=blocking.base_rows,
        SET=blocking.channel_set,
        MIN_BLOCKS=blocking.min_blocks,
        MIN_BLOCKS_GRAD=blocking.min_blocks_grad,
    )
    return type_constants(dtype, wide_index=wide_index, FILTER=filter_dtype) + chosen, blocking


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    found: dict[Program, str] = {}
    modes = ((True, 1), (False, 1), (True, 2), (False, 2), (True, 3))
    filters = {dtype: "", **({"float32": " float32 filters"} if dtype in ("float16", "bfloat16") else {})}
    kinds = product(filters, (None, "mul", "add"), (0, 1, 3, 5, 7), modes)
    for filter_dtype, combine, k, (unit_steps, upsample) in kinds:
        chosen: Any = {"unit_steps": unit_steps, "upsample": upsample, "wide_index": wide_index}
        made, blocking = choose_program(dtype, filter_dtype, (k, k), combine, **chosen)
        steps = "unit" if unit_steps else "strided"
        label = f"{dtype}{filters[filter_dtype]} k{blocking.size} {combine or 'plain'} {steps} u{upsample}"
        found.setdefault(made, label)
    return [(label, made) for made, label in found.items()]


def forward(
    x: Any,
    weight: Any,
    channel_weight: Any,
    *,
    combine: str,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    upsample: int,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Output (N, C, Ho, Wo), and the arrays that `backward` needs: contiguous inputs."""
    x, weight, channel_weight = contiguous(x, weight, channel_weight)
    shape = _shape(x, weight, stride, dilation, padding, upsample)
    y = empty((shape.batch, shape.channels, shape.out_height, shape.out_width), x)
    if y.size:
        arrays = (x, weight, _accumulated(channel_weight, x), y)
        _launch_planes("local_filter_forward", shape, combine, arrays, y, (shape.out_height, shape.out_width))
    return y, (x, weight, channel_weight)


def backward(
    grad_output: Any,
    kept: tuple[Any, Any, Any],
    needs: tuple[bool, bool, bool],
    *,
    combine: str,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    upsample: int,
) -> tuple[Any, Any, Any]:
    """Gradients of x, weight and channel_weight; None where `needs` is False or the array was not given."""
    grad_output, x, weight, channel_weight = contiguous(grad_output, *kept)
    shape = _shape(x, weight, stride, dilation, padding, upsample)
    given = (shape, combine, grad_output, x, weight, _accumulated(channel_weight, x))
    grads: list[Any] = [None, None, None]
    if needs[0]:
        grads[0] = _grad_x(*given)
    if needs[1]:
        grads[1] = _grad_weight(shape, combine, grad_output, x, given[-1])
    if needs[2] and channel_weight is not None:
        grads[2] = _grad_channel_weight(*given).astype(channel_weight.dtype, copy=False)
    return grads[0], grads[1], grads[2]


def correlation_forward(
    x1: Any,
    x2: Any,
    *,
    displacements: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Any, tuple[Any, Any]]:
    """Mean products (N, 1, 2r + 1, 2r + 1, H, W): what filters get from x1 as a gradient; kept contiguous.

    Maps of 16 bits are float32 until they are divided, so that they are rounded once.
    """
    x1, x2 = contiguous(x1, x2)
    (n, channels, high, wide), filters = x1.shape, accumulator_dtype(x1.dtype)
    pairs = displacements, stride, dilation, padding
    shape = Shape(n, channels, 1, high, wide, high, wide, *pairs, 1, x1.dtype, filters)
    maps = _grad_weight(shape, "mul", x1, x2, None)
    maps /= max(1, channels)
    return maps.astype(x1.dtype, copy=False), (x1, x2)


def correlation_backward(
    grad_output: Any,
    kept: tuple[Any, Any],
    needs: tuple[bool, bool],
    *,
    displacements: tuple[int, int],
    **window: Any,
) -> tuple[Any, Any]:
    """Gradients of x1 and x2; None where `needs` is False. The filters have the size of `displacements`."""
    x1, x2 = kept
    filters = grad_output.astype(accumulator_dtype(x1.dtype), copy=False) / max(1, x1.shape[1])
    common: dict[str, Any] = {"combine": "mul", "upsample": 1, **window}
    grad_x1 = forward(x2, filters, None, **common)[0] if needs[0] else None
    grad_x2 = backward(x1, (x2, filters, None), (needs[1], False, False), **common)[0]
    return grad_x1, grad_x2


def _accumulated(channel_weight: Any, x: Any) -> Any:
    """The channel weights in the accumulator type."""
    if channel_weight is None:
        return None
    return channel_weight.astype(accumulator_dtype(x.dtype), copy=False)


def _shape(x: Any, weight: Any, stride: Any, dilation: Any, padding: Any, upsample: int) -> Shape:
    batch, channels, height, width = x.shape
    _, groups, kernel_h, kernel_w, out_height, out_width = weight.shape
    sizes = (batch, channels, groups, height, width, out_height, out_width)
    pairs = ((kernel_h, kernel_w), tuple(stride), tuple(dilation), tuple(padding))
    return Shape(*sizes, *pairs, upsample, x.dtype, weight.dtype)


def _choose(
    shape: Shape, combine: str, channel_weight: Any, arrays: tuple[Any, ...], work_items: int
) -> tuple[Program, Blocking, type[np.signedinteger]]:
    wide = needs_wide_index(*arrays, work_items=work_items)
    chosen, blocking = choose_program(
        shape.dtype,
        shape.filter_dtype,
        shape.kernel,
        None if channel_weight is None else combine,
        unit_steps=shape.unit_steps,
        upsample=shape.upsample,
        wide_index=wide,
    )
    return chosen, blocking, np.int64 if wide else np.int32


def _launch_planes(
    entry: str, shape: Shape, combine: str, arrays: tuple[Any, ...], target: Any, plane: tuple[int, int]
) -> None:
    """Forward and gradient of x: threads take a few rows of `plane` and a chunk of a group's channels."""
    bound = target.size  # no layout has more threads than this
    chosen, blocking, index = _choose(shape, combine, arrays[2], arrays, bound)
    by_tap = not blocking.size or (entry == "local_filter_grad_x" and shape.upsample > 1)
    rows = 1 if by_tap else blocking.rows
    columns = shape.batch * shape.groups * blocks(plane[0], rows) * plane[1]
    if by_tap:
        chunk = STRIP
    else:
        wanted = columns * shape.group_channels // _THREADS_WANTED
        chunk = min(shape.group_channels, max(_CHUNK[0], min(_CHUNK[1], wanted)))
    items = columns * blocks(shape.group_channels, chunk)
    arguments = (*arrays, index(items), np.int32(chunk), *shape.arguments)
    launch(chosen, entry, (blocks(items, BLOCK),), (BLOCK,), arguments)


def _grad_x(shape: Shape, combine: str, grad_output: Any, x: Any, weight: Any, channel_weight: Any) -> Any:
    grad = empty(x.shape, x)
    if grad.size == 0:
        return grad
    if grad_output.size == 0:
        return zeros(x.shape, x)
    arrays = (grad_output, weight, channel_weight, grad)
    _launch_planes("local_filter_grad_x", shape, combine, arrays, grad, (shape.height, shape.width))
    return grad


def _grad_weight(shape: Shape, combine: str, grad_output: Any, x: Any, channel_weight: Any) -> Any:
    outputs = shape.out_height, shape.out_width
    grad = empty((shape.batch, shape.groups, *shape.kernel, *outputs), x, shape.filter_dtype)
    if grad.size == 0:
        return grad
    arrays = (grad_output, x, channel_weight, grad)
    chosen, blocking, index = _choose(shape, combine, channel_weight, arrays, grad.size)
    pixels = shape.batch * shape.groups * blocks(shape.out_height, blocking.rows) * shape.out_width
    items = pixels if blocking.size else pixels * blocks(shape.taps, STRIP)
    splits = 1  # threads that share the channels of one item: more where items are few, or channels many
    while splits < 32 and 2 * splits <= shape.group_channels:
        if items * splits >= _THREADS_WANTED and _SUMMED * splits >= shape.group_channels:
            break
        splits *= 2
    across = BLOCK // splits
    barrier_free = blocking.size > 0 and splits == 1
    shared = 0 if barrier_free else STRIP * BLOCK * accumulator_dtype(x.dtype).itemsize
    arguments = (*arrays, index(items), *shape.arguments)
    grid = (blocks(items, across),)
    launch(chosen, "local_filter_grad_weight", grid, (across, splits), arguments, shared_bytes=shared)
    return grad


def _grad_channel_weight(
    shape: Shape, combine: str, grad_output: Any, x: Any, weight: Any, channel_weight: Any
) -> Any:
    grad = empty(channel_weight.shape, channel_weight)
    if grad.size == 0:
        return grad
    if grad_output.size == 0:
        return zeros(channel_weight.shape, channel_weight)
    arrays = (grad_output, x, weight)
    phases = shape.upsample**2
    bound = WARP * phases * shape.batch * shape.channels * blocks(shape.taps, STRIP)
    slots = max(1, min(64, WARP * _WARPS_WANTED // bound, _lane_rows(shape) // _ROWS_A_LANE))
    touched = (*arrays, channel_weight)
    chosen, blocking, index = _choose(shape, combine, channel_weight, touched, bound * slots)
    if blocking.size:
        sets = shape.groups * blocks(shape.group_channels, blocking.channel_set)
    else:
        sets = shape.channels * blocks(shape.taps, STRIP)
    items = slots * shape.batch * phases * sets
    partial = empty((slots, *channel_weight.shape), x, accumulator_dtype(x.dtype))
    arguments = (*arrays, partial, index(items), np.int32(slots), *shape.arguments)
    launch(chosen, "local_filter_grad_channel_weight", (blocks(items * WARP, BLOCK),), (BLOCK,), arguments)
    arguments = (partial, grad, index(grad.size), np.int32(slots))
    launch(chosen, "local_filter_sum_slots", (blocks(grad.size, BLOCK),), (BLOCK,), arguments)
    return grad


def _lane_rows(shape: Shape) -> int:
    """Output pixels of one phase that one lane would take with a single slot."""
    return blocks(shape.out_height, shape.upsample) * blocks(shape.out_width, shape.upsample) // WARP
