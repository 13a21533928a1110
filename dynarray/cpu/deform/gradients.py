"""The backward kernels of `deform_conv2d`, and those of `sample_points`, on the CPU."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import FALSE, TRUE, ZERO, borrowing_jit, cached_jit, literal_jit, zero_like
from ..engine.gemm import TILE_ROW_BYTES, TILE_ROWS, Matrix, RightStrips, multiply_rows, whole
from ..engine.pixels import clear, copy, transpose
from ..engine.vectors import LINE_BYTES
from .kernels import (
    DeformInputs,
    DeformPart,
    DeformScratch,
    packed_at,
    pass_columns,
    tile_place,
)
from .points import (
    PointArrays,
    Points,
    PointSource,
    offset_by_x,
    point_number,
    point_room,
    sample_point,
    set_up_points,
    spread_point,
    sum_corners,
)

# Positions whose products are added up in one chain, and tiles whose sums are: a chain of n numbers is off by
# some sqrt(n) roundings, and what is left is added up in double precision.
CHAIN_POSITIONS, CHAIN_TILES = 64, 8


class DeformGradients(NamedTuple):
    """What the backward pass adds to; arrays that are not wanted have no elements."""

    packed: np.ndarray  # of each image, one slot for each of its shares
    weights: np.ndarray  # one slot for each share, in double precision
    corner_sums: np.ndarray  # of each point: by tile, chunk, point and corner
    columns: np.ndarray  # samples, which are written for the gradient of weights: see `small_maps`


class DeformBand(NamedTuple):
    """Tiles that are worked on before the sums of their points are added up, and how they are divided."""

    start: int
    stop: int
    shares: int  # tiles of one share add to the same memory, one after the other
    splits: int  # shares that an image has


@cached_jit
def deform_weight_items(
    start: int,
    stop: int,
    weight: np.ndarray,
    packed: np.ndarray,
    slots: np.ndarray,
    part: DeformPart,
    shares: int,
) -> None:
    """Items are (chunk, output of its group): rows of a matrix with a column for each tap and channel.

    Without shares, from the weights to right matrices in strips; else the sum of the slots of so many, which
    are row by row, to the gradient of the weights. One kernel, since a second one would take as long again to
    compile.
    """
    taps, outputs, channels = part.sizes.taps, part.sizes.group_outputs, part.sizes.group_channels
    chunks, width = part.chunks, TILE_ROW_BYTES // weight.itemsize
    strip, distance = whole(outputs, TILE_ROWS) * width, len(slots) // max(1, shares)
    for item in range(start, stop):
        chunk, o = part.first_chunk + item // outputs, item % outputs
        size, group, at = chunks.size[chunk], chunks.group[chunk], chunks.weight_at[chunk]
        source = ((group * outputs + o) * channels + chunks.first[chunk] - group * channels) * taps
        columns = taps * size
        at += o * (whole(columns, width) if shares else width)
        if not shares and columns % width:
            clear(packed, at + columns // width * strip, width)
        for tap in range(taps):
            place = uint64(source + tap)
            for c in range(uint64(size)):
                column = uint64(tap * size) + c
                if shares:
                    total = 0.0
                    for share in range(uint64(shares)):
                        total += slots[uint64(at) + column + share * uint64(distance)]
                    weight[place + c * uint64(taps)] = total
                else:
                    to = uint64(at) + column // uint64(width) * uint64(strip) + column % uint64(width)
                    packed[to] = weight[place + c * uint64(taps)]


@borrowing_jit
def _share(tile: int, part: DeformPart, band: DeformBand) -> int:
    """The share that a tile belongs to."""
    image, number = tile // part.tiles.per_image, tile % part.tiles.per_image
    return image * band.splits % band.shares + number % band.splits


@borrowing_jit
def _clear_pixels(grads: DeformGradients, part: DeformPart, band: DeformBand, share: int, chunk: int) -> None:
    """Zeros for the pixels that the tiles of a share add to, before the first of them."""
    slot = share % band.splits * (len(grads.packed) // band.splits)
    for image in range(share // band.splits, part.images, band.shares // band.splits):
        at = packed_at(part, image, chunk)
        clear(grads.packed, slot + at, part.chunks.size[chunk] * part.sizes.image.pixels)


@borrowing_jit
def _pull_back(
    columns: Matrix,
    points: Points,
    inputs: DeformInputs,
    grads: DeformGradients,
    part: DeformPart,
    band: DeformBand,
    tile: int,
    chunk: int,
) -> None:
    """From gradients of columns, those of pixels and points; then the columns in their place."""
    (image, _, _, count), size, taps = tile_place(part, tile), part.chunks.size[chunk], part.sizes.taps
    base, room = packed_at(part, image, chunk), point_room(points)
    slot = tile % part.tiles.per_image % band.splits * (len(grads.packed) // band.splits)
    source = PointSource(inputs.packed, base, size, point_number(points), part.sizes.image.line)
    target = PointSource(grads.packed, base + slot, size, point_number(points), part.sizes.image.line)
    number = (tile - band.start) * part.chunk_count + chunk - part.first_chunk
    sums_at = number * 4 * room * taps
    values, corner_sums = columns.values, grads.corner_sums
    for i in range(count):
        for tap in range(taps):
            k, at = tap * room + i, i * columns.stride + tap * size
            if corner_sums.size:
                sum_corners(source, points, k, values, at, corner_sums, sums_at + 4 * k)
            if grads.packed.size:
                spread_point(target, points, k, values, at)
            if grads.weights.size + grads.columns.size:
                sample_point(source, points, k, values, at)


@borrowing_jit
def add_weights(
    sums: Matrix, by_output: Matrix, columns: Matrix, width: int, size: tuple, count: int, add: bool
) -> None:
    """The product of so many positions, added to what there is if `add` says so."""
    for first in range(0, count, CHAIN_POSITIONS):
        left = Matrix(by_output.values, by_output.at + first, by_output.stride)
        right = RightStrips(columns.values, columns.at + first * columns.stride, width, columns.stride)
        depth = min(CHAIN_POSITIONS, count - first)
        multiply_rows(sums, left, right, size, depth, add or first > 0)


@borrowing_jit
def flush_weights(slots: np.ndarray, at: int, sums: np.ndarray, count: int) -> None:
    """Add so many sums to a slot."""
    for k in range(uint64(count)):
        slots[uint64(at) + k] += sums[k]


@cached_jit
def deform_backward_items(
    start: int,
    stop: int,
    scratch: DeformScratch,
    grad_output: np.ndarray,
    inputs: DeformInputs,
    grads: DeformGradients,
    part: DeformPart,
    band: DeformBand,
) -> None:
    """Items are (share of the tiles, chunk): no two write the same memory."""
    sizes, chunks, outputs = part.sizes, part.chunks, part.sizes.group_outputs
    width, line = TILE_ROW_BYTES // grad_output.itemsize, LINE_BYTES // grad_output.itemsize
    by_output = Matrix(scratch.by_output, ZERO, part.tiles.size + line)
    by_position = Matrix(scratch.by_position, ZERO, outputs)
    # What rows and columns beyond the matrices give is added up, too.
    clear(scratch.columns, 0, len(scratch.columns))
    clear(scratch.by_output, 0, len(scratch.by_output))
    clear(scratch.by_position, 0, len(scratch.by_position))
    for item in range(start, stop):
        share, chunk = item // part.chunk_count, part.first_chunk + item % part.chunk_count
        group, weight_at = chunks.group[chunk], chunks.weight_at[chunk]
        across = whole(sizes.taps * chunks.size[chunk], width)
        columns = Matrix(scratch.columns, ZERO, across + line)
        slot, summed = share * (len(grads.weights) // band.shares) + weight_at, 0
        sums, count_of_sums = Matrix(scratch.weights, ZERO, across), outputs * across
        if grads.weights.size and band.start == 0 and part.first_image == 0:
            clear(grads.weights, slot, count_of_sums)
        if grads.packed.size and band.start == 0:
            _clear_pixels(grads, part, band, share, chunk)
        for tile in range(band.start, band.stop):
            if _share(tile, part, band) != share:
                continue
            _, n, first, count = tile_place(part, tile)
            at = (n * sizes.outputs + group * outputs) * sizes.positions + first
            at_once = inputs.grad_columns.size + grads.columns.size > 0
            for o in range(0 if at_once else outputs):
                copy(scratch.by_output, o * by_output.stride, grad_output, at + o * sizes.positions, count)
            offset_group = chunks.offset_group[chunk]
            set_up_points(scratch.points, inputs.points, sizes, n, offset_group, first, count)
            for tap in range(sizes.taps if inputs.grad_columns.size else 0):
                of_tap = Matrix(scratch.columns, tap * chunks.size[chunk], columns.stride)
                pass_columns(inputs.grad_columns, of_tap, part, chunk, tap, tile, FALSE)
            if not at_once and (grads.packed.size or grads.corner_sums.size):
                transpose(by_position, by_output, outputs, count)
                right = RightStrips(inputs.weights, weight_at, whole(outputs, TILE_ROWS) * width, width)
                multiply_rows(columns, by_position, right, (count, across), outputs, FALSE)
            _pull_back(columns, scratch.points, inputs, grads, part, band, tile, chunk)
            for tap in range(sizes.taps if grads.columns.size else 0):
                of_tap = Matrix(scratch.columns, tap * chunks.size[chunk], columns.stride)
                pass_columns(grads.columns, of_tap, part, chunk, tap, tile, TRUE)
            if grads.weights.size:
                add_weights(sums, by_output, columns, width, (outputs, across), count, summed > 0)
                summed += 1
                if summed == CHAIN_TILES:
                    flush_weights(grads.weights, slot, sums.values, count_of_sums)
                    summed = 0
        if summed:
            flush_weights(grads.weights, slot, sums.values, count_of_sums)


@cached_jit
def deform_point_items(
    start: int,
    stop: int,
    points: Points,
    corner_sums: np.ndarray,
    arrays: PointArrays,
    grads: PointArrays,
    part: DeformPart,
    band: DeformBand,
) -> None:
    """Items are tiles of the band: gradients of their points, the sums of all chunks added up in order."""
    sizes, chunks = part.sizes, part.chunks
    taps, room = sizes.taps, point_room(points)
    per_chunk = 4 * room * taps
    for item in range(start, stop):
        (_, n, first, count), chunk = tile_place(part, band.start + item), 0
        while chunk < part.chunk_count:
            group, end = chunks.offset_group[part.first_chunk + chunk], chunk + 1
            while end < part.chunk_count and chunks.offset_group[part.first_chunk + end] == group:
                end += 1
            set_up_points(points, arrays, sizes, n, group, first, count)
            for tap in range(taps):
                plane = (n * sizes.offset_groups + group) * taps + tap
                at, x_at = plane * sizes.positions + first, offset_by_x(sizes, plane) + first
                for i in range(count):
                    k = tap * room + i
                    s0 = s1 = s2 = s3 = zero_like(corner_sums)
                    for c in range(item * part.chunk_count + chunk, item * part.chunk_count + end):
                        source = uint64(c * per_chunk + 4 * k)
                        s0 += corner_sums[source]
                        s1 += corner_sums[source + uint64(1)]
                        s2 += corner_sums[source + uint64(2)]
                        s3 += corner_sums[source + uint64(3)]
                    before = sizes.positions if sizes.coordinates == 2 else 0
                    _point_gradient((s0, s1, s2, s3), points, k, grads, at + i, x_at + i, before)
            chunk = end


@literal_jit
def _point_gradient(
    totals: tuple, points: Points, k: int, grads: PointArrays, at: int, x_at: int, before: int
) -> None:
    """Add the derivatives by a point, from the sums over channels of gradient * corner.

    That by y is so far `before` the one by x; 0: nowhere.
    """
    one, (s0, s1, s2, s3), number = points.values.dtype.type(1), totals, len(points.at) // 3
    ly, lx, factor = points.values[k], points.values[number + k], points.values[2 * number + k]
    if grads.offset.size:
        if before:
            grads.offset[x_at - before] += factor * ((one - lx) * (s2 - s0) + lx * (s3 - s1))
        grads.offset[x_at] += factor * ((one - ly) * (s1 - s0) + ly * (s3 - s2))
    if grads.mask.size:
        grads.mask[at] += (one - ly) * ((one - lx) * s0 + lx * s1) + ly * ((one - lx) * s2 + lx * s3)


@cached_jit
def sample_points_backward_items(
    start: int,
    stop: int,
    scratch: DeformScratch,
    grad_output: np.ndarray,
    inputs: DeformInputs,
    grads: DeformGradients,
    part: DeformPart,
    band: DeformBand,
) -> None:
    """As `deform_backward_items`, without weights."""
    sizes, chunks, taps = part.sizes, part.chunks, part.sizes.taps
    for item in range(start, stop):
        share, chunk = item // part.chunk_count, part.first_chunk + item % part.chunk_count
        size = chunks.size[chunk]
        columns = Matrix(scratch.columns, ZERO, taps * size)
        if grads.packed.size and band.start == 0:
            _clear_pixels(grads, part, band, share, chunk)
        for tile in range(band.start, band.stop):
            if _share(tile, part, band) != share:
                continue
            _, n, first, count = tile_place(part, tile)
            set_up_points(scratch.points, inputs.points, sizes, n, ZERO, first, count)
            channel, apart = n * sizes.channels + chunks.first[chunk], taps * sizes.positions
            for tap in range(taps):
                rows = Matrix(grad_output, channel * apart + tap * sizes.positions + first, apart)
                transpose(Matrix(scratch.columns, tap * size, columns.stride), rows, size, count)
            _pull_back(columns, scratch.points, inputs, grads, part, band, tile, chunk)
