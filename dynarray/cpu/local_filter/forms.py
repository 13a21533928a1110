"""`local_filter2d` on the CPU: the general form, and the choice between it and `local_filter_in_place`.

In the general form each tap becomes a single vectorised loop over long runs. The image is packed, with
its zero padding, into flat planes of a fixed row length, one plane per phase of the stride that is read;
in them a tap is one offset. Filters and output gradients are packed with the same row length (one plane
per tap, and per phase when upsampling), so that rows need no special ends. Then

- the output is ``acc[j] += sum over taps of (scale o filters[tap, j]) * image[j + offset]``,
- the gradient of x is the same sum, over the output gradient and with offsets back, for which filters are
  packed where the pixels are that their taps read, and
- the gradients of filters and of scales (the weights of the channels) are two sums over the same products
  ``grad_output[j - offset] * image[j]``: over channels and over pixels.

The columns between rows come to nothing and are left behind on unpacking. Filters are packed once per
block of rows and serve all channels of a work item. A block is as long as its filters stay in the L2
cache: image and output then pass through memory in long runs. With 3 x 3 filters and 256 channels on two
cores, leaving out the sums saved 40 % of the time of this form forward and half of it backward: the rest
is pixels on their way in and out.

Zeros that stand for nothing do harm where the other factor is NaN or infinity. Gradients that may have met
such a pair are computed once more by `local_filter_definition`.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import flag, kernel_input
from ..engine.memory import run_with_memory
from ..engine.pixels import staggered, whole_lines
from ..engine.strips import STRIP_BYTES
from . import in_place
from .definition import backward as by_definition
from .kernels import (
    Gradients,
    Layout,
    Terms,
    backward_items,
    forward_items,
    memory,
    sizes,
)

# Packed filters, and their gradients, of one block of rows: half of a common L2 cache.
BLOCK_BYTES = 512 * 1024
SLOT_BYTES = 8 * 1024 * 1024  # gradients of filters waiting to be added up


class _Call(NamedTuple):
    """What a plan depends on."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int, int, int]
    itemsize: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    upsample: int


def _call(x: np.ndarray, weight: np.ndarray, *, combine: str, **params: Any) -> _Call:
    return _Call(x.shape, weight.shape, x.itemsize, **params)


def _layout(call: _Call, reach: tuple[int, int], planes: int, *, backward: bool) -> Layout:
    """Forward works in output coordinates, backward in input coordinates; `reach` is the largest shift."""
    u, stride, padding = call.upsample, call.stride, call.padding
    _, groups, kh, kw, high, wide = call.weight
    halo, lead = reach
    rows, width = high // u, wide // u + lead
    if backward:  # every position that a tap reads, and every pixel of x
        rows = max(rows + halo, (call.x[2] - 1 + padding[0]) // stride[0] + 1)
        width = max(width, (call.x[3] - 1 + padding[1]) // stride[1] + 1)
    per_group, wanted = call.x[1] // groups, -(-parallel.ITEMS // (call.x[0] * groups))
    block = BLOCK_BYTES // (u * u * kh * kw * width * call.itemsize * (2 if backward else 1))
    blocks = -(-rows // min(rows, max(1, block)))
    block, bands = -(-rows // blocks), min(blocks, wanted)
    # Filters are packed for each item, and their gradients once more added up.
    least = 16
    if backward:
        filters = call.itemsize * math.prod(call.weight)
        least = max(64, -(-per_group * filters // SLOT_BYTES))
    # A strip of pixels is worked on at a time, and may reach beyond the last row.
    strip = STRIP_BYTES // call.itemsize
    plane = max(staggered(block * width, call.itemsize), strip)
    image_plane = plane if backward else (block + halo) * width
    output_plane = lead + (block + halo) * width
    return Layout(
        upsample=u,
        stride=stride,
        padding=padding,
        rows=rows,
        width=width,
        halo=halo,
        lead=lead,
        block=block,
        bands=bands,
        channels=max(min(per_group, least), -(-per_group * bands // wanted)),
        plane=plane,
        image_plane=image_plane,
        image_size=whole_lines(planes * image_plane + lead + strip),
        output_plane=output_plane,
        output_size=whole_lines(u * u * output_plane + strip),
    )


@lru_cache(maxsize=256)
def _plan(call: _Call, *, backward: bool) -> tuple[Terms, Layout]:
    u, stride, dilation = call.upsample, call.stride, call.dilation
    kh, kw = call.weight[2:4]
    tap = np.arange(kh * kw)
    offset_y, offset_x = tap // kw * dilation[0], tap % kw * dilation[1]
    source = offset_y % stride[0] * stride[1] + offset_x % stride[1]
    order = np.argsort(source, kind="stable")
    columns = (tap, source, offset_y // stride[0], offset_x // stride[1])
    tap, source, shift_y, shift_x = (np.tile(column[order], u * u) for column in columns)
    phase = np.repeat(np.arange(u * u), kh * kw)
    reach = int(shift_y.max()), int(shift_x.max())
    planes, plane_of_term = np.unique(source, return_inverse=True)
    layout = _layout(call, reach, len(planes), backward=backward)
    terms = Terms(
        tap,
        phase,
        shift_y,
        shift_x,
        filter_y=phase // u - (shift_y * u if backward else 0),
        filter_x=phase % u - (shift_x * u if backward else 0),
        filter_at=np.arange(len(tap)) * (layout.plane if backward else 0),
        image_at=plane_of_term * layout.image_plane + (0 if backward else shift_y * layout.width + shift_x),
        output_at=phase * layout.output_plane + layout.lead + (reach[0] - shift_y) * layout.width - shift_x,
        planes=planes,
        of_plane=np.append(np.searchsorted(source, planes), len(source)),
    )
    return terms, layout


def _by_term(channel_weight: np.ndarray | None, terms: Terms) -> np.ndarray | None:
    """(N, C, terms) in a row: the factor or summand of each term; None where there are none."""
    if channel_weight is None:
        return None
    n, u, _, channels, kh, kw = channel_weight.shape
    by_tap = channel_weight.reshape(n, u * u, channels, kh * kw)
    return np.ascontiguousarray(by_tap[:, terms.phase, :, terms.tap].transpose(1, 2, 0)).reshape(-1)


def _to_channel_weight(by_term: np.ndarray, terms: Terms, shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of `_by_term`."""
    n, u, _, channels, kh, kw = shape
    by_tap = np.empty((n, u * u, channels, kh * kw), by_term.dtype)
    by_tap[:, terms.phase, :, terms.tap] = by_term.transpose(2, 0, 1)
    return by_tap.reshape(shape)


def forward(x: Any, weight: Any, channel_weight: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `local_filter2d`; keeps the inputs for the backward pass."""
    kept = (x, weight, channel_weight)
    if x.size and in_place.applies(x, weight, channel_weight, params):
        y = in_place.forward(x, weight, channel_weight, params)
        if y is not None:
            return y, kept
    y = np.empty((*x.shape[:2], *weight.shape[4:]), x.dtype)
    if y.size:
        terms, layout = _plan(_call(x, weight, **params), backward=False)
        chunks = -(-(x.shape[1] // weight.shape[1]) // layout.channels)
        items = x.shape[0] * weight.shape[1] * layout.bands * chunks
        operations = y.size * weight.shape[2] * weight.shape[3]
        arrays = (kernel_input(x), in_place.by_tap(weight), _by_term(channel_weight, terms), y)
        add = flag(params["combine"] == "add" and channel_weight is not None)
        parts = sizes(terms, layout, backward=False)
        args = (*arrays, terms, layout, parts, chunks, add)
        run_with_memory(forward_items, items, operations, memory(parts, backward=False), x.dtype, *args)
    return y, kept


def backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool, bool], **params: Any
) -> tuple[Any, Any, Any]:
    """Gradients of `local_filter2d` with respect to x, weight and channel_weight."""
    x, weight, channel_weight = kept
    if not grad_output.size or not x.size:
        zeros = (
            np.zeros(a.shape, a.dtype) if needed else None for a, needed in zip(kept, needs, strict=True)
        )
        return tuple(zeros)  # type: ignore[return-value]
    if in_place.applies(x, weight, channel_weight, params):
        grads = in_place.backward(grad_output, kept, needs, params, SLOT_BYTES)
        if grads is not None:
            return grads
    if channel_weight is not None and not np.isfinite(channel_weight).all():
        return by_definition(grad_output, kept, needs, params)
    terms, layout = _plan(_call(x, weight, **params), backward=True)
    filters, scales = in_place.by_tap(weight), _by_term(channel_weight, terms)
    arrays = kernel_input(grad_output), kernel_input(x), filters, scales
    chunks = -(-(x.shape[1] // weight.shape[1]) // layout.channels)
    # Slots are summed in order: the same bits however the items were dealt out.
    slots = np.zeros((layout.bands, *x.shape[:2], len(terms.tap)) if needs[2] else (1, 0), x.dtype)
    every_phase = len(terms.planes) == math.prod(params["stride"])
    new = np.empty if every_phase else np.zeros
    gradients = Gradients(
        x=new(x.shape if needs[0] else (0,) * 4, x.dtype),
        filters=np.empty((chunks, *filters.shape) if needs[1] else (0,) * 6, x.dtype),
        slots=slots.reshape(-1),
    )
    items = x.shape[0] * weight.shape[1] * layout.bands * chunks
    operations = 3.0 * grad_output.size * weight.shape[2] * weight.shape[3]
    add = flag(params["combine"] == "add" and channel_weight is not None)
    parts = sizes(terms, layout, backward=True)
    args = (*arrays, gradients, terms, layout, parts, chunks, add)
    run_with_memory(backward_items, items, operations, memory(parts, backward=True), x.dtype, *args)
    grad_scales = slots.sum(axis=0)
    if not np.isfinite(grad_scales).all():  # perhaps through a packed zero
        return by_definition(grad_output, kept, needs, params)
    return (
        gradients.x if needs[0] else None,
        in_place.sum_slots(gradients.filters).reshape(weight.shape) if needs[1] else None,
        _to_channel_weight(grad_scales, terms, channel_weight.shape) if needs[2] else None,
    )
