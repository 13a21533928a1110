"""What cuBLAS computes in: one setting for each dtype, and for all threads."""

import os
from typing import Any

import numpy as np

COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_PEDANTIC, COMPUTE_TYPE_FP32, COMPUTE_TYPE_TF32 = 1, 2, 4, 7
_types: dict[str, int] = {}


def get_compute_type(dtype: Any) -> int:
    """What products of a dtype are computed in; first of all the environment is asked."""
    name = np.dtype(dtype).name
    if name not in _types:
        fast = name == "float32" and int(os.getenv("CUPY_TF32", "0")) > 0
        _types[name] = COMPUTE_TYPE_TF32 if fast else COMPUTE_TYPE_DEFAULT
    return _types[name]


def set_compute_type(dtype: Any, compute_type: int) -> None:
    """Choose it."""
    _types[np.dtype(dtype).name] = compute_type


def product(a: np.ndarray, b: np.ndarray, **kwargs: Any) -> Any:
    """NumPy's product, of numbers with as many bits as cuBLAS would look at."""
    kind = np.result_type(a, b)
    if kind == np.float32 and get_compute_type(kind) == COMPUTE_TYPE_TF32:
        a, b = map(_rounded, (a, b))
    return np.matmul(a, b, **kwargs)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Float32 with a fraction of 10 bits instead of 23."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
