"""Activation functions."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ._common import plain, special
from .arithmetic import exp, multiply, square
from .shapes import sum

# NumPy converts a Python number at every call, which takes longer than the maximum of a small array.
_ZEROS = {np.dtype(kind): np.zeros((), kind) for kind in ("float32", "float64")}


# The output is positive or zero: as a boolean it is the slope, sooner than its sign is known.
@differentiable("x", x=("output", lambda g, s: g * plain(s.output).astype(bool).astype(g.dtype)))
def relu(x: Any) -> Any:
    """``max(x, 0)``; its slope at 0 is taken as 0."""
    return np.maximum(x, _ZEROS.get(x.dtype, 0) if type(x) is np.ndarray else 0)


@differentiable("x", x=("x", lambda g, s: g * np.where(plain(s.x) > 0, 1, s.slope).astype(g.dtype)))
def leaky_relu(x: Any, slope: float = 0.01) -> Any:
    """x where positive, ``slope * x`` elsewhere."""
    return np.where(x > 0, x, slope * x)


@differentiable("x", x=("output", lambda g, s: g * (s.output * (1 - s.output))))
def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))`` without overflow."""
    with np.errstate(over="ignore"):  # the infinite power of a very negative x gives the right 0
        powers = np.exp(-x)
    return 1 / (1 + powers)


@differentiable("x", x=("x", lambda g, s: g * sigmoid(s.x)))
def softplus(x: Any) -> Any:
    """``log(1 + exp(x))`` without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def silu(x: Any) -> Any:
    """``x * sigmoid(x)``."""
    return multiply(x, sigmoid(x))


@differentiable("x", x=("x", lambda g, s: g * exp(-square(s.x)) * (2 / math.sqrt(math.pi))))
def erf(x: Any) -> Any:
    """The error function, ``2/sqrt(pi)`` times the integral of ``exp(-t**2)`` from 0 to x."""
    return special(x).erf(x)


def _gelu_slope(x: Any) -> Any:
    return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * exp(-0.5 * square(x)) * (1 / math.sqrt(2 * math.pi))


@differentiable("x", x=("x", lambda g, s: g * _gelu_slope(s.x)))
def gelu(x: Any) -> Any:
    """x times the normal distribution function: ``x * (1 + erf(x/sqrt(2))) / 2``, without approximation."""
    return 0.5 * x * (1 + special(x).erf(x * math.sqrt(0.5)))


@differentiable("x", x=("output", lambda g, s: s.output * (g - sum(g * s.output, s.axis, keepdims=True))))
def softmax(x: Any, axis: int = -1) -> Any:
    """Exponentials that sum to 1 along `axis`."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=axis, keepdims=True)


@differentiable("x", x=("output", lambda g, s: g - exp(s.output) * sum(g, s.axis, keepdims=True)))
def log_softmax(x: Any, axis: int = -1) -> Any:
    """Logarithm of `softmax`, exact where softmax is tiny."""
    shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
