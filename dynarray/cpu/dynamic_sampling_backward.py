"""The gradients of `dynamic_sampling_conv2d` on the CPU: the kernels, in two passes over a band of rows.

The first goes through a few output channels at a time and makes what belongs to those: the gradients of
both kernels and of the attention, and what they add to that of the sum over channels. The second goes through
a few channels at a time and makes the gradient of x. Every element has one owner: nothing depends on the
threads.
"""

from typing import NamedTuple

import numpy as np
from numba import uint64

from .compile import cached_jit, jit
from .dynamic_sampling_kernels import (
    STACK,
    Band,
    Inputs,
    Rows,
    add1,
    add_taps,
    pack_kernels,
    start_row,
    sum_channels,
)
from .dynamic_sampling_tile import ROWS, interleave, lanes, padded_width, product, product_row
from .planes import clear, copy, inside

SET = 32  # output channels whose weights are in the cache together, in the second pass


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
    """Scratch for one row of ROWS output channels: what its samples weigh in the gradients.

    Rows, `pitch` apart, lie between margins of zeros: as far as a sample is from the first one of its row.
    """

    margin: int
    pitch: int
    whole: np.ndarray  # (S*S, ROWS, pitch): grad_output * As
    centred: np.ndarray  # the same times Ap on the centre; without elements where there is none
    by_tap: np.ndarray  # (taps, ...): sums over samples of whole * V, where these are centred, as lines
    centre: np.ndarray  # the same for whole * (sum over channels of U * x)
    taps: np.ndarray  # (taps, padded): gradient of a row of V
    channels: np.ndarray  # (C, ROWS, padded): gradient of a row of U
    of_samples: np.ndarray  # terms: where in `whole` the samples are
    of_row: np.ndarray  # those of one row of samples, seen from where they are centred
    shifts: np.ndarray
    of_seen: np.ndarray  # (S*S,): where in lines of `Band.seen`, and in those of x, the samples of a row are
    of_lines: np.ndarray
    of_channels: np.ndarray  # where the channels are in the lines of x


@jit
def _weigh(
    target: np.ndarray, at: int, apart: tuple, outputs: tuple, h: int, i: int, centred: bool, inputs: Inputs,
    outer: Outer, band: Band,
) -> None:  # fmt: skip
    """target[at + j*apart[0] + k*apart[1]] = grad_output * As of samples (i, j), if `centred` times Ap.

    Of a row h of the output channels k. Arrays are taken out of their tuples once: that counts references,
    which threads wait for each other to do.
    """
    row, samples, (several, high, wide) = band.first + h, len(band.at), outer.grad_output.shape[1:]
    gradient, given, places = outer.grad_output.reshape(-1), inputs.sample_attention.size > 0, band.at
    attention = inputs.sample_attention.reshape(-1) if given else band.ones
    residual = band.attention_residual if given else band.ones[0] - band.ones[0]
    attended = centred and len(band.factors) > 0
    factors = band.factors if attended else band.ones
    centre = band.taps[len(band.taps) // 2] + band.centre[h, i] * band.phases * band.stretch
    for k in range(outputs[1] - outputs[0]):
        o = outputs[0] + k
        for j in range(samples):
            s = i * samples + j
            slice_of = s * several if outer.fuse == STACK else 0
            t, g = uint64(at + j * apart[0] + k * apart[1]), uint64(((slice_of + o) * high + row) * wide)
            a = uint64(((o * samples * samples + s) * high + row) * wide if given else 0)
            f = uint64(o * band.apart + centre + places[j] if attended else 0)
            for w in range(uint64(wide)):
                target[t + w] = gradient[g + w] * (attention[a + w] + residual) * factors[f + w]


@jit
def _sum_by_tap(weights: Weights, scratch: Rows, k: int, i: int, band: Band) -> None:
    """by_tap[t] = sum over the samples of a row of their weight * V, each where it is centred."""
    size, taps = padded_width(band.phases * band.stretch, weights.whole), len(scratch.of_taps)
    samples, whole, kernels = len(band.at), weights.whole, scratch.kernels
    at = (i * samples * ROWS + k) * weights.pitch + weights.margin
    of, blocks = k * taps * scratch.pitch + weights.margin, size // lanes(whole)
    product_row(
        *(weights.by_tap, 0, size, whole, at, weights.of_row),
        *(kernels, of, weights.shifts, scratch.of_taps, blocks, False),
    )


@jit
def _spread(
    weights: Weights, o: int, h: int, i: int, totals: np.ndarray, grads: Grads, inputs: Inputs, band: Band
) -> None:
    """From `weights.by_tap` to the gradients of the sum over channels and of the position attention."""
    kh, kw = inputs.spatial_kernel.shape[1:3]
    (height, width), row, by_tap = band.size, band.row[h, i], weights.by_tap
    attended = len(band.factors) > 0
    factors = band.factors if attended else band.ones
    seen = o * band.apart + band.centre[h, i] * band.phases * band.stretch
    size, flat = padded_width(band.phases * band.stretch, by_tap), grads.position_attention.reshape(-1)
    runs, seen_of, centres = band.runs, band.totals, weights.centre
    for tap in range(kh * kw):
        line, factor = band.total_line[h, i, tap // kw] * band.total_size, seen + band.taps[tap]
        for run in range(len(runs)):
            start, stop, phase = runs[run, 0], runs[run, 1], runs[run, 2]
            begin, column = phase * band.stretch, band.left + phase
            t, f = uint64(tap * size + start), uint64(factor + start if attended else 0)
            of = uint64(line + band.total_at[phase, tap % kw] + start - begin)
            if len(totals):
                for w in range(uint64(stop - start)):
                    totals[of + w] += by_tap[t + w] * factors[f + w]
            if not len(flat) or row < 0:
                continue
            low, end = inside(band.stretch, 0, width, column, band.step)
            low, end = max(low, start - begin), min(end, stop - begin)
            to = ((o * kh * kw + tap) * height + row) * width + column + low * band.step
            place = line + band.total_at[phase, tap % kw] + low
            _add_products(flat, to, band.step, by_tap, tap * size + begin + low, seen_of, place, end - low)
            if tap == kh * kw // 2:
                for w in range(end - low):
                    flat[to + w * band.step] += centres[begin + low + w]


@jit
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
    samples, (outputs, _, _, _, wide) = len(band.at), inputs.spatial_kernel.shape
    needs_dots = grads.sample_attention.size + grads.position_attention.size > 0
    size, sets = band.phases * band.stretch, -(-outputs // ROWS)
    margin, apart = weights.margin, (ROWS * weights.pitch, weights.pitch)
    for item in range(start, stop):
        totals = grads.totals[item] if grads.totals.size else grads.totals.reshape(-1)
        for of_set in range(sets * item // items, sets * (item + 1) // items):
            several = (ROWS * of_set, min(ROWS * (of_set + 1), outputs))
            for h in range(band.rows):
                row = band.first + h
                if needs_dots and h % band.block == 0:
                    rows = min(band.block, band.rows - h)
                    pack_kernels(scratch.channel_kernels, inputs, several, row, rows)
                start_row(scratch, several, row, inputs, band)
                for i in range(samples):
                    for j in range(samples):
                        weights.of_seen[i * samples + j] = band.centre[h, i] * size + band.at[j]
                        weights.of_lines[i * samples + j] = band.line[h, i] * size + band.at[j]
                    at = i * samples * ROWS * weights.pitch + margin
                    _weigh(weights.whole, at, apart, several, h, i, False, inputs, outer, band)
                    if len(weights.centred):
                        _weigh(weights.centred, at, apart, several, h, i, True, inputs, outer, band)
                    if needs_dots:
                        sum_channels(scratch, h, i, inputs, band)
                    for k in range(
                        several[1] - several[0] if len(totals) or grads.position_attention.size else 0
                    ):
                        _sum_by_tap(weights, scratch, k, i, band)
                        if grads.position_attention.size:
                            _sum_on_centre(weights, scratch, k, i, wide, band)
                        _spread(weights, several[0] + k, h, i, totals, grads, inputs, band)
                    if grads.sample_attention.size:
                        add_taps(scratch, several, h, i, wide, band)
                        _by_sample(grads.sample_attention, scratch, several, row, i, outer, band)
                if grads.spatial_kernel.size:
                    _sum_by_place(grads.spatial_kernel, weights, several, row, band)
                if grads.channel_kernel.size:
                    _sum_by_channel(grads.channel_kernel, weights, several, row, band)


@jit
def _sum_on_centre(weights: Weights, scratch: Rows, k: int, i: int, wide: int, band: Band) -> None:
    """centre = sum over the samples of a row of weight * (sum over channels of U * x)."""
    samples, padded = len(band.at), padded_width(wide, scratch.acc)
    clear(weights.centre, 0, len(weights.centre))
    for j in range(samples):
        at = ((i * samples + j) * ROWS + k) * weights.pitch + weights.margin
        add1(weights.centre, band.at[j], wide, weights.whole, at, scratch.acc, (j * ROWS + k) * padded)


@jit
def _by_sample(
    grad: np.ndarray, scratch: Rows, outputs: tuple, row: int, i: int, outer: Outer, band: Band
) -> None:
    """The gradient of the sample attention: grad_output * region."""
    several, (high, wide), samples = outer.grad_output.shape[1], grad.shape[2:], len(band.at)
    gradient, flat, padded = outer.grad_output.reshape(-1), grad.reshape(-1), padded_width(wide, grad)
    for k in range(outputs[1] - outputs[0]):
        for j in range(samples):
            o, s = outputs[0] + k, i * samples + j
            slice_of = s * several if outer.fuse == STACK else 0
            g, to = ((slice_of + o) * high + row) * wide, ((o * samples * samples + s) * high + row) * wide
            _multiply(flat, to, gradient, g, scratch.acc, (j * ROWS + k) * padded, wide)


@jit
def _sum_by_place(grad: np.ndarray, weights: Weights, outputs: tuple, row: int, band: Band) -> None:
    """The gradient of a row of the spatial kernel: sum over samples of weight * X1 * Ap."""
    (high, wide), taps = grad.shape[3:], len(band.taps)
    flat, padded = grad.reshape(-1), padded_width(wide, grad)
    for k in range(outputs[1] - outputs[0]):
        seen = (outputs[0] + k) * band.apart
        product_row(
            *(weights.taps, 0, padded, weights.whole, k * weights.pitch + weights.margin, weights.of_samples),
            *(band.seen, seen, weights.of_seen, band.taps, padded // lanes(grad), False),
        )
        for tap in range(taps):
            to = (((outputs[0] + k) * taps + tap) * high + row) * wide
            copy(flat, to, weights.taps, tap * padded, wide)


@jit
def _sum_by_channel(grad: np.ndarray, weights: Weights, outputs: tuple, row: int, band: Band) -> None:
    """The gradient of a row of the channel kernel: sum over samples of weight * Ap * x."""
    _, count, high, wide = grad.shape
    flat, padded, strip = grad.reshape(-1), padded_width(wide, grad), lanes(grad)
    factors = weights.centred if len(weights.centred) else weights.whole
    # Not straight to the gradient: whole images apart, rows of several channels share one set of the cache.
    product(
        *(weights.channels, 0, (padded, ROWS * padded)),
        *(factors, weights.margin, (strip, weights.pitch), weights.of_samples),
        *(band.lines, 0, weights.of_lines, weights.of_channels, padded // strip, False),
    )
    for k in range(outputs[1] - outputs[0]):
        for c in range(count):
            to = (((outputs[0] + k) * count + c) * high + row) * wide
            copy(flat, to, weights.channels, (c * ROWS + k) * padded, wide)


class Columns(NamedTuple):
    """Scratch of the second pass, for one row of outputs and up to SET output channels."""

    weights: np.ndarray  # (S, outputs, padded): those of one row of samples
    kernels: (
        np.ndarray
    )  # sets of ROWS channels as `interleave` makes them, of which output channels are terms
    moved: np.ndarray  # (S, ROWS, padded): what goes to the lines of x
    of_outputs: np.ndarray  # terms: where output channels and samples lie
    of_weights: np.ndarray
    of_samples: np.ndarray


@jit
def _pack_columns(scratch: Columns, outputs: tuple, channels: tuple, row: int, inputs: Inputs) -> None:
    """The channel kernels of a row, as `product` takes its factor a: output channels are terms."""
    _, of_all, high, wide = inputs.channel_kernel.shape
    u, strip, depth, plane = (
        inputs.channel_kernel.reshape(-1),
        lanes(inputs.x),
        outputs[1] - outputs[0],
        high * wide,
    )
    size, last = depth * padded_width(wide, inputs.x), channels[1] - 1
    for c in range(channels[0], channels[1], ROWS):
        for k in range(depth):
            of = (outputs[0] + k) * of_all * plane + row * wide
            starts = (
                of + c * plane,
                of + min(c + 1, last) * plane,
                of + min(c + 2, last) * plane,
                of + min(c + 3, last) * plane,
            )
            to = (c - channels[0]) * size + k * ROWS * strip
            interleave(scratch.kernels, to, depth * ROWS * strip, u, starts, wide, wide)


@cached_jit
def second_items(
    start: int,
    stop: int,
    scratch: Columns,
    inputs: Inputs,
    outer: Outer,
    grad_lines: np.ndarray,
    band: Band,
    chunk: int,
) -> None:
    """Items (chunk of channels, a multiple of ROWS): the gradient of the lines of x."""
    samples, (outputs, channels, _, wide) = len(band.at), inputs.channel_kernel.shape
    padded, size, strip = padded_width(wide, inputs.x), band.phases * band.stretch, lanes(inputs.x)
    for item in range(start, stop):
        these = (item * chunk, min(channels, (item + 1) * chunk))
        for o in range(0, outputs, SET):
            several = (o, min(o + SET, outputs))
            depth = several[1] - o
            for j in range(samples):
                scratch.of_samples[j] = j * depth * padded
            for h in range(band.rows):
                _pack_columns(scratch, several, these, band.first + h, inputs)
                for i in range(samples):
                    apart = (depth * padded, padded)
                    _weigh(scratch.weights, 0, apart, several, h, i, True, inputs, outer, band)
                    for c in range(these[0], these[1], ROWS):
                        product(
                            *(scratch.moved, 0, (padded, ROWS * padded)),
                            *(
                                scratch.kernels,
                                (c - these[0]) * depth * padded,
                                (depth * ROWS * strip, strip),
                            ),
                            *(scratch.of_outputs[:depth], scratch.weights, 0, scratch.of_weights),
                            *(scratch.of_samples, padded // strip, False),
                        )
                        for m in range(min(ROWS, these[1] - c)):
                            for j in range(samples):
                                to = (c + m) * band.channel + band.line[h, i] * size + band.at[j]
                                add(grad_lines, to, scratch.moved, (j * ROWS + m) * padded, wide)


@jit
def add(target: np.ndarray, at: int, source: np.ndarray, of: int, count: int) -> None:
    """target[at + w] += source[of + w]."""
    t, f = uint64(at), uint64(of)
    for w in range(uint64(count)):
        target[t + w] += source[f + w]


@jit
def _multiply(
    target: np.ndarray, at: int, a: np.ndarray, a_at: int, b: np.ndarray, b_at: int, count: int
) -> None:
    t, i, k = uint64(at), uint64(a_at), uint64(b_at)
    for w in range(uint64(count)):
        target[t + w] = a[i + w] * b[k + w]
