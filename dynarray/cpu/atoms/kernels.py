"""The kernels of `atom_conv2d` on the CPU, and the records in which they get their plan."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from ..engine import gemm
from ..engine.compile import FALSE, ONE, TRUE, ZERO, cached_jit, jit
from ..engine.pixels import clear, copy, inside, pack_rows, transpose
from ..engine.products import STRIP_BYTES, sum_products

_SUM = 64  # positions that are added up at once
_STRIPS = 2  # of a tile, on which all sums of a group of channels are made before the next ones
_SET, _ADD = FALSE, TRUE


class Taps(NamedTuple):
    """Where the taps of the kernel read packed images: per tap, and per plane of an image."""

    plane: np.ndarray
    shift: np.ndarray  # in rows of the plane
    origin_y: np.ndarray  # the pixel at row 0, column 0 of a plane
    origin_x: np.ndarray


class Layout(NamedTuple):
    """Sizes of a tile of output positions: some whole rows, or a piece of one row."""

    outputs: tuple[int, int]
    stride: tuple[int, int]
    rows: int
    width: int
    row_tiles: int
    pieces: int
    span: int  # positions of a tile, and memory up to whole strips
    halo: int  # rows that packed planes have beyond those of the tile
    plane: int  # elements of a packed plane
    image: int  # elements of all planes of a channel
    group: int  # channels packed at once
    chunk: int  # channels filtered before they are multiplied: whole groups
    edge: int  # most rows of x that two neighbouring tiles of rows read


class Tile(NamedTuple):
    """One tile."""

    n: int
    row: int  # the first
    column: int
    rows: int
    at: int  # the first of its positions in a plane of the output
    positions: int
    padded: int  # positions up to whole strips


class Inputs(NamedTuple):
    """What the backward pass reads."""

    grad_output: np.ndarray  # (N, O, positions)
    x: np.ndarray  # (N, C, H, W)
    atoms: np.ndarray  # (N, M*taps, positions)
    left: np.ndarray  # the coefficients (C*M, O), packed


class Gradients(NamedTuple):
    """What the backward pass writes; arrays that are not needed have no elements."""

    x: np.ndarray
    edges: np.ndarray  # per item: what it adds to rows of x that belong to the item before
    atoms: np.ndarray
    coefficients: np.ndarray  # per item, (C*M, O), both up to whole tiles of the product
    bias: np.ndarray  # per item; float64, which costs nothing


class Offsets(NamedTuple):
    """Where things begin in the memory of a tile, whose rows of positions lie `span` apart."""

    tap: np.ndarray  # what a tap reads, from the first plane of a channel
    image: np.ndarray  # planes of the channels of a group
    atom: np.ndarray  # the first tap of each atom
    row: np.ndarray  # each row
    z_row: np.ndarray  # each row of z
    channel: np.ndarray  # the channels of a chunk in z
    memory: np.ndarray  # the parts of `Scratch`, then of `Adjoint`, and their end


class Scratch(NamedTuple):
    """Memory for the filtered channels of one tile; reads go up to a strip beyond the end of a part."""

    atoms: np.ndarray  # (M, taps)
    images: np.ndarray  # planes of a group of channels
    z: np.ndarray  # (channels of a chunk, M): forward of one strip, backward of all
    corner: np.ndarray  # for the matrix product


@jit
def new_scratch(memory: np.ndarray, offsets: Offsets) -> Scratch:
    """Parts of the memory."""
    at = offsets.memory
    return Scratch(memory[at[0] : at[1]], memory[at[1] : at[2]], memory[at[2] : at[3]], memory[at[3] : at[4]])


@jit
def tile_of(n: int, row_tile: int, piece: int, layout: Layout, itemsize: int) -> Tile:
    """The tile of a sample, a tile of rows and a piece of a row."""
    row, column = row_tile * layout.rows, piece * layout.width
    rows, width = min(layout.rows, layout.outputs[0] - row), min(layout.width, layout.outputs[1] - column)
    strip, count = STRIP_BYTES // itemsize, rows * width
    at = row * layout.outputs[1] + column
    return Tile(n, row, column, rows, at, count, (count + strip - 1) // strip * strip)


@jit
def gather(target: np.ndarray, source: np.ndarray, tile: Tile, span: int) -> None:
    """The positions of a tile from the planes of `source`, the rest of the last strip zero."""
    for row in range(len(source)):
        copy(target, row * span, source[row], tile.at, tile.positions)
        clear(target, row * span + tile.positions, tile.padded - tile.positions)


@jit
def start_tile(tile: Tile, atoms: np.ndarray, span: int, scratch: Scratch) -> None:
    """The atoms of a tile."""
    gather(scratch.atoms, atoms[tile.n], tile, span)


@jit
def origin_of(plane: int, tile: Tile, taps: Taps, layout: Layout) -> tuple:
    """The pixel at row 0, column 0 of a plane of images, were the tile in row 0."""
    return (taps.origin_y[plane], taps.origin_x[plane] + tile.column * layout.stride[1])


@jit
def _pack_plane(
    target: np.ndarray,
    at: int,
    flat: np.ndarray,
    base: int,
    tile: Tile,
    ranges: tuple,
    origin: tuple,
    width: int,
) -> None:
    """One plane of a channel where rows at stride 1 are one run of memory: its pixels, zeros where are none.

    At the ends of rows are pixels of the rows beside them.
    """
    rows, top, bottom, left, end = ranges
    clear(target, at, top * width)
    clear(target, at + bottom * width, (rows - bottom) * width)
    start = base + (tile.row + top + origin[0]) * width + origin[1]
    count = max(0, (bottom - top) * width - width + end - left)
    copy(target, at + top * width + left, flat, start + left, count)
    for j in range(left):
        for i in range(top, bottom):
            target[at + i * width + j] = 0
    for j in range(end, width):
        for i in range(top, bottom):
            target[at + i * width + j] = 0


@jit
def pack_group(
    tile: Tile, x: np.ndarray, first: int, several: int, taps: Taps, layout: Layout, scratch: Scratch
) -> None:
    """The planes of channels first to first + several."""
    height, width = x.shape[2:]
    rows, flat = tile.rows + layout.halo, x.reshape(-1)
    for plane in range(len(taps.origin_y)):
        origin = origin_of(plane, tile, taps, layout)
        top, bottom = inside(rows, tile.row, height, origin[0], layout.stride[0])
        left, end = inside(layout.width, ZERO, width, origin[1], layout.stride[1])
        run = layout.stride == (1, 1) and layout.width == width and left < end
        for c in range(several):
            at = c * layout.image + plane * layout.plane
            if run:
                base = (tile.n * x.shape[1] + first + c) * height * width
                ranges = (rows, top, bottom, left, end)
                _pack_plane(scratch.images, at, flat, base, tile, ranges, origin, width)
            else:
                clear(scratch.images, at, rows * layout.width)
                pixels = x[tile.n, first + c]
                pack_rows(scratch.images, at, pixels, tile.row, rows, layout.width, origin, layout.stride)


@cached_jit
def forward_items(
    start: int,
    stop: int,
    x: np.ndarray,
    atoms: np.ndarray,
    left: np.ndarray,
    bias: np.ndarray,
    y: np.ndarray,
    taps: Taps,
    layout: Layout,
    offsets: Offsets,
    memory: np.ndarray,
) -> None:
    """Items (n, tile of rows, piece); y is (N, O, positions), `left` the packed coefficients (O, C*M)."""
    channels, m, outputs, positions = x.shape[1], len(offsets.atom), y.shape[1], y.shape[2]
    scratch, flat, depth = new_scratch(memory, offsets), y.reshape(-1), channels * m
    strip = STRIP_BYTES // x.itemsize
    for item in range(start, stop):
        row_tile = item // layout.pieces
        n, piece = row_tile // layout.row_tiles, item % layout.pieces
        tile = tile_of(n, row_tile % layout.row_tiles, piece, layout, x.itemsize)
        start_tile(tile, atoms, layout.span, scratch)
        to = n * outputs * positions + tile.at
        for begin in range(0, channels, layout.chunk):
            several = min(layout.chunk, channels - begin)
            pack_group(tile, x, begin, several, taps, layout, scratch)
            # z of one strip, which is multiplied before it leaves the first level of cache.
            for s in range(tile.padded // strip):
                sum_products(
                    scratch.z, offsets.z_row, offsets.channel, ZERO,
                    scratch.atoms, offsets.atom, offsets.row, scratch.images, offsets.image, offsets.tap,
                    m, several, len(offsets.tap), s, ONE, _SET,
                )  # fmt: skip
                gemm.multiply(
                    flat, to + s * strip, positions, outputs, min(strip, tile.positions - s * strip),
                    left, begin * m * gemm.ROWS, depth * gemm.ROWS,
                    scratch.z, ZERO, ZERO, offsets.z_row, ZERO, several * m, scratch.corner, begin > 0,
                )  # fmt: skip
        for o in range(outputs if bias.size else 0):
            at, value = uint64(to + o * positions), bias[o]
            for j in range(uint64(tile.positions)):
                flat[at + j] += value


class Adjoint(NamedTuple):
    """More memory of one item of the backward pass."""

    output: np.ndarray  # gradients (O) of the tile
    turned: np.ndarray  # the same, transposed, a strip of outputs after the other
    grad_z: np.ndarray  # as z
    grad_atoms: np.ndarray  # as the atoms
    grad_images: np.ndarray  # as the images


@jit
def new_adjoint(memory: np.ndarray, offsets: Offsets) -> Adjoint:
    """Parts of the memory."""
    at = offsets.memory[4:]
    return Adjoint(
        memory[at[0] : at[1]],
        memory[at[1] : at[2]],
        memory[at[2] : at[3]],
        memory[at[3] : at[4]],
        memory[at[4] : at[5]],
    )


@jit
def turn(target: np.ndarray, source: np.ndarray, span: int, rows: int, columns: int) -> None:
    """The transpose, strip by strip as the right matrix of `gemm.multiply_rows`."""
    width = gemm.TILE_BYTES // source.itemsize
    for first in range(0, rows, width):
        transpose(target, first * span, width, source, first * span, span, min(width, rows - first), columns)


@jit
def add_rows(
    source: np.ndarray,
    at: int,
    first: int,
    rows: int,
    origin: tuple,
    image: np.ndarray,
    edge: np.ndarray,
    shared: tuple,
    layout: Layout,
) -> None:
    """Add the packed rows to the pixels that they belong to: in `shared` rows, to those of `edge`."""
    step = layout.stride
    top, bottom = inside(rows, first, image.shape[0], origin[0], step[0])
    left, end = inside(layout.width, ZERO, image.shape[1], origin[1], step[1])
    for i in range(top, bottom):
        row = (first + i) * step[0] + origin[0]
        line = edge[row - shared[0]] if row < shared[1] else image[row]
        base, count = uint64(at + i * layout.width + left), uint64(end - left)
        to = uint64(left * step[1] + origin[1])
        if step[1] == 1:
            for j in range(count):
                line[to + j] += source[base + j]
        else:
            for j in range(count):
                line[to + j * uint64(step[1])] += source[base + j]


@jit
def _grad_x_of_group(
    tile: Tile,
    first: int,
    several: int,
    planes: np.ndarray,
    grads: Gradients,
    item: int,
    shared: tuple,
    taps: Taps,
    layout: Layout,
) -> None:
    """Gradients of a group of channels of x, from those of its planes; `shared` rows go to the edge."""
    rows = tile.rows + layout.halo
    for c in range(several):
        image, edge = grads.x[tile.n, first + c], grads.edges[item, first + c]
        for plane in range(len(taps.origin_y)):
            at, origin = c * layout.image + plane * layout.plane, origin_of(plane, tile, taps, layout)
            add_rows(planes, at, tile.row, rows, origin, image, edge, shared, layout)


@jit
def _products_of_group(
    tile: Tile,
    place: int,
    several: int,
    grads: Gradients,
    layout: Layout,
    offsets: Offsets,
    scratch: Scratch,
    adjoint: Adjoint,
) -> None:
    """z of a group of channels, and what it gives to the gradients of the atoms and of its planes.

    A few strips at a time: what one of the three sums reads, the next one finds in the first level of cache.
    """
    m, count, at = len(offsets.atom), len(offsets.tap), offsets.channel[place:]
    strip = STRIP_BYTES // scratch.z.itemsize
    for s in range(0, tile.padded // strip, _STRIPS):
        few = min(_STRIPS, tile.padded // strip - s)
        if grads.coefficients.size:
            sum_products(
                scratch.z, offsets.row, at, strip, scratch.atoms, offsets.atom, offsets.row,
                scratch.images, offsets.image, offsets.tap, m, several, count, s, few, _SET,
            )  # fmt: skip
        if grads.atoms.size:
            sum_products(
                adjoint.grad_atoms, offsets.atom, offsets.row, strip,
                adjoint.grad_z, offsets.row[place * m :], offsets.channel,
                scratch.images, offsets.tap, offsets.image, m, count, several, s, few, _ADD,
            )  # fmt: skip
        if grads.x.size:
            sum_products(
                adjoint.grad_images, offsets.tap, offsets.image, strip,
                scratch.atoms, offsets.row, offsets.atom,
                adjoint.grad_z, at, offsets.row, count, several, m, s, few, _ADD,
            )  # fmt: skip


@jit
def _grads_of_chunk(
    tile: Tile,
    begin: int,
    end: int,
    inputs: Inputs,
    grads: Gradients,
    item: int,
    shared: tuple,
    taps: Taps,
    layout: Layout,
    offsets: Offsets,
    scratch: Scratch,
    adjoint: Adjoint,
) -> None:
    """What some channels contribute to all gradients."""
    m, outputs = len(offsets.atom), inputs.grad_output.shape[1]
    rows, span, panel = (end - begin) * m, layout.span, outputs * gemm.ROWS
    strip = STRIP_BYTES // inputs.x.itemsize
    if grads.x.size + grads.atoms.size:
        gemm.multiply(
            adjoint.grad_z, ZERO, span, rows, tile.positions,
            inputs.left, begin * m // gemm.ROWS * panel, panel,
            adjoint.output, ZERO, strip, offsets.row, ZERO, outputs, scratch.corner, _SET,
        )  # fmt: skip
        for row in range(rows):
            clear(adjoint.grad_z, row * span + tile.positions, tile.padded - tile.positions)
    for c in range(begin, end, layout.group):
        several, place = min(layout.group, end - c), c - begin
        if grads.atoms.size + grads.coefficients.size:
            pack_group(tile, inputs.x, c, several, taps, layout, scratch)
        clear(adjoint.grad_images, 0, several * layout.image if grads.x.size else 0)
        _products_of_group(tile, place, several, grads, layout, offsets, scratch, adjoint)
        if grads.x.size:
            _grad_x_of_group(tile, c, several, adjoint.grad_images, grads, item, shared, taps, layout)
    if grads.coefficients.size:
        wide, width = grads.coefficients.shape[2], gemm.TILE_BYTES // grads.coefficients.itemsize
        # Short sums that are added up: rounding errors grow with the length of a sum.
        for first in range(0, tile.positions, _SUM):
            gemm.multiply_rows(
                grads.coefficients[item].reshape(-1), begin * m * wide, wide, rows, outputs,
                scratch.z, first, span, adjoint.turned, first * width, width, span * width,
                min(_SUM, tile.positions - first), _ADD,
            )  # fmt: skip


@jit
def _finish_tile(tile: Tile, grads: Gradients, item: int, outputs: int, span: int, adjoint: Adjoint) -> None:
    """The gradients of the atoms of a tile, and what it adds to those of the bias."""
    for row in range(grads.atoms.shape[1]):
        copy(grads.atoms[tile.n, row], tile.at, adjoint.grad_atoms, row * span, tile.positions)
    for o in range(grads.bias.shape[1]):
        total, at = 0.0, uint64(o * span)
        for j in range(uint64(tile.positions)):
            total += adjoint.output[at + j]
        grads.bias[item, o] += total


@cached_jit
def backward_items(
    start: int,
    stop: int,
    inputs: Inputs,
    grads: Gradients,
    first_of: np.ndarray,
    shared: np.ndarray,
    taps: Taps,
    layout: Layout,
    offsets: Offsets,
    memory: np.ndarray,
) -> None:
    """Item i is the tiles of rows first_of[i] to first_of[i + 1]; shared[i] are the rows of its edge."""
    x, outputs = inputs.x, inputs.grad_output.shape[1]
    scratch, adjoint, items = new_scratch(memory, offsets), new_adjoint(memory, offsets), len(first_of) - 1
    of_edge, of_product = grads.edges.size // items, grads.coefficients.size // items
    for item in range(start, stop):
        clear(grads.edges, item * of_edge, of_edge)
        clear(grads.coefficients, item * of_product, of_product)
        for unit in range(first_of[item] * layout.pieces, first_of[item + 1] * layout.pieces):
            row_tile = unit // layout.pieces
            n = row_tile // layout.row_tiles
            tile = tile_of(n, row_tile % layout.row_tiles, unit % layout.pieces, layout, x.itemsize)
            # The edge is at the top of the first image: rows of others belong to this item alone.
            edge = 1 if n == first_of[item] // layout.row_tiles else 0
            own = (edge * shared[item, 0], edge * shared[item, 1])
            start_tile(tile, inputs.atoms, layout.span, scratch)
            gather(adjoint.output, inputs.grad_output[n], tile, layout.span)
            turn(adjoint.turned, adjoint.output, layout.span, outputs, tile.positions)
            clear(adjoint.grad_atoms, 0, adjoint.grad_atoms.size)
            for begin in range(0, x.shape[1], layout.chunk):
                end = min(begin + layout.chunk, x.shape[1])
                _grads_of_chunk(
                    tile, begin, end, inputs, grads, item, own, taps, layout, offsets, scratch, adjoint
                )
            _finish_tile(tile, grads, item, outputs, layout.span, adjoint)
