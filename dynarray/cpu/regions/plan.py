"""Which channels are packed together, and which bins of which boxes read them.

What is packed together is a slot: some channels of one image, a fixed number of planes apart, and of these
the window that its boxes touch. The boxes of a slot are those of its image, or where these are few and far
between, a single one. The channels of `roi_align` are neighbours and all bins read them; each bin of
`ps_roi_pool` has channels of its own, as many planes apart as there are bins.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..._boxes import pooled_edges, sampled_spans
from ..engine import parallel
from .taps import BoxAxis

SLOT_CHANNELS = 64  # at most: the sums of a box's bins stay in the first levels of cache
PACKED_BYTES = 8 * 1024 * 1024  # that are packed at once, unless a slot of one channel takes more
RUN = 1024  # pixels that are packed at once, where rows follow each other


class RegionSizes(NamedTuple):
    """Sizes of a call."""

    channels: int
    outputs: int  # channels of the output
    height: int
    width: int
    apart: int  # planes between channels of a slot


class RegionSlots(NamedTuple):
    """Slots that are worked on at once; each array has an element for each of them."""

    image: np.ndarray
    channel: np.ndarray  # the first, of the images
    output: np.ndarray  # the first, of the outputs
    number: np.ndarray  # of channels
    bin: np.ndarray  # that reads them; -1: all do
    at: np.ndarray  # where it begins in packed memory
    top: np.ndarray  # the window
    left: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


class RegionItems(NamedTuple):
    """The boxes of each slot, ``box[first[slot]:stop[slot]]``, and what is worked on at once.

    For packing that is rows of a slot, for sums a box of a slot.
    """

    box: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    packed_slot: np.ndarray
    packed_row: np.ndarray  # the first
    packed_rows: np.ndarray
    summed_slot: np.ndarray
    summed_box: np.ndarray


class RegionPart(NamedTuple):
    """What one call of a kernel works on."""

    sizes: RegionSizes
    slots: RegionSlots
    items: RegionItems
    bands: int  # of the rows of a slot, for the backward pass


class _Groups(NamedTuple):
    """Boxes that share slots, ``box[first:stop]``, all of one image, and the window that they touch."""

    image: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    top: np.ndarray
    left: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """Of each window."""
        return self.rows * self.columns


def sampled_axis(low: Any, high: Any, bins: int, extent: int, **options: Any) -> BoxAxis:
    """An axis of `roi_align`."""
    spans = sampled_spans(low, high, bins, **options)
    end = spans.start + bins * spans.size
    with np.errstate(invalid="ignore"):
        touched = [np.floor(np.minimum(spans.start, end)), np.floor(np.maximum(spans.start, end)) + 2]
    none = np.empty(0, np.int64)
    return _with_touched(*spans, none, none, touched, bins, extent)


def pooled_axis(low: Any, high: Any, bins: int, extent: int, **options: Any) -> BoxAxis:
    """An axis of `ps_roi_pool`."""
    first, stop, lost = pooled_edges(low, high, bins, extent, **options)
    start = np.where(lost, np.nan, 0.0)
    edges = np.ascontiguousarray(first).reshape(-1), np.ascontiguousarray(stop).reshape(-1)
    return _with_touched(start, start, start, *edges, [first.min(1), stop.max(1)], bins, extent)


def _with_touched(
    start: Any, size: Any, count: Any, first: Any, stop: Any, touched: list, bins: int, extent: int
) -> BoxAxis:
    lost = np.isnan(start)
    low, high = (np.where(lost, 0, np.clip(each, 0, extent)).astype(np.int64) for each in touched)
    # Some pixel is there for NaN, and for boxes between the last pixel and the end.
    low = np.minimum(low, extent - 1)
    return BoxAxis(start, size, count, first, stop, low, np.maximum(high, low + 1), bins, extent)


def _groups(images: Any, first: Any, axes: tuple[BoxAxis, BoxAxis], box: Any) -> _Groups:
    """Groups that begin at `first` among the boxes in order."""
    windows = []
    for axis in axes:
        low = np.minimum.reduceat(axis.low[box], first)
        windows.append((low, np.maximum.reduceat(axis.high[box], first) - low))
    (top, rows), (left, columns) = windows
    return _Groups(images[box[first]], first, np.append(first[1:], len(box)), top, left, rows, columns)


def make_parts(
    x: Any, images: Any, axes: tuple[BoxAxis, BoxAxis], *, by_position: bool, owners: bool
) -> Iterator[tuple[RegionPart, int]]:
    """The parts of a call, each with the elements that are packed.

    With `owners` no two slots have a pixel in common.
    """
    bins = axes[0].bins * axes[1].bins
    sizes = RegionSizes(x.shape[1], x.shape[1] // (bins if by_position else 1), *x.shape[2:], bins)
    sizes = sizes if by_position else sizes._replace(apart=1)
    box = np.argsort(images, kind="stable")
    groups = _groups(images, np.flatnonzero(np.diff(images[box], prepend=-1)), axes, box)
    if not owners:
        single = _groups(images, np.arange(len(box)), axes, box)
        groups = single if single.pixels.sum() < groups.pixels.sum() else groups
    slots, which = _slots(sizes, groups, bins if by_position else 0, x.itemsize)
    ends = np.cumsum(slots.number * slots.rows * slots.columns)
    most, begin, before = PACKED_BYTES // x.itemsize, 0, 0
    while begin < len(ends):
        stop = max(begin + 1, int(np.searchsorted(ends, before + most, side="right")))
        part = RegionSlots(*(each[begin:stop] for each in slots))
        part = part._replace(at=np.append(0, ends[begin : stop - 1] - before))
        members = groups.first[which[begin:stop]], groups.stop[which[begin:stop]]
        bands = min(int(part.rows.max()), -(-parallel.ITEMS // (stop - begin)))
        yield RegionPart(sizes, part, _items(sizes, part, box, *members), bands), int(ends[stop - 1]) - before
        begin, before = stop, int(ends[stop - 1])


def _items(sizes: RegionSizes, slots: RegionSlots, box: Any, first: Any, stop: Any) -> RegionItems:
    whole_rows = slots.columns == sizes.width
    step = np.where(whole_rows, np.maximum(1, RUN // slots.columns), 1)
    packed_slot, run = _counted(-(-slots.rows // step))
    row = run * step[packed_slot]
    rows = np.minimum(step[packed_slot], slots.rows[packed_slot] - row)
    summed_slot, each = _counted(stop - first)
    summed = summed_slot, box[first[summed_slot] + each]
    return RegionItems(box, first, stop, packed_slot, row, rows, *summed)


def _counted(numbers: Any) -> tuple[Any, Any]:
    """For so many of each: which one, and the how-manieth of it."""
    which = np.repeat(np.arange(len(numbers)), numbers)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(numbers) - numbers, numbers)


def _slots(sizes: RegionSizes, groups: _Groups, bins: int, itemsize: int) -> tuple[RegionSlots, Any]:
    """All slots of a call, and the group of each."""
    most = max(1, min(SLOT_CHANNELS, PACKED_BYTES // (int(groups.pixels.max()) * itemsize)))
    which = np.arange(bins) if bins else np.array([-1])
    group, bin_, output = (
        each.reshape(-1)
        for each in np.meshgrid(
            np.arange(len(groups.image)), which, np.arange(0, sizes.outputs, most), indexing="ij"
        )
    )
    channel = output * sizes.apart + np.maximum(bin_, 0)
    number = np.minimum(most, sizes.outputs - output)
    window = (each[group] for each in groups[3:])
    return RegionSlots(groups.image[group], channel, output, number, bin_, group, *window), group
