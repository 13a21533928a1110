"""`local_filter2d` in general: its plan, and its calls.

Each tap becomes a single vectorised loop over long runs. The image is packed, with its zero padding, into
flat planes of a fixed row length, one plane per phase of the stride that is read; in them a tap is one
offset. Filters and output gradients are packed with the same row length (one plane per tap, and per phase
when upsampling), so that rows need no special ends. Then

- the output is ``acc[j] += sum over taps of (scale o filters[tap, j]) * image[j + offset]``,
- the gradient of x is the same sum, over the output gradient and with offsets back, for which filters are
  packed where the pixels are that their taps read, and
- the gradients of filters and of scales (the weights of the channels) are two sums over the same products
  ``grad_output[j - offset] * image[j]``: over channels and over pixels.

The columns between rows come to nothing and are left behind on unpacking. Filters are packed once per
block of rows and serve all channels of a work item. A block is as long as its filters stay in the L2
cache: image and output then pass through memory in long runs, which takes about as long as the sums.
"""

import math
from functools import lru_cache

import numpy as np

from ..engine.compile import kernel_input
from ..engine.memory import run_with_scratch
from ..engine.pixels import staggered, whole_lines
from ..engine.strips import CHANNELS, STRIP_BYTES
from .general_kernels import (
    FilterPlan,
    FilterPlanes,
    FilterScratch,
    FilterTerms,
    general_backward_items,
    general_forward_items,
)
from .items import FilterArrays, FilterWindow, divide, filters_by_tap, gradient_slots, sum_slots

# Packed filters, and their gradients, of one block of rows: half of a common L2 cache.
_GENERAL_BLOCK_BYTES = 512 * 1024


def general_forward(inputs: FilterArrays, window: FilterWindow, add: bool | None) -> np.ndarray:
    """The output."""
    x, weight, channel_weight = inputs
    y = np.empty((*x.shape[:2], *weight.shape[4:]), x.dtype)
    if y.size:
        plan, scratch = _general_plan(x.shape, weight.shape, x.itemsize, window, backward=False)
        arrays = FilterArrays(kernel_input(x), filters_by_tap(weight), _to_terms(channel_weight, plan.terms))
        operations = y.size * weight.shape[2] * weight.shape[3]
        total = plan.items.total
        run_with_scratch(general_forward_items, total, operations, scratch, x.dtype, arrays, y, plan, add)
    return y


def general_backward(
    grad_output: np.ndarray,
    inputs: FilterArrays,
    needs: tuple[bool, bool, bool],
    window: FilterWindow,
    add: bool | None,
) -> FilterArrays | None:
    """The gradients of x, weight and channel_weight.

    None if a packed zero may have met what is not finite.
    """
    x, weight, channel_weight = inputs
    if channel_weight is not None and not np.isfinite(channel_weight).all():
        return None
    plan, scratch = _general_plan(x.shape, weight.shape, x.itemsize, window, backward=True)
    arrays = FilterArrays(kernel_input(x), filters_by_tap(weight), _to_terms(channel_weight, plan.terms))
    every_pixel = len(plan.terms.planes) == math.prod(window.stride)
    grad_x = (np.empty if every_pixel else np.zeros)(x.shape if needs[0] else (0,) * 4, x.dtype)
    grads = gradient_slots(grad_x, inputs, needs, plan.items)
    targets = FilterArrays(grad_x, filters_by_tap(grads.weight), grads.channel_weight.reshape(-1))
    operations = 3.0 * grad_output.size * weight.shape[2] * weight.shape[3]
    args = (kernel_input(grad_output), arrays, targets, plan, add)
    run_with_scratch(general_backward_items, plan.items.total, operations, scratch, x.dtype, *args)
    result = sum_slots(grads, needs)
    if result is not None and needs[2]:
        result = result._replace(channel_weight=_from_terms(result.channel_weight, plan.terms))
    return result


@lru_cache(maxsize=256)
def _general_plan(
    x: tuple[int, ...], weight: tuple[int, ...], itemsize: int, window: FilterWindow, *, backward: bool
) -> tuple[FilterPlan, FilterScratch]:
    """For arrays of these shapes. Forward works in output coordinates, backward in input coordinates."""
    (kh, kw), u, stride, dilation = weight[2:4], window.upsample, window.stride, window.dilation
    tap = np.arange(kh * kw)
    offset_y, offset_x = tap // kw * dilation[0], tap % kw * dilation[1]
    source = offset_y % stride[0] * stride[1] + offset_x % stride[1]
    order = np.argsort(source, kind="stable")
    columns = (tap, source, offset_y // stride[0], offset_x // stride[1])
    tap, source, shift_y, shift_x = (np.tile(column[order], u * u) for column in columns)
    phase = np.repeat(np.arange(u * u), kh * kw)
    halo, lead = int(shift_y.max()), int(shift_x.max())
    planes, plane_of_term = np.unique(source, return_inverse=True)

    rows, width = weight[4] // u, weight[5] // u + lead
    if backward:  # every position that a tap reads, and every pixel of x
        rows = max(rows + halo, (x[2] - 1 + window.padding[0]) // stride[0] + 1)
        width = max(width, (x[3] - 1 + window.padding[1]) // stride[1] + 1)
    most = _GENERAL_BLOCK_BYTES // (len(tap) * width * itemsize * (2 if backward else 1))
    blocks = -(-rows // min(rows, max(1, most)))
    items = divide(x, weight, itemsize, (rows, width), blocks, backward=backward)
    # A strip of pixels is worked on at a time, and may reach beyond the last row.
    strip = STRIP_BYTES // itemsize
    plane = max(staggered(items.block * width, itemsize), strip)
    image = plane if backward else (items.block + halo) * width
    output = lead + (items.block + halo) * width
    sizes = FilterPlanes(
        filters=plane,
        image=image,
        images=whole_lines(len(planes) * image + lead + strip),
        output=output,
        outputs=whole_lines(u * u * output + strip),
    )
    terms = FilterTerms(
        tap,
        phase,
        filter_y=phase // u - (shift_y * u if backward else 0),
        filter_x=phase % u - (shift_x * u if backward else 0),
        filter_at=np.arange(len(tap)) * (plane if backward else 0),
        image_at=plane_of_term * image + (0 if backward else shift_y * width + shift_x),
        output_at=phase * output + lead + (halo - shift_y) * width - shift_x,
        planes=planes,
        plane_ends=np.append(np.searchsorted(source, planes), len(source)),
    )
    scratch = FilterScratch(
        filters=(len(tap) if backward else 1) * plane,
        grad_filters=len(tap) * plane if backward else 0,
        strips=len(tap) * -(-plane // strip) * strip,
        images=CHANNELS * sizes.images,
        outputs=CHANNELS * sizes.outputs if backward else 0,
        acc=CHANNELS * plane * (1 if backward else u),
        totals=strip,
        unwanted=len(tap),
    )
    return FilterPlan(terms, items, window, sizes, halo, lead), scratch


def _to_terms(channel_weight: np.ndarray | None, terms: FilterTerms) -> np.ndarray | None:
    """(N, C, terms) in a row: the factor or summand of each term; None where there are none."""
    if channel_weight is None:
        return None
    n, u, _, channels, kh, kw = channel_weight.shape
    by_tap = channel_weight.reshape(n, u * u, channels, kh * kw)
    return np.ascontiguousarray(by_tap[:, terms.phase, :, terms.tap].transpose(1, 2, 0)).reshape(-1)


def _from_terms(by_term: np.ndarray, terms: FilterTerms) -> np.ndarray:
    """The reverse of `_to_terms`, for an array that has its final shape already."""
    n, u, _, channels, kh, kw = by_term.shape
    by_tap = np.empty((n, u * u, channels, kh * kw), by_term.dtype)
    by_tap[:, terms.phase, :, terms.tap] = by_term.reshape(n, channels, -1).transpose(2, 0, 1)
    return by_tap.reshape(by_term.shape)
