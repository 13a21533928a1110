"""Few channels, forward: planes of the image lie one after the other, and lanes are positions.

Nothing is moved but a plane into its ring of zeros. Samples are rows of the right matrix of a product that
is written where the output is.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64
from numba.extending import register_jitable

from ..engine.compile import ZERO, borrowing_jit, cached_jit
from ..engine.gemm import TILE_ROW_BYTES, TILE_ROWS, Matrix, RightStrips, multiply, whole
from ..engine.pixels import clear, copy
from .points import (
    DeformSizes,
    PointArrays,
    PointImage,
    Points,
    packed_rows,
    place_points,
    point_sizes,
    set_up_tap,
)
from .rows import GATHERED_BYTES, QUAD, PointPlane, sample_row

_FEW_COLUMNS = 16  # samples of a position that its gradients of weights come from


class PlanesPart(NamedTuple):
    """What one call of a kernel works on: some images, and the tiles of positions of each."""

    sizes: DeformSizes
    size: int  # positions of a tile
    per_image: int  # tiles
    splits: int  # bands of an image, backward
    sets: int  # of channels: one for each group of points, or for each of their taps
    first_image: int
    images: int
    first_tap: int = 0  # of those that have sets of their own


class PlanesInputs(NamedTuple):
    """What is sampled and multiplied; arrays that there are not have no elements."""

    packed: np.ndarray  # planes in their rings
    points: PointArrays
    weights: np.ndarray  # left matrices in panels: of each group (outputs, samples); backward the transposed
    bias: np.ndarray


class PlanesScratch(NamedTuple):
    """Memory of a thread: sizes, or the arrays."""

    points: Points  # of one tap
    columns: Any  # a row of samples for each channel and tap
    gradients: Any  # of these
    by_output: Any  # a row of gradients for each output
    by_position: Any  # the columns transposed
    sums: Any  # of the corners of the points of one tap
    weights: Any  # gradients of the weights
    corner: Any  # of a product; and gradients of pixels that are side by side
    rows: Any  # where rows begin


def planes_scratch(part: PlanesPart, itemsize: int, *, backward: bool) -> PlanesScratch:
    """What a thread needs."""
    sizes, room, width = part.sizes, part.size, TILE_ROW_BYTES // itemsize
    outputs, depth, points = sizes.group_outputs, sizes.group_channels * sizes.taps, point_sizes(part.size, 1)
    columns = sizes.channels * (sizes.taps if outputs else 1) * room
    rows = max(depth, outputs), np.int64
    if not backward:
        return PlanesScratch(points, columns, 0, 0, 0, 0, 0, TILE_ROWS * width, rows)
    if not outputs:
        return PlanesScratch(points, columns, columns, 0, 0, 4 * room, 0, QUAD * room, rows)
    # Of the last group rows beyond the matrix are read, too.
    by_output, across = (sizes.outputs + TILE_ROWS) * room, whole(depth, width)
    weights = sizes.outputs * depth * width if weights_in_runs(sizes) else weights_of(sizes, itemsize)
    corner = max(QUAD * room, TILE_ROWS * width)
    return PlanesScratch(points, columns, columns, by_output, room * across, 4 * room, weights, corner, rows)


def mixed_scratch(part: PlanesPart) -> PlanesScratch:
    """What a thread needs where each output has channels of its own: a row of sums for each."""
    room, outputs = part.size, part.sizes.outputs
    gradients = part.sizes.group_outputs * room
    return PlanesScratch(point_sizes(room, 1), outputs * room, gradients, 0, 0, 4 * room, 0, QUAD * room, 0)


@register_jitable(error_model="numpy")
def weights_in_runs(sizes: DeformSizes) -> bool:
    """Whether gradients of weights are sums of each lane of a strip, not rows that would fill half of one."""
    return sizes.group_channels * sizes.taps <= _FEW_COLUMNS


def weights_of(sizes: DeformSizes, itemsize: int) -> int:
    """Gradients of all weights, in whole tiles of the product of each group."""
    across = whole(sizes.group_channels * sizes.taps, TILE_ROW_BYTES // itemsize)
    return sizes.channels // sizes.group_channels * whole(sizes.group_outputs, TILE_ROWS) * across


@borrowing_jit
def set_of(part: PlanesPart, group: int, tap: int) -> tuple:
    """The first of the channels that the points of a tap read, and how many they are."""
    channels, of_group = part.sizes.channels // part.sets, part.sets // part.sizes.offset_groups
    return (group * of_group + tap % of_group) * channels, channels


@borrowing_jit
def first_output(sizes: DeformSizes, group: int) -> int:
    """The first output that the channels of an offset group are mixed for; there may be more such groups."""
    groups = sizes.outputs // sizes.group_outputs
    return group * groups // sizes.offset_groups * sizes.group_outputs


@register_jitable(error_model="numpy")
def band_pixels(image: PointImage, low: Any, high: Any) -> Any:
    """Pixels of the gradient of some rows of the ring, with those that are added to for points elsewhere."""
    return image.pixels if image.line else (high - low + 2) * image.pitch + 2


@borrowing_jit
def vectors_of(count: int, array: np.ndarray) -> int:
    """Vectors that hold so many elements."""
    return -(-count * array.itemsize // GATHERED_BYTES)


@borrowing_jit
def fill_rows(scratch: PlanesScratch, room: int) -> None:
    """Where rows of so many positions begin."""
    for k in range(len(scratch.rows)):
        scratch.rows[k] = k * room


@borrowing_jit
def place_of(part: PlanesPart, tile: int) -> tuple:
    """The image that a tile belongs to, in the part; its first position, and how many it has."""
    image, first = tile // part.per_image, tile % part.per_image * part.size
    return image, first, min(part.size, part.sizes.positions - first)


@cached_jit
def planes_pack_items(start: int, stop: int, x: np.ndarray, packed: np.ndarray, part: PlanesPart) -> None:
    """Items are rows of planes in their rings."""
    height, width, pitch = part.sizes.image.height, part.sizes.image.width, part.sizes.image.pitch
    rows = packed_rows(part.sizes.image)
    for item in range(start, stop):
        plane, row, at = item // rows, item % rows - 1 + part.sizes.image.line, item * pitch
        if not 0 <= row < height:
            clear(packed, at, pitch)
            continue
        packed[at] = 0
        clear(packed, at + 1 + width, pitch - 1 - width)
        source = (part.first_image * part.sizes.channels + plane) * height + row
        copy(packed, at + 1, x, source * width, width)


@cached_jit
def planes_forward_items(
    start: int, stop: int, scratch: PlanesScratch, inputs: PlanesInputs, y: np.ndarray, part: PlanesPart
) -> None:
    """Items are tiles of positions: samples of all channels, and of each group their product."""
    sizes, room, points = part.sizes, part.size, scratch.points
    taps, depth, outputs = sizes.taps, sizes.group_channels * sizes.taps, sizes.group_outputs
    per_points = sizes.channels // sizes.offset_groups
    panels = -(-outputs // TILE_ROWS) * TILE_ROWS * depth
    fill_rows(scratch, room)
    for item in range(start, stop):
        image, first, count = place_of(part, item)
        # A product reads whole strips.
        n, vectors = part.first_image + image, vectors_of(whole(count, TILE_ROW_BYTES // y.itemsize), y)
        place_points(points, sizes.grid, first, count)
        for group in range(sizes.offset_groups):
            for tap in range(taps):
                set_up_tap(points, inputs.points, sizes, (n, group, tap), ZERO, first, count)
                for c in range(group * per_points, (group + 1) * per_points):
                    plane = (image * sizes.channels + c) * sizes.image.pixels
                    source = PointPlane(inputs.packed, plane, ZERO, room, sizes.image.line)
                    to = (c * taps + tap) * room
                    sample_row(source, points, scratch.columns, to, vectors, sizes.image.border)
        for group in range(sizes.channels // sizes.group_channels):
            at = (n * sizes.outputs + group * outputs) * sizes.positions + first
            for o in range(outputs if inputs.bias.size else 0):
                for k in range(uint64(at + o * sizes.positions), uint64(at + o * sizes.positions + count)):
                    y[k] = inputs.bias[group * outputs + o]
            multiply(
                Matrix(y, at, sizes.positions),
                Matrix(inputs.weights, group * panels, depth * TILE_ROWS),
                RightStrips(
                    scratch.columns, group * depth * room, TILE_ROW_BYTES // y.itemsize, scratch.rows[:depth]
                ),
                (outputs, count),
                scratch.corner,
                inputs.bias.size > 0,
            )


@cached_jit
def planes_mixed_items(
    start: int, stop: int, scratch: PlanesScratch, inputs: PlanesInputs, y: np.ndarray, part: PlanesPart
) -> None:
    """Items are tiles of positions: of each output the sum of channels of its own, one for each tap.

    Taps that come later are added to what others gave.
    """
    sizes, room, points, sums = part.sizes, part.size, scratch.points, scratch.columns
    taps = part.sets // sizes.offset_groups
    for item in range(start, stop):
        image, first, count = place_of(part, item)
        n, vectors = part.first_image + image, vectors_of(count, y)
        place_points(points, sizes.grid, first, count)
        for o in range(sizes.outputs):
            if part.first_tap:
                copy(sums, o * room, y, (n * sizes.outputs + o) * sizes.positions + first, count)
            else:
                clear(sums, o * room, count)
        for group in range(sizes.offset_groups):
            for tap in range(taps):
                of = n, group, part.first_tap + tap
                set_up_tap(points, inputs.points, sizes, of, ZERO, first, count)
                channel, channels = set_of(part, group, tap)
                to = first_output(sizes, group)
                for c in range(channels):
                    plane = (image * sizes.channels + channel + c) * sizes.image.pixels
                    source = PointPlane(inputs.packed, plane, ZERO, room, sizes.image.line)
                    sample_row(source, points, scratch.gradients, ZERO, vectors, sizes.image.border)
                    for k in range(uint64(count)):
                        sums[uint64((to + c) * room) + k] += scratch.gradients[k]
        for o in range(sizes.outputs):
            if inputs.bias.size and part.first_tap + taps == sizes.taps:
                for k in range(uint64(o * room), uint64(o * room + count)):
                    sums[k] += inputs.bias[o]
            copy(y, (n * sizes.outputs + o) * sizes.positions + first, sums, o * room, count)
