"""Samples of planes that are read where they are, and their gradients: see `flow.py`."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import ONE, ZERO, borrowing_jit, cached_jit
from ..engine.pixels import clear
from .flow_rows import (
    FLOW_TILE,
    FlowCoordinates,
    FlowPlanes,
    FlowPoints,
    FlowRows,
    differentiate_flow,
    pull_flow,
    sample_flow,
    set_up_flow,
    spread_flow,
)
from .points import DeformSizes


class FlowPart(NamedTuple):
    """What kernels work on."""

    sizes: DeformSizes
    block: int  # channels of an item


class FlowScratch(NamedTuple):
    """Memory of a thread: sizes, or the arrays."""

    points: FlowPoints
    sums: Any  # of each corner and point


class _FlowRun(NamedTuple):
    """The points of an image and tap at a run of positions, and some channels from the first one on."""

    image: int
    tap: int
    first: int
    number: int  # of positions
    channel: int
    channels: int


@borrowing_jit
def _coordinates_at(sizes: DeformSizes, tile: _FlowRun) -> int:
    """Where rows of points begin; columns are so many positions further on."""
    return (tile.image * sizes.taps + tile.tap) * 2 * sizes.positions + tile.first


@borrowing_jit
def _rows_at(sizes: DeformSizes, tile: _FlowRun) -> int:
    """Where samples begin."""
    row = (tile.image * sizes.channels + tile.channel) * sizes.taps + tile.tap
    return row * sizes.positions + tile.first


@borrowing_jit
def _planes_at(sizes: DeformSizes, tile: _FlowRun) -> int:
    return (tile.image * sizes.channels + tile.channel) * sizes.image.height * sizes.image.width


@borrowing_jit
def _set_up_tile(own: FlowPoints, points: np.ndarray, sizes: DeformSizes, tile: _FlowRun) -> None:
    at = _coordinates_at(sizes, tile)
    set_up_flow(FlowCoordinates(points, at, at + sizes.positions, tile.number), sizes.image, own)


@borrowing_jit
def _sample_tile(y: np.ndarray, x: np.ndarray, own: FlowPoints, sizes: DeformSizes, tile: _FlowRun) -> None:
    image, apart = sizes.image, sizes.taps * sizes.positions
    planes = FlowPlanes(x, _planes_at(sizes, tile), image.height, image.width, tile.channels)
    sample_flow(planes, own, FlowRows(y, _rows_at(sizes, tile), apart, tile.number))


@borrowing_jit
def _pull_tile(
    scratch: FlowScratch, grad_output: np.ndarray, x: np.ndarray, sizes: DeformSizes, tile: _FlowRun
) -> None:
    image, apart = sizes.image, sizes.taps * sizes.positions
    planes = FlowPlanes(x, _planes_at(sizes, tile), image.height, image.width, tile.channels)
    rows = FlowRows(grad_output, _rows_at(sizes, tile), apart, tile.number)
    pull_flow(planes, scratch.points, rows, scratch.sums, tile.channel > 0)


@borrowing_jit
def _spread_tile(
    grad_x: np.ndarray, grad_output: np.ndarray, own: FlowPoints, sizes: DeformSizes, tile: _FlowRun
) -> None:
    image, apart = sizes.image, sizes.taps * sizes.positions
    planes = FlowPlanes(grad_x, _planes_at(sizes, tile), image.height, image.width, tile.channels)
    spread_flow(planes, own, FlowRows(grad_output, _rows_at(sizes, tile), apart, tile.number))


@cached_jit
def flow_sample_items(
    start: int,
    stop: int,
    scratch: FlowScratch,
    x: np.ndarray,
    points: np.ndarray,
    y: np.ndarray,
    part: FlowPart,
) -> None:
    """Items are tiles of positions, for some channels of an image."""
    sizes, own = part.sizes, scratch.points
    tiles, blocks = -(-sizes.positions // FLOW_TILE), -(-sizes.channels // part.block)
    for item in range(start, stop):
        first, block, n = item % tiles * FLOW_TILE, item // tiles % blocks, item // tiles // blocks
        channel, count = block * part.block, min(FLOW_TILE, sizes.positions - first)
        for tap in range(sizes.taps):
            tile = _FlowRun(n, tap, first, count, channel, min(part.block, sizes.channels - channel))
            _set_up_tile(own, points, sizes, tile)
            _sample_tile(y, x, own, sizes, tile)


@cached_jit
def flow_points_items(
    start: int,
    stop: int,
    scratch: FlowScratch,
    grad_output: np.ndarray,
    x: np.ndarray,
    points: np.ndarray,
    grad_points: np.ndarray,
    part: FlowPart,
) -> None:
    """Items are tiles of positions: gradients of their points."""
    sizes, own, tiles = part.sizes, scratch.points, -(-part.sizes.positions // FLOW_TILE)
    for item in range(start, stop):
        first, n = item % tiles * FLOW_TILE, item // tiles
        count = min(FLOW_TILE, sizes.positions - first)
        for tap in range(sizes.taps):
            tile = _FlowRun(n, tap, first, count, ZERO, ZERO)
            _set_up_tile(own, points, sizes, tile)
            for channel in range(0, sizes.channels, part.block):
                number = min(part.block, sizes.channels - channel)
                _pull_tile(scratch, grad_output, x, sizes, _FlowRun(n, tap, first, count, channel, number))
            at = _coordinates_at(sizes, tile)
            grads = FlowCoordinates(grad_points, at, at + sizes.positions, count)
            differentiate_flow(scratch.sums, own, grads)


@borrowing_jit
def _strips(sizes: DeformSizes) -> tuple:
    """Runs of positions that are worked on one after the other, how long they are, and how long a tile is.

    Long rows of the output are cut into tiles, and those below one another come in a row: of what their
    points add to, the last lines are then still in the first cache.
    """
    width = sizes.grid.width
    if width <= FLOW_TILE:
        return ONE, sizes.positions, FLOW_TILE
    return sizes.positions // width, width, -(-width // -(-width // FLOW_TILE))


@cached_jit
def flow_spread_items(
    start: int,
    stop: int,
    scratch: FlowScratch,
    grad_output: np.ndarray,
    points: np.ndarray,
    grad_x: np.ndarray,
    part: FlowPart,
) -> None:
    """Items are some channels of an image: their gradient."""
    sizes, own, blocks = part.sizes, scratch.points, -(-part.sizes.channels // part.block)
    runs, length, step = _strips(sizes)
    for item in range(start, stop):
        channel, n = item % blocks * part.block, item // blocks
        number, pixels = min(part.block, sizes.channels - channel), sizes.image.height * sizes.image.width
        clear(grad_x, (n * sizes.channels + channel) * pixels, number * pixels)
        for left in range(0, length, step):
            count = min(step, length - left)
            for run in range(runs):
                for tap in range(sizes.taps):
                    tile = _FlowRun(n, tap, run * length + left, count, channel, number)
                    _set_up_tile(own, points, sizes, tile)
                    _spread_tile(grad_x, grad_output, own, sizes, tile)
