"""Checkpoints: the same gradients for less memory; and that saved arrays go as the backward pass goes."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from autodiff import Tape, Variable, check_gradients, checkpoint, grad, hvp, recomputing, stop_gradient
from autodiff import functions as F
from autodiff._graph import state
from autodiff._random import _thread

LAYERS, SIZE = 50, 20_000
RNG = np.random.default_rng(0)
WEIGHTS = [RNG.standard_normal(SIZE) for _ in range(LAYERS)]


def layer(x, w):
    """Keeps three results of the size of x."""
    return F.tanh(F.sin(x * w) * x)


def chain(x, weights):
    for w in weights:
        x = layer(x, w)
    return x


def in_pieces(x, weights, length):
    for start in range(0, len(weights), length):
        piece = weights[start : start + length]
        x = checkpoint(lambda x, piece=piece: chain(x, piece))(x)
    return x


def peak_of(function):
    """The result of a call, and how far allocated memory rose."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = function()
        return result, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def gradient_of(forward):
    x = Variable(np.linspace(-1, 1, SIZE))
    with Tape() as tape:
        loss = F.sum(forward(x, WEIGHTS))
    return tape.gradient(loss, x)


def test_a_chain_of_50_layers_needs_less_than_a_quarter_of_the_memory():
    expected, plain = peak_of(lambda: gradient_of(chain))
    actual, pieces = peak_of(lambda: gradient_of(lambda x, w: in_pieces(x, w, 5)))
    np.testing.assert_array_equal(actual, expected)
    assert plain > 3 * LAYERS * SIZE * 8
    assert pieces < plain / 4


def test_saved_arrays_are_released_as_the_pass_goes():
    """Each rule takes as much scratch as its layer saved: a pass that held on to those would need twice."""
    x = Variable(np.linspace(-1, 1, SIZE))

    def passes(keep):
        with Tape() as tape:
            loss = F.sum(chain(x, WEIGHTS))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        rising: list = []
        probe(tape, rising)
        tape.gradient(loss, x, keep=keep)
        return before, rising

    def probe(tape, rising):
        for step in tape.steps:
            step.function = spied(step.function, rising)

    released, kept = peak_of(lambda: passes(False))[0], peak_of(lambda: passes(True))[0]
    for before, now in (released, kept):
        assert len(now) == 4 * LAYERS + 1
        assert before > 3 * LAYERS * SIZE * 8
    # Half way through, half is gone; with keep=True nothing is.
    assert released[1][2 * LAYERS] < 0.6 * released[0]
    assert released[1][-1] < 0.1 * released[0]
    assert min(kept[1]) > 0.95 * kept[0]


def spied(rules, rising):
    """The rules of a function, with a note of the memory allocated when they are asked for."""

    class Spy:
        def __getattr__(self, name):
            if name == "gradients":
                rising.append(tracemalloc.get_traced_memory()[0])
            return getattr(rules, name)

    return Spy()


def test_nested():
    """Pieces of pieces: nothing but a few inputs is kept at any time."""

    def halves(x, weights):
        if len(weights) <= 2:
            return chain(x, weights)
        middle = len(weights) // 2
        first = checkpoint(lambda x: halves(x, weights[:middle]))
        return halves(first(x), weights[middle:])

    expected, plain = peak_of(lambda: gradient_of(chain))
    actual, nested = peak_of(lambda: gradient_of(halves))
    np.testing.assert_array_equal(actual, expected)
    assert nested < plain / 6


def test_variables_from_outside_get_gradients():
    x, w, b = (Variable(RNG.standard_normal(3)) for _ in range(3))

    def inside(x):
        return F.exp(x * w) + b * x

    grads = []
    for f in (inside, checkpoint(inside)):
        with Tape() as tape:
            y = F.sum(f(x * 2.0) * w)
        grads.append(tape.gradient(y, [x, w, b]))
    for actual, expected in zip(*grads, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_one_variable_given_twice_and_used_inside_counts_as_often_as_it_occurs():
    x = Variable(3.0)
    with Tape() as tape:
        y = checkpoint(lambda a, b: a * b * x)(x, x)
    assert float(tape.gradient(y, x)) == 27


def test_what_runs_again_may_come_in_another_order():
    """As it may in threads."""
    x, order = Variable(np.array([0.3, 0.0])), [1.0, 2.0]

    def f(a):
        parts = {k: F.sin(a * k) for k in order}
        return parts[1.0] * parts[2.0] + a

    with Tape() as tape:
        y = F.sum(checkpoint(f)(x))
    order.reverse()
    expected = np.cos(x.data) * np.sin(2 * x.data) + 2 * np.sin(x.data) * np.cos(2 * x.data) + 1
    np.testing.assert_allclose(tape.gradient(y, x), expected, rtol=1e-14)


def test_against_numerical_derivatives_and_in_second_order():
    w = RNG.standard_normal(4)
    f = checkpoint(lambda x: F.tanh(x * x) * w)
    check_gradients(f, RNG.standard_normal((3, 4)), verbose=False)

    def loss(x):
        return F.sum(F.square(f(x)))

    def plain(x):
        return F.sum(F.square(F.tanh(x * x) * w))

    x, v = RNG.standard_normal((2, 3, 4))
    np.testing.assert_allclose(hvp(loss, (x,), (v,)), hvp(plain, (x,), (v,)), rtol=1e-12)

    def third(f):
        return grad(grad(grad(lambda x: f(x) * f(x))))(0.3)

    np.testing.assert_allclose(third(checkpoint(_bell)), third(_bell), rtol=1e-12)


def _bell(x):
    return F.exp(-x * x)


@pytest.mark.parametrize("wrap", [checkpoint, lambda f: checkpoint(checkpoint(f))], ids=["once", "nested"])
def test_dropout_draws_the_same_numbers_again(wrap):
    x = Variable(RNG.standard_normal(1000))

    def run(decorate):
        rng = np.random.default_rng(7)
        f = decorate(lambda x: F.dropout(F.tanh(F.dropout(x, 0.5, rng=rng)), 0.2, rng=rng))
        with Tape() as tape:
            y = f(f(x))
            value = F.sum(y)
        after = rng.random()
        return y.data, tape.gradient(value, x), after, rng.random()

    for actual, expected in zip(run(wrap), run(lambda f: f), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_layers_can_tell_that_they_run_again():
    seen = []
    f = checkpoint(lambda x: seen.append(recomputing()) or x * x)
    x = Variable(2.0)
    with Tape() as tape:
        y = f(x)
    tape.gradient(y, x)
    assert seen == [False, True]
    assert not recomputing()


def test_without_a_tape_nothing_is_done():
    f = checkpoint(lambda x, scale=1.0: x * scale)
    assert type(f(np.ones(3))) is np.ndarray
    assert isinstance(f(Variable(np.ones(3))), Variable)
    with Tape() as tape:
        assert type(f(np.ones(3), scale=2.0)) is np.ndarray
    assert tape.steps == []


def test_results_that_are_inputs_or_constants():
    x = Variable(2.0)
    with Tape() as tape:
        same = checkpoint(lambda x: x)(x)
        constant = checkpoint(lambda x: stop_gradient(x) * 2.0)(x)
        y = same * constant
    assert [step.function.name for step in tape.steps] == ["multiply"]
    assert float(tape.gradient(y, x)) == 4


def test_parameters_that_are_no_arrays():
    x = Variable(np.array([1.0, 2.0]))
    with Tape() as tape:
        y = checkpoint(lambda x, power, *, scale: x**power * scale)(x, 3, scale=2.0)
    np.testing.assert_array_equal(tape.gradient(y, x, grad=np.ones(2)), [6, 24])


def test_overwriting_is_detected():
    x, w = Variable(np.ones(3)), Variable(np.ones(3), name="w")
    for array, what in [(x.data, "'input 0'"), (w.data, "'w'")]:
        with Tape() as tape:
            y = checkpoint(lambda x: x + w)(x)
        array += 1
        with pytest.raises(
            RuntimeError, match=f"checkpoint of <lambda>: its argument {what} was overwritten"
        ):
            tape.gradient(y, x, grad=np.ones(3))
    with Tape() as tape:
        y = checkpoint(lambda x: x * w)(x)
    w.data = np.zeros(3)
    with pytest.raises(RuntimeError, match=r"checkpoint of <lambda>: Variable\('w'.*got other data"):
        tape.gradient(y, x, grad=np.ones(3))
    x.data = np.full(3, 7.0)  # an argument: the tape has the old array
    with Tape() as tape:
        y = checkpoint(lambda x: x * x)(x)
    x.data = np.zeros(3)
    np.testing.assert_array_equal(tape.gradient(y, x, grad=np.ones(3)), [14, 14, 14])


def test_an_exception_leaves_no_state():
    def fail(x):
        raise ZeroDivisionError

    with Tape() as tape:
        x = Variable(1.0)
        with pytest.raises(ZeroDivisionError):
            checkpoint(fail)(x)
        assert state.get().tapes == (tape,)
        assert _thread.notebooks == []
        y = x * x
    assert float(tape.gradient(y, x)) == 2
    rng = np.random.default_rng(0)

    def twice(x):
        F.dropout(x, 0.5, rng=rng)
        if recomputing():
            raise ZeroDivisionError
        return x * x

    with Tape() as tape:
        y = checkpoint(twice)(x)
    drawn = rng.bit_generator.state
    with pytest.raises(ZeroDivisionError):
        tape.gradient(y, x)
    assert rng.bit_generator.state == drawn
    assert not recomputing()


def test_threads_inside_are_refused_whatever_they_enter():
    """A checkpoint hears the calls of its own thread: it cannot tell what those of another one used."""
    x, w = Variable(np.ones(2)), Variable(np.ones(2))

    def threaded(x):
        with Tape() as inner, ThreadPoolExecutor(1) as pool:

            def work():
                with inner:
                    return F.exp(w)

            return x * pool.submit(work).result()

    with Tape(), pytest.raises(ValueError, match=r"checkpoint of threaded.*another thread.*stop_gradient"):
        checkpoint(threaded)(x)


def test_gradients_inside_go_through_what_a_tape_of_the_function_recorded():
    x = Variable(np.array([0.5, 2.0]))

    def penalty(x, late):
        y = F.sum(x**3) if late else None
        with Tape() as inner:
            y = y if late else F.sum(x**3)
            slope = inner.gradient(y, x)
        return F.sum(slope * slope)

    with Tape() as tape:
        with pytest.raises(ValueError, match=r"'power' that was not computed on this tape.*source 0"):
            checkpoint(penalty)(x, True)
        loss = checkpoint(penalty)(x, False)
    np.testing.assert_allclose(tape.gradient(loss, x), 36 * x.data**3, rtol=1e-14)


def test_several_outputs_are_refused():
    with Tape(), pytest.raises(TypeError, match="must return one array, got a tuple"):
        checkpoint(lambda x: (x, x))(Variable(1.0))


def test_dropout_wants_a_generator():
    for rng in (None, 3, np.random):
        with pytest.raises(TypeError, match=r"dropout: rng must be a numpy\.random\.Generator"):
            F.dropout(np.ones(3), 0.5, rng=rng)
    with pytest.raises(ValueError, match="dropout: rate"):
        F.dropout(np.ones(3), 1.0, rng=np.random.default_rng(0))
    x = np.ones(3)
    assert F.dropout(x, 0.0, rng=None) is x


def test_a_result_of_a_derivative_that_depends_on_no_input():
    """The slope of a sum is recorded, and is one whatever the argument."""
    x = Variable(np.array([0.5, 2.0]))
    with Tape() as tape:
        y = F.sum(checkpoint(lambda a: grad(lambda b: F.sum(b))(a))(np.ones(2)) * x)
    np.testing.assert_array_equal(tape.gradient(y, x), [1.0, 1.0])
