"""Memory that a thread keeps from call to call, for kernels that need some for a while.

Memory fresh from the system costs a page fault for every 4 KB, and giving it back interrupts all threads:
with two threads that took as long as the arithmetic on it.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from . import parallel
from .results import empty

KEPT_BYTES = 8 * 1024 * 1024  # per thread and name; what is larger is not kept

_own = threading.local()


def borrow(name: str, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` elements with any values, from a cache line on.

    The next call in this thread with the same name, of whatever operator, gets the same memory.
    """
    size = count * dtype.itemsize + 64
    memory = getattr(_own, name, None)
    if memory is None or len(memory) < size:
        memory = empty((size,), np.uint8)
        if size <= KEPT_BYTES:
            setattr(_own, name, memory)
    start = -memory.ctypes.data % 64
    return memory[start : start + count * dtype.itemsize].view(dtype)


def run_with_memory(
    kernel: Callable[..., None], count: int, operations: float, elements: int, dtype: np.dtype, *args: Any
) -> None:
    """`parallel.run` of ``kernel(start, stop, memory, *args)``, every thread with `elements` of memory."""

    def piece(start: int, stop: int, *args: Any) -> None:
        kernel(start, stop, borrow("memory", elements, dtype), *args)

    parallel.run(piece, count, operations, *args)
