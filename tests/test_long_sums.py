"""Sums of many terms in float32 are as good as those of the formula: kernels make them in parts.

What is rounded off grows with the number of additions one after the other. Each test makes one kind of sum
long, over channels, outputs, positions or images, as long as no other test draws, and gives it to as few
blocks as may have it: on large calls, whose blocks are more than a GPU runs at a time, each has a whole sum
as well.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest
from _contract import check_low_precision, full_call, seeded_case
from conftest import Backend, backend_params

import rawkernels
from dynarray import OPERATORS, Operator

# Sizes of a call with one long sum; of channels and outputs any groups that are drawn have a share.
LONG = {
    "channels": {"N": 1, "H": 2, "W": 2, "C": 0},
    "outputs": {"N": 1, "H": 2, "W": 2, "C": 12, "O": 0},
    "positions": {"N": 1, "H": 1, "W": 0},
    "images": {"N": 0, "H": 2, "W": 2},
}
STEP, LEAST, MOST = 12, 60, 130
# How many processors, threads, warps or blocks a call is spread over, and the fewest that a module knows.
SPREADS = {"_PROCESSORS": 0, "_THREADS_WANTED": 1, "_WARPS_WANTED": 1, "_BLOCKS_WANTED": 1, "_MOST_SLOTS": 1}


def sizes(kind: str, length: int) -> dict[str, int]:
    """Those of a call."""
    return {name: size or length for name, size in LONG[kind].items()}


# Of these, sums over channels and outputs are those of one matrix product, which is a library's.
PRODUCTS = ("atom_conv1d", "atom_conv2d", "deform_conv1d", "deform_conv2d")


def has_such_a_sum(operator: Operator, kind: str) -> bool:
    """Whether any array is as long as that, and a kernel adds it up."""
    if operator.name in PRODUCTS and kind in ("channels", "outputs"):
        return False
    drawn = seeded_case(operator, 0, **sizes(kind, STEP * 97))
    return any(STEP * 97 in shape for shape in drawn.shapes.values() if shape)


SUMS = [
    pytest.param(operator, kind, id=f"{name}-{kind}")
    for name, operator in OPERATORS.items()
    for kind in LONG
    if has_such_a_sum(operator, kind)
]


@pytest.mark.parametrize("backend", backend_params("host"), indirect=True)
@pytest.mark.parametrize(("operator", "kind"), SUMS)
def test_long_sums_are_as_good_as_the_formula(
    backend: Backend, operator: Operator, kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in Path(rawkernels.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"rawkernels.{file.stem}")
        for name, fewest in SPREADS.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fewest)
    length = STEP * int(rng.integers(LEAST, MOST))
    call = full_call(operator, int(rng.integers(100)), **sizes(kind, length))
    check_low_precision(call, backend, np.dtype(np.float32))
