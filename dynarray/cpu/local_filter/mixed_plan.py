"""How `mixed_filter2d` is cut into tiles on the CPU, from shapes alone.

A tile is some rows and columns of positions, for all channels of a group. What it reads is packed into planes
of one row length, in which a tap is one offset: the image, a plane for each phase of the stride that is
read, and the mixture; or, for the gradient of the image, that of the output and the mixture, each with the
rows and columns around the tile that its taps lead back to. Few channels are packed at once, and the filters
of a strip of positions are made of the mixture, applied to them, and forgotten; where there are more
channels, filters are made once for all positions of a tile. So neither leaves the caches of a core.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import gemm, parallel
from ..engine.products import MIXED_BYTES, NEIGHBOURS
from ..engine.vectors import LINE_BYTES

MIXED_TILE_BYTES = 512 * 1024  # packed planes of a tile: half of a common L2 cache
MIXED_STRIP_BYTES = 24 * 1024  # filters of a strip: most of a common L1 cache
_LEAST_WIDTH = 32  # of a part of a row
_BLOCK = 8  # channels whose packed planes stay in the first cache while all their taps go by


class MixedTiles(NamedTuple):
    """How positions are cut into tiles."""

    high: int  # positions
    wide: int
    rows: int  # of a tile
    width: int
    pitch: int  # from row to row of a packed plane
    down: int  # tiles
    across: int
    first_y: int  # what positions are counted from: 0, or of the gradient of x the first that has pixels
    first_x: int


class MixedTaps(NamedTuple):
    """What taps read, ordered by the plane of the image that they read."""

    number: np.ndarray  # index i*kw + j
    at: np.ndarray  # the offset of what is read at a position, or back from there
    end: np.ndarray  # of plane s: taps end[s] to end[s + 1]
    origin_y: np.ndarray  # of each plane: the pixel at its row 0, column 0
    origin_x: np.ndarray
    halo: int  # rows of a packed plane beyond those of the tile
    lead: int  # and columns
    neighbours: int  # so many taps, one after the other, read pixels side by side: one of `NEIGHBOURS`, or 1


class MixedChannels(NamedTuple):
    """How the channels of a group are dealt with."""

    sets: int  # of kernels: one, or one for each channel
    of_group: int  # filters of a group at a position
    block: int  # channels that are packed and filtered at once
    kept: bool  # whether the filters of a whole tile are made once for all blocks


class MixedCall(NamedTuple):
    """What a plan depends on."""

    x: tuple[int, int, int, int]
    kernels: tuple[int, int, int, int]  # (B, one or all channels, kh, kw)
    mixture: tuple[int, int, int, int, int]
    itemsize: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]

    @property
    def share(self) -> int:
        """Channels of a group."""
        return self.x[1] // self.mixture[1]

    @property
    def filters(self) -> int:
        """Filters of a group at a position: one for all channels, or where kernels differ one for each."""
        return 1 if self.kernels[1] == 1 else self.share

    def channels(self, *, backward: bool) -> MixedChannels:
        """In blocks, but for the gradients of kernels and mixture, which are sums over all of them."""
        block = self.share if backward else min(self.share, _BLOCK)
        return MixedChannels(self.kernels[1], self.filters, block, self.filters == 1 and self.share > block)


class MixedInputs(NamedTuple):
    """What all passes read."""

    x: np.ndarray  # (N, C, H, W)
    kernels: np.ndarray  # in a row, as each pass takes them
    mixture: np.ndarray  # (N, G, B, Ho, Wo)


class MixedGradients(NamedTuple):
    """What the gradients of weights are written to; no elements where they are not needed."""

    kernels: np.ndarray  # (ranges, G, as `engine.dots` has those of a filter, or all of them); float64
    mixture: np.ndarray


class MixedPlan(NamedTuple):
    """All that kernels know of a call but its arrays."""

    tiles: MixedTiles
    taps: MixedTaps
    stride: tuple[int, int]
    channels: MixedChannels
    strip: int  # positions whose filters are made at once
    span: int  # of a tile, in whole vectors
    image: int  # elements of the packed planes of a channel
    mixture: np.ndarray  # where the packed planes of the mixture begin
    filters: np.ndarray  # and those of the filters of a strip


class MixedScratch(NamedTuple):
    """A thread's memory for one tile."""

    filters: Any  # of a strip; or their gradients
    mixture: Any
    images: Any  # packed planes of all channels; or of their output gradients
    results: Any  # of all channels; or their output gradients
    corner: Any  # for the matrix product
    grad_mixture: Any


def _axes(call: MixedCall) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per tap, the phase of the stride that it reads as ``y*s_x + x``, and its shift in strides, y and x."""
    i, j = np.divmod(np.arange(math.prod(call.kernels[2:])), call.kernels[3])
    shift_y, phase_y = np.divmod(i * call.dilation[0], call.stride[0])
    shift_x, phase_x = np.divmod(j * call.dilation[1], call.stride[1])
    return phase_y * call.stride[1] + phase_x, shift_y, shift_x


@lru_cache(maxsize=256)
def plan_outputs(call: MixedCall, *, backward: bool) -> tuple[MixedPlan, MixedScratch]:
    """For tiles of outputs: the forward pass, or the gradients of kernels and mixture."""
    phase, shift_y, shift_x = _axes(call)
    planes, plane_of_tap = np.unique(phase, return_inverse=True)
    plane_of_tap = plane_of_tap.reshape(-1)
    halo, lead = int(shift_y.max()), int(shift_x.max())
    channels = call.channels(backward=backward)
    held = channels.block * (len(planes) + 1) + (2 if backward else 1) * call.kernels[0]
    held += channels.kept * len(phase)
    tiles = _mixed_tiles(call, call.mixture[3:], (0, 0), (halo, lead), held)
    plane = (tiles.rows + halo) * tiles.pitch
    at = plane_of_tap * plane + shift_y * tiles.pitch + shift_x
    phase_y, phase_x = np.divmod(planes, call.stride[1])
    end = np.array([0, len(at)])
    taps = MixedTaps(
        number=np.arange(len(at)),
        at=at,
        end=end,
        origin_y=phase_y - call.padding[0],
        origin_x=phase_x - call.padding[1],
        halo=halo,
        lead=lead,
        neighbours=_neighbours(at, end),
    )
    return _finish(call, tiles, taps, len(planes) * plane, backward=backward)


@lru_cache(maxsize=256)
def plan_pixels(call: MixedCall) -> tuple[MixedPlan, MixedScratch]:
    """For tiles of pixels: the gradient of x, one phase of the stride after the other."""
    phase, shift_y, shift_x = _axes(call)
    order = len(phase) - 1 - np.argsort(phase[::-1], kind="stable")  # as what they read lies in memory
    planes, counts = np.unique(phase, return_counts=True)
    halo, lead = int(shift_y.max()), int(shift_x.max())
    steps = list(zip(call.x[2:], call.padding, call.stride, strict=True))
    first = [padding // stride for _, padding, stride in steps]
    positions = [
        (size - 1 + padding) // stride - begin + 1
        for (size, padding, stride), begin in zip(steps, first, strict=True)
    ]
    channels = call.channels(backward=False)
    held = 2 * channels.block + call.kernels[0] + channels.kept * len(order)
    tiles = _mixed_tiles(call, tuple(positions), tuple(first), (halo, lead), held)
    phase_y, phase_x = np.divmod(planes, call.stride[1])
    at, end = ((halo - shift_y) * tiles.pitch + lead - shift_x)[order], np.append(0, np.cumsum(counts))
    taps = MixedTaps(
        number=order,
        at=at,
        end=end,
        origin_y=phase_y - call.padding[0],
        origin_x=phase_x - call.padding[1],
        halo=halo,
        lead=lead,
        neighbours=_neighbours(at, end),
    )
    plane = (tiles.rows + halo) * tiles.pitch
    return _finish(call, tiles, taps, plane, mixture=plane)


def _neighbours(at: np.ndarray, end: np.ndarray) -> int:
    """So many taps, one after the other, of one plane of the image, read pixels side by side."""
    for number in NEIGHBOURS:
        if not (np.diff(end) % number).any() and (np.diff(at.reshape(-1, number)) == 1).all():
            return number
    return 1


def _pitch(width: int, lead: int, itemsize: int) -> int:
    """Elements from row to row of a packed plane: whole cache lines, where those are not much more."""
    line, least = LINE_BYTES // itemsize, width + lead
    whole = -(-least // line) * line
    return whole if lead and 8 * whole <= 9 * least else least


def _mixed_tiles(
    call: MixedCall, positions: tuple, first: tuple, reach: tuple[int, int], held: int
) -> MixedTiles:
    """Tiles of such positions; `reach` is how far beyond a tile it reads, `held` planes that are packed.

    A column beyond a tile costs as much as one of its own, a row little: tiles are as wide as may be.
    """
    high, wide = positions
    most = max(1, MIXED_TILE_BYTES // (held * call.itemsize))
    wanted = -(-high * wide * call.x[0] * call.mixture[1] // parallel.ITEMS)
    best = None
    for across in range(1, max(1, wide // _LEAST_WIDTH) + 1):
        width = -(-wide // across)
        pitch = _pitch(width, reach[1], call.itemsize)
        rows = max(1, min(high, most // pitch - reach[0], wanted // width))
        fits = (rows + reach[0]) * pitch <= most
        cost = pitch / width * (1 + 4 * reach[0] / (rows * math.prod(call.kernels[2:])))
        if best is None or (not fits, cost) < best[0]:
            best = (not fits, cost), rows, width
    assert best is not None
    _, rows, width = best
    down, across = -(-high // rows), -(-wide // width)
    pitch = _pitch(width, reach[1], call.itemsize)
    return MixedTiles(high, wide, -(-high // down), width, pitch, down, across, *first)


def _finish(
    call: MixedCall,
    tiles: MixedTiles,
    taps: MixedTaps,
    image: int,
    mixture: int | None = None,
    *,
    backward: bool = False,
) -> tuple[MixedPlan, MixedScratch]:
    """The plan, and the sizes of its scratch; `mixture` is the size of a plane that is not a tile."""
    bases, count, channels = call.kernels[0], len(taps.at), call.channels(backward=backward)
    whole = MIXED_BYTES // call.itemsize  # which is whole tiles of a matrix product, too
    span = -(-tiles.rows * tiles.pitch // whole) * whole
    strip = max(whole, MIXED_STRIP_BYTES // (count * call.itemsize) // whole * whole)
    strip = span if channels.kept else min(span, strip)
    plane, slack = mixture or span, 2 * whole + tiles.pitch  # of what is read beyond the last row
    plan = MixedPlan(
        tiles=tiles,
        taps=taps,
        stride=call.stride,
        channels=channels,
        strip=strip,
        span=span,
        image=image,
        mixture=np.arange(bases) * plane,
        filters=np.arange(count) * strip,
    )
    scratch = MixedScratch(
        filters=count * strip,
        mixture=bases * plane + slack,
        images=channels.block * image + slack,
        results=channels.block * span,
        corner=gemm.TILE_ROWS * gemm.TILE_ROW_BYTES // call.itemsize,
        grad_mixture=backward * bases * span,
    )
    return plan, scratch
