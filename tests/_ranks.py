"""Programs of several ranks on this machine, started by mpirun: functions of tests/_rank_programs.py."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import IN_CI

TESTS = Path(__file__).parent
PATIENCE = 200  # seconds after which a program that has not ended hangs, on a busy machine too


def problem() -> str | None:
    """Why nothing can be run here."""
    if shutil.which("mpirun") is None:
        return "mpirun is not installed (Debian: openmpi-bin, libopenmpi-dev)"
    return None if find_spec("mpi4py") else "mpi4py is not installed (extra: mpi)"


# In CI it must be there: its tests are not skipped, and fail.
with_mpirun = pytest.mark.skipif(problem() is not None and not IN_CI, reason=str(problem()))


class Ran(NamedTuple):
    """What a program of several ranks left behind."""

    code: int
    output: str
    folder: Path
    ranks: int

    def results(self, name: str) -> list[Any]:
        """What each rank wrote by this name; the program must have ended well."""
        assert self.code == 0, self.output
        return [dict(np.load(self.folder / f"{name}-{rank}.npz")) for rank in range(self.ranks)]

    def told(self, name: str) -> list[Any]:
        """What each rank that came so far noted down in words by this name."""
        paths = [self.folder / f"{name}-{rank}.json" for rank in range(self.ranks)]
        return [json.loads(path.read_text()) for path in paths if path.exists()]


def launcher(ranks: int, *options: str) -> list[str]:
    """The words that start so many ranks here, however few cores there are."""
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    if "Open MPI" not in version:
        return ["mpirun", "-n", str(ranks)]
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", *options, "-n", str(ranks)]


# Programs import the stand-in as CuPy.
STANDIN = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "standin")))}


def run(ranks: int, folder: Path, command: Sequence[str], *options: str, **variables: str) -> Ran:
    """Start a Python program by mpirun, and wait for its end."""
    environment = {
        "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",  # containers forbid what it would use
    }
    done = subprocess.run(
        [*launcher(ranks, *options), sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        cwd=folder,
        env=os.environ | environment | variables,
        check=False,
    )
    return Ran(done.returncode, done.stdout, folder, ranks)


def program(name: str, ranks: int, folder: Path, *options: str, **variables: str) -> Ran:
    """Run a function of tests/_rank_programs.py on so many ranks."""
    return run(ranks, folder, [str(TESTS / "_rank_programs.py"), name], *options, **variables)
