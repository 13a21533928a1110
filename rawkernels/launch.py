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
from typing import Any, Literal, NoReturn

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
    return tuple(None if a is None else module_of(a).ascontiguousarray(a) for a in arrays)


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
    grid, block = _three(grid), _three(block)
    if not _fit(grid, block, shared_bytes):
        _refuse_sizes(entry, grid, block, shared_bytes)
    arrays = _known_arrays(declared, arguments) or _check_arguments(program, entry, declared, arguments)
    if 0 in grid:
        return
    if is_cupy(arrays[0]):
        _launch_cupy(program, entry, grid, block, arguments, arrays, shared_bytes)
    else:
        _runner(getattr(_numpy, "runner", "host")).run(program, entry, grid, block, arguments, shared_bytes)


@cache
def _runner(name: str) -> Any:
    """A package that runs launches on NumPy arrays; both compile with g++, and are for those who use them."""
    return importlib.import_module(f"rawkernels.{name}")


@dataclass(frozen=True)
class _Declared:
    """The parameters of a kernel, and which types of arguments were found to fit them.

    `known` leads from the types of the arguments, which for a NumPy scalar is its dtype, to the places and
    dtypes of the arrays among them: what two calls with the same types can differ in.
    """

    parameters: tuple[Parameter, ...]
    known: dict[tuple[type, ...], tuple[tuple[int, np.dtype], ...]]


_declarations: dict[tuple[Program, str], _Declared] = {}


def _declare(program: Program, entry: str) -> _Declared:
    parameters = program.entries.get(entry)
    if parameters is None:
        raise ValueError(f"{program.file} has no kernel {entry}: it has {', '.join(program.entries)}")
    return _declarations.setdefault((program, entry), _Declared(parameters, {}))


def _three(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def _fit(grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int) -> bool:
    (gx, gy, gz), (bx, by, bz) = grid, block
    return (
        0 <= gx <= MAX_GRID[0]
        and 0 <= gy <= MAX_GRID[1]
        and 0 <= gz <= MAX_GRID[2]
        and min(block) > 0
        and bz <= 64
        and bx * by * bz <= MAX_THREADS
        and 0 <= shared_bytes <= MAX_SHARED_BYTES
    )


def _refuse_sizes(
    entry: str, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int
) -> NoReturn:
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


def _known_arrays(declared: _Declared, arguments: tuple[Any, ...]) -> list[Any] | None:
    """The arrays, where arguments of these types have fitted before; None sends them to the whole check.

    Here every launch passes: what it costs is counted by a test.
    """
    expected = declared.known.get(tuple(map(type, arguments)))
    if expected is None:
        return None
    arrays = []
    for place, dtype in expected:
        array = arguments[place]
        if array.dtype != dtype or not array.flags.c_contiguous:
            return None
        arrays.append(array)
    return arrays


def _check_arguments(
    program: Program, entry: str, declared: _Declared, arguments: tuple[Any, ...]
) -> list[Any]:
    """Compare each argument with its declaration; return the arrays, and remember the types."""
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
    declared.known[tuple(map(type, arguments))] = tuple((place, array.dtype) for place, array in arrays)
    return [array for _, array in arrays]


def _check_array(entry: str, parameter: Parameter, expected: str, argument: Any) -> None:
    if not isinstance(argument, np.ndarray) and not is_cupy(argument):
        wanted = f"an array of {expected}"
        raise TypeError(f"{entry}: {parameter.name} must be {wanted}, got {_describe(argument)}")
    if argument.dtype.name != expected:
        raise TypeError(f"{entry}: {parameter.name} must have dtype {expected}, got {argument.dtype.name}")
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
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: tuple[Any, ...],
    arrays: list[Any],
    shared_bytes: int,
) -> None:
    cupy = sys.modules["cupy"]
    device = cupy.cuda.runtime.getDevice()
    places = {array.data.device_id for array in arrays}
    if len(places) > 1:
        raise ValueError(f"{entry}: arrays live on different devices: {sorted(places)}")
    if device not in places:
        raise ValueError(f"{entry}: arrays live on device {places.pop()}, the current device is {device}")
    kernel = _kernels.get((program, entry, device)) or _load_kernel(cupy, program, entry, device)
    kernel(grid, block, tuple(_NULL if a is None else a for a in arguments), shared_mem=shared_bytes)


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
