"""Products of small matrices whose elements are runs of pixels: what `dynamic_sampling` spends its time in.

Written in vectors, not as a loop that the compiler may vectorise: sums for several rows and columns at once
stay in registers, so that what is read serves several multiply-adds. (Of a loop with several targets LLVM
wants to compare each with every source, gives up at more than eight comparisons, and runs it pixel by pixel.)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import jit

ROWS = 4
_VECTOR_BYTES = 64
_FLAGS = ("contract", "reassoc", "nsz", "arcp")  # as in compile.py


def lanes_of(dtype: Any) -> int:
    """Pixels of a block."""
    return _VECTOR_BYTES // np.dtype(dtype).itemsize


def _product(columns: int) -> Callable:
    """``target[i][j] += sum over k of a[k][i] * b[k][j]``, for ROWS rows i and `columns` columns j.

    It is called as ``product(blocks, depth, target, target_at, target_row, target_cols, a, a_at, b, b_at,
    b_terms, b_cols)``. Element (k, i) of block m of `a` starts at ``a_at + ((m*depth + k)*ROWS + i)*lanes``,
    that of `b` at ``b_at + m*lanes + b_terms[k] + b_cols[j]`` and that of the target at ``target_at +
    m*lanes + i*target_row + target_cols[j]``.
    """

    @intrinsic
    def product(
        typing: Any,
        blocks: Any,
        depth: Any,
        target: Any,
        target_at: Any,
        target_row: Any,
        target_cols: Any,
        a: Any,
        a_at: Any,
        b: Any,
        b_at: Any,
        b_terms: Any,
        b_cols: Any,
    ) -> Any:
        one, several = types.intp, types.UniTuple(types.intp, columns)
        signature = types.void(one, one, target, one, one, several, a, one, b, one, b_terms, several)
        return signature, _generate(columns)

    return product


def _generate(columns: int) -> Callable:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        blocks, depth, _, target_at, target_row, target_cols, _, a_at, _, b_at, _, b_cols = args
        target, a, b, terms = (
            context.make_array(signature.args[k])(context, builder, args[k]).data for k in (2, 6, 8, 10)
        )
        element = context.get_data_type(signature.args[2].dtype)
        lanes = _VECTOR_BYTES // context.get_abi_sizeof(element)
        kind, zero = ir.VectorType(element, lanes), ir.Constant(blocks.type, 0)
        number = lambda value: ir.Constant(blocks.type, value)  # noqa: E731
        align = 4 if isinstance(element, ir.FloatType) else 8

        def place(base: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())

        with _Loop(builder, zero, blocks, []) as block:
            shift = builder.mul(block.at, number(lanes))
            of_a = builder.add(a_at, builder.mul(builder.mul(block.at, depth), number(ROWS * lanes)))
            of_b = [
                builder.add(builder.add(b_at, shift), builder.extract_value(b_cols, j))
                for j in range(columns)
            ]
            to = builder.add(target_at, shift)
            targets = [
                place(
                    target,
                    builder.add(
                        builder.add(to, builder.mul(target_row, number(i))),
                        builder.extract_value(target_cols, j),
                    ),
                )
                for i in range(ROWS)
                for j in range(columns)
            ]
            before = [builder.load(each, align=align) for each in targets]
            with _Loop(builder, zero, depth, before) as term:
                row = builder.add(of_a, builder.mul(term.at, number(ROWS * lanes)))
                column = builder.load(builder.gep(terms, [term.at]))
                left = [
                    builder.load(place(a, builder.add(row, number(i * lanes))), align=align)
                    for i in range(ROWS)
                ]
                right = [builder.load(place(b, builder.add(at, column)), align=align) for at in of_b]
                term.next = [
                    builder.fadd(
                        term.values[i * columns + j],
                        builder.fmul(left[i], right[j], flags=_FLAGS),
                        flags=_FLAGS,
                    )
                    for i in range(ROWS)
                    for j in range(columns)
                ]
            for each, total in zip(targets, term.values, strict=True):
                builder.store(total, each, align=align)
        return context.get_dummy_value()

    return generate


class _Loop:
    """Emits ``for at in range(start, stop)`` around the body; `values` pass from turn to turn."""

    def __init__(self, builder: Any, start: Any, stop: Any, values: list) -> None:
        self._builder, self._stop, self._initial = builder, stop, values
        entry = builder.block
        self._head, inner, self._after = (
            builder.append_basic_block(name) for name in ("head", "in", "after")
        )
        builder.branch(self._head)
        builder.position_at_end(self._head)
        self.at = builder.phi(start.type)
        self.at.add_incoming(start, entry)
        self.values = [builder.phi(value.type) for value in values]
        for phi, value in zip(self.values, values, strict=True):
            phi.add_incoming(value, entry)
        self.next = self.values
        builder.cbranch(builder.icmp_signed("<", self.at, stop), inner, self._after)
        builder.position_at_end(inner)

    def __enter__(self) -> "_Loop":
        return self

    def __exit__(self, *error: Any) -> None:
        builder, last = self._builder, self._builder.block
        self.at.add_incoming(builder.add(self.at, ir.Constant(self.at.type, 1)), last)
        for phi, value in zip(self.values, self.next, strict=True):
            phi.add_incoming(value, last)
        builder.branch(self._head)
        builder.position_at_end(self._after)


_product1, _product2, _product3, _product4 = (_product(columns) for columns in range(1, 5))


@jit
def product(
    blocks: int,
    depth: int,
    target: np.ndarray,
    target_at: int,
    steps: tuple,
    a: np.ndarray,
    a_at: int,
    b: np.ndarray,
    b_at: int,
    terms: np.ndarray,
    columns: np.ndarray,
) -> None:
    """As `_product`, for as many columns as `columns` has: ``b_cols[j] = columns[j]``.

    `steps` are the distances in the target between rows and between columns.
    """
    row, step = steps
    j, count = 0, len(columns)
    while j < count:
        at = target_at + j * step
        left = count - j
        # Threes rather than a four and a single one, which would use what it reads for one column only.
        if left >= 4 and left != 5 and left != 6 and left != 9:
            cols = (columns[j], columns[j + 1], columns[j + 2], columns[j + 3])
            _product4(
                blocks, depth, target, at, row, (0, step, 2 * step, 3 * step), a, a_at, b, b_at, terms, cols
            )
            j += 4
        elif left >= 3:
            cols3 = (columns[j], columns[j + 1], columns[j + 2])
            _product3(blocks, depth, target, at, row, (0, step, 2 * step), a, a_at, b, b_at, terms, cols3)
            j += 3
        elif left == 2:
            cols2 = (columns[j], columns[j + 1])
            _product2(blocks, depth, target, at, row, (0, step), a, a_at, b, b_at, terms, cols2)
            j += 2
        else:
            _product1(blocks, depth, target, at, row, (0,), a, a_at, b, b_at, terms, (columns[j],))
            j += 1


@jit
def pack(
    target: np.ndarray, at: int, depth: int, k: int, i: int, source: np.ndarray, start: int, count: int
) -> None:
    """Element (k, i) of a factor `a` of this depth, from a run of pixels; zero beyond it."""
    lanes = _VECTOR_BYTES // source.itemsize
    for block in range(-(-count // lanes)):
        to = np.uint64(at + ((block * depth + k) * ROWS + i) * lanes)
        of, here = np.uint64(start + block * lanes), np.uint64(min(lanes, count - block * lanes))
        if here == lanes:
            for w in range(np.uint64(lanes)):
                target[to + w] = source[of + w]
        else:
            for w in range(here):
                target[to + w] = source[of + w]
            for w in range(here, np.uint64(lanes)):
                target[to + w] = 0
