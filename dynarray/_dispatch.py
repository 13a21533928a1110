"""From arrays to the backend that works on them."""

import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import repeat, zip_longest
from typing import Any, NamedTuple

import numpy as np

# The dtypes each backend takes. Complex numbers let the references be differentiated by complex steps.
DTYPES = {
    "reference": ("float32", "float64", "complex64", "complex128"),
    "cpu": ("float32", "float64"),
    "host": ("float16", "bfloat16", "float32", "float64"),
    "ptx": ("float16", "bfloat16", "float32", "float64"),
    "cuda": ("float16", "bfloat16", "float32", "float64"),
}
BACKENDS = tuple(DTYPES)

_forced: ContextVar[str | None] = ContextVar("forced backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for the operators called inside the block.

    It holds for this thread, and for asyncio tasks that are started inside the block.

    Parameters
    ----------
    name : {"reference", "cpu", "host", "ptx", "cuda"}
        ``"reference"``: the textbook NumPy definition. ``"cpu"``: Numba kernels (what NumPy arrays use
        anyway). ``"host"``: the CUDA sources compiled by g++ and run on NumPy arrays, to test and debug them
        without a GPU. ``"ptx"``: what CUDA's compiler NVRTC makes of them, run the same way, each access
        checked for bounds, alignment and races; see :mod:`rawkernels.ptx`. ``"cuda"``: CUDA kernels on CuPy
        arrays (what CuPy arrays use anyway).

    Raises
    ------
    ValueError
        If there is no backend of this name.

    Notes
    -----
    A gradient must be taken on the backend that its forward pass used: a tape's `gradient` belongs into the
    block as well.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.ones((1, 2, 4, 4)), np.ones((1, 1, 3, 3, 4, 4))
    >>> with dyn.use_backend("reference"):
    ...     y = dyn.local_filter2d(x, weight)
    >>> float(y[0, 0, 1, 1])
    9.0
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: name must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    before = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(before)


def forced_backend() -> str | None:
    """The backend that `use_backend` forces here, if any."""
    return _forced.get()


def is_masked(value: Any) -> bool:
    """Whether it is a masked array, of which there is none where nobody has imported `numpy.ma`.

    NumPy would import it when asked, and a fork in another thread meanwhile leave its child waiting for that.
    """
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


def library_of(array: Any) -> str | None:
    """``"numpy"``, ``"cupy"``, or ``None`` for anything else (CuPy is not imported to find out)."""
    if isinstance(array, np.ndarray) and not is_masked(array):
        return "numpy"
    kind = type(array)
    if kind.__module__.partition(".")[0] == "cupy" and kind.__name__ == "ndarray":
        return "cupy"
    return None


def any_dask(arrays: Iterable[Any]) -> bool:
    """Whether one of them is a lazy array of dask, of which there is none where nobody has imported it."""
    lazy = sys.modules.get("dask.array")
    return lazy is not None and any(map(isinstance, arrays, repeat(lazy.Array)))


def call_key(arrays: Iterable[Any], params: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """All that checks look at, but for where the arrays lie; None where there is more to it than usual.

    Types are part of it: 1 and True are equal, and not the same to a check; nor are 0.0 and -0.0.
    """
    key: list[Any] = [_forced.get()]
    for array in arrays:
        kind = type(array)
        if kind is np.ndarray or library_of(array) == "cupy":
            key += kind, array.shape, array.dtype
        elif array is None:
            key.append(None)
        else:
            return None
    for name, value in params.items():
        kind = type(value)
        if kind is tuple:
            key += name, tuple(map(type, value))
            if not all(each in _PLAIN for each in key[-1]):
                return None
        elif kind is float:
            value = repr(value)
        elif kind not in _PLAIN:
            if not is_array(value):
                return None
            value = value.shape, value.dtype
        key += name, kind, value
    return tuple(key)


_PLAIN = frozenset({int, bool, str, type(None)})


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy or CuPy, and no subclass."""
    return type(value) is np.ndarray or library_of(value) == "cupy"


def well_placed(arrays: Iterable[Any]) -> bool:
    """Whether arrays of one library are on one device, at addresses that a GPU reads."""
    device = None
    for array in arrays:
        kind = type(array)
        if kind is np.ndarray:
            return True
        if array is not None:
            pointer = array.data
            if device is None:
                device = pointer.device_id
            if pointer.device_id != device or pointer.ptr % array.itemsize:
                return False
    return True


class Move(NamedTuple):
    """An array that a form gets: which one of the caller's, if any, and in which shape."""

    place: int | None
    shape: tuple[int, ...] | None


class Passed(NamedTuple):
    """What came of a check, for calls like the one that was checked."""

    backend: str
    moves: tuple[Move, ...]
    constants: tuple[str, ...]  # parameters that are arrays
    checked: Any

    def again(self, arrays: tuple[Any, ...], params: Mapping[str, Any]) -> Any:
        """What comes of it for other arrays."""
        formed = list[Any]()
        for place, shape in self.moves:
            array = None if place is None else arrays[place]
            formed.append(array if array is None or array.shape == shape else array.reshape(shape))
        _, known, *others = self.checked
        own = {**known}
        for name in self.constants:
            own[name] = params[name]
        return type(self.checked)(tuple(formed), own, *others)


def passed_call(
    names: tuple[str, ...],
    roles: tuple[str, ...],
    backend: str,
    checked: Any,
    arrays: tuple[Any, ...],
    params: Mapping[str, Any],
) -> Passed | None:
    """What came of a check of arrays with these `names`, without arrays; forms take them in their `roles`.

    None unless those follow from the caller's by `reshape` alone, and parameters that are arrays are the
    caller's.
    """
    moves = list[Move]()
    for role, array in zip_longest(roles, checked.arrays):
        place = names.index(role) if role in names else None
        if not is_reshaped(array, None if place is None else arrays[place]):
            return None
        moves.append(Move(None, None) if array is None else Move(place, array.shape))
    constants = tuple([name for name, value in params.items() if is_array(value)])
    if any(checked.params.get(name) is not params[name] for name in constants):
        return None
    kept = checked._replace(arrays=(), params={**checked.params, **dict.fromkeys(constants)})
    return Passed(backend, tuple(moves), constants, kept)


def is_reshaped(array: Any, given: Any) -> bool:
    """Whether an array is the given one, or what `reshape` makes of it without a copy."""
    if array is given:
        return True
    if array is None or given is None:
        return False
    again = given.reshape(array.shape)
    return _place(again) == _place(array) and _place(again)[0] == _place(given)[0]


def _place(array: Any) -> tuple[Any, ...]:
    begin = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return begin, array.strides, array.dtype


def fits_backend(backend: str, array: Any, other: Any) -> bool:
    """Whether two arrays are alike, and as `backend` takes them here; if not, `choose_backend` says why."""
    kind = type(array)
    if type(other) is not kind or other.dtype != array.dtype:
        return False
    own = "cpu" if kind is np.ndarray else "cuda" if library_of(array) == "cupy" else None
    chosen = _forced.get() or own
    return chosen == backend and own is not None and well_placed((array, other))


def choose_backend(operator: str, arrays: Mapping[str, Any], may_be_float32: Container[str] = ()) -> str:
    """The backend for these arrays, all of which must agree in library, device and dtype.

    Those named in `may_be_float32` may be that where the first has 16 bits.
    """
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        library = library_of(array)
        if library is None:
            raise TypeError(f"{operator}: {name} must be a numpy.ndarray or cupy.ndarray, got {_kind(array)}")
        if library != library_of(first):
            raise TypeError(f"{operator}: {name} is a {_kind(array)} but {first_name} is a {_kind(first)}")
        if library == "cupy" and array.data.device_id != first.data.device_id:
            raise ValueError(f"{operator}: {name} is on {array.device} but {first_name} is on {first.device}")
        if library == "cupy" and array.data.ptr % array.dtype.itemsize:
            raise ValueError(
                f"{operator}: {name} begins at an address that is no multiple of its element size, where a "
                f"GPU reads nothing; {name}.copy() lies at another"
            )
        if array.dtype != first.dtype:
            wider = name in may_be_float32 and is_16_bits(first.dtype)
            if not wider or array.dtype != np.float32:
                also = f", beside which it takes {first.dtype} or float32" if wider else ""
                raise TypeError(
                    f"{operator}: {name} has dtype {array.dtype} but {first_name} has {first.dtype}{also}"
                )
    on_gpu = library_of(first) == "cupy"
    backend = forced_backend() or ("cuda" if on_gpu else "cpu")
    if (backend == "cuda") != on_gpu:
        raise TypeError(f"{operator}: backend {backend!r} cannot take {first_name}, a {_kind(first)}")
    if not _taken(backend, first.dtype):
        allowed = ", ".join(DTYPES[backend])
        raise TypeError(
            f"{operator}: {first_name} has dtype {first.dtype!s}; the {backend} backend takes {allowed}"
        )
    return backend


def check_constant(operator: str, argument: str, array: Any, like: Any, dtypes: tuple[str, ...]) -> None:
    """Require an array without gradient of one of these dtypes, where the array `like` is."""
    library = library_of(array)
    if library is None:
        raise TypeError(f"{operator}: {argument} must be a numpy.ndarray or cupy.ndarray, got {_kind(array)}")
    if library != library_of(like):
        raise TypeError(f"{operator}: {argument} is a {_kind(array)} but the images are a {_kind(like)}")
    if library == "cupy" and array.data.device_id != like.data.device_id:
        raise ValueError(f"{operator}: {argument} is on {array.device} but the images are on {like.device}")
    if array.dtype.name not in dtypes or not array.dtype.isnative:
        raise TypeError(f"{operator}: {argument} has dtype {array.dtype!s}; it takes {', '.join(dtypes)}")


@cache
def is_16_bits(dtype: np.dtype) -> bool:
    """Whether it is float16 or bfloat16."""
    return dtype.name in ("float16", "bfloat16")


@cache  # the name of a dtype takes longer to find than all the other checks
def _taken(backend: str, dtype: np.dtype) -> bool:
    return dtype.name in DTYPES[backend] and dtype.isnative


def _kind(array: Any) -> str:
    kind = type(array)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
