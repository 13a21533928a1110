"""Elementwise functions, with broadcasting, under their NumPy names."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, array, elementwise, operand, optional
from ._common import plain
from .shapes import fit


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("", lambda g, s: g),
    y=("", lambda g, s: g),
)
def add(x: Any, y: Any) -> Any:
    """``x + y``.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.add([[1.0], [2.0]], [10.0, 20.0]).tolist()  # axes broadcast, as in NumPy
    [[11.0, 21.0], [12.0, 22.0]]
    """
    return np.add(x, y)


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("", lambda g, s: g),
    y=("", lambda g, s: -g),
)
def subtract(x: Any, y: Any) -> Any:
    """``x - y``.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.subtract([1.0, 2.0], 3).tolist()
    [-2.0, -1.0]
    """
    return np.subtract(x, y)


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("y", lambda g, s: g * s.y),
    y=("x", lambda g, s: g * s.x),
)
def multiply(x: Any, y: Any) -> Any:
    """``x * y``.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.multiply([1.0, 2.0], [3.0, 4.0]).tolist()
    [3.0, 8.0]
    """
    return np.multiply(x, y)


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("y", lambda g, s: g / s.y),
    y=("y output", lambda g, s: -g * s.output / s.y),
)
def divide(x: Any, y: Any) -> Any:
    """``x / y``.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.divide([1.0, 9.0], 2).tolist()
    [0.5, 4.5]
    """
    return np.divide(x, y)


@elementwise
@differentiable("x", x=("", lambda g, s: -g))
def negative(x: Any) -> Any:
    """``-x``.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.negative([1.0, -2.0]).tolist()
    [-1.0, 2.0]
    """
    return np.negative(x)


def _power_of_base(g: Any, s: Any) -> Any:
    # x**0 is 1 everywhere, so its slope is 0 at 0, inf and NaN too, where 0 * x**-1 would be NaN.
    base, exponent = plain(s.x), plain(s.y)
    if hasattr(exponent, "dtype") and exponent.dtype.kind in "biu":
        y = exponent.astype(g.dtype)  # the least integer of a dtype, less 1, would be its largest
    else:
        y = s.y
    flat = (exponent == 0) & ((base == 0) | ~np.isfinite(base))
    x = where(flat, 1.0, s.x) if np.any(flat) else s.x
    return g * y * power(x, y - 1)


def _power_of_exponent(g: Any, s: Any) -> Any:
    positive = where(plain(s.x) == 0, 1.0, s.x)
    return g * s.output * log(positive)


@elementwise
@differentiable("x y", fit=fit, x=("x y", _power_of_base), y=("x output", _power_of_exponent))
def power(x: Any, y: Any) -> Any:
    """``x ** y``. The slope in y is taken as 0 where x is 0.

    Examples
    --------
    >>> from autodiff import functions as F, grad
    >>> float(F.power(2.0, 3.0)), float(grad(lambda x: F.power(x, 3))(2.0))
    (8.0, 12.0)
    """
    return np.power(x, y)


@elementwise
@differentiable("x", x=("x", lambda g, s: g * (2 * s.x)))
def square(x: Any) -> Any:
    """``x * x``.

    Examples
    --------
    >>> from autodiff import functions as F, grad
    >>> float(F.square(3.0)), float(grad(F.square)(3.0))
    (9.0, 6.0)
    """
    return np.square(x)


@elementwise
@differentiable("x", x=("output", lambda g, s: g / (2 * s.output)))
def sqrt(x: Any) -> Any:
    """Square root. Its slope at 0 is infinite.

    Examples
    --------
    >>> from autodiff import functions as F, grad
    >>> float(F.sqrt(4.0)), float(grad(F.sqrt)(4.0))
    (2.0, 0.25)
    """
    return np.sqrt(x)


@elementwise
@differentiable("x", x=("output", lambda g, s: g * s.output))
def exp(x: Any) -> Any:
    """Exponential.

    Examples
    --------
    >>> from autodiff import functions as F, grad
    >>> float(F.exp(0.0)), float(grad(grad(F.exp))(0.0))
    (1.0, 1.0)
    """
    return np.exp(x)


@elementwise
@differentiable("x", x=("x", lambda g, s: g / s.x))
def log(x: Any) -> Any:
    """Natural logarithm.

    Examples
    --------
    >>> from autodiff import functions as F, grad
    >>> float(F.log(1.0)), float(grad(F.log)(4.0))
    (0.0, 0.25)
    """
    return np.log(x)


@elementwise
@differentiable("x", x=("x", lambda g, s: g / (1 + s.x)))
def log1p(x: Any) -> Any:
    """``log(1 + x)``, exact for small x.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> float(F.log1p(1e-20))
    1e-20
    """
    return np.log1p(x)


@elementwise
@differentiable("x", x=("x", lambda g, s: g * cos(s.x)))
def sin(x: Any) -> Any:
    """Sine.

    Examples
    --------
    >>> from autodiff import functions as F, grad
    >>> float(F.sin(0.0)), float(grad(F.sin)(0.0))
    (0.0, 1.0)
    """
    return np.sin(x)


@elementwise
@differentiable("x", x=("x", lambda g, s: -g * sin(s.x)))
def cos(x: Any) -> Any:
    """Cosine.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> float(F.cos(0.0)), float(grad(F.cos)(np.pi / 2))
    (1.0, -1.0)
    """
    return np.cos(x)


@elementwise
@differentiable("x", x=("output", lambda g, s: g * (1 - s.output * s.output)))
def tanh(x: Any) -> Any:
    """Hyperbolic tangent.

    Examples
    --------
    >>> from autodiff import functions as F, grad
    >>> float(F.tanh(0.0)), float(grad(F.tanh)(0.0))
    (0.0, 1.0)
    """
    return np.tanh(x)


@elementwise
@differentiable("x", x=("x", lambda g, s: g * np.sign(plain(s.x))))
def abs(x: Any) -> Any:
    """Absolute value; its slope at 0 is taken as 0.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> grad(lambda x: F.sum(F.abs(x)))(np.array([-2.0, 0.0, 3.0])).tolist()
    [-1.0, 0.0, 1.0]
    """
    return np.abs(x)


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

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> grad(lambda x: F.sum(F.minimum(x, 1)))(np.array([0.0, 1.0, 2.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.minimum(x, y)


def over(x: Any, length: Any) -> Any:
    """``x / length``; where the length is 0, so are the quotient and all its slopes."""
    zero = plain(length) == 0
    kind = length.dtype.type
    return where(zero, kind(0), x) / where(zero, kind(1), length)


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("x output", lambda g, s: g * over(s.x, s.output)),
    y=("y output", lambda g, s: g * over(s.y, s.output)),
)
def hypot(x: Any, y: Any) -> Any:
    """``sqrt(x**2 + y**2)`` without overflow; its slope at the origin is taken as 0.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.hypot([3.0, 0.0], [4.0, 1e300]).tolist()
    [5.0, 1e+300]
    """
    return np.hypot(x, y)


def _turned(part: Any, s: Any) -> Any:
    """``part / (x**2 + y**2)`` without overflow, 0 at the origin."""
    radius = hypot(s.x, s.y)
    return over(over(part, radius), radius)


@elementwise
@differentiable(
    "x y",
    fit=fit,
    x=("x y", lambda g, s: g * _turned(s.y, s)),
    y=("x y", lambda g, s: -g * _turned(s.x, s)),
)
def arctan2(x: Any, y: Any) -> Any:
    """The angle of the point at x up and y to the right, from -pi to pi; its slope at the origin is 0.

    The arguments are in the order of `numpy.arctan2`: the ordinate first.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.arctan2([0.0, 1.0, 0.0], [1.0, 0.0, -1.0]).round(4).tolist()
    [0.0, 1.5708, 3.1416]
    """
    return np.arctan2(x, y)


@arguments(condition=operand, x=operand, y=operand)
@differentiable(
    "condition x y",
    fit=fit,
    x=("condition", lambda g, s: where(s.condition, g, g.dtype.type(0))),
    y=("condition", lambda g, s: where(s.condition, g.dtype.type(0), g)),
)
def where(condition: Any, x: Any, y: Any) -> Any:
    """x where `condition` holds, y elsewhere; a NaN in the branch not taken stays out of the gradient.

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
