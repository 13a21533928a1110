"""Scratch memory of CPU kernels: cut from one description."""

import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest

from dynarray.cpu.engine.memory import cut, run_with_scratch
from dynarray.cpu.engine.vectors import LINE_BYTES


class Inner(NamedTuple):
    places: Any
    values: Any


class Outer(NamedTuple):
    first: Any
    inner: Inner
    nothing: Any
    last: Any


SIZES = Outer(first=5, inner=Inner(places=(7, np.int64), values=33), nothing=0, last=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_are_as_described_and_apart(dtype: str) -> None:
    scratch = cut(SIZES, np.dtype(dtype))
    assert type(scratch) is Outer and type(scratch.inner) is Inner
    arrays = [scratch.first, *scratch.inner, scratch.nothing, scratch.last]
    assert [len(array) for array in arrays] == [5, 7, 33, 0, 1]
    assert [array.dtype for array in arrays] == [dtype, np.int64, dtype, dtype, dtype]
    assert all(array.ctypes.data % LINE_BYTES == 0 for array in arrays if array.size)
    for number, array in enumerate(arrays):
        array.fill(number)
    for number, array in enumerate(arrays):
        assert np.all(array == number)


def test_a_thread_gets_its_own_memory_again() -> None:
    def place() -> int:
        return cut(SIZES, np.dtype(np.float32)).first.ctypes.data

    mine, found = place(), []
    assert place() == mine
    thread = threading.Thread(target=lambda: found.append(place()))
    thread.start()
    thread.join()
    assert found[0] != mine


def test_kernels_get_scratch_before_their_arguments() -> None:
    seen = []

    def kernel(start: int, stop: int, scratch: Outer, *args: Any) -> None:
        seen.append((start, stop, len(scratch.inner.values), args))

    run_with_scratch(kernel, 3, 1.0, SIZES, np.dtype(np.float64), "a", 2)
    assert seen == [(0, 3, 33, ("a", 2))]


def test_equal_sizes_in_another_record_are_another_record() -> None:
    """What was cut is kept, and records are equal to tuples."""
    kinds = [NamedTuple("First", [("a", Any), ("b", Any)]), NamedTuple("Second", [("a", Any), ("b", Any)])]
    for kind in kinds:
        assert type(cut(kind(7, 7), np.dtype(np.float32))) is kind


def test_scratch_that_grows_leaves_nothing_of_the_old_memory() -> None:
    """Kept records would hold memory that is no longer in use."""
    old = []

    def grow() -> None:
        old.append(weakref.ref(cut(Inner(16, 16), np.dtype(np.float32)).values))
        cut(Inner(1 << 20, 16), np.dtype(np.float32))
        old.append(old[0]())

    thread = threading.Thread(target=grow)
    thread.start()
    thread.join()
    assert old[1] is None
