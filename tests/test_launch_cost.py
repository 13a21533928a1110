"""What Python does for a call whose kernels do nothing, counted in calls of functions."""

from typing import Any

import numpy as np
import pytest
from _counting import counted_calls

import dynarray as dyn
from rawkernels import host, launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The launches on the host, which are recorded and not run."""
    recorded: list[tuple] = []
    monkeypatch.setattr(host, "run", lambda *args: recorded.append(args))
    return recorded


def least(call: Any) -> int:
    """Calls in a run that finds everything in its caches."""
    counts = []
    for _ in range(4):
        with counted_calls() as count:
            call()
        counts.append(count.calls)
    assert counts[-1] == counts[-2]
    return counts[-1]


def arrays() -> tuple[Any, ...]:
    return np.zeros((1, 8, 8, 8), np.float32), np.zeros((1, 1, 3, 3, 8, 8), np.float32)


def test_a_launch_costs_the_same_for_any_number_of_arguments(launches: list[tuple]) -> None:
    """Each argument is looked at when a mixture of types is new, and by the interpreter alone afterwards."""
    x, weight = arrays()
    with dyn.use_backend("host"):
        dyn.local_filter2d(x, weight)
    program, entry, grid, block, arguments, _ = launches[0]
    assert len(arguments) == 21
    assert least(lambda: launch.launch(program, entry, grid, block, arguments)) <= 30


def test_what_has_passed_before_is_refused_when_it_no_longer_fits(launches: list[tuple]) -> None:
    x, weight = arrays()
    with dyn.use_backend("host"):
        dyn.local_filter2d(x, weight)
    program, entry, grid, block, arguments, _ = launches[0]
    for wrong, message in (
        (np.zeros((8, 8, 8, 1), np.float32).T, "must be C-contiguous"),
        (np.zeros((1, 8, 8, 8)), "must have dtype float32, got float64"),
    ):
        changed = (wrong, *arguments[1:])
        with pytest.raises((TypeError, ValueError), match=message):
            launch.launch(program, entry, grid, block, changed)
    with pytest.raises(TypeError, match=r"must be a numpy\.int32 scalar, got int64 of dtype int64"):
        launch.launch(program, entry, grid, block, (*arguments[:-1], np.int64(1)))
    assert len(launches) == 1


def test_a_call_of_an_operator_is_a_small_multiple_of_its_launches(launches: list[tuple]) -> None:
    x, weight = arrays()
    with dyn.use_backend("host"):
        assert least(lambda: dyn.local_filter2d(x, weight, padding=1)) <= 220
        output, saved = dyn.OPERATORS["local_filter2d"].run((x, weight, None), {})
        needs = (True, True, False)
        assert least(lambda: dyn.OPERATORS["local_filter2d"].gradients(output, saved, needs)) <= 220
