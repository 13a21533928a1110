"""The engine: recording, releasing, overwritten arrays, nesting, threads."""

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from autodiff import Tape, Variable, differentiable, stop_gradient
from autodiff import functions as F
from autodiff._graph import state

ROOT = Path(__file__).parent.parent


def test_import_is_light():
    code = (
        "import sys;"
        "import autodiff, autodiff.layers, autodiff.optim, autodiff.networks;"
        "assert not {'numba', 'cupy', 'scipy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_engine_is_short_and_knows_no_function():
    names = ("variable", "function", "tape", "_graph", "_fingerprint", "derivatives")
    texts = [(ROOT / "autodiff" / f"{name}.py").read_text() for name in names]
    assert sum(text.count("\n") for text in texts) <= 950
    from dynarray import OPERATORS

    assert not [name for name in OPERATORS for text in texts if name in text]
    assert not [text for text in texts[:-1] if "functions import" in text]


def test_arrays_give_arrays_and_record_nothing():
    with Tape() as tape:
        y = F.exp(np.zeros(3)) + F.sum(np.ones((2, 3)), 0)
    assert type(y) is np.ndarray
    assert tape.steps == []


def test_variables_outside_a_tape_record_nothing():
    y = F.exp(Variable(np.zeros(3)))
    assert isinstance(y, Variable)
    with Tape() as tape:
        pass
    with pytest.raises(ValueError, match="not computed on this tape"):
        tape.gradient(F.sum(y), y)


def test_sources_may_be_one_many_or_named():
    x, y = Variable(2.0), Variable(3.0)
    with Tape() as tape:
        z = x * y
    assert float(tape.gradient(z, x, keep=True)) == 3
    assert [float(g) for g in tape.gradient(z, [x, y], keep=True)] == [3, 2]
    assert {k: float(g) for k, g in tape.gradient(z, {"a": y}).items()} == {"a": 2}


def test_intermediate_results_may_be_sources():
    x = Variable(np.array([1.0, 2.0]))
    with Tape() as tape:
        y = x * x
        z = F.sum(y * y)
    gy, gx, gz = tape.gradient(z, [y, x, z])
    np.testing.assert_array_equal(gy, [2, 8])
    np.testing.assert_array_equal(gx, [4, 32])
    assert float(gz) == 1


def test_unused_sources():
    x, y = Variable(np.ones(2)), Variable(np.ones((2, 3), np.float32), name="y")
    with Tape() as tape:
        z = F.sum(x)
    message = r"target does not depend on source 1, Variable\('y'.*'zero' or 'none' gives zeros or None"
    with pytest.raises(ValueError, match=message):
        tape.gradient(z, [x, y])
    gy = tape.gradient(z, y, unused="zero", keep=True)
    np.testing.assert_array_equal(gy, np.zeros((2, 3)))
    assert gy.dtype == np.float32
    gx, gy = tape.gradient(z, [x, y], unused="none")
    np.testing.assert_array_equal(gx, np.ones(2))
    assert gy is None
    with pytest.raises(ValueError, match="unused must be one of"):
        tape.gradient(z, x, unused="ignore")


def test_value_used_many_times():
    x = Variable(3.0)
    with Tape() as tape:
        y = x * x + x * x * x + x
    assert float(tape.gradient(y, x)) == 6 + 27 + 1


def test_gradients_never_share_memory():
    x, y = Variable(np.ones(3)), Variable(np.ones(3))
    seed = np.ones(3)
    with Tape() as tape:
        z = x + y
    gx, gy, gz = tape.gradient(z, [x, y, z], grad=seed)
    for a, b in [(gx, gy), (gx, gz), (gy, gz), (gx, seed), (gy, seed), (gz, seed)]:
        assert not np.shares_memory(a, b)


def test_gradient_of_a_broadcast_is_writeable():
    x = Variable(np.ones((2, 3)))
    with Tape() as tape:
        y = F.sum(x)
    tape.gradient(y, x)[...] = 0


@pytest.mark.parametrize("dtypes", [("f4", "f8"), ("f8", "f4"), ("f4", "f4"), ("f2", "f4")])
def test_gradient_has_the_dtype_of_its_source(dtypes):
    x, y = (Variable(np.ones(3, d)) for d in dtypes)
    with Tape() as tape:
        z = F.sum(x * y)
    assert [g.dtype for g in tape.gradient(z, [x, y])] == [np.dtype(d) for d in dtypes]


def test_target_must_be_right():
    x = Variable(np.ones(3))
    with Tape() as tape:
        y = F.exp(x)
    with pytest.raises(ValueError, match=r"single number unless grad is given, got shape \(3,\)"):
        tape.gradient(y, x)
    with pytest.raises(ValueError, match=r"grad must have the shape of target, \(3,\), got \(2,\)"):
        tape.gradient(y, x, grad=np.ones(2))
    with pytest.raises(TypeError, match="target must be a Variable, got ndarray"):
        tape.gradient(np.ones(()), x)
    with pytest.raises(TypeError, match="sources must be a Variable, got ndarray"):
        tape.gradient(y, np.ones(3))


def test_second_gradient_needs_keep():
    x = Variable(2.0)
    with Tape() as tape:
        y = F.exp(x)
    first = tape.gradient(y, x, keep=True)
    assert tape.gradient(y, x) == first
    with pytest.raises(ValueError, match="released by an earlier gradient"):
        tape.gradient(y, x)


@pytest.mark.parametrize("size", [5, 4096, 100_003])
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.__imul__(2),
        lambda a: a.__imul__(-1),
        lambda a: a.__setitem__(..., a[::-1].copy()),
        lambda a: a.__setitem__(slice(2, 4), a[2:4][::-1].copy()),
        lambda a: a.__setitem__(len(a) // 2, np.nextafter(a[len(a) // 2], 9)),
        lambda a: a.__setitem__(-1, 0),
        lambda a: a.__setitem__(..., np.roll(a, len(a) // 2)),
    ],
    ids=["scale", "negate", "reverse", "swap", "one ulp", "last", "roll"],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_overwriting_a_saved_array_is_detected(size, change, dtype):
    data = np.random.default_rng(0).standard_normal(size).astype(dtype)
    x, y = Variable(data), Variable(np.ones(size, dtype))
    with Tape() as tape:
        z = F.sum(F.multiply(x, y))
    change(data)
    with pytest.raises(RuntimeError, match=r"^multiply: its argument 'x' was overwritten"):
        tape.gradient(z, y)


def test_overwriting_through_a_view_or_an_output_is_detected():
    base = np.ones((4, 4))
    x = Variable(base[1:, ::2])
    with Tape() as tape:
        z = F.sum(F.square(x))
    base[2, 2] = 5
    with pytest.raises(RuntimeError, match=r"^square: its argument 'x'"):
        tape.gradient(z, x)
    with Tape() as tape:
        y = F.exp(x)
        z = F.sum(y)
    y.data += 1
    with pytest.raises(RuntimeError, match=r"^exp: its output was overwritten"):
        tape.gradient(z, x)


def test_no_false_alarms():
    data, other = np.ones(3), np.ones(3)
    x, y = Variable(data), Variable(other)
    with Tape() as tape:
        z = F.sum(x + y)  # reads neither
    data[...] = 7
    tape.gradient(z, [x, y])
    with Tape() as tape:
        z = F.sum(x * y)
    g = tape.gradient(z, [x, y])
    data -= g[0]
    other -= g[1]
    with Tape() as tape:  # reads y for x, and x for nothing
        z = F.sum(x * other)
    data[...] = 3
    np.testing.assert_array_equal(tape.gradient(z, x), other)
    x.data = np.zeros(3)
    nan = Variable(np.full(3, np.nan))
    with Tape() as tape:
        z = F.sum(F.square(nan))
    tape.gradient(z, nan)


def test_the_check_can_be_left_out():
    data = np.ones(3)
    x = Variable(data)
    with Tape(check=False) as tape:
        z = F.sum(F.square(x))
    data[...] = 2
    np.testing.assert_array_equal(tape.gradient(z, x), [4, 4, 4])


def test_replacing_data_is_no_overwriting():
    x = Variable(np.ones(3))
    with Tape() as tape:
        z = F.sum(F.square(x))
    x.data = np.full(3, 5.0)
    np.testing.assert_array_equal(tape.gradient(z, x), [2, 2, 2])


class Tracked(np.ndarray):
    """ndarray itself takes no weak references."""


def test_saved_arrays_are_released_as_the_pass_goes():
    references = []
    alive = []

    def probe(g, s):
        gc.collect()
        alive.append(sum(r() is not None for r in references))
        return g * s.output

    @differentiable("x", x=("output", probe))
    def step(x):
        y = np.exp(x * 0.1).view(Tracked)
        references.append(weakref.ref(y))
        return y

    x = Variable(np.ones(4))
    with Tape() as tape:
        y = x
        for _ in range(5):
            y = step(y)
        z = F.sum(y)
    del y
    tape.gradient(z, x)
    assert alive == [5, 4, 3, 2, 1]
    assert not any(r() is not None for r in references)


def test_outputs_that_no_gradient_reads_are_not_kept():
    x = Variable(np.ones(4))
    references = []

    @differentiable("x", x=("", lambda g, s: g))
    def step(x):
        y = (x + 1).view(Tracked)
        references.append(weakref.ref(y))
        return y

    with Tape() as tape:
        y = x
        for _ in range(3):
            y = step(y)
    assert [r() is not None for r in references] == [False, False, True]
    assert len(tape.steps) == 3


def test_only_what_the_sources_need_is_computed():
    calls = []
    count = differentiable("x", x=("", lambda g, s: calls.append(1) or g))(lambda x: x + 0)
    x, y = Variable(np.ones(2)), Variable(np.ones(2))
    with Tape() as tape:
        z = F.sum(count(x) * count(y))
    tape.gradient(z, x)
    assert len(calls) == 1


def test_exception_leaves_nothing_behind():
    x = Variable(np.ones(3))
    reference = []
    with pytest.raises(ZeroDivisionError), Tape() as tape:
        y = F.exp(x).data.view(Tracked)
        reference.append(weakref.ref(y))
        F.square(Variable(y))
        del y
        raise ZeroDivisionError
    assert state.get().tapes == ()
    assert tape.steps == []
    gc.collect()
    assert reference[0]() is None


def test_exception_in_a_rule_leaves_the_outer_tape_recording():
    def fail(g, s):
        raise ZeroDivisionError

    broken = differentiable("x", x=("", fail))(lambda x: x + 0)
    x = Variable(1.0)
    with Tape() as outer:
        with Tape() as inner:
            y = broken(x)
        with pytest.raises(ZeroDivisionError):
            inner.gradient(y, x)
        assert state.get().tapes == (outer,)
        z = x * x
    assert float(outer.gradient(z, x)) == 2


def test_nested_tapes_record_alike():
    x = Variable(3.0)
    with Tape() as outer:
        a = x * x
        with Tape() as inner:
            b = x * x * x
        c = a + b
    assert float(inner.gradient(b, x)) == 27
    assert float(outer.gradient(c, x)) == 33


def test_a_tape_may_be_entered_again():
    x = Variable(3.0)
    tape = Tape()
    with tape:
        y = x * x
        with tape:
            y = y * x
    z = y * x
    with tape:
        y = y * x
    assert len(tape.steps) == 3
    assert float(tape.gradient(y, x)) == 4 * 27
    assert z.size == 1


def test_gradient_within_its_own_block():
    x = Variable(3.0)
    with Tape() as tape:
        y = x * x
        g = tape.gradient(y, x)
        assert isinstance(g, Variable)
        y = x * x * x + g * g
    assert float(g) == 6
    assert float(tape.gradient(y, x)) == 27 + 8 * 3
    assert tape.steps == []


def test_threads_have_tapes_of_their_own():
    barrier = threading.Barrier(2)
    results = {}

    def work(factor):
        x = Variable(np.full(1000, float(factor)))
        with Tape() as tape:
            barrier.wait()
            y = F.sum(x * x)
            barrier.wait()
        results[factor] = (len(tape.steps), tape.gradient(y, x)[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {1: (2, 2.0), 2: (2, 4.0)}


def test_higher_order():
    x = Variable(2.0)
    with Tape() as a:
        with Tape() as b:
            with Tape() as c:
                y = x**5
            first = c.gradient(y, x)
        second = b.gradient(first, x)
    third = a.gradient(second, x)
    assert [float(first), float(second), float(third)] == [80, 160, 240]


def test_gradient_of_a_constant_gradient_is_zero():
    x = Variable(np.ones(3))
    with Tape() as outer:
        with Tape() as inner:
            y = F.sum(x + 1)
        g = inner.gradient(y, x)
        z = F.sum(g)
    with pytest.raises(ValueError, match="does not depend on source 0"):
        outer.gradient(z, x, keep=True)
    np.testing.assert_array_equal(outer.gradient(z, x, unused="zero"), np.zeros(3))


def test_stop_gradient():
    x = Variable(3.0)
    with Tape() as tape:
        y = x * stop_gradient(x)
    assert float(tape.gradient(y, x)) == 3
    assert stop_gradient(x.data) is x.data


def test_arguments_by_name_and_position():
    x, w, b = (
        Variable(np.random.default_rng(0).standard_normal(s)) for s in ((1, 2, 4, 4), (3, 2, 1, 1), (3,))
    )
    with Tape() as tape:
        y = F.sum(F.conv2d(weight=w, bias=b, x=x) * F.conv2d(x, w, bias=b))
    np.testing.assert_allclose(tape.gradient(y, b), 2 * F.sum(F.conv2d(x, w, b), (0, 2, 3)).data)
    with pytest.raises(TypeError, match="unexpected keyword"):
        F.conv2d(x, w, b, strides=1)
    with pytest.raises(TypeError, match="missing"):
        F.multiply(x)


def test_wrong_rules_are_named():
    @differentiable("x", x=("", lambda g, s: g[:1]))
    def shrink(x):
        return x + 0

    x = Variable(np.ones(3))
    with Tape() as tape:
        y = F.sum(shrink(x))
    with pytest.raises(RuntimeError, match=r"shrink: gradient has shape \(1,\), its argument \(3,\)"):
        tape.gradient(y, x)


def test_names_of_steps_are_no_names_of_arguments():
    with pytest.raises(TypeError, match="shrink: an argument must not be called 'shapes'"):

        @differentiable("x")
        def shrink(x, shapes=None):
            return x


def _two(a, b):
    return a + 10 * b


def _shares(*xs):
    return sum(xs)


def _named(x, output):
    return x * output


def _open(x, **options):
    return x * options.get("scale", 1)


@pytest.mark.parametrize(
    "forward, arrays, message",
    [
        (_two, "b a", "two: arrays are named as in its signature, in the same order: b a"),
        (_two, "a c", "two: arrays are named as in its signature, in the same order: a c"),
        (_named, "x", "named: an argument must not be called 'output'"),
        (_open, "x", "open: parameters have names of their own"),
        (_shares, "*xs", r"shares: \*xs has no rule for each array"),
    ],
)
def test_what_a_function_cannot_be_made_of_is_refused_where_it_is_made(forward, arrays, message):
    rules = {name: ("", lambda grad, saved: grad) for name in arrays.strip("*").split()}
    with pytest.raises(TypeError, match=message):
        differentiable(arrays, **rules)(forward)


def test_sums_do_not_write_into_arrays_of_others():
    """A gradient that a rule keeps, or that is a view of another, is not added to in place."""
    seen = []

    def keep(g, s):
        seen.append((g, g.copy()))
        return g

    same = differentiable("x", x=("", keep))(lambda x: x + 0)
    x = Variable(np.arange(3.0))
    with Tape() as tape:
        y = same(x)
        z = F.sum(same(y) * 2.0 + y + same(y) * y + x + same(x))
    gx, gy = tape.gradient(z, [x, y])
    for array, copy in seen:
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(gy, 3 + 2 * x.data)
    np.testing.assert_array_equal(gx, 5 + 2 * x.data)
