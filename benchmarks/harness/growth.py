"""How time and memory grow: ``python -m benchmarks growth``, one axis of a call at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from typing import Any

import dynarray as dyn

from ..cases import GROWTH
from ..cases.case import Case
from ..cases.growing import Growth
from . import isolated
from .device import Device, device_of
from .machine import Bystanders
from .measure import BRIEF, QUICK, in_turn
from .run import make_buffers, ours
from .session import Result, Save, Say, begin

# An exponent up to this is "about linear": the larger sizes no longer fit into the caches.
ABOUT_LINEAR = 1.15


@dataclass(frozen=True)
class Options:
    """What to measure, and how."""

    backend: str
    threads: int
    operators: tuple[str, ...] = ()  # all, if there are none
    quick: bool = False


def run(options: Options, say: Say, save: Save) -> Result:
    """Measure everything; `save` gets the result so far after each operator."""
    device = device_of(options.backend)
    with dyn.use_backend(options.backend), device.blas_threads(options.threads):
        dyn.set_num_threads(options.threads)
        bystanders = Bystanders()
        result = begin(
            "growth",
            device,
            backend=options.backend,
            threads=options.threads,
            quick=options.quick,
            only_operators=list(options.operators),
            effort=asdict(QUICK if options.quick else BRIEF),
        )
        for growth in GROWTH:
            if not options.operators or growth.operator in options.operators:
                say(growth.operator)
                result["rows"] += _rows(growth, device, options)
                result["cores_busy_elsewhere"] = bystanders.cores()
                save(result)
                device.release()
        result["complete"] = True
        save(result)
        return result


def _rows(growth: Growth, device: Device, options: Options) -> list[dict[str, Any]]:
    """One row per axis. A call that lies on several axes is measured once.

    Memory, which takes a process, is measured at both ends of each axis.
    """
    known: dict[str, dict[str, Any]] = {}
    rows = []
    for axis, points in growth.axes.items():
        row: dict[str, Any] = {"operator": growth.operator, "axis": axis, "points": []}
        if options.quick:
            points = points[:2]
        for index, (size, changed) in enumerate(points):
            case = growth.case(changed)
            measured = (case.small or case) if options.quick else case
            point = known.get(case.title) or _point(case, measured, device, options)
            known[case.title] = point
            if index in (0, len(points) - 1) and "memory_bytes" not in point:
                point["memory_bytes"] = isolated.memory(measured, options.backend, options.threads)
            row["points"].append({"size": size, **point})
        rows.append(row)
    return rows


def _point(case: Case, measured: Case, device: Device, options: Options) -> dict[str, Any]:
    """Milliseconds of one call."""
    buffers = make_buffers(measured, device, options.quick)
    calls = ours(measured, buffers)
    effort = QUICK if options.quick else BRIEF
    point: dict[str, Any] = {"title": case.title, "bytes": case.input_bytes + case.output_bytes, "passes": {}}
    for name in ("forward", "forward_backward"):
        timing = in_turn({"": calls[name]}, len(buffers), device.clock(), effort)[""]
        point["passes"][name] = timing._asdict()
    return point


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The slope of the straight line through the logarithms, by least squares: 1 is linear growth."""
    xs, ys = [log(size) for size in sizes], [log(time) for time in times]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
