"""Reductions over axes; `sum` is in shapes.py, beside broadcasting."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ._common import kept_shape, normal_axes, plain
from .arithmetic import square
from .shapes import broadcast_to, reshape


def _count(shape: tuple[int, ...], axis: Any) -> int:
    return math.prod(shape[a] for a in normal_axes(axis, len(shape)))


def _spread(g: Any, s: Any) -> Any:
    """The gradient of a reduction as if it had kept its axes, at the shape of the argument."""
    return broadcast_to(reshape(g, kept_shape(s.shapes[0], s.axis)), s.shapes[0])


@differentiable("x", x=("", lambda g, s: _spread(g / _divisor(s.shapes[0], s.axis), s)))
def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Mean over `axis`, an int or tuple; over everything by default."""
    return x.mean(axis=axis, keepdims=keepdims)


def _divisor(shape: tuple[int, ...], axis: Any) -> int:
    """Number of elements reduced, at least 1: the gradient of an empty mean is empty."""
    return _count(shape, axis) or 1


def _extreme(g: Any, s: Any) -> Any:
    """The gradient shared equally by the elements that attain the extreme."""
    hit = plain(s.x) == plain(s.output).reshape(kept_shape(s.shapes[0], s.axis))
    share = hit / hit.sum(axis=s.axis, keepdims=True)
    return _spread(g, s) * share.astype(g.dtype)


@differentiable("x", x=("x output", _extreme))
def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Maximum over `axis`; elements that share it share the gradient equally."""
    return x.max(axis=axis, keepdims=keepdims)


@differentiable("x", x=("x output", _extreme))
def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Minimum over `axis`; elements that share it share the gradient equally."""
    return x.min(axis=axis, keepdims=keepdims)


def var(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Any:
    """Variance over `axis`, divided by the number of elements minus `ddof`."""
    scale = _count(x.shape, axis) / np.maximum(_count(x.shape, axis) - ddof, 0)
    return mean(square(x - mean(x, axis, keepdims=True)), axis, keepdims) * float(scale)
