"""Every function of the tape on CuPy arrays: what it computes stays there, and is what NumPy computes."""

from typing import Any

import _function_cases
import numpy as np
import pytest
from _function_cases import CASES, draw
from conftest import Backend, backend_params

from autodiff import Tape, Variable
from autodiff import functions as F

on_a_gpu = pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)


# Arrays that are no arguments of the cases: masks, labels, statistics.
CONSTANTS = ("LABELS", "LABEL_MAP", "MASK", "MEAN", "VALID", "VARIANCE")
MIXED = {
    "affine": "affine: x is a cupy.ndarray but mean is a numpy.ndarray",
    "cross_entropy": "cross_entropy: logits is a cupy.ndarray but labels is a numpy.ndarray",
    "cross_entropy ignoring": "cross_entropy: logits is a cupy.ndarray but labels is a numpy.ndarray",
    "end_point_error valid": "end_point_error: flow is a cupy.ndarray but valid is a numpy.ndarray",
    "where": "where: x is a cupy.ndarray but condition is a numpy.ndarray",
}


def value_and_gradients(call: Any, arrays: list[Any]) -> list[Any]:
    """Arrays of the library of `arrays`; None where there is no gradient."""
    with Tape() as tape:
        variables = [Variable(array) for array in arrays]
        output = call(*variables)
        loss = F.sum(output * output)
    gradients = tape.gradient(loss, variables, unused="none")
    return [each.data if isinstance(each, Variable) else each for each in (output, *gradients)]


@on_a_gpu
@pytest.mark.parametrize("name", CASES)
def test_a_function_stays_on_the_device(name: str, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    arrays = [array.astype(np.float32) for array in draw(case)]
    expected = value_and_gradients(case.call, arrays)
    for constant in CONSTANTS:
        monkeypatch.setattr(_function_cases, constant, backend.array(getattr(_function_cases, constant)))
    here = [backend.array(array) for array in arrays]
    found = value_and_gradients(case.call, here)
    assert len(found) == len(expected)
    for number, (mine, right) in enumerate(zip(found, expected, strict=True)):
        what = f"{name}, {'output' if number == 0 else f'gradient {number}'}"
        if right is None:
            assert mine is None, what
            continue
        assert type(mine) is type(here[0]), f"{what} is a {type(mine)}"
        assert mine.dtype == right.dtype and mine.shape == right.shape, what
        size = np.max(np.abs(right[np.isfinite(right)]), initial=0)
        np.testing.assert_allclose(mine.get(), right, rtol=0, atol=1e-5 * size, err_msg=what)


@on_a_gpu
@pytest.mark.parametrize("name", MIXED)
def test_arrays_of_numpy_beside_those_of_the_device_are_refused(name: str, backend: Backend) -> None:
    arrays = [backend.array(array.astype(np.float32)) for array in draw(CASES[name])]
    with pytest.raises(TypeError) as caught:
        value_and_gradients(CASES[name].call, arrays)
    assert str(caught.value) == MIXED[name]


@on_a_gpu
@pytest.mark.parametrize("first", range(3))
def test_a_large_part_of_an_array_may_begin_anywhere(first: int, backend: Backend) -> None:
    """Saved values are read in words of eight bytes; elements of four begin between two of them."""
    x = Variable(backend.array(np.arange(1.0, 9001, dtype=np.float32)))
    with Tape() as tape:
        part = x[first:]
        loss = F.sum(part * part)
    expected = 2 * np.arange(1.0, 9001, dtype=np.float32) * (np.arange(9000) >= first)
    assert np.array_equal(tape.gradient(loss, x).get(), expected)
