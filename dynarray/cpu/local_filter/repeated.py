"""Pixels that count several times: rows of an image made longer, and results of which so many add up."""

import numpy as np
from numba import uint64

from ..engine.compile import borrowing_jit
from ..engine.gemm import Matrix
from ..engine.pixels import clear, copy, spread_apart


@borrowing_jit
def repeat(target: np.ndarray, to: int, source: np.ndarray, at: int, count: int, times: int) -> None:
    """Each of so many elements several times."""
    if times == 2:  # a constant that the compiler can vectorise for
        for j in range(uint64(count)):
            target[uint64(to) + uint64(2) * j] = source[uint64(at) + j]
            target[uint64(to) + uint64(2) * j + uint64(1)] = source[uint64(at) + j]
    else:
        for k in range(times):
            spread_apart(target, to + k, source, at, count, times)


@borrowing_jit
def fold(target: np.ndarray, at: int, sums: Matrix, width: int, folded: int) -> None:
    """Results of which so many add up."""
    if folded == 2:
        first = uint64(sums.at)
        for j in range(uint64(width)):
            pair = first + uint64(2) * j
            target[uint64(at) + j] = sums.values[pair] + sums.values[pair + uint64(1)]
    else:
        for j in range(width):
            total = sums.values[sums.at + j * folded]
            for k in range(1, folded):
                total += sums.values[sums.at + j * folded + k]
            target[at + j] = total


@borrowing_jit
def repeat_rows(
    target: np.ndarray, to: int, source: np.ndarray, at: int, size: tuple, rows: tuple, times: int
) -> None:
    """Rows `rows[0]` to `rows[1]` of an image of `size`, and zeros for those that it lacks.

    Each is made `times` as long and comes so many times. The image begins at `at`.
    """
    high, wide = size
    width = wide * times
    for row in range(rows[0], rows[1]):
        place = to + (row - rows[0]) * times * width
        if row < 0 or row >= high:
            clear(target, place, times * width)
            continue
        repeat(target, place, source, at + row * wide, wide, times)
        for k in range(1, times):
            copy(target, place + k * width, target, place, width)


@borrowing_jit
def fold_rows(target: np.ndarray, to: int, sums: np.ndarray, at: int, size: tuple, folded: int) -> None:
    """Rows of an image, of `size`, from sums so many times as long, of which so many rows add up."""
    rows, wide = size
    width = wide * folded
    for i in range(rows):
        first = at + i * folded * width
        for k in range(1, folded):
            for j in range(uint64(width)):
                sums[uint64(first) + j] += sums[uint64(first + k * width) + j]
        fold(target, to + i * wide, Matrix(sums, first, 0), wide, folded)
