"""Long chains, many gradients, kept losses: work and memory grow with what is asked for alone."""

import gc
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # registers bfloat16 with NumPy
import numpy as np
import pytest

from autodiff import Tape, Variable, checkpoint, grad, stop_gradient
from autodiff import functions as F

ROOT = Path(__file__).resolve().parent.parent
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def work(f: Callable, *args: Any) -> int:
    """Lines of Python that a call runs, each turn of a loop counted: work that no other load changes."""
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    f(*args)  # once before: what is made on first use is no work of the second
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        f(*args)
    finally:
        sys.settrace(before)
    return lines


def assert_linear(f: Callable, size: int = 40) -> None:
    """The next so many steps cost what the ones before did."""
    one, two, four = (work(f, n * size) for n in (1, 2, 4))
    assert two > one + size
    assert four - two <= 2.05 * (two - one)


def chain(n: int) -> None:
    x = Variable(np.array(0.5))
    with Tape() as tape:
        y = x
        for _ in range(n):
            y = F.sin(y)
    tape.gradient(y, x)


def second_derivative_of_a_chain(n: int) -> None:
    def f(y: Any) -> Any:
        for _ in range(n):
            y = F.sin(y)
        return y

    grad(grad(f))(0.5)


def gradients_in_the_block(n: int) -> None:
    """Each of something short: the long tape is not gone through for it."""
    w = Variable(np.array(0.5))
    with Tape() as tape:
        total = w * 0.0
        for i in range(n):
            slope = tape.gradient(F.sin(w * float(i)), w)
            total = total + slope * slope
    tape.gradient(total, w)


def gradients_of_functions_in_the_block(n: int) -> None:
    w = Variable(np.array(0.5))
    with Tape() as tape:
        total = w * 0.0
        for i in range(n):
            total = total + grad(lambda a, i=i: F.sin(a * w * float(i)))(w)
    tape.gradient(total, w)


def gradients_of_what_is_late(n: int) -> None:
    """Sources in the middle of a long chain: what is older is not gone through."""
    y = Variable(np.array(0.5))
    with Tape() as tape:
        for _ in range(n):
            y = F.sin(y)
            tape.gradient(F.square(y), y)


def kept_gradients_of_many_losses(n: int) -> None:
    w = Variable(np.array(0.5))
    with Tape() as tape:
        losses = [F.sin(w * float(i)) for i in range(n)]
    for loss in losses:
        tape.gradient(loss, w, keep=True)


def running_total(n: int) -> None:
    """The sum of losses, each of which was released."""
    w, total = Variable(np.array(0.5)), 0.0
    for i in range(n):
        with Tape() as tape:
            loss = F.sin(w * float(i))
        tape.gradient(loss, w)
        total = total + loss


def running_total_in_the_block(n: int) -> None:
    w, total = Variable(np.array(0.5)), 0.0
    for i in range(n):
        with Tape() as tape:
            loss = F.sin(w * float(i))
            total = total + loss
        tape.gradient(loss, w)


def functional_updates(n: int) -> None:
    """Parameters that are results of what came before."""
    w = Variable(np.array(0.5))
    for _ in range(n):
        with Tape() as tape:
            loss = F.sin(w * w)
        w = w - 0.1 * tape.gradient(loss, w)


def state_of_a_recurrence(n: int) -> None:
    w, state = Variable(np.array(0.5)), Variable(np.array(0.1))
    for _ in range(n):
        with Tape() as tape:
            state = F.tanh(w * stop_gradient(state))
        tape.gradient(state, w)


def checkpoints(n: int) -> None:
    w = Variable(np.array(0.5))
    with Tape() as tape:
        y = w
        for _ in range(n // 10):
            y = checkpoint(lambda a: F.sin(F.sin(a) * w))(y)
    tape.gradient(y, w)


SHAPES = (
    chain, second_derivative_of_a_chain, gradients_in_the_block, gradients_of_functions_in_the_block,
    gradients_of_what_is_late, kept_gradients_of_many_losses, running_total, running_total_in_the_block,
    functional_updates, state_of_a_recurrence, checkpoints,
)  # fmt: skip


@pytest.mark.parametrize("f", SHAPES, ids=lambda f: f.__name__)
def test_work_is_linear(f: Callable) -> None:
    assert_linear(f)


def test_work_that_is_not_linear_is_seen() -> None:
    def quadratic(n: int) -> None:
        for i in range(n):
            [None for _ in range(i)]

    with pytest.raises(AssertionError):
        assert_linear(quadratic)


LONG = """
import gc, time
import numpy as np
from autodiff import Tape, Variable, functions as F

# Python's collector looks at all there is whenever that has grown by a quarter. It takes longer than the
# steps do, and of a short chain it sees less.
gc.disable()

def chain(n):
    x = Variable(np.array(0.5))
    start = time.process_time()
    with Tape() as tape:
        y = x
        for _ in range(n):
            y = F.sin(y)
    forward = time.process_time()
    tape.gradient(y, x)
    return (forward - start) / n, (time.process_time() - forward) / n

def least(runs):
    return [min(column) for column in zip(*runs)]

# Both are larger than the caches of a processor, which others may be using. In turn, so that a slow
# minute is for both.
runs = [(chain(200_000), chain(50_000)) for _ in range(4)]
long, short = map(least, zip(*runs))
print(*(a / b for a, b in zip(long, short)))
"""
DEEP = """
import copy, gc, pickle
import numpy as np
from autodiff import Tape, Variable, functions as F

x, n = Variable(np.array(0.5)), 100_000
with Tape() as tape:
    y = x
    for _ in range(n):
        y = F.sin(y)
tape.gradient(y, x, keep=True)
repr(y), str(tape), copy.deepcopy(x), pickle.dumps(x)
with Tape() as tape: pass
del y              # the whole graph goes at once
with Tape() as tape:
    y = x
    for _ in range(n):
        y = F.sin(y)
tape.release()
del y, tape
y = x              # nothing records
for _ in range(n):
    y = F.sin(y)
total = 0.0
for _ in range(n):
    total = total + x
del y, total
gc.collect()
print("ok")
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.mark.slow
def test_the_steps_of_a_long_chain_cost_what_those_of_a_short_one_do() -> None:
    """In time of this process: four times as long, nothing near four times as much for each step."""
    forward, backward = map(float, run(LONG).split())
    assert forward < 1.5
    assert backward < 1.5


@pytest.mark.slow
def test_a_long_chain_does_not_recurse() -> None:
    assert run(DEEP) == "ok\n"


# --- memory ---


def held_by(f: Callable) -> int:
    """Bytes that are still allocated after a call, with its result."""
    f()
    gc.collect()
    tracemalloc.start()
    try:
        result = f()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    del result
    return size


ACTIVATION = 100_000  # bytes of one array


def deep_loss(keep: bool = False, release: bool = False) -> Any:
    w = Variable(np.full(ACTIVATION // 8, 0.5))
    with Tape() as tape:
        y = w
        for _ in range(20):
            y = F.sin(y)
        loss = F.sum(y)
    if release:
        tape.release()
    else:
        tape.gradient(loss, w, keep=keep)
    return loss


def loss_and_what_came_between() -> Any:
    w = Variable(np.full(ACTIVATION // 8, 0.5))
    with Tape() as tape:
        scale = F.mean(w)
        loss = F.sum(F.sin(w) * scale)
    tape.gradient(loss, w)
    return loss, scale


def loss_with_a_penalty() -> Any:
    w = Variable(np.full(ACTIVATION // 8, 0.5))
    with Tape() as tape:
        y = F.sum(F.sin(F.sin(w)))
        slope = tape.gradient(y, w)
        loss = y + F.sum(slope * slope)
    tape.gradient(loss, w)
    return loss


def loss_of_nested_tapes() -> Any:
    w = Variable(np.full(ACTIVATION // 8, 0.5))
    with Tape() as outer:
        with Tape() as inner:
            y = F.sum(F.sin(F.sin(w)))
        slope = inner.gradient(y, w)
        loss = F.sum(slope * slope)
    outer.gradient(loss, w)
    return y, loss


def value_of_a_function() -> Any:
    return grad(lambda a: F.sum(F.sin(F.sin(a))))(np.full(10, 0.5))


def loss_of_checkpoints() -> Any:
    w = Variable(np.full(ACTIVATION // 8, 0.5))
    with Tape() as tape:
        loss = F.sum(checkpoint(lambda a: F.sin(F.sin(a)))(w))
    tape.gradient(loss, w)
    return loss


def loss_outside() -> Any:
    w = Variable(np.full(ACTIVATION // 8, 0.5))
    return F.sum(F.sin(F.sin(w)))


def after_an_exception() -> Any:
    w = Variable(np.full(ACTIVATION // 8, 0.5))
    tape = Tape()
    try:
        with tape:
            F.sum(F.sin(F.sin(w)))
            raise KeyError
    except KeyError:
        return tape


LOSSES = (
    deep_loss, loss_and_what_came_between, loss_with_a_penalty, loss_of_nested_tapes, value_of_a_function,
    loss_of_checkpoints, loss_outside, after_an_exception, lambda: deep_loss(release=True),
)  # fmt: skip


@pytest.mark.parametrize("f", LOSSES, ids=lambda f: f.__name__)
def test_a_kept_loss_keeps_no_arrays(f: Callable) -> None:
    assert held_by(f) < ACTIVATION // 5


def test_arrays_that_are_kept_are_seen() -> None:
    assert held_by(lambda: deep_loss(keep=True)) > 10 * ACTIVATION


@pytest.mark.parametrize(
    "f", [running_total, running_total_in_the_block, state_of_a_recurrence], ids=lambda f: f.__name__
)
def test_a_running_total_keeps_nothing_of_its_past(f: Callable) -> None:
    """Results that live on: 400 rounds hold no more than 100."""
    held = []
    for rounds in (100, 400):
        frames: list = []

        def remember(frame: Any, event: str, arg: Any, frames: list = frames) -> None:
            if event == "return" and frame.f_code is f.__code__:
                frames.append(dict(frame.f_locals))

        def kept(rounds: int = rounds, remember: Any = remember, frames: list = frames) -> Any:
            frames.clear()
            sys.setprofile(remember)
            f(rounds)
            sys.setprofile(None)
            frames[0].pop("tape")
            return frames

        held.append(held_by(kept))
    assert held[1] < held[0] + 2000


def test_inputs_of_each_round_are_not_kept() -> None:
    """`total += loss` over batches that are Variables: their leaves go when the batches do."""

    def total_of(rounds: int) -> Any:
        w, total = Variable(np.array(0.5)), 0.0
        for i in range(rounds):
            x = Variable(np.full(10, float(i)))
            with Tape() as tape:
                loss = F.sum(F.sin(w * x))
            tape.gradient(loss, w)
            total = total + loss
        return w, total

    few, many = held_by(lambda: total_of(128)), held_by(lambda: total_of(1024))
    assert many < few + 100 * 128


def test_arrays_go_as_soon_as_the_last_result_does() -> None:
    """Without the collector of cycles: nothing holds a circle."""
    gc.collect()
    gc.disable()
    try:
        for leave in (lambda t, y, w: None, lambda t, y, w: t.gradient(y, w), lambda t, y, w: t.release()):
            w = Variable(np.full(1000, 0.5))
            with Tape() as tape:
                inside = F.sin(w)
                seen = weakref.ref(inside.data)
                loss = F.sum(F.square(inside))
            leave(tape, loss, w)
            del tape, inside, loss
            assert seen() is None
    finally:
        gc.enable()


def _one_unit(value: float, dtype: np.dtype) -> float:
    """The distance of neighbours in a 16-bit dtype around a value."""
    digits = 10 if dtype == np.float16 else 7
    return 2.0 ** (np.floor(np.log2(abs(value))) - digits)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("inner", [False, True], ids=["leaf", "result"])
@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
def test_gradients_of_16_bits_are_rounded_once(dtype: np.dtype, inner: bool, recorded: bool) -> None:
    """A weight that is used many times, as in a recurrence: its gradient is a long sum."""
    uses = 400 if recorded else 3000
    factors = np.random.default_rng(0).uniform(0.5, 1.5, uses).astype(dtype)
    expected = factors.astype(np.float64).sum()
    leaf = Variable(np.ones(1, dtype))
    with Tape() as tape:
        w = leaf * np.ones(1, dtype) if inner else leaf
        parts = F.concatenate([w * factor for factor in factors.reshape(-1, 1)])
        loss = F.sum(parts.astype(np.float32))
        if recorded:
            found = tape.gradient(loss, [leaf, w])
            assert all(isinstance(g, Variable) for g in found)
    if not recorded:
        found = tape.gradient(loss, [leaf, w])
    for gradient in stop_gradient(found):
        assert gradient.dtype == dtype
        assert abs(gradient.astype(np.float64).item() - expected) <= 0.5001 * _one_unit(expected, dtype)


def test_a_sum_of_gradients_may_pass_beyond_the_range_of_16_bits() -> None:
    w = Variable(np.ones(1, np.float16))
    factors = [np.full(1, 60000 * sign, np.float16) for sign in (1, 1, 1, -1, -1)]
    with Tape() as tape:
        loss = F.sum(F.concatenate([w * factor for factor in factors]).astype(np.float32))
    assert tape.gradient(loss, w) == 60000
