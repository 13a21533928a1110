"""Operators and methods of Variables, given to the class here because the engine knows no function."""

import operator
from typing import Any

from ..variable import Variable
from ._common import plain
from .arithmetic import abs, add, divide, multiply, negative, power, subtract
from .indexing import getitem, take
from .joining import repeat
from .linear_algebra import matmul
from .reductions import cumsum, max, mean, min, prod, std, var
from .selection import clip
from .shapes import astype, reshape, squeeze, sum, swapaxes, transpose


def _one_or_several(given: tuple) -> Any:
    """``(1, 0)`` and ``1, 0`` alike: NumPy's methods take either."""
    return given[0] if len(given) == 1 else given


BINARY = {"add": add, "sub": subtract, "mul": multiply, "truediv": divide, "pow": power, "matmul": matmul}
UNARY = {"__neg__": negative, "__abs__": abs, "__getitem__": getitem}
METHODS = {
    "astype": astype,
    "clip": clip,
    "cumsum": cumsum,
    "flatten": lambda self: reshape(self, (-1,)),
    "max": max,
    "mean": mean,
    "min": min,
    "prod": prod,
    "repeat": repeat,
    "reshape": lambda self, *shape: reshape(self, _one_or_several(shape)),
    "squeeze": squeeze,
    "std": std,
    "sum": sum,
    "swapaxes": swapaxes,
    "take": take,
    "transpose": lambda self, *axes: transpose(self, _one_or_several(axes) if axes else None),
    "var": var,
}
# Methods that are not quite the function of their name.
SAID = {
    "flatten": "`autodiff.functions.reshape` of this Variable to one axis.",
    "reshape": "`autodiff.functions.reshape` of this Variable; lengths may also be given one by one.",
    "transpose": "`autodiff.functions.transpose` of this Variable; axes may also be given one by one.",
}
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


def _iterated(self: Variable) -> Any:
    """The entries along the first axis; of a number there are none, which must not look like an empty sum."""
    if not self.ndim:
        raise TypeError("iteration over a Variable of shape ()")
    return (getitem(self, i) for i in range(len(self)))


def _forward(function: Any) -> Any:
    return lambda self, *args, **params: function(self, *args, **params)


def _reflected(function: Any) -> Any:
    return lambda self, other: function(other, self)


def _comparison(name: str) -> Any:
    """Comparisons are not differentiable: they give plain boolean arrays."""
    compare = getattr(operator, name)
    return lambda self, other: compare(self.data, plain(other))


for name, function in BINARY.items():
    setattr(Variable, f"__{name}__", function)
    setattr(Variable, f"__r{name}__", _reflected(function))
for name, function in {**UNARY, **METHODS}.items():
    setattr(Variable, name, _forward(function))
    getattr(Variable, name).__doc__ = SAID.get(
        name, f"`autodiff.functions.{function.__name__}` of this Variable."
    )
for name in COMPARISONS:
    setattr(Variable, f"__{name}__", _comparison(name))
Variable.__iter__ = _iterated  # type: ignore[attr-defined]
Variable.__hash__ = object.__hash__  # type: ignore[method-assign]
Variable.T = property(  # type: ignore[attr-defined]
    transpose, doc="This Variable with its axes in reverse order: shape ``x.shape[::-1]``, dtype of x."
)
