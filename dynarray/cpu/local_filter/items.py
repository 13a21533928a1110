"""What all ways to `local_filter2d` have in common: operands, parameters, and how work is divided."""

import math
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import borrowing_jit, kernel_input

# Channels of an item, at least: it packs filters for all of them, and backward adds up their gradients.
_LEAST_CHANNELS, _LEAST_CHANNELS_BACKWARD = 16, 64
_SLOT_BYTES = 8 * 1024 * 1024  # gradients of filters waiting to be added up


Shape = tuple[int, ...]


class FilterArrays(NamedTuple):
    """The operands, or their gradients; of those that are not needed there are no elements.

    There may be a gradient of `weight` for each chunk of channels, and one of `channel_weight` for each band
    of rows, to be added up in order: the same bits however the work was dealt out.
    """

    x: Any
    weight: Any
    channel_weight: Any


class FilterWork(NamedTuple):
    """What a backward pass reads and writes."""

    grad_output: np.ndarray
    inputs: FilterArrays
    grads: FilterArrays


class FilterWindow(NamedTuple):
    """The parameters of a call, in rows and columns."""

    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    upsample: int
    add: bool | None  # the weights of channels, which else are factors


class FilterItems(NamedTuple):
    """Work items (sample, group, band of rows, chunk of channels)."""

    samples: int
    groups: int
    per_group: int  # channels of a group
    rows: int
    width: int  # elements of a row
    block: int  # rows for which filters are packed at a time
    blocks: int
    bands: int  # each a whole number of blocks
    channels: int  # of an item: they share packed filters
    chunks: int

    @property
    def total(self) -> int:
        """Number of items."""
        return self.samples * self.groups * self.bands * self.chunks


class FilterItem(NamedTuple):
    """One of them: which it is, and the ranges of its blocks of rows and its channels."""

    sample: int
    group: int
    band: int
    chunk: int
    block: int
    block_end: int
    channel: int
    channel_end: int


class FilterRows(NamedTuple):
    """A block of rows."""

    first: int
    height: int


def wanted_bands(weight: Shape) -> int:
    """Work items for each sample and group that keep all threads busy."""
    return -(-parallel.ITEMS // (weight[0] * weight[1]))


def divide(
    x: Shape, weight: Shape, itemsize: int, extent: tuple[int, int], blocks: int, *, backward: bool
) -> FilterItems:
    """The work on `extent` rows and elements of a row, for arrays of these shapes.

    Filters are packed for each item, and their gradients once more added up: an item has some channels at
    least.
    """
    samples, groups = weight[:2]
    per_group, wanted, least = x[1] // groups, wanted_bands(weight), _LEAST_CHANNELS
    if backward:
        fitting = -(-per_group * math.prod(weight) * itemsize // _SLOT_BYTES)
        least = max(_LEAST_CHANNELS_BACKWARD, fitting)
    block, bands = -(-extent[0] // blocks), min(blocks, wanted)
    blocks, parts = -(-extent[0] // block), max(1, (wanted + bands // 2) // bands)
    channels = max(min(per_group, least), -(-per_group // parts))
    chunks = -(-per_group // channels)
    return FilterItems(samples, groups, per_group, *extent, block, blocks, bands, channels, chunks)


def filters_by_tap(weight: np.ndarray) -> np.ndarray:
    """(..., taps, Ho, Wo), contiguous."""
    *lead, kh, kw, high, wide = weight.shape
    return kernel_input(weight).reshape(*lead, kh * kw, high, wide)


def in_rows(arrays: FilterArrays) -> FilterArrays:
    """All elements in a row, as kernels take them; None stays None."""
    return FilterArrays(*(None if array is None else kernel_input(array).reshape(-1) for array in arrays))


def gradient_slots(
    grad_x: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], items: FilterItems
) -> FilterArrays:
    """Memory for the gradients: any values for `weight`, zeros for `channel_weight`."""
    weight = (items.chunks, *inputs.weight.shape) if needs[1] else (0,) * 7
    channel_weight = (items.bands, *inputs.channel_weight.shape) if needs[2] else (1, 0)
    return FilterArrays(grad_x, np.empty(weight, grad_x.dtype), np.zeros(channel_weight, grad_x.dtype))


def sum_slots(grads: FilterArrays, needs: tuple[bool, bool, bool]) -> FilterArrays | None:
    """The gradients, or None where those of `channel_weight` are not finite."""
    x, weight, channel_weight = grads
    weight = weight[0] if len(weight) == 1 else weight.sum(axis=0)  # one slot needs no copy
    sums = x, weight, channel_weight.sum(axis=0)
    if not np.isfinite(sums[2]).all():
        return None
    return FilterArrays(*(array if need else None for array, need in zip(sums, needs, strict=True)))


@borrowing_jit
def find_item(number: int, items: FilterItems) -> FilterItem:
    """The work item of a number."""
    rest, chunk = number // items.chunks, number % items.chunks
    rest, band = rest // items.bands, rest % items.bands
    sample, group = rest // items.groups, rest % items.groups
    block, block_end = items.blocks * band // items.bands, items.blocks * (band + 1) // items.bands
    channel = group * items.per_group + chunk * items.channels
    channel_end = min(channel + items.channels, (group + 1) * items.per_group)
    return FilterItem(sample, group, band, chunk, block, block_end, channel, channel_end)


@borrowing_jit
def find_share(
    number: int, chunks: int, bands: int, per_group: int, extent: int
) -> tuple[int, int, int, int, int]:
    """Of an item the group, of all samples, the range of channels, of all samples, and that of `extent`.

    Items are the bands of `extent` of each group, and the chunks of its channels in each.
    """
    rest, chunk = number // chunks, number % chunks
    group, band = rest // bands, rest % bands
    begin = group * per_group
    channel, channel_end = begin + per_group * chunk // chunks, begin + per_group * (chunk + 1) // chunks
    return group, channel, channel_end, extent * band // bands, extent * (band + 1) // bands


@borrowing_jit
def find_rows(block: int, items: FilterItems) -> FilterRows:
    """The rows of a block."""
    first = block * items.block
    return FilterRows(first, min(items.block, items.rows - first))
