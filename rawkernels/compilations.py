"""What is told of compilations, and how several processes share them.

Who compiles something that a cache did not have says so: `begins`, and then `ends`, which is one INFO line of
the logger ``dynarray``. A thread may put a `Follower` in between, to count them, to refuse them, or, with
`Sharing`, to leave to another process what that one is just compiling.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from rawkernels import store

CLAIM = ".claim-"  # begins the names of files that stand for entries which are being compiled


class Compilation(NamedTuple):
    """A compilation: of what, how many seconds it took, and whether the cache on disk keeps it."""

    name: str
    seconds: float
    kept: bool


class NotKeptError(Exception):
    """Something is not in the cache, and was not to be compiled."""


class TakenError(Exception):
    """Another process is compiling something just now."""


class Follower:
    """What a thread wants to know of its compilations."""

    def before(self, entry: Path) -> None:
        """Called when `entry` is about to be compiled; what it raises goes through to the caller."""

    def after(self, done: Compilation) -> None:
        """Called after each compilation."""


_own = threading.local()


@contextmanager
def followed(follower: Follower) -> Iterator[None]:
    """In the block, what this thread compiles goes past a follower."""
    previous = getattr(_own, "follower", None)
    _own.follower = follower
    try:
        yield
    finally:
        _own.follower = previous


def begins(entry: Path) -> None:
    """An entry of a cache that is not there is going to be compiled."""
    follower = getattr(_own, "follower", None)
    if follower is not None:
        follower.before(entry)


def ends(name: str, seconds: float, *, kept: bool) -> None:
    """It was, and was kept on disk or not."""
    done = Compilation(name, seconds, kept)
    announce(done)
    follower = getattr(_own, "follower", None)
    if follower is not None:
        follower.after(done)


def announce(done: Compilation) -> None:
    """One line of the log."""
    store.log.info("compiled %s in %.1f s", done.name, done.seconds)


class Refusing(Follower):
    """Lets nothing be compiled, and collects what would have been."""

    def __init__(self) -> None:
        self.missing: set[Path] = set()

    def before(self, entry: Path) -> None:
        """Refuse it."""
        self.missing.add(entry)
        raise NotKeptError(entry.name)


class Sharing(Follower):
    """Compiles an entry unless another process is at it; collects what was compiled.

    Whoever compiles an entry holds the lock of a file beside it. The system releases that if the process is
    killed, so that nobody waits for what will not come.
    """

    def __init__(self) -> None:
        self.done: list[Compilation] = []
        self.alone = False  # whether it compiles what others have taken too
        self._claims: dict[Path, int] = {}
        self._seen: set[Path] = set()

    def before(self, entry: Path) -> None:
        """Take the entry, or raise `TakenError`."""
        if self.alone or store.fcntl is None or not store.prepare_folder(entry.parent):
            return
        path = entry.with_name(f"{CLAIM}{hashlib.sha256(entry.name.encode()).hexdigest()[:16]}.part")
        with suppress(OSError):  # where files or locks cannot be had, it is compiled more than once
            while path not in self._claims:
                self._claim(path)
        # Whoever had it may have finished since this process looked: then it need only look again.
        if entry not in self._seen and entry.exists():
            self._seen.add(entry)
            self.release()
            raise TakenError(entry.name)

    def _claim(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path, flags, 0o600)
        try:
            store.fcntl.flock(handle, store.fcntl.LOCK_EX | store.fcntl.LOCK_NB)
            # Whoever had it removes the file before it lets go of it.
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                self._claims[path], handle = handle, -1
        except BlockingIOError:
            raise TakenError(path.name) from None
        except FileNotFoundError:
            pass
        finally:
            if handle >= 0:
                os.close(handle)

    def after(self, done: Compilation) -> None:
        """Let go of it."""
        self.done.append(done)
        self.release()

    def release(self) -> None:
        """Let go of whatever was taken."""
        for path, handle in self._claims.items():
            path.unlink(missing_ok=True)
            os.close(handle)
        self._claims.clear()
