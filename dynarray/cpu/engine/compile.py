"""How kernels are compiled.

Indices in innermost loops are ``uint64``: Numba counts negative ones from the end of an array, and the test
for that, at each access, keeps LLVM from making vectors of the loop.

What belongs together goes into kernels, callees and intrinsics as one record: a NamedTuple of at most ten
fields, which may be records in turn. At run time a record is its fields.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np

# No "nnan" or "ninf": NaN and infinity must come out where they went in.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}

# For what kernels call: without the wrappers for Python and C, which cost a third of the compile time.
_CALLED: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
jit: Callable = numba.njit(**_CALLED)
# The same without counting references to arrays, for which threads wait for each other. Only for what neither
# allocates nor returns arrays, nor calls what does: those it is given, the kernel holds.
borrowing_jit: Callable = numba.njit(**_CALLED, _nrt=False)

# For arguments of what kernels call, which would be compiled once more for a plain 0, 1, False or True.
ZERO, ONE, FALSE, TRUE = np.intp(0), np.intp(1), np.bool_(False), np.bool_(True)


def cached_jit(function: Callable) -> Callable:
    """For kernels, which Python calls: kept on disk, where that is possible.

    Without a directory that can be written, or on a full disk, each process compiles for itself.
    """
    kernel = numba.njit(**_OPTIONS, no_cfunc_wrapper=True)(function)
    try:
        kernel.enable_caching()
    except RuntimeError:  # no directory can be written
        return kernel
    cache = kernel._cache
    cache._cache_file._source_stamp = _stamp()
    cache.save_overload = _without_disk_errors(cache.save_overload)
    cache.load_overload = _without_disk_errors(cache.load_overload)
    return kernel


@lru_cache(maxsize=1)
def _stamp() -> tuple:
    """Of all sources of kernels: Numba itself looks at a kernel's own file, not at those of what it calls."""
    folder = Path(__file__).parent.parent
    files = sorted(folder.rglob("*.py"))
    return tuple((str(path.relative_to(folder)), path.stat().st_mtime, path.stat().st_size) for path in files)


def _without_disk_errors(method: Callable) -> Callable:
    """`method`, doing nothing where the disk fails it: what is not loaded is compiled."""

    def guarded(*args: Any) -> Any:
        try:
            return method(*args)
        except OSError:
            return None

    return guarded


@jit
def zero_like(array: np.ndarray) -> Any:
    """Zero, of the type of an array's elements."""
    return array.dtype.type(0)


def flag(value: bool) -> bool | None:
    """None for False: Numba compiles a branch on ``is None`` away, with all loops in it."""
    return True if value else None


def kernel_input(array: np.ndarray) -> np.ndarray:
    """The array as kernels take inputs: contiguous, and not flagged read-only.

    Read-only arrays have another type in Numba, for which everything would be compiled again. No kernel
    writes to its inputs.
    """
    array = np.ascontiguousarray(array)
    if array.flags.writeable:
        return array
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=array))
