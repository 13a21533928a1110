"""The kernels of displaced units on lines, on the CPU: see `lines`."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import FALSE, ZERO, borrowing_cached_jit, borrowing_jit, zero_like
from ..engine.gemm import Matrix, whole
from ..engine.pixels import clear, copy
from ..engine.vectors import REGISTER_BYTES, in_row
from .kernels import UnitParameters, UnitTargets, split_along
from .line_tiles import (
    BROAD_VECTORS,
    LONG_VECTORS,
    OUTPUT_SUMS,
    SUMMED_CHANNELS,
    SUMMED_TAPS,
    SUMS,
    BlurWeights,
    KernelRows,
    LineRuns,
    LineTaps,
    LineTile,
    UnitRun,
    UnitSide,
    add_sums_1,
    add_sums_2,
    add_sums_3,
    blur_line,
    find_extremes,
    multiply_broad,
    multiply_long,
    multiply_narrow,
    spread_units,
)
from .tiles import UnitPointer

SUMMED_VECTORS = 32  # products added up in each lane before they join a sum in float64
SOURCES_TOGETHER = 64  # lines added up in registers before they join an output
BLURRED_PIXELS = 1024  # at a time
ROW_CACHE_BYTES = (
    16 * 1024
)  # of lines that all tiles of some rows of outputs read: a part of a common L1 cache


class LineKernel(NamedTuple):
    """The dense kernel that units are together."""

    values: np.ndarray  # flat
    targets: int
    sources: int
    target: int  # elements from a target to the next
    source: int
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
    vectors: int  # of a row of a tile


class LineSums(NamedTuple):
    """What sums for the gradients of units are made of, and where they go: tiles of sums in float64.

    Of a tile sum ``SUMMED_TAPS*t + k`` is that of channel t and tap k.
    """

    grad: np.ndarray  # flat
    channels: int  # of the gradient
    first: int  # the first channel that is wanted
    targets: int
    sources: int
    totals: np.ndarray  # (parts of the images, tiles of channels, sources, tiles of taps, SUMS)


class SumParts(NamedTuple):
    """How sums are divided into work items: (part of the images, of the sources, of the targets)."""

    images: int  # of all
    image: int  # of a part
    sources: int
    targets: int
    together: int  # images whose lines are added up in one chain
    pitch: int


class LineScratch(NamedTuple):
    """Memory of a thread."""

    lines: Any
    padded: Any  # see `_read_line`
    check: Any  # a vector


class UnitGradients(NamedTuple):
    """Results (O, C, G) and (O, C, G, 2), of which the second along x, and which of them are wanted."""

    weight: np.ndarray
    displacement: np.ndarray
    by_weight: bool
    by_displacement: bool
    smooth: bool  # the sums are those of derivatives already


@borrowing_jit
def _place_on_line(displacement: np.ndarray, unit: int, end: float, opposite: bool) -> tuple:
    """The pixel before the place of a unit, and the rest: see `split_along`."""
    d = displacement[np.uint64(2) * unit + np.uint64(1)]
    before, rest = split_along(-d if opposite else d, end)
    return np.int32(before), rest


@borrowing_jit
def _end(parameters: UnitParameters) -> float:
    """How far away there is nothing to read."""
    return parameters.weight.dtype.type(parameters.size[1] + 1)


@borrowing_cached_jit
def find_extent_items(
    start: int, stop: int, parameters: UnitParameters, found: np.ndarray, extents: np.ndarray
) -> None:
    """Items: parts of the units. The least and the largest place of these, then those of the opposite
    displacements, and whether any is off the line. Negative, what is largest is the least too.

    `found` has room for three vectors of each; in these, y and x of displacements take turns.
    """
    flat, displacement, end = in_row(found), in_row(parameters.displacement), _end(parameters)
    units, (items, lanes) = parameters.weight.size, (len(found), found.shape[1] // 3)
    for item in range(start, stop):
        first, own = units * item // items, found[item]
        number = units * (item + 1) // items - first
        find_extremes(flat, item * 3 * lanes, displacement, 2 * first, 2 * number)
        least, largest, unknown, off = own[1], own[lanes + 1], ZERO, ZERO
        for lane in range(0, lanes, 2):
            least, largest = min(least, own[lane + 1]), max(largest, own[lanes + lane + 1])
            unknown |= own[2 * lanes + lane + 1] > 0
            off |= own[lane] < 0 or own[lanes + lane] > 0 or own[2 * lanes + lane] > 0
        extent = extents[item]
        extent[0], extent[1], extent[2], extent[3] = 2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1
        if least <= largest:
            extent[0], extent[1] = split_along(least, end)[0], -split_along(largest, end)[0]
            extent[2], extent[3] = split_along(-largest, end)[0], -split_along(-least, end)[0]
        for k in range(4 if unknown else 0):  # what is NaN is at place 0
            extent[k] = min(extent[k], 0)
        extent[4] = -off


@borrowing_cached_jit
def spread_unit_items(start: int, stop: int, targets: UnitTargets, kernel: LineKernel) -> None:
    """Items: output channels. What is not finite makes taps that are not."""
    (weight, displacement, size), transposed, first = targets
    flat, places, number = in_row(weight), in_row(displacement), weight.shape[2]
    side = UnitSide(-1 if transposed else 1, size[1] + 1)
    inner = kernel.targets if transposed else kernel.sources
    for item in range(start, stop):
        for k in range(inner):
            o, c = (item, first + k) if transposed else (first + item, k)
            target, source = (k, item) if transposed else (item, k)
            at = target * kernel.target + source * kernel.source
            run = UnitRun((o * weight.shape[1] + c) * number, number)
            spread_units(kernel.values, at, flat, places, run, kernel.taps, side)


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
        # What the blur reads, zeros outside the line, and where the last vector is read as a whole.
        window = first + done - radius
        left, right = max(0, -window), min(number + 2 * radius, length - window)
        clear(padded, ZERO, left)
        copy(padded, left, blur.source, begin + window + left, right - left)
        clear(padded, right, number + 2 * radius + REGISTER_BYTES // padded.itemsize - right)
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
    lanes, taps, sources = REGISTER_BYTES // output.target.itemsize, kernel.taps.number, kernel.sources
    width, rows = parts.vectors * lanes, OUTPUT_SUMS // parts.vectors
    for item in range(start, stop):
        chunk, begin = item // parts.parts, item % parts.parts * parts.targets
        image, column = chunk // parts.chunks, chunk % parts.chunks * parts.columns
        columns, end = min(parts.columns, blur.length - column), min(kernel.targets, begin + parts.targets)
        if item == start or begin == 0:
            count = whole(columns, width) + taps - 1
            for source in range(sources):
                line, first = image * sources + source, column + kernel.taps.low
                _read_line(scratch.lines, source * parts.pitch, count, line, first, blur, scratch.padded)
        clear(scratch.check, ZERO, lanes)
        to = output.first + image * output.image + column
        for source in range(0, sources, SOURCES_TOGETHER):
            together = min(SOURCES_TOGETHER, sources - source)
            # Row by row while lines are few: a cache line that two tiles of a row share is then written once.
            down, along = -(-(end - begin) // rows), -(-columns // width)
            by_row = together * parts.pitch * kernel.values.itemsize <= ROW_CACHE_BYTES
            for number in range(down * along):
                t = begin + (number // along if by_row else number % down) * rows
                j = (number % along if by_row else number // down) * width
                lines = Matrix(scratch.lines, source * parts.pitch + j, parts.pitch)
                out = Matrix(output.target, to + t * blur.length + j, blur.length)
                tile = LineTile(min(rows, end - t), min(width, columns - j), together, taps)
                at, base = t * kernel.target + source * kernel.source, UnitPointer(output.base, t)
                left = KernelRows(kernel.values, at, kernel.target, kernel.source)
                if parts.vectors == BROAD_VECTORS:
                    multiply_broad(out, left, lines, tile, base, source == 0, scratch.check)
                elif parts.vectors == LONG_VECTORS:
                    multiply_long(out, left, lines, tile, base, source == 0, scratch.check)
                else:
                    multiply_narrow(out, left, lines, tile, base, source == 0, scratch.check)
        total = zero_like(scratch.check)
        for lane in range(lanes):
            total += scratch.check[lane]
        output.checks[item] = total


@borrowing_cached_jit
def correlate_line_items(
    start: int,
    stop: int,
    scratch: LineScratch,
    blur: LineBlur,
    taps: LineTaps,
    sums: LineSums,
    parts: SumParts,
) -> None:
    """Items: see `SumParts`. Writes `totals`."""
    lanes, length, totals = REGISTER_BYTES // sums.grad.itemsize, blur.length, in_row(sums.totals)
    longest, reads = SUMMED_VECTORS * lanes, whole(taps.number, SUMMED_TAPS) - 1
    across, of_source = -(-sums.targets // parts.targets), sums.totals.shape[3] * SUMS
    of_channels = sums.sources * of_source
    for item in range(start, stop):
        begin, rest = item % across * parts.targets, item // across
        down = -(-sums.sources // parts.sources)
        first, split = rest % down * parts.sources, rest // down
        end, last = min(sums.targets, begin + parts.targets), min(sums.sources, first + parts.sources)
        stop_image = min(parts.images, (split + 1) * parts.image)
        to = split * sums.totals.shape[1] * of_channels
        for t in range(begin // SUMMED_CHANNELS, -(-end // SUMMED_CHANNELS)):
            clear(totals, to + t * of_channels + first * of_source, (last - first) * of_source)
        for image in range(split * parts.image, stop_image, parts.together):
            images = min(parts.together, stop_image - image)
            for pixel in range(0, length, longest):
                count = min(longest, length - pixel)
                for source in range(first, last):
                    for i in range(images):
                        line, at = (image + i) * sums.sources + source, i * parts.pitch
                        number, place = whole(count, lanes) + reads, pixel + taps.low
                        _read_line(scratch.lines, at, number, line, place, blur, scratch.padded)
                    lines = LineRuns(scratch.lines, ZERO, parts.pitch, ZERO)
                    at = (image * sums.channels + sums.first) * length + pixel
                    grads = LineRuns(sums.grad, at, sums.channels * length, length)
                    own = Matrix(totals, to + source * of_source, of_channels)
                    _add_sums(own, lines, grads, (begin, end, taps.number), (images, count))


@borrowing_jit
def _add_sums(totals: Matrix, lines: LineRuns, grads: LineRuns, tiles: tuple, size: tuple) -> None:
    """Add up some images and pixels, for the channels from the first to the second number, and taps.

    Rows of `totals` are those of a tile of channels.
    """
    (begin, end, taps), (images, count) = tiles, size
    for t in range(begin, end, SUMMED_CHANNELS):
        own = LineRuns(grads.values, grads.at + t * grads.channels, grads.images, grads.channels)
        for tap in range(0, taps, SUMMED_TAPS):
            moved = LineRuns(lines.values, lines.at + tap, lines.images, lines.channels)
            at = totals.at + t // SUMMED_CHANNELS * totals.stride + tap // SUMMED_TAPS * SUMS
            if end - t >= 3:
                add_sums_3(moved, own, images, count, totals.values, at)
            elif end - t == 2:
                add_sums_2(moved, own, images, count, totals.values, at)
            else:
                add_sums_1(moved, own, images, count, totals.values, at)


@borrowing_cached_jit
def finish_line_items(
    start: int,
    stop: int,
    sums: LineSums,
    taps: LineTaps,
    targets: UnitTargets,
    grads: UnitGradients,
    checks: np.ndarray,
) -> None:
    """Items: target channels. Gradients from the first part of `totals`, and whether sums are finite."""
    _, sources, number = targets.parameters.weight.shape
    weight, totals = in_row(targets.parameters.weight), in_row(sums.totals)
    by_weight, by_displacement = in_row(grads.weight), in_row(grads.displacement)
    displacement, end = in_row(targets.parameters.displacement), _end(targets.parameters)
    one, two, of_source = np.uint64(1), np.uint64(2), sums.totals.shape[3] * SUMS
    short = taps.number <= SUMMED_TAPS
    for item in range(start, stop):
        check = 0.0
        of_channel = item // SUMMED_CHANNELS * sources * of_source + item % SUMMED_CHANNELS * SUMMED_TAPS
        for source in range(sources):
            begin = np.uint64(source * of_source + of_channel)
            first = np.uint64(((targets.first + item) * sources + source) * number)
            for unit in range(first, first + np.uint64(number)):
                place, fraction = _place_on_line(displacement, unit, end, FALSE)
                tap = place - taps.low
                at, after = np.uint64(tap), np.uint64(tap + 1)
                if not short:
                    at += np.uint64(tap // SUMMED_TAPS * (SUMS - SUMMED_TAPS))
                    after += np.uint64((tap + 1) // SUMMED_TAPS * (SUMS - SUMMED_TAPS))
                nearer, farther = totals[begin + at], totals[begin + after]
                slope = farther - nearer
                check += 0.0 * (abs(nearer) + abs(farther))  # of which none cancels another
                value = nearer + fraction * slope
                if grads.by_weight:
                    by_weight[unit] = value
                if grads.by_displacement:
                    if fraction == fraction and not grads.smooth:
                        value = slope
                    by_displacement[two * unit] = 0
                    by_displacement[two * unit + one] = weight[unit] * value
        checks[item] = check


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
