"""Compile programs with g++ into shared libraries, kept on disk under a hash of everything they depend on."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from rawkernels import compilations, forks, store
from rawkernels.source import Parameter, Program

# -O1 makes a library in half the time of -O2, and what runs afterwards is a few milliseconds in tests.
_COMMON = (
    *("-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-w"),
    "-fno-extern-tls-init",  # dynamic shared memory, an extern thread_local, has no initialiser to call
)
_FAST = ("-O1",)
_DEBUG = ("-O0", "-g")
# setjmp and longjmp between stacks, which _FORTIFY_SOURCE takes for an error
_RUNTIME = ("-std=c++17", "-fPIC", "-shared", "-O2", "-U_FORTIFY_SOURCE")
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_SHARED_BYTES = 48 * 1024
_GUARD_BYTES = 1024  # as SHARED_GUARD in runtime.cpp

_lock = threading.Lock()
_key_locks: dict[str, threading.Lock] = {}
_loaded: dict[tuple[Program, bool], ctypes.CDLL] = {}
_fallback: list[tempfile.TemporaryDirectory[str]] = []


def _forget_locks() -> None:
    """In a forked child nobody releases what other threads held."""
    global _lock
    _lock = threading.Lock()
    _key_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def load(program: Program) -> ctypes.CDLL:
    """The compiled library of a program."""
    debug = os.environ.get("DYNARRAY_HOST_DEBUG", "") not in ("", "0")
    found = _loaded.get((program, debug))
    if found is not None:
        return found
    load_runtime()
    include = f"-I{_directory() / 'include'}"
    headers = "".join(read_text(f"include/{name}") for name in _HEADERS)
    flags = (*_COMMON, *(_DEBUG if debug else _FAST))
    library = build(program.file.partition(".")[0], with_entries(program), flags, (include,), headers)
    return _loaded.setdefault((program, debug), library)


_HEADERS = ("cuda_shim.h", "cuda_fp16.h", "cuda_bf16.h")


@cache
def load_runtime() -> ctypes.CDLL:
    """The library that runs the fibers."""
    return build("runtime", read_text("runtime.cpp"), _RUNTIME, ("-ldl",), "")


@cache
def _directory() -> Path:
    """Where the shim's headers are; the package is installed unpacked."""
    return Path(str(resources.files(__package__)))


@cache
def read_text(name: str) -> str:
    """Text of a file of this package."""
    return (_directory() / name).read_text(encoding="utf-8")


def with_entries(program: Program) -> str:
    """The program's text, unchanged, between the shim and one exported function per kernel."""
    text = program.text
    declared = sorted(set(_DYNAMIC_SHARED.findall(text)))
    if len(declared) > 1:
        raise NotImplementedError(f"{program.file}: more than one dynamic shared array: {declared}")
    # CUDA has no definition of dynamic shared memory: the launch makes it.
    definitions = [
        f"alignas(16) thread_local {kind} {name}[{_SHARED_BYTES + _GUARD_BYTES} / sizeof({kind})];"
        for kind, name in declared
    ]
    uses_shared = "__shared__" in text
    anchor = "thread_local char shim_anchor;" if uses_shared else ""
    kernel = (
        "struct ShimRequest; struct ShimKernel { void (*call)(void**); void* anchor; char* dynamic; };\n"
        'extern "C" int shim_launch(const ShimRequest*, const ShimKernel*, void**);\n'
    )
    anchor_address = "&shim_anchor" if uses_shared else "nullptr"
    dynamic = f"reinterpret_cast<char*>({declared[0][1]})" if declared else "nullptr"
    entries = [_entry(name, found, anchor_address, dynamic) for name, found in program.entries.items()]
    head = '#include "cuda_shim.h"\n#line 1 "' + program.file + '.assembled"\n'
    return "\n".join([head + text, *definitions, anchor, kernel, *entries, ""])


def _entry(name: str, parameters: tuple[Parameter, ...], anchor: str, dynamic: str) -> str:
    values = []
    for position, parameter in enumerate(parameters):
        kind = ("const " if parameter.const else "") + parameter.type + ("*" if parameter.pointer else "")
        values.append(f"*static_cast<{kind}*>(arguments[{position}])")
    return (
        f"static void shim_call_{name}(void** arguments) {{ {name}({', '.join(values)}); }}\n"
        f'extern "C" int shim_enter_{name}(const ShimRequest* request, void** arguments) {{\n'
        f"    const ShimKernel kernel = {{shim_call_{name}, {anchor}, {dynamic}}};\n"
        f"    return shim_launch(request, &kernel, arguments);\n}}"
    )


def compiler() -> list[str]:
    """The C++ compiler and its options: the words of ``CXX``, the first as a path."""
    wanted = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    found = shutil.which(wanted[0])
    if found is None:
        raise RuntimeError(
            f"the host backend compiles CUDA sources with {wanted[0]}, which is not on the PATH: "
            "install g++ (Debian, Ubuntu: apt install g++) or set CXX"
        )
    return [found, *wanted[1:]]


@cache
def compiler_version(*command: str) -> str:
    """First line of what a compiler says about itself."""
    done = _run([*command, "--version"], os.environ)
    if done.returncode or not done.stdout:
        raise RuntimeError(
            f"{shlex.join(command)} is no C++ compiler: --version ended with exit status {done.returncode}"
        )
    return done.stdout.splitlines()[0]


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise RuntimeError(f"the compiler {command[0]} does not start: {error}") from error


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr or done.stdout).strip()[:4000] or f"nothing (exit status {done.returncode})"


def cache_directory() -> Path:
    """Directory of the compiled libraries."""
    return store.cache_folder("host")


def build(
    stem: str, text: str, flags: tuple[str, ...], places: tuple[str, ...], depends: str, folder: str = "host"
) -> ctypes.CDLL:
    """The library made from `text`, compiled if that folder of the cache does not have it.

    Those whose stem ends with "runtime" are there for the others to find their functions.
    """
    command = compiler()
    content = "\0".join((compiler_version(*command), *command[1:], *flags, depends, text))
    name = f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:32]}.so"
    with _lock:
        key_lock = _key_locks.setdefault(name, threading.Lock())
    with key_lock:
        entry = store.cache_folder(folder) / name
        for attempt in range(2):
            if store.load_entry(entry) is None:
                compilations.begins(entry)
                began = time.perf_counter()
                made = _compile(command, text, flags, places, entry)
                seconds, kept = time.perf_counter() - began, store.save_entry(entry, made)
                compilations.ends(entry.stem, seconds, kept=kept)
                if not kept:
                    entry = _temporary(name)
                    store.save_entry(entry, made)
            try:
                return _open(entry)
            except OSError as error:  # from another machine, perhaps
                if attempt:
                    raise
                store.drop_entry(entry, str(error))
        raise AssertionError("unreachable")


def _open(library: Path) -> ctypes.CDLL:
    with forks.held_off():
        # Kernels find shim_* in the runtime.
        return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL if "runtime-" in library.name else 0)


def _temporary(name: str) -> Path:
    """For the life of this process, where the usual place cannot be written or is not to be trusted."""
    with _lock:
        if not _fallback:
            _fallback.append(tempfile.TemporaryDirectory(prefix="dynarray-", ignore_cleanup_errors=True))
        return Path(_fallback[0].name, name)


def _compile(
    command: list[str], text: str, flags: tuple[str, ...], places: tuple[str, ...], entry: Path
) -> bytes:
    """The compiled library."""
    folder = entry.parent if store.prepare_folder(entry.parent) else Path(tempfile.gettempdir())
    with store.scratch_folder(folder) as scratch:
        debug = "-g" in flags  # then gdb must find the source, with its own line numbers
        source = folder / f"{entry.stem}.cpp" if debug else scratch / "kernel.cpp"
        source.write_text(text.replace("#line 1", "//", 1) if debug else text, encoding="utf-8")
        made = scratch / "kernel.so"
        # What the compiler itself leaves behind when it is killed goes with the folder.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        done = _run([*command, *flags, str(source), "-o", str(made), *places], environment)
        if done.returncode or not made.exists():
            raise RuntimeError(f"{shlex.join(command)} could not compile {entry.stem}:\n{_words(done)}")
        return made.read_bytes()
