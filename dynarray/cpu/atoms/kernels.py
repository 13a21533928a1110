"""The kernels of `atom_conv2d` on the CPU that pack images, filter them, and make outputs."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from ..engine import gemm
from ..engine.compile import FALSE, ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.matrices import StripPlace, put_in_strips
from ..engine.pixels import clear, copy
from ..engine.planes import TapWindow, pack_channels
from ..engine.products import RUN_BYTES, Extent, Factor, Target, sum_products
from ..engine.vectors import in_row
from .plan import AtomPlan, AtomScratch


class AtomInputs(NamedTuple):
    """What both passes read."""

    x: np.ndarray  # (N, C, H, W)
    atoms: np.ndarray  # (N, M*taps, positions)
    coefficients: np.ndarray  # packed: forward (O, C*M), backward its transpose
    bias: np.ndarray  # without elements if there is none, and backward


class AtomTile(NamedTuple):
    """One tile."""

    n: int
    row: int  # the first
    column: int
    rows: int
    at: int  # the first of its positions in a plane of the output
    positions: int
    padded: int  # positions up to whole strips


@borrowing_jit
def atom_tile(number: int, plan: AtomPlan, itemsize: int) -> AtomTile:
    """Tile `number` of (sample, tile of rows, piece of a row)."""
    tiles = plan.tiles
    row_tile, piece = number // tiles.pieces, number % tiles.pieces
    n, row, column = row_tile // tiles.row_tiles, row_tile % tiles.row_tiles * tiles.rows, piece * tiles.width
    rows, width = min(tiles.rows, tiles.outputs[0] - row), min(tiles.width, tiles.outputs[1] - column)
    strip, count, at = RUN_BYTES // itemsize, rows * width, row * tiles.outputs[1] + column
    return AtomTile(n, row, column, rows, at, count, (count + strip - 1) // strip * strip)


@borrowing_jit
def gather_tile(target: np.ndarray, source: np.ndarray, tile: AtomTile, span: int) -> None:
    """The positions of a tile from the planes of `source`, the rest of the last strip zero."""
    for row in range(len(source)):
        copy(target, row * span, source[row], tile.at, tile.positions)
        clear(target, row * span + tile.positions, tile.padded - tile.positions)


@borrowing_jit
def window_of(tile: AtomTile, plan: AtomPlan) -> TapWindow:
    """The outputs of a tile."""
    return TapWindow(tile.row, tile.rows, tile.column, plan.tiles.width)


@borrowing_jit
def pack_tile(x: np.ndarray, channels: tuple, tile: AtomTile, plan: AtomPlan, scratch: AtomScratch) -> None:
    """The planes that a tile reads of some channels (image, first, count).

    The last strip reads beyond their ends. What is made of that is thrown away, but as denormal numbers it
    would take twenty times as long.
    """
    window, planes, strip = window_of(tile, plan), plan.planes, tile.padded - tile.positions
    end = (window.rows + planes.halo) * (window.width + planes.reach)
    for number in range(channels[2] * len(planes.origin_y) if strip else 0):
        c, plane = number // len(planes.origin_y), number % len(planes.origin_y)
        clear(scratch.images, c * plan.image + plane * planes.plane + end, strip)
    pack_channels(scratch.images, (ZERO, plan.image), x, channels, window, planes)


@borrowing_jit
def _filter_strip(z: gemm.Matrix, scratch: AtomScratch, plan: AtomPlan, at: int, count: int) -> None:
    """z of one strip of a tile, for so many channels: row by row."""
    offsets, strip = plan.offsets, z.stride
    target = Target(z.values, z.at, offsets.z_row, offsets.channel)
    atoms = Factor(scratch.atoms, at, offsets.atom, offsets.row, None)
    images = Factor(scratch.images, at, offsets.image, offsets.tap, None)
    sum_products(target, atoms, images, Extent(len(offsets.atom), count, len(offsets.tap), strip), FALSE)


@borrowing_cached_jit
def atom_filter_items(
    start: int, stop: int, scratch: AtomScratch, inputs: AtomInputs, z: np.ndarray, plan: AtomPlan
) -> None:
    """Items: (tile, chunk of channels). z is (C*M, positions of all images), in strips."""
    offsets, strip = plan.offsets, RUN_BYTES // z.itemsize
    channels, m, positions = inputs.x.shape[1], len(offsets.atom), inputs.atoms.shape[2]
    chunks, end = -(-channels // plan.chunk), len(inputs.x) * positions
    for item in range(start, stop):
        tile, begin = atom_tile(item // chunks, plan, z.itemsize), item % chunks * plan.chunk
        count = min(plan.chunk, channels - begin)
        gather_tile(scratch.atoms, inputs.atoms[tile.n], tile, plan.tiles.span)
        pack_tile(inputs.x, (tile.n, begin, count), tile, plan, scratch)
        for s in range(0, tile.padded, strip):
            column, length = tile.n * positions + tile.at + s, min(strip, tile.positions - s)
            # What lies beyond the last column may be overwritten.
            whole_strip = length == strip or column + length == end
            if whole_strip and column % strip == 0:
                at = column * channels * m + begin * m * strip
                _filter_strip(gemm.Matrix(z, at, strip), scratch, plan, s, count)
                continue
            _filter_strip(gemm.Matrix(scratch.z, ZERO, strip), scratch, plan, s, count)
            for row in range(count * m):
                place = StripPlace(channels * m, begin * m + row, column)
                put_in_strips(z, place, scratch.z, offsets.z_row[row], length)


@borrowing_cached_jit
def atom_forward_items(
    start: int, stop: int, scratch: AtomScratch, inputs: AtomInputs, y: np.ndarray, plan: AtomPlan
) -> None:
    """Items: tiles. y is (N, O, positions)."""
    (x, atoms_by_tap, packed, bias), offsets, strip = inputs, plan.offsets, RUN_BYTES // y.itemsize
    channels, (outputs, positions) = x.shape[1], y.shape[1:]
    flat, m = in_row(y), len(offsets.atom)
    for item in range(start, stop):
        tile = atom_tile(item, plan, y.itemsize)
        gather_tile(scratch.atoms, atoms_by_tap[tile.n], tile, plan.tiles.span)
        to = tile.n * outputs * positions + tile.at
        for begin in range(0, channels, plan.chunk):
            count, panel = min(plan.chunk, channels - begin), m * gemm.TILE_ROWS
            coefficients = gemm.Matrix(packed, begin * panel, channels * panel)
            pack_tile(x, (tile.n, begin, count), tile, plan, scratch)
            # z of one strip, which is multiplied before it leaves the first level of cache.
            for s in range(0, tile.padded, strip):
                _filter_strip(gemm.Matrix(scratch.z, ZERO, strip), scratch, plan, s, count)
                out, size = gemm.Matrix(flat, to + s, positions), (outputs, min(strip, tile.positions - s))
                right = gemm.RightStrips(scratch.z, ZERO, ZERO, offsets.z_row[: count * m])
                gemm.multiply(out, coefficients, right, size, scratch.corner, begin > 0)
        for o in range(outputs if bias.size else 0):
            at, value = uint64(to + o * positions), bias[o]
            for j in range(uint64(tile.positions)):
                flat[at + j] += value
