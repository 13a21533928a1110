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
from typing import NamedTuple

import numpy as np

from ..engine.pixels import whole_lines
from ..engine.vectors import REGISTER_BYTES
from .tiles import ROWS, VECTORS

PLANE_BYTES = 12 * 1024 * 1024
CACHE_BYTES = 32 * 1024  # of planes that are read for one tile after the other
NEAR = 3  # channels whose surroundings of a tile fit into CACHE_BYTES, if units are near
TARGETS = 64  # channels that are made of one reading of the sources, if one thread makes so many
CHUNK = 8  # of these, that are not divided between threads
COLUMNS = 16  # of tiles, that a work item makes of each


class Units(NamedTuple):
    """The units of each target channel, source channel and place: (T, S, G)."""

    y: np.ndarray  # whole pixels to the first of the rows and columns they read
    x: np.ndarray
    factors: np.ndarray  # (T, S, G, FACTORS)
    extent: np.ndarray  # (T, 4): least y, largest y, least x, largest x
    poison: np.ndarray  # (T,): NaN where a weight or a displacement is no number, else 0


class Cells(NamedTuple):
    """What the lanes of a vector hold: lane ``(n*down + i)*across + j`` that of cell (i, j) of image n."""

    images: int
    down: int
    across: int
    height: int  # of a cell, in whole tiles
    width: int
    step: int  # elements from a pixel to the next: `lanes`, or 1 where the whole image is one cell


class Layout(NamedTuple):
    """Sizes of planes, in elements but for the image's: pixel (0, 0) of a cell is at (above, before)."""

    height: int  # of the image
    width: int
    cells: Cells
    above: int  # pixels that precede the cell; units that lead further up stop there
    before: int
    bottom: int  # where the others stop
    right: int
    free: bool  # none has to stop
    columns: int  # tiles side by side
    parts: int  # that work items divide these into
    stride: int  # between rows
    rows: int
    reads: int  # of those, for one row of tiles
    plane: int
    channels: int  # source channels that are read together, because they fit into the first level of cache


class Block(NamedTuple):
    """A part of the work: some images, rows of tiles and source channels, whose planes exist together."""

    image: int
    images: int  # so many times `cells.images`
    tile: int
    tiles: int
    source: int
    sources: int
    first: int  # row of the cell at the top of the planes


class _Borders(NamedTuple):
    """How far units lead from the tiles of a cell, along one axis."""

    low: int  # the least displacement, and the largest
    high: int
    size: int  # of a tile
    tiles: int
    before: int  # pixels that precede the cell
    end: int  # where units stop, if not all are free to lead where they do
    free: bool

    def reads(self, tile: int, count: int) -> tuple[int, int]:
        """The first pixel that some tiles read, and the number of pixels to the last."""
        first, last = tile * self.size + self.low, (tile + count - 1) * self.size + self.high
        first, last = (max(-self.before, min(self.end, place)) for place in (first, last))
        return first, last - first + self.size + 1


def _borders(extent: int, size: int, low: int, high: int, near: bool) -> _Borders:
    """Units that lead further than a tile beyond the image read as many zeros where it ends."""
    tiles = -(-extent // size)
    last = (tiles - 1) * size + high
    if near:
        return _Borders(low, high, size, tiles, max(0, -low), last, True)
    end = max(extent, last) if high <= size + 1 else extent
    free = max(-low, high) <= size + 1
    return _Borders(low, high, size, tiles, min(size + 1, max(0, -low)), end, free)


def _cells(shape: tuple[int, ...], lanes: int, reach: tuple[int, int]) -> Cells:
    """The cells that waste least, and of those the ones for which least is read, in the longest rows."""
    images, _, height, width = shape

    def cut(together: int, down: int) -> tuple[tuple[int, int, int], Cells]:
        across = lanes // (together * down)
        high, wide = -(-height // (down * ROWS)), -(-width // (across * VECTORS))
        rows = -(-images // together) * high  # of tiles
        reads = rows * (ROWS + reach[0]) * (wide * VECTORS + -(-wide // COLUMNS) * reach[1])
        cells = Cells(together, down, across, high * ROWS, wide * VECTORS, lanes)
        return (rows * wide, reads, rows), cells

    powers = [1 << i for i in range(lanes.bit_length())]
    choices = [cut(n, i) for n, i in product(powers, powers) if n * i <= lanes]
    return min(choices, key=lambda choice: choice[0])[1]


def plan(shape: tuple[int, ...], units: Units, itemsize: int, cut: bool) -> tuple[tuple[Layout, Block], ...]:
    """The blocks that source images of this shape are read in; cut into cells, if that is wanted and pays."""
    lows, highs = units.extent.min(axis=0).tolist(), units.extent.max(axis=0).tolist()
    return _plan(shape, (lows[0], highs[1], lows[2], highs[3]), itemsize, cut)


@lru_cache(maxsize=256)
def _plan(
    shape: tuple[int, ...], extent: tuple[int, int, int, int], itemsize: int, cut: bool
) -> tuple[tuple[Layout, Block], ...]:
    return tuple(_blocks(shape, extent, itemsize, cut))


def _blocks(
    shape: tuple[int, ...], extent: tuple[int, int, int, int], itemsize: int, cut: bool
) -> Iterator[tuple[Layout, Block]]:
    images, sources, height, width = shape
    lanes = REGISTER_BYTES // itemsize
    up, down, left, right = extent
    reach = down - up + 1, right - left + 1
    surroundings = (ROWS + reach[0]) * (VECTORS + reach[1]) * REGISTER_BYTES
    near = cut and NEAR * surroundings <= CACHE_BYTES
    cells = _cells(shape, lanes, reach) if near else Cells(1, 1, 1, height, width, 1)
    y = _borders(cells.height, ROWS, up, down, near)
    x = _borders(cells.width, VECTORS if near else VECTORS * lanes, left, right, near)
    stride = (x.before + max(cells.width, sum(x.reads(0, x.tiles))) + 1) * cells.step

    def plane_bytes(count: int) -> int:
        rows = max(y.reads(tile, count)[1] for tile in (0, y.tiles - count))
        return stride * rows * itemsize

    band, groups = y.tiles, -(-images // cells.images)
    while band > 1 and sources * plane_bytes(band) > PLANE_BYTES:
        band = -(-band // 2)
    together = max(1, min(sources, PLANE_BYTES // plane_bytes(band)))
    several = max(1, min(groups, PLANE_BYTES // (together * plane_bytes(band))))
    touched = surroundings if near else itemsize * stride * (ROWS + reach[0])
    channels = max(4, min(16, CACHE_BYTES // touched))
    for image, tile in product(range(0, groups, several), range(0, y.tiles, band)):
        count = min(band, y.tiles - tile)
        first, rows = y.reads(tile, count)
        layout = Layout(
            height=height,
            width=width,
            cells=cells,
            above=y.before,
            before=x.before,
            bottom=y.end,
            right=x.end,
            free=x.free and y.free,
            columns=x.tiles,
            parts=-(-x.tiles // COLUMNS),
            stride=stride,
            rows=rows,
            reads=ROWS + reach[0],
            plane=whole_lines(stride * rows),
            channels=channels,
        )
        some = min(several, groups - image)
        for source in range(0, sources, together):
            yield layout, Block(image, some, tile, count, source, min(together, sources - source), first)
