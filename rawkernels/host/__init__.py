"""Run CUDA kernels on NumPy arrays: the same sources, compiled by g++, one fiber per CUDA thread.

Slow, and made for finding faults: threads of a block run in shuffled order, shared memory starts as NaN,
every array argument lies between guard zones, and the launch raises :class:`KernelError` when a kernel
writes there, waits at a barrier that others have not reached, or overruns its shared memory. A stray read
finds NaN.

Environment variables:

- ``DYNARRAY_CACHE_DIR``: where compiled libraries are kept (default: ``$XDG_CACHE_HOME/dynarray``).
- ``DYNARRAY_HOST_SEED``: seed of the thread and block order (default 0).
- ``DYNARRAY_HOST_DEBUG=1``: compile with ``-g -O0``, to step through a kernel with gdb.
- ``CXX``: the compiler and its options (default ``g++``).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np

from rawkernels import forks
from rawkernels.host.guard import Guarded
from rawkernels.host.library import compiler_version, load
from rawkernels.source import Program

__all__ = ["KernelError", "compiler_version", "launch_request", "run"]


class KernelError(RuntimeError):
    """A kernel did something that is an error, or undefined, on a GPU."""


class _Request(ctypes.Structure):
    """Mirror of ShimRequest in runtime.cpp."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("message", ctypes.c_char_p),
    ]


def launch_request(
    grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int
) -> tuple[ctypes.Structure, Any]:
    """What the fibers are to run, and the text, to be kept meanwhile, where they say why they could not."""
    message = ctypes.create_string_buffer(256)
    seed = int(os.environ.get("DYNARRAY_HOST_SEED", "0"))
    return _Request(grid, block, shared_bytes, seed, ctypes.cast(message, ctypes.c_char_p)), message


def run(
    program: Program,
    entry: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: tuple[Any, ...],
    shared_bytes: int = 0,
) -> None:
    """Run one kernel; :func:`rawkernels.launch.launch` has checked the arguments."""
    function = getattr(load(program), f"shim_enter_{entry}")
    names = [parameter.name for parameter in program.entries[entry]]
    guarded: dict[tuple[int, int], Guarded] = {}  # one copy of an array that is passed twice
    pointers = (ctypes.c_void_p * len(arguments))()
    values = []  # keeps alive what the pointers refer to
    for position, (name, argument) in enumerate(zip(names, arguments, strict=True)):
        if isinstance(argument, np.ndarray):
            key = (argument.ctypes.data, argument.nbytes)
            if key not in guarded:
                guarded[key] = Guarded(argument, name)
            value: Any = ctypes.c_void_p(guarded[key].address)
        elif argument is None:
            value = ctypes.c_void_p(None)
        else:
            value = ctypes.create_string_buffer(argument.tobytes())
        values.append(value)
        pointers[position] = ctypes.addressof(value)

    request, message = launch_request(grid, block, shared_bytes)
    with forks.held_off():
        failed = function(ctypes.byref(request), pointers)
    if failed:
        raise KernelError(f"{entry}: {message.value.decode()}")
    strays = [text for copy in guarded.values() if (text := copy.stray_writes())]
    if strays:
        raise KernelError(f"{entry}: {'; '.join(strays)}")
    for parameter, argument in zip(program.entries[entry], arguments, strict=True):
        if parameter.pointer and not parameter.const and argument is not None:
            guarded[argument.ctypes.data, argument.nbytes].copy_back(argument)
