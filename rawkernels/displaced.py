"""Grid, block and arguments of the kernels in displaced.cu.

Parameters arrive resolved and checked: ``spread`` is the value of sigma, ``radius`` (y, x) that of the blur.
Arrays are all NumPy or all CuPy, of one dtype, with any strides:

- x (N, C, H, W), weight (O, C, G), displacement (O, C, G, 2), sigma () or None, bias (O,) or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

FILE = "displaced.cu"
BLOCK = 128  # as the launch bounds of the kernels
WARPS = 4
TILE = (16, 32)  # rows and columns, as in displaced.cu
SHARED_BYTES = 24 * 1024  # of sources with their apron: leaves room for several blocks on an SM

# Constants, and not properties of the device at hand, so that every device adds up in the same order.
_BLOCKS_WANTED = 1 << 10
_CHANNELS = 8  # source channels of a block that makes gradients of units
_PARTIAL_BYTES = 64 * 1024 * 1024  # sums of units in slots
_PRODUCTS = 256  # blocks that make the gradient of sigma


@dataclass(frozen=True)
class Shape:
    """Sizes of one call, and the constants they lead to."""

    batch: int
    channels: int
    outputs: int
    per_pair: int
    height: int
    width: int
    dtype: Any

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.batch * blocks(self.height, TILE[0]) * blocks(self.width, TILE[1])

    @property
    def units(self) -> int:
        """Units of all pairs of channels."""
        return self.outputs * self.channels * self.per_pair

    @property
    def capacity(self) -> int:
        """Elements of shared memory of a block."""
        return SHARED_BYTES // accumulator_dtype(self.dtype).itemsize

    @property
    def reach(self) -> int:
        """Width of the widest apron that fits into shared memory."""
        wide = 0
        while _apron_area(wide + 1) <= self.capacity:
            wide += 1
        return wide


def _apron_area(reach: int) -> int:
    """Elements of a tile with its apron, as in displaced.cu."""
    rows, columns = (size + 2 * reach + 1 for size in TILE)
    part = blocks(columns, 4)
    return rows * (4 * part + (10 - 4 * part % 8) % 8)


@dataclass(frozen=True)
class Call:
    """A program and the numbers that all its launches share."""

    program: Program
    shape: Shape
    index: type[np.signedinteger]
    outputs: int  # of a warp

    def each(self, entry: str, items: int, *arguments: Any) -> None:
        """Launch with a thread for each item."""
        launch(self.program, entry, (blocks(items, BLOCK),), (BLOCK,), arguments)

    def one(self, entry: str, *arguments: Any, count: int = 1, shared_bytes: int = 0) -> None:
        """Launch `count` blocks."""
        launch(self.program, entry, (count,), (BLOCK,), arguments, shared_bytes=shared_bytes)


@dataclass(frozen=True)
class Units:
    """What `displaced_prepare` and `displaced_reach` make."""

    place: Any
    corner: Any
    reach: Any


def choose_program(dtype: Any, outputs: int, *, wide_index: bool = False) -> Program:
    """Program for warps that make so many output channels."""
    return program(FILE, type_constants(dtype, wide_index=wide_index) + constants(OUTPUTS=outputs))


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    return [
        (f"{dtype} outputs{outputs}", choose_program(dtype, outputs, wide_index=wide_index))
        for outputs in _outputs_of_a_warp(dtype)
    ]


def _outputs_of_a_warp(dtype: Any) -> tuple[int, ...]:
    """The choices; sums in double take twice the registers."""
    return (1, 2) if getattr(dtype, "name", dtype) == "float64" else (1, 2, 4)


def _call(x: Any, weight: Any) -> Call:
    batch, channels, height, width = x.shape
    outputs, _, per_pair = weight.shape
    shape = Shape(batch, channels, outputs, per_pair, height, width, x.dtype)
    largest = max(x.size, batch * outputs * height * width, 4 * shape.units)
    wide = needs_wide_index(x, work_items=largest)
    choices = _outputs_of_a_warp(x.dtype)
    least = min(channels, outputs)
    fitting = [n for n in choices if shape.tiles * blocks(least, WARPS * n) >= _BLOCKS_WANTED]
    of_warp = max(fitting, default=choices[0])
    chosen = choose_program(x.dtype, of_warp, wide_index=wide)
    return Call(chosen, shape, np.int64 if wide else np.int32, of_warp)


def _taps(call: Call, like: Any, spread: float, radius: tuple[int, int]) -> tuple[Any, Any]:
    """Per axis (3, 2*radius + 1): the taps of the blur, their derivatives by sigma and by place."""
    made = {}
    for reach in dict.fromkeys(radius):
        made[reach] = empty((3, 2 * reach + 1), like, accumulator_dtype(like.dtype))
        call.one("displaced_taps", made[reach], np.float64(spread), np.int32(reach))
    return made[radius[0]], made[radius[1]]


def _along(call: Call, entry: str, image: Any, taps: Any, axis: int, target: Any) -> Any:
    step = call.shape.width if axis == 2 else 1
    extent = call.shape.height if axis == 2 else call.shape.width
    radius = np.int32(len(taps) // 2)
    numbers = (call.index(image.size), np.int32(step), np.int32(extent), radius)
    call.each(f"displaced_blur_{entry}", image.size, image, taps, target, *numbers)
    return target


def _blurred(call: Call, x: Any, rows: Any, columns: Any) -> Any:
    """x correlated with `rows` down its columns and `columns` along its rows, in the accumulator's dtype."""
    wide = accumulator_dtype(x.dtype)
    between = _along(call, "first", x, columns, 3, empty(x.shape, x, wide))
    return _along(call, "second", between, rows, 2, empty(x.shape, x, wide))


def _prepare(call: Call, weight: Any, displacement: Any, *, transposed: bool) -> Units:
    shape = call.shape
    place = empty((shape.units, 2), weight, np.int32)
    corner = empty((shape.units, 4), weight, accumulator_dtype(weight.dtype))
    reach = empty((1,), weight, np.int32)
    sizes = (shape.outputs, shape.channels, shape.per_pair, shape.height, shape.width, transposed)
    numbers = (call.index(shape.units), *int32s(*sizes))
    call.each("displaced_prepare", shape.units, weight, displacement, place, corner, *numbers)
    call.one("displaced_reach", place, reach, call.index(shape.units), np.int32(shape.reach))
    return Units(place, corner, reach)


def _displace(call: Call, entry: str, image: Any, units: Units, base: Any, target: Any) -> None:
    """Launch the sum over units, of `image` into `target`."""
    shape, (targets, sources) = call.shape, (target.shape[1], image.shape[1])
    numbers = (shape.capacity, targets, sources, shape.per_pair, shape.height, shape.width)
    arguments = (image, units.corner, units.place, units.reach, base, target, *int32s(*numbers))
    count = shape.tiles * blocks(targets, WARPS * call.outputs)
    call.one(entry, *arguments, count=count, shared_bytes=SHARED_BYTES)


def forward(
    x: Any,
    weight: Any,
    displacement: Any,
    sigma: Any,
    bias: Any,
    *,
    spread: float,
    radius: tuple[int, int],
    **params: Any,
) -> tuple[Any, tuple]:
    """Output (N, O, H, W), and the arrays that `backward` needs: contiguous inputs."""
    x, weight, displacement, sigma, bias = contiguous(x, weight, displacement, sigma, bias)
    kept = (x, weight, displacement, sigma, bias)
    y = empty((x.shape[0], len(weight), *x.shape[2:]), x)
    if not y.size:
        return y, kept
    if not weight.size:
        y[...] = 0 if bias is None else bias[:, None, None]
        return y, kept
    call = _call(x, weight)
    down, along = _taps(call, x, spread, radius)
    units = _prepare(call, weight, displacement, transposed=False)
    _displace(call, "displaced_forward", _blurred(call, x, down[0], along[0]), units, bias, y)
    return y, kept


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    spread: float,
    radius: tuple[int, int],
    displacement_gradient: str,
) -> tuple:
    """Gradients of x, weight, displacement, sigma and bias; None where not needed or not given."""
    grad_output, *inputs = contiguous(grad_output, *kept[:5])
    x, weight, displacement, _, bias = inputs
    grads: list[Any] = [None] * 5
    if not grad_output.size or not weight.size:
        grads = [zeros(a.shape, a) if need and a is not None else None for a, need in zip(inputs, needs)]
        if not grad_output.size:
            return tuple(grads)
    call = _call(x, weight)
    if needs[4] and bias is not None:
        grads[4] = empty(bias.shape, bias)
        sizes = (call.index(call.shape.batch), call.index(call.shape.height * call.shape.width))
        call.one("displaced_grad_bias", grad_output, grads[4], *sizes, count=call.shape.outputs)
    if not weight.size:
        return tuple(grads)
    taps = _taps(call, x, spread, radius)
    if needs[0] or needs[3]:
        grads[0], grads[3] = _grad_of_image(call, grad_output, x, weight, displacement, taps, needs)
    if needs[1] or needs[2]:
        grads[1], grads[2] = _grad_of_units(
            call, grad_output, x, weight, displacement, taps, needs, displacement_gradient == "smooth"
        )
    return tuple(grads)


def _grad_of_image(
    call: Call, grad_output: Any, x: Any, weight: Any, displacement: Any, taps: Any, needs: tuple
) -> tuple[Any, Any]:
    """Gradients of x and of sigma."""
    down, along = taps
    wide, grad_x, grad_sigma = accumulator_dtype(x.dtype), None, None
    units = _prepare(call, weight, displacement, transposed=True)
    gradient = empty(x.shape, x, wide)
    _displace(call, "displaced_grad_blurred", grad_output, units, None, gradient)
    if needs[0]:
        between = _along(call, "second", gradient, along[0], 3, empty(x.shape, x, wide))
        grad_x = _along(call, "last", between, down[0], 2, empty(x.shape, x))
    if needs[3]:
        partial = empty((_PRODUCTS,), x, np.dtype("float64"))
        by_sigma = _blurred(call, x, down[1], along[0]), _blurred(call, x, down[0], along[1])
        call.one("displaced_products", gradient, *by_sigma, partial, call.index(x.size), count=_PRODUCTS)
        grad_sigma = empty((), x)
        call.one("displaced_total", partial, grad_sigma, np.int32(partial.size))
    return grad_x, grad_sigma


def _grad_of_units(
    call: Call,
    grad_output: Any,
    x: Any,
    weight: Any,
    displacement: Any,
    taps: Any,
    needs: tuple,
    smooth: bool,
) -> tuple[Any, Any]:
    """Gradients of weight and displacement."""
    down, along = taps
    grad_weight = empty(weight.shape, weight) if needs[1] else None
    grad_displacement = empty(displacement.shape, displacement) if needs[2] else None
    units = _prepare(call, weight, displacement, transposed=False)
    if not smooth:
        passes = [(0, down[0], along[0], grad_weight, grad_displacement)]
    else:
        passes = [(0, down[0], along[0], grad_weight, None)] if needs[1] else []
        if needs[2]:
            passes += [
                (1, down[2], along[0], None, grad_displacement),
                (2, down[0], along[2], None, grad_displacement),
            ]
    shape = call.shape
    across = blocks(shape.channels, _CHANNELS) * blocks(shape.outputs, WARPS * call.outputs)
    slots = min(shape.tiles, blocks(_BLOCKS_WANTED, across), max(1, _PARTIAL_BYTES // (32 * shape.units)))
    partial = empty((slots, shape.units, 4), x, np.dtype("float64"))
    for kind, rows, columns, by_weight, by_displacement in passes:
        image = _blurred(call, x, rows, columns)
        sizes = (slots, _CHANNELS, shape.capacity, shape.outputs, shape.channels, shape.per_pair)
        numbers = (call.index(shape.tiles), *int32s(*sizes, shape.height, shape.width))
        arrays = (grad_output, image, units.place, units.reach, partial)
        call.one("displaced_correlate", *arrays, *numbers, count=slots * across, shared_bytes=SHARED_BYTES)
        sizes = (slots, kind, shape.batch, shape.outputs, shape.channels, shape.per_pair)
        numbers = (call.index(shape.units), *int32s(*sizes, shape.height, shape.width))
        gradients = (by_weight, by_displacement)
        arrays = (partial, grad_output, image, weight, displacement)
        call.each("displaced_grad_units", shape.units, *arrays, *gradients, *numbers)
    return grad_weight, grad_displacement
