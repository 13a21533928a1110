"""What the rules share: array library, plain values, shapes."""

from typing import Any

import numpy as np

from dynarray._check import check_pair

from ..variable import plain as plain

_FLOAT32 = np.dtype(np.float32)

# An exponential that underflows is 0, as it should be, also where the caller asked NumPy to raise.
quiet = np.errstate(under="ignore")


def library(array: Any) -> Any:
    """NumPy or CuPy, as `array` demands. NumPy's ufuncs act on CuPy arrays anyway; this is for the rest."""
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def special(array: Any) -> Any:
    """SciPy's special functions, in the library of `array`; imported when needed."""
    if library(array) is np:
        import scipy.special

        return scipy.special
    import cupyx.scipy.special

    return cupyx.scipy.special


def pair(name: str, value: Any, least: int = 0) -> tuple[int, int]:
    """An int or (y, x) as (y, x); `name` is that of function and argument, "conv2d: stride"."""
    function, _, argument = name.partition(": ")
    return check_pair(function, argument, value, least)


def largest(x: Any, axis: Any) -> Any:
    """The maximum over `axis`, which is kept with length 1; minus infinity where there is nothing."""
    if x.size:
        return x.max(axis=axis, keepdims=True)
    return library(x).full(kept_shape(x.shape, axis), -np.inf, x.dtype)


def normal_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """An axis argument (None: all of them) as non-negative ints; AxisError if there is no such axis."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    for a in given:
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(a, ndim)
    axes = tuple(a % ndim for a in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis {axis} names one axis twice")
    return axes


def accumulator(dtype: Any) -> Any:
    """The dtype in which values of this one are added up: float32 for those of 16 bits, else None."""
    return _FLOAT32 if dtype.itemsize == 2 and dtype.kind not in "iu" else None


def kept_shape(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """The shape of a reduction over `axis` with ``keepdims=True``."""
    axes = normal_axes(axis, len(shape))
    return tuple(1 if i in axes else size for i, size in enumerate(shape))
