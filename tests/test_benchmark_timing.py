"""How the benchmarks time: in turns, on a clock of their own, on a device behind a kernel that spins."""

from types import SimpleNamespace

from benchmarks.harness import measure


def fake_clock(durations: dict[str, float], log: list[tuple[str, int]]):
    """A clock that does not read the time, and contenders that tell it what they cost."""
    last = {}

    def contender(name):
        def call(index):
            log.append((name, index))
            last["ms"] = durations[name]

        return call

    def times(call, first, count):
        return [call(index) or last["ms"] for index in range(first, first + count)]

    return SimpleNamespace(times=times), {name: contender(name) for name in durations}


def test_contenders_take_turns_and_walk_through_the_buffers():
    log: list[tuple[str, int]] = []
    clock, contenders = fake_clock({"ours": 1.0, "peer": 40.0}, log)
    effort = measure.Effort(rounds=3, seconds=0.004, rest=0.0)
    timings = measure.in_turn(contenders, 5, clock, effort)
    assert timings["ours"] == measure.Timing(1.0, 1.0, 1.0, 3 * 4)
    assert timings["peer"] == measure.Timing(40.0, 40.0, 40.0, 3)
    for name in contenders:
        visited = [index for who, index in log if who == name]
        assert visited == [index % 5 for index in range(len(visited))]
    turns = "".join("o" if who == "ours" else "p" for who, _ in log)[6:]  # the first calls set numbers
    assert turns == ("o" * 5 + "p") * 3


def test_a_slow_contender_takes_part_in_fewer_rounds():
    log: list[tuple[str, int]] = []
    clock, contenders = fake_clock({"ours": 1.0, "slow": 40.0, "endless": 500.0}, log)
    effort = measure.Effort(rounds=3, seconds=0.001, rest=0.0, longest=0.08)
    timings = measure.in_turn(contenders, 5, clock, effort)
    assert [timings[name].calls for name in contenders] == [3, 3, 2]
    assert sum(name == "endless" for name, _ in log) == 3  # the first does not count


def test_summary_is_median_and_quartiles():
    assert measure.summarise([5.0, 1.0, 2.0, 100.0, 3.0]) == measure.Timing(3.0, 2.0, 5.0, 5)
    assert measure.summarise([7.0]) == measure.Timing(7.0, 7.0, 7.0, 1)


class QueueOfCalls:
    """A device that has what is queued done at once, and a clock that says how long queueing took."""

    def __init__(self, monkeypatch, seconds):
        self.log, self.now, self.seconds = [], 0.0, list(seconds)
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)
        self.cuda = SimpleNamespace(
            Event=lambda: SimpleNamespace(record=lambda: self.log.append("event")),
            get_current_stream=lambda: SimpleNamespace(synchronize=lambda: self.log.append("wait")),
            get_elapsed_time=lambda start, stop: 0.25,
        )

    def RawKernel(self, code, name):
        return lambda grid, block, args: self.log.append("spin") or self.log.append(int(args[0]))

    def call(self, index):
        self.log.append(f"call {index}")
        self.now += self.seconds.pop(0)


def test_cuda_events_stand_behind_a_spin_that_outlasts_the_queueing(monkeypatch):
    device = QueueOfCalls(monkeypatch, [1e-5] * 2)
    assert measure.CudaEvents(device).times(device.call, 3, 2) == [0.25, 0.25]
    spun = device.log.pop(1)
    assert spun > 2e4
    assert device.log == ["spin", "event", "call 3", "event", "event", "call 4", "event", "wait"]


def test_calls_that_were_queued_too_slowly_are_measured_again_behind_a_longer_spin(monkeypatch):
    device = QueueOfCalls(monkeypatch, [1e-2] * 5)
    clock = measure.CudaEvents(device)
    assert clock.times(device.call, 0, 2) == [0.25] * 2
    spins = [device.log[at + 1] for at, what in enumerate(device.log) if what == "spin"]
    assert len(spins) == 2 and spins[0] < 2e7 < spins[1]
    assert clock.times(device.call, 0, 1) == [0.25]  # now it knows
    assert device.log.count("spin") == 3


def test_no_more_is_queued_at_once_than_a_stream_holds(monkeypatch):
    device = QueueOfCalls(monkeypatch, [0.0] * 100)
    assert len(measure.CudaEvents(device).times(device.call, 0, 100)) == 100
    assert device.log.count("spin") == device.log.count("wait") == 7
    assert [what for what in device.log if str(what).startswith("call")] == [f"call {i}" for i in range(100)]
