"""Sampling and the forward kernels of `deform_conv2d` on the CPU, and the records of a plan."""

from typing import NamedTuple

import numpy as np
from numba import int64, uint64

from .compile import cached_jit, jit
from .gemm import TILE_BYTES, multiply_rows
from .planes import aligned, clear, whole_lines
from .transpose import transpose

LINE = 16  # elements, at least those of a cache line


class Grid(NamedTuple):
    """Sizes of a call, and where its regular grid lies."""

    channels: int
    outputs: int  # channels of the output
    groups: int
    offset_groups: int
    height: int
    width: int
    pixels: int  # of a packed image
    out_width: int
    positions: int
    taps: int
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


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


class Points(NamedTuple):
    """The points of one tile and offset group: position after position, tap after tap."""

    at: np.ndarray  # top left corner, in pixels of a packed image
    ly: np.ndarray  # distance from there
    lx: np.ndarray
    factor: np.ndarray  # mask, or 1


@jit
def new_points(grid: Grid, part: Part, like: np.ndarray) -> Points:
    """Memory for the points of one tile."""
    count = part.tile * grid.taps
    return Points(
        np.empty(count, np.int64),
        np.empty(count, like.dtype),
        np.empty(count, like.dtype),
        np.empty(count, like.dtype),
    )


@jit
def set_up(
    points: Points,
    offset: np.ndarray,
    mask: np.ndarray,
    grid: Grid,
    image: int,
    group: int,
    start: int,
    count: int,
) -> None:
    """The points of `count` positions from `start` on. `mask` has no elements where there is none.

    A packed image has a ring of zeros and one more row of them below: there lie all four corners of a point
    that is not near the image. Its distances are 0, or NaN where a coordinate is.
    """
    pitch, outside = grid.width + 2, (grid.height + 1) * (grid.width + 2)
    zero, one = offset.dtype.type(0), offset.dtype.type(1)
    for tap in range(grid.taps):
        plane = ((image * grid.offset_groups + group) * grid.taps + tap) * grid.positions
        base_y = tap // grid.kernel_w * grid.dilation[0] - grid.padding[0]
        base_x = tap % grid.kernel_w * grid.dilation[1] - grid.padding[1]
        row, column = start // grid.out_width, start % grid.out_width
        for i in range(count):
            p = start + i
            y = offset.dtype.type(row * grid.stride[0] + base_y) + offset[2 * plane + p]
            x = offset.dtype.type(column * grid.stride[1] + base_x) + offset[2 * plane + grid.positions + p]
            column += 1
            if column == grid.out_width:
                row, column = row + 1, 0
            k = i * grid.taps + tap
            points.factor[k] = mask[plane + p] if mask.size else one
            if y > -1 and y < grid.height and x > -1 and x < grid.width:
                top, left = np.floor(y), np.floor(x)
                points.at[k] = (int(top) + 1) * pitch + int(left) + 1
                points.ly[k] = y - top
                points.lx[k] = x - left
            else:
                lost = np.isnan(y) or np.isnan(x)
                points.at[k] = outside
                points.ly[k] = points.lx[k] = np.nan if lost else zero


@jit
def _weights(points: Points, k: int) -> tuple:
    """Weights of the four corners: top left, top right, below left, below right."""
    one = points.ly.dtype.type(1)
    low, high = points.ly[k] * points.factor[k], (one - points.ly[k]) * points.factor[k]
    right = points.lx[k]
    return high * (one - right), high * right, low * (one - right), low * right


@jit
def sample(
    image: np.ndarray, base: int, pitch: int, size: int, points: Points, k: int, out: np.ndarray, at: int
) -> None:
    """out[at + c] = the image at point k, for `size` channels side by side."""
    a, count = uint64(base + points.at[k] * size), uint64(size)
    b = uint64(base + (points.at[k] + pitch) * size)
    w0, w1, w2, w3 = _weights(points, k)
    t = uint64(at)
    for c in range(count):
        out[t + c] = (w0 * image[a + c] + w1 * image[a + count + c]) + (
            w2 * image[b + c] + w3 * image[b + count + c]
        )


@jit
def sums(
    image: np.ndarray,
    base: int,
    pitch: int,
    size: int,
    at: int,
    gradient: np.ndarray,
    g_at: int,
    out: np.ndarray,
    out_at: int,
) -> None:
    """For each corner of the pixel `at`, the sum over channels of gradient * corner."""
    a, count = uint64(base + at * size), uint64(size)
    b, g = uint64(base + (at + pitch) * size), uint64(g_at)
    s0 = s1 = s2 = s3 = image.dtype.type(0)
    for c in range(count):
        value = gradient[g + c]
        s0 += value * image[a + c]
        s1 += value * image[a + count + c]
        s2 += value * image[b + c]
        s3 += value * image[b + count + c]
    out[out_at], out[out_at + 1], out[out_at + 2], out[out_at + 3] = s0, s1, s2, s3


@jit
def spread(
    image: np.ndarray, base: int, pitch: int, size: int, points: Points, k: int, gradient: np.ndarray, at: int
) -> None:
    """The adjoint of `sample`: add the gradient to the corners of point k."""
    a, count = uint64(base + points.at[k] * size), uint64(size)
    b, g = uint64(base + (points.at[k] + pitch) * size), uint64(at)
    w0, w1, w2, w3 = _weights(points, k)
    for c in range(count):
        image[a + c] += w0 * gradient[g + c]
    for c in range(count):
        image[a + count + c] += w1 * gradient[g + c]
    for c in range(count):
        image[b + c] += w2 * gradient[g + c]
    for c in range(count):
        image[b + count + c] += w3 * gradient[g + c]


@jit
def packed_at(grid: Grid, part: Part, image: int, first_channel: int) -> int:
    """Where the part of a packed image that begins with a channel begins."""
    return (image * part.channels + first_channel - part.first_channel) * grid.pixels


@cached_jit
def pack_items(
    start: int, stop: int, x: np.ndarray, packed: np.ndarray, grid: Grid, chunks: Chunks, part: Part
) -> None:
    """Items are rows of packed images: channels side by side, pixel after pixel, in a ring of zeros."""
    lines, pitch = grid.height + 3, grid.width + 2
    for item in range(start, stop):
        image, line = item // lines, item % lines
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


@cached_jit
def pack_weight_items(
    start: int, stop: int, weight: np.ndarray, packed: np.ndarray, grid: Grid, chunks: Chunks, part: Part
) -> None:
    """Items are (chunk, strip of outputs): right matrices with a row for each tap and channel."""
    each, deep, width = (
        grid.outputs // grid.groups,
        grid.channels // grid.groups,
        TILE_BYTES // weight.itemsize,
    )
    strips = -(-each // width)
    for item in range(start, stop):
        chunk, strip = part.chunk + item // strips, item % strips
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
    points = new_points(grid, part, y)
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
                        sample(packed, base, grid.width + 2, size, points, k, memory, to)
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
        transpose(y, at, grid.positions, result, 0, stride, count, each)
        return
    for o in range(each):
        for r in range(count):
            y[at + o * grid.positions + r] += result[r * stride + o]
