"""NVRTC compiles every kernel for every GPU generation, without a GPU, and no kernel spills registers.

``tests/registers.json`` holds the registers of every kernel on one architecture, and a digest of the text
that was compiled. Whoever changes a kernel regenerates it, after a look at what changed, with ``python -m
tests.test_nvrtc write``, which compiles all; a text that the table does not know fails a test. So it is
enough that the other tests compile a part. ``python -m tests.test_nvrtc all`` compiles every program for
every architecture (a quarter of an hour).
"""

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from rawkernels.launch import DTYPES
from rawkernels.ptx import nvrtc
from rawkernels.source import Program

missing = nvrtc.problem()
if missing is not None:
    if os.environ.get("CI") or __name__ == "__main__":
        raise RuntimeError(missing)
    pytest.skip(missing, allow_module_level=True)

TABLE = Path(__file__).with_name("registers.json")
TABLE_ARCHITECTURE = "sm_90"
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
OTHER_ARCHITECTURES = tuple(name for name in ARCHITECTURES if name != TABLE_ARCHITECTURE)
PART = 10  # a test compiles one program in so many; each architecture takes another part


@dataclass(frozen=True)
class Compiled:
    """One program, compiled for one architecture."""

    label: str
    cubin_bytes: int
    kernels: dict[str, nvrtc.Usage]


def compile_program(label: str, program: Program, architecture: str) -> Compiled:
    """Compile, and read what ptxas says of each kernel."""
    done, log, _, cubin_bytes = nvrtc.compile_text(program.text, nvrtc.machine_options(architecture))
    assert done, f"{label} for {architecture}:\n{log}"
    kernels = nvrtc.read_usage(log)
    assert set(kernels) == set(program.entries), f"{label}: ptxas reports {sorted(kernels)}\n{log}"
    return Compiled(label, cubin_bytes, kernels)


def compile_all(programs: Iterable[tuple[str, Program]], architecture: str) -> list[Compiled]:
    """Compile on two threads: NVRTC leaves the interpreter free meanwhile."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda item: compile_program(item[0], item[1], architecture), programs))


def stems() -> list[str]:
    """Names of the .cu files, each with a module beside it."""
    files = resources.files("rawkernels").iterdir()
    return sorted(file.name.removesuffix(".cu") for file in files if file.name.endswith(".cu"))


def all_programs(*, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of every .cu file and dtype."""
    return [
        (f"{stem} {label}", program)
        for stem in stems()
        for dtype in DTYPES
        for label, program in importlib.import_module(f"rawkernels.{stem}").programs(
            dtype, wide_index=wide_index
        )
    ]


def part(programs: list[tuple[str, Program]], number: int) -> list[tuple[str, Program]]:
    """One of PART parts; each has every stem and dtype, and together they have every program."""
    kinds: dict[tuple[str, ...], list[tuple[str, Program]]] = {}
    for label, program in programs:
        kinds.setdefault(tuple(label.split()[:2]), []).append((label, program))
    chosen = [kind[number % min(PART, len(kind)) :: PART] for kind in kinds.values()]
    return [item for items in chosen for item in items]


def spills(compiled: Iterable[Compiled]) -> list[str]:
    """Kernels that keep anything in local memory."""
    return [
        f"{made.label}: {name} {usage}"
        for made in compiled
        for name, usage in made.kernels.items()
        if usage.spills or usage.stack
    ]


def check(compiled: list[Compiled]) -> None:
    """Every program made machine code and spills nothing."""
    assert compiled and all(made.cubin_bytes > 0 for made in compiled)
    assert not spills(compiled)


def registers(compiled: Iterable[Compiled]) -> dict[str, dict[str, int]]:
    """Registers by program and kernel."""
    return {made.label: {name: usage.registers for name, usage in made.kernels.items()} for made in compiled}


def digest(program: Program) -> str:
    """What tells its text from every other."""
    return hashlib.sha256(program.text.encode()).hexdigest()[:16]


def table() -> dict[str, Any]:
    """The committed register table."""
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def compare_with_table(compiled: list[Compiled]) -> None:
    """Equal to the table where one compiler made both; otherwise near it."""
    found, committed = registers(compiled), table()
    assert set(found) <= set(committed["registers"]), "programs that the table lacks: write it again"
    expected = {label: committed["registers"][label] for label in found}
    if committed["nvrtc"] == nvrtc.version():
        assert found == expected
        return
    far = [
        f"{label}: {name} {count}, table {expected[label][name]}"
        for label, kernels in found.items()
        for name, count in kernels.items()
        if count > expected[label][name] + 32
    ]
    assert not far
    pytest.skip(
        f"the table is of NVRTC {committed['nvrtc']}, this is {nvrtc.version()}: "
        "compared within 32 registers instead of exactly"
    )


def test_every_source_has_its_programs() -> None:
    assert "local_filter" in stems()
    labels = [label for label, _ in all_programs()]
    assert len(set(labels)) == len(labels)
    for stem in stems():
        for dtype in DTYPES:
            assert any(label.startswith(f"{stem} {dtype} ") for label, _ in part(all_programs(), 0))


def test_quick_part_spills_nothing_and_agrees_with_the_register_table() -> None:
    made = compile_all(part(all_programs(), 0), TABLE_ARCHITECTURE)
    check(made)
    compare_with_table(made)


def test_the_table_is_of_these_texts() -> None:
    assert {label: digest(program) for label, program in all_programs()} == table()["texts"], (
        "kernels are not those of the table: python -m tests.test_nvrtc write"
    )


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_everything_spills_nothing_and_agrees_with_the_register_table() -> None:
    made = compile_all(all_programs(), TABLE_ARCHITECTURE)
    check(made)
    assert set(registers(made)) == set(table()["registers"]), "the table has programs that are gone"
    compare_with_table(made)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number, architecture", list(enumerate(OTHER_ARCHITECTURES, 1)))
def test_other_architectures_compile_without_spills(number: int, architecture: str) -> None:
    check(compile_all(part(all_programs(), number), architecture))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wide_indices_compile_without_spills() -> None:
    check(compile_all(part(all_programs(wide_index=True), 8), TABLE_ARCHITECTURE))


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) greedy(const float* source, float* target) {
    float kept[96];
#pragma unroll
    for (int i = 0; i < 96; ++i) kept[i] = source[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 96; ++i) target[i * 1024 + threadIdx.x] = kept[95 - i] * kept[i];
}
"""


def test_a_spill_is_seen() -> None:
    made = compile_program("greedy", Program("greedy.cu", (), override=SPILLING), TABLE_ARCHITECTURE)
    assert spills([made])
    with pytest.raises(AssertionError, match="greedy"):
        check([made])


def test_atomics_of_four_floats_are_for_headers_that_have_them() -> None:
    """Those of CUDA 12.0 have none: there, with the name gone, the text compiles as well."""
    deform = importlib.import_module("rawkernels.deform")
    atomic = "atomicAdd(reinterpret_cast<float4*>"
    text = deform.choose_program("float32", 4).text
    assert atomic in text
    text = text.replace(atomic, "undeclared(reinterpret_cast<float4*>")
    version = {"MAJOR": 12, "MINOR": 0}
    older = "".join(
        f"#undef __CUDACC_VER_{n}__\n#define __CUDACC_VER_{n}__ {v}\n" for n, v in version.items()
    )
    options = nvrtc.machine_options(TABLE_ARCHITECTURE)
    assert not nvrtc.compile_text(text, options).done
    made = nvrtc.compile_text(older + text, options)
    assert made.done, made.log


def test_reading_an_empty_log_leaves_the_bytes_of_python_alone() -> None:
    """The binding writes into what it is given, and Python has one object for all texts of one byte."""
    made = nvrtc.compile_text("", (f"--gpu-architecture={TABLE_ARCHITECTURE}",))
    assert made.done and made.log == ""
    assert [chr(number).encode()[0] for number in range(128)] == list(range(128))


def test_an_error_is_shown() -> None:
    program = Program("wrong.cu", (), override='extern "C" __global__ void wrong() { undeclared(); }')
    with pytest.raises(AssertionError, match=r'wrong for sm_90:[\s\S]*identifier "undeclared" is undefined'):
        compile_program("wrong", program, TABLE_ARCHITECTURE)


def write_table() -> None:
    """Compile everything for the table's architecture and write tests/registers.json."""
    programs = all_programs()
    made = compile_all(programs, TABLE_ARCHITECTURE)
    check(made)
    texts = {label: digest(program) for label, program in programs}
    parts = {"registers": registers(made), "texts": texts}
    head = {"nvrtc": nvrtc.version(), "architecture": TABLE_ARCHITECTURE}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for name, rows in parts.items():
        inner = ",\n".join(f"    {json.dumps(label)}: {json.dumps(row)}" for label, row in rows.items())
        lines.append(f"  {json.dumps(name)}: {{\n{inner}\n  }}")
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(made)} programs -> {TABLE}")


def compile_for_all() -> None:
    """Compile every program for every architecture, and print what spills."""
    for architecture in ARCHITECTURES:
        for wide_index in (False, True):
            found = spills(compile_all(all_programs(wide_index=wide_index), architecture))
            index = "long long" if wide_index else "int"
            print(architecture, index, *(found or ["no spills"]), sep="\n    ", flush=True)


if __name__ == "__main__":
    {"write": write_table, "all": compile_for_all}[sys.argv[1]]()
