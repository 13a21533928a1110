"""How the CPU's kernels of `atom_conv2d` cut outputs into tiles, and lay out what a tile reads.

A tile is some whole rows of the output, or a piece of one row. For each group of channels the pixels that it
reads are packed, with their zero padding, into planes with the row length of the tile: one plane for each
column of the kernel (and phase of the stride), or one for each tap where that is less. In such a plane a tap
is one offset.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import gemm
from ..engine.products import RUN_BYTES
from ..engine.vectors import REGISTER_BYTES

ATOM_TILE_BYTES = 32 * REGISTER_BYTES  # of one row of a tile: more where the second level of cache is larger
# Filtered channels that are multiplied at once: a strip of them is a part of a common L1 cache.
ATOM_DEPTH = 192
ATOM_Z_BYTES = 144 * 1024  # backward, those of a whole tile, and as much for their gradients
ATOM_IMAGE_BYTES = 320 * ATOM_TILE_BYTES  # packed channels of a tile
ATOM_GROUP = 8  # channels packed at once, backward


class AtomCall(NamedTuple):
    """What a plan depends on."""

    x: tuple[int, int, int, int]
    atoms: tuple[int, int, int, int, int, int]
    outputs: int  # channels
    itemsize: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]


class AtomTiles(NamedTuple):
    """How output positions are cut into tiles."""

    outputs: tuple[int, int]
    rows: int
    width: int
    row_tiles: int
    pieces: int  # of a row
    span: int  # positions of a tile, and memory up to whole strips


class AtomPlanes(NamedTuple):
    """The packed planes of a channel."""

    stride: tuple[int, int]
    halo: int  # rows beyond those of the tile
    plane: int  # elements of one
    image: int  # elements of all, up to whole strips
    origin_y: np.ndarray  # per plane: the pixel at its row 0, column 0
    origin_x: np.ndarray


class AtomOffsets(NamedTuple):
    """Where things begin in the memory of a tile, whose rows of positions lie `span` apart."""

    tap: np.ndarray  # what a tap reads, from the first plane of a channel
    image: np.ndarray  # planes of the channels of a group
    atom: np.ndarray  # the first tap of each atom
    row: np.ndarray  # each row
    z_row: np.ndarray  # each row of z
    channel: np.ndarray  # the channels of a chunk in z


class AtomPlan(NamedTuple):
    """All that kernels know of a call but its arrays."""

    tiles: AtomTiles
    planes: AtomPlanes
    offsets: AtomOffsets
    group: int  # channels packed at once
    chunk: int  # channels filtered before they are multiplied: whole groups


class AtomScratch(NamedTuple):
    """Memory of a thread for one tile."""

    atoms: Any  # (M, taps)
    images: Any  # planes of a group of channels
    z: Any  # (channels of a chunk, M): forward of one strip, backward of all
    corner: Any  # for the matrix product
    # The rest is for the backward pass alone.
    grad_output: Any  # (O)
    turned: Any  # the same, transposed, a strip of outputs after the other
    grad_z: Any  # as z
    grad_atoms: Any  # as the atoms
    grad_images: Any  # as the images


@lru_cache(maxsize=256)
def plan_atoms(call: AtomCall, whole: AtomCall, *, backward: bool) -> tuple[AtomPlan, AtomScratch]:
    """The plan of a call that is a part of a whole, and the sizes of the scratch that it needs."""
    m, strip = call.atoms[1], RUN_BYTES // call.itemsize
    tiles, planes, tap = _layout(call, strip)
    span = tiles.span
    of_whole, planes_of_whole, _ = _layout(whole, strip)
    group, chunk = _channels(whole, of_whole.span, planes_of_whole.image, backward=backward)
    taps, z_span = len(tap), span if backward else strip
    offsets = AtomOffsets(
        tap=tap,
        image=np.arange(group) * planes.image,
        atom=np.arange(m) * taps * span,
        row=np.arange(max(chunk * m, taps, call.outputs)) * span,
        z_row=np.arange(chunk * m) * z_span,
        channel=np.arange(chunk) * m * z_span,
    )
    plan = AtomPlan(tiles, planes, offsets, group, chunk)
    return plan, _scratch(call, plan, taps, chunk * m * z_span, backward=backward)


def _layout(call: AtomCall, strip: int) -> tuple[AtomTiles, AtomPlanes, np.ndarray]:
    """The tiles of a call, and the planes of each."""
    (high, wide), most = call.atoms[4:], ATOM_TILE_BYTES // call.itemsize
    pieces = -(-wide // most)
    width = wide if pieces == 1 else -(-wide // (pieces * strip)) * strip
    rows = _tile_rows((high, wide), strip, most) if pieces == 1 else 1
    # Odd numbers of strips: powers of two would put all rows into the same few lines of the cache.
    span = _odd_strips(rows * width, strip)
    tiles = AtomTiles((high, wide), rows, width, -(-high // rows), -(-wide // width), span)
    return tiles, *_planes(call, rows, width, strip)


def _tile_rows(outputs: tuple[int, int], strip: int, most: int) -> int:
    """Rows of a tile: the fewest positions lost at the ends of tiles, then the most rows."""

    def padded(rows: int) -> int:
        full, rest = divmod(outputs[0], rows)
        return sum(times * -(-part * outputs[1] // strip) for times, part in ((full, rows), (1, rest)))

    return min(range(max(1, min(outputs[0], most // outputs[1])), 0, -1), key=padded)


def _odd_strips(elements: int, strip: int) -> int:
    return (-(-elements // strip) | 1) * strip


def _planes(call: AtomCall, rows: int, width: int, strip: int) -> tuple[AtomPlanes, np.ndarray]:
    """Planes for a tile of this size, and what each tap reads of them."""
    kh, kw = call.atoms[2:4]
    a, b = np.divmod(np.arange(kh * kw), kw)
    offset_y, offset_x = a * call.dilation[0], b * call.dilation[1]
    shift, phase = np.divmod(offset_y, call.stride[0])
    halo = int(shift.max())
    if len(np.unique(phase)) * (rows + halo) > kh * rows:
        shift, phase, halo = np.zeros_like(shift), offset_y, 0
    origins = np.stack([phase - call.padding[0], offset_x - call.padding[1]])
    (origin_y, origin_x), number = np.unique(origins, axis=1, return_inverse=True)
    plane = (rows + halo) * width
    image = _odd_strips(len(origin_y) * plane, strip)
    planes = AtomPlanes(call.stride, halo, plane, image, origin_y.copy(), origin_x.copy())
    return planes, number.reshape(-1) * plane + shift * width


def _channels(call: AtomCall, span: int, image: int, *, backward: bool) -> tuple[int, int]:
    """Channels of a group, and of a chunk."""
    channels, m = call.x[1], call.atoms[1]
    packed = ATOM_IMAGE_BYTES // (image * call.itemsize)
    if not backward:
        most = max(1, min(packed, ATOM_DEPTH // m))
        even = -(-channels // -(-channels // most))
        return even, even
    group = max(1, min(ATOM_GROUP, packed))
    # The matrix product takes rows of its left operand in panels.
    step = math.lcm(group, gemm.TILE_ROWS)
    held = ATOM_Z_BYTES // (m * span * call.itemsize)
    return group, max(1, min(held // step, -(-channels // step))) * step


def _scratch(call: AtomCall, plan: AtomPlan, taps: int, z: int, *, backward: bool) -> AtomScratch:
    """Sizes; reads go up to a strip beyond the end of each."""
    strip, span = RUN_BYTES // call.itemsize, plan.tiles.span
    atoms, images = call.atoms[1] * taps * span, plan.group * plan.planes.image
    both = (atoms, images, z, gemm.TILE_ROWS * strip)
    adjoint = (call.outputs * span, -(-call.outputs // strip) * strip * span, z, atoms, images)
    return AtomScratch(*(size + strip for size in both), *(backward * (size + strip) for size in adjoint))


def edge_rows(call: AtomCall) -> int:
    """Most rows of x that two neighbouring tiles of rows read."""
    return max(0, (call.atoms[2] - 1) * call.dilation[0] + 1 - call.stride[0])


@lru_cache(maxsize=256)
def deal_tiles(call: AtomCall, tiles: AtomTiles, items: int) -> tuple[np.ndarray, np.ndarray]:
    """The first tile of rows of each item, and the end; the rows of x that an item shares.

    These, first and end, it reads and tiles of the same image before it read.
    """
    first_of = call.x[0] * tiles.row_tiles * np.arange(items + 1) // items
    row = first_of[:-1] % tiles.row_tiles * tiles.rows
    low = row * call.stride[0] - call.padding[0]
    high = low - call.stride[0] + (call.atoms[2] - 1) * call.dilation[0] + 1
    shared = np.clip(np.stack([low, np.maximum(low, high)], axis=1), 0, call.x[2])
    shared[row == 0] = 0
    return first_of, shared
