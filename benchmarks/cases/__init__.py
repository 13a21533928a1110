"""Everything that is measured: the cases of each family, found by the stems in ``dynarray.OPERATORS``."""

from importlib import import_module

import dynarray as dyn

from .case import Case
from .drawing import Drawn
from .growing import Growth
from .targets import PASSES, Target

STEMS = tuple(dict.fromkeys(operator.stem for operator in dyn.OPERATORS.values()))
_FAMILIES = [import_module(f"{__name__}.{stem}") for stem in STEMS]

CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)
GROWTH: tuple[Growth, ...] = tuple(growth for family in _FAMILIES for growth in family.GROWTH)
DRAWN: tuple[Drawn, ...] = tuple(table for family in _FAMILIES for table in family.DRAWN)
# By the title of a case, of the forward pass and of both passes; not every family has any.
TARGETS: dict[str, tuple[Target, Target]] = {
    title: wanted for family in _FAMILIES for title, wanted in getattr(family, "TARGETS", {}).items()
}

# What keeps two cores busy for a millisecond is next to nothing to a GPU.
BATCH = 16


def cases(backend: str) -> tuple[Case, ...]:
    """What is measured on a backend, each operator of the registry at least once."""
    if backend != "cuda":
        return CASES
    own = (case for family in _FAMILIES for case in getattr(family, "CUDA_CASES", ()))
    return (*own, *(case.times(BATCH) for case in CASES))


def target(title: str, name: str) -> Target:
    """What is wanted of a pass of a case; nothing, if its family does not say."""
    return TARGETS[title][PASSES.index(name)] if title in TARGETS else {}
