"""Matrix products inside kernels: one thread, no BLAS, and a right matrix that need not exist.

NumPy's BLAS runs its AVX2 kernels on processors that it does not know, has threads of its own, and takes
matrices only. Here a kernel multiplies where it is: the right matrix is any memory in which row k begins at
``steps[k]``, so that the shifted planes of a convolution, or points just sampled, are multiplied in place.

The product is made of tiles of `ROWS` rows and `TILE_BYTES` of columns, whose sums stay in registers over the
whole depth. Per step of depth a tile loads two vectors of the right matrix, broadcasts `ROWS` elements of the
left one and does ``2*ROWS`` multiply-adds: arithmetic bounds it as long as a panel of the left matrix and the
rows of the right one come from the first two levels of cache. LLVM's vectoriser does not keep a tile in
registers, so the innermost loop is written as vector instructions.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import jit
from .vectors import MANY_REGISTERS, REGISTER_BYTES, Writer

_VECTORS = 2

# Rows and columns of a tile: as many sums as fit into the registers with the operands.
ROWS = 8 if MANY_REGISTERS else 6
TILE_BYTES = _VECTORS * REGISTER_BYTES


def pack_left(matrix: np.ndarray) -> np.ndarray:
    """The left matrix (rows, depth) as `multiply` reads it: (panels, depth, ROWS), zeros in rows beyond."""
    panels = np.zeros((-(-matrix.shape[0] // ROWS), matrix.shape[1], ROWS), matrix.dtype)
    for row in range(ROWS):
        part = matrix[row::ROWS]
        panels[: len(part), :, row] = part
    return panels


@jit
def multiply(
    out: np.ndarray,
    at: int,
    stride: int,
    rows: int,
    columns: int,
    left: np.ndarray,
    left_at: int,
    panel: int,
    right: np.ndarray,
    right_at: int,
    strip: int,
    steps: np.ndarray,
    first: int,
    count: int,
    scratch: np.ndarray,
    add: bool,
) -> None:
    """out[at + i*stride + j] = sum over k of left[i, k] * right[k, j].

    Parameters
    ----------
    out, left, right : array, 1-d, contiguous
        The matrices: `left` as `pack_left` makes it, flattened.
    at, stride, rows, columns : int
        Where the result begins, the distance of its rows, and its size.
    left_at, panel : int
        Where the first panel begins, at the first step of depth to be taken, and the distance of panels.
    right_at, strip, steps : int, int, array of int
        Where the right matrix begins, the distance of its strips of `TILE_BYTES` of columns, and where each
        row begins in a strip. Reads up to the end of a strip: that memory must be there, its contents do not
        matter.
    first, count : int
        Which of the `steps` to take; `count` is at least 1.
    scratch : array
        At least one tile, for those that reach over the last column.
    add : bool
        Add to what `out` holds, for a sum that is made in parts.
    """
    width = TILE_BYTES // out.itemsize
    # A strip of the right matrix stays in the first level of cache while the panels of the left one go by.
    for j in range(0, columns, width):
        there = right_at + j // width * strip
        for i in range(0, rows, ROWS):
            place, source, high = at + i * stride + j, left_at + i // ROWS * panel, min(ROWS, rows - i)
            if j + width <= columns:
                _tile(out, place, stride, high, left, source, right, there, steps, first, count, add)
            else:
                _tile(scratch, 0, width, high, left, source, right, there, steps, first, count, False)
                _copy_part(out, place, stride, high, columns - j, scratch, width, add)


@jit
def multiply_rows(
    out: np.ndarray,
    at: int,
    stride: int,
    rows: int,
    columns: int,
    left: np.ndarray,
    left_at: int,
    left_stride: int,
    right: np.ndarray,
    right_at: int,
    right_stride: int,
    strip: int,
    depth: int,
    add: bool,
) -> None:
    """out[at + i*stride + j] = sum over k of left[left_at + i*left_stride + k] * right[k, j].

    For a left matrix that has just been made, row by row, and a right one that many products share: nothing
    of the left one is moved. Works on whole tiles: all three matrices have `ROWS` rows and `TILE_BYTES` of
    columns, or multiples, in memory, and what lies in those beyond `rows` and `columns` does not matter.

    Parameters
    ----------
    out, left, right : array, 1-d, contiguous
        The matrices.
    at, stride, rows, columns : int
        Where the result begins, the distance of its rows, and its size.
    left_at, left_stride : int
        Where the left matrix begins, and the distance of its rows.
    right_at, right_stride, strip : int
        Where the right matrix begins, the distance of its rows, and that of its strips of `TILE_BYTES` of
        columns: row by row it is read fastest where each strip lies by itself.
    depth : int
        Columns of the left matrix, at least 1.
    add : bool
        Add to what `out` holds, for a sum that is made in parts.
    """
    width = TILE_BYTES // out.itemsize
    for j in range(0, columns, width):
        source = right_at + j // width * strip
        for i in range(0, rows, ROWS):
            place, line = at + i * stride + j, left_at + i * left_stride
            _row_tile(out, place, stride, left, line, left_stride, right, source, right_stride, depth, add)


@jit
def _copy_part(
    out: np.ndarray, at: int, stride: int, rows: int, columns: int, tile: np.ndarray, width: int, add: bool
) -> None:
    for i in range(rows):
        for j in range(columns):
            before = out[at + i * stride + j] if add else out.dtype.type(0)
            out[at + i * stride + j] = before + tile[i * width + j]


@intrinsic
def _tile(
    typing: Any,
    out: Any,
    at: Any,
    stride: Any,
    rows: Any,
    left: Any,
    left_at: Any,
    right: Any,
    right_at: Any,
    steps: Any,
    first: Any,
    count: Any,
    add: Any,
) -> Any:
    """One tile of `multiply`, its sums in registers, of which the first `rows` rows are stored."""
    index = types.intp
    places = (out, index, index, index, left, index, right, index)
    signature = types.void(*places, steps, index, index, types.boolean)
    return signature, _generate_tile


def _generate_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = Writer(context, builder, signature, args, TILE_BYTES)
    _, at, stride, rows, _, left_at, _, right_at, _, first, count, add = args
    index = count.type
    out, left, right, steps = (
        builder.gep(writer.data[array], [offset])
        for array, offset in ((0, at), (4, left_at), (6, right_at), (8, first))
    )

    def step(k: Any, sums: list) -> list:
        values = writer.load(right, writer.element(steps, k))
        panel = builder.gep(left, [builder.mul(k, index(ROWS))])
        factors = (writer.broadcast(writer.element(panel, index(i))) for i in range(ROWS))
        return [writer.add(total, writer.multiply(f, values)) for total, f in zip(sums, factors, strict=True)]

    _store_tile(writer, writer.sums(ROWS, count, step), out, stride, rows, add)
    return context.get_dummy_value()


@intrinsic
def _row_tile(
    typing: Any,
    out: Any,
    at: Any,
    stride: Any,
    left: Any,
    left_at: Any,
    left_stride: Any,
    right: Any,
    right_at: Any,
    right_stride: Any,
    depth: Any,
    add: Any,
) -> Any:
    """One tile of `multiply_rows`."""
    index = types.intp
    signature = types.void(out, index, index, left, index, index, right, index, index, index, types.boolean)
    return signature, _generate_row_tile


def _generate_row_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = Writer(context, builder, signature, args, TILE_BYTES)
    _, at, stride, _, left_at, left_stride, _, right_at, right_stride, depth, add = args
    index = depth.type
    out, left, right = (
        builder.gep(writer.data[array], [offset]) for array, offset in ((0, at), (3, left_at), (6, right_at))
    )
    lines = [builder.gep(left, [builder.mul(left_stride, index(i))]) for i in range(ROWS)]

    def step(k: Any, sums: list) -> list:
        values = writer.load(right, builder.mul(k, right_stride))
        factors = (writer.broadcast(writer.element(line, k)) for line in lines)
        return [writer.add(total, writer.multiply(f, values)) for total, f in zip(sums, factors, strict=True)]

    _store_tile(writer, writer.sums(ROWS, depth, step), out, stride, None, add)
    return context.get_dummy_value()


def _store_tile(writer: Writer, totals: list, out: Any, stride: Any, rows: Any, add: Any) -> None:
    """The sums of a tile, or of its first `rows` rows, added to what is there if `add` says so."""
    builder = writer.builder
    with builder.if_else(builder.trunc(add, ir.IntType(1))) as branches:
        for branch, adding in zip(branches, (True, False), strict=True):
            with branch:
                for i, total in enumerate(totals):
                    place = builder.mul(stride, stride.type(i))
                    inside = rows and builder.icmp_signed("<", rows.type(i), rows)
                    with builder.if_then(inside, likely=True) if rows else nullcontext():
                        value = writer.add(total, writer.load(out, place)) if adding else total
                        writer.store(value, out, place)
