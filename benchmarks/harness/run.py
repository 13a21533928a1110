"""One run: every case on one backend, with its floor, its memory, its first calls, and its peers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

import dynarray as dyn

from ..cases import cases
from ..cases.case import PASSES, Buffers, Case
from . import floor, isolated
from .child import placed
from .device import Device, device_of
from .measure import FULL, MOST_CALLS, QUICK, Call, Effort, Timing, in_turn, summarise
from .session import Result, Save, Say, begin, measure, named

# Of sets of arrays with gradients of outputs, which may be a hundred times as large as arrays.
_MOST_BYTES = 1 << 32


@dataclass(frozen=True)
class Options:
    """What to measure, and how."""

    backend: str
    threads: int
    operators: tuple[str, ...] = ()  # all, if there are none
    peers: bool = False
    quick: bool = False
    first_calls: bool = True
    compile_s: float | None = None  # for the compiling of the peers of a case, a pass; None: as they say

    @property
    def effort(self) -> Effort:
        return QUICK if self.quick else FULL

    def cases(self) -> list[Case]:
        """The cases asked for; tiny ones in a quick run."""
        chosen = [
            (case.small or case) if self.quick else case
            for case in cases(self.backend)
            if not self.operators or case.operator in self.operators
        ]
        return list({case.title: case for case in chosen}.values())  # tiny ones of several may be the same


def run(
    options: Options, say: Say, save: Save = lambda result: None, earlier: Result | None = None
) -> Result:
    """Measure everything; the result is what a results file holds.

    `save` gets the result so far after each row. If `earlier` is what an interrupted run of the same kind
    left, its rows are kept.
    """

    def row(case: Case, result: Result) -> dict[str, Any]:
        return _row(case, device, floor.Floor(**result["floor"]), options, say)

    device = device_of(options.backend)
    with on_device(options, device):
        begun = begin("operators", device, **settings(options))
        return measure(begun, earlier, options.cases(), row, device, say, save)


@contextmanager
def on_device(options: Options, device: Device) -> Iterator[None]:
    """Backend and number of threads."""
    with dyn.use_backend(options.backend), device.blas_threads(options.threads):
        dyn.set_num_threads(options.threads)
        yield


def settings(options: Options) -> dict[str, Any]:
    """What a results file says of how its rows were timed, and a place for the floor."""
    return {
        "backend": options.backend,
        "threads": options.threads,
        "peers": options.peers,
        "compile_s": options.compile_s,
        "quick": options.quick,
        "only_operators": list(options.operators),
        "effort": asdict(options.effort),
        "floor": None,
    }


def _row(case: Case, device: Device, limits: floor.Floor, options: Options, say: Say) -> dict[str, Any]:
    first, extra = isolated.first_call, isolated.memory
    return {
        **named(case),
        "first_call_s": first(case, options.backend, options.threads) if options.first_calls else None,
        "memory_bytes": extra(case, options.backend, options.threads),
        **timed(case, device, limits, options, say),
    }


def timed(case: Case, device: Device, limits: floor.Floor, options: Options, say: Say) -> dict[str, Any]:
    """The part of a row that tells how long the passes take, ours and the peers'."""
    start, problems = monotonic(), list[str]()

    def problem(text: str) -> None:
        say(f"  left out: {text}")
        problems.append(text)

    buffers = make_buffers(case, device, options.quick)
    peers = _peers(case, buffers, device, options, problem) if options.peers else []
    passes = {
        name: _pass(name, case, limits, _time(name, case, buffers, peers, device, options), peers)
        for name in PASSES
    }
    return {
        "peer_problems": problems,
        "buffers": {"sets": len(buffers), "bytes_per_set": case.input_bytes},
        "passes": passes,
        "seconds": round(monotonic() - start, 1),
    }


def make_buffers(case: Case, device: Device, quick: bool) -> list[Buffers]:
    """So many sets of inputs that by the time the first one's turn comes again, no cache remembers it."""
    rng, operator = device.rng(), dyn.OPERATORS[case.operator]
    # Large arrays in use elsewhere make the real distance longer, never shorter.
    sets = 2 if quick else max(2, 1 + -(-2 * device.cache_bytes() // case.input_bytes))
    sets = min(sets, MOST_CALLS, max(2, _MOST_BYTES // (case.input_bytes + case.output_bytes)))
    drawn, grad_output = case.arrays(rng), case.grad_output(rng)
    buffers = []
    for index in range(sets):
        # Where a caller finds its numbers matters, not which they are, and copying is faster than drawing.
        arrays = tuple(array.copy() if index and array is not None else array for array in drawn)
        params = placed(case.params, device.library.asarray)
        _, saved = operator.run(arrays, params)
        buffers.append(Buffers(arrays, grad_output.copy() if index else grad_output, saved, params))
    return buffers


def ours(case: Case, buffers: list[Buffers]) -> dict[str, Call]:
    """The three passes of the operator as a tape calls them, every gradient wanted."""
    operator = dyn.OPERATORS[case.operator]
    needs = (True,) * len(operator.arrays)

    def forward(index: int) -> Any:
        return operator.run(buffers[index].arrays, buffers[index].params)

    def backward(index: int) -> Any:
        return operator.gradients(buffers[index].grad_output, buffers[index].saved, needs)

    def forward_backward(index: int) -> Any:
        output, saved = operator.run(buffers[index].arrays, buffers[index].params)
        return output, operator.gradients(buffers[index].grad_output, saved, needs)

    return dict(zip(PASSES, (forward, backward, forward_backward), strict=True))


def _peers(
    case: Case, buffers: list[Buffers], device: Device, options: Options, problem: Callable[[str], None]
) -> list[Any]:
    from ..peers import compare

    output, gradients = ours(case, buffers)["forward_backward"](0)
    expected = (output, *gradients)
    clock = device.clock()
    return compare.prepare(case, buffers, expected, options.threads, clock, problem, options.compile_s)


def _time(
    name: str, case: Case, buffers: list[Buffers], peers: Iterable[Any], device: Device, options: Options
) -> dict[str, Timing]:
    """Ours under "", peers under kind and formulation."""
    contenders = {"": ours(case, buffers)[name]}
    contenders |= {peer.name: peer.calls[name] for peer in peers if name in peer.contends}
    return in_turn(contenders, len(buffers), device.clock(), options.effort)


def _pass(
    name: str, case: Case, limits: floor.Floor, timings: dict[str, Timing], peers: Iterable[Any]
) -> dict[str, Any]:
    """Ours, its floor, and of each kind of peer every formulation, fastest first.

    A formulation that a first look left behind has the time of that one call.
    """
    mine, work = timings[""], case.work()[name]
    compared: dict[str, list[dict[str, Any]]] = {}
    for peer in peers:
        timing = timings.get(peer.name)
        if timing is None and name in peer.looks:
            timing = summarise([peer.looks[name]])
        if timing is not None:
            ratio = {"formulation": peer.formulation, **timing._asdict(), "ratio": timing.ms / mine.ms}
            compared.setdefault(peer.kind, []).append(ratio)
    return {
        **mine._asdict(),
        **work._asdict(),
        "floor_ms": limits.ms(work),
        "of_floor": limits.ms(work) / mine.ms,
        "peers": {kind: sorted(ratios, key=lambda each: each["ms"]) for kind, ratios in compared.items()},
    }
