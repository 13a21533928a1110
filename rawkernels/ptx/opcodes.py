"""What arithmetic instructions compute, as C++ expressions: one table a family of opcodes.

An opcode is looked up without its types and without ``.ftz``: ``fma.rn.ftz.f32`` is ``"fma.rn"`` among the
floating ones. In an expression, ``{0}`` is the first source operand as a value of the instruction's type,
``{1:u32}`` the second one as a u32, ``{wide}`` the integer type of twice the width. The names in them are
those of arithmetic.h. What is in no table is an error: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from .parse import PtxError

# Types of PTX to those of arithmetic.h; bits are unsigned integers.
CPP_TYPES = {
    "pred": "bool",
    **{f"{kind}{bits}": f"u{bits}" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"s{bits}" for bits in (8, 16, 32, 64)},
    "f32": "float",
    "f64": "double",
}

INTEGER = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul.lo": "{0} * {1}",
    "mul.hi": "high_half({0}, {1})",
    "mul.wide": "({wide}){0} * ({wide}){1}",
    "mad.lo": "{0} * {1} + {2}",
    "mad.wide": "({wide}){0} * ({wide}){1} + {2:wide}",
    "div": "quotient(self, {0}, {1}, {site})",
    "rem": "remainder(self, {0}, {1}, {site})",
    "min": "{0} < {1} ? {0} : {1}",
    "max": "{0} > {1} ? {0} : {1}",
    "abs": "{0} < 0 ? 0 - {0} : {0}",
    "neg": "0 - {0}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "not": "~{0}",
    "shl": "shift_left({0}, {1:u32})",
    "shr": "shift_right({0}, {1:u32})",
    "bfi": "bits_inserted({0}, {1}, {2:u32}, {3:u32})",
    "popc": "__builtin_popcountll({0})",
    "clz": "leading_zeros({0})",
    "bfind.shiftamt": "{0} ? leading_zeros({0}) : 0xffffffffu",
    "brev": "bits_reversed({0})",
    "selp": "{2:pred} ? {0} : {1}",
}
FLOATING = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "fma.rn": "fused({0}, {1}, {2})",
    "div.rn": "{0} / {1}",
    "rcp.rn": "1 / {0}",
    "sqrt.rn": "root({0})",
    "min": "smaller({0}, {1})",
    "max": "larger({0}, {1})",
    "abs": "magnitude({0})",
    "neg": "-{0}",
    "selp": "{2:pred} ? {0} : {1}",
    **{f"{name}.rn": f"{{0}} {sign} {{1}}" for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*"))},
}
PREDICATE = {
    "and": "{0} && {1}",
    "or": "{0} || {1}",
    "xor": "{0} != {1}",
    "not": "!{0}",
}
INTEGER_COMPARISONS = {
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
}
# With a NaN those that end with "u" are true, and the others but num and nan false.
FLOATING_COMPARISONS = {
    "eq": "{0} == {1}",
    "ne": "({0} < {1} || {0} > {1})",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "equ": "!({0} < {1} || {0} > {1})",
    "neu": "!({0} == {1})",
    "ltu": "!({0} >= {1})",
    "leu": "!({0} > {1})",
    "gtu": "!({0} <= {1})",
    "geu": "!({0} < {1})",
    "num": "!unordered({0}, {1})",
    "nan": "unordered({0}, {1})",
}
ROUNDED = {
    "rni": "nearest({0})",
    "rzi": "truncated({0})",
    "rmi": "rounded_down({0})",
    "rpi": "rounded_up({0})",
}
# By (rounding, type of the result, type of the source); others follow from ROUNDED or need no rounding.
HALVES = {
    ("", "f32", "f16"): "from_half({0:u16})",
    ("rn", "f16", "f32"): "to_half({0})",
    ("", "f32", "bf16"): "from_bfloat16({0:u16})",
    ("rn", "bf16", "f32"): "to_bfloat16({0})",
}
# The value that an atomic leaves in memory, of what was there, {old}, and its operands.
ATOMIC = {
    "add": "{old} + {0}",
    "min": "{0} < {old} ? {0} : {old}",
    "max": "{0} > {old} ? {0} : {old}",
    "and": "{old} & {0}",
    "or": "{old} | {0}",
    "xor": "{old} ^ {0}",
    "exch": "{0}",
    "cas": "{old} == {0} ? {1} : {old}",
}

# How an operand reads as a value of a type: ``read(position, type)``.
Read = Callable[[int, str], str]


class Expression(NamedTuple):
    """C++ that computes a result of a type of PTX."""

    text: str
    type: str


class _Operand:
    """``{0}`` or ``{0:u32}`` in a template."""

    def __init__(self, position: int, kind: str, read: Read, flush: bool) -> None:
        self.position, self.kind, self.read, self.flush = position, kind, read, flush

    def __format__(self, kind: str) -> str:
        text = self.read(self.position, kind or self.kind)
        return f"flushed({text})" if self.flush and kind in ("", "f32") else text


def fill(template: str, kind: str, read: Read, *, flush: bool = False, **names: object) -> str:
    """A template with its operands in place."""
    wide = f"{kind[0]}{2 * width(kind)}" if kind[0] in "su" else ""
    operands = [_Operand(position, kind, read, flush) for position in range(4)]
    return template.replace("{2:wide}", f"{{2:{wide}}}").format(*operands, wide=wide, **names)


def width(kind: str) -> int:
    """Bits of a type."""
    return int(kind.lstrip("subf"))


def expression(opcode: str, read: Read, site: int) -> Expression:
    """What an arithmetic instruction computes."""
    base, *rest = opcode.split(".")
    flush = "ftz" in rest
    words = [word for word in rest if word != "ftz"]
    if base == "cvt":
        return _conversion(opcode, words, read, flush)
    kind = words.pop() if words else ""
    if kind not in CPP_TYPES:
        raise unknown(opcode)
    if base == "setp":
        return _comparison(opcode, words, kind, read, flush)
    table = PREDICATE if kind == "pred" else FLOATING if kind[0] == "f" else INTEGER
    template = table.get(".".join((base, *words)))
    if template is None or (flush and kind != "f32"):
        raise unknown(opcode)
    text = fill(template, kind, read, flush=flush, site=site)
    if "wide" in words:
        kind = f"{kind[0]}{2 * width(kind)}"
    elif base in ("popc", "clz", "bfind"):
        kind = "u32"
    return Expression(f"flushed({text})" if flush else text, kind)


def _comparison(opcode: str, words: list[str], kind: str, read: Read, flush: bool) -> Expression:
    table = FLOATING_COMPARISONS if kind[0] == "f" else INTEGER_COMPARISONS
    with_predicate = {"and": "({0}) && {1}", "or": "({0}) || {1}", "xor": "({0}) != {1}"}
    if not words or words[0] not in table or words[1:] not in ([], ["and"], ["or"], ["xor"]):
        raise unknown(opcode)
    text = fill(table[words[0]], kind, read, flush=flush)
    if words[1:]:
        text = with_predicate[words[1]].format(text, read(2, "pred"))
    return Expression(text, "pred")


def _conversion(opcode: str, words: list[str], read: Read, flush: bool) -> Expression:
    if len(words) not in (2, 3):
        raise unknown(opcode)
    rounding, (to, source) = "".join(words[:-2]), words[-2:]
    if (rounding, to, source) in HALVES:
        read_as = source if source in CPP_TYPES else "u16"
        return Expression(fill(HALVES[rounding, to, source], read_as, read), to if to in CPP_TYPES else "u16")
    if to not in CPP_TYPES or source not in CPP_TYPES or "pred" in (to, source):
        raise unknown(opcode)
    value = fill("{0}", source, read, flush=flush and source == "f32")
    floats = (is_float(to), is_float(source))
    narrows = floats == (True, True) and width(to) < width(source)
    if rounding in ROUNDED and floats[1]:
        value = ROUNDED[rounding].format(value)
    elif rounding != ("rn" if narrows or floats == (True, False) else ""):
        raise unknown(opcode)
    if floats == (False, True):
        if rounding not in ROUNDED:
            raise unknown(opcode)
        return Expression(f"saturated<{CPP_TYPES[to]}>({value})", to)
    text = f"({CPP_TYPES[to]}){value}"
    return Expression(f"flushed({text})" if flush and to == "f32" else text, to)


# By the first part of an opcode; what is not here is arithmetic, and named by its type.
_CLASSES = {
    **dict.fromkeys(("mov", "cvta"), "move"),
    **dict.fromkeys(("atom", "red"), "atomic"),
    **dict.fromkeys(("bra", "ret", "exit"), "control"),
    **dict.fromkeys(("bar", "shfl", "vote"), "warp"),
    **dict.fromkeys(("setp", "selp"), "comparison"),
    "cvt": "conversion",
}
_SLOW_FLOATING = ("div", "rcp", "sqrt")


@cache
def instruction_class(opcode: str) -> str:
    """What an instruction counts as.

    "global", "shared", "atomic", "warp" (barriers, shuffles and votes), "control", "comparison",
    "conversion", "float32", "float64", "special" (floating quotients and roots), "integer", "division"
    (integer quotients and remainders), those of 64 bits "integer64" and "division64"; and "move", of which
    machine code has little trace: moves between registers and reads of parameters.
    """
    base, *words = opcode.split(".")
    if base in _CLASSES:
        return _CLASSES[base]
    if base in ("ld", "st"):
        return next((space for space in ("global", "shared") if space in words), "move")
    kind = words[-1]
    if is_float(kind):
        return "special" if base in _SLOW_FLOATING else "float32" if kind == "f32" else "float64"
    name = "division" if base in ("div", "rem") else "integer"
    return f"{name}64" if kind[1:] == "64" else name


def unknown(opcode: str) -> PtxError:
    """The error for an instruction that no table has."""
    return PtxError(
        f"the instruction {opcode} is unknown to the backend ptx: rawkernels/ptx/opcodes.py and translate.py "
        "have a row for each one that is known"
    )


def is_float(kind: str) -> bool:
    """Whether a type is a floating one that C++ has."""
    return re.fullmatch(r"f(32|64)", kind) is not None
