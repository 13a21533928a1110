"""What a launch costs, counted: instructions, divisions, sectors of memory, bank conflicts, atomics.

A kernel is translated with counters in its basic blocks and at its accesses, and runs on the same machine,
checked as ever. The fibers run one thread after the other; what the lanes of a warp access *together* is put
together afterwards: the same instruction in the same round of the loops around it (flow.py). So lanes that a
branch leaves out for a while are with the others again in the next round, as on a GPU.

Of a large grid some blocks are run: the first and the last, which an edge may cut off, and others that are
spread evenly over the grid. Their number is doubled until that changes no total by more than a hundredth and
`ENOUGH` instructions have been counted; or `MOST` have; or all blocks have run. The total is the first, the
last, and the mean of the others times their number. A kernel that writes integers runs whole, since later
kernels may follow them as indices. Where blocks that were left out would have written, NaN becomes a number,
so that later kernels do not meet what is not finite. The same launches give the same counts on any machine,
in whatever order the threads run.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from math import gcd
from typing import Any

import numpy as np

from rawkernels.host import library
from rawkernels.source import Program

from .flow import Flow
from .memory import FLAGS, HEADERS, Region, folder, read_text
from .opcodes import instruction_class
from .parse import Instruction, Kernel
from .translate import Translation

SECTOR = 32  # bytes
WARP = 32
ENOUGH, MOST = 10_000_000, 60_000_000  # instructions of threads
_FIRST = 6  # blocks in the first sample, beside those at the ends
_STEADY = 0.01
_PLACEHOLDER = 0.5
# As SiteCounts in counting.cpp; and RegionCounts, in the order of Kind in machine.h.
_SITE = ("requests", "lanes", "sectors", "bytes", "wavefronts", "needed_wavefronts", "turns")
_REGION = ("read", "written", "updated")

# Runs a grid of so many blocks, with arguments besides those of the launch; why it could not, or None.
Enter = Callable[..., str | None]


@dataclass(frozen=True)
class Launched:
    """One launch."""

    program: Program
    translation: Translation
    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int

    @property
    def blocks(self) -> int:
        """In the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        """In a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def kernel(self) -> Kernel:
        """Its instructions."""
        return self.translation.kernels[self.entry]

    @property
    def flow(self) -> Flow:
        """Its basic blocks."""
        return self.translation.flows[self.entry]


@dataclass(frozen=True)
class Raw:
    """What the machine counted, one row a basic block, a site or an array."""

    executed: np.ndarray
    issued: np.ndarray
    sites: np.ndarray  # columns as in _SITE
    regions: np.ndarray  # columns as in _REGION

    def __add__(self, other: Raw) -> Raw:
        return Raw(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Raw)))

    def __mul__(self, times: float) -> Raw:
        return Raw(*(getattr(self, field.name) * times for field in fields(Raw)))


@dataclass(frozen=True)
class Counted:
    """One launch and its counts, scaled to all its blocks.

    Attributes
    ----------
    sampled : int
        Blocks that were run.
    arrays : tuple of (str, int)
        In the order of the rows of ``raw.regions``, the name and the sectors of each.
    """

    launched: Launched
    raw: Raw
    sampled: int
    arrays: tuple[tuple[str, int], ...]

    def instructions(self) -> Counter[str]:
        """Of threads, by class (see `rawkernels.ptx.opcodes.instruction_class`)."""
        return self._by_class(self.raw.executed)

    def issued(self) -> Counter[str]:
        """Of warps, by class: a basic block as often as that of its lanes which runs it most often."""
        return self._by_class(self.raw.issued)

    def _by_class(self, times: np.ndarray) -> Counter[str]:
        found: Counter[str] = Counter()
        for block, count in zip(self.launched.flow.blocks, times.tolist(), strict=True):
            for instruction in block:
                found[instruction_class(instruction.opcode)] += count
        return found

    def accesses(self, space: str, *bases: str) -> Counter[str]:
        """Counts of the accesses to "global" or "shared" memory, of all or those with these opcodes.

        "requests" of warps, "lanes" that take part; global "sectors" of 32 bytes that they touch and distinct
        "bytes" that they ask for; shared "wavefronts", and "needed_wavefronts" without bank conflicts;
        "turns", the most lanes of a request that change one address.
        """
        total: Counter[str] = Counter()
        for instruction, counts in self._sites():
            base, *words = instruction.opcode.split(".")
            if space in words and (not bases or base in bases):
                total.update(counts)
        return total

    def _sites(self) -> list[tuple[Instruction, dict[str, float]]]:
        found = []
        for site, row in zip(self.launched.translation.sites, self.raw.sites.tolist(), strict=True):
            if site.kernel == self.launched.entry and any(row):
                instruction = self.launched.kernel.body[site.position]
                assert isinstance(instruction, Instruction)
                found.append((instruction, dict(zip(_SITE, row, strict=True))))
        return found

    def traffic(self) -> Counter[str]:
        """Sectors that are "read", "written" and "updated", each once a block, and all, each "once" in all.

        The latter is an estimate: those of all blocks, but of an array no more than it has.
        """
        total = Counter(dict(zip(_REGION, self.raw.regions.sum(axis=0).tolist(), strict=True)))
        for (_, size), row in zip(self.arrays, self.raw.regions.tolist(), strict=True):
            read, written, updated = (min(float(size), count) for count in row)
            total["once"] += max(read, updated) + max(written, updated)
        return total

    def lines(self) -> dict[int, Counter[str]]:
        """By line of the program: "instructions", "divisions", and what `accesses` counts."""
        found: dict[int, Counter[str]] = {}
        for block, count in zip(self.launched.flow.blocks, self.raw.executed.tolist(), strict=True):
            for instruction in block:
                line = found.setdefault(instruction.line, Counter())
                line["instructions"] += count
                if instruction_class(instruction.opcode).startswith("division"):
                    line["divisions"] += count
        for instruction, counts in self._sites():
            found[instruction.line].update(counts)
        return found


def count(launched: Launched, found: Sequence[Region], enter: Enter) -> tuple[Counted, str | None]:
    """Run and count a launch, or some blocks of it; and why it failed, or None."""
    ends, rest = _order(launched.blocks)
    raw, failure = _run(launched, found, enter, ends)
    inside, taken, total = raw * 0, 0, raw
    whole = any(_is_integer(region) for region in found)
    while taken < len(rest) and failure is None:
        some = rest[taken:] if whole else rest[taken : max(_FIRST, 2 * taken)]
        more, failure = _run(launched, found, enter, some)
        inside, taken, before = inside + more, taken + len(some), total
        total = raw + inside * (len(rest) / taken)
        counted = _totals(launched, raw + inside)[0]
        if counted >= MOST or (counted >= ENOUGH and _steady(launched, before, total)):
            break
    if taken < len(rest):
        for region in found:
            _fill(region)
    names = tuple((region.named.names, -(-(region.high - region.low) // SECTOR)) for region in found)
    return Counted(launched, total, len(ends) + taken, names), failure


def _order(blocks: int) -> tuple[list[int], list[int]]:
    """The first and the last block; the others, in an order of which each beginning is spread evenly."""
    ends = sorted({0, blocks - 1})
    inside = blocks - len(ends)
    step = max(1, round(inside * 0.618))
    while gcd(step, inside) > 1:
        step += 1
    return ends, [1 + (inside // 2 + step * i) % inside for i in range(inside)]


def _totals(launched: Launched, raw: Raw) -> np.ndarray:
    """Instructions, and the sums of what accesses and arrays count."""
    sizes = np.array([len(block) for block in launched.flow.blocks])
    return np.concatenate(([sizes @ raw.executed], raw.sites.sum(axis=0), raw.regions.sum(axis=0)))


def _steady(launched: Launched, before: Raw, after: Raw) -> bool:
    old, new = _totals(launched, before), _totals(launched, after)
    return bool((np.abs(old - new) <= _STEADY * new).all())


def _is_integer(region: Region) -> bool:
    return any(not parameter.const and array.dtype.kind in "iu" for parameter, array in region.arrays)


def _fill(region: Region) -> None:
    for parameter, array in region.arrays:
        if not parameter.const and array.dtype.kind not in "iu":
            array[np.isnan(array)] = _PLACEHOLDER


def _run(
    launched: Launched, found: Sequence[Region], enter: Enter, blocks: list[int]
) -> tuple[Raw, str | None]:
    """Counts of these blocks."""
    basic, sites = len(launched.flow.blocks), len(launched.translation.sites)
    functions = counting_library()
    counts = ctypes.c_void_p(
        functions.ptx_counts_new(_numbers(launched.grid), launched.threads, basic, sites, len(found))
    )
    try:
        functions.ptx_counts_choose(counts, _numbers(blocks), len(blocks))
        failure = enter((len(blocks), 1, 1), counts)
        shapes = (basic, basic, (sites, len(_SITE)), (len(found), len(_REGION)))
        made = [np.zeros(shape, np.uint64) for shape in shapes]
        functions.ptx_counts_read(counts, *(ctypes.c_void_p(array.ctypes.data) for array in made))
    finally:
        functions.ptx_counts_delete(counts)
    return Raw(*(array.astype(np.float64) for array in made)), failure


def _numbers(values: Sequence[int]) -> Any:
    return (ctypes.c_uint32 * len(values))(*values)


@cache
def counting_library() -> ctypes.CDLL:
    """The compiled counting.cpp, where translated kernels find it."""
    headers = "".join(read_text(name) for name in HEADERS)
    places = (f"-I{folder()}",)
    made = library.build("counting-runtime", read_text("counting.cpp"), FLAGS, places, headers, "ptx")
    made.ptx_counts_new.restype = ctypes.c_void_p
    return made
