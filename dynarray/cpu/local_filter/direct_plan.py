"""How `direct` keeps rows of images, where its taps are, and how its work is divided."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import strips
from ..engine.pixels import whole_lines
from ..engine.references import Reference
from ..engine.vectors import REGISTER_BYTES
from .direct_loops import TapColumns, TapRows
from .items import FilterWindow, Shape, wanted_bands

# Channels of a group, at most: with more, filters that are packed once serve enough of them.
_MOST_CHANNELS, _MOST_UPSAMPLED = 4, 8
_PLANES_BYTES = 256 * 1024  # of a band of a group's images, where that is worked on at a time
# Outputs of a row, times channels that share its filters: with more, what taps read is not copied for each.
_SHORT_ROW = 128
# Elements of a row that may as well be summed up by itself; of shorter ones, bands are small enough to copy.
_LONG_ROW = 128
_KEPT_BYTES = 1024 * 1024  # rows of a group's images that a thread keeps, at most


class DirectLines(NamedTuple):
    """How rows of an image are kept.

    Element e of phase f is that of column ``e // repeat * step + f - margin``.
    """

    rows: int
    width: int
    step: int
    repeat: int
    margin: int
    length: int  # elements of a phase
    slots: int  # rows at a time; behind them is one of zeros
    channel: int  # elements of a channel


class DirectResults(NamedTuple):
    """Phases of a row of results: their columns of taps, and which results they are.

    Result j of a phase is one of `folded` that add up to that of column ``column + j // folded * step``.
    """

    first: np.ndarray  # column of taps
    number: np.ndarray
    low: np.ndarray  # from here to the end, all of these have filters
    end: np.ndarray
    column: np.ndarray
    length: np.ndarray
    step: int
    folded: int


class DirectItems(NamedTuple):
    """Work items (sample, group, band of rows of results)."""

    samples: int
    groups: int
    per_group: int  # channels
    rows: int
    width: int
    bands: int


class DirectScales(NamedTuple):
    """How the scales of the channels of a group lie in a thread's memory."""

    phases: int  # of rows of results, each with scales of its own
    period: Any  # and of their columns; None if all results have the same
    apart: int  # from tap to tap
    strip: int  # elements of what becomes the gradient of a scale


class DirectPlanes(NamedTuple):
    """A band of an image, once for each column of taps, which reads its planes where its results are."""

    plane: int  # elements of a plane; none where bands are worked on row by row
    channel: int  # elements of a channel
    alike: bool  # whether outputs lie as the pixels do; else see `direct_planes`
    shift: np.ndarray  # from the columns of results to those of the image
    source_at: np.ndarray  # by column of taps
    row_at: np.ndarray  # by row of taps
    phase: np.ndarray  # the rows of a stride that are read, each in planes of its own
    below: np.ndarray  # rows of these beyond those of results
    image: Shape  # rows and columns


class DirectPlan(NamedTuple):
    """For results that are outputs or, on the way `back`, pixels."""

    back: bool
    kernel: Shape
    outputs: Shape
    scales: DirectScales
    window: FilterWindow
    items: DirectItems
    lines: DirectLines
    columns: TapColumns
    results: DirectResults
    planes: DirectPlanes


class DirectScratch(NamedTuple):
    """A thread's memory."""

    kept: Any  # rows of the channels of a group
    planes: Any  # or all of a band
    corner: Any  # `RowSum`
    phase: Any  # of a row of their results
    taps: Any  # `TapRows`
    scales: Any
    totals: Any  # of gradients of scales, and room for those of filters


class DirectCall(NamedTuple):
    """A plan, as kernels take it; and what running them takes."""

    reference: Reference
    scratch: DirectScratch
    bands: int
    total: int
    operations: float
    scatters: bool  # whether a kernel of its own sums up in planes


@lru_cache(maxsize=256)
def is_direct(x: Shape, weight: Shape, itemsize: int, window: FilterWindow, *, scaled: bool) -> bool:
    """Whether few channels share filters, and the rows that are kept for them are not too many."""
    most = (_MOST_CHANNELS if window.upsample == 1 or scaled else _MOST_UPSAMPLED) * weight[1]
    if 0 in x or 0 in weight or x[1] > most:
        return False
    calls = (direct_plan(x, weight, itemsize, window, back=back, scaled=scaled) for back in (False, True))
    return all(max(call.scratch.kept, call.scratch.scales) * itemsize <= _KEPT_BYTES for call in calls)


@lru_cache(maxsize=256)
def direct_plan(
    x: Shape, weight: Shape, itemsize: int, window: FilterWindow, *, back: bool, scaled: bool
) -> DirectCall:
    """For arrays of these shapes; `scaled` if channels have weights."""
    kernel, outputs, u, per_group = weight[2:4], weight[4:], window.upsample, x[1] // weight[1]
    strip, reach = strips.STRIP_BYTES // itemsize, (kernel[0] - 1) * window.dilation[0]
    if back:
        size, source, slots = x[2:], outputs, (reach // window.stride[0] + 1) * u
    else:
        size, source, slots = outputs, x[2:], reach + 1
    columns, results, margin = (_columns_back if back else _columns_there)(x[3], weight, window)
    step, repeat = (1, 1) if back else (window.stride[1], u)
    phase, shift = columns.source_at % step, columns.source_at // step * repeat
    most, slots = int(results.length.max()), min(source[0], slots)
    length = whole_lines(max(margin + outputs[1] if back else 0, most + int(shift.max(initial=0))) + strip)
    lines = DirectLines(
        source[0], source[1], step, repeat, margin, length, slots, (slots + 1) * step * length
    )
    bands = max(wanted_bands(weight), _bands_in_planes(x, weight, itemsize, window))
    items = DirectItems(weight[0], weight[1], per_group, size[0], size[1], min(size[0], bands))
    columns = columns._replace(source_at=phase * length + shift)
    planes = _band_planes(x, weight, itemsize, window, items, back=back)
    scales = _scales(itemsize, u if scaled else 1)
    plan = DirectPlan(back, kernel, outputs, scales, window, items, lines, columns, results, planes)
    rows: Any = (kernel[0] * u, np.intp)
    scratch = DirectScratch(
        kept=per_group * lines.channel,
        planes=per_group * planes.channel,
        corner=per_group * strip,
        phase=per_group * len(results.length) * most if results.step * results.folded > 1 else 0,
        taps=TapRows(rows, rows, rows),
        scales=per_group * scales.phases * kernel[0] * kernel[1] * scales.apart if scaled else 0,
        totals=0 if back else per_group * scales.phases * kernel[0] * kernel[1] * scales.strip,
    )
    total = items.samples * items.groups * items.bands
    # Reading a filter takes as long as several multiplications, and longer still from memory.
    operations = math.prod(weight) * (2.0 + per_group) / 1.5
    scatters = back and bool(planes.plane) and not planes.alike
    return DirectCall(Reference(plan), scratch, items.bands, total, operations, scatters)


def _bands_in_planes(x: Shape, weight: Shape, itemsize: int, window: FilterWindow) -> int:
    """Bands so small that they can be worked on at a time, where rows are short."""
    kw, wide, reach = weight[3], weight[5], (weight[2] - 1) * window.dilation[0]
    if x[2:] != weight[4:] or window.stride != (1, 1) or wide >= _LONG_ROW:
        return 1
    fitting = _PLANES_BYTES // (x[1] // weight[1] * kw * wide * itemsize) - 1 - reach
    return -(-x[2] // fitting) if fitting > 2 * reach else 1


def _scales(itemsize: int, phases: int) -> DirectScales:
    """Numbers, or rows of them, with room for a strip from any number of a period on, in whole vectors."""
    strip, lanes = strips.STRIP_BYTES // itemsize, REGISTER_BYTES // itemsize
    if phases == 1:
        return DirectScales(1, None, 1, strip)
    return DirectScales(phases, phases, strip + 2 * (phases + lanes), strip + phases)


def _band_planes(
    x: Shape, weight: Shape, itemsize: int, window: FilterWindow, items: DirectItems, *, back: bool
) -> DirectPlanes:
    """Where a band is small."""
    (kh, kw), wide, stride, down = weight[2:4], weight[5], window.stride[0], window.dilation[0]
    alike, row = x[2:] == weight[4:] and window.stride == (1, 1), np.arange(kh)
    band = -(-items.rows // items.bands)
    below_of_row, phase_of_row = np.divmod(row * down, stride)
    if back and not alike:  # rows of outputs that lead to those of the band
        band = min(weight[4], (band - 1 + (kh - 1) * down) // stride + 1)
    phase, number = np.unique(phase_of_row, return_inverse=True)
    below = np.array([below_of_row[number == q].max() for q in range(len(phase))])
    plane = whole_lines((band + int(below.max())) * wide + strips.STRIP_BYTES // itemsize)
    tap, row_at = np.arange(kw), number.reshape(-1) * kw * plane + below_of_row * wide
    channel, sign = len(phase) * kw * plane, 1
    if back and alike:
        row_at, sign = row_at[::-1].copy(), -1
    long = not alike and items.per_group > 1 and items.per_group * wide > _SHORT_ROW
    large = items.per_group * channel * itemsize > _PLANES_BYTES
    if window.upsample > 1 or window.stride[1] > 2 or long or large:
        plane = channel = 0
    shift = sign * (tap * window.dilation[1] - window.padding[1])
    return DirectPlanes(plane, channel, alike, shift, tap * plane, row_at, phase, below, x[2:])


def _columns_there(width: int, weight: Shape, window: FilterWindow) -> tuple[TapColumns, DirectResults, int]:
    """Columns of taps for outputs; each has filters for all of them. And the margin of an image."""
    kw, (high, wide) = weight[3], weight[4:]
    tap, none = np.arange(kw), np.zeros(kw, np.intp)
    columns = TapColumns(tap, tap * (high * wide), tap * window.dilation[1], none, none + wide)
    results = _results([(0, kw, 0, wide, 0, wide)], 1, 1)
    return columns, results, window.padding[1]


def _columns_back(width: int, weight: Shape, window: FilterWindow) -> tuple[TapColumns, DirectResults, int]:
    """The same for pixels, whose columns lead to outputs only in one phase of the stride each."""
    kw, (high, wide), u, step = weight[3], weight[4:], window.upsample, window.stride[1]
    columns: list[tuple[int, ...]] = []
    results: list[tuple[int, ...]] = []
    for column in range(min(step, width)):
        count, first = -(-(width - column) // step) * u, len(columns)
        for tap in range(kw):
            ahead, rest = divmod(column + window.padding[1] - tap * window.dilation[1], step)
            if rest == 0:  # result j reads output j + ahead
                ahead *= u
                low, end = max(0, -ahead), min(count, wide - ahead)
                columns.append((tap, tap * high * wide + ahead, ahead, low, end))
        low = max((each[3] for each in columns[first:]), default=0)
        end = min((each[4] for each in columns[first:]), default=0)
        results.append((first, len(columns) - first, low, end, column, count))
    margin = max(0, -min((each[2] for each in columns), default=0))
    of_taps = TapColumns(*np.array(columns, np.intp).reshape(-1, 5).T.copy())
    of_taps = of_taps._replace(source_at=of_taps.source_at + margin)
    return of_taps, _results(results, step, u), margin


def _results(phases: list[tuple[int, ...]], step: int, folded: int) -> DirectResults:
    first, number, low, end, column, length = np.array(phases, np.intp).T.copy()
    return DirectResults(first, number, low, end, column, length, step, folded)
