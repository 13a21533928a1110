"""`local_filter2d` for outputs as large as the image, or nearly: little but filters is packed.

With stride 1 and outputs as large as the image, a tap is one offset between the two where they are in
memory. With upsampling it is so many times as far, if each pixel is repeated as often as it counts; and where
outputs have shorter rows than the image, it is one if they are moved apart to lie as its pixels do. Either is
done for some channels of a block of rows at a time.

At the borders taps lead to pixels of the next row or plane instead of to zeros; there the packed filters are
zero. Zero times NaN or infinity is not zero: if anything that should be finite is not, these functions return
None, and the call is done again in the general way.

A tap costs each channel two operations forward and five backward, which take less time than memory does. So
filters lie in strips, in the order in which they are used, for few streams to be read at a time; the pixels
of the next channels are fetched meanwhile; and outputs that no cache would keep are written past them.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel, strips
from ..engine.compile import FALSE, TRUE, ZERO, borrowing_cached_jit, borrowing_jit, kernel_input, zero_like
from ..engine.gemm import Matrix
from ..engine.memory import run_with_scratch
from ..engine.patches import runs_below
from ..engine.pixels import clear, copy, inside, staggered
from .items import (
    FilterArrays,
    FilterItem,
    FilterItems,
    FilterRows,
    FilterWindow,
    FilterWork,
    Shape,
    divide,
    find_item,
    find_rows,
    gradient_slots,
    in_rows,
    sum_slots,
    wanted_bands,
)
from .repeated import fold_rows, repeat_rows
from .spread import gather_outputs, spread_outputs

# A block of rows: its filters, and three times the pixels of some channels, of which those of the next ones
# are fetched meanwhile. Most of a common L2 cache.
_IN_PLACE_BLOCK_BYTES = 768 * 1024
_THERE, _BACK = FALSE, TRUE


class InPlacePlan(NamedTuple):
    """The taps, and how work is divided.

    Taps come in the order in which `general` adds them up: a tile, which may go that way, has the bits of the
    whole.
    """

    tap: np.ndarray  # the number of each
    shift: tuple[np.ndarray, np.ndarray]  # from output to input, in rows and columns
    offset: np.ndarray  # and in elements
    back: np.ndarray  # from input to output
    filter_at: np.ndarray  # of the packed planes of filters
    reach: int  # the largest offset either way
    span: int  # pixels of a channel that the taps of a block of rows may lead to
    items: FilterItems
    upsample: int  # how often a pixel counts, in rows and columns
    outputs: Shape  # rows and columns; if they are fewer than those of the items, see `spread`


class InPlaceScratch(NamedTuple):
    """A thread's memory for a block of rows."""

    strips: Any  # the filters, as `apply` takes them
    plane: Any  # those of one tap, on the way there
    filters: Any  # all of them, in planes
    grad_filters: Any
    edge: Any  # pixels of some channels amid zeros
    outputs: Any  # and outputs
    results: Any  # which do not lie as they do in the end
    totals: Any
    unwanted: Any  # gradients of the scales that nobody needs


class InPlaceChannels(NamedTuple):
    """Some channels in a block of rows."""

    number: int
    first: int  # of all images
    at: int  # where its pixels begin
    apart: int  # from channel to channel
    pixels: int


def in_place_applies(inputs: FilterArrays, window: FilterWindow) -> bool:
    """Whether outputs and pixels lie alike, and a packed zero makes a term zero."""
    (high, wide), (rows, width), u = inputs.x.shape[2:], inputs.weight.shape[4:], window.upsample
    inside = u == 1 and rows <= high and width <= wide and 2 * rows * width >= high * wide
    alike = (inside or (rows, width) == (u * high, u * wide)) and window.stride == (1, 1)
    # The phases of an upsampled image have scales of their own.
    scaled_alike = u == 1 or inputs.channel_weight is None
    return bool(inputs.x.size) and alike and scaled_alike and window.add is None


def in_place_forward(inputs: FilterArrays, window: FilterWindow) -> np.ndarray | None:
    """The output, or None."""
    x, weight, _ = inputs
    found = _in_place_plan(x.shape, weight.shape, x.itemsize, window, backward=False)
    if found is None:
        return None
    plan, scratch = found
    y = strips.empty_to_stream((*x.shape[:2], *weight.shape[4:]), x.dtype)
    sums = np.zeros(plan.items.total, x.dtype)
    operations = float(y.size) * (len(plan.offset) + parallel.PER_NUMBER)
    args = in_rows(_in_order(inputs, plan.tap)), y.reshape(-1), sums, plan
    run_with_scratch(in_place_forward_items, plan.items.total, operations, scratch, x.dtype, *args)
    return y if np.isfinite(sums).all() else None


def in_place_backward(
    grad_output: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], window: FilterWindow
) -> FilterArrays | None:
    """The gradients of x, weight and channel_weight, or None."""
    x, weight, scales = inputs
    found = _in_place_plan(x.shape, weight.shape, x.itemsize, window, backward=True)
    if found is None:
        return None
    plan, scratch = found
    inputs = _in_order(inputs, plan.tap)
    sums = np.zeros(plan.items.total, x.dtype)
    grad_x = strips.empty_to_stream(x.shape if needs[0] else (0,), x.dtype)
    grads = gradient_slots(grad_x, inputs, needs, plan.items)
    operations = 3.0 * grad_output.size * (len(plan.offset) + parallel.PER_NUMBER)
    if not (needs[0] or needs[2]):  # the filters do not enter their own gradient
        inputs = inputs._replace(weight=np.empty(0, x.dtype))
    work = FilterWork(kernel_input(grad_output).reshape(-1), in_rows(inputs), in_rows(grads))
    args = (work, sums, plan)
    run_with_scratch(in_place_backward_items, plan.items.total, operations, scratch, x.dtype, *args)
    summed = sum_slots(grads, needs) if np.isfinite(sums).all() else None
    if summed is None or not needs[2]:
        return summed
    return summed._replace(
        channel_weight=summed.channel_weight[..., np.argsort(plan.tap)].reshape(scales.shape)
    )


def _in_order(inputs: FilterArrays, taps: np.ndarray) -> FilterArrays:
    """Scales in the order of these taps."""
    scales = inputs.channel_weight
    if scales is None:
        return inputs
    return inputs._replace(channel_weight=scales.reshape(*scales.shape[:-2], -1)[..., taps])


@lru_cache(maxsize=256)
def _in_place_plan(
    x: Shape, weight: Shape, itemsize: int, window: FilterWindow, *, backward: bool
) -> tuple[InPlacePlan, InPlaceScratch] | None:
    """For arrays of these shapes.

    None where a block of rows would be shorter than the strips that it is worked on in.
    """
    (kh, kw), u = weight[2:4], window.upsample
    rows, width = u * x[2], u * x[3]
    smaller = weight[4:] != (rows, width)
    steps = [(tap % kw, tap // kw * window.dilation[0]) for tap in range(kh * kw)]
    order = np.array([tap for run in runs_below(steps) for tap in run])
    shift_y, shift_x = (
        u * (taps * window.dilation[axis] - window.padding[axis])
        for axis, taps in enumerate(np.divmod(order, kw))
    )
    at_once, wanted, high = min(strips.CHANNELS, x[1] // weight[1]), wanted_bands(weight), rows // u
    most = max(1, min(high, _IN_PLACE_BLOCK_BYTES // ((kh * kw + 3 * at_once) * u * width * itemsize)))
    blocks = -(-high // most)
    if blocks < wanted and 3 * (high // wanted) >= most:
        blocks = wanted  # then all channels share packed filters
    items = divide(x, weight, itemsize, (high, width), blocks, backward=backward)
    items = items._replace(rows=rows, block=u * items.block)
    pixels, strip = items.block * width, strips.STRIP_BYTES // itemsize
    if min(pixels, (rows - (blocks - 1) * items.block) * width) < strip:
        return None
    offset, plane = shift_y * width + shift_x, staggered(pixels, itemsize)
    reach = int(abs(offset).max())
    if u > 1 or smaller:  # rows are repeated, or spread, as a whole
        reach = -(-reach // (u * width)) * u * width
    span, planes = pixels + 2 * reach, kh * kw * plane if backward else 0
    filter_at = np.arange(kh * kw) * plane
    channels = min(strips.CHANNELS, items.channels)
    scratch = InPlaceScratch(
        strips=kh * kw * -(-pixels // strip) * strip,
        plane=plane,
        filters=planes,
        grad_filters=planes,
        edge=channels * span,
        outputs=channels * span if backward and smaller else 0,
        results=channels * pixels if (u > 1 if backward else smaller) else 0,
        totals=strip,
        unwanted=kh * kw,
    )
    places = order, (shift_y, shift_x), offset, -offset, filter_at
    return InPlacePlan(*places, reach, span, items, u, weight[4:]), scratch


@borrowing_jit
def _has_fewer(plan: InPlacePlan) -> bool:
    """Whether there are fewer outputs than pixels."""
    return plan.outputs[0] * plan.outputs[1] < plan.items.rows * plan.items.width


@borrowing_jit
def _keep(packed: np.ndarray, at: int, tap: int, rows: FilterRows, plan: InPlacePlan, back: bool) -> Any:
    """Zero a plane of filters where their tap reads no pixels; return the sum of what was there."""
    total, width, sign = zero_like(packed), plan.items.width, -1 if back else 1
    top, bottom = inside(rows.height, rows.first, plan.items.rows, sign * plan.shift[0][tap], 1)
    low, end = inside(width, 0, width, sign * plan.shift[1][tap], 1)
    for i in range(rows.height):
        row = at + i * width
        whole = i < top or i >= bottom
        for j in range(width if whole else low):
            total += packed[row + j]
            packed[row + j] = 0
        for j in range(width if whole else end, width):
            total += packed[row + j]
            packed[row + j] = 0
    return total


@borrowing_jit
def _pack_tap(
    packed: np.ndarray,
    at: int,
    weight: np.ndarray,
    begin: int,
    tap: int,
    rows: FilterRows,
    plan: InPlacePlan,
    back: bool,
) -> Any:
    """Filters of a tap where it reads pixels, zero elsewhere; or, on the way `back`, where those pixels are.

    Those of one sample and group begin at `begin`. Returns a sum that is finite if what is left out is.
    """
    count, image = rows.height * plan.items.width, plan.outputs[0] * plan.outputs[1]
    own = begin + plan.tap[tap] * image
    if _has_fewer(plan):
        wanted, shift = (rows.first, rows.first + rows.height), (plan.shift[0][tap], plan.shift[1][tap])
        shift = (-shift[0], -shift[1]) if back else (ZERO, ZERO)
        spread_outputs(packed, at, weight, own, plan.outputs, plan.items.width, wanted, shift)
        # On the way back all filters that there are belong to pixels.
        return zero_like(packed) if back else _keep(packed, at, tap, rows, plan, back)
    first = rows.first * plan.items.width + (plan.back[tap] if back else 0)
    low = min(count, max(0, -first))
    high = max(low, min(count, image - first))
    clear(packed, at, low)
    copy(packed, at + low, weight, own + first + low, high - low)
    clear(packed, at + high, count - high)
    return _keep(packed, at, tap, rows, plan, back)


@borrowing_jit
def _pack_strips(
    scratch: InPlaceScratch, weight: np.ndarray, begin: int, rows: FilterRows, plan: InPlacePlan, back: bool
) -> Any:
    """All taps, as `apply` takes them; each passes through a plane, which stays in the first cache."""
    plane, total, taps = scratch.plane, zero_like(scratch.plane), len(plan.offset)
    for tap in range(taps):
        total += _pack_tap(plane, ZERO, weight, begin, tap, rows, plan, back)
        strips.deal(scratch.strips, tap, taps, plane, ZERO, rows.height * plan.items.width)
    return total


@borrowing_jit
def _unpack_planes(
    packed: np.ndarray, grad_weight: np.ndarray, begin: int, rows: FilterRows, plan: InPlacePlan
) -> Any:
    """The gradients of the filters, zero where their taps read no pixels.

    Returns a sum as `_pack_tap` does.
    """
    width, total = plan.items.width, zero_like(packed)
    for tap in range(len(plan.offset)):
        total += _keep(packed, plan.filter_at[tap], tap, rows, plan, _THERE)
        to = begin + plan.tap[tap] * plan.outputs[0] * plan.outputs[1]
        if _has_fewer(plan):
            gather_outputs(grad_weight, to, packed, plan.filter_at[tap], plan.outputs, width, rows)
        else:
            copy(grad_weight, to + rows.first * width, packed, plan.filter_at[tap], rows.height * width)
    return total


@borrowing_jit
def _readable(source: Matrix, channels: int, edge: np.ndarray, plan: InPlacePlan) -> Matrix:
    """A block of some channels, wherever taps lead: where it is, or a copy amid zeros.

    Only from the first and last planes of an array do taps lead out of it; filters are zero there. Returns an
    array that the caller has, who must not count references either.
    """
    reach, span, size = plan.reach, plan.span, source.values.size
    if source.at >= reach and source.at + (channels - 1) * source.stride + span - reach <= size:
        return source
    clear(edge, 0, channels * span)
    for c in range(channels):
        begin = source.at + c * source.stride - reach
        low, high = max(0, -begin), min(span, size - begin)
        copy(edge, c * span + low, source.values, begin + low, high - low)
    return Matrix(edge, reach, span)


@borrowing_jit
def _sum(array: np.ndarray) -> Any:
    total = zero_like(array)
    for k in range(len(array)):
        total += array[k]
    return total


@borrowing_jit
def _find_channels(c: int, item: FilterItem, rows: FilterRows, plan: InPlacePlan) -> InPlaceChannels:
    """Up to CHANNELS channels of an item, from number `c` on."""
    items, number = plan.items, min(strips.CHANNELS, item.channel_end - c)
    first, image = item.sample * items.groups * items.per_group + c, items.rows * items.width
    at, pixels = first * image + rows.first * items.width, rows.height * items.width
    return InPlaceChannels(number, first, at, image, pixels)


@borrowing_jit
def _pixels(
    x: np.ndarray, channels: InPlaceChannels, rows: FilterRows, edge: np.ndarray, plan: InPlacePlan
) -> Matrix:
    """A block of some channels of the image, each pixel as often as it counts, wherever taps lead.

    Returns an array that the caller has.
    """
    u = plan.upsample
    if u == 1:
        return _readable(Matrix(x, channels.at, channels.apart), channels.number, edge, plan)
    size = plan.items.rows // u, plan.items.width // u
    around, first = plan.reach // (u * plan.items.width), rows.first // u
    wanted = first - around, first + rows.height // u + around
    for c in range(channels.number):
        image = (channels.first + c) * size[0] * size[1]
        repeat_rows(edge, c * plan.span, x, image, size, wanted, u)
    return Matrix(edge, plan.reach, plan.span)


@borrowing_jit
def _outputs_in_place(
    grad_output: np.ndarray,
    channels: InPlaceChannels,
    rows: FilterRows,
    scratch: InPlaceScratch,
    plan: InPlacePlan,
) -> Matrix:
    """The gradients of outputs in a block of some channels, where their pixels are.

    Returns an array that the caller has.
    """
    if not _has_fewer(plan):
        return Matrix(grad_output, channels.at, channels.apart)
    around = plan.reach // plan.items.width
    wanted, none = (rows.first - around, rows.first + rows.height + around), (ZERO, ZERO)
    for c in range(channels.number):
        at = (channels.first + c) * plan.outputs[0] * plan.outputs[1]
        size, width = plan.outputs, plan.items.width
        spread_outputs(scratch.outputs, c * plan.span, grad_output, at, size, width, wanted, none)
    return Matrix(scratch.outputs, plan.reach, plan.span)


@borrowing_jit
def _filter_channels(
    target: Matrix,
    pixels: Matrix,
    offset: np.ndarray,
    scale: strips.Scale,
    scratch: InPlaceScratch,
    channels: InPlaceChannels,
) -> None:
    """The packed filters of taps at these offsets, applied to some channels."""
    stream = target.values.size * target.values.itemsize >= strips.STREAM_BYTES
    results = strips.StripTarget(target, scratch.totals, stream)
    filters = strips.Taps(scratch.strips, None, offset, 0, len(offset))
    strips.apply(results, channels.number, channels.pixels, filters, pixels, scale)


@borrowing_cached_jit
def in_place_forward_items(
    start: int,
    stop: int,
    scratch: InPlaceScratch,
    inputs: FilterArrays,
    y: np.ndarray,
    sums: np.ndarray,
    plan: InPlacePlan,
) -> None:
    """Items of the plan. What is not finite shows in `sums`, one for each."""
    items, taps, before, left_out = plan.items, len(plan.offset), -1, zero_like(y)
    outputs = plan.outputs[0] * plan.outputs[1]
    clear(scratch.totals, 0, len(scratch.totals))
    for number in range(start, stop):
        item = find_item(number, items)
        group = item.sample * items.groups + item.group
        for block in range(item.block, item.block_end):
            rows = find_rows(block, items)
            if group * items.blocks + block != before:
                left_out = _pack_strips(scratch, inputs.weight, group * taps * outputs, rows, plan, _THERE)
                before = group * items.blocks + block
            for c in range(item.channel, item.channel_end, strips.CHANNELS):
                channels = _find_channels(c, item, rows, plan)
                scale = strips.Scale(inputs.channel_weight, channels.first * taps, taps, None)
                pixels = _pixels(inputs.x, channels, rows, scratch.edge, plan)
                target = Matrix(y, channels.at, channels.apart)
                if _has_fewer(plan):
                    target = Matrix(scratch.results, 0, channels.pixels)
                _filter_channels(target, pixels, plan.offset, scale, scratch, channels)
                for k in range(channels.number if _has_fewer(plan) else 0):
                    to, at = (channels.first + k) * outputs, k * channels.pixels
                    gather_outputs(y, to, scratch.results, at, plan.outputs, items.width, rows)
            sums[number] += left_out + _sum(scratch.totals)


@borrowing_jit
def _fold_channels(
    grad_x: np.ndarray, repeated: np.ndarray, channels: InPlaceChannels, rows: FilterRows, plan: InPlacePlan
) -> None:
    """Gradients of some channels in a block of rows, from those of pixels as often as they count."""
    u, wide = plan.upsample, plan.items.width // plan.upsample
    size, image = (rows.height // u, wide), plan.items.rows // u * wide
    for c in range(channels.number):
        at = (channels.first + c) * image + rows.first // u * wide
        fold_rows(grad_x, at, repeated, c * channels.pixels, size, u)


@borrowing_jit
def _filter_rows_back(
    scratch: InPlaceScratch, work: FilterWork, item: FilterItem, rows: FilterRows, plan: InPlacePlan
) -> None:
    """The gradients of x and the scales of an item in a block of rows; those of filters in planes."""
    (grad_output, inputs, grads), items, taps = work, plan.items, len(plan.offset)
    by_plane = strips.Taps(scratch.filters, plan.filter_at, plan.offset, 0, taps)
    for c in range(item.channel, item.channel_end, strips.CHANNELS):
        channels = _find_channels(c, item, rows, plan)
        number, first, at, image, count = channels
        scale = strips.Scale(inputs.channel_weight, first * taps, taps, None)
        outputs = _outputs_in_place(grad_output, channels, rows, scratch, plan)
        if grads.x.size:
            readable = _readable(outputs, number, scratch.edge, plan)
            if plan.upsample == 1:
                _filter_channels(Matrix(grads.x, at, image), readable, plan.back, scale, scratch, channels)
            else:
                target = Matrix(scratch.results, 0, count)
                _filter_channels(target, readable, plan.back, scale, scratch, channels)
                _fold_channels(grads.x, scratch.results, channels, rows, plan)
        if grads.weight.size + grads.channel_weight.size:
            grad_scale = Matrix(scratch.unwanted, 0, 0)
            if grads.channel_weight.size:
                slot = item.band * items.samples * items.groups * items.per_group + first
                grad_scale = Matrix(grads.channel_weight, slot * taps, taps)
            pixels = _pixels(inputs.x, channels, rows, scratch.edge, plan)
            sums = strips.Correlation(scratch.grad_filters, grad_scale, by_plane, outputs, pixels, scale)
            strips.correlate(sums, number, count)


@borrowing_cached_jit
def in_place_backward_items(
    start: int, stop: int, scratch: InPlaceScratch, work: FilterWork, sums: np.ndarray, plan: InPlacePlan
) -> None:
    """Items of the plan. What is not finite shows in `sums`, one for each."""
    inputs, grads, items = work.inputs, work.grads, plan.items
    filters = len(plan.offset) * plan.outputs[0] * plan.outputs[1]
    clear(scratch.totals, 0, len(scratch.totals))
    for number in range(start, stop):
        item = find_item(number, items)
        group = item.sample * items.groups + item.group
        for block in range(item.block, item.block_end):
            rows = find_rows(block, items)
            begin, left_out = group * filters, zero_like(sums)
            if inputs.weight.size:
                for tap in range(len(plan.offset)):
                    at = plan.filter_at[tap]
                    left_out += _pack_tap(scratch.filters, at, inputs.weight, begin, tap, rows, plan, _THERE)
                _pack_strips(scratch, inputs.weight, begin, rows, plan, _BACK)
            clear(scratch.grad_filters, 0, len(scratch.grad_filters))
            _filter_rows_back(scratch, work, item, rows, plan)
            if grads.weight.size:
                begin = (item.chunk * items.samples * items.groups + group) * filters
                left_out += _unpack_planes(scratch.grad_filters, grads.weight, begin, rows, plan)
            sums[number] += left_out + _sum(scratch.totals)
