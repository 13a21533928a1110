"""`local_filter2d` with a single tap on its own pixel: products, for which nothing is packed or kept.

No tap leads outside of the image, so that there is nothing to mind where values are not finite.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel, strips
from ..engine.compile import borrowing_cached_jit, borrowing_jit, kernel_input, zero_like
from ..engine.pixels import clear
from .items import FilterArrays, FilterWindow, FilterWork, in_rows, wanted_bands

_RUN_PIXELS = 32768  # pixels, of which the filters stay in the first cache for all channels


class SingleItems(NamedTuple):
    """Work items (sample, group, band of chunks); and whether filters of channels are added."""

    total: int
    bands: int
    per_group: int  # channels
    pixels: int
    add: bool | None


class _Run(NamedTuple):
    """Pixels of a channel that lie side by side."""

    channel: int  # of all samples
    pixels: int  # where they begin
    filters: int  # and their filters
    number: int


def single_applies(inputs: FilterArrays, window: FilterWindow) -> bool:
    """Whether each output is made from the pixel at its place alone."""
    x, weight, _ = inputs
    alike = weight.shape[2:] == (1, 1, *x.shape[2:]) and window.stride == (1, 1)
    return bool(x.size) and alike and window.upsample == 1


def single_forward(inputs: FilterArrays, window: FilterWindow) -> np.ndarray:
    """The output."""
    x, weight, _ = inputs
    if _is_small_product(inputs):
        return _multiply(x, weight)
    y, items = strips.empty_to_stream(x.shape, x.dtype), _single_items(inputs, window)
    parallel.run(single_forward_items, items.total, 2.0 * x.size, in_rows(inputs), y.reshape(-1), items)
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
    items = _single_items(inputs, window)
    grad_x = strips.empty_to_stream(x.shape if needs[0] else (0,), x.dtype)
    grad_weight = strips.empty_to_stream(weight.shape if needs[1] else (0,), x.dtype)
    # A sum for each band, in double precision: it runs over many pixels.
    sums = np.zeros((items.bands, *channel_weight.shape) if needs[2] else (1, 0))
    grads = FilterArrays(grad_x, grad_weight, sums)
    work = FilterWork(kernel_input(grad_output).reshape(-1), in_rows(inputs), in_rows(grads))
    parallel.run(single_backward_items, items.total, 3.0 * x.size, work, items)
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


def _single_items(inputs: FilterArrays, window: FilterWindow) -> SingleItems:
    (_, channels, high, wide), (samples, groups) = inputs.x.shape, inputs.weight.shape[:2]
    bands = min(wanted_bands(inputs.weight.shape), -(-high * wide // _RUN_PIXELS))
    return SingleItems(samples * groups * bands, bands, channels // groups, high * wide, window.add)


@borrowing_jit
def _single_band(number: int, items: SingleItems) -> tuple[int, int, int]:
    """The group, of all samples, and the pixels of an item."""
    group, band = number // items.bands, number % items.bands
    chunks = -(-items.pixels // _RUN_PIXELS)
    first, end = chunks * band // items.bands * _RUN_PIXELS, chunks * (band + 1) // items.bands * _RUN_PIXELS
    return group, first, min(end, items.pixels)


@borrowing_cached_jit
def single_forward_items(
    start: int, stop: int, inputs: FilterArrays, y: np.ndarray, items: SingleItems
) -> None:
    """Items of filters times pixels."""
    x, weight, scales = inputs
    for number in range(start, stop):
        group, first, end = _single_band(number, items)
        for j in range(first, end, _RUN_PIXELS):
            for c in range(group * items.per_group, (group + 1) * items.per_group):
                run = _Run(c, c * items.pixels + j, group * items.pixels + j, min(_RUN_PIXELS, end - j))
                _filter_run(y, x, weight, scales, run, items.add)


@borrowing_cached_jit
def single_backward_items(start: int, stop: int, work: FilterWork, items: SingleItems) -> None:
    """Items of gradients."""
    grad_output, (x, weight, scales), grads = work
    for number in range(start, stop):
        group, first, end = _single_band(number, items)
        begin, slot = group * items.per_group, number % items.bands * (len(x) // items.pixels)
        for j in range(first, end, _RUN_PIXELS):
            for c in range(begin, begin + items.per_group):
                run = _Run(c, c * items.pixels + j, group * items.pixels + j, min(_RUN_PIXELS, end - j))
                if grads.x.size:
                    _filter_run(grads.x, grad_output, weight, scales, run, items.add)
                if grads.weight.size:
                    if c == begin:
                        clear(grads.weight, run.filters, run.number)
                    _add_share(grads.weight, grad_output, x, scales, run, items.add)
                if grads.channel_weight.size:
                    total = _sum_share(grad_output, x, weight, run, items.add)
                    grads.channel_weight[slot + c] += total


@borrowing_jit
def _filter_run(
    target: np.ndarray, source: np.ndarray, weight: np.ndarray, scales: Any, run: _Run, add: Any
) -> None:
    """Pixels times filters."""
    at, own = uint64(run.pixels), uint64(run.filters)
    if scales is None:
        for j in range(uint64(run.number)):
            target[at + j] = source[at + j] * weight[own + j]
    else:
        scale = scales[run.channel]
        for j in range(uint64(run.number)):
            both = weight[own + j] * scale if add is None else weight[own + j] + scale
            target[at + j] = source[at + j] * both


@borrowing_jit
def _add_share(
    target: np.ndarray, grad_output: np.ndarray, x: np.ndarray, scales: Any, run: _Run, add: Any
) -> None:
    """The share of a channel in the gradients of filters."""
    at, own = uint64(run.pixels), uint64(run.filters)
    if scales is None or add is not None:
        for j in range(uint64(run.number)):
            target[own + j] += grad_output[at + j] * x[at + j]
    else:
        scale = scales[run.channel]
        for j in range(uint64(run.number)):
            target[own + j] += grad_output[at + j] * x[at + j] * scale


@borrowing_jit
def _sum_share(grad_output: np.ndarray, x: np.ndarray, weight: np.ndarray, run: _Run, add: Any) -> Any:
    """The share of a run in the gradient of its channel's filter."""
    at, own, total = uint64(run.pixels), uint64(run.filters), zero_like(x)
    for j in range(uint64(run.number)):
        product = grad_output[at + j] * x[at + j]
        total += product * weight[own + j] if add is None else product
    return total
