"""`local_filter2d` with a single tap on its own pixel: products, for which nothing is packed or kept.

No tap leads outside of the image, so that there is nothing to mind where values are not finite. With a stride
the pixels that count are put side by side, or come from there, a run of them at a time.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel, strips
from ..engine.compile import borrowing_cached_jit, borrowing_jit, kernel_input
from ..engine.gemm import Matrix
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear
from ..engine.vectors import (
    LINE_BYTES,
    REGISTER_BYTES,
    GuardedLoop,
    Writer,
    load_part,
    store_part,
    written,
)
from .items import FilterArrays, FilterWindow, FilterWork, Shape, find_share, in_rows, wanted_bands

_RUN_PIXELS = 32768  # pixels, of which the filters stay near for all channels
_STRIDED_PIXELS = 4096  # the same where those of the image between them are to stay near too
_LEAST_PIXELS = 1024  # of a band: shorter runs are not fetched ahead


class SingleItems(NamedTuple):
    """Work items (sample, group, band of pixels, chunk of channels)."""

    bands: int
    chunks: int
    per_group: int  # channels
    pixels: int  # of outputs
    run: int  # pixels at a time
    outputs: Shape
    image: Shape
    stride: tuple[int, int]
    strided: bool
    add: bool | None  # whether filters of channels are added


class SingleScratch(NamedTuple):
    """A thread's memory for the pixels of a run that count, and their gradients, with a stride."""

    pixels: Any
    grads: Any


class _Run(NamedTuple):
    """Outputs of a channel that lie side by side."""

    channel: int  # of all samples
    first: int  # of the channel's
    pixels: int  # where they begin
    filters: int  # and their filters
    number: int


class _Rows(NamedTuple):
    """Gradients of outputs, their pixels, and where the gradients of these go."""

    outputs: Matrix
    pixels: Matrix
    target: Matrix


class _Wanted(NamedTuple):
    """Which gradients are, and what is to be known of them."""

    pixels: bool
    stream: bool  # theirs, past the caches
    filters: bool
    first: bool  # those of filters begin with this channel
    scale: bool
    slot: int  # of that
    apart: int  # from channel to channel, if there is another, which is fetched meanwhile


def single_applies(inputs: FilterArrays, window: FilterWindow) -> bool:
    """Whether each output is made from the pixel at its place alone."""
    x, weight, _ = inputs
    on_its_own = weight.shape[2:4] == (1, 1) and window.padding == (0, 0)
    return bool(x.size) and on_its_own and window.upsample == 1


def single_forward(inputs: FilterArrays, window: FilterWindow) -> np.ndarray:
    """The output."""
    x, weight, _ = inputs
    if _is_small_product(inputs):
        return _multiply(x, weight)
    y = strips.empty_to_stream((*x.shape[:2], *weight.shape[4:]), x.dtype)
    items, scratch, total = _single_items(inputs, window, in_chunks=True)
    args = in_rows(inputs), y.reshape(-1), items
    operations = parallel.PER_NUMBER * (y.size + weight.size)
    run_with_scratch(single_forward_items, total, operations, scratch, x.dtype, *args)
    return y


def single_backward(
    grad_output: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], window: FilterWindow
) -> FilterArrays:
    """The gradients of x, weight and channel_weight, or None where they are not needed."""
    x, weight, channel_weight = inputs
    if _is_small_product(inputs):
        grad_x = _multiply(grad_output, weight) if needs[0] else None
        grad_weight = _multiply(grad_output, x).reshape(weight.shape) if needs[1] else None
        return FilterArrays(grad_x, grad_weight, None)
    items, scratch, total = _single_items(inputs, window, in_chunks=False)
    grad_x = strips.empty_to_stream(x.shape if needs[0] else (0,), x.dtype)
    grad_weight = strips.empty_to_stream(weight.shape if needs[1] else (0,), x.dtype)
    # A sum for each band, in double precision: it runs over many pixels.
    sums = np.zeros((items.bands, *channel_weight.shape) if needs[2] else (1, 0))
    grads = FilterArrays(grad_x, grad_weight, sums)
    work = FilterWork(kernel_input(grad_output).reshape(-1), in_rows(inputs), in_rows(grads))
    operations = parallel.PER_NUMBER * (2.0 * grad_output.size + weight.size)
    run_with_scratch(single_backward_items, total, operations, scratch, x.dtype, work, items)
    of_scales = sums.sum(axis=0).astype(x.dtype) if needs[2] else None
    return FilterArrays(grad_x if needs[0] else None, grad_weight if needs[1] else None, of_scales)


def _is_small_product(inputs: FilterArrays) -> bool:
    """Whether these are two arrays alike, so small that a kernel takes longer to call."""
    x, weight, channel_weight = inputs
    return channel_weight is None and x.size == weight.size < parallel.SMALL


def _multiply(array: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Their products, in the shape of the first."""
    with np.errstate(all="ignore"):
        return np.multiply(array, factors.reshape(array.shape), order="C")


def _single_items(
    inputs: FilterArrays, window: FilterWindow, *, in_chunks: bool
) -> tuple[SingleItems, SingleScratch, int]:
    """How work is divided, and the number of items; without chunks, an item has all channels of a group."""
    (_, channels, *image), (samples, groups, _, _, high, wide) = inputs.x.shape, inputs.weight.shape
    per_group, pixels, wanted = channels // groups, high * wide, wanted_bands(inputs.weight.shape)
    bands = min(wanted, -(-pixels // (_RUN_PIXELS if in_chunks else _LEAST_PIXELS)))
    chunks = min(per_group, -(-wanted // bands)) if in_chunks else 1
    strided = window.stride != (1, 1)
    run = _STRIDED_PIXELS if strided else _RUN_PIXELS
    items = SingleItems(
        bands, chunks, per_group, pixels, run, (high, wide), tuple(image), window.stride, strided, window.add
    )
    scratch = min(run, pixels) if strided else 0
    return items, SingleScratch(scratch, scratch), samples * groups * bands * chunks


@borrowing_jit
def _single_run(group: int, c: int, j: int, end: int, items: SingleItems) -> _Run:
    """Outputs of channel c from number j on."""
    number = min(items.run, end - j)
    return _Run(c, j, c * items.pixels + j, group * items.pixels + j, number)


@borrowing_jit
def _pixel_of(output: int, items: SingleItems) -> int:
    """The pixel of an output; behind the last one that behind the last of the image."""
    if output == items.pixels:
        return items.image[0] * items.image[1]
    row, column = output // items.outputs[1], output % items.outputs[1]
    return row * items.stride[0] * items.image[1] + column * items.stride[1]


@borrowing_jit
def _own_pixels(x: np.ndarray, scratch: np.ndarray, run: _Run, items: SingleItems) -> Matrix:
    """The pixels of a run, side by side. Returns an array that the caller has."""
    if not items.strided:
        return Matrix(x, run.pixels, 0)
    image, wide, step = run.channel * items.image[0] * items.image[1], items.outputs[1], items.stride[1]
    done = 0
    while done < run.number:
        at = image + _pixel_of(run.first + done, items)
        count = min(wide - (run.first + done) % wide, run.number - done)
        if step == 2:  # a constant that the compiler can vectorise for
            for j in range(uint64(count)):
                scratch[uint64(done) + j] = x[uint64(at) + uint64(2) * j]
        else:
            for j in range(uint64(count)):
                scratch[uint64(done) + j] = x[uint64(at) + uint64(step) * j]
        done += count
    return Matrix(scratch, 0, 0)


@borrowing_jit
def _spread_run(target: np.ndarray, values: np.ndarray, run: _Run, items: SingleItems) -> None:
    """Those of a run to their pixels, and zeros to the pixels between them and the next run."""
    image, wide, step = run.channel * items.image[0] * items.image[1], items.outputs[1], items.stride[1]
    begin = _pixel_of(run.first, items)
    clear(target, image + begin, _pixel_of(run.first + run.number, items) - begin)
    done = 0
    while done < run.number:
        at = image + _pixel_of(run.first + done, items)
        count = min(wide - (run.first + done) % wide, run.number - done)
        for j in range(uint64(count)):
            target[uint64(at) + uint64(step) * j] = values[uint64(done) + j]
        done += count


@borrowing_cached_jit
def single_forward_items(
    start: int,
    stop: int,
    scratch: SingleScratch,
    inputs: FilterArrays,
    y: np.ndarray,
    items: SingleItems,
) -> None:
    """Items of filters times pixels."""
    x, weight, scales = inputs
    for number in range(start, stop):
        group, channel, channel_end, first, end = find_share(
            number, items.chunks, items.bands, items.per_group, items.pixels
        )
        for j in range(first, end, items.run):
            for c in range(channel, channel_end):
                run = _single_run(group, c, j, end, items)
                pixels = _own_pixels(x, scratch.pixels, run, items)
                _filter_run(Matrix(y, run.pixels, 0), pixels, weight, scales, run, items.add)


@borrowing_cached_jit
def single_backward_items(
    start: int, stop: int, scratch: SingleScratch, work: FilterWork, items: SingleItems
) -> None:
    """Items of gradients."""
    grad_output, inputs, grads = work
    for number in range(start, stop):
        group, channel, channel_end, first, end = find_share(
            number, items.chunks, items.bands, items.per_group, items.pixels
        )
        slot = number % items.bands * (len(grad_output) // items.pixels)
        for j in range(first, end, items.run):
            for c in range(channel, channel_end):
                run = _single_run(group, c, j, end, items)
                wanted = _Wanted(
                    grads.x.size > 0,
                    grads.x.size * grads.x.itemsize >= strips.STREAM_BYTES and not items.strided,
                    grads.weight.size > 0,
                    c == channel,
                    grads.channel_weight.size > 0,
                    slot + c,
                    items.pixels if c + 1 < channel_end and not items.strided else 0,
                )
                outputs = pixels = Matrix(grad_output, run.pixels, 0)
                if wanted.filters or wanted.scale:  # else these enter nothing
                    pixels = _own_pixels(inputs.x, scratch.pixels, run, items)
                target = Matrix(scratch.grads, 0, 0) if items.strided else Matrix(grads.x, run.pixels, 0)
                rows = _Rows(outputs, pixels, target)
                _pass_back(grads, wanted, rows, inputs, run, items.add)
                if wanted.pixels and items.strided:
                    _spread_run(grads.x, scratch.grads, run, items)


@borrowing_jit
def _filter_run(target: Matrix, source: Matrix, weight: np.ndarray, scales: Any, run: _Run, add: Any) -> None:
    """Pixels times filters."""
    to, at, own = uint64(target.at), uint64(source.at), uint64(run.filters)
    if scales is None:
        for j in range(uint64(run.number)):
            target.values[to + j] = source.values[at + j] * weight[own + j]
    else:
        scale = scales[run.channel]
        for j in range(uint64(run.number)):
            both = weight[own + j] * scale if add is None else weight[own + j] + scale
            target.values[to + j] = source.values[at + j] * both


@written(REGISTER_BYTES)
def _pass_back(writer: Writer, grads: Any, wanted: Any, rows: Any, inputs: Any, run: Any, add: Any) -> None:
    """All gradients of a run."""
    builder, index, lanes = writer.builder, run.number.type, writer.lanes
    (outputs, pixels, target), scales = rows, inputs.channel_weight
    scale = None if scales is None else writer.broadcast(writer.element(scales, run.channel))

    def step(j: Any, mask: Any, total: Any) -> Any:
        own, parts = builder.add(run.filters, j), []
        for each in (outputs, pixels):
            at = builder.add(each.at, j)
            writer.prefetch(each.values, builder.add(at, wanted.apart))
            parts.append(load_part(writer, each.values, at, mask))
        filters, product = load_part(writer, inputs.weight, own, mask), writer.multiply(*parts)
        with builder.if_then(wanted.pixels):
            made = writer.multiply(parts[0], combined(writer, filters, scale, add))
            _put(writer, made, target.values, builder.add(target.at, j), mask, wanted.stream)
        with builder.if_then(wanted.filters):
            share = product if add is not None else combined(writer, product, scale, add)
            before = load_part(writer, grads.weight, own, mask)
            before = builder.select(wanted.first, writer.zero, before)
            store_part(writer, writer.add(before, share), grads.weight, own, mask)
        if scale is None:
            return total
        return writer.add(total, product if add is not None else writer.multiply(product, filters))

    # What is streamed begins on a line.
    place = builder.ptrtoint(builder.gep(target.values, [target.at]), index)
    before = builder.udiv(builder.and_(builder.neg(place), index(LINE_BYTES - 1)), index(writer.itemsize))
    before = builder.select(wanted.stream, builder.and_(before, index(lanes - 1)), index(0))
    before = builder.select(builder.icmp_signed("<", before, run.number), before, run.number)
    turns = builder.udiv(builder.sub(run.number, before), index(lanes))
    done = builder.add(before, builder.mul(turns, index(lanes)))
    total = writer.zero
    # A mask that leaves nothing would still hold up what is read next from there.
    for j, end, number in (
        (index(0), before, builder.zext(builder.icmp_signed(">", before, index(0)), index)),
        (before, None, turns),
        (done, run.number, builder.zext(builder.icmp_signed("<", done, run.number), index)),
    ):
        with GuardedLoop(builder, number, [total]) as loop:
            at = builder.add(j, builder.mul(loop.k, index(lanes)))
            mask = None if end is None else writer.within(at, end)
            loop.values = [step(at, mask, *loop.values)]
        (total,) = loop.values
    if scale is not None:
        with builder.if_then(wanted.scale):
            place, total = builder.gep(grads.channel_weight, [wanted.slot]), writer.total(total)
            if total.type != place.type.pointee:
                total = builder.fpext(total, place.type.pointee)
            builder.store(builder.fadd(builder.load(place), total), place)


def _put(writer: Writer, value: Any, pointer: Any, at: Any, mask: Any, streamed: Any) -> None:
    """A vector, or what a mask leaves of it; past the caches if it is to be."""
    if mask is not None:
        writer.store_masked(value, pointer, at, mask)
        return
    streamed = writer.builder.and_(streamed, writer.on_lines(pointer, [at]))
    with writer.builder.if_else(streamed) as branches:
        for branch, store in zip(branches, (writer.stream, writer.store), strict=True):
            with branch:
                store(value, pointer, at)


def combined(writer: Writer, filters: Any, scale: Any, add: Any) -> Any:
    """Filters with what scales them, if anything does."""
    if scale is None:
        return filters
    return writer.multiply(filters, scale) if add is None else writer.add(filters, scale)
