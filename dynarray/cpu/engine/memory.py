"""Memory for results, and memory that a thread keeps from call to call.

Memory fresh from the system costs a page fault for each page that is touched, which takes longer than the
arithmetic on it, and several times as long when two threads do it at once; giving it back interrupts all
threads. So results come in large pages where the system has them. NumPy asks for those too, but from 4 MB on,
and then the two ends, which fill none, still come in small ones. What kernels need for a while they borrow.
"""

import sys
import threading
from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import numpy as np

from . import parallel
from .pixels import whole_lines
from .vectors import LINE_BYTES

_PAGE = 2 * 1024 * 1024
_LEAST = 512 * 1024  # bytes; less is soon touched
_ASKED = 4 * 1024 * 1024  # from where on NumPy asks for large pages
KEPT_BYTES = 8 * 1024 * 1024  # per thread and name; what is larger is not kept

Record = TypeVar("Record", bound=tuple)
_own = threading.local()


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


def borrow(name: str, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` elements with any values, from a cache line on.

    The next call in this thread with the same name, of whatever operator, gets the same memory.
    """
    size = count * dtype.itemsize + LINE_BYTES
    memory = getattr(_own, name, None)
    if memory is None or len(memory) < size:
        memory = empty((size,), np.uint8)
        if size <= KEPT_BYTES:
            setattr(_own, name, memory)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + count * dtype.itemsize].view(dtype)


def cut(sizes: Record, dtype: np.dtype) -> Record:
    """Scratch: the same record with an array in the place of each size.

    Parameters
    ----------
    sizes : NamedTuple of int
        The elements of each array. This is the one description of what a kernel needs: it takes the record
        that this returns.

    Returns
    -------
    NamedTuple of array
        With any values, each from a cache line on, in memory of this thread that its next call gets too.
    """
    starts = np.cumsum([0, *map(whole_lines, sizes)]).tolist()
    memory = borrow("scratch", starts[-1], dtype)
    arrays = (memory[start : start + size] for start, size in zip(starts, sizes, strict=False))
    return type(sizes)(*arrays)


def run_with_scratch(
    kernel: Callable[..., None], count: int, operations: float, sizes: tuple, dtype: np.dtype, *args: Any
) -> None:
    """`parallel.run` of ``kernel(start, stop, scratch, *args)``, every thread with scratch of these sizes."""

    def piece(start: int, stop: int, *args: Any) -> None:
        kernel(start, stop, cut(sizes, dtype), *args)

    parallel.run(piece, count, operations, *args)


def run_with_memory(
    kernel: Callable[..., None], count: int, operations: float, elements: int, dtype: np.dtype, *args: Any
) -> None:
    """`parallel.run` of ``kernel(start, stop, memory, *args)``, every thread with `elements` of memory."""

    def piece(start: int, stop: int, *args: Any) -> None:
        kernel(start, stop, borrow("memory", elements, dtype), *args)

    parallel.run(piece, count, operations, *args)
