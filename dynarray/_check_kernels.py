"""``python -m dynarray check-kernels``: what a memory checker says of CUDA kernels, without a GPU."""

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rawkernels import launch, ptx

from ._dispatch import DTYPES, use_backend
from ._operator import OPERATORS

_TESTS = Path(__file__).resolve().parent.parent / "tests"
# Two images of a few pixels, and one of many blocks.
_SIZES: tuple[dict[str, int], ...] = ({}, {"N": 1, "H": 37, "W": 45})


@contextmanager
def _checked(target: ptx.Target) -> Iterator[ptx.Collected]:
    """Every launch on NumPy arrays is checked, and what is found kept."""
    with ExitStack() as stack:
        stack.enter_context(use_backend("ptx"))
        stack.enter_context(launch.numpy_runner("ptx"))
        stack.enter_context(ptx.use_target(target))
        yield stack.enter_context(ptx.collect())


def check_script(script: str, arguments: Sequence[str], target: ptx.Target) -> int:
    """Run a Python script as its main thread would, with its calls on NumPy arrays checked.

    Returns
    -------
    int
        The number of faults.
    """
    before = sys.argv
    sys.argv = [script, *arguments]
    try:
        with _checked(target) as found:
            runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv = before
    return _show(script, target, found)


def check_operators(names: Sequence[str], targets: Sequence[ptx.Target], seeds: int) -> int:
    """Check drawn calls of operators, forward and backward, in every dtype.

    Returns
    -------
    int
        The number of faults.

    Raises
    ------
    RuntimeError
        Where the calls are missing: they are those of the tests, which an installed package has not.
    """
    if not (_TESTS / "_contract.py").exists():
        raise RuntimeError(
            "check-kernels draws the calls of the tests, which a checkout has; or name a script"
        )
    if str(_TESTS) not in sys.path:
        sys.path.insert(0, str(_TESTS))
    contract: Any = import_module("_contract")
    faults = 0
    for name in names or OPERATORS:
        for target in targets:
            with _checked(target) as found:
                for seed in range(seeds):
                    for sizes in _SIZES:
                        _run(contract.full_call(OPERATORS[name], seed, **sizes))
            faults += _show(name, target, found)
    return faults


def _run(call: Any) -> None:
    """One call in every dtype; what comes out is for the tests to judge."""
    for dtype in DTYPES["ptx"]:
        made = call.astype(np.dtype(dtype))
        with np.errstate(all="ignore"):
            _, saved = made.operator.run(made.arrays, made.params)
            made.operator.gradients(made.grad_output, saved, (True,) * len(made.arrays))


def _show(title: str, target: ptx.Target, found: ptx.Collected) -> int:
    kernels = ", ".join(sorted(found.launches)) or "no kernel was launched"
    ftz = "" if target.ftz else " without -ftz=true"
    launches = sum(found.launches.values())
    print(
        f"{title} on {target.architecture}{ftz}: {launches} launches, {len(found.reports)} faults ({kernels})"
    )
    for report, times in found.reports.items():
        print(f"  {report}" + (f"\n    in {times} launches" if times > 1 else ""))
    sys.stdout.flush()
    return len(found.reports)
