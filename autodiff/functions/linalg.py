"""Linear algebra under the names of `numpy.linalg`: `norm`, `solve`, `inv`."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, axes, flag, fractional, number
from ._common import kept_shape, library, normal_axes, plain
from .arithmetic import abs, over, power
from .linear_algebra import matmul
from .reductions import max, min
from .selection import where
from .shapes import expand_dims, fit, narrow, reshape, squeeze, sum, swapaxes, wide


def _order(function: str, argument: str, value: Any) -> Any:
    if value is None or (isinstance(value, str | float) and value in ("fro", math.inf, -math.inf)):
        return value
    return number(above=0)(function, argument, value)


@arguments(x=fractional, ord=_order, axis=axes, keepdims=flag)
def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Length of vectors, or size of matrices; the slope of a length at 0 is taken as 0.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    ord : positive number, inf, -inf or "fro", optional
        Of vectors, ``sum(abs(x)**ord)**(1/ord)``: 2 by default, the length; inf is the largest of the
        absolute values, -inf the least. Of matrices, "fro" is the default, the root of the sum of squares;
        1 is the largest sum of a column, inf of a row; those that need singular values are not here.
    axis : int or (int, int), optional
        An axis makes x vectors along it, two make it matrices. By default x is one vector or matrix, and
        without `ord` one vector whatever its shape.
    keepdims : bool
        Leave axes of length 1.

    Returns
    -------
    array
        The shape of x without `axis`; floats keep their dtype, integers give float64.

    Raises
    ------
    ValueError
        If `ord` is none of vectors or matrices, as `axis` says which, or more than two axes go with one.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([3.0, 4.0])
    >>> float(F.linalg.norm(x)), grad(F.linalg.norm)(x).tolist()
    (5.0, [0.6, 0.8])
    """
    gone = normal_axes(axis, x.ndim)
    if len(gone) > 2 and not (axis is None and ord is None):
        raise ValueError(
            f"norm: axis must be one axis or two where ord is given, got axis {axis}, ord {ord!r}"
        )
    if ord is None or (len(gone) == 1 and ord == 2) or (len(gone) == 2 and ord == "fro"):
        return _length(x, gone, keepdims)
    if len(gone) == 2:
        return _of_matrices(x, ord, gone, keepdims)
    if ord == "fro" or not gone:
        raise ValueError(f"norm: ord {ord!r} is not one for x of {len(gone)} axes")
    if ord == math.inf:
        return max(abs(x), gone, keepdims)
    if ord == -math.inf:
        return min(abs(x), gone, keepdims)
    if ord == 1:
        return sum(abs(x), gone, keepdims)
    total = sum(power(abs(x), ord), gone, keepdims)
    zero = plain(total) == 0
    return narrow(
        where(zero, total.dtype.type(0), power(where(zero, total.dtype.type(1), total), 1 / ord)), x.dtype
    )


def _of_matrices(x: Any, ord: Any, gone: tuple[int, ...], keepdims: bool) -> Any:
    if ord not in (1, math.inf, -math.inf):
        raise ValueError(f"norm: ord of matrices must be 'fro', 1, inf or -inf, got {ord!r}")
    rows, columns = gone
    added, left = (rows, columns) if ord == 1 else (columns, rows)
    extreme = min if ord == -math.inf else max
    result = extreme(sum(abs(x), added, keepdims=True), left, keepdims=True)
    return result if keepdims else squeeze(result, gone)


def _length_slope(g: Any, s: Any) -> Any:
    shape = kept_shape(s.shapes[0], s.axis)
    return over(s.x, reshape(s.output, shape)) * reshape(g, shape)


@differentiable("x", x=("x output", _length_slope))
def _length(x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return narrow(np.sqrt(np.square(wide(x)).sum(axis=axis, keepdims=keepdims)), x.dtype)


def _columns(x: Any, shape: tuple[int, ...]) -> Any:
    """x as columns where the right-hand side, of this shape, is one vector."""
    return expand_dims(x, -1) if len(shape) == 1 else x


def _solve_a(g: Any, s: Any) -> Any:
    back = solve(swapaxes(s.a, -1, -2), _columns(g, s.shapes[1]))
    return fit(-matmul(back, swapaxes(_columns(s.output, s.shapes[1]), -1, -2)), s.shapes[0])


def _solve_b(g: Any, s: Any) -> Any:
    back = solve(swapaxes(s.a, -1, -2), _columns(g, s.shapes[1]))
    return fit(squeeze(back, -1) if len(s.shapes[1]) == 1 else back, s.shapes[1])


@arguments(a=fractional, b=fractional)
@differentiable("a b", a=("a output", _solve_a), b=("a", _solve_b))
def solve(a: Any, b: Any) -> Any:
    """The x of ``a @ x = b``: a (..., M, M), b (M,) or (..., M, K) -> (..., M) or (..., M, K).

    Parameters
    ----------
    a : array, (..., M, M)
        The matrices; leading axes broadcast with those of b.
    b : array, (M,) or (..., M, K)
        One vector, or the columns of matrices.

    Returns
    -------
    array, (..., M) or (..., M, K)
        The solutions, with the wider one of both dtypes; integers give float64.

    Raises
    ------
    LinAlgError
        A ValueError: a is singular. On a device, where looking would mean waiting, the result is not
        finite.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.linalg.solve(np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([1.0, 1.0])).tolist()
    [0.5, 0.25]
    """
    xp, dtype, vector = library(a), np.result_type(a, b), b.ndim == 1
    a, b = wide(a), wide(_columns(b, b.shape))
    # Broadcast here, and with columns: libraries differ on what they take for a stack of vectors.
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    found = xp.linalg.solve(xp.broadcast_to(a, lead + a.shape[-2:]), xp.broadcast_to(b, lead + b.shape[-2:]))
    return narrow(found[..., 0] if vector else found, dtype)


def _inv_slope(g: Any, s: Any) -> Any:
    turned = swapaxes(s.output, -1, -2)
    return -matmul(matmul(turned, g), turned)


@arguments(a=fractional)
@differentiable("a", a=("output", _inv_slope))
def inv(a: Any) -> Any:
    """The inverse of a (..., M, M).

    Parameters
    ----------
    a : array, (..., M, M)
        The matrices.

    Returns
    -------
    array, (..., M, M)
        The inverses; floats keep their dtype, integers give float64.

    Raises
    ------
    LinAlgError
        A ValueError: a is singular. On a device, where looking would mean waiting, the result is not
        finite.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.linalg.inv(np.array([[2.0, 0.0], [0.0, 4.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    return narrow(library(a).linalg.inv(wide(a)), a.dtype)
