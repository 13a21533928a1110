"""Whose gradient is it: copies of Variables, derivatives within derivatives, one Variable in several
places.
"""

import copy
import pickle

import numpy as np
import pytest

from autodiff import (
    Tape,
    Variable,
    differentiable,
    grad,
    hessian,
    hvp,
    jacobian,
    jvp,
    stop_gradient,
    value_and_grad,
    vjp,
)
from autodiff import functions as F
from autodiff.layers import Linear, Sequential

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "in a list": lambda value: copy.deepcopy([value])[0],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_copies_are_leaves_of_their_own(way, seed):
    rng = np.random.default_rng(seed)
    dtype = rng.choice(["f4", "f8"])
    leaves = [Variable(rng.standard_normal(rng.integers(1, 5)).astype(dtype), "w")]
    for _ in range(rng.integers(1, 6)):
        leaves.append(WAYS[way](leaves[rng.integers(len(leaves))]))
    factors = rng.integers(1, 100, len(leaves)).tolist()
    with Tape() as tape:
        y = sum(F.sum(v * f) for v, f in zip(leaves, factors))
    for v, f, g in zip(leaves, factors, tape.gradient(y, leaves), strict=True):
        assert v.name == "w"
        assert v.dtype == g.dtype == dtype
        np.testing.assert_array_equal(g, np.full(v.shape, f))


def test_tied_parameters_stay_tied_in_a_copy():
    v = Variable(np.array(3.0))
    a, b = copy.deepcopy([v, v])
    assert a is b
    assert a is not v


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_layer_have_parameters_of_their_own(seed):
    rng = np.random.default_rng(seed)
    width, depth, batch = (int(rng.integers(1, 7)) for _ in range(3))
    base = Linear(width, width, rng=0, dtype=np.float64)
    net = Sequential(*(copy.deepcopy(base) for _ in range(depth)))
    assert len(net.parameters()) == 2 * depth
    x = rng.standard_normal((batch, width))
    with Tape() as tape:
        loss = F.sum(net(x))
    grads = tape.gradient(loss, [layer.bias for layer in net.layers])
    # The bias of a layer reaches the loss through the matrices behind it.
    expected = np.full(width, float(batch))
    for g in reversed(grads):
        np.testing.assert_allclose(g, expected, rtol=1e-12)
        expected = base.weight.data.T @ expected


def test_a_frozen_copy_of_a_network_gets_no_gradient():
    """The target network of a temporal difference: a copy is a constant, not the same weights once more."""
    net = Linear(3, 1, rng=0)
    frozen, x = copy.deepcopy(net), np.ones((1, 3), np.float32)
    with Tape() as tape:
        loss = F.mse(net(x), frozen(x) + 1.0)
    gradient, unused = tape.gradient(loss, [net.bias, Variable(0.0)], unused="none")
    assert gradient.item() == -2
    assert unused is None


@pytest.mark.parametrize("way", WAYS)
def test_results_are_not_copied_while_a_tape_records(way):
    x = Variable(np.ones(3))
    with Tape() as tape:
        y = x * 2.0
        with pytest.raises(TypeError, match=r"cannot be copied while a tape records.*stop_gradient"):
            WAYS[way](y)
        WAYS[way](stop_gradient(y))
        WAYS[way](x)
    copied = WAYS[way](y)
    with Tape() as tape:
        z = F.sum(copied * x)
    np.testing.assert_array_equal(tape.gradient(z, x), [2, 2, 2])
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Parameter", (Variable,), {})


def derivative(kind, f, x):
    """The derivative of a function of one number at x, in one of the ways that there are."""
    if kind == "grad":
        return grad(f)(x)
    if kind == "value_and_grad":
        return value_and_grad(f)(x)[1]
    if kind == "vjp":
        return vjp(f, x)[1](np.array(1.0))[0]
    if kind == "jvp":
        return jvp(f, (x,), (np.array(1.0),))[1]
    return jacobian(f)(x)


@pytest.mark.parametrize("seed", range(40))
def test_derivatives_within_derivatives_keep_their_arguments_apart(seed):
    """Level by level, x -> d/dy (x**a * y**b * before(y)) at y = x, where before(y) = c * y**n."""
    rng = np.random.default_rng(seed)
    depth, point = int(rng.integers(1, 4)), float(rng.uniform(0.5, 2))
    f, c, n = (lambda y: 1.0 * y), 1, 1
    for _ in range(depth):
        a, b, kind = int(rng.integers(0, 3)), int(rng.integers(0, 3)), rng.choice(KINDS)

        def level(x, before=f, a=a, b=b, kind=kind):
            return derivative(kind, lambda y: x**a * y**b * before(y), x)

        f, c, n = level, c * (b + n), a + b + n - 1
    expected = c * n * point ** (n - 1) if n else 0.0
    actual = derivative(rng.choice(KINDS), f, Variable(point) if rng.random() < 0.5 else point)
    np.testing.assert_allclose(float(actual), expected, rtol=1e-9)


KINDS = ("grad", "value_and_grad", "vjp", "jvp", "jacobian")


@pytest.mark.parametrize("seed", range(10))
def test_one_variable_for_several_arguments(seed):
    rng = np.random.default_rng(seed)
    powers = rng.integers(1, 4, int(rng.integers(2, 5))).tolist()
    v = Variable(float(rng.uniform(0.5, 2)))

    def product(*args):
        total = 1.0
        for arg, power in zip(args, powers, strict=True):
            total = arg**power * total
        return total

    places = tuple(int(i) for i in rng.permutation(len(powers)))
    grads = grad(product, places)(*[v] * len(powers))
    for place, g in zip(places, grads, strict=True):
        np.testing.assert_allclose(float(g), powers[place] * v.item() ** (sum(powers) - 1), rtol=1e-12)


def test_gradients_are_variables_of_their_own():
    """One source twice, a Variable to start from, and a rule that hands on what it reads."""
    x, start = Variable(np.ones(2)), Variable(np.array([2.0, 3.0]))
    with Tape() as tape:
        y = x * 1.0
        first, second, third = tape.gradient(y, [y, y, x], grad=start)
        z = F.sum(first * second * third)
    assert len({id(v) for v in (first, second, third, start)}) == 4
    assert not np.shares_memory(first.data, second.data)
    assert not np.shares_memory(first.data, start.data)
    expected = start.data**2
    for source, slope in [(first, expected), (second, expected), (start, 3 * expected)]:
        np.testing.assert_array_equal(tape.gradient(z, source, keep=True), slope)
    half = differentiable("x", x=("x", lambda g, s: s.x))(lambda x: 0.5 * x * x)
    with Tape() as tape:
        slope = tape.gradient(half(x), x, grad=np.ones(2))
        z = F.sum(slope * slope)
    assert slope.node is not x.node
    np.testing.assert_array_equal(tape.gradient(z, x), [2, 2])


def test_products_with_the_hessian_of_what_a_closure_sees():
    # The Hessian of y**2 * x is 2*x: its slope in x is 2.
    assert float(grad(lambda x: hvp(lambda y: y**2 * x, (x,), (np.array(1.0),))[0])(2.0)) == 2
    assert float(grad(lambda x: x * grad(lambda y: x + y)(x))(5.0)) == 1
    assert float(grad(lambda x: 1.0 * grad(lambda y: y * y * x)(x))(3.0)) == 12


def test_zeros_where_nothing_depends():
    x, y = np.ones((2, 3)), np.ones(3, np.float32)
    assert grad(lambda x: 1.0)(2.0) == 0
    gx, gy = grad(lambda x, y: F.sum(x), (0, 1))(x, y)
    np.testing.assert_array_equal(gx, np.ones((2, 3)))
    np.testing.assert_array_equal(gy, np.zeros(3))
    assert gy.dtype == np.float32
    value, slope = jvp(lambda x: np.full(2, 7.0), (x,), (x,))
    np.testing.assert_array_equal(value, [7, 7])
    np.testing.assert_array_equal(slope, [0, 0])
    assert jacobian(lambda x: np.ones((2, 4)))(y).shape == (2, 4, 3)
    assert jacobian(lambda x: x[:0])(y).shape == (0, 3)
    np.testing.assert_array_equal(hessian(F.sum)(y), np.zeros((3, 3)))
    assert grad(grad(lambda x: 3.0 * x))(2.0) == 0


@pytest.mark.parametrize("seed", range(5))
def test_jacobian_and_hessian_against_their_formulas(seed):
    rng = np.random.default_rng(seed)
    n, m = (int(k) for k in rng.integers(1, 5, 2))
    matrix, x, v = rng.standard_normal((n, m)), rng.standard_normal(m), rng.standard_normal(m)

    def f(x):
        return F.tanh(F.matmul(matrix, x))

    slope = 1 - np.tanh(matrix @ x) ** 2
    expected = slope[:, None] * matrix
    np.testing.assert_allclose(jacobian(f)(x), expected, rtol=1e-12)
    value, along = jvp(f, (x,), (v,))
    np.testing.assert_allclose(value, np.tanh(matrix @ x), rtol=1e-12)
    np.testing.assert_allclose(along, expected @ v, rtol=1e-11)
    second = -2 * np.tanh(matrix @ x) * slope
    np.testing.assert_allclose(
        hessian(lambda x: F.sum(f(x)))(x), matrix.T @ (second[:, None] * matrix), rtol=1e-10, atol=1e-14
    )
    (ab, ba), (_, bb) = hessian(lambda a, b: F.sum(a * a * b * b), (0, 1))(np.array(2.0), np.array(3.0))
    assert (float(ab), float(ba), float(bb)) == (18, 24, 8)


def test_wrong_vectors_are_named():
    with pytest.raises(
        ValueError, match=r"jvp: a vector must have the shape of its array, \(2,\), got \(3,\)"
    ):
        jvp(F.exp, (np.ones(2),), (np.ones(3),))
    with pytest.raises(ValueError, match="jvp: 2 vectors for 1 arrays"):
        jvp(F.exp, (np.ones(2),), (np.ones(2), np.ones(2)))
