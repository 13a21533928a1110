"""The forward pass of `mixed_filter2d` on an image where it lies, a vector of a row of outputs at a time.

What the taps of one row read for it are two vectors of the image, shifted in registers; elements outside the
image are not loaded, but zero. So nothing is packed. That takes the instructions of `NEIGHBOURS`, and pays
where a filter serves several channels: where it serves few, the time goes into making it.
"""

from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np

from ..engine import gemm, parallel
from ..engine.compile import FALSE, ZERO, borrowing_jit, rolled_jit
from ..engine.pixels import clear, copy
from ..engine.products import MIXED_BYTES, NEIGHBOURS
from ..engine.vectors import REGISTER_BYTES, GuardedLoop, Loop, Writer, in_row, written
from .mixed_plan import MIXED_TILE_BYTES, MixedCall

_CHANNELS = 4  # filtered together; with two rows of outputs each, no sum waits for another


class RowsPlan(NamedTuple):
    """All that the kernel knows of a call but its arrays."""

    rows: int  # of a tile
    down: int  # tiles
    taps: tuple[int, int]
    padding: tuple[int, int]
    span: int  # of the positions of a tile, in whole vectors
    mixture: np.ndarray  # where the planes of the mixture begin


class RowsScratch(NamedTuple):
    """A thread's memory for one tile."""

    filters: Any  # (taps, positions)
    mixture: Any
    corner: Any  # for the matrix product


class _Planes(NamedTuple):
    """Planes of channels, one after the other."""

    data: np.ndarray
    at: int  # where the first begins
    height: int
    width: int


class _Area(NamedTuple):
    """What of them is filtered."""

    channels: int
    row: int  # the first
    rows: int


def _write_filtered_rows(writer: Writer, y: Any, x: Any, filters: Any, area: Any, plan: Any) -> None:
    """Rows of y, of some channels, from x, with filters (taps, positions of these rows).

    Two rows at a time: of what they read, all but one row is the same.
    """
    builder, neighbours, index = writer.builder, writer.variant, y.at.type
    lanes, (kh, kw) = index(writer.lanes), (builder.extract_value(plan.taps, k) for k in range(2))
    pad_y, pad_x = (builder.extract_value(plan.padding, k) for k in range(2))
    to, from_ = (_first_pixels(writer, each, area.channels) for each in (y, x))
    # What the next channels hold there comes meanwhile.
    ahead = builder.mul(builder.mul(x.height, x.width), index(_CHANNELS))
    pairs = builder.udiv(builder.add(area.rows, index(1)), index(2))
    vectors = builder.udiv(builder.add(y.width, index(writer.lanes - 1)), lanes)
    with Loop(builder, pairs, []) as pair, Loop(builder, vectors, []) as vector:
        column, own = builder.mul(vector.k, lanes), builder.mul(pair.k, index(2))
        begin = builder.sub(column, pad_x)
        inside = [writer.within(place, x.width) for place in (begin, builder.add(begin, lanes))]
        upper = builder.gep(filters, [builder.add(builder.mul(own, y.width), column)])
        lower = builder.gep(upper, [y.width])
        first = builder.sub(builder.add(area.row, own), pad_y)

        def filters_of(tap: Any, row: Any) -> list:
            """Those of a row of taps, for the positions of one row of outputs."""
            at = (builder.add(builder.mul(tap, kw), index(k)) for k in range(neighbours))
            return [writer.load(row, builder.mul(each, plan.span)) for each in at]

        def add_row(i: Any, sums: list, taps: list) -> list:
            """What row `i` of those that are read adds to both rows of sums: by a row of taps, or None."""
            line = builder.add(first, i)
            there = writer.broadcast(builder.icmp_unsigned("<", line, x.height))
            masks = [builder.and_(mask, there) for mask in inside]
            place = builder.add(builder.mul(line, x.width), begin)
            places = place, builder.add(place, lanes)
            factors = [
                [] if tap is None else filters_of(tap, row)
                for tap, row in zip(taps, (upper, lower), strict=True)
            ]
            following: list[Any] = []
            for c, each in enumerate(from_):
                writer.prefetch(each, builder.add(place, ahead))
                left, right = (writer.load_masked(each, *at) for at in zip(places, masks, strict=True))
                values, totals = writer.neighbours(left, right, neighbours), sums[2 * c : 2 * c + 2]
                for k in (k for k, each in enumerate(factors) if each):
                    for product in zip(factors[k], values, strict=True):
                        totals[k] = writer.multiply_add(totals[k], *product)
                following += writer.in_order(totals)
            return following

        sums = add_row(index(0), [writer.zero] * 2 * _CHANNELS, [index(0), None])
        with GuardedLoop(builder, builder.sub(kh, index(1)), sums) as row:
            further = builder.add(row.k, index(1))
            row.values = add_row(further, row.values, [further, row.k])
        sums = add_row(kh, row.values, [None, builder.sub(kh, index(1))])
        place = builder.add(builder.mul(builder.add(area.row, own), y.width), column)
        mask = writer.within(column, y.width)
        more = builder.icmp_signed("<", builder.add(own, index(1)), area.rows)
        masks = mask, builder.and_(mask, writer.broadcast(more))
        for c, each in enumerate(to):
            writer.store_masked(sums[2 * c], each, place, masks[0])
            writer.store_masked(sums[2 * c + 1], each, builder.add(place, y.width), masks[1])


def _first_pixels(writer: Writer, planes: Any, channels: Any) -> list:
    """Pointers to the planes of `_CHANNELS` channels, those behind the last one the last one."""
    builder, size = writer.builder, writer.builder.mul(planes.height, planes.width)
    last = builder.sub(channels, size.type(1))
    numbers = (size.type(c) for c in range(_CHANNELS))
    there = (builder.select(builder.icmp_signed("<", c, last), c, last) for c in numbers)
    return [builder.gep(planes.data, [builder.add(planes.at, builder.mul(c, size))]) for c in there]


@borrowing_jit
def _filter_none(y: _Planes, x: _Planes, filters: np.ndarray, area: _Area, plan: RowsPlan) -> None:
    """For kernels of no such width, for which there is no plan."""


def _filter_width(otherwise: Callable, width: int) -> Callable:
    """`_filter_rows` for kernels of one width, and for others what stands for them."""
    rows = written(REGISTER_BYTES, width)(_write_filtered_rows)

    @borrowing_jit
    def filter_rows(y: _Planes, x: _Planes, filters: np.ndarray, area: _Area, plan: RowsPlan) -> None:
        if plan.taps[1] == width:
            rows(y, x, filters, area, plan)
        else:
            otherwise(y, x, filters, area, plan)

    return filter_rows


_filter_rows = reduce(_filter_width, NEIGHBOURS, _filter_none)


@rolled_jit
def mixed_rows_items(
    start: int, stop: int, scratch: RowsScratch, inputs: tuple, y: np.ndarray, plan: RowsPlan
) -> None:
    """Items: (sample, tile, group). Kernels are a left matrix (taps, B) in panels."""
    x, kernels, mixture = inputs
    (channels, height, width), (high, wide), (groups, bases) = x.shape[1:], y.shape[2:], mixture.shape[1:3]
    share, count = channels // groups, plan.taps[0] * plan.taps[1]
    left = gemm.Matrix(kernels, ZERO, bases * gemm.TILE_ROWS)
    right = gemm.RightStrips(scratch.mixture, ZERO, gemm.TILE_ROW_BYTES // y.itemsize, plan.mixture)
    made = gemm.Matrix(scratch.filters, ZERO, plan.span)
    # Vectors read beyond the last filter. What memory held before may be slow to multiply.
    clear(scratch.filters, count * plan.span, len(scratch.filters) - count * plan.span)
    for item in range(start, stop):
        group, sample, tile = item % groups, item // groups // plan.down, item // groups % plan.down
        row = tile * plan.rows
        rows = min(plan.rows, high - row)
        for b in range(bases):
            at = (((sample * groups + group) * bases + b) * high + row) * wide
            copy(scratch.mixture, b * plan.span, in_row(mixture), at, rows * wide)
            clear(scratch.mixture, b * plan.span + rows * wide, plan.span - rows * wide)
        gemm.multiply(made, left, right, (count, plan.span), scratch.corner, FALSE)
        first = sample * channels + group * share
        for channel in range(first, first + share, _CHANNELS):
            source = _Planes(in_row(x), channel * height * width, height, width)
            target = _Planes(in_row(y), channel * high * wide, high, wide)
            area = _Area(min(_CHANNELS, first + share - channel), row, rows)
            _filter_rows(target, source, scratch.filters, area, plan)


@lru_cache(maxsize=256)
def plan_rows(call: MixedCall) -> tuple[RowsPlan, RowsScratch] | None:
    """None where this is not the fastest, or not possible."""
    (bases, sets, kh, kw), (samples, groups, _, high, wide) = call.kernels, call.mixture
    lanes, beside = REGISTER_BYTES // call.itemsize, call.stride == call.dilation == (1, 1)
    # Vectors are whole: packed rows leave no elements of them over but where taps reach over their ends.
    leaves_few_over = 8 * (wide + -wide % lanes) <= 9 * (wide + kw - 1)
    if not (kw in NEIGHBOURS and beside and leaves_few_over and sets == 1 and call.share >= _CHANNELS):
        return None
    count, whole = kh * kw, MIXED_BYTES // call.itemsize
    most = MIXED_TILE_BYTES // ((count + bases) * wide * call.itemsize)
    rows = max(1, min(high, most, -(-high * samples * groups // parallel.ITEMS)))
    rows = 2 * -(-high // (2 * -(-high // rows)))  # as many in each tile, and in pairs
    span = -(-rows * wide // whole) * whole
    plan = RowsPlan(rows, -(-high // rows), (kh, kw), call.padding, span, np.arange(bases) * span)
    corner = gemm.TILE_ROWS * gemm.TILE_ROW_BYTES // call.itemsize
    return plan, RowsScratch(count * span + wide + whole, bases * span, corner)
