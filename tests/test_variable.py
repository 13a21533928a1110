"""Variables: operators, methods, and what they refuse."""

import numpy as np
import pytest

from autodiff import Tape, Variable
from autodiff import functions as F


def test_operators_and_methods():
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.5, -1.0], [2.0, 1.5]])
    x = Variable(a)
    pairs = [
        (x + b, a + b),
        (b + x, b + a),
        (x - b, a - b),
        (b - x, b - a),
        (x * b, a * b),
        (2 * x, 2 * a),
        (x / b, a / b),
        (1 / x, 1 / a),
        (x**2, a**2),
        (2**x, 2**a),
        (x @ b, a @ b),
        (b @ x, b @ a),
        (-x, -a),
        (abs(x), abs(a)),
        (x[0, 1:], a[0, 1:]),
        (x.T, a.T),
        (x.sum(0), a.sum(0)),
        (x.mean(axis=1, keepdims=True), a.mean(1, keepdims=True)),
        (x.reshape(4), a.reshape(4)),
        (x.reshape((1, -1)), a.reshape(1, -1)),
        (x.reshape(4, 1), a.reshape(4, 1)),
        (x.transpose(1, 0), a.transpose(1, 0)),
        (x.transpose(), a.T),
        (x.max(), a.max()),
        (x.min(0), a.min(0)),
        (x.var(), a.var()),
        (x.astype("f4"), a.astype("f4")),
    ]
    for ours, numpys in pairs:
        assert isinstance(ours, Variable)
        np.testing.assert_array_equal(ours.data, numpys)
        assert ours.dtype == numpys.dtype
    for ours, numpys in [(x > b, a > b), (x == a, a == a), (b <= x, b <= a), (x != b, a != b)]:
        assert type(ours) is np.ndarray
        np.testing.assert_array_equal(ours, numpys)
    assert len(x) == 2
    assert float(Variable(2.5)) == 2.5
    assert len({x, x}) == 1


def test_variables_are_not_arrays():
    x = Variable(np.ones(3), name="weight")
    assert repr(x) == "Variable('weight', shape (3,), float64)"
    with pytest.raises(TypeError, match=r"take \.data"):
        np.asarray(x)
    with pytest.raises(TypeError, match="got dtype int64"):
        Variable(np.arange(3))
    with pytest.raises(TypeError, match="got dtype complex128"):
        Variable(np.ones(3) * 1j)
    with pytest.raises(TypeError, match="got a Variable"):
        Variable(x)
    x = Variable(1.0)
    with Tape() as tape:
        y = F.sum(x * 1j)
    with pytest.raises(TypeError, match="multiply: gradients of complex functions"):
        tape.gradient(y, x)


def test_iteration_goes_through_rows_and_refuses_a_number():
    """The protocol of sequences would end at the first IndexError, and ``sum(v)`` of a number be 0."""
    x = Variable(np.array([[1.0, 2.0], [3.0, 4.0]]))
    with Tape() as tape:
        total = sum(row[0] * row[1] for row in x)
    np.testing.assert_array_equal(tape.gradient(total, x), [[2, 1], [4, 3]])
    assert [row.tolist() for row in x] == x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert list(Variable(np.zeros((0, 3)))) == []
    for use in (list, sum, tuple, max, iter, enumerate):
        with pytest.raises(TypeError, match=r"iteration over a Variable of shape \(\)"):
            use(Variable(2.0))
