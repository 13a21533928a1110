"""How `displaced_conv1d` is cut into pieces on the CPU: of lines, of channels, of taps, of images."""

import numpy as np
import pytest
from _contract import REFERENCE, Call, check, check_low_precision, check_same_bits, evaluate, threads
from conftest import Backend, backend_params

import dynarray as dyn
from dynarray.cpu.engine import parallel

on_the_cpu = pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
# Images, channels, outputs, length, units, and how far these lead.
SHAPES = {
    "more sources than are added up at once": (1, 70, 5, 300, 2, 4.0),
    "many short lines": (40, 3, 4, 37, 1, 4.0),
    "very short lines of many channels": (3, 17, 33, 7, 2, 3.0),
    "one pixel": (2, 3, 20, 1, 2, 2.0),
    "lines in several pieces": (2, 2, 3, 2100, 3, 6.0),
    "many taps": (2, 3, 4, 90, 4, 20.0),
    "two taps": (2, 3, 5, 50, 2, 0.4),
    "units beyond the ends": (1, 2, 3, 12, 3, 16.0),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def make_call(
    rng: np.random.Generator, shape: tuple[int, int, int, int, int, float], sigma: float = 0.5
) -> Call:
    images, channels, outputs, length, units, far = shape
    displacement = rng.uniform(-far, far, (outputs, channels, units))
    displacement = np.where(rng.random(displacement.shape) < 0.2, np.round(displacement), displacement)
    arrays = (
        rng.standard_normal((images, channels, length)),
        rng.standard_normal((outputs, channels, units)),
        displacement,
        np.array(sigma),
        rng.standard_normal(outputs),
    )
    grad_output = rng.standard_normal((images, outputs, length))
    return Call(dyn.OPERATORS["displaced_conv1d"], arrays, {}, grad_output)


@on_the_cpu
@each_shape
@pytest.mark.parametrize("gradient", ["exact", "smooth"])
def test_pieces_make_the_whole(
    backend: Backend, rng: np.random.Generator, shape: tuple, gradient: str
) -> None:
    call = make_call(rng, shape)
    call.params["displacement_gradient"] = gradient
    actual, expected = evaluate(call, backend), evaluate(call, REFERENCE)
    pairs = zip((actual.output, *actual.gradients), (expected.output, *expected.gradients), strict=True)
    for mine, right in pairs:
        np.testing.assert_allclose(mine, right, rtol=1e-11, atol=1e-11 * np.abs(right).max())


@on_the_cpu
@pytest.mark.parametrize("sigma", [0.01, 6.0, 300.0])
def test_blurs_of_any_width(backend: Backend, rng: np.random.Generator, sigma: float) -> None:
    check(make_call(rng, (2, 3, 4, 150, 2, 3.0), sigma), backend)


@on_the_cpu
@each_shape
def test_pieces_have_the_same_bits_in_any_number_of_threads(
    backend: Backend, rng: np.random.Generator, shape: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "SMALL", 0)  # or these calls would stay in one thread
    call = make_call(rng, shape).astype("float32")
    with threads(1):
        one = evaluate(call, backend)
    for count in (2, 7):
        with threads(count):
            check_same_bits(call, one, evaluate(call, backend))


@on_the_cpu
@pytest.mark.parametrize(
    "shape", [(1, 192, 3, 130, 4, 2.0), (2, 3, 4, 5000, 2, 4.0), (48, 3, 4, 150, 2, 4.0)]
)
def test_long_sums_are_as_good_as_the_formula(
    backend: Backend, rng: np.random.Generator, shape: tuple
) -> None:
    call = make_call(rng, shape)
    arrays = (*call.arrays[:3], None, None)
    check_low_precision(Call(call.operator, arrays, {}, call.grad_output), backend, np.dtype("float32"))


@on_the_cpu
@pytest.mark.parametrize("displacement", [3.0, -3.0, 2.5, 0.0])
@pytest.mark.parametrize("place", range(8))
def test_what_is_read_times_zero_counts(
    backend: Backend, rng: np.random.Generator, displacement: float, place: int
) -> None:
    """A unit at a whole displacement reads the pixel behind it too, times 0: NaN if that is none."""
    call = make_call(rng, (1, 1, 1, 8, 1, 1.0), 0.01)
    call.arrays[2][...] = displacement
    call.grad_output[0, 0, place] = np.nan
    actual, expected = evaluate(call, backend), evaluate(call, REFERENCE)
    np.testing.assert_array_equal(np.isnan(actual.gradients[0]), np.isnan(expected.gradients[0]))


@on_the_cpu
@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("displacement", [0.0, -1.0, 0.25])
def test_an_infinite_sum_beside_a_finite_one(backend: Backend, value: float, displacement: float) -> None:
    """Of a line of one pixel one of the two pixels that a unit reads is outside, and 0."""
    x, weight = np.full((1, 1, 1), value), np.full((1, 1, 1), 2.0)
    arrays = x, weight, np.full((1, 1, 1), displacement), 0.015625, None
    call = Call(dyn.OPERATORS["displaced_conv1d"], arrays, {}, np.ones((1, 1, 1)))
    with np.errstate(all="ignore"):
        actual, expected = evaluate(call, backend).gradients, evaluate(call, REFERENCE).gradients
    for k in range(1, 3):
        np.testing.assert_array_equal(actual[k], expected[k])
