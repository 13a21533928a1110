"""The kernels of `dynamic_sampling_conv2d` on the CPU: what both passes share, and the forward pass."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from .compile import cached_jit, jit
from .dynamic_sampling_tile import ROWS, interleave, lanes, padded_width, product, product_row
from .planes import copy

SUM, MAX, STACK = 0, 1, 2
ITEM_ROWS = 16  # rows of a block where there are several: what they see of X1 is made once
CHANNELS = 16  # whose kernels and lines are in the cache together


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
def add1(acc: np.ndarray, at: int, count: int, a: np.ndarray, a_at: int, b: np.ndarray, b_at: int) -> None:
    """acc[at + w] += a[a_at + w] * b[b_at + w]."""
    t, i, k = uint64(at), uint64(a_at), uint64(b_at)
    for w in range(uint64(count)):
        acc[t + w] += a[i + w] * b[k + w]


@jit
def step_of(terms: int, strip: int) -> int:
    """From one strip of packed kernels to the next: an odd number of cache lines, to use all sets."""
    return (terms * ROWS + 1) * strip


@jit
def _pack_kernels(
    target: np.ndarray, inputs: Inputs, outputs: tuple, row: int, rows: int, these: tuple
) -> None:
    """Kernels of these channels for some rows, as `product` takes its factor a: channels are terms."""
    _, channels, high, wide = inputs.channel_kernel.shape
    plane, strip, flat = high * wide, lanes(target), inputs.channel_kernel.reshape(-1)
    step = step_of(these[1] - these[0], strip)
    size = step * (padded_width(wide, target) // strip)
    joined = wide % strip == 0  # rows follow one another in strips, too
    apart, last = channels * plane, outputs[1] - 1 - outputs[0]  # what a last set lacks is not looked at
    for c in range(these[0], these[1]):
        of, to = outputs[0] * apart + c * plane + row * wide, (c - these[0]) * ROWS * strip
        if joined:
            interleave(target, to, step, flat, of, apart, last, rows * wide)
        for r in range(0 if joined else rows):
            interleave(target, to + r * size, step, flat, of + r * wide, apart, last, wide)


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
    """Scratch for a block of rows of ROWS output channels; rows are padded to whole strips."""

    channel_kernels: np.ndarray  # of CHANNELS channels
    kernels: np.ndarray  # what `weights` makes of one row, between margins of zeros
    margin: int
    pitch: int  # of rows in there
    acc: np.ndarray  # (rows, S*S, ROWS, padded)
    of_channels: np.ndarray  # terms: where channels and taps lie
    lines_of_channels: np.ndarray
    of_taps: np.ndarray
    of_lines: np.ndarray  # (rows, S*S): where in the lines of x, and in those of `Band.seen`, samples are
    of_seen: np.ndarray


@jit
def place_samples(scratch: Rows, h: int, rows: int, band: Band) -> None:
    """Where the samples of a block of rows lie."""
    samples, size = len(band.at), band.phases * band.stretch
    for r in range(rows):
        for s in range(samples * samples):
            i, j = s // samples, s % samples
            scratch.of_lines[r, s] = band.line[h + r, i] * size + band.at[j]
            scratch.of_seen[r, s] = band.centre[h + r, i] * size + band.at[j]


@jit
def start_row(scratch: Rows, outputs: tuple, row: int, inputs: Inputs, band: Band) -> None:
    """The spatial kernels of a row of outputs."""
    for k in range(ROWS):
        at, o = k * len(scratch.of_taps) * scratch.pitch + scratch.margin, min(outputs[0] + k, outputs[1] - 1)
        weights(scratch.kernels, at, scratch.pitch, o, row, inputs, band)


@jit
def sum_channels(scratch: Rows, outputs: tuple, h: int, rows: int, inputs: Inputs, band: Band) -> None:
    """acc[r, s, k] = sum over channels of channel_kernel * x, for samples s and output channels k.

    A few channels at a time, of which kernels and lines stay in the cache for all rows and samples.
    """
    wide = inputs.channel_kernel.shape[3]
    channels, padded, strip = inputs.x.shape[0], padded_width(wide, scratch.acc), lanes(scratch.acc)
    size = len(band.at) ** 2 * ROWS * padded
    for c in range(0, channels, CHANNELS):
        end = min(c + CHANNELS, channels)
        _pack_kernels(scratch.channel_kernels, inputs, outputs, band.first + h, rows, (c, end))
        step, of_channels = step_of(end - c, strip), scratch.of_channels[: end - c]
        lines_of_channels = scratch.lines_of_channels[: end - c]
        for r in range(rows):
            at = r * (padded // strip) * step
            product(
                *(scratch.acc, r * size, (padded, ROWS * padded)),
                *(scratch.channel_kernels, at, step, of_channels),
                *(band.lines, c * band.channel, lines_of_channels, scratch.of_lines[r]),
                *(padded // strip, c > 0),
            )


@jit
def add_taps(scratch: Rows, outputs: tuple, r: int, wide: int, band: Band) -> None:
    """From sums over channels acc[r, s, k] to the regions s of the output channels k."""
    z, factors, places, centre = scratch.acc, band.factors, scratch.of_seen[r], band.taps[len(band.taps) // 2]
    padded = padded_width(wide, z)
    first = r * len(places) * ROWS * padded
    for k in range(outputs[1] - outputs[0]):
        seen = (outputs[0] + k) * band.apart
        for s in range(len(places) if len(factors) else 0):
            to, factor = uint64(first + (s * ROWS + k) * padded), uint64(seen + centre + places[s])
            for w in range(uint64(wide)):
                z[to + w] *= factors[factor + w]
        of = k * len(scratch.of_taps) * scratch.pitch + scratch.margin
        product_row(
            *(z, first + k * padded, ROWS * padded, scratch.kernels, of, scratch.of_taps),
            *(band.seen, seen, band.taps, places, padded // lanes(z), True),
        )


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
    outputs, wide, sets = y.shape[1], y.shape[3], -(-y.shape[1] // ROWS)
    for item in range(start, stop):
        block, chunk = item // chunks, item % chunks
        first = block * ITEM_ROWS
        for k in range(sets * chunk // chunks, sets * (chunk + 1) // chunks):
            several = (ROWS * k, min(ROWS * (k + 1), outputs))
            for h in range(first, min(first + ITEM_ROWS, band.rows), band.block):
                rows = min(band.block, band.rows - h)
                place_samples(scratch, h, rows, band)
                sum_channels(scratch, several, h, rows, inputs, band)
                for r in range(rows):
                    row = band.first + h + r
                    start_row(scratch, several, row, inputs, band)
                    add_taps(scratch, several, r, wide, band)
                    if not _fuse_row(y, largest, scratch.acc, several, row, r, inputs, band):
                        odd[several[0] : several[1], row] = True


@jit
def _fuse_row(
    y: np.ndarray, largest: Any, acc: np.ndarray, outputs: tuple, row: int, r: int, inputs: Inputs, band: Band
) -> bool:  # fmt: skip
    """Put the samples of a row into the output; whether all are finite, as far as that matters."""
    regions, several, (high, wide) = len(band.at) ** 2, y.shape[1], y.shape[2:]
    flat, padded, finite = y.reshape(-1), padded_width(wide, acc), True
    given = inputs.sample_attention.size > 0
    attention = inputs.sample_attention.reshape(-1) if given else band.ones
    residual = band.attention_residual if given else band.ones[0] - band.ones[0]
    first, stacked = r * regions * ROWS * padded, len(y) > 1
    for o in range(outputs[0], outputs[1]):
        for s in range(regions):
            at, to = first + (s * ROWS + o - outputs[0]) * padded, (o * high + row) * wide
            of = ((o * regions + s) * high + row) * wide if given else 0
            if largest is not None:
                factors = (attention, of, residual)
                calm = _maximum(flat, largest.reshape(-1), to, acc, at, wide, s, factors)
                finite = finite and calm
            else:
                t, z, a = uint64(to + (s * several * high * wide if stacked else 0)), uint64(at), uint64(of)
                for w in range(uint64(wide)):
                    flat[t + w] += acc[z + w] * (attention[a + w] + residual)
    return finite
