"""The memory of a launch: arrays at addresses of the machine, shared memory, arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from rawkernels.host import library
from rawkernels.source import Parameter

from .parse import Kernel
from .report import Named, Record

# Each array has a stretch of addresses of its own and lies in its middle, so that a stray index stays in it.
_STRETCH_BITS = 40  # as ADDRESS_BITS in machine.cpp
_ALIGNMENT = 512  # of what CuPy allocates
_MOST_RECORDS = 64


@dataclass(frozen=True)
class Region:
    """Memory of one array, or of several that overlap."""

    low: int  # where it is in this process
    high: int
    arrays: tuple[tuple[Parameter, np.ndarray], ...]

    @property
    def writable(self) -> bool:
        """Whether a kernel may write there."""
        return any(not parameter.const for parameter, _ in self.arrays)

    @property
    def granule(self) -> int:
        """Bytes of what is looked at as one when it comes to races."""
        sizes = [array.itemsize for _, array in self.arrays]
        return min(size if size in (1, 2, 4, 8) else 1 for size in sizes)

    @property
    def alignment(self) -> int:
        """Where it begins on a GPU, modulo what an allocation is aligned to."""
        array = self.arrays[0][1]
        return (self.low - _owner(array).ctypes.data) % _ALIGNMENT

    @property
    def named(self) -> Named:
        """How reports call it."""
        names = dict.fromkeys(parameter.name for parameter, _ in self.arrays)
        array = self.arrays[0][1]
        shape = array.shape if len(self.arrays) == 1 else ((self.high - self.low) // array.itemsize,)
        return Named(" and ".join(names), shape, array.itemsize)


def regions(parameters: Sequence[Parameter], arguments: Sequence[Any]) -> list[Region]:
    """The arrays among the arguments, in their order wherever they lie; those that overlap are one."""
    arrays = [(p, a) for p, a in zip(parameters, arguments, strict=True) if isinstance(a, np.ndarray)]
    found: list[Region] = []
    for parameter, array in sorted(arrays, key=lambda item: item[1].ctypes.data):
        low = array.ctypes.data
        high = low + array.nbytes
        last = found[-1] if found else None
        if last and (low < last.high or (low, high) == (last.low, last.high)):
            found[-1] = Region(last.low, max(high, last.high), (*last.arrays, (parameter, array)))
        else:
            found.append(Region(low, high, ((parameter, array),)))
    order = [parameter.name for parameter, _ in arrays]
    return sorted(found, key=lambda region: min(order.index(p.name) for p, _ in region.arrays))


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory it is: on a GPU that would be an allocation of its own."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class Launch:
    """A machine with its memory, for one launch."""

    def __init__(self, machine: int, kernel: Kernel, found: list[Region], shared_bytes: int) -> None:
        self._machine = ctypes.c_void_p(machine)
        self._starts: dict[int, int] = {}
        functions = machine_library()
        for number, region in enumerate(found):
            start = ((number + 1) << _STRETCH_BITS) + (1 << (_STRETCH_BITS - 1)) + region.alignment
            for _, array in region.arrays:
                self._starts[array.ctypes.data] = start + array.ctypes.data - region.low
            size = region.high - region.low
            functions.ptx_add_global(
                self._machine,
                *map(ctypes.c_uint64, (region.low, size, start)),
                region.granule,
                int(region.writable),
            )
        for shared in kernel.shared:
            size = shared_bytes if shared.dynamic else shared.bytes
            functions.ptx_add_shared(self._machine, ctypes.c_uint64(size), kernel.shared_granule)

    def argument_list(self, arguments: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Pointers to the machine and to the value of each argument; and the values, to be kept meanwhile."""
        values: list[Any] = []
        pointers = (ctypes.c_void_p * (1 + len(arguments)))()
        pointers[0] = self._machine.value
        for position, argument in enumerate(arguments, 1):
            if argument is None:
                value: Any = ctypes.c_uint64(0)
            elif isinstance(argument, np.ndarray):
                value = ctypes.c_uint64(self._starts[argument.ctypes.data])
            elif isinstance(argument, ctypes.c_void_p):
                pointers[position] = argument.value
                continue
            else:
                value = ctypes.create_string_buffer(argument.tobytes(), 8)
            values.append(value)
            pointers[position] = ctypes.addressof(value)
        return pointers, values

    def records(self) -> list[Record]:
        """What was reported."""
        found = (Record * _MOST_RECORDS)()
        count = machine_library().ptx_records(self._machine, found, _MOST_RECORDS)
        return list(found[:count])


@contextmanager
def launch(kernel: Kernel, found: list[Region], shared_bytes: int, threads: int) -> Iterator[Launch]:
    """A machine that is there for one launch."""
    functions = machine_library()
    machine = functions.ptx_new(threads)
    try:
        yield Launch(machine, kernel, found, shared_bytes)
    finally:
        functions.ptx_delete(ctypes.c_void_p(machine))


FLAGS = ("-std=c++17", "-fPIC", "-shared", "-O2")


@cache
def machine_library() -> ctypes.CDLL:
    """The compiled machine.cpp."""
    library.load_runtime()
    headers = "".join(read_text(name) for name in HEADERS)
    made = library.build(
        "machine-runtime", read_text("machine.cpp"), FLAGS, (f"-I{folder()}",), headers, "ptx"
    )
    made.ptx_new.restype = ctypes.c_void_p
    return made


HEADERS = ("arithmetic.h", "machine.h", "counting.h")


def folder() -> str:
    """Where the headers are; the package is installed unpacked."""
    return str(resources.files(__package__))


def read_text(name: str) -> str:
    """Text of a file of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
