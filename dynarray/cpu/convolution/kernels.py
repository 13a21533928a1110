"""Kernels of `convolution`: blocks of pixels packed into planes, and products with them."""

from typing import NamedTuple

import numpy as np

from ..engine.compile import cached_jit, jit
from ..engine.gemm import ROWS, TILE_BYTES, multiply
from ..engine.pixels import aligned, clear, pack_rows, unpack_rows


class Block(NamedTuple):
    """How an output is cut into blocks of pixels, and how they are packed."""

    rows: int  # blocks down
    columns: int  # blocks across
    height: int
    width: int
    pitch: int  # length of a packed row, with what its taps reach beyond the block


@jit
def _corner(block: Block, place: int, output: tuple) -> tuple:
    """First row and column of a block, and how many of each it has."""
    top, left = place // block.columns * block.height, place % block.columns * block.width
    return top, left, min(block.height, output[0] - top), min(block.width, output[1] - left)


@cached_jit
def pack_items(
    start: int,
    stop: int,
    panels: np.ndarray,
    weight: np.ndarray,
    group_size: int,
    rows: int,
    distances: tuple,
    offsets: np.ndarray,
) -> None:
    """panels (groups, panels, channels * taps, ROWS), zeros beyond the last row."""
    taps = len(offsets)
    for item in range(start, stop):
        group, panel = item // panels.shape[1], item % panels.shape[1]
        target = panels[group, panel]
        at, count = group * group_size + panel * ROWS * distances[0], min(ROWS, rows - panel * ROWS)
        for c in range(panels.shape[2] // taps):
            for t in range(taps):
                place, line = at + c * distances[1] + offsets[t], target[c * taps + t]
                for r in range(count):
                    line[r] = weight[place + r * distances[0]]
                for r in range(count, ROWS):
                    line[r] = 0


@cached_jit
def correlate_items(
    start: int,
    stop: int,
    result: np.ndarray,
    image: np.ndarray,
    weight: np.ndarray,
    groups: int,
    block: Block,
    plane: int,
    stride: tuple,
    origins: np.ndarray,
    starts: np.ndarray,
    together: int,
    parts: int,
    origin: tuple,
    step: tuple,
) -> None:
    """Blocks of `result`, at `origin` + k*`step`, and `parts` of its channels.

    `starts` are where the inputs of each step of depth begin, of which `together` are taken at a time.
    """
    channels, rows = image.shape[1] // groups, result.shape[1] // groups
    output = -((origin[0] - result.shape[2]) // step[0]), -((origin[1] - result.shape[3]) // step[1])
    depth, panels = len(starts), -(-rows // ROWS)
    tile = TILE_BYTES // image.itemsize
    size = channels * len(origins) * plane
    packed = aligned(size + tile, image)
    line = (block.height * block.pitch + 15) // 16 * 16  # whole cache lines
    share = -(-panels // parts)
    sums, scratch = aligned(share * ROWS * line, image), aligned(ROWS * tile, image)
    blocks, before = block.rows * block.columns, -1
    for item in range(start, stop):
        place, part = item // parts, item % parts
        n, group = place // (groups * blocks), place // blocks % groups
        top, left, high, wide = _corner(block, place % blocks, output)
        first_row, last_row = min(rows, part * share * ROWS), min(rows, (part + 1) * share * ROWS)
        if high <= 0 or wide <= 0 or first_row == last_row:
            continue
        if place != before:
            pixels = image[n, group * channels : (group + 1) * channels]
            _pack(packed, size + tile, pixels, plane, block, (top, left), stride, origins)
            before = place
        length, panel = (high - 1) * block.pitch + wide, depth * ROWS
        at = (group * panels + part * share) * panel
        for k in range(0, depth, together):
            count = min(together, depth - k)
            multiply(
                *(sums, 0, line, last_row - first_row, length),
                *(weight, at + k * ROWS, panel, packed, 0, tile, starts, k, count, scratch, k > 0),
            )
        for row in range(first_row, last_row):
            x = origin[1] + left * step[1]
            target = result[n, group * rows + row, :, x : x + (wide - 1) * step[1] + 1]
            at = (row - first_row) * line
            unpack_rows(sums, at, target, top, high, block.pitch, (origin[0], 0), step)


@jit
def _pack(
    packed: np.ndarray,
    size: int,
    image: np.ndarray,
    plane: int,
    block: Block,
    corner: tuple,
    stride: tuple,
    origins: np.ndarray,
) -> None:
    """The pixels that a block reads, in planes by channel and phase."""
    clear(packed, 0, size)
    planes = len(origins)
    for c in range(len(image)):
        for f in range(planes):
            origin = origins[f, 0], origins[f, 1] + corner[1] * stride[1]
            at = (c * planes + f) * plane
            pack_rows(packed, at, image[c], corner[0], plane // block.pitch, block.pitch, origin, stride)


@cached_jit
def weight_items(
    start: int,
    stop: int,
    sums: np.ndarray,
    grad: np.ndarray,
    image: np.ndarray,
    channels: int,
    block: Block,
    stride: tuple,
    places: np.ndarray,
    reads: np.ndarray,
    origins: np.ndarray,
    reach: tuple,
) -> None:
    """sums (slots, groups, parts, taps, rows, together): products over the pixels of every slots-th block."""
    slots, groups, parts, taps, rows, together = sums.shape
    tile = TILE_BYTES // image.itemsize
    plane = (block.height + reach[0]) * block.pitch * together
    packed = aligned(len(origins) * plane + tile, image)
    panel = aligned(block.height * block.width * ROWS, image)
    scratch = aligned(ROWS * tile, image)
    steps = np.empty(block.height * block.width, np.int64)
    blocks = block.rows * block.columns
    flat = sums.reshape(-1)
    for item in range(start, stop):
        slot, group, part = item // (groups * parts), item // parts % groups, item % parts
        first = part * together
        count = min(together, channels - first)
        for index in range(slot, image.shape[0] * blocks, slots):
            n = index // blocks
            top, left, high, wide = _corner(block, index % blocks, grad.shape[2:])
            if high <= 0 or wide <= 0:
                continue
            for i in range(high):
                for j in range(wide):
                    steps[i * wide + j] = (i * block.pitch + j) * together
            clear(packed, 0, len(origins) * plane)
            for f in range(len(origins)):
                origin = origins[f, 0] + top * stride[0], origins[f, 1] + left * stride[1]
                pixels = image[n, group * channels + first :][:count]
                _pack_channels(packed, f * plane, pixels, together, block, reach, origin, stride)
            for row in range(0, rows, ROWS):
                share = min(ROWS, rows - row)
                _pack_panel(panel, grad[n, group * rows + row :][:share], top, left, high, wide)
                for t in range(taps):
                    at = ((item * taps + t) * rows + row) * together
                    shift = (reads[t, 1] * block.pitch + reads[t, 2]) * together
                    multiply(
                        *(flat, at, together, share, count, panel, 0, 0),
                        *(packed, reads[t, 0] * plane + shift, tile, steps, 0, high * wide, scratch, True),
                    )


@jit
def _pack_channels(
    packed: np.ndarray,
    at: int,
    image: np.ndarray,
    together: int,
    block: Block,
    reach: tuple,
    origin: tuple,
    stride: tuple,
) -> None:
    """The pixels that a block reads, the channels of each side by side; zeros outside the image are there."""
    for i in range(block.height + reach[0]):
        y = origin[0] + i * stride[0]
        if y < 0 or y >= image.shape[1]:
            continue
        for c in range(len(image)):
            line = image[c, y]
            for j in range(block.pitch):
                x = origin[1] + j * stride[1]
                if 0 <= x < image.shape[2]:
                    packed[at + (i * block.pitch + j) * together + c] = line[x]


@jit
def _pack_panel(panel: np.ndarray, grad: np.ndarray, top: int, left: int, high: int, wide: int) -> None:
    """ROWS channels of the output gradient as a panel of the left matrix, zeros for those beyond the last."""
    for row in range(ROWS):
        for i in range(high):
            at = i * wide * ROWS + row
            if row < len(grad):
                line = grad[row, top + i]
                for j in range(wide):
                    panel[at + j * ROWS] = line[left + j]
            else:
                for j in range(wide):
                    panel[at + j * ROWS] = 0
