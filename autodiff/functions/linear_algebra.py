"""Matrix products."""

import math
from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, array, as_parameters, each_integer, elementwise, optional
from ._common import accumulator, library, normal_axes
from .arithmetic import multiply
from .shapes import expand_dims, fit, reshape, swapaxes, transpose


def _as_matrices(x: Any, y: Any, g: Any, shapes: tuple) -> tuple[Any, Any, Any]:
    """A 1-d x as a row, a 1-d y as a column, and the gradient with the axes that these lost."""
    if len(shapes[1]) == 1:
        g = expand_dims(g, -1)
        y = None if y is None else expand_dims(y, -1)
    if len(shapes[0]) == 1:
        g = expand_dims(g, -2)
        x = None if x is None else expand_dims(x, 0)
    return x, y, g


def _matmul_x(g: Any, s: Any) -> Any:
    _, y, g = _as_matrices(None, s.y, g, s.shapes)
    shape = s.shapes[0] if len(s.shapes[0]) > 1 else (1, *s.shapes[0])
    return reshape(fit(matmul(g, swapaxes(y, -1, -2)), shape), s.shapes[0])


def _matmul_y(g: Any, s: Any) -> Any:
    x, _, g = _as_matrices(s.x, None, g, s.shapes)
    shape = s.shapes[1] if len(s.shapes[1]) > 1 else (*s.shapes[1], 1)
    return reshape(fit(matmul(swapaxes(x, -1, -2), g), shape), s.shapes[1])


@elementwise
@differentiable("x y", x=("y", _matmul_x), y=("x", _matmul_y))
def matmul(x: Any, y: Any) -> Any:
    """``x @ y`` with NumPy's rules: leading axes broadcast, 1-d arrays are a row or a column.

    Parameters
    ----------
    x : array, (I,) or (..., H, I)
        A row, or matrices.
    y : array, (I,) or (..., I, W)
        A column, or matrices.

    Returns
    -------
    array, (..., H, W)
        Without H or W where x or y is 1-d; the dtype that NumPy gives it.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.matmul(np.ones((5, 2, 3)), np.ones((3, 4))).shape
    (5, 2, 4)
    """
    if getattr(x, "dtype", None) == getattr(y, "dtype", None) and library(x) is np:
        kind = accumulator(x.dtype)
        if kind is not None:
            return np.matmul(x.astype(kind), y.astype(kind)).astype(x.dtype)
    return np.matmul(x, y)


@arguments(x=array, weight=array, bias=optional(array))
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """``x @ weight.T + bias``: x (..., I), weight (O, I), bias (O,) -> (..., O).

    Parameters
    ----------
    x : array, (..., I)
        The inputs.
    weight : array, (O, I)
        One row for each output.
    bias : array, (O,), optional
        Added to the outputs.

    Returns
    -------
    array, (..., O)
        The outputs, with the dtype of `weight`.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        If floating-point dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.linear(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.5, 0.0])).tolist()
    [[3.5, 6.0]]
    """
    if weight.ndim != 2:
        raise ValueError(f"linear: weight must have shape (O, I), got {tuple(weight.shape)}")
    if not x.ndim or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x must have shape (..., I) = (..., {weight.shape[1]}), got {tuple(x.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"linear: bias must have shape (O,) = {(weight.shape[0],)}, got {tuple(bias.shape)}")
    x, weight, bias = as_parameters("linear", x, weight=weight, bias=bias)
    out = matmul(x, transpose(weight))
    return out if bias is None else out + bias


@arguments(x=array, y=array)
def outer(x: Any, y: Any) -> Any:
    """Every element of x times every element of y: (size of x, size of y).

    Parameters
    ----------
    x, y : array
        Any shape; numbers of any dtype.

    Returns
    -------
    array, (size of x, size of y)
        The products, with the dtype that NumPy gives them.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.outer(np.array([1.0, 2.0]), np.array([1.0, 10.0])).tolist()
    [[1.0, 10.0], [2.0, 20.0]]
    """
    return multiply(reshape(x, (-1, 1)), reshape(y, (1, -1)))


def _contracted(function: str, argument: str, value: Any) -> Any:
    """A number of axes, or the axes of x and those of y."""
    if not isinstance(value, list | tuple):
        return each_integer(function, argument, value, 0)[0]
    if len(value) != 2:
        raise ValueError(f"{function}: {argument} must be an int or two lists of axes, got {value!r}")
    return tuple(each_integer(function, argument, part) for part in value)


@arguments(x=array, y=array, axes=_contracted)
def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    """Sum of products over `axes`: so many of the last of x and the first of y, or two lists of axes.

    Parameters
    ----------
    x, y : array
        Any shape; numbers of any dtype.
    axes : int, or two sequences of int
        How many axes, or which ones of x and which of y.

    Returns
    -------
    array
        The axes of x that are left, then those of y.

    Raises
    ------
    ValueError
        If the axes do not exist, or differ in length.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.tensordot(np.ones((2, 3, 4)), np.ones((4, 3, 5)), axes=([1, 2], [1, 0])).shape
    (2, 5)
    """
    if isinstance(axes, int):
        if axes > x.ndim or axes > y.ndim:
            raise ValueError(f"tensordot: axes {axes} are more than x has ({x.ndim}), or y ({y.ndim})")
        axes = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    first, second = normal_axes(axes[0], x.ndim), normal_axes(axes[1], y.ndim)
    sizes = tuple(x.shape[a] for a in first), tuple(y.shape[a] for a in second)
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"tensordot: axes of x and y must have the same lengths, got {sizes[0]} and {sizes[1]}"
        )
    left = tuple(a for a in range(x.ndim) if a not in first)
    right = tuple(a for a in range(y.ndim) if a not in second)
    total = math.prod(sizes[0])
    free = tuple(x.shape[a] for a in left), tuple(y.shape[a] for a in right)
    rows = reshape(transpose(x, left + first), (math.prod(free[0]), total))
    columns = reshape(transpose(y, second + right), (total, math.prod(free[1])))
    return reshape(matmul(rows, columns), free[0] + free[1])
