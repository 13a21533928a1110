"""Elementwise functions, with broadcasting, under their NumPy names."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._common import plain
from .shapes import fit


@differentiable(
    "x y",
    fit=fit,
    x=("", lambda g, s: g),
    y=("", lambda g, s: g),
)
def add(x: Any, y: Any) -> Any:
    """``x + y``."""
    return x + y


@differentiable(
    "x y",
    fit=fit,
    x=("", lambda g, s: g),
    y=("", lambda g, s: -g),
)
def subtract(x: Any, y: Any) -> Any:
    """``x - y``."""
    return x - y


@differentiable(
    "x y",
    fit=fit,
    x=("y", lambda g, s: g * s.y),
    y=("x", lambda g, s: g * s.x),
)
def multiply(x: Any, y: Any) -> Any:
    """``x * y``."""
    return x * y


@differentiable(
    "x y",
    fit=fit,
    x=("y", lambda g, s: g / s.y),
    y=("y output", lambda g, s: -g * s.output / s.y),
)
def divide(x: Any, y: Any) -> Any:
    """``x / y``."""
    return x / y


@differentiable("x", x=("", lambda g, s: -g))
def negative(x: Any) -> Any:
    """``-x``."""
    return -x


def _power_of_base(g: Any, s: Any) -> Any:
    # x**0 is 1 everywhere, so its slope is 0 at x = 0 too, where 0 * x**-1 would be NaN.
    constant = plain(s.y) == 0
    lowered = where(constant, 1.0 * constant, s.y - 1) if np.any(constant) else s.y - 1
    return g * s.y * power(s.x, lowered)


def _power_of_exponent(g: Any, s: Any) -> Any:
    positive = where(plain(s.x) == 0, 1.0, s.x)
    return g * s.output * log(positive)


@differentiable("x y", fit=fit, x=("x y", _power_of_base), y=("x output", _power_of_exponent))
def power(x: Any, y: Any) -> Any:
    """``x ** y``. The slope in y is taken as 0 where x is 0."""
    return np.power(x, y)


@differentiable("x", x=("x", lambda g, s: g * (2 * s.x)))
def square(x: Any) -> Any:
    """``x * x``."""
    return np.square(x)


@differentiable("x", x=("output", lambda g, s: g / (2 * s.output)))
def sqrt(x: Any) -> Any:
    """Square root. Its slope at 0 is infinite."""
    return np.sqrt(x)


@differentiable("x", x=("output", lambda g, s: g * s.output))
def exp(x: Any) -> Any:
    """Exponential."""
    return np.exp(x)


@differentiable("x", x=("x", lambda g, s: g / s.x))
def log(x: Any) -> Any:
    """Natural logarithm."""
    return np.log(x)


@differentiable("x", x=("x", lambda g, s: g / (1 + s.x)))
def log1p(x: Any) -> Any:
    """``log(1 + x)``, exact for small x."""
    return np.log1p(x)


@differentiable("x", x=("x", lambda g, s: g * cos(s.x)))
def sin(x: Any) -> Any:
    """Sine."""
    return np.sin(x)


@differentiable("x", x=("x", lambda g, s: -g * sin(s.x)))
def cos(x: Any) -> Any:
    """Cosine."""
    return np.cos(x)


@differentiable("x", x=("output", lambda g, s: g * (1 - s.output * s.output)))
def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(x)


@differentiable("x", x=("x", lambda g, s: g * np.sign(plain(s.x))))
def abs(x: Any) -> Any:
    """Absolute value; its slope at 0 is taken as 0."""
    return np.abs(x)


def _share(chosen: Any, other: Any, dtype: Any) -> Any:
    """1 where `chosen` is the larger one, 1/2 where both are equal."""
    return ((chosen > other) + 0.5 * (chosen == other)).astype(dtype)


@differentiable(
    "x y",
    fit=fit,
    x=("x y", lambda g, s: g * _share(plain(s.x), plain(s.y), g.dtype)),
    y=("x y", lambda g, s: g * _share(plain(s.y), plain(s.x), g.dtype)),
)
def maximum(x: Any, y: Any) -> Any:
    """The larger one of x and y; where they are equal, each gets half of the gradient."""
    return np.maximum(x, y)


@differentiable(
    "x y",
    fit=fit,
    x=("x y", lambda g, s: g * _share(-plain(s.x), -plain(s.y), g.dtype)),
    y=("x y", lambda g, s: g * _share(-plain(s.y), -plain(s.x), g.dtype)),
)
def minimum(x: Any, y: Any) -> Any:
    """The smaller one of x and y; where they are equal, each gets half of the gradient."""
    return np.minimum(x, y)


@differentiable(
    "condition x y",
    fit=fit,
    x=("condition", lambda g, s: where(s.condition, g, g.dtype.type(0))),
    y=("condition", lambda g, s: where(s.condition, g.dtype.type(0), g)),
)
def where(condition: Any, x: Any, y: Any) -> Any:
    """x where `condition` holds, y elsewhere; a NaN in the branch not taken stays out of the gradient."""
    return np.where(condition, x, y)


def _within(x: Any, low: Any, high: Any) -> Any:
    inside = np.ones_like(x, dtype=bool) if low is None else x >= low
    return inside if high is None else inside & (x <= high)


@differentiable("x", x=("x", lambda g, s: where(_within(plain(s.x), s.min, s.max), g, g.dtype.type(0))))
def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    """x limited to [min, max]; the slope is 1 inside and at both ends, 0 outside."""
    return np.clip(x, min, max)
