"""`deform_conv2d` of many channels and few outputs on the CPU: channels are mixed, and mixtures sampled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _contract import REFERENCE, Call, check, check_low_precision, evaluate, threads
from conftest import Backend, backend_params
from test_deform import call_of

from dynarray.cpu.deform import few_outputs, forms

cpu = pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)

KINDS: dict[str, dict[str, Any]] = {
    "one output": {"c": 17, "o": 1, "image": (9, 11), "padding": 1},
    "offset groups": {"c": 48, "o": 3, "image": (9, 11), "offset_groups": 4, "padding": 1},
    "groups of offset groups": {"c": 64, "o": 4, "image": (7, 13), "offset_groups": 4, "groups": 2},
    "as many groups": {"c": 36, "o": 9, "image": (7, 13), "offset_groups": 3, "groups": 3, "padding": 2},
    "steps": {
        "c": 20, "o": 5, "image": (19, 8), "kernel": (2, 5),
        "stride": (3, 1), "padding": (1, 4), "dilation": (2, 1),
    },
    "copies outside": {"c": 16, "o": 2, "image": (6, 7), "border": "reflect", "padding": 1},
    "a line": {"c": 24, "o": 2, "image": (1, 70), "kernel": (1, 5), "padding": (0, 2)},
    "no mask": {"c": 24, "o": 2, "image": (8, 9), "full": False},
}  # fmt: skip


def drawn(rng: np.random.Generator, kind: str) -> Call:
    settings = dict(KINDS[kind])
    return call_of(rng, 3, *(settings.pop(name) for name in ("c", "o", "image")), **settings)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the passes that mix first answered."""
    found: list[bool] = []

    def recorded(real: Callable[..., bool]) -> Callable[..., bool]:
        def answer(*args: Any) -> bool:
            found.append(real(*args))
            return found[-1]

        return answer

    for name in ("few_outputs_forward", "few_outputs_backward"):
        monkeypatch.setattr(forms, name, recorded(getattr(forms, name)))
    return found


@cpu
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_definition(
    backend: Backend, rng: np.random.Generator, answers: list[bool], kind: str
) -> None:
    call = drawn(rng, kind)
    evaluate(call, backend)
    assert answers == [True, True]
    check(call, backend)
    check_low_precision(call, backend, np.float32)


@cpu
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_same_for_any_number_of_threads_and_parts(
    backend: Backend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    call = drawn(rng, kind).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(evaluate(call, backend))
    for other in results[1:]:
        np.testing.assert_array_equal(other.output, results[0].output)
        for mine, right in zip(other.gradients, results[0].gradients, strict=True):
            np.testing.assert_array_equal(mine, right)
    # Room for less than an image, of which there is one at a time then.
    monkeypatch.setattr(few_outputs, "KEPT_BYTES", 1)
    monkeypatch.setattr(few_outputs, "MIXTURE_PART", 1e9)
    np.testing.assert_array_equal(evaluate(call, backend).output, results[0].output)


@cpu
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["x", "offset", "weight", "mask", "bias", "grad_output"])
@pytest.mark.parametrize("kind", ["one output", "as many groups"])
def test_what_is_not_finite_is_where_the_definition_has_it(
    backend: Backend, rng: np.random.Generator, kind: str, name: str, number: float
) -> None:
    """Zeros beside it, which a sum in another order would not multiply by it."""
    call = drawn(rng, kind)
    arrays = dict(zip(("x", "offset", "weight", "mask", "bias"), call.arrays, strict=True))
    arrays["grad_output"] = call.grad_output
    for channel in range(0, arrays["x"].shape[1], 2):
        arrays["x"][:, channel] = 0
    arrays["weight"][:, 1::3] = 0
    array = arrays[name].reshape(-1)
    array[rng.integers(array.size, size=2)] = number
    with np.errstate(all="ignore"):
        expected, mine = evaluate(call, REFERENCE), evaluate(call, backend)
    for found, right in zip(
        (mine.output, *mine.gradients), (expected.output, *expected.gradients), strict=True
    ):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(right))
        np.testing.assert_array_equal(found[np.isinf(right)], right[np.isinf(right)])
        np.testing.assert_allclose(found[np.isfinite(right)], right[np.isfinite(right)], rtol=1e-9, atol=1e-9)


@cpu
def test_many_outputs_are_not_mixed_first(
    backend: Backend, rng: np.random.Generator, answers: list[bool]
) -> None:
    check(call_of(rng, 2, 16, 16, (9, 9)), backend)
    assert answers == []
