"""The maps of `correlation2d` for several channels, all displacements of some rows from one place.

Maps may be many more than channels, and most of what a displacement reads may lie outside of the image. So
rows of both images are packed, with all their channels, and kept while every displacement between them is
summed up: lanes are pixels, and a vector of x1 meets several displaced ones of x2, whose sums stay in
registers over all channels. Rows follow one another without a gap, that short ones fill vectors too. What
pixels of other rows made of it is left out when sums are stored; rows outside of the image are never read.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine import parallel, strips
from ..engine.compile import borrowing_jit, kernel_input, rolled_jit
from ..engine.gemm import Matrix
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear, copy, staggered
from ..engine.vectors import MANY_REGISTERS, REGISTER_BYTES, Loop, Writer, in_row, written
from .items import FilterWindow, Shape

_MAPS_TOGETHER = 8 if MANY_REGISTERS else 4  # displacements
_FEW_MAPS = 3  # the number of which is left over, or less
_MAP_VECTORS = 2  # of pixels
_MAPS_BYTES = 768 * 1024  # packed rows: most of a common L2 cache
_LEAST_ROWS = 8  # that fit: with fewer, packing takes longer than what is done with them


class MapsPitch(NamedTuple):
    """Elements from channel to channel of packed rows."""

    first: int
    second: int


class MapsPlan(NamedTuple):
    """What is packed where, and how work is divided: into items (sample, band of rows, rows of maps)."""

    window: FilterWindow
    maps: Shape
    size: Shape  # of the images
    channels: int
    band: int  # rows
    bands: int
    block: int  # rows of maps
    blocks: int
    pitch: MapsPitch


class MapsScratch(NamedTuple):
    """A thread's packed rows."""

    first: Any
    second: Any
    columns: Any  # of pixels of a band
    outside: Any  # what the means are outside of x2: zeros, but where x1 is not finite


class _MapTile(NamedTuple):
    """Pixels of a band, and of x2 what the first displacement of some reads there."""

    first: Matrix  # a row for each channel
    second: Matrix
    columns: np.ndarray
    outside: np.ndarray
    at: int  # the first pixel
    end: int  # of those that are stored
    shift: int  # columns to the right
    step: int  # and from one displacement to the next
    width: int
    share: Any  # of a channel in the mean


def correlation_maps(x1: np.ndarray, x2: np.ndarray, maps: Shape, window: FilterWindow) -> np.ndarray:
    """The maps (N, 1, *maps, H, W)."""
    plan, scratch, operations = _maps_plan(x1.shape, maps, x1.itemsize, window)
    y = strips.empty_to_stream((len(x1), 1, *maps, *x1.shape[2:]), x1.dtype)
    args = y, kernel_input(x1), kernel_input(x2), plan
    total = plan.bands * plan.blocks * len(x1)
    run_with_scratch(correlation_map_items, total, operations, scratch, x1.dtype, *args)
    return y


def maps_apply(x1: Shape, itemsize: int) -> bool:
    """Whether rows of images of this shape are not too long for it."""
    return min(x1[2], _LEAST_ROWS) * x1[1] * x1[3] * itemsize <= _MAPS_BYTES


@lru_cache(maxsize=256)
def _maps_plan(
    x1: Shape, maps: Shape, itemsize: int, window: FilterWindow
) -> tuple[MapsPlan, MapsScratch, float]:
    """For images of this shape: as many rows as fit, and items for all threads."""
    (samples, channels, high, wide), step = x1, window.dilation[0]
    vectors = (_MAP_VECTORS + 1) * REGISTER_BYTES // itemsize
    rows = max(3, _MAPS_BYTES // (channels * wide * itemsize))
    bands = -(-high // max(1, rows // 3))
    band = -(-high // bands)
    bands = -(-high // band)
    wanted = -(-parallel.ITEMS // (samples * bands))
    block = max(1, min(-(-maps[0] // wanted), (rows - 2 * band) // step + 1))
    margin = min(wide, window.padding[1] + 1)
    second = min(high, band + (block - 1) * step) * wide + 2 * margin + vectors
    pixels = band * wide + vectors
    pitch = MapsPitch(staggered(pixels, itemsize), staggered(second, itemsize))
    plan = MapsPlan(window, maps, x1[2:], channels, band, bands, block, -(-maps[0] // block), pitch)
    scratch = MapsScratch(channels * pitch.first, channels * pitch.second, (pixels, np.int32), pixels)
    return plan, scratch, samples * maps[0] * maps[1] * high * wide * (channels + 4) / 4


@rolled_jit
def correlation_map_items(
    start: int,
    stop: int,
    scratch: MapsScratch,
    y: np.ndarray,
    x1: np.ndarray,
    x2: np.ndarray,
    plan: MapsPlan,
) -> None:
    """Items of the plan."""
    (high, wide), taps = plan.size, plan.maps[0] * plan.maps[1]
    target, one, two = in_row(y), in_row(x1), in_row(x2)
    for k in range(len(scratch.columns)):
        scratch.columns[k] = k % wide
    for number in range(start, stop):
        rest, block = number // plan.blocks, number % plan.blocks
        sample, top = rest // plan.bands, rest % plan.bands * plan.band
        rows = min(plan.band, high - top)
        image = sample * plan.channels * high * wide
        _pack_first(scratch, one, image + top * wide, rows * wide, plan)
        a, last = block * plan.block, min(plan.maps[0], (block + 1) * plan.block) - 1
        begin = max(0, top + _displaced(a, 0, plan))
        end = min(high, top + rows + _displaced(last, 0, plan))
        margin = min(wide, plan.window.padding[1] + 1)
        for c in range(plan.channels if begin < end else 0):
            at, to, count = image + (c * high + begin) * wide, c * plan.pitch.second, (end - begin) * wide
            # Pixels around are multiplied too: what memory held before may be slow to multiply.
            clear(scratch.second, to, margin)
            copy(scratch.second, to + margin, two, at, count)
            clear(scratch.second, to + margin + count, plan.pitch.second - margin - count)
        for each in range(a, last + 1):
            down = top + _displaced(each, 0, plan)
            low = min(rows, max(0, -down))
            stop_row = max(low, min(rows, high - down))
            maps = Matrix(target, ((sample * taps + each * plan.maps[1]) * high + top) * wide, high * wide)
            _fill_outside(maps, low, stop_row, rows, scratch, plan)
            source = margin + (down - begin) * wide
            _sum_row_of_maps(maps, low * wide, stop_row * wide, source, scratch, plan)


@borrowing_jit
def _displaced(index: int, axis: int, plan: MapsPlan) -> int:
    return index * plan.window.dilation[axis] - plan.window.padding[axis]


@borrowing_jit
def _pack_first(scratch: MapsScratch, x1: np.ndarray, at: int, count: int, plan: MapsPlan) -> None:
    """So many pixels of x1, and their means with zeros."""
    outside, (high, wide) = scratch.outside, plan.size
    clear(outside, 0, len(outside))
    for c in range(plan.channels):
        begin = at + c * high * wide
        copy(scratch.first, c * plan.pitch.first, x1, begin, count)
        clear(scratch.first, c * plan.pitch.first + count, plan.pitch.first - count)
        _add_nothing(outside, x1, begin, count)


@written(REGISTER_BYTES)
def _add_nothing(writer: Writer, totals: Any, values: Any, at: Any, count: Any) -> None:
    """Zero times each of so many values to the totals; these go on to the end of a vector."""
    builder, lanes = writer.builder, count.type(writer.lanes)
    vectors = builder.udiv(builder.add(count, count.type(writer.lanes - 1)), lanes)
    with Loop(builder, vectors, []) as loop:
        j = builder.mul(loop.k, lanes)
        value = writer.load_masked(values, builder.add(at, j), writer.within(j, count))
        total = writer.multiply_add(writer.load(totals, j), writer.zero, value)
        writer.store(total, totals, j)


@borrowing_jit
def _fill_outside(
    target: Matrix, low: int, stop: int, rows: int, scratch: MapsScratch, plan: MapsPlan
) -> None:
    """Rows of a row of maps that are displaced outside of x2, and maps that are."""
    wide = plan.size[1]
    for b in range(plan.maps[1]):
        beside = abs(_displaced(b, 1, plan)) >= wide
        at, until = target.at + b * target.stride, rows if beside else low
        copy(target.values, at, scratch.outside, 0, until * wide)
        if not beside:
            copy(target.values, at + stop * wide, scratch.outside, stop * wide, (rows - stop) * wide)


@borrowing_jit
def _sum_row_of_maps(
    target: Matrix, start: int, stop: int, source: int, scratch: MapsScratch, plan: MapsPlan
) -> None:
    """Pixels start to stop of a row of maps, which read x2 from `source` on, and columns beside that."""
    wide, left, step, kw = plan.size[1], plan.window.padding[1], plan.window.dilation[1], plan.maps[1]
    low = max(0, (left - wide) // step + 1)
    end = min(kw, (left + wide - 1) // step + 1)
    size = _MAP_VECTORS * REGISTER_BYTES // target.values.itemsize
    share = target.values.dtype.type(1) / target.values.dtype.type(plan.channels)
    for p in range(start, stop, size):
        b = low
        while b < end:
            shift, number = b * step - left, min(_MAPS_TOGETHER, end - b)
            tile = _MapTile(
                Matrix(scratch.first, p, plan.pitch.first),
                Matrix(scratch.second, source + p + shift, plan.pitch.second),
                scratch.columns,
                scratch.outside,
                p,
                stop,
                shift,
                step,
                wide,
                share,
            )
            to = Matrix(target.values, target.at + b * target.stride + p, target.stride)
            if number > _FEW_MAPS:
                _sum_many(to, tile, plan.channels, number)
            elif number > 1:
                _sum_few(to, tile, plan.channels, number)
            else:
                _sum_single(to, tile, plan.channels, number)
            b += number


def _write_maps(writer: Writer, target: Any, tile: Any, channels: Any, number: Any) -> None:
    """`number` maps, a row of the target for each; those up to the variant are summed up with them."""
    builder, together, index, lanes = writer.builder, writer.variant, number.type, writer.lanes
    first = builder.gep(tile.first.values, [tile.first.at])
    second, places = [], [index(v * lanes) for v in range(_MAP_VECTORS)]
    for k in range(together):
        each = index(k)
        each = builder.select(builder.icmp_signed("<", each, number), each, index(0))
        at = builder.add(tile.second.at, builder.mul(each, tile.step))
        second.append(builder.gep(tile.second.values, [at]))

    def step(channel: Any, sums: list) -> list:
        ours, theirs = (builder.mul(channel, rows.stride) for rows in (tile.first, tile.second))
        pixels = [writer.load(first, builder.add(ours, place)) for place in places]
        others = [[writer.load(each, builder.add(theirs, place)) for place in places] for each in second]
        pairs = [pair for row in others for pair in zip(pixels, row, strict=True)]
        return [writer.multiply_add(total, *pair) for total, pair in zip(sums, pairs, strict=True)]

    sums = writer.sums(together * _MAP_VECTORS, channels, step)
    kind = ir.VectorType(ir.IntType(32), lanes)
    share, width = writer.broadcast(tile.share), builder.trunc(tile.width, ir.IntType(32))
    at = [builder.add(tile.at, place) for place in places]
    stored = [writer.within(place, builder.sub(tile.end, tile.at)) for place in places]
    outside = [writer.load(tile.outside, place) for place in at]
    columns = []
    for place in at:
        pointer = builder.bitcast(builder.gep(tile.columns, [place]), kind.as_pointer())
        columns.append(builder.load(pointer, align=4))
    for k in range(together):
        with builder.if_then(builder.icmp_signed("<", index(k), number)):
            shift = builder.trunc(builder.add(tile.shift, builder.mul(index(k), tile.step)), ir.IntType(32))
            to = builder.add(target.at, builder.mul(index(k), target.stride))
            for v, place in enumerate(places):
                there = builder.add(columns[v], writer.broadcast(shift))
                inside = builder.icmp_unsigned("<", there, writer.broadcast(width))
                mean = writer.multiply(sums[k * _MAP_VECTORS + v], share)
                value = builder.select(inside, mean, outside[v])
                writer.store_masked(value, target.values, builder.add(to, place), stored[v])


_sum_many, _sum_few, _sum_single = (
    written(REGISTER_BYTES, n)(_write_maps) for n in (_MAPS_TOGETHER, _FEW_MAPS, 1)
)
