"""A soak: processes start, compile, fork, are killed, share a cache and files, and every number is checked.

    python tests/soak.py --seconds 1800 --seed 0 --result benchmarks/results/soak-DATE.json

What must not happen: a wrong number; a process that ends as nobody asked it to, or that does nothing for as
long as `PATIENCE`; a file, a process or a zombie that is left. In rounds: after each, when every process has
ended and the next writers have come by, the folders hold entries and saved files, and nothing else.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _soak_worker import ASKED_TO_STOP

TESTS = Path(__file__).resolve().parent
PATIENCE = 150.0  # seconds without a word, after which a process that does nothing hangs
BUSY = 10  # times as long, if it is busy
AT_ONCE = 4  # processes, on however few cores
ROUND = 60.0  # seconds, after which all of them end and the folders are looked at
# By that signal one asks what a process hangs in. Its imports are what takes longest, so it tells of itself
# before.
SCRIPT = """
import faulthandler, os, signal, sys
faulthandler.register(signal.SIGUSR1, all_threads=True)
os.write(1, b"did begin\\n")
import _soak_worker
_soak_worker.main(sys.argv[1])
"""


@dataclass
class Process:
    """A process that was started, and what became of it."""

    pid: int
    log: Path
    settings: dict[str, Any]
    fate: tuple[int, bool, int, float] | None  # signal, to its whole group, after so many lines and seconds
    seen: int = 0  # bytes of its log
    lines: int = 0
    told: float = field(default_factory=time.monotonic)  # when the last line came
    asked: list[float] = field(default_factory=list)  # seconds of CPU that it had used, asked since then
    due: float | None = None  # when it is to be killed
    killed: int = 0
    status: int | None = None

    def is_silent(self, patience: float) -> bool:
        """Whether it has said nothing for too long: longer if it has worked meanwhile."""
        if time.monotonic() - self.told < patience * (1 + len(self.asked)):
            return False
        self.asked.append(cpu_seconds(self.pid))
        if len(self.asked) == 1:
            return False
        return self.asked[-1] - self.asked[-2] < 0.01 * patience or len(self.asked) > BUSY

    def group_lives(self) -> bool:
        """Whether any process of its group is there."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True


def cpu_seconds(group: int) -> float:
    """What the processes of a group have used."""
    used = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


def children() -> set[int]:
    """The processes that this one has started, and that are at work or not waited for."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(process) for each in lists for process in each.read_text().split()}


class Settings(NamedTuple):
    """How a soak differs from the usual one."""

    fault: str = ""  # one of `_soak_faults`, in each process
    patience: float = PATIENCE
    at_once: int = AT_ONCE
    killed: float = 0.5  # of the processes at work
    round_seconds: float = ROUND
    damage_after: float = 1.0  # seconds, on average, after which one more entry is damaged


class Soak:
    """Starts processes, watches them, damages what they share, and keeps what was wrong."""

    def __init__(self, work: Path, seed: int, settings: Settings) -> None:
        self.rng, self.work, self.settings = np.random.default_rng(seed), work, settings
        self.enough = 1 if settings.fault else 10
        self.events: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.running: list[Process] = []
        self.others = children()  # of whoever else works in this process
        self.started, self.longest_silence = 0, 0.0
        self.shared = work / "caches" / "shared"
        for folder in (self.shared, work / "files", work / "temporary", work / "logs"):
            folder.mkdir(parents=True, mode=0o700)

    # ---- processes

    def start(self, task: str, cache: Path, fate: tuple | None = None, graceful: bool = False) -> Process:
        """A new process, in a group of its own."""
        self.started += 1
        log = self.work / "logs" / str(self.started)
        settings = {
            "task": task,
            "seed": int(self.rng.integers(2**31)),
            "folder": str(self.work),
            "graceful": graceful,
            "fault": self.settings.fault if task != "expect" else "",
        }
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
            "DYNARRAY_CACHE_DIR": str(cache),
            "TMPDIR": str(self.work / "temporary"),
            "OPENBLAS_NUM_THREADS": "1",
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(settings)],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setpgroup=0,
        )
        process = Process(pid, log, settings, fate)
        self.running.append(process)
        self.events["process started"] += 1
        return process

    def run(self, task: str) -> None:
        """A process that nobody kills, to its end."""
        self.start(task, self.shared)
        self.wait()

    def start_one(self) -> None:
        """A process at work, with the shared cache or an empty one, and perhaps a time to be killed."""
        cache = self.shared
        if self.rng.random() < 0.3:
            cache = self.work / "caches" / f"own{self.started}"
            self.events["process with an empty cache"] += 1
        fate = None
        graceful = bool(self.rng.random() < 0.5)
        if self.rng.random() < self.settings.killed:
            number = int(self.rng.choice([signal.SIGKILL, signal.SIGTERM]))
            # A compiler that is asked to stop fails, and its parent would say so before it stops itself.
            group = bool(self.rng.random() < 0.5) and not (graceful and number == signal.SIGTERM)
            fate = number, group, int(self.rng.integers(0, 15)), float(self.rng.uniform(0, 1.5))
        self.start("work", cache, fate, graceful)

    def wait(self) -> None:
        """Until every process has ended."""
        while self.running:
            self.look()
            time.sleep(0.02)

    def end(self) -> None:
        """Whatever happened, leave no process."""
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.bury()

    def look(self) -> None:
        """Read what processes told, kill those whose time has come, bury those that have ended."""
        self.bury()
        for process in list(self.running):
            self.read(process)
            if process.status is None:
                self.decide(process)
            self.longest_silence = max(self.longest_silence, time.monotonic() - process.told)
            if process.status is not None and not process.group_lives():
                self.running.remove(process)
                self.judge(process)
            elif process.is_silent(self.settings.patience):
                self.give_up(process)

    def bury(self) -> None:
        """Take the status of whoever has ended; orphans come to this process too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for process in self.running:
                if process.pid == pid:
                    process.status = os.waitstatus_to_exitcode(status)

    def read(self, process: Process) -> None:
        """The lines that are new, none of which is half a line."""
        with open(process.log, "rb") as file:
            file.seek(process.seen)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        process.seen += len(text)
        for line in text.decode(errors="replace").splitlines():
            process.lines += 1
            process.told, process.asked = time.monotonic(), []
            if line.startswith("did "):
                self.events[line[4:]] += 1
            elif line.startswith("WRONG "):
                self.wrong.append(line[6:])

    def decide(self, process: Process) -> None:
        """Kill it if it is time."""
        if process.fate is None:
            return
        number, group, lines, seconds = process.fate
        if process.due is None and process.lines >= lines:
            process.due = time.monotonic() + seconds
        if process.due is not None and not process.killed and time.monotonic() >= process.due:
            (os.killpg if group else os.kill)(process.pid, number)
            process.killed = number
            of = " and all that it started" if group else ""
            self.events[f"process killed by {signal.Signals(number).name}{of}"] += 1

    def judge(self, process: Process) -> None:
        """Whether it ended as it should."""
        right = [0]
        if process.killed:
            right = [0, -process.killed]
        if process.killed == signal.SIGTERM and process.settings["graceful"]:
            right.append(ASKED_TO_STOP)
        text = process.log.read_text(errors="replace")
        if process.status not in right:
            told = text[-3000:]
            self.wrong.append(f"a process ended with {process.status}, killed by {process.killed}:\n{told}")
        self.events["process ended by itself"] += process.status == 0
        process.log.unlink()

    def give_up(self, process: Process) -> None:
        """Say what it hangs in, and kill it."""
        before = process.log.stat().st_size
        os.killpg(process.pid, signal.SIGUSR1)
        time.sleep(2)
        stacks = process.log.read_text(errors="replace")
        self.wrong.append(
            f"a hang: not a word for {time.monotonic() - process.told:.0f} seconds from a process that "
            + ("goes on" if process.status is None else "its parent left")
            + f":\n{stacks[max(0, before - 500) : before + 10_000]}"
        )
        os.killpg(process.pid, signal.SIGKILL)
        process.killed = signal.SIGKILL
        process.told, process.asked = time.monotonic(), []

    # ---- damage

    def damage(self) -> None:
        """One entry of the shared cache becomes something else."""
        entries = [path for path in self.shared.glob("*/*") if path.suffix in (".code", ".so")]
        if not entries:
            return
        entry, other = (entries[int(self.rng.integers(len(entries)))] for _ in range(2))
        kind = str(self.rng.choice(["byte", "cut", "added to", "another", "mode", "link", "gone"]))
        try:
            if kind == "gone":
                entry.unlink()
            elif kind == "mode":
                entry.chmod(0o666)
            elif kind == "link":
                bad = self.work / "link"
                bad.symlink_to(other)
                bad.replace(entry)
            else:
                self.replace(entry, self.damaged(kind, entry.read_bytes(), other.read_bytes()))
        except OSError:  # somebody else has found it bad, just now, or it is a link to itself
            return
        self.events[f"entry damaged: {kind}"] += 1

    def damaged(self, kind: str, sealed: bytes, other: bytes) -> bytes:
        """Other bytes than those that were kept."""
        if kind == "another":
            return other
        place = int(self.rng.integers(len(sealed) + 1))
        if kind == "byte" and sealed:
            place = min(place, len(sealed) - 1)
            return (
                sealed[:place] + bytes([sealed[place] ^ int(self.rng.integers(1, 256))]) + sealed[place + 1 :]
            )
        return sealed[:place] if kind == "cut" else sealed + bytes(place % 100 + 1)

    def replace(self, entry: Path, contents: bytes) -> None:
        """Another file in its place: to shorten one that is mapped as code would kill whoever runs it."""
        bad = self.work / "bad"
        bad.write_bytes(contents)
        bad.chmod(0o600)
        bad.replace(entry)

    # ---- rounds

    def round(self, seconds: float) -> None:
        """Processes come and go for so long; then all of them end, and the folders are looked at."""
        end = time.monotonic() + seconds
        if self.rng.random() < 0.3:
            shutil.rmtree(self.shared)
            self.shared.mkdir(mode=0o700)
            self.events["shared cache emptied"] += 1
        due = time.monotonic()
        while time.monotonic() < end and len(self.wrong) < self.enough:
            while len(self.running) < self.settings.at_once:
                self.start_one()
            if time.monotonic() > due:
                self.damage()
                due = time.monotonic() + self.rng.uniform(0, 2 * self.settings.damage_after)
            self.look()
            time.sleep(0.02)
        self.wait()
        self.run("tidy")
        self.inspect()

    def inspect(self) -> None:
        """The folders hold what they should, and nothing of this process's children is left."""
        left = list((self.work / "temporary").rglob("*"))
        left += [path for path in (self.work / "files").iterdir() if not path.name.startswith("file")]
        for place in (self.work / "caches").glob("*/*"):
            left += [path for path in place.iterdir() if path.suffix not in (".code", ".so")]
        if left:
            self.wrong.append(f"left behind: {[str(path.relative_to(self.work)) for path in left]}")
        for cache in (self.work / "caches").iterdir():
            if cache != self.shared:
                shutil.rmtree(cache)
        if others := children() - self.others:
            self.wrong.append(f"a process is left: {sorted(others)}")
        self.events["folders looked at"] += 1


USUAL = Settings()


def adopt_orphans() -> None:
    """Whoever loses its parent becomes a child of this process, so that none is overlooked."""
    if sys.platform == "linux":
        PR_SET_CHILD_SUBREAPER = 36
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def soak(seconds: float, seed: int = 0, settings: Settings = USUAL) -> dict[str, Any]:
    """Soak for so long, in rounds; what happened, and what was wrong."""
    adopt_orphans()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        run = Soak(Path(folder), seed, settings)
        try:
            run.run("expect")
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and not run.wrong:
                run.round(min(left, settings.round_seconds))
        finally:
            run.end()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
        "longest_silence_seconds": round(run.longest_silence, 1),
        "events": dict(sorted(run.events.items())),
        "wrong": run.wrong,
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, help="where to write what happened, as JSON")
    options = parser.parse_args()
    found = soak(options.seconds, options.seed)
    if options.result:
        sys.path.insert(0, str(TESTS.parent))
        from benchmarks.harness.device import Cpu
        from benchmarks.harness.machine import describe

        record = {
            "kind": "soak",
            "quick": options.seconds < 1800,
            "backend": "cpu",
            **describe(Cpu()),
            **found,
        }
        options.result.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return bool(found["wrong"])


if __name__ == "__main__":
    sys.exit(main())
