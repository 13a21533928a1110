"""Clocks, and taking contenders in turn: the only place that reads a clock around an operator."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .spin import Spin

Call = Callable[[int], Any]

CALLS_A_TURN = 100  # at most


class Clock(Protocol):
    """Milliseconds of each of `count` calls ``call(first), call(first + 1), ...``."""

    def times(self, call: Call, first: int, count: int) -> list[float]: ...


class WallClock:
    """For work that is finished when the call returns."""

    def times(self, call: Call, first: int, count: int) -> list[float]:
        milliseconds = []
        for index in range(first, first + count):
            start = time.perf_counter()
            result = call(index)
            milliseconds.append((time.perf_counter() - start) * 1e3)
            del result
        return milliseconds


class CudaEvents:
    """For work queued on the current stream of a CUDA device: the time between events before and behind it.

    A small call takes the device less time than Python takes to queue it: measured as it comes, it would be
    the time of Python. Hence the stream is kept busy until some calls are queued, and again if that took
    longer than was thought.
    """

    at_once = (
        16  # calls: all their launches must fit into the queue of a stream, which holds about a thousand
    )
    least_s = 1e-4

    def __init__(self, cupy: Any) -> None:
        self._cuda, self._spin = cupy.cuda, Spin(cupy)
        self._call_s = 1e-4  # that queueing takes, as last seen

    def times(self, call: Call, first: int, count: int) -> list[float]:
        milliseconds: list[float] = []
        for start in range(first, first + count, self.at_once):
            calls = range(start, min(start + self.at_once, first + count))
            measured, in_time = self._behind_a_spin(call, calls)
            milliseconds += measured if in_time else self._behind_a_spin(call, calls)[0]
        return milliseconds

    def _behind_a_spin(self, call: Call, calls: range) -> tuple[list[float], bool]:
        """Milliseconds of each call, and whether all were queued before the first began."""
        spun = self.least_s + 1.5 * self._call_s * len(calls)
        begun = time.perf_counter()
        self._spin(spun)
        events = []
        for index in calls:
            start, stop = self._cuda.Event(), self._cuda.Event()
            start.record()
            call(index)
            stop.record()
            events.append((start, stop))
        queued = time.perf_counter() - begun
        self._call_s = queued / len(calls)
        self._cuda.get_current_stream().synchronize()
        return [self._cuda.get_elapsed_time(start, stop) for start, stop in events], queued < spun


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds, seconds per contender in each, seconds of rest before each of those.

    The rest is for the worker threads of the contender before, which spin on a core for some milliseconds.
    A contender so slow that its rounds would take longer than `longest` seconds in all takes part in fewer.
    """

    rounds: int
    seconds: float
    rest: float
    longest: float = 2.0


FULL = Effort(rounds=7, seconds=0.1, rest=0.02)
# Of one contender in all: a warming call goes before each turn, some find its pace.
MOST_CALLS = FULL.rounds * (CALLS_A_TURN + 1) + 3
BRIEF = Effort(rounds=5, seconds=0.04, rest=0.01)
QUICK = Effort(rounds=2, seconds=0.0, rest=0.0)


class Timing(NamedTuple):
    """Median and quartiles of the times of one contender, in milliseconds."""

    ms: float
    quartile_1: float
    quartile_3: float
    calls: int


class _Runner:
    """One contender: its calls walk through the buffers, each time where the last left off."""

    def __init__(self, call: Call, clock: Clock, buffers: int) -> None:
        self._call, self._clock, self._buffers = call, clock, buffers
        self._next = 0
        self.samples: list[float] = []

    def run(self, count: int) -> list[float]:
        times = self._clock.times(lambda index: self._call(index % self._buffers), self._next, count)
        self._next = (self._next + count) % self._buffers
        return times


def in_turn(contenders: dict[str, Call], buffers: int, clock: Clock, effort: Effort) -> dict[str, Timing]:
    """Time each ``call(buffer index)``, all of them in every round, so that a slow minute is slow for all.

    A contender's turn begins with a rest and an untimed call, which wakes its own worker threads. One whose
    single call fills its turn does without the untimed call: waking up is nothing to it.
    """
    runners = {name: _Runner(call, clock, buffers) for name, call in contenders.items()}
    paces = {name: _pace(runner, effort) for name, runner in runners.items()}
    gc.collect()
    gc.disable()
    try:
        for number in range(effort.rounds):
            for name, runner in runners.items():
                rounds, calls = paces[name]
                if number >= rounds:
                    continue
                time.sleep(effort.rest)
                if calls > 1:
                    runner.run(1)
                runner.samples += runner.run(calls)
    finally:
        gc.enable()
    return {name: summarise(runner.samples) for name, runner in runners.items()}


def _pace(runner: _Runner, effort: Effort) -> tuple[int, int]:
    """Rounds, and calls in each: so many as fill a turn, at least one.

    The first call, which may compile, does not tell. A long one is not asked three times: its second call
    counts as measured.
    """
    runner.run(1)
    best = runner.run(1)[0]
    if best < 1e3 * effort.longest / effort.rounds:
        best = min(best, runner.run(1)[0])
    else:
        runner.samples.append(best)
    best = max(best, 1e-3)
    calls = min(CALLS_A_TURN, max(1, round(effort.seconds * 1e3 / best)))
    return min(effort.rounds, max(1, int(effort.longest * 1e3 / (best * calls)))), calls


def summarise(samples: Sequence[float]) -> Timing:
    """Median and quartiles; a single sample is all three."""
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    quartiles = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(quartiles[1], quartiles[0], quartiles[2], len(samples))
