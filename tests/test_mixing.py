"""The sum that tells whether an array was written to: kernel and definition agree, and places count."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from autodiff._fingerprint import fingerprint
from dynarray.cpu.engine import mixing

LENGTHS = (0, 1, 2, 1000, mixing._PIECE_WORDS - 1, mixing._PIECE_WORDS, 3 * mixing._PIECE_WORDS + 17)
MASK = 2**64 - 1


def by_hand(words: np.ndarray) -> int:
    """The same sum in Python's own integers."""
    step, total = int(mixing._STEP), 0
    for place, word in enumerate(words.tolist(), 1):
        mixed = word ^ (place * step & MASK)
        mixed = (mixed ^ mixed >> 29) * int(mixing._FACTOR) & MASK
        mixed = (mixed ^ mixed >> 32) * step & MASK
        total += mixed ^ mixed >> 29
    return total & MASK


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_sum_is_what_it_says(
    length: int, compiled: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "available", lambda: compiled)
    words = rng.integers(0, MASK, length, np.uint64, endpoint=True)
    assert mixing.mixed_sum(words) == by_hand(words)


@pytest.mark.parametrize("compiled", [True, False])
def test_words_that_move_and_signs_that_change_in_pairs_are_seen(
    compiled: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "available", lambda: compiled)
    values = rng.standard_normal(20_000).astype(np.float32)
    before = mixing.mixed_sum(values.view(np.uint64))
    for _ in range(300):
        changed = values.copy()
        i, j = rng.choice(values.size, 2, replace=False)
        if rng.integers(2):
            changed[[i, j]] = changed[[j, i]]
        else:
            changed[[i, j]] *= -1
        assert mixing.mixed_sum(changed.view(np.uint64)) != before


@pytest.mark.slow
def test_a_fingerprint_is_taken_at_the_speed_of_memory() -> None:
    """In turn with NumPy's maximum, which reads each word once and does little else."""
    array = np.random.default_rng(0).standard_normal(1 << 23)
    words = array.view(np.uint64)

    def seconds(call: Callable) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    fingerprint(array)
    ratios = [seconds(lambda: fingerprint(array)) / seconds(words.max) for _ in range(15)]
    assert np.median(ratios) < 3
