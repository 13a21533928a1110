"""The kernels of `displaced_conv2d` on the CPU: units from their weights and displacements, and outputs."""

from typing import NamedTuple

import numpy as np

from ..engine.compile import ZERO, borrowing_cached_jit, borrowing_jit, rolled_jit, shared_jit, zero_like
from ..engine.pixels import clear
from ..engine.vectors import LINE_BYTES, REGISTER_BYTES, in_row, prefetch
from .plan import UNIT_CHUNK, UNIT_TARGETS, UnitLayout, UnitPlanes, Units, UnitScratch
from .tiles import UNIT_FACTORS, UNIT_ROWS, UNIT_VECTORS, UnitPointer, add_units, add_units_in_cells


class UnitParameters(NamedTuple):
    """What units are made from."""

    weight: np.ndarray
    displacement: np.ndarray
    size: tuple[int, int]  # of the image


class UnitTargets(NamedTuple):
    """Some target channels. Transposed: these are the input channels, displacements are opposite."""

    parameters: UnitParameters
    transposed: bool
    first: int


class UnitSources(NamedTuple):
    """Source channels that are read together."""

    first: int
    units: int  # of all of them, for one target
    at: int  # where the plane of the first begins


class UnitOutput(NamedTuple):
    """Where the sums of some target channels go."""

    base: np.ndarray  # (T,): what to begin with
    target: np.ndarray  # (N, channels, H, W)
    first: int  # the channel of the first
    squares: np.ndarray  # one of each item, zero before: sums of squares, finite if all that is added is


class UnitPart(NamedTuple):
    """Tiles that are made together."""

    image: int  # of the block
    row: int  # of pixels
    low: int  # the first tile of the row, and the end
    high: int
    begin: int  # the first target channel, and the end
    end: int


@borrowing_cached_jit
def prepare_unit_items(start: int, stop: int, targets: UnitTargets, units: Units) -> None:
    """Items: target channels. What is not finite adds 0 or NaN, and poisons its channel: see `definition`."""
    (weight, displacement, size), transposed, first = targets
    zero = zero_like(weight)
    for item in range(start, stop):
        target, poison = first + item, zero
        low_y, high_y, low_x, high_x = size[0] + 1, -size[0] - 1, size[1] + 1, -size[1] - 1
        for source in range(units.y.shape[1]):
            o, c = (source, target) if transposed else (target, source)
            for g in range(units.y.shape[2]):
                w, dy, dx = weight[o, c, g], displacement[o, c, g, 0], displacement[o, c, g, 1]
                if not (w - w == 0 and dy == dy and dx == dx):
                    w, poison = zero, weight.dtype.type(np.nan)
                if transposed:
                    dy, dx = -dy, -dx
                y, fraction_y, x, fraction_x = split_displacement(dy, dx, size)
                units.y[item, source, g], units.x[item, source, g] = y, x
                units.factors[item, source, g, 0] = fraction_x
                units.factors[item, source, g, 1] = w * (1 - fraction_y)
                units.factors[item, source, g, 2] = w * fraction_y
                low_y, high_y = min(low_y, y), max(high_y, y)
                low_x, high_x = min(low_x, x), max(high_x, x)
        extent = units.extent[item]
        extent[0], extent[1], extent[2], extent[3] = low_y, high_y, low_x, high_x
        units.poison[item] = poison


@borrowing_jit
def split_along(d: float, end: float) -> tuple:
    """The whole and the fractional part along one axis, no further than the end: of NaN 0 and NaN."""
    near = -end if d < -end else end if d > end else d
    whole = np.floor(near)
    return int(whole) if d == d else 0, near - whole


@borrowing_jit
def split_displacement(dy: float, dx: float, size: tuple) -> tuple:
    """The whole and the fractional part of either; both fractions are NaN where a displacement is.

    What leads too far to read anything stops where that begins.
    """
    (y, part_y), (x, part_x) = split_along(float(dy), size[0] + 1.0), split_along(float(dx), size[1] + 1.0)
    if part_y != part_y or part_x != part_x:
        return 0, np.nan, 0, np.nan
    return y, part_y, x, part_x


@borrowing_jit
def unit_breadth(like: np.ndarray) -> int:
    """Pixels of a row of a tile."""
    return UNIT_VECTORS * (REGISTER_BYTES // like.itemsize)


@borrowing_jit
def fill_places(places: np.ndarray, units: Units, layout: UnitLayout) -> None:
    """`UnitScratch.places`."""
    per_source = units.y.shape[2]
    for k in range(places.size):
        places[k] = k // per_source * layout.plane


@borrowing_jit
def read_together(channel: int, image: int, units: Units, planes: UnitPlanes) -> UnitSources:
    """The source channels of a block from number `channel` on that are read together."""
    layout, block = planes.layout, planes.block
    count, at = min(layout.channels, block.sources - channel), image * block.sources + channel
    return UnitSources(block.source + channel, count * units.y.shape[2], at * layout.plane)


@shared_jit
def place_units(
    scratch: UnitScratch,
    units: Units,
    targets: tuple,
    sources: UnitSources,
    corner: tuple,
    planes: UnitPlanes,
) -> None:
    """Where the units of some targets read the tile at this corner: one row of `offsets` for each target."""
    layout, (row, column) = planes.layout, corner
    y, x = in_row(units.y), in_row(units.x)
    ahead = layout.x.before * layout.cells.step - planes.block.first * layout.stride
    all_sources, per_source = units.y.shape[1:]
    for t in range(targets[0], targets[1]):
        at = np.uint64((t * all_sources + sources.first) * per_source)
        to = np.uint64((t - targets[0]) * sources.units)
        for k in range(np.uint64(sources.units)):
            top = min(max(y[at + k] + row, -layout.y.before), layout.y.end)
            left = min(max(x[at + k] + column, -layout.x.before), layout.x.end)
            begin = scratch.places[k] + top * layout.stride
            scratch.offsets[to + k] = begin + left * layout.cells.step + ahead


@rolled_jit
def displace_items(
    start: int, stop: int, scratch: UnitScratch, planes: UnitPlanes, units: Units, output: UnitOutput
) -> None:
    """Items: (images, row of tiles, part of that, UNIT_CHUNK target channels), of which some at once.

    Adds to the target unless sources begin here.
    """
    layout, breadth = planes.layout, unit_breadth(planes.pixels)
    all_targets, all_sources, per_source = units.y.shape
    size, chunks, item = UNIT_ROWS * breadth, -(-all_targets // UNIT_CHUNK), start
    fill_places(scratch.places, units, layout)
    while item < stop:
        count = min(min(UNIT_TARGETS // UNIT_CHUNK, chunks - item % chunks), stop - item)
        begin = item % chunks * UNIT_CHUNK
        part = _part(item // chunks, begin, min(begin + count * UNIT_CHUNK, all_targets), planes)
        slot, item = item, item + count
        targets, apart = (begin, part.end), (part.end - begin) * size
        clear(scratch.tiles, 0, (part.high - part.low) * apart)
        for channel in range(0, planes.block.sources, layout.channels):
            sources = read_together(channel, part.image, units, planes)
            _fetch_units(units, targets, sources.first + layout.channels, layout)
            if layout.free:  # what units read moves with the tile
                place_units(scratch, units, targets, sources, (ZERO, ZERO), planes)
            for column in range(part.low, part.high):
                moved = sources.at
                if layout.free:
                    moved += part.row * layout.stride + column * breadth
                    _fetch_ahead(planes, sources, part, column)
                else:
                    place_units(scratch, units, targets, sources, (part.row, column * breadth), planes)
                pixels = UnitPointer(planes.pixels, moved)
                for number in range(part.end - begin):
                    tile = UnitPointer(scratch.tiles, (column - part.low) * apart + number * size)
                    offsets = UnitPointer(scratch.offsets, number * sources.units)
                    own = ((begin + number) * all_sources + sources.first) * per_source * UNIT_FACTORS
                    factors = UnitPointer(units.factors, own)
                    if layout.cells.step == 1:
                        add_units(tile, pixels, layout.stride, offsets, factors, sources.units)
                    else:
                        add_units_in_cells(tile, pixels, layout.stride, offsets, factors, sources.units)
        output.squares[slot] = _sum_squares(scratch.tiles, (part.high - part.low) * apart)
        first, target = (planes.block.image + part.image) * layout.cells.images, output.target
        for t in range(begin, part.end):
            tile = UnitPointer(scratch.tiles, (t - begin) * size)
            for n in range(first, min(first + layout.cells.images, len(target))):
                out, begins = target[n, output.first + t], planes.block.source == 0
                _store_lanes(out, tile, part, n - first, output.base[t], begins, layout)


@borrowing_jit
def _sum_squares(array: np.ndarray, count: int) -> float:
    """Of the first elements. It is not finite for finite ones either, where these are very large."""
    total = zero_like(array)
    for k in range(np.uint64(count)):
        total += array[k] * array[k]
    return total


@borrowing_jit
def _part(index: int, begin: int, end: int, planes: UnitPlanes) -> UnitPart:
    """Part `index` of the rows of tiles."""
    block, columns, parts = planes.block, planes.layout.x.tiles, planes.layout.parts
    part, rest = index % parts, index // parts
    row = (block.tile + rest % block.tiles) * UNIT_ROWS
    low, high = columns * part // parts, columns * (part + 1) // parts
    return UnitPart(rest // block.tiles, row, low, high, begin, end)


@borrowing_jit
def _fetch_units(units: Units, targets: tuple, source: int, layout: UnitLayout) -> None:
    """Into the second level of cache: the units of some targets and the next source channels."""
    _, sources, per_source = units.y.shape
    count = min(layout.channels, sources - source) * per_source
    line, line_of_factors = LINE_BYTES // units.y.itemsize, LINE_BYTES // units.factors.itemsize
    for t in range(targets[0], targets[1]):
        at = (t * sources + source) * per_source
        for k in range(0, count, line):
            prefetch(units.y, at + k)
            prefetch(units.x, at + k)
        for k in range(0, count * UNIT_FACTORS, line_of_factors):
            prefetch(units.factors, at * UNIT_FACTORS + k)


@borrowing_jit
def _fetch_ahead(planes: UnitPlanes, sources: UnitSources, part: UnitPart, column: int) -> None:
    """Into the second level of cache: a share of what the next channels will be read from.

    Units read that in no order that the processor could guess.
    """
    layout, breadth, line = planes.layout, unit_breadth(planes.pixels), LINE_BYTES // planes.pixels.itemsize
    end = planes.block.source + planes.block.sources
    channels = min(layout.channels, end - sources.first - layout.channels)
    reach = max(layout.cells.step, layout.stride - layout.x.tiles * breadth)
    share, shares = column - part.low, part.high - part.low
    lines = -(-(shares * breadth + reach) // line)
    for k in range(channels):
        for i in range(layout.reads):
            begin = sources.at + (layout.channels + k) * layout.plane + (part.row + i) * layout.stride
            for j in range(lines * share // shares, lines * (share + 1) // shares):
                prefetch(planes.pixels, begin + part.low * breadth + j * line)


@borrowing_jit
def _store_lanes(
    out: np.ndarray,
    tile: UnitPointer,
    part: UnitPart,
    image: int,
    base: float,
    begins: bool,
    layout: UnitLayout,
) -> None:
    """The lanes that belong to an image, of one target's tiles in the row, of which this is the first."""
    cells, breadth = layout.cells, unit_breadth(tile.array)
    wide = breadth // cells.step  # pixels of a cell that are side by side in a tile
    apart = (part.end - part.begin) * UNIT_ROWS * breadth
    for cell in range(cells.down * cells.across):
        i, j = cell // cells.across, cell % cells.across
        lane, left = (image * cells.down + i) * cells.across + j, j * cells.width + part.low * wide
        count = min((part.high - part.low) * wide, min(layout.x.size, (j + 1) * cells.width) - left)
        row = part.row + i * cells.height
        for k in range(min(UNIT_ROWS, layout.y.size - row)):
            line = out[row + k]
            for p in range(min(wide, count)):  # one pixel of every tile
                at = np.uint64(tile.at + k * breadth + p * cells.step + lane)
                to = np.uint64(left + p)
                for _ in range(np.uint64((count - p + wide - 1) // wide)):
                    before = base if begins else line[to]
                    line[to] = before + tile.array[at]
                    to, at = to + np.uint64(wide), at + np.uint64(apart)
