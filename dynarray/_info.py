"""What a bug report needs: versions, backends, devices, caches. No probe may fail, whatever is missing."""

import os
import platform
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ._dispatch import BACKENDS

Report = dict[str, dict[str, str]]

# Of our two, also what others distribute under the same names: then one of the copies is damaged.
_PACKAGES = ("dynarray", "autodiff", "numpy", "scipy", "numba", "llvmlite", "cupy", "ml_dtypes")
# Where the folders of caches are to be asked for.
_CACHES = {
    "cpu": ("dynarray.cpu.engine.cache", "folder"),
    "host": ("rawkernels.host.library", "cache_directory"),
    "ptx": ("rawkernels.ptx.nvrtc", "cache_directory"),
}
# Every variable of the environment that the project reads, and what for.
VARIABLES = {
    "CUPY_CACHE_DIR": "where CuPy keeps compiled kernels",
    "CXX": "the compiler of the host backend, and its options; g++ by default",
    "DYNARRAY_CACHE_DIR": "where compiled kernels are kept",
    "DYNARRAY_HOST_DEBUG": "1 compiles the host backend for gdb",
    "DYNARRAY_HOST_SEED": "the order of threads on the host backend; 0 by default",
    "NUMBA_CACHE_DIR": "where compiled CPU kernels are kept, where DYNARRAY_CACHE_DIR says nothing",
    "NUMBA_DISABLE_JIT": "1 puts the definitions in NumPy in the place of CPU kernels",
    "NUMBA_NUM_THREADS": "threads of the CPU kernels",
    "OMP_NUM_THREADS": "the same, where NUMBA_NUM_THREADS says nothing",
    "XDG_CACHE_HOME": "where the caches of a user are; ~/.cache by default",
}
# How others begin that change what is compiled, where it is kept, or how many threads work on it.
_LIBRARIES = (
    "DYNARRAY_",
    "NUMBA_",
    "CUPY_",
    "CUDA_",
    "NVIDIA_",
    "OMP_NUM_",
    "OPENBLAS_NUM_",
    "MKL_NUM_",
    "XDG_CACHE_HOME",
    "CXX",
)


def collect() -> Report:
    """Ask every probe; one that fails reports its error in place of its answer.

    Returns
    -------
    dict
        Section, then name, to text.
    """
    probes: dict[str, Callable[[], dict[str, str]]] = {
        "versions": _versions,
        "machine": _machine,
        "backends": _backends,
        "gpu": _gpus,
        "caches": _caches,
        "environment": _environment,
    }
    report = {}
    for section, probe in probes.items():
        try:
            report[section] = probe()
        except Exception as error:  # a report that dies of what it should report helps nobody
            report[section] = {"failed": _one_line(error)}
    return report


def render(report: Report) -> str:
    """The report as aligned text, one line an entry.

    Parameters
    ----------
    report : dict
        What `collect` returned.

    Returns
    -------
    str
    """
    width = max((len(name) for entries in report.values() for name in entries), default=0)
    lines = []
    for section, entries in report.items():
        lines.append(section)
        lines += [f"  {name:<{width}}  {text}" for name, text in entries.items()] or ["  none"]
    return "\n".join(lines)


def backend_problems() -> dict[str, str | None]:
    """Why each backend cannot be used here, or None where it can.

    Returns
    -------
    dict
        Name of the backend to the reason.
    """
    return {name: backend_problem(name) for name in BACKENDS}


def backend_problem(name: str) -> str | None:
    """Why one backend cannot be used here, or None where it can.

    Parameters
    ----------
    name : str
        The backend.

    Returns
    -------
    str or None
    """
    probes = {
        "reference": _scipy_problem,
        "cpu": _numba_problem,
        "host": _compiler_problem,
        "ptx": _ptx_problem,
        "cuda": _cuda_problem,
    }
    try:
        return probes[name]()
    except Exception as error:  # as in collect
        return _one_line(error)


def _scipy_problem() -> str | None:
    import_module("scipy")
    return None


def _numba_problem() -> str | None:
    import_module("numba")
    return None


def _compiler_problem() -> str | None:
    _compiler()
    return None


def _compiler() -> str:
    library = import_module("rawkernels.host.library")
    command = library.compiler()
    return f"{' '.join(command)}: {library.compiler_version(*command)}"


def _ptx_problem() -> str | None:
    problem: str | None = import_module("rawkernels.ptx").problem()
    return problem


def _cuda_problem() -> str | None:
    if find_spec("cupy") is None:
        return "CuPy is not installed (extras cuda12 and cuda13 bring it)"
    count = import_module("cupy").cuda.runtime.getDeviceCount()
    return None if count else "CuPy sees no GPU"


def bfloat16_problem() -> str | None:
    """What CuPy lacks for arrays of bfloat16, or None.

    Returns
    -------
    str or None
        What is needed and what is here.
    """
    found = import_module("cupy").__version__
    if int(found.partition(".")[0]) < 14:
        return f"needs CuPy 14 or later, this is {found}"
    if tuple(int(part) for part in re.findall(r"\d+", np.__version__)[:3]) < (2, 1, 2):
        return f"needs NumPy 2.1.2 or later, this is {np.__version__}"
    return None if find_spec("ml_dtypes") else "needs ml_dtypes, which is not installed"


def _versions() -> dict[str, str]:
    found = {"python": f"{platform.python_version()} ({platform.python_implementation()}) {sys.executable}"}
    # CuPy is distributed under a name for each version of CUDA; two of them at once is a common mistake.
    distributions = packages_distributions()
    for package in _PACKAGES:
        found[package] = _version(package, sorted(set(distributions.get(package, (package,)))))
    return found


def _version(package: str, names: list[str]) -> str:
    try:
        return ", ".join(version(name) if name == package else f"{version(name)} ({name})" for name in names)
    except ModuleNotFoundError:
        return "not installed"


def _machine() -> dict[str, str]:
    entries = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": f"{_usable_cores()} usable of {os.cpu_count()}",
        "threads": _attempt(lambda: str(import_module("dynarray").get_num_threads())),
        "blas": _attempt(_blas),
        "compiler": _attempt(_compiler),
    }
    return entries


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _blas() -> str:
    config: Any = import_module("numpy").show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def _backends() -> dict[str, str]:
    return {
        name: "available" if problem is None else f"not available: {problem}"
        for name, problem in backend_problems().items()
    }


def _gpus() -> dict[str, str]:
    if find_spec("cupy") is None:
        return {}
    cuda = import_module("cupy").cuda
    runtime = cuda.runtime
    entries = {
        "driver": _attempt(lambda: _cuda_version(runtime.driverGetVersion())),
        "runtime": _attempt(lambda: _cuda_version(runtime.runtimeGetVersion())),
        "nvrtc": _attempt(lambda: ".".join(map(str, cuda.nvrtc.getVersion()))),
        "bfloat16": _attempt(lambda: bfloat16_problem() or "available"),
    }
    try:
        count = runtime.getDeviceCount()
    except Exception as error:  # no driver: the versions above are still worth having
        return entries | {"devices": _one_line(error)}
    for index in range(count):
        entries[f"device {index}"] = _attempt(partial(_gpu, runtime, index))
    return entries


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _gpu(runtime: Any, index: int) -> str:
    properties = runtime.getDeviceProperties(index)
    name = properties["name"]
    name = name.decode() if isinstance(name, bytes) else name
    memory = properties["totalGlobalMem"] / 2**30
    units = properties["multiProcessorCount"]
    return f"{name}, sm_{properties['major']}{properties['minor']}, {memory:.1f} GiB, {units} multiprocessors"


def _caches() -> dict[str, str]:
    entries = {
        kind: _attempt(partial(_directory_from, module, function))
        for kind, (module, function) in _CACHES.items()
    }
    if find_spec("cupy") is not None:
        entries["cupy"] = _directory(
            Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
        )
    return entries


def _directory_from(module: str, function: str) -> str:
    return _directory(getattr(import_module(module), function)())


def _directory(path: Path) -> str:
    """Path, number and size of the files below it, and whether it can be written or made."""
    parent = next(p for p in (path, *path.parents) if p.exists())
    writable = "writable" if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK) else "NOT WRITABLE"
    if not path.exists():
        return f"{_tilde(path)}: not there yet, {writable}"
    sizes = [size for size in map(_size, path.rglob("*")) if size is not None]
    return f"{_tilde(path)}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB, {writable}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # another process may be tidying up
        return None


def _tilde(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)


def _environment() -> dict[str, str]:
    """What this project reads, set or not, and what else is set of the libraries below it."""
    ours = {name: os.environ.get(name, f"not set ({what})") for name, what in VARIABLES.items()}
    others = {name: value for name, value in os.environ.items() if name.startswith(_LIBRARIES)}
    return dict(sorted((ours | others).items()))


def _attempt(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except Exception as error:  # as in collect
        return f"failed: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
