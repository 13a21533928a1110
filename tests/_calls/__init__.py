"""What the tests know of each operator beside its record: one module a family, found by its stem.

A module has, per operator,

- ``CASES``: a function ``(pick, **fixed) -> Case``, a valid call, each free choice made by ``pick(sequence)``
  except the sizes in `fixed`, which every operator takes for the symbols N, H and W;
- ``GOOD``, ``SYMBOLS`` and the rows of ``BAD``: see `_bad_calls`;
- ``LARGE``: a call on more than 2**31 elements, or why there can be none;

and, where there is something to say, ``HEAVY``, calls whose memory is measured, ``is_exact`` and
``EXACT_VALUES``, of drawn calls whose results must be exact, and ``UNDRAWN``, values of parameters that
none of the cases has.
"""

from importlib import import_module
from types import ModuleType

from dynarray import OPERATORS, Operator

from ._call import Case, Heavy, Pick


def family(operator: Operator) -> ModuleType:
    """The calls of its family."""
    return import_module(f"{__name__}.{operator.stem}")


def families() -> dict[str, ModuleType]:
    """All of them, by stem."""
    return {operator.stem: family(operator) for operator in OPERATORS.values()}


def heavy_calls() -> dict[str, Heavy]:
    """The calls of all families whose memory is measured."""
    return {
        title: heavy for each in families().values() for title, heavy in getattr(each, "HEAVY", {}).items()
    }


def draw_case(operator: Operator, pick: Pick, **fixed: int) -> Case:
    """One valid call."""
    return family(operator).CASES[operator.name](pick, **fixed)
