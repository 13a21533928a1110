"""The kernels of `direct`: work items, row by row or band by band."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import strips
from ..engine.compile import ONE, borrowing_jit, rolled_jit, zero_like
from ..engine.gemm import Matrix
from ..engine.pixels import clear, copy, inside
from ..engine.vectors import in_row
from .direct_loops import (
    RowProducts,
    RowSum,
    TapColumns,
    TapRows,
    TapScale,
    find_ends,
    finite,
    multiply_row,
    spread_scale,
    sum_row,
)
from .direct_plan import DirectScratch
from .direct_planes import PlaneTerms, add_planes, pack_planes, scatter_terms
from .items import FilterArrays
from .repeated import fold, repeat


class DirectSums(NamedTuple):
    """The arrays of a sum over taps."""

    target: np.ndarray
    filters: np.ndarray
    source: np.ndarray
    scale: Any


class DirectProducts(NamedTuple):
    """The arrays of the gradients of filters, and of scales in each band; empty where they are not needed."""

    grad_output: np.ndarray
    inputs: FilterArrays
    grad_weight: np.ndarray
    grad_scale: np.ndarray


class DirectItem(NamedTuple):
    """One work item."""

    band: int
    group: int  # of all samples
    channel: int  # of all samples
    first: int  # row, and the end of its rows
    end: int


@borrowing_jit
def _find_direct(number: int, plan: Any) -> DirectItem:
    """The work item of a number."""
    items = plan.items
    group, band = number // items.bands, number % items.bands
    first, end = items.rows * band // items.bands, items.rows * (band + 1) // items.bands
    return DirectItem(band, group, group * items.per_group, first, end)


@borrowing_jit
def _scale(scratch: DirectScratch, given: Any, plan: Any) -> TapScale:
    """The scales of the channels of a group, which `_keep_scales` has kept."""
    scales, taps = plan.scales, plan.kernel[0] * plan.kernel[1]
    stride = scales.phases * taps * scales.apart
    return TapScale(given, scratch.scales, 0, stride, scales.apart, plan.window.add, scales.period)


@borrowing_jit
def _scale_at(item: DirectItem, c: int, phase: int, tap: int, plan: Any) -> int:
    """Where the weights of channel c of a group begin for the first phase of the columns."""
    items, phases = plan.items, plan.scales.phases
    sample, group = item.group // items.groups, item.group % items.groups
    image = (sample * phases + phase) * phases * items.groups * items.per_group
    return (image + group * items.per_group + c) * plan.kernel[0] * plan.kernel[1] + tap


@borrowing_jit
def _keep_scales(scratch: DirectScratch, given: Any, item: DirectItem, group: int, plan: Any) -> int:
    """The weights of the channels of an item's group, as loops read them, unless it is the `group` that has
    been kept already. Returns that of the item.
    """
    if item.group == group:
        return group
    items, scales, taps = plan.items, plan.scales, plan.kernel[0] * plan.kernel[1]
    scale, apart = _scale(scratch, given, plan), items.groups * items.per_group * taps
    for c in range(items.per_group if len(scratch.scales) else 0):
        for phase in range(scales.phases):
            for tap in range(taps):
                to = c * scale.stride + (phase * taps + tap) * scales.apart
                count = scales.strip + scales.phases
                spread_scale(scale, to, _scale_at(item, c, phase, tap, plan), apart, count)
    return item.group


@borrowing_jit
def _sources(row: int, plan: Any) -> tuple:
    """The first row that taps lead to from a row of results, and the end; either may be outside."""
    window, reach = plan.window, (plan.kernel[0] - 1) * plan.window.dilation[0]
    stride, u = window.stride[0], window.upsample
    if plan.back:
        last = row + window.padding[0]
        return -((reach - last) // stride) * u, (last // stride + 1) * u
    first = row // u * stride - window.padding[0]
    return first, first + reach + 1


@borrowing_jit
def _keep_rows(
    kept: np.ndarray, source: np.ndarray, item: DirectItem, start: int, stop: int, plan: Any
) -> None:
    """Rows of the image, of the channels of a group, to their slots."""
    lines = plan.lines
    for c in range(plan.items.per_group):
        for row in range(start, stop):
            begin = ((item.channel + c) * lines.rows + row) * lines.width
            at = c * lines.channel + row % lines.slots * lines.step * lines.length
            if lines.step == 1 and lines.repeat == 1:
                copy(kept, at + lines.margin, source, begin, min(lines.width, lines.length - lines.margin))
            elif lines.step == 1:
                repeat(kept, at + lines.margin * lines.repeat, source, begin, lines.width, lines.repeat)
            else:
                for phase in range(lines.step):
                    origin, to = phase - lines.margin, at + phase * lines.length
                    low, end = inside(lines.length // lines.repeat, 0, lines.width, origin, lines.step)
                    first = begin + low * lines.step + origin
                    if lines.repeat == 1:
                        _skip(kept, to + low, source, first, end - low, lines.step)
                    for e in range(low, low if lines.repeat == 1 else end):
                        pixel = begin + e * lines.step + origin
                        repeat(kept, to + e * lines.repeat, source, pixel, ONE, lines.repeat)


@borrowing_jit
def _skip(target: np.ndarray, to: int, source: np.ndarray, at: int, count: int, step: int) -> None:
    """So many elements, `step` apart."""
    if step == 2:
        for j in range(uint64(count)):
            target[uint64(to) + j] = source[uint64(at) + uint64(2) * j]
    else:
        for j in range(count):
            target[to + j] = source[at + j * step]


@borrowing_jit
def _find_taps(taps: TapRows, group: int, row: int, plan: Any) -> int:
    """The rows of taps of a row of results; return their number."""
    lines, window, number = plan.lines, plan.window, 0
    (kh, kw), (high, wide), u = plan.kernel, plan.outputs, window.upsample
    size = lines.step * lines.length
    for a in range(kh):
        shift = a * window.dilation[0] - window.padding[0]
        if plan.back:
            first = (row - shift) // window.stride[0] * u
            exists = (row - shift) % window.stride[0] == 0
            for output in range(max(0, first), min(high, first + u) if exists else 0):
                taps.tap[number] = output % plan.scales.phases * kh * kw + a * kw
                taps.filter_at[number] = ((group * kh + a) * kw * high + output) * wide
                taps.source_at[number] = output % lines.slots * size
                number += 1
        else:
            pixels = row // u * window.stride[0] + shift
            taps.tap[a] = row % plan.scales.phases * kh * kw + a * kw
            taps.filter_at[a] = ((group * kh + a) * kw * high + row) * wide
            taps.source_at[a] = (pixels % lines.slots if 0 <= pixels < lines.rows else lines.slots) * size
            number += 1
    return number


@borrowing_jit
def _keep_planes(planes: np.ndarray, source: np.ndarray, item: DirectItem, plan: Any) -> None:
    """The rows that taps lead to from a band, and zeros around them, in a plane for each column of taps."""
    lines, width, shifts = plan.lines, plan.lines.width, plan.planes.shift
    top = _sources(item.first, plan)[0]
    number = _sources(item.end - 1, plan)[1] - top
    low = min(number, max(0, -top))
    high = max(low, min(number, lines.rows - top))
    for c in range(plan.items.per_group):
        for b in range(len(shifts)):
            at, shift = c * plan.planes.channel + b * plan.planes.plane, shifts[b]
            begin = ((item.channel + c) * lines.rows + top + low) * width + shift
            count = (high - low) * width
            skip = min(count, max(0, -begin))
            count = max(skip, min(count, source.size - begin))
            clear(planes, at, low * width)
            copy(planes, at + low * width + skip, source, begin + skip, count - skip)
            clear(planes, at + high * width, (number - high) * width)
            for i in range(low, high):
                row = at + i * width
                for j in range(min(width, max(0, -shift))):
                    planes[row + j] = 0
                for j in range(max(0, width - max(0, shift)), width):
                    planes[row + j] = 0


@borrowing_jit
def _keep_band(planes: np.ndarray, source: np.ndarray, item: DirectItem, plan: Any) -> Matrix:
    """The rows that taps lead to from a band, in planes.

    Returns arrays that the caller has, who must not count references either.
    """
    if plan.planes.alike:
        _keep_planes(planes, source, item, plan)
    else:
        pack_planes(planes, source, item.channel, item.first, item.end - item.first, plan)
    return Matrix(planes, 0, plan.planes.channel)


@borrowing_jit
def _find_flat_taps(taps: TapRows, item: DirectItem, first: int, plan: Any) -> None:
    """The rows of taps of a band whose outputs are those from row `first` on, as if it were one row."""
    (kh, kw), (high, wide) = plan.kernel, plan.outputs
    for a in range(kh):
        shared = plan.back and plan.planes.alike
        down = a * plan.window.dilation[0] - plan.window.padding[0] if shared else 0
        taps.tap[a] = a * kw
        taps.filter_at[a] = ((item.group * kh + a) * kw * high + first - down) * wide
        taps.source_at[a] = plan.planes.row_at[a]


@borrowing_jit
def _sum_flat(scratch: DirectScratch, work: DirectSums, item: DirectItem, plan: Any) -> bool:
    """All results of a band as one row; False if what is not finite may have been met where no tap reads."""
    items = plan.items
    count = (item.end - item.first) * items.width
    source = _keep_band(scratch.planes, work.source, item, plan)
    _find_flat_taps(scratch.taps, item, item.first, plan)
    columns = _columns(plan, plan.planes.source_at)
    scale = _scale(scratch, work.scale, plan)
    number = len(columns.tap)
    sums = RowSum(
        work.filters, scratch.taps, plan.kernel[0], columns, 0, number, source, scale, count, scratch.corner
    )
    at, image = (item.channel * items.rows + item.first) * items.width, items.rows * items.width
    target, stream = Matrix(work.target, at, image), _stream(work.target)
    least, most = find_ends(sums)
    room = max(count, strips.strip_pixels(work.filters))
    last = source.at + (items.per_group - 1) * source.stride
    if least < 0 or most + room > work.filters.size or last + room > source.values.size:
        return False
    sum_row(target, sums, items.per_group, 0, count, stream)
    return not plan.back or finite(target, items.per_group, 0, count)


@borrowing_jit
def _columns(plan: Any, source_at: np.ndarray) -> TapColumns:
    columns = plan.columns
    return TapColumns(columns.tap, columns.filter_at, source_at, columns.low, columns.end)


@borrowing_jit
def _stream(target: np.ndarray) -> bool:
    """Whether no cache would keep a result of this size."""
    return target.size * target.itemsize >= strips.STREAM_BYTES


@rolled_jit
def direct_sum_items(start: int, stop: int, scratch: DirectScratch, arrays: DirectSums, plan: Any) -> None:
    """Items of the plan."""
    work = DirectSums(in_row(arrays.target), in_row(arrays.filters), in_row(arrays.source), arrays.scale)
    cleared, group = False, -1
    for number in range(start, stop):
        item = _find_direct(number, plan)
        group = _keep_scales(scratch, work.scale, item, group, plan)
        if plan.planes.plane and _sum_flat(scratch, work, item, plan):
            continue
        if not cleared:
            clear(scratch.kept, 0, len(scratch.kept))
            cleared = True
        done = max(0, _sources(item.first, plan)[0])
        for row in range(item.first, item.end):
            first, stop_at = _sources(row, plan)
            first, stop_at = max(done, first), min(plan.lines.rows, stop_at)
            _keep_rows(scratch.kept, work.source, item, first, stop_at, plan)
            done = max(done, stop_at)
            _sum_phases(scratch, work, item, row, plan)


@borrowing_jit
def _sum_phases(scratch: DirectScratch, work: DirectSums, item: DirectItem, row: int, plan: Any) -> None:
    """A row of results, one phase of its columns after the other."""
    items, results, lines = plan.items, plan.results, plan.lines
    source = Matrix(scratch.kept, 0, lines.channel)
    scale = _scale(scratch, work.scale, plan)
    columns = _columns(plan, plan.columns.source_at)
    at, image = (item.channel * items.rows + row) * items.width, items.rows * items.width
    in_place, most = results.step * results.folded == 1, results.length[0]
    target, stream = Matrix(work.target, at, image), in_place and _stream(work.target)
    number = _find_taps(scratch.taps, item.group, row, plan)
    for phase in range(len(results.first)):
        count, columns_number = results.length[phase], results.number[phase]
        if not in_place:
            target = Matrix(scratch.phase, phase * most, len(results.first) * most)
        if number * columns_number:
            sums = RowSum(
                work.filters,
                scratch.taps,
                number,
                columns,
                results.first[phase],
                columns_number,
                source,
                scale,
                count,
                scratch.corner,
            )
            sum_row(target, sums, items.per_group, results.low[phase], results.end[phase], stream)
        else:
            for c in range(items.per_group):
                clear(target.values, target.at + c * target.stride, count)
    for c in range(0 if in_place else items.per_group):
        phases = Matrix(scratch.phase, c * len(results.first) * most, most)
        if results.step == 1:
            fold(work.target, at + c * image, phases, items.width, results.folded)
            continue
        for phase in range(len(results.first) if results.folded > 1 else 0):
            part = Matrix(scratch.phase, phases.at + phase * most, most)
            fold(scratch.phase, part.at, part, results.length[phase] // results.folded, results.folded)
        _interleave(work.target, at + c * image, phases, items.width, results.step)


@borrowing_jit
def _interleave(target: np.ndarray, at: int, phases: Matrix, width: int, step: int) -> None:
    """Results of phases to their places in a row."""
    whole = width // 2 * 2 if step == 2 else 0
    if whole:
        even = uint64(phases.at)
        for j in range(uint64(whole // 2)):
            target[uint64(at) + uint64(2) * j] = phases.values[even + j]
            target[uint64(at) + uint64(2) * j + uint64(1)] = phases.values[even + uint64(phases.stride) + j]
    for j in range(whole, width):
        target[at + j] = phases.values[phases.at + j % step * phases.stride + j // step]


@borrowing_jit
def _scatter_band(scratch: DirectScratch, work: DirectSums, item: DirectItem, plan: Any) -> None:
    """All pixels of a band, from the outputs that lead there as one row."""
    (kh, kw), (high, wide), per_group = plan.kernel, plan.outputs, plan.items.per_group
    first, end = max(0, _sources(item.first, plan)[0]), min(high, _sources(item.end - 1, plan)[1])
    rows = max(0, end - first)
    clear(scratch.planes, 0, per_group * plan.planes.channel)
    _find_flat_taps(scratch.taps, item, first, plan)
    source = Matrix(work.source, (item.channel * high + first) * wide, high * wide)
    scale = _scale(scratch, work.scale, plan)
    for a in range(kh if rows else 0):
        for b in range(kw):
            at, tap = scratch.taps.filter_at[a] + b * high * wide, scratch.taps.tap[a] + b
            place = scratch.taps.source_at[a] + plan.planes.source_at[b]
            terms = PlaneTerms(work.filters, at, source, scale, tap, per_group)
            scatter_terms(Matrix(scratch.planes, place, plan.planes.channel), terms, rows * wide)
    add_planes(work.target, item.channel, scratch.planes, first, rows, item, plan)


@rolled_jit
def direct_scatter_items(
    start: int, stop: int, scratch: DirectScratch, arrays: DirectSums, plan: Any
) -> None:
    """Items of a plan that goes back, with planes, where outputs do not lie as the pixels do."""
    work = DirectSums(in_row(arrays.target), in_row(arrays.filters), in_row(arrays.source), arrays.scale)
    group = -1
    for number in range(start, stop):
        item = _find_direct(number, plan)
        group = _keep_scales(scratch, work.scale, item, group, plan)
        _scatter_band(scratch, work, item, plan)


@rolled_jit
def direct_product_items(
    start: int, stop: int, scratch: DirectScratch, arrays: DirectProducts, plan: Any
) -> None:
    """Items of the plan, which is that of the way there."""
    source, group = in_row(arrays.inputs.x), -1
    clear(scratch.kept, 0, len(scratch.kept))
    for number in range(start, stop):
        item = _find_direct(number, plan)
        group = _keep_scales(scratch, arrays.inputs.channel_weight, item, group, plan)
        done = max(0, _sources(item.first, plan)[0])
        clear(scratch.totals, 0, len(scratch.totals))
        if plan.planes.plane:
            image = _keep_band(scratch.planes, source, item, plan)
            _find_flat_taps(scratch.taps, item, item.first, plan)
            _multiply_taps(scratch, arrays, item, image, plan.planes.source_at, item.first, plan)
        for row in range(item.first, item.first if plan.planes.plane else item.end):
            first, stop_at = _sources(row, plan)
            first, stop_at = max(done, first), min(plan.lines.rows, stop_at)
            _keep_rows(scratch.kept, source, item, first, stop_at, plan)
            done = max(done, stop_at)
            _find_taps(scratch.taps, item.group, row, plan)
            image = Matrix(scratch.kept, 0, plan.lines.channel)
            _multiply_taps(scratch, arrays, item, image, plan.columns.source_at, row, plan)
        if arrays.grad_scale.size:
            _sum_scales(arrays.grad_scale, scratch.totals, item, plan)


@borrowing_jit
def _sum_scales(grad_scale: np.ndarray, totals: np.ndarray, item: DirectItem, plan: Any) -> None:
    """The gradients of the weights of channels from what was summed up for each lane."""
    items, phases, strip = plan.items, plan.scales.phases, plan.scales.strip
    taps, channels = plan.kernel[0] * plan.kernel[1], items.groups * items.per_group
    begin = item.band * items.samples * phases * phases * channels * taps
    for c in range(items.per_group):
        for phase in range(phases):
            for tap in range(taps):
                at = ((c * phases + phase) * taps + tap) * strip
                to = begin + _scale_at(item, c, phase, tap, plan)
                for column in range(phases):
                    total = zero_like(totals)
                    for lane in range(column, strip, phases):
                        total += totals[at + lane]
                    grad_scale[to + column * channels * taps] = total


@borrowing_jit
def _multiply_taps(
    scratch: DirectScratch,
    arrays: DirectProducts,
    item: DirectItem,
    source: Matrix,
    source_at: np.ndarray,
    row: int,
    plan: Any,
) -> None:
    """The gradients of all taps, of a row or of a whole band."""
    items, inputs, taps = plan.items, arrays.inputs, plan.kernel[0] * plan.kernel[1]
    image, count = items.rows * items.width, items.width
    if plan.planes.plane:
        count *= item.end - item.first
    grads = in_row(arrays.grad_weight)
    filters = in_row(inputs.weight)
    fixed = Matrix(in_row(arrays.grad_output), item.channel * image + row * items.width, image)
    scale = _scale(scratch, inputs.channel_weight, plan)
    wanted, stream, strip, own = grads.size > 0, _stream(grads), plan.scales.strip, plan.scales.phases * taps
    for a in range(plan.kernel[0]):
        for b in range(plan.kernel[1]):
            tap, at = scratch.taps.tap[a] + b, scratch.taps.filter_at[a] + b * image
            start = source.at + scratch.taps.source_at[a] + source_at[b]
            shifted = Matrix(source.values, start, source.stride)
            totals = Matrix(scratch.totals, tap * strip, own * strip)
            products = RowProducts(
                grads, filters, at, fixed, shifted, scale, tap, totals, items.per_group, wanted
            )
            multiply_row(products, count, stream)
