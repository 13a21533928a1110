"""The kernels of `dynamic_sampling_conv2d` on the CPU: what both passes share, and the forward pass."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from .compile import cached_jit, jit
from .dynamic_sampling_tile import ROWS, interleave, lanes, padded_width, product, product_row
from .planes import copy

SUM, MAX, STACK = 0, 1, 2
ITEM_ROWS = 16  # rows of a block where there are several: what they see of X1 is made once


class Inputs(NamedTuple):
    """The arrays of one image, contiguous; attention that is not given has no elements."""

    x: np.ndarray
    channel_kernel: np.ndarray
    spatial_kernel: np.ndarray
    sample_attention: np.ndarray  # (O, S*S, Ho, Wo)
    position_attention: np.ndarray


class Band(NamedTuple):
    """A band of output rows, with everything that it reads of x packed into lines.

    A line holds one row of x, zeros beside it, one stretch for each phase of the stride along x: pixel w of
    sample j is element ``at[j] + w``. The lines of X1, the sum of x over channels, are packed in the same
    way; what tap b reads of them for element k of phase f of a line of x is their element
    ``total_at[f, b] + k``.
    """

    lines: np.ndarray  # one after the other, of one channel after the other; the last of each is of zeros
    line: np.ndarray  # (rows, S): which line the samples of a row of outputs lie on
    row: np.ndarray  # (rows, S): the row of x that this is, or -1
    centre: np.ndarray  # (rows, S): the number of the row of centres that this is, inside the image or not
    seen: np.ndarray  # (O or 1, taps, rows of centres, a line): X1 where a tap reads it, times the attention
    factors: np.ndarray  # the attention of positions itself; without elements where there is none
    ones: np.ndarray  # as many as any row has, for what there is none of
    apart: int  # elements between the output channels in there
    taps: np.ndarray  # where the taps of one lie
    runs: np.ndarray  # (., 3): the elements of a line on which samples are centred: start, end, phase
    at: np.ndarray  # (S,)
    totals: np.ndarray
    total_line: np.ndarray  # (rows, S, kh)
    total_at: np.ndarray  # (phases, kw)
    first: int  # output row
    rows: int
    phases: int
    stretch: int  # elements of a phase of a line
    left: int  # the column of x at element 0
    step: int  # columns of x between elements
    channel: int  # elements of the lines of one channel
    total_size: int  # elements of a line of X1
    kernel_residual: np.floating
    attention_residual: np.floating
    steps: tuple  # stride, sample stride, dilation, each along y and x
    size: tuple  # of x
    block: int  # rows of outputs whose channel kernels are packed together


@jit
def four(start: int, step: int) -> tuple:
    """Four offsets."""
    return (start, start + step, start + 2 * step, start + 3 * step)


@jit
def add4(
    acc: np.ndarray, at: int, count: int, a: np.ndarray, a_at: int, a_step: int, b: np.ndarray, b_at: tuple
) -> None:
    """acc[at + w] += sum of a[a_at + k*a_step + w] * b[b_at[k] + w] over four k."""
    t, n = uint64(at), uint64(count)
    a0, a1, a2, a3 = uint64(a_at), uint64(a_at + a_step), uint64(a_at + 2 * a_step), uint64(a_at + 3 * a_step)
    b0, b1, b2, b3 = uint64(b_at[0]), uint64(b_at[1]), uint64(b_at[2]), uint64(b_at[3])
    for w in range(n):
        acc[t + w] += (a[a0 + w] * b[b0 + w] + a[a1 + w] * b[b1 + w]) + (
            a[a2 + w] * b[b2 + w] + a[a3 + w] * b[b3 + w]
        )


@jit
def add1(acc: np.ndarray, at: int, count: int, a: np.ndarray, a_at: int, b: np.ndarray, b_at: int) -> None:
    """acc[at + w] += a[a_at + w] * b[b_at + w]."""
    t, i, k = uint64(at), uint64(a_at), uint64(b_at)
    for w in range(uint64(count)):
        acc[t + w] += a[i + w] * b[k + w]


@jit
def pack_kernels(target: np.ndarray, inputs: Inputs, outputs: tuple, row: int, rows: int) -> None:
    """Channel kernels of some rows, each as `product` takes its factor a: channels are terms.

    Several rows at once, because a row of one kernel is short and the next one far away in memory.
    """
    _, channels, high, wide = inputs.channel_kernel.shape
    plane, step, flat = high * wide, channels * ROWS * lanes(target), inputs.channel_kernel.reshape(-1)
    size = step * (padded_width(wide, target) // lanes(target))
    joined = wide % lanes(target) == 0  # rows follow one another in strips, too
    last = outputs[1] - 1  # what a last set lacks is not looked at
    for c in range(channels):
        of, to = c * plane + row * wide, c * ROWS * lanes(target)
        starts = (
            outputs[0] * channels * plane + of,
            min(outputs[0] + 1, last) * channels * plane + of,
            min(outputs[0] + 2, last) * channels * plane + of,
            min(outputs[0] + 3, last) * channels * plane + of,
        )
        for r in range(1 if joined else rows):
            of_row = (starts[0] + r * wide, starts[1] + r * wide, starts[2] + r * wide, starts[3] + r * wide)
            interleave(target, to + r * size, step, flat, of_row, rows * wide if joined else wide, plane)


@jit
def weights(target: np.ndarray, at: int, pitch: int, o: int, row: int, inputs: Inputs, band: Band) -> None:
    """target[at + tap*pitch + w] = spatial kernel of one output row, with the residual on its centre."""
    _, kh, kw, high, wide = inputs.spatial_kernel.shape
    flat = inputs.spatial_kernel.reshape(-1)
    for tap in range(kh * kw):
        copy(target, at + tap * pitch, flat, ((o * kh * kw + tap) * high + row) * wide, wide)
    centre = at + kh * kw // 2 * pitch
    for w in range(centre, centre + wide):
        target[w] += band.kernel_residual


@jit
def _maximum(
    y: np.ndarray, largest: np.ndarray, to: int, z: np.ndarray, at: int, wide: int, s: int, factors: tuple
) -> bool:
    """Put one region of a row into the maximum; whether it is finite."""
    attention, of, residual = factors
    t, i, k, odd, limit = uint64(to), uint64(at), uint64(of), 0, z.dtype.type(np.inf)
    for w in range(uint64(wide)):
        value = z[i + w] * (attention[k + w] + residual)
        odd += 0 if abs(value) < limit else 1
        # The first maximum; the first NaN is one.
        better = s == 0 or value > y[t + w] or (value != value and y[t + w] == y[t + w])
        y[t + w] = value if better else y[t + w]
        largest[t + w] = s if better else largest[t + w]
    return odd == 0


@jit
def _whole(o: int, row: int, w: int, s: int, inputs: Inputs, band: Band) -> np.floating:
    """One pixel of a region by the definition."""
    (channels, height, width), kernel, samples = inputs.x.shape, inputs.spatial_kernel[o], len(band.at)
    sy, sx, ssy, ssx, dy, dx = band.steps
    kh, kw = kernel.shape[:2]
    y = row * sy + (s // samples - (samples - 1) // 2) * ssy
    x = w * sx + (s % samples - (samples - 1) // 2) * ssx
    zero = inputs.x.dtype.type(0)
    total = zero
    for tap in range(kh * kw):
        a, b = tap // kw, tap % kw
        tap_y, tap_x = y + (a - kh // 2) * dy, x + (b - kw // 2) * dx
        read = 0 <= tap_y < height and 0 <= tap_x < width
        products = zero
        for c in range(channels):
            factor = kernel[a, b, row, w]
            if tap == kh * kw // 2:
                factor += inputs.channel_kernel[o, c, row, w] + band.kernel_residual
            products += factor * (inputs.x[c, tap_y, tap_x] if read else zero)
        if inputs.position_attention.size:
            inside_image = 0 <= y < height and 0 <= x < width
            given = inputs.position_attention[o, a, b, y, x] if inside_image else zero
            products *= given + band.attention_residual
        total += products
    if inputs.sample_attention.size:
        total *= inputs.sample_attention[o, s, row, w] + band.attention_residual
    return total


@cached_jit
def whole_items(
    start: int, stop: int, inputs: Inputs, band: Band, places: np.ndarray, y: np.ndarray, largest: np.ndarray
) -> None:
    """Items (output channel, row): maxima by the definition, for factors may turn an infinity into NaN."""
    for item in range(start, stop):
        o, row = places[item, 0], places[item, 1]
        for w in range(y.shape[2]):
            for s in range(len(band.at) ** 2):
                z = _whole(o, row, w, s, inputs, band)
                if s == 0 or z > y[o, row, w] or (z != z and y[o, row, w] == y[o, row, w]):
                    y[o, row, w], largest[o, row, w] = z, s


class Rows(NamedTuple):
    """Scratch for one row of ROWS output channels; rows are padded to whole strips."""

    channel_kernels: np.ndarray  # of band.block rows
    kernels: np.ndarray  # what `weights` makes, between margins of zeros
    margin: int
    pitch: int  # of rows in there
    acc: np.ndarray  # (S, ROWS, padded)
    of_channels: np.ndarray  # terms: where channels and taps lie
    lines_of_channels: np.ndarray
    of_taps: np.ndarray


@jit
def sum_channels(scratch: Rows, h: int, i: int, inputs: Inputs, band: Band) -> None:
    """acc[j, k] = sum over channels of channel_kernel * x, for samples (i, j) and output channels k."""
    wide, x = inputs.spatial_kernel.shape[4], inputs.x
    padded, channels, strip = padded_width(wide, x), x.shape[0], lanes(x)
    step, line = channels * ROWS * strip, band.line[h, i] * band.phases * band.stretch
    product(
        *(scratch.acc, 0, (padded, ROWS * padded)),
        *(
            scratch.channel_kernels,
            h % band.block * (padded // strip) * step,
            (step, strip),
            scratch.of_channels,
        ),
        *(band.lines, line, scratch.lines_of_channels, band.at, padded // strip, False),
    )


@jit
def add_taps(scratch: Rows, outputs: tuple, h: int, i: int, wide: int, band: Band) -> None:
    """From sums over channels acc[j, k] to the regions (i, j) of the output channels k."""
    z, size = scratch.acc, band.phases * band.stretch
    padded, taps, samples = padded_width(wide, z), len(scratch.of_taps), len(band.at)
    factors, places, centre = band.factors, band.at, band.taps[taps // 2]
    for k in range(outputs[1] - outputs[0]):
        line = (outputs[0] + k) * band.apart + band.centre[h, i] * size
        for j in range(samples if len(factors) else 0):
            to, factor = uint64((j * ROWS + k) * padded), uint64(line + centre + places[j])
            for w in range(uint64(wide)):
                z[to + w] *= factors[factor + w]
        of = k * taps * scratch.pitch + scratch.margin
        product_row(
            *(z, k * padded, ROWS * padded, scratch.kernels, of, scratch.of_taps),
            *(band.seen, line, band.taps, band.at, padded // lanes(z), True),
        )


@jit
def start_row(scratch: Rows, outputs: tuple, row: int, inputs: Inputs, band: Band) -> None:
    """The spatial kernels of a row of outputs."""
    for k in range(ROWS):
        at = k * len(scratch.of_taps) * scratch.pitch + scratch.margin
        weights(scratch.kernels, at, scratch.pitch, min(outputs[0] + k, outputs[1] - 1), row, inputs, band)


@cached_jit
def forward_items(
    start: int,
    stop: int,
    scratch: Rows,
    inputs: Inputs,
    band: Band,
    chunks: int,
    y: np.ndarray,
    largest: Any,
    odd: np.ndarray,
) -> None:
    """Items (block of ITEM_ROWS rows, chunk of output channels); y is (1 or S*S, O, Ho, Wo), zero.

    `largest` is None but for "max"; then `odd` gets the rows of which not all regions are finite.
    """
    samples, outputs, wide, sets = len(band.at), y.shape[1], y.shape[3], -(-y.shape[1] // ROWS)
    for item in range(start, stop):
        block, chunk = item // chunks, item % chunks
        first = block * ITEM_ROWS
        for k in range(sets * chunk // chunks, sets * (chunk + 1) // chunks):
            several = (ROWS * k, min(ROWS * (k + 1), outputs))
            for h in range(first, min(first + ITEM_ROWS, band.rows)):
                row, finite = band.first + h, True
                if h % band.block == 0:
                    rows = min(band.block, band.rows - h)
                    pack_kernels(scratch.channel_kernels, inputs, several, row, rows)
                start_row(scratch, several, row, inputs, band)
                for i in range(samples):
                    sum_channels(scratch, h, i, inputs, band)
                    add_taps(scratch, several, h, i, wide, band)
                    calm = _fuse_row(y, largest, scratch.acc, several, row, i, len(y) > 1, inputs, band)
                    finite = finite and calm
                if not finite:
                    odd[several[0] : several[1], row] = True


@jit
def _fuse_row(
    y: np.ndarray,
    largest: Any,
    acc: np.ndarray,
    outputs: tuple,
    row: int,
    i: int,
    stacked: bool,
    inputs: Inputs,
    band: Band,
) -> bool:
    """Put row i of samples into the output; whether all of it is finite, as far as that matters."""
    samples, several, (high, wide) = len(band.at), y.shape[1], y.shape[2:]
    flat, finite, padded, given = y.reshape(-1), True, padded_width(wide, y), inputs.sample_attention.size > 0
    attention = inputs.sample_attention.reshape(-1) if given else band.ones
    residual = band.attention_residual if given else band.ones[0] - band.ones[0]
    for o in range(outputs[0], outputs[1]):
        for j in range(samples):
            at, s, to = (j * ROWS + o - outputs[0]) * padded, i * samples + j, (o * high + row) * wide
            of = ((o * samples * samples + s) * high + row) * wide if given else 0
            if largest is not None:
                factors = (attention, of, residual)
                calm = _maximum(flat, largest.reshape(-1), to, acc, at, wide, s, factors)
                finite = finite and calm
            else:
                t, z, a = uint64(to + (s * several * high * wide if stacked else 0)), uint64(at), uint64(of)
                for w in range(uint64(wide)):
                    flat[t + w] += acc[z + w] * (attention[a + w] + residual)
    return finite
