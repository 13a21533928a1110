"""Memory of large results goes into the next ones, and never into two at once."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from _processes import output_of

from dynarray.cpu.engine import large
from dynarray.cpu.engine.memory import empty, zeros

pytestmark = pytest.mark.skipif(not large.AVAILABLE, reason="the system cannot mark memory as free")

SIZE = 9 * 1024 * 1024  # of float32: 36 MB


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    large._left.give_back()


def place(array: np.ndarray) -> int:
    return array.ctypes.data


def test_what_is_let_go_is_the_next_result() -> None:
    first = empty((SIZE,), np.float32)
    where = place(first)
    del first
    again = empty((3, SIZE // 3), np.float32)
    assert place(again) == where
    assert again.shape == (3, SIZE // 3) and again.dtype == np.float32 and again.flags.c_contiguous
    assert again.flags.writeable and where % large.PAGE == 0
    del again
    assert place(empty((SIZE // 2,), np.float64)) == where


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array[5:7],
        lambda array: array.reshape(4, -1).T,
        memoryview,
        lambda array: np.lib.stride_tricks.as_strided(array, (2,), (4,)),
        lambda array: np.frombuffer(array, np.uint8)[9:],
    ],
)
def test_what_somebody_still_sees_is_not(hold) -> None:
    first = zeros((SIZE,), np.float32)
    seen = hold(first)
    where = place(first)
    del first
    other = empty((SIZE,), np.float32)
    assert place(other) != where
    other.fill(1)
    assert not np.asarray(seen).any()
    del seen
    assert place(empty((SIZE,), np.float32)) == where


def test_much_smaller_arrays_take_no_large_memory() -> None:
    first = empty((5 * SIZE,), np.float32)
    where = place(first)
    del first
    assert place(empty((SIZE,), np.float32)) != where


def test_what_is_left_is_bounded() -> None:
    left = large._Left(40 * 1024 * 1024)
    held = [large._Memory(12 * 1024 * 1024 + k * large.PAGE, left) for k in range(6)]
    addresses = [memory.__array_interface__["data"] for memory in held]
    assert left.size() == 0
    while held:
        del held[0]
        assert left.size() <= 40 * 1024 * 1024
    # The last ones are there, the first are not; nor is one that is larger than all that may be left.
    assert large._Memory(22 * 1024 * 1024, left).__array_interface__["data"] == addresses[-1]
    large._Memory(41 * 1024 * 1024, left)
    assert left.size() <= 40 * 1024 * 1024
    left.give_back()
    assert left.size() == 0


def test_threads_never_get_the_same_memory() -> None:
    barrier = threading.Barrier(4)

    def work(mine: int) -> None:
        barrier.wait()
        for turn in range(20):
            array = empty((SIZE + (turn + mine) % 3 * 1024 * 1024,), np.float32)
            array[:: 64 * 1024] = mine
            assert (array[:: 64 * 1024] == mine).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_forked_child_leaves_its_parents_arrays_alone() -> None:
    held, gone = zeros((SIZE,), np.float32), zeros((SIZE,), np.float32)
    del gone
    child = os.fork()
    if child == 0:
        for _ in range(3):
            empty((SIZE,), np.float32).fill(1)
        del held
        empty((SIZE,), np.float32).fill(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not held.any()


def test_what_is_left_is_given_back_where_memory_is_short() -> None:
    script = """
import resource
import numpy as np
from dynarray.cpu.engine.memory import empty

megabyte = 1024 * 1024
held = [empty((100 * megabyte // 4,), np.float32) for _ in range(3)]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
del held
resource.setrlimit(resource.RLIMIT_AS, (used + 50 * megabyte,) * 2)
print(empty((250 * megabyte // 4,), np.float32).size)
try:
    empty((1000 * megabyte // 4,), np.float32)
except MemoryError as error:
    print(error)
"""
    size, error = output_of(script).splitlines()
    assert int(size) == 250 * 1024 * 1024 // 4
    assert "no memory for an array of" in error


def test_arrays_may_outlive_modules() -> None:
    script = """
import sys
import numpy as np
from dynarray.cpu.engine.memory import empty

kept = empty((9_000_000,), np.float32)
class Late:
    def __del__(self, array=empty((10_000_000,), np.float32)):
        array.fill(1)
sys.late = Late()
np.late = kept
print("end")
"""
    assert output_of(script).split() == ["end"]
