"""Where the boxes of `roi_align` lie, and what is packed at once.

Boxes that share a window of an image are a group: all of an image, or where these are few and far between,
each by itself. What is packed is the windows of some groups, of some channels; of these a block of channels
lies side by side, pixel after pixel: a slot.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import borrowing_jit, exact_jit, kernel_input, rolled_jit

SLOT_CHANNELS = 64  # at most: the sums of a box's bins stay in the first levels of cache
REGION_BYTES = 8 * 1024 * 1024  # that are packed at once, unless a slot of one channel takes more
IMAGE, TOP, LEFT, ROWS, COLUMNS, BEFORE, FIRST = range(7)  # what is known of a group, see `RegionBoxes`


class RegionSizes(NamedTuple):
    """Sizes of a call, and how its boxes are sampled."""

    channels: int
    extent: tuple[int, int]
    bins: tuple[int, int]
    scale: float
    ratio: int  # samples of a bin; 0 for one a pixel
    aligned: bool


class RegionBoxes(NamedTuple):
    """Where R boxes lie.

    `spans` has for each, along y and then x, where it starts, the size of a bin, and its samples; a box that
    lies nowhere starts at NaN. `windows` has the rows and columns outside of which it reads no pixel, from
    and to. Groups are (image, top, left, rows, columns, pixels of those before, first of its boxes in order),
    and one behind the last.
    """

    order: np.ndarray  # (R,), image after image
    image: np.ndarray  # (R,)
    spans: np.ndarray  # (R, 6)
    windows: np.ndarray  # (R, 4)
    group: np.ndarray  # (R,), of the boxes in order
    groups: np.ndarray  # (R + 1, 7)


class RegionPart(NamedTuple):
    """What one call of a kernel works on: some groups and channels, in blocks."""

    group: int  # the first
    channel: int
    channels: int
    block: int  # channels of a slot, but for the last one
    blocks: int
    bands: int  # of the rows of a slot


@exact_jit
def _place_axis(boxes: RegionBoxes, box: int, axis: int, edges: tuple, sizes: RegionSizes) -> None:
    """The span and the window of a box along an axis, rounded at each step as in the definition."""
    half, bins, extent = 0.5 if sizes.aligned else 0.0, sizes.bins[axis], sizes.extent[axis]
    spans, windows = boxes.spans[box], boxes.windows[box]
    start = edges[0] * sizes.scale - half
    whole = (edges[1] * sizes.scale - half) - start
    if not (np.isfinite(start) and np.isfinite(whole)):
        spans[3 * axis] = np.nan
        windows[2 * axis], windows[2 * axis + 1] = 0, 1
        return
    if not sizes.aligned and whole < 1.0:
        whole = 1.0
    size = whole / bins
    spans[3 * axis], spans[3 * axis + 1] = start, size
    spans[3 * axis + 2] = np.float64(sizes.ratio) if sizes.ratio else np.ceil(size)
    # One more at either end, as positions are rounded.
    end, last = start + bins * size, extent - 1.0
    low = np.floor(min(max(min(start, end), 0.0), last)) - 1.0
    high = np.floor(min(max(max(start, end), 0.0), last)) + 3.0
    windows[2 * axis] = int(max(low, 0.0))
    windows[2 * axis + 1] = int(min(high, last + 1.0))


@borrowing_jit
def _gather(boxes: RegionBoxes, alone: bool) -> int:
    """Make groups of the boxes in order; returns how many there are."""
    number, windows, groups = 0, boxes.windows, boxes.groups
    for k in range(len(boxes.order)):
        box = boxes.order[k]
        image, window = boxes.image[box], windows[box]
        if alone or k == 0 or groups[number - 1, IMAGE] != image:
            own = groups[number]
            own[IMAGE], own[FIRST], own[TOP], own[LEFT] = image, k, window[0], window[2]
            own[ROWS], own[COLUMNS] = window[1] - window[0], window[3] - window[2]
            number += 1
        else:
            own = groups[number - 1]
            bottom = max(own[TOP] + own[ROWS], window[1])
            right = max(own[LEFT] + own[COLUMNS], window[3])
            own[TOP], own[LEFT] = min(own[TOP], window[0]), min(own[LEFT], window[2])
            own[ROWS], own[COLUMNS] = bottom - own[TOP], right - own[LEFT]
        boxes.group[k] = number - 1
    pixels = 0
    for k in range(number):
        groups[k, BEFORE] = pixels
        pixels += groups[k, ROWS] * groups[k, COLUMNS]
    groups[number, BEFORE], groups[number, FIRST] = pixels, len(boxes.order)
    return number


@borrowing_jit
def _pixels_read(spans: np.ndarray, sizes: RegionSizes, axis: int) -> float:
    """How many pixels the bins of a box read along an axis, about."""
    size, samples = abs(spans[3 * axis + 1]), spans[3 * axis + 2]
    return sizes.bins[axis] * max(0.0, min(2.0 * samples, min(size, float(sizes.extent[axis])) + 2.0))


@rolled_jit
def place_regions(corners: np.ndarray, boxes: RegionBoxes, sizes: RegionSizes, shared: bool) -> tuple:
    """Fill the record; returns how many groups there are, and how many pixels of a channel boxes read, about.

    No two groups are of one image if they are `shared`.
    """
    alone, read = 0, 0.0
    for box in range(len(corners)):
        x0, y0, x1, y1 = corners[box, 0], corners[box, 1], corners[box, 2], corners[box, 3]
        _place_axis(boxes, box, 0, (y0, y1), sizes)
        _place_axis(boxes, box, 1, (x0, x1), sizes)
        window, spans = boxes.windows[box], boxes.spans[box]
        if not (np.isnan(spans[0]) or np.isnan(spans[3])):
            read += _pixels_read(spans, sizes, 0) * _pixels_read(spans, sizes, 1)
        alone += (window[1] - window[0]) * (window[3] - window[2])
    number = _gather(boxes, False)
    if not shared and alone < boxes.groups[number, BEFORE]:
        number = _gather(boxes, True)
    return number, read


def region_boxes(corners: Any, images: Any, sizes: RegionSizes, *, shared: bool) -> tuple[RegionBoxes, float]:
    """The boxes of a call, whose groups are each of an image of its own if they are `shared`.

    Also how many pixels of a channel they read, about.
    """
    number = len(corners)
    boxes = RegionBoxes(
        np.argsort(images, kind="stable"),
        images,
        np.empty((number, 6)),
        np.empty((number, 4), np.int64),
        np.empty(number, np.int64),
        np.empty((number + 1, 7), np.int64),
    )
    groups, read = place_regions(kernel_input(corners.astype(np.float64)), boxes, sizes, shared)
    return boxes._replace(groups=boxes.groups[: groups + 1]), read


def make_parts(
    boxes: RegionBoxes, sizes: RegionSizes, itemsize: int
) -> Iterator[tuple[RegionPart, int, int]]:
    """The parts of a call, each with how many groups there are, and how many elements are packed."""
    before, most = boxes.groups[:, BEFORE], REGION_BYTES // itemsize
    begin, channels = 0, sizes.channels
    while begin < len(before) - 1:
        # As many groups as there is room for with all channels, or one with as many as there is room for.
        stop = int(np.searchsorted(before, before[begin] + most // channels, side="right")) - 1
        stop = max(stop, begin + 1)
        pixels = int(before[stop] - before[begin])
        room = most // pixels
        block = max(1, min(SLOT_CHANNELS, channels, room - room % 16 or room))  # whole vectors
        width = channels if channels <= room else room // block * block or 1
        for channel in range(0, channels, width):
            own = min(width, channels - channel)
            blocks = -(-own // block)
            bands = min(sizes.extent[0], -(-parallel.ITEMS // (blocks * (stop - begin))))
            yield RegionPart(begin, channel, own, block, blocks, bands), stop - begin, pixels * own
        begin = stop
