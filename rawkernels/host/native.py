"""Native code that a fork waits for.

A forked child has one thread, and whatever the other threads held at that moment stays held in it for good.
Of what they hold inside a kernel, one lock is needed by the child's own kernels and can be renewed by nobody:
that of the dynamic loader, which is taken to open a library, to list them, and to give a thread its
``thread_local`` memory. So opening libraries and running kernels happens in ``with code():``, and a fork
waits until no other thread is in there. Compiling, which takes seconds, happens outside.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_PATIENCE = 0.1  # seconds, after which a fork lets others go first

# Each thread has a lock of its own, which it holds in native code; a fork takes those of all threads.
# Reentrant, since the handler of a signal may fork anywhere.
_own = threading.local()
_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_register = threading.RLock()
_taken: list[Any] = []


def code() -> Any:
    """``with code():`` holds off forks by other threads."""
    lock = getattr(_own, "lock", None)
    if lock is None:
        lock = threading.RLock()
        with _register:
            _locks.add(lock)
        _own.lock = lock
    return lock


def _before_fork() -> None:
    while True:
        _register.acquire()
        for lock in list(_locks):
            if not lock.acquire(timeout=_PATIENCE):
                break
            _taken.append(lock)
        else:
            return
        _after_in_parent()  # or two threads that fork at once could wait for each other


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
