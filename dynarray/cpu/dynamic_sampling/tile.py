"""Products of small matrices whose elements are runs of pixels: what `dynamic_sampling` spends its time in.

Sums for `ROWS` rows and up to `WIDE` columns stay in registers while the terms go by. With 32 registers
twelve loads, which count twice where they cross a cache line, serve 27 multiply-adds. One factor may lie in
an array of the caller, where its rows and terms are whole images apart. What is read of it next is fetched
meanwhile, so that it comes at the rate of the memory although no two of its runs are neighbours.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..engine.compile import ZERO, borrowing_jit
from ..engine.vectors import MANY_REGISTERS, REGISTER_BYTES, Loop, Writer

ROWS = 3
WIDE, NARROW = (9, 4) if MANY_REGISTERS else (3, 2)  # columns whose sums are made together


@borrowing_jit
def lanes(like: np.ndarray) -> int:
    """Pixels of a strip: one register."""
    return REGISTER_BYTES // like.itemsize


@borrowing_jit
def padded_width(wide: int, like: np.ndarray) -> int:
    """A row of pixels in whole strips."""
    return -(-wide // lanes(like)) * lanes(like)


def _tile(rows: int, columns: int, fetches: bool) -> Callable:
    """An intrinsic: `product` for so many rows, and so many columns from column j on.

    The last column stands in for those that there are not: they would be too few sums to keep the arithmetic
    busy.
    """

    @intrinsic
    def tile(
        typing: Any,
        target: Any,
        target_at: Any,
        steps: Any,
        a: Any,
        a_at: Any,
        a_rows: Any,
        a_terms: Any,
        b: Any,
        b_at: Any,
        b_terms: Any,
        b_cols: Any,
        j: Any,
        blocks: Any,
        add: Any,
        ahead: Any,
    ) -> Any:
        i = types.intp
        left, right = (a, i, a_rows, a_terms), (b, i, b_terms, b_cols, i)
        signature = types.void(target, i, types.UniTuple(i, 2), *left, *right, i, types.boolean, i)
        return signature, partial(_generate, rows=rows, columns=columns, fetches=fetches)

    return tile


def _generate(
    context: Any, builder: Any, signature: Any, args: Any, rows: int, columns: int, fetches: bool
) -> Any:
    writer = Writer(context, builder, signature, args, REGISTER_BYTES)
    target, _, _, a, _, a_rows, a_terms, b, _, b_terms, b_cols, *_ = writer.data
    _, target_at, steps, _, a_at, _, of_terms, _, b_at, _, of_cols, first, blocks, add, ahead = args
    index = blocks.type
    depth = context.make_array(signature.args[6])(context, builder, of_terms).nitems
    last = builder.sub(context.make_array(signature.args[10])(context, builder, of_cols).nitems, index(1))

    def column(j: int) -> Any:
        here = builder.add(first, index(j))
        return builder.select(builder.icmp_signed("<", here, last), here, last)

    row_step, column_step = (builder.extract_value(steps, k) for k in range(2))
    numbers = [column(j) for j in range(columns)]
    places = [
        builder.add(builder.mul(row_step, index(i)), builder.mul(column_step, number))
        for number in numbers
        for i in range(rows)
    ]
    of_columns = [writer.element(b_cols, number) for number in numbers]
    of_rows = [writer.element(a_rows, index(i)) for i in range(rows)]
    with Loop(builder, blocks, []) as block:
        shift = builder.mul(block.k, index(writer.lanes))
        left = builder.gep(a, [builder.add(a_at, shift)])
        right = builder.gep(b, [builder.add(b_at, shift)])
        to = builder.gep(target, [builder.add(target_at, shift)])
        lefts = [builder.gep(left, [of_row]) for of_row in of_rows]
        rights = [builder.gep(right, [of_column]) for of_column in of_columns]

        def step(k: Any, sums: list) -> list:
            of_a, of_b = writer.element(a_terms, k), writer.element(b_terms, k)
            factors = [writer.load(each, of_a) for each in lefts]
            if fetches:
                # Of a strip across two lines it is the second one: the first came with the strip before.
                place = builder.add(of_a, builder.add(ahead, index(writer.lanes - 1)))
                for each in lefts:
                    writer.prefetch(each, place)
            following: list[Any] = []
            for each in rights:
                other = writer.load(each, of_b)
                totals = [
                    writer.add(sums[len(following) + i], writer.multiply(factor, other))
                    for i, factor in enumerate(factors)
                ]
                following.extend(writer.in_order(totals))
            return following

        totals = writer.sums(rows * columns, depth, step)
        _store(writer, totals, to, places, add)
    return context.get_dummy_value()


def _store(writer: Writer, totals: list, to: Any, places: list, add: Any) -> None:
    """Sums to their places, or added to what is there if `add` says so."""
    builder = writer.builder
    with builder.if_else(builder.trunc(add, ir.IntType(1))) as branches:
        for branch, adding in zip(branches, (True, False), strict=True):
            with branch:
                # First all are read: places may be the same.
                values = [
                    writer.add(total, writer.load(to, place)) if adding else total
                    for total, place in zip(totals, places, strict=True)
                ]
                for value, place in zip(values, places, strict=True):
                    writer.store(value, to, place)


_wide, _narrow = _tile(ROWS, WIDE, False), _tile(ROWS, NARROW, False)
_row_wide, _row_narrow = _tile(1, WIDE, False), _tile(1, NARROW, False)
# `product` for up to `WIDE` columns, from j = 0. With every strip of `a`, the one so far `ahead` is fetched.
fetching_product = _tile(ROWS, WIDE, True)
_ROW = np.zeros(1, np.intp)


@borrowing_jit
def _is_narrow(left: int) -> bool:
    """Whether of so many columns the next `NARROW` go together, which has the fewest made in vain."""
    return left <= NARROW or WIDE < left <= 2 * NARROW


@borrowing_jit
def product(
    target: np.ndarray,
    target_at: int,
    steps: tuple,
    a: np.ndarray,
    a_at: int,
    a_rows: np.ndarray,
    a_terms: np.ndarray,
    b: np.ndarray,
    b_at: int,
    b_terms: np.ndarray,
    b_cols: np.ndarray,
    blocks: int,
    add: bool,
) -> None:
    """target[i, j] = sum over k of a[k, i] * b[k, j], for `ROWS` rows i and all columns j of `b_cols`.

    Each is a run of `blocks` strips. Element (k, i) of `a` begins at ``a_at + a_terms[k] + a_rows[i]``,
    element (k, j) of `b` at ``b_at + b_terms[k] + b_cols[j]``, and of the target at ``target_at +
    i*steps[0] + j*steps[1]``. With `add`, sums are added to what the target holds. There is at least one
    term.
    """
    j, count = 0, len(b_cols)
    while j < count:
        if _is_narrow(count - j):
            _narrow(target, target_at, steps, a, a_at, a_rows, a_terms, b, b_at, b_terms, b_cols, j, blocks, add, ZERO)  # fmt: skip  # noqa: E501
            j += NARROW
        else:
            _wide(target, target_at, steps, a, a_at, a_rows, a_terms, b, b_at, b_terms, b_cols, j, blocks, add, ZERO)  # fmt: skip  # noqa: E501
            j += WIDE


@borrowing_jit
def product_row(
    target: np.ndarray,
    target_at: int,
    step: int,
    a: np.ndarray,
    a_at: int,
    a_terms: np.ndarray,
    b: np.ndarray,
    b_at: int,
    b_terms: np.ndarray,
    b_cols: np.ndarray,
    blocks: int,
    add: bool,
) -> None:
    """As `product`, for a factor `a` of a single row, of which nothing is fetched."""
    j, count, steps, rows = 0, len(b_cols), (0, step), _ROW
    while j < count:
        if _is_narrow(count - j):
            _row_narrow(target, target_at, steps, a, a_at, rows, a_terms, b, b_at, b_terms, b_cols, j, blocks, add, ZERO)  # fmt: skip  # noqa: E501
            j += NARROW
        else:
            _row_wide(target, target_at, steps, a, a_at, rows, a_terms, b, b_at, b_terms, b_cols, j, blocks, add, ZERO)  # fmt: skip  # noqa: E501
            j += WIDE


@intrinsic
def gather(
    typing: Any, target: Any, a: Any, a_at: Any, a_rows: Any, a_terms: Any, blocks: Any, ahead: Any
) -> Any:
    """target[k, i] = a[k, i], one after the other, of `a` as `product` takes it.

    With every strip, the one that lies `ahead` elements behind it is fetched.
    """
    i = types.intp
    return types.void(target, a, i, a_rows, a_terms, i, i), _generate_gather


def _generate_gather(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = Writer(context, builder, signature, args, REGISTER_BYTES)
    target, a, _, a_rows, a_terms, *_ = writer.data
    _, _, a_at, _, of_terms, blocks, ahead = args
    index = blocks.type
    depth = context.make_array(signature.args[4])(context, builder, of_terms).nitems
    of_rows = [writer.element(a_rows, index(i)) for i in range(ROWS)]
    further = builder.add(ahead, index(writer.lanes - 1))
    with Loop(builder, depth, []) as term:
        start = builder.gep(a, [builder.add(a_at, writer.element(a_terms, term.k))])
        for i, of_row in enumerate(of_rows):
            source = builder.gep(start, [of_row])
            number = builder.add(builder.mul(term.k, index(ROWS)), index(i))
            to = builder.gep(target, [builder.mul(builder.mul(number, blocks), index(writer.lanes))])
            with Loop(builder, blocks, []) as block:
                shift = builder.mul(block.k, index(writer.lanes))
                writer.store(writer.load(source, shift), to, shift)
                writer.prefetch(source, builder.add(shift, further))
    return context.get_dummy_value()


@intrinsic
def outer_product(
    typing: Any,
    target: Any,
    target_at: Any,
    steps: Any,
    a: Any,
    a_rows: Any,
    a_terms: Any,
    b: Any,
    b_at: Any,
    b_step: Any,
    b_terms: Any,
    columns: Any,
    blocks: Any,
) -> Any:
    """`product` for `WIDE` terms, whose factors a stay in registers while columns of b go by.

    Column j of `b` begins ``j*b_step`` behind the first.
    """
    i = types.intp
    left, right = (a, a_rows, a_terms), (b, i, i, b_terms)
    return types.void(target, i, types.UniTuple(i, 2), *left, *right, i, i), _generate_outer


def _generate_outer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = Writer(context, builder, signature, args, REGISTER_BYTES)
    target, _, _, a, a_rows, a_terms, b, _, _, b_terms, *_ = writer.data
    _, target_at, steps, *_, b_at, b_step, _, columns, blocks = args
    index = blocks.type
    row_step, column_step = (builder.extract_value(steps, k) for k in range(2))
    of_rows = [writer.element(a_rows, index(i)) for i in range(ROWS)]
    of_a, of_b = ([writer.element(terms, index(k)) for k in range(WIDE)] for terms in (a_terms, b_terms))
    with Loop(builder, blocks, []) as block:
        shift = builder.mul(block.k, index(writer.lanes))
        left, right = (builder.gep(each, [shift]) for each in (a, builder.gep(b, [b_at])))
        factors = [
            [writer.load(left, builder.add(of_term, of_row)) for of_row in of_rows] for of_term in of_a
        ]
        to = builder.gep(target, [builder.add(target_at, shift)])
        rows = [builder.gep(to, [builder.mul(row_step, index(i))]) for i in range(ROWS)]
        rights = [builder.gep(right, [of_term]) for of_term in of_b]
        with Loop(builder, columns, []) as column:
            here, there = (builder.mul(column.k, step) for step in (b_step, column_step))
            totals = [writer.zero] * ROWS
            for of_term, each in zip(factors, rights, strict=True):
                other = writer.load(each, here)
                products = [writer.multiply(factor, other) for factor in of_term]
                totals = writer.in_order([writer.add(*pair) for pair in zip(totals, products, strict=True)])
            for total, row in zip(totals, rows, strict=True):
                writer.store(total, row, there)
    return context.get_dummy_value()
