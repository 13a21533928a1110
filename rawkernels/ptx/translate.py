"""PTX to C++: one statement an instruction, so that the two can be read side by side.

    ld.global.nc.f32  %f1, [%rd5+16];     f1 = at<float>(global(self, load_nc, rd5 + 16, 4, 7));
    fma.rn.ftz.f32    %f3, %f1, %f2, %f3; f3 = flushed(fused(flushed(f1), flushed(f2), flushed(f3)));
    @%p4 bra          $L__BB0_5;          if (p4) goto L__BB0_5;

Registers become variables of the same names; what the functions do stands in machine.h and arithmetic.h. The
last argument of an access is its *site*, a number that leads a report back to instruction and source line.

Where launches are to be counted, each basic block begins with ``++counter.times[12];``, each round of a loop
with ``next_round(counter.loops[2], counter.loops[1]);``, and the address of an access passes through
``counter.noted``: counting.h says what these do. All else is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from .flow import Flow, flow
from .opcodes import ATOMIC, CPP_TYPES, expression, fill, is_float, unknown, width
from .parse import Instruction, Kernel, Label, Operand, PtxError, parse

# Each array in shared memory has a stretch of addresses of its own: past the end of one is not in the next.
SHARED_STRETCH = 1 << 20
_SPECIAL = {
    f"%{name}.{axis}": f"self.at.{field}.{axis}"
    for name, field in zip(
        ("tid", "ctaid", "ntid", "nctaid"), ("thread", "block", "block_size", "grid_size"), strict=True
    )
    for axis in "xyz"
} | {"%laneid": "self.lane"}
# Hints for caches say nothing about what is read.
_CACHE_HINTS = {"ca", "cg", "cs", "lu", "wb", "wt"}
_ADDRESS = re.compile(r"\[\s*([%\w$.]+?)\s*(?:\+\s*(-?\d+))?\s*\]")


@dataclass(frozen=True)
class Site:
    """An instruction that a report may name; `position` in its kernel tells apart those that are counted."""

    kernel: str
    opcode: str
    line: int
    position: int = 0


@dataclass(frozen=True)
class Translation:
    """One module in C++; `kernels` by name, `sites` by number, `flows` of what is to be counted by name."""

    text: str
    kernels: dict[str, Kernel]
    sites: tuple[Site, ...]
    flows: dict[str, Flow]


def translate(ptx: str, *, counting: bool = False) -> Translation:
    """The C++ of a PTX text; with the counters that `rawkernels.ptx.counting` reads, if it says so."""
    kernels = parse(ptx)
    sites: list[Site] = []
    flows = {kernel.name: flow(kernel) for kernel in kernels} if counting else {}
    translators = [
        _Counting(kernel, sites, flows[kernel.name]) if counting else _Translator(kernel, sites)
        for kernel in kernels
    ]
    functions = [translator.function() for translator in translators]
    entries = [f"ENTRY({kernel.name})" for kernel in kernels]
    header = "counting.h" if counting else "machine.h"
    text = "\n".join([f'#include "{header}"', *functions, *entries, ""])
    return Translation(text, {kernel.name: kernel for kernel in kernels}, tuple(sites), flows)


@dataclass
class _Translator:
    """One kernel; `sites` are shared with the others of its module."""

    kernel: Kernel
    sites: list[Site]
    current: Instruction = field(init=False)

    def function(self) -> str:
        """The whole function."""
        lines = [f"static void kernel_{self.kernel.name}(void** arguments) {{"]
        lines.append("    Thread self(arguments[0]);")
        lines += self._declarations()
        for position, item in enumerate(self.kernel.body):
            if isinstance(item, Label):
                lines.append(f"{item.name}:;")
            else:
                self.current = item
                lines += self._before(position)
                guard = f"if ({item.guard.replace('%', '')}) " if item.guard else ""
                lines.append(f"    {guard}{self._statement()}")
        return "\n".join([*lines, "}"])

    def _declarations(self) -> list[str]:
        used: dict[str, set[str]] = {}
        for item in self.kernel.body:
            if isinstance(item, Instruction):
                for name in re.findall(r"%(\w+)", " ".join((item.guard or "", *map(str, item.operands)))):
                    kind = self._register_type(name)
                    if kind is not None:
                        used.setdefault(CPP_TYPES[kind], set()).add(name)
        return [f"    {kind} {', '.join(sorted(names))};" for kind, names in sorted(used.items())]

    def _before(self, position: int) -> list[str]:
        """What is done before an instruction, whatever its guard says."""
        return []

    def _register_type(self, name: str) -> str | None:
        return self.kernel.registers.get(name.rstrip("0123456789"))

    # ---- statements

    def _statement(self) -> str:
        base = self.current.opcode.split(".")[0]
        method = getattr(self, f"_do_{base}", self._arithmetic)
        statement: str = method()
        return statement

    def _arithmetic(self) -> str:
        if not self.current.operands:
            raise unknown(self.current.opcode)
        target, *sources = self.current.operands
        result = expression(self.current.opcode, partial(self._value_of, sources), self._site)
        return self._assign(target, result.text, result.type)

    def _words(self, *wanted: str) -> list[str]:
        """What follows the base of the opcode and the words `wanted`, which must be there, in order."""
        words = self.current.opcode.split(".")[1:]
        if tuple(words[: len(wanted)]) != wanted:
            raise unknown(self.current.opcode)
        return words[len(wanted) :]

    def _do_ret(self) -> str:
        self._words()
        return "return;"

    _do_exit = _do_ret

    def _do_bra(self) -> str:
        (target,) = self.current.operands
        return f"goto {str(target).lstrip('$')};"

    def _do_bar(self) -> str:
        words, operands = self._words(), self.current.operands
        if words == ["sync"] and operands == ("0",):
            return f"barrier(self, {self._site});"
        if words == ["warp", "sync"]:
            return f"warp_barrier(self, {self._value(operands[0], 'u32')}, {self._site});"
        raise unknown(f"{self.current.opcode} {', '.join(map(str, operands))}")

    def _do_cvta(self) -> str:
        if self._words("to", "global") != ["u64"]:
            raise unknown(self.current.opcode)
        target, source = self.current.operands
        return self._assign(target, self._value(source, "u64"), "u64")

    def _do_mov(self) -> str:
        (kind,) = self._words()
        target, source = self.current.operands
        if isinstance(target, tuple):
            bits = width(kind) // len(target)
            parts = [
                self._assign(part, f"(u{bits})(bits >> {bits * i})", f"u{bits}")
                for i, part in enumerate(target)
                if part != "_"
            ]
            return f"{{ const {CPP_TYPES[kind]} bits = {self._value(source, kind)}; {' '.join(parts)} }}"
        if isinstance(source, tuple):
            bits = width(kind) // len(source)
            parts = [
                f"({CPP_TYPES[kind]}){self._value(part, f'u{bits}')} << {bits * i}"
                for i, part in enumerate(source)
            ]
            return self._assign(target, " | ".join(parts), kind)
        return self._assign(target, self._value(source, kind), kind)

    # ---- memory

    def _do_ld(self) -> str:
        words = self.current.opcode.split(".")[1:]
        target, address = self.current.operands
        if words[0] == "param":
            name, offset = self._address(address)
            if offset or len(words) != 2:
                raise unknown(self.current.opcode)
            place = 1 + self.kernel.parameters.index(name)
            return self._assign(target, f"at<{CPP_TYPES[words[1]]}>(arguments[{place}])", words[1])
        space, coherent, count, kind = self._access(words)
        memory = self._memory(space, "load" if coherent else "load_nc", address, count * width(kind) // 8)
        if count == 1:
            return self._assign(target, f"at<{CPP_TYPES[kind]}>({memory})", kind)
        parts = [
            self._assign(part, f"at<{CPP_TYPES[kind]}>(memory, {i})", kind) for i, part in enumerate(target)
        ]
        return f"{{ const void* memory = {memory}; {' '.join(parts)} }}"

    def _do_st(self) -> str:
        space, coherent, count, kind = self._access(self.current.opcode.split(".")[1:])
        address, source = self.current.operands
        memory = self._memory(space, "store", address, count * width(kind) // 8)
        parts = source if isinstance(source, tuple) else (source,)
        if not coherent or len(parts) != count:
            raise unknown(self.current.opcode)
        puts = [
            f"put<{CPP_TYPES[kind]}>(memory, {i}, {self._value(part, kind)});" for i, part in enumerate(parts)
        ]
        return f"{{ void* memory = {memory}; {' '.join(puts)} }}"

    def _do_atom(self) -> str:
        target, *others = self.current.operands
        return self._update(others, target)

    def _do_red(self) -> str:
        return self._update(list(self.current.operands), None)

    def _update(self, operands: list[Operand], target: Operand | None) -> str:
        words = self.current.opcode.split(".")[1:]
        operation = next((word for word in words if word in ATOMIC), "")
        words = [word for word in words if word not in (operation, "relaxed", "gpu")]
        space, _, count, kind = self._access(words)
        if not operation or (is_float(kind) and operation not in ("add", "exch")):
            raise unknown(self.current.opcode)
        flush = space == "global" and kind == "f32" and operation == "add"
        address, *sources = operands
        lines = [f"{self._memory(space, 'update', address, count * width(kind) // 8)};"]
        for i in range(count):
            parts = [source[i] if isinstance(source, tuple) else source for source in sources]
            old = f"old{i}"
            lines.append(f"const {CPP_TYPES[kind]} {old} = at<{CPP_TYPES[kind]}>(memory, {i});")
            read = partial(self._value_of, parts)
            held = f"flushed({old})" if flush else old
            value = fill(ATOMIC[operation], kind, read, flush=flush, old=held)
            lines.append(f"put<{CPP_TYPES[kind]}>(memory, {i}, {f'flushed({value})' if flush else value});")
            if target is not None:
                lines.append(self._assign(target[i] if isinstance(target, tuple) else target, old, kind))
        return f"{{ void* memory = {' '.join(lines)} }}"

    def _value_of(self, operands: Sequence[Operand], position: int, kind: str) -> str:
        return self._value(operands[position], kind)

    def _access(self, words: list[str]) -> tuple[str, bool, int, str]:
        """Space, whether it is coherent, number of elements and their type."""
        space, *rest = [word for word in words if word not in _CACHE_HINTS]
        coherent = "nc" not in rest
        *vector, kind = [word for word in rest if word != "nc"] or [""]
        counts = {(): 1, ("v2",): 2, ("v4",): 4}
        known = space in ("global", "shared") and kind in CPP_TYPES and tuple(vector) in counts
        if not known or (space == "shared" and not coherent):
            raise unknown(self.current.opcode)
        return space, coherent, counts[tuple(vector)], kind

    def _address(self, operand: Operand) -> tuple[str, int]:
        found = _ADDRESS.fullmatch(str(operand))
        if found is None:
            raise PtxError(f"{self.current.opcode}: no address: {operand}")
        return found[1], int(found[2] or 0)

    def _memory(self, space: str, kind: str, address: Operand, size: int) -> str:
        """Where the bytes of an access are: a call that checks it."""
        return f"{space}(self, {kind}, {self._place(address, space)}, {size}, {self._site})"

    def _place(self, operand: Operand, space: str) -> str:
        """An address as a number; one in shared memory has 32 bits."""
        name, offset = self._address(operand)
        start = self._value(name, "u32" if space == "shared" else "u64")
        return f"{start} + {offset}" if offset >= 0 else f"{start} - {-offset}"

    # ---- operations of a warp

    def _do_shfl(self) -> str:
        (mode, kind) = self._words("sync")
        target, value, other, clamp, mask = self.current.operands
        if mode not in ("bfly", "idx", "up", "down") or kind != "b32":
            raise unknown(self.current.opcode)
        result, _, inside = str(target).partition("|")
        sources = ", ".join(self._value(operand, "u32") for operand in (value, other, clamp, mask))
        parts = [self._assign(result, "got.value", "u32")]
        if inside:
            parts.append(self._assign(inside, "got.inside", "pred"))
        call = f"const Shuffled got = shuffle(self, shuffle_{mode}, {sources}, {self._site});"
        return f"{{ {call} {' '.join(parts)} }}"

    def _do_vote(self) -> str:
        mode, kind = self._words("sync")
        target, source, mask = self.current.operands
        predicate, lanes = self._value(source, "pred"), self._value(mask, "u32")
        votes = {
            ("any", "pred"): f"ballot(self, {predicate}, {lanes}, {self._site}) != 0",
            ("all", "pred"): f"ballot(self, !({predicate}), {lanes}, {self._site}) == 0",
            ("ballot", "b32"): f"ballot(self, {predicate}, {lanes}, {self._site})",
        }
        if (mode, kind) not in votes:
            raise unknown(self.current.opcode)
        return self._assign(target, votes[mode, kind], kind)

    # ---- operands

    @property
    def _site(self) -> int:
        """The number of the current instruction, which gets one when it is first asked for."""
        site = Site(self.kernel.name, self.current.opcode, self.current.line)
        if not self.sites or self.sites[-1] != site:
            self.sites.append(site)
        return len(self.sites) - 1

    def _value(self, operand: Operand, kind: str) -> str:
        """An operand as a value of a type of PTX."""
        text = str(operand)
        negated = text.startswith("!")
        if negated:
            return f"!{self._value(text[1:], kind)}"
        if text in _SPECIAL:
            return _SPECIAL[text]
        if text.startswith("%"):
            held = self._register_type(text[1:])
            if held is None:
                raise PtxError(f"the register {text} is unknown to the backend ptx")
            return _converted(text[1:], held, kind)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return _converted(f"0x{text[2:]}u", "u32", kind)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return _converted(f"0x{text[2:]}ull", "u64", kind)
        if re.fullmatch(r"-?\d+|0[xX][0-9a-fA-F]+U?", text):
            number = int(text.rstrip("U"), 0)
            return f"({CPP_TYPES[kind]}){number}{'ull' if number >= 1 << 63 else 'll'}"
        for position, array in enumerate(self.kernel.shared):
            if array.name == text:
                return f"({CPP_TYPES[kind]}){(position + 1) * SHARED_STRETCH}"
        raise PtxError(f"{self.current.opcode}: the operand {text} is unknown to the backend ptx")

    def _assign(self, target: Operand, text: str, kind: str) -> str:
        """The statement that puts a value of a type into a register."""
        if str(target) == "_":
            return f"(void)({text});"
        name = str(target).lstrip("%")
        held = self._register_type(name)
        if held is None or "|" in name:
            raise PtxError(f"{self.current.opcode}: the operand {target} is unknown to the backend ptx")
        if is_float(held) != is_float(kind):
            text = f"same_bits<{CPP_TYPES[held]}>(({CPP_TYPES[kind]})({text}))"
        return f"{name} = {text};"


@dataclass
class _Counting(_Translator):
    """One kernel, with counters."""

    flow: Flow
    block: int = 0
    position: int = 0

    def _declarations(self) -> list[str]:
        sizes = f"{len(self.flow.blocks)}, {len(self.flow.parents)}"
        counter = f"Counter<{sizes}> counter(self, arguments[{1 + len(self.kernel.parameters)}]);"
        return [f"    {counter}", *super()._declarations()]

    def _before(self, position: int) -> list[str]:
        self.position = position
        if position not in self.flow.starts:
            return []
        self.block = self.flow.starts[position]
        lines = [f"    ++counter.times[{self.block}];"]
        loop = self.flow.headers.get(self.block)
        if loop is not None:
            around = self.flow.parents[loop]
            lines.append(f"    next_round(counter.loops[{loop}], counter.loops[{around}]);")
        return lines

    @property
    def _site(self) -> int:
        """Each instruction has its own: those of one line and opcode are not counted together."""
        site = Site(self.kernel.name, self.current.opcode, self.current.line, self.position)
        if not self.sites or self.sites[-1] != site:
            self.sites.append(site)
        return len(self.sites) - 1

    def _memory(self, space: str, kind: str, address: Operand, size: int) -> str:
        loop = self.flow.loops[self.block]
        place = f"counter.noted({kind}, {self._place(address, space)}, {size}, {self._site}, {loop})"
        return f"{space}(self, {kind}, {place}, {size}, {self._site})"


def _converted(text: str, held: str, wanted: str) -> str:
    """A register or a constant of one type as a value of another."""
    if CPP_TYPES[held] == CPP_TYPES[wanted]:
        return text
    if is_float(held) or is_float(wanted):
        if width(held) != width(wanted):
            raise PtxError(f"{text}, of {width(held)} bits, as {wanted}")
        return f"same_bits<{CPP_TYPES[wanted]}>({text})"
    return f"({CPP_TYPES[wanted]}){text}"
