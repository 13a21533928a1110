"""Products of small matrices whose elements are runs of pixels: what `dynamic_sampling` spends its time in.

Sums for `ROWS` rows and up to three columns stay in registers while the terms go by, so that seven loads
serve twelve multiply-adds: more of them, on 16 registers, would not fit in beside their operands.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import jit
from .vectors import REGISTER_BYTES, Loop, Writer

ROWS = 4


@jit
def lanes(like: np.ndarray) -> int:
    """Pixels of a strip: one register."""
    return REGISTER_BYTES // like.itemsize


@jit
def padded_width(wide: int, like: np.ndarray) -> int:
    """A row of pixels in whole strips."""
    return -(-wide // lanes(like)) * lanes(like)


def _tile(rows: int, columns: int) -> Callable:
    """An intrinsic: `product` for so many rows and columns."""

    @intrinsic
    def tile(
        typing: Any,
        target: Any,
        target_at: Any,
        target_row: Any,
        target_cols: Any,
        a: Any,
        a_at: Any,
        a_block: Any,
        a_row: Any,
        a_terms: Any,
        b: Any,
        b_at: Any,
        b_terms: Any,
        b_cols: Any,
        blocks: Any,
        add: Any,
    ) -> Any:
        i, several = types.intp, types.UniTuple(types.intp, columns)
        left, right = (a, i, i, i, a_terms), (b, i, b_terms, several)
        signature = types.void(target, i, i, several, *left, *right, i, types.boolean)
        return signature, partial(_generate, rows=rows, columns=columns)

    return tile


def _generate(context: Any, builder: Any, signature: Any, args: Any, rows: int, columns: int) -> Any:
    writer = Writer(context, builder, signature, args, REGISTER_BYTES)
    target, _, _, _, a, _, _, _, a_terms, b, _, b_terms, *_ = writer.data
    _, target_at, target_row, target_cols, _, a_at, a_block, a_row, of_terms, _, b_at, _, b_cols, *_ = args
    blocks, add = args[-2:]
    index = blocks.type
    depth = context.make_array(signature.args[8])(context, builder, of_terms).nitems

    def column(start: Any, columns_of: Any, j: int) -> Any:
        return builder.add(start, builder.extract_value(columns_of, j))

    with Loop(builder, blocks, []) as block:
        shift = builder.mul(block.k, index(writer.lanes))
        left = builder.gep(a, [builder.add(a_at, builder.mul(block.k, a_block))])
        lefts = [builder.gep(left, [builder.mul(a_row, index(i))]) for i in range(rows)]
        right = builder.gep(b, [builder.add(b_at, shift)])
        rights = [builder.gep(right, [builder.extract_value(b_cols, j)]) for j in range(columns)]

        def step(k: Any, sums: list) -> list:
            of_a, of_b = writer.element(a_terms, k), writer.element(b_terms, k)
            others = [writer.load(each, of_b) for each in rights]
            following: list[Any] = []
            for each in lefts:
                factor = writer.load(each, of_a)
                for other in others:
                    total = sums[len(following)]
                    following.append(writer.add(total, writer.multiply(factor, other)))
            return following

        totals = writer.sums(rows * columns, depth, step)
        to = builder.gep(target, [builder.add(target_at, shift)])
        places = [
            column(builder.mul(target_row, index(i)), target_cols, j)
            for i in range(rows)
            for j in range(columns)
        ]
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


_tile3, _tile2 = _tile(ROWS, 3), _tile(ROWS, 2)
_row3, _row2 = _tile(1, 3), _tile(1, 2)


@jit
def _group(count: int, j: int) -> tuple:
    """How many of the columns from j on go together, three or two, and the second of them.

    What is left in the end is never one column, for which the sums in registers would be too few to keep the
    arithmetic busy; a column that is alone is done twice.
    """
    left = count - j
    return 3 if left == 3 or left > 4 else min(left, 2), j + 1 if left > 1 else j


@jit
def product(
    target: np.ndarray,
    target_at: int,
    steps: tuple,
    a: np.ndarray,
    a_at: int,
    a_steps: tuple,
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
    i*a_steps[1] + m*a_steps[0]``, of element (k, j) of `b` at ``b_at + b_terms[k] + b_cols[j] + m*lanes``,
    and of the target at ``target_at + i*steps[0] + j*steps[1] + m*lanes``. With `add`, sums are added to what
    the target holds. There is at least one term.
    """
    row, step = steps
    a_block, a_row = a_steps
    j, count = 0, len(b_cols)
    while j < count:
        several, second = _group(count, j)
        to = (j * step, second * step)
        if several == 3:
            to3, cols3 = (*to, (j + 2) * step), (b_cols[j], b_cols[j + 1], b_cols[j + 2])
            _tile3(target, target_at, row, to3, a, a_at, a_block, a_row, a_terms, b, b_at, b_terms, cols3, blocks, add)  # fmt: skip  # noqa: E501
        else:
            cols = (b_cols[j], b_cols[second])
            _tile2(target, target_at, row, to, a, a_at, a_block, a_row, a_terms, b, b_at, b_terms, cols, blocks, add)  # fmt: skip  # noqa: E501
        j += several


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
    j, count, strip = 0, len(b_cols), lanes(target)
    while j < count:
        several, second = _group(count, j)
        to = (j * step, second * step)
        if several == 3:
            to3, cols3 = (*to, (j + 2) * step), (b_cols[j], b_cols[j + 1], b_cols[j + 2])
            _row3(target, target_at, 0, to3, a, a_at, strip, 0, a_terms, b, b_at, b_terms, cols3, blocks, add)
        else:
            cols = (b_cols[j], b_cols[second])
            _row2(target, target_at, 0, to, a, a_at, strip, 0, a_terms, b, b_at, b_terms, cols, blocks, add)
        j += several


@intrinsic
def _interleave(
    typing: Any, target: Any, at: Any, step: Any, source: Any, starts: Any, blocks: Any, ahead: Any
) -> Any:
    """Strip m of row i from ``source[starts[i] + m*lanes]`` to ``target[at + m*step + i*lanes]``.

    What lies `ahead` elements behind is fetched into the second cache.
    """
    i = types.intp
    signature = types.void(target, i, i, source, types.UniTuple(i, ROWS), i, i)
    return signature, _generate_interleave


def _generate_interleave(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = Writer(context, builder, signature, args, REGISTER_BYTES)
    target, _, _, source, *_ = writer.data
    _, at, step, _, starts, blocks, ahead = args
    index = blocks.type
    rows = [builder.gep(source, [builder.extract_value(starts, i)]) for i in range(ROWS)]
    with Loop(builder, blocks, []) as block:
        to = builder.gep(target, [builder.add(at, builder.mul(block.k, step))])
        shift = builder.mul(block.k, index(writer.lanes))
        for i, row in enumerate(rows):
            writer.prefetch(row, builder.add(shift, ahead))
            writer.store(writer.load(row, shift), to, index(i * writer.lanes))
    return context.get_dummy_value()


@jit
def interleave(
    target: np.ndarray, at: int, step: int, source: np.ndarray, starts: tuple, count: int, ahead: int
) -> None:
    """Runs of pixels of `ROWS` rows, as `product` reads its factor `a` fastest: strip by strip.

    Pixel w of row i, ``source[starts[i] + w]``, goes to strip ``w // lanes`` at ``at + strip*step +
    i*lanes``; zeros fill the last strip. A call soon to come reads what lies `ahead` elements behind.
    """
    strip = lanes(target)
    whole = count // strip
    if whole:
        _interleave(target, at, step, source, starts, whole, ahead)
    for i in range(ROWS if whole * strip < count else 0):
        to, of = at + whole * step + i * strip, starts[i] + whole * strip
        for w in range(strip):
            target[to + w] = source[of + w] if whole * strip + w < count else target.dtype.type(0)
