"""`ps_roi_pool`: means of pixels, and their adjoint, one plane of the images after the other."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import (
    borrowing_cached_jit,
    borrowing_jit,
    exact_jit,
    kernel_input,
    literal_jit,
    rolled_jit,
    zero_like,
)
from ..engine.pixels import clear

LEAST_EXTENT = 0.1  # of a box
LONG_ROW = 24  # pixels, from where on they are added as vectors
POOLED_COST = 64  # elementary operations in whose time an output is made, most of which find its pixels


class PooledSizes(NamedTuple):
    """Sizes of a call."""

    channels: int
    extent: tuple[int, int]
    bins: tuple[int, int]
    scale: float


class PooledBoxes(NamedTuple):
    """The pixels of R boxes, image after image: along each axis of each bin the first and how many.

    A box that lies nowhere has one pixel, of which there are -1.
    """

    order: np.ndarray  # (R,)
    begin: np.ndarray  # (N + 1,), of the boxes of each image
    first: np.ndarray  # (ph + pw, R)
    number: np.ndarray  # (ph + pw, R)


@exact_jit
def _rounded(value: float) -> float:
    """To a whole number, halves away from zero."""
    whole = np.trunc(value)
    if abs(value - whole) >= 0.5:
        return whole + (1.0 if value > 0.0 else -1.0)
    return whole


@exact_jit
def _place_bins(boxes: PooledBoxes, k: int, axis: int, edges: tuple, sizes: PooledSizes) -> None:
    """The pixels of one box along an axis, rounded at each step as in the definition."""
    bins, extent, before = sizes.bins[axis], np.float64(sizes.extent[axis]), sizes.bins[0] * axis
    start = _rounded(edges[0]) * sizes.scale
    whole = (_rounded(edges[1]) + 1.0) * sizes.scale - start
    if not (np.isfinite(start) and np.isfinite(whole)):
        for bin_ in range(bins):
            boxes.first[before + bin_, k], boxes.number[before + bin_, k] = 0, -1
        return
    whole = max(whole, LEAST_EXTENT)
    for bin_ in range(bins):
        low = np.floor(bin_ * whole / bins + start)
        high = np.ceil((bin_ + 1.0) * whole / bins + start)
        first = min(max(low, 0.0), extent)
        boxes.first[before + bin_, k] = int(first)
        boxes.number[before + bin_, k] = int(max(min(max(high, 0.0), extent) - first, 0.0))


@rolled_jit
def pooled_box_items(
    start: int, stop: int, corners: np.ndarray, boxes: PooledBoxes, sizes: PooledSizes
) -> None:
    """Items are boxes in order."""
    for k in range(start, stop):
        box = boxes.order[k]
        _place_bins(boxes, k, 0, (corners[box, 1], corners[box, 3]), sizes)
        _place_bins(boxes, k, 1, (corners[box, 0], corners[box, 2]), sizes)


def pooled_boxes(corners: Any, images: Any, sizes: PooledSizes, batch: int) -> PooledBoxes:
    """Where the boxes of a call lie."""
    order, number = np.argsort(images, kind="stable"), len(images)
    begin = np.searchsorted(images[order], np.arange(batch + 1))
    first, count = np.empty((2, sum(sizes.bins), number), np.int32)
    boxes = PooledBoxes(order, begin, first, count)
    pooled_box_items(0, number, kernel_input(corners.astype(np.float64)), boxes, sizes)
    return boxes


@literal_jit
def _short_row(x: np.ndarray, start: int, count: int) -> Any:
    """The sum of a few pixels, one after the other: vectors take longer to set up than to add."""
    total, at = zero_like(x), uint64(start)
    for b in range(uint64(count)):
        total += x[at + b]
    return total


@borrowing_jit
def _long_row(x: np.ndarray, start: int, count: int) -> Any:
    total, at = zero_like(x), uint64(start)
    for b in range(uint64(count)):
        total += x[at + b]
    return total


@borrowing_cached_jit
def pooled_mean_items(
    start: int, stop: int, x: np.ndarray, y: np.ndarray, boxes: PooledBoxes, sizes: PooledSizes
) -> None:
    """Items are planes: the mean of its bin in each box."""
    (height, width), (high, wide), zero = sizes.extent, sizes.bins, zero_like(x)
    for plane in range(start, stop):
        image, channel = plane // sizes.channels, plane % sizes.channels
        i, j = channel // wide % high, high + channel % wide
        for k in range(boxes.begin[image], boxes.begin[image + 1]):
            down, across, total = boxes.number[i, k], boxes.number[j, k], zero
            if (down < 0 and across != 0) or (across < 0 and down != 0):
                total = zero / zero
            elif down > 0 and across > 0:
                line = (plane * height + boxes.first[i, k]) * width + boxes.first[j, k]
                for _ in range(down):
                    total += _long_row(x, line, across) if across > LONG_ROW else _short_row(x, line, across)
                    line += width
                total /= down * across
            y[boxes.order[k] * sizes.channels + channel] = total


@borrowing_cached_jit
def pooled_spread_items(
    start: int, stop: int, grad: np.ndarray, grad_x: np.ndarray, boxes: PooledBoxes, sizes: PooledSizes
) -> None:
    """Items are planes: what each pixel gets of one box after the other."""
    (height, width), (high, wide) = sizes.extent, sizes.bins
    for plane in range(start, stop):
        image, channel = plane // sizes.channels, plane % sizes.channels
        i, j = channel // wide % high, high + channel % wide
        clear(grad_x, plane * height * width, height * width)
        for k in range(boxes.begin[image], boxes.begin[image + 1]):
            down, across = boxes.number[i, k], boxes.number[j, k]
            if down <= 0 or across <= 0:
                continue
            share = grad[boxes.order[k] * sizes.channels + channel] / grad.dtype.type(down * across)
            line = (plane * height + boxes.first[i, k]) * width + boxes.first[j, k]
            for _ in range(down):
                at = uint64(line)
                for b in range(uint64(across)):
                    grad_x[at + b] += share
                line += width
