"""`roi_align` of few channels, or of few samples: pixels are read where they lie, channel by channel.

To lay channels side by side takes as long as to read each pixel of a window: where few of these are read, or
where a run of channels fills no vector, that is not worth it. The weights of a bin are those of its rows
times those of its columns: first each row is summed up, then the rows.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import FALSE, TRUE, borrowing_cached_jit, borrowing_jit
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear
from .plan import BEFORE, FIRST, IMAGE, RegionBoxes, RegionSizes
from .taps import RegionTaps, find_pixels, taps_of_axes

# Elementary operations in the time in which a pixel is read in its plane.
_READ = 3.0
# Such times in which one is packed, and in which a vector of channels is.
_PIXEL_PACKED, _CHANNELS_SUMMED = 0.4, 8.0


class PlaneScratch(NamedTuple):
    """Memory of a thread: sizes, or the arrays."""

    rows: RegionTaps
    columns: RegionTaps
    in_row: Any  # whether the pixels of a bin follow each other in a row


def _plane_scratch(sizes: RegionSizes) -> PlaneScratch:
    """What a thread needs."""
    return PlaneScratch(*taps_of_axes(sizes), (sizes.bins[1], np.bool_))


def stays_in_planes(boxes: RegionBoxes, sizes: RegionSizes, read: float) -> bool:
    """Whether reading pixels in planes takes less time than packing windows and reading runs of channels."""
    return read < _PIXEL_PACKED * boxes.groups[-1, BEFORE] + _CHANNELS_SUMMED * read / sizes.channels


def _channel_chunks(items: int, channels: int) -> int:
    """Chunks of the channels of each item."""
    return max(1, min(channels, -(-parallel.ITEMS // items)))


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
    rows, found = scratch.rows, -1
    (height, width), (high, wide), channels = sizes.extent, sizes.bins, sizes.channels
    for item in range(start, stop):
        box, chunk = boxes.order[item // chunks], item % chunks
        if found != box:
            _find_pixels_of(scratch, boxes, box, sizes, FALSE)
            found = box
        for c in range(channels * chunk // chunks, channels * (chunk + 1) // chunks):
            plane = (boxes.image[box] * channels + c) * height
            for i in range(high):
                to = uint64(((box * channels + c) * high + i) * wide)
                clear(y, to, wide)
                for a in range(rows.begin[i], rows.begin[i + 1]):
                    line, weight = (plane + rows.pixel[a]) * width, rows.weight[a]
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
    rows = scratch.rows
    (height, width), (high, wide), channels = sizes.extent, sizes.bins, sizes.channels
    for item in range(start, stop):
        group, chunk = item // chunks, item % chunks
        for k in range(boxes.groups[group, FIRST], boxes.groups[group + 1, FIRST]):
            box = boxes.order[k]
            _find_pixels_of(scratch, boxes, box, sizes, TRUE)
            for c in range(channels * chunk // chunks, channels * (chunk + 1) // chunks):
                plane = (boxes.groups[group, IMAGE] * channels + c) * height
                for i in range(high):
                    from_ = uint64(((box * channels + c) * high + i) * wide)
                    for a in range(rows.begin[i], rows.begin[i + 1]):
                        line, weight = (plane + rows.pixel[a]) * width, rows.weight[a]
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
