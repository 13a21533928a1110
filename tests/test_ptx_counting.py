"""What backend "ptx" counts of a launch is what was worked out by hand; a sample of blocks stands for all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROBLEMS, may_be_missing

from rawkernels import ptx
from rawkernels.launch import launch, numpy_runner, type_constants
from rawkernels.ptx import counting
from rawkernels.ptx.counting import Counted
from rawkernels.ptx.flow import flow
from rawkernels.ptx.opcodes import instruction_class
from rawkernels.ptx.parse import PtxError, parse
from rawkernels.ptx.translate import translate
from rawkernels.source import Program

if PROBLEMS["ptx"] is not None and may_be_missing("ptx"):
    pytest.skip(f"backend ptx: {PROBLEMS['ptx']}", allow_module_level=True)

SOURCE = Path(__file__).resolve().parent / "planted" / "costs.cu"
COSTS = Program("costs.cu", type_constants("float32"), override=SOURCE.read_text(encoding="utf-8"))


def counted(name: str, grid: Any, block: Any, *arguments: Any) -> Counted:
    """Launch one kernel of costs.cu."""
    numbers = tuple(np.int32(each) if isinstance(each, int) else each for each in arguments)
    with numpy_runner("ptx"), ptx.count() as found:
        launch(COSTS, name, grid, block, numbers)
    (one,) = found
    return one


def floats(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32)


def sectors(one: Counted, *bases: str) -> tuple[float, ...]:
    """Of global accesses: requests of warps, lanes, sectors, bytes asked for."""
    found = one.accesses("global", *bases)
    return tuple(found[name] for name in ("requests", "lanes", "sectors", "bytes"))


def copied(count: int, step: int = 1, shift: int = 0) -> Counted:
    y = floats(count)
    one = counted("copy", (-(-count // 128),), (128,), floats(count * step + shift), y, count, step, shift)
    np.testing.assert_array_equal(y, floats(count) * step + shift)
    return one


def test_a_copy() -> None:
    """1000 threads are 31 warps and 8 lanes; 8 floats are a sector."""
    one = copied(1000)
    assert sectors(one, "ld") == sectors(one, "st") == (32, 1000, 125, 4000)
    assert one.instructions()["global"] == 2000
    assert one.issued()["global"] == 64
    assert one.traffic() == {"read": 125, "written": 125, "updated": 0, "once": 250}
    assert one.instructions()["division"] == one.accesses("shared").total() == 0


def test_a_strided_copy_takes_a_sector_for_each_element() -> None:
    one = copied(1024, step=8)
    assert sectors(one, "ld") == (32, 1024, 1024, 4096)
    assert sectors(one, "st") == (32, 1024, 128, 4096)


def test_every_other_element_takes_twice_the_sectors() -> None:
    assert sectors(copied(1024, step=2), "ld") == (32, 1024, 256, 4096)


def test_a_shifted_copy_takes_a_fifth_sector_and_a_block_shares_it() -> None:
    """128 bytes from byte 4 lie on 5 sectors; of the 4 warps of a block, neighbours touch the same one."""
    one = copied(1024, shift=1)
    assert sectors(one, "ld") == (32, 1024, 160, 4096)
    assert one.traffic()["read"] == 8 * 17


def test_lanes_that_read_one_element_ask_for_its_bytes_once() -> None:
    x, y = floats(8), floats(64)
    assert sectors(counted("copy", (1,), (64,), x, y, 64, 0, 3), "ld") == (2, 64, 2, 8)


@pytest.mark.parametrize("shift, expected", [(0, 8), (2, 9)])
def test_a_vector_access_off_its_sector(shift: int, expected: int) -> None:
    """32 pairs are 256 bytes: 8 sectors, and 9 from byte 8."""
    one = counted("copy_pairs", (1,), (32,), floats(72), floats(32), shift)
    assert sectors(one, "ld") == (1, 32, expected, 256)


def test_a_misaligned_vector_is_a_fault_as_ever() -> None:
    with pytest.raises(ptx.FaultError, match=r"misaligned: .*reads x\[\d+\] with 8 bytes"):
        counted("copy_pairs", (1,), (32,), floats(72), floats(32), 1)


def wavefronts(one: Counted, *bases: str) -> tuple[float, ...]:
    """Of accesses to shared memory: requests, wavefronts, and those without conflicts."""
    found = one.accesses("shared", *bases)
    return tuple(found[name] for name in ("requests", "wavefronts", "needed_wavefronts"))


@pytest.mark.parametrize("name, expected", [("transpose", 32 * 32), ("transpose_padded", 32)])
def test_transposing_in_shared_memory(name: str, expected: int) -> None:
    """A column of 32 x 32 lies in one bank: 32 wavefronts for each of 32 warps; with 33 in a row, in all."""
    x, y = floats(1024), floats(1024)
    one = counted(name, (1,), (32, 32), x, y)
    np.testing.assert_array_equal(y.reshape(32, 32), x.reshape(32, 32).T)
    assert wavefronts(one, "st") == (32, 32, 32)
    assert wavefronts(one, "ld") == (32, expected, 32)
    assert sectors(one, "ld") == sectors(one, "st") == (32, 1024, 128, 4096)


@pytest.mark.parametrize("step, expected", [(1, 4), (2, 8), (4, 16), (0, 4)])
def test_four_floats_a_lane_take_four_wavefronts(step: int, expected: int) -> None:
    """A quarter of a warp reads 8 x 16 bytes, all banks; of every second place half of the banks, twice.

    Lanes that all read one place take one wavefront a quarter, as any request of theirs needs.
    """
    one = counted("shared_fours", (1,), (32,), floats(32), floats(32), step)
    assert wavefronts(one, "ld") == (1, expected, 4)
    assert wavefronts(one, "st") == (4, 16, 16)


def test_a_division_by_a_variable_is_one_and_by_a_constant_none() -> None:
    x = np.arange(256, dtype=np.int32)
    assert counted("divide", (2,), (128,), x, floats(256), 3).instructions()["division"] == 256
    constant = counted("divide_by_seven", (2,), (128,), x, floats(256))
    assert constant.instructions()["division"] == constant.instructions()["division64"] == 0


def test_a_division_is_told_at_its_line() -> None:
    one = counted("divide", (2,), (128,), np.arange(256, dtype=np.int32), floats(256), 3)
    (line,) = [line for line, counts in one.lines().items() if counts["divisions"]]
    assert "/ divisor" in COSTS.text.splitlines()[line - 1]
    assert one.lines()[line]["divisions"] == 256


@pytest.mark.parametrize("values, turns, touched", [(4, 8, 1), (1, 32, 1), (32, 1, 4)])
def test_a_histogram(values: int, turns: int, touched: int) -> None:
    """A warp adds to so many places, each for 32 / values lanes, one after the other."""
    x, counts = np.arange(128, dtype=np.int32) % values, np.zeros(32, np.int32)
    one = counted("histogram", (2,), (64,), x, counts)
    assert counts.sum() == 128
    assert sectors(one, "atom", "red") == (4, 128, 4 * touched, 16 * values)
    assert one.accesses("global", "atom", "red")["turns"] == 4 * turns
    assert one.instructions()["atomic"] == 128
    assert one.traffic()["updated"] == 2 * touched


def test_lanes_that_leave_a_loop_early_are_missing_in_its_later_rounds() -> None:
    """In round i the 31 - i lanes after i read, on the sectors from that of lane i + 1 to the last."""
    one = counted("triangle", (1,), (32,), floats(1024), floats(32))
    expected = sum(4 - (i + 1) // 8 for i in range(31))
    assert sectors(one, "ld") == (31, 31 * 16, expected, 4 * 31 * 16)


def test_lanes_that_a_round_leaves_out_are_with_the_others_in_the_next() -> None:
    """Each round half of the lanes read, every second element: 4 sectors."""
    one = counted("chequered", (1,), (32,), floats(256), floats(32))
    assert sectors(one, "ld") == (8, 8 * 16, 32, 4 * 8 * 16)


def test_rounds_of_an_inner_loop_belong_to_one_of_the_outer_loop() -> None:
    """Lanes 1, 4, ... read once and lanes 2, 5, ... twice in each of three rounds."""
    x, y = floats(192), floats(32)
    one = counted("nested", (1,), (32,), x, y)
    rows = x.reshape(3, 2, 32)
    np.testing.assert_array_equal(y, [rows[:, : lane % 3, lane].sum() for lane in range(32)])
    assert sectors(one, "ld") == (6, 3 * (21 + 10), 6 * 4, 4 * 3 * (21 + 10))


def test_what_lanes_do_alone_is_issued_for_all() -> None:
    one = counted("half_a_warp", (2,), (64,), floats(128), floats(128))
    assert one.instructions()["global"] == 2 * 64
    assert one.issued()["global"] == 2 * 4
    assert sectors(one, "ld") == (4, 64, 8, 256)


@pytest.mark.parametrize("name", ["copy", "triangle", "histogram"])
def test_the_order_of_threads_changes_no_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "copy": (floats(1024), floats(1000), 1000, 1, 1),
        "triangle": (floats(128 * 33), np.zeros(128, np.float32)),
        "histogram": (np.arange(1024, dtype=np.int32) % 5, np.zeros(5, np.int32)),
    }
    blocks = 1 if name == "triangle" else 8
    seen = []
    for seed in ("0", "1", "2"):
        monkeypatch.setenv("DYNARRAY_HOST_SEED", seed)
        raw = counted(name, (blocks,), (128,), *arguments[name]).raw
        seen.append([getattr(raw, field).tolist() for field in ("executed", "issued", "sites", "regions")])
    assert seen[0] == seen[1] == seen[2] and sum(seen[0][0]) > 0


# ---- samples of a grid


def test_a_sample_of_like_blocks_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where but the last block, which is cut off, all do the same, the numbers are the same."""
    whole = copied_blocks(40)
    monkeypatch.setattr(counting, "MOST", 1)
    some = copied_blocks(40)
    assert (whole.sampled, some.sampled) == (40, 8)
    for name in ("executed", "issued", "sites", "regions"):
        np.testing.assert_array_equal(getattr(some.raw, name), getattr(whole.raw, name))
    assert some.raw.executed.sum() > 0


@pytest.mark.parametrize("first", [0, 1])
def test_arrays_are_counted_in_the_order_of_the_arguments(first: int) -> None:
    """Wherever they lie in memory: the same array is the lower one once and the higher one once."""
    memory = np.zeros(2 * 512, np.float32)
    memory[512 * first : 512 * first + 512] = floats(512)
    x, y = (memory[512 * place : 512 * place + 512] for place in (first, 1 - first))
    one = counted("copy", (4,), (128,), x, y[:500], 500, 1, 1)
    assert one.arrays == (("x", 64), ("y", 63))
    np.testing.assert_array_equal(one.raw.regions[:, 0] > 0, [True, False])
    np.testing.assert_array_equal(one.raw.regions[:, 1] > 0, [False, True])


def copied_blocks(blocks: int) -> Counted:
    count = 128 * blocks - 47
    return counted(
        "copy", (blocks,), (128,), floats(count + 1), np.full(count, np.nan, np.float32), count, 1, 1
    )


def test_a_sample_grows_until_it_is_steady_or_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steady from the first time that it was doubled on: 2 at the ends, 6, and 6 more."""
    monkeypatch.setattr(counting, "ENOUGH", 1)
    assert copied_blocks(200).sampled == 2 + 6 + 6
    monkeypatch.setattr(counting, "_STEADY", -1)
    assert copied_blocks(200).sampled == 200
    per_block = copied_blocks(200).instructions().total() / 200
    monkeypatch.setattr(counting, "MOST", 20 * per_block)
    assert copied_blocks(200).sampled == 2 + 24


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 9, 100, 257])
def test_the_order_of_blocks_has_each_once_and_spreads_its_beginning(blocks: int) -> None:
    ends, rest = counting._order(blocks)
    assert sorted(ends + rest) == list(range(blocks))
    assert ends == sorted({0, blocks - 1})
    if blocks >= 100:
        gaps = np.diff(sorted([0, *rest[:12], blocks - 1]))
        assert gaps.max() <= blocks / 4


def test_what_a_sample_does_not_write_is_a_number_and_integers_are_written_by_all() -> None:
    counts = np.zeros(4, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MOST", 1)
        y = np.full(128 * 20, np.nan, np.float32)
        assert counted("copy", (20,), (128,), floats(y.size), y, y.size, 1, 0).sampled == 8
        one = counted("histogram", (20,), (128,), np.arange(2560, dtype=np.int32) % 4, counts)
    assert np.isfinite(y).all() and (y == np.arange(y.size)).sum() == 8 * 128
    assert one.sampled == 20 and (counts == 640).all()


# ---- where counters go

LOOPS = """
.visible .entry loops(.param .u64 loops_param_0)
{
    .reg .pred %p<3>; .reg .b32 %r<4>;
    mov.u32 %r1, 0;
$outer:
    mov.u32 %r2, 0;
$inner:
    add.s32 %r2, %r2, 1;
    setp.lt.s32 %p1, %r2, 3;
    @%p1 bra $inner;
    add.s32 %r1, %r1, 1;
    setp.lt.s32 %p2, %r1, 2;
    @%p2 bra $outer;
    ret;
}
"""


def test_loops_and_what_is_around_them() -> None:
    (kernel,) = parse(LOOPS)
    found = flow(kernel)
    assert [len(block) for block in found.blocks] == [1, 1, 3, 3, 1]
    outer, inner = found.headers[1], found.headers[2]
    assert found.loops == (0, outer, inner, outer, 0)
    assert found.parents[inner] == outer and found.parents[outer] == 0


def test_counters_are_where_blocks_begin_and_nowhere_where_nothing_is_counted() -> None:
    assert "counter" not in translate(LOOPS).text
    lines = [line.strip() for line in translate(LOOPS, counting=True).text.splitlines()]
    begin = lines.index("inner:;")
    assert lines[begin + 1 : begin + 4] == [
        "++counter.times[2];",
        "next_round(counter.loops[2], counter.loops[1]);",
        "r2 = (s32)r2 + (s32)1ll;",
    ]
    assert [line for line in lines if line.startswith("++counter")] == [
        f"++counter.times[{block}];" for block in range(5)
    ]


def test_a_loop_with_two_entrances_is_refused_by_name() -> None:
    twisted = LOOPS.replace("mov.u32 %r1, 0;", "mov.u32 %r1, 0; setp.eq.s32 %p1, %r1, 0; @%p1 bra $inner;", 1)
    twisted = twisted.replace("$outer:", "bra.uni $outer; $outer:")
    (kernel,) = parse(twisted)
    with pytest.raises(PtxError, match="loops: a loop with more than one entrance"):
        flow(kernel)


@pytest.mark.parametrize(
    "opcode, expected",
    [
        ("div.s32", "division"),
        ("rem.u64", "division64"),
        ("div.rn.f32", "special"),
        ("sqrt.rn.ftz.f32", "special"),
        ("fma.rn.ftz.f32", "float32"),
        ("add.f64", "float64"),
        ("mul.wide.s32", "integer"),
        ("add.s64", "integer64"),
        ("mov.u32", "move"),
        ("ld.param.u64", "move"),
        ("ld.global.nc.v4.f32", "global"),
        ("st.shared.f32", "shared"),
        ("red.global.add.f32", "atomic"),
        ("atom.shared.add.u32", "atomic"),
        ("setp.lt.s32", "comparison"),
        ("cvt.rn.f32.s32", "conversion"),
        ("bra.uni", "control"),
        ("bar.sync", "warp"),
        ("shfl.sync.bfly.b32", "warp"),
    ],
)
def test_classes_of_instructions(opcode: str, expected: str) -> None:
    assert instruction_class(opcode) == expected
