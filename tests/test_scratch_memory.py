"""What a thread keeps from call to call may hold anything: no result shows it."""

import numpy as np
import pytest
from _contract import Result, each_operator, evaluate, full_call, threads
from conftest import Backend

from dynarray import Operator

pytest.importorskip("numba")

from dynarray.cpu.engine import memory

CPU = Backend("cpu")
NAN_IN_BOTH = 0x7FF4_0000_7FA0_0000  # a signalling NaN of either width
CALLS = 12  # of each operator and dtype


def spoil() -> int:
    """Fill all that this thread keeps with NaN; how many bytes that was."""
    kept = [array for array in vars(memory._own).values() if isinstance(array, np.ndarray)]
    for array in kept:
        array[: array.size // 8 * 8].view(np.uint64).fill(NAN_IN_BOTH)
    return sum(array.nbytes for array in kept)


def bits(result: Result) -> list[bytes]:
    return [array.tobytes() for array in (result.output, *result.gradients) if array is not None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_operator
def test_no_result_shows_what_was_there_before(operator: Operator, dtype: str) -> None:
    spoiled = 0
    for seed in range(CALLS):
        call = full_call(operator, seed, H=9, W=21).astype(dtype)
        with threads(1):  # so that this one does all
            expected = bits(evaluate(call, CPU))
            spoiled += spoil()
            assert bits(evaluate(call, CPU)) == expected, call.describe()
    assert spoiled
