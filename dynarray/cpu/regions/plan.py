"""Which channels are packed together, and which bins of which boxes read them.

What is packed together is a slot: some channels of one image, a fixed number of planes apart, of which the
window that boxes touch is there. The channels of `roi_align` are neighbours and all bins read them; each bin
of `ps_roi_pool` has channels of its own, as many planes apart as there are bins.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..._boxes import pooled_edges, sampled_spans
from ..engine import parallel
from .taps import BoxAxis

SLOT_CHANNELS = 64  # at most: the sums of a box's bins stay in the first levels of cache
PACKED_BYTES = 8 * 1024 * 1024  # that are packed at once, unless a slot of one channel takes more


class RegionSizes(NamedTuple):
    """Sizes of a call, and the window of its images that is packed."""

    channels: int
    outputs: int  # channels of the output
    height: int
    width: int
    apart: int  # planes between channels of a slot
    top: int
    left: int
    rows: int
    columns: int


class RegionSlots(NamedTuple):
    """Slots that are worked on at once; each array has an element for each of them."""

    image: np.ndarray
    channel: np.ndarray  # the first, of the images
    output: np.ndarray  # the first, of the outputs
    number: np.ndarray  # of channels
    bin: np.ndarray  # that reads them; -1: all do
    at: np.ndarray  # where it begins in packed memory


class RegionItems(NamedTuple):
    """The boxes of each slot: ``box[first[slot]:stop[slot]]``, and the same one by one."""

    box: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    slots: np.ndarray  # of each pair of a slot and one of its boxes
    boxes: np.ndarray


class RegionPart(NamedTuple):
    """What one call of a kernel works on."""

    sizes: RegionSizes
    slots: RegionSlots
    items: RegionItems
    bands: int  # of the rows of a slot, for the backward pass


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


def make_parts(
    x: Any, images: Any, axes: tuple[BoxAxis, BoxAxis], *, by_position: bool
) -> Iterator[tuple[RegionPart, int]]:
    """The parts of a call, each with the elements that are packed."""
    y, x_axis = axes
    bins = y.bins * x_axis.bins if by_position else 1
    outputs = x.shape[1] // bins
    window = [(int(axis.low.min()), int(axis.high.max())) for axis in axes]
    (top, bottom), (left, right) = window
    rows, columns = bottom - top, right - left
    sizes = RegionSizes(x.shape[1], outputs, *x.shape[2:], bins, top, left, rows, columns)
    slots = _slots(sizes, images, bins if by_position else 0, x.itemsize)
    number, pixels = slots[3], rows * columns
    box = np.argsort(images, kind="stable")
    ends = np.searchsorted(images[box], np.arange(x.shape[0]), side="right")
    most, begin = max(1, PACKED_BYTES // (pixels * x.itemsize)), 0
    while begin < len(number):
        at = np.cumsum(number[begin:]) - number[begin]
        end = begin + max(1, int(np.searchsorted(at + number[begin:], most + 1)))
        chosen = [each[begin:end] for each in slots]
        part = RegionSlots(*chosen, np.cumsum(chosen[3]) * pixels - chosen[3] * pixels)
        stop = ends[part.image]
        first = np.where(part.image > 0, ends[part.image - 1], 0)
        which = np.repeat(np.arange(len(first)), stop - first)
        each = np.arange(len(which)) - np.repeat(np.cumsum(stop - first) - (stop - first), stop - first)
        items = RegionItems(box, first, stop, which, box[first[which] + each])
        bands = min(rows, -(-parallel.ITEMS // len(first)))
        yield RegionPart(sizes, part, items, bands), int(part.number.sum()) * pixels
        begin = end


def _slots(sizes: RegionSizes, images: Any, bins: int, itemsize: int) -> list[np.ndarray]:
    """All slots of a call: image, first channel, first output, channels, bin."""
    most = max(1, min(SLOT_CHANNELS, PACKED_BYTES // (sizes.rows * sizes.columns * itemsize)))
    first = np.arange(0, sizes.outputs, most)
    which = np.arange(bins) if bins else np.array([-1])
    image, bin_, output = (
        each.reshape(-1) for each in np.meshgrid(np.unique(images), which, first, indexing="ij")
    )
    channel = output * sizes.apart + np.maximum(bin_, 0)
    return [image, channel, output, np.minimum(most, sizes.outputs - output), bin_]
