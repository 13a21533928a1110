"""One process of the soak: calls, forks, files and compilations, each checked, each told on standard output.

A line ``did <event>`` for each thing done, ``WRONG <what>`` for each that went wrong. Whoever started this
process may kill it at any moment.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _contract import Call, evaluate, parts, seeded_case
from conftest import PROBLEMS, Backend
from test_robustness_drawn import exact_call, is_exact

import dynarray as dyn
from autodiff import files
from dynarray import OPERATORS
from dynarray.cpu.engine import parallel
from rawkernels import store

ASKED_TO_STOP = 143  # exit status of a process that ended because of SIGTERM, in its own words
CALLS = 2  # per operator
NAMES = 8  # of files that all processes save and load
KILLED = (signal.SIGKILL, signal.SIGTERM)  # by whoever kills whole groups: a child too
DTYPES = ("float32", "float64")
EXPECTED = "expected.safetensors"


class Alarm(Exception):
    """What the handler of a timer raises."""


class Chosen(NamedTuple):
    """A call, where and in which dtype."""

    title: str
    backend: str
    dtype: str


def tell(line: str) -> None:
    """One line, whole, whatever else is written."""
    os.write(1, (line + "\n").encode())


def exact_calls() -> dict[str, Call]:
    """Small calls of every operator whose results are exact in float32 too, the same in each process."""
    calls = {}
    for name, operator in OPERATORS.items():
        drawn = (exact_call(operator, seeded_case(operator, s, N=2, H=6, W=5), s) for s in range(2000))
        good = (call for call in drawn if is_exact(call) and call.grad_output.size > 1)
        found = list(itertools.islice(good, CALLS))
        assert len(found) == CALLS, f"{name}: no exact calls are drawn"
        calls |= {f"{name}/{number}": call for number, call in enumerate(found)}
    return calls


def saved_arrays(version: int) -> dict[str, np.ndarray]:
    """What a file of this version holds."""
    rng = np.random.default_rng(version)
    return {f"a{i}": rng.standard_normal(int(rng.integers(1, 60_000))) for i in range(3)}


class Telling(logging.Handler):
    """The log of the library as events."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        text = record.getMessage()
        kinds = {
            "compiled ": "compile",
            " is made anew: ": "entry made anew",
            " could not be kept": "not kept",
        }
        tell("did " + next((kind for words, kind in kinds.items() if words in text), "log something else"))


class Worker:
    """Draws what to do, and checks what comes of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng, self.folder = np.random.default_rng(seed), folder
        self.calls = exact_calls()
        self.expected = files.load(folder / EXPECTED).arrays
        self.backends = [name for name in ("cpu", "host") if PROBLEMS[name] is None]
        self.operator, self.dtype = str(self.rng.choice(list(OPERATORS))), str(self.rng.choice(DTYPES))
        dyn.set_num_threads(int(self.rng.integers(1, 4)))
        if self.rng.random() < 0.7:
            parallel.SMALL = 0  # threads share the smallest work

    def choose(self) -> Chosen:
        """A call of the one operator of this process, in its dtype: not every step shall compile."""
        titles = [title for title in self.calls if title.startswith(f"{self.operator}/")]
        return Chosen(str(self.rng.choice(titles)), str(self.rng.choice(self.backends)), self.dtype)

    def right(self, chosen: Chosen) -> bool:
        """Make a call and compare all its results, which are exact."""
        call = self.calls[chosen.title].astype(chosen.dtype)
        result = evaluate(call, Backend(chosen.backend))
        wrong = [
            what
            for what, values in parts(call, result)
            if not np.array_equal(values, self.expected[f"{chosen.title}/{what}"])
        ]
        if wrong:
            tell(f"WRONG number: {chosen}: {wrong} of {call.describe()}")
        return not wrong

    def call(self) -> None:
        """One call."""
        chosen = self.choose()
        self.right(chosen)
        tell(f"did call {chosen.backend}")

    def fork(self, chosen: list[Chosen], event: str) -> None:
        """Fork; the child makes these calls."""
        child = os.fork()
        if not child:
            status = 1
            try:
                status = 0 if all(self.right(each) for each in chosen) else 2
            except BaseException as error:
                if isinstance(error, SystemExit):
                    status = ASKED_TO_STOP
                else:
                    tell(f"WRONG error in a forked child: {error!r}")
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        if -ended in KILLED or ended == ASKED_TO_STOP:
            tell("did lose a child that was killed")
        elif ended:
            tell(f"WRONG end of a forked child: {ended} after {event}: {chosen}")
        else:
            tell(f"did {event}")

    @contextlib.contextmanager
    def others(self, work: Callable[[], object], number: int, repeat: bool) -> Iterator[None]:
        """Threads at work meanwhile."""
        left = threading.Event()

        def go_on() -> None:
            try:
                work()
                while repeat and not left.is_set():
                    work()
            except Exception as error:
                tell(f"WRONG error in a thread: {error!r}")

        threads = [threading.Thread(target=go_on, daemon=True) for _ in range(number)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            left.set()
        for thread in threads:
            thread.join()

    def fork_in_calls(self) -> None:
        """While two other threads are in a call."""
        chosen = self.choose()
        self.right(chosen)
        with self.others(lambda: self.right(chosen), 2, repeat=True):
            for _ in range(3):
                time.sleep(self.rng.uniform(0, 0.01))
                self.fork([chosen, self.choose()], "fork in the middle of calls")

    def fork_in_compilation(self) -> None:
        """While another thread compiles, if the cache does not have it."""
        chosen = self.choose()
        with self.others(lambda: self.right(chosen), 1, repeat=False):
            time.sleep(self.rng.uniform(0, 2))
            self.fork([chosen], "fork in the middle of a first call")

    def interrupt(self) -> None:
        """An exception out of the handler of a signal, at a random moment of calls."""
        chosen = self.choose()
        self.right(chosen)
        began = time.perf_counter()
        self.right(chosen)
        length = time.perf_counter() - began

        def raise_alarm(*_: object) -> None:
            raise Alarm

        before = signal.signal(signal.SIGALRM, raise_alarm)
        try:
            signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(0, 2 * length) + 1e-6)
            for _ in range(5):
                evaluate(self.calls[chosen.title].astype(chosen.dtype), Backend(chosen.backend))
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm:
            tell("did interrupt")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        self.right(chosen)

    def save(self) -> None:
        """A file that others save, load and are killed over."""
        version = int(self.rng.integers(1000))
        path = self.folder / "files" / f"file{self.rng.integers(NAMES)}"
        files.save(path, saved_arrays(version), {"version": str(version)})
        tell("did save")

    def load(self) -> None:
        """A file that is whole, whoever saved it."""
        path = self.folder / "files" / f"file{self.rng.integers(NAMES)}"
        try:
            arrays, metadata = files.load(path)
        except FileNotFoundError:
            return
        except files.FileError as error:
            tell(f"WRONG file: {error}")
            return
        right = saved_arrays(int(metadata["version"]))
        if arrays.keys() != right.keys() or any(not np.array_equal(arrays[k], right[k]) for k in right):
            tell(f"WRONG array in {path.name}, version {metadata['version']}")
        tell("did load")

    STEPS = (call, call, fork_in_calls, fork_in_compilation, interrupt, save, load)

    def work(self) -> None:
        """A few steps, then the end, to which no child may be left."""
        for _ in range(int(self.rng.integers(2, 8))):
            self.STEPS[int(self.rng.integers(len(self.STEPS)))](self)
        with contextlib.suppress(ChildProcessError):
            tell(f"WRONG end: a child is left: {os.waitpid(-1, os.WNOHANG)}")
        tell("did end")


def tidy(folder: Path) -> None:
    """What the next writer does that comes to each place: remove what those who were killed have left."""
    for number in range(NAMES):
        files.save(folder / "files" / f"file{number}", saved_arrays(number), {"version": str(number)})
    for place in (folder / "caches").glob("*/*"):
        entry = place / "probe.probe"
        store.save_entry(entry, b"")
        entry.unlink()
    tell("did tidy")


def write_expected(folder: Path) -> None:
    """The results of all calls by the definition, saved."""
    arrays = {}
    for title, call in exact_calls().items():
        found = parts(call, evaluate(call, Backend("reference")))
        arrays |= {f"{title}/{what}": values for what, values in found}
    files.save(folder / EXPECTED, arrays)
    tell("did write what is expected")


def ask_to_stop(*_: object) -> None:
    """Handler of SIGTERM, as services have it."""
    sys.exit(ASKED_TO_STOP)


def main(text: str) -> None:
    """What the settings say, which are JSON."""
    settings = json.loads(text)
    if settings["graceful"]:
        signal.signal(signal.SIGTERM, ask_to_stop)
    store.log.addHandler(Telling())
    store.log.setLevel(logging.INFO)
    store.log.propagate = False
    if settings["fault"]:
        import _soak_faults

        getattr(_soak_faults, settings["fault"])()
    tell("did start")
    folder = Path(settings["folder"])
    task = settings["task"]
    if task == "work":
        Worker(folder, settings["seed"]).work()
    else:
        {"tidy": tidy, "expect": write_expected}[task](folder)
