"""Numba's cache directory missing, read-only or full: operators work, they compile each time."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _processes import TESTS
from conftest import backend_params

SCRIPT = """
import resource, signal, sys
import numpy as np
import dynarray as dyn

if sys.argv[1] == "full":  # no file may grow past one page: an error on writing, as on a full disk
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
if sys.argv[1] == "nowhere":  # what Numba finds where no directory at all can be written
    from numba.core import caching
    caching.CacheImpl._locator_classes = []
x, weight = np.ones((1, 2, 4, 4)), np.ones((1, 1, 3, 3, 4, 4))
y = dyn.involution(x, weight)
print(y[0, 0, 0, 0], y[0, 1, 1, 1])
"""
RIGHT = "4.0 9.0"  # pixels around a corner and around one inside

pytestmark = pytest.mark.parametrize("name", backend_params("cpu"))


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages: Numba's second choice is a directory beside the sources."""
    copy, ignored = tmp_path_factory.mktemp("source"), shutil.ignore_patterns("__pycache__")
    for package in ("dynarray", "rawkernels"):
        shutil.copytree(TESTS.parent / package, copy / package, ignore=ignored)
    return copy


def check(source: Path, directory: Path, how: str = "") -> None:
    """One call in a new process with this cache directory."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(directory), "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, RIGHT), done.stderr


def files(directory: Path) -> list[Path]:
    """What the cache holds."""
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_missing_directory_is_made(name: str, source: Path, tmp_path: Path) -> None:
    check(source, tmp_path / "not" / "yet")
    assert files(tmp_path)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Nothing can be written there; for root, who may write anywhere, it is mounted so."""
    directory.chmod(0o555)
    mounted = os.geteuid() == 0
    if mounted:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", directory], capture_output=True, check=False
        )
        if done.returncode:
            directory.chmod(0o755)
            pytest.skip(f"root cannot mount a read-only directory here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", directory], check=True)
        directory.chmod(0o755)


@pytest.mark.slow
def test_a_read_only_directory(name: str, source: Path, tmp_path: Path) -> None:
    with read_only(tmp_path):
        check(source, tmp_path)
        assert not files(tmp_path)


@pytest.mark.slow
def test_a_path_that_is_no_directory(name: str, source: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    check(source, blocked)


@pytest.mark.slow
def test_a_full_disk(name: str, source: Path, tmp_path: Path) -> None:
    check(source, tmp_path, "full")
    assert max((path.stat().st_size for path in files(tmp_path)), default=0) <= 4096


@pytest.mark.slow
def test_no_directory_at_all(name: str, source: Path, tmp_path: Path) -> None:
    check(source, tmp_path / "unused", "nowhere")
    assert not files(tmp_path)


@pytest.mark.slow
def test_a_change_of_what_kernels_call_is_seen(name: str, source: Path, tmp_path: Path) -> None:
    """Numba itself looks at the file of the kernel only."""

    def indices() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in files(tmp_path) if path.suffix == ".nbi"}

    check(source, tmp_path)
    before = indices()
    check(source, tmp_path)
    assert before and indices() == before
    helper = source / "dynarray" / "cpu" / "engine" / "pixels.py"
    helper.write_text(helper.read_text() + "# changed\n")
    check(source, tmp_path)
    after = indices()
    assert all(after[path] != index for path, index in before.items())
