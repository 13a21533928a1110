"""Every operator of dynarray on the tape."""

import inspect
import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from _calls import draw_case
from _contract import make_call

import dynarray
from autodiff import SecondOrderError, Tape, Variable, check_gradients, grad, hvp, lift
from autodiff import functions as F
from autodiff.lift import lifted

OPERATORS = dynarray.OPERATORS


def draw(operator, seed):
    """Arrays and parameters of a valid, non-empty call."""
    rng = np.random.default_rng(seed)
    while True:
        case = draw_case(operator, lambda values: list(values)[rng.integers(len(list(values)))])
        if all(0 < np.prod(s) < 4000 for s in case.shapes.values() if s is not None):
            return make_call(operator, case, seed).arrays, case.params


def apply(operator, arrays, params):
    """The lifted operator, on arrays or Variables."""
    positional, by_keyword = operator.arguments(arrays)
    return lifted[operator.name](*positional, **by_keyword, **params)


every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


def test_the_registry_is_lifted():
    assert set(lifted) == set(OPERATORS)
    assert all(getattr(F, name) is function for name, function in lifted.items())
    assert len(lifted) >= 5


@every_operator
@pytest.mark.parametrize("seed", range(3))
def test_gradients(operator, seed):
    arrays, params = draw(operator, seed)
    given = [i for i, a in enumerate(arrays) if a is not None]

    def call(*values):
        full = [None] * len(arrays)
        for i, value in zip(given, values):
            full[i] = value
        return apply(operator, full, params)

    with dynarray.use_backend("reference"):
        check_gradients(call, *[arrays[i] for i in given], method="complex", rtol=1e-9)


@every_operator
def test_only_traced_arguments_get_gradients(operator, monkeypatch):
    """Every combination of Variables and plain arrays asks the operator for just the gradients it needs."""
    arrays, params = draw(operator, 1)
    asked = []
    original = type(operator).gradients

    def spy(self, grad_output, saved, needs):
        asked.append(needs)
        return original(self, grad_output, saved, needs)

    monkeypatch.setattr(type(operator), "gradients", spy)
    with dynarray.use_backend("reference"):
        y, saved = operator.run(arrays, params)
        full = operator.gradients(np.ones(y.shape), saved, (True,) * len(arrays))
        for traced in itertools.product([False, True], repeat=len(arrays)):
            traced = tuple(t and a is not None for t, a in zip(traced, arrays))
            if not any(traced):
                continue
            asked.clear()
            inputs = [Variable(a) if t else a for a, t in zip(arrays, traced)]
            with Tape() as tape:
                y = apply(operator, inputs, params)
            grads = tape.gradient(y, [v for v in inputs if isinstance(v, Variable)], grad=np.ones(y.shape))
            assert asked == [traced]
            for grad, expected in zip(grads, [g for g, t in zip(full, traced) if t]):
                np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-12)


@every_operator
def test_arrays_give_what_the_operator_gives(operator):
    arrays, params = draw(operator, 2)
    with dynarray.use_backend("reference"):
        y = apply(operator, arrays, params)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, operator(arrays, **params))


def loss_of(operator, arrays, params):
    """A number that depends on all that an operator gives, through a function with second derivatives."""
    given = [i for i, a in enumerate(arrays) if a is not None]

    def loss(*values):
        full = [None] * len(arrays)
        for i, value in zip(given, values):
            full[i] = value
        return F.sum(F.sin(apply(operator, full, params)))

    return loss, tuple(arrays[i] for i in given)


def off_whole_pixels(operator, arrays):
    """The same with no position so near to a whole pixel, where slopes jump, that differences lead across."""
    least = 1e-3
    return [
        np.floor(a) + np.clip(a - np.floor(a), least, 1 - least) if name in ("points", "offset") else a
        for name, a in zip(operator.arrays, arrays, strict=True)
    ]


def central(f, arrays, vectors, step=1e-5):
    """Derivative of the gradients of f along the vectors, by differences of fourth order."""
    places = tuple(range(len(arrays)))
    weights = {1: 8, -1: -8, 2: -1, -2: 1}
    moved = [grad(f, places)(*[a + s * step * v for a, v in zip(arrays, vectors)]) for s in weights]
    return [sum(w * g for w, g in zip(weights.values(), at)) / (12 * step) for at in zip(*moved)]


@every_operator
@pytest.mark.parametrize("seed", range(6))
def test_composite_is_the_operator(operator, seed):
    arrays, params = draw(operator, seed)
    checked = operator.check(*arrays, **{**operator.defaults, **params})
    with dynarray.use_backend("reference"):
        expected = operator(arrays, **params)
    for functions in (np, F):
        y = operator.compose(functions, checked.arrays, checked)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@every_operator
@pytest.mark.parametrize("seed", range(6))
def test_second_order(operator, seed):
    """Hessian-vector products against central differences of the operator's own gradients."""
    arrays, params = draw(operator, seed)
    loss, given = loss_of(operator, off_whole_pixels(operator, arrays), params)
    rng = np.random.default_rng(seed)
    vectors = tuple(rng.standard_normal(a.shape) for a in given)
    with dynarray.use_backend("reference"):
        expected = central(loss, given, vectors)
        for actual, wanted in zip(hvp(loss, given, vectors), expected, strict=True):
            assert np.abs(actual - wanted).max() <= 1e-7 * max(np.abs(wanted).max(), 1e-3)


@every_operator
def test_second_order_on_the_kernels(operator):
    """The backend changes the operator's passes, not the composite: the same products, in float32 too."""
    arrays, params = draw(operator, 3)
    loss, given = loss_of(operator, arrays, params)
    with dynarray.use_backend("reference"):
        expected = hvp(loss, given, given)
    for dtype, rtol in [(np.float64, 1e-11), (np.float32, 1e-4)]:
        cast = tuple(a.astype(dtype) for a in given)
        for actual, wanted in zip(hvp(loss, cast, cast), expected, strict=True):
            assert actual.dtype == dtype
            assert np.abs(actual - wanted).max() <= rtol * np.abs(wanted).max()


@every_operator
def test_third_order(operator):
    arrays, params = draw(operator, 1)
    loss, given = loss_of(operator, arrays, params)
    rng = np.random.default_rng(0)
    vectors = tuple(rng.standard_normal(a.shape) for a in given)

    def second(*values):
        return sum((h * v).sum() for h, v in zip(hvp(loss, values, vectors), vectors))

    with dynarray.use_backend("reference"):
        third = grad(second)(*given)
        moved = [float(second(given[0] + s * vectors[0], *given[1:])) for s in (1e-5, -1e-5)]
    expected = (moved[0] - moved[1]) / 2e-5
    assert abs((third * vectors[0]).sum() - expected) <= 1e-6 * max(abs(expected), 1)


def test_one_variable_in_two_places():
    """Arguments that are the same Variable are told apart: here two kernels of one shape, and the seed."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 1, 1, 1)), rng.standard_normal((1, 1, 1, 1, 1, 1))

    def cube(x, w):
        return F.sum(F.local_filter2d(x, w, w))  # x * w * w

    with dynarray.use_backend("reference"):
        hx, hw = hvp(cube, (x, w), (np.ones_like(x), np.ones_like(w)))
        np.testing.assert_allclose(hx, 2 * w.reshape(x.shape))
        np.testing.assert_allclose(hw, 2 * w + 2 * x.reshape(w.shape))
        with Tape() as outer:
            v, u = Variable(x), Variable(w)
            with Tape() as inner:
                y = F.local_filter2d(v, u, u)
            g = inner.gradient(y, u, grad=v)  # 2 * x * w * x
        np.testing.assert_allclose(outer.gradient(g, v), (4 * x.ravel() * w.ravel()).reshape(x.shape))


@every_operator
def test_without_composite_second_order_is_refused_by_name(operator):
    arrays, params = draw(operator, 0)
    bare = lift(replace(operator, composite=None))
    given = [i for i, a in enumerate(arrays) if a is not None]

    def loss(*values):
        full = [None] * len(arrays)
        for i, value in zip(given, values):
            full[i] = value
        positional, by_keyword = operator.arguments(tuple(full))
        return F.sum(F.square(bare(*positional, **by_keyword, **params)))

    inputs = tuple(arrays[i] for i in given)
    message = f"^{operator.name}: a gradient of its gradient"
    with dynarray.use_backend("reference"):
        assert grad(loss)(*inputs).shape == inputs[0].shape
        with pytest.raises(SecondOrderError, match=message):
            hvp(loss, inputs, inputs)


@every_operator
def test_an_outer_tape_that_asks_for_first_order_only_is_served(operator):
    arrays, params = draw(operator, 0)
    with dynarray.use_backend("reference"), Tape() as outer:
        x = Variable(arrays[0])
        with Tape() as inner:
            y = F.sum(apply(operator, (x, *arrays[1:]), params))
        first = inner.gradient(y, x)
        np.testing.assert_array_equal(first.data, outer.gradient(y, x).data)


@every_operator
def test_overwriting_is_detected_and_named(operator):
    arrays, params = draw(operator, 1)
    with dynarray.use_backend("reference"):
        for i, name in enumerate(operator.arrays):
            if arrays[i] is None:
                continue
            inputs = [None if a is None else Variable(a.copy()) for a in arrays]
            with Tape() as tape:
                y = apply(operator, inputs, params)
            inputs[i].data.ravel()[-1] += 1
            with pytest.raises(
                RuntimeError, match=f"^{operator.name}: its argument '{name}' was overwritten"
            ):
                tape.gradient(y, [v for v in inputs if v is not None], grad=np.ones(y.shape))


def test_a_wrong_backward_pass_is_found():
    """An operator whose gradients are off by 0.1 % does not pass the check."""
    operator = OPERATORS["involution"]

    class Wrong(type(operator)):
        def gradients(self, grad_output, saved, needs):
            return tuple(
                None if g is None else 1.001 * g for g in super().gradients(grad_output, saved, needs)
            )

    wrong = lift(Wrong(**{f.name: getattr(operator, f.name) for f in fields(operator) if f.init}))
    arrays, params = draw(operator, 0)
    with dynarray.use_backend("reference"):
        check_gradients(lambda x, w: lift(operator)(x, w, **params), *arrays, verbose=False)
        with pytest.raises(AssertionError):
            check_gradients(lambda x, w: wrong(x, w, **params), *arrays, verbose=False)


def test_docstring_and_signature():
    assert "Decoupled dynamic filter" in F.ddf.__doc__
    assert "dynarray.ddf" in F.ddf.__doc__
    assert list(inspect.signature(F.ddf).parameters)[:3] == ["x", "channel_filter", "spatial_filter"]
    with pytest.raises(TypeError, match="unexpected keyword"):
        F.ddf(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3, 3, 3)), combination="mul")
