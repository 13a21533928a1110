"""`deform_conv2d` of small maps and many weights on the CPU: all positions are multiplied at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _contract import REFERENCE, Call, check, check_low_precision, evaluate, threads
from conftest import Backend, backend_params
from test_deform import call_of

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


def drawn(rng: np.random.Generator, kind: str) -> Call:
    settings = dict(KINDS[kind])
    return call_of(rng, 3, *(settings.pop(name) for name in ("c", "o", "image")), **settings)


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
    call = drawn(rng, kind)
    evaluate(call, backend)
    assert ways == ["small_maps_forward", "multiply_columns"]
    check(call, backend)
    check_low_precision(call, backend, np.float32)


@cpu
@pytest.mark.parametrize("kind", ["maps of odd sizes", "groups of offset groups"])
def test_any_number_of_threads_gives_the_same_bits(
    backend: Backend, rng: np.random.Generator, ways: list[str], kind: str
) -> None:
    call, results = drawn(rng, kind).astype(np.float32), []
    for count in (1, 2, 3):
        with threads(count):
            results.append(evaluate(call, backend))
    for other in results[1:]:
        np.testing.assert_array_equal(other.output, results[0].output)
        for mine, right in zip(other.gradients, results[0].gradients, strict=True):
            np.testing.assert_array_equal(mine, right)
    assert ways


@cpu
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["x", "offset", "weight", "mask", "bias", "grad_output"])
def test_not_finite_as_in_the_definition(
    backend: Backend, rng: np.random.Generator, ways: list[str], name: str, number: float
) -> None:
    call = drawn(rng, "groups of offset groups")
    arrays = dict(zip(("x", "offset", "weight", "mask", "bias"), call.arrays, strict=True))
    arrays["grad_output"] = call.grad_output
    arrays["x"][:, ::2] = 0
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
    assert ways


@cpu
def test_many_weights_of_many_positions_are_packed(
    backend: Backend, rng: np.random.Generator, ways: list[str]
) -> None:
    check(call_of(rng, 2, 16, 16, (9, 9)), backend)
    assert ways == []
