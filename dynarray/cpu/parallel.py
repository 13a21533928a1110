"""The one place that splits work over threads.

A kernel is a function ``kernel(start, stop, *args)`` that releases the GIL and works on the items start to
stop, no two of which write the same element. How items are dealt out to threads therefore changes no bit of
the result.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

# Below this many elementary operations a call costs less than waking another thread (about 0.1 ms).
SMALL = 300_000
# Pieces per thread: enough that threads which started late or run slower do not hold up the others.
PIECES = 4

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_worker = threading.local()


def _available_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


_threads = _available_cores()


def get_num_threads() -> int:
    """Number of threads that an operator on the CPU may use.

    Returns
    -------
    int
        The number last set by `set_num_threads`, or else the number of cores this process may use.

    Examples
    --------
    >>> import dynarray as dyn
    >>> dyn.get_num_threads() >= 1
    True
    """
    return _threads


def set_num_threads(number: int) -> None:
    """Set the number of threads that an operator on the CPU may use (default: the cores of this process).

    Parameters
    ----------
    number : int
        At least 1. Results have the same bits whatever the number.

    Raises
    ------
    TypeError, ValueError
        If `number` is not an int of at least 1.

    Examples
    --------
    >>> import dynarray as dyn
    >>> before = dyn.get_num_threads()
    >>> dyn.set_num_threads(2)
    >>> dyn.get_num_threads()
    2
    >>> dyn.set_num_threads(before)
    """
    from .._check import check_int

    global _pool, _threads
    number = check_int("set_num_threads", "number", number, 1)
    with _lock:
        _threads, _pool = number, None  # calls under way keep the pool they have


def run(kernel: Callable[..., None], count: int, operations: float, *args: Any) -> None:
    """Call ``kernel(start, stop, *args)`` over all of ``range(count)``, split over threads when it pays.

    Parameters
    ----------
    kernel : callable
        Works on the items start to stop; must release the GIL to gain from threads.
    count : int
        Number of items.
    operations : float
        Rough number of elementary operations in all; small work runs in the calling thread.
    """
    threads = min(_threads, count)
    if threads <= 1 or operations < SMALL or getattr(_worker, "busy", False):
        if count > 0:
            kernel(0, count, *args)
        return
    pieces = min(count, threads * PIECES)
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    todo = deque(pairwise(bounds))
    helpers: list[Future[None]] = []
    try:
        pool = _get_pool()
        helpers += [pool.submit(_drain, todo, kernel, args) for _ in range(threads - 1)]
        _drain(todo, kernel, args)
    finally:
        # After an exception here, or an interrupt, no helper may still be writing when the caller goes on.
        todo.clear()
        wait([helper for helper in helpers if not helper.cancel()])
    for helper in helpers:
        if not helper.cancelled():
            helper.result()


def _drain(todo: deque[tuple[int, int]], kernel: Callable[..., None], args: tuple) -> None:
    """Work until nothing is left; what the kernel itself runs in parallel stays in this thread."""
    _worker.busy = True
    try:
        while True:
            try:
                start, stop = todo.popleft()
            except IndexError:
                return
            kernel(start, stop, *args)
    finally:
        _worker.busy = False


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, _threads - 1), thread_name_prefix="dynarray")
        return _pool


def _forget_pool() -> None:
    """A forked child has the pool but not its threads, and perhaps a lock that nobody will release."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None
    _worker.busy = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
