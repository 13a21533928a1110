"""The backward kernels of `deform_conv2d`, and those of `sample_points`, on the CPU."""

from typing import NamedTuple

import numpy as np
from numba import boolean, int64, uint64

from ..engine.compile import cached_jit, jit
from ..engine.gemm import ROWS, TILE_BYTES, multiply_rows
from ..engine.pixels import clear, copy, transpose, whole_lines
from .kernels import LINE, Chunks, Part, packed_at, scratch
from .points import Grid, Points, new_points, sample, set_up, spread, sums


class Inputs(NamedTuple):
    """What the backward pass reads."""

    grad_output: np.ndarray
    packed: np.ndarray
    offset: np.ndarray
    mask: np.ndarray
    weights: np.ndarray


class Gradients(NamedTuple):
    """What it adds to; arrays that are not wanted have no elements."""

    packed: np.ndarray  # of each image, one slot for each of its shares
    weights: np.ndarray  # one slot for each share
    corner_sums: np.ndarray  # of each point: by tile, chunk, point and corner


class Wanted(NamedTuple):
    """Which gradients."""

    x: bool
    points: bool  # of offsets or masks
    weight: bool


class Band(NamedTuple):
    """Tiles that are worked on before the sums of their points are added up, and how they are divided."""

    start: int
    stop: int
    shares: int  # tiles of one share add to the same memory, one after the other
    splits: int  # shares that an image has


@cached_jit
def weight_items(
    start: int,
    stop: int,
    weight: np.ndarray,
    packed: np.ndarray,
    grid: Grid,
    chunks: Chunks,
    part: Part,
    slots: int,
) -> None:
    """Items are (chunk, output of its group): rows of a matrix with a column for each tap and channel.

    Without slots, from the weights to right matrices in strips; else the sum of so many gradients, which are
    row by row, to that of the weights. One kernel takes half as long to compile as two.
    """
    each, deep, width = (
        grid.outputs // grid.groups,
        grid.channels // grid.groups,
        TILE_BYTES // weight.itemsize,
    )
    strip, distance = -(-each // ROWS) * ROWS * width, len(packed) // max(1, slots)
    for item in range(start, stop):
        chunk, o = part.chunk + item // each, item % each
        size, group, at = chunks.size[chunk], chunks.group[chunk], chunks.weight_at[chunk]
        source = ((group * each + o) * deep + chunks.first[chunk] - group * deep) * grid.taps
        columns, free = grid.taps * size, width
        at += o * (-(-columns // width) * width if slots else width)
        if not slots and columns % width:
            clear(packed, at + columns // width * strip, width)
        for tap in range(grid.taps):
            for c in range(size):
                place = source + c * grid.taps + tap
                if slots:
                    total = weight.dtype.type(0)
                    for slot in range(slots):
                        total += packed[at + slot * distance]
                    weight[place] = total
                    at += 1
                    continue
                packed[at] = weight[place]
                at, free = at + 1, free - 1
                if not free:
                    at, free = at + strip - width, width


@jit
def _share(tile: int, part: Part, band: Band) -> int:
    """The share that a tile belongs to."""
    return (tile // part.tiles) * band.splits % band.shares + tile % part.tiles % band.splits


@jit
def _clear_pixels(
    grads: Gradients, grid: Grid, chunks: Chunks, part: Part, band: Band, share: int, chunk: int
) -> None:
    """Zeros for the pixels that the tiles of a share add to, before the first of them."""
    slot = share % band.splits * (len(grads.packed) // band.splits)
    for image in range(share // band.splits, part.images, band.shares // band.splits):
        at = packed_at(grid, part, image, chunks.first[chunk])
        clear(grads.packed, slot + at, chunks.size[chunk] * grid.pixels)


@jit
def _pull_back(
    columns: np.ndarray,
    stride: int,
    points: Points,
    inputs: Inputs,
    grads: Gradients,
    grid: Grid,
    chunks: Chunks,
    part: Part,
    band: Band,
    wanted: Wanted,
    tile: int,
    chunk: int,
) -> None:
    """From gradients of columns, those of pixels and points; then the columns in their place."""
    image, pitch, size = tile // part.tiles, grid.width + 2, chunks.size[chunk]
    places, weights, packed = points.at, points.weights, inputs.packed
    grad_packed, corner_sums = grads.packed, grads.corner_sums
    base = packed_at(grid, part, image, chunks.first[chunk])
    to = base + tile % part.tiles % band.splits * (len(grads.packed) // band.splits)
    sums_at = ((tile - band.start) * part.chunks + chunk - part.chunk) * 4 * part.tile * grid.taps
    for i in range(min(part.tile, grid.positions - tile % part.tiles * part.tile)):
        for tap in range(grid.taps):
            k, at = i * grid.taps + tap, i * stride + tap * size
            if wanted.points:
                sums(packed, base, pitch, size, places, k, columns, at, corner_sums, sums_at + 4 * k)
            if wanted.x:
                spread(grad_packed, to, pitch, size, places, weights, k, columns, at)
            if wanted.weight:
                sample(packed, base, pitch, size, places, weights, k, columns, at)


def backward_memory(grid: Grid, part: Part, itemsize: int) -> tuple[int, int, int]:
    """Elements that a thread needs for `backward_items`: columns, and the gradient as it is and turned."""
    each, width = grid.outputs // grid.groups, TILE_BYTES // itemsize
    columns = part.tile * (-(-part.depth // width) * width + LINE)
    by_output = -(-each // ROWS) * ROWS * (part.tile + LINE)
    return columns, whole_lines(by_output), part.tile * each


@cached_jit
def backward_items(
    start: int,
    stop: int,
    memory: np.ndarray,
    parts_of_memory: tuple,
    inputs: Inputs,
    grads: Gradients,
    grid: Grid,
    chunks: Chunks,
    part: Part,
    band: Band,
    wanted: Wanted,
) -> None:
    """Items are (share of the tiles, chunk): no two write the same memory."""
    each, width = grid.outputs // grid.groups, TILE_BYTES // inputs.packed.itemsize
    points = new_points(part.tile * grid.taps, inputs.packed)
    clear(memory, 0, len(memory))  # what rows and columns beyond the matrices give is added to slots
    pitch, middle = part.tile + LINE, parts_of_memory[0] + parts_of_memory[1]
    columns, by_output = memory[: parts_of_memory[0]], memory[parts_of_memory[0] : middle]
    by_position = memory[middle:]
    for item in range(start, stop):
        share, chunk = item // part.chunks, part.chunk + item % part.chunks
        group, weight_at = chunks.group[chunk], chunks.weight_at[chunk]
        across = -(-grid.taps * chunks.size[chunk] // width) * width
        slot = share * (len(grads.weights) // band.shares) + weight_at
        if wanted.x and band.start == 0:
            _clear_pixels(grads, grid, chunks, part, band, share, chunk)
        for tile in range(band.start, band.stop):
            if _share(tile, part, band) != share:
                continue
            image, first = part.image + tile // part.tiles, tile % part.tiles * part.tile
            count = min(part.tile, grid.positions - first)
            at = (image * grid.outputs + group * each) * grid.positions + first
            for o in range(each):
                copy(by_output, o * pitch, inputs.grad_output, at + o * grid.positions, count)
            set_up(points, inputs.offset, inputs.mask, grid, image, chunks.offset_group[chunk], first, count)
            if wanted.x or wanted.points:
                transpose(by_position, int64(0), each, by_output, int64(0), pitch, each, count)
                multiply_rows(
                    columns, int64(0), across + LINE, count, across, by_position, int64(0), each,
                    inputs.weights, weight_at, width, -(-each // ROWS) * ROWS * width, each, boolean(0),
                )  # fmt: skip
            stride = across + LINE
            _pull_back(columns, stride, points, inputs, grads, grid, chunks, part, band, wanted, tile, chunk)
            if wanted.weight:
                multiply_rows(
                    grads.weights, slot, across, each, across, by_output, int64(0), pitch,
                    columns, int64(0), stride, width, count, boolean(1),
                )  # fmt: skip


@cached_jit
def point_items(
    start: int,
    stop: int,
    corner_sums: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    grad_offset: np.ndarray,
    grad_mask: np.ndarray,
    grid: Grid,
    chunks: Chunks,
    part: Part,
    band: Band,
) -> None:
    """Items are tiles of the band: gradients of their points, the sums of all chunks added up in order."""
    points = new_points(part.tile * grid.taps, offset)
    per_chunk = 4 * part.tile * grid.taps
    for item in range(start, stop):
        image, first = (band.start + item) // part.tiles, (band.start + item) % part.tiles * part.tile
        count, chunk = min(part.tile, grid.positions - first), 0
        while chunk < part.chunks:
            group, end = chunks.offset_group[part.chunk + chunk], chunk + 1
            while end < part.chunks and chunks.offset_group[part.chunk + end] == group:
                end += 1
            set_up(points, offset, mask, grid, part.image + image, group, first, count)
            plane = ((part.image + image) * grid.offset_groups + group) * grid.taps * grid.positions
            for tap in range(grid.taps):
                at = plane + tap * grid.positions + first
                y_at = at + plane + tap * grid.positions
                for i in range(count):
                    k = i * grid.taps + tap
                    s0 = s1 = s2 = s3 = offset.dtype.type(0)
                    for c in range(item * part.chunks + chunk, item * part.chunks + end):
                        source = uint64(c * per_chunk + 4 * k)
                        s0 += corner_sums[source]
                        s1 += corner_sums[source + uint64(1)]
                        s2 += corner_sums[source + uint64(2)]
                        s3 += corner_sums[source + uint64(3)]
                    totals = (s0, s1, s2, s3)
                    _point_gradient(
                        totals, points, k, grad_offset, y_at + i, grid.positions, grad_mask, at + i
                    )
            chunk = end


@jit
def _point_gradient(
    totals: tuple,
    points: Points,
    k: int,
    grad_offset: np.ndarray,
    y_at: int,
    x_from_y: int,
    grad_mask: np.ndarray,
    at: int,
) -> None:
    """Add the derivatives by a point, from the sums over channels of gradient * corner."""
    one, (s0, s1, s2, s3) = points.ly.dtype.type(1), totals
    ly, lx, factor = points.ly[k], points.lx[k], points.factor[k]
    if grad_offset.size:
        grad_offset[y_at] += factor * ((one - lx) * (s2 - s0) + lx * (s3 - s1))
        grad_offset[y_at + x_from_y] += factor * ((one - ly) * (s1 - s0) + ly * (s3 - s2))
    if grad_mask.size:
        grad_mask[at] += (one - ly) * ((one - lx) * s0 + lx * s1) + ly * ((one - lx) * s2 + lx * s3)


@cached_jit
def sample_items(
    start: int,
    stop: int,
    packed: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    y: np.ndarray,
    grid: Grid,
    chunks: Chunks,
    part: Part,
) -> None:
    """Items are tiles of output positions: samples of chunk after chunk, written channel by channel."""
    points = new_points(part.tile * grid.taps, y)
    columns = scratch(part.tile * part.depth, y)
    for item in range(start, stop):
        image, first = item // part.tiles, item % part.tiles * part.tile
        count = min(part.tile, grid.positions - first)
        set_up(points, offset, mask, grid, part.image + image, 0, first, count)
        for chunk in range(part.chunk, part.chunk + part.chunks):
            size = chunks.size[chunk]
            base = packed_at(grid, part, image, chunks.first[chunk])
            for tap in range(grid.taps):
                for i in range(count):
                    k = i * grid.taps + tap
                    sample(
                        packed, base, grid.width + 2, size, points.at, points.weights, k, columns, i * size
                    )
                for c in range(size):
                    channel = (part.image + image) * grid.channels + chunks.first[chunk] + c
                    at = (channel * grid.taps + tap) * grid.positions + first
                    for i in range(count):
                        y[at + i] = columns[i * size + c]


@cached_jit
def sample_backward_items(
    start: int,
    stop: int,
    inputs: Inputs,
    grads: Gradients,
    grid: Grid,
    chunks: Chunks,
    part: Part,
    band: Band,
    wanted: Wanted,
) -> None:
    """As `backward_items`, without weights."""
    points = new_points(part.tile * grid.taps, inputs.packed)
    columns = scratch(part.tile * part.depth, inputs.packed)
    for item in range(start, stop):
        share, chunk = item // part.chunks, part.chunk + item % part.chunks
        size = chunks.size[chunk]
        if wanted.x and band.start == 0:
            _clear_pixels(grads, grid, chunks, part, band, share, chunk)
        for tile in range(band.start, band.stop):
            if _share(tile, part, band) != share:
                continue
            image, first = part.image + tile // part.tiles, tile % part.tiles * part.tile
            count = min(part.tile, grid.positions - first)
            set_up(points, inputs.offset, inputs.mask, grid, image, 0, first, count)
            for c in range(size):
                channel = image * grid.channels + chunks.first[chunk] + c
                for tap in range(grid.taps):
                    at = (channel * grid.taps + tap) * grid.positions + first
                    for i in range(count):
                        columns[(i * grid.taps + tap) * size + c] = inputs.grad_output[at + i]
            stride = grid.taps * size
            _pull_back(columns, stride, points, inputs, grads, grid, chunks, part, band, wanted, tile, chunk)
