"""What every reader of this package says when a file is not what it should be, and dtypes by their names."""

import os
from typing import Any

import numpy as np

PathLike = str | os.PathLike[str]
MAX_AXES = 64  # as NumPy


class FileError(ValueError):
    """A file that is not what it should be; the message names the file and what is wrong with it."""


def named_dtype(what: str, name: str) -> np.dtype:
    """A dtype of NumPy or of ml_dtypes by its name; `what` has it."""
    if hasattr(np, name):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise FileError(f"{what} is {name}, which needs the package ml_dtypes") from None
    if not hasattr(ml_dtypes, name):
        raise FileError(f"{what} is {name}, which needs a newer package ml_dtypes")
    return np.dtype(getattr(ml_dtypes, name))


def read_exactly(file: Any, target: np.ndarray, what: str) -> None:
    """Fill an array that is contiguous with the next bytes of a file."""
    content = target.reshape(-1).view(np.uint8)
    if file.readinto(content.data) != content.size:
        raise FileError(f"is cut short in {what}")


def check_booleans(array: np.ndarray, what: str) -> None:
    """Bytes that are said to be booleans must be 0 or 1: NumPy's results with others are undefined."""
    if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise FileError(f"{what} is said to be boolean, but has other values than 0 and 1")
