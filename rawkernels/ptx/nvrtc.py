"""NVRTC, CUDA's compiler as a library, through its Python binding: it needs no GPU."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rawkernels import forks, store
from rawkernels.launch import NVRTC_OPTIONS

CUPY_ADDS = ("-ftz=true",)  # to the options that it is given
INSTALL = "pip install 'dynamic-filters[ptx]'"
_USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Compiled(NamedTuple):
    """What NVRTC made of a text: nothing, and a log that says why, where it did not compile."""

    done: bool
    log: str
    ptx: str
    cubin_bytes: int


class Usage(NamedTuple):
    """What ptxas says of the machine code of one kernel: registers of a thread, bytes of local memory."""

    registers: int
    stack: int
    spills: int


def problem() -> str | None:
    """Why NVRTC cannot be used here, and what to install; None where it can."""
    try:
        version()
        include_directory()
    except (ImportError, OSError, RuntimeError) as error:
        return f"NVRTC cannot be used ({error}): {INSTALL}"
    return None


def include_directory() -> str:
    """CUDA's headers, from the package nvidia-cuda-runtime."""
    import nvidia

    for base in nvidia.__path__:
        for header in sorted(Path(base).glob("*/include/cuda_fp16.h")):
            return str(header.parent)
    raise FileNotFoundError("cuda_fp16.h: install nvidia-cuda-runtime")


@cache
def _binding() -> Any:
    with forks.held_off():
        from cuda.bindings import nvrtc
    return nvrtc


@cache
def version() -> str:
    """Version of the compiler, without the build."""
    binding = _binding()
    status, major, minor = binding.nvrtcVersion()
    if status != binding.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"nvrtcVersion: {status}")
    return f"{major}.{minor}"


def compile_text(text: str, options: Sequence[str]) -> Compiled:
    """Compile a text: for compute_XY into PTX, for sm_XY into machine code too."""
    nvrtc = _binding()
    given = [option.encode() for option in (*options, f"-I{include_directory()}")]
    with forks.held_off():
        _, handle = nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
        try:
            (status,) = nvrtc.nvrtcCompileProgram(handle, len(given), given)
            done = status == nvrtc.nvrtcResult.NVRTC_SUCCESS
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, handle)
            ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, handle) if done else ""
            return Compiled(done, log, ptx, nvrtc.nvrtcGetCUBINSize(handle)[1] if done else 0)
        finally:
            nvrtc.nvrtcDestroyProgram(handle)


def _text(size_of: Any, read: Any, handle: Any) -> str:
    _, size = size_of(handle)
    # The binding writes into the object that it is given: never one of those that Python keeps and shares, as
    # all of no or one byte are. An empty log is one zero.
    buffer = bytes(size + 2)
    read(handle, buffer)
    return buffer.rstrip(b"\0").decode(errors="replace")


def options(architecture: str, ftz: bool) -> tuple[str, ...]:
    """What CuPy passes on an architecture ("sm_90"), with line numbers, which change no instruction."""
    generation = architecture.replace("sm_", "compute_")
    flush = CUPY_ADDS if ftz else ()
    return (f"--gpu-architecture={generation}", *NVRTC_OPTIONS, *flush, "-lineinfo")


def machine_options(architecture: str) -> tuple[str, ...]:
    """What CuPy passes, for machine code, and that ptxas is to say what it uses."""
    return (f"--gpu-architecture={architecture}", "--ptxas-options=-v", *NVRTC_OPTIONS, *CUPY_ADDS)


def read_usage(log: str) -> dict[str, Usage]:
    """By kernel, what ptxas says in the log of a compilation with `machine_options`."""
    return {
        found["name"]: Usage(
            int(found["registers"]), int(found["stack"]), int(found["stores"]) + int(found["loads"])
        )
        for found in _USAGE.finditer(log)
    }


def cache_directory() -> Path:
    """Directory of PTX, and of the libraries made of it."""
    return store.cache_folder("ptx")


def to_ptx(name: str, text: str, architecture: str, ftz: bool) -> str:
    """The PTX of a program, from the cache where it is there."""
    return _cached(name, text, options(architecture, ftz), "ptx")


def usage(name: str, text: str, architecture: str) -> dict[str, Usage]:
    """By kernel of a program, what its machine code uses; from the cache where it is there."""
    return read_usage(_cached(name, text, machine_options(architecture), "log"))


def _cached(name: str, text: str, chosen: tuple[str, ...], what: str) -> str:
    """A field of what NVRTC makes of a program."""
    key = hashlib.sha256("\0".join((version(), include_directory(), *chosen, text)).encode()).hexdigest()
    entry = cache_directory() / f"{name.partition('.')[0]}-{key[:32]}.{what}"
    kept = store.load_entry(entry)
    if kept is not None:
        return kept.decode()
    made = compile_text(text, chosen)
    if not made.done:
        raise RuntimeError(f"NVRTC could not compile {name} with {' '.join(chosen)}:\n{made.log[:4000]}")
    found: str = getattr(made, what)
    store.save_entry(entry, found.encode())
    return found
