"""Positions far from the origin are exact: whole pixels and fractions, which no float holds as one number.

At the millionth pixel neighbouring numbers of float32 are 1/16 apart, and already at the thousandth a point
that lies a hundred-thousandth of a pixel before it would have the derivative of the other side. The results
here are compared with the definitions carried out in fractions of whole numbers, without any rounding.
Images are one pixel high, or wide. `sample_points` takes positions as they are given: those are exact, too.
"""

import ctypes
import math
import platform
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from _contract import Call, Result, evaluate, parts, size_of
from conftest import Backend, backend_params

from autodiff import functions as F
from autodiff import grad
from dynarray import OPERATORS

FAR = [1_000, 16_384, pytest.param(1_000_000, marks=pytest.mark.slow)]
STEPS = [0.3, -0.3, 1e-3, -1e-5, 1e-7, -1e-7, 1e-10, -1e-10, 0.0]  # as far as neither reaches the next pixel
LONG = [1.7, -2.0, 2.0, -1.0]
SIGMA = Fraction(3, 8)  # whose taps reach two pixels
RTOL = {"float32": 4e-6, "float64": 1e-14}

dtypes = pytest.mark.parametrize("dtype", RTOL)


def around(base: int, step: float, *, before: int | None = None) -> list[tuple[int, Fraction, int]]:
    """The two pixels around base + step: which, its share, and the derivative of that by the step.

    None for a point that lies at the pixel `before` the first one, and so does not reach the image yet.
    """
    whole = math.floor(step)
    rest = Fraction(float(step)) - whole
    if base + whole == before and not rest:
        return []
    return [(base + whole, 1 - rest, -1), (base + whole + 1, rest, 1)]


class Exact:
    """An array of fractions, most of which are 0, and of which only some can be read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.values: dict[tuple, Fraction] = defaultdict(Fraction)

    def __getitem__(self, index: tuple) -> Fraction:
        return self.values[index]

    def __setitem__(self, index: tuple, value: Fraction) -> None:
        self.values[index] = value

    def rounded(self) -> np.ndarray:
        """In double precision."""
        result = np.zeros(self.shape)
        for index, value in self.values.items():
            result[index] = value
        return result


def exact(array: np.ndarray, *index: int) -> Fraction:
    """One element, 0 outside."""
    inside = all(0 <= i < size for i, size in zip(index, array.shape, strict=True))
    return Fraction(float(array[index])) if inside else Fraction(0)


def add(array: Exact, index: tuple, value: Fraction) -> None:
    """Add to one element; what lies outside is lost."""
    if all(0 <= i < size for i, size in zip(index, array.shape, strict=True)):
        array[index] += value


def exact_deform(call: Call) -> Result:
    """`deform_conv2d` of one image one pixel high, with one group, and its gradients."""
    x, offset, weight, mask, bias = call.arrays
    padding, dilation = call.params["padding"][1], call.params["dilation"][1]
    y, grads = Exact(call.grad_output.shape), [Exact(array.shape) for array in call.arrays]
    grad_x, grad_offset, grad_weight, grad_mask, grad_bias = grads
    outputs, channels, _, taps = weight.shape
    for o, p in product(range(outputs), range(offset.shape[6])):
        add(y, (0, o, 0, p), exact(bias, o))
        add(grad_bias, (o,), exact(call.grad_output, 0, o, 0, p))
    for c, b, p in product(range(channels), range(taps), range(offset.shape[6])):
        d = c // (channels // offset.shape[1])
        dy, dx = ((0, d, 0, b, axis, 0, p) for axis in range(2))
        factor = exact(mask, 0, d, 0, b, 0, p)
        by_output = {o: exact(call.grad_output, 0, o, 0, p) for o in range(outputs)}
        back = sum(by_output[o] * exact(weight, o, c, 0, b) for o in range(outputs))
        rows = around(0, offset[dy], before=-1)
        columns = around(p - padding + b * dilation, offset[dx], before=-1)
        for (row, share_y, slope_y), (column, share_x, slope_x) in product(rows, columns):
            value = exact(x, 0, c, row, column)
            add(grad_x, (0, c, row, column), back * factor * share_y * share_x)
            add(grad_offset, dy, back * factor * slope_y * share_x * value)
            add(grad_offset, dx, back * factor * share_y * slope_x * value)
            add(grad_mask, (0, d, 0, b, 0, p), back * share_y * share_x * value)
            for o in range(outputs):
                add(grad_weight, (o, c, 0, b), by_output[o] * factor * share_y * share_x * value)
                add(y, (0, o, 0, p), exact(weight, o, c, 0, b) * factor * share_y * share_x * value)
    return Result(y.rounded(), tuple(gradient.rounded() for gradient in grads))


def deform_call(rng: np.random.Generator, far: int, dtype: str) -> Call:
    """Two taps, one near the origin and one far from it, both across an end of the image."""
    tiny = float(np.finfo(dtype).smallest_subnormal)
    small, size = [*STEPS, tiny, -tiny], (1, 2, 1, 2, 2, 1, 11)
    offset = rng.permuted(np.broadcast_to(small, size), axis=-1)
    reaching = rng.random((1, 2, 1, 2, 1, 11)) < 0.1
    offset[:, :, :, :, 1][reaching] = rng.choice(LONG, int(reaching.sum()))
    arrays = (
        rng.standard_normal((1, 2, 1, far + 9)),
        offset,
        rng.standard_normal((3, 2, 1, 2)),
        rng.uniform(0.5, 2, (1, 2, 1, 2, 1, 11)),
        rng.standard_normal(3),
    )
    params = {"padding": (0, 1), "dilation": (1, far)}
    return Call(OPERATORS["deform_conv2d"], arrays, params, rng.standard_normal((1, 3, 1, 11))).astype(dtype)


def turned(call: Call) -> Call:
    """The same with rows and columns exchanged."""
    x, offset, weight, mask, bias = call.arrays
    offset = offset.swapaxes(2, 3)[:, :, :, :, ::-1].swapaxes(5, 6)
    others = (weight.swapaxes(2, 3), mask.swapaxes(2, 3).swapaxes(4, 5), bias)
    params = {name: pair[::-1] for name, pair in call.params.items()}
    grad_output = call.grad_output.swapaxes(2, 3)
    return replace(call, arrays=(x.swapaxes(2, 3), offset, *others), params=params, grad_output=grad_output)


def on_a_line(call: Call) -> Call:
    """The same operator on a line, for which offsets along y are 0."""
    x, offset, weight, mask, bias = call.arrays
    arrays = (x[:, :, 0], offset[:, :, 0, :, 1, 0], weight[:, :, 0], mask[:, :, 0, :, 0], bias)
    params = {name: pair[1] for name, pair in call.params.items()}
    operator = OPERATORS["deform_conv1d"]
    return replace(
        call, operator=operator, arrays=arrays, params=params, grad_output=call.grad_output[:, :, 0]
    )


def require(call: Call, actual: Result, expected: Result, dtype: str, rtol: float | None = None) -> None:
    """Require a rounding error and no more, of what the contract measures the errors of each result against.

    The gradient of sigma is one number, of terms that may cancel; other backends draw other terms.
    """
    for what, mine, right in parts(call, actual, expected):
        assert mine.dtype == dtype and mine.shape == right.shape, what
        error, allowed = np.abs(mine - right), (rtol or RTOL[dtype]) * size_of(call, what, right)
        assert error.max() <= allowed, f"{what} is off by {error.max():.3g}, allowed {allowed:.3g}"


def composite(call: Call) -> Result:
    """The definition in elementary functions, and its gradients by the tape."""
    operator = call.operator
    checked = operator.check(*call.arrays, **{**operator.defaults, **call.params})

    def output(*arrays: Any) -> Any:
        return operator.compose(F, arrays, checked)

    def loss(*arrays: Any) -> Any:
        return F.sum(output(*arrays) * call.grad_output.reshape(y.shape))

    y = np.asarray(operator.compose(np, checked.arrays, checked))
    np.testing.assert_array_equal(output(*checked.arrays), y)
    gradients = grad(loss, tuple(range(len(checked.arrays))))(*checked.arrays)
    shaped = zip(gradients, call.arrays, strict=True)
    return Result(
        y.reshape(call.grad_output.shape), tuple(np.reshape(one, array.shape) for one, array in shaped)
    )


def moved(change: Any, call: Call, result: Result) -> tuple[Call, Result]:
    """A call and its result after a change of shapes, which is the same for arrays and their gradients."""
    found = change(replace(call, arrays=result.gradients, grad_output=result.output))
    return change(call), Result(found.grad_output, found.arrays)


@pytest.mark.parametrize("far", FAR)
@dtypes
def test_deform_conv2d(backend: Backend, rng: np.random.Generator, far: int, dtype: str) -> None:
    call = deform_call(rng, far, dtype)
    expected = exact_deform(call)
    require(call, evaluate(call, backend), expected, dtype)
    call, expected = moved(turned, call, expected)
    require(call, evaluate(call, backend), expected, dtype)


@pytest.mark.parametrize("far", FAR)
@dtypes
def test_deform_conv1d(backend: Backend, rng: np.random.Generator, far: int, dtype: str) -> None:
    call = deform_call(rng, far, dtype)
    call.arrays[1][:, :, :, :, 0] = 0
    call, expected = moved(on_a_line, call, exact_deform(call))
    require(call, evaluate(call, backend), expected, dtype)


@pytest.mark.parametrize("far", FAR)
@dtypes
def test_deform_conv2d_in_elementary_functions(rng: np.random.Generator, far: int, dtype: str) -> None:
    call = deform_call(rng, far, dtype)
    require(call, composite(call), exact_deform(call), dtype)


@pytest.mark.parametrize("far", [10, *FAR])
@dtypes
def test_sample_points(backend: Backend, rng: np.random.Generator, far: int, dtype: str) -> None:
    """A point may be the nearest number to where one wants it; it is read where that number is."""
    x = rng.standard_normal((1, 2, 1, far + 2)).astype(dtype)
    points = np.stack([rng.choice(STEPS, (1, 40)), far + rng.choice([*STEPS, *LONG], (1, 40))], axis=1)
    points = points.reshape(1, 1, 2, 1, 40).astype(dtype)
    call = Call(
        OPERATORS["sample_points"], (x, points), {}, rng.standard_normal((1, 2, 1, 1, 40)).astype(dtype)
    )
    y, grads = Exact(call.grad_output.shape), [Exact(array.shape) for array in call.arrays]
    for c, p in product(range(2), range(40)):
        back = exact(call.grad_output, 0, c, 0, 0, p)
        rows, columns = (around(0, points[0, 0, axis, 0, p], before=-1) for axis in range(2))
        for (row, share_y, slope_y), (column, share_x, slope_x) in product(rows, columns):
            value = exact(x, 0, c, row, column)
            add(y, (0, c, 0, 0, p), share_y * share_x * value)
            add(grads[0], (0, c, row, column), share_y * share_x * back)
            add(grads[1], (0, 0, 0, 0, p), slope_y * share_x * value * back)
            add(grads[1], (0, 0, 1, 0, p), share_y * slope_x * value * back)
    expected = Result(y.rounded(), tuple(gradient.rounded() for gradient in grads))
    require(call, evaluate(call, backend), expected, dtype)


# ---- displaced units


def exact_displaced(call: Call, columns: range, *, blur_y: bool) -> Result:
    """`displaced_conv2d` of one image one pixel high in some columns, and gradients of what is there."""
    x, weight, displacement, _, bias = call.arrays
    reach = range(-2, 3)
    bell = {i: Fraction(math.exp(-(i**2) / (2 * SIGMA**2))) for i in reach}
    taps = {i: bell[i] / sum(bell.values()) for i in reach}
    mean = sum(taps[i] * i**2 for i in reach)
    by_sigma = {i: taps[i] * (i**2 - mean) / SIGMA**3 for i in reach}

    def blurred(c: int, at: int, along: dict) -> Fraction:
        return sum((along[i] * exact(x, 0, c, 0, at + i) for i in reach), Fraction(0))

    own, own_by_sigma = (taps[0], by_sigma[0]) if blur_y else (Fraction(1), Fraction(0))

    y, grads = Exact(call.grad_output.shape), [Exact(array.shape) for array in call.arrays]
    grad_x, grad_weight, grad_displacement, grad_sigma, grad_bias = grads
    for o, p in product(range(len(weight)), columns):
        add(y, (0, o, 0, p), exact(bias, o))
        add(grad_bias, (o,), exact(call.grad_output, 0, o, 0, p))
    for (o, c, g), p in product(np.ndindex(weight.shape), columns):
        factor, back = exact(weight, o, c, g), exact(call.grad_output, 0, o, 0, p)
        move = displacement[o, c, g]
        for (row, share_y, slope_y), (at, share_x, slope_x) in product(
            around(0, move[0]), around(p, move[1])
        ):
            if row != 0 or not 0 <= at < x.shape[3]:
                continue
            value = own * blurred(c, at, taps)
            add(y, (0, o, 0, p), factor * share_y * share_x * value)
            add(grad_weight, (o, c, g), back * share_y * share_x * value)
            add(grad_displacement, (o, c, g, 0), factor * back * slope_y * share_x * value)
            add(grad_displacement, (o, c, g, 1), factor * back * share_y * slope_x * value)
            slope = own * blurred(c, at, by_sigma) + own_by_sigma * blurred(c, at, taps)
            add(grad_sigma, (), factor * back * share_y * share_x * slope)
            for i in reach:
                add(grad_x, (0, c, 0, at + i), factor * back * share_y * share_x * own * taps[i])
    return Result(y.rounded(), tuple(gradient.rounded() for gradient in grads))


def displaced_call(rng: np.random.Generator, far: int, dtype: str) -> Call:
    """Units that move by less than a pixel and by some; the gradient comes from the last three columns."""
    tiny = float(np.finfo(dtype).smallest_subnormal)
    along = [tiny, -tiny, *rng.choice([*STEPS, *LONG], 10)]
    displacement = np.stack([rng.choice(STEPS, 12), rng.permuted(along)], axis=1).reshape(2, 2, 3, 2)
    grad_output = np.zeros((1, 2, 1, far + 3))
    grad_output[..., -3:] = rng.standard_normal((1, 2, 1, 3))
    arrays = (
        rng.standard_normal((1, 2, 1, far + 3)),
        rng.standard_normal((2, 2, 3)),
        displacement,
        np.array(float(SIGMA)),
        rng.standard_normal(2),
    )
    return Call(OPERATORS["displaced_conv2d"], arrays, {}, grad_output).astype(dtype)


def last_columns(result: Result) -> Result:
    """The result without the output of columns that have no gradient."""
    return result._replace(output=result.output[..., -3:])


def displaced_on_a_line(call: Call) -> Call:
    """The same operator on a line, where nothing moves or is blurred along y."""
    x, weight, displacement, sigma, bias = call.arrays
    arrays = (x[:, :, 0], weight, displacement[..., 1], sigma, bias)
    operator = OPERATORS["displaced_conv1d"]
    return replace(call, operator=operator, arrays=arrays, grad_output=call.grad_output[:, :, 0])


def displaced_turned(call: Call) -> Call:
    """The same with rows and columns exchanged."""
    x, weight, displacement, *others = call.arrays
    arrays = (x.swapaxes(2, 3), weight, displacement[..., ::-1], *others)
    return replace(call, arrays=arrays, grad_output=call.grad_output.swapaxes(2, 3))


@pytest.mark.parametrize("far", [1_000, 100_003])
@dtypes
def test_displaced_conv2d(backend: Backend, rng: np.random.Generator, far: int, dtype: str) -> None:
    call = displaced_call(rng, far, dtype)
    expected = exact_displaced(call, range(far, far + 3), blur_y=True)
    require(call, last_columns(evaluate(call, backend)), last_columns(expected), dtype)
    call, expected = moved(displaced_turned, call, expected)
    actual = evaluate(call, backend)
    _, actual = moved(displaced_turned, call, actual)
    _, expected = moved(displaced_turned, call, expected)
    require(call, last_columns(actual), last_columns(expected), dtype)


@pytest.mark.parametrize("far", [1_000, 100_003])
@dtypes
def test_displaced_conv1d(backend: Backend, rng: np.random.Generator, far: int, dtype: str) -> None:
    call = displaced_call(rng, far, dtype)
    call.arrays[2][..., 0] = 0
    expected = exact_displaced(call, range(far, far + 3), blur_y=False)
    call, expected = moved(displaced_on_a_line, call, expected)
    require(call, last_columns(evaluate(call, backend)), last_columns(expected), dtype)


@dtypes
def test_displaced_conv2d_in_elementary_functions(rng: np.random.Generator, dtype: str) -> None:
    """Its matrices have a row and a column for each pixel of a line, so that lines are short."""
    call = displaced_call(rng, 1_000, dtype)
    expected = exact_displaced(call, range(1_000, 1_000 + 3), blur_y=True)
    require(call, last_columns(composite(call)), last_columns(expected), dtype)


# ---- subnormal numbers


@contextmanager
def flushed() -> Iterator[None]:
    """Arithmetic that takes subnormal numbers for zero, as kernels on CUDA do, in this thread."""
    library, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
    library.fegetenv(environment)
    before = environment[7]  # MXCSR
    try:
        environment[7] = before | 0x8040
        library.fesetenv(environment)
        yield
    finally:
        library.fegetenv(environment)
        environment[7] = before
        library.fesetenv(environment)


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="the flags of the processor that are set are those of x86-64, through glibc",
)
@pytest.mark.parametrize("backend", backend_params("host"), indirect=True)
@pytest.mark.parametrize("name", ["deform_conv2d", "displaced_conv2d"])
def test_subnormal_positions_where_arithmetic_has_none(
    backend: Backend, rng: np.random.Generator, name: str
) -> None:
    """On CUDA float32 has no subnormal numbers: a point just below a pixel is no point at it there either."""
    if name == "deform_conv2d":
        call = deform_call(rng, 10, "float32")
        expected, steps = exact_deform(call), call.arrays[1]
    else:
        call = displaced_call(rng, 10, "float32")
        expected, steps = exact_displaced(call, range(13), blur_y=True), call.arrays[2]
    tiny = np.finfo("float32").smallest_subnormal
    assert (steps == tiny).any() and (steps == -tiny).any()
    with flushed():
        assert np.float32(tiny) * np.float32(2) == 0
        actual = evaluate(call, backend)
    require(call, actual, expected, "float32")
