"""Every operator on small CuPy arrays: what compute-sanitizer watches. ``python -m benchmarks.small_calls``.

Each array is an allocation of its own, so that the first byte outside of it is noticed.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import dynarray as dyn

from .cases import CASES
from .cases.case import Case
from .harness.child import placed

IMAGES = 3
DTYPES = ("float64", "float32", "float16", "bfloat16")


def calls(dtypes: Sequence[str]) -> Iterator[Case]:
    """The small form of each case, in each way of adding up, on several images."""
    small = {case.small.title: case.small for case in CASES if case.small}
    for case in small.values():
        ways = (True, False) if "deterministic" in dyn.OPERATORS[case.operator].defaults else (None,)
        for dtype in dtypes:
            for way in ways:
                params = case.params if way is None else {**case.params, "deterministic": way}
                title = f"{case.title} {dtype}{'' if way is None else f' deterministic={way}'}"
                yield replace(case.times(IMAGES), title=title, dtype=dtype, params=params)


def run(case: Case, move: Any) -> None:
    """Forward and backward pass, on the arrays that `move` makes of those of NumPy."""
    rng = np.random.default_rng(0)
    operator = dyn.OPERATORS[case.operator]
    arrays = tuple(None if array is None else move(array) for array in case.arrays(rng))
    _, saved = operator.run(arrays, placed(case.params, move))
    operator.gradients(move(case.grad_output(rng)), saved, (True,) * len(operator.arrays))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_calls", description=__doc__)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "float16"])
    arguments = parser.parse_args(argv)
    import cupy
    import ml_dtypes  # noqa: F401  # registers bfloat16 with NumPy

    cupy.cuda.set_allocator(None)
    done = 0
    for case in calls(arguments.dtype):
        print(case.title, flush=True)
        run(case, cupy.asarray)
        cupy.cuda.Device().synchronize()
        done += 1
    print(f"{done} calls")


if __name__ == "__main__":
    main()
