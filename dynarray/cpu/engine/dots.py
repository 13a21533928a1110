"""Dot products of some rows with others, a block of sums in registers: the gradients of small matrices.

Rows are read where they lie, runs of any length of them at a time. Rounding errors grow with the length of a
sum: those of short parts of a run go into float64, in tiles of a block each, of which `untangled` makes the
matrix.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.extending import register_jitable

from .compile import borrowing_jit
from .runs import RunRows
from .vectors import MANY_REGISTERS, REGISTER_BYTES, GuardedLoop, Writer, load_part, written

# Rows and columns of a block. Both fill the registers: whichever has fewer sums made in vain.
_BROAD, _HIGH = ((3, 9), (4, 5)) if MANY_REGISTERS else ((2, 5), (3, 3))
_SLOTS = 32 if MANY_REGISTERS else 16  # that a tile has room for
_SUMMED = 16 * REGISTER_BYTES // 4  # elements of a run that are added up before they join a sum in float64


@register_jitable(error_model="numpy")
def _blocks_of(rows: int, columns: int, block: tuple) -> tuple[int, int]:
    return -(-rows // block[0]), -(-columns // block[1])


@register_jitable(error_model="numpy")
def _is_broad(rows: int, columns: int) -> bool:
    broad, high = _blocks_of(rows, columns, _BROAD), _blocks_of(rows, columns, _HIGH)
    return broad[0] * broad[1] * _BROAD[0] * _BROAD[1] <= high[0] * high[1] * _HIGH[0] * _HIGH[1]


def tangled_size(rows: int, columns: int) -> int:
    """Elements that `add_dots` needs."""
    down, across = _blocks_of(rows, columns, _BROAD if _is_broad(rows, columns) else _HIGH)
    return down * across * _SLOTS


@lru_cache(maxsize=64)
def _places_of(rows: int, columns: int) -> np.ndarray:
    """Where the elements of the matrix lie among those that `add_dots` writes."""
    high, wide = block = _BROAD if _is_broad(rows, columns) else _HIGH
    i, j = np.ogrid[:rows, :columns]
    tile = i // high * _blocks_of(rows, columns, block)[1] + j // wide
    return tile * _SLOTS + j % wide * high + i % high


def untangled(totals: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The matrices (..., rows, columns) of what `add_dots` has added to the last axis of `totals`."""
    return totals[..., _places_of(rows, columns)]


def _write_dots(writer: Writer, a: Any, b: Any, size: Any, corner: Any, totals: Any, at: Any) -> None:
    """Add the sums over runs of a[row + i] * b[column + j] to a tile; `size` is (rows, columns, count)."""
    builder, (high, wide) = writer.builder, writer.variant
    rows, columns, count = (builder.extract_value(size, k) for k in range(3))
    row, column = (builder.extract_value(corner, k) for k in range(2))
    index, lanes = count.type, count.type(writer.lanes)

    def lines(matrix: Any, first: Any, number: int, end: Any) -> list:
        """Pointers to so many rows, those behind the last one the last one."""
        last, begin = builder.sub(end, index(1)), builder.gep(matrix.values, [matrix.at])
        numbers = [builder.add(first, index(k)) for k in range(number)]
        there = [builder.select(builder.icmp_signed("<", each, last), each, last) for each in numbers]
        return [builder.gep(begin, [builder.mul(matrix.stride, each)]) for each in there]

    lefts, rights = lines(a, row, high, rows), lines(b, column, wide, columns)

    def step(shift: Any, sums: list, mask: Any) -> list:
        factors, following = [load_part(writer, each, shift, mask) for each in lefts], list[Any]()
        for each in rights:
            other = load_part(writer, each, shift, mask)
            these = zip(sums[len(following) : len(following) + high], factors, strict=True)
            following += writer.in_order([writer.multiply_add(*pair, other) for pair in these])
        return following

    vectors = builder.sdiv(count, lanes)
    whole = builder.mul(vectors, lanes)
    with GuardedLoop(builder, vectors, [writer.zero] * (high * wide)) as vector:
        vector.values = step(builder.mul(vector.k, lanes), vector.values, None)
    some_left = builder.zext(builder.icmp_signed("<", whole, count), index)
    with GuardedLoop(builder, some_left, vector.values) as rest:
        rest.values = step(whole, rest.values, writer.within(whole, count))
    kind, length = ir.VectorType(ir.DoubleType(), writer.lanes), writer.lanes
    for first in range(0, high * wide, length):
        some = rest.values[first : first + length]
        found = writer.totals(some + [writer.zero] * (length - len(some)))
        if found.type != kind:
            found = builder.fpext(found, kind)
        to = builder.bitcast(builder.gep(totals, [builder.add(at, index(first))]), kind.as_pointer())
        builder.store(builder.fadd(builder.load(to, align=8), found), to, align=8)


_add_broad, _add_high = (written(REGISTER_BYTES, block)(_write_dots) for block in (_BROAD, _HIGH))


@borrowing_jit
def add_dots(totals: np.ndarray, at: int, a: RunRows, b: RunRows, size: tuple) -> None:
    """Add the sum over a run of a[i] * b[j], for `size` (rows, columns, count), to tiles from `at` on.

    `totals` is flat; see `tangled_size`.
    """
    rows, columns, count = size
    for first in range(0, count, _SUMMED):
        left, right = RunRows(a.values, a.at + first, a.stride), RunRows(b.values, b.at + first, b.stride)
        part, tile = (rows, columns, min(_SUMMED, count - first)), at
        if _is_broad(rows, columns):
            for i in range(0, rows, _BROAD[0]):
                for j in range(0, columns, _BROAD[1]):
                    _add_broad(left, right, part, (i, j), totals, tile)
                    tile += _SLOTS
        else:
            for i in range(0, rows, _HIGH[0]):
                for j in range(0, columns, _HIGH[1]):
                    _add_high(left, right, part, (i, j), totals, tile)
                    tile += _SLOTS
