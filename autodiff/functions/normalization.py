"""Normalisation."""

import math
from typing import Any

from ..function import differentiable
from ..variable import Variable
from ._common import plain
from .arithmetic import sqrt, square
from .reductions import mean
from .shapes import reshape, sum

IMAGE = (0, 2, 3)


def channel_statistics(x: Any) -> tuple[Any, Any]:
    """Mean and (biased) variance of each channel of x (N, C, H, W), as (1, C, 1, 1)."""
    centre = mean(x, IMAGE, keepdims=True)
    return centre, mean(square(x - centre), IMAGE, keepdims=True)


def _standardized(s: Any) -> tuple[Any, Any]:
    """x in standard units, and 1 over its standard deviation; from statistics at hand if x is plain."""
    known = s.statistics is not None and not isinstance(s.x, Variable)
    centre, variance = s.statistics if known else channel_statistics(s.x)
    inverse = 1 / sqrt(variance + s.epsilon)
    return (s.x - centre) * inverse, inverse


def _batch_norm_gradients(g: Any, s: Any, needs: tuple[bool, ...]) -> tuple:
    standard, inverse = _standardized(s)
    total, along = sum(g, IMAGE, keepdims=True), sum(g * standard, IMAGE, keepdims=True)
    gx = None
    if needs[0]:
        count = math.prod(s.shapes[0][i] for i in IMAGE) or 1
        gx = (g - (total + standard * along) / count) * (inverse * reshape(s.weight, (1, -1, 1, 1)))
    return gx, reshape(along, s.shapes[1]), reshape(total, s.shapes[2])


@differentiable("x weight bias", joint=("x weight", _batch_norm_gradients))
def batch_norm(x: Any, weight: Any, bias: Any, *, epsilon: float = 1e-5, statistics: Any = None) -> Any:
    """Each channel of x (N, C, H, W) brought to mean 0 and variance 1, then scaled and shifted.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    weight, bias : array, (C,)
        Scale and shift of each channel.
    epsilon : float
        Added to the variance.
    statistics : (array, array), optional
        ``channel_statistics`` of the plain array of x, where the caller has them already.
    """
    centre, variance = channel_statistics(x) if statistics is None else statistics
    scale = weight.reshape((1, -1, 1, 1)) / sqrt(variance + epsilon)
    return x * scale + (bias.reshape((1, -1, 1, 1)) - centre * scale)


def affine(x: Any, mean: Any, variance: Any, weight: Any, bias: Any, *, epsilon: float = 1e-5) -> Any:
    """``(x - mean)/sqrt(variance + epsilon) * weight + bias`` per channel, with given statistics."""
    scale = weight / sqrt(plain(variance) + epsilon)
    return x * reshape(scale, (1, -1, 1, 1)) + reshape(bias - plain(mean) * scale, (1, -1, 1, 1))
