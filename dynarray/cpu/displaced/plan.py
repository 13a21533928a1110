"""How the CPU's kernels of `displaced_conv2d` lay out what units read, and in which blocks.

A vector of pixels that begins anywhere lies across two cache lines more often than not, which costs double.
So where units stay near, an image is cut into as many cells as a vector has lanes, and pixel (i, j) of every
cell makes one vector: a unit that is displaced by whole pixels reads other vectors, never a part of one. Each
cell needs zeros or neighbours around it as far as units lead. Units that lead far would make those many times
as large as the image; then rows are kept as they are, and vectors begin anywhere.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..engine.pixels import whole_lines
from ..engine.vectors import REGISTER_BYTES
from .tiles import UNIT_ROWS, UNIT_SUMS, UNIT_VECTORS

UNIT_PLANE_BYTES = 12 * 1024 * 1024
UNIT_CACHE_BYTES = 32 * 1024  # of planes that are read for one tile after the other
NEAR_CHANNELS = 3  # whose surroundings of a tile fit into UNIT_CACHE_BYTES, if units are near
LEAST_SOURCES, MOST_SOURCES = 4, 16  # channels that are read together, whether or not they fit
UNIT_TARGETS = 64  # channels that are made of one reading of the sources, if one thread makes so many
UNIT_CHUNK = 8  # of these, that are not divided between threads
UNIT_COLUMNS = 16  # of tiles, that a work item makes of each
FIELD_PIXELS = 32 * 1024  # blurred pixels that are put into cells at once


class Units(NamedTuple):
    """The units of each target channel, source channel and place: (T, S, G)."""

    y: np.ndarray  # whole pixels to the first of the rows and columns they read
    x: np.ndarray
    factors: np.ndarray  # (T, S, G, UNIT_FACTORS)
    extent: np.ndarray  # (T, 4): least y, largest y, least x, largest x
    poison: np.ndarray  # (T,): NaN, where a unit is left out because it is not finite, else 0


class UnitCells(NamedTuple):
    """What the lanes of a vector hold: lane ``(n*down + i)*across + j`` that of cell (i, j) of image n."""

    images: int
    down: int
    across: int
    height: int  # of a cell, in whole tiles
    width: int
    step: int  # elements from a pixel to the next: the lanes, or 1 where the whole image is one cell


class UnitAxis(NamedTuple):
    """What units read along one axis."""

    size: int  # of the image
    tile: int  # pixels of a tile
    tiles: int  # of a cell
    low: int  # the least displacement, and the largest
    high: int
    before: int  # pixels that precede the cell; units that lead further stop there
    end: int  # where the others stop
    free: bool  # none has to stop

    def reads(self, tile: int, count: int) -> tuple[int, int]:
        """The first pixel that some tiles read, and the number of pixels to the last."""
        first, last = tile * self.tile + self.low, (tile + count - 1) * self.tile + self.high
        first, last = (max(-self.before, min(self.end, place)) for place in (first, last))
        return first, last - first + self.tile + 1


class UnitLayout(NamedTuple):
    """Sizes of planes, in elements."""

    y: UnitAxis
    x: UnitAxis
    cells: UnitCells
    free: bool  # no unit has to stop
    parts: int  # that work items divide a row of tiles into
    stride: int  # between rows
    rows: int
    reads: int  # of those, for one row of tiles
    plane: int
    channels: int  # source channels that are read together, because they fit into the first level of cache


class UnitBlock(NamedTuple):
    """A part of the work: some images, rows of tiles and source channels, whose planes exist together."""

    image: int
    images: int  # so many times `cells.images`
    tile: int
    tiles: int
    source: int
    sources: int
    first: int  # row of the cell at the top of the planes


class UnitField(NamedTuple):
    """Where images are blurred, some rows at a time, before their pixels are dealt out to cells.

    In one band rows that cells have in common are blurred once. If that is too large, each cell has a band.
    """

    rows: int  # of a cell, at a time
    bands: int
    height: int  # rows of all bands
    width: int
    starts: np.ndarray  # of the cell of each lane


class UnitWork(NamedTuple):
    """A block, and all that is known of it before it is packed."""

    layout: UnitLayout
    field: UnitField
    block: UnitBlock


class UnitPlanes(NamedTuple):
    """The packed planes of a block: (images, sources) of it, each `layout.plane` elements."""

    pixels: np.ndarray
    layout: UnitLayout
    block: UnitBlock


class UnitScratch(NamedTuple):
    """Memory of a thread that makes tiles, or sums."""

    tiles: Any
    sums: Any  # (units, UNIT_SUMS) vectors
    places: Any  # where the plane of the source channel of each unit of a target begins
    offsets: Any  # where these units read, for some targets


def unit_scratch(planes: UnitPlanes, units: Units, targets: int, *, correlate: bool) -> UnitScratch:
    """Sizes for so many targets at a time: of their tiles, or of sums over one."""
    layout, per_source, lanes = planes.layout, units.y.shape[2], REGISTER_BYTES // planes.pixels.itemsize
    tile = UNIT_ROWS * UNIT_VECTORS * lanes
    return UnitScratch(
        tiles=0 if correlate else targets * -(-layout.x.tiles // layout.parts) * tile,
        sums=layout.channels * per_source * UNIT_SUMS * lanes if correlate else 0,
        places=(planes.block.sources * per_source, np.int64),
        offsets=(targets * layout.channels * per_source, np.int64),
    )


def _axis(size: int, cell: int, tile: int, reach: tuple[int, int], near: bool) -> UnitAxis:
    """Units that lead further than a tile beyond the image read as many zeros where it ends."""
    tiles, (low, high) = -(-cell // tile), reach
    last = (tiles - 1) * tile + high
    if near:
        return UnitAxis(size, tile, tiles, low, high, max(0, -low), last, True)
    end = max(cell, last) if high <= tile + 1 else cell
    free = max(-low, high) <= tile + 1
    return UnitAxis(size, tile, tiles, low, high, min(tile + 1, max(0, -low)), end, free)


def _cells(shape: tuple[int, ...], lanes: int, reach: tuple[int, int]) -> UnitCells:
    """The cells that waste least, and of those the ones for which least is read, in the longest rows."""
    images, _, height, width = shape

    def choice(together: int, down: int) -> tuple[tuple[int, int, int], UnitCells]:
        across = lanes // (together * down)
        high, wide = -(-height // (down * UNIT_ROWS)), -(-width // (across * UNIT_VECTORS))
        rows = -(-images // together) * high  # of tiles
        reads = rows * (UNIT_ROWS + reach[0]) * (wide * UNIT_VECTORS + -(-wide // UNIT_COLUMNS) * reach[1])
        cells = UnitCells(together, down, across, high * UNIT_ROWS, wide * UNIT_VECTORS, lanes)
        return (rows * wide, reads, rows), cells

    powers = [1 << i for i in range(lanes.bit_length())]
    choices = [choice(n, i) for n, i in product(powers, powers) if n * i <= lanes]
    return min(choices, key=lambda choice: choice[0])[1]


def plan_units(
    shape: tuple[int, ...], units: Units, itemsize: int, in_cells: bool, whole: tuple[int, ...] | None = None
) -> tuple[UnitWork, ...]:
    """The blocks that source images of this shape are read in: in cells, if that is wanted and pays.

    Channels are added up as for images of the shape `whole`, of which these may be a part.
    """
    lows, highs = units.extent.min(axis=0).tolist(), units.extent.max(axis=0).tolist()
    extent = lows[0], highs[1], lows[2], highs[3]
    together = None
    if whole is not None and whole != shape:
        first = _plan_blocks(whole, extent, itemsize, in_cells)[0]
        together = first.block.sources, first.layout.channels
    return _plan_blocks(shape, extent, itemsize, in_cells, together)


@lru_cache(maxsize=256)
def _plan_blocks(
    shape: tuple[int, ...],
    extent: tuple[int, int, int, int],
    itemsize: int,
    in_cells: bool,
    given: tuple[int, int] | None = None,
) -> tuple[UnitWork, ...]:
    images, sources, height, width = shape
    lanes = REGISTER_BYTES // itemsize
    up, down, left, right = extent
    reach = down - up + 1, right - left + 1
    surroundings = (UNIT_ROWS + reach[0]) * (UNIT_VECTORS + reach[1]) * REGISTER_BYTES
    near = in_cells and NEAR_CHANNELS * surroundings <= UNIT_CACHE_BYTES
    cells = _cells(shape, lanes, reach) if near else UnitCells(1, 1, 1, height, width, 1)
    y = _axis(height, cells.height, UNIT_ROWS, (up, down), near)
    x = _axis(width, cells.width, UNIT_VECTORS * (1 if near else lanes), (left, right), near)
    stride = (x.before + max(cells.width, sum(x.reads(0, x.tiles))) + 1) * cells.step

    def plane_bytes(count: int) -> int:
        rows = max(y.reads(tile, count)[1] for tile in (0, y.tiles - count))
        return stride * rows * itemsize

    band, groups = y.tiles, -(-images // cells.images)
    while band > 1 and sources * plane_bytes(band) > UNIT_PLANE_BYTES:
        band = -(-band // 2)
    together = given[0] if given else max(1, min(sources, UNIT_PLANE_BYTES // plane_bytes(band)))
    at_once = max(1, min(groups, UNIT_PLANE_BYTES // (together * plane_bytes(band))))
    works: list[UnitWork] = []
    touched = surroundings if near else itemsize * stride * (UNIT_ROWS + reach[0])
    channels = max(LEAST_SOURCES, min(MOST_SOURCES, UNIT_CACHE_BYTES // touched))
    for image, tile in product(range(0, groups, at_once), range(0, y.tiles, band)):
        count = min(band, y.tiles - tile)
        first, rows = y.reads(tile, count)
        layout = UnitLayout(
            y=y,
            x=x,
            cells=cells,
            free=y.free and x.free,
            parts=-(-x.tiles // UNIT_COLUMNS),
            stride=stride,
            rows=rows,
            reads=UNIT_ROWS + reach[0],
            plane=whole_lines(stride * rows),
            channels=given[1] if given else channels,
        )
        field, some = _field(layout), min(at_once, groups - image)
        for source in range(0, sources, together):
            own = min(together, sources - source)
            works.append(UnitWork(layout, field, UnitBlock(image, some, tile, count, source, own, first)))
    return tuple(works)


def plan_gradients(work: UnitWork, first: int, targets: int, itemsize: int) -> Iterator[UnitWork]:
    """The same block of output gradients, as many channels from the `first` on as are packed at once.

    Nothing is read around their pixels.
    """
    layout, block = work.layout, work.block
    stride, rows = layout.x.tiles * layout.x.tile * layout.cells.step, block.tiles * UNIT_ROWS
    x, plane = layout.x._replace(before=0), whole_lines(stride * rows)
    own = layout._replace(x=x, stride=stride, rows=rows, plane=plane)
    together, field = max(1, UNIT_PLANE_BYTES // (block.images * plane * itemsize)), _field(own)
    for channel in range(first, first + targets, together):
        count = min(together, first + targets - channel)
        some = block._replace(source=channel, sources=count, first=block.tile * UNIT_ROWS)
        yield UnitWork(own, field, some)


def _field(layout: UnitLayout) -> UnitField:
    cells = layout.cells
    wide = layout.stride // cells.step
    room = cells.images * (cells.across * cells.width + wide)
    rows, bands, height = layout.rows, 1, (cells.down - 1) * cells.height + layout.rows
    if height * room > FIELD_PIXELS:
        rows = max(1, FIELD_PIXELS // (cells.down * room))
        bands, height = cells.down, cells.down * rows
    width = (cells.across - 1) * cells.width + wide
    image, i, j = np.indices((cells.images, cells.down, cells.across)).reshape(3, -1)
    apart = rows if bands > 1 else cells.height
    starts = (image * height + i * apart) * width + j * cells.width
    return UnitField(rows, bands, height, width, starts.astype(np.int64))
