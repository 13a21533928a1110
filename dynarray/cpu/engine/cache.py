"""Machine code of kernels on disk, in place of Numba's own cache.

Numba's writes an index, then numbered files that it points to, and knows sources by their times: a kill
between the two, or a full disk, leaves an index that points at the code of another function. Here each
compilation is one entry of `rawkernels.store`, named after all that it was made from.
"""

import hashlib
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import compiler, serialize

from rawkernels import compilations, store


def folder() -> Path:
    """Where entries are kept: below ``DYNARRAY_CACHE_DIR``, else ``NUMBA_CACHE_DIR``, else as usual."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen and not os.environ.get("DYNARRAY_CACHE_DIR"):
        return Path(chosen) / "dynarray"
    return store.cache_folder("cpu")


def _hash_of_sources() -> str:
    """Of all sources of kernels, for a kernel calls into many of them, and of what compiles them."""
    digest, top = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(top.rglob("*.py")):
        digest.update(f"{path.relative_to(top)}\0".encode() + path.read_bytes() + b"\0")
    versions = (sys.version, platform.machine(), numba.__version__, llvmlite.__version__, np.__version__)
    return hashlib.sha256(repr((digest.digest(), versions)).encode()).hexdigest()


# What this process compiles; who edits a source meanwhile changes the files, and not what was imported.
_SOURCES = _hash_of_sources()


def _sources_are_as_imported() -> bool:
    try:
        return _hash_of_sources() == _SOURCES
    except OSError:  # an editor is just putting another file there
        return False


class KernelCache:
    """What a dispatcher of Numba asks for code before it compiles, and gives the code to afterwards."""

    cache_path = property(lambda self: str(folder()))

    def __init__(self, function: Callable) -> None:
        self._name = f"{function.__module__.rpartition('cpu.')[2]}.{function.__qualname__}"
        self._began = 0.0

    def flush(self) -> None:
        """Nothing to do: an entry is never out of date."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compilation for this signature, or None."""
        target.refresh()
        entry = self._entry(signature, target)
        found = store.load_entry(entry)
        if found is not None:
            try:
                return compiler.CompileResult._rebuild(target, *pickle.loads(found))
            except Exception as error:  # whatever it was made with is not what is here
                store.drop_entry(entry, f"{type(error).__name__}: {error}")
        compilations.begins(entry)
        self._began = time.perf_counter()
        return None

    def save_overload(self, signature: Any, made: Any) -> None:
        """Keep a compilation, where that is possible."""
        seconds = time.perf_counter() - self._began
        can_keep = all(each.can_cache for each in made.lifted) and not made.library.has_dynamic_globals
        kept = can_keep and _sources_are_as_imported() and self._save(signature, made)
        compilations.ends(f"{self._name} for {_dtypes(signature)}", seconds, kept=kept)

    def _save(self, signature: Any, made: Any) -> bool:
        entry = self._entry(signature, made.target_context)
        return store.save_entry(entry, serialize.dumps(made._reduce()))

    def _entry(self, signature: Any, target: Any) -> Path:
        arguments = signature.args if hasattr(signature, "args") else signature
        made_from = (self._name, str(arguments), target.codegen().magic_tuple(), _SOURCES)
        return folder() / f"{self._name}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:32]}.code"


def _dtypes(signature: Any) -> str:
    """The dtypes of the arrays among the arguments."""
    arguments = signature.args if hasattr(signature, "args") else signature
    found = dict.fromkeys(str(kind.dtype) for kind in arguments if hasattr(kind, "dtype"))
    return ", ".join(name for name in found if name.startswith("float")) or "no array"
