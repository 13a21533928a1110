"""Static convolutions on the CPU: what networks around dynamic filters are made of.

A work item is a block of output pixels of one image and group. The inputs that it reads are packed once,
with their zero padding, into flat planes, one per channel and phase of the stride; in them the inputs of
one tap are one shifted run, so that the matrix product of `gemm` reads them in place: no columns are ever
written. The gradient of x is the same correlation, of the output gradient, once per phase of the stride.
The gradient of the weight is a product over pixels: planes are packed with their channels side by side, and
a tap is again a shift.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.gemm import ROWS, TILE_BYTES
from .kernels import Block, correlate_items, pack_items, weight_items

# What an item packs and adds up stays in a common L2 cache; the part of it that the inner loops of a product
# pass over again and again stays in L1.
ITEM_BYTES = 640 * 1024
DEPTH = 192
# Sums of weight gradients waiting to be added up.
SLOT_BYTES = 8 * 1024 * 1024
# Columns of a weight gradient's product, channels times taps, that share one packing of the output gradient.
SHARED = 288

Pair = tuple[int, int]
# Of one axis, for each tap used: its place in the kernel, its shift in strides, and the phase it reads.
Axis = tuple[tuple[int, int, int], ...]


class Steps(NamedTuple):
    """Stride, padding and dilation as (y, x) pairs, and the number of groups."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Taps(NamedTuple):
    """Both axes together: taps, where they read, and the planes (phases of the input) that they read from."""

    places: np.ndarray  # (taps, 2): a, b
    reads: np.ndarray  # (taps, 3): plane, row and column
    origins: np.ndarray  # (planes, 2): the pixel of the image that a plane's first pixel is, for block (0, 0)
    reach: Pair  # the largest row and column of `reads`


def suits(*arrays: Any) -> bool:
    """Whether these kernels take the arrays."""
    return all(type(a) is np.ndarray and a.dtype == arrays[0].dtype for a in arrays) and (
        arrays[0].dtype in (np.float32, np.float64) and arrays[0].dtype.isnative
    )


def correlate(x: np.ndarray, weight: np.ndarray, output: Pair, steps: Steps) -> np.ndarray:
    """The convolution (N, O, *output) of x (N, C, H, W) with weight (O, C/groups, kh, kw)."""
    result = np.empty((x.shape[0], weight.shape[0], *output), x.dtype)
    if not result.size or not x.size:
        result[...] = 0
        return result
    taps = _taps(*(_forward_axis(steps, i, weight.shape[2 + i]) for i in (0, 1)), steps.stride)
    _run(
        kernel_input(x),
        _packed(weight, steps.groups, taps, swap=False),
        result,
        (0, 0),
        (1, 1),
        steps.stride,
        taps,
    )
    return result


def correlate_input(grad: np.ndarray, weight: np.ndarray, shape: tuple, steps: Steps) -> np.ndarray:
    """The gradient of x, of this shape, from that of the output."""
    result = np.empty(shape, grad.dtype)
    if not result.size or not grad.size:
        result[...] = 0
        return result
    grad, kernel = kernel_input(grad), weight.shape[2:]
    for y in range(min(steps.stride[0], shape[2])):
        for x in range(min(steps.stride[1], shape[3])):
            taps = _taps(_input_axis(steps, 0, kernel[0], y), _input_axis(steps, 1, kernel[1], x), (1, 1))
            if len(taps.places):
                packed = _packed(weight, steps.groups, taps, swap=True)
                _run(grad, packed, result, (y, x), steps.stride, (1, 1), taps)
            else:
                result[:, :, y :: steps.stride[0], x :: steps.stride[1]] = 0
    return result


def correlate_weight(grad: np.ndarray, x: np.ndarray, shape: tuple, steps: Steps) -> np.ndarray:
    """The gradient of the weight, of this shape, from that of the output."""
    if not grad.size or not x.size:
        return np.zeros(shape, grad.dtype)
    o, per, kh, kw = shape
    groups = steps.groups
    taps = _taps(_forward_axis(steps, 0, kh), _forward_axis(steps, 1, kw), steps.stride)
    width = TILE_BYTES // x.itemsize
    together = max(width, min(-(-per // width) * width, -(-SHARED // (kh * kw)) // width * width))
    parts = -(-per // together)
    planes = len(taps.origins)
    block = _block(grad.shape[2:], taps.reach, (planes * together + 2 * ROWS) * x.itemsize)
    blocks = x.shape[0] * block.rows * block.columns
    size = x.itemsize * groups * parts * kh * kw * (o // groups) * together
    slots = max(1, min(blocks, SLOT_BYTES // max(size, 1), -(-parallel.ITEMS // (groups * parts))))
    sums = np.zeros((slots, groups, parts, kh * kw, o // groups, together), x.dtype)
    operations = grad.size * per * kh * kw
    count = slots * groups * parts
    parallel.run(
        weight_items,
        count,
        operations,
        sums,
        kernel_input(grad),
        kernel_input(x),
        per,
        block,
        steps.stride,
        *taps,
    )
    total = sums[0] if slots == 1 else sums.sum(axis=0)
    # (groups, parts, taps, O/groups, together) -> (groups, O/groups, parts, together, taps)
    ordered = total.transpose(0, 3, 1, 4, 2).reshape(o, parts * together, kh, kw)
    return np.ascontiguousarray(ordered[:, :per])


def _forward_axis(steps: Steps, i: int, kernel: int) -> Axis:
    """Tap a of output h reads input h*stride + a*dilation - padding."""
    offsets = (a * steps.dilation[i] - steps.padding[i] for a in range(kernel))
    return tuple((a, *divmod(offset, steps.stride[i])) for a, offset in enumerate(offsets))


def _input_axis(steps: Steps, i: int, kernel: int, phase: int) -> Axis:
    """Tap a reads input phase + k*stride for output k + shift, if its step there is a whole one."""
    offsets = (phase + steps.padding[i] - a * steps.dilation[i] for a in range(kernel))
    return tuple(
        (a, offset // steps.stride[i], 0) for a, offset in enumerate(offsets) if offset % steps.stride[i] == 0
    )


@lru_cache(maxsize=256)
def _taps(rows: Axis, columns: Axis, stride: Pair) -> Taps:
    pairs = [(r, c) for r in rows for c in columns]
    phases = list(dict.fromkeys((r[2], c[2]) for r, c in pairs))
    top, low = min((r[1] for r in rows), default=0), min((c[1] for c in columns), default=0)
    reads = [(phases.index((r[2], c[2])), r[1] - top, c[1] - low) for r, c in pairs]
    origins = [(y + top * stride[0], x + low * stride[1]) for y, x in phases]
    return Taps(
        np.array([(r[0], c[0]) for r, c in pairs], np.int64).reshape(-1, 2),
        np.array(reads, np.int64).reshape(-1, 3),
        np.array(origins, np.int64).reshape(-1, 2),
        (max((r[1] for r in reads), default=0), max((r[2] for r in reads), default=0)),
    )


def _packed(weight: np.ndarray, groups: int, taps: Taps, *, swap: bool) -> np.ndarray:
    """Weight (O, C/groups, kh, kw) as the left matrices of `gemm`: depth runs over channels, then taps.

    With `swap` the two channel axes are exchanged.
    """
    weight = kernel_input(weight)
    o, per, kh, kw = weight.shape
    sizes, distances = (o // groups, per), (per * kh * kw, kh * kw)
    if swap:
        sizes, distances = sizes[::-1], distances[::-1]
    rows, channels = sizes
    offsets = taps.places @ np.array([kw, 1])
    panels = np.empty((groups, -(-rows // ROWS), channels * len(offsets), ROWS), weight.dtype)
    items = groups * panels.shape[1]
    parallel.run(
        pack_items,
        items,
        panels.size,
        panels,
        weight.reshape(-1),
        weight.size // groups,
        rows,
        distances,
        offsets,
    )
    return panels


def _run(
    image: np.ndarray,
    left: np.ndarray,
    result: np.ndarray,
    origin: Pair,
    step: Pair,
    stride: Pair,
    taps: Taps,
) -> None:
    """Every `step`-th pixel of `result`, from `origin` on: the correlation of `image` with packed weights."""
    groups, _, depth, _ = left.shape
    n, o, high, wide = result.shape
    output = -(-(high - origin[0]) // step[0]), -(-(wide - origin[1]) // step[1])
    channels, rows = image.shape[1] // groups, o // groups
    itemsize, planes = image.itemsize, len(taps.origins)
    block = _block(output, taps.reach, (channels * planes + rows) * itemsize)
    plane = (block.height + taps.reach[0]) * block.pitch
    shifts = taps.reads[:, 0] * plane + taps.reads[:, 1] * block.pitch + taps.reads[:, 2]
    starts = (np.arange(channels)[:, None] * (planes * plane) + shifts).reshape(-1)
    together = max(1, DEPTH // len(shifts)) * len(shifts)
    blocks = n * groups * block.rows * block.columns
    parts = max(1, min(left.shape[1], -(-parallel.ITEMS // max(blocks, 1))))
    parallel.run(
        correlate_items,
        blocks * parts,
        result.size * depth,
        result,
        image,
        left.reshape(-1),
        groups,
        block,
        plane,
        stride,
        taps.origins,
        starts,
        together,
        parts,
        origin,
        step,
    )


def _block(output: Pair, reach: Pair, pixel_bytes: int) -> Block:
    """Blocks of whole rows, as many as an item may hold, or of parts of a row that is too long."""
    high, wide = max(output[0], 1), max(output[1], 1)
    pixels = max(ITEM_BYTES // max(pixel_bytes, 1), 1)
    width = wide
    if (1 + reach[0]) * (wide + reach[1]) > pixels:
        width = max(min(wide, pixels // (1 + reach[0]) - reach[1]), min(wide, 64))
    height = max(1, min(high, pixels // (width + reach[1]) - reach[0]))
    rows, columns = -(-high // height), -(-wide // width)
    return Block(rows, columns, -(-high // rows), width, width + reach[1])
