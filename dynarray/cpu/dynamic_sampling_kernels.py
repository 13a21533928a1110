"""The kernels of `dynamic_sampling_conv2d` on the CPU: what both passes share, and the forward pass."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from .compile import cached_jit, jit
from .dynamic_sampling_tile import ROWS, pack, product, product_row
from .planes import aligned, clear, copy, inside

SUM, MAX, STACK = 0, 1, 2
SINGLE_ROWS = 8  # rows of a block where there is one sample: reads of channel_kernel come in longer runs


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
    flat, size = inputs.channel_kernel.reshape(-1), channels * ROWS * padded_width(wide, target)
    shape = (channels, ROWS)
    for k in range(channels):
        for i in range(ROWS):
            o = min(outputs[0] + i, outputs[1] - 1)  # what a last set lacks is not looked at
            at = ((o * channels + k) * high + row) * wide
            for r in range(rows):
                pack(target, r * size, shape, k, i, flat, at + r * wide, wide)


@jit
def pack_weights(target: np.ndarray, kernels: np.ndarray, taps: int, wide: int, rows: int) -> None:
    """What `weights` made, as `product` takes its factor a: taps are terms.

    Of ROWS output channels together, or with rows = 1 of each alone.
    """
    shape, size = (taps, rows), taps * padded_width(wide, target)
    for tap in range(taps):
        for i in range(ROWS):
            at = 0 if rows > 1 else i * size
            pack(target, at, shape, tap, i % rows, kernels, (i * taps + tap) * wide, wide)


@jit
def pack_attention(target: np.ndarray, at: int, attention: np.ndarray, of: int, row: int, band: Band) -> None:
    """One line of position attention, with the residual, in the order of a line of x.

    `of` is where its map (H, W) begins in the flat array; `row` is -1 outside the image.
    """
    width, stretch, step, residual = band.size[1], band.stretch, band.step, band.attention_residual
    start, size = uint64(at), uint64(band.phases * stretch)
    for k in range(size):
        target[start + k] = residual
    for phase in range(band.phases if row >= 0 else 0):
        column = band.left + phase
        low, end = inside(stretch, 0, width, column, step)
        to, source = uint64(at + phase * stretch + low), uint64(of + row * width + column + low * step)
        if step == 1:
            for k in range(uint64(end - low)):
                target[to + k] = attention[source + k] + residual
        else:
            for k in range(uint64(end - low)):
                target[to + k] = attention[source + k * uint64(step)] + residual


@jit
def products(
    target: np.ndarray, factors: np.ndarray, o: int, h: int, i: int, inputs: Inputs, band: Band
) -> None:
    """target[tap] = X1 where tap reads it, times the position attention, which goes to factors[tap].

    Both are lines; `factors` stays as it is where there is no position attention.
    """
    kh, kw = inputs.spatial_kernel.shape[1:3]
    stretch, phases, totals = band.stretch, band.phases, band.totals
    size, row, plane = phases * stretch, band.row[h, i], band.size[0] * band.size[1]
    attention, given = inputs.position_attention.reshape(-1), inputs.position_attention.size > 0
    for tap in range(kh * kw):
        line, at = band.total_line[h, i, tap // kw] * band.total_size, tap * size
        for phase in range(phases):
            to, of = at + phase * stretch, line + band.total_at[phase, tap % kw]
            copy(target, to, totals, of, stretch)
        if given:
            pack_attention(factors, at, attention, (o * kh * kw + tap) * plane, row, band)
            start = uint64(at)
            for k in range(uint64(size)):
                target[start + k] *= factors[start + k]


@jit
def weights(target: np.ndarray, at: int, o: int, row: int, inputs: Inputs, band: Band) -> None:
    """target[at + tap*Wo + w] = spatial kernel of one output row, with the residual on its centre."""
    kh, kw = inputs.spatial_kernel.shape[1:3]
    wide = inputs.spatial_kernel.shape[4]
    for tap in range(kh * kw):
        copy(target, at + tap * wide, inputs.spatial_kernel[o, tap // kw, tap % kw, row], 0, wide)
    centre = at + kh * kw // 2 * wide
    for w in range(centre, centre + wide):
        target[w] += band.kernel_residual


@jit
def add_taps(
    z: np.ndarray,
    at: int,
    wide: int,
    kernels: np.ndarray,
    of: int,
    seen: np.ndarray,
    factors: np.ndarray,
    start: int,
    size: int,
) -> None:
    """From sums over channels in z to one sampled region of a row, with position attention.

    `kernels` are what `weights` made, `seen` and `factors` what `products` made, of which this sample reads
    from `start` on.
    """
    taps, i, k = len(seen) // size, uint64(at), uint64(len(seen) // size // 2 * size + start)
    for w in range(uint64(wide)):
        z[i + w] *= factors[k + w]
    for tap in range(0, taps // 4 * 4, 4):
        add4(z, at, wide, kernels, of + tap * wide, wide, seen, four(tap * size + start, size))
    for tap in range(taps // 4 * 4, taps):
        add1(z, at, wide, kernels, of + tap * wide, seen, tap * size + start)


@jit
def scale(z: np.ndarray, at: int, wide: int, attention: np.ndarray, of: int, residual: np.floating) -> None:
    """z *= attention + residual."""
    i, k = uint64(at), uint64(of)
    for w in range(uint64(wide)):
        z[i + w] *= attention[k + w] + residual


@jit
def _fuse(
    y: np.ndarray,
    to: int,
    largest: np.ndarray,
    which: int,
    z: np.ndarray,
    at: int,
    wide: int,
    s: int,
    fuse: int,
) -> bool:
    """Put one region of a row into the output; whether it is finite."""
    t, m, i, finite = uint64(to), uint64(which), uint64(at), True
    if fuse == STACK:
        copy(y, to, z, at, wide)
    elif fuse == SUM:
        for w in range(uint64(wide)):
            y[t + w] += z[i + w]
    else:
        odd, limit = 0, z.dtype.type(np.inf)
        for w in range(uint64(wide)):
            odd += 0 if abs(z[i + w]) < limit else 1
            # The first maximum; the first NaN is one.
            better = s == 0 or z[i + w] > y[t + w] or (z[i + w] != z[i + w] and y[t + w] == y[t + w])
            y[t + w] = z[i + w] if better else y[t + w]
            largest[m + w] = s if better else largest[m + w]
        finite = odd == 0
    return finite


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


@jit
def _maximum_of_whole(
    y: np.ndarray, largest: np.ndarray, o: int, row: int, inputs: Inputs, band: Band
) -> None:
    """A row of maxima by the definition: an infinity has a sign there, where factors may give NaN."""
    for w in range(len(y)):
        for s in range(len(band.at) ** 2):
            z = _whole(o, row, w, s, inputs, band)
            if s == 0 or z > y[w] or (z != z and y[w] == y[w]):
                y[w], largest[w] = z, s


class Rows(NamedTuple):
    """Scratch for one row of ROWS output channels; rows are padded to whole vectors."""

    channel_kernels: np.ndarray
    kernels: np.ndarray  # what `weights` makes
    packed: np.ndarray  # the same, as `product` takes it
    acc: np.ndarray  # (S, ROWS, padded)
    seen: np.ndarray
    factors: np.ndarray  # without elements where there is no position attention
    of_channels: np.ndarray  # where the lines of each channel begin
    of_taps: np.ndarray  # and those of each tap in `seen`


@jit
def make_rows(inputs: Inputs, band: Band, channels: int) -> Rows:
    """Scratch; `channels` are those of which sums are made."""
    x, samples, wide = inputs.x, len(band.at), inputs.spatial_kernel.shape[4]
    taps = inputs.spatial_kernel.shape[1] * inputs.spatial_kernel.shape[2]
    size, padded = band.phases * band.stretch, padded_width(wide, x)
    return Rows(
        aligned(band.block * channels * ROWS * padded, x),
        aligned(ROWS * taps * wide, x),
        aligned(ROWS * taps * padded, x),
        aligned(samples * ROWS * padded, x),
        aligned(taps * size + padded - wide, x)[: taps * size],
        aligned(taps * size if inputs.position_attention.size else 0, x),
        np.arange(channels) * band.channel,
        np.arange(taps) * size,
    )


@jit
def padded_width(wide: int, like: np.ndarray) -> int:
    """A row of outputs in whole vectors."""
    lanes = 64 // like.itemsize
    return -(-wide // lanes) * lanes


@jit
def sum_regions(
    scratch: Rows, outputs: tuple, h: int, i: int, at: int, inputs: Inputs, band: Band, whole: bool
) -> None:
    """acc[j, k] = region (i, j) of the output channels k, or if not `whole` the part of the channel kernel.

    `at` is where the row begins in `scratch.channel_kernels`.
    """
    wide, samples, places = inputs.spatial_kernel.shape[4], len(band.at), band.at
    size, taps = band.phases * band.stretch, len(scratch.of_taps)
    padded = padded_width(wide, scratch.acc)
    steps, line, blocks = (padded, ROWS * padded), band.line[h, i] * size, padded * scratch.acc.itemsize // 64
    acc, packed, seen, factors = scratch.acc, scratch.packed, scratch.seen, scratch.factors
    channels, of_taps, lines = scratch.of_channels, scratch.of_taps, band.lines
    clear(acc, 0, len(acc))
    product(blocks, len(channels), acc, 0, steps, scratch.channel_kernels, at, lines, line, channels, places)
    if not whole:
        return
    if not len(factors):
        products(seen, factors, outputs[0], h, i, inputs, band)
        product(blocks, taps, acc, 0, steps, packed, 0, seen, 0, of_taps, places)
        return
    for k in range(outputs[1] - outputs[0]):
        products(seen, factors, outputs[0] + k, h, i, inputs, band)
        for j in range(samples):
            to, factor = uint64((j * ROWS + k) * padded), uint64(taps // 2 * size + places[j])
            for w in range(uint64(wide)):
                acc[to + w] *= factors[factor + w]
        to_k, of = k * padded, k * taps * padded
        product_row(blocks, taps, acc, to_k, ROWS * padded, packed, of, seen, 0, of_taps, places)


@jit
def start_row(scratch: Rows, outputs: tuple, row: int, inputs: Inputs, band: Band) -> None:
    """The spatial kernels of a row of outputs, packed."""
    wide, taps = inputs.spatial_kernel.shape[4], len(scratch.of_taps)
    for k in range(ROWS):
        o = min(outputs[0] + k, outputs[1] - 1)
        weights(scratch.kernels, k * taps * wide, o, row, inputs, band)
    pack_weights(scratch.packed, scratch.kernels, taps, wide, 1 if len(scratch.factors) else ROWS)


@cached_jit
def forward_items(
    start: int,
    stop: int,
    inputs: Inputs,
    band: Band,
    chunks: int,
    fuse: int,
    y: np.ndarray,
    largest: np.ndarray,
) -> None:
    """Items (block of rows, chunk of output channels); y is (1 or S*S, O, Ho, Wo), zero for a sum."""
    samples, outputs, sets = len(band.at), y.shape[1], -(-y.shape[1] // ROWS)
    scratch = make_rows(inputs, band, inputs.x.shape[0])
    size = len(scratch.channel_kernels) // band.block
    for item in range(start, stop):
        block, chunk = item // chunks, item % chunks
        first, rows = block * band.block, min(band.block, band.rows - block * band.block)
        for k in range(sets * chunk // chunks, sets * (chunk + 1) // chunks):
            several = (ROWS * k, min(ROWS * (k + 1), outputs))
            pack_kernels(scratch.channel_kernels, inputs, several, band.first + first, rows)
            for r in range(rows):
                h, finite = first + r, True
                row = band.first + h
                start_row(scratch, several, row, inputs, band)
                for i in range(samples):
                    sum_regions(scratch, several, h, i, r * size, inputs, band, True)
                    calm = _fuse_row(y, largest, scratch.acc, several, row, i, fuse, inputs, band)
                    finite = finite and calm
                for o in range(several[0], several[0] if finite else several[1]):
                    _maximum_of_whole(y[0, o, row], largest[o, row], o, row, inputs, band)


@jit
def _fuse_row(
    y: np.ndarray,
    largest: np.ndarray,
    acc: np.ndarray,
    outputs: tuple,
    row: int,
    i: int,
    fuse: int,
    inputs: Inputs,
    band: Band,
) -> bool:
    """Put row i of samples into the output; whether all of it is finite."""
    samples, several, (high, wide) = len(band.at), y.shape[1], y.shape[2:]
    flat, flat_largest, finite = y.reshape(-1), largest.reshape(-1), True
    attention, residual, padded = (
        inputs.sample_attention.reshape(-1),
        band.attention_residual,
        padded_width(wide, y),
    )
    for o in range(outputs[0], outputs[1]):
        for j in range(samples):
            at, s, which = (j * ROWS + o - outputs[0]) * padded, i * samples + j, (o * high + row) * wide
            if len(attention):
                of = ((o * samples * samples + s) * high + row) * wide
                scale(acc, at, wide, attention, of, residual)
            to = which + (s * several * high * wide if fuse == STACK else 0)
            calm = _fuse(flat, to, flat_largest, which, acc, at, wide, s, fuse)
            finite = finite and calm
    return finite


@cached_jit
def single_items(start: int, stop: int, inputs: Inputs, band: Band, chunks: int, y: np.ndarray) -> None:
    """The same for a single sample: items (block of band.block rows, chunk of output channels); y is zero."""
    outputs, high, wide = y.shape[1:]
    channels, taps = inputs.x.shape[0], inputs.spatial_kernel.shape[1] * inputs.spatial_kernel.shape[2]
    scratch, size = make_rows(inputs, band, 0), band.phases * band.stretch
    seen, factors, kernels = scratch.seen, scratch.factors, scratch.kernels
    flat, attention = y.reshape(-1), inputs.sample_attention.reshape(-1)
    u, lines, plane = inputs.channel_kernel.reshape(-1), band.lines, high * wide
    together = size == wide
    for item in range(start, stop):
        block, chunk = item // chunks, item % chunks
        first = block * SINGLE_ROWS
        rows = min(SINGLE_ROWS, band.rows - first)
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            for c in range(0, channels, 4):
                for r in range(1 if together else rows):
                    at, line = (band.first + first + r) * wide, band.line[first + r, 0] * size + band.at[0]
                    to, of, step = o * plane + at, (o * channels + c) * plane + at, band.channel
                    count, of_line = rows * wide if together else wide, c * step + line
                    if c + 4 <= channels:
                        add4(flat, to, count, u, of, plane, lines, four(of_line, step))
                    else:
                        for d in range(channels - c):
                            add1(flat, to, count, u, of + d * plane, lines, of_line + d * step)
            for r in range(rows):
                row = band.first + first + r
                to = o * plane + row * wide
                weights(kernels, 0, o, row, inputs, band)
                products(seen, factors, o, first + r, 0, inputs, band)
                if len(factors):
                    add_taps(flat, to, wide, kernels, 0, seen, factors, band.at[0], size)
                else:
                    for tap in range(taps):
                        add1(flat, to, wide, kernels, tap * wide, seen, tap * size + band.at[0])
                if len(attention):
                    scale(flat, to, wide, attention, to, band.attention_residual)
