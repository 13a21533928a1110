"""Everything that needs a GPU, in pieces that each end in time: ``python -m benchmarks.gpu``.

Each piece is some commands and the seconds they may take together; those that are run by default stay under
ten minutes. What they print goes to a log per piece, and what came of them to a JSON file, written anew after
each command: whoever stops it keeps what there is.

The tests rehearse it on machines without a GPU (``DYNARRAY_GPU_REHEARSAL=1``): a stand-in is in the place of
CuPy, the benchmarks take tiny arrays, a quick run takes a sample of the contract, and no sanitizer watches.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .harness.device import Cuda
from .harness.machine import ROOT, describe, today, usable_cores
from .harness.session import SCHEMA
from .report import pages

TOOLS = ("memcheck", "racecheck", "initcheck")
_WORKERS = 8  # test processes that compile beside each other and share the GPU
_GRACE_S = 15  # to print a summary in, after an interrupt
_PARALLEL = "same_bits or graph"  # of tests/test_gpu.py; the others want the GPU for themselves
REHEARSAL = os.environ.get("DYNARRAY_GPU_REHEARSAL", "") == "1"
# Of the contract in a quick rehearsal: each operator, both passes, all gradients; functions of the tape.
_SAMPLE = "needs or optional_arrays or public_functions or results_are_new or functions_gpu or matmul"
_REHEARSAL_LIMIT_S = 1800  # of each piece: kernels run on one core


@dataclass(frozen=True)
class Piece:
    """Commands, each the arguments of Python or of another program, and the seconds for all of them.

    If a program is missing the piece says so and is left out.
    """

    name: str
    limit_s: int
    commands: tuple[tuple[str, ...], ...]
    needs: str | None = None


def pieces(results: Path, *, quick: bool = False, rehearsal: bool = REHEARSAL) -> dict[str, Piece]:
    """All pieces by name; those that a run without names takes are `DEFAULT`."""
    made = _pieces(results, quick, ("-k", _SAMPLE) if quick and rehearsal else ())
    return {name: _rehearsed(piece, quick) for name, piece in made.items()} if rehearsal else made


def _rehearsed(piece: Piece, quick: bool) -> Piece:
    """The piece as it runs on a stand-in."""
    commands = piece.commands
    if piece.needs:  # what it would watch runs by itself
        commands = tuple(dict.fromkeys(command[-4:] for command in commands))
        commands = tuple(("python", *command) for command in commands)
    if piece.name in ("benchmarks", "growth"):
        few = ("--operator", "ddf") if piece.name == "growth" and quick else ()
        commands = tuple((*command, "--quick", *few) for command in commands)
    return replace(piece, limit_s=_REHEARSAL_LIMIT_S, commands=commands, needs=None)


def _pieces(results: Path, quick: bool, sample: tuple[str, ...]) -> dict[str, Piece]:
    # Every test by name: of a run that is stopped, one wants to know how far it came.
    pytest, bench = ("python", "-m", "pytest", "-v", "--tb=short"), ("python", "-m", "benchmarks")
    beside = _beside()
    contract = sample or (("-k", "test_float32 or half_precision or second_run") if quick else ())
    behaviour = "waits or graph or warm" if quick else ""
    alone = f"not ({_PARALLEL})" + (f" and ({behaviour})" if behaviour else "")
    few = ("--operator", "ddf", "deform_conv2d") if quick else ("--peers",)
    small = ("python", "-m", "benchmarks.small_calls", "--dtype")
    watched = [_watched(tool, *small, "float32") for tool in TOOLS]
    # The code that reads and writes 16 bits, last: compiling it may take what is left of the time.
    watched.append(_watched("memcheck", *small, "bfloat16"))
    output = ("--backend", "cuda", "--output")
    made = (
        Piece("info", 20, (("python", "-m", "dynarray", "info", "--require", "cuda"),)),
        Piece(
            "tests",
            180,
            ((*pytest, *beside, "-m", _FIRST, "--ignore", "tests/test_gpu.py", *contract),),
        ),
        Piece(
            "streams",
            130,
            (
                (*pytest, *beside, "-m", "gpu", "tests/test_gpu.py", "-k", "graph" if quick else _PARALLEL),
                (*pytest, "-m", "gpu", "tests/test_gpu.py", "-k", alone),
            ),
        ),
        # Once without the tool, which fills the cache of compiled kernels.
        Piece(
            "sanitizer",
            110,
            ((*small, "float32"), *(watched[:1] if quick else watched)),
            needs="compute-sanitizer",
        ),
        Piece(
            "benchmarks",
            150,
            ((*bench, "run", "--no-first-calls", *few, *output, str(results / f"cuda-{today()}.json")),),
        ),
        Piece("growth", 300, ((*bench, "growth", *output, str(results / f"growth-cuda-{today()}.json")),)),
        Piece("slow", 550, ((*pytest, *beside, "-m", "gpu and slow and not long"),)),
    )
    return {piece.name: piece for piece in made}


_FIRST = "gpu and not slow and not long"  # "-m" takes the place of the one in pyproject.toml
DEFAULT = ("info", "tests", "streams", "sanitizer", "benchmarks")


def _watched(tool: str, *command: str) -> tuple[str, ...]:
    return ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *command)


def _beside() -> tuple[str, ...]:
    """Options for tests in several processes, where pytest-xdist is installed."""
    return ("-n", str(min(_WORKERS, usable_cores()))) if find_spec("xdist") else ()


def run(piece: Piece, results: Path, save: Callable[[dict[str, Any]], None]) -> bool:
    """Run the commands of a piece; `save` gets what came of each. Whether all went well."""
    if piece.needs and find_program(piece.needs) is None:
        save({"piece": piece.name, "left_out": f"{piece.needs} is not installed"})
        return True
    left, good = float(piece.limit_s), True
    log = results / f"gpu-{piece.name}-{today()}.log"
    log.unlink(missing_ok=True)
    for command in piece.commands:
        start = time.monotonic()
        status, timed_out, text = execute(command, left, log)
        seconds = time.monotonic() - start
        left = max(1.0, left - seconds)
        good = good and status == 0
        save(
            {
                "piece": piece.name,
                "command": _public(command),
                "limit_s": piece.limit_s,
                "seconds": round(seconds, 1),
                "timed_out": timed_out,
                "exit_status": status,
                "found": parse(text),
                "log": log.name,
            }
        )
    return good


def execute(command: Sequence[str], limit_s: float, log: Path) -> tuple[int, bool, str]:
    """Exit status, whether it was stopped, and what it printed; the terminal and `log` get that too."""
    environment = os.environ | {"DYNARRAY_REQUIRE_GPU": "1", "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with log.open("a", encoding="utf-8") as written:
        print(f"$ {_public(command)}", file=written, flush=True)
        process = subprocess.Popen(
            resolve(command),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                for stream in (written, sys.stdout):
                    print(line, end="", file=stream, flush=True)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        timed_out = not _wait(process, limit_s)
        reader.join(_GRACE_S)
    return process.returncode, timed_out, "".join(lines)


def _wait(process: subprocess.Popen, limit_s: float) -> bool:
    """Whether it ended by itself in time; else it is interrupted, and killed if that does not help."""
    try:
        process.wait(limit_s)
        return True
    except subprocess.TimeoutExpired:
        pass
    for number in (signal.SIGINT, signal.SIGKILL):
        os.killpg(process.pid, number)  # its own group: a session was started for it
        try:
            process.wait(_GRACE_S)
            break
        except subprocess.TimeoutExpired:
            continue
    return False


def resolve(command: Sequence[str]) -> list[str]:
    """The command with the programs at their places: Python is this one."""
    return [sys.executable if word == "python" else find_program(word) or word for word in command[:1]] + [
        sys.executable if word == "python" else word for word in command[1:]
    ]


def find_program(name: str) -> str | None:
    """On the path, or with the CUDA toolkit that is named or whose compiler is on the path."""
    homes = [os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME")]
    compiler = shutil.which("nvcc")
    if compiler:
        homes.append(str(Path(compiler).resolve().parents[1]))
    places = [os.environ.get("PATH", ""), *(str(Path(home, "bin")) for home in homes if home)]
    return shutil.which(name, path=os.pathsep.join(places))


def _public(command: Sequence[str]) -> str:
    """The command without the paths of this machine."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in command)


def parse(text: str) -> dict[str, int]:
    """Counts in what pytest and compute-sanitizer print last; nothing if there are none."""
    found: dict[str, int] = {}
    # "3 failed, 20 passed, 1 skipped in 4.20s", with or without a line of "=" around it.
    endings = re.findall(r"^[= ]*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s", text, flags=re.MULTILINE)
    if endings:
        found |= {what: int(count) for count, what in re.findall(r"(\d+) ([a-z]+)", endings[-1])}
    sanitized = re.findall(r"ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards?", text)
    if sanitized:
        found["sanitizer_errors"] = sum(int(number) for pair in sanitized for number in pair if number)
    calls = re.findall(r"^(\d+) calls$", text, flags=re.MULTILINE)
    if calls:
        found["calls"] = int(calls[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--piece", nargs="+", choices=pieces(Path()), default=DEFAULT, help="these only")
    parser.add_argument("--quick", action="store_true", help="a part of each: whether it runs at all")
    parser.add_argument("--results", type=Path, default=pages.RESULTS, help="default: benchmarks/results")
    arguments = parser.parse_args(argv)
    results: Path = arguments.results.resolve()
    if REHEARSAL and results == pages.RESULTS.resolve():
        parser.error("a rehearsal measures nothing: name another folder by --results")
    results.mkdir(parents=True, exist_ok=True)
    output = results / f"gpu-{today()}.json"
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "gpu",
        "rehearsal": REHEARSAL,
        **describe(Cuda()),
        "pieces": [],
    }
    if output.exists():  # pieces may be run one by one
        earlier = json.loads(output.read_text())
        if earlier["commit"] == record["commit"] and earlier["machine"] == record["machine"]:
            record["pieces"] = [entry for entry in earlier["pieces"] if entry["piece"] not in arguments.piece]

    def save(entry: dict[str, Any]) -> None:
        record["pieces"].append({**entry, "quick": arguments.quick})
        output.write_text(json.dumps(record, indent=1) + "\n")

    made = pieces(results, quick=arguments.quick)
    failed = [name for name in arguments.piece if not run(made[name], results, save)]
    for entry in record["pieces"]:
        print(_line(entry))
    return 1 if failed else 0


def _line(entry: dict[str, Any]) -> str:
    """One line of the closing table."""
    if "left_out" in entry:
        return f"{entry['piece']:<11} left out: {entry['left_out']}"
    state = "stopped at its limit" if entry["timed_out"] else f"exit status {entry['exit_status']}"
    found = ", ".join(f"{count} {what}" for what, count in entry["found"].items())
    return f"{entry['piece']:<11} {entry['seconds']:6.1f} s  {state}  {found}"


if __name__ == "__main__":
    sys.exit(main())
