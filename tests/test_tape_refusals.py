"""Arguments of gradients that mean nothing are refused, and so is what a checkpoint does not find again."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autodiff import Tape, Variable, checkpoint, grad, hessian, hvp, jacobian, jvp, vjp
from autodiff import functions as F


def test_an_argument_that_is_named_twice_has_its_whole_gradient_twice() -> None:
    def f(a: Any, b: Any) -> Any:
        return a * a * b

    assert [float(g) for g in grad(f, (0, 1, 0))(2.0, 3.0)] == [12, 4, 12]
    assert [float(g) for g in jacobian(f, (1, 1))(2.0, 3.0)] == [4, 4]


@pytest.mark.parametrize("value", [None, "x", {}, object()], ids=["nothing", "text", "dict", "object"])
@pytest.mark.parametrize("of", [grad, jacobian, hessian], ids=lambda of: of.__name__)
def test_a_function_that_returns_no_number_is_refused(of: Callable, value: Any) -> None:
    """Such as one whose author forgot to return."""
    with pytest.raises(TypeError, match=f"^{of.__name__}: .* returns .*{type(value).__name__}"):
        of(lambda a: value)(1.0)


def test_a_function_that_returns_a_tuple_of_results_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^vjp: .* returns .*tuple"):
        vjp(lambda a: (a, a), 1.0)
    with pytest.raises(TypeError, match=r"^jvp: a vector .*complex"):
        jvp(lambda a: a, (1.0,), (1j,))


@pytest.mark.parametrize("argnums", [1, (0, 2), -2])
def test_arguments_that_are_not_there_are_named(argnums: Any) -> None:
    with pytest.raises(TypeError, match=rf"^grad: argnums is {re.escape(repr(argnums))}, .* 1 positional"):
        grad(lambda a: a * a, argnums)(1.0)
    with pytest.raises(TypeError, match=r"^jacobian: argnums is .* 0 positional"):
        jacobian(lambda a: a * a, argnums)(a=1.0)
    with pytest.raises(TypeError, match=r"^hessian: argnums must be an int"):
        hessian(lambda a: a * a, "a")(1.0)


@pytest.mark.parametrize("seed", [np.ones(3) * 1j, [None] * 3, "abc"], ids=["complex", "nothing", "text"])
def test_gradients_to_start_from_are_real_numbers(seed: Any) -> None:
    x = Variable(np.ones(3))
    with Tape() as tape:
        y = x * x
    with pytest.raises((TypeError, ValueError), match="grad"):
        tape.gradient(y, x, grad=seed)


def test_constant_and_recorded_parts_of_a_gradient_add_up() -> None:
    x, v = np.array([0.4, -0.7]), np.array([1.0, 2.0])

    def f(a: Any) -> Any:
        inner = grad(lambda b, c: b * c + F.sin(c), 1)(F.sum(a), F.sum(a))  # b + cos(c)
        return inner + F.sum(a)

    np.testing.assert_allclose(hvp(f, (x,), (v,))[0], np.full(2, -math.cos(x.sum()) * v.sum()), rtol=1e-12)


def test_a_recorded_gradient_is_no_variable_of_somebody_else() -> None:
    w, x = Variable(3.0), Variable(2.0)
    with Tape() as tape:
        y = x + 1.0
        of_result, of_source = tape.gradient(y, [y, x], grad=w)
        z = of_result * w
    assert of_result is not w and of_source is not w
    w.data = np.array(7.0)
    assert (of_result.item(), of_source.item()) == (3, 3)
    assert float(tape.gradient(z, w)) == 6


REPLACED: dict[str, Callable] = {
    "a copy": copy.deepcopy,
    "a new Variable": lambda w: Variable(w.data),
    "an array": lambda w: w.data,
    "another result": lambda w: w * 1.0,
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_checkpoint_that_finds_another_variable_says_so(name: str) -> None:
    """Of the same value: nothing else shows it."""
    w, x = Variable(2.0), Variable(3.0)
    box = [w]
    with Tape() as tape:
        y = checkpoint(lambda a: a * box[0])(x)
    box[0] = REPLACED[name](w)
    with pytest.raises(RuntimeError, match="checkpoint"):
        tape.gradient(y, w, unused="zero")


def test_a_checkpoint_that_finds_another_array_says_so() -> None:
    """Where an activation is zero the value does not show it, and the slope does."""
    w, c = Variable(np.array([0.0, 1.0])), np.array([2.0, 3.0])
    with Tape() as tape:
        y = F.sum(checkpoint(lambda a: a * c)(w))
    c[0] = 9.0
    with pytest.raises(RuntimeError, match="checkpoint"):
        tape.gradient(y, w)


def _changes(what: str) -> tuple[Callable, Callable]:
    """A function whose value at 0 does not show what it uses, and how that changes."""
    c, index, flag = np.array([2.0, 3.0]), np.array([0, 1]), [True]

    def other_array() -> None:
        c[:] = 9.0

    def other_index() -> None:
        index[:] = index[::-1].copy()

    def turned() -> None:
        flag[0] = False

    def one_of_two(a: Any) -> Any:
        one, two = a * a, a * 3.0
        return one if flag[0] else two

    return {
        "an array in a Variable": (lambda a: a * Variable(c), other_array),
        "an array in a list": (lambda a: a * [c[0], c[1]], other_array),
        "an index": (lambda a: a[index] * np.array([2.0, 3.0]), other_index),
        "a bound": (lambda a: F.clip(a, -c.max(), c.max()) * a * c, other_array),
        "a function": (lambda a: a * a if flag[0] else a * 3.0, turned),
        "a number": (lambda a: a * (2.0 if flag[0] else 3.0), turned),
        "a parameter": (lambda a: F.sum(a * a, axis=-1 if flag[0] else -2), turned),
        "which result is returned": (one_of_two, turned),
        "a checkpoint inside": (checkpoint(lambda a: a * c), other_array),
        "a gradient inside": (lambda a: grad(lambda b: F.sum(b * b * c))(a), other_array),
    }[what]


CHANGES = (
    *("an array in a Variable", "an array in a list", "an index", "a bound", "a function", "a number"),
    *("a parameter", "which result is returned", "a checkpoint inside", "a gradient inside"),
)


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("change", [True, False])
def test_a_checkpoint_notices_what_its_value_does_not_show(what: str, change: bool) -> None:
    f, happens = _changes(what)
    x = np.zeros((2, 2)) if what == "a parameter" else np.zeros(2)
    w = Variable(x)
    with Tape() as tape:
        y = F.sum(checkpoint(f)(w))
    if change:
        happens()
        with pytest.raises(RuntimeError, match="checkpoint"):
            tape.gradient(y, w)
    else:
        np.testing.assert_array_equal(tape.gradient(y, w), grad(lambda a: F.sum(f(a)))(x))
