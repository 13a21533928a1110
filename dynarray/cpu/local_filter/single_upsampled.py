"""`local_filter2d` with a single tap on its own pixel, which counts several times.

Products, as in `single_tap`.
A row of pixels is repeated until it lies as its outputs do, and so are the scales of the phases of a channel.
Then all that is left to do is to pass along them.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel, strips
from ..engine.compile import borrowing_cached_jit, borrowing_jit, kernel_input, zero_like
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear, copy, copy_apart
from ..engine.vectors import REGISTER_BYTES, Writer, each_vector, load_part, store_part, written
from .items import FilterArrays, FilterWindow, FilterWork, find_share, in_rows, wanted_bands
from .repeated import fold_rows, repeat_rows
from .single_tap import combined

_BLOCK_ELEMENTS = 16384  # of filters, which stay near for all channels
_LEAST_ROWS_OF_BAND = 8  # backward: scales are spread, and their gradients added up, for each
_SCALES_ONE_BY_ONE = 8  # of a phase; the others are copies


class UpsampledItems(NamedTuple):
    """Work items (sample, group, band of rows of pixels, chunk of channels)."""

    bands: int
    chunks: int
    groups: int
    per_group: int  # channels
    rows: int  # of pixels
    wide: int
    block: int  # rows at a time
    times: int  # that a pixel counts, in rows and columns
    add: bool | None  # whether filters of channels are added


class UpsampledScratch(NamedTuple):
    """A thread's memory: elements for the outputs of a row of pixels."""

    pixels: Any
    scales: Any  # of a channel
    totals: Any  # of their gradients
    sums: Any  # of gradients of pixels


def upsampled_applies(inputs: FilterArrays, window: FilterWindow) -> bool:
    """Whether outputs are made from the pixel at their place alone, several from each."""
    x, weight, _ = inputs
    on_its_own = weight.shape[2:4] == (1, 1) and window.padding == (0, 0) and window.stride == (1, 1)
    return bool(x.size) and on_its_own and window.upsample > 1


def upsampled_forward(inputs: FilterArrays, window: FilterWindow) -> np.ndarray:
    """The output."""
    x, weight, _ = inputs
    y = strips.empty_to_stream((*x.shape[:2], *weight.shape[4:]), x.dtype)
    items, scratch, total = _upsampled_items(inputs, window, in_chunks=True)
    operations = parallel.PER_NUMBER * (y.size + weight.size)
    args = in_rows(inputs), y.reshape(-1), items
    run_with_scratch(upsampled_forward_items, total, operations, scratch, x.dtype, *args)
    return y


def upsampled_backward(
    grad_output: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], window: FilterWindow
) -> FilterArrays:
    """The gradients of x, weight and channel_weight, or None where they are not needed."""
    x, weight, channel_weight = inputs
    items, scratch, total = _upsampled_items(inputs, window, in_chunks=False)
    grad_x = strips.empty_to_stream(x.shape if needs[0] else (0,), x.dtype)
    grad_weight = strips.empty_to_stream(weight.shape if needs[1] else (0,), x.dtype)
    # A sum for each band, in double precision: it runs over many pixels.
    sums = np.zeros((items.bands, *channel_weight.shape) if needs[2] else (1, 0))
    work = FilterWork(
        kernel_input(grad_output).reshape(-1),
        in_rows(inputs),
        in_rows(FilterArrays(grad_x, grad_weight, sums)),
    )
    operations = parallel.PER_NUMBER * (2.0 * grad_output.size + weight.size)
    run_with_scratch(upsampled_backward_items, total, operations, scratch, x.dtype, work, items)
    of_scales = sums.sum(axis=0).astype(x.dtype) if needs[2] else None
    return FilterArrays(grad_x if needs[0] else None, grad_weight if needs[1] else None, of_scales)


def _upsampled_items(
    inputs: FilterArrays, window: FilterWindow, *, in_chunks: bool
) -> tuple[UpsampledItems, UpsampledScratch, int]:
    """How work is divided, and the number of items; without chunks, an item has all channels of a group."""
    (samples, channels, rows, wide), groups, u = inputs.x.shape, inputs.weight.shape[1], window.upsample
    wanted, per_group = wanted_bands(inputs.weight.shape), channels // groups
    block = min(rows, max(1, _BLOCK_ELEMENTS // (u * u * wide)))
    bands = min(wanted, -(-rows // (block if in_chunks else min(block, _LEAST_ROWS_OF_BAND))))
    chunks = min(per_group, -(-wanted // bands)) if in_chunks else 1
    items = UpsampledItems(bands, chunks, groups, per_group, rows, wide, block, u, window.add)
    row = u * u * wide
    scaled = row if inputs.channel_weight is not None else 0
    scratch = UpsampledScratch(row, scaled, 0 if in_chunks else scaled, 0 if in_chunks else row)
    return items, scratch, samples * groups * bands * chunks


class _RowOutputs(NamedTuple):
    """Those of a row of pixels, side by side: where they begin, and where their filters do."""

    at: int
    filters: int
    number: int
    channel: int  # elements from one to the next, whose outputs are fetched meanwhile


class _UpsampledWanted(NamedTuple):
    """Which gradients are, of x, filters and scales; and whether a channel is the first of its group."""

    x: bool
    weight: bool
    scales: bool
    first: bool


@borrowing_jit
def _place_of_scale(channel: int, row: int, column: int, items: UpsampledItems) -> int:
    """Where the scale of a channel, of all samples, is for a phase."""
    channels, u = items.groups * items.per_group, items.times
    return ((channel // channels * u + row) * u + column) * channels + channel % channels


@borrowing_jit
def _spread_scales(target: np.ndarray, scales: Any, channel: int, items: UpsampledItems) -> None:
    """Those of a channel along the outputs of a row of pixels."""
    u, width = items.times, items.times * items.wide
    if scales is not None:
        for i in range(u):
            at, done = i * width, min(width, _SCALES_ONE_BY_ONE * u)
            for k in range(u):
                own = scales[_place_of_scale(channel, i, k, items)]
                for j in range(at + k, at + done, u):
                    target[j] = own
            while done < width:
                count = min(done, width - done)
                copy(target, at + done, target, at, count)
                done += count


@borrowing_jit
def _outputs_of_row(channel: int, group: int, row: int, items: UpsampledItems) -> _RowOutputs:
    """Those of a row of pixels."""
    number = items.times * items.times * items.wide
    at, filters = (channel * items.rows + row) * number, (group * items.rows + row) * number
    return _RowOutputs(at, filters, number, items.rows * number)


@borrowing_jit
def _repeat_row(target: np.ndarray, x: np.ndarray, channel: int, row: int, items: UpsampledItems) -> None:
    """A row of pixels, as often as it counts."""
    size, times = (items.rows, items.wide), items.times
    repeat_rows(target, 0, x, channel * items.rows * items.wide, size, (row, row + 1), times)


@borrowing_cached_jit
def upsampled_forward_items(
    start: int,
    stop: int,
    scratch: UpsampledScratch,
    inputs: FilterArrays,
    y: np.ndarray,
    items: UpsampledItems,
) -> None:
    """Items of filters times pixels."""
    x, weight, scales = inputs
    for number in range(start, stop):
        group, channel, channel_end, first, end = find_share(
            number, items.chunks, items.bands, items.per_group, items.rows
        )
        for begin in range(first, end, items.block):
            for c in range(channel, channel_end):
                _spread_scales(scratch.scales, scales, c, items)
                for row in range(begin, min(end, begin + items.block)):
                    _repeat_row(scratch.pixels, x, c, row, items)
                    outputs = _outputs_of_row(c, group, row, items)
                    _filter_outputs(y, scratch, weight, scales, outputs, items.add)


@borrowing_cached_jit
def upsampled_backward_items(
    start: int, stop: int, scratch: UpsampledScratch, work: FilterWork, items: UpsampledItems
) -> None:
    """Items of gradients."""
    _, (x, _, scales), grads = work
    for number in range(start, stop):
        group, channel, channel_end, first, end = find_share(
            number, items.chunks, items.bands, items.per_group, items.rows
        )
        for begin in range(first, end, items.block):
            for c in range(channel, channel_end):
                _spread_scales(scratch.scales, scales, c, items)
                clear(scratch.totals, 0, len(scratch.totals))
                wanted = _UpsampledWanted(
                    grads.x.size > 0, grads.weight.size > 0, grads.channel_weight.size > 0, c == channel
                )
                for row in range(begin, min(end, begin + items.block)):
                    _repeat_row(scratch.pixels, x, c, row, items)
                    outputs = _outputs_of_row(c, group, row, items)
                    _add_gradients(work, scratch, outputs, wanted, items.add)
                    if grads.x.size:
                        place = (c * items.rows + row) * items.wide
                        fold_rows(grads.x, place, scratch.sums, 0, (1, items.wide), items.times)
                if grads.channel_weight.size:
                    _add_totals(grads.channel_weight, scratch, number % items.bands, c, items)


@written(REGISTER_BYTES)
def _filter_outputs(
    writer: Writer, y: Any, scratch: Any, weight: Any, given: Any, outputs: Any, add: Any
) -> None:
    """Outputs from the pixels in scratch memory."""
    builder = writer.builder

    def work(j: Any, mask: Any) -> None:
        both = load_part(writer, weight, builder.add(outputs.filters, j), mask)
        if given is not None:
            both = combined(writer, both, load_part(writer, scratch.scales, j, mask), add)
        made = writer.multiply(load_part(writer, scratch.pixels, j, mask), both)
        store_part(writer, made, y, builder.add(outputs.at, j), mask)

    each_vector(writer, outputs.number, work)


@written(REGISTER_BYTES)
def _add_gradients(writer: Writer, work: Any, scratch: Any, outputs: Any, wanted: Any, add: Any) -> None:
    """The gradients of repeated pixels to `sums`, and what is added to those of filters and scales.

    `wanted` tells which; filters get theirs from zero on for the `first` channel.
    """
    builder, (grad_output, (_, weight, given), grads) = writer.builder, work

    def step(j: Any, mask: Any) -> None:
        at = builder.add(outputs.at, j)
        writer.prefetch(grad_output, builder.add(at, outputs.channel))
        grad = load_part(writer, grad_output, at, mask)
        place = builder.add(outputs.filters, j)
        filters = load_part(writer, weight, place, mask)
        scales = None if given is None else load_part(writer, scratch.scales, j, mask)
        product = writer.multiply(grad, load_part(writer, scratch.pixels, j, mask))
        with builder.if_then(wanted.x):
            both = combined(writer, filters, scales, add)
            store_part(writer, writer.multiply(grad, both), scratch.sums, j, mask)
        with builder.if_then(wanted.weight):
            share = product if scales is None or add is not None else writer.multiply(product, scales)
            before = load_part(writer, grads.weight, place, mask)
            before = builder.select(wanted.first, writer.zero, before)
            store_part(writer, writer.add(before, share), grads.weight, place, mask)
        if scales is not None:
            with builder.if_then(wanted.scales):
                share = product if add is not None else writer.multiply(product, filters)
                total = writer.add(load_part(writer, scratch.totals, j, mask), share)
                store_part(writer, total, scratch.totals, j, mask)

    each_vector(writer, outputs.number, step)


@borrowing_jit
def _add_totals(
    grad_scales: np.ndarray, scratch: UpsampledScratch, band: int, channel: int, items: UpsampledItems
) -> None:
    """Those of the columns of each phase, to the gradients of the scales of a channel."""
    u, slot = items.times, band * (len(grad_scales) // items.bands)
    for i in range(u):
        for k in range(u):
            copy_apart(scratch.pixels, 0, scratch.totals, i * u * items.wide + k, items.wide, u)
            total = zero_like(scratch.pixels)
            for j in range(uint64(items.wide)):
                total += scratch.pixels[j]
            grad_scales[slot + _place_of_scale(channel, i, k, items)] += total
