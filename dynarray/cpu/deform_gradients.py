"""The backward kernels of `deform_conv2d`, and those of `sample_points`, on the CPU."""

from typing import NamedTuple

import numpy as np
from numba import boolean, int64, uint64

from .compile import cached_jit, jit
from .deform_kernels import (
    Chunks,
    Grid,
    Part,
    Points,
    multiples,
    new_points,
    packed_at,
    product,
    sample,
    scratch,
    set_up,
    spread,
    sums,
)
from .gemm import ROWS, TILE_BYTES


class Inputs(NamedTuple):
    """What the backward pass reads."""

    grad_output: np.ndarray
    packed: np.ndarray
    offset: np.ndarray
    mask: np.ndarray
    weights: np.ndarray


class Gradients(NamedTuple):
    """What it adds to; arrays that are not wanted have no elements."""

    packed: np.ndarray
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
    shares: int  # an image belongs to one share; each has a slot for the gradient of the weights


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
    base = packed_at(grid, part, image, chunks.first[chunk])
    sums_at = ((tile - band.start) * part.chunks + chunk - part.chunk) * 4 * part.tile * grid.taps
    for i in range(min(part.tile, grid.positions - tile % part.tiles * part.tile)):
        for tap in range(grid.taps):
            k, at = i * grid.taps + tap, i * stride + tap * size
            if wanted.points:
                out_at = sums_at + 4 * k
                sums(inputs.packed, base, pitch, size, points.at[k], columns, at, grads.corner_sums, out_at)
            if wanted.x:
                spread(grads.packed, base, pitch, size, points, k, columns, at)
            if wanted.weight:
                sample(inputs.packed, base, pitch, size, points, k, columns, at)


@cached_jit
def backward_items(
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
    """Items are (share of the images, chunk): no two write the same pixel, weight or sum."""
    packed, each = inputs.packed, grid.outputs // grid.groups
    width, rows, panels = TILE_BYTES // packed.itemsize, _whole(part.tile, ROWS), _whole(each, ROWS)
    points = new_points(grid, part, packed)
    by_position, by_output = scratch(rows * each, packed), scratch(part.tile * panels, packed)
    columns = scratch(rows * _whole(part.depth, width), packed)
    for item in range(start, stop):
        share, chunk = item // part.chunks, part.chunk + item % part.chunks
        group, weight_at = chunks.group[chunk], chunks.weight_at[chunk]
        across = _whole(grid.taps * chunks.size[chunk], width)
        steps = multiples(across, max(each, part.tile))
        slot = share * (len(grads.weights) // band.shares) + weight_at
        for tile in range(band.start, band.stop):
            image, first = tile // part.tiles, tile % part.tiles * part.tile
            if image % band.shares != share:
                continue
            image += part.image
            count = min(part.tile, grid.positions - first)
            at = (image * grid.outputs + group * each) * grid.positions + first
            _pack_gradient(by_position, by_output, inputs.grad_output, at, grid.positions, each, count)
            set_up(points, inputs.offset, inputs.mask, grid, image, chunks.offset_group[chunk], first, count)
            size = (_whole(count, ROWS), across)
            product(
                columns,
                int64(0),
                across,
                size,
                by_position,
                inputs.weights,
                weight_at,
                steps,
                each,
                boolean(0),
            )
            _pull_back(columns, across, points, inputs, grads, grid, chunks, part, band, wanted, tile, chunk)
            if wanted.weight:
                size = (panels, across)
                product(
                    grads.weights, slot, across, size, by_output, columns, int64(0), steps, count, boolean(1)
                )


@jit
def _whole(count: int, step: int) -> int:
    return -(-count // step) * step


@jit
def _pack_gradient(
    by_position: np.ndarray,
    by_output: np.ndarray,
    grad_output: np.ndarray,
    at: int,
    plane: int,
    each: int,
    count: int,
) -> None:
    """Gradients of the output of a tile as a left matrix: (position, output), and (output, position)."""
    for o in range(each):
        source = uint64(at + o * plane)
        other = uint64(o // ROWS * count * ROWS + o % ROWS)
        for i in range(0, count, ROWS):
            place = uint64(i * each + o * ROWS)
            for r in range(uint64(min(ROWS, count - i))):
                by_position[place + r] = grad_output[source + uint64(i) + r]
        for i in range(uint64(count)):
            by_output[other + i * uint64(ROWS)] = grad_output[source + i]


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
    points = new_points(grid, part, offset)
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
            for k in range(count * grid.taps):
                s0 = s1 = s2 = s3 = offset.dtype.type(0)
                for c in range(item * part.chunks + chunk, item * part.chunks + end):
                    source = c * per_chunk + 4 * k
                    s0 += corner_sums[source]
                    s1 += corner_sums[source + 1]
                    s2 += corner_sums[source + 2]
                    s3 += corner_sums[source + 3]
                at = plane + k % grid.taps * grid.positions + first + k // grid.taps
                y_at = 2 * plane + 2 * (k % grid.taps) * grid.positions + first + k // grid.taps
                totals = (s0, s1, s2, s3)
                _point_gradient(totals, points, k, grad_offset, y_at, grid.positions, grad_mask, at)
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
    points = new_points(grid, part, y)
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
                    sample(packed, base, grid.width + 2, size, points, i * grid.taps + tap, columns, i * size)
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
    points = new_points(grid, part, inputs.packed)
    columns = scratch(part.tile * part.depth, inputs.packed)
    for item in range(start, stop):
        share, chunk = item // part.chunks, part.chunk + item % part.chunks
        size = chunks.size[chunk]
        for tile in range(band.start, band.stop):
            image, first = tile // part.tiles, tile % part.tiles * part.tile
            if image % band.shares != share:
                continue
            image += part.image
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
