"""Every operator from many threads, after a fork and after an interrupt."""

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from _contract import each_operator, evaluate, full_call, parts, threads
from _processes import PATIENCE, from_threads, output_of, with_fork
from conftest import Backend, backend_params

from dynarray import OPERATORS, Operator
from dynarray.cpu.engine import parallel

each_backend = pytest.mark.parametrize("backend", backend_params("cpu", "host"), indirect=True)
by_name = pytest.mark.parametrize("name", backend_params("cpu", "host"))


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three threads, which share even the smallest work."""
    monkeypatch.setattr(parallel, "SMALL", 0)
    with threads(3):
        yield


def bits(operator: Operator, backend: Backend, seed: int) -> list[bytes]:
    """The bytes of output and gradients of a small call."""
    call = full_call(operator, seed, H=6 + seed % 3)
    return [values.tobytes() for _, values in parts(call, evaluate(call, backend))]


@each_operator
@each_backend
def test_eight_threads_at_once_get_the_bits_of_one_alone(
    operator: Operator, backend: Backend, sharing: None
) -> None:
    alone = [bits(operator, backend, seed) for seed in range(8)]
    begin = threading.Barrier(8)

    def work(index: int) -> None:
        begin.wait(PATIENCE)
        for repeat in range(8):
            seed = (index + repeat) % 8
            assert bits(operator, backend, seed) == alone[seed], f"thread {index}, call {repeat}"

    from_threads(8, work)


@pytest.mark.parametrize("seconds", [0.0, 1e-3], ids=["fast", "slow"])
@pytest.mark.parametrize("times", [0.5, 1, 15.9, 16])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 33])
def test_each_item_is_worked_on_once(count: int, times: float, seconds: float) -> None:
    """Whatever is estimated and measured: alone, by a part of the items, or shared at once."""
    worked_on: list[int] = []

    def kernel(start: int, stop: int, *arguments: Any) -> None:
        assert start < stop and arguments == ("argument",)
        time.sleep(seconds * (stop - start))
        worked_on.extend(range(start, stop))

    with threads(3):
        parallel.run(kernel, count, times * parallel.SMALL, "argument")
    assert sorted(worked_on) == list(range(count))


# ---- interrupts at every point of the pool at which Python takes one: when it enters a function, and when
# it comes back from one written in C


class Alarm(Exception):
    """What the handler of a signal may raise."""


def interrupted_at(step: int, kernel: Any, error: type[BaseException]) -> bool:
    """Run a kernel with an interrupt at that step of the calling thread; False if it ended before."""
    steps = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal steps
        if event in ("call", "c_return"):
            steps += 1
            if steps == step + 2:  # the entry into `run` comes first
                raise error

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        parallel.run(kernel, 8, 1e9)
    except error:
        return True
    finally:
        sys.setprofile(before)
    return False


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm, SystemExit])
def test_an_interrupt_anywhere_leaves_no_thread_at_work_and_the_pool_usable(
    error: type[BaseException], sharing: None
) -> None:
    caller, working = threading.get_ident(), []
    counts = np.zeros(100, int)

    def kernel(start: int, stop: int) -> None:
        if threading.get_ident() != caller:
            working.append(start)
            threading.Event().wait(0.002)
            working.pop()

    def count_up(start: int, stop: int) -> None:
        counts[start:stop] += 1

    step = 0
    while interrupted_at(step, kernel, error):
        assert not working, f"a thread worked on after the interrupt at step {step}"
        for _ in range(2):
            counts[:] = 0
            from_threads(1, lambda index: parallel.run(count_up, 100, 1e9))
            parallel.run(count_up, 100, 1e9)
            assert (counts == 2).all(), f"after the interrupt at step {step}"
        step += 1
        assert step < 2000
    assert step > 30


PREAMBLE = """
import os, signal, sys, threading, time
from conftest import Backend
from _contract import OPERATORS, threads
from dynarray.cpu.engine import parallel
from test_robustness_threads import bits

backend = Backend(sys.argv[1])
parallel.SMALL = 0
wrong = []
"""

FORK = """
with threads(3):
    for name, operator in OPERATORS.items():
        alone, ended = [bits(operator, backend, seed) for seed in range(3)], []
        def work():
            while not ended:
                bits(operator, backend, 0)
        others = [threading.Thread(target=work) for _ in range(2)]
        for other in others:
            other.start()
        for attempt in range(3):
            child = os.fork()
            if not child:
                signal.alarm(20)
                os._exit([bits(operator, backend, seed) for seed in range(3)] != alone)
            _, status = os.waitpid(child, 0)
            if status or [bits(operator, backend, seed) for seed in range(3)] != alone:
                wrong.append((name, status))
        ended.append(True)
        for other in others:
            other.join()
print(len(OPERATORS), wrong)
"""


@with_fork
@pytest.mark.slow
@by_name
def test_a_child_forked_in_the_middle_computes_the_same_and_its_parent_goes_on(name: str) -> None:
    """Other threads are inside the operator when the process forks, and in the child they are gone."""
    assert output_of(PREAMBLE + FORK, name) == f"{len(OPERATORS)} []"


INTERRUPT = """
class Alarm(Exception):
    pass
def handler(*signal):
    raise Alarm
signal.signal(signal.SIGALRM, handler)
came = 0
with threads(3):
    for name, operator in OPERATORS.items():
        alone = bits(operator, backend, 0)
        started = time.perf_counter()
        bits(operator, backend, 0)
        length = time.perf_counter() - started
        for attempt in range(25):
            try:
                signal.setitimer(signal.ITIMER_REAL, length * (attempt + 1) / 25)
                bits(operator, backend, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                came += 1
            if bits(operator, backend, 0) != alone:
                wrong.append((name, attempt))
print(len(OPERATORS), wrong, came > 100)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="this system has no timers")
@by_name
def test_interrupts_anywhere_in_an_operator_leave_it_usable(name: str) -> None:
    assert output_of(PREAMBLE + INTERRUPT, name) == f"{len(OPERATORS)} [] True"
