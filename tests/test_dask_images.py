"""Photographs as arrays of dask: what the functions of `images` give of the whole; and chunks of CuPy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from _standin import standing_in

import dynarray as dyn
from autodiff import Variable
from dynarray import images, kernels

dask = pytest.importorskip("dask", reason="dask is not installed (extra: dask)")
da = pytest.importorskip("dask.array", reason="dask is not installed (extra: dask)")

RNG = np.random.default_rng(0)
H, W, C, N = 23, 31, 3, 2
PHOTO = RNG.integers(0, 256, (H, W, C), np.uint8)
REAL = RNG.uniform(0, 1, (N, H, W, C)).astype(np.float32)
FLOW = RNG.uniform(-4, 4, (H, W, 2))
MAPS = RNG.uniform(0, 1, (3, 5, H, W))
MIXED = RNG.uniform(-1, 1, (4, 5, 3)), RNG.uniform(0, 1, (4, H, W))


@pytest.fixture(autouse=True)
def _in_this_thread() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def lazy(array: Any, *axes: int, size: int = 8) -> Any:
    """In chunks along these axes."""
    return da.from_array(array, chunks=tuple(size if a in axes else -1 for a in range(array.ndim)))


def filtered(*arrays: Any, **options: Any) -> Any:
    return images.filter(*arrays, **options)


# A function, its arrays, and along which axes of each there are chunks; None: the array is NumPy's.
CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...], dict[str, Any]]] = {
    "own kernels": (filtered, (PHOTO, MAPS), ((0, 1), (2, 3)), {}),
    "own kernels of NumPy": (filtered, (PHOTO, MAPS), ((0, 1), None), {"border": "edge"}),
    "photo of NumPy": (filtered, (PHOTO, MAPS), (None, (2, 3)), {"border": "symmetric"}),
    "one kernel": (filtered, (REAL[0], MIXED[0][0]), ((0, 1), None), {"border": "constant"}),
    "mixture": (filtered, (PHOTO, *MIXED), ((0, 1), None, (1, 2)), {}),
    "channels in chunks": (filtered, (PHOTO, *MIXED), ((0, 2), None, (0, 1)), {}),
    "grey": (filtered, (PHOTO[..., 0], *MIXED), ((0, 1), None, (1, 2)), {"channel_axis": None}),
    "several": (filtered, (REAL, *MIXED), ((0, 1, 2), None, None), {}),
    "several, own": (filtered, (REAL, np.stack([MAPS, MAPS * 2])), ((0, 1), (3, 4)), {}),
    "first axis": (filtered, (REAL[0].transpose(2, 0, 1), MAPS), ((1, 2), (2, 3)), {"channel_axis": 0}),
    "larger kernels": (
        filtered,
        (PHOTO[:5, :4], np.ones((13, 11)) / 100),
        ((0, 1), None),
        {"border": "edge"},
    ),
    "even kernels": (filtered, (PHOTO, MAPS[:2, :4]), ((0, 1), (2, 3)), {"border": "reflect"}),
    "sample": (images.sample, (PHOTO, FLOW + 9), ((0, 1), (0, 1)), {}),
    "sample, points of NumPy": (images.sample, (PHOTO, FLOW[0] + 9), ((0, 1), None), {"border": "wrap"}),
    "sample a line, photo of NumPy": (images.sample, (PHOTO, FLOW[0] + 9), (None, (0,)), {}),
    "sample several": (images.sample, (REAL, np.stack([FLOW, FLOW])), ((0, 1), (1, 2)), {}),
    "warp": (images.warp, (PHOTO, FLOW), ((0, 1), (0, 1)), {}),
    "warp, flow of NumPy": (images.warp, (PHOTO, FLOW), ((0, 1), None), {"border": "edge"}),
    "warp, photo of NumPy": (images.warp, (PHOTO, FLOW), (None, (0, 1)), {}),
    "warp several": (images.warp, (REAL, np.stack([FLOW, -FLOW])), ((0, 1, 2), (0, 1)), {}),
}


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 8) for name in CASES), ("own kernels", 3), ("several", 2), ("warp", 3), ("larger kernels", 2)]
    + [("even kernels", size) for size in (1, 2, 5)],
)
def test_chunks_give_what_the_whole_gives(name: str, size: int) -> None:
    """Also chunks that are smaller than what pixels read around them."""
    call, arrays, axes, options = CASES[name]
    whole = call(*arrays, **options)
    given = [a if along is None else lazy(a, *along, size=size) for a, along in zip(arrays, axes)]
    found = call(*given, **options)
    assert isinstance(found, da.Array) and found.shape == whole.shape and found.dtype == whole.dtype
    made = found.compute()
    assert made.dtype == whole.dtype
    if whole.dtype.kind == "u":
        np.testing.assert_array_equal(made, whole)
    else:
        np.testing.assert_allclose(made, whole, 2e-6, 2e-6)


def test_chunks_stay_as_they_are() -> None:
    photo = lazy(PHOTO, 0, 1)
    assert images.filter(photo, *MIXED).chunks == photo.chunks
    apart = lazy(PHOTO, 0, 1, 2, size=2)
    assert images.filter(apart, *MIXED).chunks == apart.chunks
    assert images.warp(photo, FLOW).chunks == photo.chunks
    points = lazy(FLOW, 0, size=5)
    assert images.sample(photo, points).chunks == (*points.chunks[:2], (C,))


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def never(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    photo = lazy(PHOTO, 0, 1).map_blocks(never, dtype=PHOTO.dtype, meta=PHOTO[:0, :0, :0])
    for y in (images.filter(photo, *MIXED), images.warp(photo, FLOW), images.sample(photo, FLOW)):
        with pytest.raises(AssertionError, match="computed"):
            y.compute()


def test_a_chunk_needs_its_neighbours_and_no_others() -> None:
    seen: list[tuple[int, ...]] = []

    def counted(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            seen.append(tuple(block_info[0]["chunk-location"][:2]))
        return block

    photo = lazy(PHOTO, 0, 1, size=6).map_blocks(counted, dtype=PHOTO.dtype, meta=PHOTO[:0, :0, :0])
    images.filter(photo, *MIXED).blocks[1, 3].compute()
    assert sorted(set(seen)) == [(i, j) for i in range(3) for j in range(2, 5)]


def test_kernels_of_a_chunk_are_made_when_it_is_its_turn() -> None:
    """And not those of many chunks beforehand, which would have to be kept."""
    events: list[int] = []

    def noting(block: np.ndarray, step: int) -> np.ndarray:
        events.append(step)
        return block

    size, high, wide = 6, 30, 36
    photo = lazy(RNG.integers(0, 256, (high, wide, C), np.uint8), 0, 1, size=size)
    rows, columns = (da.arange(n, chunks=size, dtype=np.float64) / n for n in (high, wide))
    mixture = (rows[:, None] + columns)[None] * np.arange(4)[:, None, None]
    mixture = mixture.map_blocks(noting, 1, dtype=mixture.dtype, meta=mixture._meta)
    y = images.filter(photo, MIXED[0], mixture)
    y.map_blocks(noting, -1, dtype=y.dtype, meta=y._meta).compute()
    assert len(events) == 2 * y.npartitions and np.cumsum(events).max() == 1


def test_refusals_name_function_and_argument() -> None:
    photo = lazy(PHOTO, 0, 1)
    with pytest.raises(ValueError, match='filter: border must not be "wrap" for arrays of dask'):
        images.filter(photo, *MIXED, border="wrap")
    with pytest.raises(ValueError, match="filter: mixture must have shape"):
        images.filter(photo, MIXED[0], MIXED[1][:, 1:])
    with pytest.raises(ValueError, match="warp: flow must have shape"):
        images.warp(photo, lazy(FLOW[1:], 0))
    with pytest.raises(TypeError, match="filter: a Variable beside arrays of dask"):
        images.filter(photo, Variable(MIXED[0]), MIXED[1])
    with pytest.raises(ValueError, match=r"filter: photo must have chunks of known sizes, got shape \(nan, "):
        images.filter(photo[photo[:, 0, 0] > 9], MIXED[0][0])
    with pytest.raises(ValueError, match="border must be one of"):
        images.sample(photo, FLOW, border="mirror")  # type: ignore[arg-type]


# Chunks of CuPy's arrays, with the stand-in: dask hands on what it is given by its kind.


@pytest.fixture
def cupy() -> Iterator[Any]:
    """The stand-in. Of CuPy itself dask knows how chunks are put together."""
    from dask.array.dispatch import concatenate_lookup

    with standing_in() as module:
        concatenate_lookup.register(module.ndarray, module.concatenate)
        try:
            yield module
        finally:
            del concatenate_lookup._lookup[module.ndarray]


def on_device(cupy: Any, array: np.ndarray, chunks: tuple[int, ...]) -> Any:
    """An array of dask whose chunks are CuPy's."""
    return da.from_array(cupy.asarray(array), chunks=chunks, asarray=False)


def test_operators_keep_chunks_on_the_device(cupy: Any) -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((1, 4, 12, 20)), rng.standard_normal((1, 2, 3, 3, 12, 20))
    arrays = on_device(cupy, x, (1, 4, 6, 10)), on_device(cupy, weight, (1, 2, 3, 3, 6, 10))
    y = dyn.local_filter2d(*arrays)
    found = dyn.local_filter2d_backward(y, *arrays)
    assert type(y._meta) is type(found.x._meta) is cupy.ndarray
    whole = dyn.local_filter2d(x, weight)
    right = dyn.local_filter2d_backward(whole, x, weight)
    for own, wanted in ((y, whole), (found.x, right.x), (found.weight, right.weight)):
        made = own.compute()
        assert isinstance(made, cupy.ndarray)
        np.testing.assert_allclose(made.get(), wanted, 1e-12, 1e-12)


def test_photographs_keep_chunks_on_the_device(cupy: Any) -> None:
    photo = on_device(cupy, PHOTO, (12, 16, 3))
    fixed, mixture = cupy.asarray(MIXED[0]), on_device(cupy, MIXED[1], (4, 12, 16))
    for found, wanted in (
        (images.filter(photo, fixed, mixture), images.filter(PHOTO, *MIXED)),
        (images.sample(photo, on_device(cupy, FLOW + 9, (12, 16, 2))), images.sample(PHOTO, FLOW + 9)),
        (images.warp(photo, cupy.asarray(FLOW)), images.warp(PHOTO, FLOW)),
    ):
        assert type(found._meta) is cupy.ndarray
        made = found.compute()
        assert isinstance(made, cupy.ndarray)
        np.testing.assert_array_equal(made.get(), wanted)


def test_builders_take_what_is_there() -> None:
    """Kernels are made of NumPy's arrays, and filter photographs of dask."""
    pair = kernels.gaussian_mixture(np.full((H, W), 1.5), 3)
    np.testing.assert_array_equal(
        images.filter(lazy(PHOTO, 0, 1), *pair).compute(), images.filter(PHOTO, *pair)
    )
