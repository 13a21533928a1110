"""Activation functions."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, array, elementwise, fractional, integer, is_fractional, number
from ._common import largest, plain, quiet, special
from .arithmetic import exp, square
from .selection import clip
from .shapes import narrow, sum, wide

# NumPy converts a Python number at every call, which takes longer than the maximum of a small array.
_ZEROS = {np.dtype(kind): np.zeros((), kind) for kind in ("float32", "float64")}
# Where exp(-x) and exp(-x*x) are 0: infinity is no different, but times 0 it would be NaN.
_FAR = 1000.0


# The output is positive or zero: as a boolean it is the slope, sooner than its sign is known.
@elementwise
@differentiable("x", x=("output", lambda g, s: g * plain(s.output).astype(bool).astype(g.dtype)))
def relu(x: Any) -> Any:
    """``max(x, 0)``; its slope at 0 is taken as 0.

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
    >>> x = np.array([-2.0, 0.0, 3.0])
    >>> F.relu(x).tolist(), grad(lambda x: F.sum(F.relu(x)))(x).tolist()
    ([0.0, 0.0, 3.0], [0.0, 0.0, 1.0])
    """
    return np.maximum(x, _ZEROS.get(x.dtype, 0) if type(x) is np.ndarray else 0)


@arguments(x=array, slope=number())
@differentiable("x", x=("x", lambda g, s: g * _leak(plain(s.x) > 0, s.slope, g.dtype)))
def leaky_relu(x: Any, slope: float = 0.01) -> Any:
    """x where positive, ``slope * x`` elsewhere.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    slope : float
        Factor of what is not positive.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.leaky_relu([-2.0, 3.0], slope=0.1).tolist()
    [-0.2, 3.0]
    """
    # The larger of two needs no guess of which of them comes next, which `where` gets wrong every other time.
    y = np.maximum(x, slope * x) if 0 < slope <= 1 else np.where(x > 0, x, slope * x)
    return narrow(y, x.dtype) if is_fractional(x.dtype) else y


def _leak(positive: Any, slope: float, dtype: Any) -> Any:
    """1 where positive, `slope` elsewhere."""
    if 0 <= slope <= 1:
        return np.maximum(positive.astype(dtype), dtype.type(slope))
    return np.where(positive, 1, slope).astype(dtype)


@elementwise
@differentiable("x", x=("output", lambda g, s: g * (s.output * (1 - s.output))))
def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))`` without overflow.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.sigmoid([-1000.0, 0.0, 1000.0]).tolist()
    [0.0, 0.5, 1.0]
    """
    return _sigmoid(x)


def _sigmoid(x: Any) -> Any:
    # The infinite power of a very negative x gives the right 0.
    with np.errstate(over="ignore", under="ignore"):
        return 1 / (1 + np.exp(-_signed(x)))


@elementwise
@differentiable("x", x=("x", lambda g, s: g * sigmoid(s.x)))
@quiet
def softplus(x: Any) -> Any:
    """``log(1 + exp(x))`` without overflow.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.softplus([-1000.0, 0.0, 1000.0]).round(4).tolist()
    [0.0, 0.6931, 1000.0]
    """
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(_signed(x))))


def _signed(x: Any) -> Any:
    """x, as float64 where its dtype has no negative numbers, or one more of them than positive ones."""
    return x if x.dtype.kind in "fcV" else x.astype(np.float64)


@quiet
def _silu_slope(g: Any, s: Any) -> Any:
    share = sigmoid(s.x)
    return g * (share * (1 + clip(s.x, -_FAR, _FAR) * (1 - share)))


@elementwise
@differentiable("x", x=("x", _silu_slope))
@quiet
def silu(x: Any) -> Any:
    """``x * sigmoid(x)``.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.silu([-2.0, 0.0, 2.0]).round(4).tolist()
    [-0.2384, 0.0, 1.7616]
    """
    x = _signed(x)
    return narrow(np.maximum(x, -_FAR) * _sigmoid(x), x.dtype)


@quiet
def _bell(g: Any, s: Any) -> Any:
    return g * exp(-square(s.x)) * (2 / math.sqrt(math.pi))


@elementwise
@differentiable("x", x=("x", _bell))
@quiet
def erf(x: Any) -> Any:
    """The error function, ``2/sqrt(pi)`` times the integral of ``exp(-t**2)`` from 0 to x.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give floats.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.erf([-1.0, 0.0, 1.0]).round(4).tolist()
    [-0.8427, 0.0, 0.8427]
    """
    return _erf(x)


def _erf(x: Any) -> Any:
    """SciPy knows no 16-bit numbers, or gives others back."""
    return narrow(special(x).erf(wide(x)), x.dtype) if x.dtype.kind in "fV" else special(x).erf(x)


@quiet
def _gelu_slope(g: Any, s: Any) -> Any:
    x = s.x
    density = exp(-0.5 * square(x)) * (1 / math.sqrt(2 * math.pi))
    return g * (0.5 * (1 + erf(x * math.sqrt(0.5))) + clip(x, -_FAR, _FAR) * density)


@elementwise
@differentiable("x", x=("x", _gelu_slope))
@quiet
def gelu(x: Any) -> Any:
    """x times the normal distribution function: ``x * (1 + erf(x/sqrt(2))) / 2``, without approximation.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.gelu([-1.0, 0.0, 1.0]).round(4).tolist()
    [-0.1587, 0.0, 0.8413]
    """
    x = _signed(x)
    return narrow(0.5 * np.maximum(x, -_FAR) * (1 + _erf(x * math.sqrt(0.5))), x.dtype)


@quiet
def _softmax_slope(g: Any, s: Any) -> Any:
    return s.output * (g - sum(g * s.output, s.axis, keepdims=True))


@arguments(x=fractional, axis=integer())
@differentiable("x", x=("output", _softmax_slope))
@quiet
def softmax(x: Any, axis: int = -1) -> Any:
    """Exponentials that sum to 1 along `axis`.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int
        The axis of the classes; the last by default.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.softmax([[0.0, 0.0], [1000.0, 0.0]], axis=1).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    values = wide(x)
    powers = np.exp(values - largest(values, axis))
    powers /= powers.sum(axis=axis, keepdims=True)
    return narrow(powers, x.dtype)


@quiet
def _log_softmax_slope(g: Any, s: Any) -> Any:
    return g - exp(s.output) * sum(g, s.axis, keepdims=True)


@arguments(x=fractional, axis=integer())
@differentiable("x", x=("output", _log_softmax_slope))
@quiet
def log_softmax(x: Any, axis: int = -1) -> Any:
    """Logarithm of `softmax`, exact where softmax is tiny.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int
        The axis of the classes; the last by default.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> from autodiff import functions as F
    >>> F.log_softmax([0.0, 1000.0]).tolist()
    [-1000.0, 0.0]
    """
    values = wide(x)
    shifted = values - largest(values, axis)
    return narrow(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)), x.dtype)
