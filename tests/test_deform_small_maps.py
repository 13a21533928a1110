"""`deform_conv2d` of small maps and many weights on the CPU: all positions are multiplied at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _contract import check, check_low_precision, check_threads, evaluate
from conftest import Backend, backend_params
from test_deform import call_of, check_not_finite, drawn

from dynarray.cpu.deform import forms, small_maps

cpu = pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)

KINDS: dict[str, dict[str, Any]] = {
    "maps of odd sizes": {"c": 17, "o": 95, "image": (3, 5), "padding": 1},
    "one position": {"c": 20, "o": 33, "image": (1, 1), "padding": 1},
    "offset groups": {"c": 48, "o": 80, "image": (3, 4), "offset_groups": 4, "padding": 1},
    "groups of offset groups": {
        "c": 64, "o": 182, "image": (3, 5), "offset_groups": 4, "groups": 2, "padding": 1,
    },
    "steps": {
        "c": 20, "o": 75, "image": (9, 8), "kernel": (2, 5),
        "stride": (3, 1), "padding": (1, 0), "dilation": (2, 1),
    },
    "copies outside": {"c": 20, "o": 99, "image": (4, 4), "border": "reflect", "padding": 1},
    "a line": {"c": 24, "o": 241, "image": (1, 40), "kernel": (1, 5), "padding": (0, 2)},
    "no mask": {"c": 24, "o": 150, "image": (5, 5), "full": False, "padding": 1},
}  # fmt: skip


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was called of this way, which also few weights go here."""
    found: list[str] = []

    def recorded(name: str, real: Callable) -> Callable:
        return lambda *args: found.append(name) or real(*args)

    monkeypatch.setattr(small_maps, "_LEAST_WEIGHTS", 0)
    for name in ("small_maps_forward", "multiply_columns"):
        monkeypatch.setattr(forms, name, recorded(name, getattr(forms, name)))
    return found


@cpu
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_definition(backend: Backend, rng: np.random.Generator, ways: list[str], kind: str) -> None:
    call = drawn(rng, KINDS[kind])
    evaluate(call, backend)
    assert ways == ["small_maps_forward", "multiply_columns"]
    check(call, backend)
    check_low_precision(call, backend, np.float32)


@cpu
@pytest.mark.parametrize("kind", ["maps of odd sizes", "groups of offset groups"])
def test_any_number_of_threads_gives_the_same_bits(
    backend: Backend, rng: np.random.Generator, ways: list[str], kind: str
) -> None:
    call = drawn(rng, KINDS[kind]).astype(np.float32)
    check_threads(call, backend)
    assert ways


@cpu
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["x", "offset", "weight", "mask", "bias", "grad_output"])
def test_not_finite_as_in_the_definition(
    backend: Backend, rng: np.random.Generator, ways: list[str], name: str, number: float
) -> None:
    call = drawn(rng, KINDS["groups of offset groups"])
    check_not_finite(call, backend, rng, name, number)
    assert ways


@cpu
def test_many_weights_of_many_positions_are_packed(
    backend: Backend, rng: np.random.Generator, ways: list[str]
) -> None:
    check(call_of(rng, 2, 16, 16, (9, 9)), backend)
    assert ways == []
