"""Values: integers and booleans, 16-bit numbers, what is not finite, large constants, error states."""

import ml_dtypes
import numpy as np
import pytest
from _calls import draw_case
from _contract import make_call
from _function_cases import CASES, draw, every_case, pull
from _wrong_calls import FUNCTIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import dynarray
from autodiff import Tape, Variable, grad, layers
from autodiff import functions as F

INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.bool_]
HALF = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
some_integers = st.sampled_from(INTEGERS).flatmap(lambda kind: arrays(kind, st.integers(1, 6)))
few = settings(max_examples=60)


# --- integers and booleans ---------------------------------------------------------------------------


SAME = (
    "abs add arctan2 cos cumsum exp flip hypot log1p max maximum min minimum multiply outer prod sin sort sum"
)


@pytest.mark.parametrize("name", SAME.split())
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_integers_follow_numpy(name, kind):
    x, y = np.array([[0, 100, 3], [1, 255, 128]]).astype(kind), np.array([[3, 1, 0]]).astype(kind)
    call = (x, y) if len(FUNCTIONS[name]) > 1 and "y" in FUNCTIONS[name] else (x,)
    found, expected = getattr(F, name)(*call), getattr(np, name)(*call)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["mean", "var", "std"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_means_of_integers_follow_numpy(name, kind):
    x = np.array([[0, 100, 3], [1, 255, 128]]).astype(kind)
    found, expected = getattr(F, name)(x, 1), getattr(np, name)(x, 1)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize(
    "call",
    [
        F.softmax,
        F.log_softmax,
        F.logsumexp,
        F.sigmoid,
        F.softplus,
        F.silu,
        F.gelu,
        F.norm,
        lambda x: F.leaky_relu(x, 0.1),
        lambda x: F.mse(x, x[::-1]),
        lambda x: F.l1(x, x[::-1]),
        lambda x: F.smooth_l1(x, x[::-1]),
        lambda x: F.avg_pool2d(x.reshape(1, 1, 2, 3), 2, 1),
        lambda x: F.adaptive_avg_pool2d(x.reshape(1, 1, 2, 3), 2),
        lambda x: F.global_avg_pool(x.reshape(1, 1, 2, 3)),
        lambda x: F.group_norm(x.reshape(1, 2, 3), 2, np.ones(2), np.zeros(2)),
        lambda x: F.cross_entropy(x, np.array([0, 2])),
        lambda x: F.solve(x[:, :2], x[:, 2]),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int64])
def test_fractions_of_integers_are_those_of_floats(call, kind):
    """No step in between may wrap around, or lose what comes after the point."""
    x = np.array([[0, 100, 3], [1, 127, 120]], kind)
    found, expected = call(x), call(x.astype(float))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@few
@given(some_integers, st.integers(0, 2**32))
def test_integers_beside_a_variable(whole, seed):
    """An integer in one argument changes no slope of the other: it is that of the same numbers in floats."""
    rng = np.random.default_rng(seed)
    limits = np.array([-(2.0**31), -129, -128, 0, 1, 127, 128, 255, 2.0**31])
    x = np.where(rng.random(whole.shape) < 0.5, whole.astype(float), rng.choice(limits, whole.shape))
    for f in (F.minimum, F.maximum, F.add, F.subtract, F.multiply, F.hypot, F.arctan2):
        for call in (f, lambda a, b, f=f: f(b, a)):
            (found,) = pull(lambda v, call=call: call(v, whole), x)
            (expected,) = pull(lambda v, call=call: call(v, whole.astype(float)), x)
            np.testing.assert_array_equal(found, expected)
    for call in (
        lambda v, w: F.clip(v, w, None),
        lambda v, w: F.clip(v, None, w),
        lambda v, w: F.clip(w, v, v),
    ):
        (found,), (expected,) = (
            pull(lambda v, w=w, call=call: call(v, w), x) for w in (whole, whole.astype(float))
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", INTEGERS[:-1])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_power_of_the_least_integer(kind):
    """The exponent less 1 must not be the largest integer."""
    least = np.iinfo(kind).min
    (found,) = pull(lambda x: F.power(x, np.array([least, 0, 1, 3], kind)), np.array([2.0, 2.0, 2.0, 2.0]))
    expected = float(least) * 2.0 ** (float(least) - 1)
    np.testing.assert_allclose(found, [expected, 0, 1, 12])
    np.testing.assert_allclose(pull(lambda x: x ** kind(least), np.array(2.0)), [expected])


@pytest.mark.parametrize("kind", INTEGERS)
def test_casts_to_integers_have_no_slope_but_a_path(kind):
    x = Variable(np.array([0.5, 2.7]))
    with Tape() as tape:
        y = F.sum(F.astype(F.astype(x, kind), np.float64) * 3)
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 0])


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int64, np.bool_])
@pytest.mark.parametrize("size", [(1, 7), (3, 3), (5, 2)])
def test_resized_integers_are_rounded(kind, size):
    x = np.random.default_rng(0).integers(0, 127, (2, 3, 4, 5)).astype(kind)
    found = F.resize(x, size)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, np.rint(F.resize(x.astype(float), size)).astype(kind))


@pytest.mark.parametrize("kind", INTEGERS)
def test_max_pool2d_of_integers(kind):
    least = False if kind is np.bool_ else np.iinfo(kind).min
    x = np.full((1, 1, 3, 3), least, kind)
    x[0, 0, 1, 1] += 1
    found = F.max_pool2d(x, 2, 2, 1)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, [[[[least, least], [least, x[0, 0, 1, 1]]]]])


# --- what is not finite, what is constant -------------------------------------------------------------


@few
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1))
def test_max_pool2d_gives_each_gradient_to_one_pixel(seed, kernel, stride, padding):
    """Whatever stands there: the number of windows is the sum of the gradient."""
    rng = np.random.default_rng(seed)
    x = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1.0, 2.0], (2, 2, 5, 4))
    padding = min(padding, kernel // 2)
    (found,) = pull(lambda v: F.max_pool2d(v, kernel, stride, padding), x)
    assert found.sum() == F.max_pool2d(x, kernel, stride, padding).size
    if np.isnan(x).any() and stride <= kernel:
        assert (found[np.isnan(x)] > 0).any()


@few
@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.floats(-1, 1, width=16),
    st.integers(-5, 5),
    array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=6),
)
def test_a_constant_is_normalised_to_zero(kind, fraction, exponent, shape):
    """However large it is: the result is the bias."""
    top = np.finfo(kind).maxexp - 1
    value = kind(np.ldexp(fraction, top if exponent == 5 else exponent * top // 6))
    x, weight = np.full(shape, value, kind), np.full(shape[1], 3, kind)
    bias = np.linspace(-1, 1, shape[1]).astype(kind)
    expected = np.broadcast_to(bias[:, None, None], shape)
    np.testing.assert_array_equal(F.batch_norm(x, weight, bias), expected)
    np.testing.assert_array_equal(F.group_norm(x, shape[1], weight, bias), expected)
    assert not F.var(x).any() and not F.std(x, (0, 2)).any()
    filters = np.full((shape[0], 9 * shape[1], *shape[2:]), value, kind)
    np.testing.assert_array_equal(
        layers.FilterNorm(3)(filters), np.zeros((shape[0], shape[1], 3, 3, *shape[2:]))
    )
    if shape[0] * shape[2] * shape[3] > 1:
        layer = layers.BatchNorm2d(shape[1], dtype=kind)
        np.testing.assert_array_equal(layer(x).data, np.zeros(shape, kind))


@few
@given(st.integers(0, 2**32), st.sampled_from([-100, 255, 0, 7]), st.sampled_from([np.float32, np.float64]))
def test_cross_entropy_ignores_whatever_stands_there(seed, ignored, kind):
    """The loss, and the gradient of what counts, are those of the elements that count, alone."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((3, 4, 5)).astype(kind)
    labels = rng.integers(1, 4, (3, 5))
    out = rng.random((3, 5)) < 0.5
    labels[out] = ignored
    rubbish = rng.choice([np.nan, np.inf, -np.inf, 1e30], (3, 4, 5)).astype(kind)
    filled = np.where(out[:, None], rubbish, logits)
    kept = np.moveaxis(logits, 1, -1)[~out]
    (found,) = pull(lambda x: F.cross_entropy(x, labels, ignore_index=ignored), filled)
    assert (np.moveaxis(found, 1, -1)[out] == 0).all()
    if not out.all():
        alone = labels[~out]
        expected = F.cross_entropy(kept, alone)
        np.testing.assert_allclose(F.cross_entropy(filled, labels, ignore_index=ignored), expected, rtol=1e-5)
        (gradient,) = pull(lambda x: F.cross_entropy(x, alone), kept)
        np.testing.assert_allclose(np.moveaxis(found, 1, -1)[~out], gradient, rtol=1e-5, atol=1e-7)


# --- 16 bits ------------------------------------------------------------------------------------------

LONG = (3000, 2)
SUMS = {
    "sum": (lambda x: F.sum(x, 0), (LONG,)),
    "mean": (lambda x: F.mean(x, 0), (LONG,)),
    "var": (lambda x: F.var(x, 0), (LONG,)),
    "std": (lambda x: F.std(x, 0), (LONG,)),
    "norm": (lambda x: F.norm(x, axis=0), (LONG,)),
    "cumsum": (lambda x: F.cumsum(x, 0), (LONG,)),
    "logsumexp": (lambda x: F.logsumexp(x, 0), (LONG,)),
    "matmul": (F.matmul, ((2, 3000), LONG)),
    "tensordot": (lambda x, y: F.tensordot(x, y, 1), ((2, 3000), LONG)),
    "einsum": (lambda x, y: F.einsum("ij,ij->j", x, y), (LONG, LONG)),
    "einsum alone": (lambda x: F.einsum("ij->j", x), (LONG,)),
    "linear": (F.linear, ((2, 3000), (3, 3000), (3,))),
    "conv2d": (F.conv2d, ((1, 30, 10, 10), (2, 30, 10, 10), (2,))),
    "conv2d depthwise": (lambda x, w: F.conv2d(x, w, groups=2), ((1, 2, 50, 60), (2, 1, 50, 60))),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w), ((1, 30, 9, 9), (30, 1, 9, 9))),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 50), ((1, 1, 50, 60),)),
    "group_norm": (lambda x, w, b: F.group_norm(x, 1, w, b), ((1, 2, 40, 50), (2,), (2,))),
    "batch_norm": (F.batch_norm, ((2, 2, 40, 40), (2,), (2,))),
    "mse": (F.mse, (LONG, LONG)),
    "l1": (F.l1, (LONG, LONG)),
    "cross_entropy": (lambda x: F.cross_entropy(x, np.zeros(3000, int)), (LONG,)),
    "bias": (lambda x, b: F.add(x, b), (LONG, (2,))),
    "bias in rows": (lambda x, b: F.multiply(x, b), (LONG, (3000, 1))),
    "broadcast_to": (lambda x: F.broadcast_to(x, LONG), ((2,),)),
    "take": (lambda x: F.take(x, np.zeros(3000, int)), ((2,),)),
    "pad": (lambda x: F.pad(x, 3000, "edge"), ((2,),)),
}


@pytest.mark.parametrize("kind", HALF, ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_16_bit_values_are_added_up_in_float32(name, kind):
    """Values and gradients have the error of few roundings, not of thousands: against float64 of the same."""
    f, shapes = SUMS[name]
    rng = np.random.default_rng(0)
    given = [rng.uniform(0.5, 1.5, shape).astype(kind) for shape in shapes]
    exact = [a.astype(float) for a in given]
    value = f(*exact)
    seed = rng.uniform(0.5, 1.5, value.shape).astype(kind)
    found = [f(*given), *pull(f, *given, seed=seed)]
    expected = [value, *pull(f, *exact, seed=seed.astype(float))]
    unit = float(ml_dtypes.finfo(kind).eps)
    for actual, wanted, like in zip(found, expected, [given[0], *given]):
        assert actual.dtype == like.dtype
        scale = np.abs(wanted).max()
        assert np.abs(actual.astype(float) - wanted).max() <= 2 * unit * scale


@pytest.mark.parametrize("kind", HALF, ids=str)
@every_case
def test_16_bits_stay_16_bits(case, kind):
    given = [a.astype(kind) for a in draw(case)]
    with Tape() as tape:
        inputs = [Variable(a) for a in given]
        y = case.call(*inputs)
    if case is CASES["channel_statistics"]:
        assert y.dtype == np.float32  # as they are used: in sums
        return
    assert y.dtype == kind
    assert {g.dtype for g in tape.gradient(y, inputs, grad=np.ones(y.shape, kind))} == {kind}


# --- error states -------------------------------------------------------------------------------------

LARGE = np.array([-1e4, -800.0, -40.0, 0.0, 40.0, 800.0, 1e4])
SMOOTH = {
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "logsumexp": F.logsumexp,
    "sigmoid": F.sigmoid,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "erf": F.erf,
    "tanh": F.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "abs": F.abs,
    "norm": F.norm,
    "std": F.std,
    "std of a constant": lambda x: F.std(x * 0 + 3.0),
    "max": F.max,
    "clip": lambda x: F.clip(x, -1, 1),
    "sort": F.sort,
    "hypot": lambda x: F.hypot(x, x),
    "arctan2": lambda x: F.arctan2(x, x),
    "batch_norm": lambda x: F.batch_norm(x.reshape(1, 1, 1, 7), np.ones(1, x.dtype), np.zeros(1, x.dtype)),
    "cross_entropy": lambda x: F.cross_entropy(F.reshape(x, (1, 7)), np.array([3])),
    "mse": lambda x: F.mse(x, -x),
    "smooth_l1": lambda x: F.smooth_l1(x, -x),
    "power": lambda x: F.power(x, 2),
    "prod": lambda x: F.prod(x),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numpy_may_raise_on_errors_of_large_values(name, kind):
    with np.errstate(all="raise"):
        (found,) = pull(SMOOTH[name], LARGE.astype(kind))
    assert np.isfinite(found).all()


@every_case
def test_numpy_may_raise_on_errors(case):
    given = draw(case)
    with np.errstate(all="raise"):
        pull(case.call, *given)
        grad(lambda *inputs: F.sum(F.square(grad(lambda *x: F.sum(case.call(*x)))(*inputs))))(*given)


@pytest.mark.parametrize("name", dynarray.OPERATORS)
def test_numpy_may_raise_on_errors_of_operators(name):
    operator = dynarray.OPERATORS[name]
    call = make_call(operator, draw_case(operator, lambda values: values[0], N=1, H=4, W=5), 0)
    # The taps of so narrow a blur underflow.
    narrow = dict.fromkeys({"sigma"}.intersection(operator.arrays), 0.02)
    named = {**dict(zip(operator.arrays, call.arrays)), **narrow}
    for backend in ("cpu", "reference"):
        with np.errstate(all="raise"), dynarray.use_backend(backend):
            operator.run(tuple(named[n] for n in operator.arrays), call.params)
