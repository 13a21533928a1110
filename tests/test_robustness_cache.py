"""Numba's cache directory missing, read-only or full: operators work, they compile each time."""

import os
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
x, weight = np.ones((1, 2, 4, 4)), np.ones((1, 1, 3, 3, 4, 4))
y = dyn.involution(x, weight)
gradients = dyn.involution_backward(y, x, weight)
print(y[0, 0, 1, 1], gradients.weight[0, 0, 1, 1, 0, 0], gradients.x[0, 1, 0, 0])
"""
# 9 pixels around (1, 1); 4 around (0, 0), in 2 channels, times 1; 4 + 6 + 6 + 9.
RIGHT = "9.0 8.0 25.0"

pytestmark = pytest.mark.parametrize("name", backend_params("cpu"))


def run(directory: Path, how: str = "") -> subprocess.CompletedProcess[str]:
    """Forward and backward pass of one operator in a new process with this cache directory."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(directory), "PYTHONPATH": str(TESTS.parent)}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=environment, capture_output=True, text=True, check=False
    )


def files(directory: Path) -> list[Path]:
    """What the cache holds."""
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_missing_directory_is_made(name: str, tmp_path: Path) -> None:
    done = run(tmp_path / "not" / "yet")
    assert (done.returncode, done.stdout.strip()) == (0, RIGHT), done.stderr
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
def test_a_read_only_directory(name: str, tmp_path: Path) -> None:
    with read_only(tmp_path):
        done = run(tmp_path)
        assert (done.returncode, done.stdout.strip()) == (0, RIGHT), done.stderr
        assert not files(tmp_path)


@pytest.mark.slow
def test_a_path_that_is_no_directory(name: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    done = run(blocked)
    assert (done.returncode, done.stdout.strip()) == (0, RIGHT), done.stderr


@pytest.mark.slow
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, "full")
    assert (done.returncode, done.stdout.strip()) == (0, RIGHT), done.stderr
    assert max((path.stat().st_size for path in files(tmp_path)), default=0) <= 4096
