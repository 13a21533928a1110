"""What is outside an image, by NumPy's words: operators with a `border` against `numpy.pad`."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from _contract import (
    REFERENCE,
    Call,
    Result,
    check_gradients,
    check_low_precision,
    check_nonfinite,
    compare,
    evaluate,
    full_call,
    parts,
)
from conftest import Backend, backend_params

import dynarray as dyn
from dynarray import OPERATORS, Operator, _outside
from dynarray.typing import Border

WORDS = [word for word in get_args(Border) if word != "constant"]
BORDERED = {name: operator for name, operator in OPERATORS.items() if "border" in operator.defaults}
FILTERS = {name: operator for name, operator in BORDERED.items() if operator.stem != "deform"}
RTOL = 1e-11

each_word = pytest.mark.parametrize("border", WORDS)
each_filter = pytest.mark.parametrize("operator", list(FILTERS.values()), ids=list(FILTERS))
on_kernels = pytest.mark.parametrize("backend", backend_params("cpu", "host", "ptx", "cuda"), indirect=True)


@pytest.fixture(params=["copy", "strips"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Pixels outside lie around a copy of the image, or in strips beside it."""
    monkeypatch.setattr(_outside, "LEAST_FOR_STRIPS", 0 if request.param == "strips" else 2**62)
    return request.param


def test_operators_with_a_border_are_those_that_say_so() -> None:
    names = ["local_filter", "dynamic_conv", "atom_conv"]
    assert set(BORDERED) >= {f"{name}{axes}d" for name in names for axes in (1, 2)}
    assert set(BORDERED) >= {"ddf", "ddf_upsample", "carafe", "involution"}
    assert not set(BORDERED) & {"dynamic_sampling_conv2d", "displaced_conv2d", "correlation2d"}
    assert all(operator.defaults["border"] == "constant" for operator in BORDERED.values())


@each_word
def test_pixels_outside_are_copies_of_those_that_numpy_takes(border: Any) -> None:
    for size, before, after in product(range(1, 7), (0, 1, 2, 3, 7, 20), (0, 1, 5, 23)):
        expected = np.pad(np.arange(size), (before, after), border)
        found = _outside.inside_pixels(np.arange(-before, size + after), size, border)
        assert found.tolist() == expected.tolist(), (size, before, after)


def bordered_call(operator: Operator, border: str, seed: int) -> Call:
    """A call that reads outside of its image, whose outputs are more than its kernels are wide."""
    for attempt in range(seed * 100, seed * 100 + 100):
        call = full_call(operator, attempt, N=2, H=19, W=17)
        call = replace(call, params={**call.params, "border": border})
        if outside_of(call) is not None:
            return call
    raise LookupError(f"{operator.name}: no case reads outside")


def outside_of(call: Call) -> Any:
    """What the check finds outside of the image."""
    return call.operator.check(*call.arrays, **{**call.operator.defaults, **call.params}).outside


def enlarged(call: Call) -> tuple[Call, Any]:
    """The same call on a larger image that NumPy has padded, and how its result is that of the call.

    Filters there are zero where the call has no output, and so is the gradient of the output.
    """
    x, axes = call.arrays[0], call.arrays[0].ndim - 2
    image, outputs = np.array(x.shape[2:]), np.array(call.grad_output.shape[2:])
    scale = np.maximum(1, outputs // image)
    stride = np.broadcast_to(call.params.get("stride", 1), axes)
    more = -(-np.full(axes, 12) // stride)  # outputs: 12 pixels are more than any kernel reads outside
    border = call.params["border"]
    margins = [(0, 0), (0, 0), *((n, n) for n in more * stride)]
    pixels = np.pad(np.arange(image.prod()).reshape(image), margins[2:], border).reshape(-1)
    there = tuple(slice(n, n + size) for n, size in zip(more * scale, outputs))
    total = outputs + 2 * more * scale

    def spread(array: Any) -> Any:
        if array is None or tuple(array.shape[-axes:]) != tuple(outputs):
            return array
        # The last window may end before the image, and one more fits into the larger one.
        larger = np.zeros((*array.shape[:-axes], *total))
        larger[..., *there] = array
        return larger

    arrays = (np.pad(x, margins, border), *map(spread, call.arrays[1:]))
    large = Call(call.operator, arrays, {**call.params, "border": "constant"}, spread(call.grad_output))

    def same(result: Result) -> Result:
        by_x = np.zeros((*x.shape[:2], image.prod()))
        np.add.at(by_x, (slice(None), slice(None), pixels), result.gradients[0].reshape(*x.shape[:2], -1))
        others = (
            found if array is None or array.shape == found.shape else found[..., *there]
            for array, found in zip(call.arrays[1:], result.gradients[1:])
        )
        return Result(result.output[..., *there], (by_x.reshape(x.shape), *others))

    return large, same


@each_filter
@each_word
@pytest.mark.parametrize("seed", range(2))
def test_a_border_is_the_image_that_numpy_pads(
    operator: Operator, border: str, seed: int, backend: Backend, way: str
) -> None:
    call = bordered_call(operator, border, seed)
    large, same = enlarged(call)
    expected = same(evaluate(large, REFERENCE))
    for what, mine, right in parts(call, evaluate(call, backend), expected):
        compare(call, what, mine, right, RTOL)


@each_filter
@each_word
def test_gradients_are_derivatives(operator: Operator, border: str, backend: Backend, way: str) -> None:
    call = bordered_call(operator, border, 7)
    check_gradients(call, evaluate(call, backend).gradients)


# Kernel, stride, dilation and padding: even kernels, paddings wider than the image, and outputs far apart.
WINDOWS = [
    ((2, 4), (1, 1), (1, 1), (1, 3)),
    ((4, 2), (2, 3), (3, 2), (5, 2)),
    ((3, 3), (1, 2), (1, 1), (9, 14)),
    ((1, 1), (2, 5), (1, 1), (2, 7)),
    ((2, 3), (40, 60), (5, 1), (90, 130)),
]


@each_word
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (5, 6)], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_border_is_padding_before_the_call(
    border: Any, shape: tuple[int, int], window: tuple, backend: Backend, rng: np.random.Generator
) -> None:
    kernel, stride, dilation, padding = window
    margins = [(0, 0), (0, 0), *((n, n) for n in padding)]
    x = rng.standard_normal((2, 3, *shape))
    padded = np.pad(x, margins, border)
    sizes = zip(padded.shape[2:], kernel, stride, dilation)
    outputs = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes]
    steps: dict[str, Any] = {"stride": stride, "dilation": dilation}
    here = backend.array
    for name, arrays in {
        "local_filter2d": (rng.standard_normal((2, 1, *kernel, *outputs)),),
        "dynamic_conv2d": (rng.standard_normal((2, 2, 3, *kernel, *outputs)),),
        "atom_conv2d": (rng.standard_normal((2, 2, *kernel, *outputs)), rng.standard_normal((2, 3, 2))),
    }.items():
        given, function = map(here, arrays), getattr(dyn, name)
        mine = function(here(x), *given, **steps, padding=padding, border=border)
        with dyn.use_backend("reference"):
            right = function(padded, *arrays, **steps, padding=0)
        np.testing.assert_allclose(backend.numpy(mine), right, rtol=1e-11, atol=1e-11 * abs(right).max())


@each_word
def test_windows_far_apart_need_little_memory(
    border: Any, backend: Backend, rng: np.random.Generator
) -> None:
    stride, padding, dilation, size = 10**5, 3 * 10**5 + 7, 33, 11
    pixels = np.pad(np.arange(size), padding, border)
    count = (len(pixels) - dilation - 1) // stride + 1
    x, weight = rng.standard_normal((1, 1, size)), rng.standard_normal((1, 1, 2, count))
    y = dyn.local_filter1d(
        *map(backend.array, (x, weight)), stride=stride, padding=padding, dilation=dilation, border=border
    )
    places = np.arange(count) * stride + np.array([[0], [dilation]])
    np.testing.assert_allclose(backend.numpy(y)[0, 0], (weight[0, 0] * x[0, 0, pixels[places]]).sum(0))


@pytest.mark.parametrize("name", [name for name in FILTERS if name.endswith(("2d", "1d"))])
def test_an_empty_image_has_nothing_to_put_outside(name: str, backend: Backend) -> None:
    axes = int(name[-2])
    image, kernel, outputs = (0, 4)[-axes:] if axes == 2 else (0,), (3,) * axes, (2, 6)[:axes]
    arrays = {
        "local_filter": (np.ones((1, 1, *kernel, *outputs)),),
        "dynamic_conv": (np.ones((1, 1, 1, *kernel, *outputs)),),
        "atom_conv": (np.ones((1, 1, *kernel, *outputs)), np.ones((1, 1, 1))),
    }.get(name[:-2])
    if arrays is None:
        pytest.skip(f"{name} is another family's")
    function, given = getattr(dyn, name), tuple(map(backend.array, (np.ones((1, 1, *image)), *arrays)))
    for word in WORDS:
        with pytest.raises(ValueError, match=rf"^{name}: .*'{word}'"):
            function(*given, padding=2, border=word)
    assert not backend.numpy(function(*given, padding=2)).any()
    empty = backend.array(np.ones((0, 1, *image)))
    others = (given[1][:0], *given[2:])
    assert function(empty, *others, padding=2, border="edge").shape == (0, 1, *outputs)


@on_kernels
@each_filter
@pytest.mark.parametrize("border", ["reflect", "edge"])
def test_strips_that_meet_infinity(
    operator: Operator, border: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_outside, "LEAST_FOR_STRIPS", 0)
    call = bordered_call(operator, border, 3)
    for which, value in product(range(len(call.everything)), (np.nan, np.inf)):
        everything = [array.copy() for array in call.everything]
        at = np.random.default_rng(which).integers(everything[which].size)
        everything[which].flat[at] = value
        check_nonfinite(call.with_everything(tuple(everything)), backend)


@pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
@each_filter
def test_strips_in_half_precision(
    operator: Operator, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_outside, "LEAST_FOR_STRIPS", 0)
    for word in WORDS:
        check_low_precision(bordered_call(operator, word, 5), backend, np.dtype(np.float16))


@on_kernels
@each_filter
def test_large_images_are_done_in_strips(
    operator: Operator, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing as large as the image is made beside it, and of small ones a copy."""
    calls = (bordered_call(operator, "reflect", seed) for seed in range(20))
    call = next(each for each in calls if outside_of(each).strips)
    make, made, size = _outside.Piece.make, list[int](), call.arrays[0].size

    def counted(piece: Any, x: Any) -> Any:
        image = make(piece, x)
        made.append(image.size)
        return image

    monkeypatch.setattr(_outside.Piece, "make", counted)
    for least, expected in ((size, range(size // 2)), (size + 1, range(size + 1, 4 * size))):
        monkeypatch.setattr(_outside, "LEAST_FOR_STRIPS", least)
        made.clear()
        evaluate(call, backend)
        assert made and set(made) <= set(expected)
