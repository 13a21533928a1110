"""`local_filter2d` with a single tap on its own pixel: products, for which nothing is packed or kept.

No tap leads outside of the image, so that there is nothing to mind where values are not finite. With a stride
the pixels that count are put side by side, or come from there, a run of them at a time.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel, strips
from ..engine.compile import borrowing_cached_jit, borrowing_jit, kernel_input, zero_like
from ..engine.gemm import Matrix
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear
from .items import FilterArrays, FilterWindow, FilterWork, Shape, in_rows, wanted_bands

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
def _single_item(number: int, items: SingleItems) -> tuple[int, int, int, int, int]:
    """Of an item the group, of all samples, the range of channels, of all samples, and that of outputs."""
    rest, chunk = number // items.chunks, number % items.chunks
    group, band = rest // items.bands, rest % items.bands
    begin = group * items.per_group
    channel = begin + items.per_group * chunk // items.chunks
    channel_end = begin + items.per_group * (chunk + 1) // items.chunks
    first, end = items.pixels * band // items.bands, items.pixels * (band + 1) // items.bands
    return group, channel, channel_end, first, end


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
        group, channel, channel_end, first, end = _single_item(number, items)
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
    grad_output, (x, weight, scales), grads = work
    for number in range(start, stop):
        group, channel, channel_end, first, end = _single_item(number, items)
        slot = number % items.bands * (len(grad_output) // items.pixels)
        for j in range(first, end, items.run):
            for c in range(channel, channel_end):
                run = _single_run(group, c, j, end, items)
                outputs = Matrix(grad_output, run.pixels, 0)
                if grads.x.size and items.strided:
                    _filter_run(Matrix(scratch.grads, 0, 0), outputs, weight, scales, run, items.add)
                    _spread_run(grads.x, scratch.grads, run, items)
                elif grads.x.size:
                    _filter_run(Matrix(grads.x, run.pixels, 0), outputs, weight, scales, run, items.add)
                if grads.weight.size + grads.channel_weight.size:
                    pixels = _own_pixels(x, scratch.pixels, run, items)
                    if grads.weight.size:
                        if c == channel:
                            clear(grads.weight, run.filters, run.number)
                        _add_share(grads.weight, outputs, pixels, scales, run, items.add)
                    if grads.channel_weight.size:
                        total = _sum_share(outputs, pixels, weight, run, items.add)
                        grads.channel_weight[slot + c] += total


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


@borrowing_jit
def _add_share(target: np.ndarray, outputs: Matrix, pixels: Matrix, scales: Any, run: _Run, add: Any) -> None:
    """The share of a channel in the gradients of filters."""
    at, other, own = uint64(outputs.at), uint64(pixels.at), uint64(run.filters)
    if scales is None or add is not None:
        for j in range(uint64(run.number)):
            target[own + j] += outputs.values[at + j] * pixels.values[other + j]
    else:
        scale = scales[run.channel]
        for j in range(uint64(run.number)):
            target[own + j] += outputs.values[at + j] * pixels.values[other + j] * scale


@borrowing_jit
def _sum_share(outputs: Matrix, pixels: Matrix, weight: np.ndarray, run: _Run, add: Any) -> Any:
    """The share of a run in the gradient of its channel's filter."""
    at, other, own, total = uint64(outputs.at), uint64(pixels.at), uint64(run.filters), zero_like(weight)
    for j in range(uint64(run.number)):
        product = outputs.values[at + j] * pixels.values[other + j]
        total += product * weight[own + j] if add is None else product
    return total
