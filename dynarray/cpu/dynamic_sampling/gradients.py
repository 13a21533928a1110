"""The gradients of `dynamic_sampling_conv2d` on the CPU: the kernels, in two passes over a band of rows.

The first goes through a few output channels at a time and makes what belongs to those: the gradients of
both kernels and of the attention, and what they add to that of the sum over channels. The second goes through
a few channels at a time and makes the gradient of x. Every element has one owner: nothing depends on the
threads.
"""

import numpy as np
from numba import uint64

from ..engine.compile import FALSE, ONE, TRUE, ZERO, borrowing_jit, rolled_jit, shared_jit
from ..engine.pixels import clear, copy, inside
from ..engine.products import (
    PRODUCT_ROWS,
    WIDE,
    Extent,
    Factor,
    Target,
    product_of_row,
    product_of_rows,
    product_of_terms,
)
from ..engine.vectors import in_row
from .bands import add_lines
from .kernels import add_taps, copy_kernels, copy_maps, fetch_row, place_samples, read_taps, sum_channels
from .records import STACK, ChannelScratch, SampleBand, SampleRow, SampleScratch, SampleWork, place_scratch

SAMPLING_OUTPUTS = 32  # output channels whose weights are in the cache together, in the second pass
_WEIGHTS_BYTES = 512 * 1024  # of the samples that take part there together: a part of the second cache
_ALONE, _CENTRED = FALSE, TRUE


@borrowing_jit
def _weigh(
    target: Target, row: SampleRow, centres: np.ndarray, samples: tuple, centred: bool, work: SampleWork
) -> None:
    """target[k, j] = grad_output * sample attention of samples[0] + j, if `centred` times that of the centre.

    Of the output channels k of a row; `centres`: those of `PlaceScratch`.
    """
    given, band = work.given, work.band
    outputs, high, wide = given.grad_output.shape[1:]
    gradient, attended = in_row(given.grad_output), band.inputs.sample_attention.size > 0
    attention = in_row(band.inputs.sample_attention) if attended else band.ones
    residual = band.call.attention_residual if attended else band.ones[0] - band.ones[0]
    has_centre = centred and len(band.central) > 0
    factors, regions = band.central if has_centre else band.ones, len(centres)
    size = len(band.plan.centres.rows) * band.widths.line
    for s in range(samples[0], samples[1]):
        first = s * outputs if given.fuse == STACK else 0
        for k in range(row.outputs):
            o = row.first + k
            t = uint64(target.at + (s - samples[0]) * target.columns + k * target.rows)
            g = uint64(((first + o) * high + row.number) * wide)
            a = uint64(((o * regions + s) * high + row.number) * wide if attended else 0)
            f = uint64(o * size + centres[s] if has_centre else 0)
            for w in range(uint64(wide)):
                target.data[t + w] = gradient[g + w] * (attention[a + w] + residual) * factors[f + w]


@borrowing_jit
def _sum_by_tap(scratch: SampleScratch, row: SampleRow, centred: bool, band: SampleBand) -> None:
    """Add a row of outputs to `scratch.by_tap`, and if `centred` to `scratch.by_centre`.

    The samples of one row of centres are terms, each seen from where it is centred.
    """
    widths, centre_rows = band.widths, band.plan.samples.centre_rows[row.h]
    taps = band.inputs.spatial_kernel.shape[1] * band.inputs.spatial_kernel.shape[2]
    pitch, size = widths.pitch, band.plan.block_centres * widths.padded_line
    samples = len(centre_rows)
    by_sample, by_column = scratch.places.by_sample, scratch.places.by_column
    for i in range(samples):
        line = (centre_rows[i] - row.low) * widths.padded_line
        for k in range(row.outputs):
            at, map_at = (i * samples * PRODUCT_ROWS + k) * pitch + widths.margin, k * taps * pitch
            weights = Factor(scratch.weights, at, ZERO, by_sample, None)
            target = Target(scratch.by_tap, k * taps * size + line, ZERO, size)
            kernels = Factor(scratch.kernels, map_at + widths.margin, band.distances.kernels, by_column, None)
            product_of_row(target, weights, kernels, Extent(ONE, taps, samples, widths.padded_line), TRUE)
            if centred:
                target = Target(scratch.by_centre, k * size + line, ZERO, ZERO)
                sums = Factor(scratch.sums, at, band.distances.kernels, by_sample, None)
                product_of_row(target, weights, sums, Extent(ONE, ONE, samples, widths.padded_line), TRUE)


@borrowing_jit
def _spread_taps(scratch: SampleScratch, row: SampleRow, end: int, item: int, work: SampleWork) -> None:
    """From `scratch.by_tap` to the gradients of X1 and of the position attention.

    Of rows of centres from `row.low` to `end`; X1 has a slot for each `item`.
    """
    grads, band = work.grads, work.band
    kh, kw = band.inputs.spatial_kernel.shape[1:3]
    (height, width), image, plan = band.inputs.x.shape[1:], band.plan.image, band.plan
    by_tap, by_centre, flat = scratch.by_tap, scratch.by_centre, in_row(grads.position_attention)
    attended, runs, widths = len(scratch.tap_attention) > 0, plan.samples.runs, band.widths
    factors = scratch.tap_attention if attended else band.ones
    totals, slot = in_row(grads.totals), item * band.totals.size
    for number in range(row.outputs * kh * kw):
        k, tap = number // (kh * kw), number % (kh * kw)
        for r in range(end - row.low):
            y, line = plan.centres.rows[row.low + r], (number * plan.block_centres + r) * widths.padded_line
            tap_at = k * widths.output + tap * widths.tap + r * widths.line
            for run in range(len(runs)):
                start, stop, phase = runs[run, 0], runs[run, 1], runs[run, 2]
                begin, column = phase * image.stretch, image.left + phase
                place = plan.taps.rows[tap // kw, row.low + r] + plan.taps.columns[tap % kw, phase] - begin
                if len(totals):
                    f, to, count = tap_at + start if attended else ZERO, slot + place + start, stop - start
                    _add_products(totals, to, ONE, by_tap, line + start, factors, f, count)
                if len(flat) and 0 <= y < height:
                    first, last = inside(image.stretch, 0, width, column, image.step)
                    first, last = max(begin + first, start), min(begin + last, stop)
                    to = ((row.first * kh * kw + number) * height + y) * width
                    to += column + (first - begin) * image.step
                    count, at = last - first, place + first
                    _add_products(flat, to, image.step, by_tap, line + first, band.totals, at, count)
                    if tap == kh * kw // 2:
                        at = (k * plan.block_centres + r) * widths.padded_line + first
                        for w in range(count):
                            flat[to + w * image.step] += by_centre[at + w]


@shared_jit
def _add_products(
    target: np.ndarray, at: int, step: int, a: np.ndarray, a_at: int, b: np.ndarray, b_at: int, count: int
) -> None:
    """target[at + w*step] += a[a_at + w] * b[b_at + w]."""
    t, i, k, by = uint64(at), uint64(a_at), uint64(b_at), uint64(step)
    if count <= 0:
        return
    if step == 1:
        for w in range(uint64(count)):
            target[t + w] += a[i + w] * b[k + w]
    else:
        for w in range(uint64(count)):
            target[t + w * by] += a[i + w] * b[k + w]


@rolled_jit
def first_pass_items(start: int, stop: int, scratch: SampleScratch, work: SampleWork, items: int) -> None:
    """Items (group of PRODUCT_ROWS output channels, dealt out in `items` shares)."""
    grads, band, plan = work.grads, work.band, work.band.plan
    outputs, columns = len(band.inputs.spatial_kernel), plan.samples.columns
    groups, last = -(-outputs // PRODUCT_ROWS), len(columns) - 1
    by_sample, by_column = scratch.places.by_sample, scratch.places.by_column
    for j in range(len(columns)):
        by_sample[j] = j * PRODUCT_ROWS * band.widths.pitch - columns[j]
        by_column[j] = -columns[j]
    clear(scratch.kernels, 0, len(scratch.kernels))
    clear(scratch.sums, 0, len(scratch.sums))
    clear(scratch.weights, 0, len(scratch.weights))
    clear(scratch.centred, 0, len(scratch.centred))
    for item in range(start, stop):
        for group in range(groups * item // items, groups * (item + 1) // items):
            o = PRODUCT_ROWS * group
            count = min(PRODUCT_ROWS, outputs - o)
            if plan.first == 0 and grads.position_attention.size:
                size = grads.position_attention.size // outputs
                clear(in_row(grads.position_attention), o * size, count * size)
            for first in range(0, plan.rows, plan.block):
                end = min(first + plan.block, plan.rows)
                low, high = plan.samples.centre_rows[first, 0], plan.samples.centre_rows[end - 1, last] + 1
                clear(scratch.by_tap, 0, len(scratch.by_tap))
                clear(scratch.by_centre, 0, len(scratch.by_centre))
                for h in range(first, end):
                    place_samples(scratch.places, h, band)
                    row = SampleRow(o, count, h, plan.first + h, low)
                    if h == first:
                        read_taps(scratch, row, high, band)
                    _first_row(scratch, row, work)
                    if h == end - 1 and grads.totals.size + grads.position_attention.size:
                        _spread_taps(scratch, row, high, item, work)


@borrowing_jit
def _first_row(scratch: SampleScratch, row: SampleRow, work: SampleWork) -> None:
    """A row of outputs: what the samples weigh, and its part in all gradients."""
    grads, band = work.grads, work.band
    wide, pitch = band.inputs.spatial_kernel.shape[4], band.widths.pitch
    attended, centres = grads.position_attention.size > 0, scratch.places.centres
    fetch_row(row, band)
    if attended or grads.sample_attention.size:
        sum_channels(scratch, row, band)
    copy_kernels(scratch, row, band)
    weights = Target(scratch.weights, band.widths.margin, pitch, PRODUCT_ROWS * pitch)
    _weigh(weights, row, centres, (ZERO, len(centres)), _ALONE, work)
    if attended:
        behind = band.widths.row - wide  # where a product leaves what it made of other rows
        for at in range(band.widths.margin + wide, len(scratch.sums) if behind else 0, pitch):
            clear(scratch.sums, at, behind)
    if attended or grads.totals.size:
        _sum_by_tap(scratch, row, attended, band)
    if grads.sample_attention.size:
        add_taps(scratch, row, band)
        _multiply_regions(scratch, row, work)
    if grads.spatial_kernel.size:
        _sum_by_place(grads.spatial_kernel, scratch, row, band)
    if grads.channel_kernel.size:
        centred = Target(scratch.centred, ZERO, band.widths.row, PRODUCT_ROWS * band.widths.row)
        _weigh(centred, row, centres, (ZERO, len(centres)), _CENTRED, work)
        _sum_by_channel(grads.channel_kernel, scratch, row, band)


@borrowing_jit
def _multiply_regions(scratch: SampleScratch, row: SampleRow, work: SampleWork) -> None:
    """The gradient of the sample attention: grad_output * region."""
    given, grad, band = work.given, work.grads.sample_attention, work.band
    outputs, (regions, high, wide) = given.grad_output.shape[1], grad.shape[1:]
    gradient, flat, sums = in_row(given.grad_output), in_row(grad), scratch.sums
    for k in range(row.outputs):
        for s in range(regions):
            o, at = row.first + k, (s * PRODUCT_ROWS + k) * band.widths.pitch + band.widths.margin
            first = s * outputs if given.fuse == STACK else 0
            g, t = ((first + o) * high + row.number) * wide, ((o * regions + s) * high + row.number) * wide
            to, i, j = uint64(t), uint64(g), uint64(at)
            for w in range(uint64(wide)):
                flat[to + w] = gradient[i + w] * sums[j + w]


@borrowing_jit
def _sum_by_place(grad: np.ndarray, scratch: SampleScratch, row: SampleRow, band: SampleBand) -> None:
    """The gradient of a row of the spatial kernel: sum over samples of weight * X1 * position attention."""
    (kh, kw, high, wide), flat, widths = grad.shape[1:], in_row(grad), band.widths
    taps, samples = kh * kw, scratch.places.centres
    extent = Extent(ONE, taps, len(samples), widths.row)
    for k in range(row.outputs):
        at, tap_at = k * widths.pitch + widths.margin, k * widths.output - row.low * widths.line
        weights = Factor(scratch.weights, at, ZERO, band.distances.regions, None)
        tap_values = Factor(scratch.tap_values, tap_at, band.distances.taps, samples, None)
        product_of_row(Target(scratch.rows, ZERO, ZERO, widths.row), weights, tap_values, extent, FALSE)
        for tap in range(taps):
            to = (((row.first + k) * taps + tap) * high + row.number) * wide
            copy(flat, to, scratch.rows, tap * widths.row, wide)


@borrowing_jit
def _sum_by_channel(grad: np.ndarray, scratch: SampleScratch, row: SampleRow, band: SampleBand) -> None:
    """The gradient of a row of the channel kernel: sum over samples of weight * position attention * x."""
    _, channels, high, wide = grad.shape
    flat, padded, plane, channel = in_row(grad), band.widths.row, high * wide, band.plan.channel
    samples = scratch.places.lines
    in_place = row.outputs == PRODUCT_ROWS and wide == padded  # else vectors would reach into other rows
    centred = Factor(scratch.centred, ZERO, padded, PRODUCT_ROWS * padded, None)
    together = channels if in_place and len(samples) == WIDE else WIDE
    for c in range(0, channels, together):
        count, to = min(together, channels - c), (row.first * channels + c) * plane + row.number * wide
        target = Target(scratch.rows, ZERO, padded, PRODUCT_ROWS * padded)
        if in_place:
            target = Target(flat, to, channels * plane, plane)
        lines = Factor(band.lines, c * channel, band.distances.channels, samples, None)
        extent = Extent(row.outputs, count, len(samples), padded)
        if len(samples) == WIDE:
            product_of_terms(target, centred, lines, extent)
        else:
            product_of_rows(target, centred, lines, extent, FALSE)
        for k in range(0 if in_place else row.outputs):
            for m in range(count):
                copy(
                    flat, to + (k * channels + m) * plane, scratch.rows, (m * PRODUCT_ROWS + k) * padded, wide
                )


def channel_scratch(band: SampleBand) -> ChannelScratch:
    """The sizes of scratch of the second pass."""
    row, regions = band.widths.row, band.call.rows.samples**2
    most = min(SAMPLING_OUTPUTS, band.call.outputs)
    batch = min(regions, max(WIDE, _WEIGHTS_BYTES // (most * row * band.call.itemsize)))
    return ChannelScratch(
        weights=batch * most * row,
        moved=batch * PRODUCT_ROWS * row,
        copy=most * PRODUCT_ROWS * row,
        places=place_scratch(band.call.rows.samples),
    )


@rolled_jit
def second_pass_items(start: int, stop: int, scratch: ChannelScratch, work: SampleWork, chunk: int) -> None:
    """Items (chunk of channels, a multiple of PRODUCT_ROWS): the gradient of x, from that of its lines."""
    grads, band, plan = work.grads, work.band, work.band.plan
    (outputs, channels), padded = band.inputs.channel_kernel.shape[:2], band.widths.row
    regions = len(plan.samples.columns) * len(plan.samples.columns)
    batch = len(scratch.moved) // (PRODUCT_ROWS * padded)
    clear(scratch.weights, 0, len(scratch.weights))
    for item in range(start, stop):
        these = (item * chunk, min(channels, (item + 1) * chunk))
        clear(grads.lines, these[0] * plan.channel, (these[1] - these[0]) * plan.channel)
        for o in range(0, outputs, SAMPLING_OUTPUTS):
            count = min(SAMPLING_OUTPUTS, outputs - o)
            for h in range(plan.rows):
                place_samples(scratch.places, h, band)
                row = SampleRow(o, count, h, plan.first + h, ZERO)
                for s in range(0, regions, batch):
                    samples = (s, min(s + batch, regions))
                    weights = Target(scratch.weights, ZERO, padded, count * padded)
                    _weigh(weights, row, scratch.places.centres, samples, _CENTRED, work)
                    _move_to_lines(scratch, row, these, samples, work)
        add_to_image(these, work)


@borrowing_jit
def add_to_image(channels: tuple, work: SampleWork) -> None:
    """From the gradient of lines to that of x, to which the first band is the first to write."""
    grads, band = work.grads, work.band
    plane = grads.x.shape[1] * grads.x.shape[2]
    for c in range(channels[0], channels[1]):
        if band.plan.first == 0:
            clear(in_row(grads.x), c * plane, plane)
        add_lines(grads.x, c, grads.lines, c * band.plan.channel, band.plan.image)


@borrowing_jit
def _move_to_lines(
    scratch: ChannelScratch, row: SampleRow, channels: tuple, samples: tuple, work: SampleWork
) -> None:
    """Add to the lines of some channels what a row of outputs gives to them by some samples."""
    band, grad_lines = work.band, work.grads.lines
    _, all_channels, high, wide = band.inputs.channel_kernel.shape
    plane, padded, lines = high * wide, band.widths.row, scratch.places.lines
    target = Target(scratch.moved, ZERO, padded, PRODUCT_ROWS * padded)
    copied = Factor(scratch.copy, ZERO, padded, PRODUCT_ROWS * padded, None)
    weights = Factor(scratch.weights, ZERO, row.outputs * padded, padded, None)
    for c in range(channels[0], channels[1], PRODUCT_ROWS):
        count = min(PRODUCT_ROWS, channels[1] - c)
        # Fetched are the kernels of the next channels, or of the next row.
        ahead = PRODUCT_ROWS * plane if c + PRODUCT_ROWS < channels[1] else wide - (c - channels[0]) * plane
        at = (row.first * all_channels + c) * plane + row.number * wide
        maps = Factor(in_row(band.inputs.channel_kernel), at, plane, all_channels * plane, ahead)
        extent = Extent(count, samples[1] - samples[0], row.outputs, padded)
        copy_maps(copied, maps, extent, row.number, band)
        product_of_rows(target, copied, weights, extent, FALSE)
        for s in range(samples[0], samples[1]):
            for m in range(count):
                t = uint64((c + m) * band.plan.channel + lines[s])
                f = uint64(((s - samples[0]) * PRODUCT_ROWS + m) * padded)
                for w in range(uint64(wide)):
                    grad_lines[t + w] += scratch.moved[f + w]
