"""Matrix products."""

from typing import Any

import numpy as np

from ..function import differentiable
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


@differentiable("x y", x=("y", _matmul_x), y=("x", _matmul_y))
def matmul(x: Any, y: Any) -> Any:
    """``x @ y`` with NumPy's rules: leading axes broadcast, 1-d arrays are a row or a column."""
    return np.matmul(x, y)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """``x @ weight.T + bias``: x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    out = matmul(x, transpose(weight))
    return out if bias is None else out + bias
