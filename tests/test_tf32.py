"""`allow_tf32`, on the stand-in for CuPy, whose products have the bits that cuBLAS would look at."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from _contract import REFERENCE, Call, evaluate, full_call
from _standin import standing_in

import dynarray as dyn

WITH_PRODUCTS = pytest.mark.parametrize("name", ["deform_conv2d", "atom_conv2d"])


@pytest.fixture
def cupy() -> Iterator[Any]:
    """The stand-in for CuPy."""
    with standing_in() as module:
        yield module


@pytest.fixture
def linalg(cupy: Any) -> Any:
    """Where CuPy keeps what it computes in."""
    return cupy._core._routines_linalg


def product_error(cupy: Any) -> float:
    """How far off CuPy's own product is."""
    a, b = (np.random.default_rng(seed).uniform(1, 2, (20, 20)).astype(np.float32) for seed in range(2))
    exact = a.astype(np.float64) @ b
    return float(np.abs((cupy.asarray(a) @ cupy.asarray(b)).get() / exact - 1).max())


def error_of(name: str, cupy: Any, call: Call | None = None) -> float:
    """How far off an operator is, forward and backward, as a part of the largest number."""
    call = (call or full_call(dyn.OPERATORS[name], seed=1)).astype("float32")
    arrays = tuple(None if array is None else cupy.asarray(array) for array in call.arrays)
    output, saved = call.operator.run(arrays, call.params)
    gradients = call.operator.gradients(cupy.asarray(call.grad_output), saved, (True,) * len(arrays))
    expected = evaluate(call.astype("float64"), REFERENCE)
    pairs = [(output, expected.output), *zip(gradients, expected.gradients, strict=True)]
    return max(float(np.abs(mine.get() - right).max() / np.abs(right).max()) for mine, right in pairs)


EXACT, COARSE = 1e-6, 2e-5


@WITH_PRODUCTS
def test_products_are_coarse_inside_alone(name: str, cupy: Any) -> None:
    assert error_of(name, cupy) < EXACT
    with dyn.allow_tf32():
        assert COARSE < error_of(name, cupy) < 1e-2
        with dyn.allow_tf32(False):
            assert error_of(name, cupy) < EXACT
        assert error_of(name, cupy) > COARSE
    assert error_of(name, cupy) < EXACT


@WITH_PRODUCTS
def test_what_cupy_was_told_holds_for_cupy_alone(
    name: str, cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert product_error(cupy) < EXACT
    with dyn.allow_tf32():
        assert error_of(name, cupy) > COARSE and product_error(cupy) < EXACT
    monkeypatch.setenv("CUPY_TF32", "1")
    cupy._core._routines_linalg._types.clear()
    assert product_error(cupy) > COARSE
    assert error_of(name, cupy) < EXACT
    assert product_error(cupy) > COARSE
    with dyn.allow_tf32():
        assert error_of(name, cupy) > COARSE
    assert product_error(cupy) > COARSE


@pytest.mark.parametrize("told", ["DEFAULT", "TF32"])
@pytest.mark.parametrize("allowed", [False, True])
def test_after_an_error_all_is_as_before(
    cupy: Any, linalg: Any, monkeypatch: pytest.MonkeyPatch, told: str, allowed: bool
) -> None:
    linalg.set_compute_type(np.float32, getattr(linalg, f"COMPUTE_TYPE_{told}"))
    seen = []

    def failing(*_: Any, **__: Any) -> None:
        seen.append(linalg.get_compute_type(np.float32))
        raise MemoryError("none left")

    monkeypatch.setattr(cupy, "matmul", failing)
    with pytest.raises(MemoryError), dyn.allow_tf32(allowed):
        error_of("deform_conv2d", cupy)
    wanted = linalg.COMPUTE_TYPE_TF32 if allowed else linalg.COMPUTE_TYPE_DEFAULT
    assert seen == [wanted]
    assert linalg.get_compute_type(np.float32) == getattr(linalg, f"COMPUTE_TYPE_{told}")
    monkeypatch.undo()
    linalg.set_compute_type(np.float32, linalg.COMPUTE_TYPE_DEFAULT)
    assert error_of("deform_conv2d", cupy) < EXACT  # nothing of the block is left


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What comes of it in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_other_threads_do_not_take_part(cupy: Any) -> None:
    with dyn.allow_tf32():
        assert in_a_thread(lambda: error_of("deform_conv2d", cupy)) < EXACT
        assert error_of("deform_conv2d", cupy) > COARSE


def test_double_precision_stays_what_it_is(cupy: Any, linalg: Any) -> None:
    with dyn.allow_tf32():
        a = cupy.asarray(np.random.default_rng(0).standard_normal((1, 2, 5, 5)))
        offset = cupy.zeros((1, 1, 1, 1, 2, 5, 5))
        y = dyn.deform_conv2d(a, offset, cupy.ones((1, 2, 1, 1)))
    assert np.abs(y.get()[:, 0] - a.get().sum(1)).max() < 1e-14


def test_it_is_a_bool() -> None:
    with pytest.raises(TypeError, match=r"^allow_tf32: allowed must be a bool, got 1$"), dyn.allow_tf32(1):  # type: ignore[arg-type]
        pass
