"""Reading elements: by index, in sorted order, along an axis."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, array, integer, integers, optional
from ._common import accumulator, library, normal_axes, plain
from .arithmetic import where
from .shapes import reshape


@arguments(x=array)
@differentiable("x", x=("", lambda g, s: _embed(g, s.index, s.shapes[0])))
def getitem(x: Any, index: Any) -> Any:
    """``x[index]``: slices, integers, ellipsis, new axes, and boolean or integer arrays.

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
