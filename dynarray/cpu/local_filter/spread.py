"""Outputs, or their filters, that are fewer than the pixels: moved apart to lie as these do, and back."""

import numpy as np

from ..engine.compile import borrowing_jit
from ..engine.pixels import clear, copy, inside
from .items import FilterRows


@borrowing_jit
def spread_outputs(
    target: np.ndarray,
    to: int,
    source: np.ndarray,
    at: int,
    size: tuple,
    width: int,
    wanted: tuple,
    shift: tuple,
) -> None:
    """Rows `wanted[0]` to `wanted[1]` of pixels, of this width; zeros where there is no output for them.

    There are outputs of `size`, and `source` has the first at `at`. A pixel gets that of the output so many
    rows and columns further.
    """
    high, wide = size
    low, end = inside(width, 0, wide, shift[1], 1)
    for i in range(wanted[0], wanted[1]):
        row, place = i + shift[0], to + (i - wanted[0]) * width
        if 0 <= row < high and low < end:
            clear(target, place, low)
            copy(target, place + low, source, at + row * wide + low + shift[1], end - low)
            clear(target, place + end, width - end)
        else:
            clear(target, place, width)


@borrowing_jit
def gather_outputs(
    target: np.ndarray, to: int, source: np.ndarray, at: int, size: tuple, width: int, rows: FilterRows
) -> None:
    """The reverse: the outputs that there are in a block of rows. `target` has the first of all at `to`."""
    high, wide = size
    for i in range(min(rows.height, high - rows.first)):
        copy(target, to + (rows.first + i) * wide, source, at + i * width, wide)
