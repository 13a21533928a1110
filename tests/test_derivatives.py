"""`grad`, `value_and_grad`, `vjp` and the others: what they return, and what becomes of it."""

import asyncio
import copy
import gc
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from autodiff import Tape, Variable, grad, hessian, hvp, jacobian, jvp, stop_gradient, value_and_grad, vjp
from autodiff import functions as F


def test_derivative_functions():
    a, b = np.array([1.0, 2.0]), np.array([3.0, 5.0])

    def f(x, y):
        return F.sum(x * x * y)

    np.testing.assert_array_equal(grad(f)(a, b), 2 * a * b)
    np.testing.assert_array_equal(grad(f, 1)(a, b), a * a)
    value, (ga, gb) = value_and_grad(f, (0, 1))(a, b)
    assert value == 23
    np.testing.assert_array_equal(ga, 2 * a * b)
    np.testing.assert_array_equal(gb, a * a)
    value, pullback = vjp(lambda x: x * x, a)
    for scale in (1, 2):
        np.testing.assert_array_equal(pullback(np.full(2, scale))[0], 2 * a * scale)
    ha, hb = hvp(f, (a, b), (np.array([1.0, 0]), np.array([0, 1.0])))
    np.testing.assert_array_equal(ha, [2 * b[0], 2 * a[1]])
    np.testing.assert_array_equal(hb, [2 * a[0], 0])


def test_they_nest():
    assert float(grad(grad(grad(lambda x: x**5)))(2.0)) == 240
    # Mixed second derivative of x**2 * y**3 at (2, 3).
    mixed = grad(lambda y: grad(lambda x: x**2 * y**3)(2.0))(3.0)
    assert float(mixed) == 2 * 2 * 3 * 9


def test_hvp_of_variables_is_differentiable():
    """The slope of the second derivative of x**5 in x, at 2: 60 * x**2."""
    assert float(grad(lambda x: hvp(lambda y: y**5, (x,), (1.0,))[0])(2.0)) == 240


def test_hvp_of_a_linear_function_is_zero():
    (product,) = hvp(lambda x: F.sum(x * 3), (np.ones(3),), (np.ones(3),))
    np.testing.assert_array_equal(product, np.zeros(3))


def test_values_are_seen_by_an_outer_tape_through_a_closure():
    def outer(y):
        value, slope = value_and_grad(lambda x: x * x * y)(3.0)
        return value + slope

    assert float(grad(outer)(2.0)) == 9 + 6


def test_parameters_and_types():
    value, slope = value_and_grad(lambda x, *, scale: F.sum(x * scale))(np.ones(2, np.float32), scale=2.0)
    assert type(value) is np.ndarray
    assert value == 4
    assert slope.dtype == np.float32
    assert type(grad(lambda x: x * Variable(2.0))(3.0)) is np.ndarray
    with pytest.raises(ValueError, match="2 vectors for 1 arrays"):
        hvp(F.sum, (np.ones(2),), (np.ones(2), np.ones(2)))
    with pytest.raises(ValueError, match="single number"):
        grad(F.exp)(np.ones(2))


# By name: what is taken of a function of one array, whose values add up to that of sum(x**3).
TAKEN: dict[str, Callable] = {
    "grad": lambda f, x: grad(f)(x),
    "value_and_grad": lambda f, x: sum(value_and_grad(f)(x)),
    "value": lambda f, x: value_and_grad(f)(x)[0],
    "vjp": lambda f, x: vjp(f, x)[1](1.5)[0],
    "value of vjp": lambda f, x: vjp(f, x)[0],
    "jvp": lambda f, x: jvp(f, (x,), (np.ones_like(x.data),))[1],
    "value of jvp": lambda f, x: jvp(f, (x,), (np.ones_like(x.data),))[0],
    "hvp": lambda f, x: hvp(f, (x,), (np.ones_like(x.data),))[0],
    "jacobian": lambda f, x: jacobian(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
    "grad of grad": lambda f, x: grad(lambda y: F.sum(grad(f)(y)))(x),
}


def _task(call: Callable) -> Any:
    async def begun() -> Any:
        waiting = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(later(waiting))
        await asyncio.sleep(0)
        with Tape():  # the task is older than this block
            waiting.set_result(None)
            return await task

    async def later(waiting: asyncio.Future) -> Any:
        await waiting
        return call()

    return asyncio.run(begun())


# Ways to a place where no tape records.
PLACES: dict[str, Callable] = {
    "before": lambda call: call(),
    "thread": lambda call: _pooled(call),
    "thread in the block": lambda call: _pooled(call),
    "task": _task,
    "generator": lambda call: next(iter([call()])),
}


def _pooled(call: Callable) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", TAKEN)
def test_derivatives_taken_where_nothing_records_are_constants_or_refused(name: str, place: str) -> None:
    """Of an argument and of what a closure sees; also after further arithmetic."""
    rng = np.random.default_rng(list(map(ord, name + place)))
    x = Variable(rng.uniform(0.5, 1.5, int(rng.integers(1, 4))), "x")
    seen, other = Variable(rng.uniform(0.5, 1.5), "seen"), Variable(rng.uniform(0.5, 1.5), "other")
    further = rng.choice([lambda v: v, lambda v: 0.5 * v, lambda v: np.sin(v), lambda v: v[..., None]])

    def taken() -> Any:
        return further(TAKEN[name](lambda y: F.sum(y**3) * seen, x))

    with Tape() as tape:
        inside = place == "thread in the block"
        result = PLACES[place](taken) if inside else None
        if inside:
            loss = F.sum(result * other)
    if not inside:
        result = PLACES[place](taken)
        with Tape() as tape:
            loss = F.sum(result * other)
    assert isinstance(result, Variable)
    assert not isinstance(stop_gradient(result), Variable)
    for source in (x, seen):
        with pytest.raises(ValueError, match=r"a result of '\w+' that was not comp.*source 0.*stop_gradient"):
            tape.gradient(loss, source, keep=True)
    # To all others it is a constant, and for itself a source.
    np.testing.assert_allclose(tape.gradient(loss, other, keep=True), np.sum(result.data), rtol=1e-12)
    np.testing.assert_array_equal(tape.gradient(loss, result), np.broadcast_to(other.data, result.shape))
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result)), stop_gradient(result)):
        with Tape() as tape:
            loss = F.sum(copied * x.sum())
        np.testing.assert_allclose(tape.gradient(loss, x), np.full(x.shape, np.sum(result.data)), rtol=1e-12)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_updates_in_a_thread_that_entered_no_tape_are_refused(elsewhere: bool) -> None:
    """Learning to learn by hand: the gradient is an array there, what it moves is none."""
    w = Variable(np.array([0.5, -1.0]), "w")

    def adapted() -> Variable:
        with Tape() as tape:
            loss = F.sum(w**3)
        return w - 0.1 * tape.gradient(loss, w)

    with Tape() as tape:
        moved = _pooled(adapted) if elsewhere else adapted()
        loss = F.sum(moved * moved)
    if elsewhere:
        with pytest.raises(ValueError, match=r"result of 'subtract' that was not comp.*source 0.*stop_grad"):
            tape.gradient(loss, w)
    else:
        slope = 2 * (w.data - 0.3 * w.data**2) * (1 - 0.6 * w.data)
        np.testing.assert_allclose(tape.gradient(loss, w), slope, rtol=1e-12)


def test_derivatives_of_arrays_are_arrays_where_nothing_records() -> None:
    x, hidden = np.array([0.5, 2.0]), Variable(np.array([1.0, 3.0]))
    for of in (lambda y: F.sum(y**3), lambda y: F.sum(y**3 * stop_gradient(hidden))):
        value, pullback = vjp(of, x)
        results = [value, *pullback(1.0), *value_and_grad(of)(x), *jvp(of, (x,), (x,)), *hvp(of, (x,), (x,))]
        results += [jacobian(of)(x), hessian(of)(x)]
        assert {type(result) for result in results} == {np.ndarray}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_another_tape_finds_the_way_through_an_argument(depth: int) -> None:
    """The argument comes from what was given, whether something recorded around the call or nothing did."""
    w, found = Variable(0.86), []

    def f(a: Any) -> Any:
        y = a * a + 5.0 * w
        with Tape() as tape:
            found.append(tape.gradient(y, w))
        return y

    for _ in range(depth):
        f = grad(f)
    f(w)
    assert [float(slope.data) for slope in found] == [2 * 0.86 + 5.0]
    assert float(stop_gradient(grad(lambda a: a * a + 5.0 * w)(w))) == 2 * 0.86


def test_seeds_of_a_pullback_and_vectors_count_where_nothing_records() -> None:
    seed = Variable(2.0, "seed")
    outside = vjp(lambda x: x**3, 3.0)[1](seed)[0], jvp(lambda x: x**3, (3.0,), (seed,))[1]
    for result in outside:
        with Tape() as tape:
            loss = result * seed
        with pytest.raises(ValueError, match=r"result of '(vjp|jvp)'.*not computed.*source 0"):
            tape.gradient(loss, seed)


def test_a_late_pullback_still_depends_on_what_is_gone():
    """Whether what it returns is a Variable follows from the call of vjp, not from what lives by then."""
    _, of_array = vjp(lambda x: x * x, 2.0)
    _, of_variable = vjp(lambda x: x * x, Variable(2.0))
    gc.collect()
    assert isinstance(of_variable(1.0)[0], Variable)
    assert type(of_array(1.0)[0]) is np.ndarray
