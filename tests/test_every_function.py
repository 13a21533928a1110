"""Every function of `autodiff.functions` and every layer: first and second derivative, at special values too.

The table is `CASES` and `LAYER_CASES`; a public function or layer that is not in it fails here.
"""

import inspect

import numpy as np
import pytest
from _function_cases import CASES, draw, public_functions
from _layer_cases import LAYER_CASES

import dynarray
from autodiff import Tape, Variable, check_gradients, grad, hvp, layers
from autodiff import functions as F

EVERY = {**CASES, **LAYER_CASES}
every_case = pytest.mark.parametrize("case", EVERY.values(), ids=EVERY.keys())


@pytest.fixture(autouse=True)
def definitions():
    """The operators inside of layers by their definition, which takes complex numbers."""
    with dynarray.use_backend("reference"):
        yield


def test_every_function_has_a_case():
    assert len(public_functions()) > 75
    assert public_functions() == {name.split()[0] for name in CASES}


def test_every_layer_has_a_case():
    public = {name for name, value in vars(layers).items() if inspect.isclass(value)}
    assert public - {"Module", "Stateless"} == {name.split()[0].strip(",") for name in LAYER_CASES}


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


INF, NAN, ANY = np.inf, np.nan, None
S = 1 / (1 + np.exp(-2.0))  # sigmoid(2)
PHI, DENSITY = 0.9772498680518208, np.exp(-2.0) / np.sqrt(2 * np.pi)  # of the normal distribution at 2

# The slope at 0, 2, infinity, minus infinity and NaN, and the second derivative at 0: worked out by hand.
# Outside of its domain a function may have any slope.
ELEMENTWISE = {
    "abs": (0, 1, 1, -1, NAN, 0),
    "cos": (0, -np.sin(2), NAN, NAN, NAN, -1),
    "erf": (2 / np.sqrt(np.pi), 2 / np.sqrt(np.pi) * np.exp(-4), 0, 0, NAN, 0),
    "exp": (1, np.exp(2), INF, 0, NAN, 1),
    "gelu": (0.5, PHI + 2 * DENSITY, 1, 0, NAN, np.sqrt(2 / np.pi)),
    "leaky_relu": (0.01, 1, 1, 0.01, ANY, 0),
    "log": (INF, 0.5, 0, ANY, NAN, -INF),
    "log1p": (1, 1 / 3, 0, ANY, NAN, -1),
    "negative": (-1, -1, -1, -1, -1, 0),
    "relu": (0, 1, 1, 0, 1, 0),
    "sigmoid": (0.25, S * (1 - S), 0, 0, NAN, 0),
    "silu": (0.5, S * (1 + 2 * (1 - S)), 1, 0, NAN, 0.5),
    "sin": (1, np.cos(2), NAN, NAN, NAN, 0),
    "softplus": (0.5, S, 1, 0, NAN, 0.25),
    "sqrt": (INF, 0.5 / np.sqrt(2), 0, ANY, NAN, -INF),
    "square": (0, 4, INF, -INF, NAN, 2),
    "tanh": (1, 1 - np.tanh(2) ** 2, 0, 0, NAN, 0),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_elementwise_at_special_values(name):
    """One by one as arrays without axes, and all in one array, where they must not touch each other."""
    f, (*slopes, bend) = getattr(F, name), ELEMENTWISE[name]
    points = np.array([0, 2, INF, -INF, NAN])
    together = grad(lambda x: F.sum(f(x)))(points)
    alone = [grad(f)(point) for point in points]
    assert [np.shape(slope) for slope in alone] == [()] * 5
    for found in (together, np.array(alone)):
        kept = [i for i, slope in enumerate(slopes) if slope is not ANY]
        np.testing.assert_allclose(found[kept], [slopes[i] for i in kept], rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(grad(grad(f))(0.0), bend, rtol=1e-12, atol=1e-300)
    assert np.isfinite(grad(lambda x: F.sum(grad(lambda y: F.sum(f(y)))(x)))(points)[1])


# Function, arguments, the gradient of the sum of its values by each argument, and, where it is not 0, that of
# the sum of the first gradient: at ties, at corners, and beside what is not finite.
SPECIAL = {
    "maximum of equal": (F.maximum, ([1, 2, 3], [1, 5, 2]), ([0.5, 0, 1], [0.5, 1, 0])),
    "maximum of NaN": (F.maximum, ([NAN, 1, NAN], [1, NAN, NAN]), ([1, 0, 0.5], [0, 1, 0.5])),
    "maximum of infinity": (F.maximum, ([INF, -INF, INF], [1, 1, INF]), ([1, 0, 0.5], [0, 1, 0.5])),
    "minimum of equal": (F.minimum, ([1, 2, 3], [1, 5, 2]), ([0.5, 1, 0], [0.5, 0, 1])),
    "minimum of NaN": (F.minimum, ([NAN, 1, NAN], [1, NAN, NAN]), ([1, 0, 0.5], [0, 1, 0.5])),
    "max of equal": (F.max, ([2, 1, 2, 2],), ([1 / 3, 0, 1 / 3, 1 / 3],)),
    "max of NaN": (F.max, ([2, NAN, 1],), ([0, 1, 0],)),
    "min of NaN": (F.min, ([2, NAN, NAN],), ([0, 0.5, 0.5],)),
    "max of infinity": (F.max, ([2, -INF, INF],), ([0, 0, 1],)),
    "max without axes": (F.max, (2.0,), (1.0,)),
    "clip at the ends": (lambda x: F.clip(x, -1, 1), ([-1, 1, 2, -INF, NAN],), ([1, 1, 0, 0, 1],)),
    "clip, limits crossed": (F.clip, ([0.0, 5.0], 3.0, 2.0), ([0, 0], 0.0, 2.0)),
    "clip, limits reached": (F.clip, ([0.0, 5.0, 2.5], 1.0, 3.0), ([0, 0, 1], 1.0, 1.0)),
    "power of 0": (F.power, ([0, 0, 0, 0], [0, 1, 2, 0.5]), ([0, 1, 0, INF], [0, 0, 0, 0])),
    "power 0 of anything": (lambda x: F.power(x, 0), ([0, INF, NAN, -2],), ([0, 0, 0, 0],)),
    "hypot at the origin": (F.hypot, ([0, 3], [0, 4]), ([0, 0.6], [0, 0.8]), [0, 16 / 125]),
    "hypot of large numbers": (F.hypot, (3e200, 4e200), (0.6, 0.8)),
    "arctan2 at the origin": (F.arctan2, ([0, 1], [0, 1]), ([0, 0.5], [0, -0.5]), [0, -0.5]),
    "arctan2 of small numbers": (F.arctan2, (0.0, 1e-200), (1e200, 0.0), ANY),
    "norm of 0": (F.norm, ([0, 0, 0],), ([0, 0, 0],)),
    "norm of some 0": (
        lambda x: F.norm(x, axis=1),
        ([[0, 0], [3, 4]],),
        ([[0, 0], [0.6, 0.8]],),
        [[0, 0], [0.032, -0.024]],
    ),
    "norm of order 3 of 0": (lambda x: F.norm(x, 3), ([0, 0],), ([0, 0],)),
    "norm of equal": (lambda x: F.norm(x, INF), ([2, -2, 1],), ([0.5, -0.5, 0],)),
    "std of equal": (F.std, ([7, 7, 7],), ([0, 0, 0],)),
    "var of one": (F.var, ([7],), ([0],)),
    "prod of one 0": (F.prod, ([2, 0, 3],), ([0, 6, 0],), [3, 5, 2]),
    "prod of two 0": (F.prod, ([0, 0, 3],), ([0, 0, 0],), [3, 3, 0]),
    "prod of infinity": (F.prod, ([INF, 2],), ([2, INF],)),
    "prod without axes": (F.prod, (2.0,), (1.0,)),
    "cumsum of infinity": (F.cumsum, ([1, INF, 2],), ([3, 2, 1],)),
    "sort of equal": (lambda x: F.sort(x) * np.array([1, 2, 3, 4]), ([5, 1, 5, NAN],), ([2, 1, 3, 4],)),
    "logsumexp beside -infinity": (F.logsumexp, ([0, -INF, 0],), ([0.5, 0, 0.5],)),
    "logsumexp of nothing": (F.logsumexp, ([-INF, -INF],), ([0, 0],)),
    "logsumexp of infinity": (F.logsumexp, ([INF, 1, INF],), ([0.5, 0, 0.5],)),
    "logsumexp of large numbers": (F.logsumexp, ([1000, 1000],), ([0.5, 0.5],)),
    "softmax beside -infinity": (lambda x: F.softmax(x)[0], ([0, -INF, 0],), ([0.25, 0, -0.25],)),
    "where": (
        lambda x: F.where(x > 0, F.sqrt(F.where(x > 0, x, 1.0)), 0.0),
        ([-1, 4],),
        ([0, 0.25],),
        [0, -1 / 32],
    ),
    "smooth_l1 of infinity": (lambda x: F.smooth_l1(x, np.zeros(2)), ([INF, 0.5],), ([0.5, 0.25],), [0, 0.5]),
    "smooth_l1 at its corner": (lambda x: F.smooth_l1(x, np.zeros(2)), ([1, -1],), ([0.5, -0.5],)),
    "l1 of equal": (F.l1, ([1, 2], [1, 3]), ([0, -0.5], [0, 0.5])),
    "max_pool2d of NaN": (lambda x: F.max_pool2d(x, 2), ([[[[1, NAN], [3, NAN]]]],), ([[[[0, 1], [0, 0]]]],)),
    "max_pool2d of equal": (lambda x: F.max_pool2d(x, 2), ([[[[1, 3], [3, 3]]]],), ([[[[0, 1], [0, 0]]]],)),
    "max_pool2d of -infinity": (
        lambda x: F.max_pool2d(x, 2, padding=1),
        ([[[[-INF, 2], [-INF, -INF]]]],),
        ([[[[1, 1], [1, 1]]]],),
    ),
    "astype of integers": (lambda x: F.astype(F.astype(x, int), float) * 3, ([0.5, 2.7],), ([0, 0],)),
    "astype of bool": (lambda x: F.astype(F.astype(x, bool), float), ([0.0, 2.7],), ([0, 0],)),
    "cross_entropy ignoring NaN": (
        lambda x: F.cross_entropy(x, np.array([0, 9, 9]), ignore_index=9),
        ([[0, 0], [NAN, 1], [INF, INF]],),
        ([[-0.5, 0.5], [0, 0], [0, 0]],),
    ),
    "end_point_error of equal": (
        F.end_point_error,
        ([[[1.0, 2], [1, 2]]], [[[1.0, 5], [1, 6]]]),
        ([[[0, -0.3], [0, -0.4]]], [[[0, 0.3], [0, 0.4]]]),
        [[[0, 0.016], [0, -0.012]]],
    ),
    "pad of one element": (lambda x: F.pad(x, 2, "reflect"), ([3],), ([5],)),
    "take twice": (lambda x: F.take(x, [1, 1, -1]), ([1, 2, 3],), ([0, 2, 1],)),
    "dropout of infinity": (
        lambda x: F.dropout(x, 0.5, rng=np.random.default_rng(0)),
        (np.full(4, INF),),
        (2.0 * (np.random.default_rng(0).random(4, np.float32) >= 0.5),),
    ),
    "batch_norm of a constant": (
        lambda x: F.batch_norm(x, np.ones(1), np.zeros(1)) * np.arange(4).reshape(1, 1, 2, 2),
        (np.full((1, 1, 2, 2), 1e30),),
        (np.array([[[[-1.5, -0.5], [0.5, 1.5]]]]) / np.sqrt(1e-5),),
    ),
}


@pytest.mark.parametrize("case", SPECIAL.values(), ids=SPECIAL.keys())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_special_values(case):
    """The gradients known by hand, also while a second tape records; and gradients of them."""
    f, given, expected, *bends = case
    arrays = [np.array(values, float) for values in given]
    gradient = grad(lambda *inputs: F.sum(f(*inputs)), tuple(range(len(arrays))))
    recorded = []

    def slope(*inputs):
        recorded.extend(gradient(*inputs))
        return F.sum(recorded[0])

    bend = grad(slope)(*arrays)
    for found in (gradient(*arrays), [part.data for part in recorded]):
        for actual, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-300)
    wanted = bends[0] if bends else np.zeros(bend.shape)
    if wanted is not ANY and np.isfinite(recorded[0].data).all():
        np.testing.assert_allclose(bend, wanted, rtol=1e-12, atol=1e-12)
