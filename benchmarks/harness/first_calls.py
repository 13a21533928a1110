"""First calls alone, each in a process of its own: ``python -m benchmarks first-calls``.

What they take is what a compiler takes, on one core: on a machine that does nothing else.
"""

from time import monotonic
from typing import Any

from ..cases.case import Case
from . import isolated
from .device import device_of
from .run import Options
from .session import Result, Save, Say, begin, measure, named

KIND = "first calls"
LIMIT_S = 3.0  # of a pass, on empty caches


def run(
    options: Options, say: Say, save: Save = lambda result: None, earlier: Result | None = None
) -> Result:
    """A row a case; resumed as a run of the operators is."""
    device = device_of(options.backend)
    begun = begin(
        KIND,
        device,
        backend=options.backend,
        threads=options.threads,
        quick=options.quick,
        only_operators=list(options.operators),
    )

    def row(case: Case, _: Result) -> dict[str, Any]:
        start = monotonic()
        seconds = isolated.first_call(case, options.backend, options.threads)
        return {**named(case), "first_call_s": seconds, "seconds": round(monotonic() - start, 1)}

    return measure(begun, earlier, options.cases(), row, device, say, save)


def slow(result: Result) -> list[str]:
    """The calls of a results file that took longer than they may."""
    return [
        f"{row['title']}, {name}: {row['first_call_s']['cold'][name]:.2f} s"
        for row in result["rows"]
        for name in ("forward", "backward")
        if row["first_call_s"]["cold"][name] >= LIMIT_S
    ]
