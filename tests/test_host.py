"""The host build of CUDA kernels: the shim does what CUDA does, and mistakes in kernels show.

Four faults planted in the kernels that ship (a missing barrier, an off-by-one read, an unwritten output, a
wrong grid) must each fail the check that the sound kernels pass.
"""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dynarray.reference import local_filter as reference
from rawkernels import host, local_filter
from rawkernels.host import library
from rawkernels.host.guard import GUARD_BYTES
from rawkernels.launch import launch, type_constants
from rawkernels.source import Program, inline, read

if shutil.which(os.environ.get("CXX") or "g++") is None and not os.environ.get("CI"):
    pytest.skip("no g++ on the PATH", allow_module_level=True)

PLANTED = Path(__file__).resolve().parent / "planted"
SEEDS = ("0", "1", "2")


def planted(name: str, dtype: Any = "float32") -> Program:
    """One of the small sources beside this test."""
    return Program(name, type_constants(dtype), override=(PLANTED / name).read_text(encoding="utf-8"))


BLOCKS = planted("blocks.cu")


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Seed of the order in which threads and blocks run."""
    monkeypatch.setenv("DYNARRAY_HOST_SEED", request.param)
    return str(request.param)


def integers(count: int) -> np.ndarray:
    """Small whole numbers, whose float32 sums are exact."""
    return np.random.default_rng(count).integers(0, 100, count).astype(np.float32)


# ---- the shim does what CUDA does ----


@pytest.mark.parametrize("threads", [32, 64, 256, 1024])
def test_two_stage_block_reduction(threads: int, seed: str) -> None:
    blocks = 5
    source = integers(blocks * threads - 17)
    sums = np.full(blocks, np.nan, np.float32)
    launch(BLOCKS, "block_sums", (blocks,), (threads,), (source, sums, np.int32(source.size)))
    padded = np.append(source, np.zeros(17, np.float32))
    assert np.array_equal(sums, padded.reshape(blocks, threads).sum(1))


@pytest.mark.parametrize("count", [1, 63, 64, 100, 64 * 40])
def test_returned_threads_do_not_block_a_barrier(count: int, seed: str) -> None:
    source, target = integers(count), np.full(count, np.nan, np.float32)
    grid = (-(-count // 64),)
    launch(BLOCKS, "reverse", grid, (64,), (source, target, np.int32(count)), shared_bytes=256)
    expected = [source[first : first + 64][::-1] for first in range(0, count, 64)]
    assert np.array_equal(target, np.concatenate(expected))


def test_barriers_in_a_loop(seed: str) -> None:
    source, target = integers(96), np.zeros(96, np.float32)
    launch(BLOCKS, "rotate", (1,), (96,), (source, target, np.int32(7)), shared_bytes=4 * 96)
    assert np.array_equal(target, np.roll(source, -7))


@pytest.mark.parametrize("barrier", ["after reading", "after writing"])
def test_each_barrier_of_the_loop_is_needed(barrier: str) -> None:
    """Both hazards show: a value overwritten before it is read, and one read before it is written."""
    source, target = integers(96), np.zeros(96, np.float32)
    text = (PLANTED / "blocks.cu").read_text(encoding="utf-8")
    faulty = Program(
        "blocks.cu", type_constants("float32"), override=without(text, f"__syncthreads();  // {barrier}")
    )
    launch(faulty, "rotate", (1,), (96,), (source, target, np.int32(7)), shared_bytes=4 * 96)
    assert not np.array_equal(target, np.roll(source, -7))


def test_warp_operations(seed: str) -> None:
    source = np.random.default_rng(3).permutation(64).astype(np.int32)
    result = np.zeros((64, 6), np.int32)
    launch(BLOCKS, "warp_operations", (1,), (64,), (source, result))
    lanes = np.arange(32)
    for warp, found in zip(source.reshape(2, 32), result.reshape(2, 32, 6), strict=True):
        assert np.array_equal(found[:, 0], warp[lanes // 8 * 8 + (lanes + 3) % 8])
        assert np.array_equal(found[:, 1], np.where(lanes % 16 < 2, warp, np.roll(warp, 2)))
        assert np.array_equal(found[:, 2], np.where(lanes >= 27, warp, np.roll(warp, -5)))
        ballot = int(sum(1 << int(lane) for lane in lanes[warp % 3 == 0]))
        assert np.array_equal(found[:, 3].view(np.uint32), np.full(32, ballot, np.uint32))
        assert np.array_equal(found[:, 4], np.full(32, int(7 in warp) + 2))
        assert np.array_equal(found[:, 5], np.where(lanes < 8, warp[(lanes ^ 4)], -1))


def test_atomics_and_vector_types(seed: str) -> None:
    source = np.random.default_rng(4).integers(0, 7, 1000).astype(np.int32)
    counts = np.zeros(7, np.int32)
    launch(BLOCKS, "count_values", (4,), (256,), (source, counts, np.int32(1000)))
    assert np.array_equal(counts, np.bincount(source, minlength=7))
    pairs, target = integers(64), np.zeros(64, np.float32)
    launch(BLOCKS, "swap_pairs", (1,), (16,), (pairs, target))
    assert np.array_equal(target, pairs.reshape(-1, 2)[:, ::-1].ravel())


def hard_floats(dtype: Any) -> np.ndarray:
    """Every value of a 16-bit dtype, the midpoints between neighbours, what lies beside both, and more."""
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    finite = np.unique(values[np.isfinite(values.astype(np.float32))].astype(np.float32))
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    edges = np.array(
        [np.inf, -np.inf, np.nan, 65519.99, 65520, 65536, 3.4e38, -3.4e38, 1e-45, -1e-45, -0.0], np.float32
    )
    bits = np.random.default_rng(5).integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    exact = np.concatenate([finite, middle])
    below, above = np.nextafter(exact, np.float32(-np.inf)), np.nextafter(exact, np.float32(np.inf))
    return np.concatenate([exact, below, above, edges, bits])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_low_precision_rounds_as_numpy_does(dtype: Any) -> None:
    conversions = planted("rounding.cu", np.dtype(dtype))
    halves = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    wide = np.zeros(1 << 16, np.float32)
    launch(conversions, "widen", (256,), (256,), (halves, wide, np.int32(1 << 16)))
    same_bits(wide, halves.astype(np.float32))
    floats = hard_floats(dtype)
    narrow = np.zeros(floats.size, dtype)
    grid = (-(-floats.size // 256),)
    launch(conversions, "narrow", grid, (256,), (floats, narrow, np.int32(floats.size)))
    with np.errstate(over="ignore", invalid="ignore"):
        same_bits(narrow, floats.astype(dtype))


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit by bit, but for the payload of a NaN."""
    nan = np.isnan(expected.astype(np.float32))
    assert np.array_equal(np.isnan(found.astype(np.float32)), nan)
    bits = np.dtype(f"u{found.itemsize}")
    assert np.array_equal(found.view(bits)[~nan], expected.view(bits)[~nan])


# ---- mistakes show ----


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("offset", [-1, 4, 5, -100, 1000])
def test_stray_write_is_an_error(dtype: Any, offset: int) -> None:
    target = np.zeros(4, dtype)
    message = f"^write_outside: stray write to target: 1 elements outside its 4, first at index {offset}$"
    with pytest.raises(host.KernelError, match=message):
        launch(planted("blocks.cu", np.dtype(dtype)), "write_outside", (1,), (1,), (target, np.int32(offset)))
    for inside in range(4):
        launch(planted("blocks.cu", np.dtype(dtype)), "write_outside", (1,), (1,), (target, np.int32(inside)))
    assert target.astype(float).tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_stray_read_finds_nan(dtype: Any) -> None:
    source, target = np.ones(4, dtype), np.zeros(1, dtype)
    reach = GUARD_BYTES // source.itemsize
    for offset in (-reach, -1, 0, 3, 4, 3 + reach):
        launch(
            planted("blocks.cu", np.dtype(dtype)),
            "read_outside",
            (1,),
            (1,),
            (source, target, np.int32(offset)),
        )
        assert np.isnan(float(target[0])) == (not 0 <= offset < 4)


def test_stray_write_of_a_stray_value_is_an_error() -> None:
    """Copying one guard zone over another does not hide the write."""
    text = (PLANTED / "blocks.cu").read_text(encoding="utf-8")
    faulty = replaced(text, "store(target, load(source + offset));", "store(target - 7, load(source - 8));")
    program = Program("blocks.cu", type_constants("float32"), override=faulty)
    with pytest.raises(
        host.KernelError, match=r"stray write to target: 1 elements outside its 1, first at index -7"
    ):
        launch(program, "read_outside", (1,), (1,), (integers(4), np.zeros(1, np.float32), np.int32(0)))


def test_threads_at_different_barriers_are_an_error(seed: str) -> None:
    target = np.zeros(1, np.float32)
    with pytest.raises(
        host.KernelError, match=r"^divergent_barrier: block is stuck: 63 threads wait at __syncthr"
    ):
        launch(BLOCKS, "divergent_barrier", (1,), (64,), (target,))
    test_barriers_in_a_loop(seed)  # the fibers left behind do no harm


def test_lane_outside_its_mask_is_an_error() -> None:
    message = r"^excluded_lane: lane \d+ calls a warp operation whose mask leaves it out$"
    with pytest.raises(host.KernelError, match=message):
        launch(BLOCKS, "excluded_lane", (1,), (32,), (np.zeros(32, np.int32),))


def test_shared_memory_has_its_size() -> None:
    target = np.zeros(64, np.float32)
    launch(BLOCKS, "shared_overrun", (1,), (64,), (target,), shared_bytes=256)
    message = r"^shared_overrun: write past the end of its 252 bytes of dynamic shared memory$"
    with pytest.raises(host.KernelError, match=message):
        launch(BLOCKS, "shared_overrun", (1,), (64,), (target,), shared_bytes=252)


def test_shared_memory_starts_as_nan_in_every_block() -> None:
    target = np.zeros(32, np.float32)
    for _ in range(2):
        launch(BLOCKS, "unwritten_shared", (3,), (32,), (target,), shared_bytes=128)
        assert np.array_equal(np.isnan(target), np.arange(32) % 2 == 0)


# ---- four faults planted in the kernels that ship ----


def without(text: str, part: str) -> str:
    """The text without a part that it has."""
    return replaced(text, part, "")


def replaced(text: str, old: str, new: str) -> str:
    """The text with the first occurrence of a part replaced."""
    assert old in text
    return text.replace(old, new, 1)


def plant(monkeypatch: pytest.MonkeyPatch, edit: Callable[[str], str]) -> None:
    """Make the launcher use an edited copy of local_filter.cu with its headers inlined."""
    text = edit(inline(read("local_filter.cu")))
    monkeypatch.setattr(local_filter, "program", lambda file, defines: Program(file, defines, override=text))


def largest_error(size: int, stride: int = 1) -> float:
    """Worst error of forward and backward against the reference; NaN if any element is NaN."""
    rng = np.random.default_rng(6)
    batch, channels, groups, height, width = 2, 12, 2, 9, 13
    out_h, out_w = (height - 1) // stride + 1, (width - 1) // stride + 1
    x = rng.standard_normal((batch, channels, height, width))
    weight = rng.standard_normal((batch, groups, size, size, out_h, out_w))
    channel_weight = rng.standard_normal((batch, 1, 1, channels, size, size))
    grad_output = rng.standard_normal((batch, channels, out_h, out_w))
    how: dict[str, Any] = {"combine": "mul", "stride": (stride, stride), "dilation": (1, 1)}
    how |= {"padding": (size // 2, size // 2), "upsample": 1}
    found, kept = local_filter.forward(x, weight, channel_weight, **how)
    expected, expected_kept = reference.forward(x, weight, channel_weight, **how)
    needs = (True, True, True)
    results = [found, *local_filter.backward(grad_output, kept, needs, **how)]
    wanted = [expected, *reference.backward(grad_output, expected_kept, needs, **how)]
    errors = [np.abs(a - b).ravel() for a, b in zip(results, wanted, strict=True)]
    return float(np.max(np.concatenate(errors)))  # unlike max(), this keeps a NaN


@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_sound_kernels_pass(size: int, stride: int, seed: str) -> None:
    assert largest_error(size, stride) < 1e-12


def caught(size: int) -> bool:
    """Whether the check that the sound kernels pass fails."""
    try:
        return not largest_error(size) < 1e-12
    except host.KernelError:
        return True


@pytest.mark.parametrize("size", [3, 9])
def test_a_missing_barrier_is_caught(size: int, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda text: without(text, "__syncthreads();"))
    assert caught(size)


def test_the_barrier_before_reuse_is_needed(seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second barrier protects sums that others still read, where there are several strips of sums."""

    def edit(text: str) -> str:
        head, _, tail = text.rpartition("__syncthreads();")
        assert head
        return head + tail

    plant(monkeypatch, edit)
    assert caught(3)


@pytest.mark.parametrize(
    "size, old, new",
    [
        pytest.param(3, "position < size &&", "position <= size &&", id="compiled size"),
        pytest.param(9, "at < size ?", "at <= size ?", id="any size"),
    ],
)
def test_an_off_by_one_read_is_caught(size: int, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda text: replaced(text, old, new))
    assert caught(size)


@pytest.mark.parametrize(
    "size, old, new",
    [
        pytest.param(3, "if (r < rows) store(", "if (r + 1 < rows) store(", id="forward and gradient of x"),
        pytest.param(3, "if (exists && r < rows) store", "if (exists && r + 1 < rows) store", id="weight"),
        pytest.param(3, "if (start + lane < count * TAPS)", "if (start + lane < count)", id="channel_weight"),
        pytest.param(9, "if (c < count) store(y", "if (c + 1 < count) store(y", id="any size"),
    ],
)
def test_an_unwritten_output_is_caught(
    size: int, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda text: replaced(text, old, new))
    assert caught(size)


@pytest.mark.parametrize("size", [3, 9])
def test_a_grid_too_small_is_caught(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_filter, "launch", shrink_grid)
    assert caught(size)


def shrink_grid(program: Program, entry: str, grid: Any, *rest: Any, **named: Any) -> None:
    """Launch with one block too few."""
    launch(program, entry, (grid[0] - 1,), *rest, **named)


def test_a_grid_too_large_without_its_guard_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda text: replaced(text, "if (flat >= items) return;", ""))
    with pytest.raises(host.KernelError, match=r"^local_filter_forward: stray write to y: "):
        largest_error(3)


MODES = {
    "one": {"stride": (1, 1), "dilation": (1, 1), "upsample": 1},
    "strided": {"stride": (2, 3), "dilation": (1, 2), "upsample": 1},
    "up 2": {"stride": (1, 1), "dilation": (1, 1), "upsample": 2},
    "up 2 dilated": {"stride": (1, 1), "dilation": (2, 2), "upsample": 2},
    "up 3": {"stride": (1, 1), "dilation": (1, 1), "upsample": 3},
}


@pytest.mark.parametrize("wide", [False, True], ids=["int", "long long"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_every_layout_of_the_work(size: int, mode: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size and mode, on an image with warps inside and at the border, several slots and chunks."""
    if wide:
        monkeypatch.setattr(local_filter, "needs_wide_index", lambda *arrays, work_items: True)
    rng = np.random.default_rng(8)
    how: dict[str, Any] = MODES[mode] | {"combine": "mul", "padding": (size // 2, size // 2)}
    u, steps, reach = how["upsample"], how["stride"], [d * (size - 1) for d in how["dilation"]]
    height, width = 23, 97
    outputs = [
        u * ((extent + 2 * (size // 2) - reach[axis] - 1) // steps[axis] + 1)
        for axis, extent in enumerate((height, width))
    ]
    x = rng.standard_normal((1, 6, height, width)).astype(np.float32)
    weight = rng.standard_normal((1, 1, size, size, *outputs)).astype(np.float32)
    channel_weight = rng.standard_normal((1, u, u, 6, size, size)).astype(np.float32)
    grad_output = rng.standard_normal((1, 6, *outputs)).astype(np.float32)
    found = both_ways(local_filter, grad_output, (x, weight, channel_weight), how)
    doubled = [array.astype(np.float64) for array in (grad_output, x, weight, channel_weight)]
    expected = both_ways(reference, doubled[0], tuple(doubled[1:]), how)
    # Rounding is judged by the size of what is added up, which the same sums of absolute values give.
    sizes = both_ways(reference, abs(doubled[0]), tuple(abs(array) for array in doubled[1:]), how)
    for ours, wanted, size_of_terms in zip(found, expected, sizes, strict=True):
        assert ours.dtype == np.float32 and ours.shape == wanted.shape
        assert np.all(np.abs(ours - wanted) <= 2e-6 * size_of_terms)


def both_ways(module: Any, grad_output: Any, arrays: tuple[Any, ...], how: dict[str, Any]) -> list[Any]:
    """Output and gradients."""
    output, kept = module.forward(*arrays, **how)
    return [output, *module.backward(grad_output, kept, (True, True, True), **how)]


def test_any_order_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    x, weight = rng.standard_normal((2, 16, 8, 9)), rng.standard_normal((2, 1, 3, 3, 8, 9))
    channel_weight, grad = rng.standard_normal((2, 1, 1, 16, 3, 3)), rng.standard_normal(x.shape)
    how: dict[str, Any] = {
        "combine": "add",
        "stride": (1, 1),
        "dilation": (1, 1),
        "padding": (1, 1),
        "upsample": 1,
    }
    seen = []
    for value in SEEDS:
        monkeypatch.setenv("DYNARRAY_HOST_SEED", value)
        y, kept = local_filter.forward(x, weight, channel_weight, **how)
        seen.append([y, *local_filter.backward(grad, kept, (True, True, True), **how)])
    for other in seen[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_the_kernel_text_is_unchanged() -> None:
    program, _ = local_filter.choose_program("float32", "float32", (3, 3), "mul", unit_steps=True, upsample=1)
    assert program.text in library.with_entries(program)
    assert inline(read("local_filter.cu")) in program.text


def test_threads_launch_at_the_same_time() -> None:
    wrong: list[int] = []

    def work(index: int) -> None:
        source = integers(500 + index)
        for _ in range(20):
            target = np.full(source.size, np.nan, np.float32)
            count = np.int32(source.size)
            launch(
                BLOCKS, "reverse", (-(-source.size // 64),), (64,), (source, target, count), shared_bytes=256
            )
            expected = [source[i : i + 64][::-1] for i in range(0, source.size, 64)]
            if not np.array_equal(target, np.concatenate(expected)):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
