"""Choosing elementwise between values, with broadcasting, under the NumPy names."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, array, elementwise, operand, optional
from ._common import plain
from .shapes import fit


def _larger(x: Any, y: Any, dtype: Any) -> Any:
    """1 where x is the larger one, 1/2 where both are equal; NaN is larger than any number."""
    return _share((x >= y) | (x != x), (y >= x) | (y != y), dtype)


def _smaller(x: Any, y: Any, dtype: Any) -> Any:
    """1 where x is the smaller one, 1/2 where both are equal; NaN is smaller than any number."""
    return _share((x <= y) | (x != x), (y <= x) | (y != y), dtype)


def _share(wins: Any, loses: Any, dtype: Any) -> Any:
    return (wins * (1 - 0.5 * loses)).astype(dtype)


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("x y", lambda g, s: g * _larger(plain(s.x), plain(s.y), g.dtype)),
    y=("x y", lambda g, s: g * _larger(plain(s.y), plain(s.x), g.dtype)),
)
def maximum(x: Any, y: Any) -> Any:
    """The larger one of x and y; where they are equal, each gets half of the gradient. NaN wins.

    Parameters
    ----------
    x, y : array or number
        Shapes that broadcast, of any dtype; a number leaves the dtype to the other one.

    Returns
    -------
    array
        The broadcast shape, with the dtype that NumPy gives it.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> grad(lambda x: F.sum(F.maximum(x, 1)))(np.array([0.0, 1.0, 2.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.maximum(x, y)


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("x y", lambda g, s: g * _smaller(plain(s.x), plain(s.y), g.dtype)),
    y=("x y", lambda g, s: g * _smaller(plain(s.y), plain(s.x), g.dtype)),
)
def minimum(x: Any, y: Any) -> Any:
    """The smaller one of x and y; where they are equal, each gets half of the gradient. NaN wins.

    Parameters
    ----------
    x, y : array or number
        Shapes that broadcast, of any dtype; a number leaves the dtype to the other one.

    Returns
    -------
    array
        The broadcast shape, with the dtype that NumPy gives it.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> grad(lambda x: F.sum(F.minimum(x, 1)))(np.array([0.0, 1.0, 2.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.minimum(x, y)


@arguments(condition=operand, x=operand, y=operand)
@differentiable(
    "condition x y",
    fit=fit,
    x=("condition", lambda g, s: where(s.condition, g, g.dtype.type(0))),
    y=("condition", lambda g, s: where(s.condition, g.dtype.type(0), g)),
)
def where(condition: Any, x: Any, y: Any) -> Any:
    """x where `condition` holds, y elsewhere; a NaN in the branch not taken stays out of the gradient.

    Parameters
    ----------
    condition : array of bool
        Of any shape; what is not 0 is true.
    x, y : array or number
        What to choose from; all three shapes broadcast.

    Returns
    -------
    array
        The broadcast shape, with the dtype that NumPy gives it.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([4.0, np.nan])
    >>> grad(lambda v: F.sum(F.where(np.isnan(x), 0, 2 * v)))(x).tolist()
    [2.0, 0.0]
    """
    return np.where(condition, x, y)


def _beyond(s: Any) -> tuple[Any, Any]:
    """Where `clip` gives its lower, and its upper limit instead of x."""
    x, low, high = plain(s.x), plain(s.min), plain(s.max)
    never = np.zeros_like(x, dtype=bool)
    above = never if high is None else (x > high) | (high != high)
    below = never if low is None else (x < low) | (low != low)
    if low is not None and high is not None:
        above = above | (low > high)
    return below & ~above, above


def _chosen(g: Any, which: Any) -> Any:
    return where(which, g, g.dtype.type(0))


@arguments(x=array, min=optional(operand), max=optional(operand))
@differentiable(
    "x min max",
    fit=fit,
    x=("x min max", lambda g, s: _chosen(g, ~np.logical_or(*_beyond(s)))),
    min=("x min max", lambda g, s: _chosen(g, _beyond(s)[0])),
    max=("x min max", lambda g, s: _chosen(g, _beyond(s)[1])),
)
def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    """x limited to [min, max], which broadcast; the slope in x is 1 inside and at both ends, 0 outside.

    Outside, the limit that stands there has slope 1. A NaN is the value of whoever gave it.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    min, max : array or number, optional
        The limits, which broadcast with x; None is no limit. Where min is larger than max, max wins.

    Returns
    -------
    array
        The broadcast shape, with the dtype that NumPy gives it.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([-1.0, 0.0, 0.5, 2.0])
    >>> F.clip(x, 0, 1).tolist(), grad(lambda x: F.sum(F.clip(x, 0, 1)))(x).tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    limited = np.clip(x, min, max)
    # To NumPy, a number beside a bfloat16 makes a float32.
    return limited if x.dtype.kind != "V" else limited.astype(x.dtype)
