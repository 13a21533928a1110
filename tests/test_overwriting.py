"""Arrays that a gradient needs, wherever they are, cannot be overwritten unnoticed."""

import numpy as np
import pytest

from autodiff import Tape, Variable, checkpoint, differentiable
from autodiff import functions as F
from autodiff._fingerprint import SMALL, DevicePrint, fingerprint

# Ways to change an array that keep its values, or move few of them.
CHANGES = {
    "rows reversed": lambda a, rng: a[::-1],
    "rows shuffled": lambda a, rng: rng.permutation(a),
    "rows sorted": lambda a, rng: np.sort(a, 0),
    "columns rolled": lambda a, rng: np.roll(a, int(rng.integers(1, a.shape[-1])), -1),
    "two elements swapped": lambda a, rng: _swapped(a, *rng.choice(a.size, 2, replace=False)),
    "two signs changed": lambda a, rng: _signed(a, rng.choice(a.size, 2, replace=False)),
    "one bit flipped": lambda a, rng: _flipped(a, int(rng.integers(a.nbytes)), int(rng.integers(8))),
}


def _swapped(a, i, j):
    a = a.copy()
    a.flat[[i, j]] = a.flat[[j, i]]
    return a


def _signed(a, places):
    a = a.copy()
    a.flat[places] *= -1
    return a


def _flipped(a, byte, bit):
    a = a.copy()
    a.reshape(-1).view("u1")[byte] ^= 1 << bit
    return a


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(6))
def test_large_arrays_are_known_by_value_and_place(change, seed):
    rng = np.random.default_rng(seed)
    dtype = rng.choice(["f2", "f4", "f8"])
    width = int(rng.choice([2, 64, 127, 128, 254, 508, int(rng.integers(2, 600))]))
    rows = int(rng.integers(SMALL // (2 * width) + 2, 60_000 // width + SMALL // width + 3))
    data = rng.standard_normal((rows, width)).astype(dtype)
    x = Variable(data)
    with Tape() as tape:
        y = F.sum(F.square(x), 0)
    changed = CHANGES[change](data, rng)
    assert changed.tobytes() != data.tobytes()
    data[...] = changed
    with pytest.raises(RuntimeError, match=r"^square: its argument 'x' was overwritten"):
        tape.gradient(y, x, grad=np.ones(width, dtype))


@pytest.mark.parametrize("seed", range(8))
def test_a_fingerprint_sees_one_element_in_any_layout(seed):
    rng = np.random.default_rng(seed)
    shape = (*(int(n) for n in rng.integers(1, 40, 3)), 200)
    array = rng.standard_normal(shape).astype(rng.choice(["f4", "f8"]))
    layouts = [array, array.transpose(rng.permutation(4)), array[:, ::-1], array[..., ::2], array[:, :1]]
    for view in layouts:
        before = fingerprint(view)
        assert (before == fingerprint(view)) is True
        place = tuple(int(rng.integers(n)) for n in view.shape)
        old = view[place]
        view[place] = np.nextafter(old, np.inf)
        assert (before == fingerprint(view)) is False
        view[place] = old
        assert (before == fingerprint(view)) is True


def test_a_fingerprint_does_not_depend_on_threads():
    import dynarray

    array = np.random.default_rng(0).standard_normal(2_000_003)
    threads, prints = dynarray.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            dynarray.set_num_threads(number)
            prints.append(fingerprint(array))
    finally:
        dynarray.set_num_threads(threads)
    assert prints[0] == prints[1] == prints[2]


PARAMETERS = {
    "an index": ("getitem", "index", lambda x, rng: (p := rng.permutation(len(x)), lambda v: v[p])),
    "an index in a tuple": (
        "getitem",
        "index",
        lambda x, rng: (p := rng.permutation(len(x)), lambda v: F.reshape(v, (-1, 1))[p, 0]),
    ),
    "a mask": ("getitem", "index", lambda x, rng: (m := rng.random(len(x)) < 0.5, lambda v: v[m])),
    "a condition": (
        "where",
        "condition",
        lambda x, rng: (m := rng.random(len(x)) < 0.5, lambda v: F.where(m, v, 2.0 * v)),
    ),
    "a bound": (
        "clip",
        "max",
        lambda x, rng: (b := rng.standard_normal(len(x)), lambda v: F.clip(v, None, b)),
    ),
    "a factor": ("multiply", "y", lambda x, rng: (f := rng.standard_normal(len(x)), lambda v: v * f)),
}


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("size", [7, 5000])
def test_arrays_that_a_rule_reads_are_watched_wherever_they_are_given(kind, size):
    rng = np.random.default_rng(size)
    function, argument, make = PARAMETERS[kind]
    x = Variable(rng.standard_normal(size))
    array, f = make(x.data, rng)
    with Tape() as tape:
        y = F.sum(F.square(f(x)))
    expected = tape.gradient(y, x, keep=True)
    before = array.copy()
    array[...] = before[::-1]
    with pytest.raises(RuntimeError, match=rf"^{function}: its argument '{argument}' was overwritten after"):
        tape.gradient(y, x, keep=True)
    array[...] = before
    np.testing.assert_array_equal(tape.gradient(y, x), expected)


@pytest.mark.parametrize(("total", "rest", "expected"), [(5, 2, True), (6, 2, False), (5, 3, False)])
def test_fingerprints_on_a_device_are_compared_without_reading_them(total, rest, expected):
    """Such as CuPy's: arrays, of which arrays come."""
    pairs = [(np.array(a, np.uint64), np.array([1, b], np.uint8)) for a, b in [(5, 2), (total, rest)]]
    one, other = map(DevicePrint, pairs)
    verdict = one == other
    assert isinstance(verdict, np.bool_) and verdict == expected


def test_lists_are_copied_at_the_call():
    x = Variable(np.arange(3.0))
    order, factors, axes = [2, 0], [1.0, 10.0], [0, 1]
    with Tape() as tape:
        y = F.sum(F.multiply(x[order], factors)) + F.sum(x[(order,)])
    order[:], factors[:], axes[:] = [1, 1], [0.0, 0.0], []
    np.testing.assert_array_equal(tape.gradient(y, x), [10 + 1, 0, 1 + 1])


def test_a_variable_is_no_parameter():
    x, v = Variable(np.ones(3)), Variable(0.5)
    for index in (v, (v,), [v]):
        for array in (x, x.data):
            with pytest.raises(TypeError, match=r"getitem: index must not be a Variable.*stop_gradient"):
                F.getitem(array, index)


def test_a_list_of_variables_is_stacked_or_refused():
    """Functions of this package stack it; one that is made by `differentiable` gets arrays only."""
    x, v = Variable(np.array([1.0, 2.0, 3.0])), Variable(0.5)
    with Tape() as tape:
        y = F.sum(F.multiply(x, [v, 4.0, v]))
    of_x, of_v = tape.gradient(y, [x, v])
    np.testing.assert_array_equal(of_x, [0.5, 4, 0.5])
    assert of_v == 1 + 3
    own = differentiable("a", a=("", lambda grad, saved: grad))(lambda a: a)
    with pytest.raises(TypeError, match=r"a list of Variables is no array; F\.stack"):
        own([v, v])


def test_a_checkpoint_compares_what_it_computes():
    factor, x = [2.0], Variable(np.array([1.0, 2.0]))
    f = checkpoint(lambda x: x * factor[0])
    with Tape() as tape:
        y = F.sum(f(x))
    np.testing.assert_array_equal(tape.gradient(y, x, keep=True), [2, 2])
    factor[0] = 3.0
    with pytest.raises(RuntimeError, match="run again it gave another value than before"):
        tape.gradient(y, x)
    rng = np.random.default_rng(0)
    with Tape() as tape:
        y = F.sum(checkpoint(lambda x: x * rng.random(2))(x))
    with pytest.raises(RuntimeError, match="draws random numbers of its own"):
        tape.gradient(y, x)


def test_a_checkpoint_compares_what_it_uses():
    """The name in the closure means another Variable by then, one that depends on the checkpoint."""
    x = Variable(np.array([1.0, 2.0]))
    with Tape() as tape:
        y = F.sum(x)
        for _ in range(2):
            y = F.tanh(checkpoint(lambda a: (y - y) + F.sin(F.sum(a)))(x))  # noqa: B023
    with pytest.raises(RuntimeError, match="or used other Variables"):
        tape.gradient(y, x)
