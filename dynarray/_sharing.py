"""Processes that compile for the same cache on disk, each what no other is compiling."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from rawkernels import compilations, store
from rawkernels.compilations import Compilation

from .cpu.engine import parallel
from .typical._runs import Plan, make_runs

MOST_PROCESSES = 16  # each takes some 200 MB
_PAUSE = 0.05  # seconds between looking again at what others are compiling
# Seconds without anything new, after which it is compiled whoever else is at it. Claims of the dead are void:
# this is for processes that somebody has stopped.
_PATIENCE = 600.0
_FAREWELL = 5.0  # seconds for a process to end by itself

# Its own flags and no more: the folder that it starts in is none of its business. Whoever interrupts the
# parent by the keyboard means the parent, which ends it.
_START = (
    "import signal, sys, json; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "order = json.loads(sys.stdin.buffer.readline()); sys.path[:] = order['path']; "
    "from dynarray._sharing import serve; serve(order)"
)

Runs = Sequence[Callable[[], None]]


def missing(runs: Runs) -> tuple[Runs, int]:
    """The runs that cannot be made without compiling something, and how many entries they lack at least."""
    refusing, left = compilations.Refusing(), []
    with compilations.followed(refusing):
        for run in runs:
            try:
                run()
            except compilations.NotKeptError:
                left.append(run)
    return left, len(refusing.missing)


def make_all(runs: Runs, sharing: compilations.Sharing) -> None:
    """Make all runs, leaving for later what needs an entry that another process is compiling."""
    left, news = list(runs), time.monotonic()
    with compilations.followed(sharing):
        try:
            while left:
                before, waiting = (len(left), len(sharing.done)), []
                for run in left:
                    try:
                        run()
                    except compilations.TakenError:
                        waiting.append(run)
                left = waiting
                if (len(left), len(sharing.done)) != before:
                    news = time.monotonic()
                elif left:
                    if time.monotonic() - news > _PATIENCE:
                        store.log.warning("another process compiles without an end: this one does it too")
                        sharing.alone = True
                    time.sleep(_PAUSE)
        finally:
            sharing.release()


def wanted(entries: int, cache: Path | None) -> int:
    """How many processes more would help to compile so many entries, each the first that some runs lack."""
    executable = _executable()
    # Programs that Python is embedded in, or frozen with, would start once more, whatever that means.
    python = "python" in Path(executable).name.lower() and not getattr(sys, "frozen", False)
    if not python or not entries or cache is None or not store.prepare_folder(cache):
        return 0
    # Behind the first one there is mostly another.
    return min(_cores(), parallel.get_num_threads(), 2 * entries, MOST_PROCESSES) - 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _executable() -> str:
    """The interpreter that `multiprocessing` would start too, which applications may have set."""
    return os.fsdecode(spawn.get_executable() or "")


def tidy(backend: str) -> None:
    """Remove what processes that were killed while they compiled have left."""
    folder = cache_folder(backend)
    if folder is not None and folder.is_dir():
        store.sweep(folder, compilations.CLAIM)


def cache_folder(backend: str) -> Path | None:
    """Where a backend keeps what it compiles; None for those whose caches are not ours."""
    if backend == "cpu":
        folder: Path = import_module("dynarray.cpu.engine.cache").folder()
        return folder
    return store.cache_folder(backend) if backend in ("host", "ptx") else None


@contextmanager
def helping(plan: Plan, number: int) -> Iterator[list[Compilation]]:
    """While the block runs, so many processes help; the list is of what they have compiled."""
    done: list[Compilation] = []
    helpers: list[_Helper] = []
    try:
        for index in range(number):
            try:
                helpers.append(_Helper(plan, (index + 1) / (number + 1), done))
            except (OSError, RuntimeError) as error:  # no process, or no thread, to be had
                store.log.warning("no process could be started that helps to compile: %s", error)
                break
        yield done
    finally:
        for helper in helpers:
            helper.end()


class _Helper:
    """A process that makes the runs of a plan beginning with some part of them, and says what it compiled."""

    def __init__(self, plan: Plan, begin: float, done: list[Compilation]) -> None:
        path = [place for place in sys.path if isinstance(place, str)]
        order = {"path": path, "plan": plan, "begin": begin}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [_executable(), "-P", "-c", _START]
        self._process = subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL)
        self._reader = threading.Thread(target=self._read, args=(done,), daemon=True)
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            self._reader.start()
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise

    def _read(self, done: list[Compilation]) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            with suppress(ValueError, KeyError, TypeError):  # some other module may print as well
                said = json.loads(line)
                if "compiled" in said:
                    done.append(Compilation(*said["compiled"]))
                    compilations.announce(done[-1])
                else:
                    store.log.log(said["level"], "%s", said["message"])

    def end(self) -> None:
        """Let it end, or end it."""
        process = self._process
        try:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(_FAREWELL)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        self._reader.join(_FAREWELL)
        if not self._reader.is_alive():  # it would be waited for
            process.stdout.close()  # type: ignore[union-attr]


# ---- in such a process


class _Saying(compilations.Sharing):
    """Says what was compiled."""

    def after(self, done: Compilation) -> None:
        super().after(done)
        _say(compiled=done)


class _SayingHandler(logging.Handler):
    """Says what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(level=record.levelno, message=record.getMessage())


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _end_with_the_parent() -> None:
    """The other end of standard input is closed when the parent needs this process no more, or has ended."""
    sys.stdin.buffer.read()
    os._exit(0)


def serve(order: dict[str, Any]) -> None:
    """Compile what belongs to a plan until nothing is left."""
    store.log.addHandler(_SayingHandler(logging.WARNING))
    store.log.propagate = False
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    operators, dtypes, backward, backend = order["plan"]
    runs = make_runs(Plan(tuple(operators), tuple(dtypes), backward, backend))
    first = int(order["begin"] * len(runs))
    make_all(runs[first:] + runs[:first], _Saying())
    # What is left in the interpreter is of no use to anybody.
    os._exit(0)
