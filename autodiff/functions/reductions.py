"""Reductions over axes; `sum` is in shapes.py, beside broadcasting."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ..variable import Variable
from ._arguments import arguments, array, axes, flag, fractional, integer, optional
from ._common import accumulator, kept_shape, largest, library, normal_axes, plain, quiet
from .arithmetic import exp, multiply, sqrt
from .joining import concatenate
from .selection import where
from .shapes import astype, broadcast_to, flip, moveaxis, narrow, reshape, sum, wide


def _count(shape: tuple[int, ...], axis: Any) -> int:
    return math.prod(shape[a] for a in normal_axes(axis, len(shape)))


def _spread(g: Any, s: Any) -> Any:
    """The gradient of a reduction as if it had kept its axes, at the shape of the argument."""
    return broadcast_to(reshape(g, kept_shape(s.shapes[0], s.axis)), s.shapes[0])


def _shared(g: Any, count: int) -> Any:
    """``g / count``; in float32 where a 16-bit dtype could not hold the count."""
    return wide(g) / count


@arguments(x=array, axis=axes, keepdims=flag)
@differentiable("x", x=("", lambda g, s: _spread(_shared(g, _count(s.shapes[0], s.axis) or 1), s)))
def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Mean over `axis`, an int or tuple; over everything by default. 16 bits are added up in float32.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Along which; None: all.
    keepdims : bool
        Leave axes of length 1.

    Returns
    -------
    array
        The shape of x without `axis`; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.mean(np.arange(6.0).reshape(2, 3), axis=1, keepdims=True).tolist()
    [[1.0], [4.0]]
    """
    kind = accumulator(x.dtype)
    if kind is None:
        return x.mean(axis=axis, keepdims=keepdims)
    return x.mean(axis=axis, keepdims=keepdims, dtype=kind).astype(x.dtype)


def _extreme(g: Any, s: Any) -> Any:
    """The gradient shared equally by the elements that attain the extreme; NaN attains NaN."""
    x, extreme = plain(s.x), plain(s.output).reshape(kept_shape(s.shapes[0], s.axis))
    hit = (x == extreme) | ((x != x) & (extreme != extreme))
    share = hit / hit.sum(axis=s.axis, keepdims=True)
    return _spread(g, s) * share.astype(g.dtype)


@arguments(x=array, axis=axes, keepdims=flag)
@differentiable("x", x=("x output", _extreme))
def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Maximum over `axis`; elements that share it share the gradient equally.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Along which; None: all.
    keepdims : bool
        Leave axes of length 1.

    Returns
    -------
    array
        The shape of x without `axis`; the dtype of x.

    Raises
    ------
    ValueError
        If there are no elements.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([1.0, 5.0, 5.0])
    >>> float(F.max(x)), grad(F.max)(x).tolist()
    (5.0, [0.0, 0.5, 0.5])
    """
    return x.max(axis=axis, keepdims=keepdims)


@arguments(x=array, axis=axes, keepdims=flag)
@differentiable("x", x=("x output", _extreme))
def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Minimum over `axis`; elements that share it share the gradient equally.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Along which; None: all.
    keepdims : bool
        Leave axes of length 1.

    Returns
    -------
    array
        The shape of x without `axis`; the dtype of x.

    Raises
    ------
    ValueError
        If there are no elements.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([1.0, 1.0, 5.0])
    >>> float(F.min(x)), grad(F.min)(x).tolist()
    (1.0, [0.5, 0.5, 0.0])
    """
    return x.min(axis=axis, keepdims=keepdims)


def centred(x: Any, axis: Any) -> tuple[Any, Any]:
    """The mean over `axis`, which is kept with length 1, and x less this mean: exactly 0 where x is constant.

    Both are float32 for 16-bit values.
    """
    x = wide(x)
    # Here and in the rules of normalisation methods take the place of functions: checks cost small arrays as
    # much as sums.
    centre = _mean_of_large(x, axis)
    # The mean of a constant may be off by a rounding: what is left over is small, and its mean nearly exact.
    rest = x - centre
    centre = centre + rest.mean(axis=axis, keepdims=True)
    if isinstance(rest, Variable):
        return centre, x - centre
    # In the memory that is there: it takes longer to get new memory than to compute.
    return centre, np.subtract(x, centre, out=rest) if rest.ndim else x - centre


def _mean_of_large(x: Any, axis: Any) -> Any:
    with np.errstate(over="ignore"):
        centre = x.mean(axis=axis, keepdims=True)
    # Perhaps only the sum is too large. On a device, looking would mean waiting.
    if library(plain(x)) is np and not np.isfinite(plain(centre)).all():
        centre = sum(x * (1 / (_count(x.shape, axis) or 1)), axis, keepdims=True)
    return centre


def _divisor(shape: tuple[int, ...], axis: Any, ddof: int) -> float:
    """What the sum of squares is divided by; NaN where nothing is left."""
    count = _count(shape, axis) - ddof
    return count if count > 0 else math.nan


def _var_slope(g: Any, s: Any) -> Any:
    _, rest = centred(s.x, s.axis)
    return _spread(wide(g) * (2 / _divisor(s.shapes[0], s.axis, s.ddof)), s) * rest


@arguments(x=fractional, axis=axes, keepdims=flag, ddof=integer(0))
@differentiable("x", x=("x", _var_slope))
def var(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Any:
    """Variance over `axis`, divided by the number of elements minus `ddof`.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Along which; None: all.
    keepdims : bool
        Leave axes of length 1.
    ddof : int
        What is taken off the number of elements: 1 for the unbiased estimate.

    Returns
    -------
    array
        The shape of x without `axis`; floats keep their dtype, integers give float64. NaN where nothing is
        left.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> float(F.var(np.array([1.0, 3.0]))), float(F.var(np.array([1.0, 3.0]), ddof=1))
    (1.0, 2.0)
    """
    _, rest = centred(x, axis)
    total = np.square(rest).sum(axis=axis, keepdims=keepdims)
    return narrow(total / _divisor(x.shape, axis, ddof), x.dtype)


@arguments(x=fractional, axis=axes, keepdims=flag, ddof=integer(0))
def std(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Any:
    """Standard deviation, the root of `var`; its slope is taken as 0 where all elements are equal.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Along which; None: all.
    keepdims : bool
        Leave axes of length 1.
    ddof : int
        What is taken off the number of elements: 1 for the unbiased estimate.

    Returns
    -------
    array
        The shape of x without `axis`; floats keep their dtype, integers give float64. NaN where nothing is
        left.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> float(F.std(np.array([1.0, 3.0]))), float(F.std(np.array([1.0, 3.0]), ddof=1).round(4))
    (1.0, 1.4142)
    """
    return root(var(x, axis, keepdims, ddof))


def root(x: Any) -> Any:
    """Square root whose slope at 0 is taken as 0."""
    zero, one = plain(x) == 0, x.dtype.type(1)
    return where(zero, 0 * one, sqrt(where(zero, one, x)))


@arguments(x=array, axis=axes, keepdims=flag)
def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Product over `axis`, an int or tuple; over everything by default.

    Its slopes are exact where elements are 0, too. 16-bit values are multiplied in float32.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Along which; None: all.
    keepdims : bool
        Leave axes of length 1.

    Returns
    -------
    array
        The shape of x without `axis`; floats keep their dtype, integers give int64 or uint64.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([2.0, 0.0, 3.0])
    >>> float(F.prod(x)), grad(F.prod)(x).tolist()
    (0.0, [0.0, 6.0, 0.0])
    """
    if x.dtype.kind in "biu":
        x = astype(x, np.uint64 if x.dtype.kind == "u" else np.int64)  # as NumPy adds up and multiplies
    gone = normal_axes(axis, x.ndim)
    result = wide(x)
    if gone:
        result = moveaxis(result, gone, tuple(range(len(gone))))
        result = _halved(reshape(result, (_count(x.shape, gone), *result.shape[len(gone) :])))
    result = narrow(result, x.dtype)
    return reshape(result, kept_shape(x.shape, gone) if keepdims else result.shape)


def _halved(factors: Any) -> Any:
    """Product over the first axis, half by half: the slope by one factor is the product of all others."""
    if not len(factors):
        return factors.sum(0) + factors.dtype.type(1)
    while (count := len(factors)) > 1:
        half = count // 2
        pairs = multiply(factors[:half], factors[half : 2 * half])
        factors = pairs if count % 2 == 0 else concatenate([pairs, factors[2 * half :]])
    return factors[0]


@arguments(x=array, axis=optional(integer()))
def cumsum(x: Any, axis: int | None = None) -> Any:
    """Sums of all elements up to each one along `axis`; without `axis`, of x as one row.

    16-bit values are added up in float32.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int, optional
        Along which; None: x as one row.

    Returns
    -------
    array
        The shape of x, with the dtype that NumPy gives it; one row for None.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.cumsum(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1).tolist()
    [[1.0, 3.0], [3.0, 7.0]]
    """
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    return _cumsum(x, axis)


@differentiable("x", x=("", lambda g, s: flip(_cumsum(flip(g, s.axis), s.axis), s.axis)))
def _cumsum(x: Any, axis: int) -> Any:
    kind = accumulator(x.dtype)
    return x.cumsum(axis=axis) if kind is None else x.cumsum(axis=axis, dtype=kind).astype(x.dtype)


@quiet
def _logsumexp_slope(g: Any, s: Any) -> Any:
    x = wide(s.x)
    # The exponent must not have the rounding of a 16-bit output.
    level = logsumexp(x, s.axis, True) if x is not s.x else reshape(s.output, kept_shape(x.shape, s.axis))
    # An infinite sum belongs to the elements that are infinite; a sum of nothing to nobody.
    top = plain(level)
    endless = np.isinf(top)
    hit = (plain(x) == top) & (top > 0)
    share = hit / np.maximum(hit.sum(axis=s.axis, keepdims=True), 1)
    zero = x.dtype.type(0)
    finite = exp(where(endless, zero, x) - where(endless, zero, level))
    return _spread(g, s) * where(endless, share.astype(x.dtype), finite)


@arguments(x=fractional, axis=axes, keepdims=flag)
@differentiable("x", x=("x output", _logsumexp_slope))
@quiet
def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """``log(sum(exp(x)))`` over `axis`, an int or tuple, without overflow; over everything by default.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Along which; None: all.
    keepdims : bool
        Leave axes of length 1.

    Returns
    -------
    array
        The shape of x without `axis`; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> float(F.logsumexp(np.array([1000.0, 1000.0])).round(4))
    1000.6931
    """
    values = wide(x)
    top = largest(values, axis)
    top = np.where(np.isinf(top), 0, top).astype(values.dtype)
    with np.errstate(divide="ignore", over="ignore"):  # the logarithm of no probability at all is -inf
        level = np.log(np.exp(values - top).sum(axis=axis, keepdims=True)) + top
    return narrow(level if keepdims else level.reshape(_reduced(x.shape, axis)), x.dtype)


def _reduced(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    gone = normal_axes(axis, len(shape))
    return tuple(size for i, size in enumerate(shape) if i not in gone)
