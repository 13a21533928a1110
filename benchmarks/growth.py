"""How time and memory grow: ``python -m benchmarks growth``, one axis of a call at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log
from typing import Any

import dynarray as dyn

from . import atoms, deform, displaced, dynamic_sampling, isolated, local_filter
from .case import Case
from .device import Device, device_of
from .machine import Bystanders, describe
from .measure import BRIEF, QUICK, in_turn
from .run import SCHEMA, make_buffers, ours

# An exponent up to this is "about linear": the larger sizes no longer fit into the caches.
ABOUT_LINEAR = 1.15

Points = list[tuple[int, dict[str, int]]]


@dataclass(frozen=True)
class Growth:
    """One operator: how a call is made, the sizes it starts from, and the axes along which it grows.

    An axis is a list of ``(size, arguments that are changed)``: work should be proportional to the size.
    """

    operator: str
    make: Callable[..., Case]
    base: Mapping[str, int]
    axes: Mapping[str, Points]

    def case(self, changed: Mapping[str, int]) -> Case:
        """A call; its small form has the same kernel on few pixels."""
        sizes = {**self.base, **changed}
        return Case(**{**vars(self.make(**sizes)), "small": self.make(**{**sizes, "h": 9, "w": 11})})


def pixels(*sides: int) -> Points:
    """Square images."""
    return [(side * side, {"h": side, "w": side}) for side in sides]


def squared(name: str, *values: int) -> Points:
    """Of a kernel, its taps; of samples along an axis, the regions."""
    return [(value * value, {name: value}) for value in values]


def each(name: str, *values: int) -> Points:
    """An argument that is itself the size."""
    return [(value, {name: value}) for value in values]


_SIDES = pixels(32, 64, 128, 256)
_CHANNELS = each("c", 16, 32, 64, 128)
_KERNELS = squared("kernel", 3, 5, 7, 9)
_BASE = {"n": 1, "c": 32, "h": 64, "w": 64}

GROWTH = (
    Growth(
        "local_filter2d",
        local_filter.plain,
        {**_BASE, "groups": 4},
        {"pixels": _SIDES, "channels": _CHANNELS, "taps": _KERNELS},
    ),
    Growth("ddf", local_filter.ddf, _BASE, {"pixels": _SIDES, "channels": _CHANNELS, "taps": _KERNELS}),
    Growth(
        "ddf_upsample",
        local_filter.upsample,
        _BASE,
        {"pixels": pixels(16, 32, 64, 128), "channels": _CHANNELS, "taps": _KERNELS},
    ),
    Growth(
        "carafe",
        local_filter.carafe,
        _BASE,
        {"pixels": pixels(16, 32, 64, 128), "channels": _CHANNELS, "taps": _KERNELS},
    ),
    Growth(
        "involution",
        local_filter.involution,
        {**_BASE, "groups": 4},
        {"pixels": _SIDES, "channels": _CHANNELS, "taps": _KERNELS},
    ),
    Growth(
        "dynamic_conv2d",
        dynamic_sampling.conv,
        {**_BASE, "c": 8, "o": 8},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": each("c", 4, 8, 16, 32),
            "outputs": each("o", 4, 8, 16, 32),
            "taps": _KERNELS,
        },
    ),
    Growth(
        "dynamic_sampling_conv2d",
        dynamic_sampling.sampling,
        {"n": 1, "c": 32, "o": 8, "h": 32, "w": 32, "samples": 3},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": _CHANNELS,
            "outputs": each("o", 4, 8, 16, 32),
            "taps": _KERNELS,
            "regions": squared("samples", 1, 3, 5, 7, 9),
        },
    ),
    Growth(
        "displaced_conv2d",
        displaced.displaced,
        {"n": 1, "c": 32, "o": 32, "h": 32, "w": 32, "units": 2},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": _CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "units": each("units", 1, 2, 4, 8),
        },
    ),
    Growth(
        "deform_conv2d",
        deform.deform,
        {**_BASE, "o": 32, "h": 32, "w": 32},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": _CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "taps": _KERNELS,
        },
    ),
    Growth(
        "sample_points",
        deform.sample,
        {**_BASE, "h": 32, "w": 32, "points": 9},
        {"pixels": pixels(16, 32, 64, 128), "channels": _CHANNELS, "points": each("points", 4, 8, 16, 32)},
    ),
    Growth(
        "atom_conv2d",
        atoms.conv,
        {**_BASE, "o": 32, "kernel": 3, "m": 6},
        {
            "pixels": _SIDES,
            "channels": _CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "taps": _KERNELS,
            "atoms": each("m", 2, 4, 8, 16),
        },
    ),
    Growth(
        "compose_atoms",
        atoms.compose,
        {"n": 1, "h": 64, "w": 64, "kernel": 5, "bases": 12, "m": 6},
        {
            "pixels": _SIDES,
            "taps": _KERNELS,
            "bases": each("bases", 6, 12, 24, 48),
            "atoms": each("m", 2, 4, 8, 16),
        },
    ),
)


@dataclass(frozen=True)
class Options:
    """What to measure, and how."""

    backend: str
    threads: int
    operators: tuple[str, ...] = ()  # all, if there are none
    quick: bool = False


def run(
    options: Options, say: Callable[[str], None], save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure everything; `save` gets the result so far after each operator."""
    device = device_of(options.backend)
    with dyn.use_backend(options.backend), device.blas_threads(options.threads):
        dyn.set_num_threads(options.threads)
        bystanders = Bystanders()
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "growth",
            **describe(device),
            "complete": False,
            "cores_busy_elsewhere": None,
            "backend": options.backend,
            "threads": options.threads,
            "quick": options.quick,
            "only_operators": list(options.operators),
            "effort": asdict(QUICK if options.quick else BRIEF),
            "rows": [],
        }
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
