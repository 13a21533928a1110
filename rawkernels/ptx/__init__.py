"""Run what NVRTC made of CUDA kernels on NumPy arrays, instruction by instruction, and check each access.

NVRTC compiles a program to PTX with the flags that CuPy passes (nvrtc.py). The text is taken apart (parse.py)
and written as C++, one statement an instruction (translate.py, opcodes.py), which g++ compiles. It runs
under the fibers of the host build, with the arguments of the real launch (memory.py), on a machine
(machine.cpp) that checks each access; what it saw is put in words (report.py), and raised as `FaultError`.

What is reported, each with kernel, source line, block, thread, array and index: accesses out of bounds, or
at an address that is no multiple of their size; writes to const arrays; races on global and shared memory
between threads that no barrier orders, whatever order they ran in; reads of shared memory that nobody has
written; non-coherent loads of what the same launch writes; shuffles and votes that lanes of their mask do not
come to; divisions by zero. An instruction that is not known is an error, by name.

Results are those of a GPU but for the order of atomic additions, which a GPU does not fix either. Arrays of a
launch lie where they would on a GPU: an allocation at a multiple of 512 bytes, a view where it is in it.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rawkernels import forks
from rawkernels.host import KernelError, launch_request, library
from rawkernels.source import Program

from . import counting, memory, nvrtc
from .parse import PtxError
from .report import KINDS, Context, Report, describe
from .translate import Translation, translate

__all__ = [
    "KINDS",
    "Collected",
    "FaultError",
    "PtxError",
    "Report",
    "Target",
    "collect",
    "count",
    "load",
    "problem",
    "run",
    "use_target",
]

_MAX_SHARED_BYTES = 48 * 1024


@dataclass(frozen=True)
class Target:
    """What NVRTC compiles for.

    Attributes
    ----------
    architecture : str
        "sm_75", "sm_90", or another that NVRTC knows.
    ftz : bool
        Whether subnormal float32 numbers count as zero, as CuPy asks for.
    """

    architecture: str = "sm_90"
    ftz: bool = True


class FaultError(KernelError):
    """A kernel did something that is an error, or undefined, on a GPU; `reports` says what."""

    def __init__(self, reports: list[Report]) -> None:
        super().__init__("\n".join(map(str, reports)))
        self.reports = reports


_chosen = threading.local()


@contextmanager
def use_target(target: Target) -> Iterator[None]:
    """Compile for a target inside the block, in this thread."""
    before = getattr(_chosen, "target", None)
    _chosen.target = target
    try:
        yield
    finally:
        _chosen.target = before


@dataclass
class Collected:
    """Launches by kernel, and how many had each fault: by the first report of it."""

    launches: Counter[str] = field(default_factory=Counter)
    reports: dict[Report, int] = field(default_factory=dict)

    def add(self, kernel: str, reports: list[Report]) -> None:
        """Note a launch."""
        self.launches[kernel] += 1
        for report in reports:
            alike = (other for other in self.reports if other.fault == report.fault)
            first = next(alike, report)
            self.reports[first] = self.reports.get(first, 0) + 1


@contextmanager
def collect() -> Iterator[Collected]:
    """Keep what is reported inside the block, in this thread, instead of raising it."""
    before = getattr(_chosen, "collected", None)
    _chosen.collected = collected = Collected()
    try:
        yield collected
    finally:
        _chosen.collected = before


@contextmanager
def count() -> Iterator[list[counting.Counted]]:
    """Count what each launch inside the block does, in this thread; of a large grid some blocks are run.

    See `rawkernels.ptx.counting`.
    """
    before = getattr(_chosen, "counted", None)
    counted: list[counting.Counted] = []
    _chosen.counted = counted
    try:
        yield counted
    finally:
        _chosen.counted = before


def problem() -> str | None:
    """Why this backend cannot be used here, and what to install; None where it can."""
    library.compiler()
    return nvrtc.problem()


@dataclass(frozen=True)
class _Loaded:
    translation: Translation
    library: ctypes.CDLL


_loaded: dict[tuple[Program, Target, bool], _Loaded] = {}


def run(
    program: Program,
    entry: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: tuple[Any, ...],
    shared_bytes: int = 0,
) -> None:
    """Run one kernel; :func:`rawkernels.launch.launch` has checked the arguments."""
    counted = getattr(_chosen, "counted", None)
    loaded = load(program, counted=counted is not None)
    kernel = loaded.translation.kernels[entry]
    threads = block[0] * block[1] * block[2]
    if threads > kernel.max_threads:
        raise KernelError(f"{entry}: a block of {threads} threads, of at most {kernel.max_threads}")
    total = shared_bytes + kernel.static_shared_bytes
    if total > _MAX_SHARED_BYTES:
        raise KernelError(f"{entry}: {total} bytes of shared memory, limit {_MAX_SHARED_BYTES}")
    found = memory.regions(program.entries[entry], arguments)
    with memory.launch(kernel, found, shared_bytes, threads) as made:

        def enter(grid: tuple[int, int, int], *more: Any) -> str | None:
            request, message = launch_request(grid, block, shared_bytes)
            pointers, _values = made.argument_list((*arguments, *more))
            with forks.held_off():
                failed = getattr(loaded.library, f"ptx_enter_{entry}")(ctypes.byref(request), pointers)
            return message.value.decode() if failed else None

        if counted is None:
            failure = enter(grid)
        else:
            launched = counting.Launched(program, loaded.translation, entry, grid, block, shared_bytes)
            counts, failure = counting.count(launched, found, enter)
            counted.append(counts)
        records = made.records()
    arrays = [region.named for region in found]
    context = Context(program, loaded.translation.sites, arrays, kernel.shared, block, grid)
    reports = [describe(record, context) for record in records]
    collected = getattr(_chosen, "collected", None)
    if collected is not None:
        collected.add(entry, reports)
    elif reports:
        raise FaultError(reports)
    if failure is not None:
        raise KernelError(f"{entry}: {failure}")


def load(program: Program, target: Target | None = None, *, counted: bool = False) -> _Loaded:
    """A program, compiled for a target, by default the chosen one, translated, and compiled again."""
    target = target or getattr(_chosen, "target", None) or Target()
    found = _loaded.get((program, target, counted))
    if found is not None:
        return found
    reason = nvrtc.problem()
    if reason is not None:
        raise RuntimeError(f"the backend ptx needs NVRTC: {reason}")
    memory.machine_library()
    if counted:
        counting.counting_library()
    ptx = nvrtc.to_ptx(program.file, program.text, target.architecture, target.ftz)
    made = translate(ptx, counting=counted)
    stem = f"{program.file.partition('.')[0]}-{target.architecture}"
    headers = "".join(memory.read_text(name) for name in memory.HEADERS)
    built = library.build(stem, made.text, _flags(), (f"-I{memory.folder()}",), headers, "ptx")
    return _loaded.setdefault((program, target, counted), _Loaded(made, built))


# No product and sum becomes one unless PTX says so, and integers wrap. Unoptimised, it compiles in
# a quarter of the time, and most of the work is the machine's, which is optimised.
_FLAGS = (
    *("-std=c++17", "-fPIC", "-shared", "-O0", "-w"),
    *("-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing"),
)


def _flags() -> tuple[str, ...]:
    """Those of the compiler; an instruction for fma makes it many times as fast where there is one."""
    return (*_FLAGS, "-mfma") if platform.machine() == "x86_64" and _cpu_has("fma") else _FLAGS


def _cpu_has(flag: str) -> bool:
    try:
        return flag in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
