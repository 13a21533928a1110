"""A sum over the words of an array that tells when one of them changed or moved."""

from typing import Any

import numpy as np

from . import parallel
from .compile import available, cached_jit, kernel_input

# Odd numbers without pattern: the step from place to place, and the factor that mixes.
_STEP, _FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF, _FOLD, _ONE = np.uint64(32), np.uint64(29), np.uint64(1)
_PIECE = 1 << 15


@cached_jit
def _sum_pieces(start: int, stop: int, words: Any, sums: Any) -> None:
    """The sum of each piece of `words`: of the words, each mixed with its place."""
    for piece in range(start, stop):
        first = piece * _PIECE
        total, place = np.uint64(0), (np.uint64(first) + _ONE) * _STEP
        # Unsigned: looking for a signed index that counts from the end would keep it from being vectorised.
        for i in range(np.uint64(first), np.uint64(min(first + _PIECE, words.size))):
            mixed = words[i] ^ place
            place += _STEP
            # Folded by 29, not by 32: the signs of two float32 in a word would cancel.
            mixed = (mixed ^ (mixed >> _FOLD)) * _FACTOR
            mixed = (mixed ^ (mixed >> _HALF)) * _STEP
            total += mixed ^ (mixed >> _FOLD)
        sums[piece] = total


def _sum_pieces_in_numpy(words: np.ndarray, sums: np.ndarray) -> None:
    """The same where nothing can be compiled, on arrays of any length at the speed of NumPy."""
    for piece in range(len(sums)):
        mixed = words[piece * _PIECE : (piece + 1) * _PIECE]
        place = np.arange(piece * _PIECE + 1, piece * _PIECE + 1 + mixed.size, dtype=np.uint64)
        mixed = mixed ^ (place * _STEP)
        mixed = (mixed ^ (mixed >> _FOLD)) * _FACTOR
        mixed = (mixed ^ (mixed >> _HALF)) * _STEP
        sums[piece] = (mixed ^ (mixed >> _FOLD)).sum()


def mixed_sum(words: np.ndarray) -> int:
    """The sum modulo 2**64 of all 64-bit words, each mixed with its place; one pass at memory speed."""
    sums = np.zeros(-(-words.size // _PIECE), np.uint64)
    if available():
        parallel.run(_sum_pieces, sums.size, words.size, kernel_input(words), sums)
    else:
        _sum_pieces_in_numpy(words, sums)
    return int(sums.sum())
