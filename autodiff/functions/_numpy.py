"""NumPy's functions of Variables: ``np.f(v)`` is the function `f` of this package, where there is one."""

from typing import Any

import numpy as np

from .. import functions
from ..variable import Variable

# Those that only read: they give no array that could depend on a Variable with a slope.
READING = frozenset(
    [
        "shape",
        "ndim",
        "size",
        "result_type",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "isfinite",
        "isinf",
        "isnan",
        "less",
        "less_equal",
        "greater",
        "greater_equal",
        "equal",
        "not_equal",
    ]
)
# What NumPy calls otherwise.
RENAMED = {"true_divide": "divide", "absolute": "abs", "amax": "max", "amin": "min", "conjugate": "conj"}


class _UfuncOverride:
    """``__array_ufunc__`` of the class, where NumPy looks for it; None for an instance.

    CuPy asks the instance whether arithmetic between its arrays and a Variable should be left to the
    Variable.
    """

    def __get__(self, instance: Any, owner: Any) -> Any:
        return _ufunc if instance is None else None


def _ufunc(self: Variable, ufunc: np.ufunc, method: str, *inputs: Any, **params: Any) -> Any:
    name = ufunc.__name__
    if params.get("out") is not None:
        raise TypeError(f"np.{name}: the result of a Variable cannot be written into an array; use x = x + v")
    if method != "__call__":
        raise TypeError(f"np.{name}.{method} takes no Variable; use a function of autodiff, or .data")
    return _call(name, ufunc, inputs, params)


def _function(self: Variable, function: Any, types: Any, args: tuple, params: dict) -> Any:
    return _call(function.__name__, function, args, params)


def _call(name: str, function: Any, args: tuple, params: dict) -> Any:
    if name in READING:
        args = tuple(a.data if isinstance(a, Variable) else a for a in args)
        return function(*args, **{k: v.data if isinstance(v, Variable) else v for k, v in params.items()})
    ours = getattr(functions, RENAMED.get(name, name), None)
    if ours is None or name.startswith("_"):
        raise TypeError(
            f"np.{name} takes no Variable, and autodiff.functions has no {name}; for the value take .data"
        )
    return ours(*args, **params)


Variable.__array_ufunc__ = _UfuncOverride()  # type: ignore[attr-defined]
Variable.__array_function__ = _function  # type: ignore[attr-defined]
