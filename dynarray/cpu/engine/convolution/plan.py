"""How a convolution is divided into blocks and packed, from shapes alone."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from .. import parallel
from ..gemm import TILE_ROW_BYTES, TILE_ROWS, whole
from ..pixels import whole_lines
from .kernels import ConvBlocks, ConvPlanes, ConvScratch, ConvTarget, ConvWeightScratch

# What an item packs and adds up stays in a common L2 cache; the part of it that the inner loops of a product
# pass over again and again, so many channels times taps, stays in L1.
ITEM_BYTES = 640 * 1024
CONV_DEPTH = 192
# Sums of weight gradients waiting to be added up.
CONV_SLOT_BYTES = 8 * 1024 * 1024
LEAST_PIXELS = 64  # of a part of a row
# Pixels of a weight gradient's product: smaller images go together.
LEAST_DEPTH = 256
# Columns of a weight gradient's product, channels times taps, that share one packing of the output gradient.
SHARED_COLUMNS = 1200

Pair = tuple[int, int]
# Of one axis, for each tap used: its place in the kernel, its shift in strides, and the phase it reads.
ConvAxis = tuple[tuple[int, int, int], ...]


class ConvSteps(NamedTuple):
    """Stride, padding and dilation as (y, x) pairs, and the number of groups."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class ConvTaps(NamedTuple):
    """Both axes together: taps, where they read, and the planes (phases of the input) that they read from."""

    places: np.ndarray  # (taps, 2): a, b
    reads: np.ndarray  # (taps, 3): plane, row and column
    origins: np.ndarray  # (planes, 2): the pixel of the image that a plane's first pixel is, for block (0, 0)
    reach: Pair  # the largest row and column of `reads`


class ConvPlan(NamedTuple):
    """How a correlation is made: its left matrices, and what the kernel gets.

    These run over the channels of the result; their depth over those of the image, and the taps.
    """

    panels: tuple[int, int, int, int]  # groups, panels of a group, depth, rows of a panel
    rows: int
    distances: Pair  # in the weight, from row to row and from channel to channel of the image
    places: np.ndarray  # of the taps in a kernel
    target: ConvTarget  # without images
    planes: ConvPlanes
    items: int
    scratch: ConvScratch  # sizes


class ConvWeightPlan(NamedTuple):
    """How the gradient of a weight is made."""

    planes: ConvPlanes
    sums: tuple[int, int, int, int, int, int]  # their shape: slots, groups, O/groups, parts, taps, columns
    scratch: ConvWeightScratch  # sizes


@lru_cache(maxsize=128)
def conv_plan(
    steps: ConvSteps, weight: tuple, image: tuple, result: tuple, itemsize: int, phase: Pair | None = None
) -> ConvPlan:
    """How a correlation is made, from shapes: a convolution, or a phase of the gradient of its input."""
    o, per_group, kh, kw = weight
    if phase is None:
        axes, stride = (_forward_axis(steps, 0, kh), _forward_axis(steps, 1, kw)), steps.stride
        origin, step = (0, 0), (1, 1)
        rows, channels, distances = o // steps.groups, per_group, (per_group * kh * kw, kh * kw)
    else:
        axes = _input_axis(steps, 0, kh, phase[0]), _input_axis(steps, 1, kw, phase[1])
        stride, origin, step = (1, 1), phase, steps.stride
        rows, channels, distances = per_group, o // steps.groups, (kh * kw, per_group * kh * kw)
    taps = _conv_taps(*axes, stride)
    output = tuple(-(-(result[2 + i] - origin[i]) // step[i]) for i in (0, 1))
    phases, panels, tile = len(taps.origins), -(-rows // TILE_ROWS), TILE_ROW_BYTES // itemsize
    blocks = _conv_blocks(output, taps.reach, (channels * phases + rows) * itemsize)
    planes = _conv_planes(blocks, taps, stride, 1)
    starts = np.arange(channels)[:, None] * (phases * planes.size) + planes.starts
    count = image[0] * steps.groups * blocks.down * blocks.across
    parts = max(1, min(panels, -(-parallel.ITEMS // max(count, 1))))
    depth = max(1, CONV_DEPTH // max(1, len(taps.places))) * len(taps.places)
    scratch = ConvScratch(
        packed=channels * phases * planes.size + tile,
        sums=-(-panels // parts) * TILE_ROWS * whole_lines(blocks.height * blocks.pitch),
        corner=TILE_ROWS * tile,
    )
    return ConvPlan(
        places=taps.places @ np.array([kw, 1]),
        distances=distances,
        panels=(steps.groups, panels, channels * len(taps.places), TILE_ROWS),
        rows=rows,
        target=ConvTarget(None, origin, step, steps.groups, parts, depth),
        planes=planes._replace(starts=starts.reshape(-1)),
        items=count * parts,
        scratch=scratch,
    )


@lru_cache(maxsize=128)
def conv_weight_plan(
    steps: ConvSteps, shape: tuple, grad_output: tuple, x: tuple, itemsize: int
) -> ConvWeightPlan:
    """How the gradient of a weight is made, from shapes."""
    o, per_group, kh, kw = shape
    run = kw if steps.dilation[1] == 1 else 1  # taps that read pixels side by side are as one
    spread = steps.stride[1] if run > 1 else 1
    columns = ((0, -steps.padding[1], 0),) if run > 1 else _forward_axis(steps, 1, kw)
    taps = _conv_taps(_forward_axis(steps, 0, kh), columns, (steps.stride[0], steps.stride[1] // spread))
    taps = taps._replace(reach=(taps.reach[0], taps.reach[1] + run - 1))
    width, phases, groups = TILE_ROW_BYTES // itemsize, len(taps.origins), steps.groups
    together = _channels_of_part(per_group, kh, kw, run, width)
    pixel_bytes = (phases * spread * together + 2 * TILE_ROWS) * itemsize
    blocks = _conv_blocks(grad_output[2:], taps.reach, pixel_bytes, spread)
    parts, pixels = -(-per_group // together), blocks.height * blocks.width
    count = blocks.down * blocks.across
    images = max(1, min(x[0], LEAST_DEPTH // pixels)) if count == 1 else 1
    planes = _conv_planes(blocks._replace(images=images), taps, steps.stride, together, spread)
    sums = o // groups, parts, len(taps.places), run * together
    most = CONV_SLOT_BYTES // max(itemsize * groups * prod(sums), 1), -(-parallel.ITEMS // (groups * parts))
    scratch = ConvWeightScratch(
        packed=images * phases * planes.size + width,
        product=TILE_ROWS * whole(run * together, width),
        panel=images * pixels * TILE_ROWS,
        pixels=(images * pixels, np.int64),
        corner=TILE_ROWS * width,
    )
    return ConvWeightPlan(planes, (max(1, min(-(-x[0] // images) * count, *most)), groups, *sums), scratch)


def _channels_of_part(channels: int, kh: int, kw: int, run: int, width: int) -> int:
    """Of a weight gradient's product: all, or parts of which the fewest columns fill up tiles."""
    most = max(1, SHARED_COLUMNS // (kh * kw), width // run)
    fewest = -(-channels // most)
    several = (-(-channels // parts) for parts in range(fewest, fewest + 3))
    return min(several, key=lambda together: -(-channels // together) * whole(run * together, width))


def _forward_axis(steps: ConvSteps, i: int, kernel: int) -> ConvAxis:
    """Tap a of output h reads input h*stride + a*dilation - padding."""
    offsets = (a * steps.dilation[i] - steps.padding[i] for a in range(kernel))
    return tuple((a, *divmod(offset, steps.stride[i])) for a, offset in enumerate(offsets))


def _input_axis(steps: ConvSteps, i: int, kernel: int, phase: int) -> ConvAxis:
    """Tap a reads input phase + k*stride for output k + shift, if its step there is a whole one."""
    offsets = (phase + steps.padding[i] - a * steps.dilation[i] for a in range(kernel))
    return tuple(
        (a, offset // steps.stride[i], 0) for a, offset in enumerate(offsets) if offset % steps.stride[i] == 0
    )


def _conv_taps(rows: ConvAxis, columns: ConvAxis, stride: Pair) -> ConvTaps:
    pairs = [(r, c) for r in rows for c in columns]
    phases = list(dict.fromkeys((r[2], c[2]) for r, c in pairs))
    top, low = min((r[1] for r in rows), default=0), min((c[1] for c in columns), default=0)
    reads = [(phases.index((r[2], c[2])), r[1] - top, c[1] - low) for r, c in pairs]
    origins = [(y + top * stride[0], x + low * stride[1]) for y, x in phases]
    return ConvTaps(
        np.array([(r[0], c[0]) for r, c in pairs], np.int64).reshape(-1, 2),
        np.array(reads, np.int64).reshape(-1, 3),
        np.array(origins, np.int64).reshape(-1, 2),
        (max((r[1] for r in reads), default=0), max((r[2] for r in reads), default=0)),
    )


def _conv_planes(
    blocks: ConvBlocks, taps: ConvTaps, stride: Pair, channels: int, spread: int = 1
) -> ConvPlanes:
    """The planes of a block with so many channels side by side; `starts` are those of the first channel."""
    size = (blocks.height + taps.reach[0]) * blocks.pitch * channels
    starts = taps.reads @ np.array([size, blocks.pitch * channels, channels])
    return ConvPlanes(blocks, size, channels, stride, spread, taps.origins, starts)


def _conv_blocks(output: Pair, reach: Pair, pixel_bytes: int, spread: int = 1) -> ConvBlocks:
    """Blocks of whole rows, as many as an item may hold, or of parts of a row that is too long."""
    high, wide = max(output[0], 1), max(output[1], 1)
    pixels, more = max(ITEM_BYTES // max(pixel_bytes, 1), 1), -(-reach[1] // spread)
    width = wide
    if (1 + reach[0]) * (wide + more) > pixels:
        width = max(min(wide, pixels // (1 + reach[0]) - more), min(wide, LEAST_PIXELS))
    height = max(1, min(high, pixels // (width + more) - reach[0]))
    rows, columns = -(-high // height), -(-wide // width)
    pitch = (width - 1) * spread + 1 + reach[1]
    return ConvBlocks(rows, columns, -(-high // rows), width, pitch, 1)
