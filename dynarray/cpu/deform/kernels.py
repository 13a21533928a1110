"""Sampling and the forward kernels of `deform_conv2d` on the CPU, and the records of a plan."""

from typing import NamedTuple

import numpy as np
from numba import int64, uint64

from ..engine.compile import cached_jit, jit
from ..engine.gemm import TILE_BYTES, multiply_rows
from ..engine.pixels import aligned, clear, transpose, whole_lines
from .points import Grid, new_points, sample, set_up

LINE = 16  # elements, at least those of a cache line


class Chunks(NamedTuple):
    """Runs of channels of one group and one offset group; a packed image has one part for each of them."""

    first: np.ndarray  # first channel
    size: np.ndarray
    group: np.ndarray
    offset_group: np.ndarray
    begins: np.ndarray  # whether it is the first of its group
    weight_at: np.ndarray  # where its weights begin


class Part(NamedTuple):
    """What one call of a kernel works on: some chunks of some images, in tiles of output positions."""

    image: int
    images: int
    chunk: int
    chunks: int
    first_channel: int  # of the packed images, and how many they have
    channels: int
    tile: int  # positions of a tile
    tiles: int  # of an image
    step: int  # taps that are sampled at once
    depth: int  # most columns that a chunk has for so many taps


@jit
def packed_at(grid: Grid, part: Part, image: int, first_channel: int) -> int:
    """Where the part of a packed image that begins with a channel begins."""
    return (image * part.channels + first_channel - part.first_channel) * grid.pixels


@cached_jit
def pack_items(
    start: int,
    stop: int,
    x: np.ndarray,
    packed: np.ndarray,
    weight: np.ndarray,
    weights: np.ndarray,
    strips: int,
    grid: Grid,
    chunks: Chunks,
    part: Part,
) -> None:
    """The first `strips` items are strips of packed weights, the others rows of packed images.

    In these are channels side by side, pixel after pixel, in a ring of zeros.
    """
    lines, pitch = grid.height + 3, grid.width + 2
    for item in range(start, stop):
        if item < strips:
            _pack_strip(weights, weight, item, strips // part.chunks, grid, chunks, part)
            continue
        image, line = (item - strips) // lines, (item - strips) % lines
        for chunk in range(part.chunk, part.chunk + part.chunks):
            first, size = chunks.first[chunk], chunks.size[chunk]
            at = packed_at(grid, part, image, first) + line * pitch * size
            if line == 0 or line > grid.height:
                clear(packed, at, pitch * size)
                continue
            clear(packed, at, size)
            clear(packed, at + (pitch - 1) * size, size)
            source = ((part.image + image) * grid.channels + first) * grid.height + line - 1
            plane = grid.height * grid.width
            transpose(packed, at + size, size, x, source * grid.width, plane, size, grid.width)


@jit
def _pack_strip(
    packed: np.ndarray, weight: np.ndarray, item: int, strips: int, grid: Grid, chunks: Chunks, part: Part
) -> None:
    """A strip of outputs of a chunk: a right matrix with a row for each tap and channel."""
    each, deep = grid.outputs // grid.groups, grid.channels // grid.groups
    width, chunk, strip = TILE_BYTES // weight.itemsize, part.chunk + item // strips, item % strips
    size, group = chunks.size[chunk], chunks.group[chunk]
    strip_at = chunks.weight_at[chunk] + strip * grid.taps * size * width
    count = uint64(min(width, each - strip * width))
    output, step = group * each + strip * width, uint64(deep * grid.taps)
    source = (output * deep + chunks.first[chunk] - group * deep) * grid.taps
    clear(packed, strip_at, grid.taps * size * width)
    for c in range(size):
        for tap in range(grid.taps):
            to, origin = uint64(strip_at + (tap * size + c) * width), uint64(source + c * grid.taps + tap)
            for o in range(count):
                packed[to + o] = weight[origin + o * step]


@cached_jit
def unpack_items(
    start: int,
    stop: int,
    slots: np.ndarray,
    distance: int,
    x: np.ndarray,
    grid: Grid,
    chunks: Chunks,
    part: Part,
) -> None:
    """The reverse, of the sum of packed images that lie some distance apart. Items are rows of images."""
    pitch = grid.width + 2
    for item in range(start, stop):
        image, row = item // grid.height, item % grid.height
        for chunk in range(part.chunk, part.chunk + part.chunks):
            first, size = chunks.first[chunk], chunks.size[chunk]
            at = packed_at(grid, part, image, first) + ((row + 1) * pitch + 1) * size
            target = ((part.image + image) * grid.channels + first) * grid.height + row
            for other in range(at + distance, len(slots), distance):
                for k in range(uint64(grid.width * size)):
                    slots[uint64(at) + k] += slots[uint64(other) + k]
            plane = grid.height * grid.width
            transpose(x, target * grid.width, plane, slots, at, size, grid.width, size)


@jit
def scratch(size: int, like: np.ndarray) -> np.ndarray:
    """Zeros that start on a cache line: what lies behind the last row of a tile is read, and not used."""
    memory = aligned(size + LINE, like)
    clear(memory, 0, len(memory))
    return memory


def forward_memory(grid: Grid, part: Part, itemsize: int) -> int:
    """Elements of memory that a thread needs for `forward_items`."""
    width = TILE_BYTES // itemsize
    across = -(-(grid.outputs // grid.groups) // width) * width
    return whole_lines(part.tile * part.depth) + part.tile * (across + LINE)


@cached_jit
def forward_items(
    start: int,
    stop: int,
    memory: np.ndarray,
    packed: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    y: np.ndarray,
    grid: Grid,
    chunks: Chunks,
    part: Part,
) -> None:
    """Items are tiles of output positions: samples of one chunk after the other, times their weights."""
    width = TILE_BYTES // y.itemsize
    across = -(-(grid.outputs // grid.groups) // width) * width
    points = new_points(part.tile * grid.taps, y)
    places, corners, pitch = points.at, points.weights, grid.width + 2
    result = memory[-part.tile * (across + LINE) :]
    for item in range(start, stop):
        image, first = item // part.tiles, item % part.tiles * part.tile
        count, group_of_points = min(part.tile, grid.positions - first), -1
        begins = True
        for chunk in range(part.chunk, part.chunk + part.chunks):
            if chunks.offset_group[chunk] != group_of_points:
                group_of_points = chunks.offset_group[chunk]
                set_up(points, offset, mask, grid, part.image + image, group_of_points, first, count)
            size = chunks.size[chunk]
            base = packed_at(grid, part, image, chunks.first[chunk])
            for tap in range(0, grid.taps, part.step):
                taps = min(part.step, grid.taps - tap)
                depth, at = taps * size, chunks.weight_at[chunk] + tap * size * width
                for i in range(count):
                    for t in range(taps):
                        k, to = i * grid.taps + tap + t, i * depth + t * size
                        sample(packed, base, pitch, size, places, corners, k, memory, to)
                multiply_rows(
                    result, int64(0), across + LINE, count, across,
                    memory, int64(0), depth, weights, at, width, grid.taps * size * width, depth,
                    tap > 0 or not begins,
                )  # fmt: skip
            begins = chunk + 1 == part.chunk + part.chunks or chunks.group[chunk + 1] != chunks.group[chunk]
            if begins:
                _write(y, result, bias, grid, chunks, part, chunk, image, first, count)


@jit
def _write(
    y: np.ndarray,
    result: np.ndarray,
    bias: np.ndarray,
    grid: Grid,
    chunks: Chunks,
    part: Part,
    chunk: int,
    image: int,
    first: int,
    count: int,
) -> None:
    """The outputs of a tile and group: with bias, or added to what other chunks gave before."""
    width, each, group = TILE_BYTES // y.itemsize, grid.outputs // grid.groups, chunks.group[chunk]
    stride = -(-each // width) * width + 16
    add = True
    for earlier in range(part.chunk, chunk + 1):
        if chunks.group[earlier] == group and chunks.begins[earlier]:
            add = False
    at = ((part.image + image) * grid.outputs + group * each) * grid.positions + first
    if not add:
        for r in range(count if bias.size else 0):
            for o in range(uint64(each)):
                result[uint64(r * stride) + o] += bias[uint64(group * each) + o]
        transpose(y, at, grid.positions, result, int64(0), stride, count, each)
        return
    for o in range(each):
        for r in range(count):
            y[at + o * grid.positions + r] += result[r * stride + o]
