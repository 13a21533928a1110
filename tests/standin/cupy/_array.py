"""The array of the stand-in: NumPy's arithmetic in memory that says whose it is."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import standin_names

from . import _memory, _streams

SCALARS = (bool, int, float, complex, np.generic)
_KINDS = "?bhilqBHILQefdFD"


class Flags(NamedTuple):
    """What CuPy says of the layout: there is no `writeable`."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


class ndarray:
    """An array of a device. Methods that are not written out are in `standin_names.METHODS`."""

    __slots__ = ("__weakref__", "_base", "_block", "_values")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("the stand-in for CuPy makes arrays by cupy.empty and its like")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"'cupy.ndarray' object has no attribute {name!r}, or the stand-in for CuPy has none"
        )

    # What lies where.

    @property
    def data(self) -> _memory.MemoryPointer:
        """Where it begins."""
        return _memory.MemoryPointer(self._block, self._values)

    @property
    def device(self) -> _streams.Device:
        """Where it lives."""
        return _streams.Device(self._block.device)

    @property
    def flags(self) -> Flags:
        """The layout."""
        flags = self._values.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self._base is None)

    @property
    def base(self) -> "ndarray | None":
        """The array of which this is a view."""
        return self._base

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis; assigned, another one of as many elements."""
        return self._values.shape

    dtype = property(lambda self: self._values.dtype)
    itemsize = property(lambda self: self._values.itemsize)
    nbytes = property(lambda self: self._values.nbytes)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    strides = property(lambda self: self._values.strides)
    T = property(lambda self: self.transpose())
    real = property(lambda self: compute(np.real, (self,), {}))
    imag = property(lambda self: compute(np.imag, (self,), {}))

    # To the host and from it: these wait.

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """A copy on the host."""
        _streams.wait("a copy to the host")
        if out is not None:
            out[...] = self._values
            return out
        return np.array(self._values, order=order)

    def set(self, arr: Any, stream: Any = None) -> None:
        """Take the values of an array of the host."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        _streams.wait("a copy from the host")
        self._values[...] = arr

    def item(self) -> Any:
        """The one element, on the host."""
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        """The elements, on the host."""
        return self.get().tolist()

    def __array__(self, dtype: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __index__(self) -> int:
        return self.get().__index__()

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, how: str) -> str:
        return format(self.get(), how)

    def __reduce__(self) -> tuple[Any, ...]:
        from . import array

        return array, (self.get(order="A"),)

    def __copy__(self) -> "ndarray":
        return self.copy()

    def __deepcopy__(self, _: Any) -> "ndarray":
        return self.copy()

    # Parts.

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator["ndarray"]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[index] for index in range(self.shape[0]))

    def __getitem__(self, index: Any) -> "ndarray":
        self._look_at(index)
        return compute(lambda values, at: values[at], (self, self._wrapped(index)), {}, host=True)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._look_at(index)
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        check_devices((self, value))
        at, plain, values = unwrapped(self._wrapped(index)), unwrapped(value), self._values

        def work() -> None:
            with np.errstate(all="ignore"):
                values[at] = plain

        _streams.enqueue(work)

    def _look_at(self, index: Any) -> None:
        """A mask is read by the host: how many elements does it choose?"""
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, ndarray) and part.dtype == bool:
                _streams.wait("counting what a mask chooses")

    def _wrapped(self, index: Any) -> Any:
        """Integer arrays among the indices turn round at the end, where NumPy would raise."""
        parts = index if isinstance(index, tuple) else (index,)
        used = sum(
            part.ndim if _is_mask(part) else part is not None and part is not Ellipsis for part in parts
        )
        axis, changed = 0, []
        for part in parts:
            if part is Ellipsis:
                axis += self.ndim - used
            elif part is not None:
                if isinstance(part, ndarray) and part.dtype.kind in "iu" and part.ndim and self.shape[axis]:
                    part = part % self.shape[axis]
                axis += part.ndim if _is_mask(part) else 1
            changed.append(part)
        return tuple(changed) if isinstance(index, tuple) else changed[0]

    # NumPy's functions on these arrays.

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        import cupyx.scipy.special

        import cupy

        name = ufunc.__name__
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        function = _found(cupy, name) or _found(cupyx.scipy.special, name)
        function = function if function is None or method == "__call__" else getattr(function, method, None)
        known = (*SCALARS, ndarray, np.ndarray)
        if function is None or not all(isinstance(each, known) for each in (*inputs, kwargs.get("out", 0))):
            return NotImplemented
        if name in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"):
            inputs = tuple(x.item() if isinstance(x, np.ndarray) and not x.ndim else x for x in inputs)
        return function(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        import cupy

        module: Any = cupy
        for part in function.__module__.split(".")[1:]:
            module = _found(module, part)
        mine = _found(module, function.__name__)
        if mine is None or not all(issubclass(each, ndarray | np.ndarray) for each in types):
            return NotImplemented
        return mine(*args, **kwargs)


ndarray.__module__ = "cupy"


def _is_mask(part: Any) -> bool:
    return isinstance(part, ndarray | np.ndarray) and part.dtype == bool


def _found(module: Any, name: str) -> Any:
    return getattr(module, name, None) if module is not None else None


def _over(values: np.ndarray, block: _memory.Block, base: ndarray | None) -> ndarray:
    made = ndarray.__new__(ndarray)
    made._values, made._block, made._base = values, block, base
    return made


def fresh(like: np.ndarray) -> ndarray:
    """An array of NaN in memory of the current device: shape, dtype and order of axes of another."""
    if like.dtype.char not in _KINDS and like.dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {like.dtype}")
    block = _memory.Block(like.nbytes)
    order = sorted(range(like.ndim), key=lambda axis: -abs(like.strides[axis]))
    values = block.bytes.view(like.dtype).reshape([like.shape[axis] for axis in order])
    return _over(values.transpose(np.argsort(order)), block, None)


def placed(values: Any, out: ndarray | None = None) -> ndarray:
    """Values of the host as an array of the current device."""
    values = np.asarray(values)
    target = fresh(values) if out is None else out
    _streams.enqueue(lambda: np.copyto(target._values, values))
    return target


def unwrapped(value: Any) -> Any:
    """NumPy's arrays in the place of ours, inside of tuples, lists and dicts too."""
    if isinstance(value, ndarray):
        return value._values
    if type(value) in (tuple, list):
        return type(value)(map(unwrapped, value))
    if isinstance(value, slice):
        return slice(*map(unwrapped_number, (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {name: unwrapped(each) for name, each in value.items()}
    return value


def unwrapped_number(value: Any) -> Any:
    """An array as the number that it holds, which waits for it."""
    return value.item() if isinstance(value, ndarray) else value


def arrays_in(value: Any) -> Iterator[Any]:
    """Arrays of either library, inside of tuples, lists and dicts too."""
    if isinstance(value, ndarray | np.ndarray):
        yield value
    elif type(value) in (tuple, list):
        for each in value:
            yield from arrays_in(each)
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()))


def check_devices(value: Any) -> None:
    """Arrays must live on the device that is current."""
    current = _streams.current_device()
    for array in arrays_in(value):
        if isinstance(array, ndarray) and array._block.device != current:
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {array._block.device} while current = {current}"
            )


def compute(function: Callable, args: tuple, kwargs: dict[str, Any], *, host: bool = False) -> Any:
    """What a function of NumPy makes of our arrays: views, or new arrays. `host` lets NumPy's arrays pass."""
    given = list(arrays_in((args, kwargs)))
    if not host:
        for array in given:
            if isinstance(array, np.ndarray):
                raise TypeError(f"Unsupported type {type(array)}")
    check_devices(given)
    plain, named, out = unwrapped(args), unwrapped(kwargs), kwargs.get("out")

    def run() -> Any:
        with np.errstate(all="ignore"):
            return function(*plain, **named)

    if out is not None:
        _streams.enqueue(run)
        return out
    return _results(run(), [array for array in given if isinstance(array, ndarray)], run)


def _results(result: Any, inputs: list[ndarray], again: Callable[[], Any]) -> Any:
    """Wrap a result; one that is no view is written, now or whenever a graph is launched, from `again`."""
    if type(result) in (tuple, list) and all(isinstance(each, np.ndarray) for each in result):
        parts = enumerate(result)
        return type(result)(_results(each, inputs, lambda at=at: again()[at]) for at, each in parts)
    if not isinstance(result, np.ndarray | np.generic):
        return result
    for array in inputs:
        if result is array._values:
            return array
        if isinstance(result, np.ndarray) and _inside(result, array._block.bytes):
            return _over(result, array._block, array if array._base is None else array._base)
    made, first = fresh(np.asarray(result)), [result]

    def work() -> None:
        np.copyto(made._values, first.pop() if first else again())

    if _streams.current().is_capturing():
        first.clear()
    _streams.enqueue(work)
    return made


def _inside(values: np.ndarray, memory: np.ndarray) -> bool:
    return bool(memory.size) and 0 <= values.ctypes.data - memory.ctypes.data < memory.nbytes


def _method(name: str) -> Callable:
    path = f"cupy.ndarray.{name}"

    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        standin_names.bind(path, (self, *args), kwargs)
        named = {key: value for key, value in kwargs.items() if value is not None or key in ("axis", "dtype")}
        return compute(getattr(np.ndarray, name), (self, *args), named)

    method.__name__ = name
    return method


for _name in standin_names.METHODS:
    setattr(ndarray, _name, _method(_name))
