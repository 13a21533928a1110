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
    ways,
)
from conftest import Backend, backend_params
from test_special_values import INFINITE, check_special, scatter

import dynarray as dyn
from autodiff import functions as F
from autodiff import hvp, layers
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
    names = ["local_filter", "dynamic_conv", "atom_conv", "deform_conv"]
    assert set(BORDERED) >= {f"{name}{axes}d" for name in names for axes in (1, 2)}
    assert set(BORDERED) >= {"ddf", "ddf_upsample", "carafe", "involution", "sample_points"}
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


def enlarged(call: Call, reach: int) -> tuple[Call, Any]:
    """The same call on a larger image that NumPy has padded, and how its result is that of the call.

    Nothing is read farther outside. Filters are zero where the call has no output, and so is the gradient of
    the output.
    """
    x, axes = call.arrays[0], call.arrays[0].ndim - 2
    image, outputs = np.array(x.shape[2:]), np.array(call.grad_output.shape[2:])
    scale = np.maximum(1, outputs // image)
    stride = np.broadcast_to(call.params.get("stride", 1), axes)
    more = -(-np.full(axes, reach) // stride)  # outputs
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
    large, same = enlarged(call, 12)
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
        "mixed_filter": (np.ones((1, *kernel)), np.ones((1, 1, 1, *outputs))),
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
    others = (array[:0] if array.shape[-axes:] == outputs else array for array in given[1:])
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


@pytest.mark.parametrize("backend", backend_params("cpu", "host"), indirect=True)
@each_filter
def test_strips_give_each_infinity_of_the_definition(
    operator: Operator, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an infinite filter, or gradient, meets the zeros that stand outside in the first call."""
    monkeypatch.setattr(_outside, "LEAST_FOR_STRIPS", 0)
    for seed in range(8):
        call, rng = bordered_call(operator, WORDS[seed % 4], seed), np.random.default_rng(seed)
        everything = tuple(array.copy() for array in call.everything)
        for array in everything:
            if array.size and rng.random() < 0.5:
                scatter(rng, array, INFINITE)
        check_special(call.with_everything(everything), backend)


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
    at_most = size // _outside.FORWARD
    for least, expected in ((at_most, range(size // 2)), (size + 1, range(size + 1, 4 * size))):
        monkeypatch.setattr(_outside, "LEAST_FOR_STRIPS", least)
        made.clear()
        evaluate(call, backend)
        assert made and set(made) <= set(expected)


SAMPLED = {name: operator for name, operator in BORDERED.items() if operator.stem == "deform"}
each_sampled = pytest.mark.parametrize("operator", list(SAMPLED.values()), ids=list(SAMPLED))


def sampled_call(operator: Operator, border: str, seed: int) -> Call:
    """A call many of whose points lie outside, some of them on whole pixels."""
    call = full_call(operator, seed, N=2, H=19, W=17)
    points = call.arrays[1]
    points = np.random.default_rng(seed).uniform(-30, 30, points.shape)
    points[:1] = points[:1].round()
    return replace(
        call, arrays=(call.arrays[0], points, *call.arrays[2:]), params={**call.params, "border": border}
    )


def enlarged_samples(call: Call) -> tuple[Call, Any]:
    """As `enlarged`; absolute points move with the image."""
    if call.operator.name != "sample_points":
        return enlarged(call, 60)
    x, points = call.arrays
    margins = [(0, 0), (0, 0), (60, 60), (60, 60)]
    border = call.params["border"]
    pixels = np.pad(np.arange(x[0, 0].size).reshape(x.shape[2:]), margins[2:], border).reshape(-1)
    params = {**call.params, "border": "constant"}
    large = replace(call, arrays=(np.pad(x, margins, border), points + 60), params=params)

    def same(result: Result) -> Result:
        by_x = np.zeros((*x.shape[:2], x[0, 0].size))
        found = result.gradients[0].reshape(*x.shape[:2], -1)
        np.add.at(by_x, (slice(None), slice(None), pixels), found)
        return Result(result.output, (by_x.reshape(x.shape), result.gradients[1]))

    return large, same


@each_sampled
@pytest.mark.parametrize("seed", range(2))
def test_corners_outside_are_pixels_that_numpy_pads(operator: Operator, seed: int, backend: Backend) -> None:
    """By all words, for kernels that know them: one test runs on every backend."""
    for border in WORDS:
        call = sampled_call(operator, border, seed)
        large, same = enlarged_samples(call)
        expected = same(evaluate(large, REFERENCE))
        for way in ways(call, backend):
            for what, mine, right in parts(call, evaluate(way, backend), expected):
                compare(call, what, mine, right, RTOL)


@each_sampled
@each_word
def test_gradients_of_samples_are_derivatives(operator: Operator, border: str, backend: Backend) -> None:
    call = sampled_call(operator, border, 3)
    arrays = call.arrays[0], call.arrays[1] + 0.01 * np.sign(call.arrays[1]), *call.arrays[2:]
    check_gradients(replace(call, arrays=arrays), evaluate(replace(call, arrays=arrays), backend).gradients)


# Where a coordinate is, and the pixel of five from whose centre it is half the way to the next one.
FAR = [
    1e4 + 0.5,
    -1e4 - 0.5,
    2.0**31 + 0.5,
    -(2.0**33) - 0.5,
    2.0**41 + 0.5,
    -(2.0**45) - 0.5,
    2.0**80,
    -1e300,
]


@each_word
@pytest.mark.parametrize("at", FAR)
def test_points_far_away_are_at_exact_places(border: Any, at: float, backend: Backend) -> None:
    """Whole numbers of Python tell the pixels."""
    x = np.array([2.0, 3.0, 5.0, 11.0, 23.0])
    first = int(np.floor(at))
    if border == "edge":
        pixels = [min(max(place, 0), 4) for place in (first, first + 1)]
    else:
        turn = {"reflect": [*range(5), *range(3, 0, -1)], "symmetric": [*range(5), *range(4, -1, -1)]}
        again = turn.get(border, list(range(5)))
        pixels = [again[place % len(again)] for place in (first, first + 1)]
    left, right = x[pixels]
    rest = at - np.floor(at)
    points = np.zeros((1, 1, 2, 1, 1))
    points[0, 0, 1] = at
    here = backend.array
    y = dyn.sample_points(here(x.reshape(1, 1, 1, 5)), here(points), border=border)
    assert backend.numpy(y).item() == pytest.approx(left + rest * (right - left), rel=1e-14)
    found = dyn.sample_points_backward(
        here(np.ones((1, 1, 1, 1, 1))), here(x.reshape(1, 1, 1, 5)), here(points), border=border
    )
    assert backend.numpy(found.points)[0, 0, 1].item() == right - left
    line = dyn.deform_conv1d(
        here(x.reshape(1, 1, 5)),
        here(np.full((1, 1, 1, 1), at)),
        here(np.ones((1, 1, 1))),
        stride=9,
        border=border,
    )
    assert backend.numpy(line).item() == pytest.approx(left + rest * (right - left), rel=1e-14)


@each_word
def test_infinite_coordinates(border: Any, backend: Backend) -> None:
    """The ends of the image, where it has any."""
    x = np.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    points = np.array(
        [[0, np.inf], [0, -np.inf], [np.inf, 1], [-np.inf, -np.inf], [np.nan, 0], [np.inf, np.nan]]
    )
    here = backend.array
    arrays = here(x), here(points.reshape(1, 6, 2, 1, 1))
    y = backend.numpy(dyn.sample_points(*arrays, border=border)).ravel()
    found = dyn.sample_points_backward(here(np.ones((1, 1, 6, 1, 1))), *arrays, border=border)
    by_points, by_x = backend.numpy(found.points)[0, :, :, 0, 0], backend.numpy(found.x)
    if border == "edge":
        np.testing.assert_array_equal(y, [3, 1, 5, 1, np.nan, np.nan])
        assert abs(by_points[[0, 1, 2, 3], [1, 1, 0, 0]]).max() < 1e-15
        np.testing.assert_array_equal(by_x[0, 0], [[2, 0, 1], [0, 1, 0]])
    else:
        assert np.isnan(y).all() and np.isnan(by_points).all() and not by_x.any()
    constant = backend.numpy(dyn.sample_points(*arrays)).ravel()
    np.testing.assert_array_equal(constant, [0, 0, 0, 0, np.nan, np.nan])


@each_sampled
def test_samples_of_an_empty_image(operator: Operator, backend: Backend) -> None:
    call = full_call(operator, N=2, H=6, W=5)
    x = call.arrays[0][..., :0]
    given = tuple(map(backend.array, call.arrays))
    params = {name: value for name, value in call.params.items() if name != "border"}
    if operator.name != "sample_points":  # as many outputs as before
        kernel = call.arrays[2].shape[-1]
        params |= {"padding": kernel + 40, "stride": 1, "dilation": 1}
        outputs = [n + 2 * params["padding"] - k + 1 for n, k in zip(x.shape[2:], call.arrays[2].shape[2:])]
        taps = call.arrays[2].shape[2:]
        offset = np.zeros((2, 1, *taps, *((2,) if len(taps) == 2 else ()), *outputs))
        given = (given[0], backend.array(offset), given[2], None, None)
    given = (backend.array(np.ascontiguousarray(x)), *given[1:])
    for word in WORDS:
        with pytest.raises(ValueError, match=f"^{operator.name}: .*'{word}'"):
            operator(given, **params, border=word)
    assert not backend.numpy(operator(given, **params)).any()


@pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
@each_sampled
@each_word
def test_samples_in_half_precision(operator: Operator, border: str, backend: Backend) -> None:
    call = sampled_call(operator, border, 5)
    check_low_precision(call, backend, np.dtype(np.float16), ("points", "offset"))


LAYERS = {
    "DDF": (lambda **options: layers.DDF(4, 3, **options), 1),
    "DDFUp": (lambda **options: layers.DDFUp(4, 3, **options), 2),
    "CARAFE": (lambda **options: layers.CARAFE(4, up_kernel=3, **options), 2),
    "Involution": (lambda **options: layers.Involution(4, 3, group_channels=2, **options), 1),
    "AtomConv": (lambda **options: layers.AtomConv(4, 2, 3, **options), 1),
    "DeformConv": (lambda **options: layers.DeformConv(4, 2, 3, **options), 1),
    "CGDS": (lambda **options: _guided_by_itself(layers.CGDS(4, 4, 2, **options)), 1),
}


def _guided_by_itself(layer: Any) -> Any:
    return lambda x: layer(x, x)


@each_word
@pytest.mark.parametrize("name", LAYERS)
def test_layers_pass_the_border_on(name: str, border: str, rng: np.random.Generator) -> None:
    """The outermost pixels see it, and no others."""
    make, scale = LAYERS[name]
    x = rng.standard_normal((1, 4, 7, 8))
    one, other = (
        np.array(make(rng=0, dtype=np.float64, border=word)(x).data) for word in ("constant", border)
    )
    differ = abs(one - other).max(axis=(0, 1)) > 1e-9
    expected = np.ones(differ.shape, bool)
    expected[scale:-scale, scale:-scale] = False
    np.testing.assert_array_equal(differ, expected)
    with pytest.raises(ValueError, match=f"^{name}: border .*'wrap'"):
        make(border="mirror")


@each_word
def test_a_bottleneck_of_ddf_passes_the_border_on(border: str, rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((1, 4, 7, 8)), {}
    for word in ("constant", border):
        layer = layers.DDFBottleneck(4, 4, 4, rng=0, dtype=np.float64, border=word)
        y[word] = np.array(layer.eval()(x).data)  # statistics of a batch would spread it over the image
    differ = abs(y["constant"] - y[border]).max(axis=(0, 1)) > 1e-9
    assert differ[[0, -1]].any() and differ[:, [0, -1]].any() and not differ[1:-1, 1:-1].any()


@each_word
def test_derivatives_of_derivatives(border: Any, rng: np.random.Generator) -> None:
    """Of a sum of squares: twice the product of the Jacobian and its transpose, on pixels that NumPy pads."""
    x, weight = rng.standard_normal((1, 2, 4, 5)), rng.standard_normal((1, 1, 3, 2, 4, 8))
    steps: dict[str, Any] = {"dilation": 1, "padding": (1, 2)}

    def loss(image: Any) -> Any:
        return F.sum(F.local_filter2d(image, weight, **steps, border=border) ** 2)

    def padded(image: Any) -> Any:
        image = F.pad(image, ((0, 0), (0, 0), (1, 1), (2, 2)), border)
        return F.sum(F.local_filter2d(image, weight, padding=0) ** 2)

    found, expected = (hvp(function, (x,), (x + 1,))[0] for function in (loss, padded))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12 * abs(expected).max())
