"""Copies of arrays between guard zones that show a stray write and turn a stray read into NaN."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

GUARD_BYTES = 32 * 1024
_ALIGNMENT = 256  # of what CUDA allocates, at least


@cache
def _pattern(itemsize: int) -> np.ndarray:
    """One guard zone: NaNs of that item size, each with another payload, so that a copied one shows too."""
    count = GUARD_BYTES // itemsize
    index = np.arange(count, dtype=np.uint64)
    if itemsize == 8:
        words = (np.uint64(0x7FF8_0000_0000_0000) | index).astype(np.uint64)
    elif itemsize == 4:
        words = (np.uint64(0x7FC0_0000) | index).astype(np.uint32)
    elif itemsize == 2:  # NaN as float16 and as bfloat16
        words = (np.uint64(0x7FC0) | index % np.uint64(64)).astype(np.uint16)
    else:
        words = (np.uint64(0xA0) | index % np.uint64(16)).astype(np.uint8)
    return words.view(np.uint8)


class Guarded:
    """A copy of an array, with a guard zone before its first and after its last byte.

    Parameters
    ----------
    array : ndarray
        C-contiguous.
    name : str
        What to call it in messages.
    """

    def __init__(self, array: np.ndarray, name: str) -> None:
        self.name = name
        self.itemsize = array.itemsize
        size = array.nbytes + 2 * GUARD_BYTES
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._memory = memory[start : start + size]
        self._pattern = _pattern(array.itemsize if array.itemsize in (1, 2, 4, 8) else 1)
        self._before = self._memory[:GUARD_BYTES]
        self._inside = self._memory[GUARD_BYTES : size - GUARD_BYTES]
        self._after = self._memory[size - GUARD_BYTES :]
        self._before[:] = self._pattern
        self._after[:] = self._pattern
        self._inside[:] = _bytes(array)
        self.address: int = self._memory.ctypes.data + GUARD_BYTES

    def stray_writes(self) -> str:
        """What was written outside the array, in words; empty if nothing was."""
        before = np.flatnonzero(self._before != self._pattern)
        after = np.flatnonzero(self._after != self._pattern)
        if not before.size and not after.size:
            return ""
        elements = self._inside.size // self.itemsize
        places = [(int(i) - GUARD_BYTES) // self.itemsize for i in before]
        places += [elements + int(i) // self.itemsize for i in after]
        distinct = sorted(set(places))
        return (
            f"stray write to {self.name}: {len(distinct)} elements outside its {elements}, "
            f"first at index {distinct[0]}"
        )

    def copy_back(self, array: np.ndarray) -> None:
        """Store the contents in the array that was copied."""
        _bytes(array)[:] = self._inside


def _bytes(array: np.ndarray) -> Any:
    return array.reshape(-1).view(np.uint8)
