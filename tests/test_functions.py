"""Every differentiable function: numerical derivatives, second order, awkward arrays."""

import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from autodiff import Tape, Variable, check_gradients, hvp
from autodiff import functions as F
from autodiff.check import GradientError
from autodiff.function import Function
from autodiff.lift import lifted


class Case(NamedTuple):
    """A function of arrays, their shapes and range, and its NumPy form where it is not analytic."""

    call: object
    shapes: tuple
    low: float = -2.0
    high: float = 2.0
    reference: object = None
    # Piecewise functions: their NumPy form takes complex numbers only by the reference given.
    method: str = "complex"


def _softmax(x, axis):
    powers = np.exp(x)
    return powers / powers.sum(axis, keepdims=True)


def _conv(x, w, b, stride, padding, dilation, groups):
    """Convolution by its definition."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    n, _, h, wide = x.shape
    o, per, kh, kw = w.shape
    ho = (h - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (wide - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((n, o, ho, wo), np.result_type(x, w, b))
    for out in range(o):
        first = out // (o // groups) * per
        for i in range(ho):
            for j in range(wo):
                top, left = i * stride[0], j * stride[1]
                rows = slice(top, top + dilation[0] * (kh - 1) + 1, dilation[0])
                columns = slice(left, left + dilation[1] * (kw - 1) + 1, dilation[1])
                y[:, out, i, j] = (x[:, first : first + per, rows, columns] * w[out]).sum((1, 2, 3)) + b[out]
    return y


def conv_case(xs, ws, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case(
        lambda x, w, b: F.conv2d(x, w, b, **options),
        (xs, ws, ws[:1]),
        reference=lambda x, w, b: _conv(x, w, b, **options),
    )


def _batch_norm(x, w, b):
    centred = x - x.mean((0, 2, 3), keepdims=True)
    deviation = np.sqrt((centred * centred).mean((0, 2, 3), keepdims=True) + 1e-5)
    return centred / deviation * w[:, None, None] + b[:, None, None]


INDEX = np.array([[0, 2], [2, 1]])
MASK = np.array([[True, False, True], [False, False, True]])
LABELS = np.array([0, 2, 1, 2])
MEAN, VARIANCE = np.array([0.5, -1.0]), np.array([2.0, 0.3])

CASES = {
    "abs": Case(F.abs, ((3, 4),), reference=lambda x: np.where(x.real < 0, -x, x)),
    "adaptive_avg_pool2d": Case(lambda x: F.adaptive_avg_pool2d(x, (2, 3)), ((2, 2, 5, 4),)),
    "adaptive_avg_pool2d even": Case(lambda x: F.adaptive_avg_pool2d(x, (2, 2)), ((2, 2, 4, 6),)),
    "add": Case(F.add, ((3, 1, 2), (4, 1))),
    "affine": Case(lambda x, w, b: F.affine(x, MEAN, VARIANCE, w, b), ((2, 2, 3, 2), (2,), (2,))),
    "astype": Case(lambda x: F.astype(x, np.result_type(x)), ((3,),)),
    "avg_pool2d": Case(lambda x: F.avg_pool2d(x, 3, 2, 1), ((2, 2, 6, 5),)),
    "avg_pool2d plain": Case(lambda x: F.avg_pool2d(x, (2, 1)), ((1, 2, 5, 3),)),
    "batch_norm": Case(F.batch_norm, ((3, 2, 2, 3), (2,), (2,)), reference=_batch_norm),
    "broadcast_to": Case(lambda x: F.broadcast_to(x, (2, 3, 4)), ((3, 1),)),
    "channel_statistics": Case(lambda x: F.concatenate(F.channel_statistics(x)), ((2, 2, 2, 3),)),
    "clip": Case(
        lambda x: F.clip(x, -1, 1),
        ((20,),),
        reference=lambda x: np.where(abs(x.real) < 1, x, np.sign(x.real)),
    ),
    "clip one side": Case(
        lambda x: F.clip(x, max=0.5), ((20,),), reference=lambda x: np.where(x.real < 0.5, x, 0.5)
    ),
    "concatenate": Case(lambda x, y: F.concatenate([x, y], axis=-1), ((2, 3), (2, 4))),
    "conv2d": conv_case((2, 3, 6, 5), (4, 3, 3, 3), padding=(1, 1)),
    "conv2d strided": conv_case((2, 3, 7, 6), (2, 3, 3, 2), (2, 3), (2, 1), (1, 2)),
    "conv2d grouped": conv_case((1, 4, 5, 4), (6, 2, 2, 3), (1, 2), (0, 1), groups=2),
    "conv2d depthwise": conv_case((2, 3, 5, 6), (3, 1, 3, 3), (2, 1), (1, 2), (2, 2), groups=3),
    "conv2d 1x1": conv_case((2, 4, 3, 2), (3, 4, 1, 1)),
    "conv2d 1x1 strided": conv_case((2, 4, 4, 5), (6, 2, 1, 1), (2, 2), groups=2),
    "conv2d padding beyond kernel": conv_case((1, 2, 3, 3), (2, 2, 2, 2), padding=(4, 3)),
    "cos": Case(F.cos, ((5,),)),
    "cross_entropy": Case(
        lambda x: F.cross_entropy(x, LABELS),
        ((4, 3),),
        reference=lambda x: -np.log(_softmax(x, 1))[np.arange(4), LABELS].mean(),
    ),
    "divide": Case(F.divide, ((3, 1), (2,)), 0.5),
    "exp": Case(F.exp, ((5,),)),
    "expand_dims": Case(lambda x: F.expand_dims(x, -2), ((3, 2),)),
    "flatten": Case(F.flatten, ((2, 3, 2),)),
    "flip": Case(lambda x: F.flip(x, (0, 2)), ((2, 3, 2),)),
    "getitem": Case(lambda x: F.getitem(x, (slice(None, None, -2), 1, None)), ((4, 3),)),
    "getitem integers": Case(lambda x: F.getitem(x, INDEX), ((3, 2),)),
    "getitem mixed": Case(lambda x: F.getitem(x, (slice(1, None), INDEX)), ((3, 4),)),
    "getitem mask": Case(lambda x: F.getitem(x, MASK), ((2, 3, 2),)),
    "global_avg_pool": Case(F.global_avg_pool, ((2, 3, 2, 4),)),
    "l1": Case(
        F.l1, ((3, 4), (3, 4)), reference=lambda x, y: (np.where((x - y).real < 0, y - x, x - y)).mean()
    ),
    "leaky_relu": Case(
        lambda x: F.leaky_relu(x, 0.2), ((20,),), reference=lambda x: np.where(x.real > 0, x, 0.2 * x)
    ),
    "linear": Case(F.linear, ((2, 3, 4), (5, 4), (5,))),
    "log": Case(F.log, ((5,),), 0.5),
    "log1p": Case(F.log1p, ((5,),), -0.5, reference=lambda x: np.log(1 + x)),
    "log_softmax": Case(
        lambda x: F.log_softmax(x, 1), ((2, 4, 3),), reference=lambda x: np.log(_softmax(x, 1))
    ),
    "matmul": Case(F.matmul, ((2, 1, 3, 4), (5, 4, 2))),
    "matmul row": Case(F.matmul, ((4,), (3, 4, 2))),
    "matmul column": Case(F.matmul, ((3, 2, 4), (4,))),
    "matmul dot": Case(F.matmul, ((4,), (4,))),
    "max": Case(lambda x: F.max(x, 1), ((3, 4, 2),), reference=lambda x: _pick(x, x.real.argmax(1), 1)),
    "max of all": Case(F.max, ((3, 4),), reference=lambda x: x.ravel()[x.real.argmax()]),
    "max_pool2d": Case(lambda x: F.max_pool2d(x, 3, 2, 1), ((2, 2, 5, 6),), method="central"),
    "maximum": Case(F.maximum, ((3, 4), (4,)), reference=lambda x, y: np.where(x.real > y.real, x, y)),
    "mean": Case(lambda x: F.mean(x, (0, -1), keepdims=True), ((3, 4, 2),)),
    "min": Case(
        lambda x: F.min(x, 0, keepdims=True),
        ((3, 4),),
        reference=lambda x: _pick(x, x.real.argmin(0), 0)[None],
    ),
    "minimum": Case(F.minimum, ((3, 4), (4,)), reference=lambda x, y: np.where(x.real < y.real, x, y)),
    "moveaxis": Case(lambda x: F.moveaxis(x, 0, -1), ((2, 3, 4),)),
    "mse": Case(F.mse, ((3, 4), (3, 4))),
    "multiply": Case(F.multiply, ((3, 1, 2), (4, 1))),
    "negative": Case(F.negative, ((5,),)),
    "pad": Case(lambda x: F.pad(x, ((1, 0), (2, 3)), 7.0), ((2, 3),)),
    "pixel_shuffle": Case(lambda x: F.pixel_shuffle(x, 2), ((2, 8, 3, 2),)),
    "pixel_unshuffle": Case(lambda x: F.pixel_unshuffle(x, 2), ((2, 2, 4, 6),)),
    "power": Case(F.power, ((3, 1), (4,)), 0.5),
    "power of constant": Case(lambda x: F.power(x, 3), ((3, 4),)),
    "relu": Case(F.relu, ((20,),), reference=lambda x: np.where(x.real > 0, x, 0)),
    "repeat": Case(lambda x: F.repeat(x, 3, -1), ((2, 3),)),
    "reshape": Case(lambda x: F.reshape(x, (4, -1)), ((2, 3, 2),)),
    "resize": Case(lambda x: F.resize(x, (7, 3)), ((2, 2, 4, 5),)),
    "resize aligned": Case(lambda x: F.resize(x, (7, 3), align_corners=True), ((2, 2, 4, 5),)),
    "sigmoid": Case(F.sigmoid, ((5,),), -8, 8, reference=lambda x: 1 / (1 + np.exp(-x))),
    "silu": Case(F.silu, ((5,),), reference=lambda x: x / (1 + np.exp(-x))),
    "sin": Case(F.sin, ((5,),)),
    "smooth_l1": Case(lambda x, y: F.smooth_l1(x, y, 0.7), ((3, 4), (3, 4)), method="central"),
    "softmax": Case(lambda x: F.softmax(x, 1), ((2, 4, 3),), reference=lambda x: _softmax(x, 1)),
    "softplus": Case(F.softplus, ((5,),), -8, 8, reference=lambda x: np.log(1 + np.exp(x))),
    "sqrt": Case(F.sqrt, ((5,),), 0.5),
    "square": Case(F.square, ((5,),)),
    "squeeze": Case(F.squeeze, ((1, 3, 1),)),
    "stack": Case(lambda x, y: F.stack([x, y], 1), ((2, 3), (2, 3))),
    "subtract": Case(F.subtract, ((3, 1, 2), (4, 1))),
    "sum": Case(lambda x: F.sum(x, (0, -1)), ((3, 4, 2),)),
    "sum of all": Case(F.sum, ((3, 4),)),
    "swapaxes": Case(lambda x: F.swapaxes(x, 0, -1), ((2, 3, 4),)),
    "tanh": Case(F.tanh, ((5,),)),
    "transpose": Case(lambda x: F.transpose(x, (2, 0, 1)), ((2, 3, 4),)),
    "transpose reversed": Case(F.transpose, ((2, 3, 4),)),
    "upsample_nearest": Case(lambda x: F.upsample_nearest(x, 2), ((1, 2, 3, 2),)),
    "var": Case(lambda x: F.var(x, 1, ddof=1), ((3, 4, 2),)),
    "where": Case(lambda x, y: F.where(MASK, x, y), ((2, 3), (3,))),
}


def _pick(x, index, axis):
    return np.take_along_axis(x, np.expand_dims(index, axis), axis).squeeze(axis)


def draw(case, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(case.low, case.high, shape) for shape in case.shapes]


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_function_has_a_case():
    public = {
        name
        for name, value in vars(F).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", "").startswith("autodiff.functions.")
    }
    assert len(public) > 50
    assert public == {name.split()[0] for name in CASES}


@every_case
def test_first_order(case):
    rtol = 1e-9 if case.method == "complex" else 1e-8
    check_gradients(case.call, *draw(case), reference=case.reference, method=case.method, rtol=rtol)


@every_case
def test_value_equals_the_reference(case):
    if case.reference is not None:
        arrays = draw(case)
        np.testing.assert_allclose(case.call(*arrays), case.reference(*arrays), rtol=1e-12, atol=1e-13)


@every_case
def test_second_order(case):
    """Hessian-vector products against central differences of gradients."""
    arrays = draw(case)
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(np.shape(case.call(*arrays)))
    vectors = [rng.standard_normal(a.shape) for a in arrays]

    def loss(*inputs):
        y = case.call(*inputs)
        return F.sum(y * y * weights)

    def gradient(step):
        with Tape() as tape:
            inputs = [Variable(a + step * v) for a, v in zip(arrays, vectors)]
            value = loss(*inputs)
        return tape.gradient(value, inputs)

    step = 1e-5
    expected = [(a - b) / (2 * step) for a, b in zip(gradient(step), gradient(-step))]
    for actual, wanted in zip(hvp(loss, tuple(arrays), tuple(vectors)), expected):
        assert np.abs(actual - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), 1e-3)


@every_case
def test_planted_error_is_found(case, monkeypatch):
    """Scaling by 1.001 what any one of the recorded functions passes on makes the check fail."""
    arrays = draw(case)
    with Tape() as tape:
        case.call(*[Variable(a) for a in arrays])
    pull = Function.pull
    for function in {step.function for step in tape.steps}:

        def wrong(self, grad, saved, needs, function=function):
            grads = pull(self, grad, saved, needs)
            return tuple(None if g is None else g * 1.001 for g in grads) if self is function else grads

        monkeypatch.setattr(Function, "pull", wrong)
        with pytest.raises(GradientError):
            check_gradients(case.call, *arrays, reference=case.reference, method=case.method, verbose=False)


@every_case
def test_any_strides(case):
    """Transposed, reversed and sliced arrays give what contiguous ones give, to the last bits."""
    arrays = draw(case)

    def strided(a):
        spread = np.full(tuple(2 * s for s in a.shape[::-1]), np.nan)
        view = spread[tuple(slice(None, None, -2) for _ in a.shape)].T if a.ndim else spread
        view[...] = a
        return view

    def run(inputs):
        with Tape() as tape:
            inputs = [Variable(a) for a in inputs]
            y = case.call(*inputs)
        grad = np.random.default_rng(2).standard_normal(y.shape)
        return [y.data, *tape.gradient(y, inputs, grad=grad)]

    for plain, other in zip(run(arrays), run([strided(a) for a in arrays])):
        np.testing.assert_allclose(plain, other, rtol=1e-12, atol=1e-13)


@every_case
def test_float32_stays_float32(case):
    arrays = [a.astype(np.float32) for a in draw(case)]
    originals = [a.copy() for a in arrays]
    with Tape() as tape:
        inputs = [Variable(a) for a in arrays]
        y = case.call(*inputs)
    assert case.call(*arrays).dtype == y.dtype
    grads = tape.gradient(y, inputs, grad=np.ones(y.shape, y.dtype))
    assert [g.dtype for g in grads] == [np.float32] * len(grads)
    assert [g.shape for g in grads] == [a.shape for a in arrays]
    for before, after in zip(originals, arrays):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        (F.add, ((0, 3), (3,))),
        (F.multiply, ((2, 0), (1,))),
        (F.sum, ((0, 3),)),
        (lambda x: F.mean(x, 0), ((2, 0),)),
        (F.matmul, ((2, 0), (0, 3))),
        (lambda x: F.softmax(x, 0), ((3, 0),)),
        (lambda x: F.softmax(x, 1), ((3, 0),)),
        (lambda x: F.reshape(x, (0, 6)), ((2, 0, 3),)),
        (lambda x: F.getitem(x, slice(0, 0)), ((4, 2),)),
        (lambda x, y: F.concatenate([x, y]), ((0, 2), (3, 2))),
        (lambda x, w, b: F.conv2d(x, w, b, padding=1), ((0, 3, 4, 4), (2, 3, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b, padding=1), ((2, 3, 0, 4), (2, 3, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 2, 2), (2, 3, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 0, 4, 4), (2, 0, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 4, 4), (0, 3, 3, 3), (0,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((0, 3, 4, 4), (2, 3, 1, 1), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 0, 4), (0, 3, 1, 1), (0,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 0, 4, 4), (2, 0, 1, 1), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b, groups=3), ((2, 3, 0, 0), (3, 1, 1, 1), (3,))),
        (lambda x: F.avg_pool2d(x, 2), ((0, 2, 4, 4),)),
        (lambda x: F.max_pool2d(x, 2), ((0, 2, 4, 4),)),
        (lambda x: F.pixel_shuffle(x, 2), ((0, 4, 2, 2),)),
        (lambda x: F.resize(x, (3, 3)), ((0, 2, 4, 4),)),
    ],
)
def test_zero_size(call, shapes):
    with Tape() as tape:
        inputs = [Variable(np.ones(s)) for s in shapes]
        y = call(*inputs)
    grads = tape.gradient(y, inputs, grad=np.ones(y.shape))
    assert [g.shape for g in grads] == list(shapes)
    assert all(np.isfinite(g).all() for g in grads)


BINARY = {"add": F.add, "subtract": F.subtract, "multiply": F.multiply, "divide": F.divide, "power": F.power}


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=15, deadline=None)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0))
def test_broadcasting(name, shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 2, shape) for shape in shapes.input_shapes]
    check_gradients(BINARY[name], *arrays, method="complex", verbose=False)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_conv2d_drawn(data):
    def pick(*values):
        return data.draw(st.sampled_from(values))

    groups = pick(1, 2, 3)
    kernel = pick(1, 2, 3), pick(1, 2, 4)
    weight = (groups * pick(1, 2), pick(1, 2), *kernel)
    shape = (pick(1, 2), groups * weight[1], pick(1, 3, 6), pick(2, 5))
    options = ((pick(1, 2, 3), pick(1, 2)), (pick(0, 1, 3), pick(0, 2)), (pick(1, 2), pick(1, 3)))
    spans = [shape[2 + i] + 2 * options[1][i] - options[2][i] * (kernel[i] - 1) for i in (0, 1)]
    if min(spans) >= 1:
        case = conv_case(shape, weight, *options, groups)
        check_gradients(case.call, *draw(case), reference=case.reference, method="complex", verbose=False)


@pytest.mark.parametrize("size", [1, 500, 3000])
def test_conv2d_in_several_tiles(monkeypatch, size):
    """Tiles of some rows, of parts of a row, and of single outputs."""
    monkeypatch.setattr("autodiff.functions.convolution.TILE_BYTES", size)
    for name in ("conv2d", "conv2d strided", "conv2d grouped"):
        case = CASES[name]
        check_gradients(case.call, *draw(case), reference=case.reference, method="complex", verbose=False)


def test_conv2d_needs_little_scratch():
    """Forward and backward of a large kernel on a wide image: unfolded whole, the input would take 100 MB."""
    x, w = np.ones((1, 64, 8, 1024), np.float32), np.ones((4, 64, 7, 7), np.float32)
    tracemalloc.start()
    try:
        with Tape(check=False) as tape:
            inputs = [Variable(x), Variable(w)]
            y = F.conv2d(*inputs, padding=3)
        tape.gradient(y, inputs, grad=y.data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes + 2 * y.data.nbytes + w.nbytes + (8 << 20)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 2, 3, 3))),
            ValueError,
            r"C/groups = 3, got \(2, 2, 3, 3\)",
        ),
        (
            lambda: F.conv2d(np.ones((3, 4, 4)), np.ones((2, 2, 3, 3))),
            ValueError,
            r"x must be \(N, C, H, W\)",
        ),
        (lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), stride=0), ValueError, "stride"),
        (lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), stride=1.5), TypeError, "stride"),
        (lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), groups=2), ValueError, "groups"),
        (
            lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), np.ones(3)),
            ValueError,
            r"bias must be \(O,\)",
        ),
        (lambda: F.mse(np.ones((3, 1)), np.ones(3)), ValueError, "mse: prediction and target"),
        (lambda: F.pixel_shuffle(np.ones((1, 6, 2, 2)), 2), ValueError, "6 channels"),
        (lambda: F.max_pool2d(np.ones((1, 1, 4, 4)), 2, padding=2), ValueError, "padding"),
        (lambda: F.cross_entropy(np.ones((3, 2)), np.ones(3)), ValueError, "cross_entropy"),
        (lambda: F.squeeze(np.ones((3, 2)), 0), ValueError, "squeeze"),
        (lambda: F.nonsense, AttributeError, "nonsense"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_slopes_at_kinks():
    """Where a function has no slope, the one documented."""
    with Tape() as tape:
        x = Variable(np.zeros(1))
        values = [F.abs(x), F.relu(x), F.maximum(x, 0.0), F.power(x, 0), F.power(x, 1), F.clip(x, 0, 1)]
    slopes = [float(tape.gradient(v, x, keep=True, grad=np.ones(1))[0]) for v in values]
    assert slopes == [0, 0, 0.5, 0, 1, 1]


def test_where_keeps_nan_out():
    with Tape() as tape:
        x = Variable(np.array([-1.0, 4.0]))
        y = F.sum(F.where(x > 0, F.sqrt(F.where(x > 0, x, 1.0)), 0.0))
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 0.25])


def test_nan_passes_through():
    for f in (F.relu, F.sigmoid, F.leaky_relu, F.softplus, F.abs, F.softmax):
        assert np.isnan(f(np.array([np.nan, 1.0]))).any()


def test_large_values_do_not_overflow():
    x = np.array([-1e4, -800.0, 0.0, 800.0, 1e4])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_allclose(F.sigmoid(x), [0, 0, 0.5, 1, 1])
        np.testing.assert_allclose(F.softplus(x), [0, 0, np.log(2), 800, 1e4])
        np.testing.assert_allclose(F.softmax(x), [0, 0, 0, 0, 1])
        assert np.isfinite(F.log_softmax(x)).all()


def test_operators_of_dynarray_are_functions():
    assert set(lifted) <= set(dir(F))
    assert all(getattr(F, name) is function for name, function in lifted.items())
