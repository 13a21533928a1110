"""Peak memory of one operator, in a process of its own.

NumPy reports its allocations to tracemalloc but compiled kernels do not, so this reads the peak of the
resident set. Prints, for each pass, the bytes beyond inputs and outputs, and those of inputs and outputs.
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

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


def main(name: str, shapes: list[tuple[int, ...]], params: dict[str, Any], waste: bool) -> None:
    operator = dyn.OPERATORS[name]
    rng = np.random.default_rng(0)
    arrays: tuple = tuple(rng.random(shape, np.float32) for shape in shapes)
    arrays += (None,) * (len(operator.arrays) - len(arrays))
    shape = operator.check(*arrays, **{**operator.defaults, **params}).output_shape
    grad_output = rng.random(shape, np.float32)
    pair = 1 if name == "deform_conv2d" else None  # offsets have two channels where others have one
    shapes_of_small = [
        None if a is None else [1, 2 if i == pair else 1, *[1] * (a.ndim - 2)] for i, a in enumerate(arrays)
    ]
    if name == "dynamic_sampling_conv2d" and shapes_of_small[3]:
        shapes_of_small[3][2:4] = [params["samples"]] * 2
    small = tuple(None if shape is None else np.ones(shape, np.float32) for shape in shapes_of_small)
    needs = (True,) * len(arrays)
    # Compile, or load what was compiled, before anything is measured; NaN takes other ways than numbers.
    changes: dict[str, dict[str, Any]] = {
        "carafe": {"kernel_size": 1, "scale": 1},
        "dynamic_sampling_conv2d": {},
    }
    small_params = {**params, **changes.get(name, {"padding": 0})}
    for tiny in (small, tuple(a if a is None else a * np.float32("nan") for a in small)):
        output, saved = operator.run(tiny, small_params)
        operator.gradients(output, saved, needs)

    def run() -> tuple:
        kept = arrays[0].copy() if waste else None
        result = operator.run(arrays, params)
        del kept
        return result

    (output, saved), rise = peak_of(run)
    given = sum(array.nbytes for array in arrays if array is not None)
    print("forward", rise - output.nbytes, given + output.nbytes)
    gradients, rise = peak_of(lambda: operator.gradients(grad_output, saved, needs))
    results = sum(gradient.nbytes for gradient in gradients if gradient is not None)
    print("backward", rise - results, given + grad_output.nbytes + results)


if __name__ == "__main__":
    main(sys.argv[1], ast.literal_eval(sys.argv[2]), ast.literal_eval(sys.argv[3]), sys.argv[4] == "1")
