"""More than 2**31 elements: index arithmetic at sizes that nobody has to allocate.

Zeros that nobody has written to cost no memory: the system gives pages when they are first written. So an
image batch of 8.6 GB, of which a few pixels of the first and the last image are set, costs a few kilobytes,
and with strides as long as the images their outputs are a few pixels each.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from _calls import families
from _calls._call import LARGE_IMAGES, Large
from _contract import (
    REFERENCE,
    RTOL_REFERENCE,
    Call,
    compare,
    each_operator,
    evaluate,
    full_call,
    output_shape,
    parts,
)
from _memory import status
from conftest import Backend, backend_params

import rawkernels.host
import rawkernels.launch
from dynarray import OPERATORS, Operator

N = LARGE_IMAGES[0]
DECLARED: dict[str, Large | str] = {
    name: large for each in families().values() for name, large in each.LARGE.items()
}
LARGE = {name: large for name, large in DECLARED.items() if isinstance(large, Large)}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Zeros, but for the corners of the first and the last image."""
    try:
        x = np.zeros(LARGE_IMAGES, np.float32)
    except MemoryError:
        pytest.skip("this system grants no 8.6 GB of memory that nobody will use")
    assert x.size > 2**31
    rng = np.random.default_rng(0)
    for n in (0, N - 1):
        for rows in (slice(4), slice(-4, None)):
            for columns in (slice(4), slice(-4, None)):
                x[n, :, rows, columns] = rng.integers(1, 9, (1, 4, 4))
    return x


class InPlace:
    """Instead of a guarded copy: the array itself."""

    def __init__(self, array: np.ndarray, name: str) -> None:
        self.address = array.ctypes.data

    def stray_writes(self) -> str:
        return ""

    def copy_back(self, array: np.ndarray) -> None:
        pass


def large_call(operator: Operator, image: np.ndarray) -> Call:
    """A call on the large image, its other arrays small integers."""
    large, rng = LARGE[operator.name], np.random.default_rng(1)
    others = {name: rng.integers(1, 9, shape).astype(np.float32) for name, shape in large.shapes.items()}
    others |= {name: values(others[name]) for name, values in large.values.items()}
    params = large.params
    arrays = tuple({"x": image, **others}.get(name) for name in operator.arrays)
    grad_output = rng.integers(1, 9, output_shape(operator, arrays, params)).astype(np.float32)
    return Call(operator, arrays, params, grad_output)


def last_image(call: Call) -> Call:
    """The same call on the last image alone, in float64; weights that images share stay as they are."""

    def last(array: np.ndarray) -> np.ndarray:
        return (array[-1:] if len(array) == N else array).astype(np.float64)

    return call.map(last)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("cpu", "host"), indirect=True)
@pytest.mark.parametrize("name", LARGE)
def test_more_elements_than_an_int_can_count(
    name: str, backend: Backend, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.name == "host":
        if not LARGE[name].on_host:
            pytest.skip("copies the whole of x: see the test of 64-bit indices below")
        monkeypatch.setattr(rawkernels.host, "Guarded", InPlace)
    call = large_call(OPERATORS[name], image)
    assert call.grad_output.shape[0] == N
    # The gradient of x is as large as x and not asked for, nor are sums over all images.
    needs = tuple(array is not None and len(array) == N and array is not image for array in call.arrays)
    evaluate(full_call(call.operator), backend)  # what compiles takes memory too
    before = status("VmRSS")
    actual = evaluate(call, backend, needs)
    assert status("VmRSS") - before < 300e6, "more memory than 3 % of the image"
    expected = evaluate(last_image(call), REFERENCE, needs)
    compare(call, "output", actual.output[-1:], expected.output, 0)
    assert actual.output[-1].any()
    for name, gradient, right in zip(call.operator.arrays, actual.gradients, expected.gradients, strict=True):
        if gradient is not None:
            compare(call, f"gradient of {name}", gradient[-1:], right, 0)
            assert gradient[-1].any()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every launch takes 64-bit indices; yields the index types of the launches."""
    used: list[str] = []
    run = rawkernels.host.run

    def recording(program: Any, *args: Any) -> None:
        used.append(program.constant("INDEX_TYPE"))
        run(program, *args)

    monkeypatch.setattr(rawkernels.launch, "_INT32_LIMIT", 0)
    monkeypatch.setattr(rawkernels.host, "run", recording)
    yield used


@pytest.mark.slow
@each_operator
@pytest.mark.parametrize("backend", backend_params("host"), indirect=True)
def test_64_bit_indices_give_the_same(operator: Operator, backend: Backend, wide: list[str]) -> None:
    for seed in range(3):
        call = full_call(operator, seed, H=9, W=11)
        actual, expected = evaluate(call, backend), evaluate(call, REFERENCE)
        for what, mine, right in parts(call, actual, expected):
            compare(call, what, mine, right, RTOL_REFERENCE)
    assert set(wide) == {"long long"}


@each_operator
def test_every_operator_is_large_or_says_why_not_or_runs_the_forms_of_one_that_does(
    operator: Operator,
) -> None:
    if operator.name in DECLARED:
        assert DECLARED[operator.name]
        return
    declared = [OPERATORS[name] for name in DECLARED if OPERATORS[name].stem == operator.stem]
    assert any((operator.forward, operator.backward) == (each.forward, each.backward) for each in declared)
