"""Kernels of `convolution`: blocks of pixels packed into planes, and products with them."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import TRUE, ZERO, cached_jit, jit
from ..engine.gemm import TILE_ROW_BYTES, TILE_ROWS, Matrix, RightStrips, multiply
from ..engine.pixels import PackedRows, clear, pack_rows, transpose, unpack_rows
from ..engine.vectors import in_row


class ConvBlocks(NamedTuple):
    """How an output is cut into blocks of pixels, and how they are packed."""

    down: int  # blocks
    across: int
    height: int
    width: int
    pitch: int  # pixels of a packed row, with what its taps reach beyond the block


class ConvPlanes(NamedTuple):
    """What a block reads: an image in planes by channel and phase of the stride, or by phase alone."""

    blocks: ConvBlocks
    size: int  # elements of a plane
    channels: int  # side by side in a plane
    stride: tuple[int, int]
    origins: np.ndarray  # (phases, 2): the pixel of the image that a plane's first is, for the first block
    starts: np.ndarray  # where the taps read, channel after channel


class ConvTarget(NamedTuple):
    """Every `step`-th pixel of images, from `origin` on, and how the work on these is divided."""

    images: Any
    origin: tuple[int, int]
    step: tuple[int, int]
    groups: int
    parts: int  # of the channels of a group
    depth: int  # channels times taps that are added up at once


class ConvScratch(NamedTuple):
    """Memory of `conv_correlate_items`: sizes, or the arrays."""

    packed: Any
    sums: Any
    corner: Any  # for `multiply`


class ConvWeightScratch(NamedTuple):
    """Memory of `conv_weight_items`: sizes, or the arrays."""

    packed: Any
    panel: Any  # of the output gradient
    pixels: Any  # where those of a block begin in a plane; integers
    corner: Any


@jit
def _place(blocks: ConvBlocks, number: int, output: tuple) -> tuple:
    """First row and column of a block, and how many of each it has."""
    top, left = number // blocks.across * blocks.height, number % blocks.across * blocks.width
    return top, left, min(blocks.height, output[0] - top), min(blocks.width, output[1] - left)


@cached_jit
def conv_pack_items(
    start: int,
    stop: int,
    panels: np.ndarray,
    weight: np.ndarray,
    group_size: int,
    rows: int,
    distances: tuple,
    offsets: np.ndarray,
) -> None:
    """panels (groups, panels, channels * taps, TILE_ROWS), zeros beyond the last row."""
    taps = len(offsets)
    for item in range(start, stop):
        group, panel = item // panels.shape[1], item % panels.shape[1]
        target = panels[group, panel]
        at = group * group_size + panel * TILE_ROWS * distances[0]
        count = min(TILE_ROWS, rows - panel * TILE_ROWS)
        for c in range(panels.shape[2] // taps):
            for t in range(taps):
                place, line = at + c * distances[1] + offsets[t], target[c * taps + t]
                for r in range(count):
                    line[r] = weight[place + r * distances[0]]
                for r in range(count, TILE_ROWS):
                    line[r] = 0


@cached_jit
def conv_correlate_items(
    start: int,
    stop: int,
    scratch: ConvScratch,
    target: ConvTarget,
    image: np.ndarray,
    panels: np.ndarray,
    planes: ConvPlanes,
) -> None:
    """Items are blocks of the target and parts of its channels; `panels` are the packed weights."""
    images, origin, step, groups, parts, most = target
    channels, rows, shape = image.shape[1] // groups, images.shape[1] // groups, images.shape
    output = -((origin[0] - shape[2]) // step[0]), -((origin[1] - shape[3]) // step[1])
    blocks, starts, pitch = planes.blocks, planes.starts, planes.blocks.pitch
    depth, panels_of_group = len(starts), -(-rows // TILE_ROWS)
    share, tile = -(-panels_of_group // parts), TILE_ROW_BYTES // image.itemsize
    line = len(scratch.sums) // (share * TILE_ROWS)
    count, before, sums = blocks.down * blocks.across, -1, Matrix(scratch.sums, ZERO, line)
    for item in range(start, stop):
        place, part = item // parts, item % parts
        n, group = place // (groups * count), place // count % groups
        top, left, high, wide = _place(blocks, place % count, output)
        first, last = min(rows, part * share * TILE_ROWS), min(rows, (part + 1) * share * TILE_ROWS)
        if high <= 0 or wide <= 0 or first == last:
            continue
        if place != before:
            pixels = image[n, group * channels : (group + 1) * channels]
            _pack_block(scratch.packed, pixels, planes, top, left)
            before = place
        size, panel = (last - first, (high - 1) * pitch + wide), depth * TILE_ROWS
        at = (group * panels_of_group + part * share) * panel
        for k in range(0, depth, most):
            weights = Matrix(panels, at + k * TILE_ROWS, panel)
            pixels_of_taps = RightStrips(scratch.packed, ZERO, tile, starts[k : min(k + most, depth)])
            multiply(sums, weights, pixels_of_taps, size, scratch.corner, k > 0)
        x = origin[1] + left * step[1]
        packed = PackedRows(top, high, pitch, (origin[0], 0), step)
        for row in range(first, last):
            lines = images[n, group * rows + row, :, x : x + (wide - 1) * step[1] + 1]
            unpack_rows(scratch.sums, (row - first) * line, lines, packed)


@jit
def _pack_block(packed: np.ndarray, image: np.ndarray, planes: ConvPlanes, top: int, left: int) -> None:
    """The pixels that the block at (top, left) reads."""
    clear(packed, 0, len(packed))
    phases, pitch = len(planes.origins), planes.blocks.pitch
    for c in range(len(image)):
        for f in range(phases):
            origin = planes.origins[f, 0], planes.origins[f, 1] + left * planes.stride[1]
            rows = PackedRows(top, planes.size // pitch, pitch, origin, planes.stride)
            pack_rows(packed, (c * phases + f) * planes.size, image[c], rows)


@cached_jit
def conv_weight_items(
    start: int,
    stop: int,
    scratch: ConvWeightScratch,
    sums: np.ndarray,
    grad_output: np.ndarray,
    x: np.ndarray,
    planes: ConvPlanes,
    channels: int,
) -> None:
    """sums (slots, groups, parts, taps, rows, together): products over the pixels of every slots-th block."""
    slots, groups, parts, taps, rows, together = sums.shape
    (height, width), outputs = grad_output.shape[2:], in_row(grad_output)
    blocks, tile, flat = planes.blocks, TILE_ROW_BYTES // x.itemsize, in_row(sums)
    count = blocks.down * blocks.across
    for item in range(start, stop):
        slot, group, part = item // (groups * parts), item // parts % groups, item % parts
        first = part * together
        for number in range(slot, x.shape[0] * count, slots):
            n = number // count
            top, left, high, wide = _place(blocks, number % count, grad_output.shape[2:])
            if high <= 0 or wide <= 0:
                continue
            for i in range(high):
                for j in range(wide):
                    scratch.pixels[i * wide + j] = (i * blocks.pitch + j) * together
            pixels = x[n, group * channels + first :][: min(together, channels - first)]
            _pack_side_by_side(scratch.packed, pixels, planes, top, left)
            steps = scratch.pixels[: high * wide]
            for row in range(0, rows, TILE_ROWS):
                share = min(TILE_ROWS, rows - row)
                if share < TILE_ROWS:  # zeros for channels beyond the last
                    clear(scratch.panel, 0, high * wide * TILE_ROWS)
                first_plane = (n * groups + group) * rows + row
                for i in range(high):
                    at = (first_plane * height + top + i) * width + left
                    target = Matrix(scratch.panel, i * wide * TILE_ROWS, TILE_ROWS)
                    transpose(target, Matrix(outputs, at, height * width), share, wide)
                panel, size = Matrix(scratch.panel, ZERO, ZERO), (share, len(pixels))
                for t in range(taps):
                    out = Matrix(flat, ((item * taps + t) * rows + row) * together, together)
                    right = RightStrips(scratch.packed, planes.starts[t], tile, steps)
                    multiply(out, panel, right, size, scratch.corner, TRUE)


@jit
def _pack_side_by_side(
    packed: np.ndarray, image: np.ndarray, planes: ConvPlanes, top: int, left: int
) -> None:
    """The same, the channels of each pixel side by side."""
    clear(packed, 0, len(packed))
    pitch, stride, together = planes.blocks.pitch, planes.stride, planes.channels
    for f in range(len(planes.origins)):
        first_y, first_x = planes.origins[f, 0] + top * stride[0], planes.origins[f, 1] + left * stride[1]
        for i in range(planes.size // (pitch * together)):
            y = first_y + i * stride[0]
            if y < 0 or y >= image.shape[1]:
                continue
            for c in range(len(image)):
                line, at = image[c, y], f * planes.size + i * pitch * together + c
                for j in range(pitch):
                    x = first_x + j * stride[1]
                    if 0 <= x < image.shape[2]:
                        packed[at + j * together] = line[x]
