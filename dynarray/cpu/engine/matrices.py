"""Whole matrices whose columns are positions of many images, and their products, over threads.

A tile of positions by itself reads all weights. Where images are small and weights are many, tiles are few
and narrow: there the positions of all images are the columns of one matrix, and the weights are read once,
as they lie in the array of the caller. The matrix lies in strips of `TILE_ROW_BYTES` of columns, one after
the other, each row by row, as `gemm` reads right matrices.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from . import gemm, parallel
from .compile import ZERO, borrowing_cached_jit, borrowing_jit
from .memory import borrow, run_with_scratch
from .pixels import clear, copy, transpose

MATRIX_BYTES = 4 * 1024 * 1024  # most, of one whose positions are multiplied at once: the cache has several
_PANELS = 8  # of an item, most: enough for each part of a strip that comes into the first cache
_LEAST_STRIPS = 4  # of a part: fewer, and a block is rather made of fewer panels
# Steps of depth that are added up at once: a part of a strip that stays in the first cache, and few enough,
# for rounding errors grow with the length of a sum.
CHUNK = 96


class StripPlace(NamedTuple):
    """A row of a matrix of so many rows in strips, from a column on."""

    rows: int
    row: int
    column: int


class LeftMatrix(NamedTuple):
    """A left matrix: from row to row, from step to step of depth, and from chunk to chunk of these."""

    values: np.ndarray  # 1-d, contiguous
    row: int
    step: int
    chunk: int


class Result(NamedTuple):
    """A product: from row to row, and from strip to strip."""

    values: np.ndarray  # 1-d, contiguous
    row: int
    strip: int


class _Size(NamedTuple):
    """Of a product; items are blocks of its rows and parts of its strips."""

    rows: int
    columns: int  # that are written
    depth: int
    chunk: int
    block: int
    parts: int


class _Scratch(NamedTuple):
    """Memory of a thread."""

    panels: Any  # a block of rows of a left matrix that is not read where it is
    corner: Any  # a block of rows of the last strip, if not all of it is written


def strips_of(columns: int, itemsize: int) -> int:
    """The strips of so many columns."""
    return -(-columns * itemsize // gemm.TILE_ROW_BYTES)


def borrow_matrix(name: str, rows: int, columns: int, dtype: np.dtype, matrices: int = 1) -> np.ndarray:
    """Matrices in strips, one after the other, with any values: see `memory.borrow`.

    In its last strip each has zeros behind its columns. They are multiplied too, and what memory held before
    may be slow to multiply.
    """
    width = gemm.TILE_ROW_BYTES // dtype.itemsize
    strips = strips_of(columns, dtype.itemsize)
    matrix = borrow(name, matrices * strips * width * rows, dtype)
    if columns % width:
        matrix.reshape(matrices, strips, rows, width)[:, -1, :, columns % width :] = 0
    return matrix


@borrowing_jit
def _next_run(strips: np.ndarray, place: StripPlace, done: int, count: int) -> tuple[int, int]:
    """Where a row goes on in its strip, and how many of those that are left are there."""
    width = gemm.TILE_ROW_BYTES // strips.itemsize
    strip, lane = (place.column + done) // width, (place.column + done) % width
    return (strip * place.rows + place.row) * width + lane, min(count - done, width - lane)


@borrowing_jit
def put_in_strips(strips: np.ndarray, place: StripPlace, source: np.ndarray, at: int, count: int) -> None:
    """So many elements from `at` on to their place in a matrix in strips."""
    done = 0
    while done < count:
        to, some = _next_run(strips, place, done, count)
        copy(strips, to, source, at + done, some)
        done += some


@borrowing_jit
def take_from_strips(target: np.ndarray, at: int, strips: np.ndarray, place: StripPlace, count: int) -> None:
    """The other way round."""
    done = 0
    while done < count:
        start, some = _next_run(strips, place, done, count)
        copy(target, at + done, strips, start, some)
        done += some


@borrowing_cached_jit
def deal_items(start: int, stop: int, strips: np.ndarray, planes: np.ndarray) -> None:
    """Items: channels. Planes (N, channels, positions) as a matrix (channels, N * positions) in strips."""
    images, channels, positions = planes.shape
    flat = planes.reshape(planes.size)
    for row in range(start, stop):
        for n in range(images):
            place = StripPlace(channels, row, n * positions)
            put_in_strips(strips, place, flat, (n * channels + row) * positions, positions)


@borrowing_cached_jit
def collect_items(start: int, stop: int, planes: np.ndarray, strips: np.ndarray, bias: np.ndarray) -> None:
    """Items: channels. The other way round, with the bias of each channel if there is one."""
    images, channels, positions = planes.shape
    flat = planes.reshape(planes.size)
    for row in range(start, stop):
        for n in range(images):
            at, place = (n * channels + row) * positions, StripPlace(channels, row, n * positions)
            take_from_strips(flat, at, strips, place, positions)
            for j in range(uint64(positions if bias.size else 0)):
                flat[uint64(at) + j] += bias[row]


@borrowing_cached_jit
def turn_items(start: int, stop: int, target: np.ndarray, source: np.ndarray, size: tuple) -> None:
    """Items: strips of the target. The transpose of a matrix (rows, columns); both in strips, whole ones."""
    (rows, columns), width = size, gemm.TILE_ROW_BYTES // source.itemsize
    across = -(-columns // width) * width
    for item in range(start, stop):
        count = min(width, rows - item * width)
        if count < width:
            clear(target, item * across * width, across * width)  # multiplied too: see `borrow_matrix`
        for strip in range(across // width):
            to, at = (item * across + strip * width) * width, (strip * rows + item * width) * width
            transpose(gemm.Matrix(target, to, width), gemm.Matrix(source, at, width), count, width)


@borrowing_jit
def _pack_panels(panels: np.ndarray, left: LeftMatrix, at: int, rows: int, depth: int) -> None:
    """Rows of a left matrix in panels, where all of a step are neighbours in memory: read in their order."""
    whole = rows - rows % gemm.TILE_ROWS
    for k in range(depth):
        source = at + k * left.step
        for i in range(0, whole, gemm.TILE_ROWS):
            to, start = uint64(i * depth + k * gemm.TILE_ROWS), uint64(source + i)
            for row in range(uint64(gemm.TILE_ROWS)):
                panels[to + row] = left.values[start + row]
        to, start = uint64(whole * depth + k * gemm.TILE_ROWS), uint64(source + whole)
        for row in range(uint64(rows - whole)):
            panels[to + row] = left.values[start + row]
        for row in range(uint64(rows - whole), uint64(gemm.TILE_ROWS if rows > whole else 0)):
            panels[to + row] = 0  # as `borrow_matrix`


@borrowing_cached_jit
def multiply_items(
    start: int, stop: int, scratch: _Scratch, out: Result, left: LeftMatrix, right: np.ndarray, size: _Size
) -> None:
    """Items: (block of rows, part of the strips). The right matrix fills its array."""
    width = gemm.TILE_ROW_BYTES // right.itemsize
    strips = -(-size.columns // width)
    apart = len(right) // strips
    for item in range(start, stop):
        first, part = item // size.parts * size.block, item % size.parts
        rows, end = min(size.block, size.rows - first), strips * (part + 1) // size.parts
        for chunk in range(-(-size.depth // size.chunk)):
            k, at = chunk * size.chunk, first * left.row + chunk * left.chunk
            depth = min(size.chunk, size.depth - k)
            if left.step != 1:
                _pack_panels(scratch.panels, left, at, rows, depth)
            for j in range(strips * part // size.parts, end):
                goal = gemm.Matrix(out.values, first * out.row + j * out.strip, out.row)
                if (j + 1) * width > size.columns:
                    goal = gemm.Matrix(scratch.corner, ZERO, width)
                factor = gemm.RightStrips(right, j * apart + k * width, ZERO, width)
                if left.step == 1:
                    lines = gemm.Matrix(left.values, at, left.row)
                    gemm.multiply_rows(goal, lines, factor, (rows, width), depth, k > 0)
                else:
                    panels = gemm.Matrix(scratch.panels, ZERO, depth * gemm.TILE_ROWS)
                    gemm.multiply_panels(goal, panels, factor, (rows, width), depth, k > 0)
        if end * width > size.columns:
            for i in range(rows):
                to = (first + i) * out.row + (end - 1) * out.strip
                copy(out.values, to, scratch.corner, i * width, size.columns - (end - 1) * width)


def _divided(panels: int, height: int) -> tuple[int, int]:
    """Blocks of so many panels, and into how many parts each is divided so that there is work for all."""
    blocks = -(-panels // height)
    return blocks, -(-parallel.ITEMS // blocks)


def multiply_matrices(
    out: Result, left: LeftMatrix, right: np.ndarray, size: tuple[int, int, int], chunk: int
) -> None:
    """The product of size (rows, columns, depth) with a right matrix in strips.

    Sums of `chunk` terms are added up. Where steps of `left` are not neighbours, its rows are.
    """
    rows, columns, depth = size
    strips, panels = strips_of(columns, right.itemsize), -(-rows // gemm.TILE_ROWS)
    height = min(_PANELS, panels)
    blocks, parts = _divided(panels, height)
    while height > 1 and parts > 1 and parts * _LEAST_STRIPS > strips:
        height = -(-height // 2)
        blocks, parts = _divided(panels, height)
    block, parts = height * gemm.TILE_ROWS, min(parts, strips)
    packed = 0 if left.step == 1 else block * min(chunk, depth)
    scratch = _Scratch(packed, block * gemm.TILE_ROW_BYTES // right.itemsize)
    args = (out, left, right, _Size(rows, columns, depth, chunk, block, parts))
    operations = 0.1 * rows * columns * depth  # those of a product take a tenth of what others do
    run_with_scratch(multiply_items, blocks * parts, operations, scratch, right.dtype, *args)
