"""``python -m dynarray info`` says what a bug report needs and survives a machine that lacks everything."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROBLEMS

from dynarray import __main__ as command
from dynarray import _info
from dynarray.cpu.engine import parallel

ROOT = Path(__file__).resolve().parent.parent


def run_info(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dynarray", "info", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_prints_every_section(tmp_path: Path) -> None:
    done = run_info(NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    sections = ("versions", "machine", "backends", "gpu", "caches", "environment")
    for expected in (*sections, np.__version__, sys.executable, str(tmp_path)):
        assert expected in done.stdout
    failed = [line.split()[0] for line in done.stdout.splitlines() if "failed" in line]
    assert failed == ([] if PROBLEMS["host"] is None else ["compiler"])


def test_a_missing_required_backend_fails_the_command(monkeypatch, capsys) -> None:
    problems = {"reference": None, "cpu": None, "host": None, "ptx": None, "cuda": "the moon is in the way"}
    monkeypatch.setattr(command, "backend_problems", lambda: problems)
    assert command.main(["info", "--require", "cpu"]) == 0
    assert command.main(["info", "--require", "cpu", "--require", "cuda"]) == 1
    assert "'cuda' is required and not available: the moon is in the way" in capsys.readouterr().err


def test_reference_and_cpu_are_available_here() -> None:
    problems = _info.backend_problems()
    assert list(problems) == ["reference", "cpu", "host", "ptx", "cuda"]
    assert problems["reference"] is None
    assert problems["cpu"] is None


def test_no_probe_kills_the_report(monkeypatch) -> None:
    def refuse(name: str, *_: object) -> None:
        raise ImportError(f"{name} is broken\nin two lines")

    monkeypatch.setattr(_info, "import_module", refuse)
    monkeypatch.setattr(_info, "find_spec", lambda name: object())
    monkeypatch.setattr(_info, "packages_distributions", dict)
    report = _info.collect()
    assert report["backends"]["cpu"] == "not available: ImportError: numba is broken in two lines"
    assert report["gpu"] == {"failed": "ImportError: cupy is broken in two lines"}
    assert report["machine"]["blas"].startswith("failed: ImportError")
    assert "in two lines" in _info.render(report)


def test_gpus_are_described_and_a_missing_driver_is_reported(monkeypatch) -> None:
    properties = {"name": b"Some GPU", "major": 9, "minor": 0}
    properties |= {"totalGlobalMem": 3 << 30, "multiProcessorCount": 132}
    runtime = SimpleNamespace(
        driverGetVersion=lambda: 13010,
        runtimeGetVersion=lambda: 12090,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda index: properties,
    )
    nvrtc = SimpleNamespace(getVersion=lambda: (12, 9))
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=nvrtc), __version__="14.2.0")
    monkeypatch.setattr(_info, "find_spec", lambda name: object())
    monkeypatch.setattr(
        _info, "import_module", lambda name: cupy if name == "cupy" else importlib.import_module(name)
    )
    assert _info._gpus() == {
        "driver": "13.1",
        "runtime": "12.9",
        "nvrtc": "12.9",
        "bfloat16": "available",
        "device 0": "Some GPU, sm_90, 3.0 GiB, 132 multiprocessors",
    }
    assert _info.backend_problems()["cuda"] is None

    def no_driver() -> int:
        raise RuntimeError("no driver")

    runtime.getDeviceCount = no_driver
    assert _info._gpus() == {
        "driver": "13.1",
        "runtime": "12.9",
        "nvrtc": "12.9",
        "bfloat16": "available",
        "devices": "RuntimeError: no driver",
    }
    assert _info.backend_problems()["cuda"] == "RuntimeError: no driver"


def test_a_cache_directory_is_measured(tmp_path: Path, monkeypatch) -> None:
    full = tmp_path / "full"
    (full / "below").mkdir(parents=True)
    (full / "below" / "a").write_bytes(bytes(2**20))
    (full / "b").write_bytes(bytes(2**19))
    assert _info._directory(full).endswith("full: 2 files, 1.5 MiB, writable")
    assert _info._directory(tmp_path / "absent" / "deeper").endswith("deeper: not there yet, writable")
    monkeypatch.setattr(_info.os, "access", lambda path, mode: False)  # root may write anywhere
    assert _info._directory(full).endswith("2 files, 1.5 MiB, NOT WRITABLE")
    assert _info._directory(full / "b" / "impossible").endswith("not there yet, NOT WRITABLE")


def test_variables_that_matter_are_shown_and_others_are_not(monkeypatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    monkeypatch.setenv("SOME_SECRET", "hush")
    shown = _info._environment()
    assert shown["NUMBA_NUM_THREADS"] == "3"
    assert "SOME_SECRET" not in shown


def test_every_variable_that_the_project_reads_is_listed(monkeypatch) -> None:
    """Found in the sources: each name that is looked up in the environment."""
    root = Path(_info.__file__).parent.parent
    read = set()
    for package in ("rawkernels", "dynarray", "autodiff"):
        for path in (root / package).rglob("*.py"):
            text = path.read_text()
            read.update(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', text))
            read.update(re.findall(r'getenv\("(\w+)"', text))
    known = set(_info.VARIABLES)
    assert {"CXX", "DYNARRAY_HOST_SEED", "NUMBA_CACHE_DIR"} <= read <= known
    assert known - read <= {*parallel.VARIABLES, "NUMBA_DISABLE_JIT"}  # read by name, and by Numba
    for name in known:
        monkeypatch.delenv(name, raising=False)
    assert all(_info._environment()[name].startswith("not set (") for name in known)


@pytest.mark.parametrize(
    ("cupy", "numpy", "ml_dtypes", "problem"),
    [
        ("13.6.0", "2.4.6", True, "needs CuPy 14 or later, this is 13.6.0"),
        ("14.0.0a1", "2.1.1", True, "needs NumPy 2.1.2 or later, this is 2.1.1"),
        ("14.2.0", "2.1.2", False, "needs ml_dtypes, which is not installed"),
        ("15.0.0", "2.10.0rc1", True, None),
    ],
)
def test_what_bfloat16_needs_is_said(monkeypatch, cupy, numpy, ml_dtypes, problem) -> None:
    monkeypatch.setattr(_info, "import_module", lambda name: SimpleNamespace(__version__=cupy))
    monkeypatch.setattr(_info.np, "__version__", numpy)
    monkeypatch.setattr(_info, "find_spec", lambda name: object() if ml_dtypes else None)
    assert _info.bfloat16_problem() == problem
