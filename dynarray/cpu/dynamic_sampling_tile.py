"""Products of small matrices whose elements are runs of pixels: what `dynamic_sampling` spends its time in.

Sums for `ROWS` rows and up to `WIDE` columns stay in registers while the terms go by. On 32 registers ten
loads, of which six may cross a cache line and then count twice, serve 24 multiply-adds; on 16, seven serve
twelve. More sums would fit in beside their operands, but LLVM loads several columns ahead, and then moves
sums to memory and back: a loop of 27 made 20 to 40 multiply-adds per nanosecond, one of 24 makes 50.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import jit
from .vectors import MANY_REGISTERS, REGISTER_BYTES, Loop, Writer

ROWS = 4
WIDE, NARROW = (6, 3) if MANY_REGISTERS else (3, 2)  # columns whose sums are made together


@jit
def lanes(like: np.ndarray) -> int:
    """Pixels of a strip: one register."""
    return REGISTER_BYTES // like.itemsize


@jit
def padded_width(wide: int, like: np.ndarray) -> int:
    """A row of pixels in whole strips."""
    return -(-wide // lanes(like)) * lanes(like)


def _tile(rows: int, columns: int) -> Callable:
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
        a_block: Any,
        a_terms: Any,
        b: Any,
        b_at: Any,
        b_terms: Any,
        b_cols: Any,
        j: Any,
        blocks: Any,
        add: Any,
    ) -> Any:
        i = types.intp
        left, right = (a, i, i, a_terms), (b, i, b_terms, b_cols, i)
        signature = types.void(target, i, types.UniTuple(i, 2), *left, *right, i, types.boolean)
        return signature, partial(_generate, rows=rows, columns=columns)

    return tile


def _generate(context: Any, builder: Any, signature: Any, args: Any, rows: int, columns: int) -> Any:
    writer = Writer(context, builder, signature, args, REGISTER_BYTES)
    target, _, _, a, _, _, a_terms, b, _, b_terms, b_cols, *_ = writer.data
    _, target_at, steps, _, a_at, a_block, of_terms, _, b_at, _, of_cols, first, blocks, add = args
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
    with Loop(builder, blocks, []) as block:
        shift = builder.mul(block.k, index(writer.lanes))
        left = builder.gep(a, [builder.add(a_at, builder.mul(block.k, a_block))])
        right = builder.gep(b, [builder.add(b_at, shift)])
        rights = [builder.gep(right, [of_column]) for of_column in of_columns]

        def step(k: Any, sums: list) -> list:
            of_a, of_b = writer.element(a_terms, k), writer.element(b_terms, k)
            near = builder.gep(left, [of_a])
            factors = [writer.load(near, index(i * writer.lanes)) for i in range(rows)]
            following: list[Any] = []
            for each in rights:
                other = writer.load(each, of_b)
                for factor in factors:
                    total = sums[len(following)]
                    following.append(writer.add(total, writer.multiply(factor, other)))
            return following

        totals = writer.sums(rows * columns, depth, step)
        to = builder.gep(target, [builder.add(target_at, shift)])
        with builder.if_else(builder.trunc(add, ir.IntType(1))) as branches:
            for branch, adding in zip(branches, (True, False), strict=True):
                with branch:
                    values = [
                        writer.add(total, writer.load(to, place)) if adding else total
                        for total, place in zip(totals, places, strict=True)
                    ]
                    for value, place in zip(values, places, strict=True):
                        writer.store(value, to, place)
    return context.get_dummy_value()


_wide, _narrow = _tile(ROWS, WIDE), _tile(ROWS, NARROW)
_row_wide, _row_narrow = _tile(1, WIDE), _tile(1, NARROW)


@jit
def _is_narrow(left: int) -> bool:
    """Whether of so many columns the next `NARROW` go together, which has the fewest made in vain."""
    return left <= NARROW or WIDE < left <= 2 * NARROW


@jit
def product(
    target: np.ndarray,
    target_at: int,
    steps: tuple,
    a: np.ndarray,
    a_at: int,
    a_block: int,
    a_terms: np.ndarray,
    b: np.ndarray,
    b_at: int,
    b_terms: np.ndarray,
    b_cols: np.ndarray,
    blocks: int,
    add: bool,
) -> None:
    """target[i, j] = sum over k of a[k, i] * b[k, j], for `ROWS` rows i and all columns j of `b_cols`.

    Each is a run of `blocks` strips. Strip m of element (k, i) of `a` begins at ``a_at + a_terms[k] +
    m*a_block + i*lanes``, of element (k, j) of `b` at ``b_at + b_terms[k] + b_cols[j] + m*lanes``, and of the
    target at ``target_at + i*steps[0] + j*steps[1] + m*lanes``. With `add`, sums are added to what the target
    holds. There is at least one term.
    """
    j, count = 0, len(b_cols)
    while j < count:
        if _is_narrow(count - j):
            _narrow(target, target_at, steps, a, a_at, a_block, a_terms, b, b_at, b_terms, b_cols, j, blocks, add)  # fmt: skip  # noqa: E501
            j += NARROW
        else:
            _wide(target, target_at, steps, a, a_at, a_block, a_terms, b, b_at, b_terms, b_cols, j, blocks, add)  # fmt: skip  # noqa: E501
            j += WIDE


@jit
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
    """As `product`, for a factor `a` of a single row whose strips follow one another."""
    j, count, strip, steps = 0, len(b_cols), lanes(target), (0, step)
    while j < count:
        if _is_narrow(count - j):
            _row_narrow(target, target_at, steps, a, a_at, strip, a_terms, b, b_at, b_terms, b_cols, j, blocks, add)  # fmt: skip  # noqa: E501
            j += NARROW
        else:
            _row_wide(target, target_at, steps, a, a_at, strip, a_terms, b, b_at, b_terms, b_cols, j, blocks, add)  # fmt: skip  # noqa: E501
            j += WIDE


@intrinsic
def _interleave(
    typing: Any, target: Any, at: Any, step: Any, source: Any, start: Any, apart: Any, last: Any, blocks: Any
) -> Any:  # fmt: skip
    """The whole strips of `interleave`."""
    i = types.intp
    return types.void(target, i, i, source, i, i, i, i), _generate_interleave


def _generate_interleave(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = Writer(context, builder, signature, args, REGISTER_BYTES)
    target, _, _, source, *_ = writer.data
    _, at, step, _, start, apart, last, blocks = args
    index = blocks.type
    rows = []
    for i in range(ROWS):
        row = builder.select(builder.icmp_signed("<", index(i), last), index(i), last)
        rows.append(builder.gep(source, [builder.add(start, builder.mul(row, apart))]))
    with Loop(builder, blocks, []) as block:
        to = builder.gep(target, [builder.add(at, builder.mul(block.k, step))])
        shift = builder.mul(block.k, index(writer.lanes))
        for i, row in enumerate(rows):
            writer.store(writer.load(row, shift), to, index(i * writer.lanes))
    return context.get_dummy_value()


@jit
def interleave(
    target: np.ndarray, at: int, step: int, source: np.ndarray, start: int, apart: int, last: int, count: int
) -> None:  # fmt: skip
    """Runs of pixels of `ROWS` rows, as `product` reads its factor `a`: strip by strip.

    Pixel w of row i, ``source[start + min(i, last)*apart + w]``, goes to strip ``w // lanes`` at ``at +
    strip*step + i*lanes``; zeros fill the last strip.
    """
    strip = lanes(target)
    whole = count // strip
    if whole:
        _interleave(target, at, step, source, start, apart, last, whole)
    for i in range(ROWS if whole * strip < count else 0):
        to, of = at + whole * step + i * strip, start + min(i, last) * apart + whole * strip
        for w in range(strip):
            target[to + w] = source[of + w] if whole * strip + w < count else target.dtype.type(0)
