"""Variable: an array whose uses a tape records."""

import itertools
from typing import Any

import numpy as np

# Looked up once: every function of a Variable makes a new one.
_next_key = itertools.count().__next__
_new, _generic = object.__new__, np.generic


class Variable:
    """An array whose uses a tape records.

    Parameters
    ----------
    data : array
        A floating-point NumPy or CuPy array (a Python float or list becomes a NumPy array). It is not copied.
    name : str, optional
        Shown by ``repr`` and in messages.

    Notes
    -----
    Functions of Variables give Variables, whether or not a tape is active. `data` is the plain array.
    Assigning to ``data`` (as optimisers do) keeps the identity of the Variable.
    """

    __slots__ = ("data", "key", "name")
    # NumPy arrays leave mixed arithmetic to the methods below instead of treating a Variable as an object.
    __array_ufunc__ = None

    def __init__(self, data: Any, name: str | None = None) -> None:
        if isinstance(data, Variable):
            raise TypeError("Variable: data must be an array, got a Variable")
        if not hasattr(data, "dtype") or isinstance(data, np.generic):
            data = np.asarray(data)
        if data.dtype.kind not in "fV":  # V: bfloat16, which NumPy knows only as an extension type
            raise TypeError(
                f"Variable: data must be real floating-point, got dtype {data.dtype}; use .astype first"
            )
        self.data = data
        self.key = _next_key()
        self.name = name

    value = property(lambda self: self.data, doc="The plain array: another name for `data`.")
    shape = property(lambda self: self.data.shape, doc="The shape of the array.")
    dtype = property(lambda self: self.data.dtype, doc="The dtype of the array.")
    ndim = property(lambda self: self.data.ndim, doc="The number of axes.")
    size = property(lambda self: self.data.size, doc="The number of elements.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "a Variable is not an array: take .data, or call the function of autodiff of the same name"
        )

    def __len__(self) -> int:
        return len(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __repr__(self) -> str:
        label = f"{self.name!r}, " if self.name else ""
        return f"Variable({label}shape {self.shape}, {self.dtype})"


def result(data: Any) -> Variable:
    """A Variable around what a function returned, without the checks of the constructor."""
    variable = _new(Variable)
    variable.data = np.asarray(data) if isinstance(data, _generic) else data
    variable.key = _next_key()
    variable.name = None
    return variable


def linked(data: Any, key: int | None) -> Any:
    """The array as the Variable it was on the tape."""
    if key is None:
        return data
    variable = result(data)
    variable.key = key
    return variable
