"""NumPy's names and ways: axes, lists, nested arrays, borders, empty arrays, what a star import brings."""

import builtins

import numpy as np
import pytest
from _function_cases import pull
from _wrong_calls import FUNCTIONS, call_function
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

import dynarray
from autodiff import Tape, Variable, grad
from autodiff import functions as F

few = settings(max_examples=60)


REDUCTIONS = (
    "sum mean max min prod var std logsumexp softmax log_softmax cumsum sort norm flip expand_dims squeeze"
)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        *((name, {}) for name in REDUCTIONS.split()),
        ("roll", {"shift": 1}),
        ("repeat", {"repeats": 2}),
        ("take", {"indices": [0]}),
        ("take_along_axis", {"indices": np.zeros((2, 3), int)}),
    ],
)
@pytest.mark.parametrize("axis", [-5, 3, 4, 99])
@pytest.mark.parametrize("variable", [True, False])
def test_axes_out_of_range(name, others, axis, variable):
    x = np.ones((2, 3))
    with pytest.raises(np.exceptions.AxisError, match=f"^{name}: .*axis {axis} is out of bounds.*\\(2, 3\\)"):
        getattr(F, name)(Variable(x) if variable else x, axis=axis, **others)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.moveaxis(x, 2, 0),
        lambda x: F.moveaxis(x, 0, -3),
        lambda x: F.swapaxes(x, 0, 2),
        lambda x: F.stack([x, x], 3),
        lambda x: F.concatenate([x, x], -3),
        lambda x: F.transpose(x, (0, 2)),
        lambda x: F.tensordot(x, x, ([2], [0])),
    ],
)
def test_other_axes_out_of_range(call):
    with pytest.raises(np.exceptions.AxisError):
        call(np.ones((2, 3)))


def test_transpose_takes_axes_one_by_one_and_together():
    x = np.arange(24.0).reshape(2, 3, 4)
    v = Variable(x)
    for found in (
        v.transpose(1, 0, 2),
        v.transpose((1, 0, 2)),
        v.transpose([1, 0, 2]),
        F.transpose(v, (1, 0, 2)),
    ):
        np.testing.assert_array_equal(found.data, x.transpose(1, 0, 2))
    for found in (v.transpose(), v.transpose(None), v.T):
        np.testing.assert_array_equal(found.data, x.T)
    for found in (v.reshape(4, 6), v.reshape((4, 6)), v.reshape([4, 6])):
        np.testing.assert_array_equal(found.data, x.reshape(4, 6))


def test_star_import_shadows_nothing():
    names: dict = {}
    exec("from autodiff.functions import *", names)
    assert not {name for name in names if hasattr(builtins, name)} - {"__builtins__", "__doc__"}
    assert {"prod", "einsum", "conv2d", "linalg", "stop_gradient", *dynarray.OPERATORS} <= set(names)
    assert F.linalg.solve is F.solve and F.linalg.inv is F.inv and F.linalg.norm is F.norm


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("getitem", "einsum", "dropout")])
def test_a_list_is_an_array(name):
    given = {argument: value for argument, (value, _) in FUNCTIONS[name].items()}
    listed = {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in given.items()}
    found, expected = call_function(name, listed), call_function(name, given)
    for actual, wanted in zip(np.atleast_1d(found), np.atleast_1d(expected), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_arrays_of_numbers_and_variables():
    with Tape() as tape:
        v, w = Variable(np.float32(2)), Variable(np.array([3.0, 4.0], np.float32))
        made = [
            F.array([[v, 1], [0.5, v * v]]),
            F.array([w, [v, 2.0]]),
            F.stack([v, 1.0, np.float32(3)]),
            F.concatenate([w, [1.0, 2.0]]),
            F.sum([v, w[0], 5]),
        ]
        total = F.sum(F.concatenate([F.reshape(a, (-1,)) for a in made]))
    assert [a.data.tolist() for a in made] == [
        [[2, 1], [0.5, 4]],
        [[3, 4], [2, 2]],
        [2, 1, 3],
        [3, 4, 1, 2],
        10,
    ]
    assert made[0].dtype == made[1].dtype == np.float32
    found = tape.gradient(total, [v, w])
    np.testing.assert_array_equal(found[0], 1 + 4 + 1 + 1 + 1)
    np.testing.assert_array_equal(found[1], [1 + 1 + 1, 1 + 1])
    assert F.array([1, 2]).dtype == np.array([1, 2]).dtype
    assert F.array([[1, 2.0], [3, 4]], np.float32).dtype == np.float32
    x = np.ones(3)
    assert F.array(x) is not x


@few
@given(st.data())
def test_pad_follows_numpy_and_its_adjoint(data):
    mode = data.draw(st.sampled_from(["constant", "reflect", "symmetric", "edge", "wrap"]))
    shape = data.draw(array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    widths = data.draw(
        st.lists(st.tuples(*[st.integers(0, 9)] * 2), min_size=len(shape), max_size=len(shape))
    )
    x = np.random.default_rng(0).standard_normal(shape)
    expected = np.pad(x, widths, mode)
    np.testing.assert_array_equal(F.pad(x, widths, mode), expected)
    seed = np.random.default_rng(1).standard_normal(expected.shape)
    (found,) = pull(lambda v: F.pad(v, widths, mode), x, seed=seed)
    np.testing.assert_allclose((found * x).sum(), (seed * expected).sum(), rtol=1e-9, atol=1e-12)


EMPTY = {
    "abs": (F.abs, ((0, 3),)),
    "array": (lambda x: F.array([x, x]), ((0,),)),
    "arctan2": (F.arctan2, ((0, 3), (3,))),
    "clip": (F.clip, ((0, 3), (3,), ())),
    "cumsum": (lambda x: F.cumsum(x, 0), ((0, 3),)),
    "flatten": (F.flatten, ((0, 3),)),
    "inv": (F.inv, ((0, 2, 2),)),
    "logsumexp": (lambda x: F.logsumexp(x, 0), ((2, 0),)),
    "norm": (F.norm, ((0, 3),)),
    "norm of no lines": (lambda x: F.norm(x, axis=1), ((2, 0),)),
    "outer": (F.outer, ((0,), (3,))),
    "pad": (lambda x: F.pad(x, ((0, 0), (1, 2)), "wrap"), ((0, 3),)),
    "prod": (lambda x: F.prod(x, 0), ((0, 3),)),
    "prod of nothing": (F.prod, ((0,),)),
    "roll": (lambda x: F.roll(x, 1), ((0, 3),)),
    "solve": (F.solve, ((0, 2, 2), (0, 2, 1))),
    "sort": (F.sort, ((2, 0),)),
    "sum": (F.sum, ((0,),)),
    "take": (lambda x: F.take(x, [], 0), ((2, 3),)),
    "take_along_axis": (lambda x: F.take_along_axis(x, np.zeros((0, 3), int), 0), ((2, 3),)),
    "tensordot": (F.tensordot, ((2, 0, 3), (0, 3, 2))),
    "tile": (lambda x: F.tile(x, (2, 0)), ((2, 3),)),
    "triu": (F.triu, ((0, 3),)),
    "var": (lambda x: F.var(x, 1), ((0, 3),)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_arrays(name):
    """Values, gradients and gradients of gradients of nothing, where NumPy knows them."""
    f, shapes = EMPTY[name]
    given = [np.ones(shape) for shape in shapes]
    for found, array in zip(pull(f, *given), given):
        assert found.shape == array.shape
        assert np.isfinite(found).all()
    second = grad(lambda *inputs: F.sum(grad(lambda *x: F.sum(f(*x)))(*inputs)))(*given)
    assert second.shape == shapes[0]


def test_equal_elements_keep_their_order_and_their_gradients():
    x = np.random.default_rng(0).integers(0, 3, 200).astype(float)
    seed = np.arange(200.0)
    (found,) = pull(F.sort, x, seed=seed)
    rank = {v: iter(np.flatnonzero(np.sort(x) == v)) for v in (0, 1, 2)}
    np.testing.assert_array_equal(found, [next(rank[v]) for v in x])


METHODS = {
    "clip": (0.8, 1.5),
    "cumsum": (1,),
    "flatten": (),
    "max": (0,),
    "mean": ((0, 1),),
    "min": (1,),
    "prod": (1,),
    "repeat": (2,),
    "squeeze": (),
    "std": (0,),
    "sum": (1,),
    "swapaxes": (0, 1),
    "take": ([1, 0, 1],),
    "var": (1,),
}
SQUARE = np.random.default_rng(0).uniform(0.5, 2, (3, 3))
CALLS = {
    "arctan2": lambda a: np.arctan2(SQUARE, a),
    "clip": lambda a: np.clip(a, 0.8, None),
    "concatenate": lambda a: np.concatenate([a, SQUARE], axis=1),
    "cumsum": lambda a: np.cumsum(a),
    "einsum": lambda a: np.einsum("ij,jk", a, SQUARE),
    "hypot": lambda a: np.hypot(a, SQUARE),
    "inv": lambda a: np.linalg.inv(a),
    "norm": lambda a: np.linalg.norm(a, axis=1),
    "outer": lambda a: np.outer(a, SQUARE),
    "pad": lambda a: np.pad(a, 1, mode="symmetric"),
    "prod": lambda a: np.prod(a, axis=0),
    "repeat": lambda a: np.repeat(a, 2),
    "roll": lambda a: np.roll(a, 1, axis=0),
    "solve": lambda a: np.linalg.solve(SQUARE, a),
    "sort": lambda a: np.sort(a, axis=0),
    "stack": lambda a: np.stack([a, SQUARE]),
    "std": lambda a: np.std(a, ddof=1),
    "take": lambda a: np.take(a, [0, 2], axis=1),
    "take_along_axis": lambda a: np.take_along_axis(a, np.argsort(SQUARE), axis=1),
    "tensordot": lambda a: np.tensordot(a, SQUARE, axes=1),
    "tile": lambda a: np.tile(a, (2, 1)),
    "tril": lambda a: np.tril(a),
    "where": lambda a: np.where(SQUARE > 1, a, 0.0),
    **{name: lambda a, name=name, args=args: getattr(a, name)(*args) for name, args in METHODS.items()},
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_and_methods_of_numpy_take_variables(name):
    found, expected = CALLS[name](Variable(SQUARE)), CALLS[name](SQUARE)
    assert isinstance(found, Variable)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.data, expected, rtol=1e-12)
