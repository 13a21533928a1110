"""The kernels of displaced units on lines, on the CPU: see `lines`."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import FALSE, TRUE, ZERO, borrowing_cached_jit, borrowing_jit, zero_like
from ..engine.gemm import Matrix, whole
from ..engine.pixels import clear, copy
from ..engine.vectors import REGISTER_BYTES, in_row
from .kernels import UnitParameters, UnitTargets
from .line_tiles import (
    LINE_ROWS,
    LINE_STRIP_BYTES,
    SUMMED_CHANNELS,
    SUMMED_TAPS,
    BlurWeights,
    LineRuns,
    LineTile,
    blur_line,
    multiply_lines,
    sum_lines_1,
    sum_lines_2,
    sum_lines_3,
)
from .tiles import UnitPointer

SUMMED_VECTORS = 32  # products added up in each lane before they join a sum in float64
SOURCES_TOGETHER = 64  # lines added up in registers before they join an output
BLURRED_PIXELS = 1024  # at a time


class LineTaps(NamedTuple):
    """The taps that units of a line read: pixels ``low`` to ``low + number - 1`` further on."""

    low: int
    number: int


class LineKernel(NamedTuple):
    """The dense kernel that units are together: (panels, sources, taps, LINE_ROWS), zeros beyond targets."""

    panels: np.ndarray
    targets: int
    sources: int
    taps: LineTaps


class LineBlur(NamedTuple):
    """Lines, one after the other, that are blurred as they are read."""

    source: np.ndarray
    length: int
    weights: BlurWeights
    radius: int


class LineOutput(NamedTuple):
    """Where outputs go: to some channels of the target."""

    base: np.ndarray  # (targets,): what to begin with
    target: np.ndarray  # flat
    first: int  # element of the first output
    image: int  # elements from an image to the next
    checks: np.ndarray  # one of each item: finite, or else something may not be


class LineParts(NamedTuple):
    """How outputs are divided into work items: (image, chunk of columns, part of the targets)."""

    columns: int  # of a chunk
    chunks: int
    targets: int  # of a part
    parts: int
    pitch: int  # from one line of scratch memory to the next


class LineSums(NamedTuple):
    """What sums for the gradients of units are made of: the output gradient, and how it is divided."""

    grad: np.ndarray  # flat
    images: int
    channels: int  # of the gradient
    first: int  # the first channel that is wanted
    targets: int  # of a part
    together: int  # images whose lines are added up in one chain
    pitch: int


class LineScratch(NamedTuple):
    """Memory of a thread."""

    lines: Any
    padded: Any  # see `_read_line`
    found: Any  # a vector for the check of outputs, or a tile of sums


class PlacesScratch(NamedTuple):
    """Places of some units, and how far behind them they are."""

    places: Any
    fractions: Any


@borrowing_jit
def _place_on_line(displacement: np.ndarray, unit: int, end: float, opposite: bool) -> tuple:
    """The pixel before the place of a unit, and the rest: of one at no number 0, and NaN."""
    d = displacement[np.uint64(2) * unit + np.uint64(1)]
    d = -d if opposite else d
    near = -end if d < -end else end if d > end else d
    before = np.floor(near)
    return np.int32(before) if d == d else np.int32(0), near - before


@borrowing_jit
def _end(parameters: UnitParameters) -> float:
    """How far away there is nothing to read."""
    return parameters.weight.dtype.type(parameters.size[1] + 1)


@borrowing_cached_jit
def find_extent_items(start: int, stop: int, parameters: UnitParameters, extents: np.ndarray) -> None:
    """Items: output channels. The least and the largest place of its units, then those of the opposite
    displacements, and whether any is off the line.
    """
    displacement, end = in_row(parameters.displacement), _end(parameters)
    units, least, most = parameters.weight[0].size, np.int32(-(2**31)), np.int32(2**31 - 1)
    for item in range(start, stop):
        low, high, low_opposite, high_opposite, off = most, least, most, least, np.int32(0)
        for i in range(np.uint64(units)):
            unit = np.uint64(item * units) + i
            place, _ = _place_on_line(displacement, unit, end, FALSE)
            opposite, _ = _place_on_line(displacement, unit, end, TRUE)
            low, high = min(low, place), max(high, place)
            low_opposite, high_opposite = min(low_opposite, opposite), max(high_opposite, opposite)
            off |= np.int32(displacement[np.uint64(2) * unit] != 0)
        extent = extents[item]
        extent[0], extent[1], extent[2], extent[3] = low, high, low_opposite, high_opposite
        extent[4] = off


@borrowing_jit
def _place_units(
    scratch: PlacesScratch, parameters: UnitParameters, first: int, count: int, opposite: bool
) -> None:
    """Places of the units from the first on."""
    displacement, end = in_row(parameters.displacement), _end(parameters)
    for i in range(np.uint64(count)):
        place, fraction = _place_on_line(displacement, np.uint64(first) + i, end, opposite)
        scratch.places[i], scratch.fractions[i] = place, fraction


@borrowing_cached_jit
def spread_unit_items(
    start: int, stop: int, scratch: PlacesScratch, targets: UnitTargets, kernel: LineKernel
) -> None:
    """Items: panels of the kernel. What is not finite makes an element that is not."""
    (weight, _, _), transposed = targets.parameters, targets.transposed
    flat, taps, (_, channels, per_pair) = in_row(weight), kernel.taps.number, weight.shape
    size = kernel.sources * taps * LINE_ROWS
    for item in range(start, stop):
        first, rows = targets.first + item * LINE_ROWS, min(LINE_ROWS, kernel.targets - item * LINE_ROWS)
        clear(kernel.panels, item * size, size)
        # Units in a row in memory: all of a target or, transposed, those of a source and the targets here.
        for outer in range(kernel.sources if transposed else rows):
            begin = (outer * channels + first if transposed else (first + outer) * channels) * per_pair
            pairs = rows if transposed else kernel.sources
            _place_units(scratch, targets.parameters, begin, pairs * per_pair, transposed)
            for pair in range(pairs):
                source, row = (outer, pair) if transposed else (pair, outer)
                to = item * size + (source * taps - kernel.taps.low) * LINE_ROWS + row
                for g in range(pair * per_pair, (pair + 1) * per_pair):
                    w, fraction = flat[np.uint64(begin + g)], scratch.fractions[np.uint64(g)]
                    at = np.uint64(to + scratch.places[np.uint64(g)] * LINE_ROWS)
                    kernel.panels[at] += w * (1 - fraction)
                    kernel.panels[at + np.uint64(LINE_ROWS)] += w * fraction


@borrowing_jit
def _read_line(
    target: np.ndarray, at: int, count: int, line: int, first: int, blur: LineBlur, padded: np.ndarray
) -> None:
    """Pixels of a blurred line from number `first` on; outside it is zero."""
    begin, length, radius = line * blur.length, blur.length, blur.radius
    low = min(count, max(0, -first))
    high = max(low, min(count, length - first))
    clear(target, at, low)
    clear(target, at + high, count - high)
    if blur.weights.number == 0:
        copy(target, at + low, blur.source, begin + first + low, high - low)
        return
    for done in range(low, high, BLURRED_PIXELS):
        number = min(BLURRED_PIXELS, high - done)
        # What the blur reads, zeros outside the line.
        window = first + done - radius
        left, right = max(0, -window), min(number + 2 * radius, length - window)
        clear(padded, ZERO, left)
        copy(padded, left, blur.source, begin + window + left, right - left)
        clear(padded, right, number + 2 * radius - right)
        blur_line(target, at + done, padded, ZERO, number, blur.weights)


@borrowing_cached_jit
def displace_line_items(
    start: int,
    stop: int,
    scratch: LineScratch,
    blur: LineBlur,
    kernel: LineKernel,
    output: LineOutput,
    parts: LineParts,
) -> None:
    """Items: see `LineParts`."""
    width, taps, sources = LINE_STRIP_BYTES // output.target.itemsize, kernel.taps.number, kernel.sources
    panel, lanes = sources * taps * LINE_ROWS, REGISTER_BYTES // output.target.itemsize
    for item in range(start, stop):
        chunk, begin = item // parts.parts, item % parts.parts * parts.targets
        image, column = chunk // parts.chunks, chunk % parts.chunks * parts.columns
        columns, end = min(parts.columns, blur.length - column), min(kernel.targets, begin + parts.targets)
        if item == start or begin == 0:
            count = whole(columns, width) + taps - 1
            for source in range(sources):
                line, first = image * sources + source, column + kernel.taps.low
                _read_line(scratch.lines, source * parts.pitch, count, line, first, blur, scratch.padded)
        clear(scratch.found, ZERO, lanes)
        to = output.first + image * output.image + column
        for source in range(0, sources, SOURCES_TOGETHER):
            together = min(SOURCES_TOGETHER, sources - source)
            for j in range(0, columns, width):
                lines = Matrix(scratch.lines, source * parts.pitch + j, parts.pitch)
                for t in range(begin, end, LINE_ROWS):
                    out = Matrix(output.target, to + t * blur.length + j, blur.length)
                    at = t // LINE_ROWS * panel + source * taps * LINE_ROWS
                    tile = LineTile(min(LINE_ROWS, end - t), min(width, columns - j), together, taps)
                    left, base = UnitPointer(kernel.panels, at), UnitPointer(output.base, t)
                    multiply_lines(out, left, lines, tile, base, source == 0, scratch.found)
        total = zero_like(scratch.found)
        for lane in range(lanes):
            total += scratch.found[lane]
        output.checks[item] = total


@borrowing_cached_jit
def correlate_line_items(
    start: int,
    stop: int,
    scratch: LineScratch,
    blur: LineBlur,
    taps: LineTaps,
    sums: LineSums,
    totals: np.ndarray,
) -> None:
    """Items: (source, part of the targets). Adds to `totals` (targets, sources, taps)."""
    lanes, length = REGISTER_BYTES // sums.grad.itemsize, blur.length
    all_targets, sources, number = totals.shape
    longest, parts = SUMMED_VECTORS * lanes, -(-all_targets // sums.targets)
    for item in range(start, stop):
        source, begin = item // parts, item % parts * sums.targets
        end = min(all_targets, begin + sums.targets)
        for image in range(0, sums.images, sums.together):
            images = min(sums.together, sums.images - image)
            for pixel in range(0, length, longest):
                count = min(longest, length - pixel)
                reads = whole(count, lanes) + whole(number, SUMMED_TAPS) - 1
                for i in range(images):
                    line, at = (image + i) * sources + source, i * sums.pitch
                    _read_line(scratch.lines, at, reads, line, pixel + taps.low, blur, scratch.padded)
                for t in range(begin, end, SUMMED_CHANNELS):
                    channels = min(SUMMED_CHANNELS, end - t)
                    at = (image * sums.channels + sums.first + t) * length + pixel
                    grads = LineRuns(sums.grad, at, sums.channels * length, length)
                    for tap in range(0, number, SUMMED_TAPS):
                        lines = LineRuns(scratch.lines, tap, sums.pitch, ZERO)
                        if channels == 3:
                            sum_lines_3(scratch.found, lines, grads, images, count)
                        elif channels == 2:
                            sum_lines_2(scratch.found, lines, grads, images, count)
                        else:
                            sum_lines_1(scratch.found, lines, grads, images, count)
                        for k in range(min(SUMMED_TAPS, number - tap)):
                            for i in range(channels):
                                totals[t + i, source, tap + k] += scratch.found[k * channels + i]


@borrowing_cached_jit
def finish_line_items(
    start: int,
    stop: int,
    scratch: PlacesScratch,
    totals: np.ndarray,
    low: int,
    targets: UnitTargets,
    kind: int,
    result: np.ndarray,
) -> None:
    """Items: target channels. As `finish_unit_items`, of totals (targets, sources, taps)."""
    weight, flat, sums = in_row(targets.parameters.weight), in_row(result), in_row(totals)
    _, sources, per_pair = targets.parameters.weight.shape
    step, kept, taps = np.uint64(result.shape[3]), 1 if kind else 0, totals.shape[2]
    for item in range(start, stop):
        first = (targets.first + item) * sources * per_pair
        _place_units(scratch, targets.parameters, first, sources * per_pair, FALSE)
        for source in range(sources):
            begin = (item * sources + source) * taps - low
            for g in range(source * per_pair, (source + 1) * per_pair):
                fraction = scratch.fractions[np.uint64(g)]
                at = np.uint64(begin + scratch.places[np.uint64(g)])
                slope = sums[at + np.uint64(1)] - sums[at]
                value = sums[at] + fraction * slope
                if kind == 2 and fraction == fraction:
                    value = slope
                if kind:
                    value *= weight[np.uint64(first + g)]
                flat[np.uint64(first + g) * step + np.uint64(kept)] = value


@borrowing_cached_jit
def blur_line_items(
    start: int, stop: int, scratch: LineScratch, blur: LineBlur, target: np.ndarray, first: tuple
) -> None:
    """Items: (image, channel). The blurred line, to the place in `target` that lies `first` further."""
    channels, flat = first[2], in_row(target)
    for item in range(start, stop):
        image, channel = first[0] + item // channels, first[1] + item % channels
        to = (image * target.shape[1] + channel) * blur.length
        _read_line(flat, to, blur.length, item, ZERO, blur, scratch.padded)


@borrowing_cached_jit
def multiply_line_items(
    start: int,
    stop: int,
    scratch: LineScratch,
    blur: LineBlur,
    grad: np.ndarray,
    first: tuple,
    totals: np.ndarray,
) -> None:
    """Items: (image, channel) of `grad`. Adds to `totals` the sum of gradient times blurred line."""
    channels, flat, longest = grad.shape[1], in_row(grad), BLURRED_PIXELS
    for item in range(start, stop):
        line = (first[0] + item // channels) * first[2] + first[1] + item % channels
        for pixel in range(0, blur.length, longest):
            count = min(longest, blur.length - pixel)
            _read_line(scratch.lines, ZERO, count, line, pixel, blur, scratch.padded)
            begin = np.uint64(item * blur.length + pixel)
            for j in range(np.uint64(count)):
                totals[item] += float(flat[begin + j]) * scratch.lines[j]
