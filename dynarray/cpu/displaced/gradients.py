"""The kernels of the gradients of `displaced_conv2d` by weight, displacement and sigma, on the CPU."""

import numpy as np

from ..engine.compile import ZERO, cached_jit, jit
from ..engine.pixels import aligned, clear, copy
from ..engine.vectors import REGISTER_BYTES
from .kernels import (
    GROUP,
    blur,
    channel_places,
    make_scratch,
    place_units,
    split,
)
from .plan import Block, Layout, Units
from .tiles import ROWS, SUMS, VECTORS, correlate_units

TARGETS = 32  # channels of output gradients that a work item takes
TILES = 4  # whose sums are added up, lane by lane, before they go into float64


@cached_jit
def correlate_items(
    start: int,
    stop: int,
    planes: np.ndarray,
    grad_output: np.ndarray,
    units: Units,
    sums: np.ndarray,
    first_target: int,
    layout: Layout,
    block: Block,
) -> None:
    """Items: (chunk of target channels, a few source channels). Adds to sums (T, S, G, SUMS).

    A lane adds up the rows of a tile, then some tiles, in the precision of the input, and these go into
    float64: the chains are as short as those of pairwise summation.
    """
    lanes, (targets, sources, per_source) = REGISTER_BYTES // planes.itemsize, units.y.shape
    breadth = VECTORS * lanes
    across, parts = -(-layout.width // breadth), -(-block.sources // layout.channels)
    tile = aligned(ROWS * breadth, planes)
    partial = aligned(layout.channels * per_source * SUMS * lanes, planes)
    places = channel_places(units, layout, block)
    offsets = np.empty(TARGETS * layout.channels * per_source, np.int64)
    for item in range(start, stop):
        begin, channel = item // parts * TARGETS, item % parts * layout.channels
        end, count = min(begin + TARGETS, targets), min(layout.channels, block.sources - channel) * per_source
        these = Block(0, 0, 0, 0, block.source + channel, 0, block.first)
        near = places[:count]
        if layout.free:  # what units read moves with the tile
            place_units(offsets, near, units, (begin, end), ZERO, ZERO, layout, these)
        for image in range(block.images):
            planes_at = (image * block.sources + channel) * layout.plane
            for t in range(begin, end):
                gradient = grad_output[block.image + image, first_target + t]
                at = (t * sources + block.source + channel) * per_source
                clear(partial, 0, partial.size)
                chain = 0
                for row in range(block.tile * ROWS, (block.tile + block.tiles) * ROWS, ROWS):
                    for column in range(0, layout.width, breadth):
                        _load_tile(tile, gradient, row, column, breadth)
                        moved, first = planes_at + row * layout.stride + column, (t - begin) * count
                        if not layout.free:
                            place_units(offsets, near, units, (t, t + 1), row, column, layout, these)
                            moved, first = planes_at, 0
                        correlate_units(
                            partial, 0, tile, 0, planes, moved, layout.stride, offsets, first, count
                        )
                    chain += 1
                    last = row + ROWS >= (block.tile + block.tiles) * ROWS
                    if (chain + 1) * across > TILES or last:
                        rows = (row + ROWS - chain * ROWS, min(row + ROWS, layout.height))
                        _flush(
                            sums, partial, at, count, gradient, rows, planes, planes_at, units, layout, block
                        )
                        chain = 0


@jit
def _load_tile(tile: np.ndarray, gradient: np.ndarray, row: int, column: int, breadth: int) -> None:
    """The tile of the gradient at (row, column), zeros outside."""
    rows, columns = min(ROWS, gradient.shape[0] - row), min(breadth, gradient.shape[1] - column)
    if rows < ROWS or columns < breadth:
        clear(tile, 0, tile.size)
    for i in range(rows):
        copy(tile, i * breadth, gradient[row + i], column, columns)


@jit
def _flush(
    sums: np.ndarray,
    partial: np.ndarray,
    at: int,
    count: int,
    gradient: np.ndarray,
    rows: tuple,
    planes: np.ndarray,
    planes_at: int,
    units: Units,
    layout: Layout,
    block: Block,
) -> None:
    """Move what lanes have added up into float64."""
    lanes, per_source = REGISTER_BYTES // partial.itemsize, units.y.shape[2]
    flat = sums.reshape(sums.size)
    for k in range(count):
        for kind in range(SUMS):
            total, begin = 0.0, np.uint64((k * SUMS + kind) * lanes)
            for lane in range(np.uint64(lanes)):
                total += float(partial[begin + lane])
                partial[begin + lane] = 0
            if not np.isfinite(total):  # was it a pixel next to the image's last, times a zero of the tile?
                plane = planes_at + k // per_source * layout.plane
                total = _total(gradient, rows, planes, plane, units, at + k, kind, layout, block.first)
            flat[(at + k) * SUMS + kind] += total


@jit
def _total(
    gradient: np.ndarray,
    rows: tuple,
    planes: np.ndarray,
    plane: int,
    units: Units,
    unit: int,
    kind: int,
    layout: Layout,
    first: int,
) -> float:
    """One sum of one unit over some rows of the image, and nothing outside of it."""
    y, x = units.y.reshape(units.y.size)[unit], units.x.reshape(units.x.size)[unit]
    total = 0.0
    for i in range(rows[0], rows[1]):
        top = i + y + kind // 2
        for j in range(layout.width):
            left, value = j + x + kind % 2, planes.dtype.type(0)
            if 0 <= top < layout.height and 0 <= left < layout.width:
                value = planes[plane + (top - first) * layout.stride + left + layout.before]
            total += float(gradient[i, j]) * value
    return total


@cached_jit
def finish_items(
    start: int,
    stop: int,
    sums: np.ndarray,
    weight: np.ndarray,
    displacement: np.ndarray,
    size: tuple,
    first: int,
    kind: int,
    result: np.ndarray,
) -> None:
    """Items: target channels. result[o, c, g, kind - 1], or [o, c, g, 0], from the sums of a unit.

    The value of what it reads (kind 0), its derivatives by the displacement (1, 2), or, where the planes are
    derivatives themselves, the value once more (3, 4); all but the first are times the weight.
    """
    for item in range(start, stop):
        o = first + item
        for c in range(weight.shape[1]):
            for g in range(weight.shape[2]):
                upper, upper_right, lower, lower_right = sums[item, c, g]
                y, x = (
                    split(displacement[o, c, g, 0], size[0])[1],
                    split(displacement[o, c, g, 1], size[1])[1],
                )
                upper_slope, lower_slope = upper_right - upper, lower_right - lower
                upper, lower = upper + x * upper_slope, lower + x * lower_slope
                w = weight[o, c, g]
                if kind == 0:
                    result[o, c, g, 0] = (1 - y) * upper + y * lower
                elif kind == 1:
                    result[o, c, g, 0] = w * (lower - upper)
                elif kind == 2:
                    result[o, c, g, 1] = w * ((1 - y) * upper_slope + y * lower_slope)
                else:
                    result[o, c, g, kind - 3] = w * ((1 - y) * upper + y * lower)


@cached_jit
def blur_items(
    start: int,
    stop: int,
    images: np.ndarray,
    vertical: np.ndarray,
    across: np.ndarray,
    target: np.ndarray,
    first: tuple,
) -> None:
    """Items: (image, channel). The blurred image, to the place in `target` that lies `first` further."""
    height, width = images.shape[2:]
    scratch = make_scratch(vertical if len(vertical) > len(across) else across, width)
    group = max(1, GROUP // width)
    for item in range(start, stop):
        image, channel = item // images.shape[1], item % images.shape[1]
        out = target[first[0] + image, first[1] + channel]
        for top in range(0, height, group):
            rows = min(group, height - top)
            pitch = blur(images[image, channel], top, rows, vertical, across, scratch)
            for i in range(rows):
                copy(out[top + i], 0, scratch.result, i * pitch, width)


@cached_jit
def product_items(
    start: int,
    stop: int,
    images: np.ndarray,
    vertical: np.ndarray,
    across: np.ndarray,
    grads: np.ndarray,
    first: tuple,
    totals: np.ndarray,
) -> None:
    """Items: (image, channel) of `grads`. Adds to `totals` the sum of gradient times blurred image."""
    height, width = images.shape[2:]
    scratch = make_scratch(vertical if len(vertical) > len(across) else across, width)
    group = max(1, GROUP // width)
    for item in range(start, stop):
        image, channel = item // grads.shape[1], item % grads.shape[1]
        grad = grads[image, channel]
        for top in range(0, height, group):
            rows = min(group, height - top)
            source = images[first[0] + image, first[1] + channel]
            pitch = blur(source, top, rows, vertical, across, scratch)
            for i in range(rows):
                for j in range(width):
                    totals[item] += float(grad[top + i, j]) * scratch.result[i * pitch + j]
