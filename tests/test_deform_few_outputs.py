"""`deform_conv2d` of many channels and few outputs on the CPU: channels are mixed, and mixtures sampled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _contract import check, check_low_precision, check_threads, evaluate
from conftest import Backend, backend_params
from test_deform import call_of, check_not_finite, drawn

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
    call = drawn(rng, KINDS[kind])
    evaluate(call, backend)
    assert answers == [True, True]
    check(call, backend)
    check_low_precision(call, backend, np.float32)


@cpu
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_same_for_any_number_of_threads_and_parts(
    backend: Backend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    call = drawn(rng, KINDS[kind]).astype(np.float32)
    check_threads(call, backend)
    whole = evaluate(call, backend).output
    # Room for less than an image, of which there is one at a time then.
    monkeypatch.setattr(few_outputs, "KEPT_BYTES", 1)
    monkeypatch.setattr(few_outputs, "MIXTURE_PART", 1e9)
    np.testing.assert_array_equal(evaluate(call, backend).output, whole)


@cpu
@pytest.mark.parametrize("kind", KINDS)
def test_taps_come_in_turn_where_there_is_no_room_for_all(
    backend: Backend,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[bool],
    kind: str,
) -> None:
    call = drawn(rng, KINDS[kind])
    monkeypatch.setattr(few_outputs, "_taps_at_once", lambda call: call.sizes.taps if call.backward else 2)
    evaluate(call, backend)
    assert answers == [True, True]
    check(call, backend)
    check_threads(call, backend)


@cpu
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["x", "offset", "weight", "mask", "bias", "grad_output"])
@pytest.mark.parametrize("kind", ["one output", "as many groups"])
def test_what_is_not_finite_is_where_the_definition_has_it(
    backend: Backend, rng: np.random.Generator, kind: str, name: str, number: float
) -> None:
    """Zeros beside it, which a sum in another order would not multiply by it."""
    call = drawn(rng, KINDS[kind])
    check_not_finite(call, backend, rng, name, number)


@cpu
def test_many_outputs_are_not_mixed_first(
    backend: Backend, rng: np.random.Generator, answers: list[bool]
) -> None:
    check(call_of(rng, 2, 16, 16, (9, 9)), backend)
    assert answers == []
