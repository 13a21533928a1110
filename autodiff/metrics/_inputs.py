"""What all metrics do with what they are given."""

from typing import Any

import numpy as np

from .._state import to_numpy
from ..functions._common import plain


def values(function: str, name: str, array: Any) -> np.ndarray:
    """The values of an array of numbers, on the host."""
    array = plain(array)
    if hasattr(array, "dtype"):
        array = to_numpy(array)
    found = np.asarray(array)
    if found.dtype.kind not in "biuf" and found.dtype.name != "bfloat16":
        raise TypeError(f"{function}: {name} must be an array of real numbers, got {found.dtype}")
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def labels(function: str, name: str, array: Any) -> np.ndarray:
    """The values of an array of integers, or of booleans, which count as 0 and 1."""
    found = values(function, name, array)
    if found.dtype.kind not in "biu" and found.size:
        raise TypeError(f"{function}: {name} must be integers, got {found.dtype}; of scores, take the argmax")
    return found.astype(np.int64) if found.dtype.kind != "u" or found.itemsize < 8 else found


def same_shape(function: str, prediction: np.ndarray, target: np.ndarray) -> None:
    """Both must be of one shape."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"{function}: prediction and target must have one shape, "
            f"got {prediction.shape} and {target.shape}"
        )


def whole(function: str, name: str, value: Any) -> int:
    """An int, which no bool is."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: {name} must be an int, got {value!r:.50}")
    return int(value)


def ignored(function: str, ignore: Any) -> int | None:
    """The label that does not count, if there is one."""
    return None if ignore is None else whole(function, "ignore", ignore)


def count(function: str, name: str, value: Any, least: int) -> int:
    """An int of at least this."""
    number = whole(function, name, value)
    if number < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {number}")
    return number


def average(total: float, number: float) -> float:
    """Their ratio; of nothing, NaN."""
    return float(total / number) if number else float("nan")
