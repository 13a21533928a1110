"""What the rules share: array library, plain values, shapes."""

from typing import Any

import numpy as np

from ..variable import Variable


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


def plain(value: Any) -> Any:
    """The array itself, where a rule needs a value whose derivative is zero or not wanted (masks, signs)."""
    return value.data if isinstance(value, Variable) else value


def pair(name: str, value: Any, least: int = 0) -> tuple[int, int]:
    """An int or (y, x) as (y, x)."""
    both = (value, value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else value
    if (
        not isinstance(both, tuple | list)
        or len(both) != 2
        or any(not isinstance(v, int | np.integer) for v in both)
    ):
        raise TypeError(f"{name} must be an int or a pair (y, x) of them, got {value!r}")
    if min(both) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


def normal_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """An axis argument (None: all of them) as non-negative ints."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(a + ndim if a < 0 else a for a in (axis if isinstance(axis, tuple) else (axis,)))


def kept_shape(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """The shape of a reduction over `axis` with ``keepdims=True``."""
    axes = normal_axes(axis, len(shape))
    return tuple(1 if i in axes else size for i, size in enumerate(shape))
