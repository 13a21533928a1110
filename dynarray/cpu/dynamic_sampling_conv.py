"""`dynamic_conv2d` on the CPU: the kernels. Every weight is used once, so reading it is the bound.

A row of x that a tap reads is packed into a line with zeros beside it, one stretch for each phase of the
stride along x, so that the tap is one offset for a whole row of outputs. Weights are read in runs of several
rows: a row alone is too short for memory to deliver at full speed.
"""

from typing import NamedTuple

import numpy as np

from .compile import cached_jit, jit
from .dynamic_sampling_kernels import add1, add4
from .planes import aligned, clear, inside, pack_rows, unpack_rows

BLOCK = 8  # rows of outputs of a block


class Steps(NamedTuple):
    """How outputs and taps lie."""

    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    stretch: int  # elements of a phase of a line


@jit
def _pack(lines: np.ndarray, image: np.ndarray, first: int, count: int, kernel: int, steps: Steps) -> None:
    """Lines (kh, count) of the rows that the taps of some rows of outputs read."""
    size = steps.stride[1] * steps.stretch
    clear(lines, 0, len(lines))
    for a in range(kernel):
        for r in range(count):
            row = (first + r) * steps.stride[0] - steps.padding[0] + a * steps.dilation[0]
            for phase in range(steps.stride[1]):
                at, origin = (a * count + r) * size + phase * steps.stretch, (row, phase - steps.padding[1])
                pack_rows(lines, at, image, 0, 1, steps.stretch, origin, (1, steps.stride[1]))


@jit
def _tap_at(b: int, steps: Steps) -> int:
    """The element of a line that tap b of the first output of a row reads."""
    column = b * steps.dilation[1]
    return column % steps.stride[1] * steps.stretch + column // steps.stride[1]


@cached_jit
def conv_items(
    start: int,
    stop: int,
    x: np.ndarray,
    weight: np.ndarray,
    y: np.ndarray,
    steps: Steps,
    blocks: int,
    chunks: int,
) -> None:
    """Items (image, block of rows, chunk of output channels); y is zero."""
    outputs, channels, kh, kw, high, wide = weight.shape[1:]
    size, flat, of_weight = steps.stride[1] * steps.stretch, y.reshape(-1), weight.reshape(-1)
    lines, plane = aligned(kh * BLOCK * size, x), high * wide
    for item in range(start, stop):
        n, block, chunk = item // (blocks * chunks), item // chunks % blocks, item % chunks
        first = block * BLOCK
        count = min(BLOCK, high - first)
        for c in range(channels):
            _pack(lines, x[n, c], first, count, kh, steps)
            for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
                to = (n * outputs + o) * plane + first * wide
                for a in range(kh):
                    of = (((n * outputs + o) * channels + c) * kh + a) * kw * plane + first * wide
                    for b in range(0, kw // 4 * 4, 4):
                        taps = (
                            _tap_at(b, steps),
                            _tap_at(b + 1, steps),
                            _tap_at(b + 2, steps),
                            _tap_at(b + 3, steps),
                        )
                        for r in range(count):
                            at, line = of + b * plane + r * wide, (a * count + r) * size
                            where = (line + taps[0], line + taps[1], line + taps[2], line + taps[3])
                            add4(flat, to + r * wide, wide, of_weight, at, plane, lines, where)
                    for b in range(kw // 4 * 4, kw):
                        tap = _tap_at(b, steps)
                        for r in range(count):
                            at, line = of + b * plane + r * wide, (a * count + r) * size
                            add1(flat, to + r * wide, wide, of_weight, at, lines, line + tap)


@cached_jit
def conv_backward_items(
    start: int,
    stop: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    grad_x: np.ndarray,
    grad_weight: np.ndarray,
    steps: Steps,
    bands: int,
) -> None:
    """Items (image, channel, band of rows of x, or those above and below); unwanted gradients are empty."""
    outputs, channels, kh, kw, high, wide = weight.shape[1:]
    height, size, plane = x.shape[2], steps.stride[1] * steps.stretch, high * wide
    line, grad_line = aligned(size, x), aligned(size, x)
    gradients, flat, grads = grad_output.reshape(-1), weight.reshape(-1), grad_weight.reshape(-1)
    for item in range(start, stop):
        n, c, band = item // (channels * bands), item // bands % channels, item % bands
        # The first and the last band have the taps that read above and below the image.
        bottom = height * (band + 1) // bands if band + 1 < bands else height + 1
        for row in range(height * band // bands if band else -1, bottom):
            within = 0 <= row < height
            clear(grad_line, 0, size)
            _pack_row(line, x[n, c], row, steps)
            for a in range(kh):
                offset = steps.padding[0] - a * steps.dilation[0]
                for h in range(*_readers(row, height, offset, steps.stride[0], high)):
                    for o in range(outputs):
                        g = (n * outputs + o) * plane + h * wide
                        for b in range(kw):
                            at, tap = (
                                ((((n * outputs + o) * channels + c) * kh + a) * kw + b) * plane + h * wide,
                                _tap_at(b, steps),
                            )
                            if len(grads):
                                _multiply(grads, at, gradients, g, line, tap, wide)
                            if grad_x.size and within:
                                add1(grad_line, tap, wide, flat, at, gradients, g)
            if grad_x.size and within:
                for phase in range(steps.stride[1]):
                    origin = (row, phase - steps.padding[1])
                    unpack_rows(
                        grad_line,
                        phase * steps.stretch,
                        grad_x[n, c],
                        0,
                        1,
                        steps.stretch,
                        origin,
                        (1, steps.stride[1]),
                    )


@jit
def _pack_row(line: np.ndarray, image: np.ndarray, row: int, steps: Steps) -> None:
    clear(line, 0, len(line))
    for phase in range(steps.stride[1]):
        origin = (row, phase - steps.padding[1])
        pack_rows(line, phase * steps.stretch, image, 0, 1, steps.stretch, origin, (1, steps.stride[1]))


@jit
def _readers(row: int, height: int, offset: int, stride: int, high: int) -> tuple:
    """Rows of outputs of which a tap reads a row of x; -1 stands for all above, `height` for all below."""
    if row < 0:
        return 0, inside(high, 0, height, -offset, stride)[0]
    if row >= height:
        return inside(high, 0, height, -offset, stride)[1], high
    h = (row + offset) // stride
    return (h, h + 1) if (row + offset) % stride == 0 and 0 <= h < high else (0, 0)


@jit
def _multiply(
    target: np.ndarray, at: int, a: np.ndarray, a_at: int, b: np.ndarray, b_at: int, count: int
) -> None:
    t, i, k = np.uint64(at), np.uint64(a_at), np.uint64(b_at)
    for w in range(np.uint64(count)):
        target[t + w] = a[i + w] * b[k + w]
