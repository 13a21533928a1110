"""Tests in several threads, or in a process of their own."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 100  # seconds after which a thread that should have come will not come, on a busy machine either
TESTS = Path(__file__).parent

with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def from_threads(number: int, work: Any) -> None:
    """Run ``work(index)`` in so many threads at once; the first error of any is raised here."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(index,), daemon=True) for index in range(number)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()
    if errors:
        raise errors[0]


def output_of(script: str, *arguments: str, timeout: float = 400, **variables: str) -> str:
    """What a script prints; it must end well, in time and without a word on its standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))} | variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()
