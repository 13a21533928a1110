"""Grid, block and arguments of the kernels in atoms.cu, and the matrix products between them.

Parameters arrive resolved and checked: ``stride``, ``dilation`` and ``padding`` are (y, x) pairs of ints.
Arrays are all NumPy or all CuPy, of one dtype, with any strides:

- x (N, C, H, W), atoms (N, M, kh, kw, Ho, Wo), coefficients (O, C, M), bias None or (O,);
- alpha (N, M, B, Ho, Wo), bases (B, kh, kw) for `compose_forward`.

The filtered channels z are made in tiles of at most TILE_BYTES, in the accumulator type, and so are the
products with them: 16-bit arrays are multiplied in float32. A tile has all channels of some samples, or of
some positions of one; in the backward pass, where a pixel gathers from all positions around it, all
positions of some samples, or of some channels of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from rawkernels.matmul import add_products, matmul
from rawkernels.source import Program, constants, program

FILE = "atoms.cu"
BLOCK = 128  # as the launch bounds of the kernels
STRIP = 8  # as in atoms.cu
WARP = 32

# Constants, and not properties of the device at hand, so that every device adds up in the same order.
TILE_BYTES = 64 * 1024 * 1024
_PRODUCT_BYTES = TILE_BYTES // 8  # of products that are added up at once to the gradient of coefficients
_THREADS_WANTED = 1 << 17
_CHUNK = (4, 32)  # channels that share one reading of the atoms: at least, at most
_WARPS_WANTED = 1 << 13
_SLOTS = 256  # at most, in the gradient of the bases
_COLUMNS_A_LANE = 8  # least work worth a slot of its own


@dataclass(frozen=True)
class Shape:
    """Sizes of one call of `atom_conv2d`."""

    batch: int
    channels: int
    atoms: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    dtype: Any

    @property
    def positions(self) -> int:
        """Output positions of one sample."""
        return self.out_height * self.out_width

    @property
    def taps(self) -> int:
        """Values in one atom."""
        return self.kernel[0] * self.kernel[1]

    @property
    def arguments(self) -> tuple[np.int32, ...]:
        """The numbers that kernels take last."""
        values = (self.channels, self.atoms, self.height, self.width, self.out_height, self.out_width)
        pairs = (*self.kernel, *self.stride, *self.dilation, *self.padding)
        return int32s(*values, *pairs)


class Tile(NamedTuple):
    """Which samples, positions and channels: the first, and how many."""

    sample: int
    samples: int
    position: int
    positions: int
    channel: int
    channels: int

    @property
    def columns(self) -> int:
        """Columns of its matrices."""
        return self.samples * self.positions

    @property
    def place(self) -> tuple[np.int32, ...]:
        """Samples and positions as kernels take them."""
        return int32s(*self[:4])

    @property
    def arguments(self) -> tuple[np.int32, ...]:
        """All of it as kernels take it."""
        return int32s(*self)


def choose_size(kernel: tuple[int, int], *, double: bool) -> tuple[int, int]:
    """Kernel size to compile in (0, any, where filters would not fit in registers), and atoms of a thread."""
    square = kernel[0] == kernel[1] and kernel[0] in (1, 3, 5)
    if not square or (kernel[0] == 5 and double):
        return 0, 1
    return kernel[0], {1: 4, 3: 2 if double else 3, 5: 1}[kernel[0]]


def choose_program(
    dtype: Any, kernel: tuple[int, int], *, wide_index: bool = False
) -> tuple[Program, int, int]:
    """Program for one kind of call, the kernel size compiled in, and atoms of a thread."""
    size, chosen_set = choose_size(kernel, double=getattr(dtype, "name", dtype) == "float64")
    chosen = constants(KH=size, KW=size, SET=chosen_set)
    return program(FILE, type_constants(dtype, wide_index=wide_index) + chosen), size, chosen_set


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    found: dict[Program, str] = {}
    for k in (0, 1, 3, 5):
        made, size, _ = choose_program(dtype, (k, k), wide_index=wide_index)
        found.setdefault(made, f"{dtype} k{size}")
    return [(label, made) for made, label in found.items()]


class _Call:
    """One call: its sizes, its program, and the type of indices."""

    def __init__(
        self, x: Any, atoms: Any, coefficients: Any, stride: Any, dilation: Any, padding: Any
    ) -> None:
        batch, channels, height, width = x.shape
        _, count, kernel_h, kernel_w, out_height, out_width = atoms.shape
        sizes = (batch, channels, count, height, width, out_height, out_width)
        pairs = ((kernel_h, kernel_w), tuple(stride), tuple(dilation), tuple(padding))
        self.shape = Shape(*sizes, *pairs, x.dtype)
        self.outputs = coefficients.shape[0]
        self.accumulator = accumulator_dtype(x.dtype)
        # No kernel has more threads than its tile, its arrays or the output have elements.
        largest = max(TILE_BYTES // 4, batch * self.outputs * self.shape.positions)
        wide = needs_wide_index(x, atoms, coefficients, work_items=largest)
        self.index: Any = np.int64 if wide else np.int32
        self.program, self.size, self.set = choose_program(x.dtype, (kernel_h, kernel_w), wide_index=wide)
        self.matrix = coefficients.reshape(self.outputs, channels * count).astype(
            self.accumulator, copy=False
        )

    def empty(self, rows: int, columns: int, like: Any) -> Any:
        """A matrix in the accumulator type."""
        return empty((rows, columns), like, self.accumulator)

    def launch(self, entry: str, items: int, arrays: tuple[Any, ...], *others: Any) -> None:
        """Run a kernel whose first number is its count of threads."""
        launch(self.program, entry, (blocks(items, BLOCK),), (BLOCK,), (*arrays, self.index(items), *others))

    def filter(self, x: Any, atoms: Any, tile: Tile) -> Any:
        """z of a tile."""
        z = self.empty(tile.channels * self.shape.atoms, tile.columns, x)
        columns = tile.columns * blocks(self.shape.atoms, self.set)
        wanted = columns * tile.channels // _THREADS_WANTED
        chunk = min(tile.channels, max(_CHUNK[0], min(_CHUNK[1], wanted)))
        items, numbers = columns * blocks(tile.channels, chunk), (*tile.arguments, *self.shape.arguments)
        self.launch("atoms_filter", items, (x, atoms, z), np.int32(chunk), *numbers)
        return z

    def place(self, product: Any, bias: Any, y: Any, tile: Tile) -> None:
        """A product where it belongs in y."""
        numbers = (np.int32(self.outputs), np.int32(self.shape.positions), *tile.place)
        self.launch("atoms_place", product.size, (product, bias, y), *numbers)

    def collect(self, grad_output: Any, tile: Tile) -> Any:
        """The gradient of y as a matrix."""
        grads = self.empty(self.outputs, tile.columns, grad_output)
        numbers = (np.int32(self.outputs), np.int32(self.shape.positions), *tile.place)
        self.launch("atoms_collect", grads.size, (grad_output, grads), *numbers)
        return grads

    def grad_atoms(self, grad_z: Any, x: Any, grad_atoms: Any, tile: Tile) -> None:
        """Add the channels of a tile to the gradient of the atoms."""
        strips = 1 if self.size else blocks(self.shape.taps, STRIP)
        items = tile.columns * blocks(self.shape.atoms, self.set) * strips
        numbers = (np.int32(tile.channel > 0), *tile.arguments, *self.shape.arguments)
        self.launch("atoms_grad_atoms", items, (grad_z, x, grad_atoms), *numbers)

    def grad_x(self, grad_z: Any, atoms: Any, grad_x: Any, tile: Tile) -> None:
        """The gradient of the channels of a tile."""
        items = tile.samples * self.shape.height * self.shape.width * blocks(tile.channels, STRIP)
        numbers = (*tile.arguments, *self.shape.arguments)
        self.launch("atoms_grad_x", items, (grad_z, atoms, grad_x), *numbers)

    def rounded(self, total: Any, like: Any) -> Any:
        """A total in the accumulator type as an array of the type of the call."""
        if total.dtype == like.dtype:
            return total.reshape(like.shape)
        result = empty(like.shape, like)
        arguments = (total, result, self.index(total.size), np.int32(1))
        launch(self.program, "atoms_sum_slots", (blocks(total.size, BLOCK),), (BLOCK,), arguments)
        return result


def _tiles(shape: Shape, itemsize: int) -> Iterator[Tile]:
    """Tiles of the forward pass: all channels."""
    column = shape.channels * shape.atoms * itemsize
    samples = min(shape.batch, TILE_BYTES // (column * shape.positions))
    positions = shape.positions if samples else max(1, min(shape.positions, TILE_BYTES // column))
    samples = max(1, samples)
    for n in range(0, shape.batch, samples):
        for p in range(0, shape.positions, positions):
            several = min(samples, shape.batch - n), p, min(positions, shape.positions - p)
            yield Tile(n, *several, 0, shape.channels)


def _grad_tiles(shape: Shape, itemsize: int) -> Iterator[Tile]:
    """Tiles of the backward pass: all positions, and samples before channels."""
    channel = shape.atoms * shape.positions * itemsize
    samples = max(1, min(shape.batch, TILE_BYTES // (channel * shape.channels)))
    channels = max(1, min(shape.channels, TILE_BYTES // (channel * samples)))
    for n in range(0, shape.batch, samples):
        for c in range(0, shape.channels, channels):
            rows = (c, min(channels, shape.channels - c))
            yield Tile(n, min(samples, shape.batch - n), 0, shape.positions, *rows)


def forward(
    x: Any,
    atoms: Any,
    coefficients: Any,
    bias: Any,
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Any, tuple[Any, Any, Any, Any]]:
    """Output (N, O, Ho, Wo), and the arrays that `backward` needs: contiguous inputs."""
    x, atoms, coefficients, bias = contiguous(x, atoms, coefficients, bias)
    kept = x, atoms, coefficients, bias
    call = _Call(x, atoms, coefficients, stride, dilation, padding)
    y = empty((call.shape.batch, call.outputs, call.shape.out_height, call.shape.out_width), x)
    if y.size == 0:
        return y, kept
    if call.matrix.size == 0:
        tile = Tile(0, call.shape.batch, 0, call.shape.positions, 0, 0)
        call.place(zeros((call.outputs, tile.columns), x, call.accumulator), bias, y, tile)
        return y, kept
    for tile in _tiles(call.shape, call.accumulator.itemsize):
        call.place(matmul(call.matrix, call.filter(x, atoms, tile)), bias, y, tile)
    return y, kept


def backward(
    grad_output: Any,
    kept: tuple[Any, Any, Any, Any],
    needs: tuple[bool, bool, bool, bool],
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Any, Any, Any, Any]:
    """Gradients of x, atoms, coefficients and bias; None where `needs` is False."""
    grad_output, x, atoms, coefficients, bias = contiguous(grad_output, *kept)
    call = _Call(x, atoms, coefficients, stride, dilation, padding)
    grad_x = zeros(x.shape, x) if needs[0] else None
    grad_atoms = zeros(atoms.shape, x, call.accumulator) if needs[1] else None
    total: Any = zeros(call.matrix.shape, x, np.dtype(np.float64)) if needs[2] else None
    nothing = not grad_output.size or not call.matrix.size or not any(needs[:3])
    for tile in () if nothing else _grad_tiles(call.shape, call.accumulator.itemsize):
        if tile.channel == 0:
            grads = call.collect(grad_output, tile)
        rows = slice(tile.channel * call.shape.atoms, (tile.channel + tile.channels) * call.shape.atoms)
        if needs[0] or needs[1]:
            grad_z = matmul(call.matrix[:, rows].T, grads)
        if needs[0]:
            call.grad_x(grad_z, atoms, grad_x, tile)
        if needs[1]:
            call.grad_atoms(grad_z, x, grad_atoms, tile)
        if needs[2]:
            z = call.filter(x, atoms, tile)
            add_products(total[:, rows], grads.T[None], z.T[None], _PRODUCT_BYTES)
    return (
        grad_x,
        call.rounded(grad_atoms, atoms) if needs[1] else None,
        call.rounded(total.astype(call.accumulator), coefficients) if needs[2] else None,
        _grad_bias(call, grad_output, bias) if needs[3] else None,
    )


def _grad_bias(call: _Call, grad_output: Any, bias: Any) -> Any:
    total = grad_output.astype(call.accumulator, copy=False).sum(axis=(0, 2, 3))
    return call.rounded(total, bias)


def _compose(source: Any, matrix: Any, shape: tuple[int, ...]) -> Any:
    """target[n, m, t, p] = sum over s of matrix[s, t] * source[n, m, s, p], in `shape`."""
    target = empty(shape, source)
    (depth, rows), positions = matrix.shape, source.shape[-2] * source.shape[-1]
    if target.size:
        items = target.shape[0] * target.shape[1] * blocks(rows, STRIP) * positions
        wide = needs_wide_index(source, target, work_items=items)
        chosen = choose_program(source.dtype, (0, 0), wide_index=wide)[0]
        numbers = (np.int64(items) if wide else np.int32(items), *map(np.int32, (depth, rows, positions)))
        arguments = (source, *contiguous(matrix), target, *numbers)
        launch(chosen, "atoms_compose", (blocks(items, BLOCK),), (BLOCK,), arguments)
    return target


def compose_forward(alpha: Any, bases: Any) -> tuple[Any, tuple[Any, Any]]:
    """Atoms (N, M, kh, kw, Ho, Wo), and the arrays that `compose_backward` needs: contiguous inputs."""
    alpha, bases = contiguous(alpha, bases)
    shape = (*alpha.shape[:2], *bases.shape[1:], *alpha.shape[3:])
    return _compose(alpha, bases.reshape(len(bases), -1), shape), (alpha, bases)


def compose_backward(grad_output: Any, kept: tuple[Any, Any], needs: tuple[bool, bool]) -> tuple[Any, Any]:
    """Gradients of alpha and bases; None where `needs` is False."""
    grad_output, alpha, bases = contiguous(grad_output, *kept)
    matrix = bases.reshape(bases.shape[0], bases.shape[1] * bases.shape[2])
    grad_alpha = _compose(grad_output, matrix.T, alpha.shape) if needs[0] else None
    return grad_alpha, _grad_bases(grad_output, alpha, bases) if needs[1] else None


def _grad_bases(grad_output: Any, alpha: Any, bases: Any) -> Any:
    grad = empty(bases.shape, bases)
    if grad.size == 0:
        return grad
    if alpha.size == 0:
        return zeros(bases.shape, bases)
    positions, taps = alpha.shape[3] * alpha.shape[4], bases.shape[1] * bases.shape[2]
    count = alpha.shape[0] * alpha.shape[1] * positions
    sums = len(bases) * blocks(taps, STRIP)
    slots = max(1, min(_SLOTS, blocks(_WARPS_WANTED, sums), count // (WARP * _COLUMNS_A_LANE)))
    items = slots * sums
    partial = empty((slots, *bases.shape), alpha, accumulator_dtype(alpha.dtype))
    # The last slot reaches past the end.
    wide = needs_wide_index(grad_output, alpha, partial, work_items=max(items * WARP, count + slots))
    index = np.int64 if wide else np.int32
    chosen = choose_program(alpha.dtype, (0, 0), wide_index=wide)[0]
    numbers = (index(items), index(count), *map(np.int32, (slots, len(bases), taps, positions)))
    arguments = (alpha, grad_output, partial, *numbers)
    launch(chosen, "atoms_grad_bases", (blocks(items * WARP, BLOCK),), (BLOCK,), arguments)
    arguments = (partial, grad, index(grad.size), np.int32(slots))
    launch(chosen, "atoms_sum_slots", (blocks(grad.size, BLOCK),), (BLOCK,), arguments)
    return grad
