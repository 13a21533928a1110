"""Matrix products inside kernels: one thread, no BLAS, and a right matrix that need not exist.

NumPy's BLAS runs its AVX2 kernels on processors that it does not know, has threads of its own, and takes
matrices only. Here a kernel multiplies where it is: the right matrix is any memory of which is known where
each row begins, so that the shifted planes of a convolution, or points just sampled, are multiplied in place.

The product is made of tiles of `TILE_ROWS` rows and `TILE_ROW_BYTES` of columns, whose sums stay in registers
over the whole depth. Per step of depth a tile loads two vectors of the right matrix, broadcasts `TILE_ROWS`
elements of the left one and does ``2*TILE_ROWS`` multiply-adds: arithmetic bounds it as long as a panel of
the left matrix and the rows of the right one come from the first two levels of cache. LLVM's vectoriser does
not keep a tile in registers, so the innermost loop is written as vector instructions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.extending import register_jitable

from .compile import FALSE, ZERO, borrowing_jit, zero_like
from .vectors import MANY_REGISTERS, REGISTER_BYTES, Writer, written

_VECTORS = 2

# Rows and columns of a tile: as many sums as fit into the registers with the operands.
TILE_ROWS = 8 if MANY_REGISTERS else 6
TILE_ROW_BYTES = _VECTORS * REGISTER_BYTES


class Matrix(NamedTuple):
    """A matrix in memory, row by row, or panel by panel as `pack_left` makes it."""

    values: np.ndarray  # 1-d, contiguous
    at: int  # where it begins; the first panel, at the first step of depth to be taken
    stride: int  # from row to row, or from panel to panel


class RightStrips(NamedTuple):
    """A right matrix, in strips of `TILE_ROW_BYTES`."""

    values: np.ndarray  # 1-d, contiguous
    at: int  # where it begins
    stride: int  # from strip to strip
    rows: Any  # `multiply`: where each row begins in a strip; the others: from row to row


class _Tile(NamedTuple):
    """Where one tile of each of the three matrices begins, and how many rows of the result are stored."""

    out: int
    left: int
    right: int
    rows: int


@register_jitable(error_model="numpy")
def whole(count: int, step: int) -> int:
    """At least `count`, and a multiple of `step`: a matrix may have to fill whole tiles."""
    return -(-count // step) * step


def pack_left(matrix: np.ndarray) -> np.ndarray:
    """The left matrix (rows, depth) as `multiply` reads it: (panels, depth, TILE_ROWS), zeros beyond."""
    panels = np.zeros((-(-matrix.shape[0] // TILE_ROWS), matrix.shape[1], TILE_ROWS), matrix.dtype)
    for row in range(TILE_ROWS):
        part = matrix[row::TILE_ROWS]
        panels[: len(part), :, row] = part
    return panels


@borrowing_jit
def multiply(
    out: Matrix, left: Matrix, right: RightStrips, size: tuple, corner: np.ndarray, add: bool
) -> None:
    """out[i, j] = sum over k of left[i, k] * right[k, j], for `size` rows and columns.

    With `add`, sums are added to what `out` holds. `left` lies in panels. `right` has the depth of the
    product in rows, at least one, and is read up to the end of a strip: that memory must be there, its
    contents do not matter. `corner` has at least one tile, for those that reach over the last column.
    """
    (rows, columns), width = size, TILE_ROW_BYTES // corner.itemsize
    # A strip of the right matrix stays in the first level of cache while the panels of the left one go by.
    for j in range(0, columns, width):
        strip = right.at + j // width * right.stride
        for i in range(0, rows, TILE_ROWS):
            at, panel = out.at + i * out.stride + j, left.at + i // TILE_ROWS * left.stride
            high = min(TILE_ROWS, rows - i)
            if j + width <= columns:
                _panel_tile(out, left, right, _Tile(at, panel, strip, high), len(right.rows), add)
            else:
                part, tile = Matrix(corner, ZERO, width), _Tile(ZERO, panel, strip, high)
                _panel_tile(part, left, right, tile, len(right.rows), FALSE)
                _store_corner(Matrix(out.values, at, out.stride), part, high, columns - j, add)


@borrowing_jit
def _store_corner(out: Matrix, part: Matrix, rows: int, columns: int, add: bool) -> None:
    for i in range(rows):
        for j in range(columns):
            at = out.at + i * out.stride + j
            before = out.values[at] if add else zero_like(out.values)
            out.values[at] = before + part.values[i * part.stride + j]


def _write_tile(writer: Writer, out: Any, left: Any, right: Any, tile: Any, depth: Any, add: Any) -> None:
    """One tile, its sums in registers, of which the first ``tile.rows`` rows are stored."""
    builder, in_panels = writer.builder, writer.variant
    first, strip = builder.gep(left.values, [tile.left]), builder.gep(right.values, [tile.right])
    rows = [depth.type(i) for i in range(TILE_ROWS)]
    if not in_panels:  # the last one stands in for those that there are not
        last = builder.sub(tile.rows, tile.rows.type(1))
        lower = (builder.select(builder.icmp_signed("<", row, last), row, last) for row in rows)
        rows = [builder.mul(left.stride, row) for row in lower]
    lines = [builder.gep(first, [row]) for row in rows]

    def step(k: Any, sums: list) -> list:
        values = writer.load(strip, writer.place(right.rows, k))
        place = builder.mul(k, depth.type(TILE_ROWS)) if in_panels else k
        factors = (writer.broadcast(writer.element(line, place)) for line in lines)
        return [writer.multiply_add(*pair, values) for pair in zip(sums, factors, strict=True)]

    sums, first = writer.sums(TILE_ROWS, depth, step), builder.gep(out.values, [tile.out])
    with builder.if_else(builder.trunc(add, ir.IntType(1))) as branches:
        for branch, adding in zip(branches, (True, False), strict=True):
            with branch:
                for i, total in enumerate(sums):
                    place = builder.mul(out.stride, out.stride.type(i))
                    inside = builder.icmp_signed("<", tile.rows.type(i), tile.rows)
                    with builder.if_then(inside, likely=True):
                        value = writer.add(total, writer.load(first, place)) if adding else total
                        writer.store(value, first, place)


# Whether the left matrix lies in panels.
_panel_tile, _row_tile = (written(TILE_ROW_BYTES, kind)(_write_tile) for kind in (True, False))


def _over_tiles(write: Callable, step: int) -> Callable:
    """`multiply` for whole strips; a left matrix moves on by its stride every so many rows."""

    @borrowing_jit
    def whole_strips(
        out: Matrix, left: Matrix, right: RightStrips, size: tuple, depth: int, add: bool
    ) -> None:
        (rows, columns), width = size, TILE_ROW_BYTES // out.values.itemsize
        for j in range(0, columns, width):
            strip = right.at + j // width * right.stride
            for i in range(0, rows, TILE_ROWS):
                at, high = left.at + i // step * left.stride, min(TILE_ROWS, rows - i)
                write(out, left, right, _Tile(out.at + i * out.stride + j, at, strip, high), depth, add)

    return whole_strips


# The same for a left matrix of `depth` columns row by row, as it lies in an array or has just been made:
# nothing is moved. `out` and `right` have whole strips in memory, and what lies in those beyond the matrices
# does not matter. Many products may share `right`. Row by row it is read fastest where each strip lies by
# itself. And for such a right matrix and a left one in panels.
multiply_rows, multiply_panels = _over_tiles(_row_tile, 1), _over_tiles(_panel_tile, TILE_ROWS)
