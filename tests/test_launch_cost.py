"""What Python does for a call whose kernels do nothing, counted in calls of functions."""

import sys
from collections import Counter
from collections.abc import Callable
from operator import le as operator_le
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from _contract import full_call
from _counting import counted_calls
from _standin import launches as idle
from _standin import standing_in
from conftest import Backend

import dynarray as dyn
from dynarray import _operator
from rawkernels import host, launch

OURS = tuple(f"{Path(module.__file__ or '').parent}/" for module in (dyn, launch))


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
        assert least(lambda: dyn.local_filter2d(x, weight, padding=1)) <= 90
        output, saved = dyn.OPERATORS["local_filter2d"].run((x, weight, None), {})
        needs = (True, True, False)
        assert least(lambda: dyn.OPERATORS["local_filter2d"].gradients(output, saved, needs)) <= 160


# Functions of this project that a call on a GPU enters, and that its backward function does. CuPy's own, of
# which the stand-in's are no measure, are not counted.
ON_A_GPU = {
    "local_filter2d": (55, 120),
    "ddf": (55, 120),
    "carafe": (50, 80),
    "involution": (55, 85),
    "dynamic_conv2d": (60, 105),
    "atom_conv2d": (95, 150),
    "sample_points": (110, 210),
    "deform_conv2d": (150, 275),
}


def entered(call: Callable[[], Any]) -> int:
    """Functions of this project that a warm call enters."""
    counts = []
    for _ in range(3):
        found = Counter[bool]()

        def step(frame: Any, event: str, _: Any, found: Counter[bool] = found) -> None:
            found[event == "call" and frame.f_code.co_filename.startswith(OURS)] += 1

        before = sys.getprofile()
        sys.setprofile(step)
        try:
            call()
        finally:
            sys.setprofile(before)
        counts.append(found[True])
    assert counts[-1] == counts[-2]
    return counts[-1]


@pytest.mark.parametrize("name", ON_A_GPU)
def test_a_call_on_a_gpu_enters_few_functions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where dask has been imported, whose arrays are then looked for."""
    monkeypatch.setitem(sys.modules, "dask.array", SimpleNamespace(Array=type("Array", (), {})))
    operator = dyn.OPERATORS[name]
    with standing_in() as cupy, idle():
        call = full_call(operator).astype("float32")
        params = {**call.params, **({"border": "constant"} if "border" in call.params else {})}
        positional, by_keyword = operator.arguments(tuple(map(cupy.asarray, call.arrays)))
        grad_output = cupy.asarray(call.grad_output)
        backward = getattr(dyn, f"{name}_backward")
        found = (
            entered(lambda: operator.function(*positional, **by_keyword, **params)),
            entered(lambda: backward(grad_output, *positional, **by_keyword, **params)),
        )
    assert all(map(operator_le, found, ON_A_GPU[name])), found


def test_a_call_that_was_checked_is_checked_where_it_differs(launches: list[tuple]) -> None:
    """Types, shapes, dtypes and parameters, one at a time; 1 is no bool though it equals True."""
    x, weight = arrays()
    good: dict[str, Any] = {"combine": "mul", "padding": (1, 1), "stride": 1}
    with dyn.use_backend("host"):
        for _ in range(2):
            dyn.local_filter2d(x, weight, **good)
        for changed, given in (
            ({"padding": (True, 1)}, (x, weight)),
            ({"stride": True}, (x, weight)),
            ({"stride": 1.0}, (x, weight)),
            ({"combine": "min"}, (x, weight)),
            ({}, (x.astype(np.float64), weight)),
            ({}, (x[:, :, :7], weight)),
            ({}, (x[0], weight)),
            ({}, (np.ma.masked_array(x), weight)),
            ({}, (x, weight.astype(">f4"))),
        ):
            with pytest.raises((TypeError, ValueError)):
                dyn.local_filter2d(*given, **{**good, **changed})
    count = len(launches)
    with pytest.raises(TypeError, match="backend 'cuda' cannot take x"), dyn.use_backend("cuda"):
        dyn.local_filter2d(x, weight, **good)
    assert len(launches) == count == 2


def test_where_arrays_lie_is_looked_at_in_each_call() -> None:
    with standing_in() as cupy, idle():
        x, weight = map(cupy.asarray, arrays())
        bytes_ = cupy.zeros(x.nbytes + 1, np.uint8)
        astray = bytes_[1:].view(np.float32).reshape(x.shape)
        with cupy.cuda.Device(1):
            elsewhere = cupy.asarray(np.zeros(weight.shape, np.float32))
        for _ in range(2):
            y = dyn.local_filter2d(x, weight, padding=1)
            dyn.local_filter2d_backward(y, x, weight, padding=1)
        with pytest.raises(ValueError, match="x begins at an address that is no multiple"):
            dyn.local_filter2d(astray, weight, padding=1)
        with pytest.raises(ValueError, match="grad_output begins at an address that is no multiple"):
            dyn.local_filter2d_backward(astray, x, weight, padding=1)
        with pytest.raises(ValueError, match=r"weight is on .* but x is on"):
            dyn.local_filter2d(x, elsewhere, padding=1)


def test_a_check_reads_no_values() -> None:
    """What it says holds for other values too; where a stream is captured, reading one is an error."""
    with standing_in() as cupy, cupy.cuda.Stream(non_blocking=True) as stream:
        calls = [full_call(each).astype("float32") for each in dyn.OPERATORS.values() if not each.numbers]
        params = Backend("cuda").params
        placed = [(tuple(map(cupy.asarray, call.arrays)), params(call.params)) for call in calls]
        stream.begin_capture()
        try:
            for call, on_device in zip(calls, placed, strict=True):
                assert call.operator._check(*on_device)[0] == "cuda"
        finally:
            stream.end_capture()
    assert len(calls) > 10


def test_what_a_form_gets_is_its_own(launches: list[tuple]) -> None:
    """Parameters that were kept from one call are not those of the next one."""
    x, weight = arrays()
    operator = dyn.OPERATORS["local_filter2d"]
    operator._passed.clear()  # the first call is one that nobody has made before
    with dyn.use_backend("host"):
        for _ in range(3):
            _, saved = operator.run((x, weight, None), {})
            assert saved.params["stride"] == (1, 1)
            saved.params["stride"] = (3, 3)


def test_few_kinds_of_calls_are_remembered(launches: list[tuple]) -> None:
    operator = dyn.OPERATORS["local_filter2d"]
    with dyn.use_backend("host"), patch.object(_operator, "MOST_CALLS", 3):
        operator._passed.clear()
        for size in range(1, 9):
            dyn.local_filter2d(
                np.zeros((1, 1, size, 8), np.float32), np.zeros((1, 1, 1, 1, size, 8), np.float32)
            )
            assert 0 < len(operator._passed) <= 3
