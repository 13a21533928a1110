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

# As many sums as fit into the registers with the operands; a strip of planes is a tile of `gemm` wide.
ROWS = 2
COLUMNS = 4 if gemm.ROWS == 8 else 2
STRIP_BYTES = gemm.TILE_BYTES


def _block(rows: int, columns: int) -> Callable:
    """An intrinsic: one strip of `rows` times `columns` output planes."""

    @intrinsic
    def block(
        typing: Any,
        out: Any,
        out_row: Any,
        row: Any,
        out_column: Any,
        column: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_column: Any,
        b_step: Any,
        place: Any,
        depth: Any,
        add: Any,
    ) -> Any:
        i = types.intp
        offsets = (out_row, i, out_column, i)
        planes = (a, a_row, a_step, b, b_column, b_step)
        signature = types.void(out, *offsets, *planes, i, i, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _Strip(context, builder, signature, args).generate(rows, columns)

        return signature, generate

    return block


class _Strip:
    """Writes the instructions of a block."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.args = context, builder, args
        element = context.get_data_type(signature.args[0].dtype)
        self.size = context.get_abi_sizeof(element)
        # Wider than a register: the compiler splits it.
        self.vector = ir.VectorType(element, STRIP_BYTES // self.size)
        self.data = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else None
            for kind, value in zip(signature.args, args, strict=True)
        ]

    def offset(self, array: int, index: Any) -> Any:
        """Element `index` of an array of offsets."""
        return self.builder.load(self.builder.gep(self.data[array], [index]))

    def strip(self, pointer: Any, offset: Any) -> Any:
        """Pointer to the strip that begins `offset` elements behind `pointer`."""
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), self.vector.as_pointer())

    def load(self, pointer: Any, offset: Any) -> Any:
        return self.builder.load(self.strip(pointer, offset), align=self.size)

    def generate(self, rows: int, columns: int) -> Any:
        builder, args = self.builder, self.args
        _, _, row, _, column, *_, place, depth, add = args
        index = depth.type
        of_row = [builder.add(row, index(i)) for i in range(rows)]
        of_column = [builder.add(column, index(k)) for k in range(columns)]
        # Where each plane's strip is but for the step.
        lefts, rights = (
            [builder.gep(self.data[array], [builder.add(self.offset(array + 1, at), place)]) for at in places]
            for array, places in ((5, of_row), (8, of_column))
        )
        sums = self.loop(lefts, rights, depth)
        for number, total in enumerate(sums):
            i, k = divmod(number, columns)
            begin = builder.add(self.offset(1, of_row[i]), self.offset(3, of_column[k]))
            target = self.strip(self.data[0], builder.add(begin, place))
            with builder.if_else(builder.trunc(add, ir.IntType(1))) as (adding, setting):
                with adding:
                    before = builder.load(target, align=self.size)
                    builder.store(builder.fadd(before, total), target, align=self.size)
                with setting:
                    builder.store(total, target, align=self.size)
        return self.context.get_dummy_value()

    def loop(self, lefts: list, rights: list, depth: Any) -> list:
        """The sums over the depth, of at least one step."""
        builder, index = self.builder, depth.type
        before, body = builder.block, builder.append_basic_block("depth")
        after = builder.append_basic_block("sums")
        builder.branch(body)
        builder.position_at_end(body)
        step = builder.phi(index)
        sums = [builder.phi(self.vector) for _ in range(len(lefts) * len(rights))]
        left_step, right_step = self.offset(7, step), self.offset(10, step)
        others = [self.load(pointer, right_step) for pointer in rights]
        following: list[Any] = []
        for pointer in lefts:
            factor = self.load(pointer, left_step)
            for other in others:
                product = builder.fmul(factor, other, flags=("contract",))
                following.append(builder.fadd(sums[len(following)], product, flags=("contract",)))
        next_step = builder.add(step, index(1))
        zero = ir.Constant(self.vector, [0.0] * self.vector.count)
        step.add_incoming(index(0), before)
        step.add_incoming(next_step, body)
        for now, then in zip(sums, following, strict=True):
            now.add_incoming(zero, before)
            now.add_incoming(then, body)
        builder.cbranch(builder.icmp_signed("<", next_step, depth), body, after)
        builder.position_at_end(after)
        return following


_full_block, _full_row = _block(ROWS, COLUMNS), _block(1, COLUMNS)
_less_block, _less_row = _block(ROWS, COLUMNS - 1), _block(1, COLUMNS - 1)
_single = _block(1, 1)


@jit
def sum_products(
    out: np.ndarray,
    out_row: np.ndarray,
    out_column: np.ndarray,
    a: np.ndarray,
    a_row: np.ndarray,
    a_step: np.ndarray,
    b: np.ndarray,
    b_column: np.ndarray,
    b_step: np.ndarray,
    rows: int,
    columns: int,
    depth: int,
    count: int,
    add: bool,
) -> None:
    """out[i, k] = sum over s of a[i, s] * b[k, s], where each is a plane of `count` elements.

    Plane (i, k) of `out` begins at ``out_row[i] + out_column[k]``, (i, s) of `a` at ``a_row[i] + a_step[s]``,
    (k, s) of `b` at ``b_column[k] + b_step[s]``; `depth` is at least 1. Planes are read and written in whole
    strips: that memory must be there. With `add`, sums are added to what `out` holds, and planes of `out` may
    overlap.
    """
    width, groups = STRIP_BYTES // out.itemsize, -(-columns // COLUMNS)
    for j in range(0, count, width):
        for group in range(groups):
            # Groups of nearly one size: small ones have too few sums to keep the arithmetic busy.
            k = columns * group // groups
            several = columns * (group + 1) // groups - k
            for i in range(0, rows, ROWS):
                args = (a, a_row, a_step, b, b_column, b_step, j, depth, add)
                if several == COLUMNS and i + ROWS <= rows:
                    _full_block(out, out_row, i, out_column, k, *args)
                elif several == COLUMNS:
                    _full_row(out, out_row, i, out_column, k, *args)
                elif several == COLUMNS - 1 and i + ROWS <= rows:
                    _less_block(out, out_row, i, out_column, k, *args)
                elif several == COLUMNS - 1:
                    _less_row(out, out_row, i, out_column, k, *args)
                else:
                    for row in range(i, min(i + ROWS, rows)):
                        for column in range(k, k + several):
                            _single(out, out_row, row, out_column, column, *args)
