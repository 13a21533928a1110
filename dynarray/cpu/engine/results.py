"""Memory for results, in large pages where the system has them.

Fresh memory costs a fault for each page that is touched: 1.6 microseconds for one of 4 KB, and several times
that when two threads do it at once, which for an array of some megabytes is longer than to compute it. NumPy
asks for pages of 2 MB from 4 MB on, but then the two ends, which fill none, still come in small ones.
"""

import sys
from math import prod
from typing import Any

import numpy as np

from .vectors import LINE_BYTES

_PAGE = 2 * 1024 * 1024
_LEAST = 512 * 1024  # bytes; less is soon touched
_ASKED = 4 * 1024 * 1024  # from where on NumPy asks for large pages


def empty(shape: tuple, dtype: Any) -> np.ndarray:
    """`numpy.empty`; what is large begins on a cache line."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if size < _LEAST:
        return np.empty(shape, dtype)
    if sys.platform == "linux":
        start_on, room = _PAGE, max(_ASKED, -(-size // _PAGE) * _PAGE + _PAGE)
    else:
        start_on, room = LINE_BYTES, size + LINE_BYTES
    memory = np.empty(room, np.uint8)
    start = -memory.ctypes.data % start_on
    return memory[start : start + size].view(dtype).reshape(shape)


def zeros(shape: tuple, dtype: Any) -> np.ndarray:
    """`numpy.zeros`."""
    result = empty(shape, dtype)
    result.fill(0)
    return result
