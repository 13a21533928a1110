"""`make gpu-test`, from end to end, on a stand-in for CuPy: all that a GPU is asked for has run before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import IN_CI, PROBLEMS

from benchmarks import gpu, small_calls

ROOT = Path(__file__).resolve().parents[1]
PIECES = ("info", "tests", "streams", "sanitizer", "benchmarks", "growth")

if shutil.which("make") is None or (PROBLEMS["host"] is not None and not IN_CI):
    pytest.skip(f"needs make and the host backend: {PROBLEMS['host']}", allow_module_level=True)


def rehearse(target: str, results: Path, *names: str) -> dict[str, list[dict[str, Any]]]:
    """What came of a run of `make`, by piece; nothing may have failed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    places = [str(ROOT / "tests" / "standin"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = inherited | {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "DYNARRAY_GPU_REHEARSAL": "1",
    }
    given = [f"PYTHON={sys.executable}", f"RESULTS={results}", f"PIECE={' '.join(names)}"]
    done = subprocess.run(
        ["make", "--no-print-directory", target, *given],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (file,) = results.glob("gpu-*.json")
    record = json.loads(file.read_text())
    assert record["rehearsal"] and "stand-in for a GPU" in record["machine"]["gpu"]
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in record["pieces"]:
        assert "left_out" not in entry and not entry["timed_out"] and entry["exit_status"] == 0, entry
        found.setdefault(entry["piece"], []).append(entry)
    return found


def check_tests(found: dict[str, list[dict[str, Any]]], least: dict[str, int]) -> None:
    """No test failed, and as many passed as there must have been."""
    for name, count in least.items():
        seen = [entry["found"] for entry in found[name]]
        assert not any(each.get("failed") or each.get("errors") for each in seen), name
        assert sum(each["passed"] for each in seen) >= count, name


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_piece_runs(tmp_path: Path) -> None:
    found = rehearse("gpu-test-quick", tmp_path, *PIECES)
    assert set(found) == set(PIECES)
    check_tests(found, {"tests": 300, "streams": 40})
    calls = len(list(small_calls.calls(["float32"])))
    assert calls > 20 and [entry["found"] for entry in found["sanitizer"]] == [{"calls": calls}]
    (cuda,) = tmp_path.glob("cuda-*.json")
    rows = json.loads(cuda.read_text())["rows"]
    assert {row["operator"] for row in rows} == {"ddf", "deform_conv2d"}
    assert all(timing["ms"] > 0 for row in rows for timing in row["passes"].values())
    (growth,) = tmp_path.glob("growth-cuda-*.json")
    assert json.loads(growth.read_text())["complete"]


@pytest.mark.long
@pytest.mark.timeout(20000)
def test_the_whole_contract_runs(tmp_path: Path) -> None:
    check_tests(rehearse("gpu-test", tmp_path, "tests", "streams", "slow"), {"tests": 1500, "streams": 140})


def test_a_rehearsal_leaves_no_results_among_those_that_count(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(gpu, "REHEARSAL", True)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "a rehearsal measures nothing" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [False, True])
def test_a_rehearsal_has_the_pieces_of_the_run(quick: bool) -> None:
    real = gpu.pieces(Path("results"), quick=quick, rehearsal=False)
    mine = gpu.pieces(Path("results"), quick=quick, rehearsal=True)
    assert list(mine) == list(real)
    for name, piece in mine.items():
        assert piece.needs is None and all(command[0] == "python" for command in piece.commands)
        if name in ("info", "streams", "slow"):
            assert piece.commands == real[name].commands
    assert mine["sanitizer"].commands[0] == real["sanitizer"].commands[0]


def test_without_a_driver_nothing_is_tested(tmp_path: Path) -> None:
    """Where no test says otherwise."""
    environment = {name: value for name, value in os.environ.items() if name != "DYNARRAY_GPU_REHEARSAL"}
    blind = tmp_path / "python"
    blind.write_text("#!/bin/sh\nexit 1\n")
    blind.chmod(0o755)
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu-test", f"PYTHON={blind}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "no NVIDIA driver on this machine" in done.stdout
