"""One run: every case on one backend, with its floor, its memory, its first calls, and its peers."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import dynarray as dyn

from . import floor, isolated
from .case import PASSES, Buffers, Case
from .cases import CASES
from .device import Device, device_of
from .machine import Bystanders, describe
from .measure import FULL, QUICK, Call, Effort, Timing, in_turn

SCHEMA = 1


@dataclass(frozen=True)
class Options:
    """What to measure, and how."""

    backend: str
    threads: int
    operators: tuple[str, ...] = ()  # all, if there are none
    peers: bool = False
    quick: bool = False

    @property
    def effort(self) -> Effort:
        return QUICK if self.quick else FULL

    def cases(self) -> list[Case]:
        """The cases asked for; tiny ones in a quick run."""
        chosen = [case for case in CASES if not self.operators or case.operator in self.operators]
        return [case.small or case for case in chosen] if self.quick else chosen


def run(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything; the result is what a results file holds."""
    device = device_of(options.backend)
    with dyn.use_backend(options.backend), device.blas_threads(options.threads):
        dyn.set_num_threads(options.threads)
        described, bystanders = describe(device), Bystanders()
        say("floor: copy bandwidth and matrix product")
        limits = floor.measure(device, options.threads, quick=options.quick)
        rows = [_row(case, device, limits, options, say) for case in options.cases()]
        return {
            "schema": SCHEMA,
            **described,
            "cores_busy_elsewhere": bystanders.cores(),
            "backend": options.backend,
            "threads": options.threads,
            "quick": options.quick,
            "only_operators": list(options.operators),
            "effort": asdict(options.effort),
            "floor": limits._asdict(),
            "rows": rows,
        }


def _row(
    case: Case, device: Device, limits: floor.Floor, options: Options, say: Callable[[str], None]
) -> dict[str, Any]:
    say(case.title)
    row: dict[str, Any] = {
        "title": case.title,
        "operator": case.operator,
        "dtype": case.dtype,
        "shapes": {name: list(shape) for name, shape in case.shapes.items()},
        "params": dict(case.params),
        "first_call_s": isolated.first_call(case, options.backend, options.threads),
        "memory_bytes": isolated.memory(case, options.backend, options.threads),
        "peer_problems": [],
    }

    def problem(text: str) -> None:
        say(f"  left out: {text}")
        row["peer_problems"].append(text)

    buffers = _buffers(case, device, options.quick)
    peers = _peers(case, buffers, options, problem) if options.peers else []
    row["buffers"] = {"sets": len(buffers), "bytes_per_set": case.input_bytes}
    row["passes"] = {
        name: _pass(name, case, limits, _time(name, case, buffers, peers, device, options), peers)
        for name in PASSES
    }
    return row


def _buffers(case: Case, device: Device, quick: bool) -> list[Buffers]:
    """So many sets of inputs that by the time the first one's turn comes again, no cache remembers it."""
    rng = np.random.default_rng(0)
    operator, move = dyn.OPERATORS[case.operator], device.library.asarray
    # Large arrays in use elsewhere make the real distance longer, never shorter.
    sets = 2 if quick else max(2, 1 + -(-2 * device.cache_bytes() // case.input_bytes))
    buffers = []
    for _ in range(sets):
        arrays = tuple(None if array is None else move(array) for array in case.arrays(rng))
        _, saved = operator.run(arrays, case.params)
        buffers.append(Buffers(arrays, move(case.grad_output(rng)), saved))
    return buffers


def _ours(case: Case, buffers: list[Buffers]) -> dict[str, Call]:
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


def _peers(case: Case, buffers: list[Buffers], options: Options, problem: Callable[[str], None]) -> list[Any]:
    from . import peers_torch

    output, gradients = _ours(case, buffers)["forward_backward"](0)
    return list(peers_torch.prepare(case, buffers, (output, *gradients), options.threads, problem))


def _time(
    name: str, case: Case, buffers: list[Buffers], peers: Iterable[Any], device: Device, options: Options
) -> dict[str, Timing]:
    """Ours under "", peers under kind and formulation."""
    contenders = {"": _ours(case, buffers)[name]}
    contenders |= {
        f"{peer.kind} {peer.formulation}": peer.calls[name] for peer in peers if name in peer.calls
    }
    return in_turn(contenders, len(buffers), device.clock(), options.effort)


def _pass(
    name: str, case: Case, limits: floor.Floor, timings: dict[str, Timing], peers: Iterable[Any]
) -> dict[str, Any]:
    """Ours, its floor, and of each kind of peer every formulation, fastest first."""
    ours, work = timings[""], case.work()[name]
    compared: dict[str, list[dict[str, Any]]] = {}
    for peer in peers:
        timing = timings.get(f"{peer.kind} {peer.formulation}")
        if timing is not None:
            ratio = {"formulation": peer.formulation, **timing._asdict(), "ratio": timing.ms / ours.ms}
            compared.setdefault(peer.kind, []).append(ratio)
    return {
        **ours._asdict(),
        **work._asdict(),
        "floor_ms": limits.ms(work),
        "of_floor": limits.ms(work) / ours.ms,
        "peers": {kind: sorted(ratios, key=lambda each: each["ms"]) for kind, ratios in compared.items()},
    }
