"""Normalisation."""

import math
from typing import Any

from ..function import differentiable
from ..variable import Variable
from ._common import plain
from .arithmetic import sqrt, square
from .reductions import mean
from .shapes import fit, reshape, sum

IMAGE = (0, 2, 3)


def channel_statistics(x: Any) -> tuple[Any, Any]:
    """Mean and (biased) variance of each channel of x (N, C, H, W), as (1, C, 1, 1)."""
    return _statistics(x, IMAGE)


def _statistics(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    centre = mean(x, axes, keepdims=True)
    return centre, mean(square(x - centre), axes, keepdims=True)


def _standardized(s: Any) -> tuple[Any, Any]:
    """x in standard units, and 1 over its standard deviation; from statistics at hand if x is plain."""
    known = s.statistics is not None and not isinstance(s.x, Variable)
    centre, variance = s.statistics if known else _statistics(s.x, s.axes)
    inverse = 1 / sqrt(variance + s.epsilon)
    return (s.x - centre) * inverse, inverse


def _normalize_gradients(g: Any, s: Any, needs: tuple[bool, ...]) -> tuple:
    standard, inverse = _standardized(s)
    gx = None
    if needs[0]:
        scaled = g * s.weight
        total = sum(scaled, s.axes, keepdims=True)
        along = sum(scaled * standard, s.axes, keepdims=True)
        count = math.prod(s.shapes[0][i] for i in s.axes) or 1
        gx = (scaled - (total + standard * along) / count) * inverse
    return gx, fit(g * standard, s.shapes[1]), fit(g, s.shapes[2])


@differentiable("x weight bias", joint=("x weight", _normalize_gradients))
def normalize(
    x: Any, weight: Any, bias: Any, *, axes: tuple[int, ...], epsilon: float = 1e-5, statistics: Any = None
) -> Any:
    """x brought to mean 0 and variance 1 over `axes`, then scaled and shifted.

    Parameters
    ----------
    x : array
        The input.
    weight, bias : array
        Scale and shift, broadcast to x.
    axes : tuple of int
        Each block of elements along these axes has a mean and a variance of its own.
    epsilon : float
        Added to the variance.
    statistics : (array, array), optional
        Mean and variance of the plain array of x, with ``keepdims``, where the caller has them already.
    """
    centre, variance = _statistics(x, axes) if statistics is None else statistics
    scale = weight / sqrt(variance + epsilon)
    return x * scale + (bias - centre * scale)


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
    weight, bias = (reshape(v, (1, -1, 1, 1)) for v in (weight, bias))
    return normalize(x, weight, bias, axes=IMAGE, epsilon=epsilon, statistics=statistics)


def group_norm(x: Any, groups: int, weight: Any, bias: Any, *, epsilon: float = 1e-5) -> Any:
    """Each group of channels of each image of x brought to mean 0 and variance 1, then scaled and shifted.

    Parameters
    ----------
    x : array, (N, C, ...)
        The input.
    groups : int
        Number of groups, which divides C. One group is layer normalisation of the whole image, C groups are
        instance normalisation.
    weight, bias : array, (C,)
        Scale and shift of each channel.
    epsilon : float
        Added to the variance.
    """
    n, c, *extent = x.shape
    if groups < 1 or c % groups:
        raise ValueError(f"group_norm: groups must divide the {c} channels, got {groups}")
    grouped = reshape(x, (n, groups, c // groups, *extent))
    shape = (1, groups, c // groups, *(1 for _ in extent))
    weight, bias = (reshape(v, shape) for v in (weight, bias))
    y = normalize(grouped, weight, bias, axes=tuple(range(2, grouped.ndim)), epsilon=epsilon)
    return reshape(y, x.shape)


def affine(x: Any, mean: Any, variance: Any, weight: Any, bias: Any, *, epsilon: float = 1e-5) -> Any:
    """``(x - mean)/sqrt(variance + epsilon) * weight + bias`` per channel, with given statistics."""
    scale = weight / sqrt(plain(variance) + epsilon)
    return x * reshape(scale, (1, -1, 1, 1)) + reshape(bias - plain(mean) * scale, (1, -1, 1, 1))
