"""The kernels of `dynamic_sampling_conv2d` on the CPU: a row of a few output channels, and the forward pass.

A row is made in three steps: the sums over channels, of channel_kernel * x; the taps of the spatial kernel,
which are further terms of these sums; and the fusion of all samples.
"""

from typing import Any

import numpy as np
from numba import uint64

from ..engine.compile import ONE, TRUE, ZERO, borrowing_jit, rolled_jit
from ..engine.pixels import clear, copy
from ..engine.products import (
    PRODUCT_ROWS,
    WIDE,
    Extent,
    Factor,
    Target,
    gather_planes,
    product_of_block,
    product_of_row,
    product_of_rows,
)
from ..engine.vectors import LINE_BYTES, in_row, prefetch
from .bands import ELEMENTS_BEHIND, pack_lines
from .records import PlaceScratch, SampleBand, SampleRow, SampleScratch, place_scratch

SAMPLING_CHANNELS = 32  # whose kernels are multiplied while as many are fetched


def sampling_scratch(band: SampleBand, sums: bool, gradients: bool) -> SampleScratch:
    """The sizes of scratch; `sums`: whether those over channels are made."""
    widths, call, samples = band.widths, band.call, len(band.plan.samples.columns)
    taps, centres = call.rows.kernel * call.columns.kernel, band.plan.block_centres
    rows, regions = PRODUCT_ROWS * widths.pitch, samples * samples
    tap_values = (PRODUCT_ROWS if call.attended else 1) * taps * widths.tap + ELEMENTS_BEHIND
    return SampleScratch(
        kernels=taps * rows,
        sums=(regions * rows + widths.row) * sums,
        rows=max(SAMPLING_CHANNELS * PRODUCT_ROWS * sums, max(taps, WIDE * PRODUCT_ROWS) * gradients)
        * widths.row,
        tap_values=tap_values,
        tap_attention=tap_values * (gradients and call.attended),
        weights=regions * rows * gradients,
        centred=regions * PRODUCT_ROWS * widths.row * gradients,
        by_tap=PRODUCT_ROWS * taps * centres * widths.padded_line * gradients,
        by_centre=PRODUCT_ROWS * centres * widths.padded_line * gradients,
        places=place_scratch(samples),
    )


@borrowing_jit
def reaches_out(number: int, band: SampleBand) -> bool:
    """Whether the last vector of a row of maps reaches into what follows, and perhaps behind the array."""
    high, wide = band.inputs.channel_kernel.shape[2:]
    return number * wide + band.widths.row > high * wide


@borrowing_jit
def copy_maps(target: Factor, maps: Factor, extent: Extent, number: int, band: SampleBand) -> None:
    """Copy a row of maps of the channel kernel, and fetch what lies ahead.

    For products of more than `WIDE` columns: so the maps lie on cache lines of which not all share one set.
    And for the end of a map, whose last vector reaches behind it.
    """
    if not reaches_out(number, band):
        gather_planes(target, maps, extent)
        return
    for k in range(extent.terms):
        for i in range(extent.rows):
            to, at = k * target.terms + i * target.lines, maps.at + k * maps.terms + i * maps.lines
            wide = band.inputs.channel_kernel.shape[3]
            copy(target.data, to, maps.data, at, wide)
            clear(target.data, to + wide, extent.length - wide)


@borrowing_jit
def place_samples(places: PlaceScratch, h: int, band: SampleBand) -> None:
    """`PlaceScratch.lines` and `PlaceScratch.centres` of a row of the band."""
    samples, line, lines, centres = band.plan.samples, band.widths.line, places.lines, places.centres
    number = len(samples.columns)
    for s in range(number * number):
        i, column = s // number, samples.columns[s % number]
        lines[s] = samples.image_rows[h, i] * line + column
        centres[s] = samples.centre_rows[h, i] * line + column


@borrowing_jit
def read_taps(scratch: SampleScratch, row: SampleRow, end: int, band: SampleBand) -> None:
    """What taps read of X1 for the output channels of a row, on rows of centres from `row.low` to `end`."""
    plan, attention = band.plan, band.inputs.position_attention
    kh, kw = band.inputs.spatial_kernel.shape[1:3]
    image, attended = plan.image, attention.size > 0
    rows = plan.centres.rows[row.low : end]
    for k in range(row.outputs if attended else 1):
        for tap in range(kh * kw):
            at = k * band.widths.output + tap * band.widths.tap
            if attended:
                pack_lines(scratch.tap_values, at, attention[row.first + k, tap // kw, tap % kw], rows, image)
            tap_rows, tap_columns = plan.taps.rows[tap // kw, row.low : end], plan.taps.columns[tap % kw]
            _read_totals(scratch, at, attended, tap_rows, tap_columns, band)
            # Vectors reach behind the last row, into the next tap or what follows.
            size = len(rows) * band.widths.line
            behind = ELEMENTS_BEHIND if tap == kh * kw - 1 else min(ELEMENTS_BEHIND, band.widths.tap - size)
            clear(scratch.tap_values, at + size, behind)


@borrowing_jit
def _read_totals(
    scratch: SampleScratch, at: int, attended: bool, rows: np.ndarray, columns: np.ndarray, band: SampleBand
) -> None:
    """What one tap reads, on lines that begin there; if `attended` times the attention that is there."""
    values, factors, totals = scratch.tap_values, scratch.tap_attention, band.totals
    stretch, step, residual = band.plan.image.stretch, band.plan.image.step, band.call.attention_residual
    r = 0
    while r < len(rows):
        end = r + 1
        while step == 1 and end < len(rows) and rows[end] - rows[r] == (end - r) * stretch:
            end += 1
        count = uint64((end - r) * stretch)
        for phase in range(step):
            to, f = uint64(at + (r * step + phase) * stretch), uint64(rows[r] + columns[phase])
            if not attended:
                copy(values, to, totals, f, count)
            elif len(factors):
                for k in range(count):
                    factors[to + k] = values[to + k] + residual
                    values[to + k] = factors[to + k] * totals[f + k]
            else:
                for k in range(count):
                    values[to + k] = (values[to + k] + residual) * totals[f + k]
        r = end


@borrowing_jit
def _fetch(array: np.ndarray, at: int, wide: int) -> None:
    """Fetch a row of maps."""
    for w in range(0, wide, LINE_BYTES // array.itemsize):
        prefetch(array, at + w)
    prefetch(array, at + wide - 1)


@borrowing_jit
def fetch_row(row: SampleRow, band: SampleBand) -> None:
    """Fetch spatial kernels and sample attention of a row: of each map too little to be foreseen."""
    inputs = band.inputs
    _, kh, kw, high, wide = inputs.spatial_kernel.shape
    regions, kernels = inputs.sample_attention.shape[1], in_row(inputs.spatial_kernel)
    attention = in_row(inputs.sample_attention)
    for k in range(row.first * kh * kw, (row.first + row.outputs) * kh * kw):
        _fetch(kernels, (k * high + row.number) * wide, wide)
    for k in range(row.first * regions, (row.first + row.outputs) * regions):
        _fetch(attention, (k * high + row.number) * wide, wide)


@borrowing_jit
def copy_kernels(scratch: SampleScratch, row: SampleRow, band: SampleBand) -> None:
    """The spatial kernels of a row, with the residual on their centre."""
    _, kh, kw, high, wide = band.inputs.spatial_kernel.shape
    flat, taps, pitch = in_row(band.inputs.spatial_kernel), kh * kw, band.widths.pitch
    for k in range(row.outputs):
        at, o = k * taps * pitch + band.widths.margin, row.first + k
        for tap in range(taps):
            copy(scratch.kernels, at + tap * pitch, flat, ((o * taps + tap) * high + row.number) * wide, wide)
        centre = at + taps // 2 * pitch
        for w in range(centre, centre + wide):
            scratch.kernels[w] += band.call.kernel_residual


@borrowing_jit
def sum_channels(scratch: SampleScratch, row: SampleRow, band: SampleBand) -> None:
    """sums[s, k] = sum over channels of channel_kernel * x, for samples s and output channels k of a row.

    Of the last vector, what is behind the row holds any value.
    """
    samples, widths, kernels = scratch.places.lines, band.widths, band.inputs.channel_kernel
    _, channels, high, wide = kernels.shape
    plane, channel = high * wide, band.plan.channel
    target = Target(scratch.sums, widths.margin, widths.pitch, PRODUCT_ROWS * widths.pitch)
    direct = len(samples) <= WIDE and not reaches_out(row.number, band)
    for c in range(0, channels, SAMPLING_CHANNELS):
        count = min(SAMPLING_CHANNELS, channels - c)
        at = (row.first * channels + c) * plane + row.number * wide
        # What is multiplied next, of these rows or of the next one.
        ahead = SAMPLING_CHANNELS * plane if c + count < channels else wide - c * plane
        maps = Factor(in_row(kernels), at, channels * plane, plane, ahead)
        lines = Factor(band.lines, c * channel, samples, band.distances.channels, None)
        extent = Extent(row.outputs, len(samples), count, widths.row)
        if direct:
            product_of_block(target, maps, lines, extent, c > 0)
        else:
            copied = Factor(scratch.rows, ZERO, widths.row, PRODUCT_ROWS * widths.row, None)
            copy_maps(copied, maps, extent, row.number, band)
            product_of_rows(target, copied, lines, extent, c > 0)


@borrowing_jit
def add_taps(scratch: SampleScratch, row: SampleRow, band: SampleBand) -> None:
    """From sums over channels sums[s, k] to the regions s of the output channels k."""
    sums, factors, widths, wide = scratch.sums, band.central, band.widths, band.inputs.spatial_kernel.shape[4]
    samples, pitch = scratch.places.centres, widths.pitch
    taps = band.inputs.spatial_kernel.shape[1] * band.inputs.spatial_kernel.shape[2]
    extent = Extent(ONE, len(samples), taps, widths.row)
    for k in range(row.outputs):
        at, map_at = k * pitch + widths.margin, (row.first + k) * len(band.plan.centres.rows) * widths.line
        for s in range(len(samples) if len(factors) else 0):
            t, f = uint64(at + s * PRODUCT_ROWS * pitch), uint64(map_at + samples[s])
            for w in range(uint64(wide)):
                sums[t + w] *= factors[f + w]
        target = Target(sums, at, ZERO, PRODUCT_ROWS * pitch)
        kernels = Factor(
            scratch.kernels, k * taps * pitch + widths.margin, ZERO, band.distances.kernels, None
        )
        tap_at = k * widths.output - row.low * widths.line
        tap_values = Factor(scratch.tap_values, tap_at, samples, band.distances.taps, None)
        product_of_row(target, kernels, tap_values, extent, TRUE)


@rolled_jit
def sampling_forward_items(
    start: int,
    stop: int,
    scratch: SampleScratch,
    y: np.ndarray,
    largest: Any,
    not_finite: np.ndarray,
    band: SampleBand,
    chunks: int,
) -> None:
    """Items (block of rows, chunk of output channels); y is (1 or S*S, O, Ho, Wo).

    `largest` is None but for "max"; then `not_finite` gets the rows in which not all regions are finite.
    """
    outputs, groups, plan = y.shape[1], -(-y.shape[1] // PRODUCT_ROWS), band.plan
    clear(scratch.kernels, 0, len(scratch.kernels))
    for item in range(start, stop):
        first, chunk = item // chunks * plan.block, item % chunks
        end = min(first + plan.block, plan.rows)
        low, high = plan.samples.centre_rows[first, 0], plan.samples.centre_rows[end - 1, -1] + 1
        for group in range(groups * chunk // chunks, groups * (chunk + 1) // chunks):
            o = PRODUCT_ROWS * group
            count = min(PRODUCT_ROWS, outputs - o)
            for h in range(first, end):
                place_samples(scratch.places, h, band)
                row = SampleRow(o, count, h, plan.first + h, low)
                if h == first:
                    read_taps(scratch, row, high, band)
                fetch_row(row, band)
                sum_channels(scratch, row, band)
                copy_kernels(scratch, row, band)
                add_taps(scratch, row, band)
                if not _fuse_samples(y, largest, scratch, row, band):
                    not_finite[o : o + count, row.number] = True


@borrowing_jit
def _fuse_samples(
    y: np.ndarray, largest: Any, scratch: SampleScratch, row: SampleRow, band: SampleBand
) -> bool:
    """Put the samples of a row into the output; whether all are finite, as far as that matters."""
    regions, outputs, (high, wide) = len(scratch.places.lines), y.shape[1], y.shape[2:]
    flat, sums, finite, stacked = in_row(y), scratch.sums, True, len(y) > 1
    attended = band.inputs.sample_attention.size > 0
    attention = in_row(band.inputs.sample_attention) if attended else band.ones
    residual = band.call.attention_residual if attended else band.ones[0] - band.ones[0]
    for k in range(row.outputs):
        o = row.first + k
        to = (o * high + row.number) * wide
        for s in range(regions):
            at = (s * PRODUCT_ROWS + k) * band.widths.pitch + band.widths.margin
            f = ((o * regions + s) * high + row.number) * wide if attended else 0
            if largest is not None:
                factors = (attention, f, residual)
                finite &= _join_maximum(flat, in_row(largest), to, sums, at, wide, s, factors)
            else:
                t, z, a = uint64(to + (s * outputs * high * wide if stacked else 0)), uint64(at), uint64(f)
                if stacked or s == 0:
                    for w in range(uint64(wide)):
                        flat[t + w] = sums[z + w] * (attention[a + w] + residual)
                else:
                    for w in range(uint64(wide)):
                        flat[t + w] += sums[z + w] * (attention[a + w] + residual)
    return finite


@borrowing_jit
def _join_maximum(
    y: np.ndarray, largest: np.ndarray, to: int, sums: np.ndarray, at: int, wide: int, s: int, factors: tuple
) -> bool:
    """Put one region of a row into the maximum; whether it is finite."""
    attention, attention_at, residual = factors
    t, i, k, not_finite, limit = uint64(to), uint64(at), uint64(attention_at), 0, sums.dtype.type(np.inf)
    for w in range(uint64(wide)):
        value = sums[i + w] * (attention[k + w] + residual)
        not_finite += 0 if abs(value) < limit else 1
        # The first maximum; the first NaN is one.
        better = s == 0 or value > y[t + w] or (value != value and y[t + w] == y[t + w])
        y[t + w] = value if better else y[t + w]
        largest[t + w] = s if better else largest[t + w]
    return not_finite == 0
