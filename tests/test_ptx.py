"""The backend "ptx" sees what it says it sees: faults planted in small kernels, and none in sound ones.

Where one thread alone is at fault, all it says is compared: kernel, line, block, thread, array and index.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROBLEMS, may_be_missing

from rawkernels import host, ptx
from rawkernels.launch import launch, numpy_runner, type_constants
from rawkernels.source import Program

if PROBLEMS["ptx"] is not None and may_be_missing("ptx"):
    pytest.skip(f"backend ptx: {PROBLEMS['ptx']}", allow_module_level=True)

SOURCE = Path(__file__).resolve().parent / "planted" / "faults.cu"
FAULTS = Program("faults.cu", type_constants("float32"), override=SOURCE.read_text(encoding="utf-8"))
TARGETS = [ptx.Target("sm_90"), ptx.Target("sm_75", ftz=False)]
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.architecture)


@dataclass(frozen=True)
class Planted:
    """A kernel with a fault: how it is launched, and what must be reported."""

    name: str
    kind: str
    says: str  # a regular expression for the text of the report
    threads: int = 32
    blocks: int = 1
    size: int = 128  # elements of y


FOUND = [
    Planted("read_past_the_end", "out of bounds", r"reads x\[64\] of its 64 elements", 64),
    Planted("read_before_the_beginning", "out of bounds", r"reads x\[-1\] of its 64 elements"),
    Planted("write_past_the_end", "out of bounds", r"writes y\[32\] of its 32 elements", size=32),
    Planted("atomic_past_the_end", "out of bounds", r"updates y\[32\] of its 32 elements", size=32),
    Planted("vector_at_an_odd_element", "misaligned", r"reads x\[\d+\] with 16 bytes at an address", 8),
    Planted("past_a_shared_array_into_the_next", "out of bounds", r"writes first\[32\]"),
    Planted("past_dynamic_shared_memory", "out of bounds", r"writes tile\[31\]"),
    Planted(
        "shared_vector_at_an_odd_element", "misaligned", r"reads tile\[\d+\] with 16 bytes at an address"
    ),
    Planted("write_to_const", "write to a const array", r"writes x\[7\]"),
    Planted(
        "constant_load_after_a_write", "non-coherent load", r"reads y\[\d+\] as a constant \(.nc\), which"
    ),
    Planted(
        "write_after_a_constant_load_and_a_barrier", "non-coherent load", r"writes y\[\d+\], which .* read as"
    ),
    Planted("no_barrier_before_reading", "race, read after write", r"reads tile\[\d+\], which thread", 64),
    Planted("no_barrier_before_writing_again", "race, write after read", r"writes tile\[\d+\], which", 64),
    Planted("no_barrier_at_the_end_of_a_loop", "race, (read|write) after (read|write)", r"tile\[\d+\]", 64),
    Planted("no_barrier_of_the_warp", "race, read after write", r"reads tile\[\d+\], which thread .* wrote"),
    Planted("two_threads_write_one_element", "race, write after write", r"writes y\[\d+\], which thread"),
    Planted(
        "two_blocks_write_one_element", "race, write after write", r"of block \(\d, 0, 0\) wrote", blocks=2
    ),
    Planted("two_blocks_add_without_an_atomic", "race, read after write", r"reads y\[\d+\], which", blocks=2),
    Planted("a_read_beside_atomics", "race, read after write", r"reads y\[0\], which thread"),
    Planted(
        "a_block_reads_what_another_writes", "race, .*", r"y\[\d+\], which .* of block \(\d, 0", blocks=2
    ),
    Planted("one_element_is_not_written", "uninitialised shared memory", r"reads tile\[9\]", 64),
    Planted("only_the_first_block_writes", "uninitialised shared memory", r"reads tile\[\d+\]", blocks=2),
    Planted(
        "shuffle_in_half_a_warp", "divergent warp operation", r"names lanes 16, 17, .* 31, which returned"
    ),
    Planted("shuffle_after_some_returned", "divergent warp operation", r"names lane 31, which returned"),
    Planted("shuffles_in_both_branches", "divergent warp operation", r"came to another operation"),
    Planted(
        "shuffle_from_a_lane_outside_its_mask", "divergent warp operation", r"the value of lane 20, which"
    ),
    Planted("vote_in_half_a_warp", "divergent warp operation", r"names lanes 8, 9, .* 31, which returned"),
]


def run(
    name: str,
    target: ptx.Target,
    arguments: tuple[Any, ...],
    threads: int = 32,
    blocks: int = 1,
    shared_bytes: int = 0,
) -> None:
    """Launch one kernel of faults.cu."""
    with numpy_runner("ptx"), ptx.use_target(target):
        launch(FAULTS, name, (blocks,), (threads,), arguments, shared_bytes=shared_bytes)


def arrays(size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """x, 64 numbers that count, and y."""
    return np.arange(64, dtype=np.float32), np.zeros(size, np.float32)


def line_of(text: str) -> int:
    """The line of faults.cu that contains a text."""
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if text in line]
    return found


@each_target
@pytest.mark.parametrize("seed", ["0", "1", "2"])
@pytest.mark.parametrize("planted", FOUND, ids=lambda planted: planted.name)
def test_a_planted_fault_is_seen(
    planted: Planted, target: ptx.Target, seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order the threads run."""
    monkeypatch.setenv("DYNARRAY_HOST_SEED", seed)
    with pytest.raises(ptx.FaultError) as seen:
        run(planted.name, target, arrays(planted.size), planted.threads, planted.blocks, 124)
    matching = [report for report in seen.value.reports if re.fullmatch(planted.kind, report.kind)]
    assert matching, seen.value
    assert any(re.search(planted.says, report.text) for report in matching), seen.value
    for report in seen.value.reports:
        assert report.kernel == planted.name
        name, _, line = report.place.partition(":")
        assert name == "faults.cu"
        assert line_of(f"void {planted.name}(") <= int(line) <= line_of(f"void {planted.name}(") + 10


@each_target
def test_a_report_says_where(target: ptx.Target) -> None:
    x, y = arrays()
    with pytest.raises(ptx.FaultError) as seen:
        run("read_far_away", target, (x, y.reshape(4, 32), np.int64(-5)), blocks=1)
    (report,) = seen.value.reports
    assert (report.kind, report.kernel) == ("out of bounds", "read_far_away")
    assert report.place == f"faults.cu:{line_of('x[far] : 0.0f')}"
    assert report.source == "y[HERE] = HERE == 3 ? x[far] : 0.0f;"
    assert (report.block, report.thread) == ((0, 0, 0), (3, 0, 0))
    assert (report.array, report.index, report.count) == ("x", "[-5] of its 64 elements", 1)
    assert str(report).startswith(
        "read_far_away: out of bounds: block (0, 0, 0) thread (3, 0, 0): reads x[-5]"
    )


@each_target
def test_an_index_is_told_along_the_axes_of_the_array(target: ptx.Target) -> None:
    x, y = arrays()
    with pytest.raises(ptx.FaultError) as seen:
        run("write_to_const", target, (x.reshape(4, 4, 4), y))
    (report,) = seen.value.reports
    assert (report.array, report.index, report.thread) == ("x", "[0, 1, 3]", (5, 0, 0))


@each_target
@pytest.mark.parametrize("far", [-5, 64, 70, 300, -(2**30), 2**34])
def test_a_stray_index_never_lands_in_another_array(target: ptx.Target, far: int) -> None:
    """The two are neighbours in memory."""
    both = np.zeros(64 + 128, np.float32)
    with pytest.raises(ptx.FaultError, match=rf"reads x\[{far}\] of its 64 elements"):
        run("read_far_away", target, (both[:64], both[64:], np.int64(far)))


@each_target
def test_an_array_that_is_not_given_is_no_address(target: ptx.Target) -> None:
    with pytest.raises(ptx.FaultError, match=r"reads global memory at address 0x\w+, where no array is"):
        run("array_that_is_not_given", target, (None, arrays()[1]))


@each_target
@pytest.mark.parametrize("start", range(4))
def test_alignment_is_that_of_the_view(target: ptx.Target, start: int) -> None:
    memory, y = np.zeros(64, np.float32), np.zeros(8, np.float32)
    arguments = (memory[start : start + 32], y)
    if start == 0:
        run("vectors", target, arguments, 8)
        return
    with pytest.raises(ptx.FaultError, match=r"misaligned: .* reads x\[\d+\] with 16 bytes"):
        run("vectors", target, arguments, 8)


@each_target
def test_an_array_read_as_constant_and_written_is_seen(target: ptx.Target) -> None:
    _, y = arrays(64)
    message = r"writes x and y\[\d+\], which thread .* read as a constant \(.nc\)"
    with pytest.raises(ptx.FaultError, match=message):
        run("copy", target, (y, y))
    with pytest.raises(ptx.FaultError, match="non-coherent load"):
        run("copy", target, (y[:40], y[8:]))
    run("copy", target, (y[:32], y[32:]))


@each_target
@pytest.mark.parametrize("name", ["division_by_zero", "remainder_by_zero"])
def test_division_by_zero_is_seen(target: ptx.Target, name: str) -> None:
    x, y = np.arange(1, 33, dtype=np.int32), np.zeros(32, np.int32)
    run(name, target, (x, y))
    assert np.array_equal(y, 100 // x if name == "division_by_zero" else 100 % x)
    x[13] = 0
    with pytest.raises(ptx.FaultError) as seen:
        run(name, target, (x, y))
    (report,) = seen.value.reports
    assert (report.kind, report.thread) == ("division by zero", (13, 0, 0))


@each_target
def test_threads_at_different_barriers_are_an_error(target: ptx.Target) -> None:
    with pytest.raises(
        host.KernelError, match=r"barrier_in_half_a_warp: block is stuck: 16 threads wait at __sync"
    ):
        run("barrier_in_half_a_warp", target, arrays())


@each_target
def test_limits_of_a_launch(target: ptx.Target) -> None:
    run("larger_than_its_bounds", target, arrays(), 32)
    with pytest.raises(
        host.KernelError, match=r"^larger_than_its_bounds: a block of 33 threads, of at most 32$"
    ):
        run("larger_than_its_bounds", target, arrays(), 33)
    run("too_much_shared_memory", target, arrays(), 32, shared_bytes=128)
    with pytest.raises(
        host.KernelError, match=r"^too_much_shared_memory: 49280 bytes of shared memory, limit 49152$"
    ):
        run("too_much_shared_memory", target, arrays(), 32, shared_bytes=48 * 1024)


@each_target
@pytest.mark.parametrize("seed", ["0", "1", "2"])
@pytest.mark.parametrize("name", [name for name in FAULTS.entries if name.startswith("sound_")])
def test_nothing_is_reported_of_a_sound_kernel(
    name: str, target: ptx.Target, seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNARRAY_HOST_SEED", seed)
    threads = 40 if name == "sound_last_warp_that_is_not_full" else 64
    run(name, target, arrays(3 * 64), threads, 3)


SINGLE = """
extern __shared__ float tile[];
extern "C" __global__ void single(float* y) {
    __shared__ unsigned below, bits;
    if (threadIdx.x == 0) below = bits = 0;
    tile[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    if (tile[threadIdx.x] < 0) {
        atomicAdd(&below, 1);
        atomicOr(&bits, 1u << threadIdx.x);
    }
    __syncthreads();
    y[threadIdx.x] = threadIdx.x ? below : __ffs(bits);
}
"""


@each_target
def test_a_single_value_in_shared_memory_has_a_place_beside_the_dynamic_array(target: ptx.Target) -> None:
    y = np.ones(32, np.float32)
    y[[5, 9, 31]] = -1
    with numpy_runner("ptx"), ptx.use_target(target):
        launch(Program("single.cu", (), override=SINGLE), "single", (1,), (32,), (y,), shared_bytes=32 * 4)
    assert y.tolist() == [6.0, *[3.0] * 31]


def test_every_planted_fault_has_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    faults = [name for name in FAULTS.entries if not name.startswith("sound_")]
    assert len(faults) >= 21
    assert [name for name in faults if f'"{name}"' not in text] == []


@pytest.mark.parametrize(
    "code, message",
    [
        ('asm volatile("membar.gl;");', r"the instruction membar\.gl is unknown to the backend ptx"),
        ('asm("ex2.approx.f32 %0, %0;" : "+f"(*y));', r"the instruction ex2\.approx\.f32 is unknown"),
        ('asm("add.rz.f32 %0, %0, %0;" : "+f"(*y));', r"the instruction add\.rz\.f32 is unknown"),
        ('asm volatile("bar.sync 3;");', r"the instruction bar\.sync 3 is unknown"),
    ],
)
def test_an_unknown_instruction_is_an_error_by_name(code: str, message: str) -> None:
    text = f'extern "C" __global__ void odd(float* y) {{ {code} *y += 1.0f; }}'
    program = Program("odd.cu", (), override=text)
    with numpy_runner("ptx"), pytest.raises(ptx.PtxError, match=message):
        launch(program, "odd", (1,), (1,), (np.zeros(1, np.float32),))


def test_what_does_not_compile_is_an_error_with_the_compilers_words() -> None:
    program = Program("wrong.cu", (), override='extern "C" __global__ void wrong(float* y) { undeclared(); }')
    with numpy_runner("ptx"), pytest.raises(RuntimeError, match='identifier "undeclared" is undefined'):
        launch(program, "wrong", (1,), (1,), (np.zeros(1, np.float32),))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(ptx.nvrtc, "version", missing)
    wanted = r"NVRTC cannot be used \(No module named 'cuda'\): pip install 'dynamic-filters\[ptx\]'"
    assert re.fullmatch(wanted, ptx.problem() or "")
    program = Program("new.cu", (), override='extern "C" __global__ void fresh(float* y) { *y = 2.0f; }')
    with numpy_runner("ptx"), pytest.raises(RuntimeError, match=wanted):
        launch(program, "fresh", (1,), (1,), (np.zeros(1, np.float32),))
