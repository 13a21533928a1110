"""Functions that move values without changing them, and `sum`, which is the adjoint of broadcasting."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ..variable import Variable
from ._arguments import arguments, array, axes, dtype, each_integer, flag, integer, is_fractional, optional
from ._arguments import shape as extents
from ._common import accumulator, kept_shape, library, normal_axes, plain


@arguments(x=array, shape=extents)
@differentiable("x", x=("", lambda g, s: reshape(g, s.shapes[0])))
def reshape(x: Any, shape: Any) -> Any:
    """`x` with another shape; one entry may be -1.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    shape : int or tuple of int
        As many elements as x; -1 stands for what is left.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    ValueError
        If the number of elements is another.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.reshape(np.ones((2, 6)), (3, -1)).shape
    (3, 4)
    """
    return x.reshape(shape)


@arguments(x=array, axes=optional(each_integer))
@differentiable(
    "x", x=("", lambda g, s: transpose(g, None if s.axes is None else _inverse(s.axes, len(s.axes))))
)
def transpose(x: Any, axes: Any = None) -> Any:
    """`x` with its axes in the order `axes`, reversed by default.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axes : tuple of int, optional
        Each axis of x once; None: in reverse order.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    ValueError
        If `axes` are not those of x.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.transpose(np.ones((2, 3, 4)), (2, 0, 1)).shape
    (4, 2, 3)
    """
    return x.transpose(axes)


def _inverse(axes: Any, ndim: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort([a % ndim for a in axes]))


@arguments(x=array, axis1=integer(), axis2=integer())
def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """`x` with two axes exchanged.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis1, axis2 : int
        The axes.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    AxisError
        A ValueError: x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.swapaxes(np.ones((2, 3, 4)), 0, 2).shape
    (4, 3, 2)
    """
    first, second = (normal_axes(axis, x.ndim)[0] for axis in (axis1, axis2))
    order = list(range(x.ndim))
    order[first], order[second] = second, first
    return transpose(x, tuple(order))


@arguments(x=array, source=each_integer, destination=each_integer)
def moveaxis(x: Any, source: Any, destination: Any) -> Any:
    """`x` with one axis, or several, moved to other places.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    source : int or tuple of int
        The axes to move.
    destination : int or tuple of int
        Their places in the result, as many.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    ValueError
        If the two differ in number, or x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.moveaxis(np.ones((5, 6, 3)), -1, 0).shape  # channels first
    (3, 5, 6)
    """
    old, new = normal_axes(source, x.ndim), normal_axes(destination, x.ndim)
    if len(old) != len(new):
        raise ValueError(f"moveaxis: source {source} and destination {destination} differ in number")
    order = [axis for axis in range(x.ndim) if axis not in old]
    for place, axis in sorted(zip(new, old)):
        order.insert(place, axis)
    return transpose(x, tuple(order))


@arguments(x=array, axis=axes)
@differentiable("x", x=("", lambda g, s: flip(g, s.axis)))
def flip(x: Any, axis: Any = None) -> Any:
    """`x` in reverse order along `axis`.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Which to reverse; None: all.

    Returns
    -------
    array
        The shape and dtype of x.

    Raises
    ------
    AxisError
        A ValueError: x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.flip(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1).tolist()
    [[2.0, 1.0], [4.0, 3.0]]
    """
    return library(x).flip(x, axis)


@arguments(x=array, shift=each_integer, axis=axes)
@differentiable("x", x=("", lambda g, s: roll(g, tuple(-step for step in s.shift), s.axis)))
def roll(x: Any, shift: Any, axis: Any = None) -> Any:
    """`x` moved by `shift` places along `axis`; what leaves at the end comes in again at the beginning.

    Without `axis` all elements are moved, in the order of their memory.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    shift : int or tuple of int
        How many places, towards larger indices if positive; one for all axes, or one for each.
    axis : int or tuple of int, optional
        Along which.

    Returns
    -------
    array
        The shape and dtype of x.

    Raises
    ------
    AxisError
        A ValueError: x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.roll(np.array([1.0, 2.0, 3.0]), 1).tolist()
    [3.0, 1.0, 2.0]
    """
    return library(x).roll(x, shift[0] if len(shift) == 1 else shift, axis)


@arguments(x=array, dtype=dtype)
def astype(x: Any, dtype: Any) -> Any:
    """`x` in another dtype. Integers and booleans are constant between their steps: the slope is 0.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    dtype : dtype
        Of numbers.

    Returns
    -------
    array
        The shape of x.

    Raises
    ------
    TypeError
        If `dtype` is not one of numbers, or complex where x is a Variable.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.astype(np.array([1.0, 2.0]), np.float32).dtype
    dtype('float32')
    """
    if isinstance(x, Variable) and dtype.kind == "c":
        raise TypeError(f"astype: dtype must be real where x is a Variable, got {dtype}")
    return _astype(x, dtype)


@differentiable("x", x=("", lambda g, s: _recast(g, is_fractional(s.kind))))
def _astype(x: Any, kind: Any) -> Any:
    return x.astype(kind)


def _recast(g: Any, keeps: bool) -> Any:
    """The gradient of a change of dtype; the tape casts it to the dtype of its source."""
    return g if keeps else np.zeros_like(plain(g))


def wide(x: Any) -> Any:
    """16-bit values as float32, in which they are added up; others as they are."""
    kind = accumulator(x.dtype)
    return x if kind is None else _astype(x, kind)


def narrow(x: Any, dtype: Any) -> Any:
    """What was computed of `wide` values, in the dtype that they had."""
    return x if x.dtype == dtype else _astype(x, dtype)


@arguments(x=array, shape=extents)
@differentiable("x", x=("", lambda g, s: fit(g, s.shapes[0])))
def broadcast_to(x: Any, shape: Any) -> Any:
    """`x` repeated to `shape`, as a read-only view.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    shape : int or tuple of int
        What the shape of x broadcasts to.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    ValueError
        If it does not.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> grad(lambda x: F.sum(F.broadcast_to(x, (5, 2))))(np.array([1.0, 2.0])).tolist()
    [5.0, 5.0]
    """
    return library(x).broadcast_to(x, shape)


@arguments(x=array, axis=axes, keepdims=flag)
@differentiable(
    "x", x=("", lambda g, s: broadcast_to(reshape(g, kept_shape(s.shapes[0], s.axis)), s.shapes[0]))
)
def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Sum over `axis`, an int or tuple; over everything by default. 16-bit values are added up in float32.

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
        The shape of x without `axis`, with the dtype that NumPy gives it.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.sum(np.arange(6.0).reshape(2, 3), axis=0).tolist()
    [3.0, 5.0, 7.0]
    """
    kind = accumulator(x.dtype)
    if kind is None:
        return x.sum(axis=axis, keepdims=keepdims)
    return x.sum(axis=axis, keepdims=keepdims, dtype=kind).astype(x.dtype)


def fit(grad: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes along which an array of `shape` was broadcast: the adjoint of `broadcast_to`."""
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    stretched = (i + extra for i, size in enumerate(shape) if size == 1 and grad.shape[i + extra] != 1)
    axes = (*range(extra), *stretched)
    if not axes:
        return grad.reshape(shape)
    # The method where it does the same: the checks of the function cost small arrays as much as the sum.
    return (grad.sum(axis=axes) if accumulator(grad.dtype) is None else sum(grad, axes)).reshape(shape)


@arguments(x=array, axis=each_integer)
def expand_dims(x: Any, axis: Any) -> Any:
    """`x` with new axes of length 1; `axis` counts in the result.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int
        Where the new axes are.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    AxisError
        A ValueError: the result has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.expand_dims(np.ones((2, 3)), (0, -1)).shape
    (1, 2, 3, 1)
    """
    new = normal_axes(axis, x.ndim + len(axis))
    old = iter(x.shape)
    return reshape(x, tuple(1 if i in new else next(old) for i in range(x.ndim + len(new))))


@arguments(x=array, axis=axes)
def squeeze(x: Any, axis: Any = None) -> Any:
    """`x` without its axes of length 1, or without those named.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int or tuple of int, optional
        Which to take out; None: all of length 1.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    ValueError
        If one of them is not of length 1.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.squeeze(np.ones((1, 3, 1)), axis=0).shape
    (3, 1)
    """
    ones = tuple(i for i, size in enumerate(x.shape) if size == 1)
    gone = ones if axis is None else normal_axes(axis, x.ndim)
    if any(a not in ones for a in gone):
        raise ValueError(f"squeeze: axis {axis} of x, of shape {tuple(x.shape)}, is not of length 1")
    return reshape(x, tuple(size for i, size in enumerate(x.shape) if i not in gone))


@arguments(x=array, start=integer())
def flatten(x: Any, start: int = 1) -> Any:
    """`x` with all axes from `start` on joined into one, which has length 1 where there are none.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    start : int
        The first axis that is joined; 1, the default, keeps the images of a batch apart.

    Returns
    -------
    array
        The dtype of x.

    Raises
    ------
    AxisError
        A ValueError: x has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.flatten(np.ones((2, 3, 4, 5))).shape
    (2, 60)
    """
    if not -x.ndim <= start <= x.ndim:
        raise np.exceptions.AxisError(start, x.ndim)
    start += x.ndim if start < 0 else 0
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:])))
