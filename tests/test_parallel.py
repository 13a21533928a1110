"""The thread pool of the CPU kernels: every item once, whatever happens to thread, process or kernel."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _processes import PATIENCE, from_threads, output_of, with_fork

import dynarray as dyn
from dynarray.cpu.engine import parallel, watching
from dynarray.cpu.engine.watching import Signs

LARGE = 1e9  # operations that are worth threads


@pytest.fixture(autouse=True)
def _same_number_of_threads_afterwards() -> Iterator[None]:
    before = dyn.get_num_threads()
    yield
    dyn.set_num_threads(before)


def count_up(start: int, stop: int, counts: np.ndarray) -> None:
    for item in range(start, stop):
        counts[item] += 1


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 29, 1000])
def test_every_item_is_worked_on_once(threads: int, count: int) -> None:
    dyn.set_num_threads(threads)
    counts = np.zeros(count, int)
    parallel.run(count_up, count, LARGE, counts)
    assert (counts == 1).all()


def test_small_work_stays_in_the_calling_thread() -> None:
    dyn.set_num_threads(4)
    calls: list[Any] = []
    parallel.run(lambda start, stop: calls.append((start, stop, threading.get_ident())), 100, 10.0)
    assert calls == [(0, 100, threading.get_ident())]


def test_how_long_calls_took_tells_whether_threads_share_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that only the kernel moves, and without anybody who helps."""
    clock = [0.0]
    monkeypatch.setattr(parallel, "_known", {})
    monkeypatch.setattr(parallel, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(parallel._Pool, "help", lambda *_: None)
    dyn.set_num_threads(2)

    def firsts(
        name: str, alone: float, shared: float, calls: int, count: int = 64, halves: float | None = None
    ) -> list[int]:
        """Of some calls, the items of the first piece: all in one thread, or a part, or of a thread's share.

        In one piece the kernel takes the seconds `alone`, in several as many in all as `shared`, but in two
        halves as many as those.
        """
        seconds = {count: alone, count // 2: shared if halves is None else halves}
        numbers = []
        for _ in range(calls):
            done: list[tuple[int, int]] = []

            def kernel(start: int, stop: int, done: list = done) -> None:
                done.append((start, stop))
                clock[0] += seconds.get(stop - start, shared) * (stop - start) / count

            kernel.__qualname__ = name
            clock[0] += 1.0
            parallel.run(kernel, count, 2.0 * parallel.SMALL)
            assert sorted(item for piece in done for item in range(*piece)) == list(range(count))
            numbers.append(done[0][1] - done[0][0])
        return numbers

    # Sure to be shared: calls 1, 4 and 16 begin with an eighth, to see whether that is still so.
    assert firsts("long", 1.0, 1.0, 9) == [8, 16, 16, 8, 16, 16, 16, 16, 16]
    # Call 11 is the first that is short enough to try halves, call 16 sees that one thread is enough.
    assert firsts("long", 1e-5, 1e-5, 8) == [16, 32, 16, 16, 16, 16, 8, 64]
    assert firsts("short", 1e-5, 1e-5, 9) == [8] + [64] * 8
    # Between the two all ways are tried: at calls 4 and 16 one thread or all, at calls 2 and 8 pieces.
    assert firsts("quicker in one", 5e-4, 6e-4, 9) == [8, 16, 32, 64, 64, 64, 64, 64, 64]
    assert firsts("quicker in two", 5e-4, 4e-4, 9) == [8, 16, 32, 64, 16, 16, 16, 32, 16]
    assert firsts("quicker in halves", 5e-4, 4e-4, 9, halves=2e-4) == [8, 16, 32, 64, 32, 32, 32, 16, 32]
    assert firsts("long", 1.0, 1.0, 1, count=640) == [80]  # of so many items nothing is known


def test_no_more_is_known_of_former_calls_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_known", {})
    monkeypatch.setattr(parallel, "_MOST_KNOWN", 5)
    dyn.set_num_threads(2)
    for count in range(10, 40):
        parallel.run(lambda start, stop: None, count, 2.0 * parallel.SMALL)
        assert 1 <= len(parallel._known) <= 5


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_work_at_the_same_time(threads: int) -> None:
    """The barrier opens only when that many threads are inside the kernel at once."""
    dyn.set_num_threads(threads)
    barrier, idents = threading.Barrier(threads), set()

    def kernel(start: int, stop: int) -> None:
        barrier.wait(PATIENCE)
        idents.add(threading.get_ident())

    parallel.run(kernel, threads, LARGE)
    assert len(idents) == threads


def test_one_thread_means_the_calling_one() -> None:
    dyn.set_num_threads(1)
    idents = set()
    parallel.run(lambda start, stop: idents.add(threading.get_ident()), 100, LARGE)
    assert idents == {threading.get_ident()}


@pytest.mark.parametrize("threads", [2, 3])
def test_nested_calls(threads: int) -> None:
    """Inner calls of all threads at once would wait for each other if each needed a thread of the pool."""
    dyn.set_num_threads(threads)
    counts = np.zeros((20, 30), int)

    def outer(start: int, stop: int) -> None:
        for row in range(start, stop):
            parallel.run(count_up, counts.shape[1], LARGE, counts[row])

    parallel.run(outer, len(counts), LARGE)
    assert (counts == 1).all()
    parallel.run(count_up, 30, LARGE, counts[0])  # and this thread may use the pool again
    assert (counts[0] == 2).all()


def test_calls_from_eight_threads_at_once() -> None:
    dyn.set_num_threads(3)

    def work(index: int) -> None:
        for repeat in range(50):
            counts = np.zeros(10 + index, int)
            parallel.run(count_up, len(counts), LARGE, counts)
            assert (counts == 1).all(), f"thread {index}, call {repeat}"

    from_threads(8, work)


def test_an_operator_called_from_eight_threads_at_once() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 8, 60, 70)), rng.standard_normal((2, 2, 3, 3, 60, 70))
    dyn.set_num_threads(1)
    expected = dyn.involution(x, weight).tobytes()
    dyn.set_num_threads(2)

    def work(index: int) -> None:
        for _ in range(5):
            assert dyn.involution(x, weight).tobytes() == expected

    from_threads(8, work)


def test_the_number_of_threads_may_change_during_calls() -> None:
    def work(index: int) -> None:
        for repeat in range(60):
            if index == 0:
                dyn.set_num_threads(1 + repeat % 5)
                continue
            counts = np.zeros(17, int)
            parallel.run(count_up, 17, LARGE, counts)
            assert (counts == 1).all()

    from_threads(4, work)


class Planned(Exception):
    """Raised by a kernel on purpose."""


@pytest.mark.parametrize("in_caller", [True, False])
def test_an_exception_arrives_and_nobody_works_on(in_caller: bool) -> None:
    dyn.set_num_threads(2)
    caller, inside, came, both_in = threading.get_ident(), [], set(), threading.Barrier(2)

    def kernel(start: int, stop: int) -> None:
        inside.append(start)
        if threading.get_ident() not in came:
            came.add(threading.get_ident())
            both_in.wait(PATIENCE)
        if (threading.get_ident() == caller) == in_caller:
            raise Planned("on purpose")
        time.sleep(0.05)
        inside.remove(start)

    with pytest.raises(Planned, match="on purpose"):
        parallel.run(kernel, 8, LARGE)
    entered = list(inside)
    assert len(entered) == 1, "only the piece that failed may be unfinished"
    time.sleep(0.1)
    assert inside == entered, "a thread went on after the call had ended"
    counts = np.zeros(100, int)
    parallel.run(count_up, 100, LARGE, counts)
    assert (counts == 1).all()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_no_threads_to_be_had(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system refuses a thread, the caller does all the work."""

    def refuse(*args: Any) -> None:
        raise error

    dyn.set_num_threads(3)
    monkeypatch.setattr("_thread.start_new_thread", refuse)
    counts = np.zeros(100, int)
    parallel.run(count_up, 100, LARGE, counts)
    assert (counts == 1).all()


@pytest.mark.parametrize("number", [0, -1])
def test_too_few_threads_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"^set_num_threads: number must be at least 1, got "):
        dyn.set_num_threads(number)


@pytest.mark.parametrize("number", [1.0, "2", None, True, (1,), float("nan")])
def test_numbers_of_threads_that_are_none_are_refused(number: Any) -> None:
    before = dyn.get_num_threads()
    with pytest.raises(TypeError, match=r"^set_num_threads: number must be an int, got "):
        dyn.set_num_threads(number)
    assert dyn.get_num_threads() == before


def test_the_number_of_threads_is_kept() -> None:
    for number in (3, np.int64(5), 1):
        dyn.set_num_threads(number)
        assert dyn.get_num_threads() == number
        assert type(dyn.get_num_threads()) is int


def test_an_offer_and_the_end_of_work_are_seen_by_other_threads() -> None:
    signs, seen = Signs(2, PATIENCE), []

    def help_twice() -> None:
        for _ in range(2):
            offers = signs.offers()
            signs.begin(1)
            seen.append(offers)
            signs.await_offer(1, offers)

    helper = threading.Thread(target=help_twice)
    helper.start()
    for number in range(2):
        while len(seen) <= number:
            time.sleep(0.001)
        signs.await_end(1)
        signs.offer()
    helper.join(PATIENCE / 2)
    assert not helper.is_alive()
    assert seen == [0, 1]


def test_who_watches_in_vain_gives_up() -> None:
    signs = Signs(1, 1e-3)
    signs.await_offer(0, signs.offers())
    signs.begin(0)
    signs.await_end(0)


def test_what_watches_is_compiled_once() -> None:
    found: list[Any] = []
    from_threads(8, lambda index: found.append(watching._watch_function()))
    assert len({id(each) for each in found}) == 1


# ---- processes of their own

PREAMBLE = """
import _thread, atexit, os, signal, sys, threading, time
import numpy as np
import dynarray as dyn
from dynarray.cpu.engine import parallel

rng = np.random.default_rng(0)
x, weight = rng.standard_normal((2, 8, 60, 70)), rng.standard_normal((2, 2, 3, 3, 60, 70))

def count_up(start, stop, counts):
    for item in range(start, stop):
        counts[item] += 1

def pool_works():
    counts = np.zeros(100, int)
    parallel.run(count_up, 100, 1e9, counts)
    return (counts == 1).all()
"""


def in_process(script: str) -> str:
    """What a script prints after the preamble."""
    return output_of(PREAMBLE + script)


linux_only = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")


@linux_only
def test_the_default_is_the_processors_that_may_be_used() -> None:
    script = "print(dyn.get_num_threads(), len(os.sched_getaffinity(0)))"
    ours, allowed = in_process(script).split()
    assert ours == allowed
    confine = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    done = subprocess.run(
        [sys.executable, "-c", confine + "import dynarray; print(dynarray.get_num_threads())"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=True,
    )
    assert done.stdout.strip() == "1"


def test_threads_of_former_pools_end() -> None:
    script = """
for repeat in range(40):
    dyn.set_num_threads(2 + repeat % 3)
    parallel.run(count_up, 9, 1e9, np.zeros(9, int))
came = wait(lambda: _thread._count() > 0)
dyn.set_num_threads(1)
print(came, wait(lambda: _thread._count() == 0))
"""
    assert in_process(WAIT + script) == "True True"


def test_no_more_threads_are_started_than_there_is_work_for() -> None:
    script = """
dyn.set_num_threads(3000)
for count, helpers in ((5, 4), (5000, parallel.MOST_HELPERS)):
    parallel.run(count_up, count, 1e9, np.zeros(count, int))
    came = wait(lambda: _thread._count() >= helpers)
    time.sleep(0.2)
    print(dyn.get_num_threads(), came, _thread._count() == helpers < 3000)
"""
    assert in_process(WAIT + script) == "3000 True True\n3000 True True"


WAIT = """
def wait(until):
    deadline = time.monotonic() + 60
    while not until() and time.monotonic() < deadline:
        time.sleep(0.01)
    return until()
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "5,2"}, "5"),
        ({"NUMBA_NUM_THREADS": "2"}, "2"),
        ({"NUMBA_NUM_THREADS": " 7 ", "OMP_NUM_THREADS": "3"}, "7"),
        ({"NUMBA_NUM_THREADS": "0", "OMP_NUM_THREADS": "3"}, "3"),
        *(({"OMP_NUM_THREADS": word}, "the cores") for word in ("", "0", "-2", "two", "1.5", "²")),
    ],
)
def test_variables_of_the_environment_set_the_number_of_threads(
    variables: dict[str, str], expected: str
) -> None:
    clean = dict.fromkeys(parallel.VARIABLES, "")
    script = "import os, dynarray as dyn; print(dyn.get_num_threads(), len(os.sched_getaffinity(0)))"
    number, cores = output_of(script, **clean | variables).split()
    assert number == (cores if expected == "the cores" else expected)


def test_a_thread_that_dies_while_it_starts_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory for its first step: the system has started it, and it never comes."""
    started = []
    monkeypatch.setattr("_thread.start_new_thread", lambda *call: started.append(call))
    dyn.set_num_threads(3)
    for _ in range(50):
        counts = np.zeros(100, int)
        parallel.run(count_up, 100, LARGE, counts)
        assert (counts == 1).all()
    assert len(started) == 2
    assert parallel._get_pool()._jobs.qsize() <= 4, "offers that nobody takes pile up"


@with_fork
def test_a_forked_child_computes_the_same() -> None:
    script = """
dyn.set_num_threads(3)
before = dyn.involution(x, weight).tobytes()
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        same = dyn.involution(x, weight).tobytes() == before and pool_works()
        os._exit(0 if same and dyn.get_num_threads() == 3 else 1)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children], dyn.involution(x, weight).tobytes() == before)
"""
    assert in_process(script) == "[0, 0, 0] True"


@with_fork
def test_a_fork_during_calls_of_other_threads() -> None:
    """The child gets locks that other threads held and calls that they never finish."""
    script = """
dyn.set_num_threads(3)
ended = []
def work():
    while not ended:
        pool_works()
workers = [threading.Thread(target=work) for _ in range(4)]
for worker in workers:
    worker.start()
statuses = []
for _ in range(20):
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(0 if pool_works() else 1)
    statuses.append(os.waitpid(child, 0)[1])
ended.append(True)
for worker in workers:
    worker.join()
print(set(statuses))
"""
    assert in_process(script) == "{0}"


@with_fork
def test_a_fork_inside_a_kernel() -> None:
    script = """
dyn.set_num_threads(2)
statuses = []
def kernel(start, stop):
    if start == 0:
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if pool_works() else 1)
        statuses.append(os.waitpid(child, 0)[1])
parallel.run(kernel, 8, 1e9)
print(statuses, pool_works())
"""
    assert in_process(script) == "[0] True"


@pytest.mark.parametrize("when", ["in the kernel", "waiting for the others"])
def test_an_interrupt_leaves_no_thread_at_work_and_the_pool_usable(when: str) -> None:
    script = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs of a shell do not inherit
dyn.set_num_threads(2)
working, both_in = [], threading.Barrier(2)
def kernel(start, stop):
    both_in.wait(20)
    if threading.current_thread() is threading.main_thread():
        if IN_KERNEL:
            signal.raise_signal(signal.SIGINT)
        return
    working.append(start)
    time.sleep(0.2)
    if not IN_KERNEL:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.3)
    working.pop()
try:
    parallel.run(kernel, 2, 1e9)
    print("no interrupt came")
except KeyboardInterrupt:
    print("interrupted", working, pool_works())
"""
    assert in_process(f"IN_KERNEL = {when == 'in the kernel'}\n" + script) == "interrupted [] True"


def test_calls_go_on_after_the_main_thread_has_ended() -> None:
    """At its end the interpreter closes its thread pools before it waits for threads that still run."""
    script = """
dyn.set_num_threads(3)
before = dyn.involution(x, weight).tobytes()
def late():
    threading.main_thread().join()
    time.sleep(0.2)
    print(dyn.involution(x, weight).tobytes() == before, pool_works(), flush=True)
threading.Thread(target=late).start()
atexit.register(lambda: print(pool_works(), flush=True))
"""
    assert in_process(script) == "True True\nTrue"
