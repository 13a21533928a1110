"""The kernels of `dynamic_sampling_conv2d` on the CPU: what both passes share, and the forward pass."""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import ZERO, borrowing_jit, cached_jit
from ..engine.pixels import copy
from ..engine.vectors import prefetch
from .lines import Lines, see
from .tile import (
    ROWS,
    WIDE,
    fetching_product,
    gather,
    lanes,
    padded_width,
    product,
    product_row,
)

SUM, MAX, STACK = 0, 1, 2
CHANNELS = 32  # whose kernels are multiplied while as many are fetched


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
    ``total_at[b, f] + k``.
    """

    lines: np.ndarray  # one after the other, of one channel after the other; the last of each is of zeros
    line: np.ndarray  # (rows, S): which line the samples of a row of outputs lie on
    centre: np.ndarray  # (rows, S): the number of the row of centres that this is, inside the image or not
    centres: np.ndarray  # the rows of x, inside or not, on which samples are centred
    central: np.ndarray  # (O, rows of centres, a line): Ap of the tap on the centre; no elements if not given
    ones: np.ndarray  # as many as any row has, for what there is none of
    block: int  # rows of outputs, around which `Rows.seen` is made together
    seen_rows: int  # rows of centres around any block
    apart: int  # elements between output channels in `Rows.seen`
    taps: np.ndarray  # where the taps of one lie there
    runs: np.ndarray  # (., 3): the elements of a line on which samples are centred: start, end, phase
    at: np.ndarray  # (S,)
    totals: np.ndarray
    total_rows: np.ndarray  # (kh, rows of centres): where rows of taps begin to read the lines of X1
    total_at: np.ndarray  # (kw, phases)
    first: int  # output row
    rows: int
    stretch: int  # elements of a phase of a line
    left: int  # the column of x at element 0
    step: int  # columns of x between elements, and phases
    channel: int  # elements of the lines of one channel
    kernel_residual: np.floating
    attention_residual: np.floating
    steps: tuple  # stride, sample stride, dilation, each along y and x
    size: tuple  # of x


@borrowing_jit
def weights(target: np.ndarray, at: int, pitch: int, o: int, row: int, inputs: Inputs, band: Band) -> None:
    """target[at + tap*pitch + w] = spatial kernel of one output row, with the residual on its centre."""
    _, kh, kw, high, wide = inputs.spatial_kernel.shape
    flat = inputs.spatial_kernel.reshape(-1)
    for tap in range(kh * kw):
        copy(target, at + tap * pitch, flat, ((o * kh * kw + tap) * high + row) * wide, wide)
    centre = at + kh * kw // 2 * pitch
    for w in range(centre, centre + wide):
        target[w] += band.kernel_residual


@borrowing_jit
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


@borrowing_jit
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


class Kernels(NamedTuple):
    """Where `product` finds a row of ROWS maps of the channel kernel for each of a number of terms.

    In the array itself where it is read once. For more columns it is copied, to lie on cache lines of which
    not all share one set; and so is the end of a map, whose last strip reaches behind it.
    """

    rows: np.ndarray  # (ROWS,)
    terms: np.ndarray
    copy: np.ndarray  # (terms, ROWS, padded)
    copy_rows: np.ndarray
    copy_terms: np.ndarray


@borrowing_jit
def place_maps(kernels: Kernels, count: int, apart: int) -> None:
    """So many maps, so far apart, are the rows of a product; what a last set lacks is not looked at."""
    for k in range(ROWS):
        kernels.rows[k] = min(k, count - 1) * apart


@borrowing_jit
def gather_kernels(kernels: Kernels, inputs: Inputs, at: int, row: int, terms: int, ahead: int) -> None:
    """Copy a row of so many terms, which begins there; of those so far `ahead`, fetch as much."""
    wide, flat = inputs.channel_kernel.shape[3], inputs.channel_kernel.reshape(-1)
    padded, of_terms = padded_width(wide, flat), kernels.terms[:terms]
    if not reaches_out(row, inputs):
        gather(kernels.copy, flat, at, kernels.rows, of_terms, padded // lanes(flat), ahead)
        return
    for k in range(terms):
        for i in range(ROWS):
            to = kernels.copy_terms[k] + kernels.copy_rows[i]
            copy(kernels.copy, to, flat, at + of_terms[k] + kernels.rows[i], wide)


@borrowing_jit
def reaches_out(row: int, inputs: Inputs) -> bool:
    """Whether the last strip of a row of maps reaches into what follows, and perhaps behind the array."""
    high, wide = inputs.channel_kernel.shape[2:]
    return row * wide + padded_width(wide, inputs.channel_kernel) > high * wide


class Rows(NamedTuple):
    """Scratch for a row of ROWS output channels, padded to whole strips."""

    kernels: np.ndarray  # (ROWS, taps, pitch): what `weights` makes of the spatial kernel, between zeros
    margin: int  # of zeros before a row
    pitch: int  # from row to row
    acc: np.ndarray  # (S*S, ROWS, pitch), between margins too
    channels: Kernels  # terms: channels
    lines_of_channels: np.ndarray
    of_taps: np.ndarray
    seen: np.ndarray  # (ROWS or 1, taps, seen_rows, a line): X1 where a tap reads it times Ap
    factors: np.ndarray  # the same of Ap itself, for gradients; without elements where not wanted
    of_lines: np.ndarray  # (S*S,): where in the lines of x samples are, in those of `seen` and of the centres
    of_seen: np.ndarray
    of_central: np.ndarray


@borrowing_jit
def see_block(scratch: Rows, outputs: tuple, first: int, end: int, inputs: Inputs, band: Band) -> int:
    """What taps of these output channels see around some rows; the first row of centres in there."""
    kw, given = inputs.spatial_kernel.shape[2], inputs.position_attention.size > 0
    low, high = band.centre[first, 0], band.centre[end - 1, len(band.at) - 1] + 1
    lines = Lines(band.centres[low:high], band.stretch, band.left, band.step)
    for k in range(outputs[1] - outputs[0] if given else 1):
        for tap in range(len(band.taps)):
            # Without attention, x stands in for it.
            attention = (
                inputs.position_attention[outputs[0] + k, tap // kw, tap % kw] if given else inputs.x[0]
            )
            see(
                *(scratch.seen, scratch.factors, k * band.apart + band.taps[tap]),
                *(given, attention, band.attention_residual, lines, band.totals),
                *(band.total_rows[tap // kw, low:high], band.total_at[tap % kw]),
            )
    return low


@borrowing_jit
def place_samples(scratch: Rows, h: int, low: int, band: Band) -> None:
    """Where the samples of a row lie; `seen` begins with that row of centres."""
    samples, size = len(band.at), band.step * band.stretch
    for s in range(samples * samples):
        i, j = s // samples, s % samples
        scratch.of_lines[s] = band.line[h, i] * size + band.at[j]
        scratch.of_seen[s] = (band.centre[h, i] - low) * size + band.at[j]
        scratch.of_central[s] = band.centre[h, i] * size + band.at[j]


@borrowing_jit
def _fetch(array: np.ndarray, at: int, wide: int) -> None:
    """Fetch a row of maps."""
    for w in range(0, wide, lanes(array)):
        prefetch(array, at + w)
    prefetch(array, at + wide - 1)


@borrowing_jit
def fetch_row(outputs: tuple, row: int, inputs: Inputs) -> None:
    """Fetch spatial kernels and sample attention of a row: of each map too little to be foreseen."""
    _, kh, kw, high, wide = inputs.spatial_kernel.shape
    regions, kernels = inputs.sample_attention.shape[1], inputs.spatial_kernel.reshape(-1)
    attention = inputs.sample_attention.reshape(-1)
    for k in range(outputs[0] * kh * kw, outputs[1] * kh * kw):
        _fetch(kernels, (k * high + row) * wide, wide)
    for k in range(outputs[0] * regions, outputs[1] * regions):
        _fetch(attention, (k * high + row) * wide, wide)


@borrowing_jit
def start_row(scratch: Rows, outputs: tuple, row: int, inputs: Inputs, band: Band) -> None:
    """The spatial kernels of a row of outputs."""
    for k in range(ROWS):
        at, o = k * len(scratch.of_taps) * scratch.pitch + scratch.margin, min(outputs[0] + k, outputs[1] - 1)
        weights(scratch.kernels, at, scratch.pitch, o, row, inputs, band)


@borrowing_jit
def sum_channels(scratch: Rows, outputs: tuple, h: int, inputs: Inputs, band: Band) -> None:
    """acc[s, k] = sum over channels of channel_kernel * x, for samples s and output channels k of a row.

    Of the last strip, what is behind the row holds any value.
    """
    channels, row = inputs.x.shape[0], band.first + h
    high, wide = inputs.channel_kernel.shape[2:]
    plane, blocks, maps = high * wide, padded_width(wide, scratch.acc) // lanes(scratch.acc), scratch.channels
    target = scratch.acc, scratch.margin, (scratch.pitch, ROWS * scratch.pitch)
    direct = len(scratch.of_lines) <= WIDE and not reaches_out(row, inputs)
    place_maps(maps, outputs[1] - outputs[0], channels * plane)
    for c in range(0, channels, CHANNELS):
        count = min(CHANNELS, channels - c)
        at = (outputs[0] * channels + c) * plane + row * wide
        ahead = CHANNELS * plane if c + count < channels else wide - c * plane  # or those of the next row
        lines = band.lines, c * band.channel, scratch.lines_of_channels[:count], scratch.of_lines
        if direct:
            kernels = inputs.channel_kernel.reshape(-1)
            fetching_product(
                *(*target, kernels, at, maps.rows, maps.terms[:count]),
                *(*lines, ZERO, blocks, c > 0, ahead),
            )
        else:
            gather_kernels(maps, inputs, at, row, count, ahead)
            product(*target, maps.copy, ZERO, maps.copy_rows, maps.copy_terms[:count], *lines, blocks, c > 0)


@borrowing_jit
def add_taps(scratch: Rows, outputs: tuple, wide: int, band: Band) -> None:
    """From sums over channels acc[s, k] to the regions s of the output channels k."""
    z, factors, pitch = scratch.acc, band.central, scratch.pitch
    apart, blocks = len(band.centres) * band.step * band.stretch, padded_width(wide, z) // lanes(z)
    for k in range(outputs[1] - outputs[0]):
        at = k * pitch + scratch.margin
        for s in range(len(scratch.of_central) if len(factors) else 0):
            to, factor = at + s * ROWS * pitch, (outputs[0] + k) * apart + scratch.of_central[s]
            t, f = uint64(to), uint64(factor)
            for w in range(uint64(wide)):
                z[t + w] *= factors[f + w]
        product_row(
            *(z, at, ROWS * pitch),
            *(scratch.kernels, k * len(scratch.of_taps) * pitch + scratch.margin, scratch.of_taps),
            *(scratch.seen, k * band.apart, band.taps, scratch.of_seen, blocks, True),
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
    """Items (block of rows, chunk of output channels); y is (1 or S*S, O, Ho, Wo), zero.

    `largest` is None but for "max"; then `odd` gets the rows of which not all regions are finite.
    """
    outputs, wide, sets = y.shape[1], y.shape[3], -(-y.shape[1] // ROWS)
    for item in range(start, stop):
        block, chunk = item // chunks, item % chunks
        first = block * band.block
        for k in range(sets * chunk // chunks, sets * (chunk + 1) // chunks):
            several, end = (ROWS * k, min(ROWS * (k + 1), outputs)), min(first + band.block, band.rows)
            low = see_block(scratch, several, first, end, inputs, band)
            for h in range(first, end):
                row = band.first + h
                place_samples(scratch, h, low, band)
                fetch_row(several, row, inputs)
                sum_channels(scratch, several, h, inputs, band)
                start_row(scratch, several, row, inputs, band)
                add_taps(scratch, several, wide, band)
                if not _fuse_row(y, largest, scratch, several, row, inputs, band):
                    odd[several[0] : several[1], row] = True


@borrowing_jit
def _fuse_row(
    y: np.ndarray, largest: Any, scratch: Rows, outputs: tuple, row: int, inputs: Inputs, band: Band
) -> bool:
    """Put the samples of a row into the output; whether all are finite, as far as that matters."""
    regions, several, (high, wide) = len(band.at) ** 2, y.shape[1], y.shape[2:]
    flat, acc, finite = y.reshape(-1), scratch.acc, True
    given = inputs.sample_attention.size > 0
    attention = inputs.sample_attention.reshape(-1) if given else band.ones
    residual = band.attention_residual if given else band.ones[0] - band.ones[0]
    stacked = len(y) > 1
    for o in range(outputs[0], outputs[1]):
        for s in range(regions):
            at = (s * ROWS + o - outputs[0]) * scratch.pitch + scratch.margin
            to = (o * high + row) * wide
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
