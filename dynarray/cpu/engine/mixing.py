"""A sum over the words of an array that tells when one of them changed or moved."""

from typing import Any

import numpy as np

from . import parallel
from .compile import cached_jit

# Odd numbers without pattern: the step from place to place, and the factor that mixes.
STEP, FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF, _FOLD, _ONE = np.uint64(32), np.uint64(29), np.uint64(1)
_PIECE = 1 << 15


@cached_jit
def _sum_pieces(start: int, stop: int, words: Any, sums: Any) -> None:
    """The sum of each piece of `words`: of the words, each mixed with its place."""
    for piece in range(start, stop):
        first = piece * _PIECE
        total, place = np.uint64(0), (np.uint64(first) + _ONE) * STEP
        for i in range(first, min(first + _PIECE, words.size)):
            mixed = words[i] ^ place
            place += STEP
            # Folded by 29, not by 32: the signs of two float32 in a word would cancel.
            mixed = (mixed ^ (mixed >> _FOLD)) * FACTOR
            mixed = (mixed ^ (mixed >> _HALF)) * STEP
            total += mixed ^ (mixed >> _FOLD)
        sums[piece] = total


def mixed_sum(words: np.ndarray) -> int:
    """The sum modulo 2**64 of all 64-bit words, each mixed with its place; one pass at memory speed."""
    sums = np.zeros(-(-words.size // _PIECE), np.uint64)
    parallel.run(_sum_pieces, sums.size, words.size, words, sums)
    return int(sums.sum())
