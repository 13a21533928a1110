"""`dynamic_sampling_conv2d` with "max" on the CPU: its gradients, and its output where that is not finite.

One sample of each pixel has a part in the gradients. Which one differs from pixel to pixel, so that pixels
are gathered; but a row takes one sample's time instead of S*S.
"""

from typing import NamedTuple

import numpy as np

from ..engine.compile import borrowing_jit, cached_jit, literal_jit, zero_like
from ..engine.pixels import clear
from ..engine.vectors import in_row
from .gradients import add_to_image
from .records import MaximumScratch, SampleBand, SampleWork


class SamplePixel(NamedTuple):
    """One sample of one pixel of the output."""

    output: int
    h: int  # the row, in the band
    w: int
    s: int


@borrowing_jit
def _centre_of(pixel: SamplePixel, band: SampleBand) -> tuple:
    """Row and column on which the sample is centred, and whether that is inside the image."""
    columns, samples = band.call.columns, band.call.columns.samples
    y = band.plan.centres.rows[band.plan.samples.centre_rows[pixel.h, pixel.s // samples]]
    x = pixel.w * columns.stride + (pixel.s % samples - (samples - 1) // 2) * columns.sample_stride
    return y, x, 0 <= y < band.call.rows.size and 0 <= x < columns.size


@borrowing_jit
def _position_factor(pixel: SamplePixel, tap: int, band: SampleBand) -> np.floating:
    """The position attention of one tap where the sample is centred, with its residual."""
    attention = band.inputs.position_attention
    if not attention.size:
        return zero_like(attention) + 1
    y, x, within = _centre_of(pixel, band)
    kw = attention.shape[2]
    given = attention[pixel.output, tap // kw, tap % kw, y, x] if within else zero_like(attention)
    return given + band.call.attention_residual


@literal_jit
def _region_by_definition(pixel: SamplePixel, band: SampleBand) -> np.floating:
    """One pixel of a region."""
    inputs, rows, columns = band.inputs, band.call.rows, band.call.columns
    kernel, row = inputs.spatial_kernel[pixel.output], band.plan.first + pixel.h
    y, x, _ = _centre_of(pixel, band)
    kh, kw = kernel.shape[:2]
    total = zero = zero_like(inputs.x)
    for tap in range(kh * kw):
        a, b = tap // kw, tap % kw
        tap_y, tap_x = y + (a - kh // 2) * rows.dilation, x + (b - kw // 2) * columns.dilation
        read = 0 <= tap_y < rows.size and 0 <= tap_x < columns.size
        products = zero
        for c in range(len(inputs.x)):
            factor = kernel[a, b, row, pixel.w]
            if tap == kh * kw // 2:
                factor += inputs.channel_kernel[pixel.output, c, row, pixel.w] + band.call.kernel_residual
            products += factor * (inputs.x[c, tap_y, tap_x] if read else zero)
        if inputs.position_attention.size:
            products *= _position_factor(pixel, tap, band)
        total += products
    if inputs.sample_attention.size:
        attention = inputs.sample_attention[pixel.output, pixel.s, row, pixel.w]
        total *= attention + band.call.attention_residual
    return total


@cached_jit
def exact_maximum_items(
    start: int, stop: int, places: np.ndarray, y: np.ndarray, largest: np.ndarray, band: SampleBand
) -> None:
    """Items (output channel, row): maxima by the definition, for factors may turn an infinity into NaN."""
    for item in range(start, stop):
        o, row = places[item, 0], places[item, 1]
        for w in range(y.shape[2]):
            for s in range(band.call.rows.samples * band.call.rows.samples):
                z = _region_by_definition(SamplePixel(o, row - band.plan.first, w, s), band)
                if s == 0 or z > y[o, row, w] or (z != z and y[o, row, w] == y[o, row, w]):
                    y[o, row, w], largest[o, row, w] = z, s


@borrowing_jit
def _largest_of_row(places: np.ndarray, weights: np.ndarray, o: int, h: int, work: SampleWork) -> None:
    """Where the largest samples of a row are in the lines of x, and grad_output * sample attention."""
    given, band = work.given, work.band
    row, attention, samples = band.plan.first + h, band.inputs.sample_attention, band.plan.samples
    number = len(samples.columns)
    for w in range(len(places)):
        s = given.largest[o, row, w]
        line = samples.image_rows[h, s // number] * band.widths.line
        places[w] = line + samples.columns[s % number] + w
        weights[w] = given.grad_output[0, o, row, w]
        if attention.size:
            weights[w] *= attention[o, s, row, w] + band.call.attention_residual


@borrowing_jit
def _add_pixel(
    pixel: SamplePixel, dot: np.floating, weight: np.floating, totals: np.ndarray, work: SampleWork
) -> None:
    """The gradients of the first pass at one pixel: `dot` is its sum over channels."""
    grads, band = work.grads, work.band
    plan, kernel, row = band.plan, band.inputs.spatial_kernel[pixel.output], band.plan.first + pixel.h
    o, h, w, s = pixel
    samples, column = band.call.columns.samples, plan.samples.columns[s % band.call.columns.samples]
    kw, taps, stretch = kernel.shape[1], kernel.shape[0] * kernel.shape[1], plan.image.stretch
    phase = column // stretch if plan.image.step > 1 else 0
    y, x, within = _centre_of(pixel, band)
    region = zero = zero_like(band.inputs.x)
    for tap in range(taps):
        a, b = tap // kw, tap % kw
        at = plan.taps.rows[a, plan.samples.centre_rows[h, s // samples]] + plan.taps.columns[b, phase]
        at += column - phase * stretch + w
        factor, tap_weight = _position_factor(pixel, tap, band), kernel[a, b, row, w]
        product = zero
        if tap == taps // 2:
            tap_weight += band.call.kernel_residual
            product += dot
        product += tap_weight * band.totals[at]
        region += product * factor
        if grads.spatial_kernel.size:
            grads.spatial_kernel[o, a, b, row, w] += weight * factor * band.totals[at]
        if len(totals):
            totals[at] += weight * tap_weight * factor
        if grads.position_attention.size and within:
            grads.position_attention[o, a, b, y, x] += weight * product
    if grads.sample_attention.size:
        grads.sample_attention[o, s, row, w] = work.given.grad_output[0, o, row, w] * region


@cached_jit
def first_maximum_items(start: int, stop: int, scratch: MaximumScratch, work: SampleWork, items: int) -> None:
    """Items (output channels, dealt out in `items` shares)."""
    given, grads, band = work.given, work.grads, work.band
    outputs, channels, high, wide = band.inputs.channel_kernel.shape
    plan, lines, plane = band.plan, band.lines, high * wide
    needs_dots = grads.sample_attention.size + grads.position_attention.size > 0
    places, kernels = np.empty(wide, np.uint64), in_row(band.inputs.channel_kernel)
    dots, weights = scratch.dots, scratch.weights
    for item in range(start, stop):
        totals = grads.totals[item] if grads.totals.size else in_row(grads.totals)
        for o in range(outputs * item // items, outputs * (item + 1) // items):
            for h in range(plan.rows):
                row = plan.first + h
                _largest_of_row(places, weights, o, h, work)
                clear(dots, 0, wide)
                for c in range(channels if needs_dots else 0):
                    k, base = np.uint64((o * channels + c) * plane + row * wide), np.uint64(c * plan.channel)
                    for w in range(np.uint64(wide)):
                        dots[w] += kernels[k + w] * lines[base + places[w]]
                for w in range(wide):
                    pixel = SamplePixel(o, h, w, given.largest[o, row, w])
                    _add_pixel(pixel, dots[w], weights[w], totals, work)


@cached_jit
def second_maximum_items(
    start: int, stop: int, scratch: MaximumScratch, work: SampleWork, chunk: int
) -> None:
    """Items (chunk of channels); a gradient that is not wanted has no elements."""
    given, grads, band = work.given, work.grads, work.band
    outputs, channels, high, wide = band.inputs.channel_kernel.shape
    places, weights, plan = np.empty(wide, np.uint64), scratch.weights, band.plan
    lines, kernels = band.lines, in_row(band.inputs.channel_kernel)
    grad_kernels = in_row(grads.channel_kernel)
    centre = band.inputs.spatial_kernel.shape[1] * band.inputs.spatial_kernel.shape[2] // 2
    for item in range(start, stop):
        first, end = item * chunk, min(channels, (item + 1) * chunk)
        if len(grads.lines):
            clear(grads.lines, first * plan.channel, (end - first) * plan.channel)
        for o in range(outputs):
            for h in range(plan.rows):
                row = plan.first + h
                _largest_of_row(places, weights, o, h, work)
                if band.inputs.position_attention.size:
                    for w in range(wide):
                        pixel = SamplePixel(o, h, w, given.largest[o, row, w])
                        weights[w] *= _position_factor(pixel, centre, band)
                for c in range(first, end):
                    k = np.uint64(((o * channels + c) * high + row) * wide)
                    base = np.uint64(c * plan.channel)
                    if len(grad_kernels):
                        for w in range(np.uint64(wide)):
                            grad_kernels[k + w] = weights[w] * lines[base + places[w]]
                    if len(grads.lines):
                        for w in range(np.uint64(wide)):
                            grads.lines[base + places[w]] += weights[w] * kernels[k + w]
        if len(grads.lines):
            add_to_image((first, end), work)
