"""Whole programs as people write them, compared with forward mode; and misuse of a tape, which is refused."""

import asyncio
import copy
import gc
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from _programs import Statement
from test_programs import judge

from autodiff import Tape, Variable, checkpoint, grad, hessian, hvp, jacobian, jvp, vjp
from autodiff import functions as F

PROGRAMS = {
    "gradient penalty in its own block": """
w, x = Variable(3.0), Variable(2.0)
with Tape() as t:
    y = w * w * x
    s = t.gradient(y, x)
    loss = y + s * s
out(t.gradient(loss, w))
""",
    "generator and discriminator": """
g, d, z, real = Variable(0.7), Variable(-0.4), 1.3, 0.9
for _ in range(3):
    with Tape() as t:
        fake = F.tanh(g * z)
        loss = F.log(1 + F.exp(-d * real)) + F.log(1 + F.exp(d * stop_gradient(fake)))
    d.data = d.data - 0.1 * t.gradient(loss, d, keep=True)
    with t:
        loss = F.log(1 + F.exp(-d * fake))
    step = t.gradient(loss, g)
    out(step)
    g.data = g.data - 0.1 * step
""",
    "learning to learn": """
w, rate = Variable(np.array([0.4, -0.3])), Variable(0.2)
def loss_of(w, task):
    return F.sum(F.square(F.tanh(w * task) - 0.5))
with Tape() as outer:
    total = 0.0
    for task in (0.7, -1.1, 0.3):
        fast = w
        for _ in range(2):
            with Tape() as inner:
                loss = loss_of(fast, task)
            fast = fast - rate * inner.gradient(loss, fast)
        total = total + loss_of(fast, task + 0.1)
out(outer.gradient(total, w, keep=True))
out(outer.gradient(total, rate))
""",
    "recurrent, state cut": """
w, state = Variable(0.8), Variable(0.1)
for x in (0.3, -0.7, 1.1):
    with Tape() as t:
        state = F.tanh(w * stop_gradient(state) + x)
        loss = F.square(state - 0.2)
    out(t.gradient(loss, w))
""",
    "recurrent, state kept": """
w, state = Variable(0.8), 0.1
with Tape() as t:
    for x in (0.3, -0.7, 1.1):
        state = F.tanh(w * state + x)
out(t.gradient(state, w))
""",
    "moving average, metrics and accumulation": """
w = Variable(np.array([0.4, -0.3]))
average = copy.deepcopy(w)
total, seen = 0.0, []
for batch in range(3):
    with Tape() as t:
        loss = F.sum(F.sin(w * (batch + 1.0)))
        seen.append(loss.item())
        assert loss > -10
        f"{loss:.3f}"
    slope = t.gradient(loss, w)
    total = total + slope
    average.data = 0.9 * average.data + 0.1 * w.data
    w.data = w.data - 0.1 * slope
out(total)
with Tape() as t:
    loss = F.sum(w * average * average)
out(t.gradient(loss, average))
""",
    "frozen extractor and its fine tuning": """
net, head = Dense(np.array([0.5, -0.3]), np.array([0.1, 0.2])), Variable(np.array([0.3, 0.7]))
x = np.array([0.4, -0.8])
features = net(x)
with Tape() as t:
    loss = F.sum(features * head)
out(t.gradient(loss, head))
with Tape() as t:
    loss = F.sum(net(x) * head)
for slope in t.gradient(loss, [net.weight, net.bias, head]):
    out(slope)
""",
    "functional update": """
w = Variable(0.5)
for _ in range(4):
    with Tape() as t:
        loss = F.sin(w * w)
    slope = t.gradient(loss, w)
    out(slope)
    w = w - 0.1 * slope
""",
    "target network": """
net = Dense(np.array([0.5, -0.3]), np.array([0.1, 0.2]))
frozen, twin = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
x = np.array([0.4, -0.8])
with Tape() as t:
    loss = F.sum(F.square(net(x) - frozen(x) - 1.0) + net(twin(x)))
for part in (net, frozen, twin):
    out(t.gradient(loss, part.weight, keep=True))
    out(t.gradient(loss, part.bias, keep=True))
""",
    "Newton's method through its steps": """
a = Variable(2.0)
def root(a):
    x = 1.0 * a
    for _ in range(4):
        x = x - (x * x - a) / jvp(lambda y: y * y, (x,), (np.array(1.0),))[1]
    return x
out(grad(root)(a))
out(grad(grad(root))(a))
out(hessian(lambda a: root(a) * a)(2.5))
""",
    "implicit function by hand": """
theta = Variable(np.array([0.3, 0.4]))
def f(x, theta):
    return F.sum(F.sin(x) * theta) + F.sum(theta * theta)
with Tape() as t:
    x = F.tanh(theta)
    inner = grad(f)(x, theta)
    loss = F.sum(F.square(inner)) + f(x, theta)
out(t.gradient(loss, theta))
""",
    "default arguments, closures in a list, late binding": """
w, v = Variable(0.3), Variable(0.6)
fs = [lambda a, w=w, k=k: F.sin(a * w) * k for k in (1.0, 2.0, 3.0)]
w = Variable(1.2)
with Tape() as t:
    y = sum(f(w) for f in fs) + fs[0](v)
out(t.gradient(y, v))
out(grad(lambda a: fs[1](a) * fs[2](fs[1](a)))(v))
""",
    "tasks of an event loop, threads that enter, generators": """
w = Variable(0.4)
async def part(k):
    await asyncio.sleep(0)
    h = F.sin(w * k)
    await asyncio.sleep(0)
    return h * w
async def parts():
    return await asyncio.gather(*[part(float(k)) for k in range(4)])
def stream():
    h = w
    while True:
        h = F.sin(h * w)
        yield h
with Tape() as t:
    y = sum(asyncio.run(parts()))
    y = y + sum(pool.map(lambda k: within(t, lambda: F.sin(k * w)), [1.0, 2.0]))
    values = stream()
    y = y + next(values) * next(values)
out(t.gradient(y, w))
""",
    "sorted, largest, unpacked": """
vs = [Variable(x) for x in (3.0, 1.0, 2.0)]
u = Variable(np.array([0.4, 0.9]))
with Tape() as t:
    low, middle, high = sorted(vs, key=lambda v: v.item())
    a, b = u
    y = low * middle + high**2 * a - max(vs) * b + min(vs) + sum(vs) + abs(-a)
    y += a
    y *= 2.0
for v in (*vs, u):
    out(t.gradient(y, v, keep=True))
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_as_people_write_them(name: str) -> None:
    text = PROGRAMS[name].replace("{", "{{").replace("}", "}}")
    outcome = judge((Statement(text),))
    assert outcome.kind == "right", outcome.why


# --- where a tape records, and where it does not ---


def records() -> bool:
    """Whether anything records here: numbers are then not to be had by float()."""
    try:
        float(Variable(1.0))
    except TypeError:
        return True
    return False


def leave(how: str) -> None:
    """Leave blocks, derivatives, checkpoints and tasks in some way."""
    x = Variable(0.5)

    def interrupted(a: Any) -> Any:
        raise KeyError(a * x)

    def stream() -> Iterator[Any]:
        with Tape():
            yield x * x

    async def task() -> None:
        with Tape():
            await asyncio.sleep(0)
            raise KeyError

    async def abandoned() -> None:
        with Tape():
            await asyncio.sleep(60)

    async def cancelled() -> None:
        waiting = asyncio.create_task(abandoned())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    calls: dict[str, Callable] = {
        "grad": lambda: grad(interrupted)(0.5),
        "hvp": lambda: hvp(interrupted, (0.5,), (np.array(1.0),)),
        "jvp": lambda: jvp(interrupted, (0.5,), (np.array(1.0),)),
        "jacobian": lambda: jacobian(interrupted)(0.5),
        "nested": lambda: hessian(lambda a: grad(interrupted)(a))(0.5),
        "vjp": lambda: vjp(interrupted, 0.5),
        "checkpoint": lambda: checkpoint(interrupted)(x),
        "generator": lambda: list(stream()),
        "generator left early": lambda: next(stream()),
        "task": lambda: asyncio.run(task()),
        "cancelled task": lambda: asyncio.run(cancelled()),
    }
    try:
        with Tape():
            calls[how]()
            raise KeyError
    except KeyError:
        gc.collect()


HOWS = (
    "grad", "hvp", "jvp", "jacobian", "nested", "vjp", "checkpoint", "generator", "generator left early",
    "task", "cancelled task",
)  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_however_a_block_is_left_nothing_records_any_more(how: str) -> None:
    assert not records()
    leave(how)
    assert not records()
    with Tape():
        assert records()
        leave(how)
        assert records()
    assert not records()


def test_blocks_left_in_the_wrong_order_say_so_and_restore_the_state() -> None:
    x, first, second = Variable(2.0), Tape(), Tape()
    first.__enter__()
    second.__enter__()
    with pytest.raises(ValueError, match="order"):
        first.__exit__(None, None, None)
    y = x * x
    second.__exit__(None, None, None)
    assert not records()
    assert float(second.gradient(y, x)) == 4
    with pytest.raises(ValueError, match="order"):
        second.__exit__(None, None, None)
    assert not records()


def test_a_block_that_another_thread_leaves_says_so() -> None:
    tape, caught = Tape(), []

    def enter_elsewhere() -> None:
        tape.__enter__()
        caught.append(records())

    thread = threading.Thread(target=enter_elsewhere)
    thread.start()
    thread.join()
    assert caught == [True]
    assert not records()
    with pytest.raises(ValueError, match="thread"):
        tape.__exit__(None, None, None)


def test_a_task_records_until_it_ends_and_its_parent_does_not() -> None:
    w = Variable(2.0)

    async def late(go: asyncio.Event) -> Any:
        await go.wait()
        return w * w, records()

    async def main() -> Any:
        go = asyncio.Event()
        with Tape() as tape:
            task = asyncio.create_task(late(go))
            await asyncio.sleep(0)
        go.set()
        return tape, await task, records()

    tape, (y, inside), outside = asyncio.run(main())
    assert (inside, outside) == (True, False)
    assert float(tape.gradient(y, w)) == 4


def test_many_threads_on_one_tape_change_no_bit(rng: np.random.Generator) -> None:
    w = Variable(rng.standard_normal(500))

    def branch(tape: Tape, k: int) -> Any:
        with tape:
            y = w
            for _ in range(20):
                y = F.sin(y) * w
            return F.sum(y) * float(k)

    def gradient(workers: int) -> Any:
        with ThreadPoolExecutor(workers) as pool, Tape() as tape:
            y = sum(pool.map(lambda k: branch(tape, k), range(12)))
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda _: tape.gradient(y, w, keep=True), range(4)))
        assert all(np.array_equal(f, found[0]) for f in found)
        return found[0]

    one = gradient(1)
    assert all(np.array_equal(gradient(8), one) for _ in range(4))


def test_a_gradient_while_another_thread_releases_is_right_or_refused() -> None:
    for _ in range(20):
        w = Variable(np.linspace(0.1, 1, 50))
        with Tape() as tape:
            y = w
            for _ in range(60):
                y = F.sin(y)
            y = F.sum(y)
        want = tape.gradient(y, w, keep=True)

        def ask(_: int, tape: Tape = tape, y: Any = y, w: Any = w) -> Any:
            try:
                return tape.gradient(y, w)
            except ValueError as refusal:
                assert "released" in str(refusal)

        with ThreadPoolExecutor(4) as pool:
            found = [f for f in pool.map(ask, range(4)) if f is not None]
        assert all(np.array_equal(f, want) for f in found)


# --- what would be lost to the tape ---

LEAKS: dict[str, Callable] = {
    "float": float,
    "int": int,
    "complex": complex,
    "math": math.sin,
    "math.fsum": lambda v: math.fsum([v, v]),
    "percent": lambda v: "%.3f" % v,  # noqa: UP031
    "item of an array": lambda v: np.zeros(3).__setitem__(0, v),
    "slice of an array": lambda v: np.zeros(3).__setitem__(slice(2), v),
    "np.asarray": np.asarray,
    "np.array of them": lambda v: np.array([v, v]),
    "np.full": lambda v: np.full(3, v),
    "np.fromiter": lambda v: np.fromiter([v], float),
    "array += v": lambda v: np.zeros(3).__iadd__(v),
    "out=": lambda v: np.multiply(v, 2.0, out=np.zeros(())),
    "array.fill": lambda v: np.zeros(3).fill(v),
    "np.copyto": lambda v: np.copyto(np.zeros(3), v),
    "np.put": lambda v: np.put(np.zeros(3), [0], v),
    "np.linspace": lambda v: np.linspace(0, v, 3),
    "list of them": lambda v: np.zeros(2) * [v, v],
    "np.vectorize": lambda v: np.vectorize(lambda a: a)(v),
    "random numbers": lambda v: np.random.default_rng(0).normal(v),
    "Variable of one": Variable,
    "Variable of a list": lambda v: Variable([v, v]),
    "index": lambda v: Variable(np.ones(3))[v],
    "no function of that name": np.hypot,
}


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_to_numbers_are_errors_while_a_tape_records(name: str) -> None:
    v = Variable(0.5)
    with Tape(), pytest.raises((TypeError, ValueError)):
        LEAKS[name](v)


def test_reading_always_works() -> None:
    v, u = Variable(0.5), Variable(np.arange(3.0), name="u")
    with Tape():
        assert (v.item(), bool(v), f"{v:.2f}", v > 0.4, v == 0.5) == (0.5, True, "0.50", True, True)
        assert "u" in repr(u) and "0.5" in str(v)
        assert (u > 1).tolist() == [False, False, True]
        assert len(u) == 3 and v in [u[0], v] and {v: 1}[v] == 1
        assert np.isnan(u).tolist() == [False] * 3
        assert u.data.sum() == 3


# --- copies, and what is given back ---


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies(copied: Callable) -> None:
    w = Variable(np.array([2.0, 3.0]), name="w")
    with Tape() as tape:
        c = copied(w)
        y = F.sum(w * c * c)
        with pytest.raises(TypeError, match="cop"):
            copied(y)
        with pytest.raises(TypeError, match="cop"):
            copied(y) if copied is copy.copy else copied({"a": [y]})
    assert c.name == "w"
    assert [g.tolist() for g in tape.gradient(y, [w, c])] == [[4, 9], [8, 18]]
    of_result = copied(y)
    with Tape() as tape:
        z = of_result * w[0]
    assert tape.gradient(z, of_result) == 2


GIVEN: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "reshape": lambda x, y: F.reshape(x, (3, 2)),
    "transpose": lambda x, y: x.T,
    "getitem": lambda x, y: x[:, :],
    "flip": lambda x, y: F.flip(x, 0),
    "itself": lambda x, y: x,
    "stack": lambda x, y: F.stack([x, y, x]),
    "broadcast": lambda x, y: F.broadcast_to(x, (4, 2, 3)),
    "sum": lambda x, y: F.sum(x, 0) + F.sum(y, 0),
    "multiply": lambda x, y: x * y,
    "checkpoint": lambda x, y: checkpoint(lambda a: a + y)(x),
}


@pytest.mark.parametrize("name", GIVEN)
def test_gradients_are_nobody_elses_memory(name: str, rng: np.random.Generator) -> None:
    f = GIVEN[name]
    a, b = rng.standard_normal((2, 2, 3))
    x, y = Variable(a), Variable(b)
    with Tape() as tape:
        z = f(x, y)
    seed = rng.standard_normal(z.shape)
    pull = vjp(f, a, b)[1]
    told: list = []
    found = tape.gradient(
        z, [x, y, x], grad=seed, unused="zero", keep=True, on_final=lambda k, g: told.append(g)
    )
    found += [*pull(seed), *pull(seed), *tape.gradient(z, [x, y], grad=seed, unused="zero")]
    others = [a, b, seed, z.data]
    for g in found:
        assert g.flags.writeable
        assert not any(np.shares_memory(g, other) for other in others)
        others.append(g)
    assert all(any(t is g for g in found) for t in told)
