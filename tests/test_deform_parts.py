"""`deform_conv2d` and `sample_points` in sizes that are hard, and divided into parts."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from _contract import Call, check, check_low_precision, check_threads, evaluate
from conftest import Backend, backend_params
from test_deform import OPERATOR, SAMPLE, call_of
from test_special_values import check_drawn

import rawkernels.deform as on_gpu
from dynarray.cpu.deform import plan as on_cpu
from rawkernels import deform_parts

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


DIVIDED = {  # bytes to be used, tiles or parts, and what the first one has: images, channels, rows
    "all at once": (10**9, (1, 5, 12, 5 * 99)),
    "some images": (400_000, (2, 3, 12, 3 * 99)),
    "an image": (200_000, (5, 1, 12, 99)),
    "rows of an image": (100_000, (10, 1, 12, 64)),
    "a group of channels": (14_000, (40, 1, 6, 32)),
    "channels of a group": (5_000, (120, 1, 2, 32)),
}


@kernels
@pytest.mark.parametrize("division", DIVIDED)
def test_parts_of_a_call(
    backend: Backend, rng: np.random.Generator, small_room: Callable, division: str
) -> None:
    room, expected = DIVIDED[division]
    small_room(room)
    call = call_of(rng, 5, 12, 6, (9, 11), offset_groups=2, groups=2, padding=1)
    shape = on_gpu._shape(
        *call.arrays[:3], None, stride=(1, 1), padding=(1, 1), dilation=(1, 1), border="constant"
    )
    parts_ = list(deform_parts.make_parts(shape, on_gpu._forward_costs, 3, ()))
    first = parts_[0].tiles[0]
    found = sum(len(part.tiles) for part in parts_), first.images, parts_[0].shape.channels, first.rows
    assert found == expected
    check(call, backend)
    x, points = call.arrays[0], rng.uniform(-2, 12, (5, 7, 2, 9, 8))
    check(Call(SAMPLE, (x, points), {}, rng.standard_normal((5, 12, 7, 9, 8))), backend)


@kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("in_float32", [(), OPERATOR.may_be_float32], ids=["all", "the image alone"])
def test_parts_of_half_precision(
    backend: Backend, rng: np.random.Generator, small_room: Callable, dtype: str, in_float32: tuple[str, ...]
) -> None:
    """An image is added up from several tiles in float32."""
    small_room(60_000)
    call = call_of(rng, 2, 12, 6, (9, 11), offset_groups=2, padding=1)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    check_low_precision(call, backend, kind, in_float32)


@pytest.mark.parametrize("backend", backend_params("host", "ptx"), indirect=True)
def test_special_values_in_parts_of_the_kernels(backend: Backend, small_room: Callable) -> None:
    small_room(1)
    check_drawn(OPERATOR, backend, range(40 if backend.name == "host" else 6))


CROWDS: dict[str, Callable[[np.ndarray], Any]] = {
    "all at one place": lambda places: -places + 4.25,
    "all at a corner of patches": lambda places: -places + np.array([3.5, 7.5]),
    "on all pixels of a corner": lambda places: -places + np.array([-0.5, -0.5]),
    "everywhere": lambda places: np.random.default_rng(1).uniform(-30, 30, places.shape),
    "nowhere": lambda places: np.full(places.shape, 1e9),
    "at infinity and at no number": lambda places: np.where(places % 2 == 0, np.inf, 0.5 * places),
}


def crowded(call: Call, crowd: str) -> Call:
    """The call with its points, of 3 x 3 taps on 13 x 19 positions, in such places."""
    x, offset, *others = call.arrays
    grid = np.indices((13, 19)).transpose(1, 2, 0)
    taps = np.indices((3, 3)).transpose(1, 2, 0) - 1
    places = (taps[:, :, None, None] + grid).transpose(0, 1, 4, 2, 3).astype(float)
    offset = np.broadcast_to(
        CROWDS[crowd](places.transpose(0, 1, 3, 4, 2)).transpose(0, 1, 4, 2, 3), offset.shape
    )
    moved = np.ascontiguousarray(offset, x.dtype)
    return replace(call, arrays=(x, moved, *others))


@kernels
@pytest.mark.parametrize("crowd", CROWDS)
def test_points_wherever_they_are(backend: Backend, rng: np.random.Generator, crowd: str) -> None:
    """Each patch of the image finds the points that reach it."""
    check(crowded(call_of(rng, 2, 40, 3, (13, 19), padding=1), crowd), backend)


@pytest.mark.parametrize("backend", backend_params("host", "ptx"), indirect=True)
@pytest.mark.parametrize("crowd", ["all at one place", "everywhere"])
def test_the_order_of_threads_changes_no_bit(
    backend: Backend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, crowd: str
) -> None:
    """Threads and blocks run in another order with each seed; atomics show it."""
    call = crowded(call_of(rng, 2, 40, 3, (13, 19), padding=1).astype("float32"), crowd)
    found: dict[bool, set[bytes]] = {True: set(), False: set()}
    for seed in range(4):
        monkeypatch.setenv("DYNARRAY_HOST_SEED", str(seed))
        for deterministic, bits in found.items():
            way = replace(call, params={**call.params, "deterministic": deterministic})
            bits.add(b"".join(part.tobytes() for part in (evaluate(way, backend).gradients)))
    assert len(found[True]) == 1 < len(found[False])


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A function that bounds what CUDA kernels use beside their arrays: calls go through many parts."""

    def bound(room: int) -> None:
        monkeypatch.setattr(deform_parts, "EXTRA_BYTES", room)
        monkeypatch.setattr(deform_parts, "EXTRA_SHARE", 10**12)

    return bound


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
    check_threads(call, backend, (2, 5))


# Batch, channels, image and points: with several tiles, rows that are cut, some channels at a time.
SAMPLED = {
    "rows that are cut": (1, 19, (5, 300), 2),
    "as many as fill rows": (2, 3, (21, 31), 3),
    "many points of many channels": (1, 24, (9, 11), 9),
    "a single channel": (1, 1, (40, 41), 2),
}


def sampled(rng: np.random.Generator, sizes: tuple, border: str) -> Call:
    """Points near their own pixels, and some beyond the image."""
    n, c, image, number = sizes
    x, places = rng.standard_normal((n, c, *image)), np.stack(np.indices(image, float))
    points = places + rng.normal(0, 3, (n, number, 2, *image))
    return Call(SAMPLE, (x, points), {"border": border}, rng.standard_normal((n, c, number, *image)))


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize("border", ["constant", "reflect"])
@pytest.mark.parametrize("title", SAMPLED)
def test_samples_of_several_tiles(
    backend: Backend, rng: np.random.Generator, title: str, border: str
) -> None:
    check(sampled(rng, SAMPLED[title], border), backend)


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize("sizes", [(1, 18, (60, 300), 1), (3, 2, (150, 170), 2), (2, 48, (40, 40), 9)])
def test_threads_do_not_change_bits_of_samples(
    backend: Backend, rng: np.random.Generator, sizes: tuple
) -> None:
    check_threads(sampled(rng, sizes, "constant").astype("float32"), backend, (2, 5))
