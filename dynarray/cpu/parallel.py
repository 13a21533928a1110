"""The one place that splits work over threads.

A kernel is a function ``kernel(start, stop, *args)`` that releases the GIL and works on the items start to
stop, no two of which write the same element. How items are dealt out to threads therefore changes no bit of
the result.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

# Below this many elementary operations a call costs less than waking another thread (about 0.1 ms).
SMALL = 300_000
# Work items that a kernel's plan aims at, whatever the number of threads, on which no result may depend.
ITEMS = 16
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
    job = _Job(kernel, args, count, min(count, threads * PIECES))
    try:
        pool = _get_pool()
        for _ in range(threads - 1):
            try:
                pool.submit(job.help)
            except RuntimeError:  # no thread to be had, or the interpreter is ending: do the work here
                break
        job.drain()
    finally:
        job.end()
    if job.error is not None:
        raise job.error


class _Job:
    """The pieces of one call, which the calling thread and any helpers take one by one."""

    def __init__(self, kernel: Callable[..., None], args: tuple, count: int, pieces: int) -> None:
        self.kernel, self.args = kernel, args
        self.todo = deque(pairwise(count * piece // pieces for piece in range(pieces + 1)))
        self.error: BaseException | None = None
        self._helpers = 0
        self._left = threading.Condition()

    def drain(self) -> None:
        """Work until nothing is left; what the kernel itself runs in parallel stays in this thread."""
        _worker.busy = True
        try:
            while True:
                try:
                    start, stop = self.todo.popleft()
                except IndexError:
                    return
                self.kernel(start, stop, *self.args)
        finally:
            _worker.busy = False

    def help(self) -> None:
        """Work in another thread than the caller's; one that comes after the end finds nothing to do."""
        with self._left:
            if not self.todo:
                return
            self._helpers += 1
        try:
            self.drain()
        except BaseException as error:
            self.error = error
            self.todo.clear()
        finally:
            with self._left:
                self._helpers -= 1
                self._left.notify_all()

    def end(self) -> None:
        """Wait until no helper is at work: none may write when the caller goes on, interrupted or not."""
        self.todo.clear()
        interrupt = None
        while True:
            try:
                with self._left:
                    self._left.wait_for(lambda: not self._helpers)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        self.args = ()  # helpers still waiting for a thread shall not keep the arrays alive
        if interrupt is not None:
            raise interrupt


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
