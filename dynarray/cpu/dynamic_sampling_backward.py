"""The gradients of `dynamic_sampling_conv2d` on the CPU: the kernels, in two passes over a band of rows.

The first goes through a few output channels at a time and makes what belongs to those: the gradients of
both kernels and of the attention, and what they add to that of the sum over channels. The second goes through
a few channels at a time and makes the gradient of x. Every element has one owner: nothing depends on the
threads.
"""

from typing import NamedTuple

import numpy as np
from numba import uint64

from .compile import FALSE, TRUE, ZERO, cached_jit, jit
from .dynamic_sampling_kernels import (
    STACK,
    Band,
    Inputs,
    Rows,
    add1,
    add_taps,
    place_samples,
    start_row,
    sum_channels,
)
from .dynamic_sampling_tile import ROWS, WIDE, interleave, lanes, padded_width, product, product_row
from .planes import clear, copy, inside

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
    run: int  # elements of a block of rows of the gradient of U
    whole: np.ndarray  # (S*S, ROWS, pitch): grad_output * As of one row
    centred: np.ndarray  # of a block of rows, times Ap on the centre, as `product` takes its factor a
    by_tap: np.ndarray  # (taps, ...): sums over samples of whole * V, where these are centred, as lines
    centre: np.ndarray  # the same for whole * (sum over channels of U * x)
    taps: np.ndarray  # (taps, padded): gradient of a row of V
    channels: np.ndarray  # (WIDE, ROWS, run): gradient of U
    of_samples: np.ndarray  # terms: where in `whole` the samples are
    of_row: np.ndarray  # those of one row of samples, seen from where they are centred
    shifts: np.ndarray
    of_centred: np.ndarray  # where the samples of a strip are
    of_channels: np.ndarray  # where the channels are in the lines of x


@jit
def _weigh(
    target: np.ndarray, at: int, apart: tuple, outputs: tuple, h: int, these: tuple, centred: bool,
    inputs: Inputs, outer: Outer, band: Band,
) -> None:  # fmt: skip
    """target[at + j*apart[0] + k*apart[1]] = grad_output * As of samples these[0] + j, if `centred` times Ap.

    Of a row h of the output channels k. Arrays are taken out of their tuples once: that counts references,
    which threads wait for each other to do.
    """
    row, samples, (several, high, wide) = band.first + h, len(band.at), outer.grad_output.shape[1:]
    gradient, given, places = outer.grad_output.reshape(-1), inputs.sample_attention.size > 0, band.at
    attention = inputs.sample_attention.reshape(-1) if given else band.ones
    residual = band.attention_residual if given else band.ones[0] - band.ones[0]
    attended = centred and len(band.factors) > 0
    factors = band.factors if attended else band.ones
    centre, size = band.taps[len(band.taps) // 2], band.phases * band.stretch
    for s in range(these[0], these[1]):
        i, j = s // samples, s % samples
        seen = centre + band.centre[h, i] * size + places[j]
        for k in range(outputs[1] - outputs[0]):
            o = outputs[0] + k
            slice_of, to = s * several if outer.fuse == STACK else 0, at + (s - these[0]) * apart[0]
            t, g = uint64(to + k * apart[1]), uint64(((slice_of + o) * high + row) * wide)
            a = uint64(((o * samples * samples + s) * high + row) * wide if given else 0)
            f = uint64(o * band.apart + seen if attended else 0)
            for w in range(uint64(wide)):
                target[t + w] = gradient[g + w] * (attention[a + w] + residual) * factors[f + w]


@jit
def _centre(weights: Weights, outputs: tuple, r: int, wide: int, scratch: Rows, band: Band) -> None:
    """`weights.centred` of row r of a block."""
    target, whole, regions = weights.centred, weights.whole, len(weights.of_samples)
    attended, strip = len(band.factors) > 0, lanes(whole)
    factors = band.factors if attended else band.ones
    centre, places, step = band.taps[len(band.taps) // 2], scratch.of_seen, regions * ROWS * strip
    blocks = padded_width(wide, whole) // strip
    for k in range(outputs[1] - outputs[0]):
        for s in range(regions):
            of = weights.of_samples[s] + k * weights.pitch + weights.margin
            seen = (outputs[0] + k) * band.apart + centre + places[r, s] if attended else 0
            for m in range(blocks):
                t = uint64((r * blocks + m) * step + (s * ROWS + k) * strip)
                f, g = uint64(of + m * strip), uint64(seen + m * strip)
                for w in range(uint64(strip)):
                    target[t + w] = whole[f + w] * factors[g + w]


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
    outputs = len(inputs.spatial_kernel)
    needs_dots = grads.sample_attention.size + grads.position_attention.size > 0
    sets = -(-outputs // ROWS)
    for item in range(start, stop):
        totals = grads.totals[item] if grads.totals.size else grads.totals.reshape(-1)
        for of_set in range(sets * item // items, sets * (item + 1) // items):
            several = (ROWS * of_set, min(ROWS * (of_set + 1), outputs))
            for h in range(0, band.rows, band.block):
                rows = min(band.block, band.rows - h)
                place_samples(scratch, h, rows, band)
                if needs_dots:
                    sum_channels(scratch, several, h, rows, inputs, band)
                for r in range(rows):
                    _first_row(scratch, weights, several, h + r, r, inputs, outer, grads, totals, band)
                if grads.channel_kernel.size:
                    _sum_by_channel(grads.channel_kernel, weights, scratch, several, h, rows, band)


@jit
def _first_row(
    scratch: Rows, weights: Weights, outputs: tuple, h: int, r: int, inputs: Inputs, outer: Outer,
    grads: Grads, totals: np.ndarray, band: Band,
) -> None:  # fmt: skip
    """Row h of the band, r of a block: all but the gradient of the channel kernel, and what that takes."""
    samples, wide, row = len(band.at), inputs.spatial_kernel.shape[4], band.first + h
    apart, every = (ROWS * weights.pitch, weights.pitch), (ZERO, samples * samples)
    start_row(scratch, outputs, row, inputs, band)
    _weigh(weights.whole, weights.margin, apart, outputs, h, every, _PLAIN, inputs, outer, band)
    if grads.channel_kernel.size:
        _centre(weights, outputs, r, wide, scratch, band)
    if len(totals) or grads.position_attention.size:
        for i in range(samples):
            for k in range(outputs[1] - outputs[0]):
                _sum_by_tap(weights, scratch, k, i, band)
                if grads.position_attention.size:
                    _sum_on_centre(weights, scratch, k, i, r, wide, band)
                _spread(weights, outputs[0] + k, h, i, totals, grads, inputs, band)
    if grads.sample_attention.size:
        add_taps(scratch, outputs, r, wide, band)
        _by_sample(grads.sample_attention, scratch, outputs, row, r, outer)
    if grads.spatial_kernel.size:
        _sum_by_place(grads.spatial_kernel, weights, scratch, outputs, row, r, band)


@jit
def _sum_on_centre(weights: Weights, scratch: Rows, k: int, i: int, r: int, wide: int, band: Band) -> None:
    """centre = sum over the samples of a row of weight * (sum over channels of U * x)."""
    samples, padded = len(band.at), padded_width(wide, scratch.acc)
    clear(weights.centre, 0, len(weights.centre))
    for j in range(samples):
        s = i * samples + j
        at, of = weights.of_samples[s] + k * weights.pitch + weights.margin, r * samples * samples + s
        add1(weights.centre, band.at[j], wide, weights.whole, at, scratch.acc, (of * ROWS + k) * padded)


@jit
def _by_sample(grad: np.ndarray, scratch: Rows, outputs: tuple, row: int, r: int, outer: Outer) -> None:
    """The gradient of the sample attention: grad_output * region."""
    several, (regions, high, wide) = outer.grad_output.shape[1], grad.shape[1:]
    gradient, flat, padded = outer.grad_output.reshape(-1), grad.reshape(-1), padded_width(wide, scratch.acc)
    for k in range(outputs[1] - outputs[0]):
        for s in range(regions):
            o, of = outputs[0] + k, ((r * regions + s) * ROWS + k) * padded
            slice_of = s * several if outer.fuse == STACK else 0
            g, to = ((slice_of + o) * high + row) * wide, ((o * regions + s) * high + row) * wide
            _multiply(flat, to, gradient, g, scratch.acc, of, wide)


@jit
def _sum_by_place(
    grad: np.ndarray, weights: Weights, scratch: Rows, outputs: tuple, row: int, r: int, band: Band
) -> None:
    """The gradient of a row of the spatial kernel: sum over samples of weight * X1 * Ap."""
    (high, wide), taps = grad.shape[3:], len(band.taps)
    flat, padded, of_seen = grad.reshape(-1), padded_width(wide, weights.taps), scratch.of_seen[r]
    for k in range(outputs[1] - outputs[0]):
        seen = (outputs[0] + k) * band.apart
        product_row(
            *(weights.taps, 0, padded, weights.whole, k * weights.pitch + weights.margin, weights.of_samples),
            *(band.seen, seen, of_seen, band.taps, padded // lanes(weights.taps), False),
        )
        for tap in range(taps):
            to = (((outputs[0] + k) * taps + tap) * high + row) * wide
            copy(flat, to, weights.taps, tap * padded, wide)


@jit
def _sum_by_channel(
    grad: np.ndarray, weights: Weights, scratch: Rows, outputs: tuple, h: int, rows: int, band: Band
) -> None:
    """The gradient of a block of rows of the channel kernel: sum over samples of weight * Ap * x."""
    _, count, high, wide = grad.shape
    flat, made, run = grad.reshape(-1), weights.channels, weights.run
    padded, strip = padded_width(wide, made), lanes(made)
    step = len(weights.of_centred) * ROWS * strip
    # Not straight to the gradient: whole images apart, rows of several channels share one set of the cache.
    for c in range(0, count, WIDE):
        of_channels = weights.of_channels[: min(WIDE, count - c)]
        for r in range(rows):
            at = r * (padded // strip) * step
            product(
                *(made, r * wide, (run, ROWS * run), weights.centred, at, step, weights.of_centred),
                *(band.lines, c * band.channel, scratch.of_lines[r], of_channels, padded // strip, False),
            )
        for k in range(outputs[1] - outputs[0]):
            for m in range(len(of_channels)):
                to = (((outputs[0] + k) * count + c + m) * high + band.first + h) * wide
                copy(flat, to, made, (m * ROWS + k) * run, rows * wide)


class Columns(NamedTuple):
    """Scratch of the second pass, for one row of outputs and up to SET output channels."""

    weights: np.ndarray  # (samples, outputs, padded): of as many samples as there are places for
    kernels: np.ndarray  # of ROWS channels as `interleave` makes them; output channels are terms
    moved: np.ndarray  # (samples, ROWS, padded): what goes to the lines of x
    of_outputs: np.ndarray  # terms: where output channels and samples lie
    of_weights: np.ndarray
    of_samples: np.ndarray


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
    regions, (outputs, channels, _, wide) = len(band.at) ** 2, inputs.channel_kernel.shape
    padded, batch = padded_width(wide, scratch.moved), len(scratch.of_samples)
    for item in range(start, stop):
        these = (item * chunk, min(channels, (item + 1) * chunk))
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


@jit
def _move(
    grad_lines: np.ndarray, scratch: Columns, outputs: tuple, channels: tuple, h: int, samples: tuple,
    inputs: Inputs, band: Band,
) -> None:  # fmt: skip
    """Add to the lines of some channels what a row of outputs gives to them by some samples."""
    _, count, high, wide = inputs.channel_kernel.shape
    u, moved, of_samples = (
        inputs.channel_kernel.reshape(-1),
        scratch.moved,
        scratch.of_samples[: samples[1] - samples[0]],
    )
    plane, depth, size = high * wide, outputs[1] - outputs[0], band.phases * band.stretch
    padded, strip = padded_width(wide, moved), lanes(moved)
    step, apart = depth * ROWS * strip, count * plane
    first = outputs[0] * apart + (band.first + h) * wide
    for c in range(channels[0], channels[1], ROWS):
        at, last = first + c * plane, min(ROWS, channels[1] - c) - 1
        for k in range(depth):
            interleave(scratch.kernels, k * ROWS * strip, step, u, at + k * apart, plane, last, wide)
        product(
            *(moved, 0, (padded, ROWS * padded), scratch.kernels, 0, step, scratch.of_outputs[:depth]),
            *(scratch.weights, 0, scratch.of_weights[:depth], of_samples, padded // strip, False),
        )
        for s in range(samples[0], samples[1]):
            line = band.line[h, s // len(band.at)] * size + band.at[s % len(band.at)]
            for m in range(last + 1):
                of = ((s - samples[0]) * ROWS + m) * padded
                add(grad_lines, (c + m) * band.channel + line, moved, of, wide)


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
