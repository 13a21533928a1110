"""What a fork waits for.

A forked child has one thread, and whatever the other threads held at that moment stays held in it for good.
Our own locks are made anew in the child. Others nobody can renew: that of the dynamic loader, which is taken
to open a library, to list them, and to give a thread its ``thread_local`` memory; those of modules that are
just being imported; and whatever a compiler keeps inside the process. What takes such a lock runs in
``with held_off():``, and a fork waits until no other thread is in there.

A handler of a signal may raise while a fork waits. Python prints and drops what a hook raises, and forks all
the same, without what the hook had not taken yet: the child would wait for it for ever. So the hooks here go
on until all is taken, and send the signal once more when the fork is over, or SIGTERM would be lost in there.

Hooks run before a fork in the reverse order of their registration. That of `logging` takes a lock that a
thread in there may need, so it is registered first, by its import, and runs last.
"""

from __future__ import annotations

import logging  # noqa: F401 (see above)
import os
import threading
import time
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import compress
from operator import call, methodcaller
from types import FrameType
from typing import Any

from .store import log

_PATIENCE, _PAUSE = 0.1, 0.01  # seconds, after which a fork lets others go first, and for how long
# Seconds; whoever stays in there for longer has perhaps to wait for the forking thread itself.
_LONGEST = 120.0
_VARARGS = 0x04  # `inspect.CO_VARARGS`, whose module takes long to import

# Each thread has a lock of its own, which it holds in there; a fork takes those of all threads.
# Reentrant, since the handler of a signal may fork anywhere.
_own = threading.local()
_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_others: list[Any] = []  # reentrant locks of other libraries, which a fork takes as well
_register = threading.RLock()


def held_off() -> Any:
    """``with held_off():`` lets no other thread fork."""
    lock = getattr(_own, "lock", None)
    if lock is None:
        lock = threading.RLock()
        with _register:
            _locks.add(lock)
        _own.lock = lock
    return lock


def wait_for(lock: Any) -> None:
    """Let forks wait for another library's reentrant lock."""
    _others.append(lock)


def _take(lock: Any, seconds: float, taken: list) -> bool:
    """Take a lock and note it in one step, between the parts of which no handler of a signal can raise."""
    before = len(taken)
    taken.extend(compress((lock,), map(call, (partial(lock.acquire, timeout=seconds),))))
    return len(taken) > before


def _release(taken: list) -> None:
    """The reverse, of all."""
    with suppress(IndexError):
        deque(map(methodcaller("release"), iter(taken.pop, None)), maxlen=0)


def _insist(step: Callable[[], None]) -> list[BaseException]:
    """Begin a step again until it ends by itself; returns what was raised before."""
    struck: list[BaseException] = []
    while True:
        try:
            step()
            return struck
        except BaseException as error:
            struck += [error]


def _before_fork() -> None:
    taken: list[Any] = []
    struck = _insist(partial(_take_all, taken, time.monotonic() + _LONGEST))
    _forks().append((taken, struck))


def _forks() -> list[tuple[list, list]]:
    """Of each fork of this thread that is under way, one in the other: what it has taken, what was raised."""
    if not hasattr(_own, "forks"):
        _own.forks = []
    return _own.forks


def _take_all(taken: list, limit: float) -> None:
    """All that a fork waits for, or as much of it as is to be had until then."""
    _release(taken)  # of a turn that was interrupted
    while True:
        _take(_register, -1, taken)
        if all(_take(lock, _PATIENCE, taken) or time.monotonic() > limit for lock in [*_others, *_locks]):
            return
        _release(taken)  # or two threads that fork at once could wait for each other
        time.sleep(_PAUSE)  # for the other one to come in between


def _after_in_parent() -> None:
    if _forks():  # a fork that was under way when this module was imported has taken nothing
        taken, struck = _forks().pop()
        struck += _insist(partial(_release, taken))
        if struck:
            start_new_thread(_send_again, (struck,))


def _after_in_child() -> None:
    global _own, _locks, _register
    if _forks():
        _insist(partial(_release, _forks().pop()[0]))
    _own, _locks, _register = threading.local(), weakref.WeakSet(), threading.RLock()


def _send_again(struck: list[BaseException]) -> None:
    """The signals whose handlers raised this, when the hooks are over."""
    time.sleep(_PAUSE)
    for error in struck:
        number = _signal_of(error)
        if number is None:
            log.warning("lost while a fork waited for other threads, from the handler of a signal: %r", error)
        else:
            os.kill(os.getpid(), number)


def _signal_of(error: BaseException) -> int | None:
    """The number of the signal whose handler raised this: its first argument."""
    import signal  # which takes long to import

    trace = error.__traceback__
    while trace is not None:
        for value in _arguments(trace.tb_frame):
            if isinstance(value, int) and value in signal.valid_signals():
                return int(value)
        trace = trace.tb_next
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else None


def _arguments(frame: FrameType) -> list:
    """What a function was called with, by position."""
    code, number = frame.f_code, frame.f_code.co_argcount
    found = [frame.f_locals.get(name) for name in code.co_varnames[:number]]
    if code.co_flags & _VARARGS:
        found += frame.f_locals.get(code.co_varnames[number + code.co_kwonlyargcount], ())
    return found


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
