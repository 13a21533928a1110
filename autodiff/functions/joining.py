"""Making one array of several: `concatenate`, `stack`, `array`, and of copies: `repeat`, `tile`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..function import differentiable
from ..variable import Variable
from ._arguments import arguments, dtype, each_integer, integer, is_fractional, optional, several
from ._arguments import array as checked
from ._common import library, normal_axes, plain
from .indexing import getitem
from .shapes import astype, broadcast_to, expand_dims, reshape


def _split(g: Any, s: Any, needs: tuple[bool, ...]) -> tuple:
    """The parts of a gradient that belong to the arrays that were concatenated."""
    grads, start, lead = [], 0, (slice(None),) * (s.axis % g.ndim)
    for shape, needed in zip(s.shapes, needs):
        end = start + shape[s.axis]
        grads.append(getitem(g, (*lead, slice(start, end))) if needed else None)
        start = end
    return tuple(grads)


@differentiable("*arrays", joint=("", _split))
def _concatenate(*arrays: Any, axis: int = 0) -> Any:
    return library(arrays[0]).concatenate(arrays, axis)


@arguments(arrays=several, axis=optional(integer()))
def concatenate(arrays: Any, axis: int | None = 0) -> Any:
    """A list of arrays joined along an axis; with None all their elements in one row.

    Parameters
    ----------
    arrays : sequence of array
        Their shapes are alike in all axes but `axis`.
    axis : int, optional
        Along which to join; None: all elements in one row.

    Returns
    -------
    array
        As long along `axis` as all arrays together, with the dtype that NumPy gives it.

    Raises
    ------
    ValueError
        If there is no array, or their shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.concatenate([np.zeros((2, 1)), np.ones((2, 2))], axis=1).tolist()
    [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    if axis is None:
        arrays, axis = [reshape(a, (-1,)) for a in arrays], 0
    return _concatenate(*arrays, axis=axis)


@arguments(arrays=several, axis=integer())
def stack(arrays: Any, axis: int = 0) -> Any:
    """A list of arrays of one shape joined along a new axis.

    Parameters
    ----------
    arrays : sequence of array
        All of one shape.
    axis : int
        The place of the new axis in the result.

    Returns
    -------
    array
        One axis more, as long as there are arrays.

    Raises
    ------
    ValueError
        If there is no array, or their shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.stack([np.zeros(2), np.ones(2)], axis=1).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    shapes = {tuple(a.shape) for a in arrays}
    if len(shapes) > 1:
        raise ValueError(f"stack: arrays must have one shape, got {', '.join(map(str, sorted(shapes)))}")
    return _concatenate(*[expand_dims(a, axis) for a in arrays], axis=axis)


@arguments(dtype=optional(dtype))
def array(values: Any, dtype: Any = None) -> Any:
    """An array of numbers, arrays and Variables in lists, nested as deep as need be.

    Parameters
    ----------
    values : array, number or nested list
        What `numpy.array` takes, and Variables among it, of shapes that fit together.
    dtype : dtype, optional
        Of the result. By default what NumPy makes of the arrays and Variables; numbers of Python beside them
        take on their dtype.

    Returns
    -------
    array or Variable
        A Variable if one is among the values.

    Raises
    ------
    TypeError
        If something among the values is no array of numbers.

    Examples
    --------
    >>> from autodiff import Variable, functions as F
    >>> v = Variable(2.0, name="v")
    >>> F.array([[1, v], [v * v, 0]]).data.tolist()
    [[1.0, 2.0], [4.0, 0.0]]
    """
    return joined("array", "values", values, dtype)


def joined(function: str, argument: str, values: Any, dtype: Any = None) -> Any:
    """`array` of an argument of a function."""
    kind = dtype if dtype is not None else _common_dtype(list(_dtypes(function, argument, values)))

    # Numbers join the arrays beside them on their device.
    xp = next((lib for lib in map(library, map(plain, _leaves(values))) if lib is not np), np)

    def nested(values: Any) -> Any:
        if isinstance(values, list | tuple):
            if any(map(_holds_more_than_numpy, values)):
                return stack([nested(value) for value in values])
            return xp.asarray(np.array(values, kind))
        if isinstance(values, int | float):
            return xp.asarray(values, kind)
        return astype(checked(function, argument, values), kind)

    return nested(values)


def _leaves(values: Any) -> Iterator[Any]:
    """What nested lists hold."""
    if isinstance(values, list | tuple):
        for value in values:
            yield from _leaves(value)
    else:
        yield values


def _common_dtype(kinds: list[Any]) -> Any:
    """Of arrays, and of numbers where no array has fractions: NumPy itself does not know that of bfloat16."""
    arrays = [kind for kind in kinds if isinstance(kind, np.dtype)]
    if arrays and is_fractional(np.result_type(*arrays)):
        return np.result_type(*arrays)
    return np.result_type(*kinds) if kinds else np.dtype(float)


def _dtypes(function: str, argument: str, values: Any) -> Iterator[Any]:
    """The dtype of each array, Python's numbers as they are: to NumPy they are weak."""
    for value in _leaves(values):
        yield value if type(value) in (int, float) else checked(function, argument, value).dtype


def _holds_more_than_numpy(values: Any) -> bool:
    """Whether there are Variables, or arrays of a device, among nested lists."""
    if isinstance(values, list | tuple):
        return any(map(_holds_more_than_numpy, values))
    return isinstance(values, Variable) or library(values) is not np


@arguments(x=checked, repeats=integer(0), axis=optional(integer()))
def repeat(x: Any, repeats: int, axis: int | None = None) -> Any:
    """Each slice along `axis`, or each element of x as one row, repeated: (a, b) -> (a, a, b, b).

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    repeats : int
        How often, at least 0.
    axis : int, optional
        Which slices to repeat; None: the elements of x as one row.

    Returns
    -------
    array
        `repeats` times as long along `axis`; the dtype of x.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.repeat(np.array([1.0, 2.0]), 2).tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    (axis,) = normal_axes(axis, x.ndim)
    wide = (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :])
    shape = (*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1 :])
    return reshape(broadcast_to(expand_dims(x, axis + 1), wide), shape)


def _counts(function: str, argument: str, value: Any) -> tuple[int, ...]:
    return each_integer(function, argument, value, 0)


@arguments(x=checked, reps=_counts)
def tile(x: Any, reps: Any) -> Any:
    """x as a whole repeated `reps` times along each axis: (a, b) -> (a, b, a, b).

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    reps : int or tuple of int
        How often along each axis, at least 0; missing ones are 1, more than x has make new axes in front.

    Returns
    -------
    array
        Each axis `reps` times as long; the dtype of x.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.tile(np.array([1.0, 2.0]), 2).tolist()
    [1.0, 2.0, 1.0, 2.0]
    """
    ndim = max(len(reps), x.ndim)
    sizes = (1,) * (ndim - x.ndim) + tuple(x.shape)
    reps = (1,) * (ndim - len(reps)) + reps
    one = tuple(extent for size in sizes for extent in (1, size))
    many = tuple(extent for rep, size in zip(reps, sizes) for extent in (rep, size))
    return reshape(broadcast_to(reshape(x, one), many), tuple(r * s for r, s in zip(reps, sizes)))
