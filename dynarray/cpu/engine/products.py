"""Sums of products along planes, for several rows and columns of planes at once.

A filter per pixel multiplies planes element by element. One output plane by itself is bound by loads: two
for each multiply-add. A block of `ROWS` times `COLUMNS` output planes shares them, its sums in registers
over the whole depth. As in `gemm`, the innermost loop is written as vector instructions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import gemm
from .compile import jit
from .vectors import MANY_REGISTERS, REGISTER_BYTES, Loop, Writer

# As many sums as fit into the registers with the operands: those of each row and of one column.
ROWS, COLUMNS = 3, 4
_VECTOR_BYTES = (2 if MANY_REGISTERS else 1) * REGISTER_BYTES
STRIP_BYTES = gemm.TILE_BYTES  # a strip of planes, in which memory is counted: whole vectors


def _block(rows: int, columns: int) -> Callable:
    """An intrinsic: all strips of `rows` times `columns` output planes."""

    @intrinsic
    def block(
        typing: Any,
        out: Any,
        out_row: Any,
        row: Any,
        out_col: Any,
        column: Any,
        out_strip: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_col: Any,
        b_step: Any,
        depth: Any,
        first: Any,
        strips: Any,
        add: Any,
    ) -> Any:
        i = types.intp
        offsets = (out_row, i, out_col, i, i)
        planes = (a, a_row, a_step, b, b_col, b_step)
        signature = types.void(out, *offsets, *planes, i, i, i, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _generate(context, builder, signature, args, rows, columns)

        return signature, generate

    return block


def _generate(context: Any, builder: Any, signature: Any, args: Any, rows: int, columns: int) -> Any:
    writer = Writer(context, builder, signature, args, _VECTOR_BYTES)
    out, out_row, _, out_col, _, _, a, a_row, a_step, b, b_col, b_step, *_ = writer.data
    _, _, row, _, column, out_strip, *_, depth, first, strips, add = args
    index = depth.type
    parts = STRIP_BYTES // _VECTOR_BYTES
    of_row = [builder.add(row, index(i)) for i in range(rows)]
    of_column = [builder.add(column, index(k)) for k in range(columns)]

    def begins(planes: Any, offsets: Any, numbers: list, strip: Any) -> list:
        """Pointers to the first strip of each plane, but for the step."""
        start = builder.gep(planes, [builder.mul(first, strip)])
        return [builder.gep(start, [writer.element(offsets, number)]) for number in numbers]

    strip = index(parts * writer.lanes)
    lefts, rights = begins(a, a_row, of_row, strip), begins(b, b_col, of_column, strip)
    outs = [
        builder.gep(target, [writer.element(out_row, number)])
        for target in begins(out, out_col, of_column, out_strip)
        for number in of_row
    ]

    # Everything but the loops over positions and depth is done once: a block takes but some dozen cycles.
    with Loop(builder, builder.mul(strips, index(parts)), []) as vectors:
        place = builder.mul(vectors.k, index(writer.lanes))
        here = [builder.gep(plane, [place]) for plane in lefts + rights]

        def step(s: Any, sums: list) -> list:
            left_step, right_step = writer.element(a_step, s), writer.element(b_step, s)
            factors = [writer.load(left, left_step) for left in here[:rows]]
            following: list[Any] = []
            for right in here[rows:]:
                other = writer.load(right, right_step)
                for factor in factors:
                    following.append(writer.add(sums[len(following)], writer.multiply(factor, other)))
            return following

        totals = writer.sums(rows * columns, depth, step)
        number, part = builder.udiv(vectors.k, index(parts)), builder.urem(vectors.k, index(parts))
        to = builder.add(builder.mul(number, out_strip), builder.mul(part, index(writer.lanes)))
        with builder.if_else(builder.trunc(add, ir.IntType(1))) as branches:
            for branch, adding in zip(branches, (True, False), strict=True):
                with branch:
                    for total, target in zip(totals, outs, strict=True):
                        value = writer.add(total, writer.load(target, to)) if adding else total
                        writer.store(value, target, to)
    return context.get_dummy_value()


_full, _fewer_rows = _block(ROWS, COLUMNS), _block(ROWS - 1, COLUMNS)
_fewer_columns, _fewer_of_both = _block(ROWS, COLUMNS - 1), _block(ROWS - 1, COLUMNS - 1)
_single = _block(1, 1)


@jit
def sum_products(
    out: np.ndarray,
    out_row: np.ndarray,
    out_col: np.ndarray,
    out_strip: int,
    a: np.ndarray,
    a_row: np.ndarray,
    a_step: np.ndarray,
    b: np.ndarray,
    b_col: np.ndarray,
    b_step: np.ndarray,
    rows: int,
    columns: int,
    depth: int,
    first: int,
    strips: int,
    add: bool,
) -> None:
    """out[i, k] = sum over s of a[i, s] * b[k, s], where each is a plane of which some strips are taken.

    Plane (i, k) of `out` begins at ``out_row[i] + out_col[k]``, (i, s) of `a` at ``a_row[i] + a_step[s]``,
    (k, s) of `b` at ``b_col[k] + b_step[s]``; `depth` is at least 1. The strips of a plane lie one after the
    other, those of a plane of `out` the distance `out_strip` apart; `strips` of them, at least 1, are taken
    from number `first` on. With `add`, sums are added to what `out` holds, and planes of `out` may overlap.
    """
    # Groups of nearly one size: small ones have too few sums to keep the arithmetic busy.
    row_groups, column_groups = (rows + ROWS - 1) // ROWS, (columns + COLUMNS - 1) // COLUMNS
    least_rows, more_rows = rows // row_groups, rows % row_groups
    least_columns, more_columns = columns // column_groups, columns % column_groups
    k = 0
    for column_group in range(column_groups):
        across, i = least_columns + (column_group < more_columns), 0
        for row_group in range(row_groups):
            down = least_rows + (row_group < more_rows)
            # Not through a tuple: that counts references to all arrays, at twice the cost of the block.
            if down == ROWS and across == COLUMNS:
                _full(
                    out, out_row, i, out_col, k, out_strip,
                    a, a_row, a_step, b, b_col, b_step, depth, first, strips, add,
                )  # fmt: skip
            elif down == ROWS - 1 and across == COLUMNS:
                _fewer_rows(
                    out, out_row, i, out_col, k, out_strip,
                    a, a_row, a_step, b, b_col, b_step, depth, first, strips, add,
                )  # fmt: skip
            elif down == ROWS and across == COLUMNS - 1:
                _fewer_columns(
                    out, out_row, i, out_col, k, out_strip,
                    a, a_row, a_step, b, b_col, b_step, depth, first, strips, add,
                )  # fmt: skip
            elif down == ROWS - 1 and across == COLUMNS - 1:
                _fewer_of_both(
                    out, out_row, i, out_col, k, out_strip,
                    a, a_row, a_step, b, b_col, b_step, depth, first, strips, add,
                )  # fmt: skip
            else:
                for n in range(i, i + down):
                    for m in range(k, k + across):
                        _single(
                            out, out_row, n, out_col, m, out_strip,
                            a, a_row, a_step, b, b_col, b_step, depth, first, strips, add,
                        )  # fmt: skip
            i += down
        k += across
