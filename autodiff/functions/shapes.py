"""Functions that move values without changing them, and `sum`, which is the adjoint of broadcasting."""

import builtins
import math
from typing import Any

import numpy as np

from ..function import differentiable
from ._common import kept_shape, library, normal_axes


@differentiable("x", x=("", lambda g, s: reshape(g, s.shapes[0])))
def reshape(x: Any, shape: Any) -> Any:
    """`x` with another shape; one entry may be -1."""
    return x.reshape(shape)


@differentiable(
    "x", x=("", lambda g, s: transpose(g, None if s.axes is None else _inverse(s.axes, len(s.axes))))
)
def transpose(x: Any, axes: Any = None) -> Any:
    """`x` with its axes in the order `axes`, reversed by default."""
    return x.transpose(axes)


def _inverse(axes: Any, ndim: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort([a % ndim for a in axes]))


def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """`x` with two axes exchanged."""
    axes = list(range(x.ndim))
    axes[axis1], axes[axis2] = axes[axis2], axes[axis1]
    return transpose(x, tuple(axes))


def moveaxis(x: Any, source: int, destination: int) -> Any:
    """`x` with one axis moved to another place."""
    axes = [a for a in range(x.ndim) if a != source % x.ndim]
    axes.insert(destination % x.ndim, source % x.ndim)
    return transpose(x, tuple(axes))


@differentiable("x", x=("", lambda g, s: flip(g, s.axis)))
def flip(x: Any, axis: Any = None) -> Any:
    """`x` in reverse order along `axis`."""
    return library(x).flip(x, axis)


@differentiable("x", x=("", lambda g, s: g))
def astype(x: Any, dtype: Any) -> Any:
    """`x` in another floating-point dtype. The tape casts every gradient to the dtype of its source."""
    return x.astype(dtype)


@differentiable("x", x=("", lambda g, s: fit(g, s.shapes[0])))
def broadcast_to(x: Any, shape: Any) -> Any:
    """`x` repeated to `shape`, as a read-only view."""
    return library(x).broadcast_to(x, shape)


@differentiable(
    "x", x=("", lambda g, s: broadcast_to(reshape(g, kept_shape(s.shapes[0], s.axis)), s.shapes[0]))
)
def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Sum over `axis`, an int or tuple; over everything by default."""
    return x.sum(axis=axis, keepdims=keepdims)


def fit(grad: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes along which an array of `shape` was broadcast: the adjoint of `broadcast_to`."""
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    stretched = (i + extra for i, size in enumerate(shape) if size == 1 and grad.shape[i + extra] != 1)
    axes = (*range(extra), *stretched)
    return reshape(sum(grad, axes), shape) if axes else reshape(grad, shape)


@differentiable("x", x=("", lambda g, s: _embed(g, s.index, s.shapes[0])))
def getitem(x: Any, index: Any) -> Any:
    """``x[index]``: slices, integers, ellipsis, new axes, and boolean or integer arrays."""
    return x[index]


@differentiable("x", x=("", lambda g, s: getitem(g, s.index)))
def _embed(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with `x` added at `index`: the adjoint of `getitem`."""
    out = library(x).zeros(shape, x.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or part is Ellipsis or isinstance(part, int | np.integer | slice) for part in parts):
        out[index] = x
    elif library(x) is np:
        np.add.at(out, index, x)
    else:
        import cupyx

        cupyx.scatter_add(out, index, x)
    return out


@differentiable("x", x=("", lambda g, s: getitem(g, _inside(s.pad_width, s.shapes[0]))))
def pad(x: Any, pad_width: Any, constant_values: float = 0) -> Any:
    """`x` with a constant margin; `pad_width` as in NumPy: an int, (before, after), or one pair per axis."""
    widths = _pad_widths(pad_width, x.ndim)
    shape = tuple(b + size + a for size, (b, a) in zip(x.shape, widths))
    out = library(x).full(shape, constant_values, x.dtype)
    out[_inside(pad_width, x.shape)] = x
    return out


def _pad_widths(pad_width: Any, ndim: int) -> list[tuple[int, int]]:
    widths = [(int(b), int(a)) for b, a in np.broadcast_to(pad_width, (ndim, 2))]
    if any(min(w) < 0 for w in widths):
        raise ValueError(f"pad: pad_width must not be negative, got {pad_width!r}")
    return widths


def _inside(pad_width: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(b, b + size) for size, (b, _) in zip(shape, _pad_widths(pad_width, len(shape))))


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


def concatenate(arrays: Any, axis: int = 0) -> Any:
    """A list of arrays joined along an axis."""
    return _concatenate(*arrays, axis=axis)


def stack(arrays: Any, axis: int = 0) -> Any:
    """A list of arrays of one shape joined along a new axis."""
    return concatenate([expand_dims(a, axis) for a in arrays], axis)


def expand_dims(x: Any, axis: int) -> Any:
    """`x` with a new axis of length 1."""
    shape = list(x.shape)
    shape.insert(axis % (x.ndim + 1), 1)
    return reshape(x, tuple(shape))


def squeeze(x: Any, axis: Any = None) -> Any:
    """`x` without its axes of length 1, or without those named."""
    axes = (
        normal_axes(axis, x.ndim) if axis is not None else [i for i, size in enumerate(x.shape) if size == 1]
    )
    if any(x.shape[a] != 1 for a in axes):
        raise ValueError(f"squeeze: axis {axis} of shape {tuple(x.shape)} is not of length 1")
    return reshape(x, tuple(size for i, size in enumerate(x.shape) if i not in axes))


def flatten(x: Any, start: int = 1) -> Any:
    """`x` with all axes from `start` on joined into one."""
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:])))


def repeat(x: Any, repeats: int, axis: int) -> Any:
    """Each slice along `axis` repeated: (a, b) -> (a, a, b, b)."""
    axis = builtins.range(x.ndim)[axis]
    wide = (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :])
    shape = (*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1 :])
    return reshape(broadcast_to(expand_dims(x, axis + 1), wide), shape)
