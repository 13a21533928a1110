"""The one place that splits work over threads.

A kernel is a function ``kernel(start, stop, *args)`` that releases the GIL and works on the items start to
stop, no two of which write the same element. How items are dealt out to threads therefore changes no bit of
the result.
"""

import _thread
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from rawkernels import forks

# Below this many elementary operations a call takes less time than waking another thread.
SMALL = 300_000
# Such operations in whose time a number comes from memory, or goes there.
PER_NUMBER = 4.0
# So many times as many take longer. Between the two, operations differ tenfold in what they take, and two
# threads take longer than one where each reads what the other has just written: former calls tell.
_LARGE = 16
# How long the first one takes is told by such a part of the items: so large a part that what it takes to
# begin with it hardly counts. What takes so many times as long as is worth another thread is surely shared.
_PART, _SURE = 8, 4
# Work for which another thread is woken, which may have to share a core with this one.
_WORTH_WAKING = 2.5e-4  # seconds
# A helper that has nothing to do watches for so long before it sleeps, for calls often follow each other
# closely. Then less work is worth its while.
_PATIENCE, _WORTH_SHARING = 2e-4, 1.5e-4
# Work items that a kernel's plan aims at, whatever the number of threads, on which no result may depend.
ITEMS = 16
# What is dealt out last is such a part of a thread's share: one that is late holds up others by no more. But
# who finishes a piece at the same time as another thread waits for it, for as long as a thread takes to wake:
# calls that take less than so many seconds are also tried in one piece for each thread, which must be so much
# quicker, for it varies more.
PIECES = 8
_LONG, _SURELY = 1e-2, 0.9

# Threads that help, however many may: each is a stack, and no machine gains from more.
MOST_HELPERS = 255
# What users of other libraries set. The first that holds a number counts.
VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(slots=True)
class _Known:
    """What is known of calls of one kernel with as many items and operations.

    Calls whose number is a power of two are trials of what seems slower: seldom enough to cost little. They
    try in turn the other number of threads and the other number of pieces.
    """

    calls: int = 0
    alone: float = inf  # the least seconds in one thread
    in_pieces: float = 0.0  # and in all: 0 before the first time
    at_once: float = 0.0  # with one piece for each

    def trial(self) -> int:
        """The number of a trial, from 1 on; 0 if this call is none."""
        return 0 if self.calls & (self.calls - 1) else self.calls.bit_length()

    def shared(self) -> float:
        """The least seconds in all threads."""
        return min(self.in_pieces, self.at_once)

    def divides(self) -> bool:
        """Whether the next call in all threads is divided into more pieces than these."""
        if not 0.0 < self.in_pieces < _LONG:
            return True
        return (_SURELY * self.in_pieces < self.at_once) != (self.trial() > 0 and self.trial() % 2 == 0)


_known: dict[tuple[str, int, float], _Known] = {}
_MOST_KNOWN = 1024
_pools: dict[int, "_Pool"] = {}  # that of the present number of threads, by it; no lock, see _Job
_worker = threading.local()


def _default_threads() -> int:
    """What the environment says, or else the cores of this process."""
    for variable in VARIABLES:
        number = os.environ.get(variable, "").partition(",")[0].strip()  # OpenMP: one for each level
        if number.isascii() and number.isdigit() and int(number) > 0:
            return int(number)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


_threads = _default_threads()
_last_end = 0.0  # of a call that was worth a look; a hint, of any thread


def get_num_threads() -> int:
    """Number of threads that an operator on the CPU may use.

    Returns
    -------
    int
        The number last set by `set_num_threads`, or else that of the environment variable
        ``NUMBA_NUM_THREADS`` or ``OMP_NUM_THREADS``, or else the number of cores this process may use.

    Examples
    --------
    >>> import dynarray as dyn
    >>> dyn.get_num_threads() >= 1
    True
    """
    return _threads


def set_num_threads(number: int) -> None:
    """Set the number of threads that an operator on the CPU may use; see `get_num_threads` for the default.

    Parameters
    ----------
    number : int
        At least 1; above 256 no more are started. Results have the same bits whatever the number.

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
    from ..._check import check_int

    global _threads
    _threads = check_int("set_num_threads", "number", number, 1)
    for other in list(_pools):
        pool = _pools.pop(other, None)
        if pool is not None:
            pool.close()  # calls under way keep the threads that they have


def run(kernel: Callable[..., None], count: int, operations: float, *args: Any) -> None:
    """Call ``kernel(start, stop, *args)`` over all of ``range(count)``, split over threads when it pays.

    `operations` are elementary ones, roughly, in all: small work runs in the calling thread.
    """
    global _last_end
    if min(_threads, count) > 1 and operations >= SMALL and not getattr(_worker, "busy", False):
        known = _known_of((kernel.__qualname__, count, operations))
        known.calls += 1
        if operations < _LARGE * SMALL:
            _run_as_known(kernel, count, args, known)
        else:
            _run_timed(kernel, count, args, known)
        _last_end = perf_counter()
    elif count:
        kernel(0, count, *args)


def _run_as_known(kernel: Callable[..., None], count: int, args: tuple, known: _Known) -> None:
    """The same in this thread or in all, whichever took less time."""
    begin, start, trial = perf_counter(), 0, known.trial() % 2 == 1
    worth = _WORTH_SHARING if begin - _last_end < _PATIENCE else _WORTH_WAKING
    if known.alone <= _SURE * worth:
        shared = known.alone > worth and (known.shared() <= known.alone) != trial
    elif trial:
        start = -(-count // _PART)
        kernel(0, start, *args)
        known.alone = min(known.alone, (perf_counter() - begin) * count / start)
        shared = known.alone * (count - start) > worth * count
    else:
        shared = True
    if not shared:
        kernel(start, count, *args)
        if start == 0:
            known.alone = min(known.alone, perf_counter() - begin)
    elif start:
        _run_shared(kernel, range(start, count), args, PIECES)
    else:
        _run_timed(kernel, count, args, known)


def _run_timed(kernel: Callable[..., None], count: int, args: tuple, known: _Known) -> None:
    """The same in all threads, in as many pieces as took less time."""
    begin, divides = perf_counter(), known.divides()
    _run_shared(kernel, range(count), args, PIECES if divides else 1)
    seconds = perf_counter() - begin
    if divides:
        known.in_pieces = min(known.in_pieces or seconds, seconds)
    else:
        known.at_once = min(known.at_once or seconds, seconds)


def _known_of(call: tuple[str, int, float]) -> _Known:
    known = _known.get(call)
    if known is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[call] = _Known()
    return known


def _run_shared(kernel: Callable[..., None], items: range, args: tuple, pieces: int) -> None:
    """Call ``kernel(start, stop, *args)`` over all items, in this thread and those that help.

    What is dealt out last is one of so many pieces of a thread's share.
    """
    threads = min(_threads, len(items))
    interrupt: BaseException | None = None
    pool = _get_pool()
    job = _Job(kernel, args, _pieces(items, threads, pieces), pool.signs)
    try:
        pool.help(job, threads - 1)
        job.drain()
    finally:
        # No thread may write to the arrays when the caller goes on, whatever the handler of a signal raises,
        # and however often.
        while True:
            try:
                job.end()
                break
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt
    if job.error is not None:
        raise job.error


def _pieces(items: range, threads: int, pieces: int) -> Iterator[tuple[int, int]]:
    """Pieces of a range: of half of it one for each thread, then of half of the rest, and so on."""
    start, stop, least = items.start, items.stop, -(-len(items) // (threads * pieces))
    while start < stop:
        size = max(least, -(-(stop - start) // (2 * threads)))
        for begin in range(start, min(stop, start + threads * size), size):
            yield begin, min(stop, begin + size)
        start += threads * size


class _Job:
    """The pieces of one call, which the calling thread and any helpers take one by one.

    An interrupt may strike the calling thread between any two steps; from Python 3.14 on also when ``with``
    has taken a lock and its block has not begun: the lock then stays taken. So the calling thread takes only
    locks that it can take once more, and lets go of in `end`, however often that is interrupted.
    """

    def __init__(self, kernel: Callable[..., None], args: tuple, pieces: Iterator, signs: Any) -> None:
        self.kernel, self.args = kernel, args
        self.todo = deque(pieces)
        self.error: BaseException | None = None
        self._gate: Any = threading.RLock()
        self._at_work: list[Any] = []  # a lock for each helper, which holds it while it works
        self._helpers: list[int] = []  # their numbers
        self._signs = signs

    def drain(self) -> None:
        """Work until nothing is left; what the kernel itself runs in parallel stays in this thread."""
        try:
            _worker.busy = True
            while True:
                try:
                    start, stop = self.todo.popleft()
                except IndexError:
                    return
                self.kernel(start, stop, *self.args)
        finally:
            _worker.busy = False

    def help(self, helper: int) -> None:
        """Work in another thread than the caller's; one that comes after the end finds nothing to do."""
        at_work = threading.RLock()
        with at_work:
            with self._gate:
                if not self.todo:
                    return
                self._at_work.append(at_work)
                self._helpers.append(helper)
                self._signs.begin(helper)
            try:
                self.drain()
            except BaseException as error:
                self.error = error
                self.todo.clear()

    def end(self) -> None:
        """Wait until no helper is at work, and let none begin."""
        for helper in tuple(self._helpers):
            self._signs.await_end(helper)
        with self._gate:
            self.todo.clear()
        while self._gate._is_owned():  # since an interrupt
            self._gate.release()
        for at_work in self._at_work:
            with at_work:
                pass
        self.args = ()  # helpers still waiting for a thread shall not keep the arrays alive


class _Pool:
    """Threads that help with jobs; nobody waits for one that has not come."""

    def __init__(self, size: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._size = min(size, MOST_HELPERS)
        with forks.held_off():
            from .watching import Signs  # which imports Numba, and compiles

            self.signs = Signs(self._size, _PATIENCE)
        self._missing = deque(range(self._size))  # threads that are not started yet

    def help(self, job: _Job, helpers: int) -> None:
        """Offer a job to so many threads, starting those that are missing."""
        helpers = min(helpers, self._size)
        while self._size - len(self._missing) < helpers and self._start():
            pass
        # Offers that nobody takes, because threads died while they were starting, shall not pile up.
        room = 2 * self._size - self._jobs.qsize()
        for _ in range(min(helpers, self._size - len(self._missing), room)):
            self._jobs.put(job)
        self.signs.offer()

    def _start(self) -> bool:
        """Start a thread if the system grants one; if not, the caller does the work."""
        try:
            number = self._missing.pop()
        except IndexError:  # another call took the last one
            return False
        try:
            # Not `threading.Thread`, whose start() waits for the new thread to say that it runs: one that
            # finds no memory for that ends without a word. Like a daemon it has nothing to lose at the end.
            _thread.start_new_thread(self._work, (number,))
        except BaseException as error:
            self._missing.append(number)
            if isinstance(error, RuntimeError | MemoryError):
                return False
            raise
        return True

    def _work(self, helper: int) -> None:
        while (job := self._jobs.get()) is not None:
            offers = self.signs.offers()
            job.help(helper)
            del job  # or it would live until the next one comes
            self.signs.await_offer(helper, offers)

    def close(self) -> None:
        """Let each thread end when it has nothing left to do."""
        for _ in range(self._size):
            self._jobs.put(None)


def _get_pool() -> _Pool:
    number = _threads
    # One of several that are made at once is kept; the others have started no thread.
    return _pools.get(number) or _pools.setdefault(number, _Pool(number - 1))


def _forget_pool() -> None:
    """A forked child has the pool but not its threads."""
    _pools.clear()
    _worker.busy = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
