"""The kernels of `mixed_filter2d` on the CPU: filters made of the mixture, strip by strip, and applied."""

from typing import NamedTuple

import numpy as np

from ..engine import gemm
from ..engine.compile import FALSE, ONE, ZERO, borrowing_jit, rolled_jit
from ..engine.dots import add_dots
from ..engine.pixels import PackedRows, clear, pack_rows, unpack_rows
from ..engine.products import (
    MIXED_BYTES,
    Extent,
    Factor,
    Target,
    mix_planes,
    product_of_neighbours,
    product_of_row,
)
from ..engine.runs import RunRows
from ..engine.vectors import in_row
from .mixed_plan import MixedGradients, MixedInputs, MixedPlan, MixedScratch


class MixedTile(NamedTuple):
    """One tile."""

    sample: int
    group: int
    row: int  # the first
    column: int
    rows: int
    width: int


class Dots(NamedTuple):
    """Where the sums of a filter go."""

    totals: np.ndarray
    at: int


class MixedRanges(NamedTuple):
    """Work items (range of tiles, group), each of which adds up gradients in a place of its own."""

    ranges: int
    tiles: int  # of all samples


@borrowing_jit
def _find_tile(number: int, group: int, plan: MixedPlan) -> MixedTile:
    """Tile `number` of (sample, row of tiles, column of tiles)."""
    tiles = plan.tiles
    rest, across = number // tiles.across, number % tiles.across
    sample, row, column = rest // tiles.down, rest % tiles.down * tiles.rows, across * tiles.width
    rows, width = min(tiles.rows, tiles.high - row), min(tiles.width, tiles.wide - column)
    return MixedTile(sample, group, row, column, max(rows, 0), width)


@borrowing_jit
def _pack_images(target: np.ndarray, images: np.ndarray, tile: MixedTile, plan: MixedPlan) -> None:
    """The planes of some channels that the taps read for a tile of outputs, zeros outside the image.

    Those are there: a caller writes them once for all channels of a tile.
    """
    taps, tiles, stride = plan.taps, plan.tiles, plan.stride
    rows = tiles.rows + taps.halo
    for c in range(len(images)):
        for s in range(len(taps.origin_y)):
            at = c * plan.image + s * rows * tiles.pitch
            origin = (taps.origin_y[s], taps.origin_x[s] + tile.column * stride[1])
            packed = PackedRows(tile.row, tile.rows + taps.halo, tiles.pitch, origin, stride)
            pack_rows(target, at, images[c], packed)


@borrowing_jit
def _pack_positions(
    target: np.ndarray, apart: int, planes: np.ndarray, tile: MixedTile, plan: MixedPlan
) -> None:
    """Planes of outputs, those of a tile of outputs alone, zero beyond it."""
    clear(target, 0, len(target))
    rows = PackedRows(tile.row, tile.rows, plan.tiles.pitch, (0, tile.column), (1, 1))
    for k in range(len(planes)):
        pack_rows(target, k * apart, planes[k, :, : tile.column + tile.width], rows)


@borrowing_jit
def _unpack_positions(
    source: np.ndarray, apart: int, planes: np.ndarray, tile: MixedTile, plan: MixedPlan
) -> None:
    """The reverse."""
    rows = PackedRows(tile.row, tile.rows, plan.tiles.pitch, (0, tile.column), (1, 1))
    for k in range(len(planes)):
        unpack_rows(source, k * apart, planes[k, :, : tile.column + tile.width], rows)


@borrowing_jit
def _pack_around(
    target: np.ndarray, apart: int, planes: np.ndarray, tile: MixedTile, plan: MixedPlan
) -> None:
    """Planes of outputs where the taps of a tile of pixels lead back to, among zeros that are there."""
    taps, tiles = plan.taps, plan.tiles
    origin = (tiles.first_y - taps.halo, tiles.first_x - taps.lead + tile.column)
    rows = PackedRows(tile.row, tile.rows + taps.halo, tiles.pitch, origin, (1, 1))
    for k in range(len(planes)):
        pack_rows(target, k * apart, planes[k], rows)


@borrowing_jit
def _strip_length(j: int, tile: MixedTile, plan: MixedPlan, itemsize: int) -> int:
    """Positions of the strip from j on, in whole vectors."""
    whole = MIXED_BYTES // itemsize
    left = tile.rows * plan.tiles.pitch - j
    return min(plan.strip, (left + whole - 1) // whole * whole)


@borrowing_jit
def _kernels_of(number: int, tile: MixedTile, plan: MixedPlan) -> int:
    """Which set of kernels a filter of a group is made of."""
    return tile.group * plan.channels.of_group + number if plan.channels.sets > 1 else 0


@rolled_jit
def mixed_forward_items(
    start: int, stop: int, scratch: MixedScratch, inputs: MixedInputs, y: np.ndarray, plan: MixedPlan
) -> None:
    """Items: (tile, group). Kernels are left matrices (taps, B) in panels."""
    groups, share = inputs.mixture.shape[1], y.shape[1] // inputs.mixture.shape[1]
    for item in range(start, stop):
        tile = _find_tile(item // groups, item % groups, plan)
        first = tile.group * share
        _pack_positions(scratch.mixture, plan.span, inputs.mixture[tile.sample, tile.group], tile, plan)
        clear(scratch.images, 0, len(scratch.images))
        for channel in range(0, share, plan.channels.block):
            channels = min(plan.channels.block, share - channel)
            own = slice(first + channel, first + channel + channels)
            _pack_images(scratch.images, inputs.x[tile.sample, own], tile, plan)
            _filter_images(scratch, inputs.kernels, (channel, channels), tile, plan)
            _unpack_positions(scratch.results, plan.span, y[tile.sample, own], tile, plan)


@borrowing_jit
def _filter_images(
    scratch: MixedScratch, kernels: np.ndarray, which: tuple, tile: MixedTile, plan: MixedPlan
) -> None:
    """The outputs of some channels of a tile: the first, and how many."""
    taps, strip, count, (channel, channels) = plan.taps, plan.strip, len(plan.taps.at), which
    panel = len(plan.mixture) * gemm.TILE_ROWS
    size = (count + gemm.TILE_ROWS - 1) // gemm.TILE_ROWS * panel
    width = gemm.TILE_ROW_BYTES // kernels.itemsize
    together = channels if plan.channels.of_group == 1 else 1
    for number in range(channels // together):
        left = gemm.Matrix(kernels, _kernels_of(channel + number, tile, plan) * size, panel)
        for j in range(0, tile.rows * plan.tiles.pitch, strip):
            length = _strip_length(j, tile, plan, kernels.itemsize)
            if channel == 0 or not plan.channels.kept:
                mixture = gemm.RightStrips(scratch.mixture, j, width, plan.mixture)
                made = gemm.Matrix(scratch.filters, ZERO, strip)
                gemm.multiply(made, left, mixture, (count, length), scratch.corner, FALSE)
            results = Target(scratch.results, number * plan.span + j, ZERO, plan.span)
            filters = Factor(scratch.filters, ZERO, ZERO, strip, None)
            images = Factor(scratch.images, number * plan.image + j, plan.image, taps.at, None)
            extent = Extent(ONE, together, count, length)
            product_of_neighbours(results, filters, images, extent, taps.neighbours)


@rolled_jit
def mixed_pixels_items(
    start: int,
    stop: int,
    scratch: MixedScratch,
    grad_output: np.ndarray,
    inputs: MixedInputs,
    grad_x: np.ndarray,
    plan: MixedPlan,
) -> None:
    """The gradient of x. Items: (tile, group). Kernels are matrices (taps, B), of which x is not there."""
    groups, share = inputs.mixture.shape[1], grad_x.shape[1] // inputs.mixture.shape[1]
    for item in range(start, stop):
        tile = _find_tile(item // groups, item % groups, plan)
        first = tile.group * share
        mixture = inputs.mixture[tile.sample, tile.group]
        clear(scratch.mixture, 0, len(scratch.mixture))
        _pack_around(scratch.mixture, plan.image, mixture, tile, plan)
        clear(scratch.images, 0, len(scratch.images))
        for channel in range(0, share, plan.channels.block):
            channels = min(plan.channels.block, share - channel)
            own = slice(first + channel, first + channel + channels)
            _pack_around(scratch.images, plan.image, grad_output[tile.sample, own], tile, plan)
            for s in range(len(plan.taps.origin_y)):
                _filter_back(scratch, inputs.kernels, (channel, channels), s, tile, plan)
                _unpack_pixels(scratch.results, grad_x[tile.sample, own], s, tile, plan)


@borrowing_jit
def _filter_back(
    scratch: MixedScratch, kernels: np.ndarray, which: tuple, s: int, tile: MixedTile, plan: MixedPlan
) -> None:
    """One phase of the stride, of some channels: the first, and how many."""
    bases, taps, strip, (channel, channels) = len(plan.mixture), plan.taps, plan.strip, which
    together = channels if plan.channels.of_group == 1 else 1
    first, end = taps.end[s], taps.end[s + 1]
    places = taps.at[first:end]
    for number in range(channels // together):
        at = (_kernels_of(channel + number, tile, plan) * len(taps.at) + first) * bases
        for j in range(0, tile.rows * plan.tiles.pitch, strip):
            length = _strip_length(j, tile, plan, kernels.itemsize)
            if channel == 0 or not plan.channels.kept:
                made = Target(scratch.filters, first * strip, ZERO, strip)
                mixture = Factor(scratch.mixture, j, places, plan.image, None)
                mix_planes(made, kernels, at, mixture, Extent(ONE, end - first, bases, length))
            results = Target(scratch.results, number * plan.span + j, ZERO, plan.span)
            filters = Factor(scratch.filters, first * strip, ZERO, strip, None)
            grads = Factor(scratch.images, number * plan.image + j, plan.image, places, None)
            extent = Extent(ONE, together, end - first, length)
            product_of_neighbours(results, filters, grads, extent, taps.neighbours)


@borrowing_jit
def _unpack_pixels(source: np.ndarray, images: np.ndarray, s: int, tile: MixedTile, plan: MixedPlan) -> None:
    """The pixels of one phase of the stride."""
    taps, tiles, stride = plan.taps, plan.tiles, plan.stride
    y = taps.origin_y[s] + tiles.first_y * stride[0]
    x = taps.origin_x[s] + (tiles.first_x + tile.column) * stride[1]
    end = min(images.shape[2], max(0, x + (tile.width - 1) * stride[1] + 1))
    rows = PackedRows(tile.row, tile.rows, tiles.pitch, (y, x), stride)
    for c in range(len(images)):
        unpack_rows(source, c * plan.span, images[c, :, :end], rows)


@rolled_jit
def mixed_weights_items(
    start: int,
    stop: int,
    scratch: MixedScratch,
    grad_output: np.ndarray,
    inputs: MixedInputs,
    grads: MixedGradients,
    plan: MixedPlan,
    ranges: MixedRanges,
) -> None:
    """Items: (range of tiles, group). Kernels are left matrices (B, taps) in panels."""
    grad_kernels, grad_mixture = grads
    groups, totals = inputs.mixture.shape[1], in_row(grad_kernels)
    tangled = grad_kernels.shape[2] // plan.channels.of_group
    share = grad_output.shape[1] // groups
    for item in range(start, stop):
        part, group = item // groups, item % groups
        first = group * share
        low, high = ranges.tiles * part // ranges.ranges, ranges.tiles * (part + 1) // ranges.ranges
        for place in range(low, high):
            tile = _find_tile(place, group, plan)
            _pack_positions(scratch.mixture, plan.span, inputs.mixture[tile.sample, group], tile, plan)
            clear(scratch.images, 0, len(scratch.images))
            _pack_images(scratch.images, inputs.x[tile.sample, first : first + share], tile, plan)
            given = grad_output[tile.sample, first : first + share]
            _pack_positions(scratch.results, plan.span, given, tile, plan)
            for number in range(plan.channels.of_group):
                needs = (grad_kernels.size > 0, grad_mixture.size > 0)
                dots = Dots(totals, (item * plan.channels.of_group + number) * tangled)
                _correlate_filter(scratch, inputs.kernels, number, tile, plan, dots, needs)
            if grad_mixture.size:
                own = grad_mixture[tile.sample, group]
                _unpack_positions(scratch.grad_mixture, plan.span, own, tile, plan)


@borrowing_jit
def _correlate_filter(
    scratch: MixedScratch,
    kernels: np.ndarray,
    number: int,
    tile: MixedTile,
    plan: MixedPlan,
    dots: Dots,
    needs: tuple,
) -> None:
    """What the channels of a filter add to the gradients: their sum first, the gradient of the filter."""
    bases, taps, strip, span = len(plan.mixture), plan.taps, plan.strip, plan.span
    together, count = len(scratch.results) // span // plan.channels.of_group, len(taps.at)
    panel, width = count * gemm.TILE_ROWS, gemm.TILE_ROW_BYTES // scratch.filters.itemsize
    size = (bases + gemm.TILE_ROWS - 1) // gemm.TILE_ROWS * panel
    for j in range(0, tile.rows * plan.tiles.pitch, strip):
        length = _strip_length(j, tile, plan, kernels.itemsize)
        filters = Target(scratch.filters, ZERO, ZERO, strip)
        grads = Factor(scratch.results, number * span + j, ZERO, span, None)
        images = Factor(scratch.images, number * plan.image + j, taps.at, plan.image, None)
        product_of_row(filters, grads, images, Extent(ONE, count, together, length), FALSE)
        if needs[0]:
            mixture, made = RunRows(scratch.mixture, j, span), RunRows(scratch.filters, ZERO, strip)
            add_dots(dots.totals, dots.at, mixture, made, (bases, count, length))
        if needs[1]:
            out = gemm.Matrix(scratch.grad_mixture, j, span)
            left = gemm.Matrix(kernels, _kernels_of(number, tile, plan) * size, panel)
            right = gemm.RightStrips(scratch.filters, ZERO, width, plan.filters)
            gemm.multiply(out, left, right, (bases, length), scratch.corner, number > 0)
