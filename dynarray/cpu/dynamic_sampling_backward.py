"""The gradients of `dynamic_sampling_conv2d` on the CPU: the kernels, in two passes over a band of rows.

The first goes output channel by output channel and makes all gradients but those of the channels: of the
attention, the spatial kernel and the sum over channels. The second goes through a few channels at a time and
makes the gradients of channel kernel and x. Every element has one owner: nothing depends on the threads.
"""

from typing import NamedTuple

import numpy as np
from numba import uint64

from .compile import cached_jit, jit
from .dynamic_sampling_kernels import (
    STACK,
    Band,
    Inputs,
    add1,
    add4,
    make_rows,
    pack_attention,
    pack_kernels,
    padded_width,
    products,
    start_row,
    sum_regions,
)
from .dynamic_sampling_tile import ROWS, pack, product
from .planes import aligned, clear, copy, inside

SET = 32  # output channels whose weights are in the cache together, in the second pass


class Grads(NamedTuple):
    """What the first pass writes, of one image; what is not wanted has no elements."""

    spatial_kernel: np.ndarray
    sample_attention: np.ndarray
    position_attention: np.ndarray
    totals: np.ndarray  # (slots, ...): of the lines of the sum over channels, a slot for each work item


class Outer(NamedTuple):
    """The gradient of the output, and which samples it goes to."""

    grad_output: np.ndarray  # (1 or S*S, O, Ho, Wo)
    largest: np.ndarray  # (O, Ho, Wo), without elements unless "max"
    fuse: int


@jit
def _outer_row(target: np.ndarray, at: int, o: int, s: int, row: int, outer: Outer) -> None:
    """The gradient of one sample in a row of outputs."""
    source = outer.grad_output[s if outer.fuse == STACK else 0, o, row]
    copy(target, at, source, 0, len(source))


@jit
def _times(z: np.ndarray, at: int, wide: int, attention: np.ndarray, residual: np.floating) -> None:
    """z *= attention + residual."""
    t = uint64(at)
    for w in range(uint64(wide)):
        z[t + w] *= attention[w] + residual


@jit
def _unpack_attention(grad: np.ndarray, row: int, lines: np.ndarray, at: int, band: Band) -> None:
    """Add a line to the gradient of a map (H, W) of position attention, where it is inside the image."""
    if row < 0:
        return
    for phase in range(band.phases):
        low, end = inside(band.stretch, 0, grad.shape[1], band.left + phase, band.step)
        for k in range(low, end):
            grad[row, band.left + phase + k * band.step] += lines[at + phase * band.stretch + k]


@jit
def _spread(
    weights: np.ndarray,
    at: int,
    wide: int,
    taps: tuple,
    seen: tuple,
    totals: tuple,
    by_position: tuple,
    size: int,
    start: int,
) -> None:
    """From the weights of one sample in a row to the gradients of the sum over channels and of Ap.

    `taps` is (kernels, offset), `seen` (lines of X1, attention), `totals` (gradient, where in the lines each
    tap reads), `by_position` (lines of the gradient,); a gradient that is not wanted has no elements.
    """
    kernels, of = taps
    totals_read, factors = seen
    grad_totals, lines = totals
    grad_lines = by_position[0]
    g = uint64(at)
    for tap in range(len(lines)):
        v, line, t = uint64(of + tap * wide), uint64(tap * size + start), uint64(lines[tap])
        if len(grad_totals):
            if len(factors):
                for w in range(uint64(wide)):
                    grad_totals[t + w] += weights[g + w] * kernels[v + w] * factors[line + w]
            else:
                add1(grad_totals, lines[tap], wide, weights, at, kernels, of + tap * wide)
        if len(grad_lines):
            for w in range(uint64(wide)):
                grad_lines[line + w] += weights[g + w] * kernels[v + w] * totals_read[t + w]


@jit
def _gather_taps(
    grad: np.ndarray,
    weights: np.ndarray,
    at: int,
    wide: int,
    row: int,
    seen: tuple,
    size: int,
    offsets: np.ndarray,
) -> None:
    """Add to the gradient of a spatial kernel (kh, kw, Ho, Wo) what one row of samples gives.

    Rows of weights are `seen[1]` apart; X1, times the attention, is in `seen[0]`.
    """
    of_taps, apart = seen
    flat, (kh, kw, high) = grad.reshape(-1), grad.shape[:3]
    samples = len(offsets)
    for tap in range(kh * kw):
        to, line = (tap * high + row) * wide, tap * size
        for j in range(0, samples // 4 * 4, 4):
            where = (
                line + offsets[j],
                line + offsets[j + 1],
                line + offsets[j + 2],
                line + offsets[j + 3],
            )
            add4(flat, to, wide, weights, at + j * apart, apart, of_taps, where)
        for j in range(samples // 4 * 4, samples):
            add1(flat, to, wide, weights, at + j * apart, of_taps, line + offsets[j])


@jit
def _tap_lines(target: np.ndarray, h: int, i: int, j: int, inputs: Inputs, band: Band) -> None:
    """Where in the lines of the sum over channels each tap of a sample begins."""
    kw, phase = inputs.spatial_kernel.shape[2], band.at[j] // band.stretch if band.phases > 1 else 0
    within = band.at[j] - phase * band.stretch
    for tap in range(len(target)):
        line = band.total_line[h, i, tap // kw] * band.total_size
        target[tap] = line + band.total_at[phase, tap % kw] + within


@cached_jit
def first_items(
    start: int, stop: int, inputs: Inputs, outer: Outer, grads: Grads, band: Band, items: int
) -> None:
    """Items (set of ROWS output channels, dealt out in `items` shares)."""
    samples, (outputs, _, _, _, wide) = len(band.at), inputs.spatial_kernel.shape
    needs_regions = grads.sample_attention.size > 0
    needs_dots = needs_regions or grads.position_attention.size > 0
    scratch = make_rows(inputs, band, inputs.x.shape[0] if needs_dots else 0)
    x, size, taps = inputs.x, band.phases * band.stretch, len(scratch.of_taps)
    padded, acc = padded_width(wide, x), scratch.acc
    weights, totals_at = aligned(samples * padded, x), np.empty(taps, np.int64)
    lines = aligned(taps * size if grads.position_attention.size else 0, x)
    seen, read = (scratch.seen, scratch.factors), (band.totals, scratch.factors)
    sets, kernel_size = -(-outputs // ROWS), len(scratch.channel_kernels) // band.block
    for item in range(start, stop):
        totals = grads.totals[item] if grads.totals.size else grads.totals.reshape(-1)
        for o in range(
            ROWS * (sets * item // items), min(outputs, ROWS * (sets * (item + 1) // items)), ROWS
        ):
            several = (o, min(o + ROWS, outputs))
            for h in range(band.rows):
                row = band.first + h
                r = h % band.block
                if needs_dots and r == 0:
                    pack_kernels(
                        scratch.channel_kernels, inputs, several, row, min(band.block, band.rows - h)
                    )
                start_row(scratch, several, row, inputs, band)
                for i in range(samples):
                    if needs_dots:
                        sum_regions(scratch, several, h, i, r * kernel_size, inputs, band, False)
                    for k in range(several[1] - o):
                        products(scratch.seen, scratch.factors, o + k, h, i, inputs, band)
                        clear(lines, 0, len(lines))
                        place, of = (o + k, k, h, i), k * taps * wide
                        for j in range(samples):
                            _weights_of_sample(
                                weights, acc, scratch.kernels, seen, place, j, inputs, outer, grads, band
                            )
                            _tap_lines(totals_at, h, i, j, inputs, band)
                            by_tap, target = (scratch.kernels, of), (totals, totals_at)
                            _spread(
                                weights, j * padded, wide, by_tap, read, target, (lines,), size, band.at[j]
                            )
                            if len(lines):
                                centre = taps // 2 * size + band.at[j]
                                add1(lines, centre, wide, weights, j * padded, acc, (j * ROWS + k) * padded)
                        if grads.spatial_kernel.size:
                            grad = grads.spatial_kernel[o + k]
                            _gather_taps(grad, weights, 0, wide, row, (scratch.seen, padded), size, band.at)
                        for tap in range(taps if len(lines) else 0):
                            kw = inputs.spatial_kernel.shape[2]
                            grad_map = grads.position_attention[o + k, tap // kw, tap % kw]
                            _unpack_attention(grad_map, band.row[h, i], lines, tap * size, band)


@jit
def _weights_of_sample(
    weights: np.ndarray,
    acc: np.ndarray,
    kernels: np.ndarray,
    seen: tuple,
    place: tuple,
    j: int,
    inputs: Inputs,
    outer: Outer,
    grads: Grads,
    band: Band,
) -> None:
    """weights[j] = grad_output * As; on the way, the gradient of As: grad_output * region."""
    o, k, h, i = place
    samples, wide, row = len(band.at), inputs.spatial_kernel.shape[4], band.first + h
    padded, s, size = padded_width(wide, acc), i * samples + j, band.phases * band.stretch
    at, to, taps = (j * ROWS + k) * padded, j * padded, len(seen[0]) // size
    _outer_row(weights, to, o, s, row, outer)
    if grads.sample_attention.size:
        target = grads.sample_attention[o, s, row]
        copy(target, 0, acc, at, wide)
        if len(seen[1]):
            factors, start = seen[1], uint64(taps // 2 * size + band.at[j])
            for w in range(uint64(wide)):
                target[w] *= factors[start + w]
        for tap in range(taps):
            add1(target, 0, wide, kernels, (k * taps + tap) * wide, seen[0], tap * size + band.at[j])
        t = uint64(to)
        for w in range(uint64(wide)):
            target[w] *= weights[t + w]
    if inputs.sample_attention.size:
        _times(weights, to, wide, inputs.sample_attention[o, s, row], band.attention_residual)


class Columns(NamedTuple):
    """Scratch of the second pass, for one row of outputs and up to SET output channels."""

    weights: np.ndarray  # sets of ROWS output channels, as `_channel_weights` makes them
    row: np.ndarray
    factors: np.ndarray  # without elements where there is no position attention
    kernels: np.ndarray  # sets of ROWS channels, of which output channels are terms
    sums: np.ndarray  # gradients of the channel kernel: sets of output channels, (channels, ROWS, padded)
    moved: np.ndarray  # gradients of the lines of x, (S, ROWS, padded)


@jit
def _channel_weights(
    scratch: Columns,
    outputs: tuple,
    h: int,
    i: int,
    inputs: Inputs,
    outer: Outer,
    band: Band,
) -> None:
    """grad_output * As * Ap of row i of samples, as `product` takes its factor a: samples are terms.

    Sets of ROWS output channels lie one after the other.
    """
    samples, row, (several, kh, kw, high, wide) = len(band.at), band.first + h, inputs.spatial_kernel.shape
    packed, row_of, factors, places = scratch.weights, scratch.row, scratch.factors, band.at
    padded, shape, residual = padded_width(wide, packed), (samples, ROWS), band.attention_residual
    by_position, by_sample = inputs.position_attention.reshape(-1), inputs.sample_attention.reshape(-1)
    gradient, map_size, row_of_x = outer.grad_output.reshape(-1), band.size[0] * band.size[1], band.row[h, i]
    for k in range(-(-(outputs[1] - outputs[0]) // ROWS) * ROWS):
        o, of_set = min(outputs[0] + k, outputs[1] - 1), k // ROWS * samples * ROWS * padded
        if len(factors):
            pack_attention(factors, 0, by_position, (o * kh * kw + kh * kw // 2) * map_size, row_of_x, band)
        for j in range(samples):
            s = i * samples + j
            g = ((s * several if outer.fuse == STACK else 0) + o) * high * wide + row * wide
            if not len(factors) and not len(by_sample):
                pack(packed, of_set, shape, j, k % ROWS, gradient, g, wide)
                continue
            of = ((o * samples * samples + s) * high + row) * wide
            _row_weights(row_of, wide, gradient, g, by_sample, of, residual, factors, places[j])
            pack(packed, of_set, shape, j, k % ROWS, row_of, 0, wide)


@jit
def _row_weights(
    target: np.ndarray,
    wide: int,
    gradient: np.ndarray,
    g: int,
    attention: np.ndarray,
    a: int,
    residual: np.floating,
    factors: np.ndarray,
    f: int,
) -> None:
    """gradient * (attention + residual) * factors, of which one may have no elements."""
    i, k, m, count = uint64(g), uint64(a), uint64(f), uint64(wide)
    if not len(factors):
        for w in range(count):
            target[w] = gradient[i + w] * (attention[k + w] + residual)
    elif not len(attention):
        for w in range(count):
            target[w] = gradient[i + w] * factors[m + w]
    else:
        for w in range(count):
            target[w] = gradient[i + w] * (attention[k + w] + residual) * factors[m + w]


@jit
def _make_columns(inputs: Inputs, band: Band, chunk: int) -> Columns:
    x, samples, (outputs, _, _, wide) = inputs.x, len(band.at), inputs.channel_kernel.shape
    padded, most = padded_width(wide, x), min(SET, -(-outputs // ROWS) * ROWS)
    return Columns(
        aligned(most * samples * padded, x),
        aligned(padded, x),
        aligned(band.phases * band.stretch if inputs.position_attention.size else 0, x),
        aligned(chunk * most * padded, x),
        aligned(chunk * most * padded, x),
        aligned(samples * ROWS * padded, x),
    )


@jit
def _pack_columns(scratch: Columns, outputs: tuple, channels: tuple, row: int, inputs: Inputs) -> None:
    """The channel kernels of a row, as `product` takes its factor a: output channels are terms."""
    _, of_all, high, wide = inputs.channel_kernel.shape
    u, padded, depth = (
        inputs.channel_kernel.reshape(-1),
        padded_width(wide, inputs.x),
        outputs[1] - outputs[0],
    )
    for c in range(channels[0], channels[1], ROWS):
        for k in range(depth):
            for m in range(ROWS):
                of = (((outputs[0] + k) * of_all + min(c + m, channels[1] - 1)) * high + row) * wide
                pack(scratch.kernels, (c - channels[0]) * depth * padded, (depth, ROWS), k, m, u, of, wide)


@jit
def _sum_outputs(
    grad_lines: np.ndarray, scratch: Columns, depth: int, channels: tuple, line: int, band: Band, wide: int
) -> None:
    """grad_lines += sum over output channels of weights * kernels, for the samples of one row."""
    samples, padded = len(band.at), padded_width(wide, grad_lines)
    lanes = 64 // grad_lines.itemsize
    terms, of_samples = np.empty(depth, np.int64), np.arange(samples) * ROWS * lanes
    for k in range(depth):
        terms[k] = k // ROWS * samples * ROWS * padded + k % ROWS * lanes
    moved, kernels, weights = scratch.moved, scratch.kernels, scratch.weights
    for c in range(channels[0], channels[1], ROWS):
        clear(moved, 0, len(moved))
        for block in range(padded // lanes):
            of = ((c - channels[0]) * padded + block * ROWS * lanes) * depth
            at, steps = block * samples * ROWS * lanes, (padded, ROWS * padded)
            product(1, depth, moved, block * lanes, steps, kernels, of, weights, at, terms, of_samples)
        for m in range(min(ROWS, channels[1] - c)):
            for j in range(samples):
                to = (c + m) * band.channel + line + band.at[j]
                add(grad_lines, to, moved, (j * ROWS + m) * padded, wide)


@cached_jit
def second_items(
    start: int,
    stop: int,
    inputs: Inputs,
    outer: Outer,
    grad_kernel: np.ndarray,
    grad_lines: np.ndarray,
    band: Band,
    chunk: int,
) -> None:
    """Items (chunk of channels, a multiple of ROWS); a gradient that is not wanted has no elements."""
    samples, (outputs, channels, high, wide) = len(band.at), inputs.channel_kernel.shape
    padded, size, flat = padded_width(wide, inputs.x), band.phases * band.stretch, grad_kernel.reshape(-1)
    blocks, scratch = padded * inputs.x.itemsize // 64, _make_columns(inputs, band, chunk)
    sums, weights, steps = scratch.sums, scratch.weights, (padded, ROWS * padded)
    for item in range(start, stop):
        these = (item * chunk, min(channels, (item + 1) * chunk))
        count, of_channels = these[1] - these[0], np.arange(these[0], these[1]) * band.channel
        for h in range(band.rows):
            row = band.first + h
            for o in range(0, outputs, SET):
                several = (o, min(o + SET, outputs))
                _pack_columns(scratch, several, these, row, inputs)
                clear(sums, 0, len(sums))
                for i in range(samples):
                    _channel_weights(scratch, several, h, i, inputs, outer, band)
                    line = band.line[h, i] * size
                    for k in range(0, several[1] - o if len(flat) else 0, ROWS):
                        to, of, lines = k * count * padded, k * samples * padded, band.lines
                        product(
                            blocks, samples, sums, to, steps, weights, of, lines, line, band.at, of_channels
                        )
                    if len(grad_lines):
                        _sum_outputs(grad_lines, scratch, several[1] - o, these, line, band, wide)
                for k in range(several[1] - o if len(flat) else 0):
                    for c in range(count):
                        of = ((k // ROWS * count + c) * ROWS + k % ROWS) * padded
                        to = (((o + k) * channels + these[0] + c) * high + row) * wide
                        copy(flat, to, sums, of, wide)


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


@cached_jit
def single_second_items(
    start: int,
    stop: int,
    weights: np.ndarray,
    kernel: np.ndarray,
    grad_kernel: np.ndarray,
    grad_lines: np.ndarray,
    band: Band,
    chunk: int,
) -> None:
    """The same for a single sample; `weights` (O, rows, Wo) are grad_output * As * Ap."""
    outputs, channels, _, wide = kernel.shape
    size, plane = band.phases * band.stretch, kernel.shape[2] * wide
    u, grads, flat = kernel.reshape(-1), grad_kernel.reshape(-1), weights.reshape(-1)
    together = size == wide
    for item in range(start, stop):
        for c in range(item * chunk, min(channels, (item + 1) * chunk)):
            for o in range(outputs):
                for r in range(1 if together else band.rows):
                    count = band.rows * wide if together else wide
                    of = (o * channels + c) * plane + (band.first + r) * wide
                    line, at = (
                        c * band.channel + band.line[r, 0] * size + band.at[0],
                        (o * band.rows + r) * wide,
                    )
                    if len(grads):
                        _multiply(grads, of, flat, at, band.lines, line, count)
                    if len(grad_lines):
                        add1(grad_lines, line, count, flat, at, u, of)
