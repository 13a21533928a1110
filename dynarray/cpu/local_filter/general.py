"""`local_filter2d` in general: its plan, and its calls.

Each tap becomes vector instructions over long runs. The image is packed, with its zero padding, into
flat planes of a fixed row length, one plane per phase of the stride that is read; in them a tap is one
offset. Filters and output gradients are packed with the same row length (one plane per tap, and per phase
when upsampling), so that rows need no special ends. Then

- the output is ``acc[j] += sum over taps of (scale o filters[tap, j]) * image[j + offset]``,
- the gradient of x is the same sum, over the output gradient and with offsets back, for which filters are
  packed where the pixels are that their taps read, and
- the gradients of filters and of scales (the weights of the channels) are two sums over the same products
  ``grad_output[j - offset] * image[j]``: over channels and over pixels.

Taps below one another read the same rows of pixels, so that sums are made patch by patch (`engine.patches`);
where the image has few rows or columns, patches are pieces of a long run instead. The columns between rows
come to nothing and are left behind on unpacking. Filters are packed once per block of rows and serve all
channels of a work item. A block is as long as its filters stay in the L2 cache: image and output then pass
through memory in long runs, which takes about as long as the sums.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import strips
from ..engine.compile import borrowing_cached_jit, borrowing_jit, kernel_input
from ..engine.gemm import Matrix, whole
from ..engine.memory import empty, run_with_scratch
from ..engine.patches import (
    PATCH_CHANNELS,
    PATCH_ROWS,
    RUNS,
    PatchTaps,
    Runs,
    apply_patch,
    deal_patch,
    patch_lanes,
    runs_below,
)
from ..engine.pixels import PackedRows, clear, pack_rows, staggered, unpack_phases, unpack_rows, whole_lines
from .items import (
    FilterArrays,
    FilterItems,
    FilterRows,
    FilterWindow,
    FilterWork,
    Shape,
    divide,
    filters_by_tap,
    find_item,
    find_rows,
    gradient_slots,
    sum_slots,
    wanted_bands,
)

# Packed filters, and their gradients, of one block of rows: half of a common L2 cache.
_GENERAL_BLOCK_BYTES = 512 * 1024


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


class FilterRuns(NamedTuple):
    """The terms in runs downwards, for each sum: that of a phase forward, of a plane of x backward."""

    offset: np.ndarray  # where each run reads its source
    number: np.ndarray  # of each term
    first: np.ndarray  # the first run of each sum
    first_term: np.ndarray  # and the first term
    threes: np.ndarray  # how many runs of each length
    twos: np.ndarray
    ones: np.ndarray


class FilterPatches(NamedTuple):
    """How planes are covered with patches."""

    pitch: int  # from row to row of a patch
    across: int  # patches side by side
    unit: int  # elements of these
    most: int  # patches of a block


class FilterPlan(NamedTuple):
    """What is packed where, and how work is divided."""

    terms: FilterTerms
    runs: FilterRuns
    patches: FilterPatches
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
    unwanted: Any  # gradients of the scales that nobody needs


def general_forward(inputs: FilterArrays, window: FilterWindow) -> np.ndarray:
    """The output."""
    x, weight, channel_weight = inputs
    y = empty((*x.shape[:2], *weight.shape[4:]), x.dtype)
    if y.size:
        plan, scratch = _general_plan(x.shape, weight.shape, x.itemsize, window, backward=False)
        arrays = FilterArrays(kernel_input(x), filters_by_tap(weight), _to_terms(channel_weight, plan.terms))
        operations = y.size * weight.shape[2] * weight.shape[3]
        total = plan.items.total
        run_with_scratch(general_forward_items, total, operations, scratch, x.dtype, arrays, y, plan)
    return y


def general_backward(
    grad_output: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], window: FilterWindow
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
    grad_x = (empty if every_pixel else np.zeros)(x.shape if needs[0] else (0,) * 4, x.dtype)
    grads = gradient_slots(grad_x, inputs, needs, plan.items)
    targets = FilterArrays(grad_x, filters_by_tap(grads.weight), grads.channel_weight.reshape(-1))
    operations = 3.0 * grad_output.size * weight.shape[2] * weight.shape[3]
    work, total = FilterWork(kernel_input(grad_output), arrays, targets), plan.items.total
    run_with_scratch(general_backward_items, total, operations, scratch, x.dtype, work, plan)
    result = sum_slots(grads, needs)
    if result is not None and needs[2]:
        result = result._replace(channel_weight=_from_terms(result.channel_weight, plan.terms))
    return result


@lru_cache(maxsize=256)
def _general_plan(
    x: Shape, weight: Shape, itemsize: int, window: FilterWindow, *, backward: bool
) -> tuple[FilterPlan, FilterScratch]:
    """For arrays of these shapes. Forward works in output coordinates, backward in input coordinates."""
    u, stride = window.upsample, window.stride
    tap, phase, source, shift_y, shift_x, runs = _in_runs(weight[2:4], window, backward)
    halo, lead = int(shift_y.max()), int(shift_x.max())
    planes, plane_of_term = np.unique(source, return_inverse=True)

    rows, width = weight[4] // u, weight[5] // u + lead
    if backward:  # every position that a tap reads, and every pixel of x
        rows = max(rows + halo, (x[2] - 1 + window.padding[0]) // stride[0] + 1)
        width = max(width, (x[3] - 1 + window.padding[1]) // stride[1] + 1)
    lanes = patch_lanes(itemsize)
    whole_rows, whole_width = whole(rows, PATCH_ROWS), whole(width, lanes)
    below = weight[2] > 1 and 2 * whole_rows * whole_width <= 3 * rows * width
    if below:
        width = whole_width
    else:
        runs = [[term] for term in range(len(tap))]
    most = _GENERAL_BLOCK_BYTES // (len(tap) * width * itemsize * (2 if backward else 1))
    blocks, wanted = -(-rows // min(rows, max(1, most))), wanted_bands(weight)
    if blocks < wanted and rows // wanted >= max(PATCH_ROWS, halo) and len(tap) > x[1] // weight[1]:
        blocks = wanted  # then all channels share packed filters, which are more than the rows packed twice
    items = divide(x, weight, itemsize, (rows, width), blocks, backward=backward)
    patches = _find_patches(items.block, width, lanes, below)
    plane = staggered(patches.most // patches.across * patches.unit, itemsize)
    image = plane + (0 if backward else halo * width)
    output = lead + plane + halo * width
    sizes = FilterPlanes(
        filters=plane,
        image=image,
        images=whole_lines(len(planes) * image + lead + patches.unit),
        output=output,
        outputs=whole_lines(u * u * output + patches.unit),
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
        plane_ends=np.append(np.searchsorted(source, planes), len(source)) if backward else planes,
    )
    at = terms.output_at if backward else terms.image_at
    sums = _sums_of_runs(runs, at, plane_of_term if backward else phase)
    scratch = FilterScratch(
        filters=(len(tap) if backward else 1) * plane,
        grad_filters=len(tap) * plane if backward else 0,
        strips=len(tap) * patches.most * PATCH_ROWS * lanes,
        images=PATCH_CHANNELS * sizes.images,
        outputs=PATCH_CHANNELS * sizes.outputs if backward else 0,
        acc=PATCH_CHANNELS * plane * (1 if backward else u),
        unwanted=len(tap),
    )
    return FilterPlan(terms, sums, patches, items, window, sizes, halo, lead), scratch


def _find_patches(rows: int, width: int, lanes: int, below: bool) -> FilterPatches:
    """Those of a block, with rows below one another or, if not `below`, one after the other."""
    pitch, across = (width, width // lanes) if below else (lanes, 1)
    unit = PATCH_ROWS * pitch
    return FilterPatches(pitch, across, unit, -(-rows * width // unit) * across)


def _in_runs(size: Shape, window: FilterWindow, backward: bool) -> tuple:
    """The terms in order: tap, phase, plane of x, shift in rows and columns; and the runs of them.

    Those of one sum stand together, and the runs of one length.
    """
    u, (stride_y, stride_x) = window.upsample, window.stride
    tap, phase = np.tile(np.arange(math.prod(size)), u * u), np.repeat(np.arange(u * u), math.prod(size))
    offset_y, offset_x = tap // size[1] * window.dilation[0], tap % size[1] * window.dilation[1]
    source = offset_y % stride_y * stride_x + offset_x % stride_x
    down, right = offset_y // stride_y, offset_x // stride_x
    of_sum, step = (source, -down) if backward else (phase, down)
    runs: list[list[int]] = []
    order: list[int] = []
    for number in np.unique(of_sum):
        members = np.flatnonzero(of_sum == number)
        steps = [((phase[m], source[m], right[m]), int(step[m])) for m in members]
        for run in runs_below(steps):
            runs.append(list(range(len(order), len(order) + len(run))))
            order += [int(members[k]) for k in run]
    return *(each[order] for each in (tap, phase, source, down, right)), runs


def _sums_of_runs(runs: list[list[int]], at: np.ndarray, of_sum: np.ndarray) -> FilterRuns:
    """These runs, of terms in order, by the sum that each belongs to."""
    starts, lengths = np.array([run[0] for run in runs]), np.array([len(run) for run in runs])
    numbers = np.unique(of_sum)
    counts = (
        np.array([np.count_nonzero((of_sum[starts] == number) & (lengths == n)) for number in numbers])
        for n in RUNS
    )
    first, first_term = np.searchsorted(of_sum[starts], numbers), np.searchsorted(of_sum, numbers)
    return FilterRuns(at[starts], np.arange(len(at)), first, first_term, *counts)


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
    by_tap = empty((n, u * u, channels, kh * kw), by_term.dtype)
    by_tap[:, terms.phase, :, terms.tap] = by_term.reshape(n, channels, -1).transpose(2, 0, 1)
    return by_tap.reshape(by_term.shape)


@borrowing_jit
def _pack_image(target: np.ndarray, at: int, image: np.ndarray, rows: FilterRows, plan: FilterPlan) -> None:
    """All planes of one image."""
    for s in range(len(plan.terms.planes)):
        pack_rows(target, at + s * plan.planes.image, image, _rows_of_phase(plan.terms.planes[s], rows, plan))


@borrowing_jit
def _rows_of_phase(source: int, rows: FilterRows, plan: FilterPlan) -> PackedRows:
    """Those of x, of a phase of the stride."""
    stride, padding = plan.window.stride, plan.window.padding
    origin = (source // stride[1] - padding[0], source % stride[1] - padding[1])
    return PackedRows(rows.first, rows.height, plan.items.width, origin, stride)


@borrowing_jit
def _pack_filters(scratch: FilterScratch, weight: np.ndarray, rows: FilterRows, plan: FilterPlan) -> None:
    """One plane per term, then its strips; `weight` is that of one sample and group, (taps, Ho, Wo)."""
    terms, patches, planes, lanes = plan.terms, plan.patches, scratch.filters, patch_lanes(weight.itemsize)
    for term in range(len(terms.tap)):
        pack_rows(planes, terms.filter_at[term], weight[terms.tap[term]], _rows_of_term(term, rows, plan))
        to = term * PATCH_ROWS * lanes
        for unit in range(0, rows.height * plan.items.width, patches.unit):
            for j in range(unit, unit + patches.across * lanes, lanes):
                deal_patch(scratch.strips, to, planes, terms.filter_at[term] + j, patches.pitch)
                to += len(terms.tap) * PATCH_ROWS * lanes


@borrowing_jit
def _add_up(
    target: Matrix,
    channels: int,
    number: int,
    source: Matrix,
    scale: strips.Scale,
    scratch: FilterScratch,
    height: int,
    plan: FilterPlan,
) -> None:
    """The sum of this number, over so many rows of some channels."""
    runs, patches, lanes = plan.runs, plan.patches, patch_lanes(scratch.acc.itemsize)
    counts = Runs(runs.threes[number], runs.twos[number], runs.ones[number])
    first, values = runs.first_term[number], scratch.strips
    taps = PatchTaps(values, runs.offset[runs.first[number] :], runs.number[first:], counts, patches.pitch)
    at = first * PATCH_ROWS * lanes
    for unit in range(0, height * plan.items.width, patches.unit):
        for j in range(unit, unit + patches.across * lanes, lanes):
            apply_patch(target, channels, j, at, taps, source, scale)
            at += len(runs.number) * PATCH_ROWS * lanes


@borrowing_jit
def _rows_of_term(term: int, rows: FilterRows, plan: FilterPlan) -> PackedRows:
    """Those of the filters of a term."""
    origin, u = (plan.terms.filter_y[term], plan.terms.filter_x[term]), plan.window.upsample
    return PackedRows(rows.first, rows.height, plan.items.width, origin, (u, u))


@borrowing_jit
def _pack_output(
    target: np.ndarray, at: int, grad_output: np.ndarray, rows: FilterRows, plan: FilterPlan
) -> None:
    """The output gradient of one channel, with the rows above that taps lead to: a plane for each phase."""
    u, above, high = plan.window.upsample, rows.first - plan.halo, rows.height + plan.halo
    for phase in range(u * u):
        packed = PackedRows(above, high, plan.items.width, (phase // u, phase % u), (u, u))
        pack_rows(target, at + phase * plan.planes.output + plan.lead, grad_output, packed)


@borrowing_cached_jit
def general_forward_items(
    start: int, stop: int, scratch: FilterScratch, inputs: FilterArrays, y: np.ndarray, plan: FilterPlan
) -> None:
    """Items of the plan. `inputs` hold filters by tap and the scales of terms in a row."""
    x, weight, items, planes = inputs.x, inputs.weight, plan.items, plan.planes
    terms = len(plan.terms.tap)
    # What lies between rows comes to nothing, but should not be slow to multiply.
    clear(scratch.filters, 0, len(scratch.filters))
    for number in range(start, stop):
        item = find_item(number, items)
        for block in range(item.block, item.block_end):
            rows = find_rows(block, items)
            below = FilterRows(rows.first, rows.height + plan.halo)
            clear(scratch.images, 0, len(scratch.images))
            _pack_filters(scratch, weight[item.sample, item.group], rows, plan)
            for c in range(item.channel, item.channel_end, PATCH_CHANNELS):
                channels, first = min(PATCH_CHANNELS, item.channel_end - c), item.sample * x.shape[1] + c
                for k in range(channels):
                    _pack_image(scratch.images, k * planes.images, x[item.sample, c + k], below, plan)
                scale = strips.Scale(inputs.channel_weight, first * terms, terms, plan.window.add)
                _filter_phases(y[item.sample, c : c + channels], scratch, scale, rows, plan)


@borrowing_jit
def _filter_phases(
    y: np.ndarray, scratch: FilterScratch, scale: strips.Scale, rows: FilterRows, plan: FilterPlan
) -> None:
    """The outputs of some channels: row by row of phases."""
    u, plane, width = plan.window.upsample, plan.planes.filters, plan.items.width
    image = Matrix(scratch.images, 0, plan.planes.images)
    for phase in range(u * u):
        row, column = phase // u, phase % u
        target = Matrix(scratch.acc, column * plane, u * plane)
        _add_up(target, len(y), phase, image, scale, scratch, rows.height, plan)
        if column == u - 1:
            for k in range(len(y)):
                part = scratch.acc[k * u * plane :]
                unpack_phases(part, plane, y[k], rows.first, rows.height, width, row, u)


@borrowing_cached_jit
def general_backward_items(
    start: int, stop: int, scratch: FilterScratch, work: FilterWork, plan: FilterPlan
) -> None:
    """Items of the plan. `work` holds filters by tap and the scales of terms in a row."""
    (grad_output, inputs, grads), items, planes = work, plan.items, plan.planes
    x, weight = inputs.x, inputs.weight
    terms, needs_filters = len(plan.terms.tap), grads.weight.size + grads.channel_weight.size > 0
    for number in range(start, stop):
        item = find_item(number, items)
        for block in range(item.block, item.block_end):
            rows = find_rows(block, items)
            clear(scratch.filters, 0, len(scratch.filters))
            clear(scratch.grad_filters, 0, len(scratch.grad_filters))
            clear(scratch.images, 0, len(scratch.images))
            clear(scratch.outputs, 0, len(scratch.outputs))
            _pack_filters(scratch, weight[item.sample, item.group], rows, plan)
            for c in range(item.channel, item.channel_end, PATCH_CHANNELS):
                channels, first = min(PATCH_CHANNELS, item.channel_end - c), item.sample * x.shape[1] + c
                for k in range(channels):
                    grad = grad_output[item.sample, c + k]
                    _pack_output(scratch.outputs, k * planes.outputs, grad, rows, plan)
                    if needs_filters:
                        _pack_image(scratch.images, k * planes.images, x[item.sample, c + k], rows, plan)
                scale = strips.Scale(inputs.channel_weight, first * terms, terms, plan.window.add)
                if needs_filters:
                    grad_scale = Matrix(scratch.unwanted, 0, 0)
                    if grads.channel_weight.size:
                        slot = item.band * x.shape[0] * x.shape[1] + first
                        grad_scale = Matrix(grads.channel_weight, slot * terms, terms)
                    _add_grad_filters(scratch, grad_scale, channels, scale, rows.height, plan)
                if grads.x.size:
                    _write_grad_x(grads.x[item.sample, c : c + channels], scratch, scale, rows, plan)
            if grads.weight.size:
                grad_weight = grads.weight[item.chunk, item.sample, item.group]
                for term in range(terms):
                    grad, at = grad_weight[plan.terms.tap[term]], plan.terms.filter_at[term]
                    unpack_rows(scratch.grad_filters, at, grad, _rows_of_term(term, rows, plan))


@borrowing_jit
def _add_grad_filters(
    scratch: FilterScratch,
    grad_scale: Matrix,
    channels: int,
    scale: strips.Scale,
    height: int,
    plan: FilterPlan,
) -> None:
    """What some channels add to the gradients of filters and scales, in so many rows."""
    outputs, count = Matrix(scratch.outputs, 0, plan.planes.outputs), height * plan.items.width
    for s in range(len(plan.terms.planes)):
        first, end = plan.terms.plane_ends[s], plan.terms.plane_ends[s + 1]
        image = Matrix(scratch.images, s * plan.planes.image, plan.planes.images)
        taps = strips.Taps(scratch.filters, plan.terms.filter_at, plan.terms.output_at, first, end - first)
        sums = strips.Correlation(scratch.grad_filters, grad_scale, taps, image, outputs, scale)
        strips.correlate(sums, channels, count)


@borrowing_jit
def _write_grad_x(
    grad_x: np.ndarray, scratch: FilterScratch, scale: strips.Scale, rows: FilterRows, plan: FilterPlan
) -> None:
    """The gradients of some channels of x, one phase of the stride after the other."""
    outputs = Matrix(scratch.outputs, 0, plan.planes.outputs)
    target = Matrix(scratch.acc, 0, plan.planes.filters)
    for s in range(len(plan.terms.planes)):
        _add_up(target, len(grad_x), s, outputs, scale, scratch, rows.height, plan)
        packed = _rows_of_phase(plan.terms.planes[s], rows, plan)
        for k in range(len(grad_x)):
            unpack_rows(scratch.acc, k * plan.planes.filters, grad_x[k], packed)
