"""What is used of `cupyx`."""

from typing import Any

import numpy as np
from cupy import _array, _streams

_KINDS = ("int32", "float16", "float32", "float64", "complex64", "complex128", "uint32", "uint64")


def scatter_add(a: Any, slices: Any, value: Any) -> None:
    """Add at places, which may repeat."""
    if a.dtype.name not in _KINDS:
        raise TypeError(f"cupyx.scatter_add only supports {', '.join(_KINDS)} as data type, got {a.dtype}")
    for array in _array.arrays_in(value):
        if isinstance(array, np.ndarray):
            raise TypeError(f"Unsupported type {type(array)}")
    _array.check_devices((a, value))
    at, plain, target = _array.unwrapped(slices), _array.unwrapped(value), a._values
    _streams.enqueue(lambda: np.add.at(target, at, plain))
