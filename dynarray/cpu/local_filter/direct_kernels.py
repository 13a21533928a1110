"""The kernels of `direct`: work items, row by row or band by band."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import strips
from ..engine.compile import ONE, borrowing_jit, rolled_jit, zero_like
from ..engine.gemm import Matrix
from ..engine.pixels import clear, copy, inside
from ..engine.vectors import in_row
from .direct_loops import RowProducts, RowSum, TapColumns, TapRows, find_ends, finite, multiply_row, sum_row
from .direct_plan import DirectScratch
from .direct_planes import PlaneTerms, add_planes, pack_planes, scatter_terms
from .items import FilterArrays


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
                _repeat(kept, at + lines.margin * lines.repeat, source, begin, lines.width, lines.repeat)
            else:
                for phase in range(lines.step):
                    origin, to = phase - lines.margin, at + phase * lines.length
                    low, end = inside(lines.length // lines.repeat, 0, lines.width, origin, lines.step)
                    first = begin + low * lines.step + origin
                    if lines.repeat == 1:
                        _skip(kept, to + low, source, first, end - low, lines.step)
                    for e in range(low, low if lines.repeat == 1 else end):
                        pixel = begin + e * lines.step + origin
                        _repeat(kept, to + e * lines.repeat, source, pixel, ONE, lines.repeat)


@borrowing_jit
def _repeat(target: np.ndarray, to: int, source: np.ndarray, at: int, count: int, times: int) -> None:
    """Each of so many elements several times."""
    if times == 2:  # a constant that the compiler can vectorise for
        for j in range(uint64(count)):
            target[uint64(to) + uint64(2) * j] = source[uint64(at) + j]
            target[uint64(to) + uint64(2) * j + uint64(1)] = source[uint64(at) + j]
    else:
        for j in range(count):
            for k in range(times):
                target[to + j * times + k] = source[at + j]


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
                taps.tap[number] = a * kw
                taps.filter_at[number] = ((group * kh + a) * kw * high + output) * wide
                taps.source_at[number] = output % lines.slots * size
                number += 1
        else:
            pixels = row // u * window.stride[0] + shift
            taps.tap[a] = a * kw
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
    items, taps = plan.items, plan.kernel[0] * plan.kernel[1]
    count = (item.end - item.first) * items.width
    source = _keep_band(scratch.planes, work.source, item, plan)
    _find_flat_taps(scratch.taps, item, item.first, plan)
    columns = _columns(plan, plan.planes.source_at)
    scale = strips.Scale(work.scale, item.channel * taps, taps, plan.window.add)
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
    cleared = False
    for number in range(start, stop):
        item = _find_direct(number, plan)
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
    taps = plan.kernel[0] * plan.kernel[1]
    source = Matrix(scratch.kept, 0, lines.channel)
    scale = strips.Scale(work.scale, item.channel * taps, taps, plan.window.add)
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
            _fold(work.target, at + c * image, phases, items.width, results.folded)
            continue
        for phase in range(len(results.first) if results.folded > 1 else 0):
            part = Matrix(scratch.phase, phases.at + phase * most, most)
            _fold(scratch.phase, part.at, part, results.length[phase] // results.folded, results.folded)
        _interleave(work.target, at + c * image, phases, items.width, results.step)


@borrowing_jit
def _fold(target: np.ndarray, at: int, sums: Matrix, width: int, folded: int) -> None:
    """Results of which so many add up."""
    if folded == 2:
        first = uint64(sums.at)
        for j in range(uint64(width)):
            pair = first + uint64(2) * j
            target[uint64(at) + j] = sums.values[pair] + sums.values[pair + uint64(1)]
    else:
        for j in range(width):
            total = sums.values[sums.at + j * folded]
            for k in range(1, folded):
                total += sums.values[sums.at + j * folded + k]
            target[at + j] = total


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
    rows, taps = max(0, end - first), kh * kw
    clear(scratch.planes, 0, per_group * plan.planes.channel)
    _find_flat_taps(scratch.taps, item, first, plan)
    source = Matrix(work.source, (item.channel * high + first) * wide, high * wide)
    scale = strips.Scale(work.scale, item.channel * taps, taps, plan.window.add)
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
    for number in range(start, stop):
        _scatter_band(scratch, work, _find_direct(number, plan), plan)


@rolled_jit
def direct_product_items(
    start: int, stop: int, scratch: DirectScratch, arrays: DirectProducts, plan: Any
) -> None:
    """Items of the plan, which is that of the way there."""
    items, taps = plan.items, plan.kernel[0] * plan.kernel[1]
    source, grad_scale = in_row(arrays.inputs.x), arrays.grad_scale
    strip = strips.strip_pixels(source)
    clear(scratch.kept, 0, len(scratch.kept))
    for number in range(start, stop):
        item = _find_direct(number, plan)
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
        if grad_scale.size:
            begin = (item.band * items.samples * items.groups * items.per_group + item.channel) * taps
            for k in range(items.per_group * taps):
                total = zero_like(source)
                for lane in range(strip):
                    total += scratch.totals[k * strip + lane]
                grad_scale[begin + k] = total


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
    scale = strips.Scale(inputs.channel_weight, item.channel * taps, taps, plan.window.add)
    strip, wanted, stream = strips.strip_pixels(grads), grads.size > 0, _stream(grads)
    for a in range(plan.kernel[0]):
        for b in range(plan.kernel[1]):
            tap, at = a * plan.kernel[1] + b, scratch.taps.filter_at[a] + b * image
            start = source.at + scratch.taps.source_at[a] + source_at[b]
            shifted = Matrix(source.values, start, source.stride)
            totals = Matrix(scratch.totals, tap * strip, taps * strip)
            products = RowProducts(
                grads, filters, at, fixed, shifted, scale, tap, totals, items.per_group, wanted
            )
            multiply_row(products, count, stream)
