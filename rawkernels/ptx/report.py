"""What the machine saw, in words: kernel, line of the source, thread, array and index."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rawkernels.source import Program, inline, read

from .parse import SharedArray
from .translate import Site

# In the order of What in machine.cpp. {does} is "reads x[3]", {other} "thread (1, 0, 0) of the same block".
_WORDS = (
    ("out of bounds", "{does}"),
    ("misaligned", "{does} with {bytes} bytes at an address that is no multiple of {bytes}"),
    ("write to a const array", "{does}"),
    ("race, read after write", "{does}, which {other} wrote, with no barrier between"),
    ("race, write after write", "{does}, which {other} wrote, with no barrier between"),
    ("race, write after read", "{does}, which {other} read, with no barrier between"),
    ("uninitialised shared memory", "{does}, which nobody has written in this block"),
    ("non-coherent load", "{does} as a constant (.nc), which {other} wrote"),
    ("divergent warp operation", "its mask names {lanes}, which returned without coming there"),
    ("divergent warp operation", "{lanes} of its mask came to another operation of the same mask"),
    ("divergent warp operation", "it takes the value of {lanes}, which did not come there"),
    ("division by zero", "the divisor is zero"),
    ("no such address", "{does}"),
    ("non-coherent load", "{does}, which {other} read as a constant (.nc)"),
)
KINDS = tuple(dict.fromkeys(kind for kind, _ in _WORDS))
_UNKNOWN_ADDRESS = 12


class Record(ctypes.Structure):
    """Mirror of Record in machine.cpp."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("what", "site", "count", "region", "bytes")),
        *((name, ctypes.c_uint32) for name in ("other_block", "other_thread", "lanes")),
        *((name, ctypes.c_uint32 * 3) for name in ("block", "thread")),
        ("offset", ctypes.c_int64),
        ("shared", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class Report:
    """One fault of one instruction, at the first thread where it showed.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    place : str
        File and line of the source.
    array, index : str
        What was accessed; empty where nothing was.
    count : int
        How often the same instruction did the same.
    """

    kind: str
    kernel: str
    place: str
    source: str
    opcode: str
    block: tuple[int, ...]
    thread: tuple[int, ...]
    array: str
    index: str
    text: str
    count: int

    @property
    def fault(self) -> tuple[str, ...]:
        """What is the same at each launch: the instruction, and what is wrong with it."""
        return self.kernel, self.kind, self.place, self.opcode, self.array

    def __str__(self) -> str:
        times = f", {self.count} times" if self.count > 1 else ""
        return (
            f"{self.kernel}: {self.kind}: block {self.block} thread {self.thread}: {self.text} "
            f"({self.opcode}{times})\n    {self.place}: {self.source}"
        )


@dataclass(frozen=True)
class Named:
    """Arrays that share a stretch of memory, usually one: their names, and the shape of the first."""

    names: str
    shape: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class Context:
    """What records refer to by number."""

    program: Program
    sites: Sequence[Site]
    arrays: Sequence[Named]
    shared: Sequence[SharedArray]
    block_size: tuple[int, int, int]
    grid_size: tuple[int, int, int]


def describe(record: Record, context: Context) -> Report:
    """A record in words."""
    site = context.sites[record.site]
    array, index = _element(record, context)
    kind, template = _WORDS[record.what]
    text = template.format(
        does=f"{_verb(site.opcode)} {array}{index}",
        bytes=record.bytes,
        other=_other(record, context),
        lanes=_lanes(record.lanes),
    )
    places = source_lines(context.program)
    place, source = places[site.line - 1] if 0 < site.line <= len(places) else (context.program.file, "")
    where = tuple(record.block), tuple(record.thread)
    return Report(
        kind, site.kernel, place, source.strip(), site.opcode, *where, array, index, text, record.count
    )


def _verb(opcode: str) -> str:
    return {"ld": "reads", "st": "writes"}.get(opcode.split(".")[0], "updates")


def _element(record: Record, context: Context) -> tuple[str, str]:
    if record.what == _UNKNOWN_ADDRESS:
        space = "shared memory" if record.shared else "global memory"
        return f"{space} at address {record.offset:#x}, where no array is", ""
    if not record.bytes:
        return "", ""
    if record.shared:
        width = _item_bytes(context.sites[record.site].opcode)
        return short_name(context.shared[record.region].name), f"[{record.offset // width}]"
    named = context.arrays[record.region]
    flat, size = record.offset // named.itemsize, int(np.prod(named.shape))
    if not 0 <= flat < size:
        return named.names, f"[{flat}] of its {size} elements"
    return named.names, f"[{', '.join(str(int(i)) for i in np.unravel_index(flat, named.shape))}]"


def _item_bytes(opcode: str) -> int:
    return int(re.sub(r"\D", "", opcode.split(".")[-1])) // 8


def _other(record: Record, context: Context) -> str:
    across, down, _ = context.block_size
    number, block = record.other_thread, record.other_block
    thread = number % across, number // across % down, number // (across * down)
    grid_x, grid_y, _ = context.grid_size
    place = block % grid_x, block // grid_x % grid_y, block // (grid_x * grid_y)
    where = "the same block" if place == tuple(record.block) else f"block {place}"
    return f"thread {thread} of {where}"


def _lanes(mask: int) -> str:
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    return f"lane{'s' if len(lanes) != 1 else ''} {', '.join(map(str, lanes))}"


def short_name(mangled: str) -> str:
    """The last part of a mangled name: ``_ZZ11block_totaldE4part`` is ``part``."""
    found = re.search(r"E(\d+)(\w+)$", mangled)
    return found[2][: int(found[1])] if mangled.startswith("_Z") and found else mangled


@lru_cache(maxsize=256)
def source_lines(program: Program) -> list[tuple[str, str]]:
    """Of each line of a program's text, the file and line that it was taken from, and what it says."""
    mark = "\x01"

    def marked(name: str, text: str) -> str:
        lines = text.split("\n")
        return "\n".join(
            line if line == "#pragma once" else f"{line}{mark}{name}:{number}"
            for number, line in enumerate(lines, 1)
        )

    class Headers(dict[str, str]):
        def __missing__(self, name: str) -> str:
            return marked(name, read(name))

    own = read(program.file) if program.override is None else program.override
    head = [("the constants in front", f"#define {name} {value}") for name, value in program.defines]
    places = []
    for line in inline(marked(program.file, own), Headers()).split("\n"):
        text, _, place = line.partition(mark)
        places.append((place.rpartition(mark)[2] or program.file, text))
    return head + places
