"""What each kernel costs, counted without a GPU: ``python -m benchmarks kernels``.

The operators run on the shapes that the benchmarks measure on the CPU, on backend "ptx"
(rawkernels/ptx/counting.py says what is counted, and how a part of a grid stands for all of it). What they
are run on is drawn from random bits alone, so that the file is the same whoever makes it: with the same
NVRTC, it is compared exactly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dynarray as dyn
from rawkernels import ptx
from rawkernels.ptx import nvrtc
from rawkernels.ptx.counting import SECTOR, WARP, Counted
from rawkernels.ptx.report import source_lines

from .cases import CASES
from .cases.case import Case
from .kernels_model import GPUS, estimate, occupancy

FILE = Path(__file__).with_name("results") / "kernels.json"
TARGET = ptx.Target("sm_90")
MOST_DIVISIONS = 1.0  # an output
LEAST_USEFUL = 0.5  # of the sectors
_KINDS = {"read": ("ld",), "written": ("st",), "updated": ("atom", "red")}


class Numbers:
    """What a case draws its arrays from: made of raw random bits, which no version of NumPy changes."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def standard_normal(self, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
        """About normal: the sum of four uniform numbers, of mean 0 and variance 1."""
        total = sum(self.uniform(-1, 1, shape) for _ in range(4))
        return (total * 0.75**0.5).astype(dtype)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        """Between two limits."""
        bits = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return (low + (high - low) * (bits / 2.0**53)).reshape(shape)


def launches(case: Case) -> Iterator[tuple[str, int, list[Counted]]]:
    """Forward and backward pass of a case: name, elements of the output, what was launched."""
    numbers: Any = Numbers(0)
    operator = dyn.OPERATORS[case.operator]
    with dyn.use_backend("ptx"), ptx.use_target(TARGET):
        with ptx.count() as counted:
            out, saved = operator.run(case.arrays(numbers), case.params)
        yield "forward", out.size, counted
        with ptx.count() as counted:
            operator.gradients(case.grad_output(numbers), saved, (True,) * len(operator.arrays))
        yield "backward", out.size, counted


def alike(counted: Sequence[Counted]) -> list[list[Counted]]:
    """Launches of the same kernel with grids of the same size, together."""
    found: dict[tuple[Any, ...], list[Counted]] = {}
    for one in counted:
        how = one.launched
        key = (how.entry, how.program, how.blocks, how.threads, how.shared_bytes)
        found.setdefault(key, []).append(one)
    return list(found.values())


def kernel_row(some: Sequence[Counted]) -> dict[str, Any]:
    """One row of the table: launches that are alike."""
    how = some[0].launched
    usage = nvrtc.usage(how.program.file, how.program.text, TARGET.architecture)[how.entry]
    shared = how.shared_bytes + how.kernel.static_shared_bytes
    row: dict[str, Any] = {
        "kernel": how.entry,
        "launches": len(some),
        "blocks": how.blocks,
        "threads": how.threads,
        "blocks_run": sum(one.sampled for one in some),
        "registers": usage.registers,
        "shared_bytes": shared,
        "local_bytes": usage.stack + usage.spills,
        "occupancy": occupancy(usage.registers, how.threads, shared),
        "counts": _counts(some),
    }
    return row | {"estimates": {gpu.name: estimate(row, gpu) for gpu in GPUS}}


def _counts(some: Sequence[Counted]) -> dict[str, Any]:
    def total(of: Callable[[Counted], Mapping[str, float]]) -> Counter[str]:
        found: Counter[str] = Counter()
        for one in some:
            found.update(of(one))
        return found

    def chosen(found: Mapping[str, float], *names: str) -> dict[str, int]:
        return {name: round(found.get(name, 0)) for name in names}

    counts: dict[str, Any] = {}
    for name, of in (("instructions", Counted.instructions), ("issued", Counted.issued)):
        found = total(of)
        counts[name] = chosen(found, *sorted(found))
    for kind, opcodes in _KINDS.items():
        found = total(lambda one, opcodes=opcodes: one.accesses("global", *opcodes))
        more = ("turns",) if kind == "updated" else ()
        counts[kind] = chosen(found, "requests", "lanes", "sectors", "bytes", *more)
    found = total(lambda one: one.accesses("shared"))
    counts["shared"] = chosen(found, "requests", "lanes", "wavefronts", "needed_wavefronts", "turns")
    traffic = total(Counted.traffic)
    counts["block_sectors"] = chosen(traffic, *_KINDS)
    counts["sectors_once"] = round(traffic["once"])
    return counts


def table_of(case: Case) -> dict[str, Any]:
    """What the file says of a case."""
    passes = {
        name: {"outputs": outputs, "kernels": [kernel_row(some) for some in alike(counted)]}
        for name, outputs, counted in launches(case)
    }
    return {"title": case.title, "dtype": case.dtype, "passes": passes}


class Ratios:
    """What tables show of a row: counts per element of the operator's output, and shares."""

    def __init__(self, row: Mapping[str, Any], outputs: int) -> None:
        counts = row["counts"]
        executed = sum(counts["instructions"].values())
        self.instructions = executed / outputs
        self.active = executed / max(1, WARP * sum(counts["issued"].values()))  # lanes of what is issued
        divisions = (counts["instructions"].get(name, 0) for name in ("division", "division64"))
        self.divisions = sum(divisions) / outputs
        self.sectors = {kind: counts[kind]["sectors"] / outputs for kind in _KINDS}
        sectors = sum(counts[kind]["sectors"] for kind in _KINDS)
        asked = sum(counts[kind]["bytes"] for kind in _KINDS)
        self.useful = asked / (SECTOR * sectors) if sectors else 1.0
        shared = counts["shared"]
        self.conflicts = shared["wavefronts"] / max(1, shared["needed_wavefronts"])
        self.atomics = counts["updated"]["lanes"] / outputs
        self.megabytes = counts["sectors_once"] * SECTOR / 1e6


def exceptions(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Kernels with more than one division an output, or less than half of what they read and write of use."""
    found = []
    for case in cases:
        for name, one in case["passes"].items():
            total = sum(row["estimates"][GPUS[0].name]["us"] for row in one["kernels"])
            for row in one["kernels"]:
                ratios = Ratios(row, one["outputs"])
                if ratios.divisions > MOST_DIVISIONS or ratios.useful < LEAST_USEFUL:
                    found.append(
                        {
                            "case": case["title"],
                            "pass": name,
                            "kernel": row["kernel"],
                            "blocks": row["blocks"],
                            "divisions": float(f"{ratios.divisions:.4g}"),
                            "useful": round(ratios.useful, 4),
                            "of_the_pass": round(row["estimates"][GPUS[0].name]["us"] / total, 4),
                        }
                    )
    return found


def document(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The contents of the file."""
    head = {"kind": "kernels", "nvrtc": nvrtc.version(), "architecture": TARGET.architecture}
    return {**head, "exceptions": exceptions(cases), "cases": list(cases)}


def load(file: Path = FILE) -> dict[str, Any]:
    """What was counted last."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def save(made: Mapping[str, Any], file: Path = FILE) -> None:
    """Write the file, a line for each kernel, so that a change shows as one."""

    def lines(value: Any, depth: int = 0) -> str:
        short = json.dumps(value)
        if not isinstance(value, dict | list) or "kernel" in value or len(short) < 80:
            return short
        indent = " " * (depth + 1)
        pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        texts = [
            f"{indent}{'' if key is None else json.dumps(key) + ': '}{lines(item, depth + 1)}"
            for key, item in pairs
        ]
        begin, end = "{}" if isinstance(value, dict) else "[]"
        inside = ",\n".join(texts)
        return f"{begin}\n{inside}\n{' ' * depth}{end}"

    file.write_text(lines(made) + "\n", encoding="utf-8")


def chosen(only: Sequence[str]) -> list[Case]:
    """Cases whose title or operator contains one of these texts; all, if there are none."""
    return [
        case for case in CASES if not only or any(text in f"{case.operator} {case.title}" for text in only)
    ]


def line_rows(some: Sequence[Counted], outputs: int) -> list[list[str]]:
    """By line of the source what launches that are alike cost an output: for `--lines`."""
    found: dict[int, Counter[str]] = {}
    for one in some:
        for line, counts in one.lines().items():
            found.setdefault(line, Counter()).update(counts)
    texts = source_lines(some[0].launched.program)
    rows = []
    for line, counts in sorted(found.items()):
        place, text = texts[line - 1] if 0 < line <= len(texts) else ("", "")
        useful = f"{counts['bytes'] / SECTOR / counts['sectors']:.0%}" if counts["sectors"] else ""
        banks = f"{counts['wavefronts'] / counts['needed_wavefronts']:.2f}" if counts["wavefronts"] else ""
        numbers = [counts[name] / outputs for name in ("instructions", "divisions", "sectors", "turns")]
        cells = [f"{number:.3g}" if number else "" for number in numbers]
        rows.append([place, *cells[:3], useful, banks, cells[3], text.strip()])
    return rows
