"""The kernels of the gradients of `displaced_conv2d` by weight and displacement, on the CPU."""

import numpy as np

from ..engine.compile import ZERO, borrowing_cached_jit
from ..engine.pixels import clear
from ..engine.vectors import in_row
from . import kernels
from .kernels import UnitTargets
from .plan import UnitPlanes, Units, UnitScratch
from .tiles import (
    UNIT_ROWS,
    UNIT_SUMS,
    UnitPointer,
    correlate_units,
    correlate_units_in_cells,
    flush_units,
)

CORRELATED_TARGETS = 32  # channels of output gradients that a work item takes
CORRELATED_TILES = 4  # whose sums are added up, lane by lane, before they go into float64


@borrowing_cached_jit
def correlate_unit_items(
    start: int,
    stop: int,
    scratch: UnitScratch,
    planes: UnitPlanes,
    grads: UnitPlanes,
    units: Units,
    sums: np.ndarray,
    first: int,
) -> None:
    """Items: (chunk of target channels, a few source channels). Adds to sums (T, S, G, UNIT_SUMS).

    The planes of `grads` are those of the target channels from the `first` on. A lane adds up the rows of a
    tile, then some tiles, in the precision of the input, and these go into float64: the chains are as short
    as those of pairwise summation.
    """
    layout, block, breadth = planes.layout, planes.block, kernels.unit_breadth(planes.pixels)
    parts, tiles_across, own = -(-block.sources // layout.channels), layout.x.tiles, grads.layout
    lane_sums, (_, all_sources, per_source) = UnitPointer(scratch.sums, 0), units.y.shape
    kernels.fill_places(scratch.places, units, layout)
    for item in range(start, stop):
        begin, channel = first + item // parts * CORRELATED_TARGETS, item % parts * layout.channels
        end = min(begin + CORRELATED_TARGETS, first + grads.block.sources)
        if layout.free:  # what units read moves with the tile
            sources = kernels.read_together(channel, ZERO, units, planes)
            kernels.place_units(scratch, units, (begin, end), sources, (ZERO, ZERO), planes)
        for image in range(block.images):
            sources = kernels.read_together(channel, image, units, planes)
            for t in range(begin, end):
                chain, plane = 0, (image * grads.block.sources + t - first) * own.plane
                to = (t * all_sources + sources.first) * per_source * UNIT_SUMS
                clear(scratch.sums, 0, scratch.sums.size)
                for turn in range(block.tiles):
                    row = (block.tile + turn) * UNIT_ROWS
                    for column in range(0, tiles_across * breadth, breadth):
                        at, placed = sources.at + row * layout.stride + column, (t - begin) * sources.units
                        if not layout.free:
                            kernels.place_units(scratch, units, (t, t + 1), sources, (row, column), planes)
                            at, placed = sources.at, 0
                        tile = UnitPointer(grads.pixels, plane + turn * UNIT_ROWS * own.stride + column)
                        pixels, offsets = UnitPointer(planes.pixels, at), UnitPointer(scratch.offsets, placed)
                        strides = own.stride, layout.stride
                        if layout.cells.step == 1:
                            correlate_units(lane_sums, tile, pixels, strides, offsets, sources.units)
                        else:
                            correlate_units_in_cells(lane_sums, tile, pixels, strides, offsets, sources.units)
                    chain += 1
                    if (chain + 1) * tiles_across > CORRELATED_TILES or turn + 1 == block.tiles:
                        flush_units(scratch.sums, in_row(sums), to, sources.units)
                        chain = 0


@borrowing_cached_jit
def sum_channel_items(start: int, stop: int, grad_output: np.ndarray, totals: np.ndarray) -> None:
    """Items: channels. The sums of their pixels."""
    images, channels, height, width = grad_output.shape
    flat, pixels = in_row(grad_output), height * width
    for item in range(start, stop):
        for image in range(images):
            begin, total = np.uint64((image * channels + item) * pixels), 0.0
            for j in range(np.uint64(pixels)):
                total += float(flat[begin + j])
            totals[item] += total


@borrowing_cached_jit
def finish_unit_items(
    start: int, stop: int, sums: np.ndarray, targets: UnitTargets, kind: int, result: np.ndarray
) -> None:
    """Items: target channels. result[o, c, g, kind - 1], or [o, c, g, 0], from the sums of a unit.

    The value of what it reads (kind 0), its derivatives by the displacement (1, 2), or, where the planes are
    derivatives themselves, the value once more (3, 4); all but the first are times the weight.
    """
    weight, displacement, size = targets.parameters
    for item in range(start, stop):
        o = targets.first + item
        for c in range(weight.shape[1]):
            for g in range(weight.shape[2]):
                upper, upper_right, lower, lower_right = sums[item, c, g]
                dy, dx = displacement[o, c, g, 0], displacement[o, c, g, 1]
                _, y, _, x = kernels.split_displacement(dy, dx, size)
                upper_slope, lower_slope = upper_right - upper, lower_right - lower
                upper, lower = upper + x * upper_slope, lower + x * lower_slope
                w = weight[o, c, g]
                if kind == 0:
                    result[o, c, g, 0] = (1 - y) * upper + y * lower
                elif kind == 1:
                    result[o, c, g, 0] = w * (lower - upper)
                elif kind == 2:
                    result[o, c, g, 1] = w * ((1 - y) * upper_slope + y * lower_slope)
                else:
                    result[o, c, g, kind - 3] = w * ((1 - y) * upper + y * lower)
