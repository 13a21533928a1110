"""`local_filter2d` for outputs of the size of the image: nothing but filters is packed.

With stride 1 and outputs as large as the image, a tap is one offset between the two where they are in
memory. At the borders it leads to pixels of the next row or plane instead of to zeros; there the packed
filters are zero. Zero times NaN or infinity is not zero: if anything that should be finite is not, these
functions return None, and the call is done again in the general way.

A tap costs each channel two operations forward and five backward. For 3 x 3 filters on (2, 256, 56, 56) that
is 3.6 and 9.0 million on registers of 8 numbers, which one thread of a Zen 3 at about 3.2 GHz took 1.1 and
3.4 ms for. What is left is memory. Filters lie in strips, in the order in which they are used, so that few
streams are read at a time; the pixels of the next channels are fetched meanwhile; and outputs that no cache
would keep are written past them. On two threads of a Zen 4 the forward pass takes 0.61 ms, and 1.4 ms for
(1, 64, 256, 256), where NumPy copies the images in 0.5 and 1.3.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import FALSE, TRUE, ZERO, cached_jit, jit, kernel_input
from ..engine.memory import run_with_memory
from ..engine.pixels import clear, copy, inside, staggered
from ..engine.strips import (
    CHANNELS,
    STREAM_BYTES,
    STRIP_BYTES,
    Planes,
    Scale,
    Strips,
    Taps,
    apply,
    correlate,
    deal,
    empty_to_stream,
    lanes,
)
from .kernels import decode

# A block of rows: its filters, and three times the pixels of some channels, of which those of the next ones
# are fetched meanwhile. Most of a common L2 cache.
BLOCK_BYTES = 768 * 1024
_THERE, _BACK = FALSE, TRUE


class Layout(NamedTuple):
    """The taps, and how work is divided."""

    y: np.ndarray  # from output to input, in rows and columns
    x: np.ndarray
    offset: np.ndarray  # and in elements
    back: np.ndarray  # from input to output
    filter_at: np.ndarray  # of the packed planes of filters
    reach: int  # the largest offset either way
    span: int  # pixels of a channel that the taps of a block of rows may lead to
    rows: int
    width: int
    block: int  # rows of a block
    bands: int  # work items along the rows
    channels: int  # channels of a work item
    plane: int  # elements of a packed plane of filters
    strips: int  # elements of all filters, strip by strip


def applies(x: np.ndarray, weight: np.ndarray, channel_weight: Any, params: dict[str, Any]) -> bool:
    """Whether outputs and pixels lie alike, and a packed zero makes a term zero."""
    plain = channel_weight is None or params["combine"] == "mul"
    return (
        plain and params["stride"] == (1, 1) and params["upsample"] == 1 and weight.shape[4:] == x.shape[2:]
    )


@lru_cache(maxsize=256)
def _plan(
    x: tuple[int, ...], weight: tuple[int, ...], itemsize: int, dilation: Any, padding: Any, least: int
) -> tuple[Layout, int, int] | None:
    """Layout, chunks of channels and work items; at least `least` channels share packed filters.

    None where a block of rows would be shorter than the strips that it is worked on in.
    """
    n, groups, kh, kw, rows, width = weight
    a, b = np.divmod(np.arange(kh * kw), kw)
    y, x_offset = a * dilation[0] - padding[0], b * dilation[1] - padding[1]
    per_group, wanted = x[1] // groups, -(-parallel.ITEMS // (n * groups))
    planes = kh * kw + 3 * min(CHANNELS, per_group)
    most = max(1, min(rows, BLOCK_BYTES // (planes * width * itemsize)))
    blocks = -(-rows // most)
    if blocks < wanted and 3 * (rows // wanted) >= most:
        blocks = wanted  # then all channels share packed filters
    block, bands = -(-rows // blocks), min(blocks, wanted)
    strip = STRIP_BYTES // itemsize
    if min(block, rows - (blocks - 1) * block) * width < strip:
        return None
    offset, plane = y * width + x_offset, staggered(block * width, itemsize)
    reach = int(abs(offset).max())
    layout = Layout(
        *(y, x_offset, offset, -offset, np.arange(kh * kw) * plane, reach, block * width + 2 * reach),
        *(rows, width, block, bands),
        channels=max(min(per_group, least), -(-per_group * bands // wanted)),
        plane=plane,
        strips=kh * kw * -(-block * width // strip) * strip,
    )
    chunks = -(-per_group // layout.channels)
    return layout, chunks, n * groups * bands * chunks


def _memory(layout: Layout, planes: int) -> int:
    """Elements that a thread needs: filters in strips and planes, pixels of some channels, and sums."""
    pixels = min(CHANNELS, layout.channels) * layout.span
    return layout.strips + planes * layout.plane + pixels + STRIP_BYTES + layout.filter_at.size


def by_tap(weight: np.ndarray) -> np.ndarray:
    """(N, G, taps, Ho, Wo), contiguous."""
    n, groups, kh, kw = weight.shape[:4]
    return kernel_input(weight).reshape(n, groups, kh * kw, *weight.shape[4:])


def sum_slots(slots: np.ndarray) -> np.ndarray:
    """The sum over chunks of channels, in order, without a copy if there is one chunk only."""
    return slots[0] if len(slots) == 1 else slots.sum(axis=0)


def _row(array: Any) -> Any:
    """All elements in a row, as kernels take them; None stays None."""
    return None if array is None else kernel_input(array).reshape(-1)


def forward(x: np.ndarray, weight: np.ndarray, channel_weight: Any, params: dict[str, Any]) -> Any:
    """The output, or None."""
    plan = _plan(x.shape, weight.shape, x.itemsize, params["dilation"], params["padding"], 16)
    if plan is None:
        return None
    layout, chunks, items = plan
    y, seen = empty_to_stream(x.shape, x.dtype), np.zeros(items, x.dtype)
    arrays = (_row(x), _row(weight), _row(channel_weight), y.reshape(-1), seen)
    size, args = _memory(layout, 1), (*arrays, layout, x.shape[1], weight.shape[1], chunks)
    run_with_memory(forward_in_place, items, y.size * len(layout.y), size, x.dtype, *args)
    return y if np.isfinite(seen).all() else None


def backward(
    grad_output: np.ndarray,
    kept: tuple,
    needs: tuple[bool, bool, bool],
    params: dict[str, Any],
    slot_bytes: int,
) -> Any:
    """The gradients of x, weight and channel_weight, or None."""
    x, weight, channel_weight = kept
    groups = weight.shape[1]
    least = max(64, -(-(x.shape[1] // groups) * weight.nbytes // slot_bytes))
    plan = _plan(x.shape, weight.shape, x.itemsize, params["dilation"], params["padding"], least)
    if plan is None:
        return None
    layout, chunks, items = plan
    seen = np.zeros(items, x.dtype)
    grad_x = empty_to_stream(x.shape if needs[0] else (0,), x.dtype)
    grad_filters = np.empty((chunks, *weight.shape) if needs[1] else (0,), x.dtype)
    slots = np.zeros((layout.bands, *x.shape[:2], len(layout.y)) if needs[2] else (1, 0), x.dtype)
    results = (grad_x.reshape(-1), grad_filters.reshape(-1), slots.reshape(-1), seen)
    arrays = (_row(grad_output), _row(x), _row(weight), _row(channel_weight), *results)
    size = _memory(layout, 1 + 2 * len(layout.y))
    args = (*arrays, layout, x.shape[0], x.shape[1], groups, chunks)
    run_with_memory(backward_in_place, items, 3.0 * x.size * len(layout.y), size, x.dtype, *args)
    grad_scales = slots.sum(axis=0)
    if not np.isfinite(seen).all() or not np.isfinite(grad_scales).all():
        return None
    return (
        grad_x if needs[0] else None,
        sum_slots(grad_filters) if needs[1] else None,
        grad_scales.reshape(channel_weight.shape) if needs[2] else None,
    )


@jit
def _keep(packed: np.ndarray, at: int, rows: int, width: int, vertical: tuple, horizontal: tuple) -> Any:
    """Zero a packed plane outside a range of rows and one of columns; return the sum of what was there."""
    total, (top, bottom), (low, end) = packed.dtype.type(0), vertical, horizontal
    for i in range(rows):
        row = at + i * width
        whole = i < top or i >= bottom
        for j in range(width if whole else low):
            total += packed[row + j]
            packed[row + j] = 0
        for j in range(width if whole else end, width):
            total += packed[row + j]
            packed[row + j] = 0
    return total


@jit
def _pack_tap(
    packed: np.ndarray,
    at: int,
    filters: np.ndarray,
    start: int,
    tap: int,
    first: int,
    rows: int,
    layout: Layout,
    back: bool,
) -> Any:
    """Filters of a tap where it reads pixels, zero elsewhere; or, on the way `back`, where those pixels are.

    Those of one sample and group begin at `start`. Returns a sum that is finite if what is left out is.
    """
    width, image, sign = layout.width, layout.rows * layout.width, -1 if back else 1
    begin = first * width + (layout.back[tap] if back else 0)
    low = min(rows * width, max(0, -begin))
    high = max(low, min(rows * width, image - begin))
    clear(packed, at, low)
    copy(packed, at + low, filters, start + tap * image + begin + low, high - low)
    clear(packed, at + high, rows * width - high)
    vertical = inside(rows, first, layout.rows, sign * layout.y[tap], 1)
    return _keep(packed, at, rows, width, vertical, inside(width, 0, width, sign * layout.x[tap], 1))


@jit
def _pack_strips(
    strips: np.ndarray,
    plane: np.ndarray,
    filters: np.ndarray,
    start: int,
    first: int,
    rows: int,
    layout: Layout,
    back: bool,
) -> Any:
    """All taps, as `apply` takes them; each passes through `plane`, which stays in the first cache."""
    total, taps = plane.dtype.type(0), len(layout.y)
    for tap in range(taps):
        total += _pack_tap(plane, ZERO, filters, start, tap, first, rows, layout, back)
        deal(strips, tap, taps, plane, ZERO, rows * layout.width)
    return total


@jit
def _unpack(packed: np.ndarray, grads: np.ndarray, start: int, first: int, rows: int, layout: Layout) -> Any:
    """The gradients of the filters, zero where their taps read no pixels. Returns a sum as `_pack` does."""
    width, total = layout.width, packed.dtype.type(0)
    for tap in range(len(layout.y)):
        at, vertical = layout.filter_at[tap], inside(rows, first, layout.rows, layout.y[tap], 1)
        total += _keep(packed, at, rows, width, vertical, inside(width, 0, width, layout.x[tap], 1))
        copy(grads, start + (tap * layout.rows + first) * width, packed, at, rows * width)
    return total


@jit
def _readable(
    source: np.ndarray, at: int, apart: int, channels: int, edge: np.ndarray, layout: Layout
) -> Planes:
    """A block of some channels from `at` on, wherever taps lead: where it is, or a copy amid zeros.

    Only from the first and last planes of an array do taps lead out of it; filters are zero there.
    """
    reach, span = layout.reach, layout.span
    if at >= reach and at + (channels - 1) * apart + span - reach <= source.size:
        return Planes(source, at, apart)
    clear(edge, 0, channels * span)
    for c in range(channels):
        begin = at + c * apart - reach
        low, high = max(0, -begin), min(span, source.size - begin)
        copy(edge, c * span + low, source, begin + low, high - low)
    return Planes(edge, reach, span)


@cached_jit
def forward_in_place(
    start: int,
    stop: int,
    memory: np.ndarray,
    x: np.ndarray,
    filters: np.ndarray,
    scales: Any,
    y: np.ndarray,
    seen: np.ndarray,
    layout: Layout,
    of_sample: int,
    groups: int,
    chunks: int,
) -> None:
    """Items (n, group, band, chunk of channels). What is not finite shows in `seen`, one sum for each."""
    taps, image, per_group = len(layout.y), layout.rows * layout.width, of_sample // groups
    blocks = -(-layout.rows // layout.block)
    strips, plane = memory, memory[layout.strips :]
    edge = plane[layout.plane :]
    totals = edge[min(CHANNELS, layout.channels) * layout.span :]
    clear(totals, 0, lanes(totals))
    pixels = lanes(memory)
    before, left_out, stream = -1, memory.dtype.type(0), y.size * y.itemsize >= STREAM_BYTES
    for item in range(start, stop):
        (n, group, band, _), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            here = (n * groups + group) * blocks + block
            if here != before:
                filters_at = (n * groups + group) * taps * image
                left_out = _pack_strips(strips, plane, filters, filters_at, first, rows, layout, _THERE)
                before = here
            for c in range(begin, end, CHANNELS):
                channel, several = n * of_sample + c, min(CHANNELS, end - c)
                at = channel * image + first * layout.width
                apply(
                    Planes(y, at, image),
                    *(several, rows * layout.width, Strips(strips, 0, taps * pixels, layout.offset)),
                    _readable(x, at, image, several, edge, layout),
                    Scale(scales, channel * taps, taps),
                    *(totals, None, stream),
                )
            seen[item] += left_out + _sum(totals)


@jit
def _sum(totals: np.ndarray) -> Any:
    """Of the lanes of a strip."""
    total = totals.dtype.type(0)
    for lane in range(lanes(totals)):
        total += totals[lane]
    return total


@jit
def _pack_both(
    packed: np.ndarray,
    strips: np.ndarray,
    plane: np.ndarray,
    filters: np.ndarray,
    filters_at: int,
    first: int,
    rows: int,
    layout: Layout,
) -> Any:
    """Filters as the forward pass reads them, and in strips as read back; the sum of those left out."""
    left_out = packed.dtype.type(0)
    for tap in range(len(layout.y)):
        at = layout.filter_at[tap]
        left_out += _pack_tap(packed, at, filters, filters_at, tap, first, rows, layout, _THERE)
    _pack_strips(strips, plane, filters, filters_at, first, rows, layout, _BACK)
    return left_out


@cached_jit
def backward_in_place(
    start: int,
    stop: int,
    memory: np.ndarray,
    grad_output: np.ndarray,
    x: np.ndarray,
    filters: np.ndarray,
    scales: Any,
    grad_x: np.ndarray,
    grad_filters: np.ndarray,
    slots: np.ndarray,
    seen: np.ndarray,
    layout: Layout,
    samples: int,
    of_sample: int,
    groups: int,
    chunks: int,
) -> None:
    """Items (n, group, band, chunk of channels). What is not finite shows in `seen`, one sum for each."""
    taps, image, per_group = len(layout.y), layout.rows * layout.width, of_sample // groups
    blocks, size, pixels = -(-layout.rows // layout.block), taps * layout.plane, lanes(memory)
    strips, plane = memory, memory[layout.strips :]
    packed = plane[layout.plane :]
    grads, edge = packed[size:], packed[2 * size :]
    totals = edge[min(CHANNELS, layout.channels) * layout.span :]
    clear(totals, 0, lanes(totals))
    unwanted, stream = Scale(totals[lanes(totals) :], 0, 0), grad_x.size * x.itemsize >= STREAM_BYTES
    for item in range(start, stop):
        (n, group, band, chunk), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows, filters_at = min(layout.block, layout.rows - first), (n * groups + group) * taps * image
            count = rows * layout.width
            left_out = _pack_both(packed, strips, plane, filters, filters_at, first, rows, layout)
            clear(grads, 0, size)
            for c in range(begin, end, CHANNELS):
                several, channel = min(CHANNELS, end - c), n * of_sample + c
                at = channel * image + first * layout.width
                if grad_x.size:
                    apply(
                        Planes(grad_x, at, image),
                        *(several, count, Strips(strips, 0, taps * pixels, layout.back)),
                        _readable(grad_output, at, image, several, edge, layout),
                        Scale(scales, channel * taps, taps),
                        *(totals, None, stream),
                    )
                if grad_filters.size + slots.size == 0:
                    continue
                source = _readable(x, at, image, several, edge, layout)
                of_scale = unwanted
                if slots.size:
                    of_scale = Scale(slots, ((band * samples + n) * of_sample + c) * taps, taps)
                correlate(
                    *(grads, several, count, Taps(packed, layout.filter_at, layout.offset)),
                    *(Planes(grad_output, at, image), source, Scale(scales, channel * taps, taps)),
                    *(of_scale, None),
                )
            if grad_filters.size:
                to = chunk * samples * groups * taps * image + filters_at
                left_out += _unpack(grads, grad_filters, to, first, rows, layout)
            seen[item] += left_out + _sum(totals)
