"""What a fork waits for.

A forked child has one thread, and whatever the other threads held at that moment stays held in it for good.
Our own locks are made anew in the child. Others nobody can renew: that of the dynamic loader, which is taken
to open a library, to list them, and to give a thread its ``thread_local`` memory; those of modules that are
just being imported; and whatever a compiler keeps inside the process. What takes such a lock runs in
``with held_off():``, and a fork waits until no other thread is in there.

Hooks run before a fork in the reverse order of their registration. That of `logging` takes a lock that a
thread in there may need, so it is registered first, by its import, and runs last.
"""

from __future__ import annotations

import logging  # noqa: F401 (see above)
import os
import threading
import time
import weakref
from typing import Any

_PATIENCE, _PAUSE = 0.1, 0.01  # seconds, after which a fork lets others go first, and for how long
# Seconds; whoever stays in there for longer has perhaps to wait for the forking thread itself.
_LONGEST = 120.0

# Each thread has a lock of its own, which it holds in there; a fork takes those of all threads.
# Reentrant, since the handler of a signal may fork anywhere.
_own = threading.local()
_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_register = threading.RLock()
_taken: list[Any] = []


def held_off() -> Any:
    """``with held_off():`` lets no other thread fork."""
    lock = getattr(_own, "lock", None)
    if lock is None:
        lock = threading.RLock()
        with _register:
            _locks.add(lock)
        _own.lock = lock
    return lock


def _before_fork() -> None:
    limit = time.monotonic() + _LONGEST
    while True:
        _register.acquire()
        for lock in list(_locks):
            if lock.acquire(timeout=_PATIENCE):
                _taken.append(lock)
            elif time.monotonic() < limit:
                break
        else:
            return
        _after_in_parent()  # or two threads that fork at once could wait for each other
        time.sleep(_PAUSE)  # for the other one to come in between


def _after_in_parent() -> None:
    while _taken:
        _taken.pop().release()
    _register.release()


def _after_in_child() -> None:
    global _own, _locks, _register
    _own, _locks, _register = threading.local(), weakref.WeakSet(), threading.RLock()
    _taken.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
