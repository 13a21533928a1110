"""Waiting for other ranks, and noticing that one of them will not come."""

import atexit
import os
import select
import socket
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Seconds. A wait begins with looking all the time, since most are short; then it leaves the core to others.
EAGER, SOON = 2e-3, 0.1
PAUSES = 2e-5, 1e-3
TELL = 1.0  # after which the others are told that this rank waits
TAG = zlib.crc32(b"autodiff.distributed") & 0x3FFF
# What a rank tells the others: how many calls and sums it has begun, whether it ends, and which call waits.
MESSAGE = np.dtype([("calls", np.int64), ("sums", np.int64), ("ending", np.int64), ("what", "S80")])
leave_core = getattr(os, "sched_yield", lambda: time.sleep(0))


class RankError(RuntimeError):
    """A rank that is waited for is dead, has ended, or does not come; the message names it."""


class Name(NamedTuple):
    """Which process a rank is. Process numbers mean something inside of one `space` alone."""

    rank: int
    size: int
    host: str
    process: int
    space: str

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} ({self.host}, process {self.process})"


def own_name(rank: int, size: int) -> Name:
    """That of this process."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return Name(rank, size, socket.gethostname(), os.getpid(), space)


class Watch:
    """What a rank knows of the others while it waits for them.

    Calls in which every rank takes part are numbered in the order in which they begin, and so are sums that
    overlap with them, whose place among calls may differ. Who waits for long, and who ends, tells the others
    how far it has come: whoever has not come as far is waited for.

    Parameters
    ----------
    channel : mpi4py communicator
        For these messages alone.
    patience : float
        Seconds after which a wait is given up.
    """

    def __init__(self, channel: Any, patience: float) -> None:
        self.channel, self.rank, self.patience = channel, channel.rank, patience
        self.names: list[Name] = channel.allgather(own_name(channel.rank, channel.size))
        self.begun = {"calls": 0, "sums": 0}
        self.heard = np.zeros(channel.size, MESSAGE)
        self._sent: list[Any] = []
        self._alive: dict[int, int] = {}
        self._poll: Any = None
        self._open()

    @property
    def own(self) -> Name:
        """The name of this rank."""
        return self.names[self.rank]

    def begin(self, kind: str) -> tuple[str, int]:
        """One of the "calls", or of the "sums", begins; its number."""
        self.begun[kind] += 1
        return kind, self.begun[kind]

    def wait(self, done: Callable[[], bool], what: str, number: tuple[str, int]) -> None:
        """Until something is done; RankError if it cannot be."""
        begin, told = time.monotonic(), False
        while not done():
            waited = time.monotonic() - begin
            if waited < EAGER:
                leave_core()
                continue
            self._look(what, number)
            if waited > TELL and not told:
                told = True
                self.tell(what if number[0] == "calls" else "")
            if waited > self.patience:
                kind, least = number
                late = [r for r, count in enumerate(self.heard[kind]) if count < least and r != self.rank]
                raise self._lost(what, late, f"did not come within {self.patience:g} s")
            time.sleep(PAUSES[waited > SOON])

    def tell(self, what: str = "", ending: bool = False) -> None:
        """Say to all others how far this rank has come, and in which call it waits, or that it ends."""
        content = (*self.begun.values(), ending, what.encode()[:80])
        message = np.array([content], MESSAGE).view(np.uint8)
        others = [rank for rank in range(self.channel.size) if rank != self.rank]
        self._sent.append([message, *(self.channel.Isend(message, rank, TAG) for rank in others)])

    def _look(self, what: str, number: tuple[str, int]) -> None:
        while self.channel.Iprobe(tag=TAG):
            from mpi4py import MPI

            message, status = np.empty(MESSAGE.itemsize, np.uint8), MPI.Status()
            self.channel.Recv(message, tag=TAG, status=status)
            self.heard[status.source] = message.view(MESSAGE)[0]
        kind, least = number
        for rank, heard in enumerate(self.heard):
            if heard["ending"] and heard[kind] < least:
                raise self._lost(what, [rank], "has ended")
            same = kind == "calls" and heard[kind] == least and heard["what"]
            if same and heard["what"] != what.encode()[:80]:
                raise self._lost(what, [rank], f"is at something else, {heard['what'].decode()}")
        if self._poll is not None and (dead := [self._alive[handle] for handle, _ in self._poll.poll(0)]):
            raise self._lost(what, dead, "is dead")

    def _lost(self, what: str, ranks: list[int], how: str) -> RankError:
        who = ", ".join(str(self.names[rank]) for rank in ranks) or "some rank"
        return RankError(f"{who} {how}; {self.own} waits for it: {what}")

    def _open(self) -> None:
        """Handles of the processes on this machine, which tell at once when one is dead."""
        if not hasattr(os, "pidfd_open") or not self.own.space:
            return
        self._poll = select.poll()
        for name in self.names:
            if name.host == self.own.host and name.space == self.own.space and name.rank != self.own.rank:
                try:
                    handle = os.pidfd_open(name.process)
                except OSError:  # not allowed here, or gone: then the launcher says so
                    continue
                self._alive[handle] = name.rank
                self._poll.register(handle, select.POLLIN)


def guard(watch: Watch) -> None:
    """End all ranks if an exception ends this one; tell them if it ends in any other way."""
    before = sys.excepthook

    def hook(kind: Any, error: Any, trace: Any) -> None:
        before(kind, error, trace)
        try:
            print(f"{watch.own}: {kind.__name__} ends all ranks", file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:
            watch.channel.Abort(1)

    sys.excepthook = hook
    atexit.register(watch.tell, ending=True)
