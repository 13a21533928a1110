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


def _product(rows: int, columns: int) -> Callable:
    """``target[i][j] += sum over k of a[k][i] * b[k][j]``, for `rows` rows i and `columns` columns j.

    It is called as ``product(blocks, depth, target, target_at, target_row, target_cols, a, a_at, b, b_at,
    b_terms, b_cols)``. Element (k, i) of block m of `a` starts at ``a_at + ((m*depth + k)*rows + i)*lanes``,
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
        return signature, _generate(rows, columns)

    return product


def _generate(rows: int, columns: int) -> Callable:
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
            of_a = builder.add(a_at, builder.mul(builder.mul(block.at, depth), number(rows * lanes)))
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
                for i in range(rows)
                for j in range(columns)
            ]
            before = [builder.load(each, align=align) for each in targets]
            with _Loop(builder, zero, depth, before) as term:
                row = builder.add(of_a, builder.mul(term.at, number(rows * lanes)))
                column = builder.load(builder.gep(terms, [term.at]))
                left = [
                    builder.load(place(a, builder.add(row, number(i * lanes))), align=align)
                    for i in range(rows)
                ]
                right = [builder.load(place(b, builder.add(at, column)), align=align) for at in of_b]
                term.next = [
                    builder.fadd(
                        term.values[i * columns + j],
                        builder.fmul(left[i], right[j], flags=_FLAGS),
                        flags=_FLAGS,
                    )
                    for i in range(rows)
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


_tile1, _tile3 = (_product(ROWS, columns) for columns in (1, 3))
_row1, _row3 = (_product(1, columns) for columns in (1, 3))


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
    # Columns by threes: twelve sums in registers, so that each value read serves three or four of them. What
    # is left goes one by one: every further form of the loop has to be compiled.
    whole = len(columns) // 3 * 3
    for j in range(0, whole, 3):
        at, cols = target_at + j * step, (columns[j], columns[j + 1], columns[j + 2])
        _tile3(blocks, depth, target, at, row, (0, step, 2 * step), a, a_at, b, b_at, terms, cols)
    for j in range(whole, len(columns)):
        at = target_at + j * step
        _tile1(blocks, depth, target, at, row, (0,), a, a_at, b, b_at, terms, (columns[j],))


@jit
def product_row(
    blocks: int,
    depth: int,
    target: np.ndarray,
    target_at: int,
    step: int,
    a: np.ndarray,
    a_at: int,
    b: np.ndarray,
    b_at: int,
    terms: np.ndarray,
    columns: np.ndarray,
) -> None:
    """As `product`, for a factor `a` of a single row."""
    whole = len(columns) // 3 * 3
    for j in range(0, whole, 3):
        at, cols = target_at + j * step, (columns[j], columns[j + 1], columns[j + 2])
        _row3(blocks, depth, target, at, 0, (0, step, 2 * step), a, a_at, b, b_at, terms, cols)
    for j in range(whole, len(columns)):
        at = target_at + j * step
        _row1(blocks, depth, target, at, 0, (0,), a, a_at, b, b_at, terms, (columns[j],))


@jit
def pack(
    target: np.ndarray, at: int, shape: tuple, k: int, i: int, source: np.ndarray, start: int, count: int
) -> None:
    """Element (k, i) of a factor `a`, of which `shape` is (depth, rows), from a run of pixels, then zeros."""
    lanes, (depth, rows) = _VECTOR_BYTES // source.itemsize, shape
    for block in range(-(-count // lanes)):
        to = np.uint64(at + ((block * depth + k) * rows + i) * lanes)
        of, here = np.uint64(start + block * lanes), np.uint64(min(lanes, count - block * lanes))
        if here == lanes:
            for w in range(np.uint64(lanes)):
                target[to + w] = source[of + w]
        else:
            for w in range(here):
                target[to + w] = source[of + w]
            for w in range(here, np.uint64(lanes)):
                target[to + w] = 0
