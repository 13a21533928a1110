"""Lines of x for `dynamic_sampling_conv2d` on the CPU, and the way back for their gradients."""

import numpy as np
from numba import uint64

from .compile import cached_jit, jit
from .dynamic_sampling_backward import add
from .dynamic_sampling_kernels import Band
from .planes import aligned, clear, inside, pack_rows


@cached_jit
def pack_items(start: int, stop: int, x: np.ndarray, band: Band, rows: np.ndarray, sums: tuple) -> None:
    """Channels: the rows of x that are named, in lines; box sums if `sums`, (rows, columns), is not empty.

    Of box sums, line h is the sum of the rows sums[0][h], and its element w the sum over the columns from
    sums[1] + w*step.
    """
    size = band.phases * band.stretch
    extra = aligned(x.shape[2], x)
    for c in range(start, stop):
        lines = band.lines[c * band.channel : (c + 1) * band.channel]
        clear(lines, 0, len(lines))
        if sums[0].size:
            _box_sums(lines, x[c], extra, band, sums)
            continue
        for k in range(len(rows)):
            for phase in range(band.phases):
                at, origin = k * size + phase * band.stretch, (rows[k], band.left + phase)
                pack_rows(lines, at, x[c], 0, 1, band.stretch, origin, (1, band.step))


@jit
def _box_sums(lines: np.ndarray, image: np.ndarray, extra: np.ndarray, band: Band, sums: tuple) -> None:
    rows, columns = sums
    height, width = image.shape
    for h in range(rows.shape[0]):
        clear(extra, 0, width)
        for i in range(rows.shape[1]):
            if 0 <= rows[h, i] < height:
                row = image[rows[h, i]]
                for k in range(uint64(width)):
                    extra[k] += row[k]
        for j in range(len(columns)):
            low, end = inside(band.stretch, 0, width, columns[j], band.step)
            to, of, step = (
                uint64(h * band.stretch + low),
                uint64(low * band.step + columns[j]),
                uint64(band.step),
            )
            if band.step == 1:
                for k in range(uint64(end - low)):
                    lines[to + k] += extra[of + k]
            else:
                for k in range(uint64(end - low)):
                    lines[to + k] += extra[of + k * step]


@cached_jit
def unpack_items(
    start: int,
    stop: int,
    grad_x: np.ndarray,
    grad_lines: np.ndarray,
    band: Band,
    rows: np.ndarray,
    sums: tuple,
) -> None:
    """Channels: add lines to the gradient of x; the adjoint of `pack_items`."""
    size, (height, width) = band.phases * band.stretch, grad_x.shape[1:]
    extra = aligned(width, grad_x)
    for c in range(start, stop):
        lines, grad = grad_lines[c * band.channel : (c + 1) * band.channel], grad_x[c]
        for k in range(len(rows)):
            if sums[0].size:
                clear(extra, 0, width)
                for j in range(len(sums[1])):
                    low, end = inside(band.stretch, 0, width, sums[1][j], band.step)
                    for m in range(low, end):
                        extra[m * band.step + sums[1][j]] += lines[k * size + m]
                for i in range(sums[0].shape[1]):
                    if 0 <= sums[0][k, i] < height:
                        add(grad[sums[0][k, i]], 0, extra, 0, width)
                continue
            for phase in range(band.phases):
                low, end = inside(band.stretch, 0, width, band.left + phase, band.step)
                for m in range(low, end):
                    grad[rows[k], band.left + phase + m * band.step] += lines[
                        k * size + phase * band.stretch + m
                    ]
