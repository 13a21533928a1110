"""Functions and ufuncs: NumPy's, called as CuPy's signatures allow."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import scipy.special
import standin_names

from . import _array, _core, _streams
from ._array import ndarray

# These call cuBLAS or cuSOLVER for floating types, which CuPy refuses while a stream is captured.
_LIBRARY_CALLS = ("einsum", "linalg.inv", "linalg.solve", "matmul")
_FROM_HOST = ("array", "asarray", "result_type")
_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "mod": "remainder",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "matmul": "matmul",
}
_COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
_UNARY = {"neg": "negative", "abs": "absolute", "invert": "invert"}


class Ufunc:
    """A ufunc: scalars and arrays of one device, and the few keywords that CuPy takes."""

    def __init__(self, path: str, of_numpy: Any) -> None:
        self.__name__, self._path, self._of_numpy = path.rpartition(".")[2], path, of_numpy
        self.nin, self.nout = of_numpy.nin, of_numpy.nout

    def __call__(
        self, *args: Any, out: Any = None, dtype: Any = None, casting: str = "same_kind", **other: Any
    ) -> Any:
        if other:
            raise TypeError(f"Wrong arguments {other}")
        if not self.nin <= len(args) <= self.nin + self.nout:
            raise TypeError(f"Wrong number of arguments for {self.__name__!r}: {len(args)}")
        inputs, outputs = args[: self.nin], args[self.nin :]
        if outputs:
            (out,) = outputs
        for value in (*inputs, 0 if out is None else out):
            if not isinstance(value, (*_array.SCALARS, ndarray)):
                raise TypeError(f"Unsupported type {type(value)}")
        kwargs = {"casting": casting, **({} if dtype is None else {"dtype": dtype})}
        if out is not None:
            kwargs["out"] = out
        return _array.compute(self._of_numpy, inputs, kwargs)


class Function:
    """A function of CuPy that does what NumPy's of the same name does."""

    def __init__(self, name: str, of_numpy: Any) -> None:
        self.__name__, self._path, self._of_numpy = name, f"cupy.{name}", of_numpy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__
        standin_names.bind(self._path, args, kwargs)
        if name in _LIBRARY_CALLS:
            refuse_while_capturing(args)
        if name in ("array", "asarray"):
            return _moved(name, args, kwargs)
        if name == "ascontiguousarray" and not isinstance(args[0], ndarray):
            raise TypeError(
                f"Argument 'a' has incorrect type (expected cupy.ndarray, got {type(args[0]).__name__})"
            )
        of_numpy = _core.product if name == "matmul" else self._of_numpy
        made = _array.compute(of_numpy, args, kwargs, host=name in _FROM_HOST)
        if name == "empty":  # not what NumPy found in its memory
            made._values.reshape(-1, order="A").view(np.uint8)[...] = 255
        return made


def refuse_while_capturing(args: Any) -> None:
    """Raise as CuPy does where a library would be called for these arrays."""
    floating = [array for array in _array.arrays_in(args) if array.size and array.dtype.kind not in "biu"]
    if floating and _streams.current().is_capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def _moved(name: str, args: tuple, kwargs: dict[str, Any]) -> ndarray:
    """What `array` and `asarray` make of anything: a list may hold arrays of the device."""
    first, *rest = args
    kwargs = {key: value for key, value in kwargs.items() if key != "blocking" and value is not None}
    if isinstance(first, ndarray):
        return _array.compute(getattr(np, name), args, kwargs)
    if any(isinstance(array, ndarray) for array in _array.arrays_in(first)):
        return _array.compute(lambda *parts: np.stack(parts), tuple(first), {}).astype(
            *rest[:1] or [kwargs.get("dtype") or first[0].dtype], copy=False
        )
    return _array.placed(getattr(np, name)(first, *rest, **kwargs))


def fill(cupy: ModuleType, linalg: ModuleType) -> None:
    """Put what is listed where it belongs, and the operators of arrays on it."""
    for name in standin_names.FUNCTIONS:
        module, _, last = name.rpartition(".")
        place, of_numpy = (linalg, np.linalg) if module else (cupy, np)
        setattr(place, last, Function(name, getattr(of_numpy, last)))
    for name in standin_names.UFUNCS:
        setattr(cupy, name, Ufunc(f"cupy.{name}", getattr(np, name)))
    for short, name in _OPERATORS.items():
        function = getattr(cupy, name)
        setattr(ndarray, f"__{short}__", lambda self, other, call=function: _binary(call, self, other))
        setattr(ndarray, f"__r{short}__", lambda self, other, call=function: _binary(call, other, self))
        if short != "matmul":
            setattr(ndarray, f"__i{short}__", lambda self, other, call=function: call(self, other, self))
    for short, name in _COMPARISONS.items():
        function = getattr(cupy, name)
        setattr(ndarray, f"__{short}__", lambda self, other, call=function: _compared(call, self, other))
    for short, name in _UNARY.items():
        function = getattr(cupy, name)
        setattr(ndarray, f"__{short}__", lambda self, call=function: call(self))
    sys.modules[ndarray.__module__] = cupy


def _binary(call: Any, left: Any, right: Any) -> Any:
    for other in (left, right):  # another class that knows how to deal with arrays has its turn
        if not isinstance(other, (*_array.SCALARS, ndarray, np.ndarray)):
            return NotImplemented
    return call(left, right)


def _compared(call: Any, left: ndarray, right: Any) -> Any:
    if isinstance(right, np.ndarray) and not right.ndim:
        right = right.item()
    return _binary(call, left, right)


def special(name: str) -> Ufunc:
    """A ufunc of `cupyx.scipy.special`."""
    return Ufunc(f"cupyx.scipy.special.{name}", getattr(scipy.special, name))
