"""`grad`, `value_and_grad`, `vjp` and `hvp`."""

import numpy as np
import pytest

from autodiff import Variable, grad, hvp, value_and_grad, vjp
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
    assert type(value_and_grad(F.sum)(Variable(np.ones(2)))[0]) is np.ndarray
    with pytest.raises(ValueError, match="2 vectors for 1 arrays"):
        hvp(F.sum, (np.ones(2),), (np.ones(2), np.ones(2)))
    with pytest.raises(ValueError, match="single number"):
        grad(F.exp)(np.ones(2))
