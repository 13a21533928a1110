"""Faults that the soak must report: each makes one of its processes wrong in one way."""

import os
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import _soak_worker
import numpy as np

from autodiff.files import safe
from dynarray.cpu.engine import cache
from rawkernels import store

Worker = _soak_worker.Worker


def a_wrong_number() -> None:
    """One element of each output is off by a hair."""
    evaluate = _soak_worker.evaluate

    def off(*arguments: Any) -> Any:
        result = evaluate(*arguments)
        result.output.flat[-1] = np.nextafter(result.output.flat[-1], np.inf)
        return result

    mock.patch.object(_soak_worker, "evaluate", off).start()


def an_entry_of_another_kernel() -> None:
    """Whatever is in the cache is believed, and each process at work exchanges what it finds there."""
    constant = store._MAGIC + bytes(store._DIGEST_BYTES)
    mock.patch.object(store, "_seal", lambda name, contents: constant).start()

    def call(self: Any) -> None:
        entries = sorted(cache.folder().glob("*.code"))
        found = [entry.read_bytes() for entry in entries]
        for entry, contents in zip(entries, found[1:] + found[:1], strict=True):
            entry.write_bytes(contents)
        self.right(_soak_worker.Chosen("atom_conv2d/0", "cpu", "float64"))
        os._exit(0)  # or the next step would exchange them again

    Worker.STEPS = (call,)


def a_file_left_behind() -> None:
    """What killed processes leave is not swept."""
    mock.patch.object(store, "sweep", lambda folder, begin: None).start()

    def call(self: Any) -> None:
        child = os.fork()
        if not child:
            with store.replaced(self.folder / "files" / "file0") as file:
                file.write(b"half")
                os._exit(0)
        os.waitpid(child, 0)

    Worker.STEPS = (call,)


def a_hang() -> None:
    """A lock that nobody releases."""

    def call(self: Any) -> None:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    Worker.STEPS = (call,)


def a_child_that_nobody_waits_for() -> None:
    """A zombie as long as its parent lives."""

    def call(self: Any) -> None:
        if not os.fork():
            os._exit(0)
        time.sleep(0.2)

    Worker.STEPS = (call,)


def a_process_that_outlives_its_parent() -> None:
    """In the same group, and never ends."""

    def call(self: Any) -> None:
        if not os.fork():
            time.sleep(1000)

    Worker.STEPS = (call,)


def a_file_written_in_place() -> None:
    """Readers see what is there so far."""

    class InPlace:
        def __init__(self, path: Path, **_: Any) -> None:
            self.path = path

        def __enter__(self) -> Any:
            self.file = open(self.path, "wb", buffering=0)
            return self

        def write(self, contents: Any) -> None:
            self.file.write(contents)
            time.sleep(0.05)

        def __exit__(self, *_: object) -> None:
            self.file.close()

    mock.patch.object(safe, "replaced", InPlace).start()
    Worker.STEPS = (Worker.save, Worker.load)


def a_crash() -> None:
    """A signal of its own."""

    def call(self: Any) -> None:
        os.abort()

    Worker.STEPS = (call,)


def an_error() -> None:
    """An exception that nobody catches."""

    def call(self: Any) -> None:
        raise LookupError("planted")

    Worker.STEPS = (call,)
