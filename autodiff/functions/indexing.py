"""Reading elements: by index, in sorted order, along an axis."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, array, integer, integers, optional
from ._common import accumulator, library, normal_axes, plain
from .selection import where
from .shapes import reshape


@arguments(x=array)
@differentiable("x", x=("", lambda g, s: _embed(g, s.index, s.shapes[0])))
def getitem(x: Any, index: Any) -> Any:
    """``x[index]``: slices, integers, ellipsis, new axes, and boolean or integer arrays.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    index : int, slice, array of int or bool, or a tuple of these
        As between brackets in NumPy.

    Returns
    -------
    array
        The elements, with the dtype of x; a copy or a view, as in NumPy.

    Raises
    ------
    IndexError
        If an index is beyond the end; it is a ValueError too.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([1.0, 2.0, 3.0])
    >>> grad(lambda x: F.sum(F.getitem(x, [0, 2, 2])))(x).tolist()  # x[[0, 2, 2]]
    [1.0, 0.0, 2.0]
    """
    return x[index]


@differentiable("x", x=("", lambda g, s: getitem(g, s.index)))
def _embed(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with `x` added at `index`: the adjoint of `getitem`."""
    out = library(x).zeros(shape, x.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or part is Ellipsis or isinstance(part, int | np.integer | slice) for part in parts):
        out[index] = x
        return out
    out = out.astype(accumulator(x.dtype) or x.dtype, copy=False)
    if library(x) is np:
        np.add.at(out, index, x)
    else:
        import cupyx

        cupyx.scatter_add(out, index, x.astype(out.dtype, copy=False))
    return out.astype(x.dtype, copy=False)


@arguments(x=array, indices=integers, axis=optional(integer()))
def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """The elements of x at `indices` along `axis`; of all elements in one row by default.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    indices : array of int
        Any shape; negative ones count from the end.
    axis : int, optional
        Along which to take; None: x as one row.

    Returns
    -------
    array
        The shape of x with that of `indices` in place of `axis`; the dtype of x.

    Raises
    ------
    IndexError
        If an index is beyond the end; it is a ValueError too.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.take(np.array([[1.0, 2.0], [3.0, 4.0]]), [1, 1, 0], axis=1).tolist()
    [[2.0, 2.0, 1.0], [4.0, 4.0, 3.0]]
    """
    if axis is None:
        return getitem(reshape(x, (-1,)), indices)
    return getitem(x, (*(slice(None),) * normal_axes(axis, x.ndim)[0], indices))


@arguments(x=array, indices=integers, axis=optional(integer()))
def take_along_axis(x: Any, indices: Any, axis: int | None = -1) -> Any:
    """Of each line of x along `axis` the elements at the same line of `indices`, as `argsort` gives them.

    The other axes of x and of `indices` broadcast. With None both are one row.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    indices : array of int
        A shape of as many axes as that of x.
    axis : int, optional
        Along which to take; the last by default.

    Returns
    -------
    array
        The broadcast shape, as long along `axis` as `indices`; the dtype of x.

    Raises
    ------
    ValueError
        If `indices` has not as many axes as x.
    IndexError
        If an index is beyond the end; it is a ValueError too.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> x = np.array([[3.0, 1.0], [2.0, 4.0]])
    >>> F.take_along_axis(x, np.argsort(x, axis=1), axis=1).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    if axis is None:
        x, indices, axis = reshape(x, (-1,)), indices.reshape(-1), 0
    if indices.ndim != x.ndim:
        raise ValueError(
            f"take_along_axis: indices must have the {x.ndim} axes of x, got shape {tuple(indices.shape)}"
        )
    axis = normal_axes(axis, x.ndim)[0]
    xp = library(indices)
    index = []
    for i, size in enumerate(x.shape):
        one = (1,) * i + (-1,) + (1,) * (x.ndim - i - 1)
        if i == axis:
            index.append(indices)
        elif size == 1:
            index.append(xp.zeros((1,) * x.ndim, np.intp))
        else:
            index.append(xp.arange(size).reshape(one))
    return getitem(x, tuple(index))


@arguments(x=array, axis=optional(integer()))
def sort(x: Any, axis: int | None = -1) -> Any:
    """x in rising order along `axis`, NaN last; None sorts all elements as one row.

    Equal elements keep their order, and so do their gradients.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    axis : int, optional
        Along which to sort; the last by default.

    Returns
    -------
    array
        The shape and dtype of x; one row for None.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, grad
    >>> x = np.array([3.0, 1.0, 2.0])
    >>> F.sort(x).tolist(), grad(lambda x: F.sort(x)[-1])(x).tolist()
    ([1.0, 2.0, 3.0], [1.0, 0.0, 0.0])
    """
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    values = plain(x)
    return take_along_axis(x, library(values).argsort(values, axis=axis, kind="stable"), axis)


@arguments(x=array, k=integer())
def triu(x: Any, k: int = 0) -> Any:
    """The upper triangle of x (..., M, N): zeros below the diagonal `k`.

    Parameters
    ----------
    x : array, (..., M, N)
        Numbers of any dtype.
    k : int
        The lowest diagonal that stays: 0 is the main one, positive ones lie above.

    Returns
    -------
    array, (..., M, N)
        The dtype of x.

    Raises
    ------
    ValueError
        If x has less than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.triu(np.ones((3, 3)), k=1).tolist()
    [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return where(_below(x, k), x.dtype.type(0), x)


@arguments(x=array, k=integer())
def tril(x: Any, k: int = 0) -> Any:
    """The lower triangle of x (..., M, N): zeros above the diagonal `k`.

    Parameters
    ----------
    x : array, (..., M, N)
        Numbers of any dtype.
    k : int
        The highest diagonal that stays: 0 is the main one, positive ones lie above.

    Returns
    -------
    array, (..., M, N)
        The dtype of x.

    Raises
    ------
    ValueError
        If x has less than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.tril(np.ones((3, 3))).tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    return where(_below(x, k + 1), x, x.dtype.type(0))


def _below(x: Any, k: int) -> Any:
    """Which elements of the last two axes lie below the diagonal `k`."""
    if x.ndim < 2:
        raise ValueError(f"x must have at least two axes, got shape {tuple(x.shape)}")
    rows, columns = x.shape[-2:]
    return library(plain(x)).tri(rows, columns, max(min(k - 1, columns), -rows), dtype=bool)
