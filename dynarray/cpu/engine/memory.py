"""Memory for results, and memory that a thread keeps from call to call.

Memory fresh from the system costs a page fault for each page that is touched, which takes longer than the
arithmetic on it, and several times as long when two threads do it at once; giving it back interrupts all
threads. So results come in large pages where the system has them. NumPy asks for those too, but from 4 MB on,
and then the two ends, which fill none, still come in small ones. The largest get memory of those that are no
longer held (see `large`). What kernels need for a while they borrow.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, TypeVar

import numpy as np

from . import parallel
from .large import AVAILABLE, LARGE_BYTES, PAGE, large_array
from .references import Reference
from .vectors import LINE_BYTES

_BYTE = np.dtype(np.uint8)
_LEAST = 512 * 1024  # bytes; less is soon touched
_ASKED = 4 * 1024 * 1024  # from where on NumPy asks for large pages
KEPT_BYTES = 8 * 1024 * 1024  # per thread and name; what is larger is not kept

KEPT_CUTS = 64  # per thread: calls of one shape after the other need the same ones

Record = TypeVar("Record", bound=tuple)
_own = threading.local()


def empty(shape: tuple, dtype: Any) -> np.ndarray:
    """`numpy.empty`; what is large begins on a cache line."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if size < _LEAST:
        return np.empty(shape, dtype)
    if size >= LARGE_BYTES and AVAILABLE:
        return large_array(size).view(dtype).reshape(shape)
    if sys.platform == "linux":
        start_on, room = PAGE, max(_ASKED, -(-size // PAGE) * PAGE + PAGE)
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


def zeros_where(arrays: Iterable[Any], needs: Iterable[bool]) -> list[Any]:
    """Zeros of the shape of each array; None for one that is not needed, or that there is not."""
    return _made_where(zeros, arrays, needs)


def empty_where(arrays: Iterable[Any], needs: Iterable[bool]) -> list[Any]:
    """The same with any values."""
    return _made_where(empty, arrays, needs)


def _made_where(make: Callable[..., np.ndarray], arrays: Iterable[Any], needs: Iterable[bool]) -> list[Any]:
    pairs = zip(arrays, needs, strict=True)
    return [make(a.shape, a.dtype) if needed and a is not None else None for a, needed in pairs]


def borrow(name: str, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array with any values, from a cache line on.

    The next call in this thread with the same name, of whatever operator, gets the same memory.
    """
    size = (shape if isinstance(shape, int) else prod(shape)) * np.dtype(dtype).itemsize
    memory = getattr(_own, name, None)
    if memory is None or len(memory) < size:
        memory = empty((size + LINE_BYTES,), _BYTE)
        memory = memory[-memory.ctypes.data % LINE_BYTES :]
        if size <= KEPT_BYTES:
            setattr(_own, name, memory)
    return memory[:size].view(dtype).reshape(shape)


def cut(sizes: Record, dtype: np.dtype, by_reference: bool = False) -> Record | Reference:
    """Scratch: the same record with an array in the place of each size.

    A size is the elements of an array, or ``(elements, dtype)`` where that is another; records may nest. This
    is the one description of what a kernel needs: it takes the record that this returns. Arrays have any
    values, each from a cache line on, in memory of this thread that its next call gets too.
    """
    cuts = _own.__dict__.setdefault("cuts", {})
    key = type(sizes), sizes, dtype, by_reference
    found = cuts.get(key)
    if found is not None:
        return found
    ranges, end = [], 0
    for size, kind in _flat_sizes(sizes, dtype):
        begin = -(-end // LINE_BYTES) * LINE_BYTES
        end = begin + size * kind.itemsize
        ranges.append((begin, end, kind))
    before = getattr(_own, "scratch", None)
    memory = borrow("scratch", end, _BYTE)
    record = _filled(sizes, (memory[begin:stop].view(kind) for begin, stop, kind in ranges))
    if getattr(_own, "scratch", None) is not before or len(cuts) >= KEPT_CUTS:
        cuts.clear()  # others hold memory that is no longer in use
    made = Reference(record) if by_reference else record
    if end <= KEPT_BYTES:
        cuts[key] = made
    return made


def _flat_sizes(sizes: tuple, dtype: np.dtype) -> Iterator[tuple[int, np.dtype]]:
    for size in sizes:
        if hasattr(size, "_fields"):
            yield from _flat_sizes(size, dtype)
        else:
            yield (size[0], np.dtype(size[1])) if isinstance(size, tuple) else (size, dtype)


def _filled(sizes: Record, arrays: Iterator[np.ndarray]) -> Record:
    """The record with the next arrays in the place of sizes."""
    fields = (_filled(size, arrays) if hasattr(size, "_fields") else next(arrays) for size in sizes)
    return type(sizes)(*fields)


def run_with_scratch(
    kernel: Callable[..., None],
    count: int,
    operations: float,
    sizes: tuple,
    dtype: np.dtype,
    *args: Any,
    by_reference: bool = False,
) -> None:
    """`parallel.run` of ``kernel(start, stop, scratch, *args)``, every thread with scratch of these sizes."""

    def piece(start: int, stop: int, *args: Any) -> None:
        kernel(start, stop, cut(sizes, dtype, by_reference), *args)

    piece.__qualname__ = kernel.__qualname__  # by which it is told from others
    parallel.run(piece, count, operations, *args)
