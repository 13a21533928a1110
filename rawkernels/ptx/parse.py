"""PTX text to instructions: what NVRTC wrote, one record a line, nothing interpreted yet.

A kernel's body is a list of labels and instructions. ``@!%p3 ld.global.nc.v2.f32 {%f1, %f2}, [%rd5+16];``
under ``.loc 1 706 0`` becomes
``Instruction("ld.global.nc.v2.f32", (("%f1", "%f2"), "[%rd5+16]"), "!%p3", 706)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# A vector, ``{%f1, %f2}``, is a tuple.
Operand = str | tuple[str, ...]

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DEBUG_SECTIONS = re.compile(r"^\s*\.section\b.*", re.DOTALL | re.MULTILINE)
# The program is file 1; others are CUDA's headers, of which the line that called them is told.
_PLACE = re.compile(
    r"^\s*\.loc\s+(?P<file>\d+) (?P<line>\d+) \d+"
    r"(?:,[^\n]*inlined_at (?P<outer>\d+) (?P<at>\d+) \d+)?[^\n]*$",
    re.MULTILINE,
)
_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)\s*([^{]*)\{")
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.[bsuf](\d+)\s+([\w$]+)(?:\[(\d*)\])?")
_REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+%([A-Za-z_]+)")
_LABEL = re.compile(r"(\$?\w+):\s*")
_INSTRUCTION = re.compile(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{([^}]*)\}|(\[[^\]]*\]|[^,\s][^,]*)")


class PtxError(RuntimeError):
    """PTX that this backend does not know."""


@dataclass(frozen=True)
class Label:
    """Where a branch goes."""

    name: str


@dataclass(frozen=True)
class Instruction:
    """One instruction, and the line of the program that it comes from."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: str | None
    line: int


@dataclass(frozen=True)
class SharedArray:
    """An array in shared memory; the dynamic one has the size that a launch gives it."""

    name: str
    bytes: int
    dynamic: bool


@dataclass(frozen=True)
class Kernel:
    """One ``.entry``.

    Attributes
    ----------
    registers : dict
        Prefix of a register's name ("rd" of "%rd7") to its type ("b64").
    """

    name: str
    parameters: tuple[str, ...]
    max_threads: int
    registers: dict[str, str]
    shared: tuple[SharedArray, ...]
    body: tuple[Label | Instruction, ...]

    @property
    def static_shared_bytes(self) -> int:
        """Shared memory of a block beside what a launch gives it."""
        return sum(array.bytes for array in self.shared if not array.dynamic)

    @cached_property
    def shared_granule(self) -> int:
        """Bytes of the narrowest access to shared memory."""
        opcodes = [item.opcode.split(".") for item in self.body if isinstance(item, Instruction)]
        widths = [int(words[-1][1:]) // 8 for words in opcodes if "shared" in words and words[0] != "cvta"]
        return min(widths, default=4)


def parse(text: str) -> list[Kernel]:
    """Every kernel of a PTX text."""
    text = _DEBUG_SECTIONS.sub("", _COMMENT.sub("", text))
    text = _PLACE.sub(_as_statement, text)
    # Names are unique in a module: a kernel has those that it mentions.
    shared = [
        # A single value has no brackets, the dynamic array has nothing in them.
        SharedArray(name, int(bits) // 8 * int(count or 1), dynamic=count == "")
        for _, bits, name, count in (found.groups() for found in _SHARED.finditer(text))
    ]
    return [_kernel(head, _body(text, head.end()), shared) for head in _ENTRY.finditer(text)]


def _as_statement(place: re.Match[str]) -> str:
    """``.loc`` ends with its line; as ``.loc 706;`` it is a statement like any other."""
    line = place["line"] if place["file"] == "1" or place["outer"] != "1" else place["at"]
    return f".loc {line};"


def _body(text: str, start: int) -> str:
    """What stands between a brace, which ends at `start`, and the one that closes it."""
    depth, end = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[start : end - 1]


def _kernel(head: re.Match[str], body: str, shared: list[SharedArray]) -> Kernel:
    name, parameters, directives = head.groups()
    limit = re.search(r"\.maxntid\s+(\d+)", directives)
    words = set(re.findall(r"[\w$]+", body))
    return Kernel(
        name,
        tuple(item.split()[-1] for item in parameters.split(",") if item.strip()),
        int(limit[1]) if limit else 1024,
        {prefix: kind for kind, prefix in _REGISTER.findall(body)},
        tuple(array for array in shared if array.name in words),
        tuple(_statements(body)),
    )


def _statements(body: str) -> Iterator[Label | Instruction]:
    line = 0
    for statement in body.split(";"):
        # A brace that begins a statement opens or closes a scope; those of vectors stand behind an opcode.
        rest = statement.strip().lstrip("{} \t\n")
        while label := _LABEL.match(rest):
            yield Label(label[1].lstrip("$"))
            rest = rest[label.end() :].lstrip("{} \t\n")
        if rest.startswith(".loc"):
            line = int(rest.split()[1])
        elif rest.startswith((".reg", ".shared", ".pragma")) or not rest:
            continue
        else:
            yield _instruction(rest, line)


def _instruction(text: str, line: int) -> Instruction:
    found = _INSTRUCTION.fullmatch(text)
    if found is None:
        raise PtxError(f"no instruction: {text!r}")
    guard, opcode, operands = found.groups()
    return Instruction(opcode, tuple(_operands(operands)), guard, line)


def _operands(text: str) -> Iterator[Operand]:
    for vector, single in _OPERAND.findall(text):
        yield single.strip() if single else tuple(part.strip() for part in vector.split(","))
