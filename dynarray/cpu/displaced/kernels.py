"""The kernels of `displaced_conv2d` on the CPU.

Source channels are blurred and packed into planes with zeros around them: as many as units lead out of the
image, or so many that a unit which leads further can be moved to where a whole tile of zeros is. No loop
asks for borders.
"""

from typing import NamedTuple

import numpy as np

from ..engine.compile import ZERO, cached_jit, jit
from ..engine.pixels import aligned, clear, copy, interleave
from ..engine.vectors import REGISTER_BYTES, prefetch
from .plan import CHUNK, TARGETS, Block, Layout, Units
from .tiles import FACTORS, ROWS, VECTORS, add_units, add_units_of_cells

GROUP = 8192  # pixels that are blurred at once
FIELD = 4 * GROUP  # blurred pixels that are put into cells at once


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
        _add_scaled(scratch.result, ZERO, scratch.padded, tap, rows * pitch - radius, across[tap])
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
    """Items: planes of the block, (images, source channel)."""
    scratch = make_scratch(vertical if len(vertical) > len(across) else across, layout.width)
    cells = layout.cells
    chunk, bands, high = _bands(layout)
    wide = (cells.across - 1) * cells.width + layout.stride // cells.step
    field = aligned(cells.images * high * wide if cells.step > 1 else 0, planes)
    starts = np.empty(cells.images * cells.down * cells.across, np.int64)
    for lane in range(starts.size):
        row, column = lane // cells.across, lane % cells.across * cells.width
        apart = chunk if bands > 1 else cells.height
        starts[lane] = (row // cells.down * high + row % cells.down * apart) * wide + column
    for item in range(start, stop):
        first = (block.image + item // block.sources) * cells.images
        source = block.source + item % block.sources
        at = layout.plane * item
        if cells.step == 1:
            clear(planes, at, layout.plane)
            at += layout.before - block.first * layout.stride
            ends = block.first, block.first + layout.rows
            _blur_rows(images[first, source], ends, vertical, across, planes, at, layout.stride, scratch)
            continue
        for row in range(0, layout.rows, chunk):
            clear(field, 0, field.size)
            for n in range(min(cells.images, len(images) - first)):
                for i in range(bands):
                    top = block.first + row + i * cells.height
                    to, ends = (n * high + i * chunk - top) * wide + layout.before, (top, top + high // bands)
                    _blur_rows(images[first + n, source], ends, vertical, across, field, to, wide, scratch)
            for k in range(min(chunk, layout.rows - row)):
                to = at + (row + k) * layout.stride
                interleave(planes, to, field, k * wide, starts, layout.stride // cells.step)


@jit
def _bands(layout: Layout) -> tuple:
    """How images are blurred for their cells: rows of a cell at a time, bands of rows, and rows of all bands.

    In one band rows that cells have in common are blurred once. If that is too large, each cell has a band.
    """
    cells = layout.cells
    wide = cells.images * (cells.across * cells.width + layout.stride // cells.step)
    high = (cells.down - 1) * cells.height + layout.rows
    if high * wide <= FIELD:
        return layout.rows, 1, high
    chunk = max(1, FIELD // (cells.down * wide))
    return chunk, cells.down, cells.down * chunk


@jit
def _blur_rows(
    image: np.ndarray,
    ends: tuple,
    vertical: np.ndarray,
    across: np.ndarray,
    target: np.ndarray,
    at: int,
    stride: int,
    scratch: Scratch,
) -> None:
    """The rows of the blurred image that lie between `ends`: row i to target[at + i*stride]."""
    height, width = image.shape
    first, end, group = max(0, ends[0]), min(height, ends[1]), max(1, GROUP // width)
    for top in range(first, end, group):
        rows = min(group, end - top)
        pitch = blur(image, top, rows, vertical, across, scratch)
        for row in range(rows):
            copy(target, at + (top + row) * stride, scratch.result, row * pitch, width)


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
    ahead, count = (
        layout.before * layout.cells.step - block.first * layout.stride,
        np.uint64(places.size),
    )
    for t in range(targets[0], targets[1]):
        at, to = (
            np.uint64((t * sources + block.source) * per_source),
            np.uint64((t - targets[0]) * places.size),
        )
        for k in range(count):
            top = min(max(y[at + k] + row, -layout.above), layout.bottom)
            left = min(max(x[at + k] + column, -layout.before), layout.right)
            offsets[to + k] = places[k] + top * layout.stride + left * layout.cells.step + ahead


@jit
def _part(index: int, layout: Layout, block: Block) -> tuple:
    """Images, first row, and first and last tile of part `index` of the rows of tiles."""
    part, rest = index % layout.parts, index // layout.parts
    low, high = layout.columns * part // layout.parts, layout.columns * (part + 1) // layout.parts
    return rest // block.tiles, (block.tile + rest % block.tiles) * ROWS, low, high


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
    """Items: (images, row of tiles, part of that, CHUNK target channels), of which several at once.

    Adds to `target` unless sources begin here.
    """
    targets, sources, per_source = units.y.shape
    breadth = VECTORS * (REGISTER_BYTES // planes.itemsize)
    tile_size, chunks, together = ROWS * breadth, -(-targets // CHUNK), min(TARGETS, targets)
    tiles = aligned(together * -(-layout.columns // layout.parts) * tile_size, planes)
    places, factors = channel_places(units, layout, block), units.factors.reshape(units.factors.size)
    offsets = np.empty(together * layout.channels * per_source, np.int64)
    item = start
    while item < stop:
        several = min(TARGETS // CHUNK, chunks - item % chunks, stop - item)
        image, row, low, high = _part(item // chunks, layout, block)
        begin, end = item % chunks * CHUNK, min((item % chunks + several) * CHUNK, targets)
        item, apart = item + several, (end - begin) * tile_size
        clear(tiles, 0, (high - low) * apart)
        for channel in range(0, block.sources, layout.channels):
            count = min(layout.channels, block.sources - channel) * per_source
            near, these = places[:count], Block(0, 0, 0, 0, block.source + channel, 0, block.first)
            planes_at = (image * block.sources + channel) * layout.plane
            _fetch_units(units, factors, (begin, end), block.source + channel + layout.channels, layout)
            if layout.free:  # what units read moves with the tile
                place_units(offsets, near, units, (begin, end), ZERO, ZERO, layout, these)
            for column in range(low, high):
                moved = planes_at
                if layout.free:
                    moved += row * layout.stride + column * breadth
                    left = min(layout.channels, block.sources - channel - layout.channels)
                    share = (column - low, high - low)
                    _fetch_ahead(planes, planes_at, left, share, row, low * breadth, high * breadth, layout)
                else:
                    place_units(offsets, near, units, (begin, end), row, column * breadth, layout, these)
                for t in range(begin, end):
                    at = (column - low) * apart + (t - begin) * tile_size
                    own = (t * sources + block.source + channel) * per_source * FACTORS
                    if layout.cells.step == 1:
                        add_units(
                            tiles, at, planes, moved, layout.stride, offsets, (t - begin) * count,
                            factors, own, count,
                        )  # fmt: skip
                    else:
                        add_units_of_cells(
                            tiles, at, planes, moved, layout.stride, offsets, (t - begin) * count,
                            factors, own, count,
                        )  # fmt: skip
        for t in range(begin, end):
            first = (block.image + image) * layout.cells.images
            for n in range(first, min(first + layout.cells.images, len(target))):
                out, at = target[n, first_target + t], (t - begin) * tile_size
                begins = block.source == 0
                _store_tiles(out, tiles, at, apart, row, low, high, n - first, base[t], begins, layout)


@jit
def _fetch_units(units: Units, factors: np.ndarray, targets: tuple, source: int, layout: Layout) -> None:
    """Into the second level of cache: the units of some targets and the next source channels."""
    _, sources, per_source = units.y.shape
    y, x = units.y.reshape(units.y.size), units.x.reshape(units.x.size)
    count, line = min(layout.channels, sources - source) * per_source, 64 // factors.itemsize
    for t in range(targets[0], targets[1]):
        at = (t * sources + source) * per_source
        for k in range(0, count, 16):
            prefetch(y, at + k)
            prefetch(x, at + k)
        for k in range(0, count * FACTORS, line):
            prefetch(factors, at * FACTORS + k)


@jit
def _fetch_ahead(
    planes: np.ndarray,
    at: int,
    channels: int,
    share: tuple,
    row: int,
    low: int,
    high: int,
    layout: Layout,
) -> None:
    """Into the second level of cache: a share of what the next channels will be read from.

    Units read that in no order that the processor could guess.
    """
    line, step = 64 // planes.itemsize, layout.cells.step
    reach = layout.stride - layout.columns * VECTORS * (REGISTER_BYTES // planes.itemsize)
    lines = -(-(high - low + max(step, reach)) // line)
    first, last = lines * share[0] // share[1], lines * (share[0] + 1) // share[1]
    for k in range(channels):
        for i in range(layout.reads):
            begin = at + (layout.channels + k) * layout.plane + (row + i) * layout.stride + low
            for j in range(first, last):
                prefetch(planes, begin + j * line)


@jit
def _store_tiles(
    out: np.ndarray,
    tiles: np.ndarray,
    at: int,
    apart: int,
    row: int,
    low: int,
    high: int,
    image: int,
    base: float,
    begins: bool,
    layout: Layout,
) -> None:
    """The lanes of tiles low to high of a row that belong to an image; they lie `apart` elements apart."""
    cells, breadth = layout.cells, VECTORS * (REGISTER_BYTES // tiles.itemsize)
    wide = breadth // cells.step  # pixels of a cell that are side by side in a tile
    for i, j in np.ndindex((cells.down, cells.across)):
        lane, left = (image * cells.down + i) * cells.across + j, j * cells.width + low * wide
        count = min((high - low) * wide, min(layout.width, (j + 1) * cells.width) - left)
        for k in range(min(ROWS, layout.height - row - i * cells.height)):
            line = out[row + i * cells.height + k]
            for p in range(min(wide, count)):  # one pixel of every tile
                tile = np.uint64(at + k * breadth + p * cells.step + lane)
                to = np.uint64(left + p)
                for _ in range(np.uint64((count - p + wide - 1) // wide)):
                    before = base if begins else line[to]
                    line[to] = before + tiles[tile]
                    to, tile = to + np.uint64(wide), tile + np.uint64(apart)
