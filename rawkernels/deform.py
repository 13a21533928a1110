"""Grid, block and arguments of the kernels in deform.cu, and the matrix products between them.

Parameters arrive resolved and checked: ``stride``, ``padding`` and ``dilation`` are (y, x) pairs of ints,
``deterministic`` is a bool. Arrays are all NumPy or all CuPy, of one dtype, with any strides:

- `forward`: x (N, C, H, W), offset (N, D, kh, kw, 2, Ho, Wo), weight (O, C/G, kh, kw), mask None or (N, D,
  kh, kw, Ho, Wo), bias None or (O,);
- `sample_forward`: x (N, C, H, W), points (N, P, 2, Ho, Wo).

The columns are made tile by tile, in the accumulator type, and so are the products with them: 16-bit arrays
are multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from rawkernels.launch import (
    accumulator_dtype,
    blocks,
    contiguous,
    empty,
    launch,
    needs_wide_index,
    type_constants,
    zeros,
)
from rawkernels.matmul import matmul
from rawkernels.source import Program, constants, program

FILE = "deform.cu"
BLOCK = 128  # as the launch bounds of the kernels
WARP = 32
TILE = (32, 8)  # threads of a block of the transposing kernels
ACCESS_BYTES = 16

# Constants, and not properties of the device at hand, so that every device adds up in the same order.
TILE_BYTES = 64 * 1024 * 1024  # of columns
SLOT_BYTES = 256 * 1024 * 1024  # of images that are added up in order
THREADS_WANTED = 1 << 16
SUMMED_ROWS = 64  # of the columns: least that one chain of sums of the gradient of weight has


@dataclass(frozen=True)
class Shape:
    """Sizes of one call."""

    batch: int
    channels: int
    groups: int
    offset_groups: int
    height: int
    width: int
    outputs: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    dtype: Any

    @property
    def positions(self) -> int:
        """Output positions of an image."""
        return self.outputs[0] * self.outputs[1]

    @property
    def taps(self) -> int:
        """Points per output position and offset group."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width

    @property
    def arguments(self) -> tuple[np.int32, ...]:
        """The numbers that kernels take last."""
        sizes = (self.channels, self.groups, self.offset_groups, self.height, self.width, self.outputs[1])
        steps = (*self.stride, *self.dilation, *self.padding)
        return tuple(map(np.int32, (*sizes, self.positions, self.taps, self.kernel[1], *steps)))


class Tile(NamedTuple):
    """Some whole images, or some output positions of one image."""

    image: int
    images: int
    position: int
    positions: int  # of each image

    @property
    def rows(self) -> int:
        """Rows of the columns."""
        return self.images * self.positions


def choose_program(dtype: Any, vector: int, *, wide_index: bool = False) -> Program:
    """The program whose kernels read `vector` channels at once."""
    return program(FILE, type_constants(dtype, wide_index=wide_index) + constants(VEC=vector))


def largest_vector(dtype: str) -> int:
    """Elements of one access."""
    return ACCESS_BYTES // {"float64": 8, "float32": 4}.get(dtype, 2)


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    return [
        (f"{dtype} vector {vector}", choose_program(dtype, vector, wide_index=wide_index))
        for vector in (1, largest_vector(dtype))
    ]


class _Call:
    """One call: its sizes, the program for them, and x with its channels last."""

    def __init__(self, shape: Shape, x: Any, *others: Any) -> None:
        self.shape = shape
        step = gcd(shape.channels // shape.groups, shape.channels // shape.offset_groups)
        vector = largest_vector(shape.dtype.name)
        self.vector = vector if step % vector == 0 else 1
        self.tiles = list(_tiles(shape))
        rows = max((tile.rows for tile in self.tiles), default=0)
        columns = rows * shape.taps * max(shape.channels, WARP * shape.offset_groups)
        wide = needs_wide_index(x, *others, work_items=columns + WARP)
        self.index = np.int64 if wide else np.int32
        self.program = choose_program(shape.dtype, self.vector, wide_index=wide)
        self.accumulator = accumulator_dtype(shape.dtype)
        n, c, pixels = shape.batch, shape.channels, shape.pixels
        self.x = empty((n, pixels, c), x)
        self.transpose("", x, self.x, (c, pixels), (pixels, c), (n, 1), ((c * pixels,) * 2, (0, 0)))

    def buffer(self, x: Any) -> Any:
        """Memory for the columns of one tile."""
        rows = max((tile.rows for tile in self.tiles), default=0)
        return empty((rows * self.shape.taps * self.shape.channels,), x, self.accumulator)

    def launch_points(self, entry: str, arrays: tuple, tile: Tile, items: int) -> None:
        """A kernel that works on the points of a tile."""
        start = tile.image * self.shape.positions + tile.position
        vectors = blocks(self.shape.channels // self.shape.offset_groups, self.vector)
        lane_bits = min(5, max(0, vectors - 1).bit_length())
        numbers = (self.index(items), self.index(start), self.index(tile.rows), np.int32(lane_bits))
        threads = items if entry == "deform_scatter_in_order" else items * WARP
        arguments = (*arrays, *numbers, *self.shape.arguments)
        launch(self.program, entry, (blocks(threads, BLOCK),), (BLOCK,), arguments)

    def warps(self, tile: Tile) -> int:
        """Warps that share the points of a tile."""
        return blocks(tile.rows, WARP) * self.shape.offset_groups * self.shape.taps

    def transpose(
        self,
        direction: str,
        source: Any,
        target: Any,
        size: tuple[int, int],
        row: tuple[int, int],
        count: tuple[int, int],
        steps: tuple[tuple[int, int], tuple[int, int]],
        *,
        bias: Any = None,
        slots: tuple[int, int] = (1, 0),
    ) -> None:
        """Transpose matrices of `size`, with rows `row` apart before and after.

        There are `count` (outer, inner) ones, `steps` ((before, after) of outer, of inner) apart.
        """
        (in_outer, out_outer), (in_inner, out_inner) = steps
        numbers = (*size, *row, count[1], in_inner, out_inner, in_outer, out_outer, *slots)
        grid = (blocks(size[0], TILE[0]) * blocks(size[1], TILE[0]) * count[0] * count[1],)
        arguments = (source, bias, target, *map(self.index, numbers))
        if size[0] and size[1]:
            launch(self.program, f"deform_transpose{direction}", grid, TILE, arguments)


def _tiles(shape: Shape) -> Iterator[Tile]:
    """All output positions, in tiles whose columns have at most about TILE_BYTES."""
    row_bytes = shape.taps * max(1, shape.channels) * accumulator_dtype(shape.dtype).itemsize
    rows = max(WARP, TILE_BYTES // row_bytes // WARP * WARP)
    if not shape.positions:
        return
    if rows >= shape.positions:
        images = rows // shape.positions
        for image in range(0, shape.batch, images):
            yield Tile(image, min(images, shape.batch - image), 0, shape.positions)
        return
    for image in range(shape.batch):
        for position in range(0, shape.positions, rows):
            yield Tile(image, 1, position, min(rows, shape.positions - position))


def _shape(x: Any, offset: Any, weight: Any, stride: Any, padding: Any, dilation: Any) -> Shape:
    batch, channels, height, width = x.shape
    groups = channels // max(1, weight.shape[1]) or 1
    sizes = (batch, channels, groups, offset.shape[1], height, width)
    pairs = (tuple(offset.shape[5:]), tuple(weight.shape[2:]), tuple(stride), tuple(dilation), tuple(padding))
    return Shape(*sizes, *pairs, x.dtype)


def _sample_shape(x: Any, points: Any) -> Shape:
    """`sample_points` as a convolution without weights: P taps, on a grid that stays at (0, 0)."""
    batch, channels, height, width = x.shape
    still = (0, 0)
    pairs = (tuple(points.shape[3:]), (points.shape[1], 1), still, still, still)
    return Shape(batch, channels, 1, 1, height, width, *pairs, x.dtype)


def forward(
    x: Any,
    offset: Any,
    weight: Any,
    mask: Any,
    bias: Any,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    deterministic: bool,
) -> tuple[Any, tuple]:
    """Output (N, O, Ho, Wo), and the arrays that `backward` needs: contiguous inputs."""
    x, offset, weight, mask, bias = contiguous(x, offset, weight, mask, bias)
    shape = _shape(x, offset, weight, stride, padding, dilation)
    y = empty((shape.batch, weight.shape[0], *shape.outputs), x)
    if y.size:
        call = _Call(shape, x, offset, weight, y)
        columns, by_group = call.buffer(x), _by_group(weight, call)
        for tile in call.tiles:
            arrays = (call.x, offset, mask, columns)
            if columns.size:
                call.launch_points("deform_columns", arrays, tile, call.warps(tile))
            product = matmul(_tile_columns(columns, tile, call), by_group.transpose(0, 2, 1))
            _transpose_product(call, tile, product, bias, y)
    return y, (x, offset, weight, mask, bias)


def _by_group(weight: Any, call: _Call) -> Any:
    """The kernel as the columns are ordered: (G, O/G, taps*C/G), in the accumulator type."""
    shape = call.shape
    each, depth = weight.shape[0] // shape.groups, weight.shape[1]
    split = weight.reshape(shape.groups, each, depth, shape.taps)
    ordered = split.transpose(0, 1, 3, 2).astype(call.accumulator)
    return ordered.reshape(shape.groups, each, shape.taps * depth)


def _tile_columns(columns: Any, tile: Tile, call: _Call) -> Any:
    """The columns of a tile as matrices (G, rows, taps*C/G)."""
    shape = call.shape
    size = tile.rows * shape.taps * shape.channels
    return columns[:size].reshape(shape.groups, tile.rows, shape.taps * (shape.channels // shape.groups))


def _transpose_product(call: _Call, tile: Tile, product: Any, bias: Any, y: Any) -> None:
    """(G, rows, O/G) -> the tile's part of (N, G, O/G, P), plus bias."""
    (groups, rows, each), positions = product.shape, call.shape.positions
    target = y.reshape(-1)[tile.image * groups * each * positions + tile.position :]
    steps = ((tile.positions * each, groups * each * positions), (rows * each, each * positions))
    call.transpose(
        "_out",
        product,
        target,
        (tile.positions, each),
        (each, positions),
        (tile.images, groups),
        steps,
        bias=bias,
    )


def _transpose_gradient(call: _Call, tile: Tile, grad_output: Any) -> Any:
    """The reverse: the tile's part of (N, G, O/G, P) -> (G, rows, O/G) in the accumulator type."""
    groups, positions = call.shape.groups, call.shape.positions
    each = grad_output.shape[1] // groups
    source = grad_output.reshape(-1)[tile.image * groups * each * positions + tile.position :]
    target = empty((groups, tile.rows, each), grad_output, call.accumulator)
    steps = ((groups * each * positions, tile.positions * each), (each * positions, tile.rows * each))
    call.transpose(
        "_in",
        source,
        target,
        (each, tile.positions),
        (positions, each),
        (tile.images, groups),
        steps,
    )
    return target


class _GradX:
    """The gradient of x while it is added up, channels last."""

    def __init__(self, call: _Call, x: Any, needed: bool, deterministic: bool) -> None:
        self.call, self.needed, self.deterministic = call, needed, deterministic
        self.slots = 1
        self.partial: Any = None
        self.result: Any = empty(x.shape, x) if needed else None
        shape = call.shape
        if needed and not deterministic:
            self.partial = zeros((1, shape.batch, shape.pixels, shape.channels), x, call.accumulator)
        elif needed:
            images = max((tile.images for tile in call.tiles), default=1)
            image_bytes = max(1, images * shape.pixels * shape.channels * call.accumulator.itemsize)
            wanted = THREADS_WANTED // max(1, images * shape.channels)
            self.slots = max(1, min(wanted, SLOT_BYTES // image_bytes, shape.positions // WARP))

    @property
    def atomics(self) -> Any:
        """Where kernels add up with atomics, if they do."""
        return None if self.deterministic else self.partial

    def add_in_order(self, tile: Tile, offset: Any, mask: Any, columns: Any) -> None:
        """Add what the gradients of the columns of a tile give; tiles come in order."""
        if not self.needed or not self.deterministic:
            return
        shape = self.call.shape
        if tile.position == 0:
            size = (self.slots, tile.images, shape.pixels, shape.channels)
            self.partial = zeros(size, offset, self.call.accumulator)
        arrays = (offset, mask, columns, self.partial, np.int32(self.slots), np.int32(tile.images))
        items = self.slots * tile.images * shape.channels
        self.call.launch_points("deform_scatter_in_order", arrays, tile, items)
        if tile.position + tile.positions == shape.positions:
            self._write(tile.image, tile.images)

    def finish(self) -> Any:
        """The gradient, (N, C, H, W)."""
        if self.needed and not self.deterministic:
            self._write(0, self.call.shape.batch)
        return self.result

    def _write(self, image: int, images: int) -> None:
        shape = self.call.shape
        c, pixels = shape.channels, shape.pixels
        target = self.result.reshape(-1)[image * c * pixels :]
        self.call.transpose(
            "_out",
            self.partial,
            target,
            (pixels, c),
            (c, pixels),
            (images, 1),
            ((c * pixels, c * pixels), (0, 0)),
            slots=(self.slots, images * pixels * c),
        )


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    deterministic: bool,
) -> tuple:
    """Gradients of x, offset, weight, mask and bias; None where not needed or not given."""
    grad_output, x, offset, weight, mask, bias = contiguous(grad_output, *kept)
    shape = _shape(x, offset, weight, stride, padding, dilation)
    need_x, need_offset, need_weight, need_mask, need_bias = needs
    need_mask, need_bias = need_mask and mask is not None, need_bias and bias is not None
    grad_bias = _grad_bias(grad_output) if need_bias else None
    if not grad_output.size or not x.shape[1] or not any((need_x, need_offset, need_weight, need_mask)):
        wanted = zip((x, offset, weight, mask), (need_x, need_offset, need_weight, need_mask), strict=True)
        return (*(zeros(a.shape, a) if needed else None for a, needed in wanted), grad_bias)
    call = _Call(shape, x, offset, weight, grad_output)
    columns, by_group = call.buffer(x), _by_group(weight, call)
    grad_x = _GradX(call, x, need_x, deterministic)
    grad_offset, grad_mask = empty(offset.shape, x) if need_offset else None, None
    if need_mask:
        grad_mask = empty(mask.shape, x)
    total = zeros(by_group.shape, x, np.dtype(np.float64)) if need_weight else None
    for tile in call.tiles:
        gradient, matrices = _transpose_gradient(call, tile, grad_output), _tile_columns(columns, tile, call)
        matrices[...] = matmul(gradient, by_group)
        grad_x.add_in_order(tile, offset, mask, columns)
        gradients = (grad_x.atomics, grad_offset, grad_mask, np.int32(need_weight))
        arrays = (call.x, offset, mask, columns, *gradients)
        call.launch_points("deform_gradients", arrays, tile, call.warps(tile))
        if need_weight:
            _add_products(total, gradient, matrices)
    grad_weight = _from_groups(total, weight) if need_weight else None
    return grad_x.finish(), grad_offset, grad_weight, grad_mask, grad_bias


def _add_products(total: Any, gradient: Any, matrices: Any) -> None:
    """Add what the rows of a tile give to the gradient of weight, which is in double precision.

    One chain of sums over all rows would be off by the root of their number of roundings: runs of rows are
    multiplied by themselves, as many as their products take no more memory than the columns.
    """
    groups, rows, each = gradient.shape
    run = max(SUMMED_ROWS, each)
    whole = rows // run * run
    for first, last, size in ((0, whole, run), (whole, rows, rows - whole)):
        if first < last:
            left = gradient[:, first:last].reshape(groups, -1, size, each).transpose(0, 1, 3, 2)
            right = matrices[:, first:last].reshape(groups, -1, size, matrices.shape[2])
            total += matmul(left, right).sum(axis=1, dtype=total.dtype)


def _grad_bias(grad_output: Any) -> Any:
    total = grad_output.astype(accumulator_dtype(grad_output.dtype)).sum(axis=(0, 2, 3))
    return total.astype(grad_output.dtype)


def _from_groups(total: Any, weight: Any) -> Any:
    """The reverse of `_by_group`."""
    groups, each, _ = total.shape
    taps = weight.shape[2] * weight.shape[3]
    split = total.reshape(groups, each, taps, weight.shape[1]).transpose(0, 1, 3, 2)
    (grad,) = contiguous(split.astype(weight.dtype).reshape(weight.shape))
    return grad


def sample_forward(x: Any, points: Any, *, deterministic: bool) -> tuple[Any, tuple[Any, Any]]:
    """Output (N, C, P, Ho, Wo), and the arrays that `sample_backward` needs."""
    x, points = contiguous(x, points)
    y = empty((*x.shape[:2], points.shape[1], *points.shape[3:]), x)
    if y.size:
        call = _Call(_sample_shape(x, points), x, points, y)
        columns = call.buffer(x)
        for tile in call.tiles:
            call.launch_points("deform_columns", (call.x, points, None, columns), tile, call.warps(tile))
            _move_samples(call, tile, columns, y, inwards=False)
    return y, (x, points)


def sample_backward(
    grad_output: Any, kept: tuple[Any, Any], needs: tuple[bool, bool], *, deterministic: bool
) -> tuple[Any, Any]:
    """Gradients of x and points; None where `needs` is False."""
    grad_output, x, points = contiguous(grad_output, *kept)
    if not grad_output.size:
        return zeros(x.shape, x) if needs[0] else None, zeros(points.shape, x) if needs[1] else None
    call = _Call(_sample_shape(x, points), x, points, grad_output)
    columns, grad_x = call.buffer(x), _GradX(call, x, needs[0], deterministic)
    grad_points = empty(points.shape, x) if needs[1] else None
    for tile in call.tiles:
        _move_samples(call, tile, columns, grad_output, inwards=True)
        grad_x.add_in_order(tile, points, None, columns)
        arrays = (call.x, points, None, columns, grad_x.atomics, grad_points, None, np.int32(0))
        call.launch_points("deform_gradients", arrays, tile, call.warps(tile))
    return grad_x.finish(), grad_points


def _move_samples(call: _Call, tile: Tile, columns: Any, samples: Any, *, inwards: bool) -> None:
    """Between columns (rows, P, C) and the tile's part of (N, C, P, positions)."""
    c, taps, positions = call.shape.channels, call.shape.taps, call.shape.positions
    part = samples.reshape(-1)[tile.image * c * taps * positions + tile.position :]
    size, row = (tile.positions, c), (taps * c, taps * positions)
    outer, inner = (tile.positions * taps * c, c * taps * positions), (c, positions)
    count = (tile.images, taps)
    if inwards:
        turned = (outer[::-1], inner[::-1])
        call.transpose("_in", part, columns, size[::-1], row[::-1], count, turned)
    else:
        call.transpose("_out", columns, part, size, row, count, (outer, inner))
