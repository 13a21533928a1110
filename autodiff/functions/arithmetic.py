"""Elementwise functions, with broadcasting, under their NumPy names."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import elementwise
from ._common import plain
from .selection import where
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
    >>> from autodiff import functions as F
    >>> F.divide([1.0, 9.0], 2).tolist()
    [0.5, 4.5]
    """
    return np.divide(x, y)


@elementwise
@differentiable("x", x=("", lambda g, s: -g))
def negative(x: Any) -> Any:
    """``-x``.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x, y : array or number
        Base and exponent: shapes that broadcast, of any dtype.

    Returns
    -------
    array
        The broadcast shape, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Angles in radians, of any shape.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Angles in radians, of any shape.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

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

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> grad(lambda x: F.sum(F.abs(x)))(np.array([-2.0, 0.0, 3.0])).tolist()
    [-1.0, 0.0, 1.0]
    """
    return np.abs(x)


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

    Parameters
    ----------
    x, y : array or number
        Ordinate and abscissa: shapes that broadcast, of any real dtype.

    Returns
    -------
    array
        Angles in radians, of the broadcast shape.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.arctan2([0.0, 1.0, 0.0], [1.0, 0.0, -1.0]).round(4).tolist()
    [0.0, 1.5708, 3.1416]
    """
    return np.arctan2(x, y)
