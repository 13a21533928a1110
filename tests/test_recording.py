"""What a tape follows, what it refuses by name, and when it lets go."""

import asyncio
import contextvars
import gc
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

from autodiff import Tape, Variable, checkpoint, differentiable, grad, stop_gradient, vjp
from autodiff import functions as F
from autodiff._graph import state


class Tracked(np.ndarray):
    """Counts itself while it lives."""


@pytest.mark.parametrize("seed", range(12))
def test_gradients_within_the_block_are_part_of_it(seed):
    """loss = w**a * x**b + (d/dx of it)**2, with the gradient taken in the block, once or more often."""
    rng = np.random.default_rng(seed)
    a, b, times = (int(rng.integers(1, 4)) for _ in range(3))
    w0, x0 = rng.uniform(0.5, 2, 2)
    w, x = Variable(w0), Variable(x0)
    nested = rng.random() < 0.5
    with Tape() as tape:
        loss = y = w**a * x**b
        for _ in range(times):
            if nested:
                with Tape() as inner:
                    again = w**a * x**b
                slope = inner.gradient(again, x)
            else:
                slope = tape.gradient(y, x, keep=bool(rng.random() < 0.5))
            assert isinstance(slope, Variable)
            loss = loss + slope * slope
    gw, gx = tape.gradient(loss, [w, x])
    expected_w = a * w0 ** (a - 1) * x0**b + times * 2 * a * w0 ** (2 * a - 1) * (b * x0 ** (b - 1)) ** 2
    expected_x = b * w0**a * x0 ** (b - 1) + times * 2 * w0 ** (2 * a) * b * b * (b - 1) * x0 ** (2 * b - 3)
    np.testing.assert_allclose(gw, expected_w, rtol=1e-12)
    np.testing.assert_allclose(gx, expected_x, rtol=1e-12)


def test_a_gradient_follows_the_results_whichever_tape_recorded_them():
    x = Variable(3.0)
    with Tape() as first:
        y = x * x
    with Tape() as second:
        z = y * x
    assert float(first.gradient(z, x, keep=True)) == 27
    assert float(second.gradient(z, x, keep=True)) == 27
    assert float(Tape().gradient(y, x)) == 6


@pytest.mark.parametrize("seed", range(8))
def test_threads_are_followed_if_they_enter_the_tape_and_refused_if_not(seed):
    rng = np.random.default_rng(seed)
    w, other = Variable(rng.standard_normal(50).astype("f4")), Variable(np.ones(50, "f4"))
    factors = rng.standard_normal(int(rng.integers(3, 40))).astype("f4")

    def term(factor):
        return F.exp(w * factor) * F.tanh(w + factor)

    def loss_of(run, tape):
        return F.sum(sum(run(term if tape is None else lambda c: entered(tape, c), factors)) * other)

    def entered(tape, factor):
        with tape:
            return term(factor)

    with Tape() as tape:
        loss = loss_of(map, None)
    expected = tape.gradient(loss, [w, other])
    for workers in (1, 4):
        with ThreadPoolExecutor(workers) as pool, Tape() as tape:
            loss = loss_of(pool.map, tape)
        for actual, right in zip(tape.gradient(loss, [w, other]), expected, strict=True):
            np.testing.assert_array_equal(actual, right)
        with ThreadPoolExecutor(workers) as pool, Tape() as tape:
            loss = loss_of(pool.map, None)
        with pytest.raises(
            ValueError, match=r"'(exp|tanh|add|multiply)' that was not computed.*stop_gradient"
        ):
            tape.gradient(loss, [other, w], keep=True)
        np.testing.assert_array_equal(tape.gradient(loss, other), expected[1])


def test_tasks_of_asyncio_inherit_the_tape():
    w = Variable(3.0)

    async def term(power):
        await asyncio.sleep(0)
        return w**power

    async def loss():
        with Tape() as tape:
            terms = await asyncio.gather(*(term(k) for k in (1, 2, 3)))
            return tape, sum(terms)

    tape, total = asyncio.run(loss())
    assert float(tape.gradient(total, w)) == 1 + 6 + 27
    assert state.get().tapes == ()


def test_a_thread_within_a_checkpoint_is_refused():
    w = Variable(2.0)

    def f(x):
        with ThreadPoolExecutor(1) as pool:
            return x * pool.submit(lambda: w * w).result()

    with (
        Tape(),
        pytest.raises(ValueError, match="checkpoint of f: it uses values that were computed"),
    ):
        checkpoint(f)(Variable(1.0))


def test_numbers_are_not_made_while_a_tape_records():
    v, array = Variable(2.0), np.zeros(3)
    uses = {
        "float": lambda: float(v),
        "int": lambda: int(v),
        "math": lambda: math.exp(v),
        "complex": lambda: complex(v),
        "format of an array": lambda: np.asarray(v),
    }
    with Tape():
        for use in uses.values():
            with pytest.raises(TypeError, match=r"while a tape records|take \.data"):
                use()
        with pytest.raises(ValueError) as caught:
            array[1] = v
        assert "F.stack" in str(caught.value.__cause__)
        with pytest.raises(TypeError):
            array[1:] = v
        assert not array.any()
        assert v.item() == 2
        assert f"{v:.2f} {v}" == "2.00 2.0"
        assert v > 1
        assert bool(v)
        assert grad(lambda x: x * x.item())(3.0).item() == 3
    assert (float(v), int(v), math.sqrt(v)) == (2.0, 2, math.sqrt(2))


@pytest.mark.parametrize("seed", range(10))
def test_what_was_computed_outside_is_a_constant_or_refused(seed):
    """A chain is computed where nothing records, and used in a loss with other sources."""
    rng = np.random.default_rng(seed)
    origin, other = Variable(rng.standard_normal(3), "origin"), Variable(rng.standard_normal(3), "other")
    chain = [origin]
    for _ in range(int(rng.integers(1, 6))):
        chain.append(rng.choice([F.exp, F.sin, F.tanh])(chain[-1]))
    used = int(rng.integers(1, len(chain)))
    with Tape() as tape:
        loss = F.sum(chain[used] * other)
    np.testing.assert_array_equal(tape.gradient(loss, other, keep=True), chain[used].data)
    np.testing.assert_array_equal(tape.gradient(loss, chain[used], keep=True), other.data)
    for earlier in chain[:used]:
        with pytest.raises(ValueError, match=rf"a result of '{NAMED}' that was not comp.*source 0.*stop"):
            tape.gradient(loss, earlier, keep=True)
    for later in chain[used + 1 :]:
        with pytest.raises(ValueError, match="does not depend on source 0"):
            tape.gradient(loss, later, keep=True)
    with Tape() as tape:
        loss = F.sum(stop_gradient(chain[used]) * origin)
    np.testing.assert_array_equal(tape.gradient(loss, origin), chain[used].data)


NAMED = "(exp|sin|tanh)"


def test_siblings_computed_outside_are_sources_of_their_own():
    base = Variable(2.0)
    a, b = base * 3.0, base * 5.0
    with Tape() as tape:
        y = a * b
    assert [float(g) for g in tape.gradient(y, [a, b])] == [10, 6]


@pytest.mark.parametrize("seed", range(8))
def test_what_was_released_is_a_constant_or_refused(seed):
    rng = np.random.default_rng(seed)
    w, x, other = (Variable(v, name) for v, name in zip(rng.uniform(0.5, 2, 3), ("w", "x", "other")))
    with Tape() as tape:
        inner = F.exp(x)
        loss = w * w * inner
    gradient = tape.gradient(loss, w)
    np.testing.assert_allclose(gradient, 2 * w.data * np.exp(x.data), rtol=1e-12)
    assert tape.steps == []
    passed_on = loss * 1.0 if rng.random() < 0.5 else loss
    with Tape() as tape:
        y = passed_on * other
    np.testing.assert_array_equal(tape.gradient(y, other, keep=True), loss.data)
    for source in (w, x, inner):
        with pytest.raises(
            ValueError, match=r"released by an earlier gradient\(\)|not computed on this tape"
        ):
            tape.gradient(y, [other, source], keep=True)
    with pytest.raises(ValueError, match=r"gradient: target is a result of 'multiply' that was released"):
        tape.gradient(loss, w)


def test_a_path_of_slope_zero_counts_and_one_that_was_cut_does_not():
    x = Variable(np.array([1.5, -2.5]))
    with Tape() as tape:
        y = F.sum(F.where(x.data > 0, 1.0, F.clip(x, -1.0, 1.0)))
        z = F.sum(x.data * 2.0) + F.sum(Variable(1.0))
    np.testing.assert_array_equal(tape.gradient(y, x, keep=True), [0, 0])
    with pytest.raises(ValueError, match="no path of calls"):
        tape.gradient(z, x)


def test_stop_gradient_maps_over_tuples_lists_and_dicts():
    x, y = Variable(np.ones(2)), Variable(2.0)
    stopped = stop_gradient({"a": [x, (y, 3)], "b": None})
    assert stopped["a"][0] is x.data
    assert stopped["a"][1] == (y.data, 3)
    assert stopped["b"] is None


def test_blocks_end_in_order_and_a_wrong_order_leaves_no_tape_recording():
    outer, inner = Tape(), Tape()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(ValueError, match="reverse order"):
        outer.__exit__(None, None, None)
    assert state.get().tapes == (inner,)
    inner.__exit__(None, None, None)
    assert state.get().tapes == ()
    with pytest.raises(ValueError, match="reverse order"):
        inner.__exit__(None, None, None)
    caught = []

    def leave():
        try:
            outer.__exit__(None, None, None)
        except ValueError as error:
            caught.append(error)

    with outer:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert len(caught) == 1
        assert state.get().tapes == (outer,)


@pytest.mark.parametrize("own_first", [False, True])
def test_a_block_may_end_in_another_context_and_leaves_nothing_in_its_own(own_first):
    """A task that was begun within a block may end it for itself, before the one around it does or after."""

    def begin_and_end():
        tape = Tape()
        tape.__enter__()
        task = contextvars.copy_context()
        if own_first:
            tape.__exit__(None)
        task.run(tape.__exit__, None)
        if not own_first:
            tape.__exit__(None)
        assert task.run(state.get).tapes == state.get().tapes == ()
        assert state not in contextvars.copy_context()

    contextvars.Context().run(begin_and_end)


def test_released_results_keep_no_arrays():
    """Losses that are kept, and totals of them, keep none of the arrays that were recorded."""
    references = []

    @differentiable("x", x=("output", lambda g, s: g * (1 - s.output * s.output)))
    def layer(x):
        y = np.tanh(x).view(Tracked)
        references.append(weakref.ref(y))
        return y

    w, losses, total = Variable(np.ones(100)), [], 0.0
    for _ in range(20):
        x = Variable(np.ones(100))
        with Tape() as tape:
            y = x
            for _ in range(10):
                y = layer(y * w)
            loss = F.sum(F.square(y))
            kept = F.sum(y)
        tape.gradient(loss, w)
        losses.append((loss, kept))
        total = total + loss
        del y
    gc.collect()
    assert len(references) == 200
    assert not any(reference() is not None for reference in references)
    # Nor do they keep each other: a running total of hundreds knows a handful of nodes.
    assert len(total.node.inputs) < 40
    np.testing.assert_allclose(total.item(), sum(loss.item() for loss, _ in losses))


def test_totals_of_what_is_never_differentiated_keep_one_graph_at_most():
    references, w, total = [], Variable(np.ones(5)), 0.0

    @differentiable("x", x=("output", lambda g, s: g * s.output))
    def layer(x):
        y = np.exp(x * 0.1).view(Tracked)
        references.append(weakref.ref(y))
        return y

    for _ in range(20):
        with Tape():
            loss = F.sum(layer(layer(w)))
        total = total + loss
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 2
    with Tape() as tape:
        y = total * w
    with pytest.raises(ValueError, match="source 0"):
        tape.gradient(y, w, grad=np.ones(5))


def test_a_source_younger_than_the_target_changes_nothing():
    x = Variable(2.0)
    with Tape() as tape:
        y = x * x
    z = Variable(1.0)
    assert tape.gradient(y, z, unused="zero") == 0
    with Tape() as tape:
        w = y * z
    with pytest.raises(ValueError, match=r"'multiply' that was released.*depends on source 0"):
        tape.gradient(w, x)


def test_release_by_hand():
    x = Variable(np.ones(3))
    with Tape() as tape:
        y = F.sum(F.exp(x))
        g = tape.gradient(y, x)
    assert isinstance(g, Variable)
    tape.release()
    assert tape.steps == []
    with pytest.raises(ValueError, match="released"):
        tape.gradient(y, x)


@pytest.mark.parametrize("seed", range(6))
def test_a_hook_hears_of_each_gradient_when_it_is_final(seed):
    """Sources are used in random places of a chain; each is final when the pass is through its first use."""
    rng = np.random.default_rng(seed)
    sources = {f"w{i}": Variable(rng.uniform(0.5, 1.5)) for i in range(5)}
    uses = [f"w{i}" for i in rng.integers(0, 5, 12)]
    with Tape() as tape:
        y = Variable(1.0)
        for name in uses:
            y = y * sources[name]
    expected = tape.gradient(y, sources, keep=True, unused="none")
    heard = []

    def hook(key, gradient):
        heard.append(key)
        if gradient is not None:
            assert gradient == expected[key]
            gradient *= 2  # it is the caller's own

    returned = tape.gradient(y, sources, unused="none", on_final=hook)
    first = {name: uses.index(name) for name in set(uses)}
    used = [name for name in heard if name in first]
    assert used == sorted(first, key=first.get, reverse=True)
    assert sorted(heard) == sorted(sources)
    assert {k: None if v is None else float(v) for k, v in returned.items()} == {
        k: None if v is None else 2 * float(v) for k, v in expected.items()
    }


def test_a_hook_may_write_to_what_it_is_told():
    """It changes neither what the pass still reads nor the gradient of a source that is given twice."""
    rng = np.random.default_rng(0)
    w = Variable(rng.standard_normal(4))
    with Tape() as tape:
        h = w * 2.0
        y = F.sum(h * 3.0) + F.sum(h * 4.0) + F.sum(w)

    def wipe(key, gradient):
        gradient *= 0 if key < 2 else 1

    of_h, again, of_w, once_more = tape.gradient(y, [h, h, w, w], on_final=wipe)
    np.testing.assert_array_equal([of_h, again], 0)
    np.testing.assert_array_equal([of_w, once_more], 15)

    def halve(key, gradient):
        gradient *= 0.5 if key == 0 else 1

    with Tape() as tape:
        y = F.sum(w * w)
    halved, whole = tape.gradient(y, [w, w], on_final=halve)
    np.testing.assert_array_equal(halved, w.data)
    np.testing.assert_array_equal(whole, 2 * w.data)


@pytest.mark.parametrize("kind", ["seed", "array", "source", "vjp"])
def test_a_gradient_is_nobody_elses_array(kind):
    w, before, seed = Variable(np.ones(3)), np.ones(3), np.full(3, 5.0)
    hand_on = differentiable("x", x=("x", lambda grad, saved: saved.x))(lambda x: x * x / 2)
    given = seed if kind == "array" else Variable(seed)
    if kind == "vjp":
        g = vjp(lambda x: x + 0.0, np.ones(3))[1](given)[0]
    else:
        with Tape() as tape:
            y = hand_on(w) if kind == "source" else w + 0.0
        g = tape.gradient(y, w, grad=given)
    g = g.data if isinstance(g, Variable) else g
    g *= 0
    np.testing.assert_array_equal(w.data, before)
    np.testing.assert_array_equal(seed, 5)


@pytest.mark.parametrize("seed", range(6))
def test_recorded_gradients_share_no_memory(seed):
    """Of a sum of transposed, reshaped, reversed and split arrays: the parts of its gradient are views."""
    rng = np.random.default_rng(seed)
    views = [
        lambda v: F.transpose(v),
        lambda v: F.reshape(v, (3, 3)),
        lambda v: v[::-1],
        lambda v: F.concatenate([v[:1], v[1:]]),
        lambda v: v + 0.0,
    ]
    sources = [Variable(rng.standard_normal((3, 3))) for _ in range(4)]
    chosen = [views[i] for i in rng.integers(0, len(views), 4)]
    factor = rng.standard_normal((3, 3))
    with Tape() as tape:
        y = sum((view(v) for view, v in zip(chosen, sources, strict=True)), 0.0)
        grads = tape.gradient(y, sources, grad=Variable(factor))
    before = [g.data.copy() for g in grads]
    for g, expected in zip(grads, before, strict=True):
        np.testing.assert_array_equal(g.data, expected)
        g.data *= 0
    assert factor.all()


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("released", [False, True])
def test_a_source_whose_own_past_is_gone_is_like_any_other(depth, released):
    """It has no rules, and more levels below it than steps that it meets."""
    old = Variable(0.5)
    with Tape() if released else nullcontext() as tape:
        for _ in range(depth):
            old = F.sin(old)
    if released:
        tape.release()
    gc.collect()
    assert not old.node.inputs or not released
    x = Variable(2.0)
    with Tape() as tape:
        y = old
        for _ in range(4):
            x_power = x * x
            y = y * (x_power * x)
    gx, g = tape.gradient(y, [x, old])
    assert g == 2.0**12
    np.testing.assert_allclose(gx, 12 * old.data * 2.0**11, rtol=1e-14)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("by_itself", [False, True])
def test_a_released_result_knows_what_is_older_than_the_source(depth, by_itself):
    """The pass ended at its source; what lies behind that, and is gone, still leads back to the leaf."""
    leaf = Variable(2.0)
    with Tape() as tape:
        y = leaf
        for _ in range(depth):
            y = F.sin(y)
        source = y
        y = y if by_itself else F.exp(y)
    assert tape.gradient(y, source) == (1 if by_itself else y.data)
    del source
    gc.collect()
    with pytest.raises(ValueError, match=r"released.*depends on source 0"):
        tape.gradient(y, leaf)
    with Tape() as tape:
        z = y * 3.0
    with pytest.raises(ValueError, match=r"released.*depends on source 0"):
        tape.gradient(z, leaf)


def test_a_tape_whose_steps_another_released_is_shown():
    w = Variable(np.ones(3))
    with Tape() as outer, Tape() as inner:
        y = F.sum(w * w)
    outer.gradient(y, w)
    assert "2 steps" in repr(inner) and "multiply" in inner._repr_html_()
