"""How `displaced_conv2d` is cut into blocks on a GPU: tiles, sources that blocks share, units far away."""

import numpy as np
import pytest
from _contract import REFERENCE, Call, check, check_low_precision, evaluate
from conftest import Backend, backend_params

import dynarray as dyn
from rawkernels import displaced

kernels = pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
# With no processors a block has all sources of a sum, with many one; it adds up so many units at a time.
shares = pytest.mark.parametrize(("processors", "summed"), [(0, 128), (0, 6), (7, 6), (132, 128)])
SIZES = {"a line": (1, 300), "low": (17, 33), "high": (29, 30)}


def make_call(rng: np.random.Generator, size: tuple[int, int], units: int = 3) -> Call:
    """More targets and sources than a block has warps, both ways; the last unit of each pair leads far."""
    inputs, outputs = 9, 10
    displacement = rng.uniform(-3, 3, (outputs, inputs, units, 2))
    displacement[:, 1, -1] = rng.uniform(-0.9, 0.9, (outputs, 2)) * size
    arrays = (
        rng.standard_normal((2, inputs, *size)),
        rng.standard_normal((outputs, inputs, units)),
        displacement,
        np.array(0.4),
        rng.standard_normal(outputs),
    )
    return Call(dyn.OPERATORS["displaced_conv2d"], arrays, {}, rng.standard_normal((2, outputs, *size)))


@kernels
@shares
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_blocks_share_sources(
    backend: Backend,
    rng: np.random.Generator,
    processors: int,
    summed: int,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(displaced, "_PROCESSORS", processors)
    monkeypatch.setattr(displaced, "_SUMMED", summed)
    check(make_call(rng, size), backend)


@kernels
@shares
def test_what_is_not_finite_is_the_same_however_sources_are_shared(
    backend: Backend, rng: np.random.Generator, processors: int, summed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of parts can be NaN where the sum is an infinity."""
    monkeypatch.setattr(displaced, "_PROCESSORS", processors)
    monkeypatch.setattr(displaced, "_SUMMED", summed)
    call = make_call(rng, (17, 33))
    call.arrays[0][0, 2, 8, 9] = np.inf
    call.arrays[1][3, 4, 1] = -np.inf
    call.arrays[2][5, 6, 0, 1] = np.nan
    call.grad_output[1, 7, 3, 2] = -np.inf
    with np.errstate(all="ignore"):
        actual, expected = evaluate(call, backend), evaluate(call, REFERENCE)
    for mine, right in zip(
        (actual.output, *actual.gradients), (expected.output, *expected.gradients), strict=True
    ):
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(mine), kind(right))


@kernels
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_long_sums_of_one_block_are_as_good_as_the_formula(
    backend: Backend, rng: np.random.Generator, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block has 192 sources with 4 units each, and adds them up in float32, which 16 bits cannot hold."""
    monkeypatch.setattr(displaced, "_PROCESSORS", 0)
    arrays = (
        rng.standard_normal((1, 192, 5, 6)),
        rng.standard_normal((3, 192, 4)),
        rng.uniform(-2, 2, (3, 192, 4, 2)),
        None,
        None,
    )
    call = Call(dyn.OPERATORS["displaced_conv2d"], arrays, {}, rng.standard_normal((1, 3, 5, 6)))
    check_low_precision(call, backend, np.dtype(dtype))
