"""NumPy's functions of Variables: ``np.f(v)`` is the function `f` of this package, where there is one."""

import inspect
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
        "allclose",
        "array_equal",
        "isclose",
    ]
)
# What NumPy calls otherwise.
RENAMED = {"true_divide": "divide", "absolute": "abs", "amax": "max", "amin": "min"}
# Of these names the functions here do something else.
OTHERS = frozenset({"resize"})
# Arguments that have no fixed place here, and may not be there at all.
OPTIONS = frozenset(
    ["dtype", "out", "order", "keepdims", "initial", "where", "ddof", "mode", "casting", "subok"]
)


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
    try:
        given = inspect.signature(function).bind(*args, **params)
    except ValueError:  # some functions written in C have no signature
        return _call(function.__name__, function, args, params)
    if any(p.kind is p.VAR_POSITIONAL for p in given.signature.parameters.values()):
        return _call(function.__name__, function, args, params)
    plain = tuple(value for name, value in zip(given.signature.parameters, given.args) if name not in OPTIONS)
    options = {name: v for name, v in given.arguments.items() if name in OPTIONS and v is not None}
    return _call(function.__name__, function, plain, {**given.kwargs, **options})


def _call(name: str, function: Any, args: tuple, params: dict) -> Any:
    if name in READING:
        args = tuple(a.data if isinstance(a, Variable) else a for a in args)
        return function(*args, **{k: v.data if isinstance(v, Variable) else v for k, v in params.items()})
    ours = getattr(functions, RENAMED.get(name, name), None)
    if ours is None or name in OTHERS or name.startswith("_"):
        raise TypeError(
            f"np.{name} takes no Variable, and no function of autodiff does the same; to read it take .data"
        )
    try:
        return ours(*args, **params)
    except TypeError as error:
        raise TypeError(f"np.{name} of a Variable: {error}") from error


Variable.__array_ufunc__ = _UfuncOverride()  # type: ignore[attr-defined]
Variable.__array_function__ = _function  # type: ignore[attr-defined]
