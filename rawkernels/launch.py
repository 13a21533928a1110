"""Launch a kernel on CuPy or NumPy arrays: the only place that does, so every guard lives here.

CuPy arrays go to ``cupy.RawModule`` on the current device and stream, without synchronisation, host copy or
allocation, so that a warm launch can be captured in a CUDA graph. NumPy arrays go to :mod:`rawkernels.host`,
or to :mod:`rawkernels.ptx` where :func:`numpy_runner` says so.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import index
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from rawkernels.source import Parameter, Program

MAX_THREADS = 1024
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_SHARED_BYTES = 48 * 1024  # what every supported GPU grants without asking
_INT32_LIMIT = 2**31 - 1

# How CuPy is asked to compile; the compile tests use the same flags.
NVRTC_OPTIONS = ("-std=c++17",)


@dataclass(frozen=True)
class ScalarType:
    """How one array dtype is spelled in the sources."""

    name: str  # of the NumPy dtype
    scalar: str
    accumulator: str
    marker: str | None = None


_TYPES = {
    entry.name: entry
    for entry in (
        ScalarType("float64", "double", "double"),
        ScalarType("float32", "float", "float"),
        ScalarType("float16", "__half", "float", "SCALAR_IS_HALF"),
        ScalarType("bfloat16", "__nv_bfloat16", "float", "SCALAR_IS_BFLOAT16"),
    )
}
DTYPES = tuple(_TYPES)
_DTYPE_OF_C = {
    "double": "float64",
    "float": "float32",
    "__half": "float16",
    "__nv_bfloat16": "bfloat16",
    "int": "int32",
    "long long": "int64",
    "unsigned int": "uint32",
    "unsigned char": "uint8",
}
_ALIASES = {
    "T": "SCALAR",
    "F": "FILTER",
    "P": "POSITION",
    "M": "MASK",
    "ACC": "ACCUMULATOR",
    "INDEX": "INDEX_TYPE",
}
_NULL = np.uint64(0)


@cache  # the name of a dtype takes longer to find than all the rest
def type_constants(dtype: Any, *, wide_index: bool = False, **others: Any) -> tuple[tuple[str, str], ...]:
    """The ``#define``s that choose element, accumulator and index type (see common.cuh).

    `others` are the dtypes of arrays whose elements have a type of their own, by the macro that chooses it.
    """
    entry = _scalar_type(dtype)
    found = [("SCALAR", entry.scalar), ("ACCUMULATOR", entry.accumulator)]
    found.append(("INDEX_TYPE", "long long" if wide_index else "int"))
    if entry.marker:
        found.append((entry.marker, "1"))
    found += [(macro, _scalar_type(other).scalar) for macro, other in others.items()]
    return tuple(found)


def _scalar_type(dtype: Any) -> ScalarType:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", str(dtype))
    if name not in _TYPES:
        raise TypeError(f"no kernel for dtype {name}: expected one of {', '.join(DTYPES)}")
    return _TYPES[name]


@cache
def accumulator_dtype(dtype: Any) -> np.dtype:
    """dtype of the arithmetic that kernels do on elements of `dtype`."""
    return np.dtype(_DTYPE_OF_C[_TYPES[dtype.name].accumulator])


def needs_wide_index(*arrays: Any, work_items: int = 0) -> bool:
    """Whether an element count or a thread count leaves the range of ``int``."""
    # A last block reaches past the work items: leave room for it.
    largest = work_items + MAX_THREADS
    for array in arrays:
        if array is not None and array.size > largest:
            largest = array.size
    return largest > _INT32_LIMIT


def is_cupy(array: Any) -> bool:
    """Whether `array` is a CuPy array; does not import CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def capturing(array: Any) -> bool:
    """Whether what is done with `array` now becomes part of a CUDA graph."""
    return is_cupy(array) and bool(sys.modules["cupy"].cuda.get_current_stream().is_capturing())


def module_of(like: Any) -> Any:
    """The library whose array it is."""
    if is_cupy(like):
        return sys.modules["cupy"]
    if isinstance(like, np.ndarray):
        return np
    raise TypeError(f"expected a numpy or cupy array, got {type(like).__name__}")


def empty(shape: tuple[int, ...], like: Any, dtype: Any = None) -> Any:
    """Uninitialised array where `like` lives. On the host it is filled with NaN (integers: -1)."""
    result = module_of(like).empty(shape, dtype=like.dtype if dtype is None else dtype)
    if isinstance(result, np.ndarray):
        result.reshape(-1).view(np.uint8)[...] = 255  # all bits set is a NaN
    return result


def zeros(shape: tuple[int, ...], like: Any, dtype: Any = None) -> Any:
    """Array of zeros where `like` lives."""
    return module_of(like).zeros(shape, dtype=like.dtype if dtype is None else dtype)


def contiguous(*arrays: Any) -> tuple[Any, ...]:
    """Each array in C order (copied only where it is not); None stays None."""
    module = next((module_of(a) for a in arrays if a is not None), None)
    return tuple([None if a is None or module is None else module.ascontiguousarray(a) for a in arrays])


@lru_cache(maxsize=4096)
def int32s(*values: int) -> tuple[np.int32, ...]:
    """Numbers as kernels take them; those of a call are the same again and again."""
    return tuple(map(np.int32, values))


def blocks(work_items: int, block: int) -> int:
    """Number of blocks of `block` that cover `work_items`."""
    return -(-work_items // block)


_numpy = threading.local()


@contextmanager
def numpy_runner(name: Literal["host", "ptx"]) -> Iterator[None]:
    """Which package runs launches on NumPy arrays inside the block, in this thread; "host" elsewhere."""
    before = getattr(_numpy, "runner", "host")
    _numpy.runner = name
    try:
        yield
    finally:
        _numpy.runner = before


def launch(
    program: Program,
    entry: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: tuple[Any, ...],
    *,
    shared_bytes: int = 0,
) -> None:
    """Run one kernel.

    Parameters
    ----------
    program : Program
        Source and constants.
    entry : str
        Name of the kernel.
    grid, block : tuple of int
        One to three sizes, x first. A grid with a zero in it does nothing.
    arguments : tuple
        Arrays, NumPy scalars of exactly the declared type, or None for a null pointer.
    shared_bytes : int
        Dynamic shared memory of a block.
    """
    declared = _declarations.get((program, entry)) or _declare(program, entry)
    sizes = _sizes(grid, block, shared_bytes) or _refuse_sizes(entry, grid, block, shared_bytes)
    fitted = declared.known.get(tuple(map(type, arguments)))
    if fitted is None or not _fits(fitted, arguments):
        fitted = _check_arguments(program, entry, declared, arguments)
    if 0 in sizes[0]:
        return
    if fitted.cupy:
        _launch_cupy(program, entry, sizes, arguments, fitted, shared_bytes)
    else:
        _runner(getattr(_numpy, "runner", "host")).run(program, entry, *sizes, arguments, shared_bytes)


@cache
def _runner(name: str) -> Any:
    """A package that runs launches on NumPy arrays; both compile with g++, and are for those who use them."""
    return importlib.import_module(f"rawkernels.{name}")


class _Fitted(NamedTuple):
    """Arguments of some types that were found to fit: whose arrays, where, of which dtypes; where null is."""

    cupy: bool
    arrays: tuple[tuple[int, np.dtype], ...]
    nulls: tuple[int, ...]


@dataclass(frozen=True)
class _Declared:
    """The parameters of a kernel, and which types of arguments were found to fit them.

    The type of a NumPy scalar is its dtype. Two calls with the same types can differ in the dtypes of arrays
    and in their layout.
    """

    parameters: tuple[Parameter, ...]
    known: dict[tuple[type, ...], _Fitted]


_declarations: dict[tuple[Program, str], _Declared] = {}


def _declare(program: Program, entry: str) -> _Declared:
    parameters = program.entries.get(entry)
    if parameters is None:
        raise ValueError(f"{program.file} has no kernel {entry}: it has {', '.join(program.entries)}")
    return _declarations.setdefault((program, entry), _Declared(parameters, {}))


Sizes = tuple[int, int, int]


def _three(sizes: tuple[int, ...]) -> Sizes:
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"a grid and a block have 1 to 3 sizes, got {sizes}")
    x, y, z = (*map(index, sizes), 1, 1)[:3]  # no float gets into what is remembered
    return x, y, z


@lru_cache(maxsize=4096)  # the sizes of a call are the same again and again
def _sizes(grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int) -> tuple[Sizes, Sizes] | None:
    """Grid and block in three sizes; None if a GPU takes no such launch."""
    grid, block = _three(grid), _three(block)
    (gx, gy, gz), (bx, by, bz) = grid, block
    fit = (
        0 <= gx <= MAX_GRID[0]
        and 0 <= gy <= MAX_GRID[1]
        and 0 <= gz <= MAX_GRID[2]
        and min(block) > 0
        and bz <= 64
        and bx * by * bz <= MAX_THREADS
        and 0 <= shared_bytes <= MAX_SHARED_BYTES
    )
    return (grid, block) if fit else None


def _refuse_sizes(entry: str, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int) -> NoReturn:
    grid, block = _three(grid), _three(block)
    for axis, size, limit in zip("xyz", grid, MAX_GRID, strict=True):
        if not 0 <= size <= limit:
            raise ValueError(f"{entry}: grid size {axis} = {size} is not in 0..{limit}")
    for axis, size, limit in zip("xyz", block, (MAX_THREADS, MAX_THREADS, 64), strict=True):
        if not 1 <= size <= limit:
            raise ValueError(f"{entry}: block size {axis} = {size} is not in 1..{limit}")
    if not 0 <= shared_bytes <= MAX_SHARED_BYTES:
        raise ValueError(f"{entry}: {shared_bytes} bytes of shared memory, limit {MAX_SHARED_BYTES}")
    bx, by, bz = block
    raise ValueError(f"{entry}: a block of {bx} x {by} x {bz} has more than {MAX_THREADS} threads")


def _fits(fitted: _Fitted, arguments: tuple[Any, ...]) -> bool:
    """Whether arguments of these types, which have fitted before, fit again; the whole check says why not.

    Here every launch passes: what it costs is counted by a test.
    """
    for place, dtype in fitted.arrays:
        array = arguments[place]
        if array.dtype != dtype or not array.flags.c_contiguous:
            return False
    return True


def _check_arguments(
    program: Program, entry: str, declared: _Declared, arguments: tuple[Any, ...]
) -> _Fitted:
    """Compare each argument with its declaration, and remember the types."""
    parameters = declared.parameters
    if len(arguments) != len(parameters):
        raise TypeError(f"{entry} takes {len(parameters)} arguments, got {len(arguments)}")
    arrays: list[tuple[int, Any]] = []
    for place, (parameter, argument) in enumerate(zip(parameters, arguments, strict=True)):
        expected = _dtype_name(program, parameter)
        if not parameter.pointer:
            if not isinstance(argument, np.generic) or argument.dtype.name != expected:
                wanted = f"a numpy.{expected} scalar"
                raise TypeError(f"{entry}: {parameter.name} must be {wanted}, got {_describe(argument)}")
        elif argument is not None:
            _check_array(entry, parameter, expected, argument)
            arrays.append((place, argument))
    if not arrays:
        raise TypeError(f"{entry}: no array among the arguments")
    if len({is_cupy(array) for _, array in arrays}) > 1:
        raise TypeError(f"{entry}: got numpy and cupy arrays together")
    nulls = tuple(place for place, argument in enumerate(arguments) if argument is None)
    dtypes = tuple((place, array.dtype) for place, array in arrays)
    fitted = _Fitted(is_cupy(arrays[0][1]), dtypes, nulls)
    return declared.known.setdefault(tuple(map(type, arguments)), fitted)


def _check_array(entry: str, parameter: Parameter, expected: str, argument: Any) -> None:
    if not isinstance(argument, np.ndarray) and not is_cupy(argument):
        wanted = f"an array of {expected}"
        raise TypeError(f"{entry}: {parameter.name} must be {wanted}, got {_describe(argument)}")
    if argument.dtype.name != expected or not argument.dtype.isnative:
        found = argument.dtype.name if argument.dtype.isnative else argument.dtype.str
        raise TypeError(f"{entry}: {parameter.name} must have dtype {expected}, got {found}")
    if not argument.flags.c_contiguous:
        raise ValueError(f"{entry}: {parameter.name} must be C-contiguous, got strides {argument.strides}")


def _dtype_name(program: Program, parameter: Parameter) -> str:
    kind = parameter.type
    if kind in _ALIASES:
        kind = program.constant(_ALIASES[kind])
    if kind not in _DTYPE_OF_C:
        raise TypeError(
            f"{program.file}: parameter {parameter.name} has type {kind}, which has no dtype here"
        )
    return _DTYPE_OF_C[kind]


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"{kind} of dtype {value.dtype.name}" if hasattr(value, "dtype") else kind


_kernels: dict[tuple[Program, str, int], Any] = {}
_kernels_lock = threading.Lock()


def _launch_cupy(
    program: Program,
    entry: str,
    sizes: tuple[Sizes, Sizes],
    arguments: tuple[Any, ...],
    fitted: _Fitted,
    shared_bytes: int,
) -> None:
    cupy = sys.modules["cupy"]
    device = cupy.cuda.runtime.getDevice()
    for place, _ in fitted.arrays:
        if arguments[place].data.device_id != device:
            _refuse_devices(entry, [arguments[place] for place, _ in fitted.arrays], device)
    if fitted.nulls:
        arguments = tuple([_NULL if argument is None else argument for argument in arguments])
    kernel = _kernels.get((program, entry, device)) or _load_kernel(cupy, program, entry, device)
    kernel(*sizes, arguments, shared_mem=shared_bytes)


def _refuse_devices(entry: str, arrays: list[Any], device: int) -> NoReturn:
    places = {array.data.device_id for array in arrays}
    if len(places) > 1:
        raise ValueError(f"{entry}: arrays live on different devices: {sorted(places)}")
    raise ValueError(f"{entry}: arrays live on device {places.pop()}, the current device is {device}")


def _load_kernel(cupy: Any, program: Program, entry: str, device: int) -> Any:
    """The kernel on the current device, compiled where CuPy has not kept it."""
    key = (program, entry, device)
    with _kernels_lock:
        if key not in _kernels:
            module = cupy.RawModule(code=program.text, options=NVRTC_OPTIONS)
            _kernels[key] = module.get_function(entry)
        return _kernels[key]


def prepare(program: Program) -> None:
    """Load all kernels of a program for CuPy's current device, ahead of their first launch."""
    cupy = importlib.import_module("cupy")
    device = cupy.cuda.runtime.getDevice()
    for entry in program.entries:
        _load_kernel(cupy, program, entry, device)
