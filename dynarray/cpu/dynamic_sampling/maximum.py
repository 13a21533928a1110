"""The gradients of `dynamic_sampling_conv2d` with "max" on the CPU: one sample of each pixel has a part.

Which one differs from pixel to pixel, so that pixels are gathered; but a row takes one sample's time instead
of S*S.
"""

import numpy as np

from ..engine.compile import borrowing_jit, cached_jit
from ..engine.pixels import clear
from .backward import Grads, Outer, put_lines
from .kernels import Band, Inputs
from .lines import Lines


@borrowing_jit
def _position_factor(o: int, tap: int, h: int, s: int, w: int, inputs: Inputs, band: Band) -> np.floating:
    """The position attention of one tap where sample s of a pixel is centred."""
    zero = inputs.x.dtype.type(0)
    if not inputs.position_attention.size:
        return zero + 1
    y, x = _centre(h, s, w, band)
    kw, within = inputs.spatial_kernel.shape[2], y >= 0 and 0 <= x < inputs.x.shape[2]
    given = inputs.position_attention[o, tap // kw, tap % kw, y, x] if within else zero
    return given + band.attention_residual


@borrowing_jit
def _centre(h: int, s: int, w: int, band: Band) -> tuple:
    """Row (-1 outside the image) and column on which sample s of a pixel is centred."""
    samples = len(band.at)
    y = band.centres[band.centre[h, s // samples]]
    x = w * band.steps[1] + (s % samples - (samples - 1) // 2) * band.steps[3]
    return y if 0 <= y < band.size[0] else -1, x


@borrowing_jit
def _line_places(
    places: np.ndarray, weights: np.ndarray, o: int, h: int, inputs: Inputs, outer: Outer, band: Band
) -> None:
    """For a row of outputs, where in the lines of x the chosen sample is, and grad_output * As."""
    samples, size, row = len(band.at), band.step * band.stretch, band.first + h
    for w in range(len(places)):
        s = outer.largest[o, row, w]
        places[w] = band.line[h, s // samples] * size + band.at[s % samples] + w
        weights[w] = outer.grad_output[0, o, row, w]
        if inputs.sample_attention.size:
            weights[w] *= inputs.sample_attention[o, s, row, w] + band.attention_residual


@borrowing_jit
def _pixel(
    o: int, h: int, w: int, dot: np.floating, weight: np.floating, inputs: Inputs, outer: Outer, grads: Grads,
    totals: np.ndarray, band: Band,
) -> None:  # fmt: skip
    """The gradients of the first pass at one pixel, from the sum of U * x there and grad_output * As."""
    samples, kernel, row = len(band.at), inputs.spatial_kernel[o], band.first + h
    kw, taps, s = kernel.shape[1], kernel.shape[0] * kernel.shape[1], outer.largest[o, row, w]
    phase = band.at[s % samples] // band.stretch if band.step > 1 else 0
    within = band.at[s % samples] - phase * band.stretch + w
    y, x = _centre(h, s, w, band)
    zero = inputs.x.dtype.type(0)
    sum_of_region = zero
    for tap in range(taps):
        a, b = tap // kw, tap % kw
        at = band.total_rows[a, band.centre[h, s // samples]] + band.total_at[b, phase] + within
        factor, of_tap = _position_factor(o, tap, h, s, w, inputs, band), kernel[a, b, row, w]
        product = zero
        if tap == taps // 2:
            of_tap += band.kernel_residual
            product += dot
        product += of_tap * band.totals[at]
        sum_of_region += product * factor
        if grads.spatial_kernel.size:
            grads.spatial_kernel[o, a, b, row, w] += weight * factor * band.totals[at]
        if len(totals):
            totals[at] += weight * of_tap * factor
        if grads.position_attention.size and y >= 0 and 0 <= x < inputs.x.shape[2]:
            grads.position_attention[o, a, b, y, x] += weight * product
    if grads.sample_attention.size:
        grads.sample_attention[o, s, row, w] = outer.grad_output[0, o, row, w] * sum_of_region


@cached_jit
def first_maximum_items(
    start: int, stop: int, inputs: Inputs, outer: Outer, grads: Grads, band: Band, items: int
) -> None:
    """Items (output channels, dealt out in `items` shares)."""
    outputs, _, _, high, wide = inputs.spatial_kernel.shape
    channels, lines, plane = inputs.x.shape[0], band.lines, high * wide
    needs_dots = grads.sample_attention.size + grads.position_attention.size > 0
    places, u = np.empty(wide, np.uint64), inputs.channel_kernel.reshape(-1)
    dots, weights = np.empty(wide, inputs.x.dtype), np.empty(wide, inputs.x.dtype)
    for item in range(start, stop):
        totals = grads.totals[item] if grads.totals.size else grads.totals.reshape(-1)
        for o in range(outputs * item // items, outputs * (item + 1) // items):
            for h in range(band.rows):
                _line_places(places, weights, o, h, inputs, outer, band)
                clear(dots, 0, wide)
                for c in range(channels if needs_dots else 0):
                    of = np.uint64((o * channels + c) * plane + (band.first + h) * wide)
                    base = np.uint64(c * band.channel)
                    for w in range(np.uint64(wide)):
                        dots[w] += u[of + w] * lines[base + places[w]]
                for w in range(wide):
                    _pixel(o, h, w, dots[w], weights[w], inputs, outer, grads, totals, band)


@cached_jit
def second_maximum_items(
    start: int,
    stop: int,
    inputs: Inputs,
    outer: Outer,
    grad_kernel: np.ndarray,
    grad_x: np.ndarray,
    grad_lines: np.ndarray,
    image: Lines,
    band: Band,
    chunk: int,
) -> None:
    """Items (chunk of channels); a gradient that is not wanted has no elements."""
    outputs, channels, high, wide = inputs.channel_kernel.shape
    places, weights = np.empty(wide, np.uint64), np.empty(wide, inputs.x.dtype)
    lines, u, grads = band.lines, inputs.channel_kernel.reshape(-1), grad_kernel.reshape(-1)
    centre = inputs.spatial_kernel.shape[1] * inputs.spatial_kernel.shape[2] // 2
    for item in range(start, stop):
        first, end = item * chunk, min(channels, (item + 1) * chunk)
        if len(grad_lines):
            clear(grad_lines, first * band.channel, (end - first) * band.channel)
        for o in range(outputs):
            for h in range(band.rows):
                row = band.first + h
                _line_places(places, weights, o, h, inputs, outer, band)
                if inputs.position_attention.size:
                    for w in range(wide):
                        s = outer.largest[o, row, w]
                        weights[w] *= _position_factor(o, centre, h, s, w, inputs, band)
                for c in range(first, end):
                    of, base = (
                        np.uint64(((o * channels + c) * high + row) * wide),
                        np.uint64(c * band.channel),
                    )
                    if len(grads):
                        for w in range(np.uint64(wide)):
                            grads[of + w] = weights[w] * lines[base + places[w]]
                    if len(grad_lines):
                        for w in range(np.uint64(wide)):
                            grad_lines[base + places[w]] += weights[w] * u[of + w]
        if len(grad_lines):
            put_lines(grad_x, (first, end), grad_lines, image, band)
