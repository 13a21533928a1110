"""The run on a GPU, as far as it needs none: its plan, limits and commands, and what is read from output."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import dynarray as dyn
from benchmarks import gpu, small_calls
from benchmarks.__main__ import _parser

ROOT = Path(__file__).parents[1]


def test_the_pieces_of_a_run_stay_under_ten_minutes():
    made = gpu.pieces(Path("results"))
    assert sum(made[name].limit_s for name in gpu.DEFAULT) < 600
    assert all(piece.limit_s < 600 and piece.commands for piece in made.values())
    assert set(gpu.DEFAULT) < set(made) == set(gpu.pieces(Path("results"), quick=True))


def collected(command):
    """The tests that a command line of pytest selects."""
    done = subprocess.run(
        [*command, "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED), done.stdout[-2000:] + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("tests/")]


@cache
def long_tests():
    """Those of a GPU that `make test-long` alone runs."""
    found = collected([sys.executable, "-m", "pytest", "-m", "gpu and long"])
    assert found
    return set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quick"), [("tests", False), ("streams", False), ("streams", True), ("slow", False)]
)
def test_the_selected_tests_exist(name, quick):
    """pytest finds something for each command line; on this machine it may skip it."""
    for command in gpu.pieces(Path("results"), quick=quick)[name].commands:
        arguments = [word for word in gpu.resolve(command) if word != "-v"]
        if "-n" in arguments:
            at = arguments.index("-n")
            del arguments[at : at + 2]
        chosen = collected(arguments)
        assert chosen and all("cuda" in line for line in chosen)
        assert not set(chosen) & long_tests(), "these take hours, of the minutes that there are"
        if name == "tests":
            (quick_command,) = gpu.pieces(Path("results"), quick=True)[name].commands
            for word in quick_command[-1].split(" or "):
                assert any(word in line for line in chosen), word
            for operator in dyn.OPERATORS:
                here = [line for line in chosen if "test_half_precision" in line and operator in line]
                assert any("bfloat16" in line for line in here), operator


def test_benchmark_commands_are_understood():
    for quick in (False, True):
        for name in ("benchmarks", "growth"):
            (command,) = gpu.pieces(Path("results"), quick=quick)[name].commands
            assert command[:3] == ("python", "-m", "benchmarks")
            arguments = _parser().parse_args(command[3:])
            assert arguments.backend == "cuda" and arguments.output.parent == Path("results")


def test_every_operator_and_dtype_is_watched():
    for quick in (False, True):
        commands = gpu.pieces(Path("results"), quick=quick)["sanitizer"].commands
        assert commands[0][:3] == ("python", "-m", "benchmarks.small_calls")
        assert all(command[0] == "compute-sanitizer" for command in commands[1:])
        tools = [(command[2], command[-1]) for command in commands[1:]]
        every = [*((tool, "float32") for tool in gpu.TOOLS), ("memcheck", "bfloat16")]
        assert tools == (every[:1] if quick else every)
        # What is watched was compiled by the run before it.
        assert commands[1][-5:] == commands[0][-5:]
    made = list(small_calls.calls(small_calls.DTYPES))
    assert {(case.operator, case.dtype) for case in made} == {
        (operator, dtype) for operator in dyn.OPERATORS for dtype in small_calls.DTYPES
    }
    ways = {case.params["deterministic"] for case in made if case.operator == "deform_conv2d"}
    assert ways == {True, False}


@pytest.mark.parametrize("case", list(small_calls.calls(["float64"])), ids=lambda case: case.title)
def test_small_calls_run(case):
    with dyn.use_backend("reference"):
        small_calls.run(case, np.asarray)


PRINTED = {
    "pytest": ("x\n===== 3 failed, 20 passed, 1 skipped, 2 errors in 4.20s =====\n",
               {"failed": 3, "passed": 20, "skipped": 1, "errors": 2}),
    "quiet pytest": ("1 passed in 0.1s\n120 passed, 7 skipped in 100.12s (0:01:40)\n",
                     {"passed": 120, "skipped": 7}),
    "interrupted": ("!!! KeyboardInterrupt !!!\n12 passed in 9.00s\n", {"passed": 12}),
    "memcheck": ("17 calls\n========= ERROR SUMMARY: 0 errors\n", {"sanitizer_errors": 0, "calls": 17}),
    "one error": ("========= ERROR SUMMARY: 1 error\n", {"sanitizer_errors": 1}),
    "racecheck": ("========= RACECHECK SUMMARY: 4 hazards displayed (3 errors, 1 warning)\n",
                  {"sanitizer_errors": 4}),
    "nothing": ("all is well\n", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_counts_are_read_from_what_is_printed(name):
    text, expected = PRINTED[name]
    assert gpu.parse(text) == expected


def python(code: str) -> tuple[str, ...]:
    return ("python", "-c", code)


def test_a_piece_is_logged_and_saved_command_by_command(tmp_path, capfd):
    piece = gpu.Piece("some", 60, (python("print('5 passed in 1.0s')"), python("import sys; sys.exit(3)")))
    saved = []
    assert gpu.run(piece, tmp_path, saved.append) is False
    assert [entry["exit_status"] for entry in saved] == [0, 3]
    assert saved[0]["found"] == {"passed": 5} and not saved[0]["timed_out"]
    log = (tmp_path / saved[0]["log"]).read_text()
    assert log.startswith("$ python -c print") and "5 passed in 1.0s" in log and log.count("$ python") == 2
    assert "5 passed" in capfd.readouterr().out
    assert str(ROOT) not in json.dumps(saved) and sys.executable not in json.dumps(saved)


@pytest.mark.slow
def test_a_piece_that_takes_too_long_is_interrupted_and_keeps_what_it_printed(tmp_path):
    polite = "import time\ntry:\n    print('begun'); time.sleep(60)\nfinally:\n    print('3 passed in 1.0s')"
    piece = gpu.Piece("slow", 5, (python(polite), python("print('never late')")))
    saved = []
    assert gpu.run(piece, tmp_path, saved.append) is False
    assert saved[0]["timed_out"] and saved[0]["found"] == {"passed": 3} and saved[0]["seconds"] < 30
    assert len(saved) == 2  # the next command has a second at least


@pytest.mark.slow
def test_a_process_that_ignores_interrupts_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_GRACE_S", 1)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    status, timed_out, text = gpu.execute(python(deaf), 5.0, tmp_path / "log")
    assert timed_out and status == -9 and text == "deaf\n"


def test_a_missing_tool_is_said(tmp_path):
    saved = []
    piece = gpu.Piece("some", 1, (("no-such-tool",),), needs="no-such-tool")
    assert gpu.run(piece, tmp_path, saved.append) is True
    assert saved == [{"piece": "some", "left_out": "no-such-tool is not installed"}]
    assert gpu._line(saved[0]) == "some        left out: no-such-tool is not installed"
