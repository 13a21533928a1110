"""Libraries of the host build: compiled once, kept on disk, shared by processes, and clear when they fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rawkernels.launch import launch, type_constants
from rawkernels.source import Program

if shutil.which(os.environ.get("CXX") or "g++") is None and not os.environ.get("CI"):
    pytest.skip("no g++ on the PATH", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
ROUNDING = Path(__file__).resolve().parent / "planted" / "rounding.cu"

RUN_ONE = """
import sys, numpy as np
from rawkernels.launch import launch, type_constants
from rawkernels.source import Program
program = Program("one.cu", type_constants("float32"), override=open(sys.argv[1]).read())
target = np.zeros(8, np.float32)
launch(program, "narrow", (1,), (8,), (np.arange(8, dtype=np.float32), target, np.int32(8)))
print(target.sum())
"""


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that runs one kernel."""
    command = [sys.executable, "-c", RUN_ONE, str(ROUNDING)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err


def libraries(directory: Path) -> list[str]:
    """What the cache holds, without the hash."""
    return sorted(path.name.split("-")[0] for path in (directory / "host").iterdir())


def test_processes_share_a_cache(tmp_path: Path) -> None:
    environment = {"DYNARRAY_CACHE_DIR": str(tmp_path)}
    results = [finish(process) for process in [start(environment) for _ in range(3)]]
    assert [(status, out) for status, out, _ in results] == [(0, "28.0")] * 3, results
    assert libraries(tmp_path) == ["one", "runtime"]  # and nothing half made


def test_a_cache_that_cannot_be_written_is_replaced(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    status, out, err = finish(start({"DYNARRAY_CACHE_DIR": str(blocked), "TMPDIR": str(tmp_path)}))
    assert (status, out) == (0, "28.0"), err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # the temporary one is gone


def test_a_filled_cache_is_read_only_ever_after(tmp_path: Path) -> None:
    environment = {"DYNARRAY_CACHE_DIR": str(tmp_path)}
    assert finish(start(environment))[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "host").iterdir()}
    (tmp_path / "host").chmod(0o555)
    try:
        status, out, err = finish(start(environment))
    finally:
        (tmp_path / "host").chmod(0o755)
    assert (status, out) == (0, "28.0"), err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "host").iterdir()} == before


def test_no_compiler_is_said_clearly(tmp_path: Path) -> None:
    status, _, err = finish(start({"DYNARRAY_CACHE_DIR": str(tmp_path), "CXX": "no-such-compiler"}))
    assert status == 1
    assert (
        "RuntimeError: the host backend compiles CUDA sources with no-such-compiler, which is not on" in err
    )


def test_a_kernel_that_does_not_compile_shows_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNARRAY_CACHE_DIR", str(tmp_path))
    text = 'extern "C" __global__ void broken(float* target) { *target = undeclared; }'
    program = Program("broken.cu", type_constants("float32"), override=text)
    with pytest.raises(
        RuntimeError, match=r"could not compile broken[\s\S]*broken.cu.assembled:[\s\S]*undeclared"
    ):
        launch(program, "broken", (1,), (1,), (np.zeros(1, np.float32),))
    assert libraries(tmp_path) in ([], ["runtime"])


def test_debug_build_keeps_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNARRAY_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DYNARRAY_HOST_DEBUG", "1")
    target = np.zeros(4, np.float32)
    call = (np.arange(4, dtype=np.float32), target, np.int32(4))
    launch(
        Program("rounding.cu", type_constants("float32"), override=ROUNDING.read_text(encoding="utf-8")),
        "narrow",
        (1,),
        (4,),
        call,
    )
    assert target.tolist() == [0, 1, 2, 3]
    (source,) = (tmp_path / "host").glob("rounding-*.cpp")
    made = source.with_suffix(".so").read_bytes()
    assert "void narrow(" in source.read_text() and b".debug_line" in made and str(source).encode() in made
