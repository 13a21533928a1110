"""How kernels are compiled."""

from collections.abc import Callable

import numba

# No "nnan" or "ninf": NaN and infinity must come out where they went in.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}

jit: Callable = numba.njit(**_OPTIONS)  # for what kernels call
cached_jit: Callable = numba.njit(**_OPTIONS, cache=True)  # for kernels, which Python calls


def flag(value: bool) -> bool | None:
    """None for False: Numba compiles a branch on ``is None`` away, with all loops in it."""
    return True if value else None
