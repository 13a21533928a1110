"""Whatever a rule reads and somebody overwrites is noticed: arrays, indices, masks and bounds."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from autodiff import Tape, Variable, checkpoint, grad, hvp, jvp, vjp
from autodiff import functions as F

# Widths about which sums over columns, words and pages of memory could go wrong, and numbers of rows.
WIDTHS = (1, 2, 3, 7, 16, 63, 64, 65, 127, 128, 254, 255, 256, 508, 509, 1016, 4096)
ROWS = (1, 2, 3, 5, 64, 127, 201, 301, 2001)
LARGEST = 150_000


# --- ways to overwrite an array; most leave the sum of what is in it ---


def another_order(rng: np.random.Generator, a: Any) -> None:
    """Whole rows, or what an axis counts, in another order."""
    axis = int(rng.integers(a.ndim))
    a[...] = np.take(a, rng.permutation(a.shape[axis]), axis)


def sort(rng: np.random.Generator, a: Any) -> None:
    a.sort(int(rng.integers(a.ndim)))


def roll(rng: np.random.Generator, a: Any) -> None:
    a[...] = np.roll(a, int(rng.choice([1, 2, 127, 128, 254, 508, a.size // 2])))


def reverse(rng: np.random.Generator, a: Any) -> None:
    a[...] = np.flip(a, int(rng.integers(a.ndim))).copy()


def swap(rng: np.random.Generator, a: Any) -> None:
    i, j = np.unravel_index(rng.choice(a.size, 2), a.shape), np.unravel_index(rng.choice(a.size, 2), a.shape)
    first, second = tuple(k[0] for k in i), tuple(k[0] for k in j)
    a[first], a[second] = a[second], a[first]


def swap_neighbours(rng: np.random.Generator, a: Any) -> None:
    """All pairs of neighbours: within the words of memory, for 32 bits and less."""
    flat = a.reshape(-1).copy()
    pairs = flat[: flat.size // 2 * 2].reshape(-1, 2)
    pairs[...] = pairs[:, ::-1].copy()
    a[...] = flat.reshape(a.shape)


def signs_in_pairs(rng: np.random.Generator, a: Any) -> None:
    for place in rng.choice(a.size, 2):
        at = np.unravel_index(place, a.shape)
        a[at] = ~a[at] if a.dtype == bool else -a[at] if a.dtype.kind != "u" else 255 - a[at]


def all_signs(rng: np.random.Generator, a: Any) -> None:
    a[...] = ~a if a.dtype == bool else -a if a.dtype.kind != "u" else 255 - a


def one_bit(rng: np.random.Generator, a: Any) -> None:
    at = np.unravel_index(int(rng.integers(a.size)), a.shape)
    if a.dtype == bool:
        a[at] = ~a[at]
        return
    word = np.array([a[at]])
    word.view("u1")[int(rng.integers(word.nbytes))] ^= np.uint8(1 << int(rng.integers(8)))
    a[at] = word[0]


def more_and_less(rng: np.random.Generator, a: Any) -> None:
    """One grows by what another loses: the sum stays."""
    one, other = (np.unravel_index(place, a.shape) for place in rng.choice(a.size, 2))
    if a.dtype == bool:
        a[one], a[other] = ~a[one], ~a[other]
    else:
        a[one] += a.dtype.type(1)
        a[other] -= a.dtype.type(1)


def from_outside(rng: np.random.Generator, a: Any) -> None:
    """By another thread, through a view."""
    thread = threading.Thread(target=all_signs, args=(rng, a[::-1]))
    thread.start()
    thread.join()


MOVES = (another_order, sort, roll, reverse, swap, swap_neighbours)
CHANGES = (*MOVES, signs_in_pairs, all_signs, one_bit, more_and_less, from_outside)


def overwrite(rng: np.random.Generator, a: Any, changes: tuple = CHANGES) -> str:
    """Change an array in one of these ways; tells which."""
    before = a.tobytes()
    while True:
        change = changes[int(rng.integers(len(changes)))]
        change(rng, a)
        if a.tobytes() != before:
            return change.__name__


# --- what may be overwritten ---


def drawn_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """One to four axes, rows and widths of these; two elements at least."""
    while True:
        shape = [int(rng.choice(ROWS)), int(rng.choice(WIDTHS))]
        shape = [shape[1:], shape, [3, *shape], [int(rng.integers(1, 6)), 1, *shape]][int(rng.integers(4))]
        if 2 <= np.prod(shape) <= LARGEST:
            return tuple(shape)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Random numbers of a drawn dtype, and in a drawn order of memory."""
    dtype = dtype or rng.choice(["f2", "f4", "f8"])
    a = rng.standard_normal(shape).astype(dtype)
    layout = int(rng.integers(4))
    if layout == 1:
        return np.asfortranarray(a)
    if layout == 2:  # every other element of something larger
        wide = np.zeros((*shape[:-1], 2 * shape[-1]), a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]
    return a[::-1] if layout == 3 else a


class Read(NamedTuple):
    """A call of x, the arrays that its rule reads, the name under which it complains, what happens to them.

    `copied`: it may have made a copy for itself, so that the right gradient is as good as a complaint.
    """

    x: Any
    call: Callable
    arrays: list
    name: str
    changes: tuple = CHANGES
    copied: bool = False


def of_itself(f: Callable, name: str) -> Callable:
    def read(rng: np.random.Generator) -> Read:
        x = values(rng, drawn_shape(rng))
        return Read(x, f, [x], name)

    return read


def with_another(f: Callable, name: str, reads_x: bool = False) -> Callable:
    """The other argument is an array, a Variable, or a row that is repeated."""

    def read(rng: np.random.Generator) -> Read:
        shape = drawn_shape(rng)
        x = values(rng, shape)
        other = values(rng, shape if rng.random() < 0.6 or shape[-1] < 2 else shape[-1:], x.dtype)
        given = Variable(other) if rng.random() < 0.5 else other
        return Read(x, lambda x: f(x, given), [other, x] if reads_x else [other], name)

    return read


def rows_of(rng: np.random.Generator) -> Any:
    while True:
        x = values(rng, drawn_shape(rng))
        if x.shape[0] > 1:
            return x


def index(rng: np.random.Generator) -> Read:
    """An array of places, alone or within a tuple, some of them twice."""
    x = rows_of(rng)
    rows = rng.permutation(x.shape[0]).astype(rng.choice(["i4", "i8", "u2"]))
    at: Any = rows if rng.random() < 0.6 else (rows, ...)
    return Read(x, lambda x: x[at], [rows], "getitem", MOVES)


def mask(rng: np.random.Generator) -> Read:
    x = values(rng, drawn_shape(rng))
    chosen = _some(rng, x.shape)
    return Read(x, lambda x: x[chosen], [chosen], "getitem")


def condition(rng: np.random.Generator) -> Read:
    x = values(rng, drawn_shape(rng))
    chosen = _some(rng, x.shape)
    return Read(x, lambda x: F.where(chosen, x, 2 * x), [chosen], "where")


def _some(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """A mask that is neither full nor empty."""
    chosen = rng.random(shape) < 0.5
    chosen.flat[:2] = True, False
    return chosen


def bounds(rng: np.random.Generator) -> Read:
    x = values(rng, drawn_shape(rng))
    low = values(rng, x.shape, x.dtype)
    high = low + x.dtype.type(0.5)
    return Read(x, lambda x: F.clip(x, low, high), [low, high], "clip")


def product(rng: np.random.Generator) -> Read:
    n, m, k = (int(rng.choice([2, 3, 65, 127, 254])) for _ in range(3))
    x = values(rng, (n, m))
    other = values(rng, (m, k), x.dtype)
    if rng.random() < 0.5:
        return Read(x, lambda x: x @ other, [other], "matmul")
    return Read(x, lambda x: F.einsum("ij,jk->ik", x, other), [other], "einsum")


def labels(rng: np.random.Generator) -> Read:
    n, classes = int(rng.choice([3, 127, 2001])), int(rng.integers(2, 9))
    of = rng.integers(0, classes, n)
    of[:2] = 0, 1
    return Read(values(rng, (n, classes), "f8"), lambda x: F.cross_entropy(x, of), [of], "", MOVES, True)


def convolution(rng: np.random.Generator) -> Read:
    c, size = int(rng.integers(1, 4)), int(rng.choice([5, 16, 127]))
    weight = values(rng, (2, c, 3, 3), "f4")
    return Read(values(rng, (1, c, size, size), "f4"), lambda x: F.conv2d(x, weight), [weight], "conv2d")


def sampling(rng: np.random.Generator) -> Read:
    """An operator, whose places are read."""
    points = rng.uniform(0, 5, (1, 1, 2, 4, int(rng.choice([4, 127]))))
    return Read(
        values(rng, (1, 2, 6, 7), "f8"), lambda x: F.sample_points(x, points), [points], "sample_points"
    )


READS = {
    "square": of_itself(F.square, "square"),
    "sin": of_itself(F.sin, "sin"),
    "power": of_itself(lambda x: x**3, "power"),
    "abs": of_itself(F.abs, "abs"),
    "max": of_itself(F.max, "max"),
    "multiply": with_another(lambda x, y: x * y, "multiply"),
    "divide": with_another(lambda x, y: x / y, "divide"),
    "maximum": with_another(F.maximum, "maximum", reads_x=True),
    "index": index,
    "mask": mask,
    "condition": condition,
    "bounds": bounds,
    "product": product,
    "labels": labels,
    "convolution": convolution,
    "sampling": sampling,
}


# --- when it is overwritten, and how the gradient is asked for ---


def after_the_block(read: Read, change: Callable) -> Any:
    x = Variable(read.x)
    with Tape() as tape:
        y = F.sum(read.call(x))
    change()
    return tape.gradient(y, x)


def in_the_block(read: Read, change: Callable) -> Any:
    x = Variable(read.x)
    with Tape() as tape:
        y = F.sum(read.call(x))
        change()
        return tape.gradient(y, x).data


def between_two_gradients(read: Read, change: Callable) -> Any:
    x = Variable(read.x)
    with Tape() as outer:
        with Tape() as tape:
            y = F.sum(read.call(x))
        slope = tape.gradient(y, x)
        z = y + F.sum(slope)
    change()
    return outer.gradient(z, x)


def of_a_function(read: Read, change: Callable) -> Any:
    def f(x: Any) -> Any:
        y = F.sum(read.call(x))
        change()
        return y

    return grad(f)(read.x)


def nested(read: Read, change: Callable) -> Any:
    """Within the function within the function."""
    ones = np.ones_like(read.x)
    return hvp(
        lambda x: F.sum(grad(lambda y: F.sum(read.call(y)) + (change() or F.sum(y * x)))(x)),
        (read.x,),
        (ones,),
    )


def pulled_back(read: Read, change: Callable) -> Any:
    y, pull = vjp(read.call, read.x)
    change()
    return pull(np.ones_like(y))


def pushed_forward(read: Read, change: Callable) -> Any:
    def f(x: Any) -> Any:
        y = read.call(x)
        change()
        return y

    return jvp(f, (read.x,), (np.ones_like(read.x),))


def in_threads(read: Read, change: Callable) -> Any:
    """Computed in one thread, overwritten in another."""
    x, results = Variable(read.x), []
    with Tape() as tape:

        def compute() -> None:
            with tape:
                results.append(F.sum(read.call(x)))

        for task in (compute, change):
            thread = threading.Thread(target=task)
            thread.start()
            thread.join()
    return tape.gradient(results[0], x)


def run_again(read: Read, change: Callable) -> Any:
    """A checkpoint reads it a second time, and gets another value."""
    x = Variable(read.x)
    with Tape() as tape:
        y = F.sum(checkpoint(read.call)(x))
    change()
    return tape.gradient(y, x)


WAYS = (
    after_the_block, in_the_block, between_two_gradients, of_a_function, nested, pulled_back, pushed_forward,
    in_threads, run_again,
)  # fmt: skip


SECOND = (between_two_gradients, nested, pushed_forward)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", READS)
def test_overwriting_is_noticed(kind: str, way: Callable, rng: np.random.Generator) -> None:
    for _ in range(12):
        read = READS[kind](rng)
        array = read.arrays[int(rng.integers(len(read.arrays)))]
        done: list[str] = []

        def change(array: Any = array, done: list = done, read: Read = read) -> None:
            done[:] = done or [overwrite(rng, array, read.changes)]

        with np.errstate(all="ignore"):
            want = way(read, lambda: None)
            try:
                got = way(read, change)
            except RuntimeError as error:
                # In second derivatives other functions read it, too; a checkpoint has a name of its own.
                assert way in (*SECOND, run_again) or read.name in str(error)
                continue
        what = f"{done} of {array.dtype} {array.shape} {array.strides} was not noticed"
        assert (way is run_again or read.copied) and np.array_equal(got, want), what


# --- what is right is not refused ---

UNREAD = {
    "add": (lambda x, b: x + b, lambda b: np.ones_like(b)),
    "subtract": (lambda x, b: x - b, lambda b: np.ones_like(b)),
    "concatenate": (lambda x, b: F.concatenate([x, b]), lambda b: np.ones_like(b)),
    "mean": (lambda x, b: x.mean() + F.sum(b), lambda b: np.full_like(b, 1 / b.size)),
    "list of places": (
        lambda x, b: x[[0]],
        lambda b: np.concatenate([np.ones_like(b[:1]), np.zeros_like(b[1:])]),
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_no_rule_reads_may_be_overwritten(name: str, rng: np.random.Generator) -> None:
    call, slope = UNREAD[name]
    for _ in range(10):
        b = values(rng, drawn_shape(rng), "f8")
        a = values(rng, b.shape, "f8")
        x = Variable(a)
        with Tape() as tape:
            y = F.sum(call(x, b))
        overwrite(rng, b)
        overwrite(rng, a)
        np.testing.assert_allclose(tape.gradient(y, x), slope(b), rtol=1e-12)


def test_gaps_of_an_array_may_be_overwritten(rng: np.random.Generator) -> None:
    for width in (8, 5000):
        wide = rng.standard_normal((3, width))
        x = Variable(wide[:, ::2])
        with Tape() as tape:
            y = F.sum(F.square(x))
        want = 2 * wide[:, ::2]
        wide[:, 1::2] = 7
        np.testing.assert_array_equal(tape.gradient(y, x), want)


def test_what_was_put_back_is_no_change(rng: np.random.Generator) -> None:
    for size in (5, 50_000):
        a = rng.standard_normal(size)
        held, x = a.copy(), Variable(a)
        with Tape() as tape:
            y = F.sum(F.square(x))
        overwrite(rng, a)
        a[...] = held
        np.testing.assert_array_equal(tape.gradient(y, x), 2 * held)


def test_lists_are_copied_at_the_call() -> None:
    x, places, weights = Variable(np.arange(4.0)), [3, 0, 3], [1.0, 2.0, 4.0]
    with Tape() as tape:
        y = F.sum(x[places] * weights)
    places[:] = [1, 1, 1]
    weights[:] = [0.0, 0.0, 0.0]
    assert tape.gradient(y, x).tolist() == [2, 0, 0, 5]


def test_lists_within_parameters_are_copied_too() -> None:
    x, rows, columns = Variable(np.arange(6.0).reshape(2, 3)), [0, 1], [2, 0]
    with Tape() as tape:
        y = F.sum(x[rows, columns])
    columns[:] = [1, 1]
    rows.reverse()
    assert tape.gradient(y, x).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("f", [F.exp, F.tanh, F.sqrt, F.sigmoid, F.softmax], ids=lambda f: f.__name__)
def test_results_that_a_rule_reads_are_watched(f: Callable, rng: np.random.Generator) -> None:
    for shape in ((3, 5), (300, 127)):
        x = Variable(rng.uniform(0.5, 1, shape))
        with Tape() as tape:
            y = f(x)
            z = F.sum(y * rng.standard_normal(shape))
        overwrite(rng, y.data)
        with pytest.raises(RuntimeError, match="overwritten"):
            tape.gradient(z, x)


def test_new_data_of_a_parameter_are_no_overwriting() -> None:
    """As optimisers give it: the old array is what was read, and it is still there."""
    w = Variable(np.array([2.0, 3.0]))
    with Tape() as tape:
        y = F.sum(w**3)
    w.data = w.data - 1.0
    assert tape.gradient(y, w).tolist() == [12, 27]
