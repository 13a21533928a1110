"""`local_filter2d` for outputs of the size of the image: nothing but filters is packed.

With stride 1 and outputs as large as the image, a tap is one offset between the two where they are in
memory. At the borders it leads to pixels of the next row or plane instead of to zeros; there the packed
filters are zero. Zero times NaN or infinity is not zero: if anything that should be finite is not, these
functions return None, and the call is done again in the general way.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import parallel
from .compile import cached_jit, jit, kernel_input
from .local_filter_kernels import decode
from .planes import accumulate, clear, copy, correlate, inside, staggered
from .scratch import run_with_memory
from .strips import CHANNELS, Filters, Scale, Source, Target, apply, lanes

BLOCK_BYTES = 768 * 1024  # filters of one block of rows: most of a common L2 cache


class Taps(NamedTuple):
    """Offsets of the taps from output to input."""

    y: np.ndarray
    x: np.ndarray
    offset: np.ndarray  # in elements
    filter_at: np.ndarray  # of their packed planes


class Layout(NamedTuple):
    """How work is divided."""

    rows: int
    width: int
    block: int  # rows of a block
    bands: int  # work items along the rows
    channels: int  # channels of a work item
    plane: int  # elements of a packed plane of filters


def applies(x: np.ndarray, weight: np.ndarray, channel_weight: Any, params: dict[str, Any]) -> bool:
    """Whether outputs and pixels lie alike, and a packed zero makes a term zero."""
    plain = channel_weight is None or params["combine"] == "mul"
    return (
        plain and params["stride"] == (1, 1) and params["upsample"] == 1 and weight.shape[4:] == x.shape[2:]
    )


@lru_cache(maxsize=256)
def _plan(
    x: tuple[int, ...], weight: tuple[int, ...], itemsize: int, dilation: Any, padding: Any, least: int
) -> tuple[Taps, Layout, int, int]:
    """Taps, layout, chunks of channels and work items; at least `least` channels share packed filters."""
    n, groups, kh, kw, rows, width = weight
    a, b = np.divmod(np.arange(kh * kw), kw)
    y, x_offset = a * dilation[0] - padding[0], b * dilation[1] - padding[1]
    per_group, wanted = x[1] // groups, -(-parallel.ITEMS // (n * groups))
    blocks = -(-rows // max(1, min(rows, BLOCK_BYTES // (kh * kw * width * itemsize))))
    block, bands = -(-rows // blocks), min(blocks, wanted)
    channels = max(min(per_group, least), -(-per_group * bands // wanted))
    layout = Layout(rows, width, block, bands, channels, staggered(block * width, itemsize))
    taps = Taps(y, x_offset, y * width + x_offset, np.arange(kh * kw) * layout.plane)
    chunks = -(-per_group // channels)
    return taps, layout, chunks, n * groups * bands * chunks


def by_tap(weight: np.ndarray) -> np.ndarray:
    """(N, G, taps, Ho, Wo), contiguous."""
    n, groups, kh, kw = weight.shape[:4]
    return kernel_input(weight).reshape(n, groups, kh * kw, *weight.shape[4:])


def _scales(channel_weight: Any) -> Any:
    """(N, C, taps) in a row, or None."""
    return None if channel_weight is None else kernel_input(channel_weight).reshape(-1)


def sum_slots(slots: np.ndarray) -> np.ndarray:
    """The sum over chunks of channels, in order, without a copy if there is one chunk only."""
    return slots[0] if len(slots) == 1 else slots.sum(axis=0)


def forward(x: np.ndarray, weight: np.ndarray, channel_weight: Any, params: dict[str, Any]) -> Any:
    """The output, or None."""
    taps, layout, chunks, items = _plan(
        x.shape, weight.shape, x.itemsize, params["dilation"], params["padding"], 16
    )
    y, finite = np.empty(x.shape, x.dtype), np.ones(items, np.bool_)
    filters = by_tap(weight)
    arrays = (kernel_input(x), filters, _scales(channel_weight), y, finite)
    size, args = len(taps.y) * layout.plane, (*arrays, taps, layout, chunks)
    run_with_memory(forward_in_place, items, y.size * len(taps.y), size, x.dtype, *args)
    return y if finite.all() else None


def backward(
    grad_output: np.ndarray,
    kept: tuple,
    needs: tuple[bool, bool, bool],
    params: dict[str, Any],
    slot_bytes: int,
) -> Any:
    """The gradients of x, weight and channel_weight, or None."""
    x, weight, channel_weight = kept
    per_group = x.shape[1] // weight.shape[1]
    least = max(64, -(-per_group * weight.nbytes // slot_bytes))
    taps, layout, chunks, items = _plan(
        x.shape, weight.shape, x.itemsize, params["dilation"], params["padding"], least
    )
    filters = by_tap(weight)
    scales, finite = _scales(channel_weight), np.ones(items, np.bool_)
    grad_x = np.empty(x.shape if needs[0] else (0,) * 4, x.dtype)
    grad_filters = np.zeros((chunks, *filters.shape) if needs[1] else (0,) * 6, x.dtype)
    by_tap_shape = (*x.shape[:2], len(taps.y)) if needs[2] else (x.shape[0], 0, 0)
    slots = np.zeros((layout.bands, *by_tap_shape), x.dtype)
    arrays = (
        kernel_input(grad_output),
        kernel_input(x),
        filters,
        scales,
        grad_x,
        grad_filters,
        slots,
        finite,
    )
    size, args = 3 * len(taps.y) * layout.plane, (*arrays, taps, layout, chunks)
    run_with_memory(backward_in_place, items, 3.0 * x.size * len(taps.y), size, x.dtype, *args)
    grad_scales = slots.sum(axis=0)
    if not finite.all() or not np.isfinite(grad_scales).all():
        return None
    return (
        grad_x if needs[0] else None,
        sum_slots(grad_filters).reshape(weight.shape) if needs[1] else None,
        grad_scales.reshape(channel_weight.shape) if needs[2] else None,
    )


@jit
def _all_finite(array: np.ndarray, at: int, count: int) -> bool:
    """Whether the sum is, which no NaN or infinity can be part of."""
    total, start = array.dtype.type(0), np.uint64(at)
    for j in range(np.uint64(count)):
        total += array[start + j]
    return np.isfinite(total)


@jit
def _inside(tap: int, first: int, rows: int, taps: Taps, layout: Layout) -> tuple:
    """Rows and columns of a block of outputs at which a tap reads a pixel of the image."""
    top, bottom = inside(rows, first, layout.rows, taps.y[tap], 1)
    low, end = inside(layout.width, 0, layout.width, taps.x[tap], 1)
    return top, bottom, low, end


@jit
def _keep(packed: np.ndarray, at: int, rows: int, width: int, region: tuple) -> None:
    """Zero a packed plane outside ``(top, bottom, low, end)``."""
    top, bottom, low, end = region
    if low == end:
        top, bottom = rows, rows
    clear(packed, at, top * width)
    for i in range(top, bottom):
        for j in range(low):
            packed[at + i * width + j] = 0
        for j in range(end, width):
            packed[at + i * width + j] = 0
    clear(packed, at + bottom * width, (rows - bottom) * width)


@jit
def _pack_filters(
    packed: np.ndarray, filters: np.ndarray, first: int, rows: int, taps: Taps, layout: Layout
) -> bool:
    """Filters (taps, H, W) where their taps read pixels, zero elsewhere; whether all of them are finite."""
    finite, count = True, rows * layout.width
    for tap in range(len(taps.y)):
        at = taps.filter_at[tap]
        copy(packed, at, filters[tap].reshape(-1), first * layout.width, count)
        finite = finite and _all_finite(packed, at, count)
        _keep(packed, at, rows, layout.width, _inside(tap, first, rows, taps, layout))
    return finite


@jit
def _unpack_filters(
    packed: np.ndarray, grad_filters: np.ndarray, first: int, rows: int, taps: Taps, layout: Layout
) -> None:
    """The reverse, of gradients."""
    for tap in range(len(taps.y)):
        plane = grad_filters[tap].reshape(-1)
        top, bottom, low, end = _inside(tap, first, rows, taps, layout)
        for i in range(top, bottom):
            at = i * layout.width + low
            copy(plane, first * layout.width + at, packed, taps.filter_at[tap] + at, end - low)


@jit
def _pack_shifted(
    packed: np.ndarray, filters: np.ndarray, first: int, rows: int, taps: Taps, layout: Layout
) -> None:
    """Filters where the pixels are that their taps read, zero where there is no output that would."""
    width = layout.width
    for tap in range(len(taps.y)):
        at, plane = taps.filter_at[tap], filters[tap].reshape(-1)
        start = first * width - taps.offset[tap]
        low, high = max(0, -start), min(rows * width, plane.size - start)
        if low < high:
            copy(packed, at + low, plane, start + low, high - low)
        top, bottom = inside(rows, first, layout.rows, -taps.y[tap], 1)
        columns = inside(width, 0, width, -taps.x[tap], 1)
        _keep(packed, at, rows, width, (top, bottom, *columns))


@jit
def _reach(source_at: np.ndarray) -> tuple:
    """The smallest and the largest; NumPy's functions for it take longer to compile than all else here."""
    low, high = source_at[0], source_at[0]
    for at in source_at:
        low, high = min(low, at), max(high, at)
    return low, high


@jit
def _factors(scale: Any, at: int, factors: np.ndarray) -> None:
    """The factors of one channel; ones if there are none."""
    for tap in range(len(factors)):
        factors[tap] = 1 if scale is None else scale[at + tap]


@jit
def _apply(
    target: Target,
    channels: int,
    count: int,
    packed: np.ndarray,
    source: np.ndarray,
    source_at: np.ndarray,
    scale: Scale,
    totals: np.ndarray,
    taps: Taps,
) -> None:
    """`strips.apply` for j < count, wherever the taps lead; channels lie as far apart here as there.

    Only the first and last planes of an array have taps that lead out of it; there filters are zero.
    """
    lowest, highest = _reach(source_at)
    low, high = max(0, -lowest), min(count, source.size - highest - (channels - 1) * target.apart)
    if high - low < lanes(source):
        low, high = count, count
    else:
        filters, pixels = Filters(packed, taps.filter_at), Source(source, source_at, target.apart)
        apply(target, channels, (low, high), filters, pixels, scale, totals, None)
    if low > 0 or high < count:
        for c in range(channels):
            factors = np.empty(len(source_at), source.dtype)
            _factors(scale.values, scale.at + c * scale.apart, factors)
            for run in ((0, low), (high, count)):
                at, pixels_at = target.at + c * target.apart, source_at + c * target.apart
                _apply_clipped(target.values, at, run, packed, source, pixels_at, factors, taps)
                if not _all_finite(target.values, at + run[0], run[1] - run[0]):
                    totals[0] = np.nan


@jit
def _apply_clipped(
    target: np.ndarray,
    at: int,
    run: tuple,
    packed: np.ndarray,
    source: np.ndarray,
    source_at: np.ndarray,
    scale: np.ndarray,
    taps: Taps,
) -> None:
    """`_apply` for one channel and a run of pixels, tap by tap where one of them leads out of the array."""
    clear(target, at + run[0], run[1] - run[0])
    lowest, highest = _reach(source_at)
    low, high = max(run[0], -lowest), min(run[1], source.size - highest)
    if low < high:
        accumulate(target, at, (low, high), packed, taps.filter_at, source, source_at, scale, None)
    else:
        low, high = run[1], run[1]
    for tap in range(len(source_at)):
        one = slice(tap, tap + 1)
        start, stop = max(run[0], -source_at[tap]), min(run[1], source.size - source_at[tap])
        for part in ((start, min(stop, low)), (max(start, high), stop)):
            if part[0] < part[1]:
                accumulate(
                    target, at, part, packed, taps.filter_at[one], source, source_at[one], scale[one], None
                )


@cached_jit
def forward_in_place(
    start: int,
    stop: int,
    packed: np.ndarray,
    x: np.ndarray,
    filters: np.ndarray,
    scales: Any,
    y: np.ndarray,
    finite: np.ndarray,
    taps: Taps,
    layout: Layout,
    chunks: int,
) -> None:
    """Items (n, group, band, chunk of channels)."""
    groups, per_group = filters.shape[1], x.shape[1] // filters.shape[1]
    blocks = -(-layout.rows // layout.block)
    source_at = np.empty(len(taps.y), np.intp)
    source, target = x.reshape(-1), y.reshape(-1)
    image, totals = x.shape[2] * x.shape[3], np.zeros(lanes(x), x.dtype)
    before, calm = (-1, -1, -1), True
    for item in range(start, stop):
        (n, group, band, _), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            if (n, group, block) != before:
                calm, before = (
                    _pack_filters(packed, filters[n, group], first, rows, taps, layout),
                    (n, group, block),
                )
            for c in range(begin, end, CHANNELS):
                channel = n * x.shape[1] + c
                at = channel * image + first * layout.width
                for tap in range(len(source_at)):
                    source_at[tap] = at + taps.offset[tap]
                several, count = min(CHANNELS, end - c), rows * layout.width
                size = len(source_at)
                _apply(
                    Target(target, at, image),
                    *(several, count, packed, source, source_at),
                    Scale(scales, channel * size, size),
                    *(totals, taps),
                )
            finite[item] = finite[item] and calm and _all_finite(totals, 0, totals.size)


@jit
def _grad_filters(
    grads: np.ndarray,
    slots: np.ndarray,
    outputs: np.ndarray,
    source: np.ndarray,
    at: int,
    several: int,
    count: int,
    packed: np.ndarray,
    scale: Any,
    scale_at: int,
    taps: Taps,
    layout: Layout,
) -> None:
    """Add what some channels, the first at `at`, contribute to gradients of filters and to `slots`."""
    image = layout.rows * layout.width
    factor, totals = np.empty(CHANNELS, grads.dtype), np.empty(CHANNELS, grads.dtype)
    together = several == CHANNELS
    for tap in range(len(taps.y)):
        for k in range(1 if together else several):
            base, apart = at + k * image, image if together else 0
            for m in range(CHANNELS):
                factor[m] = 1 if together or m == 0 else 0
                if scale is not None and factor[m]:
                    factor[m] = scale[scale_at + (k + m) * len(taps.y) + tap]
            # Where the first or last plane's tap leads out of the array, filters are zero.
            source_at = base + taps.offset[tap]
            skip = max(0, -source_at)
            run = min(count, source.size - source_at - (CHANNELS - 1) * apart) - skip
            to = taps.filter_at[tap] + skip
            from_output, from_source = (base + skip, apart), (source_at + skip, apart)
            correlate(
                grads,
                to,
                max(0, run),
                outputs,
                from_output,
                source,
                from_source,
                factor,
                packed,
                totals,
                None,
            )
            for m in range((several if together else 1) if slots.size else 0):
                slots[k + m, tap] += totals[m]


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
    finite: np.ndarray,
    taps: Taps,
    layout: Layout,
    chunks: int,
) -> None:
    """Items (n, group, band, chunk of channels)."""
    groups, per_group = filters.shape[1], x.shape[1] // filters.shape[1]
    blocks, size, image = -(-layout.rows // layout.block), len(taps.y) * layout.plane, x.shape[2] * x.shape[3]
    needs_filters = grad_filters.size + slots.size > 0
    shifted, packed, grads = memory[:size], memory[size : 2 * size], memory[2 * size :]
    source_at, totals = np.empty(len(taps.y), np.intp), np.zeros(lanes(x), x.dtype)
    outputs, source, target = grad_output.reshape(-1), x.reshape(-1), grad_x.reshape(-1)
    before, calm = (-1, -1, -1), True
    for item in range(start, stop):
        (n, group, band, chunk), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            count = rows * layout.width
            if (n, group, block) != before:
                calm = _pack_filters(packed, filters[n, group], first, rows, taps, layout)
                _pack_shifted(shifted, filters[n, group], first, rows, taps, layout)
                before = (n, group, block)
            clear(grads, 0, size)
            for c in range(begin, end, CHANNELS):
                several, channel = min(CHANNELS, end - c), n * x.shape[1] + c
                at = channel * image + first * layout.width
                scale_at = channel * len(source_at)
                if grad_x.size:
                    for tap in range(len(source_at)):
                        source_at[tap] = at - taps.offset[tap]
                    _apply(
                        Target(target, at, image),
                        *(several, count, shifted, outputs, source_at),
                        Scale(scales, scale_at, len(source_at)),
                        *(totals, taps),
                    )
                if needs_filters:
                    slot = slots[band, n, c : c + several]
                    _grad_filters(
                        *(grads, slot, outputs, source, at, several, count, packed, scales, scale_at),
                        *(taps, layout),
                    )
            seen = _all_finite(grads, 0, size) and _all_finite(totals, 0, totals.size)
            finite[item] = finite[item] and calm and seen
            if grad_filters.size:
                _unpack_filters(grads, grad_filters[chunk, n, group], first, rows, taps, layout)
