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
BLOCK = 256  # as the launch bounds of the kernels
TARGETS = 8  # of a block, one of each warp

# Constants, and not properties of the device at hand, so that every device adds up in the same order.
_PROCESSORS = 132
_BLOCKS_WANTED = 1 << 10
_SUMMED = 128  # units that are added up one after the other: what is rounded off grows with their number
_CHANNELS = 8  # source channels of a block that makes gradients of units
_PARTIAL_BYTES = 64 * 1024 * 1024  # sums of units in slots
_PRODUCTS = 512  # blocks, at most, that make the gradient of sigma
_RUN, _ADDED = 8, 4 * BLOCK  # pixels of a thread that blurs, and of a block that adds up, as in displaced.cu


@dataclass(frozen=True)
class Shape:
    """Sizes of one call, and the constants they lead to."""

    batch: int
    channels: int
    outputs: int
    per_pair: int
    height: int
    width: int

    @property
    def plane(self) -> int:
        """Pixels of an image."""
        return self.height * self.width

    @property
    def units(self) -> int:
        """Units of all pairs of channels."""
        return self.outputs * self.channels * self.per_pair


def _tiles(shape: Shape, patch_rows: int) -> int:
    """Tiles of all images, as displaced.cu cuts them."""
    rows, columns = (1, 32 * 9) if patch_rows == 1 else (4 * patch_rows, 32)
    return shape.batch * blocks(shape.height, rows) * blocks(shape.width, columns)


def _choices(dtype: Any) -> tuple[int, ...]:
    """Rows of the patch of a lane: of lines, and of images. Sums in double take twice the registers."""
    return (1, 5) if getattr(dtype, "name", dtype) == "float64" else (1, 5, 7)


def _patch_rows(height: int, dtype: Any) -> int:
    """The patches that reach least far past the lower border; a unit reads one row more than they have."""
    line, *others = _choices(dtype)
    if height == 1:
        return line
    return min(reversed(others), key=lambda rows: blocks(height, 4 * rows) * (rows + 1))


@dataclass(frozen=True)
class Call:
    """A program and the numbers that all its launches share."""

    program: Program
    shape: Shape
    index: type[np.signedinteger]
    tiles: int
    at_once: int  # blocks of those that add up units

    def each(self, entry: str, items: int, *arguments: Any) -> None:
        """Launch with a thread for each item."""
        self.grid(entry, (blocks(items, BLOCK),), *arguments)

    def grid(self, entry: str, count: tuple[int, ...], *arguments: Any) -> None:
        """Launch so many blocks."""
        launch(self.program, entry, count, (BLOCK,), arguments)


def _blocks_of_processor(dtype: Any, patch_rows: int) -> int:
    """Of displaced_forward, as its launch bounds say."""
    if accumulator_dtype(dtype).itemsize == 8:
        return 2
    return 4 if patch_rows == 1 else 3


def choose_program(dtype: Any, patch_rows: int, *, wide_index: bool = False) -> Program:
    """Program for lanes with patches of so many rows."""
    return program(FILE, type_constants(dtype, wide_index=wide_index) + constants(PATCH_ROWS=patch_rows))


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    return [
        (f"{dtype} rows{rows}", choose_program(dtype, rows, wide_index=wide_index))
        for rows in _choices(dtype)
    ]


def _call(x: Any, weight: Any) -> Call:
    batch, channels, height, width = x.shape
    outputs, _, per_pair = weight.shape
    shape = Shape(batch, channels, outputs, per_pair, height, width)
    rows = _patch_rows(height, x.dtype)
    tiles = _tiles(shape, rows)
    # Sums in slots are made of few tiles. A thread that blurs may look for its pixels far past the end.
    largest = max(x.size, batch * outputs * shape.plane, 4 * shape.units)
    wide = needs_wide_index(x, work_items=largest + _RUN * BLOCK)
    chosen = choose_program(x.dtype, rows, wide_index=wide)
    at_once = _PROCESSORS * _blocks_of_processor(x.dtype, rows)
    return Call(chosen, shape, np.int64 if wide else np.int32, tiles, at_once)


def _taps(call: Call, like: Any, spread: float, radius: tuple[int, int]) -> list[tuple[Any, Any, Any]]:
    """Per axis the taps of the blur, None for a radius of 0, and their derivatives by sigma and by place."""
    made: dict[int, tuple] = {}
    for reach in dict.fromkeys(radius):
        taps = empty((3, 2 * reach + 1), like, accumulator_dtype(like.dtype))
        call.grid("displaced_taps", (1,), taps, np.float64(spread), np.int32(reach))
        made[reach] = (taps[0] if reach else None, taps[1], taps[2])
    return [made[reach] for reach in radius]


def _along(call: Call, entry: str, image: Any, taps: Any, axis: int, target: Any) -> Any:
    batch, channels, height, width = image.shape
    planes, down = batch * channels, axis == 2
    numbers = (call.index(planes), *int32s(height, width, len(taps) // 2, down))
    runs = planes * blocks(height, _RUN) if down else blocks(planes * height, _RUN)
    call.each(f"displaced_blur_{entry}", runs * width, image, taps, target, *numbers)
    return target


def _blurred(call: Call, x: Any, rows: Any, columns: Any) -> Any:
    """x correlated with `rows` down its columns and `columns` along its rows, in the accumulator's dtype."""
    wide = accumulator_dtype(x.dtype)
    image = _along(call, "first", x, columns, 3, empty(x.shape, x, wide))
    return image if rows is None else _along(call, "second", image, rows, 2, empty(x.shape, x, wide))


def _slots(call: Call, targets: int, sources: int) -> tuple[int, int]:
    """How many blocks share the sources of a sum, and how many of them each has.

    As many blocks as fit on a GPU at a time: a few more would wait for a whole round of the others.
    """
    together = call.at_once // (call.tiles * blocks(targets, TARGETS))
    chunk = blocks(sources, min(max(1, together), sources))
    return blocks(sources, chunk), chunk


def _displace(call: Call, entry: str, image: Any, units: tuple, base: tuple, target: Any) -> None:
    """The sum over units, of `image` into `target`; `base` is what the kernel adds, if it adds anything."""
    shape, (targets, sources) = call.shape, (target.shape[1], image.shape[1])
    slots, chunk = _slots(call, targets, sources)
    part, wide = max(1, _SUMMED // shape.per_pair), accumulator_dtype(target.dtype)
    apart = slots > 1 or (part < chunk and target.dtype != wide)
    sums = empty((slots, *target.shape), target, wide) if apart else None
    sizes = (targets, sources, shape.per_pair, shape.height, shape.width)
    arrays, items = (image, *units, *base, target, sums), call.index(target.size)
    count = (call.tiles, blocks(targets, TARGETS), slots)
    call.grid(f"displaced_{entry}", count, *arrays, items, *int32s(chunk, part, *sizes))
    if slots > 1:
        adding = (shape.batch * targets, blocks(shape.plane, _ADDED))
        call.grid(f"displaced_add_{entry}", adding, *arrays, items, *int32s(slots, *sizes))


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
    image = _blurred(call, x, down[0], along[0])
    _displace(call, "forward", image, (weight, displacement), (bias,), y)
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
        sizes = (call.index(call.shape.batch), call.index(call.shape.plane))
        call.grid("displaced_grad_bias", (call.shape.outputs,), grad_output, grads[4], *sizes)
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
    gradient = empty(x.shape, x, wide)
    _displace(call, "grad_blurred", grad_output, (weight, displacement), (), gradient)
    if needs[0]:
        image, grad_x = gradient, empty(x.shape, x)
        if down[0] is not None:
            image = _along(call, "second", gradient, down[0], 2, empty(x.shape, x, wide))
        _along(call, "last", image, along[0], 3, grad_x)
    if needs[3]:
        count = min(_PRODUCTS, blocks(x.size, BLOCK))  # on the host, a block without pixels costs 256 fibers
        partial = empty((count,), x, np.dtype("float64"))
        by_sigma = _blurred(call, x, down[1], along[0]), _blurred(call, x, down[0], along[1])
        call.grid("displaced_products", (count,), gradient, *by_sigma, partial, call.index(x.size))
        grad_sigma = empty((), x)
        call.grid("displaced_total", (1,), partial, grad_sigma, np.int32(partial.size))
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
    across = (blocks(shape.outputs, TARGETS), blocks(shape.channels, _CHANNELS))
    slots = min(
        call.tiles,
        blocks(_BLOCKS_WANTED, across[0] * across[1]),
        max(1, _PARTIAL_BYTES // (32 * shape.units)),
    )
    partial = empty((slots, shape.units, 4), x, np.dtype("float64"))
    sizes = (shape.outputs, shape.channels, shape.per_pair, shape.height, shape.width)
    for kind, rows, columns, by_weight, by_displacement in passes:
        image = _blurred(call, x, rows, columns)
        arrays, numbers = (grad_output, image, displacement), int32s(_CHANNELS, *sizes)
        call.grid("displaced_correlate", (slots, *across), *arrays, partial, call.index(call.tiles), *numbers)
        sums = (partial, grad_output, image, weight, displacement, by_weight, by_displacement)
        numbers = int32s(slots, kind, shape.batch, *sizes)
        call.each("displaced_grad_units", shape.units, *sums, call.index(shape.units), *numbers)
    return grad_weight, grad_displacement
