"""Each arithmetic instruction that backend "ptx" knows computes what PTX says: Python and NumPy agree.

The PTX is written here, so that NVRTC is not needed. Operands are hard ones: the smallest and the largest
numbers of each type, zeros of both signs, infinities, NaN, subnormal numbers; and random bits.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from conftest import PROBLEMS, may_be_missing

from rawkernels import ptx
from rawkernels.launch import launch, numpy_runner
from rawkernels.ptx import opcodes
from rawkernels.source import Program

if PROBLEMS["host"] is not None and may_be_missing("host"):
    pytest.skip(f"no C++ compiler: {PROBLEMS['host']}", allow_module_level=True)

COUNT = 512
REGISTERS = {"pred": "p", "16": "h", "32": "r", "64": "d", "f32": "f", "f64": "g"}


def dtype_of(kind: str) -> np.dtype:
    """The NumPy type of a type of PTX; a predicate is stored as a u32."""
    letter, bits = kind.rstrip("0123456789"), kind.lstrip("abcdefghijklmnopqrstuvwxyz")
    if kind in ("f16", "bf16"):
        return np.dtype(np.uint16)
    names = {"s": "int", "u": "uint", "b": "uint", "f": "float"}
    return np.dtype(np.uint32 if kind == "pred" else f"{names[letter]}{bits}")


class Case(NamedTuple):
    """An instruction, the types of its result and operands, and what it computes of their numbers."""

    opcode: str
    result: str
    sources: tuple[str, ...]
    expected: Callable[..., Any]


def signed_quotient(a: int, b: int) -> int:
    """Rounded towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def inserted(bits: int) -> Callable[..., int]:
    def bfi(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        mask = ((1 << length) - 1 << position) & ((1 << bits) - 1)
        return b & ~mask | (a << position) & mask

    return bfi


def shifted(bits: int) -> tuple[Callable[..., int], Callable[..., int]]:
    return (lambda a, b: a << min(b, bits), lambda a, b: a >> min(b, bits))


def integer_cases() -> list[Case]:
    cases = []
    for kind in ("s16", "u16", "s32", "u32", "s64", "u64"):
        bits = int(kind[1:])
        two, three = (kind,) * 2, (kind,) * 3
        cases += [
            Case(f"add.{kind}", kind, two, lambda a, b: a + b),
            Case(f"sub.{kind}", kind, two, lambda a, b: a - b),
            Case(f"mul.lo.{kind}", kind, two, lambda a, b: a * b),
            Case(f"mad.lo.{kind}", kind, three, lambda a, b, c: a * b + c),
            Case(f"min.{kind}", kind, two, min),
            Case(f"max.{kind}", kind, two, max),
            Case(f"div.{kind}", kind, two, signed_quotient),
            Case(f"rem.{kind}", kind, two, lambda a, b: a - b * signed_quotient(a, b)),
            Case(f"shr.{kind}", kind, (kind, "u32"), shifted(bits)[1]),
        ]
        if bits < 64:
            wide = f"{kind[0]}{2 * bits}"
            cases.append(Case(f"mul.wide.{kind}", wide, two, lambda a, b: a * b))
            cases.append(Case(f"mad.wide.{kind}", wide, (*two, wide), lambda a, b, c: a * b + c))
        if bits > 16:
            cases.append(Case(f"mul.hi.{kind}", kind, two, lambda a, b, bits=bits: a * b >> bits))
        if kind[0] == "s":
            cases.append(Case(f"abs.{kind}", kind, (kind,), abs))
            cases.append(Case(f"neg.{kind}", kind, (kind,), lambda a: -a))
    for bits in (16, 32, 64):
        kind = f"b{bits}"
        cases += [
            Case(f"and.{kind}", kind, (kind,) * 2, lambda a, b: a & b),
            Case(f"or.{kind}", kind, (kind,) * 2, lambda a, b: a | b),
            Case(f"xor.{kind}", kind, (kind,) * 2, lambda a, b: a ^ b),
            Case(f"not.{kind}", kind, (kind,), lambda a: ~a),
            Case(f"shl.{kind}", kind, (kind, "u32"), shifted(bits)[0]),
            Case(f"selp.{kind}", kind, (kind, kind, "pred"), lambda a, b, c: a if c else b),
        ]
        if bits > 16:
            cases.append(Case(f"bfi.{kind}", kind, (kind, kind, "u32", "u32"), inserted(bits)))
            reverse = lambda a, bits=bits: int(f"{a:0{bits}b}"[::-1], 2)  # noqa: E731
            leading = lambda a, bits=bits: bits - a.bit_length() if a else -1  # noqa: E731
            cases.append(Case(f"brev.{kind}", kind, (kind,), reverse))
            cases.append(Case(f"bfind.shiftamt.{kind.replace('b', 'u')}", "u32", (kind,), leading))
            cases.append(Case(f"popc.{kind}", "u32", (kind,), lambda a: a.bit_count()))
            cases.append(Case(f"clz.{kind}", "u32", (kind,), lambda a, bits=bits: bits - a.bit_length()))
    return cases


COMPARE: dict[str, Callable[..., Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def comparison_cases() -> list[Case]:
    cases = []
    for name, function in COMPARE.items():
        for kind in ("s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64"):
            cases.append(Case(f"setp.{name}.{kind}", "pred", (kind, kind), function))
        for kind in ("f32", "f64"):
            either = lambda a, b, function=function: function(a, b) | np.isnan(a) | np.isnan(b)  # noqa: E731
            cases.append(Case(f"setp.{name}u.{kind}", "pred", (kind, kind), either))
        both = lambda a, b, c, function=function: bool(function(a, b)) and bool(c)  # noqa: E731
        cases.append(Case(f"setp.{name}.and.s32", "pred", ("s32", "s32", "pred"), both))
    for kind in ("f32", "f64"):
        cases.append(Case(f"setp.nan.{kind}", "pred", (kind, kind), lambda a, b: np.isnan(a) | np.isnan(b)))
        cases.append(
            Case(f"setp.num.{kind}", "pred", (kind, kind), lambda a, b: ~(np.isnan(a) | np.isnan(b)))
        )
    return cases


def floating_cases() -> list[Case]:
    cases = []
    for kind in ("f32", "f64"):
        two = (kind, kind)
        for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
            cases += [Case(f"{name}{rounding}.{kind}", kind, two, function) for rounding in ("", ".rn")]
        cases += [
            Case(f"div.rn.{kind}", kind, two, np.divide),
            Case(f"rcp.rn.{kind}", kind, (kind,), lambda a: type(a)(1) / a),
            Case(f"sqrt.rn.{kind}", kind, (kind,), np.sqrt),
            Case(f"abs.{kind}", kind, (kind,), np.abs),
            Case(f"neg.{kind}", kind, (kind,), np.negative),
            Case(f"min.{kind}", kind, two, but_nan(np.fmin)),
            Case(f"max.{kind}", kind, two, but_nan(np.fmax)),
        ]
        for rounding, function in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
            cases.append(Case(f"cvt.{rounding}.{kind}.{kind}", kind, (kind,), function))
            for to in ("s32", "u32", "s64", "u64"):
                cases.append(Case(f"cvt.{rounding}.{to}.{kind}", to, (kind,), clipped(function, to)))
        cases += [
            Case(f"cvt.rn.{kind}.{by}", kind, (by,), dtype_of(kind).type) for by in ("s32", "u32", "s64")
        ]
        cases.append(Case(f"fma.rn.{kind}", kind, (kind,) * 3, fused))
    return [
        *cases,
        Case("cvt.f64.f32", "f64", ("f32",), np.float64),
        Case("cvt.rn.f32.f64", "f32", ("f64",), np.float32),
        Case("cvt.f32.f16", "f32", ("f16",), lambda a: np.float32(np.uint16(a).view(np.float16))),
        Case("cvt.rn.f16.f32", "f16", ("f32",), lambda a: np.float16(a).view(np.uint16)),
        Case("cvt.f32.bf16", "f32", ("bf16",), lambda a: np.float32(np.uint16(a).view(ml_dtypes.bfloat16))),
        Case("cvt.rn.bf16.f32", "bf16", ("f32",), lambda a: a.astype(ml_dtypes.bfloat16).view(np.uint16)),
        *(
            Case(f"cvt.{to}.{by}", to, (by,), int)
            for to in ("s64", "u16", "u32")
            for by in ("s32", "u64", "s16")
        ),
    ]


def but_nan(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of two numbers for which a NaN does not count, be it one that signals."""
    return lambda a, b: b if np.isnan(a) else a if np.isnan(b) else function(a, b)


def fused(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    if np.isfinite([a, b]).all() and not np.isfinite(c):
        return c  # whose product, however large, is a number
    if not np.isfinite([a, b]).all():
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return a * b + c if a * b == 0 else type(a)(0)  # which zero is a matter of signs
    try:
        near = type(a)(float(exact))
    except OverflowError:
        return type(a)(np.inf if exact > 0 else -np.inf)
    if not np.isfinite(near):
        return near
    around = [np.nextafter(near, type(a)(-np.inf)), near, np.nextafter(near, type(a)(np.inf))]
    finite = [value for value in around if np.isfinite(value)]
    # Of two that are equally near, the one whose last bit is 0.
    return min(finite, key=lambda value: (abs(Fraction(float(value)) - exact), value.tobytes()[0] & 1))


def clipped(function: Callable[..., Any], to: str) -> Callable[..., int]:
    """A rounded number in the range of an integer type; NaN is 0, in 64 bits the highest bit."""
    limits = np.iinfo(dtype_of(to))

    def convert(value: Any) -> int:
        if math.isnan(value):
            return 1 << 63 if limits.bits == 64 else 0
        if math.isinf(value):
            return int(limits.max if value > 0 else limits.min)
        return min(max(int(function(value)), int(limits.min)), int(limits.max))

    return convert


def flushed(value: Any) -> Any:
    """A subnormal float32 is a zero of its sign."""
    small = np.abs(value) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(np.float32(0), value), value)[()]


def flushing_cases() -> list[Case]:
    def ftz(function: Callable[..., Any]) -> Callable[..., Any]:
        def apply(*values: Any) -> Any:
            result = function(*map(flushed, values))
            return flushed(result) if isinstance(result, np.float32) else result

        return apply

    names = {"add.f32", "sub.f32", "mul.f32", "div.rn.f32", "min.f32", "abs.f32", "cvt.rmi.f32.f32"}
    names |= {"setp.eq.f32", "setp.gt.f32", "cvt.f64.f32", "cvt.rn.f32.f64", "cvt.rzi.s32.f32"}
    cases = [case for case in floating_cases() + comparison_cases() if case.opcode in names]
    assert {case.opcode for case in cases} == names
    made = []
    for case in cases:
        base, *rest = case.opcode.split(".")
        place = (
            1
            if base == "cvt" and rest[0] == "f64"
            else 0
            if base in ("add", "sub", "mul", "min", "abs")
            else 1
        )
        if case.opcode == "cvt.f64.f32":
            place = 0
        opcode = ".".join((base, *rest[:place], "ftz", *rest[place:]))
        function = case.expected if case.sources == ("f64",) else ftz(case.expected)
        if case.opcode == "cvt.rn.f32.f64":
            function = lambda a: flushed(np.float32(a))  # noqa: E731
        made.append(case._replace(opcode=opcode, expected=function))
    return made


CASES = [*integer_cases(), *comparison_cases(), *floating_cases(), *flushing_cases()]


def register(kind: str, number: int) -> str:
    name = REGISTERS.get(kind) or REGISTERS["16" if kind in ("f16", "bf16") else kind[1:]]
    return f"%{name}{number}"


def kernel(name: str, case: Case) -> str:
    """One instruction, an element a thread: operands from the first arrays, the result to the last."""
    lines = ["mov.u32 %r90, %ctaid.x;", "mov.u32 %r91, %tid.x;", "mad.lo.s32 %r92, %r90, 64, %r91;"]
    for number, kind in enumerate((*case.sources, case.result)):
        dtype, memory = dtype_of(kind), f"[%d{60 + number}]"
        lines.append(
            f"ld.param.u64 %d{50 + number}, [{name}_param_{number if number < len(case.sources) else 4}];"
        )
        lines.append(f"mul.wide.s32 %d{70 + number}, %r92, {dtype.itemsize};")
        lines.append(f"add.s64 %d{60 + number}, %d{50 + number}, %d{70 + number};")
        stored = "u32" if kind == "pred" else "u16" if kind in ("f16", "bf16") else kind
        value = "%r80" if kind == "pred" else register(kind, number)
        if number < len(case.sources):
            lines.append(f"ld.global.{stored} {value}, {memory};")
            if kind == "pred":
                lines.append(f"setp.ne.s32 {register(kind, number)}, %r80, 0;")
            continue
        operands = ", ".join(register(source, i) for i, source in enumerate(case.sources))
        lines.append(f"{case.opcode} {register(kind, number)}, {operands};")
        if kind == "pred":
            lines.append(f"selp.u32 %r80, 1, 0, {register(kind, number)};")
        lines.append(f"st.global.{stored} {memory}, {value};")
    registers = {"p": "pred", "h": "b16", "r": "b32", "d": "b64", "f": "f32", "g": "f64"}
    declared = "".join(f".reg .{kind} %{letter}<99>;\n" for letter, kind in registers.items())
    parameters = ", ".join(f".param .u64 {name}_param_{i}" for i in range(5))
    body = "\n".join(lines)
    return f".visible .entry {name}(\n{parameters}\n)\n{{\n{declared}{body}\nret;\n}}\n"


PTX = "".join(kernel(f"k{number}", case) for number, case in enumerate(CASES))
ARGUMENTS = "const unsigned char* a, const unsigned char* b, const unsigned char* c, const unsigned char* d"
PROGRAM = Program(
    "instructions.cu",
    (),
    override="".join(
        f'extern "C" __global__ void k{number}({ARGUMENTS}, unsigned char* out) {{}}\n'
        for number in range(len(CASES))
    ),
)


def hard_values(kind: str, rng: np.random.Generator) -> np.ndarray:
    """COUNT values of a type, in no order."""
    dtype = dtype_of(kind)
    if kind == "pred":
        return rng.integers(0, 2, COUNT).astype(dtype)
    if kind[0] == "f" and kind != "f16":
        info = np.finfo(dtype)
        some = [
            0.0,
            1.0,
            1.5,
            2.5,
            1e9,
            3e10,
            0.4999999,
            float(info.max),
            float(info.tiny),
            float(info.tiny) / 8,
        ]
        special = [np.inf, np.nan, float(info.smallest_subnormal), 65519.0, 65520.0, 6e-8, 2.0**31, 2.0**63]
        chosen = np.array([*some, *special], dtype)
        chosen = np.concatenate([chosen, -chosen])
        bits = rng.integers(0, 1 << 8 * dtype.itemsize - 1, COUNT, dtype=np.uint64)
        drawn = bits.astype(f"u{dtype.itemsize}").view(dtype)
    else:
        limits = np.iinfo(dtype)
        near = [
            0,
            1,
            2,
            3,
            7,
            31,
            32,
            33,
            63,
            64,
            65,
            100,
            limits.max,
            limits.max - 1,
            limits.min,
            limits.max // 2,
        ]
        chosen = np.array(near + ([-1, -2, -7] if limits.min < 0 else [0x7C00, 0x7C01]), dtype)
        drawn = rng.integers(limits.min, limits.max, COUNT, dtype=dtype, endpoint=True)
    return np.where(rng.random(COUNT) < 0.7, rng.choice(chosen, COUNT), drawn)


def allowed(case: Case, operands: list[np.ndarray]) -> list[np.ndarray]:
    """The same without divisors that are zero, and quotients that do not fit, of which PTX says nothing."""
    if case.opcode.split(".")[0] in ("div", "rem") and case.result[0] != "f":
        a, b = operands
        limits = np.iinfo(a.dtype)
        b[(b == 0) | ((a == limits.min) & (b == limits.max if limits.min == 0 else b + 1 == 0))] = 3
    return operands


@pytest.mark.parametrize("number, case", list(enumerate(CASES)), ids=[case.opcode for case in CASES])
def test_an_instruction(number: int, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptx.nvrtc, "problem", lambda: None)
    monkeypatch.setattr(ptx.nvrtc, "to_ptx", lambda *_: PTX)
    rng = np.random.default_rng(number)
    operands = allowed(case, [hard_values(kind, rng) for kind in case.sources])
    out = np.zeros(COUNT, dtype_of(case.result))
    given = [array.view(np.uint8) for array in operands] + [None] * (4 - len(operands))
    with numpy_runner("ptx"):
        launch(PROGRAM, f"k{number}", (COUNT // 64,), (64,), (*given, out.view(np.uint8)))
    floats = [kind[0] == "f" and kind != "f16" for kind in case.sources]
    for index, found in enumerate(out):
        values = [
            array[index] if real else int(array[index]) for array, real in zip(operands, floats, strict=True)
        ]
        with np.errstate(all="ignore"):
            expected = case.expected(*values)
        assert same(found, expected, case), f"{case.opcode} of {values}: {found!r}, expected {expected!r}"


def same(found: Any, expected: Any, case: Case) -> bool:
    """The same bits; any NaN is like another, and an integer counts modulo its range."""
    if case.result in ("f16", "bf16"):
        dtype = np.float16 if case.result == "f16" else ml_dtypes.bfloat16
        as_floats = np.array([found, expected], np.uint16).view(dtype).astype(np.float32)
        return bool(found == expected or np.isnan(as_floats).all())
    if case.result[0] == "f":
        expected = found.dtype.type(expected)
        zeros_of_either_sign = case.opcode.startswith(("min", "max")) and found == expected == 0
        return (
            bool(found.tobytes() == expected.tobytes() or (found != found and expected != expected))
            or zeros_of_either_sign
        )
    if case.result == "pred":
        return bool(found) == bool(expected)
    return (int(found) - int(expected)) % (1 << 8 * found.dtype.itemsize) == 0


def test_every_row_of_the_tables_has_a_case() -> None:
    tables = {**opcodes.INTEGER, **opcodes.FLOATING}
    covered = {".".join(word for word in case.opcode.split(".")[:-1] if word != "ftz") for case in CASES}
    assert set(tables) <= covered
    compared = {case.opcode.split(".")[1] for case in CASES if case.opcode.startswith("setp")}
    assert compared == set(opcodes.INTEGER_COMPARISONS) | set(opcodes.FLOATING_COMPARISONS)
    rounded = {case.opcode.split(".")[1] for case in CASES if case.opcode.startswith("cvt")}
    assert set(opcodes.ROUNDED) <= rounded
