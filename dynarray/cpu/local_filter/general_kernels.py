"""The kernels of the general form of `local_filter2d`, and the records in which they get their plan."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import borrowing_cached_jit, borrowing_jit
from ..engine.pixels import clear, pack_rows, unpack_phases, unpack_rows
from ..engine.strips import (
    CHANNELS,
    Planes,
    Scale,
    Strips,
    StripTarget,
    Taps,
    apply,
    correlate,
    deal,
    strip_pixels,
)
from .items import FilterArrays, FilterItems, FilterRows, FilterWindow, find_item, find_rows

_KEPT = False  # in the caches, from where it is unpacked


class FilterTerms(NamedTuple):
    """The (phase, tap) pairs: by sub-pixel phase of the output, then by the plane of the image they read."""

    tap: np.ndarray  # index a*kw + b
    phase: np.ndarray  # i*u + j
    filter_y: np.ndarray  # the output pixel whose filter lies at row 0, column 0 of the term's plane
    filter_x: np.ndarray
    filter_at: np.ndarray  # offset of the term's plane of filters; forward, all pass through one plane
    image_at: np.ndarray  # offset of what it reads of the packed image
    output_at: np.ndarray  # offset of what it reads of the packed output gradient
    planes: np.ndarray  # the phases of the stride that are read, in order: a plane of the image for each
    plane_ends: np.ndarray  # the terms that read plane s are plane_ends[s] to plane_ends[s + 1]


class FilterPlanes(NamedTuple):
    """Elements of packed planes."""

    filters: int  # one plane
    image: int  # one plane
    images: int  # all planes of an image
    output: int  # one plane of an output gradient
    outputs: int  # all of them


class FilterPlan(NamedTuple):
    """What is packed where, and how work is divided."""

    terms: FilterTerms
    items: FilterItems  # in rows and elements of rows of packed planes
    window: FilterWindow
    planes: FilterPlanes
    halo: int  # the largest shift from output to input position, in rows of packed planes
    lead: int  # and in columns


class FilterScratch(NamedTuple):
    """A thread's packed planes of one block of rows."""

    filters: Any
    grad_filters: Any
    strips: Any  # filters once more, as `apply` takes them
    images: Any  # of CHANNELS channels
    outputs: Any  # their gradients
    acc: Any  # sums of CHANNELS channels
    totals: Any
    unwanted: Any  # gradients of the scales that nobody needs


@borrowing_jit
def _pack_image(target: np.ndarray, at: int, image: np.ndarray, rows: FilterRows, plan: FilterPlan) -> None:
    """All planes of one image."""
    stride = plan.window.stride
    for s in range(len(plan.terms.planes)):
        origin = _origin(plan.terms.planes[s], plan.window)
        plane = at + s * plan.planes.image
        pack_rows(target, plane, image, rows.first, rows.height, plan.items.width, origin, stride)


@borrowing_jit
def _origin(source: int, window: FilterWindow) -> tuple:
    """The pixel at row 0, column 0 of a phase of the stride."""
    y, x = source // window.stride[1], source % window.stride[1]
    return (y - window.padding[0], x - window.padding[1])


@borrowing_jit
def _pack_filters(
    planes: np.ndarray, strips: np.ndarray, weight: np.ndarray, rows: FilterRows, plan: FilterPlan
) -> None:
    """One plane per term, then its strips; `weight` is that of one sample and group, (taps, Ho, Wo)."""
    terms, width, u = plan.terms, plan.items.width, plan.window.upsample
    count = max(rows.height * width, strip_pixels(planes))
    for term in range(len(terms.tap)):
        origin, at = (terms.filter_y[term], terms.filter_x[term]), terms.filter_at[term]
        pack_rows(planes, at, weight[terms.tap[term]], rows.first, rows.height, width, origin, (u, u))
        deal(strips, term, len(terms.tap), planes, at, count)


@borrowing_jit
def _unpack_filters(planes: np.ndarray, grad_weight: np.ndarray, rows: FilterRows, plan: FilterPlan) -> None:
    """The reverse of `_pack_filters`."""
    terms, width, u = plan.terms, plan.items.width, plan.window.upsample
    for term in range(len(terms.tap)):
        origin, at = (terms.filter_y[term], terms.filter_x[term]), terms.filter_at[term]
        unpack_rows(planes, at, grad_weight[terms.tap[term]], rows.first, rows.height, width, origin, (u, u))


@borrowing_jit
def _pack_output(
    target: np.ndarray, at: int, grad_output: np.ndarray, rows: FilterRows, plan: FilterPlan
) -> None:
    """The output gradient of one channel, with the rows above that taps lead to: a plane for each phase."""
    u, above, high = plan.window.upsample, rows.first - plan.halo, rows.height + plan.halo
    for phase in range(u * u):
        place, origin = at + phase * plan.planes.output + plan.lead, (phase // u, phase % u)
        pack_rows(target, place, grad_output, above, high, plan.items.width, origin, (u, u))


@borrowing_cached_jit
def general_forward_items(
    start: int,
    stop: int,
    scratch: FilterScratch,
    inputs: FilterArrays,
    y: np.ndarray,
    plan: FilterPlan,
    add: bool | None,
) -> None:
    """Items of the plan. `inputs` hold filters by tap and the scales of terms in a row."""
    x, weight, items, planes = inputs.x, inputs.weight, plan.items, plan.planes
    terms, taps = len(plan.terms.tap), weight.shape[2]
    # What lies between rows comes to nothing, but should not be slow to multiply.
    clear(scratch.filters, 0, len(scratch.filters))
    clear(scratch.totals, 0, len(scratch.totals))
    for number in range(start, stop):
        item = find_item(number, items)
        for block in range(item.block, item.block_end):
            rows = find_rows(block, items)
            below = FilterRows(rows.first, rows.height + plan.halo)
            clear(scratch.images, 0, len(scratch.images))
            _pack_filters(scratch.filters, scratch.strips, weight[item.sample, item.group], rows, plan)
            for c in range(item.channel, item.channel_end, CHANNELS):
                channels = min(CHANNELS, item.channel_end - c)
                for k in range(channels):
                    _pack_image(scratch.images, k * planes.images, x[item.sample, c + k], below, plan)
                scale = Scale(inputs.channel_weight, (item.sample * x.shape[1] + c) * terms, terms, add)
                _filter_phases(y[item.sample, c : c + channels], scratch, taps, scale, rows, plan)


@borrowing_jit
def _filter_phases(
    y: np.ndarray, scratch: FilterScratch, taps: int, scale: Scale, rows: FilterRows, plan: FilterPlan
) -> None:
    """The outputs of some channels: row by row of phases, each phase with so many taps."""
    u, plane, width = plan.window.upsample, plan.planes.filters, plan.items.width
    image = Planes(scratch.images, 0, plan.planes.images)
    count = max(rows.height * width, len(scratch.totals))  # at least a strip
    for phase in range(u * u):
        row, column = phase // u, phase % u
        strips = Strips(scratch.strips, plan.terms.image_at, phase * taps, taps)
        target = StripTarget(Planes(scratch.acc, column * plane, u * plane), scratch.totals, _KEPT)
        apply(target, len(y), count, strips, image, scale)
        if column == u - 1:
            for k in range(len(y)):
                part = scratch.acc[k * u * plane :]
                unpack_phases(part, plane, y[k], rows.first, rows.height, width, row, u)


@borrowing_cached_jit
def general_backward_items(
    start: int,
    stop: int,
    scratch: FilterScratch,
    grad_output: np.ndarray,
    inputs: FilterArrays,
    grads: FilterArrays,
    plan: FilterPlan,
    add: bool | None,
) -> None:
    """Items of the plan. `inputs` and `grads` hold filters by tap and the scales of terms in a row."""
    x, weight, items, planes = inputs.x, inputs.weight, plan.items, plan.planes
    terms, needs_filters = len(plan.terms.tap), grads.weight.size + grads.channel_weight.size > 0
    clear(scratch.totals, 0, len(scratch.totals))
    for number in range(start, stop):
        item = find_item(number, items)
        for block in range(item.block, item.block_end):
            rows = find_rows(block, items)
            clear(scratch.filters, 0, len(scratch.filters))
            clear(scratch.grad_filters, 0, len(scratch.grad_filters))
            clear(scratch.images, 0, len(scratch.images))
            clear(scratch.outputs, 0, len(scratch.outputs))
            _pack_filters(scratch.filters, scratch.strips, weight[item.sample, item.group], rows, plan)
            for c in range(item.channel, item.channel_end, CHANNELS):
                channels, first = min(CHANNELS, item.channel_end - c), item.sample * x.shape[1] + c
                for k in range(channels):
                    grad = grad_output[item.sample, c + k]
                    _pack_output(scratch.outputs, k * planes.outputs, grad, rows, plan)
                    if needs_filters:
                        _pack_image(scratch.images, k * planes.images, x[item.sample, c + k], rows, plan)
                scale = Scale(inputs.channel_weight, first * terms, terms, add)
                if needs_filters:
                    grad_scale = Planes(scratch.unwanted, 0, 0)
                    if grads.channel_weight.size:
                        slot = item.band * x.shape[0] * x.shape[1] + first
                        grad_scale = Planes(grads.channel_weight, slot * terms, terms)
                    _add_grad_filters(scratch, grad_scale, channels, scale, rows.height, plan)
                if grads.x.size:
                    _write_grad_x(grads.x[item.sample, c : c + channels], scratch, scale, rows, plan)
            if grads.weight.size:
                grad_weight = grads.weight[item.chunk, item.sample, item.group]
                _unpack_filters(scratch.grad_filters, grad_weight, rows, plan)


@borrowing_jit
def _add_grad_filters(
    scratch: FilterScratch, grad_scale: Planes, channels: int, scale: Scale, height: int, plan: FilterPlan
) -> None:
    """What some channels add to the gradients of filters and scales, in so many rows."""
    outputs, count = Planes(scratch.outputs, 0, plan.planes.outputs), height * plan.items.width
    for s in range(len(plan.terms.planes)):
        first, end = plan.terms.plane_ends[s], plan.terms.plane_ends[s + 1]
        image = Planes(scratch.images, s * plan.planes.image, plan.planes.images)
        taps = Taps(scratch.filters, plan.terms.filter_at, plan.terms.output_at, first, end - first)
        correlate(scratch.grad_filters, grad_scale, channels, count, taps, image, outputs, scale)


@borrowing_jit
def _write_grad_x(
    grad_x: np.ndarray, scratch: FilterScratch, scale: Scale, rows: FilterRows, plan: FilterPlan
) -> None:
    """The gradients of some channels of x, one phase of the stride after the other."""
    width, stride = plan.items.width, plan.window.stride
    outputs = Planes(scratch.outputs, 0, plan.planes.outputs)
    count = max(rows.height * width, len(scratch.totals))  # at least a strip
    target = StripTarget(Planes(scratch.acc, 0, plan.planes.filters), scratch.totals, _KEPT)
    for s in range(len(plan.terms.planes)):
        first, end = plan.terms.plane_ends[s], plan.terms.plane_ends[s + 1]
        strips = Strips(scratch.strips, plan.terms.output_at, first, end - first)
        apply(target, len(grad_x), count, strips, outputs, scale)
        origin = _origin(plan.terms.planes[s], plan.window)
        for k in range(len(grad_x)):
            at = k * plan.planes.filters
            unpack_rows(scratch.acc, at, grad_x[k], rows.first, rows.height, width, origin, stride)
