"""Lines of `dynamic_sampling_conv2d` on the CPU: images packed into them, what taps see, and the way back."""

from typing import NamedTuple

import numpy as np
from numba import uint64

from .compile import cached_jit, jit
from .planes import clear, copy, inside


class Lines(NamedTuple):
    """Where rows of an image lie, as `Band` has it: one stretch of each line for each phase of the stride."""

    rows: np.ndarray  # of the image; outside it lines are of zeros
    stretch: int
    left: int  # the column at element 0
    step: int  # columns between elements, and phases


@jit
def _pack(target: np.ndarray, at: int, image: np.ndarray, lines: Lines) -> None:
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
        _pack(target, item * apart, images[item], lines)


@cached_jit
def add_items(
    start: int, stop: int, images: np.ndarray, source: np.ndarray, apart: int, lines: Lines
) -> None:
    """Items (image): the adjoint of `pack_items`, added to the images."""
    height, width = images.shape[1:]
    flat = images.reshape(-1)
    for item in range(start, stop):
        for r in range(len(lines.rows)):
            y = lines.rows[r]
            for phase in range(lines.step if 0 <= y < height else 0):
                of, column = item * apart + (r * lines.step + phase) * lines.stretch, lines.left + phase
                low, end = inside(lines.stretch, 0, width, column, lines.step)
                to, by = uint64((item * height + y) * width + column + low * lines.step), uint64(lines.step)
                f = uint64(of + low)
                if lines.step == 1:
                    for k in range(uint64(end - low)):
                        flat[to + k] += source[f + k]
                else:
                    for k in range(uint64(end - low)):
                        flat[to + k * by] += source[f + k]


@cached_jit
def see_items(
    start: int,
    stop: int,
    seen: np.ndarray,
    factors: np.ndarray,
    attention: np.ndarray,
    residual: np.floating,
    lines: Lines,
    totals: np.ndarray,
    total_rows: np.ndarray,
    total_at: np.ndarray,
) -> None:
    """Items (output channel, tap): what a tap sees of X1, times the attention (O * taps, H, W) and residual.

    `factors` is the attention itself. Both have no elements where there is none; then the items are taps. Row
    a of taps reads X1 on the rows total_rows[:, a] of `totals`, each of which begins there.
    """
    stretch, phases, given = lines.stretch, lines.step, len(factors) > 0
    (count, kh), kw = total_rows.shape, total_at.shape[1]
    for item in range(start, stop):
        at, tap = item * count * phases * stretch, item % (kh * kw)
        if given:
            _pack(factors, at, attention[item], lines)
        for r in range(count):
            for phase in range(phases):
                to = uint64(at + (r * phases + phase) * stretch)
                of = uint64(total_rows[r, tap // kw] + total_at[phase, tap % kw])
                if given:
                    for k in range(uint64(stretch)):
                        factor = factors[to + k] + residual
                        factors[to + k] = factor
                        seen[to + k] = factor * totals[of + k]
                else:
                    copy(seen, to, totals, of, stretch)
