"""The kernels of the gradients of `atom_conv2d` on the CPU."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from ..engine import gemm
from ..engine.compile import FALSE, TRUE, ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.matrices import StripPlace, put_in_strips, take_from_strips
from ..engine.pixels import PackedRows, clear, copy, covered, transpose
from ..engine.planes import rows_of_plane
from ..engine.products import RUN_BYTES, Extent, Factor, Target, sum_products
from ..engine.vectors import in_row
from .kernels import AtomInputs, AtomTile, atom_tile, gather_tile, pack_tile, window_of
from .plan import AtomPlan, AtomScratch

SUMMED_POSITIONS = 64  # that are added up at once
SHARED_STRIPS = 2  # of a tile, on which all sums of a group of channels are made before the next ones


class AtomGradients(NamedTuple):
    """What the backward pass writes; arrays that are not needed have no elements."""

    x: np.ndarray
    edges: np.ndarray  # per share: what it adds to rows of x that belong to the share before
    atoms: np.ndarray  # per group of channels
    coefficients: np.ndarray  # per share, (C*M, O), both up to whole tiles of the product
    bias: np.ndarray  # per share; float64, which costs nothing


class AtomShares(NamedTuple):
    """Share i is the tiles of rows first_of[i] to first_of[i + 1]; shared[i] are the rows of its edge.

    Group i of channels begins with number channels[i].
    """

    first_of: np.ndarray
    shared: np.ndarray
    channels: np.ndarray


class AtomWork(NamedTuple):
    """All that the backward pass reads and writes; grad_output is (N, O, positions)."""

    inputs: AtomInputs
    grad_output: np.ndarray
    grads: AtomGradients
    shares: AtomShares
    # Where products are made of the positions of all images at once: (C*M, these positions) in strips. z is
    # written for them, its gradient read. Else they have no elements.
    z: np.ndarray
    grad_z: np.ndarray


class AtomEdge(NamedTuple):
    """The rows of x from `first` to `end` get what a share adds in the share's own place."""

    share: int
    first: int
    end: int


@borrowing_jit
def _add_plane(
    plane: np.ndarray, at: int, rows: PackedRows, image: np.ndarray, edge_rows: np.ndarray, edge: AtomEdge
) -> None:
    """Add packed rows to the pixels that they belong to: those of the edge to `edge_rows`."""
    (top, bottom), (left, end) = covered(rows, image)
    origin, step = rows.origin, rows.step
    for i in range(top, bottom):
        row = (rows.first + i) * step[0] + origin[0]
        line = edge_rows[row - edge.first] if row < edge.end else image[row]
        base, pixels = uint64(at + i * rows.width + left), uint64(end - left)
        to = uint64(left * step[1] + origin[1])
        if step[1] == 1:
            for j in range(pixels):
                line[to + j] += plane[base + j]
        else:
            for j in range(pixels):
                line[to + j * uint64(step[1])] += plane[base + j]


@borrowing_jit
def _add_grad_x(
    tile: AtomTile, channels: tuple, work: AtomWork, edge: AtomEdge, plan: AtomPlan, scratch: AtomScratch
) -> None:
    """Gradients of channels (first, count) of x, from those of their planes."""
    (first, count), planes, grads, window = channels, plan.planes, work.grads, window_of(tile, plan)
    for c in range(count):
        image, edge_rows = grads.x[tile.n, first + c], grads.edges[edge.share, first + c]
        for plane in range(len(planes.origin_y)):
            rows = rows_of_plane(plane, window, planes)
            at = c * plan.image + plane * planes.plane
            _add_plane(scratch.grad_images, at, rows, image, edge_rows, edge)


@borrowing_jit
def _sum_channels(
    tile: AtomTile, place: int, count: int, work: AtomWork, plan: AtomPlan, scratch: AtomScratch
) -> None:
    """z of some channels of a chunk, and what it gives to the gradients of the atoms and of its planes.

    A few strips at a time: what one of the three sums reads, the next one finds in the first level of cache.
    """
    offsets, grads = plan.offsets, work.grads
    m, taps, channels = len(offsets.atom), len(offsets.tap), offsets.channel[place:]
    step = SHARED_STRIPS * (RUN_BYTES // scratch.z.itemsize)
    for at in range(0, tile.padded, step):
        length = min(step, tile.padded - at)
        if grads.coefficients.size + work.z.size:
            z = Target(scratch.z, at, offsets.row, channels)
            atoms = Factor(scratch.atoms, at, offsets.atom, offsets.row, None)
            images = Factor(scratch.images, at, offsets.image, offsets.tap, None)
            sum_products(z, atoms, images, Extent(m, count, taps, length), FALSE)
        if grads.atoms.size:
            grad_atoms = Target(scratch.grad_atoms, at, offsets.atom, offsets.row)
            grad_z = Factor(scratch.grad_z, at, offsets.row[place * m :], offsets.channel, None)
            images_by_tap = Factor(scratch.images, at, offsets.tap, offsets.image, None)
            sum_products(grad_atoms, grad_z, images_by_tap, Extent(m, taps, count, length), TRUE)
        if grads.x.size:
            grad_images = Target(scratch.grad_images, at, offsets.tap, offsets.image)
            atoms_by_tap = Factor(scratch.atoms, at, offsets.row, offsets.atom, None)
            grad_z = Factor(scratch.grad_z, at, channels, offsets.row, None)
            sum_products(grad_images, atoms_by_tap, grad_z, Extent(taps, count, m, length), TRUE)


@borrowing_jit
def _add_chunk(
    tile: AtomTile, channels: tuple, work: AtomWork, edge: AtomEdge, plan: AtomPlan, scratch: AtomScratch
) -> None:
    """What channels (begin, end) contribute to all gradients."""
    inputs, grads, outputs = work.inputs, work.grads, work.grad_output.shape[1]
    (begin, end), m, span = channels, len(plan.offsets.atom), plan.tiles.span
    rows, panel, strip = (end - begin) * m, outputs * gemm.TILE_ROWS, RUN_BYTES // scratch.z.itemsize
    column = tile.n * work.grad_output.shape[2] + tile.at
    if grads.x.size + grads.atoms.size:
        left = gemm.Matrix(inputs.coefficients, begin * m // gemm.TILE_ROWS * panel, panel)
        right = gemm.RightStrips(scratch.grad_output, ZERO, strip, plan.offsets.row[:outputs])
        grad_z = gemm.Matrix(scratch.grad_z, ZERO, span)
        if not work.grad_z.size:
            gemm.multiply(grad_z, left, right, (rows, tile.positions), scratch.corner, FALSE)
        for row in range(rows):
            if work.grad_z.size:
                place = StripPlace(inputs.x.shape[1] * m, begin * m + row, column)
                take_from_strips(scratch.grad_z, row * span, work.grad_z, place, tile.positions)
            clear(scratch.grad_z, row * span + tile.positions, tile.padded - tile.positions)
    for c in range(begin, end, plan.group):
        count = min(plan.group, end - c)
        if grads.atoms.size + grads.coefficients.size + work.z.size:
            pack_tile(inputs.x, (tile.n, c, count), tile, plan, scratch)
        clear(scratch.grad_images, 0, count * plan.image + strip if grads.x.size else 0)
        _sum_channels(tile, c - begin, count, work, plan, scratch)
        if grads.x.size:
            _add_grad_x(tile, (c, count), work, edge, plan, scratch)
    for row in range(rows if work.z.size else 0):
        place = StripPlace(inputs.x.shape[1] * m, begin * m + row, column)
        put_in_strips(work.z, place, scratch.z, row * span, tile.positions)
    if grads.coefficients.size:
        wide, width = grads.coefficients.shape[2], gemm.TILE_ROW_BYTES // scratch.z.itemsize
        grad = gemm.Matrix(in_row(grads.coefficients[edge.share]), begin * m * wide, wide)
        # Short sums that are added up: rounding errors grow with the length of a sum.
        for first in range(0, tile.positions, SUMMED_POSITIONS):
            z = gemm.Matrix(scratch.z, first, span)
            turned = gemm.RightStrips(scratch.turned, first * width, span * width, width)
            count = min(SUMMED_POSITIONS, tile.positions - first)
            gemm.multiply_rows(grad, z, turned, (rows, outputs), count, TRUE)


@borrowing_jit
def _finish_tile(tile: AtomTile, grads: AtomGradients, group: int, span: int, scratch: AtomScratch) -> None:
    """The gradients of the atoms of a tile, from a group of channels."""
    for row in range(grads.atoms.shape[2]):
        copy(grads.atoms[group, tile.n, row], tile.at, scratch.grad_atoms, row * span, tile.positions)


@borrowing_jit
def _add_bias(tile: AtomTile, total_of: np.ndarray, span: int, scratch: AtomScratch) -> None:
    """What a tile adds to the gradient of the bias."""
    for o in range(len(total_of)):
        total, at = 0.0, uint64(o * span)
        for j in range(uint64(tile.positions)):
            total += scratch.grad_output[at + j]
        total_of[o] += total


@borrowing_cached_jit
def atom_backward_items(start: int, stop: int, scratch: AtomScratch, work: AtomWork, plan: AtomPlan) -> None:
    """Items: (share of the tiles of rows, group of channels), see `AtomShares`."""
    inputs, grad_output, grads, shares = work.inputs, work.grad_output, work.grads, work.shares
    outputs, tiles, first_of = grad_output.shape[1], plan.tiles, shares.first_of
    groups, width = len(shares.channels) - 1, gemm.TILE_ROW_BYTES // grad_output.itemsize
    m, (rows, wide) = len(plan.offsets.atom), grads.coefficients.shape[1:]
    channels, of_edge = inputs.x.shape[1], grads.edges.shape[2] * grads.edges.shape[3]
    # Columns beyond the outputs are multiplied too: what memory held before may be slow to multiply.
    clear(scratch.turned, 0, scratch.turned.size)
    for item in range(start, stop):
        share, group = item // groups, item % groups
        low, high = shares.channels[group], shares.channels[group + 1]
        if grads.edges.size:
            clear(grads.edges, (share * channels + low) * of_edge, (high - low) * of_edge)
        if grads.coefficients.size:
            first, end = low * m, rows if high == channels else high * m
            clear(grads.coefficients, (share * rows + first) * wide, (end - first) * wide)
        for number in range(first_of[share] * tiles.pieces, first_of[share + 1] * tiles.pieces):
            tile = atom_tile(number, plan, grad_output.itemsize)
            # The edge is at the top of the first image: rows of others belong to this share alone.
            here = 1 if tile.n == first_of[share] // tiles.row_tiles else 0
            edge = AtomEdge(share, here * shares.shared[share, 0], here * shares.shared[share, 1])
            gather_tile(scratch.atoms, inputs.atoms[tile.n], tile, tiles.span)
            gather_tile(scratch.grad_output, grad_output[tile.n], tile, tiles.span)
            # Strip by strip as the right matrix of `gemm.multiply_rows`.
            for o in range(0, outputs if grads.coefficients.size else 0, width):
                turned = gemm.Matrix(scratch.turned, o * tiles.span, width)
                strip = gemm.Matrix(scratch.grad_output, o * tiles.span, tiles.span)
                transpose(turned, strip, min(width, outputs - o), tile.positions)
            clear(scratch.grad_atoms, 0, scratch.grad_atoms.size)
            for begin in range(low, high, plan.chunk):
                end = min(begin + plan.chunk, high)
                _add_chunk(tile, (begin, end), work, edge, plan, scratch)
            if grads.atoms.size:
                _finish_tile(tile, grads, group, tiles.span, scratch)
            if grads.bias.size and group == 0:
                _add_bias(tile, grads.bias[share], tiles.span, scratch)
