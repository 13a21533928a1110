"""`deform_conv1d` on the CPU, whichever way it goes: of a point between two pixels these alone are read."""

from typing import Any

import numpy as np
import pytest
from _contract import Call, check, check_low_precision, check_threads
from conftest import Backend, backend_params
from test_deform import call_of, check_not_finite

import dynarray as dyn

cpu = pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)

# Names of ways, and what goes there: few channels of a group, few samples of a position, tiles, few outputs.
WAYS: dict[str, dict[str, Any]] = {
    "few channels": {"c": 3, "o": 5, "length": 150, "taps": 5},
    "few samples": {"c": 18, "o": 7, "length": 150, "taps": 3},
    "two sets of many": {"c": 36, "o": 20, "length": 70, "taps": 5, "offset_groups": 2},
    "few outputs": {"c": 40, "o": 2, "length": 70, "taps": 3},
    "shorter than a vector": {"c": 4, "o": 6, "length": 5, "taps": 3},
}


def line_of(
    rng: np.random.Generator, *, c: int, o: int, length: int, taps: int, offset_groups: int = 1, **steps: int
) -> Call:
    """A call of `deform_conv1d`, of which points come to lie outside, too."""
    beside = {"padding": 0, "stride": 1, "dilation": 1}  # of the axis that a line does not have
    both = {name: (beside[name], step) for name, step in steps.items()}
    plane = call_of(rng, 3, c, o, (1, length), (1, taps), offset_groups=offset_groups, **both)
    x, offset, weight, mask, bias = plane.arrays
    arrays = x[:, :, 0], offset[:, :, 0, :, 1, 0].copy(), weight[:, :, 0], mask[:, :, 0, :, 0], bias
    return Call(dyn.OPERATORS["deform_conv1d"], arrays, steps, plane.grad_output[:, :, 0])


@cpu
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [{"padding": 4}, {"stride": 2, "dilation": 2, "padding": 3}])
def test_is_the_definition(
    backend: Backend, rng: np.random.Generator, way: str, steps: dict[str, int]
) -> None:
    call = line_of(rng, **WAYS[way], **steps)
    check(call, backend)
    check_low_precision(call, backend, np.float32)
    check_threads(call.astype(np.float32), backend)


@cpu
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["x", "offset", "weight", "mask", "bias", "grad_output"])
def test_not_finite_as_in_the_definition(
    backend: Backend, rng: np.random.Generator, way: str, name: str, number: float
) -> None:
    check_not_finite(line_of(rng, **WAYS[way], padding=2), backend, rng, name, number)
