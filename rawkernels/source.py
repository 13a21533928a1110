"""Assemble CUDA source text: constants in front, our own headers inlined.

CuPy's disk cache looks at the text it is given and not into included headers, so what is compiled must be
one self-contained text. Headers of CUDA itself stay ``#include`` lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import resources

_OWN_INCLUDE = re.compile(r'^[ \t]*#include[ \t]+"([\w.]+)"[^\n]*$', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*\{'
)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, as its source declares it."""

    name: str
    type: str  # without const, * and __restrict__
    pointer: bool
    const: bool


@dataclass(frozen=True)
class Program:
    """A source file with the constants it is compiled with.

    Parameters
    ----------
    file : str
        Name of a ``.cu`` file of this package.
    defines : tuple of (str, str)
        Macros put in front of the text, in this order.
    override : str, optional
        Text used instead of the file's (to compile an edited kernel).
    """

    file: str
    defines: tuple[tuple[str, str], ...]
    override: str | None = None

    @cached_property
    def text(self) -> str:
        """The self-contained source that is handed to a compiler."""
        head = "".join(f"#define {name} {value}\n" for name, value in self.defines)
        body = read(self.file) if self.override is None else self.override
        return head + inline(body)

    @cached_property
    def entries(self) -> dict[str, tuple[Parameter, ...]]:
        """Every kernel of the program and its parameters."""
        return find_entries(self.text)

    def constant(self, name: str) -> str:
        """Value of one of the ``defines``."""
        return dict(self.defines)[name]

    @cached_property
    def _hash(self) -> int:
        return hash((self.file, self.defines, self.override))

    def __hash__(self) -> int:  # computed once: a program is looked up at every launch
        return self._hash


@lru_cache(maxsize=4096)
def program(file: str, defines: tuple[tuple[str, str], ...]) -> Program:
    """The one shared :class:`Program` of these constants."""
    return Program(file, defines)


def constants(**values: str | int) -> tuple[tuple[str, str], ...]:
    """Keyword arguments as the ``defines`` of a :class:`Program`."""
    return tuple((name, str(value)) for name, value in values.items())


@cache
def read(name: str) -> str:
    """Text of a source file of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def inline(text: str, read_header: Mapping[str, str] | None = None) -> str:
    """Replace each ``#include "ours.cuh"`` by that header, the first time; later ones vanish."""
    seen: set[str] = set()

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        header = read(name) if read_header is None else read_header[name]
        header = header.replace("#pragma once\n", "", 1)
        return _OWN_INCLUDE.sub(replacement, header)

    return _OWN_INCLUDE.sub(replacement, text)


def find_entries(text: str) -> dict[str, tuple[Parameter, ...]]:
    """Parse the signatures of the ``extern "C" __global__`` functions in `text`."""
    plain = _COMMENT.sub(" ", text)
    return {match.group(1): _parameters(match.group(2)) for match in _ENTRY.finditer(plain)}


def _parameters(declaration: str) -> tuple[Parameter, ...]:
    found = []
    for item in filter(None, (part.strip() for part in declaration.split(","))):
        pointer = "*" in item
        words = item.replace("*", " ").replace("__restrict__", " ").split()
        kind = " ".join(word for word in words[:-1] if word != "const")
        found.append(Parameter(words[-1], kind, pointer, "const" in words))
    return tuple(found)
