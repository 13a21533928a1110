"""Kernels of `convolution`: blocks of pixels packed into planes, and products with them."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import TRUE, ZERO, cached_jit, jit
from ..engine.gemm import TILE_ROW_BYTES, TILE_ROWS, LeftPanels, Matrix, RightStrips, multiply
from ..engine.pixels import clear, pack_rows, unpack_rows
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


class ConvDivision(NamedTuple):
    """How the work of a correlation is divided."""

    groups: int
    parts: int  # of the channels of a group's output
    depth: int  # channels times taps that are added up at once


class ConvTarget(NamedTuple):
    """Every `step`-th pixel of images, from `origin` on."""

    images: np.ndarray
    origin: tuple[int, int]
    step: tuple[int, int]


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
    division: ConvDivision,
) -> None:
    """Items are blocks of the target and parts of its channels; `panels` are the packed weights."""
    origin, step, shape = target.origin, target.step, target.images.shape
    channels, rows = image.shape[1] // division.groups, shape[1] // division.groups
    output = -((origin[0] - shape[2]) // step[0]), -((origin[1] - shape[3]) // step[1])
    blocks, starts, pitch = planes.blocks, planes.starts, planes.blocks.pitch
    depth, panels_of_group = len(starts), -(-rows // TILE_ROWS)
    share, tile = -(-panels_of_group // division.parts), TILE_ROW_BYTES // image.itemsize
    line = len(scratch.sums) // (share * TILE_ROWS)
    count, before = blocks.down * blocks.across, -1
    for item in range(start, stop):
        place, part = item // division.parts, item % division.parts
        n, group = place // (division.groups * count), place // count % division.groups
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
        for k in range(0, depth, division.depth):
            multiply(
                Matrix(scratch.sums, ZERO, line),
                LeftPanels(panels, at + k * TILE_ROWS, panel),
                RightStrips(scratch.packed, ZERO, tile, starts[k : min(k + division.depth, depth)]),
                size,
                scratch.corner,
                k > 0,
            )
        x = origin[1] + left * step[1]
        for row in range(first, last):
            lines = target.images[n, group * rows + row, :, x : x + (wide - 1) * step[1] + 1]
            unpack_rows(scratch.sums, (row - first) * line, lines, top, high, pitch, (origin[0], 0), step)


@jit
def _pack_block(packed: np.ndarray, image: np.ndarray, planes: ConvPlanes, top: int, left: int) -> None:
    """The pixels that the block at (top, left) reads."""
    clear(packed, 0, len(packed))
    phases, pitch = len(planes.origins), planes.blocks.pitch
    for c in range(len(image)):
        for f in range(phases):
            origin = planes.origins[f, 0], planes.origins[f, 1] + left * planes.stride[1]
            at = (c * phases + f) * planes.size
            pack_rows(packed, at, image[c], top, planes.size // pitch, pitch, origin, planes.stride)


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
                outputs = grad_output[n, group * rows + row :][:share]
                _pack_panel(scratch.panel, outputs, top, left, high, wide)
                for t in range(taps):
                    multiply(
                        Matrix(flat, ((item * taps + t) * rows + row) * together, together),
                        LeftPanels(scratch.panel, ZERO, ZERO),
                        RightStrips(scratch.packed, planes.starts[t], tile, steps),
                        (share, len(pixels)),
                        scratch.corner,
                        TRUE,
                    )


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


@jit
def _pack_panel(
    panel: np.ndarray, grad_output: np.ndarray, top: int, left: int, high: int, wide: int
) -> None:
    """`TILE_ROWS` channels of the output gradient as a panel, zeros for those beyond the last."""
    for row in range(TILE_ROWS):
        for i in range(high):
            at = i * wide * TILE_ROWS + row
            if row < len(grad_output):
                line = grad_output[row, top + i]
                for j in range(wide):
                    panel[at + j * TILE_ROWS] = line[left + j]
            else:
                for j in range(wide):
                    panel[at + j * TILE_ROWS] = 0
