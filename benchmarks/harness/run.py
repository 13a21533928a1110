"""One run: every case on one backend, with its floor, its memory, its first calls, and its peers."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

import dynarray as dyn

from ..cases import cases
from ..cases.case import PASSES, Buffers, Case
from . import floor, isolated
from .device import Device, device_of
from .machine import Bystanders, describe
from .measure import FULL, QUICK, Call, Effort, Timing, in_turn, summarise

SCHEMA = 2

# What must be alike for a run to go on where another left off.
_ALIKE = (
    *("schema", "kind", "commit", "uncommitted_changes", "machine", "versions"),
    *("backend", "threads", "peers", "quick", "only_operators"),
)


@dataclass(frozen=True)
class Options:
    """What to measure, and how."""

    backend: str
    threads: int
    operators: tuple[str, ...] = ()  # all, if there are none
    peers: bool = False
    quick: bool = False
    first_calls: bool = True

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
    options: Options,
    say: Callable[[str], None],
    save: Callable[[dict[str, Any]], None] = lambda result: None,
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure everything; the result is what a results file holds.

    `save` gets the result so far after each row. If `earlier` is what an interrupted run of the same kind
    left, its rows are kept.
    """
    device = device_of(options.backend)
    with dyn.use_backend(options.backend), device.blas_threads(options.threads):
        dyn.set_num_threads(options.threads)
        result = _begin(options, device)
        bystanders, disturbed = Bystanders(), 0.0
        if earlier is not None and not earlier["complete"] and _alike(earlier, result):
            say(f"going on after {len(earlier['rows'])} rows measured earlier")
            result, disturbed = earlier, earlier["cores_busy_elsewhere"] or 0.0
        else:
            say("floor: copy bandwidth and matrix product")
            result["floor"] = floor.measure(device, options.threads, quick=options.quick)._asdict()
        limits, done = floor.Floor(**result["floor"]), {row["title"] for row in result["rows"]}
        for case in options.cases():
            if case.title not in done:
                result["rows"].append(_row(case, device, limits, options, say))
                result["cores_busy_elsewhere"] = max(disturbed, bystanders.cores() or 0.0)
                save(result)
                device.release()
        result["complete"] = True
        save(result)
        return result


def _begin(options: Options, device: Device) -> dict[str, Any]:
    """A results file without rows."""
    return {
        "schema": SCHEMA,
        "kind": "operators",
        **describe(device),
        "complete": False,
        "cores_busy_elsewhere": None,
        "backend": options.backend,
        "threads": options.threads,
        "peers": options.peers,
        "quick": options.quick,
        "only_operators": list(options.operators),
        "effort": asdict(options.effort),
        "floor": None,
        "rows": [],
    }


def _alike(earlier: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(earlier.get(name) == new[name] for name in _ALIKE)


def _row(
    case: Case, device: Device, limits: floor.Floor, options: Options, say: Callable[[str], None]
) -> dict[str, Any]:
    say(case.title)
    start = monotonic()
    row: dict[str, Any] = {
        "title": case.title,
        "operator": case.operator,
        "dtype": case.dtype,
        "shapes": {name: list(shape) for name, shape in case.shapes.items()},
        "params": dict(case.params),
        "first_call_s": (
            isolated.first_call(case, options.backend, options.threads) if options.first_calls else None
        ),
        "memory_bytes": isolated.memory(case, options.backend, options.threads),
        "peer_problems": [],
    }

    def problem(text: str) -> None:
        say(f"  left out: {text}")
        row["peer_problems"].append(text)

    buffers = make_buffers(case, device, options.quick)
    peers = _peers(case, buffers, device, options, problem) if options.peers else []
    row["buffers"] = {"sets": len(buffers), "bytes_per_set": case.input_bytes}
    row["passes"] = {
        name: _pass(name, case, limits, _time(name, case, buffers, peers, device, options), peers)
        for name in PASSES
    }
    row["seconds"] = round(monotonic() - start, 1)
    return row


def make_buffers(case: Case, device: Device, quick: bool) -> list[Buffers]:
    """So many sets of inputs that by the time the first one's turn comes again, no cache remembers it."""
    rng = device.rng()
    operator = dyn.OPERATORS[case.operator]
    # Large arrays in use elsewhere make the real distance longer, never shorter.
    sets = 2 if quick else max(2, 1 + -(-2 * device.cache_bytes() // case.input_bytes))
    buffers = []
    for _ in range(sets):
        arrays = case.arrays(rng)
        _, saved = operator.run(arrays, case.params)
        buffers.append(Buffers(arrays, case.grad_output(rng), saved))
    return buffers


def ours(case: Case, buffers: list[Buffers]) -> dict[str, Call]:
    """The three passes of the operator as a tape calls them, every gradient wanted."""
    operator = dyn.OPERATORS[case.operator]
    needs = (True,) * len(operator.arrays)

    def forward(index: int) -> Any:
        return operator.run(buffers[index].arrays, case.params)

    def backward(index: int) -> Any:
        return operator.gradients(buffers[index].grad_output, buffers[index].saved, needs)

    def forward_backward(index: int) -> Any:
        output, saved = operator.run(buffers[index].arrays, case.params)
        return output, operator.gradients(buffers[index].grad_output, saved, needs)

    return dict(zip(PASSES, (forward, backward, forward_backward), strict=True))


def _peers(
    case: Case, buffers: list[Buffers], device: Device, options: Options, problem: Callable[[str], None]
) -> list[Any]:
    from ..peers import compare

    output, gradients = ours(case, buffers)["forward_backward"](0)
    expected = (output, *gradients)
    return compare.prepare(case, buffers, expected, options.threads, device.clock(), problem)


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
