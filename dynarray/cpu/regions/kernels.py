"""Packing, sums over the pixels of bins, and their adjoint."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import FALSE, TRUE, ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.gemm import Matrix
from ..engine.pixels import clear, transpose
from .plan import RegionPart
from .taps import BoxAxis, Taps, find_taps, taps_size


class RegionScratch(NamedTuple):
    """Memory of a thread: sizes, or the arrays."""

    rows: Taps
    columns: Taps
    sums: Any  # a row of channels for each bin of a box


def region_scratch(axes: tuple[BoxAxis, BoxAxis], part: RegionPart) -> RegionScratch:
    """What a thread needs."""
    rows, columns = (taps_size(axis.bins, axis.extent) for axis in axes)
    bins = axes[0].bins * axes[1].bins if part.slots.bin[0] < 0 else 1
    return RegionScratch(rows, columns, bins * int(part.slots.number.max()))


@borrowing_jit
def _source(part: RegionPart, slot: int, row: int) -> int:
    """Where a row of the window begins in the first channel of a slot."""
    sizes, slots = part.sizes, part.slots
    plane = slots.image[slot] * sizes.channels + slots.channel[slot]
    return (plane * sizes.height + sizes.top + row) * sizes.width + sizes.left


@borrowing_cached_jit
def region_pack_items(start: int, stop: int, x: np.ndarray, packed: np.ndarray, part: RegionPart) -> None:
    """Items are rows of slots: channels side by side, pixel after pixel."""
    sizes, slots = part.sizes, part.slots
    plane = sizes.apart * sizes.height * sizes.width
    for item in range(start, stop):
        slot, row = item // sizes.rows, item % sizes.rows
        number = slots.number[slot]
        target = Matrix(packed, slots.at[slot] + row * sizes.columns * number, number)
        transpose(target, Matrix(x, _source(part, slot, row), plane), number, sizes.columns)


@borrowing_jit
def _bins_of(part: RegionPart, slot: int, axes: tuple) -> tuple:
    """The bins that read a slot: rows of them from and to, and columns."""
    only = part.slots.bin[slot]
    if only < 0:
        return ZERO, axes[0].bins, ZERO, axes[1].bins
    i, j = only // axes[1].bins, only % axes[1].bins
    return i, i + 1, j, j + 1


@borrowing_jit
def _outputs(part: RegionPart, slot: int, box: int, axes: tuple) -> int:
    """Where the outputs of a slot and a box begin."""
    bins = axes[0].bins * axes[1].bins
    return (box * part.sizes.outputs + part.slots.output[slot]) * bins + max(part.slots.bin[slot], 0)


@borrowing_cached_jit
def region_pool_items(
    start: int,
    stop: int,
    scratch: RegionScratch,
    packed: np.ndarray,
    y: np.ndarray,
    axes: tuple,
    part: RegionPart,
) -> None:
    """Items are boxes, slot after slot: the sums of all bins, written channel by channel."""
    sizes, slots, sums = part.sizes, part.slots, scratch.sums
    rows, columns, bins = scratch.rows, scratch.columns, axes[0].bins * axes[1].bins
    for item in range(start, stop):
        slot, box = part.items.slots[item], part.items.boxes[item]
        number = uint64(slots.number[slot])
        top, bottom, left, right = _bins_of(part, slot, axes)
        find_taps(rows, axes[0], box, top, bottom, FALSE)
        find_taps(columns, axes[1], box, left, right, FALSE)
        count = (bottom - top) * (right - left)
        clear(sums, 0, count * slots.number[slot])
        for k in range(count):
            i, j, to = k // (right - left), k % (right - left), uint64(k * slots.number[slot])
            for a in range(rows.begin[i], rows.begin[i + 1]):
                line = slots.at[slot] + (rows.pixel[a] - sizes.top) * sizes.columns * slots.number[slot]
                for b in range(columns.begin[j], columns.begin[j + 1]):
                    weight = rows.weight[a] * columns.weight[b]
                    at = uint64(line + (columns.pixel[b] - sizes.left) * slots.number[slot])
                    for c in range(number):
                        sums[to + c] += weight * packed[at + c]
        target = Matrix(y, _outputs(part, slot, box, axes), bins)
        transpose(target, Matrix(sums, ZERO, slots.number[slot]), count, slots.number[slot])


@borrowing_cached_jit
def region_spread_items(
    start: int,
    stop: int,
    scratch: RegionScratch,
    packed: np.ndarray,
    grad: np.ndarray,
    grad_x: np.ndarray,
    axes: tuple,
    part: RegionPart,
) -> None:
    """Items are bands of rows of slots: what each pixel gets of one box after the other."""
    sizes, slots, items = part.sizes, part.slots, part.items
    plane = sizes.apart * sizes.height * sizes.width
    for item in range(start, stop):
        slot, band = item // part.bands, item % part.bands
        number = slots.number[slot]
        first, end = sizes.rows * band // part.bands, sizes.rows * (band + 1) // part.bands
        line = sizes.columns * number
        clear(packed, slots.at[slot] + first * line, (end - first) * line)
        for k in range(items.first[slot], items.stop[slot]):
            box = items.box[k]
            if axes[0].low[box] < sizes.top + end and axes[0].high[box] > sizes.top + first:
                _spread_box(scratch, packed, grad, axes, part, (slot, box, first, end))
        for row in range(first, end):
            source = Matrix(packed, slots.at[slot] + row * line, number)
            target = Matrix(grad_x, _source(part, slot, row), plane)
            transpose(target, source, sizes.columns, number)


@borrowing_jit
def _spread_box(
    scratch: RegionScratch,
    packed: np.ndarray,
    grad: np.ndarray,
    axes: tuple,
    part: RegionPart,
    place: tuple,
) -> None:
    """Add the gradients of a box's bins to the pixels that they were made from, in one band of rows."""
    slot, box, first, end = place
    sizes, slots, sums = part.sizes, part.slots, scratch.sums
    rows, columns, bins = scratch.rows, scratch.columns, axes[0].bins * axes[1].bins
    count, number = slots.number[slot], uint64(slots.number[slot])
    top, bottom, left, right = _bins_of(part, slot, axes)
    find_taps(rows, axes[0], box, top, bottom, TRUE)
    find_taps(columns, axes[1], box, left, right, TRUE)
    across = right - left
    source = Matrix(grad, _outputs(part, slot, box, axes), bins)
    transpose(Matrix(sums, ZERO, count), source, count, (bottom - top) * across)
    for i in range(bottom - top):
        for a in range(rows.begin[i], rows.begin[i + 1]):
            row = rows.pixel[a] - sizes.top
            if row < first or row >= end:
                continue
            line = slots.at[slot] + row * sizes.columns * count
            for j in range(across):
                own = uint64((i * across + j) * count)
                for b in range(columns.begin[j], columns.begin[j + 1]):
                    weight = rows.weight[a] * columns.weight[b]
                    at = uint64(line + (columns.pixel[b] - sizes.left) * count)
                    for c in range(number):
                        packed[at + c] += weight * sums[own + c]
