"""`ps_roi_pool`: means of pixels, and their adjoint, a few planes of the images at a time, for all boxes."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import borrowing_jit, exact_jit, kernel_input, rolled_jit, zero_like
from ..engine.pixels import clear
from .pooled_loops import (
    BINS,
    LANES,
    spread_shares,
    spread_shares_narrow,
    write_means,
    write_means_narrow,
)

LEAST_EXTENT = 0.1  # of a box
POOLED_COST = 16  # elementary operations in whose time an output is made
CLEARED = 4  # pixels that are set to 0 in the time of one


class PooledSizes(NamedTuple):
    """Sizes of a call."""

    channels: int
    extent: tuple[int, int]
    bins: tuple[int, int]
    scale: float


class PooledBoxes(NamedTuple):
    """The pixels of R boxes, image after image: for each bin along y, and then x, the first and how many.

    Behind the last bin those along x begin again, so that `BINS` in a row can be read from any of them on. A
    box that lies nowhere has one pixel, of which there are -1.
    """

    order: np.ndarray  # (R,)
    begin: np.ndarray  # (N + 1,), of the boxes of each image
    first: np.ndarray  # (R, ph + pw + BINS - 1)
    number: np.ndarray  # (R, ph + pw + BINS - 1)
    turns: np.ndarray  # (R,), vectors along the widest bin; -1 of a box that lies nowhere


class PooledBlocks(NamedTuple):
    """The bins of all outputs in one row of a box, then those in the next, in blocks of `BINS`.

    The last block of a row is filled up with its last bin.
    """

    channel: np.ndarray
    plane: np.ndarray  # where the pixels of a channel begin in its image


class PooledPlace(NamedTuple):
    """A block of bins of one box, and where all that it needs begins."""

    box: int  # in order
    row: int  # in the tables of boxes
    columns: int
    block: int
    own: int  # bins; the rest fill it up
    image: int  # in x
    output: int  # in y, those of the box
    width: int  # of the image


@exact_jit
def _rounded(value: float) -> float:
    """To a whole number, halves away from zero."""
    whole = np.trunc(value)
    if abs(value - whole) >= 0.5:
        return whole + (1.0 if value > 0.0 else -1.0)
    return whole


@exact_jit
def _place_bins(boxes: PooledBoxes, k: int, axis: int, edges: tuple, sizes: PooledSizes) -> int:
    """The pixels of one box along an axis, rounded at each step as in the definition; the most of a bin."""
    bins, extent, before = sizes.bins[axis], np.float64(sizes.extent[axis]), sizes.bins[0] * axis
    first, number, most = boxes.first[k], boxes.number[k], 0
    start = _rounded(edges[0]) * sizes.scale
    whole = (_rounded(edges[1]) + 1.0) * sizes.scale - start
    if not (np.isfinite(start) and np.isfinite(whole)):
        for bin_ in range(bins):
            first[before + bin_], number[before + bin_] = 0, -1
        return -1
    whole, edge = max(whole, LEAST_EXTENT), start
    for bin_ in range(bins):
        low = min(max(np.floor(edge), 0.0), extent)
        edge = (bin_ + 1.0) * whole / bins + start
        count = max(int(min(max(np.ceil(edge), 0.0), extent) - low), 0)
        at = uint64(before + bin_)
        first[at], number[at] = int(low), count
        most = max(most, count)
    return most


@rolled_jit
def pooled_box_items(
    start: int, stop: int, corners: np.ndarray, boxes: PooledBoxes, sizes: PooledSizes
) -> None:
    """Items are boxes in order."""
    lanes, wide, bins = _lanes(sizes), uint64(sizes.bins[1]), sizes.bins[0] + sizes.bins[1]
    for k in range(start, stop):
        box, first, number = boxes.order[k], boxes.first[k], boxes.number[k]
        down = _place_bins(boxes, k, 0, (corners[box, 1], corners[box, 3]), sizes)
        across = _place_bins(boxes, k, 1, (corners[box, 0], corners[box, 2]), sizes)
        boxes.turns[k] = -1 if down < 0 or across < 0 else -(-across // lanes)
        for at in range(uint64(bins), uint64(len(first))):
            first[at], number[at] = first[at - wide], number[at - wide]


def pooled_boxes(corners: Any, images: Any, sizes: PooledSizes, batch: int) -> PooledBoxes:
    """Where the boxes of a call lie."""
    order, number = np.argsort(images, kind="stable"), len(images)
    begin = np.searchsorted(images[order], np.arange(batch + 1))
    first, count = np.empty((2, number, sum(sizes.bins) + BINS - 1), np.int32)
    boxes = PooledBoxes(order, begin, first, count, np.empty(number, np.int32))
    pooled_box_items(0, number, kernel_input(corners.astype(np.float64)), boxes, sizes)
    return boxes


@lru_cache(maxsize=256)
def pooled_blocks(sizes: PooledSizes) -> PooledBlocks:
    """The blocks of an image."""
    (high, wide), (height, width) = sizes.bins, sizes.extent
    rows = np.arange(sizes.channels).reshape(-1, high, wide).swapaxes(0, 1).reshape(high, -1)
    channel = np.pad(rows, ((0, 0), (0, -rows.shape[1] % BINS)), mode="edge").reshape(-1)
    return PooledBlocks(channel, channel * (height * width))


@borrowing_jit
def _lanes(sizes: PooledSizes) -> int:
    return LANES if sizes.extent[1] >= LANES else 1


@borrowing_jit
def _place_of(item: int, blocks: PooledBlocks, sizes: PooledSizes) -> tuple:
    """An item is a block in an image: which image, and the place for a box of which nothing is known."""
    (high, wide), bins = sizes.bins, sizes.channels // sizes.bins[0]
    each = len(blocks.channel) // BINS
    image, block = item // each, item % each
    row, begin = block // (each // high), block % (each // high) * BINS
    first = image * sizes.channels * sizes.extent[0] * sizes.extent[1]
    columns, own = high + begin % wide, min(BINS, bins - begin)
    return image, PooledPlace(0, row, columns, block * BINS, own, first, 0, sizes.extent[1])


@borrowing_jit
def _in_box(place: PooledPlace, k: int, boxes: PooledBoxes, sizes: PooledSizes) -> PooledPlace:
    """The same place in the k-th box."""
    table, output = k * boxes.first.shape[1], boxes.order[k] * sizes.channels
    row, columns = table + place.row, table + place.columns
    return PooledPlace(k, row, columns, place.block, place.own, place.image, output, place.width)


@rolled_jit
def pooled_mean_items(
    start: int,
    stop: int,
    x: np.ndarray,
    y: np.ndarray,
    boxes: PooledBoxes,
    blocks: PooledBlocks,
    sizes: PooledSizes,
) -> None:
    """Items are blocks of bins: the means in each box."""
    narrow, zero = _lanes(sizes) == 1, zero_like(x)
    for item in range(start, stop):
        image, anywhere = _place_of(item, blocks, sizes)
        for k in range(boxes.begin[image], boxes.begin[image + 1]):
            place = _in_box(anywhere, k, boxes, sizes)
            if boxes.turns[k] < 0:
                for u in range(place.own):
                    number = boxes.number[k, anywhere.row] * boxes.number[k, anywhere.columns + u]
                    y[place.output + blocks.channel[place.block + u]] = zero / zero if number != 0 else zero
            elif narrow:
                write_means_narrow(x, y, boxes, blocks, place)
            else:
                write_means(x, y, boxes, blocks, place)


@rolled_jit
def pooled_spread_items(
    start: int,
    stop: int,
    grad: np.ndarray,
    grad_x: np.ndarray,
    boxes: PooledBoxes,
    blocks: PooledBlocks,
    sizes: PooledSizes,
) -> None:
    """Items are blocks of bins: what each pixel of their planes gets of one box after the other."""
    narrow, plane = _lanes(sizes) == 1, sizes.extent[0] * sizes.extent[1]
    for item in range(start, stop):
        image, anywhere = _place_of(item, blocks, sizes)
        for u in range(anywhere.own):
            clear(grad_x, anywhere.image + blocks.plane[anywhere.block + u], plane)
        for k in range(boxes.begin[image], boxes.begin[image + 1]):
            place = _in_box(anywhere, k, boxes, sizes)
            if boxes.turns[k] < 0:
                continue
            if narrow:
                spread_shares_narrow(grad_x, grad, boxes, blocks, place)
            else:
                spread_shares(grad_x, grad, boxes, blocks, place)
