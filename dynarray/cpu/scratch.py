"""Memory that a thread keeps from call to call, for kernels that need some for a while.

Memory fresh from the system costs a page fault for every 4 KB, and giving it back interrupts all threads:
with two threads that took as long as the arithmetic on it.
"""

import threading

import numpy as np

KEPT_BYTES = 8 * 1024 * 1024  # per thread and name; what is larger is not kept

_own = threading.local()


def borrow(name: str, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` elements with any values, from a cache line on.

    The next call in this thread with the same name, of whatever operator, gets the same memory.
    """
    size = count * dtype.itemsize + 64
    memory = getattr(_own, name, None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        if size <= KEPT_BYTES:
            setattr(_own, name, memory)
    start = -memory.ctypes.data % 64
    return memory[start : start + count * dtype.itemsize].view(dtype)
