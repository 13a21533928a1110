"""The gradients of `dynamic_sampling_conv2d` on the CPU: the kernels, in two passes over a band of rows.

The first goes through a few output channels at a time and makes what belongs to those: the gradients of
both kernels and of the attention, and what they add to that of the sum over channels. The second goes through
a few channels at a time and makes the gradient of x. Every element has one owner: nothing depends on the
threads.
"""

from typing import NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import FALSE, TRUE, ZERO, borrowing_jit, cached_jit
from ..engine.pixels import clear, copy, inside
from .kernels import (
    STACK,
    Band,
    Inputs,
    Kernels,
    Rows,
    add_taps,
    fetch_row,
    gather_kernels,
    place_maps,
    place_samples,
    see_block,
    start_row,
    sum_channels,
)
from .lines import Lines, add_lines
from .tile import ROWS, WIDE, lanes, outer_product, padded_width, product, product_row

SET = 32  # output channels whose weights are in the cache together, in the second pass
_PLAIN, _CENTRED = FALSE, TRUE


class Grads(NamedTuple):
    """What the first pass writes, of one image; what is not wanted has no elements."""

    channel_kernel: np.ndarray
    spatial_kernel: np.ndarray
    sample_attention: np.ndarray
    position_attention: np.ndarray
    totals: np.ndarray  # (slots, ...): of the lines of the sum over channels, a slot for each work item


class Outer(NamedTuple):
    """The gradient of the output, and which samples it goes to."""

    grad_output: np.ndarray  # (1 or S*S, O, Ho, Wo)
    largest: np.ndarray  # (O, Ho, Wo), without elements unless "max"
    fuse: int


class Weights(NamedTuple):
    """Scratch for ROWS output channels: what samples weigh in the gradients.

    Rows, `pitch` apart, lie between margins of zeros: as far as a sample is from the first one of its row.
    """

    margin: int
    pitch: int
    whole: np.ndarray  # (S*S, ROWS, pitch): grad_output * As of one row
    centred: np.ndarray  # (S*S, ROWS, padded): the same times Ap on the centre
    line: int  # elements of a line in whole strips
    by_tap: (
        np.ndarray
    )  # (ROWS, taps, seen_rows, line): sums of whole * V on the pixels where samples are centred
    centre: np.ndarray  # (ROWS, seen_rows, line): the same of whole * (sum over channels of U * x)
    taps: np.ndarray  # (taps, padded): gradient of a row of V
    channels: np.ndarray  # (WIDE, ROWS, padded): gradient of U
    of_samples: np.ndarray  # terms: where in `whole` the samples are
    of_row: np.ndarray  # those of one row of samples, seen from where they are centred
    shifts: np.ndarray
    here: np.ndarray  # a column that is not shifted
    rows_of_centred: np.ndarray
    of_centred: np.ndarray  # where in `centred` the samples are
    of_channels: np.ndarray  # where the channels are in the lines of x


@borrowing_jit
def _weigh(
    target: np.ndarray, at: int, apart: tuple, outputs: tuple, h: int, these: tuple, centred: bool,
    inputs: Inputs, outer: Outer, band: Band,
) -> None:  # fmt: skip
    """target[at + j*apart[0] + k*apart[1]] = grad_output * As of samples these[0] + j, if `centred` times Ap.

    Of a row h of the output channels k.
    """
    row, samples, (several, high, wide) = band.first + h, len(band.at), outer.grad_output.shape[1:]
    gradient, given, places = outer.grad_output.reshape(-1), inputs.sample_attention.size > 0, band.at
    attention = inputs.sample_attention.reshape(-1) if given else band.ones
    residual = band.attention_residual if given else band.ones[0] - band.ones[0]
    attended = centred and len(band.central) > 0
    factors = band.central if attended else band.ones
    size = band.step * band.stretch
    for s in range(these[0], these[1]):
        i, j = s // samples, s % samples
        seen = band.centre[h, i] * size + places[j]
        for k in range(outputs[1] - outputs[0]):
            o = outputs[0] + k
            slice_of, to = s * several if outer.fuse == STACK else 0, at + (s - these[0]) * apart[0]
            t, g = uint64(to + k * apart[1]), uint64(((slice_of + o) * high + row) * wide)
            a = uint64(((o * samples * samples + s) * high + row) * wide if given else 0)
            f = uint64(o * len(band.centres) * size + seen if attended else 0)
            for w in range(uint64(wide)):
                target[t + w] = gradient[g + w] * (attention[a + w] + residual) * factors[f + w]


@borrowing_jit
def _centre(weights: Weights, outputs: tuple, wide: int, scratch: Rows, band: Band) -> None:
    """`weights.centred` from `weights.whole`."""
    target, whole, attended = weights.centred, weights.whole, len(band.central) > 0
    factors, apart = band.central if attended else band.ones, len(band.centres) * band.step * band.stretch
    for k in range(outputs[1] - outputs[0]):
        for s in range(len(scratch.of_central)):
            to = uint64(weights.of_centred[s] + weights.rows_of_centred[k])
            of = uint64(weights.of_samples[s] + k * weights.pitch + weights.margin)
            seen = uint64((outputs[0] + k) * apart + scratch.of_central[s] if attended else 0)
            for w in range(uint64(wide)):
                target[to + w] = whole[of + w] * factors[seen + w]


@borrowing_jit
def _sum_by_tap(
    weights: Weights, scratch: Rows, outputs: tuple, h: int, low: int, centred: bool, band: Band
) -> None:
    """Add a row of outputs to `weights.by_tap`, and if `centred` to `weights.centre`."""
    taps, samples, pitch = len(scratch.of_taps), len(band.at), weights.pitch
    blocks, map_size = weights.line // lanes(weights.whole), band.seen_rows * weights.line
    for i in range(samples):
        line = (band.centre[h, i] - low) * weights.line
        for k in range(outputs[1] - outputs[0]):
            of = (i * samples * ROWS + k) * pitch + weights.margin
            product_row(
                *(weights.by_tap, k * taps * map_size + line, map_size, weights.whole, of, weights.of_row),
                *(scratch.kernels, k * taps * pitch + weights.margin, weights.shifts, scratch.of_taps),
                *(blocks, True),
            )
            if centred:
                product_row(
                    *(weights.centre, k * map_size + line, 0, weights.whole, of, weights.of_row),
                    *(scratch.acc, of, weights.of_row, weights.here, blocks, True),
                )


@borrowing_jit
def _spread(
    weights: Weights, scratch: Rows, outputs: tuple, low: int, end: int, totals: np.ndarray, grads: Grads,
    inputs: Inputs, band: Band,
) -> None:  # fmt: skip
    """From `weights.by_tap` to the gradients of the sum over channels and of the position attention.

    Of rows of centres from `low` to `end`.
    """
    (kh, kw), (height, width), by_tap = inputs.spatial_kernel.shape[1:3], band.size, weights.by_tap
    attended, size = len(scratch.factors) > 0, band.step * band.stretch
    factors = scratch.factors if attended else band.ones
    flat, runs, seen_of = grads.position_attention.reshape(-1), band.runs, band.totals
    for of_map in range((outputs[1] - outputs[0]) * kh * kw):
        k, tap = of_map // (kh * kw), of_map % (kh * kw)
        for r in range(end - low):
            row, line = band.centres[low + r], (of_map * band.seen_rows + r) * weights.line
            seen = k * band.apart + band.taps[tap] + r * size
            for run in range(len(runs)):
                start, stop, phase = runs[run, 0], runs[run, 1], runs[run, 2]
                begin, column = phase * band.stretch, band.left + phase
                place = band.total_rows[tap // kw, low + r] + band.total_at[tap % kw, phase] - begin
                if len(totals):
                    factor = seen + start if attended else ZERO
                    _add_products(
                        *(totals, place + start, 1, by_tap, line + start, factors, factor, stop - start)
                    )
                if len(flat) and 0 <= row < height:
                    first, last = inside(band.stretch, 0, width, column, band.step)
                    first, last = max(begin + first, start), min(begin + last, stop)
                    to = ((outputs[0] * kh * kw + of_map) * height + row) * width
                    to += column + (first - begin) * band.step
                    _add_products(
                        *(flat, to, band.step, by_tap, line + first, seen_of, place + first, last - first)
                    )
                    if tap == kh * kw // 2:
                        of = (k * band.seen_rows + r) * weights.line + first
                        for w in range(last - first):
                            flat[to + w * band.step] += weights.centre[of + w]


@borrowing_jit
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


@cached_jit
def first_items(
    start: int,
    stop: int,
    scratch: Rows,
    weights: Weights,
    inputs: Inputs,
    outer: Outer,
    grads: Grads,
    band: Band,
    items: int,
) -> None:
    """Items (set of ROWS output channels, dealt out in `items` shares)."""
    outputs = len(inputs.spatial_kernel)
    sets = -(-outputs // ROWS)
    for item in range(start, stop):
        totals = grads.totals[item] if grads.totals.size else grads.totals.reshape(-1)
        for of_set in range(sets * item // items, sets * (item + 1) // items):
            several = (ROWS * of_set, min(ROWS * (of_set + 1), outputs))
            if band.first == 0 and grads.position_attention.size:
                maps = grads.position_attention[several[0] : several[1]]
                clear(maps.reshape(-1), 0, maps.size)
            for first in range(0, band.rows, band.block):
                last = min(first + band.block, band.rows)
                low = see_block(scratch, several, first, last, inputs, band)
                clear(weights.by_tap, 0, len(weights.by_tap))
                clear(weights.centre, 0, len(weights.centre))
                for h in range(first, last):
                    place_samples(scratch, h, low, band)
                    _first_row(scratch, weights, several, h, low, inputs, outer, grads, band)
                if len(totals) or grads.position_attention.size:
                    end = band.centre[last - 1, len(band.at) - 1] + 1
                    _spread(weights, scratch, several, low, end, totals, grads, inputs, band)


@borrowing_jit
def _first_row(
    scratch: Rows, weights: Weights, outputs: tuple, h: int, low: int, inputs: Inputs, outer: Outer,
    grads: Grads, band: Band,
) -> None:  # fmt: skip
    """Row h of the band: what the samples weigh, and its part in all gradients."""
    samples, wide, row = len(band.at), inputs.spatial_kernel.shape[4], band.first + h
    apart, every = (ROWS * weights.pitch, weights.pitch), (ZERO, samples * samples)
    attended = grads.position_attention.size > 0
    fetch_row(outputs, row, inputs)
    if attended or grads.sample_attention.size:
        sum_channels(scratch, outputs, h, inputs, band)
    start_row(scratch, outputs, row, inputs, band)
    _weigh(weights.whole, weights.margin, apart, outputs, h, every, _PLAIN, inputs, outer, band)
    if attended:
        _clear_behind(scratch, wide)
    if attended or len(grads.totals):
        _sum_by_tap(weights, scratch, outputs, h, low, attended, band)
    if grads.sample_attention.size:
        add_taps(scratch, outputs, wide, band)
        _by_sample(grads.sample_attention, scratch, outputs, row, outer)
    if grads.spatial_kernel.size:
        _sum_by_place(grads.spatial_kernel, weights, scratch, outputs, row, band)
    if grads.channel_kernel.size:
        _centre(weights, outputs, wide, scratch, band)
        _sum_by_channel(grads.channel_kernel, weights, scratch, outputs, h, band)


@borrowing_jit
def _clear_behind(scratch: Rows, wide: int) -> None:
    """Zeros behind the rows of sums over channels, where `product` leaves what it made of other rows."""
    behind = padded_width(wide, scratch.acc) - wide
    for at in range(scratch.margin + wide, len(scratch.acc) if behind else 0, scratch.pitch):
        clear(scratch.acc, at, behind)


@borrowing_jit
def _by_sample(grad: np.ndarray, scratch: Rows, outputs: tuple, row: int, outer: Outer) -> None:
    """The gradient of the sample attention: grad_output * region."""
    several, (regions, high, wide) = outer.grad_output.shape[1], grad.shape[1:]
    gradient, flat = outer.grad_output.reshape(-1), grad.reshape(-1)
    for k in range(outputs[1] - outputs[0]):
        for s in range(regions):
            o, of = outputs[0] + k, (s * ROWS + k) * scratch.pitch + scratch.margin
            slice_of = s * several if outer.fuse == STACK else 0
            g, to = ((slice_of + o) * high + row) * wide, ((o * regions + s) * high + row) * wide
            _multiply(flat, to, gradient, g, scratch.acc, of, wide)


@borrowing_jit
def _sum_by_place(
    grad: np.ndarray, weights: Weights, scratch: Rows, outputs: tuple, row: int, band: Band
) -> None:
    """The gradient of a row of the spatial kernel: sum over samples of weight * X1 * Ap."""
    (high, wide), taps = grad.shape[3:], len(band.taps)
    flat, padded, of_seen = grad.reshape(-1), padded_width(wide, weights.taps), scratch.of_seen
    for k in range(outputs[1] - outputs[0]):
        product_row(
            *(weights.taps, 0, padded, weights.whole, k * weights.pitch + weights.margin, weights.of_samples),
            *(scratch.seen, k * band.apart, of_seen, band.taps, padded // lanes(weights.taps), False),
        )
        for tap in range(taps):
            to = (((outputs[0] + k) * taps + tap) * high + row) * wide
            copy(flat, to, weights.taps, tap * padded, wide)


@borrowing_jit
def _sum_by_channel(
    grad: np.ndarray, weights: Weights, scratch: Rows, outputs: tuple, h: int, band: Band
) -> None:
    """The gradient of a row of the channel kernel: sum over samples of weight * Ap * x."""
    _, count, high, wide = grad.shape
    flat, made, padded = grad.reshape(-1), weights.channels, padded_width(wide, weights.channels)
    several, plane = outputs[1] - outputs[0], high * wide
    whole = several == ROWS and wide == padded  # else strips would reach into other rows
    target, steps = (flat, (count * plane, plane)) if whole else (made, (padded, ROWS * padded))
    together = count if whole and len(scratch.of_lines) == WIDE else WIDE
    for c in range(0, count, together):
        channels, to = min(together, count - c), (outputs[0] * count + c) * plane + (band.first + h) * wide
        target_at = to if whole else ZERO
        _channel_product(target, target_at, steps, weights, scratch, c, channels, padded // lanes(made), band)
        for k in range(0 if whole else several):
            for m in range(channels):
                copy(flat, to + (k * count + m) * plane, made, (m * ROWS + k) * padded, wide)


@borrowing_jit
def _channel_product(
    target: np.ndarray, target_at: int, steps: tuple, weights: Weights, scratch: Rows, c: int, channels: int,
    blocks: int, band: Band,
) -> None:  # fmt: skip
    """The product of weights and lines of some channels: as many as one likes for `WIDE` samples."""
    centred, of_rows, of_terms = weights.centred, weights.rows_of_centred, weights.of_centred
    if len(of_terms) == WIDE:
        outer_product(
            *(target, target_at, steps, centred, of_rows, of_terms),
            *(band.lines, c * band.channel, band.channel, scratch.of_lines, channels, blocks),
        )
    else:
        product(
            *(target, target_at, steps, centred, ZERO, of_rows, of_terms, band.lines, c * band.channel),
            *(scratch.of_lines, weights.of_channels[:channels], blocks, FALSE),
        )


class Columns(NamedTuple):
    """Scratch of the second pass, for one row of outputs and up to SET output channels."""

    weights: np.ndarray  # (samples, outputs, padded): of as many samples as there are places for
    moved: np.ndarray  # (samples, ROWS, padded): what goes to the lines of x
    kernels: Kernels  # terms: output channels
    of_weights: np.ndarray  # where output channels and samples lie
    of_samples: np.ndarray


@cached_jit
def second_items(
    start: int,
    stop: int,
    scratch: Columns,
    inputs: Inputs,
    outer: Outer,
    grad_x: np.ndarray,
    grad_lines: np.ndarray,
    image: Lines,
    band: Band,
    chunk: int,
) -> None:
    """Items (chunk of channels, a multiple of ROWS): the gradient of x, by way of that of its lines."""
    regions, (outputs, channels, _, wide) = len(band.at) ** 2, inputs.channel_kernel.shape
    padded, batch = padded_width(wide, scratch.moved), len(scratch.of_samples)
    for item in range(start, stop):
        these = (item * chunk, min(channels, (item + 1) * chunk))
        clear(grad_lines, these[0] * band.channel, (these[1] - these[0]) * band.channel)
        for o in range(0, outputs, SET):
            several = (o, min(o + SET, outputs))
            depth = several[1] - o
            for s in range(batch):
                scratch.of_samples[s] = s * depth * padded
            for h in range(band.rows):
                for s in range(0, regions, batch):
                    samples, apart = (s, min(s + batch, regions)), (depth * padded, padded)
                    _weigh(scratch.weights, ZERO, apart, several, h, samples, _CENTRED, inputs, outer, band)
                    _move(grad_lines, scratch, several, these, h, samples, inputs, band)
        put_lines(grad_x, these, grad_lines, image, band)


@borrowing_jit
def put_lines(grad_x: np.ndarray, channels: tuple, grad_lines: np.ndarray, image: Lines, band: Band) -> None:
    """From the gradient of lines to that of x, to which the first band is the first to write."""
    plane = grad_x.shape[1] * grad_x.shape[2]
    for c in range(channels[0], channels[1]):
        if band.first == 0:
            clear(grad_x.reshape(-1), c * plane, plane)
        add_lines(grad_x, c, grad_lines, c * band.channel, image)


@borrowing_jit
def _move(
    grad_lines: np.ndarray, scratch: Columns, outputs: tuple, channels: tuple, h: int, samples: tuple,
    inputs: Inputs, band: Band,
) -> None:  # fmt: skip
    """Add to the lines of some channels what a row of outputs gives to them by some samples."""
    _, count, high, wide = inputs.channel_kernel.shape
    moved, of_samples = scratch.moved, scratch.of_samples[: samples[1] - samples[0]]
    plane, depth, size = high * wide, outputs[1] - outputs[0], band.step * band.stretch
    padded, row, maps = padded_width(wide, moved), band.first + h, scratch.kernels
    for c in range(channels[0], channels[1], ROWS):
        several = min(ROWS, channels[1] - c)
        place_maps(maps, several, plane)
        # Fetched are the kernels of the next channels, or of the next row.
        ahead = ROWS * plane if c + ROWS < channels[1] else wide - (c - channels[0]) * plane
        gather_kernels(maps, inputs, (outputs[0] * count + c) * plane + row * wide, row, depth, ahead)
        product(
            *(moved, 0, (padded, ROWS * padded)),
            *(maps.copy, ZERO, maps.copy_rows, maps.copy_terms[:depth]),
            *(scratch.weights, 0, scratch.of_weights[:depth], of_samples, padded // lanes(moved), FALSE),
        )
        for s in range(samples[0], samples[1]):
            line = band.line[h, s // len(band.at)] * size + band.at[s % len(band.at)]
            for m in range(several):
                of = ((s - samples[0]) * ROWS + m) * padded
                add(grad_lines, (c + m) * band.channel + line, moved, of, wide)


@borrowing_jit
def add(target: np.ndarray, at: int, source: np.ndarray, of: int, count: int) -> None:
    """target[at + w] += source[of + w]."""
    t, f = uint64(at), uint64(of)
    for w in range(uint64(count)):
        target[t + w] += source[f + w]


@borrowing_jit
def _multiply(
    target: np.ndarray, at: int, a: np.ndarray, a_at: int, b: np.ndarray, b_at: int, count: int
) -> None:
    t, i, k = uint64(at), uint64(a_at), uint64(b_at)
    for w in range(uint64(count)):
        target[t + w] = a[i + w] * b[k + w]
