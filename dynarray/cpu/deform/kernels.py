"""The records of a plan, what packs images and weights, and the forward passes."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import TRUE, ZERO, borrowing_jit, cached_jit
from ..engine.gemm import TILE_ROW_BYTES, TILE_ROWS, Matrix, RightStrips, multiply_rows, whole
from ..engine.pixels import clear, transpose
from ..engine.vectors import LINE_BYTES
from .points import (
    DeformSizes,
    PointArrays,
    Points,
    PointSource,
    packed_rows,
    point_number,
    point_room,
    point_sizes,
    sample_point,
    set_up_points,
)


class DeformChunks(NamedTuple):
    """Runs of channels of one group and one offset group; a packed image has one part for each of them."""

    first: np.ndarray  # first channel
    size: np.ndarray
    group: np.ndarray
    offset_group: np.ndarray
    begins: np.ndarray  # whether it is the first of its group
    weight_at: np.ndarray  # where its packed weights begin


class DeformTiles(NamedTuple):
    """Tiles of output positions."""

    size: int  # positions
    per_image: int
    taps: int  # that are sampled at once
    depth: int  # most columns that a chunk has for so many taps


class DeformPart(NamedTuple):
    """What one call of a kernel works on: some chunks of some images."""

    sizes: DeformSizes
    chunks: DeformChunks  # all
    tiles: DeformTiles
    first_image: int
    images: int
    first_chunk: int
    chunk_count: int
    first_channel: int  # of the packed images, and how many they have
    channels: int


class DeformInputs(NamedTuple):
    """What is sampled and multiplied; arrays that there are not have no elements."""

    packed: np.ndarray  # images
    points: PointArrays
    weights: np.ndarray  # packed: as right matrices
    grad_columns: np.ndarray  # those of all columns, see `small_maps`


class DeformScratch(NamedTuple):
    """Memory of a thread: sizes, or the arrays."""

    points: Points
    columns: Any  # a row for each position of a tile: samples, or their gradients
    by_position: Any  # a row of outputs, or of their gradients, for each position
    by_output: Any  # a row of gradients for each output
    weights: Any  # gradients of the weights of a chunk


def deform_scratch(part: DeformPart, itemsize: int, *, backward: bool) -> DeformScratch:
    """What a thread needs."""
    tiles, outputs = part.tiles, part.sizes.group_outputs
    line, width = LINE_BYTES // itemsize, TILE_ROW_BYTES // itemsize
    points = point_sizes(whole(tiles.size, line), part.sizes.taps)
    if not outputs:
        return DeformScratch(points, tiles.size * tiles.depth, 0, 0, 0)
    if backward:
        columns, rows = whole(tiles.depth, width), whole(outputs, TILE_ROWS)
        by_column, by_output = tiles.size * (columns + line), rows * (tiles.size + line)
        return DeformScratch(points, by_column, tiles.size * outputs, by_output, rows * columns)
    by_position = tiles.size * (whole(outputs, width) + line)
    return DeformScratch(points, tiles.size * tiles.depth, by_position, 0, 0)


@borrowing_jit
def packed_at(part: DeformPart, image: int, chunk: int) -> int:
    """Where a chunk of a packed image begins."""
    channel = image * part.channels + part.chunks.first[chunk] - part.first_channel
    return channel * part.sizes.image.pixels


@borrowing_jit
def tile_place(part: DeformPart, tile: int) -> tuple:
    """The image that a tile belongs to, in the part and of all; its first position, and how many it has."""
    image, first = tile // part.tiles.per_image, tile % part.tiles.per_image * part.tiles.size
    return image, part.first_image + image, first, min(part.tiles.size, part.sizes.positions - first)


@cached_jit
def deform_pack_items(
    start: int,
    stop: int,
    x: np.ndarray,
    packed: np.ndarray,
    weight: np.ndarray,
    weights: np.ndarray,
    strips: int,
    part: DeformPart,
) -> None:
    """The first `strips` items are strips of packed weights, the others rows of packed images.

    In these are channels side by side, pixel after pixel, in a ring of zeros.
    """
    sizes, chunks = part.sizes, part.chunks
    height, width, pitch = sizes.image.height, sizes.image.width, sizes.image.pitch
    rows = packed_rows(sizes.image)
    for item in range(start, stop):
        if item < strips:
            _pack_strip(weights, weight, item, strips // part.chunk_count, part)
            continue
        image, number = (item - strips) // rows, (item - strips) % rows
        row = number - 1 + sizes.image.line
        for chunk in range(part.first_chunk, part.first_chunk + part.chunk_count):
            first, size = chunks.first[chunk], chunks.size[chunk]
            at = packed_at(part, image, chunk) + number * pitch * size
            if not 0 <= row < height:
                clear(packed, at, pitch * size)
                continue
            clear(packed, at, size)
            clear(packed, at + (width + 1) * size, (pitch - 1 - width) * size)
            source = ((part.first_image + image) * sizes.channels + first) * height + row
            pixels = Matrix(x, source * width, height * width)
            transpose(Matrix(packed, at + size, size), pixels, size, width)


@borrowing_jit
def _pack_strip(packed: np.ndarray, weight: np.ndarray, item: int, strips: int, part: DeformPart) -> None:
    """A strip of outputs of a chunk: a right matrix with a row for each tap and channel."""
    taps, outputs, channels = part.sizes.taps, part.sizes.group_outputs, part.sizes.group_channels
    chunks, width = part.chunks, TILE_ROW_BYTES // weight.itemsize
    chunk, strip = part.first_chunk + item // strips, item % strips
    size, group = chunks.size[chunk], chunks.group[chunk]
    strip_at = chunks.weight_at[chunk] + strip * taps * size * width
    count = uint64(min(width, outputs - strip * width))
    output, step = group * outputs + strip * width, uint64(channels * taps)
    source = (output * channels + chunks.first[chunk] - group * channels) * taps
    clear(packed, strip_at, taps * size * width)
    for c in range(size):
        for tap in range(taps):
            to, origin = uint64(strip_at + (tap * size + c) * width), uint64(source + c * taps + tap)
            for o in range(count):
                packed[to + o] = weight[origin + o * step]


@cached_jit
def deform_unpack_items(
    start: int, stop: int, slots: np.ndarray, distance: int, grad_x: np.ndarray, part: DeformPart
) -> None:
    """The reverse of packing: rows of images, from sums of packed gradients that lie some distance apart."""
    sizes, chunks = part.sizes, part.chunks
    height, width, pitch = sizes.image.height, sizes.image.width, sizes.image.pitch
    for item in range(start, stop):
        image, row = item // height, item % height
        for chunk in range(part.first_chunk, part.first_chunk + part.chunk_count):
            first, size = chunks.first[chunk], chunks.size[chunk]
            at = packed_at(part, image, chunk) + ((row + 1 - sizes.image.line) * pitch + 1) * size
            for other in range(at + distance, len(slots), distance):
                for k in range(uint64(width * size)):
                    slots[uint64(at) + k] += slots[uint64(other) + k]
            target = ((part.first_image + image) * sizes.channels + first) * height + row
            pixels = Matrix(grad_x, target * width, height * width)
            transpose(pixels, Matrix(slots, at, size), width, size)


@cached_jit
def deform_forward_items(
    start: int,
    stop: int,
    scratch: DeformScratch,
    inputs: DeformInputs,
    bias: np.ndarray,
    y: np.ndarray,
    part: DeformPart,
) -> None:
    """Items are tiles of output positions: samples of one chunk after the other, times their weights."""
    sizes, chunks, tiles = part.sizes, part.chunks, part.tiles
    width, end = TILE_ROW_BYTES // y.itemsize, part.first_chunk + part.chunk_count
    across, taps, room = whole(sizes.group_outputs, width), sizes.taps, point_room(scratch.points)
    number = point_number(scratch.points)
    outputs = Matrix(scratch.by_position, ZERO, across + LINE_BYTES // y.itemsize)
    for item in range(start, stop):
        image, n, first, count = tile_place(part, item)
        offset_group, begins, add = -1, True, False
        for chunk in range(part.first_chunk, end):
            if chunks.offset_group[chunk] != offset_group:
                offset_group = chunks.offset_group[chunk]
                set_up_points(scratch.points, inputs.points, sizes, n, offset_group, first, count)
            if begins:  # the group, in this part
                add = not chunks.begins[chunk]
            size = chunks.size[chunk]
            source = PointSource(inputs.packed, packed_at(part, image, chunk), size, number, sizes.image.line)
            for tap in range(0, taps, tiles.taps):
                at_once = min(tiles.taps, taps - tap)
                depth, at = at_once * size, chunks.weight_at[chunk] + tap * size * width
                for i in range(count):
                    for t in range(at_once):
                        k = (tap + t) * room + i
                        sample_point(source, scratch.points, k, scratch.columns, i * depth + t * size)
                multiply_rows(
                    outputs,
                    Matrix(scratch.columns, ZERO, depth),
                    RightStrips(inputs.weights, at, taps * size * width, width),
                    (count, across),
                    depth,
                    tap > 0 or not begins,
                )
            begins = chunk + 1 == end or chunks.group[chunk + 1] != chunks.group[chunk]
            if begins:
                _write_outputs(y, outputs, bias, part, chunk, item, add)


@borrowing_jit
def strip_of_columns(columns: np.ndarray, part: DeformPart, chunk: int, tap: int, column: int) -> Matrix:
    """Where the strip lies that holds a column, for a tap of a chunk: a row for each channel.

    Columns are (groups, channels of a group times taps, positions of all images), in strips of these.
    """
    sizes, chunks, width = part.sizes, part.chunks, TILE_ROW_BYTES // columns.itemsize
    depth, group = sizes.group_channels * sizes.taps, chunks.group[chunk]
    at = group * (len(columns) // (sizes.channels // sizes.group_channels)) + column // width * depth * width
    row = (chunks.first[chunk] - group * sizes.group_channels) * sizes.taps + tap
    return Matrix(columns, at + row * width + column % width, sizes.taps * width)


@borrowing_jit
def pass_columns(
    columns: np.ndarray, samples: Matrix, part: DeformPart, chunk: int, tap: int, tile: int, put: bool
) -> None:
    """The samples of a tap at the positions of a tile, in rows: `put` to their place, or taken from there."""
    _, n, first, count = tile_place(part, tile)
    done, width, column = 0, TILE_ROW_BYTES // columns.itemsize, n * part.sizes.positions + first
    while done < count:
        some, channels = min(count - done, width - (column + done) % width), part.chunks.size[chunk]
        place = strip_of_columns(columns, part, chunk, tap, column + done)
        rows = Matrix(samples.values, samples.at + done * samples.stride, samples.stride)
        if put:
            transpose(place, rows, some, channels)
        else:
            transpose(rows, place, channels, some)
        done += some


@cached_jit
def deform_column_items(
    start: int,
    stop: int,
    scratch: DeformScratch,
    inputs: DeformInputs,
    columns: np.ndarray,
    part: DeformPart,
) -> None:
    """Items are (tile of output positions, chunk): their samples, see `strip_of_columns`."""
    sizes, chunks, room = part.sizes, part.chunks, point_room(scratch.points)
    number = point_number(scratch.points)
    for item in range(start, stop):
        tile, chunk = item // part.chunk_count, part.first_chunk + item % part.chunk_count
        (image, n, first, count), size = tile_place(part, tile), chunks.size[chunk]
        offset_group = chunks.offset_group[chunk]
        set_up_points(scratch.points, inputs.points, sizes, n, offset_group, first, count)
        source = PointSource(inputs.packed, packed_at(part, image, chunk), size, number, sizes.image.line)
        for tap in range(sizes.taps):
            for i in range(count):
                sample_point(source, scratch.points, tap * room + i, scratch.columns, i * size)
            pass_columns(columns, Matrix(scratch.columns, ZERO, size), part, chunk, tap, tile, TRUE)


@borrowing_jit
def _write_outputs(
    y: np.ndarray, outputs: Matrix, bias: np.ndarray, part: DeformPart, chunk: int, tile: int, add: bool
) -> None:
    """The outputs of a tile and group: with bias, or added to what chunks of other parts gave before."""
    sizes, chunks, values, stride = part.sizes, part.chunks, outputs.values, outputs.stride
    _, n, first, count = tile_place(part, tile)
    channel, number = chunks.group[chunk] * sizes.group_outputs, sizes.group_outputs
    at = (n * sizes.outputs + channel) * sizes.positions + first
    if not add:
        for r in range(count if bias.size else 0):
            for o in range(uint64(number)):
                values[uint64(r * stride) + o] += bias[uint64(channel) + o]
        transpose(Matrix(y, at, sizes.positions), outputs, count, number)
        return
    for o in range(number):
        for r in range(count):
            y[at + o * sizes.positions + r] += values[r * stride + o]


@cached_jit
def sample_points_items(
    start: int, stop: int, scratch: DeformScratch, inputs: DeformInputs, y: np.ndarray, part: DeformPart
) -> None:
    """Items are tiles of output positions: samples of chunk after chunk, written channel by channel."""
    sizes, chunks, columns, room = part.sizes, part.chunks, scratch.columns, point_room(scratch.points)
    number = point_number(scratch.points)
    for item in range(start, stop):
        image, n, first, count = tile_place(part, item)
        set_up_points(scratch.points, inputs.points, sizes, n, ZERO, first, count)
        for chunk in range(part.first_chunk, part.first_chunk + part.chunk_count):
            size = chunks.size[chunk]
            source = PointSource(inputs.packed, packed_at(part, image, chunk), size, number, sizes.image.line)
            channel, apart = n * sizes.channels + chunks.first[chunk], sizes.taps * sizes.positions
            for tap in range(sizes.taps):
                for i in range(count):
                    sample_point(source, scratch.points, tap * room + i, columns, i * size)
                to = channel * apart + tap * sizes.positions + first
                transpose(Matrix(y, to, apart), Matrix(columns, ZERO, size), count, size)
