"""Drawn shapes and arguments: broadcasting, axes, indices, empty arrays; first and second order."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import (
    array_shapes,
    basic_indices,
    broadcastable_shapes,
    integer_array_indices,
    mutually_broadcastable_shapes,
)

from autodiff import Tape, Variable, check_gradients, hvp, stop_gradient
from autodiff import functions as F

few = settings(max_examples=15)
any_shape = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
some_shape = array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3)

BINARY = {
    "add": F.add,
    "subtract": F.subtract,
    "multiply": F.multiply,
    "divide": F.divide,
    "power": F.power,
    "maximum": F.maximum,
    "minimum": F.minimum,
    "where": lambda x, y: F.where(stop_gradient(x) > stop_gradient(y), x, y),
}
UNARY = (F.abs, F.cos, F.erf, F.exp, F.gelu, F.leaky_relu, F.log, F.log1p, F.negative, F.relu)
UNARY += (F.sigmoid, F.silu, F.sin, F.softplus, F.sqrt, F.square, F.tanh)


def values(shape, seed=0):
    """Away from 0 and from each other, so that no function is at a kink."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    return (0.5 + (rng.permutation(size) + 0.3 * rng.random(size)) / max(size, 1)).reshape(shape)


def check(f, *arrays):
    """First order against numerical derivatives to 1e-9, second order against differences to 1e-5."""
    check_gradients(f, *arrays, rtol=1e-9, verbose=False)
    rng = np.random.default_rng(2)
    vectors = tuple(rng.standard_normal(a.shape) for a in arrays)
    weights = rng.standard_normal(f(*arrays).shape)

    def loss(*inputs):
        y = f(*inputs)
        return F.sum(y * y * weights)

    def gradient(step):
        with Tape() as tape:
            inputs = [Variable(a + step * v) for a, v in zip(arrays, vectors)]
            value = loss(*inputs)
        return tape.gradient(value, inputs)

    step = 1e-5
    expected = [(a - b) / (2 * step) for a, b in zip(gradient(step), gradient(-step))]
    for actual, wanted in zip(hvp(loss, arrays, vectors), expected, strict=True):
        assert actual.shape == wanted.shape
        assert np.abs(actual - wanted).max(initial=0) <= 1e-5 * max(np.abs(wanted).max(initial=0), 1e-3)


@pytest.mark.parametrize("name", BINARY)
@few
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0))
def test_broadcasting(name, shapes):
    check(BINARY[name], *(values(shape, seed) for seed, shape in enumerate(shapes.input_shapes)))


@pytest.mark.parametrize("function", UNARY, ids=lambda function: function.__name__)
@few
@given(shape=any_shape)
def test_elementwise(function, shape):
    check(function, values(shape))


@pytest.mark.parametrize("name", ["sum", "mean", "var", "max", "min"])
@few
@given(st.data())
def test_reductions(name, data):
    x = values(data.draw(any_shape))
    axes = st.lists(st.integers(-x.ndim, x.ndim - 1), unique_by=lambda a: a % x.ndim) if x.ndim else st.none()
    axis = data.draw(st.none() | axes.map(lambda a: tuple(a or ())) if x.ndim else st.none())
    keepdims = data.draw(st.booleans())
    reduced = [x.shape[a] for a in (range(x.ndim) if axis is None else axis)]
    assume(name == "sum" or 0 not in reduced)  # of nothing there is no mean and no maximum
    check(lambda x: getattr(F, name)(x, axis, keepdims), x)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@few
@given(st.data())
def test_along_an_axis(name, data):
    x = values(data.draw(some_shape))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    with np.errstate(divide="ignore"):  # the logarithm of a sum of nothing
        check(lambda x: getattr(F, name)(x, axis), x)


@few
@given(st.data())
def test_matmul(data):
    shapes = data.draw(
        mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=3, min_side=0)
    )
    check(F.matmul, *(values(shape) for shape in shapes.input_shapes))


@settings(max_examples=40)
@given(st.data())
def test_einsum(data):
    """Any letters in any places, against NumPy."""
    sizes = {letter: data.draw(st.integers(1, 3)) for letter in "abcd"}
    names = data.draw(st.lists(st.text("abcd", max_size=3), min_size=1, max_size=3))
    used = sorted(set("".join(names)))
    output = "".join(data.draw(st.permutations(used))[: data.draw(st.integers(0, len(used)))])
    subscripts = f"{','.join(names)}->{output}" if data.draw(st.booleans()) else ",".join(names)
    arrays = [values([sizes[letter] for letter in name], i) for i, name in enumerate(names)]
    np.testing.assert_allclose(F.einsum(subscripts, *arrays), np.einsum(subscripts, *arrays), rtol=1e-12)
    check(lambda *operands: F.einsum(subscripts, *operands), *arrays)


@settings(max_examples=40)
@given(st.data())
def test_getitem(data):
    x = values(data.draw(array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)))
    basic = basic_indices(x.shape, allow_newaxis=True, allow_ellipsis=True)
    index = data.draw(basic | integer_array_indices(x.shape))
    check(lambda x: x[index], x)


@few
@given(st.data())
def test_getitem_by_arrays_beside_slices(data):
    x = values(data.draw(array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=4)))
    places = st.lists(st.integers(-x.shape[1], x.shape[1] - 1), min_size=0, max_size=5)
    index = (
        slice(None, None, data.draw(st.sampled_from([1, -1, 2]))),
        np.array(data.draw(places), dtype=int),
    )
    check(lambda x: x[index], x)


@few
@given(st.data())
def test_shapes(data):
    x = values(data.draw(some_shape))
    order = tuple(data.draw(st.permutations(range(x.ndim))))
    axis = data.draw(st.integers(0, x.ndim - 1))
    widths = data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=x.ndim, max_size=x.ndim))
    target = data.draw(broadcastable_shapes(x.shape, max_dims=4, max_side=3))
    check(lambda x: F.transpose(x, order), x)
    check(lambda x: F.flip(x, axis), x)
    check(lambda x: F.pad(x, widths), x)
    check(lambda x: F.repeat(x, 2, axis), x)
    check(lambda x: F.concatenate([x, x * x, x[..., :0]], -1), x)
    check(lambda x: F.stack([x, x * x], axis), x)
    if np.broadcast_shapes(x.shape, target) == target:
        check(lambda x: F.broadcast_to(x, target), x)


@pytest.mark.parametrize("name", ["avg_pool2d", "max_pool2d"])
@few
@given(st.data())
def test_pooling(name, data):
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = data.draw(st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    shape = data.draw(st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(3, 6), st.integers(3, 5)))
    x = values(shape)
    check(lambda x: getattr(F, name)(x, kernel, stride, padding), x)


@few
@given(st.data())
def test_resize(data):
    size = st.integers(1, 6)
    shape = (data.draw(st.integers(0, 2)), 2, data.draw(size), data.draw(size))
    target, align = (data.draw(size), data.draw(size)), data.draw(st.booleans())
    check(lambda x: F.resize(x, target, align_corners=align), values(shape))
    check(lambda x: F.adaptive_avg_pool2d(x, target), values(shape))


@few
@given(st.data())
def test_norms(data):
    n, groups, per = (data.draw(st.integers(1, 3)) for _ in range(3))
    shape = (n, groups * per, 2, data.draw(st.integers(1, 3)))
    x, w, b = values(shape), values(shape[1:2], 1), values(shape[1:2], 2)
    check(lambda x, w, b: F.group_norm(x, groups, w, b, epsilon=0.1), x, w, b)
    check(lambda x, w, b: F.batch_norm(x, w, b, epsilon=0.1), x, w, b)


@few
@given(st.data())
def test_cross_entropy(data):
    shape = data.draw(array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    classes = data.draw(st.integers(1, 4))
    labels = np.random.default_rng(0).integers(-1, classes, shape)
    logits = values((shape[0], classes, *shape[1:]))
    check(lambda x: F.cross_entropy(x, labels, ignore_index=-1), logits)
