"""Normalisation."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ..variable import Variable
from ._arguments import (
    arguments,
    array,
    as_parameters,
    each_integer,
    fractional,
    fractional_images,
    images,
    integer,
    number,
    optional,
)
from ._common import accumulator, library, normal_axes, plain
from .arithmetic import sqrt, square
from .borders import pad
from .joining import concatenate
from .reductions import centred
from .shapes import fit, narrow, reshape, wide

IMAGE = (0, 2, 3)


def _pair_of_arrays(function: str, argument: str, value: Any) -> tuple[Any, Any]:
    """Mean and variance."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise TypeError(f"{function}: {argument} must be a pair (mean, variance) of arrays, got {value!r}")
    return array(function, argument, value[0]), array(function, argument, value[1])


@arguments(x=fractional_images)
def channel_statistics(x: Any) -> tuple[Any, Any]:
    """Mean and (biased) variance of each channel of x (N, C, H, W), as (1, C, 1, 1).

    Those of 16-bit values are float32.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.

    Returns
    -------
    (array, array), each (1, C, 1, 1)
        Mean and variance.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> mean, variance = F.channel_statistics(np.array([1.0, 3.0]).reshape(2, 1, 1, 1))
    >>> mean.shape, mean.item(), variance.item()
    ((1, 1, 1, 1), 2.0, 1.0)
    """
    return _statistics(x, IMAGE)


def _statistics(x: Any, axes: tuple[int, ...], ranks: Any = None, count: float = 0) -> tuple[Any, Any]:
    if ranks is not None:
        centre = sum_over_ranks(wide(x).sum(axis=axes, keepdims=True), ranks) / count
        rest = wide(x) - centre
        return centre, sum_over_ranks((rest * rest).sum(axis=axes, keepdims=True), ranks) / count
    centre, rest = centred(x, axes)
    return centre, (rest * rest).mean(axis=axes, keepdims=True)


@differentiable("x", x=("", lambda g, s: sum_over_ranks(g, s.ranks)))
def sum_over_ranks(x: Any, ranks: Any) -> Any:
    """The sum of x over all ranks. Each rank's result depends on each rank's x, hence the same sum of g."""
    return ranks.sum(x)


def statistics_of_ranks(x: Any, ranks: Any) -> tuple[tuple[Any, Any], float]:
    """The `channel_statistics` of the images (N, C, H, W) of all ranks, and how many values a channel has."""
    size, channels, xp = x.size // max(x.shape[1], 1), x.shape[1], library(x)
    own = xp.zeros((2 * channels + 1,), np.float64)
    own[-1] = size
    if size:
        centre, variance = _statistics(x, IMAGE)
        own[:channels], own[channels:-1] = centre.ravel(), variance.ravel()
    parts = ranks.all_gather(own, f"statistics of {channels} channels")
    sizes, means, variances = parts[:, -1:], parts[:, :channels], parts[:, channels:-1]
    count = float(sizes.sum())
    centre = (sizes * means).sum(axis=0) / max(count, 1)
    variance = (sizes * (variances + (means - centre) ** 2)).sum(axis=0) / max(count, 1)
    dtype = accumulator(x.dtype) or x.dtype
    centre, variance = (a.astype(dtype).reshape(1, -1, 1, 1) for a in (centre, variance))
    return (centre, variance), count


def _standardized(s: Any) -> tuple[Any, Any]:
    """x in standard units, and 1 over its standard deviation; from statistics at hand if x is plain."""
    known = s.statistics is not None and not isinstance(s.x, Variable)
    centre, variance = s.statistics if known else _statistics(s.x, s.axes, s.ranks, s.count)
    inverse = 1 / sqrt(variance + s.epsilon)
    return (wide(s.x) - centre) * inverse, inverse


def _normalize_gradients(g: Any, s: Any, needs: tuple[bool, ...]) -> tuple:
    standard, inverse = _standardized(s)
    g = wide(g)
    gx = None
    if needs[0]:
        scaled = g * s.weight
        total = scaled.sum(axis=s.axes, keepdims=True)
        along = (scaled * standard).sum(axis=s.axes, keepdims=True)
        count = s.count or math.prod(s.shapes[0][i] for i in s.axes) or 1
        if s.ranks is not None:
            both = sum_over_ranks(concatenate([total, along]), s.ranks)
            total, along = both[:1], both[1:]
        gx = (scaled - (total + standard * along) / count) * inverse
    return gx, fit(g * standard, s.shapes[1]), fit(g, s.shapes[2])


@arguments(
    x=array,
    weight=fractional,
    bias=fractional,
    axes=each_integer,
    epsilon=number(0),
    statistics=optional(_pair_of_arrays),
)
def normalize(
    x: Any, weight: Any, bias: Any, *, axes: tuple[int, ...], epsilon: float = 1e-5, statistics: Any = None
) -> Any:
    """x brought to mean 0 and variance 1 over `axes`, then scaled and shifted.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    weight, bias : array
        Scale and shift, of shapes that broadcast to that of x, and one floating-point dtype.
    axes : tuple of int
        Each block of elements along these axes has a mean and a variance of its own.
    epsilon : float
        Added to the variance.
    statistics : (array, array), optional
        Mean and variance of the plain array of x, with ``keepdims``, where the caller has them already.

    Returns
    -------
    array
        The shape of x and its dtype; of integers, the dtype of `weight`.

    Raises
    ------
    TypeError
        If floating-point dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x = np.array([[1.0, 3.0], [0.0, 8.0]])
    >>> F.normalize(x, np.ones((1, 2)), np.zeros((1, 2)), axes=(1,), epsilon=0).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    x, weight, bias = as_parameters("normalize", x, weight=weight, bias=bias)
    return _normalize(x, weight, bias, normal_axes(axes, x.ndim), epsilon, statistics)


@differentiable("x weight bias", joint=("x weight", _normalize_gradients))
def _normalize(
    x: Any,
    weight: Any,
    bias: Any,
    axes: Any,
    epsilon: float,
    statistics: Any = None,
    ranks: Any = None,
    count: float = 0,
) -> Any:
    centre, variance = _statistics(x, axes) if statistics is None else statistics
    # Centred first: a large constant, scaled, would not cancel.
    y = wide(x) - centre
    y *= weight / np.sqrt(variance + epsilon)
    y += bias
    return narrow(y, x.dtype)


@arguments(
    x=images, weight=fractional, bias=fractional, epsilon=number(0), statistics=optional(_pair_of_arrays)
)
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

    Returns
    -------
    array, (N, C, H, W)
        The dtype of x; of integers, that of `weight`.

    Raises
    ------
    ValueError
        If shapes do not fit.
    TypeError
        If floating-point dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> F.batch_norm(x, np.array([1.0]), np.array([10.0]), epsilon=0).ravel().tolist()
    [9.0, 11.0]
    """
    return batch_norm_of_ranks(x, weight, bias, epsilon, statistics)


def batch_norm_of_ranks(
    x: Any, weight: Any, bias: Any, epsilon: float, statistics: Any, ranks: Any = None, count: float = 0
) -> Any:
    """`batch_norm` of a batch that ranks have parts of, by its `statistics_of_ranks`; or of one's own."""
    x, weight, bias = as_parameters("batch_norm", x, weight=weight, bias=bias)
    weight, bias = _by_channel("batch_norm", x.shape[1], (1, -1, 1, 1), weight=weight, bias=bias)
    return _normalize(x, weight, bias, IMAGE, epsilon, statistics, ranks, count)


def _by_channel(function: str, channels: int, shape: tuple[int, ...], **values: Any) -> list[Any]:
    """Arrays (C,) in another shape."""
    for name, value in values.items():
        if tuple(value.shape) != (channels,):
            raise ValueError(
                f"{function}: {name} must have shape (C,) = {(channels,)}, got {tuple(value.shape)}"
            )
    return [value.reshape(shape) for value in values.values()]


@arguments(x=array, groups=integer(1), weight=fractional, bias=fractional, epsilon=number(0))
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

    Returns
    -------
    array
        The shape of x and its dtype; of integers, the dtype of `weight`.

    Raises
    ------
    ValueError
        If shapes do not fit, or `groups` does not divide C.
    TypeError
        If floating-point dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x = np.array([1.0, 3.0, 10.0, 30.0]).reshape(1, 4, 1, 1)
    >>> F.group_norm(x, 2, np.ones(4), np.zeros(4), epsilon=0).ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    if x.ndim < 2:
        raise ValueError(f"group_norm: x must have shape (N, C, ...), got {tuple(x.shape)}")
    x, weight, bias = as_parameters("group_norm", x, weight=weight, bias=bias)
    n, c, *extent = x.shape
    if c % groups:
        raise ValueError(f"group_norm: groups must divide the {c} channels, got {groups}")
    grouped = reshape(x, (n, groups, c // groups, *extent))
    shape = (1, groups, c // groups, *(1 for _ in extent))
    weight, bias = _by_channel("group_norm", c, shape, weight=weight, bias=bias)
    y = _normalize(grouped, weight, bias, tuple(range(2, grouped.ndim)), epsilon)
    return reshape(y, x.shape)


@arguments(x=images, mean=array, variance=array, weight=fractional, bias=fractional, epsilon=number(0))
def affine(x: Any, mean: Any, variance: Any, weight: Any, bias: Any, *, epsilon: float = 1e-5) -> Any:
    """``(x - mean)/sqrt(variance + epsilon) * weight + bias`` per channel, with given statistics.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.
    mean, variance : array, (C,)
        The statistics, which are constants: they have no gradient.
    weight, bias : array, (C,)
        Scale and shift of each channel.
    epsilon : float
        Added to the variance.

    Returns
    -------
    array, (N, C, H, W)
        The dtype of x; of integers, that of `weight`.

    Raises
    ------
    ValueError
        If shapes do not fit.
    TypeError
        If floating-point dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x, mean, variance = np.full((1, 1, 1, 2), 7.0), np.array([1.0]), np.array([4.0])
    >>> F.affine(x, mean, variance, np.array([2.0]), np.array([0.5]), epsilon=0).tolist()
    [[[[6.5, 6.5]]]]
    """
    x, weight, bias = as_parameters("affine", x, weight=weight, bias=bias)
    mean, variance, weight, bias = _by_channel(
        "affine", x.shape[1], (1, -1, 1, 1), mean=mean, variance=variance, weight=weight, bias=bias
    )
    scale = weight / sqrt(plain(variance) + epsilon)
    return narrow(x * scale + (bias - plain(mean) * scale), x.dtype)


@arguments(x=fractional, size=integer(1), alpha=number(0), beta=number(0), k=number(above=0))
def local_response_norm(
    x: Any, size: int, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """Each element divided by a power of the mean square of its neighbours along the channels.

    ``y[n,c,...] = x[n,c,...] / (k + alpha/size * sum_d x[n,d,...]**2)**beta`` with d from ``c - size//2`` to
    ``c + (size - 1)//2``, as far as there are channels (Krizhevsky et al., 2012, whose alpha is that of here
    divided by `size`).

    Parameters
    ----------
    x : array, (N, C, ...)
        The input.
    size : int
        Channels that are summed.
    alpha, beta, k : float
        Of the formula.

    Returns
    -------
    array, (N, C, ...)
        Floats keep their dtype, integers give float64.

    Raises
    ------
    ValueError
        If x has less than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x = np.ones((1, 3, 1, 1))
    >>> F.local_response_norm(x, 3, alpha=3.0, beta=1.0).ravel().round(4).tolist()
    [0.3333, 0.25, 0.3333]
    """
    if x.ndim < 2:
        raise ValueError(f"local_response_norm: x must have shape (N, C, ...), got {tuple(x.shape)}")
    channels, margin = x.shape[1], [(0, 0)] * x.ndim
    margin[1] = size // 2, (size - 1) // 2
    values = wide(x)
    squares = pad(square(values), margin)
    total = squares[:, :channels]
    for first in range(1, size):
        total = total + squares[:, first : first + channels]
    return narrow(values / (total * (alpha / size) + k) ** beta, x.dtype)
