"""A sum over the words of an array that tells when one of them changed or moved."""

from typing import Any

import numpy as np

from . import parallel
from .compile import available, cached_jit, kernel_input

# Odd numbers without pattern: the step from place to place, and the factor that mixes.
_STEP, _FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF, _FOLD, _ONE = np.uint64(32), np.uint64(29), np.uint64(1)
_PIECE_WORDS = 1 << 15


@cached_jit
def _sum_pieces(start: int, stop: int, words: Any, sums: Any) -> None:
    """The sum of each piece of `words`: of the words, each mixed with its place."""
    for piece in range(start, stop):
        first = piece * _PIECE_WORDS
        total, place = np.uint64(0), (np.uint64(first) + _ONE) * _STEP
        # Unsigned: looking for a signed index that counts from the end would keep it from being vectorised.
        for i in range(np.uint64(first), np.uint64(min(first + _PIECE_WORDS, words.size))):
            mixed = words[i] ^ place
            place += _STEP
            # Folded by 29, not by 32: the signs of two float32 in a word would cancel.
            mixed = (mixed ^ (mixed >> _FOLD)) * _FACTOR
            mixed = (mixed ^ (mixed >> _HALF)) * _STEP
            total += mixed ^ (mixed >> _FOLD)
        sums[piece] = total


def mixed_sum(words: np.ndarray) -> int:
    """The sum modulo 2**64 of all 64-bit words, each mixed with its place; one pass at memory speed."""
    sums = np.zeros(-(-words.size // _PIECE_WORDS), np.uint64)
    if available():
        parallel.run(_sum_pieces, sums.size, words.size, kernel_input(words), sums)
    else:
        for piece, start in enumerate(range(0, words.size, _PIECE_WORDS)):
            sums[piece] = _mixed(words[start : start + _PIECE_WORDS], start).sum()
    return int(sums.sum())


def _mixed(words: np.ndarray, start: int) -> np.ndarray:
    """The words as they are summed, in NumPy, for machines where nothing is compiled."""
    mixed = words ^ np.arange(start + 1, start + 1 + words.size, dtype=np.uint64) * _STEP
    mixed = (mixed ^ (mixed >> _FOLD)) * _FACTOR
    mixed = (mixed ^ (mixed >> _HALF)) * _STEP
    return mixed ^ (mixed >> _FOLD)
