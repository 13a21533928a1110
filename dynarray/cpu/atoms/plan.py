"""How the CPU's kernels of `atom_conv2d` cut outputs into tiles, and lay out what a tile reads.

A tile is some whole rows of the output, or a piece of one row. For each group of channels the pixels that it
reads are packed, with their zero padding, into planes with the row length of the tile: see `engine.planes`.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import gemm, parallel
from ..engine.planes import TapPlanes, tap_planes
from ..engine.products import RUN_BYTES
from ..engine.vectors import REGISTER_BYTES

ATOM_TILE_BYTES = 32 * REGISTER_BYTES  # of one row of a tile: more where the second level of cache is larger
ATOM_GRADIENT_BYTES = 256 * 1024  # backward, of all outputs of a tile, unless that is very short
ATOM_LEAST_BYTES = 8 * REGISTER_BYTES
# Filtered channels that are multiplied at once: a strip of them is a part of a common L1 cache.
ATOM_DEPTH = 192
ATOM_Z_BYTES = 144 * 1024  # backward, those of a whole tile, and as much for their gradients
ATOM_IMAGE_BYTES = 320 * ATOM_TILE_BYTES  # packed channels of a tile
ATOM_GROUP = 8  # channels packed at once, backward
ATOM_CHANNELS = 32  # backward, that a work item takes at least, unless there are fewer


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
    planes: TapPlanes
    offsets: AtomOffsets
    image: int  # elements of the planes of a channel, up to whole strips
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
    most = ATOM_TILE_BYTES
    if backward and math.prod(call.atoms[4:]) * call.itemsize > most:  # else an image is one tile
        most = min(most, max(ATOM_LEAST_BYTES, ATOM_GRADIENT_BYTES // call.outputs))
    tiles, planes, image, tap = _layout(call, strip, most)
    span = tiles.span
    of_whole, _, image_of_whole, _ = _layout(whole, strip, most)
    group, chunk = _channels(whole, of_whole.span, image_of_whole, backward=backward)
    taps, z_span = len(tap), span if backward else strip
    offsets = AtomOffsets(
        tap=tap,
        image=np.arange(group) * image,
        atom=np.arange(m) * taps * span,
        row=np.arange(max(chunk * m, taps, call.outputs)) * span,
        z_row=np.arange(chunk * m) * z_span,
        channel=np.arange(chunk) * m * z_span,
    )
    plan = AtomPlan(tiles, planes, offsets, image, group, chunk)
    return plan, _scratch(call, plan, taps, chunk * m * z_span, backward=backward)


def _layout(call: AtomCall, strip: int, most_bytes: int) -> tuple[AtomTiles, TapPlanes, int, np.ndarray]:
    """The tiles of a call, and the planes of each."""
    (high, wide), most = call.atoms[4:], most_bytes // call.itemsize
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


def _planes(call: AtomCall, rows: int, width: int, strip: int) -> tuple[TapPlanes, int, np.ndarray]:
    """Planes for a tile of this size, the elements of all of a channel, and what each tap reads of them."""
    planes, number, begins = tap_planes(
        call.atoms[2:4], call.stride, call.dilation, call.padding, (rows, width)
    )
    taps = number * planes.plane + begins
    return planes, _odd_strips(len(planes.origin_y) * planes.plane, strip), taps


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
    atoms, images = call.atoms[1] * taps * span, plan.group * plan.image
    both = (atoms, images, z, gemm.TILE_ROWS * strip)
    adjoint = (call.outputs * span, -(-call.outputs // strip) * strip * span, z, atoms, images)
    return AtomScratch(*(size + strip for size in both), *(backward * (size + strip) for size in adjoint))


def edge_rows(call: AtomCall) -> int:
    """Most rows of x that two neighbouring tiles of rows read."""
    return max(0, (call.atoms[2] - 1) * call.dilation[0] + 1 - call.stride[0])


def channel_groups(call: AtomCall, plan: AtomPlan, shares: int, most_bytes: int) -> np.ndarray:
    """Where the groups of channels begin that items of work are divided into, and the end.

    They are whole tiles of the matrix products. Each has gradients of the atoms of its own, in `most_bytes`
    for all of them.
    """
    step, channels = math.lcm(plan.group, gemm.TILE_ROWS), call.x[1]
    room = most_bytes // (math.prod(call.atoms) * call.itemsize)
    number = max(1, min(-(-parallel.ITEMS // shares), channels // ATOM_CHANNELS, room))
    each = -(-channels // (number * step)) * step
    return np.append(np.arange(0, channels, each), channels)


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
