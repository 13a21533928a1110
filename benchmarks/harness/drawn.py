"""Shapes that nobody tuned for: ``python -m benchmarks drawn``, some of each operator, drawn by a seed."""

from dataclasses import dataclass, replace
from typing import Any

from ..cases import DRAWN
from ..cases.case import Case
from ..cases.drawing import LARGE_MS
from . import floor
from .device import device_of
from .measure import BRIEF, QUICK, Effort
from .run import Options, on_device, settings, timed
from .session import Result, Save, Say, begin, measure, named

KIND = "drawn shapes"
NUMBER = 12
# Seconds for compiling the peers of a shape, for each of two passes: some hundred shapes are to take an hour.
# PyTorch keeps what it compiled, so that a second run by the same seed has time for the others.
COMPILE_S = 6.0
_TINY_BYTES, _TINY_FLOPS = 1 << 16, 100_000


@dataclass(frozen=True)
class DrawnOptions(Options):
    """What to measure, and how: so many shapes of each operator."""

    number: int = NUMBER
    seed: int = 0

    @property
    def effort(self) -> Effort:
        return QUICK if self.quick else BRIEF

    def cases(self) -> list[Case]:
        tables = (table for table in DRAWN if not self.operators or table.operator in self.operators)
        if self.quick:
            tables = (replace(each, most_bytes=_TINY_BYTES, most_flops=_TINY_FLOPS) for each in tables)
        return [
            case for table in tables for case in table.cases(self.number, self.seed, large=not self.quick)
        ]


def run(
    options: DrawnOptions, say: Say, save: Save = lambda result: None, earlier: Result | None = None
) -> Result:
    """A row a shape; resumed as a run of the operators is."""

    def row(case: Case, result: Result) -> dict[str, Any]:
        limits = floor.Floor(**result["floor"])
        # What is over before a compiled function has looked at its arguments is compared with eager peers.
        small = options.quick or limits.ms(case.work()["forward_backward"]) < LARGE_MS
        compile_s = 0.0 if small else options.compile_s
        how = replace(options, compile_s=COMPILE_S if compile_s is None else compile_s)
        return {**named(case), "compile_s": how.compile_s, **timed(case, device, limits, how, say)}

    device = device_of(options.backend)
    with on_device(options, device):
        begun = begin(KIND, device, **settings(options), seed=options.seed, number=options.number)
        return measure(begun, earlier, options.cases(), row, device, say, save)
