"""``python -m dynarray check-kernels`` and backend "ptx" on the kernels that ship."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROBLEMS, may_be_missing

import dynarray as dyn
from dynarray import __main__ as command
from dynarray import _check_kernels
from rawkernels import local_filter, ptx
from rawkernels.source import Program, inline, read

if PROBLEMS["ptx"] is not None and may_be_missing("ptx"):
    pytest.skip(f"backend ptx: {PROBLEMS['ptx']}", allow_module_level=True)

SCRIPT = '''\
import sys
import numpy as np
from rawkernels.launch import launch
from rawkernels.source import Program

TEXT = """extern "C" __global__ void shift(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x + BY];
}
"""
program = Program("shift.cu", (("BY", sys.argv[1]),), override=TEXT)
for _ in range(3):
    launch(program, "shift", (1,), (4,), (np.zeros(4, np.float32), np.zeros(4, np.float32)))
print("the script is done")
'''


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return str(path)


def test_a_script_without_a_fault(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)
    assert command.main(["check-kernels", script, "0"]) == 0
    said = capsys.readouterr().out
    assert said.count("the script is done") == 2  # on two architectures
    assert f"{script} on sm_75: 3 launches, 0 faults (shift)" in said
    assert said.endswith("no faults\n")
    assert sys.argv == before


def test_a_script_with_a_fault_goes_on_to_its_end(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check-kernels", "--architecture", "sm_90", script, "1"]) == 1
    said = capsys.readouterr().out
    assert "the script is done" in said
    fault = (
        r"  shift: out of bounds: block \(0, 0, 0\) thread \(3, 0, 0\): reads x\[4\] of its 4 elements .*\n"
    )
    assert re.search(fault + r"    shift\.cu:2: y\[threadIdx\.x\] = .*\n    in 3 launches\n1 fault\n$", said)


def test_drawn_calls_of_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--operator", "compose_atoms", "--architecture", "sm_90", "--seeds", "1"]
    assert command.main(["check-kernels", *given]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^compose_atoms on sm_90: \d+ launches, 0 faults \(atoms_compose, ", said)


def test_an_installed_package_says_that_it_has_no_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_check_kernels, "_TESTS", tmp_path)
    with pytest.raises(
        RuntimeError, match="draws the calls of the tests, which a checkout has; or name a script"
    ):
        _check_kernels.check_operators(["ddf"], [ptx.Target()], 1)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "backend_problems", lambda: {"ptx": "no moon: pip install moon"})
    assert command.main(["check-kernels"]) == 2
    assert capsys.readouterr().err == "dynarray: no moon: pip install moon\n"


@pytest.mark.parametrize(
    "old, new, kind",
    [
        pytest.param("__syncthreads();", "", "race, .*|uninitialised shared memory", id="a barrier"),
        pytest.param("position < size &&", "position <= size &&", "out of bounds", id="a bound"),
        pytest.param("if (flat >= items) return;", "", "out of bounds|race, .*", id="a guard"),
    ],
)
def test_a_fault_planted_in_a_kernel_that_ships(
    old: str, new: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inline(read("local_filter.cu"))
    assert old in text
    edited = text.replace(old, new, 1)
    monkeypatch.setattr(
        local_filter, "program", lambda file, defines: Program(file, defines, override=edited)
    )
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 12, 9, 13)), rng.standard_normal((1, 2, 3, 3, 9, 13))
    with dyn.use_backend("ptx"), ptx.collect() as found:
        dyn.local_filter2d(x, weight)
        dyn.local_filter2d_backward(x, x, weight)
    assert found.reports
    for report in found.reports:
        assert re.fullmatch(kind, report.kind), report
        assert report.place.startswith("local_filter.cu:")


def test_nothing_is_reported_of_the_kernels_as_they_are() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 12, 9, 13)), rng.standard_normal((1, 2, 3, 3, 9, 13))
    with dyn.use_backend("ptx"), ptx.collect() as found:
        dyn.local_filter2d(x, weight)
        dyn.local_filter2d_backward(x, x, weight)
    assert not found.reports
    assert set(found.launches) == {"local_filter_forward", "local_filter_grad_x", "local_filter_grad_weight"}
