"""Kernels: CUDA text, run on a machine of the project's own."""

import functools
import importlib
import os
from importlib import resources
from typing import Any

import numpy as np

from rawkernels.source import Program, inline, read

from . import _streams
from ._array import fresh, ndarray

MACHINE = os.environ.get("DYNARRAY_STANDIN_MACHINE", "rawkernels.host")
_SIZES = {"uint64": "unsigned long long", "int64": "long long", "float32": "float", "float64": "double"}


@functools.cache
def _files() -> dict[str, str]:
    """The text of every file of kernels without its constants, to its name."""
    names = [entry.name for entry in resources.files("rawkernels").iterdir() if entry.name.endswith(".cu")]
    return {inline(read(name)): name for name in names}


def _program(code: str) -> Program:
    """A program of this text, under the name of its file: the caches of the machines know it by that."""
    known = (name for text, name in _files().items() if code.endswith(text))
    return Program(next(known, "raw.cu"), (), override=code)


class _Kernel:
    """One kernel of a program."""

    def __init__(self, program: Program, name: str) -> None:
        if name not in program.entries:
            raise _streams.CUDARuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        self._program, self.name = program, name

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        """Run it on the current stream."""
        for sizes in (grid, block):
            if not isinstance(sizes, tuple) or not all(isinstance(size, int) and size > 0 for size in sizes):
                raise ValueError(f"{self.name}: a grid or block of {sizes}")
        parameters = self._program.entries[self.name]
        if len(args) != len(parameters):
            raise TypeError(f"{self.name} takes {len(parameters)} arguments, got {len(args)}")
        plain = tuple(map(self._argument, parameters, args))
        sizes = tuple((*each, 1, 1)[:3] for each in (grid, block))
        run = importlib.import_module(MACHINE).run
        _streams.enqueue(lambda: run(self._program, self.name, *sizes, plain, shared_mem))

    def _argument(self, parameter: Any, value: Any) -> Any:
        """What the machine gets. CuPy looks at none of this: a GPU would read wrong bytes, or stop."""
        if not parameter.pointer:
            if not isinstance(value, np.generic):
                raise TypeError(
                    f"{self.name}: {parameter.name} is a {type(value).__name__}, of no certain size"
                )
            return value
        if isinstance(value, np.uint64) and value == 0:
            return None
        if not isinstance(value, ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        if value._block.device != _streams.current_device():
            raise _streams.CUDARuntimeError(f"cudaErrorIllegalAddress: {parameter.name} is on another device")
        if not value.flags.c_contiguous:
            raise ValueError(
                f"{self.name}: {parameter.name} is not contiguous, but a pointer is all that is passed"
            )
        if value.data.ptr % value.itemsize:
            raise _streams.CUDARuntimeError(f"cudaErrorMisalignedAddress: {parameter.name} of {self.name}")
        return value._values


class RawModule:
    """CUDA text with some kernels."""

    def __init__(
        self,
        code: Any = None,
        *,
        path: Any = None,
        options: tuple = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
        jitify: Any = None,
    ) -> None:
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError("cupy.RawModule takes code as str and options as tuple")
        if path or translate_cucomplex or enable_cooperative_groups or name_expressions or backend != "nvrtc":
            raise NotImplementedError("the stand-in for CuPy takes code and options of NVRTC")
        self._program = _program(code)

    def get_function(self, name: str) -> _Kernel:
        """A kernel by its name."""
        return _Kernel(self._program, name)


class RawKernel(_Kernel):
    """One kernel from its text."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: Any = None,
    ) -> None:
        super().__init__(RawModule(code=code, options=options)._program, name)


class ReductionKernel:
    """One number from all elements of an array, by expressions of CUDA; here one thread goes through them."""

    def __init__(
        self,
        in_params: str,
        out_params: str,
        map_expr: str,
        reduce_expr: str,
        post_map_expr: str,
        identity: Any,
        name: str = "reduce_kernel",
        reduce_type: Any = None,
        reduce_dims: bool = True,
        preamble: str = "",
        options: tuple = (),
    ) -> None:
        (kind_in, word), (kind_out, total) = in_params.split(), out_params.split()
        self._kinds, one, other = (kind_in, kind_out), _SIZES[kind_in], _SIZES[kind_out]
        code = f"""{preamble}
extern "C" __global__ void {name}(const {one}* words, const long long count, {other}* totals) {{
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    {other} a = {identity}, {total};
    for (long long _i = 0; _i < count; ++_i) {{
        const {one} {word} = words[_i];
        const {other} b = {map_expr};
        a = {reduce_expr};
    }}
    {post_map_expr};
    totals[0] = {total};
}}
"""
        self._kernel = RawKernel(code, name)

    def __call__(self, array: ndarray) -> ndarray:
        """The number, as an array without axes."""
        if array.dtype.name != self._kinds[0]:
            raise TypeError(f"expected {self._kinds[0]}, got {array.dtype}")
        total = fresh(np.empty((), self._kinds[1]))
        self._kernel((1,), (1,), (array.ravel(), np.int64(array.size), total))
        return total
