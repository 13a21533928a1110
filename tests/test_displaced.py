"""Identities, hard cases and golden numbers of `displaced_conv2d`."""

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
import pytest
from _contract import REFERENCE, Call, check, compare, derivative, evaluate
from conftest import KERNELS, Backend, backend_params
from scipy.ndimage import correlate, correlate1d

import dynarray as dyn

fast_backends = pytest.mark.parametrize("backend", backend_params(*KERNELS), indirect=True)
SHARP = 0.01  # a sigma whose blur leaves an image as it is


def run(backend: Backend, function: Callable, *arrays: Any, **params: Any) -> Any:
    """A public function on arrays of the backend, its result or results as NumPy arrays."""
    for name in ("sigma", "bias"):
        if isinstance(params.get(name), np.ndarray):
            params[name] = backend.array(params[name])
    result = function(*map(backend.array, arrays), **params)
    return type(result)(*map(backend.numpy, result)) if isinstance(result, tuple) else backend.numpy(result)


def close(actual: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12 * np.max(np.abs(expected), initial=0))


def bell(sigma: float) -> np.ndarray:
    """The taps of the blur."""
    offsets = np.arange(-ceil(5 * sigma), ceil(5 * sigma) + 1)
    taps = np.exp(-(offsets**2) / (2 * sigma**2))
    return taps / taps.sum()


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    """x blurred along its last two axes by SciPy."""
    taps = bell(sigma)
    return correlate1d(correlate1d(x, taps, axis=-1, mode="constant"), taps, axis=-2, mode="constant")


def make_call(
    rng: np.random.Generator, displacement: np.ndarray, size: tuple[int, int], **params: Any
) -> Call:
    """A call with these displacements, (O, C, G, 2), on two images."""
    sigma, (o, c, g, _) = params.pop("sigma", None), displacement.shape
    arrays = (
        rng.standard_normal((2, c, *size)),
        rng.standard_normal((o, c, g)),
        np.asarray(displacement, float),
        None if sigma is None else np.asarray(sigma, float),
        rng.standard_normal(o),
    )
    operator = dyn.OPERATORS["displaced_conv2d"]
    return Call(operator, arrays, params, rng.standard_normal((2, o, *size)))


# ---- golden numbers, worked out by hand

ROW = np.array([1.0, 2, 4, 8]).reshape(1, 1, 1, 4)
GRAD = np.array([1.0, 10, 100, 1000]).reshape(1, 1, 1, 4)


def unit(y: float, x: float) -> np.ndarray:
    return np.array([y, x], float).reshape(1, 1, 1, 2)


def test_golden_row(backend: Backend) -> None:
    """A quarter of a pixel to the right: 3/4 of a pixel and 1/4 of the next, times the weight 4."""
    weight = np.full((1, 1, 1), 4.0)
    y = run(backend, dyn.displaced_conv2d, ROW, weight, unit(0, 0.25), sigma=SHARP)
    # 3*1 + 2, 3*2 + 4, 3*4 + 8, 3*8
    assert y.ravel().tolist() == [5, 10, 20, 24]
    grads = run(backend, dyn.displaced_conv2d_backward, GRAD, ROW, weight, unit(0, 0.25), sigma=SHARP)
    # 3*1, 3*10 + 1, 3*100 + 10, 3*1000 + 100
    assert grads.x.ravel().tolist() == [3, 31, 310, 3100]
    assert grads.weight.ravel().tolist() == [(5 + 100 + 2000 + 24000) / 4]
    # Along x, 4 times the differences 1, 2, 4, -8. Along y, 4 times nothing less the interpolated pixels.
    assert grads.displacement.ravel().tolist() == [-26105, 4 * (1 + 20 + 400 - 8000)]
    assert grads.sigma is None and grads.bias is None


def test_golden_corner(backend: Backend) -> None:
    """All four corners: half of a row down, a quarter of a column to the left."""
    x = np.array([[16.0, 32], [64, 128]]).reshape(1, 1, 2, 2)
    y = run(backend, dyn.displaced_conv2d, x, np.ones((1, 1, 1)), unit(0.5, -0.25), sigma=SHARP)
    # Columns: 3/4 of 16, 3/4 of 32 + 1/4 of 16; 48 and 112 below. Then the means of rows, and half the last.
    assert y[0, 0].tolist() == [[(12 + 48) / 2, (28 + 112) / 2], [24, 56]]


def test_golden_blur(backend: Backend) -> None:
    """Where exp(-1/(2 sigma^2)) = 1/4 the taps are 1, 4^-1, 4^-4, 4^-9 and, the last, 4^-16 of their sum."""
    sigma = float(np.sqrt(1 / (2 * np.log(4))))
    assert ceil(5 * sigma) == 4
    x = np.zeros((1, 1, 1, 11))
    x[..., 5] = 1
    y = run(backend, dyn.displaced_conv2d, x, np.ones((1, 1, 1)), unit(0, 0), sigma=sigma)
    side = [4.0**-1, 4.0**-4, 4.0**-9, 4.0**-16]
    total = 1 + 2 * sum(side)
    # The column blurs by its centre tap alone: the rows above and below are outside.
    close(y.ravel(), np.array([0, *side[::-1], 1, *side, 0]) / total**2)


def test_right_derivative_at_whole_displacements(backend: Backend) -> None:
    for move, slope in ((0, [1, 2, 4, -8]), (1, [2, 4, -8, 0]), (-1, [1, 1, 2, 4]), (-4, [0, 0, 0, 1])):
        grads = run(
            backend,
            dyn.displaced_conv2d_backward,
            GRAD,
            ROW,
            np.ones((1, 1, 1)),
            unit(0, move),
            sigma=SHARP,
        )
        assert grads.displacement[..., 1].item() == (GRAD.ravel() * slope).sum()


# ---- identities


def test_whole_displacements_without_blur_are_a_sparse_convolution(
    backend: Backend, rng: np.random.Generator
) -> None:
    x, weight = rng.standard_normal((2, 3, 9, 11)), rng.standard_normal((4, 3, 2))
    displacement = rng.integers(-3, 4, (4, 3, 2, 2))
    kernel = np.zeros((4, 3, 7, 7))
    for o, c, g in np.ndindex(weight.shape):
        y, x_ = displacement[o, c, g]
        kernel[o, c, y + 3, x_ + 3] += weight[o, c, g]
    expected = np.zeros((2, 4, 9, 11))
    for n, o, c in np.ndindex(2, 4, 3):
        expected[n, o] += correlate(x[n, c], kernel[o, c], mode="constant")
    close(run(backend, dyn.displaced_conv2d, x, weight, displacement.astype(float), sigma=SHARP), expected)


def test_one_unit_per_tap_is_a_convolution_of_the_blurred_input(
    backend: Backend, rng: np.random.Generator
) -> None:
    x, weight, bias = (
        rng.standard_normal((2, 3, 8, 9)),
        rng.standard_normal((4, 3, 9)),
        rng.standard_normal(4),
    )
    grid = np.stack(np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1], indexing="ij"), axis=-1).reshape(9, 2)
    displacement = np.broadcast_to(grid, (4, 3, 9, 2))
    image, expected = blurred(x, 0.7), np.zeros((2, 4, 8, 9)) + bias[:, None, None]
    for n, o, c in np.ndindex(2, 4, 3):
        expected[n, o] += correlate(image[n, c], weight[o, c].reshape(3, 3), mode="constant")
    close(run(backend, dyn.displaced_conv2d, x, weight, displacement, sigma=0.7, bias=bias), expected)


def test_a_common_displacement_shifts_the_output(backend: Backend, rng: np.random.Generator) -> None:
    x = np.zeros((1, 2, 20, 24))
    x[:, :, 8:12, 8:16] = rng.standard_normal((1, 2, 4, 8))
    weight, displacement = rng.standard_normal((3, 2, 2)), rng.uniform(-2, 2, (3, 2, 2, 2))
    y = run(backend, dyn.displaced_conv2d, x, weight, displacement)
    moved = run(backend, dyn.displaced_conv2d, x, weight, displacement + np.array([2.0, -3.0]))
    close(moved, np.roll(y, (-2, 3), axis=(2, 3)))


def test_units_add_up(backend: Backend, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((1, 2, 6, 7)), rng.standard_normal((3, 2, 6))
    displacement = rng.uniform(-4, 4, (3, 2, 6, 2))
    parts = (
        run(backend, dyn.displaced_conv2d, x, weight[..., some], displacement[..., some, :])
        for some in (slice(0, 1), slice(1, 3), slice(3, 6))
    )
    close(run(backend, dyn.displaced_conv2d, x, weight, displacement), sum(parts))


def test_a_number_for_sigma_is_the_same_and_constant(backend: Backend, rng: np.random.Generator) -> None:
    call = make_call(rng, rng.uniform(-3, 3, (3, 2, 2, 2)), (6, 7), sigma=0.8)
    x, weight, displacement, sigma, bias = call.arrays
    y = run(backend, dyn.displaced_conv2d, x, weight, displacement, sigma=sigma, bias=bias)
    with_array = run(
        backend, dyn.displaced_conv2d_backward, y, x, weight, displacement, sigma=sigma, bias=bias
    )
    for number in (0.8, np.float64(0.8)):
        np.testing.assert_array_equal(
            run(backend, dyn.displaced_conv2d, x, weight, displacement, sigma=number, bias=bias), y
        )
        grads = run(
            backend, dyn.displaced_conv2d_backward, y, x, weight, displacement, sigma=number, bias=bias
        )
        assert grads.sigma is None
        np.testing.assert_array_equal(grads.x, with_array.x)


# ---- hard cases

MOVES = {
    "inside": [0.3, -0.4],
    "across the border": [3.5, -2.25],
    "almost outside": [5.999, -6.999],
    "outside": [6.001, 0.0],
    "far outside": [-3e5, 40.5],
    "infinitely far": [0.5, -np.inf],
    "whole": [2.0, -1.0],
    "whole, at the border": [-5.0, 6.0],
    "just below a whole number": [np.nextafter(1.0, 0), -1e-17],
}


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("moves", MOVES)
def test_displacements_everywhere(
    backend: Backend, rng: np.random.Generator, moves: str, sigma: float
) -> None:
    """One unit that lies there among others that do not."""
    displacement = rng.uniform(-2, 2, (3, 2, 2, 2))
    displacement[1, 0, 1] = MOVES[moves]
    call = make_call(rng, displacement, (6, 7), sigma=sigma)
    actual, expected = evaluate(call, backend), evaluate(call, REFERENCE)
    compare(call, "output", actual.output, expected.output, 1e-12)
    for index, gradient in enumerate(actual.gradients):
        compare(call, f"gradient {index}", gradient, expected.gradients[index], 1e-11)
    if np.isfinite(displacement).all():
        for index, gradient in enumerate(actual.gradients):
            if index == 2 and "whole" in moves:
                continue  # a complex step takes no side at a kink, and 1e-17 below it is none to a float
            direction = np.copysign(rng.uniform(0.5, 1, gradient.shape), gradient)
            slope = np.array(derivative(call, index, direction))
            compare(call, f"derivative {index}", np.vdot(gradient, direction), slope, 1e-9)


@fast_backends
@pytest.mark.parametrize("size", [(1, 1), (3, 100), (100, 3), (37, 41), (8, 33)])
@pytest.mark.parametrize("far", [0.9, 9, 200])
def test_tiles_and_aprons(
    backend: Backend, rng: np.random.Generator, size: tuple[int, int], far: float
) -> None:
    """Images beside the sizes of tiles, units beyond what a tile has around it, channels beyond a chunk."""
    check(make_call(rng, rng.uniform(-far, far, (5, 17, 1, 2)), size, sigma=0.4), backend)
    check(make_call(rng, rng.uniform(-far, far, (35, 3, 5, 2)), size, sigma=0.4), backend)


@pytest.mark.parametrize(("images", "size"), [(3, (9, 12)), (1, (23, 5)), (19, (3, 4))])
def test_gradients_of_many_units_of_a_channel(
    backend: Backend, rng: np.random.Generator, images: int, size: tuple[int, int]
) -> None:
    """The CPU puts pixels and output gradients into cells for these: some images, or parts of one."""
    call = make_call(rng, rng.uniform(-4, 4, (45, 2, 3, 2)), size)
    x, grad_output = (rng.standard_normal((images, channels, *size)) for channels in (2, 45))
    check(Call(call.operator, (x, *call.arrays[1:]), {}, grad_output), backend)


def test_blur_wider_than_the_image(backend: Backend, rng: np.random.Generator) -> None:
    for sigma in (1.0, 7.0, 300.0):
        check(make_call(rng, rng.uniform(-2, 2, (2, 2, 2, 2)), (3, 2), sigma=sigma), backend)


def test_blur_along_one_axis(rng: np.random.Generator) -> None:
    """The kernels take a radius per axis: with 0 along y, lines blur by themselves, as signals do."""
    from dynarray.cpu import displaced

    x, grad = rng.standard_normal((2, 3, 6, 19)), rng.standard_normal((2, 4, 6, 19))
    weight, displacement, sigma = rng.standard_normal((4, 3, 2)), rng.uniform(-3, 3, (4, 3, 2, 2)), 0.8

    def forward(spread: float) -> tuple:
        arrays = (x, weight, displacement, np.asarray(spread), None)
        return displaced.forward(*arrays, spread=spread, radius=(0, 4), displacement_gradient="exact")

    def along_rows(image: np.ndarray) -> np.ndarray:
        return correlate1d(image, bell(sigma), axis=-1, mode="constant")

    y, saved = forward(sigma)
    sharp = Call(
        dyn.OPERATORS["displaced_conv2d"],
        (along_rows(x), weight, displacement, np.asarray(SHARP), None),
        {},
        grad,
    )
    expected = evaluate(sharp, REFERENCE)
    close(y, expected.output)
    needs = (True, True, True, True, False)
    grads = displaced.backward(grad, saved, needs, spread=sigma, radius=(0, 4), displacement_gradient="exact")
    close(grads[0], along_rows(expected.gradients[0]))
    close(grads[1], expected.gradients[1])
    close(grads[2], expected.gradients[2])
    rise = np.vdot(grad, forward(sigma + 1e-5)[0] - forward(sigma - 1e-5)[0])
    np.testing.assert_allclose(grads[3], rise / 2e-5, rtol=1e-7)


@pytest.mark.parametrize("sigma", [1e-3, 1e-200, 5e-324])
def test_no_blur_at_all(backend: Backend, rng: np.random.Generator, sigma: float) -> None:
    call = make_call(rng, rng.uniform(-2, 2, (2, 2, 2, 2)), (5, 6), sigma=sigma)
    result, sharp = evaluate(call, backend), make_call(rng, call.arrays[2], (5, 6), sigma=SHARP)
    arrays = (*call.arrays[:3], sharp.arrays[3], call.arrays[4])
    np.testing.assert_array_equal(
        result.output, evaluate(Call(call.operator, arrays, {}, call.grad_output), backend).output
    )
    assert result.gradients[3] == 0


@pytest.mark.parametrize("empty", ["x", "outputs", "channels", "units"])
def test_nothing_to_add_up(backend: Backend, rng: np.random.Generator, empty: str) -> None:
    o, c, g = 0 if empty == "outputs" else 2, 0 if empty == "channels" else 3, 0 if empty == "units" else 2
    x = rng.standard_normal((0 if empty == "x" else 2, c, 4, 5))
    arrays = x, rng.standard_normal((o, c, g)), rng.standard_normal((o, c, g, 2))
    bias = rng.standard_normal(o)
    y = run(backend, dyn.displaced_conv2d, *arrays, bias=bias)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], (len(x), o, 4, 5)))
    grads = run(backend, dyn.displaced_conv2d_backward, np.ones_like(y), *arrays, bias=bias)
    np.testing.assert_array_equal(grads.bias, np.full(o, 20.0 * len(x)))
    assert not np.any(grads.x) and grads.weight.shape == (o, c, g) and not np.any(grads.weight)


@pytest.mark.parametrize("place", ["weight", "displacement"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_number_that_is_none_stays_in_its_output_channel(
    backend: Backend, rng: np.random.Generator, place: str, value: float
) -> None:
    call = make_call(rng, rng.uniform(-3, 3, (4, 3, 2, 2)), (6, 7), sigma=0.5)
    clean = evaluate(call, backend).output
    spoiled = {"weight": call.arrays[1], "displacement": call.arrays[2]}[place]
    spoiled[2, 1, 0, ...] = value
    y = evaluate(call, backend).output
    if place == "displacement" and value == np.inf:  # it reads zeros
        call.arrays[1][2, 1, 0], spoiled[2, 1, 0] = 0, 0
        close(y, evaluate(call, backend).output)
    else:
        assert not np.isfinite(y[:, 2]).any()
    np.testing.assert_array_equal(np.delete(y, 2, axis=1), np.delete(clean, 2, axis=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, r"sigma must be positive and at most 10000, got 0\.0"),
        ({"sigma": -0.5}, r"sigma must be positive .*, got -0\.5"),
        ({"sigma": float("nan")}, r"sigma must be positive .*, got nan"),
        ({"sigma": float("inf")}, r"sigma must be positive .*, got inf"),
        ({"sigma": np.array(0.0)}, r"sigma must be positive .*, got 0\.0"),
        ({"sigma": np.array(-1.0)}, r"sigma must be positive .*, got -1\.0"),
        ({"sigma": np.array(np.nan)}, r"sigma must be positive .*, got nan"),
        ({"sigma": np.ones(1)}, r"sigma must have shape \(\), got \(1,\)"),
        ({"displacement": np.ones((2, 3, 4, 3))}, r"displacement must .* \(2, 3, 4, 2\), got \(2, 3, 4, 3\)"),
        ({"displacement": np.ones((2, 3, 4))}, r"displacement must have .*\(O, C, G, 2\) .* got \(2, 3, 4\)"),
        ({"weight": np.ones((2, 5, 4))}, r"weight must .* \(O, C, G\) = \(O, 3, G\), got \(2, 5, 4\)"),
        ({"bias": np.ones(3)}, r"bias must have shape \(O\) = \(2\), got \(3,\)"),
    ],
)  # fmt: skip
def test_messages(arguments: dict[str, Any], message: str) -> None:
    given = {"x": np.ones((1, 3, 5, 6)), "weight": np.ones((2, 3, 4)), "displacement": np.ones((2, 3, 4, 2))}
    with pytest.raises(ValueError, match=rf"^displaced_conv2d: {message}"):
        dyn.displaced_conv2d(**{**given, **arguments})


def test_sigma_of_a_wrong_kind_is_refused() -> None:
    arrays = np.ones((1, 3, 5, 6)), np.ones((2, 3, 4)), np.ones((2, 3, 4, 2))
    for sigma in (True, 1j, "1", [0.5], np.array(0.5, np.float32), np.array(1)):
        with pytest.raises(TypeError, match=r"^displaced_conv2d: sigma"):
            dyn.displaced_conv2d(*arrays, sigma=sigma)  # type: ignore[arg-type]


# ---- the smooth gradient


def smooth_slopes(x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """x (H, W) correlated with the derivative of the bell along one axis and the bell along the other."""
    taps, offsets = bell(sigma), np.arange(-ceil(5 * sigma), ceil(5 * sigma) + 1)
    slope = taps * offsets / sigma**2
    return (
        correlate1d(correlate1d(x, slope, axis=0, mode="constant"), taps, axis=1, mode="constant"),
        correlate1d(correlate1d(x, taps, axis=0, mode="constant"), slope, axis=1, mode="constant"),
    )


def test_smooth_gradient_samples_the_derivative_of_the_bell(
    backend: Backend, rng: np.random.Generator
) -> None:
    call = make_call(
        rng, rng.uniform(-3, 3, (2, 2, 2, 2)).round(), (7, 8), sigma=0.6, displacement_gradient="smooth"
    )
    x, weight, displacement, *_ = call.arrays
    grads = evaluate(call, backend).gradients
    for o, c, g in np.ndindex(weight.shape):
        for axis in range(2):
            total = 0.0
            for n, h, w in np.ndindex(2, 7, 8):
                slope = smooth_slopes(x[n, c], 0.6)[axis]
                y_, x_ = (np.array([h, w]) + displacement[o, c, g]).astype(int)
                if 0 <= y_ < 7 and 0 <= x_ < 8:
                    total += call.grad_output[n, o, h, w] * slope[y_, x_]
            assert abs(grads[2][o, c, g, axis] - weight[o, c, g] * total) <= 1e-11 * abs(grads[2]).max()


def test_smooth_changes_the_displacement_gradient_alone(backend: Backend, rng: np.random.Generator) -> None:
    call = make_call(rng, rng.uniform(-3, 3, (3, 2, 2, 2)), (9, 8), sigma=0.6)
    exact = evaluate(call, backend)
    smooth_call = Call(call.operator, call.arrays, {"displacement_gradient": "smooth"}, call.grad_output)
    smooth, expected = evaluate(smooth_call, backend), evaluate(smooth_call, REFERENCE)
    compare(smooth_call, "displacement", smooth.gradients[2], expected.gradients[2], 1e-11)
    assert abs(smooth.gradients[2] - exact.gradients[2]).max() > 0.01 * abs(exact.gradients[2]).max()
    for index in (0, 1, 3, 4):
        np.testing.assert_array_equal(smooth.gradients[index], exact.gradients[index])
    for needs in ((False, True, False, False, False), (False, False, True, False, False)):
        only = evaluate(smooth_call, backend, needs)
        index = needs.index(True)
        np.testing.assert_array_equal(only.gradients[index], smooth.gradients[index])


def test_smooth_gradient_is_that_of_a_wide_continuous_unit(
    backend: Backend, rng: np.random.Generator
) -> None:
    """Where the blur is wide against pixels, both rules come to the slope of the same smooth function."""
    call = make_call(rng, rng.uniform(-2, 2, (1, 1, 3, 2)), (40, 40), sigma=3.0)
    x = call.arrays[0]
    x[:, :, :12], x[:, :, -12:], x[..., :12], x[..., -12:] = 0, 0, 0, 0
    smooth_call = Call(
        call.operator, call.arrays, {"displacement_gradient": "smooth"}, call.grad_output * 0 + 1
    )
    weights = np.linspace(0, 1, 40) ** 2  # a gradient of the output that does not cancel
    smooth_call = Call(call.operator, call.arrays, smooth_call.params, smooth_call.grad_output * weights)
    exact_call = Call(call.operator, call.arrays, {}, smooth_call.grad_output)
    exact, smooth = evaluate(exact_call, backend).gradients[2], evaluate(smooth_call, backend).gradients[2]
    assert abs(exact - smooth).max() <= 0.03 * abs(exact).max()


# ---- long sums


@fast_backends
def test_gradients_of_units_in_float32_are_as_good_as_sums_in_float64(
    backend: Backend, rng: np.random.Generator
) -> None:
    """Within twice the error of float64 sums over the image blurred in float32, rounded once."""
    displacement = rng.uniform(-3, 3, (12, 8, 2, 2)).astype(np.float32).astype(float)
    call = make_call(rng, displacement, (96, 112), sigma=np.float32(0.5)).astype(np.float32)
    result, exact = evaluate(call, backend), evaluate(call.astype(np.float64), REFERENCE)
    taps = bell(0.5).astype(np.float32)
    image = correlate1d(
        correlate1d(call.arrays[0], taps, axis=-1, mode="constant"), taps, axis=-2, mode="constant"
    )
    assert image.dtype == np.float32
    sharp = (image, *call.arrays[1:3], np.array(SHARP), call.arrays[4])
    summed = evaluate(Call(call.operator, sharp, {}, call.grad_output).astype(np.float64), REFERENCE)
    for index in (1, 2):
        right = exact.gradients[index]
        rounded = summed.gradients[index].astype(np.float32)
        error, simple = (np.sqrt(np.mean((mine - right) ** 2)) for mine in (result.gradients[index], rounded))
        assert error <= 2 * simple, f"gradient {index}: off by {error:.3g}, float64 sums by {simple:.3g}"
