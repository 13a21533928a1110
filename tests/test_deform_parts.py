"""`deform_conv2d` and `sample_points` in sizes that are hard, and divided into parts."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from _calls import draw_case
from _contract import Call, check, evaluate, make_call, parts, threads
from conftest import Backend, backend_params
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deform import OPERATOR, SAMPLE, call_of
from test_special_values import check_drawn

import dynarray as dyn
import rawkernels.deform as on_gpu
from dynarray.cpu.deform import plan as on_cpu

kernels = pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)

HARD: dict[str, dict[str, Any]] = {
    "k 7": {"c": 3, "o": 2, "image": (11, 13), "kernel": (7, 7), "padding": 3},
    "k 15 beyond the image": {"c": 1, "o": 1, "image": (9, 11), "kernel": (15, 15), "padding": 7},
    "a long row of taps": {"c": 2, "o": 3, "image": (4, 40), "kernel": (1, 31)},
    "dilation 8": {"c": 2, "o": 3, "image": (19, 21), "kernel": (3, 3), "dilation": 8},
    "steps of all kinds": {
        "c": 4, "o": 6, "image": (17, 19), "kernel": (2, 5), "groups": 2, "offset_groups": 4,
        "stride": (3, 2), "padding": (1, 4), "dilation": (2, 3),
    },
    "stride beyond the image": {"c": 2, "o": 3, "image": (5, 6), "kernel": (1, 1), "stride": 2**40},
    "dilation of one tap": {"c": 2, "o": 3, "image": (5, 6), "kernel": (1, 1), "dilation": 2**70},
    "a group per channel": {"c": 37, "o": 37, "image": (5, 9), "kernel": (3, 3), "groups": 37, "padding": 1},
    "an offset group per channel": {"c": 37, "o": 5, "image": (5, 9), "kernel": (3, 3), "offset_groups": 37},
    "channels that fill no vector": {"c": 67, "o": 41, "image": (9, 7), "kernel": (3, 3), "padding": 1},
    "many channels": {"c": 320, "o": 70, "image": (5, 6), "kernel": (3, 3), "padding": 1, "offset_groups": 2},
    "one output": {"c": 8, "o": 1, "image": (3, 3), "kernel": (3, 3)},
}  # fmt: skip


@pytest.mark.parametrize("case", HARD)
def test_hard_cases(backend: Backend, rng: np.random.Generator, case: str) -> None:
    settings_ = dict(HARD[case])
    sizes = [settings_.pop(name) for name in ("c", "o", "image", "kernel")]
    check(call_of(rng, 1, *sizes, **settings_), backend)


@kernels
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), which=st.sampled_from([OPERATOR, SAMPLE]))
def test_atomics_give_the_same_gradients(backend: Backend, seed: int, which: dyn.Operator) -> None:
    """The contract runs deterministic calls; this is the default."""
    rng = np.random.default_rng(seed)
    case = draw_case(which, lambda choices: choices[int(rng.integers(len(choices)))])
    call = make_call(which, case, seed)
    check(replace(call, params={**call.params, "deterministic": False}), backend)


@kernels
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("tile_bytes", "expected"), [(1, (20, 1)), (40_000, (10, 1)), (150_000, (3, 2))])
def test_tiles_of_images_and_of_parts_of_one(
    backend: Backend,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    deterministic: bool,
    tile_bytes: int,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(on_gpu, "TILE_BYTES", tile_bytes)
    call = call_of(rng, 5, 8, 6, (9, 11), offset_groups=2, groups=2, padding=1, deterministic=deterministic)
    shape = on_gpu._shape(*call.arrays[:3], (1, 1), (1, 1), (1, 1))
    tiles = list(on_gpu._tiles(shape))
    assert (len(tiles), tiles[0].images) == expected
    check(call, backend)
    x, points = call.arrays[0], rng.uniform(-2, 12, (5, 7, 2, 9, 8))
    params = {"deterministic": deterministic}
    check(Call(SAMPLE, (x, points), params, rng.standard_normal((5, 8, 7, 9, 8))), backend)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """A function that bounds the memory of the CPU form so that calls of a test go through many parts."""

    def bound(packed: int, weights: int, sums: int) -> None:
        monkeypatch.setattr(on_cpu, "PACKED_PART", 0)
        monkeypatch.setattr(on_cpu, "WEIGHT_PART", 0)
        for name, value in (("PACKED_BYTES", packed), ("WEIGHT_BYTES", weights), ("SUMS_BYTES", sums)):
            monkeypatch.setattr(on_cpu, name, value)
        on_cpu.deform_plan.cache_clear()

    yield bound
    on_cpu.deform_plan.cache_clear()


BOUNDS = {
    "a channel at a time": (1, 10**9, 10**9),
    "some channels of an image": (40_000, 10**9, 10**9),
    "some images": (400_000, 10**9, 10**9),
    "weights of a chunk": (10**9, 1, 10**9),
    "bands of one tile": (10**9, 10**9, 1),
    "everything": (40_000, 10_000, 30_000),
}


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_parts_on_the_cpu(
    backend: Backend, rng: np.random.Generator, small_parts: Callable, bounds: str
) -> None:
    small_parts(*BOUNDS[bounds])
    call = call_of(rng, 5, 72, 6, (9, 11), offset_groups=2, groups=3, padding=1)
    check(call, backend)
    x, points = call.arrays[0], rng.uniform(-2, 12, (5, 7, 2, 19, 18))
    check(Call(SAMPLE, (x, points), {}, rng.standard_normal((5, 72, 7, 19, 18))), backend)


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_special_values_in_parts(backend: Backend, small_parts: Callable) -> None:
    """An infinite mask in front of one sum is not what it is in front of each part of that."""
    small_parts(*BOUNDS["a channel at a time"])
    check_drawn(OPERATOR, backend, range(120))


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize("sizes", [(3, 64, 40, (37, 41)), (1, 16, 16, (61, 83))])
def test_threads_do_not_change_bits(backend: Backend, rng: np.random.Generator, sizes: tuple) -> None:
    """Calls large enough for every thread, in several bands and parts."""
    call = call_of(rng, *sizes, padding=1, offset_groups=2).astype("float32")
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(evaluate(call, backend))
    for other in results[1:]:
        for what, mine, right in parts(call, other, results[0]):
            assert mine.tobytes() == right.tobytes(), what
