"""The counts of kernels as tables: for the terminal, and for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import kernels
from .cases.case import Case
from .kernels_model import GPUS
from .report.table import Render, markdown, plain

_COLUMNS = (
    "kernel",
    "pass",
    "blocks x threads",
    "registers, shared, occupancy",
    "instructions (lanes)",
    "divisions",
    "sectors read + written + atomic",
    "useful",
    "MB",
    "bank conflicts",
    "atomics",
    *(f"estimate, {gpu.name}, us" for gpu in GPUS),
    "bound",
)


def of_case(case: Mapping[str, Any], render: Render) -> str:
    """One table: kernels of both passes, counts per element of the output."""
    rows = []
    outputs = {one["outputs"] for one in case["passes"].values()}
    for name, one in case["passes"].items():
        rows += [[row["kernel"], name, *_cells(row, one["outputs"])] for row in one["kernels"]]
    title = f"{case['title']}, {case['dtype']}: {'/'.join(map(str, outputs))} outputs"
    return f"**{title}**\n\n{render(_COLUMNS, rows)}\n"


def _cells(row: Mapping[str, Any], outputs: int) -> list[str]:
    ratios = kernels.Ratios(row, outputs)
    times = f"{row['launches']} x " if row["launches"] > 1 else ""
    shared = f", {row['shared_bytes'] / 1024:.3g} KiB" if row["shared_bytes"] else ""
    local = f", {row['local_bytes']} B local" if row["local_bytes"] else ""
    sectors = [_number(ratios.sectors[kind]) for kind in ("read", "written", "updated")]
    estimates = [row["estimates"][gpu.name] for gpu in GPUS]
    return [
        f"{times}{row['blocks']} x {row['threads']} ({_number(row['blocks'] / GPUS[0].sms)} an SM)",
        f"{row['registers']}{shared}{local}, {row['occupancy']:.0%}",
        f"{_number(ratios.instructions)} ({ratios.active:.0%})",
        _number(ratios.divisions),
        " + ".join(sectors if ratios.atomics else sectors[:2]),
        f"{ratios.useful:.0%}",
        _number(ratios.megabytes),
        f"{ratios.conflicts:.2f}x" if row["counts"]["shared"]["requests"] else "",
        _number(ratios.atomics) if ratios.atomics else "",
        *(_number(each["us"]) for each in estimates),
        " / ".join(dict.fromkeys(each["bound"] for each in estimates)),
    ]


def _number(value: float) -> str:
    return (
        "0"
        if not value
        else f"{value:.0f}"
        if value >= 100
        else f"{value:.3g}"
        if value >= 0.001
        else "<0.001"
    )


def by_line(case: Case) -> str:
    """What the lines of its kernels cost, counted anew."""
    header = [
        "line",
        "instructions",
        "divisions",
        "sectors",
        "useful",
        "bank conflicts",
        "atomic turns",
        "source",
    ]
    parts = []
    for name, outputs, counted in kernels.launches(case):
        for some in kernels.alike(counted):
            how = some[0].launched
            title = f"{case.title}, {name}, {how.entry}, {how.blocks} blocks; per output"
            parts.append(f"{title}\n{plain(header, kernels.line_rows(some, outputs))}\n")
    return "\n".join(parts)


def exceptions(found: Sequence[Mapping[str, Any]]) -> str:
    """Those that are worth a look, the costliest of their pass first."""
    header = ["case", "pass", "kernel", "divisions an output", "useful", "of the pass's estimated time"]
    rows = [
        [
            one["case"],
            one["pass"],
            f"{one['kernel']}, {one['blocks']} blocks",
            _number(one["divisions"]),
            f"{one['useful']:.0%}",
            f"{one['of_the_pass']:.0%}",
        ]
        for one in sorted(found, key=lambda one: -one["of_the_pass"])
    ]
    return markdown(header, rows)


def section() -> str:
    """What the documentation shows of the file."""
    made = kernels.load()
    origin = f"Code that NVRTC {made['nvrtc']} makes for {made['architecture']}, with CuPy's options."
    what = "**Exceptions**: more than one division an output, or less than half of use in sectors."
    listed = exceptions(made["exceptions"])
    return "\n\n".join([origin, what, listed, *(of_case(case, markdown).rstrip() for case in made["cases"])])
