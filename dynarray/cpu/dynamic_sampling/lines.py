"""Lines of `dynamic_sampling_conv2d` on the CPU: images packed into them, what taps see, and the way back."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import borrowing_jit, cached_jit
from ..engine.pixels import clear, copy, inside


class Lines(NamedTuple):
    """Where rows of an image lie, as `Band` has it: one stretch of each line for each phase of the stride."""

    rows: np.ndarray  # of the image; outside it lines are of zeros
    stretch: int
    left: int  # the column at element 0
    step: int  # columns between elements, and phases


@borrowing_jit
def pack(target: np.ndarray, at: int, image: np.ndarray, lines: Lines) -> None:
    """The lines of an image."""
    height, width = image.shape
    stretch, step = lines.stretch, lines.step
    for r in range(len(lines.rows)):
        y = lines.rows[r]
        within = 0 <= y < height
        line = image[y if within else 0]
        for phase in range(lines.step):
            to, column = at + (r * lines.step + phase) * stretch, lines.left + phase
            low, end = inside(stretch, 0, width, column, step)
            if not within:
                low, end = stretch, stretch
            clear(target, to, low)
            clear(target, to + end, stretch - end)
            if step == 1:
                copy(target, to + low, line, low + column, end - low)
            else:
                for k in range(low, end):
                    target[to + k] = line[k * step + column]


@cached_jit
def pack_items(
    start: int, stop: int, target: np.ndarray, apart: int, images: np.ndarray, lines: Lines
) -> None:
    """Items (image): their lines, `apart` from one image to the next."""
    for item in range(start, stop):
        pack(target, item * apart, images[item], lines)


@borrowing_jit
def add_lines(images: np.ndarray, image: int, source: np.ndarray, at: int, lines: Lines) -> None:
    """The adjoint of `pack`, added to one of the images."""
    (height, width), flat = images.shape[1:], images.reshape(-1)
    for r in range(len(lines.rows)):
        y = lines.rows[r]
        for phase in range(lines.step if 0 <= y < height else 0):
            of, column = at + (r * lines.step + phase) * lines.stretch, lines.left + phase
            low, end = inside(lines.stretch, 0, width, column, lines.step)
            to, by = uint64((image * height + y) * width + column + low * lines.step), uint64(lines.step)
            f = uint64(of + low)
            if lines.step == 1:
                for k in range(uint64(end - low)):
                    flat[to + k] += source[f + k]
            else:
                for k in range(uint64(end - low)):
                    flat[to + k * by] += source[f + k]


@cached_jit
def add_items(
    start: int, stop: int, images: np.ndarray, source: np.ndarray, apart: int, lines: Lines
) -> None:
    """Items (image): the adjoint of `pack_items`, added to the images."""
    for item in range(start, stop):
        add_lines(images, item, source, item * apart, lines)


@borrowing_jit
def see(
    seen: np.ndarray,
    factors: np.ndarray,
    at: int,
    attended: bool,
    attention: np.ndarray,
    residual: np.floating,
    lines: Lines,
    totals: np.ndarray,
    total_rows: np.ndarray,
    total_at: np.ndarray,
) -> None:
    """What a tap sees of X1 on these lines, if `attended` times the attention with its residual.

    Row k of the lines reads X1 from total_rows[k] of `totals` on, phase f from total_at[f] behind that. Where
    `factors` has elements, the attention with its residual goes there.
    """
    stretch, step, r = lines.stretch, lines.step, 0
    if attended:
        pack(seen, at, attention, lines)
    while r < len(lines.rows):
        end = r + 1
        while step == 1 and end < len(lines.rows) and total_rows[end] - total_rows[r] == (end - r) * stretch:
            end += 1
        count = uint64((end - r) * stretch)
        for phase in range(step):
            to, of = uint64(at + (r * step + phase) * stretch), uint64(total_rows[r] + total_at[phase])
            if not attended:
                copy(seen, to, totals, of, count)
            elif len(factors):
                for k in range(count):
                    factors[to + k] = seen[to + k] + residual
                    seen[to + k] = factors[to + k] * totals[of + k]
            else:
                for k in range(count):
                    seen[to + k] = (seen[to + k] + residual) * totals[of + k]
        r = end
