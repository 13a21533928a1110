"""How kernels are compiled.

Indices in innermost loops are ``uint64``: Numba counts negative ones from the end of an array, and the test
for that, at each access, keeps LLVM from making vectors of the loop.

What belongs together goes into kernels, callees and intrinsics as one record: a NamedTuple of at most ten
fields, which may be records in turn. At run time a record is its fields.
"""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import numpy.ma  # Numba asks for it at the first call of a kernel, when no fork waits for its import
from numba.core.compiler_lock import global_compiler_lock

from rawkernels import forks
from rawkernels.store import log

from .cache import KernelCache
from .library import CalleeCompiler, KernelCompiler, RolledCompiler, SharedCompiler

# No "nnan" or "ninf": NaN and infinity must come out where they went in.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}

# For what kernels call: without the wrappers for Python and C, which take long to compile.
_CALLED: dict[str, Any] = {
    **_OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": CalleeCompiler,
}
jit: Callable = numba.njit(**_CALLED)
# The same without counting references to arrays, for which threads wait for each other. Only for what neither
# allocates nor returns arrays, nor calls what does: those it is given, the kernel holds.
borrowing_jit: Callable = numba.njit(**_CALLED, _nrt=False)
# Such ones that a kernel calls from several places, for long work each time: they are not copied there.
shared_jit: Callable = numba.njit(**{**_CALLED, "pipeline_class": SharedCompiler}, _nrt=False)
# Such ones operation by operation as they are written: of (1 - f)*x + f*y LLVM may else make x + f*(y - x),
# and that is NaN where x is infinite.
literal_jit: Callable = numba.njit(**{**_CALLED, "fastmath": {"contract"}}, _nrt=False)
# Such ones each of whose operations is rounded, as in NumPy: a position that a product and a sum in one would
# move off a pixel is between two.
exact_jit: Callable = numba.njit(**{**_CALLED, "fastmath": False}, _nrt=False)

# For arguments of what kernels call, which would be compiled once more for a plain 0, 1, False or True.
ZERO: Any = np.intp(0)
ONE: Any = np.intp(1)
FALSE: Any = np.bool_(False)
TRUE: Any = np.bool_(True)


@cache
def available() -> bool:
    """Whether kernels can be compiled: as Python, which ``NUMBA_DISABLE_JIT`` asks for, they mean nothing."""
    if numba.config.DISABLE_JIT:
        log.warning(
            "NUMBA_DISABLE_JIT is set: the definitions in NumPy, which are slow, stand in for kernels"
        )
    return not numba.config.DISABLE_JIT


def cached_jit(function: Callable, **options: Any) -> Callable:
    """For kernels, which Python calls: kept on disk, where that is possible."""
    options = {**_OPTIONS, "no_cfunc_wrapper": True, "pipeline_class": KernelCompiler, **options}
    kernel = numba.njit(**options)(function)
    kernel._cache = KernelCache(function)
    return kernel


def borrowing_cached_jit(function: Callable) -> Callable:
    """The same without counting references, as `borrowing_jit`: there is less to compile."""
    return cached_jit(function, _nrt=False)


def rolled_jit(function: Callable) -> Callable:
    """As `borrowing_cached_jit`, with few passes: for what is much to compile, its loops intrinsics."""
    return cached_jit(function, pipeline_class=RolledCompiler, _nrt=False)


@jit
def zero_like(array: np.ndarray) -> Any:
    """Zero, of the type of an array's elements."""
    return array.dtype.type(0)


forks.wait_for(global_compiler_lock._lock)


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
