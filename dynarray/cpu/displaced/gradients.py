"""The kernels of the gradients of `displaced_conv2d` by weight and displacement, on the CPU."""

import numpy as np

from ..engine.compile import ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.pixels import clear, copy
from ..engine.vectors import REGISTER_BYTES, in_row
from . import kernels
from .kernels import UnitSources, UnitTargets
from .plan import UnitPlanes, Units, UnitScratch
from .tiles import UNIT_ROWS, UNIT_SUMS, UnitPointer, correlate_units

CORRELATED_TARGETS = 32  # channels of output gradients that a work item takes
CORRELATED_TILES = 4  # whose sums are added up, lane by lane, before they go into float64


@borrowing_cached_jit
def correlate_unit_items(
    start: int,
    stop: int,
    scratch: UnitScratch,
    planes: UnitPlanes,
    grad_output: np.ndarray,
    units: Units,
    sums: np.ndarray,
    first_target: int,
) -> None:
    """Items: (chunk of target channels, a few source channels). Adds to sums (T, S, G, UNIT_SUMS).

    A lane adds up the rows of a tile, then some tiles, in the precision of the input, and these go into
    float64: the chains are as short as those of pairwise summation.
    """
    layout, block, breadth = planes.layout, planes.block, kernels.unit_breadth(planes.pixels)
    parts, tiles_across = -(-block.sources // layout.channels), -(-layout.x.size // breadth)
    lane_sums, tile = UnitPointer(scratch.sums, 0), UnitPointer(scratch.tiles, 0)
    top, bottom = block.tile * UNIT_ROWS, (block.tile + block.tiles) * UNIT_ROWS
    kernels.fill_places(scratch.places, units, layout)
    for item in range(start, stop):
        begin, channel = item // parts * CORRELATED_TARGETS, item % parts * layout.channels
        end = min(begin + CORRELATED_TARGETS, len(units.y))
        if layout.free:  # what units read moves with the tile
            sources = kernels.read_together(channel, ZERO, units, planes)
            kernels.place_units(scratch, units, (begin, end), sources, (ZERO, ZERO), planes)
        for image in range(block.images):
            sources = kernels.read_together(channel, image, units, planes)
            for t in range(begin, end):
                grad_plane, chain = grad_output[block.image + image, first_target + t], 0
                clear(scratch.sums, 0, scratch.sums.size)
                for row in range(top, bottom, UNIT_ROWS):
                    for column in range(0, layout.x.size, breadth):
                        _load_tile(scratch.tiles, grad_plane, row, column, breadth)
                        at, placed = sources.at + row * layout.stride + column, (t - begin) * sources.units
                        if not layout.free:
                            kernels.place_units(scratch, units, (t, t + 1), sources, (row, column), planes)
                            at, placed = sources.at, 0
                        pixels, offsets = UnitPointer(planes.pixels, at), UnitPointer(scratch.offsets, placed)
                        correlate_units(lane_sums, tile, pixels, layout.stride, offsets, sources.units)
                    chain += 1
                    if (chain + 1) * tiles_across > CORRELATED_TILES or row + UNIT_ROWS >= bottom:
                        _flush(sums, scratch.sums, t, sources, units)
                        chain = 0


@borrowing_jit
def _load_tile(tile: np.ndarray, grad_plane: np.ndarray, row: int, column: int, breadth: int) -> None:
    """The tile of the gradient at (row, column), zeros outside."""
    rows, columns = min(UNIT_ROWS, grad_plane.shape[0] - row), min(breadth, grad_plane.shape[1] - column)
    if rows < UNIT_ROWS or columns < breadth:
        clear(tile, 0, tile.size)
    for i in range(rows):
        copy(tile, i * breadth, grad_plane[row + i], column, columns)


@borrowing_jit
def _flush(sums: np.ndarray, lane_sums: np.ndarray, target: int, sources: UnitSources, units: Units) -> None:
    """Move what lanes have added up into float64."""
    lanes, (all_sources, per_source) = REGISTER_BYTES // lane_sums.itemsize, units.y.shape[1:]
    flat, first = in_row(sums), (target * all_sources + sources.first) * per_source
    for k in range(sources.units):
        for kind in range(UNIT_SUMS):
            total, begin = 0.0, np.uint64((k * UNIT_SUMS + kind) * lanes)
            for lane in range(np.uint64(lanes)):
                total += float(lane_sums[begin + lane])
                lane_sums[begin + lane] = 0
            flat[(first + k) * UNIT_SUMS + kind] += total


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
