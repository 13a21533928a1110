"""The kernels of `displaced_conv2d` on the CPU, and the records in which they get their plan.

Source channels are blurred and packed into planes with zeros around them: so many that a unit whose
displacement leads further away can be moved to where a whole tile of zeros is, and no loop asks for borders.
"""

from typing import NamedTuple

import numpy as np

from .compile import cached_jit, jit
from .displaced_tiles import FACTORS, ROWS, VECTORS, add_units
from .planes import aligned, clear, copy
from .vectors import REGISTER_BYTES

TARGETS = 32  # channels that a work item makes of one reading of the sources
GROUP = 8192  # pixels that are blurred at once


class Units(NamedTuple):
    """The units of each target channel, source channel and place: (T, S, G)."""

    y: np.ndarray  # whole pixels to the first of the rows and columns they read
    x: np.ndarray
    factors: np.ndarray  # (T, S, G, FACTORS)
    extent: np.ndarray  # (T, 4): least y, largest y, least x, largest x
    poison: np.ndarray  # (T,): NaN where a weight or a displacement is no number, else 0


class Layout(NamedTuple):
    """Sizes of planes, in elements: pixel (0, 0) of a plane is at (above, before)."""

    height: int  # of the image
    width: int
    above: int  # zeros that precede the image; units that lead further up stop there
    before: int
    bottom: int  # where the others stop
    right: int
    free: bool  # none has to stop
    stride: int  # between rows
    rows: int
    plane: int
    channels: int  # source channels that are read together, because they fit into the first level of cache


class Block(NamedTuple):
    """A part of the work: some images, rows of tiles and source channels, whose planes exist together."""

    image: int
    images: int
    tile: int
    tiles: int
    source: int
    sources: int
    first: int  # row of the image at the top of the planes


class Scratch(NamedTuple):
    """Of blurring: rows after the first pass, the same with zeros between them, and the result."""

    lines: np.ndarray
    padded: np.ndarray
    result: np.ndarray


@cached_jit
def prepare_items(
    start: int,
    stop: int,
    weight: np.ndarray,
    displacement: np.ndarray,
    size: tuple,
    transposed: bool,
    first: int,
    units: Units,
) -> None:
    """Items: target channels. `transposed`: targets are the input channels, displacements are opposite."""
    zero = weight.dtype.type(0)
    for item in range(start, stop):
        target, poison = first + item, zero
        low_y, high_y, low_x, high_x = size[0] + 1, -size[0] - 1, size[1] + 1, -size[1] - 1
        for source in range(units.y.shape[1]):
            o, c = (source, target) if transposed else (target, source)
            for g in range(units.y.shape[2]):
                w, dy, dx = weight[o, c, g], displacement[o, c, g, 0], displacement[o, c, g, 1]
                if not (np.isfinite(w) and dy == dy and dx == dx):
                    w, dy, dx, poison = zero, zero, zero, weight.dtype.type(np.nan)
                if transposed:
                    dy, dx = -dy, -dx
                y, fraction_y = split(dy, size[0])
                x, fraction_x = split(dx, size[1])
                units.y[item, source, g], units.x[item, source, g] = y, x
                units.factors[item, source, g, 0] = fraction_x
                units.factors[item, source, g, 1] = w * (1 - fraction_y)
                units.factors[item, source, g, 2] = w * fraction_y
                low_y, high_y = min(low_y, y), max(high_y, y)
                low_x, high_x = min(low_x, x), max(high_x, x)
        extent = units.extent[item]
        extent[0], extent[1], extent[2], extent[3] = low_y, high_y, low_x, high_x
        units.poison[item] = poison


@jit
def split(move: float, size: int) -> tuple:
    """The whole and the fractional part; what leads too far to read anything stops where that begins."""
    move = min(max(float(move), -size - 1.0), size + 1.0)
    whole = np.floor(move)
    return int(whole), move - whole


@jit
def make_scratch(taps: np.ndarray, width: int) -> Scratch:
    """Room for `GROUP` pixels, or for a row if that is longer; `taps` are the longer ones."""
    rows = max(1, GROUP // width)
    size = rows * (width + len(taps)) + len(taps)
    return Scratch(aligned(rows * width, taps), aligned(size, taps), aligned(size, taps))


@jit
def blur(
    image: np.ndarray, first: int, rows: int, vertical: np.ndarray, across: np.ndarray, scratch: Scratch
) -> int:
    """Rows of the blurred image, to scratch.result; returns how far these rows lie apart."""
    height, width = image.shape
    flat, radius = image.reshape(height * width), len(vertical) // 2
    clear(scratch.lines, 0, rows * width)
    for i in range(len(vertical)):
        shift = inwards(i, radius)
        top, bottom = max(first, -shift), min(first + rows, height - shift)
        to, count = (top - first) * width, (bottom - top) * width
        _add_scaled(scratch.lines, to, flat, (top + shift) * width, count, vertical[radius + shift])
    radius = len(across) // 2
    pitch = width + radius
    clear(scratch.padded, 0, rows * pitch + radius)
    for i in range(rows):
        copy(scratch.padded, radius + i * pitch, scratch.lines, i * width, width)
    clear(scratch.result, 0, rows * pitch)
    for i in range(len(across)):
        tap = radius + inwards(i, radius)
        _add_scaled(scratch.result, 0, scratch.padded, tap, rows * pitch - radius, across[tap])
    return pitch


@jit
def inwards(i: int, radius: int) -> int:
    """The i-th of radius, -radius, radius - 1, ..., 0: with the large taps last, less is rounded off."""
    return (radius - i // 2) * (1 - i % 2 * 2)


@jit
def _add_scaled(
    target: np.ndarray, to: int, source: np.ndarray, start: int, count: int, factor: float
) -> None:
    t, s = np.uint64(to), np.uint64(start)
    for j in range(np.uint64(max(0, count))):
        target[t + j] += factor * source[s + j]


@cached_jit
def pack_items(
    start: int,
    stop: int,
    images: np.ndarray,
    vertical: np.ndarray,
    across: np.ndarray,
    planes: np.ndarray,
    layout: Layout,
    block: Block,
) -> None:
    """Items: planes of the block, (image, source channel)."""
    scratch = make_scratch(vertical if len(vertical) > len(across) else across, layout.width)
    group = max(1, GROUP // layout.width)
    low, high = max(0, block.first), min(layout.height, block.first + layout.rows)
    for item in range(start, stop):
        image = images[block.image + item // block.sources, block.source + item % block.sources]
        at = layout.plane * item
        clear(planes, at, layout.plane)
        for first in range(low, high, group):
            rows = min(group, high - first)
            pitch = blur(image, first, rows, vertical, across, scratch)
            for i in range(rows):
                to = at + (first + i - block.first) * layout.stride + layout.before
                copy(planes, to, scratch.result, i * pitch, layout.width)


@jit
def channel_places(units: Units, layout: Layout, block: Block) -> np.ndarray:
    """Where the plane of the source channel of each unit of a target begins."""
    per_source = units.y.shape[2]
    places = np.empty(block.sources * per_source, np.int64)
    for k in range(places.size):
        places[k] = k // per_source * layout.plane
    return places


@jit
def place_units(
    offsets: np.ndarray,
    places: np.ndarray,
    units: Units,
    targets: tuple,
    row: int,
    column: int,
    layout: Layout,
    block: Block,
) -> None:
    """Where the units of some targets read the tile at (row, column): one row of `offsets` for each."""
    _, sources, per_source = units.y.shape
    y, x = units.y.reshape(units.y.size), units.x.reshape(units.x.size)
    ahead, count = layout.before - block.first * layout.stride, np.uint64(places.size)
    for t in range(targets[0], targets[1]):
        at, to = (
            np.uint64((t * sources + block.source) * per_source),
            np.uint64((t - targets[0]) * places.size),
        )
        for k in range(count):
            top = min(max(y[at + k] + row, -layout.above), layout.bottom)
            left = min(max(x[at + k] + column, -layout.before), layout.right)
            offsets[to + k] = places[k] + top * layout.stride + left + ahead


@cached_jit
def displace_items(
    start: int,
    stop: int,
    planes: np.ndarray,
    units: Units,
    base: np.ndarray,
    target: np.ndarray,
    first_target: int,
    layout: Layout,
    block: Block,
) -> None:
    """Items: (image, row of tiles, chunk of target channels). Adds to `target` unless sources begin here."""
    lanes, (targets, sources, per_source) = REGISTER_BYTES // planes.itemsize, units.y.shape
    breadth, across = VECTORS * lanes, -(-layout.width // (VECTORS * lanes))
    tile_size, chunks = ROWS * breadth, -(-targets // TARGETS)
    tiles = aligned(TARGETS * across * tile_size, planes)
    places = channel_places(units, layout, block)
    offsets = np.empty(TARGETS * layout.channels * per_source, np.int64)
    factors = units.factors.reshape(units.factors.size)
    for item in range(start, stop):
        begin, rest = item % chunks * TARGETS, item // chunks
        row, image = (block.tile + rest % block.tiles) * ROWS, rest // block.tiles
        end = min(begin + TARGETS, targets)
        clear(tiles, 0, tiles.size)
        for channel in range(0, block.sources, layout.channels):
            count = min(layout.channels, block.sources - channel) * per_source
            near, these = places[:count], Block(0, 0, 0, 0, block.source + channel, 0, block.first)
            planes_at = (image * block.sources + channel) * layout.plane
            if layout.free:  # what units read moves with the tile
                place_units(offsets, near, units, (begin, end), 0, 0, layout, these)
            for column in range(across):
                moved = planes_at
                if layout.free:
                    moved += row * layout.stride + column * breadth
                else:
                    place_units(offsets, near, units, (begin, end), row, column * breadth, layout, these)
                for t in range(begin, end):
                    add_units(
                        tiles, ((t - begin) * across + column) * tile_size,
                        planes, moved, layout.stride, offsets, (t - begin) * count,
                        factors, ((t * sources) + block.source + channel) * per_source * FACTORS, count,
                    )  # fmt: skip
        for t in range(begin, end):
            out = target[block.image + image, first_target + t]
            for column in range(across):
                tile_at = ((t - begin) * across + column) * tile_size
                for i in range(min(ROWS, layout.height - row)):
                    line, left = out[row + i], column * breadth
                    for j in range(left, min(left + breadth, layout.width)):
                        before = line[j] if block.source else base[t]
                        line[j] = before + tiles[tile_at + i * breadth + j - left]
