"""Compile programs with g++ into shared libraries, kept on disk under a hash of everything they depend on."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from importlib import resources
from pathlib import Path

from rawkernels.host import native
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
    _load_runtime()
    include = f"-I{_directory() / 'include'}"
    headers = "".join(read_text(f"include/{name}") for name in _HEADERS)
    flags = (*_COMMON, *(_DEBUG if debug else _FAST))
    path = _build(program.file.partition(".")[0], with_entries(program), flags, (include,), headers)
    with native.code():
        library = ctypes.CDLL(str(path))
    return _loaded.setdefault((program, debug), library)


_HEADERS = ("cuda_shim.h", "cuda_fp16.h", "cuda_bf16.h")


@cache
def _load_runtime() -> ctypes.CDLL:
    path = _build("runtime", read_text("runtime.cpp"), _RUNTIME, ("-ldl",), "")
    with native.code():
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # kernels find shim_* there


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


def compiler() -> str:
    """Path of the C++ compiler."""
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise RuntimeError(
            f"the host backend compiles CUDA sources with {wanted}, which is not on the PATH: "
            "install g++ (Debian, Ubuntu: apt install g++) or set CXX"
        )
    return found


@cache
def compiler_version(path: str) -> str:
    """First line of what the compiler says about itself."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def cache_directory() -> Path:
    """Directory of the compiled libraries; a temporary one if the usual place cannot be written."""
    chosen = os.environ.get("DYNARRAY_CACHE_DIR")
    if chosen:
        return Path(chosen) / "host"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "dynarray" / "host"


def _build(stem: str, text: str, flags: tuple[str, ...], places: tuple[str, ...], depends: str) -> Path:
    """Path of the library made from `text`, compiled if the cache does not have it."""
    path_of_compiler = compiler()
    content = "\0".join((compiler_version(path_of_compiler), " ".join(flags), depends, text))
    key = f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:32]}"
    with _lock:
        key_lock = _key_locks.setdefault(key, threading.Lock())
    with key_lock:
        cached = cache_directory() / f"{key}.so"
        if cached.exists():
            return cached
        directory = _writable(cached.parent)
        target = directory / f"{key}.so"
        if not target.exists():
            _compile(path_of_compiler, text, flags, places, target)
        return target


def _writable(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:  # read-only or not ours: keep the libraries for the life of this process
        with _lock:
            if not _fallback:
                _fallback.append(tempfile.TemporaryDirectory(prefix="dynarray-", ignore_cleanup_errors=True))
            return Path(_fallback[0].name)


def _compile(
    path_of_compiler: str, text: str, flags: tuple[str, ...], places: tuple[str, ...], target: Path
) -> None:
    """Compile into a name of our own, then rename: other processes see the whole library or none."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as scratch:
        debug = "-g" in flags  # then gdb must find the source, with its own line numbers
        source = target.with_suffix(".cpp") if debug else Path(scratch, "kernel.cpp")
        source.write_text(text.replace("#line 1", "//", 1) if debug else text, encoding="utf-8")
        made = Path(scratch, "kernel.so")
        command = [path_of_compiler, *flags, str(source), "-o", str(made), *places]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{path_of_compiler} could not compile {target.stem}:\n{done.stderr[:4000]}")
        os.replace(made, target)
