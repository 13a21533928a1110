"""The gradient checker must find a gradient that is off by 0.1 %, wherever it is."""

import numpy as np
import pytest

from autodiff import check_gradients, differentiable, layers
from autodiff import functions as F
from autodiff.check import GradientError

rng = np.random.default_rng(0)


def _cube(factor, only_last=False):
    def slope(g, s):
        out = 3 * s.x * s.x * g
        if only_last:
            out = out.copy()
            out.ravel()[-1] *= factor
            return out
        return factor * out

    @differentiable("x", x=("x", slope))
    def cube(x):
        return x * x * x

    return cube


@pytest.mark.parametrize("method", ["complex", "central"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (20, 20)])
def test_right_gradients_pass(method, shape):
    (row,) = check_gradients(_cube(1.0), rng.standard_normal(shape), method=method, verbose=False)
    assert row.passed
    assert row.error < (1e-12 if method == "complex" else 1e-7)
    assert row.shape == shape


@pytest.mark.parametrize("method", ["complex", "central"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (20, 20)])
def test_planted_error_is_found(method, shape):
    with pytest.raises(GradientError) as caught:
        check_gradients(_cube(1.001), rng.standard_normal(shape), method=method, verbose=False)
    assert caught.value.comparisons[0].error > 5e-4
    assert "WRONG" in str(caught.value)


def test_one_wrong_element_is_found_and_located():
    x = rng.uniform(1, 2, (3, 4))
    with pytest.raises(GradientError) as caught:
        check_gradients(_cube(1.001, only_last=True), x, verbose=False)
    assert caught.value.comparisons[0].where == "(2, 3)"


def test_only_the_wrong_input_is_marked():
    @differentiable("x y", x=("y", lambda g, s: g * s.y), y=("x", lambda g, s: 1.001 * g * s.x))
    def product(x, y):
        return x * y

    with pytest.raises(GradientError) as caught:
        check_gradients(product, rng.standard_normal(4), rng.standard_normal(4), verbose=False)
    assert [row.passed for row in caught.value.comparisons] == [True, False]


def test_nan_gradient_fails():
    @differentiable("x", x=("x", lambda g, s: g * np.nan))
    def identity(x):
        return x + 0

    with pytest.raises(GradientError):
        check_gradients(identity, rng.standard_normal(3), verbose=False)


def test_missing_gradient_fails():
    @differentiable("x")
    def identity(x):
        return x + 0

    with pytest.raises(GradientError):
        check_gradients(identity, rng.standard_normal(3), verbose=False)


def test_method_is_chosen_by_analyticity(capsys):
    check_gradients(F.exp, rng.standard_normal(3))
    assert "complex" in capsys.readouterr().out
    check_gradients(F.abs, rng.uniform(1, 2, 3))
    assert "central" in capsys.readouterr().out


def test_layers_can_be_checked_although_their_parameters_are_variables():
    """Then the function has a Variable as value even of plain arrays; its planted error is found."""
    layer, cube = layers.Linear(3, 2, rng=0, dtype=np.float64), _cube(1.001)
    x = rng.standard_normal((4, 3))
    (row,) = check_gradients(layer, x, verbose=False)
    assert row.passed
    with pytest.raises(GradientError):
        check_gradients(lambda x: layer(cube(x)), x, verbose=False)


def test_reference_is_what_is_differentiated():
    with pytest.raises(GradientError):
        check_gradients(F.sin, rng.standard_normal(3), reference=np.cos, verbose=False)
    check_gradients(
        F.sigmoid, rng.standard_normal(3), reference=lambda x: 1 / (1 + np.exp(-x)), method="complex"
    )


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="array 0 must be float64"):
        check_gradients(F.exp, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="method"):
        check_gradients(F.exp, np.zeros(3), method="guess")
    with pytest.raises(TypeError, match="does not depend"):
        check_gradients(lambda x: np.zeros(3), np.zeros(3))


def test_a_gradient_that_is_zero_but_for_rounding_passes_and_a_small_wrong_one_does_not():
    def one(x):
        return F.square(F.sin(x)) + F.square(F.cos(x))

    x = np.array([0.3, -1.2, 0.7, 2.1, -0.4])
    check_gradients(one, x, method="complex", verbose=False)

    @differentiable("x", x=("x", lambda g, s: 1e-9 * g))
    def constant(x):
        return np.sin(x) ** 2 + np.cos(x) ** 2

    for size in (1.0, 1e-12):  # however small the elements are
        with pytest.raises(GradientError, match="WRONG"):
            check_gradients(constant, size * x, method="complex", verbose=False)
