"""`roi_align` of few channels, or of few samples: pixels are read where they lie, channel by channel.

To lay channels side by side takes as long as to read a pixel or two of a window: where few of these are read,
or where a run of channels fills no vector, that is not worth it. Where a box reads few pixels, these are put
in a list, with their weights, and channels share it. Else the weights of a bin are those of its rows times
those of its columns: first each row is summed up, then the rows.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64
from numba.extending import register_jitable

from ..engine import parallel
from ..engine.compile import FALSE, TRUE, borrowing_cached_jit, borrowing_jit, literal_jit
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear
from ..engine.vectors import LINE_BYTES, prefetch
from .plan import BEFORE, FIRST, IMAGE, ROWS, RegionBoxes, RegionSizes
from .taps import RegionTaps, find_pixels, taps_of_axes

# Elementary operations in the time in which a pixel is read in its plane.
_READ = 3.0
# Channels that are read together where bins have so few pixels in a row, on average.
_ALIKE, _SHORT = 4, 12
_LISTED = 4096  # pixels of a box, most
# Such times in which one is packed, and a row of a window is begun; and in which a pixel of a bin is found,
# whose channels are then summed up in next to no time.
_PIXEL_PACKED, _ROW_PACKED, _PIXEL_FOUND = 1.9, 13.0, 5.0


class PlaneScratch(NamedTuple):
    """Memory of a thread: sizes, or the arrays."""

    rows: RegionTaps
    columns: RegionTaps
    in_row: Any  # whether the pixels of a bin follow each other in a row
    place: Any  # of each pixel, bin after bin, where these are few; and its weight
    weight: Any
    lines: Any  # places in the lines of a cache where they lie


def _plane_scratch(sizes: RegionSizes) -> PlaneScratch:
    """What a thread needs."""
    lists = (_LISTED, np.int64), _LISTED, (_LISTED, np.int64)
    return PlaneScratch(*taps_of_axes(sizes), (sizes.bins[1], np.bool_), *lists)


def stays_in_planes(boxes: RegionBoxes, sizes: RegionSizes, read: float) -> bool:
    """Whether reading pixels in planes takes less time than packing windows and reading runs of channels."""
    packed = _PIXEL_PACKED * boxes.groups[-1, BEFORE] + _ROW_PACKED * boxes.groups[:-1, ROWS].sum()
    return bool(read < packed + _PIXEL_FOUND * read / sizes.channels)


def _channel_chunks(items: int, channels: int) -> int:
    """Chunks of the channels of each item."""
    return max(1, min(-(-channels // _chunk_unit(channels)), -(-parallel.ITEMS // items)))


@register_jitable(error_model="numpy")
def _chunk_unit(channels: int) -> int:
    """Channels that chunks have multiples of."""
    return _ALIKE if channels >= 2 * _ALIKE else 1


@borrowing_jit
def _channels_of(chunk: int, chunks: int, channels: int) -> tuple:
    """The channels of a chunk, from and to."""
    unit = _chunk_unit(channels)
    units = -(-channels // unit)
    return units * chunk // chunks * unit, min(channels, units * (chunk + 1) // chunks * unit)


def pool_in_planes(x: np.ndarray, y: np.ndarray, boxes: RegionBoxes, sizes: RegionSizes, read: float) -> None:
    """The forward pass."""
    number, work = len(boxes.order), _READ * read * sizes.channels
    chunks = _channel_chunks(number, sizes.channels)
    args = x, y, boxes, sizes, chunks
    run_with_scratch(plane_pool_items, number * chunks, work, _plane_scratch(sizes), x.dtype, *args)


def spread_in_planes(
    grad: np.ndarray, grad_x: np.ndarray, boxes: RegionBoxes, sizes: RegionSizes, read: float
) -> None:
    """Its adjoint, added to zeros."""
    groups, work = len(boxes.groups) - 1, 2 * _READ * read * sizes.channels
    chunks = _channel_chunks(groups, sizes.channels)
    args = grad, grad_x, boxes, sizes, chunks
    run_with_scratch(plane_spread_items, groups * chunks, work, _plane_scratch(sizes), grad.dtype, *args)


@borrowing_jit
def _find_pixels_of(
    scratch: PlaneScratch, boxes: RegionBoxes, box: int, sizes: RegionSizes, adjoint: bool
) -> None:
    find_pixels(scratch.rows, boxes, box, 0, sizes, adjoint)
    find_pixels(scratch.columns, boxes, box, 1, sizes, adjoint)
    columns = scratch.columns
    for j in range(sizes.bins[1]):
        begin, end = columns.begin[j], columns.begin[j + 1]
        scratch.in_row[j] = True
        for b in range(begin, end):
            if columns.pixel[b] - columns.pixel[begin] != b - begin:
                scratch.in_row[j] = False


@borrowing_jit
def _list_pixels(scratch: PlaneScratch, window: np.ndarray, sizes: RegionSizes, line: int) -> tuple:
    """Put the pixels of a box in a list; returns whether they are few, and in how many lines of a cache.

    A box whose bins have many pixels in a row is not worth it, nor is one of more than there is room for.
    """
    rows, columns, (high, wide), n, lines, last = scratch.rows, scratch.columns, sizes.bins, 0, 0, -line
    down, across = rows.begin[high], columns.begin[wide]
    if sizes.channels < _ALIKE or across > _SHORT * wide or down * across > len(scratch.place):
        return False, 0
    for i in range(high):
        for j in range(wide):
            for a in range(rows.begin[i], rows.begin[i + 1]):
                start, weight = rows.pixel[a] * sizes.extent[1], rows.weight[a]
                for b in range(columns.begin[j], columns.begin[j + 1]):
                    scratch.place[n], scratch.weight[n] = start + columns.pixel[b], weight * columns.weight[b]
                    n += 1
    for a in range(down):
        start = rows.pixel[a] * sizes.extent[1]
        for column in range(window[2], window[3] + line - 1, line):
            place = start + min(column, window[3] - 1)
            if abs(place - last) >= line // 2 and lines < len(scratch.lines):
                last = scratch.lines[lines] = place
                lines += 1
    return True, lines


@borrowing_jit
def _fetch_lines(x: np.ndarray, at: int, apart: int, planes: int, lines: np.ndarray) -> None:
    """Some lines of planes that are soon to be read: no two of them follow each other."""
    for plane in range(planes):
        for k in range(uint64(len(lines))):
            prefetch(x, at + plane * apart + lines[k])


@borrowing_cached_jit
def plane_pool_items(
    start: int,
    stop: int,
    scratch: PlaneScratch,
    x: np.ndarray,
    y: np.ndarray,
    boxes: RegionBoxes,
    sizes: RegionSizes,
    chunks: int,
) -> None:
    """Items are chunks of channels, box after box."""
    channels, found, few, lines = sizes.channels, -1, False, 0
    plane, bins = sizes.extent[0] * sizes.extent[1], sizes.bins[0] * sizes.bins[1]
    for item in range(start, stop):
        box, chunk = boxes.order[item // chunks], item % chunks
        if found != box:
            _find_pixels_of(scratch, boxes, box, sizes, FALSE)
            few, lines = _list_pixels(scratch, boxes.windows[box], sizes, LINE_BYTES // x.itemsize)
            found = box
        (c, end), first = _channels_of(chunk, chunks, channels), boxes.image[box] * channels
        while few and c + _ALIKE <= end:
            following = (first + c + _ALIKE) * plane
            _fetch_lines(x, following, plane, min(end - c - _ALIKE, _ALIKE), scratch.lines[:lines])
            _pool_together(x, (first + c) * plane, y, (box * channels + c) * bins, scratch, sizes)
            c += _ALIKE
        for channel in range(c, end):
            _pool_plane(x, first + channel, y, box * channels + channel, scratch, sizes)


@literal_jit
def _pool_together(
    x: np.ndarray, at: int, y: np.ndarray, to: int, scratch: PlaneScratch, sizes: RegionSizes
) -> None:
    """Bins of `_ALIKE` channels, of the pixels in the list."""
    rows, columns, (high, wide), n = scratch.rows, scratch.columns, sizes.bins, uint64(0)
    apart, bins, to = uint64(sizes.extent[0] * sizes.extent[1]), uint64(high * wide), uint64(to)
    for i in range(high):
        for j in range(wide):
            count = (rows.begin[i + 1] - rows.begin[i]) * (columns.begin[j + 1] - columns.begin[j])
            s0 = s1 = s2 = s3 = x.dtype.type(0)
            for k in range(n, n + uint64(count)):
                place, weight = uint64(at + scratch.place[k]), scratch.weight[k]
                s0 += weight * x[place]
                s1 += weight * x[place + apart]
                s2 += weight * x[place + apart * uint64(2)]
                s3 += weight * x[place + apart * uint64(3)]
            y[to], y[to + bins], y[to + bins * uint64(2)], y[to + bins * uint64(3)] = s0, s1, s2, s3
            n, to = n + uint64(count), to + uint64(1)


@borrowing_jit
def _pool_plane(
    x: np.ndarray, plane: int, y: np.ndarray, result: int, scratch: PlaneScratch, sizes: RegionSizes
) -> None:
    """Bins of a channel, row by row."""
    rows, (high, wide), (height, width) = scratch.rows, sizes.bins, sizes.extent
    for i in range(high):
        to = uint64((result * high + i) * wide)
        clear(y, to, wide)
        for a in range(rows.begin[i], rows.begin[i + 1]):
            line, weight = (plane * height + rows.pixel[a]) * width, rows.weight[a]
            for j in range(uint64(wide)):
                # Of no pixels it is nothing even where a box lies nowhere, whose weight is NaN.
                if scratch.columns.begin[j] < scratch.columns.begin[j + uint64(1)]:
                    y[to + j] += weight * _sum_row(x, line, scratch, j)


@borrowing_jit
def _sum_row(x: np.ndarray, line: int, scratch: PlaneScratch, bin_: int) -> Any:
    """Of the pixels of a bin in one row."""
    columns, total = scratch.columns, x.dtype.type(0)
    begin = uint64(columns.begin[bin_])
    count = uint64(columns.begin[bin_ + 1]) - begin
    if scratch.in_row[bin_] and count:
        first = uint64(line + columns.pixel[begin])
        for b in range(count):
            total += columns.weight[begin + b] * x[first + b]
    else:
        for b in range(begin, begin + count):
            total += columns.weight[b] * x[uint64(line + columns.pixel[b])]
    return total


@borrowing_cached_jit
def plane_spread_items(
    start: int,
    stop: int,
    scratch: PlaneScratch,
    grad: np.ndarray,
    grad_x: np.ndarray,
    boxes: RegionBoxes,
    sizes: RegionSizes,
    chunks: int,
) -> None:
    """Items are chunks of channels, image after image of those that have boxes: the adjoint."""
    channels = sizes.channels
    plane, bins = sizes.extent[0] * sizes.extent[1], sizes.bins[0] * sizes.bins[1]
    for item in range(start, stop):
        group, chunk = item // chunks, item % chunks
        first, end = _channels_of(chunk, chunks, channels)
        image = boxes.groups[group, IMAGE] * channels
        for k in range(boxes.groups[group, FIRST], boxes.groups[group + 1, FIRST]):
            box, c = boxes.order[k], first
            _find_pixels_of(scratch, boxes, box, sizes, TRUE)
            few, lines = _list_pixels(scratch, boxes.windows[box], sizes, LINE_BYTES // grad.itemsize)
            while few and c + _ALIKE <= end:
                following = (image + c + _ALIKE) * plane
                _fetch_lines(grad_x, following, plane, min(end - c - _ALIKE, _ALIKE), scratch.lines[:lines])
                at, to = (box * channels + c) * bins, (image + c) * plane
                _spread_together(grad, at, grad_x, to, scratch, sizes)
                c += _ALIKE
            for channel in range(c, end):
                _spread_plane(grad, box * channels + channel, grad_x, image + channel, scratch, sizes)


@literal_jit
def _spread_together(
    grad: np.ndarray, at: int, grad_x: np.ndarray, to: int, scratch: PlaneScratch, sizes: RegionSizes
) -> None:
    """The adjoint of `_pool_together`."""
    rows, columns, (high, wide), n = scratch.rows, scratch.columns, sizes.bins, uint64(0)
    apart, bins, at = uint64(sizes.extent[0] * sizes.extent[1]), uint64(high * wide), uint64(at)
    for i in range(high):
        for j in range(wide):
            count = (rows.begin[i + 1] - rows.begin[i]) * (columns.begin[j + 1] - columns.begin[j])
            g0, g1 = grad[at], grad[at + bins]
            g2, g3 = grad[at + bins * uint64(2)], grad[at + bins * uint64(3)]
            for k in range(n, n + uint64(count)):
                place, weight = uint64(to + scratch.place[k]), scratch.weight[k]
                grad_x[place] += weight * g0
                grad_x[place + apart] += weight * g1
                grad_x[place + apart * uint64(2)] += weight * g2
                grad_x[place + apart * uint64(3)] += weight * g3
            n, at = n + uint64(count), at + uint64(1)


@borrowing_jit
def _spread_plane(
    grad: np.ndarray, result: int, grad_x: np.ndarray, plane: int, scratch: PlaneScratch, sizes: RegionSizes
) -> None:
    """The adjoint of `_pool_plane`."""
    rows, (high, wide), (height, width) = scratch.rows, sizes.bins, sizes.extent
    for i in range(high):
        from_ = uint64((result * high + i) * wide)
        for a in range(rows.begin[i], rows.begin[i + 1]):
            line, weight = (plane * height + rows.pixel[a]) * width, rows.weight[a]
            for j in range(uint64(wide)):
                _spread_row(grad_x, line, scratch, j, weight * grad[from_ + j])


@borrowing_jit
def _spread_row(grad_x: np.ndarray, line: int, scratch: PlaneScratch, bin_: int, gradient: Any) -> None:
    """Add the gradient of the sum of one row to its pixels."""
    columns = scratch.columns
    begin = uint64(columns.begin[bin_])
    count = uint64(columns.begin[bin_ + 1]) - begin
    if scratch.in_row[bin_] and count:
        first = uint64(line + columns.pixel[begin])
        for b in range(count):
            grad_x[first + b] += columns.weight[begin + b] * gradient
    else:
        for b in range(begin, begin + count):
            grad_x[uint64(line + columns.pixel[b])] += columns.weight[b] * gradient
