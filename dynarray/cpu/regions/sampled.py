"""`roi_align`: packing, sums over the pixels of bins, and their adjoint."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import FALSE, TRUE, ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.gemm import Matrix
from ..engine.pixels import clear, transpose
from .bins import BinTaps, PackedPixels, spread_bin, sum_bin
from .plan import BEFORE, COLUMNS, FIRST, IMAGE, LEFT, ROWS, TOP, RegionBoxes, RegionPart, RegionSizes
from .taps import RegionTaps, find_pixels, taps_of_axes

_RUN = 1024  # pixels that are packed at once, where rows follow each other


class RegionScratch(NamedTuple):
    """Memory of a thread: sizes, or the arrays."""

    rows: RegionTaps
    columns: RegionTaps
    sums: Any  # a row of channels for each bin of a box


class RegionSlot(NamedTuple):
    """A block of channels of a group, and where it lies."""

    group: int
    channel: int  # the first, of the images
    number: int
    at: int  # where it begins in packed memory


def region_scratch(sizes: RegionSizes, block: int) -> RegionScratch:
    """What a thread needs."""
    return RegionScratch(*taps_of_axes(sizes), sizes.bins[0] * sizes.bins[1] * block)


@borrowing_jit
def _slot_of(boxes: RegionBoxes, part: RegionPart, group: int, block: int) -> RegionSlot:
    own, from_ = boxes.groups[group], block * part.block
    at = (own[BEFORE] - boxes.groups[part.group, BEFORE]) * part.channels
    at += own[ROWS] * own[COLUMNS] * from_
    return RegionSlot(group, part.channel + from_, min(part.block, part.channels - from_), at)


@borrowing_jit
def _band_of(boxes: RegionBoxes, part: RegionPart, item: int) -> tuple:
    """An item is a band of rows of a slot: which slot, and the rows of its window, from and to."""
    which, band = item // part.bands, item % part.bands
    slot = _slot_of(boxes, part, part.group + which // part.blocks, which % part.blocks)
    rows = boxes.groups[slot.group, ROWS]
    return slot, rows * band // part.bands, rows * (band + 1) // part.bands


@borrowing_jit
def _first_pixel(boxes: RegionBoxes, slot: RegionSlot, sizes: RegionSizes, row: int) -> int:
    """Where a row of the window begins in the first channel of a slot."""
    own, (height, width) = boxes.groups[slot.group], sizes.extent
    return ((own[IMAGE] * sizes.channels + slot.channel) * height + own[TOP] + row) * width + own[LEFT]


@borrowing_jit
def _packed_pixels(packed: np.ndarray, slot: RegionSlot, own: np.ndarray) -> PackedPixels:
    """The pixels of a slot, by their place in the image."""
    above = own[TOP] * own[COLUMNS] + own[LEFT]
    return PackedPixels(packed, slot.at - above * slot.number, own[COLUMNS], slot.number)


@borrowing_cached_jit
def region_pack_items(
    start: int,
    stop: int,
    x: np.ndarray,
    packed: np.ndarray,
    boxes: RegionBoxes,
    sizes: RegionSizes,
    part: RegionPart,
) -> None:
    """Items are bands of rows of slots: channels side by side, pixel after pixel."""
    plane, width = sizes.extent[0] * sizes.extent[1], sizes.extent[1]
    for item in range(start, stop):
        slot, first, end = _band_of(boxes, part, item)
        columns = boxes.groups[slot.group, COLUMNS]
        step = max(1, _RUN // columns) if columns == width else 1
        for row in range(first, end, step):
            target = Matrix(packed, slot.at + row * columns * slot.number, slot.number)
            source = Matrix(x, _first_pixel(boxes, slot, sizes, row), plane)
            transpose(target, source, slot.number, min(step, end - row) * columns)


@borrowing_cached_jit
def region_pool_items(
    start: int,
    stop: int,
    scratch: RegionScratch,
    packed: np.ndarray,
    y: np.ndarray,
    boxes: RegionBoxes,
    sizes: RegionSizes,
    part: RegionPart,
) -> None:
    """Items are blocks of channels, box after box: the sums of all bins, written channel by channel."""
    sums, rows, columns, found = scratch.sums, scratch.rows, scratch.columns, -1
    (high, wide), first = sizes.bins, boxes.groups[part.group, FIRST]
    for item in range(start, stop):
        k = first + item // part.blocks
        box, own = boxes.order[k], boxes.groups[boxes.group[k]]
        slot = _slot_of(boxes, part, boxes.group[k], item % part.blocks)
        if found != k:
            find_pixels(rows, boxes, box, 0, sizes, FALSE)
            find_pixels(columns, boxes, box, 1, sizes, FALSE)
            found = k
        number, bins = slot.number, high * wide
        pixels = _packed_pixels(packed, slot, own)
        for bin_ in range(bins):
            i, j = bin_ // wide, bin_ % wide
            down, across = rows.begin[i + 1] - rows.begin[i], columns.begin[j + 1] - columns.begin[j]
            taps = BinTaps(rows, columns, rows.begin[i], down, columns.begin[j], across)
            sum_bin(pixels, taps, sums, bin_ * number)
        target = Matrix(y, (box * sizes.channels + slot.channel) * bins, bins)
        transpose(target, Matrix(sums, ZERO, number), bins, number)


@borrowing_cached_jit
def region_spread_items(
    start: int,
    stop: int,
    scratch: RegionScratch,
    packed: np.ndarray,
    arrays: tuple,
    boxes: RegionBoxes,
    sizes: RegionSizes,
    part: RegionPart,
) -> None:
    """Items are bands of rows of slots: what each pixel gets of one box after the other."""
    grad, grad_x = arrays
    plane, bins = sizes.extent[0] * sizes.extent[1], sizes.bins[0] * sizes.bins[1]
    for item in range(start, stop):
        slot, first, end = _band_of(boxes, part, item)
        own, number = boxes.groups[slot.group], slot.number
        line = own[COLUMNS] * number
        clear(packed, slot.at + first * line, (end - first) * line)
        for k in range(own[FIRST], boxes.groups[slot.group + 1, FIRST]):
            box = boxes.order[k]
            low, high = boxes.windows[box, 0] - own[TOP], boxes.windows[box, 1] - own[TOP]
            if low < end and high > first:
                source = Matrix(grad, (box * sizes.channels + slot.channel) * bins, bins)
                transpose(Matrix(scratch.sums, ZERO, number), source, number, bins)
                _spread_box(scratch, packed, boxes, sizes, (slot, box, first, end))
        for row in range(first, end):
            source = Matrix(packed, slot.at + row * line, number)
            target = Matrix(grad_x, _first_pixel(boxes, slot, sizes, row), plane)
            transpose(target, source, own[COLUMNS], number)


@borrowing_jit
def _spread_box(
    scratch: RegionScratch, packed: np.ndarray, boxes: RegionBoxes, sizes: RegionSizes, place: tuple
) -> None:
    """Add the gradients of a box's bins to the pixels that they were made from, in one band of rows."""
    slot, box, first, end = place
    rows, columns, sums, own = scratch.rows, scratch.columns, scratch.sums, boxes.groups[slot.group]
    find_pixels(rows, boxes, box, 0, sizes, TRUE)
    find_pixels(columns, boxes, box, 1, sizes, TRUE)
    high, wide = sizes.bins
    pixels = _packed_pixels(packed, slot, own)
    for i in range(high):
        for a in range(rows.begin[i], rows.begin[i + 1]):
            if not first <= rows.pixel[a] - own[TOP] < end:
                continue
            for j in range(wide):
                across = columns.begin[j + 1] - columns.begin[j]
                taps = BinTaps(rows, columns, a, 1, columns.begin[j], across)
                spread_bin(pixels, taps, sums, (i * wide + j) * slot.number)
