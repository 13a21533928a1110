"""What a checkpoint does not find again is refused; recorded gradients are Variables of their own."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autodiff import Tape, Variable, checkpoint, grad, hvp
from autodiff import functions as F


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
