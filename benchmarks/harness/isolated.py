"""First calls and peak memory, measured in fresh processes; the measuring itself is in `child.py`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dynarray as dyn

from ..cases.case import Case
from . import child
from .machine import ROOT

# DESIGN: at most 32 MB and 5 % of inputs and outputs.
_FIXED_BYTES, _FRACTION = 32e6, 0.05
_TIMEOUT_S = 600
_CACHES = ("NUMBA_CACHE_DIR", "CUPY_CACHE_DIR", "DYNARRAY_CACHE_DIR")


def first_call(case: Case, backend: str, threads: int) -> dict[str, dict[str, float]]:
    """Seconds of import and first calls: with empty kernel caches ("cold"), in a later process ("later").

    On a GPU the arrays are small: the kernels are the same, and nobody waits for large ones to be made.
    """
    task = _task((case.small or case) if backend == "cuda" else case, backend, threads)
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: str(Path(folder, name)) for name in _CACHES}
        return {when: _child("first_call", task, caches) for when in ("cold", "later")}


def memory(case: Case, backend: str, threads: int) -> dict[str, Any]:
    """Bytes beyond inputs and outputs at the peak of each pass, and the bound they are to stay below."""
    small = case.small or case
    task = _task(case, backend, threads) | {"small": _task(small, backend, threads)}
    try:
        # On a GPU the pool of this process tells; on the CPU only a process of its own does.
        peaks: dict[str, Any] = child.memory(task) if backend == "cuda" else _child("memory", task, {})
    except MeasurementError as error:
        peaks = {"problem": str(error)}
    sizes = {
        "forward": case.input_bytes + case.output_bytes,
        "backward": 2 * case.input_bytes + case.output_bytes,
    }
    return peaks | {"bound": {name: int(_FIXED_BYTES + _FRACTION * size) for name, size in sizes.items()}}


class MeasurementError(RuntimeError):
    """A child process failed; the message is the last line that it wrote."""


def _task(case: Case, backend: str, threads: int) -> dict[str, Any]:
    return {
        "operator": case.operator,
        "shapes": [case.shapes.get(name) for name in dyn.OPERATORS[case.operator].arrays],
        "output_shape": case.output_shape,
        "params": dict(case.params),
        "dtype": case.dtype,
        "backend": backend,
        "threads": threads,
    }


def _child(what: str, task: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.harness.child", what, json.dumps(task, default=child.packed)]
    environment = os.environ | variables
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise MeasurementError(f"{what}: {lines[-1] if lines else f'exit status {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])
