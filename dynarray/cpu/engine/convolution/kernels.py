"""Kernels of `convolution`: blocks of pixels packed into planes, and products with them."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..compile import ZERO, cached_jit, jit
from ..gemm import TILE_ROW_BYTES, TILE_ROWS, Matrix, RightStrips, multiply
from ..pixels import PackedRows, clear, inside, pack_rows, transpose, unpack_rows
from ..vectors import in_row

CHAIN_PIXELS = 64  # of a weight gradient, that are added up one after the other


class ConvBlocks(NamedTuple):
    """How an output is cut into blocks of pixels, and how they are packed."""

    down: int  # blocks
    across: int
    height: int
    width: int
    pitch: int  # pixels of a packed row, with what its taps reach beyond the block
    images: int  # side by side in one


class ConvPlanes(NamedTuple):
    """What a block reads: an image in planes by channel and phase of the stride, or by phase alone."""

    blocks: ConvBlocks
    size: int  # elements of a plane
    channels: int  # side by side in a plane
    stride: tuple[int, int]
    spread: int  # pixels of a plane from what one output reads to what the next in its row reads
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
    product: Any  # of a panel and a block's pixels
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
    count, before = blocks.down * blocks.across, -1
    whole_rows = step == (1, 1) and pitch == shape[3]  # of the target, which can hold sums itself
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
        at, sums = (group * panels_of_group + part * share) * panel, Matrix(scratch.sums, ZERO, line)
        if whole_rows:
            plane = (n * groups + group) * rows + first
            sums = Matrix(in_row(images), (plane * shape[2] + top) * shape[3], shape[2] * shape[3])
        for k in range(0, depth, most):
            weights = Matrix(panels, at + k * TILE_ROWS, panel)
            pixels_of_taps = RightStrips(scratch.packed, ZERO, tile, starts[k : min(k + most, depth)])
            multiply(sums, weights, pixels_of_taps, size, scratch.corner, k > 0)
        x = origin[1] + left * step[1]
        packed = PackedRows(top, high, pitch, (origin[0], 0), step)
        for row in range(last if whole_rows else first, last):
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
    """sums (slots, groups, rows, parts, taps, columns): products over the pixels of every slots-th block.

    Pixels are many: they are added up in chains that are short, so that rounding does not add up.

    A tap stands for one or, where they read pixels side by side, for all of a row of a kernel: columns are
    the channels of a pixel, or of so many pixels.
    """
    slots, groups, rows, parts, taps, columns = sums.shape
    outputs, flat, tile = in_row(grad_output), in_row(sums), TILE_ROW_BYTES // x.itemsize
    line = parts * taps * columns
    blocks, together, apart = planes.blocks, planes.channels, planes.size * len(planes.origins)
    count, images = blocks.down * blocks.across, blocks.images
    for item in range(start, stop):
        slot, group, part = item // (groups * parts), item // parts % groups, item % parts
        first = part * together
        own = min(together, channels - first)
        for number in range(slot, -(-len(x) // images) * count, slots):
            n = number // count * images
            place = _place(blocks, number % count, grad_output.shape[2:])
            if place[2] <= 0 or place[3] <= 0:
                continue
            several, pixels = min(images, len(x) - n), place[2] * place[3]
            _find_pixels(scratch.pixels, planes, several, place)
            clear(scratch.packed, 0, len(scratch.packed))
            for k in range(several):
                image = x[n + k, group * channels + first :][:own]
                _pack_side_by_side(scratch.packed, k * apart, image, planes, place)
            steps = scratch.pixels[: several * pixels]
            for row in range(0, rows, TILE_ROWS):
                share = min(TILE_ROWS, rows - row)
                if share < TILE_ROWS:  # zeros for channels beyond the last
                    clear(scratch.panel, 0, len(steps) * TILE_ROWS)
                for k in range(several):
                    own_panel = Matrix(scratch.panel, k * pixels * TILE_ROWS, TILE_ROWS)
                    plane = ((n + k) * groups + group) * rows + row
                    _pack_gradient(own_panel, outputs, plane, grad_output.shape[2:], share, place)
                found, size = columns - together + own, (share, len(scratch.product) // TILE_ROWS)
                product = Matrix(scratch.product, ZERO, size[1])  # whole tiles
                for t in range(taps):
                    for k in range(0, len(steps), CHAIN_PIXELS):
                        panel = Matrix(scratch.panel, k * TILE_ROWS, ZERO)
                        chain = steps[k : k + CHAIN_PIXELS]
                        right = RightStrips(scratch.packed, planes.starts[t], tile, chain)
                        multiply(product, panel, right, size, scratch.corner, k > 0)
                    at = ((slot * groups + group) * rows + row) * line + (part * taps + t) * columns
                    for r in range(share):
                        for k in range(uint64(found)):
                            flat[uint64(at + r * line) + k] += product.values[uint64(r * size[1]) + k]


@cached_jit
def conv_weight_rows(start: int, stop: int, weight: np.ndarray, sums: np.ndarray, together: int) -> None:
    """Items (row of the weight (O, channels, taps)): from sums (O, parts, taps, channels together)."""
    target, source, (_, channels, taps), parts = in_row(weight), in_row(sums), weight.shape, sums.shape[1]
    for item in range(start, stop):
        for part in range(parts):
            first = part * together
            to = Matrix(target, (item * channels + first) * taps, taps)
            line = Matrix(source, (item * parts + part) * taps * together, together)
            transpose(to, line, taps, min(together, channels - first))


@jit
def _find_pixels(pixels: np.ndarray, planes: ConvPlanes, images: int, place: tuple) -> None:
    """Where each output pixel of a block begins to read, for a tap that begins at the start of a plane."""
    (_, _, high, wide), together = place, planes.channels
    for k in range(images):
        image, at = k * planes.size * len(planes.origins), k * high * wide
        for i in range(high):
            for j in range(wide):
                pixel = i * planes.blocks.pitch + j * planes.spread
                pixels[at + i * wide + j] = image + pixel * together


@jit
def _pack_gradient(
    target: Matrix, outputs: np.ndarray, plane: int, size: tuple, channels: int, place: tuple
) -> None:
    """The block's pixels of some planes of the output gradient, those of each pixel side by side."""
    (height, width), (top, left, high, wide) = size, place
    if wide == width:  # rows lie one after another
        high, wide = 1, high * wide
    for i in range(high):
        line = Matrix(target.values, target.at + i * wide * target.stride, target.stride)
        at = (plane * height + top + i) * width + left
        transpose(line, Matrix(outputs, at, height * width), channels, wide)


@jit
def _pack_side_by_side(
    packed: np.ndarray, at: int, image: np.ndarray, planes: ConvPlanes, place: tuple
) -> None:
    """The pixels that a block reads, the channels of each side by side."""
    pitch, together, (top, left, _, _) = planes.blocks.pitch, planes.channels, place
    step, (_, height, width) = planes.stride[1] // planes.spread, image.shape
    for f in range(len(planes.origins)):
        y = planes.origins[f, 0] + top * planes.stride[0]
        x = planes.origins[f, 1] + left * planes.stride[1]
        low, end = inside(pitch, 0, width, x, step)
        for i in range(planes.size // (pitch * together)):
            to = at + f * planes.size + (i * pitch + low) * together
            if 0 <= y < height and step == 1:
                source = Matrix(in_row(image), y * width + x + low, height * width)
                transpose(Matrix(packed, to, together), source, len(image), end - low)
            elif 0 <= y < height:
                for c in range(len(image)):
                    line = image[c, y]
                    for j in range(end - low):
                        packed[to + j * together + c] = line[x + (low + j) * step]
            y += planes.stride[0]
