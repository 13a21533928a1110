"""Peak memory of one operator, in a process of its own.

NumPy reports its allocations to tracemalloc but compiled kernels do not, so this reads the peak of the
resident set. Prints, for each pass, the bytes beyond inputs and outputs, and those of inputs and outputs.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from _calls import heavy_calls

import dynarray as dyn


def status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def peak_of(function: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call, and how far the resident set rose above where it was before."""
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    result = function()
    return result, status("VmHWM") - before


def random_arrays(operator: dyn.Operator, shapes: dict[str, tuple[int, ...]]) -> tuple:
    """Its arrays, None where there is no shape."""
    rng = np.random.default_rng(0)
    return tuple(rng.random(shapes[a], np.float32) if a in shapes else None for a in operator.arrays)


def main(title: str, waste: bool) -> None:
    heavy = heavy_calls()[title]
    operator = dyn.OPERATORS[heavy.operator]
    arrays = random_arrays(operator, heavy.shapes)
    shape = operator.check(*arrays, **{**operator.defaults, **heavy.params}).output_shape
    grad_output = np.random.default_rng(1).random(shape, np.float32)
    needs = (True,) * len(arrays)
    # Compile, or load what was compiled, before anything is measured; NaN takes other ways than numbers.
    small = random_arrays(operator, heavy.small)
    for tiny in (small, tuple(a if a is None else a * np.float32("nan") for a in small)):
        output, saved = operator.run(tiny, heavy.small_params)
        operator.gradients(output, saved, needs)

    def run() -> tuple:
        kept = arrays[0].copy() if waste else None
        result = operator.run(arrays, heavy.params)
        del kept
        return result

    (output, saved), rise = peak_of(run)
    given = sum(array.nbytes for array in arrays if array is not None)
    print("forward", rise - output.nbytes, given + output.nbytes)
    gradients, rise = peak_of(lambda: operator.gradients(grad_output, saved, needs))
    results = sum(gradient.nbytes for gradient in gradients if gradient is not None)
    print("backward", rise - results, given + grad_output.nbytes + results)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "1")
