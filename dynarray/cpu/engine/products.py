"""Sums of products of planes: small matrices, of which each element is a run of pixels.

A filter per pixel multiplies planes element by element. One plane of a result by itself is bound by loads:
two for each multiply-add. A block of rows and columns of the result shares them: its sums stay in registers
while the terms go by, and r + c loads serve r*c multiply-adds. As in `gemm`, the innermost loop is written as
vector instructions, once, for blocks of any size.

What is multiplied may lie in an array of the caller, where rows and terms are whole images apart. What is
read of it next is fetched meanwhile, so that it comes at the rate of the memory although no two of its runs
are neighbours.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from . import gemm
from .compile import FALSE, ZERO, borrowing_jit
from .vectors import (
    LINE_BYTES,
    MANY_REGISTERS,
    REGISTER_BYTES,
    Loop,
    Writer,
    each_vector,
    load_part,
    store_part,
    written,
)

# As many sums as fit into the registers with the operands. Two registers a plane, where they suffice, take
# fewer loads for the offsets of planes; one leaves room for more columns.
_PAIR_ROWS, _PAIR_COLUMNS = 3, 4
_PAIR_BYTES = (2 if MANY_REGISTERS else 1) * REGISTER_BYTES
PRODUCT_ROWS = 3
WIDE, NARROW = (9, 4) if MANY_REGISTERS else (3, 2)  # columns whose sums are made together
# Where a load that crosses a cache line, as all of whole lines do, costs more than to shift what is there.
NEIGHBOURS = (7, 5, 3) if REGISTER_BYTES == LINE_BYTES else ()
_NEIGHBOUR_BLOCKS = (8, 1), (3, 4)  # columns and vectors: of enough sums that none waits for another
MIXED_BYTES = (4 if MANY_REGISTERS else 2) * REGISTER_BYTES  # sums enough that none waits for another
RUN_BYTES = gemm.TILE_ROW_BYTES  # a strip of planes, in which memory is counted: whole vectors of any kind


class Target(NamedTuple):
    """The planes of a result: (i, j) begins at ``at + rows[i] + columns[j]``."""

    data: np.ndarray
    at: int
    rows: Any  # an array, or a number: the distance from one to the next
    columns: Any


class Factor(NamedTuple):
    """The planes of a factor: that of term k, row or column i begins at ``at + terms[k] + lines[i]``."""

    data: np.ndarray
    at: int
    lines: Any  # as `Target.rows`
    terms: Any
    ahead: Any  # with each vector that is read, what lies so many elements behind is fetched; None: nothing


class Extent(NamedTuple):
    """The size of a product: at least one of each."""

    rows: int
    columns: int
    terms: int
    length: int  # of a run, in elements: whole registers


class _Block(NamedTuple):
    """What is compiled: a block of so many rows and columns."""

    rows: int
    columns: int
    # Sums fill the registers, so that it matters in which order operands are read; and the last row or column
    # stands in for those that there are not: fewer sums would be too few to keep the arithmetic busy.
    full: bool


class _Neighbours(NamedTuple):
    """What is compiled of `_write_neighbours`."""

    columns: int
    vectors: int
    neighbours: int


def _write_block(
    writer: Writer, target: Any, a: Any, b: Any, extent: Any, row: Any, column: Any, add: Any
) -> None:
    """``target[row + i, column + j] = sum over k of a[k, row + i] * b[k, column + j]``, sums in registers.

    With `add`, which may be None for False, they are added to what the target holds.
    """
    builder, block = writer.builder, writer.variant
    rows = _numbers(builder, row, block.rows, extent.rows if block.full else None)
    columns = _numbers(builder, column, block.columns, extent.columns if block.full else None)
    places = _places(writer, target, rows, columns)
    a_lines = [writer.place(a.lines, number) for number in rows]
    b_lines = [writer.place(b.lines, number) for number in columns]
    with Loop(builder, _vectors(writer, extent), []) as vector:
        left, right, to = _shifted(writer, vector.k, a, b, target)
        lefts = [builder.gep(left, [line]) for line in a_lines]
        rights = [builder.gep(right, [line]) for line in b_lines]

        def step(k: Any, sums: list) -> list:
            a_term, b_term = writer.place(a.terms, k), writer.place(b.terms, k)
            factors = [writer.load(each, a_term) for each in lefts]
            if a.ahead is not None:
                # Of a strip across two lines it is the second one: the first came with the strip before.
                further = builder.add(a_term, builder.add(a.ahead, a_term.type(writer.lanes - 1)))
                for each in lefts:
                    writer.prefetch(each, further)
            following: list[Any] = []
            for each in rights:
                these = sums[len(following) : len(following) + block.rows]
                following += _one_more(writer, these, factors, writer.load(each, b_term), block.full)
            return following

        totals = writer.sums(block.rows * block.columns, extent.terms, step)
        _store(writer, totals, to, places, add, block.full)


def _write_held(
    writer: Writer, target: Any, a: Any, b: Any, extent: Any, row: Any, column: Any, add: Any
) -> None:
    """The same for `WIDE` terms and all columns from `column` on: factors `a` stay in registers."""
    builder, block = writer.builder, writer.variant
    rows, terms = _numbers(builder, row, block.rows, None), _numbers(builder, row.type(0), WIDE, None)
    a_lines = [writer.place(a.lines, number) for number in rows]
    a_terms, b_terms = ([writer.place(each.terms, k) for k in terms] for each in (a, b))
    with Loop(builder, _vectors(writer, extent), []) as vector:
        left, right, to = _shifted(writer, vector.k, a, b, target)
        factors = [[writer.load(left, builder.add(term, line)) for line in a_lines] for term in a_terms]
        rights = [builder.gep(right, [term]) for term in b_terms]
        with Loop(builder, builder.sub(extent.columns, column), []) as turn:
            number = builder.add(turn.k, column)
            line, totals = writer.place(b.lines, number), [writer.zero] * block.rows
            for those, each in zip(factors, rights, strict=True):
                totals = _one_more(writer, totals, those, writer.load(each, line), block.full)
            _store(writer, totals, to, _places(writer, target, rows, [number]), add, block.full)


def _write_neighbours(writer: Writer, target: Any, a: Any, b: Any, extent: Any, column: Any) -> None:
    """``target[0, column + j] = sum over k of a[k] * b[k, column + j]``, for several vectors at a time.

    Of each so many terms as are neighbours those of b begin at neighbouring elements: two vectors of each
    column hold all of them.
    """
    builder, block = writer.builder, writer.variant
    columns, zero = _numbers(builder, column, block.columns, extent.columns), column.type(0)
    places = _places(writer, target, [zero], columns)
    b_lines = [writer.place(b.lines, number) for number in columns]
    turns = builder.udiv(_vectors(writer, extent), column.type(block.vectors))
    with Loop(builder, turns, []) as turn:
        shift = builder.mul(turn.k, turn.k.type(block.vectors))
        left, right, to = _shifted(writer, shift, a, b, target)
        rights = [builder.gep(right, [line]) for line in b_lines]
        steps = [zero.type(vector * writer.lanes) for vector in range(block.vectors + 1)]

        def step(k: Any, sums: list) -> list:
            number = builder.mul(k, k.type(block.neighbours))
            a_terms = [writer.place(a.terms, builder.add(number, k.type(n))) for n in range(block.neighbours)]
            b_term = writer.place(b.terms, number)
            held, sums = [writer.load(each, b_term) for each in rights], list(sums)
            for vector in range(block.vectors):
                factors = [writer.load(left, builder.add(term, steps[vector])) for term in a_terms]
                for j, each in enumerate(rights):
                    beyond = writer.load(each, builder.add(b_term, steps[vector + 1]))
                    values = writer.neighbours(held[j], beyond, block.neighbours)
                    for pair in zip(factors, values, strict=True):
                        mine = vector * block.columns + j
                        sums[mine] = writer.multiply_add(sums[mine], *pair)
                    held[j], sums = beyond, writer.in_order(sums)
            return sums

        groups = builder.udiv(extent.terms, extent.terms.type(block.neighbours))
        totals = writer.sums(block.vectors * block.columns, groups, step)
        for vector in range(block.vectors):
            these = totals[vector * block.columns : (vector + 1) * block.columns]
            _store(writer, these, builder.gep(to, [steps[vector]]), places, None, True)


def _numbers(builder: Any, first: Any, count: int, end: Any) -> list:
    """The lines of a block, those behind the last one the last one, if there is an `end`."""
    numbers = [builder.add(first, first.type(k)) for k in range(count)]
    if end is None:
        return numbers
    last = builder.sub(end, end.type(1))
    return [builder.select(builder.icmp_signed("<", each, last), each, last) for each in numbers]


def _places(writer: Writer, target: Any, rows: list, columns: list) -> list:
    """Where the planes of a block lie, column by column."""
    row_places = [writer.place(target.rows, row) for row in rows]
    column_places = [writer.place(target.columns, column) for column in columns]
    return [writer.builder.add(row, column) for column in column_places for row in row_places]


def _vectors(writer: Writer, extent: Any) -> Any:
    """How many there are in a run."""
    return writer.builder.udiv(extent.length, extent.length.type(writer.lanes))


def _shifted(writer: Writer, number: Any, *planes: Any) -> list:
    """Pointers to one vector of the first plane of each."""
    shift = writer.builder.mul(number, number.type(writer.lanes))
    return [writer.builder.gep(each.data, [writer.builder.add(each.at, shift)]) for each in planes]


def _one_more(writer: Writer, sums: list, factors: list, other: Any, ordered: bool) -> list:
    """The sums of a column with one more term."""
    sums = [writer.multiply_add(*pair, other) for pair in zip(sums, factors, strict=True)]
    return writer.in_order(sums) if ordered else sums


def _store(writer: Writer, totals: list, to: Any, places: list, add: Any, at_once: bool) -> None:
    """Sums to their places, or added to what is there if `add` says so.

    If `at_once`, all are read before any is written, for places may be the same, of equal sums; else one
    after the other, for they may overlap.
    """
    pairs = list(zip(totals, places, strict=True))
    together = [pairs] if at_once else [[pair] for pair in pairs]

    def store(adding: bool) -> None:
        for these in together:
            values = [
                writer.add(total, writer.load(to, place)) if adding else total for total, place in these
            ]
            for value, (_, place) in zip(values, these, strict=True):
                writer.store(value, to, place)

    if add is None:
        store(False)
        return
    with writer.builder.if_else(add) as (to_add, to_set):
        with to_add:
            store(True)
        with to_set:
            store(False)


def _pair(rows: int, columns: int) -> Callable:
    """A block whose planes take a pair of registers."""
    return written(_PAIR_BYTES, _Block(rows, columns, full=False))(_write_block)


_pairs, _pairs_fewer_rows = _pair(_PAIR_ROWS, _PAIR_COLUMNS), _pair(_PAIR_ROWS - 1, _PAIR_COLUMNS)
_pairs_fewer_columns = _pair(_PAIR_ROWS, _PAIR_COLUMNS - 1)
_pairs_fewer_of_both = _pair(_PAIR_ROWS - 1, _PAIR_COLUMNS - 1)
_pairs_single = _pair(1, 1)


@borrowing_jit
def sum_products(target: Target, a: Factor, b: Factor, extent: Extent, add: bool) -> None:
    """target[i, j] = sum over k of a[k, i] * b[k, j], for any number of rows and columns.

    With `add`, sums are added to what the target holds, of which planes may then overlap. Runs are of whole
    strips of `RUN_BYTES`.
    """
    # Groups of nearly one size: small ones have too few sums to keep the arithmetic busy.
    row_groups = (extent.rows + _PAIR_ROWS - 1) // _PAIR_ROWS
    column_groups = (extent.columns + _PAIR_COLUMNS - 1) // _PAIR_COLUMNS
    least_rows, more_rows = extent.rows // row_groups, extent.rows % row_groups
    least_columns, more_columns = extent.columns // column_groups, extent.columns % column_groups
    j = 0
    for column_group in range(column_groups):
        across, i = least_columns + (column_group < more_columns), 0
        for row_group in range(row_groups):
            down = least_rows + (row_group < more_rows)
            if down == _PAIR_ROWS and across == _PAIR_COLUMNS:
                _pairs(target, a, b, extent, i, j, add)
            elif down == _PAIR_ROWS - 1 and across == _PAIR_COLUMNS:
                _pairs_fewer_rows(target, a, b, extent, i, j, add)
            elif down == _PAIR_ROWS and across == _PAIR_COLUMNS - 1:
                _pairs_fewer_columns(target, a, b, extent, i, j, add)
            elif down == _PAIR_ROWS - 1 and across == _PAIR_COLUMNS - 1:
                _pairs_fewer_of_both(target, a, b, extent, i, j, add)
            else:
                for row in range(i, i + down):
                    for column in range(j, j + across):
                        _pairs_single(target, a, b, extent, row, column, add)
            i += down
        j += across


def _many_columns(rows: int) -> Callable:
    """`sum_products` for at most so many rows, at the cost of so many.

    Runs are of whole registers. Planes of the target do not overlap.
    """
    blocks = (_Block(rows, columns, full=True) for columns in (WIDE, NARROW))
    wide, narrow = (written(REGISTER_BYTES, block)(_write_block) for block in blocks)

    @borrowing_jit
    def product(target: Target, a: Factor, b: Factor, extent: Extent, add: bool) -> None:
        j = 0
        while j < extent.columns:
            left = extent.columns - j
            if left <= NARROW or WIDE < left <= 2 * NARROW:  # which has the fewest made in vain
                narrow(target, a, b, extent, ZERO, j, add)
                j += NARROW
            else:
                wide(target, a, b, extent, ZERO, j, add)
                j += WIDE

    return product


product_of_rows, product_of_row = _many_columns(PRODUCT_ROWS), _many_columns(1)
_block_of_rows, _block_of_terms = (
    written(REGISTER_BYTES, _Block(PRODUCT_ROWS, WIDE, full=True))(write)
    for write in (_write_block, _write_held)
)


@borrowing_jit
def _product_of_strangers(target: Target, a: Factor, b: Factor, extent: Extent, neighbours: int) -> None:
    """`product_of_neighbours` of any number, in which none counts as one."""
    product_of_row(target, a, b, extent, FALSE)


def _of_neighbours(otherwise: Callable, number: int) -> Callable:
    """`product_of_neighbours` of `number`, and for others what stands for them."""
    (most, _), (few, _) = _NEIGHBOUR_BLOCKS
    blocks = (_Neighbours(columns, vectors, number) for columns, vectors in _NEIGHBOUR_BLOCKS)
    wide, narrow = (written(REGISTER_BYTES, block)(_write_neighbours) for block in blocks)

    @borrowing_jit
    def product(target: Target, a: Factor, b: Factor, extent: Extent, neighbours: int) -> None:
        j = 0
        if neighbours != number:
            otherwise(target, a, b, extent, neighbours)
            return
        while j < extent.columns:
            if extent.columns - j <= few:
                narrow(target, a, b, extent, j)
                j += few
            else:
                wide(target, a, b, extent, j)
                j += most

    return product


# `product_of_row`, which sets, where of each so many terms those of b begin at neighbouring elements: one of
# `NEIGHBOURS`, or 1. Runs are of whole `MIXED_BYTES`, and b is read up to one vector behind them.
product_of_neighbours = reduce(_of_neighbours, NEIGHBOURS, _product_of_strangers)


@borrowing_jit
def product_of_block(target: Target, a: Factor, b: Factor, extent: Extent, add: bool) -> None:
    """`product_of_rows` for at most `WIDE` columns, without code for more."""
    _block_of_rows(target, a, b, extent, ZERO, ZERO, add)


@borrowing_jit
def product_of_terms(target: Target, a: Factor, b: Factor, extent: Extent) -> None:
    """`product_of_rows` for `WIDE` terms of all `PRODUCT_ROWS` rows: factors `a` stay while columns go by."""
    _block_of_terms(target, a, b, extent, ZERO, ZERO, None)


@written(MIXED_BYTES)
def mix_planes(writer: Writer, target: Any, scales: Any, at: Any, b: Any, extent: Any) -> None:
    """target[j] = sum over k of scales[at + j*terms + k] * b[k, j], of which each term is a number.

    Runs are of whole `MIXED_BYTES`.
    """
    builder = writer.builder
    with Loop(builder, extent.columns, []) as column:
        numbers = builder.gep(scales, [builder.add(at, builder.mul(column.k, extent.terms))])
        line, place = writer.place(b.lines, column.k), writer.place(target.columns, column.k)
        with Loop(builder, _vectors(writer, extent), []) as vector:
            right, to = _shifted(writer, vector.k, b, target)
            right = builder.gep(right, [line])

            def step(k: Any, sums: list) -> list:
                scale = writer.broadcast(writer.element(numbers, k))
                value = writer.load(right, writer.place(b.terms, k))
                return [writer.multiply_add(sums[0], scale, value)]

            writer.store(writer.sums(1, extent.terms, step)[0], to, place)


def _write_mixed_rows(writer: Writer, target: Any, scales: Any, b: Any, extent: Any, row: Any) -> None:
    """`mix_rows` for a block of rows from `row` on, sums in registers."""
    builder = writer.builder
    rows = _numbers(builder, row, writer.variant, extent.rows)
    factors = [
        builder.gep(scales.values, [builder.add(scales.at, builder.mul(scales.stride, number))])
        for number in rows
    ]
    places = [writer.place(target.rows, number) for number in rows]
    right, to = (builder.gep(each.data, [each.at]) for each in (b, target))

    def mix(shift: Any, mask: Any) -> None:
        def step(k: Any, sums: list) -> list:
            at = builder.add(writer.place(b.terms, k), shift)
            value = load_part(writer, right, at, mask)
            if b.ahead is not None:
                for line in range(0, writer.lanes, LINE_BYTES // writer.itemsize):
                    writer.prefetch(right, builder.add(at, builder.add(b.ahead, at.type(line))))
            scale = [writer.broadcast(writer.element(each, k)) for each in factors]
            return [writer.multiply_add(*pair, value) for pair in zip(sums, scale, strict=True)]

        for total, place in zip(writer.sums(len(rows), extent.terms, step), places, strict=True):
            store_part(writer, total, to, builder.add(place, shift), mask)

    each_vector(writer, extent.length, mix)


# Both fill the registers with operands and sums: whichever has fewer rows made in vain.
_FIVE, _SIX = 5, 6
_mix_five_rows, _mix_six_rows = (written(MIXED_BYTES, rows)(_write_mixed_rows) for rows in (_FIVE, _SIX))


@borrowing_jit
def mix_rows(target: Target, scales: gemm.Matrix, b: Factor, extent: Extent) -> None:
    """target[i] = sum over k of scales[i, k] * b[k], of which each factor `scales` is a number.

    Runs are of any length. Neither target nor b has columns.
    """
    step = _FIVE if -extent.rows % _FIVE <= -extent.rows % _SIX else _SIX
    for row in range(0, extent.rows, step):
        if step == _FIVE:
            _mix_five_rows(target, scales, b, extent, row)
        else:
            _mix_six_rows(target, scales, b, extent, row)


@written(REGISTER_BYTES)
def gather_planes(writer: Writer, target: Any, a: Any, extent: Any) -> None:
    """Copy a factor of up to `PRODUCT_ROWS` lines to where the planes of another one, `target`, lie.

    What lies ahead of it is fetched meanwhile.
    """
    builder = writer.builder
    index, vectors = extent.length.type, _vectors(writer, extent)
    rows = _numbers(builder, index(0), PRODUCT_ROWS, extent.rows)
    lines = [(writer.place(a.lines, row), writer.place(target.lines, row)) for row in rows]
    further = builder.add(a.ahead, index(writer.lanes - 1))
    with Loop(builder, extent.terms, []) as term:
        begin, goal = (
            builder.gep(each.data, [builder.add(each.at, writer.place(each.terms, term.k))])
            for each in (a, target)
        )
        for source, to in ((builder.gep(begin, [line[0]]), builder.gep(goal, [line[1]])) for line in lines):
            with Loop(builder, vectors, []) as vector:
                shift = builder.mul(vector.k, index(writer.lanes))
                writer.store(writer.load(source, shift), to, shift)
                writer.prefetch(source, builder.add(shift, further))
