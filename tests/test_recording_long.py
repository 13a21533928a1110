"""What a tape does where there is much of it: long chains, many gradients, several tapes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from autodiff import Tape, Variable, hvp, stop_gradient
from autodiff import functions as F


def test_a_long_chain_neither_recurses_nor_slows():
    x, steps = Variable(1.0), 100_000
    with Tape(check=False) as tape:
        y = x
        for _ in range(steps):
            y = F.add(y, x)
    assert float(tape.gradient(y, x)) == steps + 1
    del tape, y
    y = x
    for _ in range(steps):
        y = F.add(y, x)
    with Tape() as tape:
        z = y * x
    with pytest.raises(ValueError, match="'add' that was not computed on this tape"):
        tape.gradient(z, x)


def test_gradients_in_the_block_look_at_nothing_older_than_their_source():
    """Else n gradients in one block would take n**2 steps."""
    with Tape() as tape:
        y, looked = Variable(1.0), []
        for _ in range(50):
            x = Variable(y.data)
            y = F.sin(x * 2.0) * stop_gradient(y)
            before = len(tape.steps)
            x = tape.gradient(y, x)
            looked.append(len(tape.steps) - before)
    assert max(looked) == min(looked)


def test_gradients_that_are_added_up_while_a_tape_records():
    """Three parts meet in x: the first two are plain arrays, the third is a Variable."""
    x = Variable(np.array([1.0, 2.0]))
    with Tape() as tape:
        y = F.sum(F.sin(x)) + F.sum(x) + F.sum(x) + F.sum(x)
        z = F.sum(F.square(tape.gradient(y, x)))
    slope = np.cos(x.data) + 3
    np.testing.assert_allclose(tape.gradient(z, x), -2 * slope * np.sin(x.data), rtol=1e-12)


def test_second_order_through_a_tape_that_has_ended():
    x = Variable(2.0)
    with Tape() as first:
        y = F.exp(x)
    with Tape() as second:
        slope = first.gradient(y, x)
        z = slope * slope
    np.testing.assert_allclose(second.gradient(z, x), 2 * np.exp(4.0), rtol=1e-12)


def test_products_with_the_hessian_in_a_thread_that_enters():
    w = Variable(2.0)
    with ThreadPoolExecutor(1) as pool, Tape() as tape:

        def run():
            with tape:
                return hvp(lambda x: x**3, (w,), (1.0,))[0]

        y = pool.submit(run).result()
    assert float(tape.gradient(y, w)) == 6
