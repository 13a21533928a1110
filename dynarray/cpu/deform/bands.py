"""Few channels, backward: lanes are positions, and pixels of up to four channels lie side by side.

Items are runs of bands: each adds to a gradient of the image of its own, which has the rows that its points
reach. Points mostly reach a few rows only, so that together these are little more than the image.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import FALSE, ZERO, borrowing_jit, cached_jit, zero_like
from ..engine.gemm import TILE_ROW_BYTES, TILE_ROWS, Matrix, RightStrips, multiply, whole
from ..engine.pixels import clear, copy, transpose
from ..engine.products import Extent, Factor, Target, sum_products
from ..engine.vectors import REGISTER_BYTES
from .gradients import CHAIN_TILES, add_weights, flush_weights
from .planes import (
    PlanesInputs,
    PlanesPart,
    PlanesScratch,
    band_pixels,
    fill_rows,
    first_output,
    place_of,
    set_of,
    vectors_of,
    weights_in_runs,
)
from .points import DeformSizes, PointArrays, offset_by_x, place_points, set_up_tap
from .rows import (
    GATHERED_BYTES,
    GradientRows,
    PointPlane,
    differentiate_row,
    find_bounds,
    pull_row,
    spread_rows,
)


class BandsGradients(NamedTuple):
    """What the backward pass writes; arrays that are not wanted have no elements."""

    image: np.ndarray  # of each band its rows, of one set of channels after the other
    bands: np.ndarray  # of each: first row in the ring, row behind the last one, where it begins in `image`
    side_by_side: int  # channels of a pixel
    weights: np.ndarray  # one slot for each share, in double precision
    points: PointArrays
    shares: int  # runs of bands


class Bounds(NamedTuple):
    """Memory of a thread."""

    values: Any


class _Tap(NamedTuple):
    """Points that are worked on: those of a tap at the positions of a tile."""

    band: int
    image: int  # in the part
    group: int
    tap: int
    first: int
    number: int  # of positions


@borrowing_jit
def _tiles_of(part: PlanesPart, band: int) -> tuple:
    """The image of a band, in the part, and its tiles, from and to."""
    image, number = band // part.splits, band % part.splits
    return image, part.per_image * number // part.splits, part.per_image * (number + 1) // part.splits


@cached_jit
def bands_reach_items(
    start: int, stop: int, scratch: Bounds, offset: np.ndarray, reach: np.ndarray, part: PlanesPart
) -> None:
    """Items are bands: the first and the last row that their points may lie at."""
    sizes, grid, bounds = part.sizes, part.sizes.grid, scratch.values
    for item in range(start, stop):
        image, tile, end = _tiles_of(part, item)
        first, n = tile * part.size, part.first_image + image
        count = min(end * part.size, sizes.positions) - first
        top = first // grid.width * grid.stride[0] - grid.padding[0]
        bottom = (first + count - 1) // grid.width * grid.stride[0] - grid.padding[0]
        low, high = np.inf, -np.inf
        for plane in range(sizes.offset_groups * sizes.taps):
            bounds[0], bounds[1] = np.inf, -np.inf
            at = 2 * (n * sizes.offset_groups * sizes.taps + plane) * sizes.positions + first
            find_bounds(offset, at, bounds, count)
            step = plane % sizes.taps // grid.kernel_w * grid.dilation[0]
            low = min(low, np.float64(top + step) + np.float64(bounds[0]))
            high = max(high, np.float64(bottom + step) + np.float64(bounds[1]))
        reach[2 * item], reach[2 * item + 1] = low, high


@borrowing_jit
def _spread_tap(
    scratch: PlanesScratch,
    grads: BandsGradients,
    part: PlanesPart,
    of: _Tap,
    at: int,
    distance: int,
) -> None:
    """To the gradient of the image what the points of a tap add."""
    image, size = part.sizes.image, grads.side_by_side
    channel, channels = set_of(part, of.group, of.tap)
    low, high, begin = grads.bands[3 * of.band], grads.bands[3 * of.band + 1], grads.bands[3 * of.band + 2]
    pixels, sets = band_pixels(image, low, high), -(-channels // size)
    above, last = (0, image.outside) if image.line else (low * image.pitch, high * image.pitch)
    for number in range(sets):
        start = begin + ((channel // channels * sets + number) * pixels - above) * size
        rows = GradientRows(at + number * size * distance, distance, min(size, channels - number * size))
        plane = PointPlane(grads.image, start, last, part.size, image.line)
        spread_rows(plane, scratch.points, scratch.gradients, rows, scratch.corner, of.number, size)


@borrowing_jit
def _pull_back_tap(
    scratch: PlanesScratch,
    inputs: PlanesInputs,
    grads: BandsGradients,
    part: PlanesPart,
    of: _Tap,
    at: int,
    distance: int,
) -> None:
    """From gradients of samples, from `at` on, and `distance` apart, those of pixels and points."""
    sizes, points, room = part.sizes, scratch.points, part.size
    n, vectors = part.first_image + of.image, vectors_of(of.number, scratch.columns)
    channel, channels = set_of(part, of.group, of.tap)
    set_up_tap(points, inputs.points, sizes, (n, of.group, of.tap), ZERO, of.first, of.number)
    clear(scratch.sums, 0, 4 * room)
    for c in range(channels):
        plane = (of.image * sizes.channels + channel + c) * sizes.image.pixels
        source = PointPlane(inputs.packed, plane, ZERO, room, sizes.image.line)
        place, border = at + c * distance, sizes.image.border
        pull_row(source, points, scratch.columns, scratch.gradients, place, scratch.sums, vectors, border)
    if grads.image.size:
        _spread_tap(scratch, grads, part, of, at, distance)
    differentiate_row(scratch.sums, points, room, vectors)
    plane = (n * sizes.offset_groups + of.group) * sizes.taps + of.tap
    x_at = offset_by_x(sizes, plane) + of.first
    apart = vectors * (GATHERED_BYTES // scratch.sums.itemsize)  # as rows of sums lie
    if grads.points.offset.size:
        if sizes.coordinates == 2:
            copy(grads.points.offset, x_at - sizes.positions, scratch.sums, 0, of.number)
        copy(grads.points.offset, x_at, scratch.sums, apart, of.number)
    if grads.points.mask.size:
        copy(grads.points.mask, plane * sizes.positions + of.first, scratch.sums, 2 * apart, of.number)


@borrowing_jit
def _clear_band(grads: BandsGradients, part: PlanesPart, band: int) -> None:
    """Zeros for all that the points of a band add to."""
    if grads.image.size:
        low, high, begin = grads.bands[3 * band], grads.bands[3 * band + 1], grads.bands[3 * band + 2]
        sets = part.sets * -(-(part.sizes.channels // part.sets) // grads.side_by_side)
        clear(grads.image, begin, sets * band_pixels(part.sizes.image, low, high) * grads.side_by_side)


@borrowing_jit
def _pull_back_columns(
    scratch: PlanesScratch,
    inputs: PlanesInputs,
    grads: BandsGradients,
    part: PlanesPart,
    band: int,
    tile: tuple,
) -> None:
    """A tile of `deform_conv2d`: gradients of columns, and from these those of pixels and points."""
    sizes, room, (image, first, count) = part.sizes, part.size, tile
    outputs, depth, channels = sizes.group_outputs, sizes.group_channels * sizes.taps, sizes.channels
    width = TILE_ROW_BYTES // scratch.columns.itemsize
    panels, across = whole(depth, TILE_ROWS) * outputs, whole(count, width)
    for group in range(channels // sizes.group_channels):
        multiply(
            Matrix(scratch.gradients, group * depth * room, room),
            Matrix(inputs.weights, group * panels, outputs * TILE_ROWS),
            RightStrips(scratch.by_output, group * outputs * room, width, scratch.rows[:outputs]),
            (depth, across),
            scratch.corner,
            FALSE,
        )
    place_points(scratch.points, sizes.grid, first, count)
    per_points = channels // sizes.offset_groups
    for group in range(sizes.offset_groups):
        for tap in range(sizes.taps):
            at = (group * per_points * sizes.taps + tap) * room
            of = _Tap(band, image, group, tap, first, count)
            _pull_back_tap(scratch, inputs, grads, part, of, at, sizes.taps * room)


@borrowing_jit
def _add_runs(scratch: PlanesScratch, part: PlanesPart, count: int, add: bool) -> None:
    """The same as sums of each lane of a strip: few columns would fill no strip of their own."""
    sizes, room, width = part.sizes, part.size, TILE_ROW_BYTES // scratch.columns.itemsize
    outputs, depth = sizes.group_outputs, sizes.group_channels * sizes.taps
    for row in range(sizes.channels * sizes.taps if count % width else 0):
        clear(scratch.columns, row * room + count, whole(count, width) - count)
    for o in range(sizes.outputs if count % width else 0):
        clear(scratch.by_output, o * room + count, whole(count, width) - count)
    extent = Extent(outputs, depth, whole(count, width) // width, width)
    for group in range(sizes.channels // sizes.group_channels):
        target = Target(scratch.weights, group * outputs * depth * width, depth * width, width)
        by_output = Factor(scratch.by_output, group * outputs * room, room, width, None)
        columns = Factor(scratch.columns, group * depth * room, room, width, None)
        sum_products(target, by_output, columns, extent, add)


@borrowing_jit
def _flush_runs(slots: np.ndarray, at: int, sums: np.ndarray, sizes: DeformSizes) -> None:
    """Add what is there of each weight to a slot."""
    outputs, depth = sizes.group_outputs, sizes.group_channels * sizes.taps
    width, to = TILE_ROW_BYTES // sums.itemsize, at
    across, start = whole(depth, width), uint64(0)
    for _ in range(sizes.channels // sizes.group_channels):
        for o in range(outputs):
            for k in range(depth):
                total = zero_like(sums)
                for lane in range(uint64(width)):
                    total += sums[start + lane]
                slots[to + o * across + k] += total
                start += uint64(width)
        to += whole(outputs, TILE_ROWS) * across


@borrowing_jit
def _flush(grads: BandsGradients, at: int, scratch: PlanesScratch, sizes: DeformSizes) -> None:
    """Add the gradients of weights that a thread has to a slot."""
    if weights_in_runs(sizes):
        _flush_runs(grads.weights, at, scratch.weights, sizes)
    else:
        flush_weights(grads.weights, at, scratch.weights, len(scratch.weights))


@borrowing_jit
def _add_columns(scratch: PlanesScratch, part: PlanesPart, count: int, add: bool) -> None:
    """The products of gradients of the output and columns."""
    sizes, room = part.sizes, part.size
    if weights_in_runs(sizes):
        _add_runs(scratch, part, count, add)
        return
    outputs, depth = sizes.group_outputs, sizes.group_channels * sizes.taps
    width = TILE_ROW_BYTES // scratch.columns.itemsize
    across = whole(depth, width)
    for group in range(sizes.channels // sizes.group_channels):
        columns = Matrix(scratch.by_position, ZERO, across)
        transpose(columns, Matrix(scratch.columns, group * depth * room, room), depth, count)
        by_output = Matrix(scratch.by_output, group * outputs * room, room)
        sums = Matrix(scratch.weights, group * whole(outputs, TILE_ROWS) * across, across)
        add_weights(sums, by_output, columns, width, (outputs, across), count, add)


@cached_jit
def bands_backward_items(
    start: int,
    stop: int,
    scratch: PlanesScratch,
    grad_output: np.ndarray,
    inputs: PlanesInputs,
    grads: BandsGradients,
    part: PlanesPart,
) -> None:
    """Items are shares: no two write the same memory."""
    sizes, room, bands = part.sizes, part.size, part.images * part.splits
    fill_rows(scratch, room)
    clear(scratch.by_position, 0, len(scratch.by_position))
    clear(scratch.by_output, 0, len(scratch.by_output))
    clear(scratch.weights, 0, len(scratch.weights))  # of rows beyond the matrices, too
    for share in range(start, stop):
        slot, summed = share * (len(grads.weights) // grads.shares), 0
        for band in range(bands * share // grads.shares, bands * (share + 1) // grads.shares):
            image, tile, end = _tiles_of(part, band)
            _clear_band(grads, part, band)
            while tile < end:
                _, first, count = place_of(part, tile)
                at = (part.first_image + image) * sizes.outputs * sizes.positions + first
                for o in range(sizes.outputs):
                    copy(scratch.by_output, o * room, grad_output, at + o * sizes.positions, count)
                _pull_back_columns(scratch, inputs, grads, part, band, (image, first, count))
                tile += 1
                if not grads.weights.size:
                    continue
                _add_columns(scratch, part, count, summed > 0)
                summed += 1
                if summed == CHAIN_TILES:
                    _flush(grads, slot, scratch, sizes)
                    summed = 0
        if summed:
            _flush(grads, slot, scratch, sizes)


@cached_jit
def bands_sample_backward_items(
    start: int,
    stop: int,
    scratch: PlanesScratch,
    grad_output: np.ndarray,
    inputs: PlanesInputs,
    grads: BandsGradients,
    part: PlanesPart,
) -> None:
    """The same without weights: items are bands.

    Every sample has a gradient of its own; or, with outputs, that of the output which it is a part of.
    """
    sizes, room, lanes = part.sizes, part.size, REGISTER_BYTES // grad_output.itemsize
    for band in range(start, stop):
        image, tile, end = _tiles_of(part, band)
        _clear_band(grads, part, band)
        while tile < end:
            _, first, count = place_of(part, tile)
            tile += 1
            place_points(scratch.points, sizes.grid, first, count)
            for plane in range(sizes.offset_groups * sizes.taps):
                group, tap = plane // sizes.taps, plane % sizes.taps
                row, apart = (part.first_image + image) * sizes.channels * sizes.taps + tap, sizes.taps
                if sizes.outputs:
                    row, apart = (part.first_image + image) * sizes.outputs + first_output(sizes, group), 1
                for c in range(set_of(part, group, tap)[1]):
                    at = (row + c * apart) * sizes.positions + first
                    copy(scratch.gradients, c * room, grad_output, at, count)
                    clear(scratch.gradients, c * room + count, min(room - count, lanes))
                of = _Tap(band, image, group, tap, first, count)
                _pull_back_tap(scratch, inputs, grads, part, of, ZERO, room)


@cached_jit
def bands_unpack_items(
    start: int, stop: int, grads: BandsGradients, grad_x: np.ndarray, part: PlanesPart
) -> None:
    """Items are rows of images: the sums of what bands have of them."""
    sizes, size = part.sizes, grads.side_by_side
    height, width, pitch = sizes.image.height, sizes.image.width, sizes.image.pitch
    per_set = sizes.channels // part.sets
    together = -(-per_set // size)
    for item in range(start, stop):
        image, row = item // height, item % height
        n = part.first_image + image
        for c in range(sizes.channels):
            clear(grad_x, ((n * sizes.channels + c) * height + row) * width, width)
        for band in range(image * part.splits, (image + 1) * part.splits):
            low, high, begin = grads.bands[3 * band], grads.bands[3 * band + 1], grads.bands[3 * band + 2]
            if not low <= row + 1 < high:
                continue
            pixels = band_pixels(sizes.image, low, high)
            for c in range(sizes.channels):
                number = c // per_set * together + c % per_set // size
                source = begin + (number * pixels + (row + 1 - low) * pitch + 1) * size + c % per_set % size
                target = ((n * sizes.channels + c) * height + row) * width
                for k in range(uint64(width)):
                    grad_x[uint64(target) + k] += grads.image[uint64(source) + k * uint64(size)]
