"""Photographs in and out: every layout, dtype and border, against naive loops and SciPy."""

from unittest.mock import patch

import numpy as np
import pytest
import scipy.ndimage as ndi
from _pictures import BORDERS, LAYOUTS, C, H, N, W, drawn, lines, mixed, naive, one_for_each_pixel, stored

from dynarray import _photograph, images

SCIPY = {
    "constant": "grid-constant",
    "reflect": "mirror",
    "symmetric": "reflect",
    "edge": "nearest",
    "wrap": "grid-wrap",
}

# What is filtered.


@pytest.mark.parametrize("symbols", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_every_layout_is_filtered_plane_by_plane(symbols: str, dtype: str) -> None:
    photo, weights = drawn(symbols, dtype), one_for_each_pixel()
    axis = LAYOUTS[symbols]
    y = images.filter(photo, weights, channel_axis=axis)
    z = images.filter(photo, *mixed()[:2], channel_axis=axis)
    assert (y.shape, y.dtype, y.flags.c_contiguous) == (photo.shape, photo.dtype, True)
    for index, plane in lines(photo, symbols):
        for result, used in ((y, weights), (z, mixed()[2])):
            expected = stored(naive(plane, used, "reflect"), photo.dtype)
            if dtype == "uint8":
                assert (result[index] == expected).all()
            else:
                np.testing.assert_allclose(result[index], expected, rtol=1e-13, atol=1e-13)


def test_the_axis_of_channels_counts_from_either_end() -> None:
    photo, weights = drawn("HWC", "uint8"), one_for_each_pixel()
    y = images.filter(photo, weights)
    assert (images.filter(photo, weights, channel_axis=2) == y).all()
    first = images.filter(np.moveaxis(photo, -1, 0), weights, channel_axis=-3)
    assert (np.moveaxis(first, 0, -1) == y).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", ">u2", "int16", "int32", "uint32"])
@pytest.mark.parametrize("kernel_dtype", ["float32", "float64"])
def test_integers_are_the_formula_rounded_once(dtype: str, kernel_dtype: str) -> None:
    photo, weights = drawn("HWC", dtype), one_for_each_pixel(dtype=kernel_dtype)
    y = images.filter(photo, weights)
    assert y.dtype == photo.dtype
    for index, plane in lines(photo, "HWC"):
        assert (y[index] == stored(naive(plane, weights, "reflect"), photo.dtype)).all()


def test_rounding_is_half_to_even_and_what_is_beyond_the_range_is_clipped() -> None:
    photo = np.array([[1, 3, 5, 7, 250, 2]], np.uint8)
    assert images.filter(photo, np.array([[0.5]])).tolist() == [[0, 2, 2, 4, 125, 1]]
    assert images.filter(photo, np.array([[2.0]])).tolist() == [[2, 6, 10, 14, 255, 4]]
    assert images.filter(photo, np.array([[-1.0]])).tolist() == [[0] * 6]
    assert images.filter(photo, np.array([[np.inf]])).tolist() == [[255] * 6]


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_of_64_bits_are_exact_as_far_as_float64_is(dtype: str) -> None:
    info, one = np.iinfo(dtype), np.array([[1.0]])
    photo = np.array([[2**53, 2**40 + 1, 0, info.max, info.min]], dtype)
    y = images.filter(photo, one)
    assert y[0, :3].tolist() == photo[0, :3].tolist()
    assert 0.999 * float(info.max) < float(y[0, 3]) <= float(info.max)
    assert y[0, 4] == info.min


@pytest.mark.parametrize(
    ("dtype", "kernel_dtype", "rtol"),
    [
        ("float64", "float32", 1e-13),
        ("float32", "float64", 1e-7),
        ("float32", "float32", 1e-5),
        ("float16", "float64", 1e-3),
    ],
)
def test_floating_point_keeps_its_dtype_and_its_range(dtype: str, kernel_dtype: str, rtol: float) -> None:
    photo, weights = (1000 * drawn("HW", dtype)).astype(dtype), one_for_each_pixel(dtype=kernel_dtype)
    y = images.filter(photo, weights)
    assert y.dtype == photo.dtype
    expected = naive(photo, weights, "reflect")
    np.testing.assert_allclose(y, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 4), (15, 1), (19, 21)])
def test_every_border_and_size_of_kernel(border: str, size: tuple[int, int]) -> None:
    photo, weights = drawn("HW", "uint8"), one_for_each_pixel(size)
    y = images.filter(photo, weights, border=border)
    assert (y == stored(naive(photo, weights, border), photo.dtype)).all()


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
def test_one_kernel_is_scipys_correlation(border: str, size: tuple[int, int]) -> None:
    photo, kernel = drawn("HWC", "float64"), np.random.default_rng(3).normal(size=size)
    y = images.filter(photo, kernel, border=border)
    for index, plane in lines(photo, "HWC"):
        expected = ndi.correlate(plane, kernel, mode=SCIPY[border])
        np.testing.assert_allclose(y[index], expected, rtol=1e-12, atol=1e-12)


def test_kernels_of_their_own_for_pictures_and_channels() -> None:
    photo, rng = drawn("NHWC", "float64"), np.random.default_rng(4)
    each = rng.normal(size=(N, C, 3, 3, H, W))
    y = images.filter(photo, each)
    for (n, _, _, c), plane in lines(photo, "NHWC"):
        np.testing.assert_allclose(y[n, :, :, c], naive(plane, each[n, c], "reflect"), rtol=1e-12, atol=1e-12)
    of_pictures = images.filter(photo, each[:, 0])
    assert (of_pictures == images.filter(photo, each[:, :1])).all()
    fixed, mixture = rng.normal(size=(2, 3, 3)), rng.normal(size=(N, C, 2, H, W))
    y = images.filter(photo, fixed, mixture)
    for (n, _, _, c), plane in lines(photo, "NHWC"):
        weights = np.einsum("bij,bhw->ijhw", fixed, mixture[n, c])
        np.testing.assert_allclose(y[n, :, :, c], naive(plane, weights, "reflect"), rtol=1e-12, atol=1e-12)
    own = rng.normal(size=(2, C, 3, 3))
    y = images.filter(photo, own, mixture[:, 0])
    for (n, _, _, c), plane in lines(photo, "NHWC"):
        weights = np.einsum("bij,bhw->ijhw", own[:, c], mixture[n, 0])
        np.testing.assert_allclose(y[n, :, :, c], naive(plane, weights, "reflect"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("symbols", ["HW", "HWC", "NHWC"])
def test_views_of_any_kind_and_arrays_that_must_not_be_written_to(symbols: str) -> None:
    photo, weights = drawn(symbols, "uint8"), one_for_each_pixel()
    fixed, mixture, _ = mixed()
    expected = images.filter(photo, weights), images.filter(photo, fixed, mixture)
    for change in (
        np.asfortranarray,
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.ascontiguousarray(a.T).T,
    ):
        given = [change(a) for a in (photo, weights, fixed, mixture)]
        before = [a.copy() for a in given]
        for a in given:
            a.flags.writeable = False
        assert (images.filter(given[0], given[1]) == expected[0]).all()
        assert (images.filter(given[0], given[2], given[3]) == expected[1]).all()
        assert all((a == b).all() for a, b in zip(given, before))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_bands_of_rows_change_no_bit(border: str, rows: int) -> None:
    photo, weights = drawn("NHWC", "float64"), one_for_each_pixel((5, 3))
    flow = np.random.default_rng(5).normal(size=(N, H, W, 2))
    whole = images.filter(photo, weights, border=border), images.warp(photo, flow, border=border)
    with patch.object(
        _photograph, "bands", lambda n, _: (slice(i, min(i + rows, n)) for i in range(0, n, rows))
    ):
        parts = images.filter(photo, weights, border=border), images.warp(photo, flow, border=border)
    for one, other in zip(whole, parts):
        assert one.tobytes() == other.tobytes()


def test_bands_take_no_more_than_they_may() -> None:
    found = list(_photograph.bands(1000, _photograph.BAND // 100))
    assert [s.start for s in found] == list(range(0, 1000, 100))
    assert found[-1].stop == 1000
    assert list(_photograph.bands(2, 2 * _photograph.BAND)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0, 3), (4, 5, 0), (0, 4, 5, 3)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    photo = np.zeros(shape, np.uint8)
    size = shape if len(shape) == 2 else shape[-3:-1]
    assert images.filter(photo, np.ones((3, 3, *size))).shape == shape
    assert images.warp(photo, np.zeros((*shape[: len(shape) // 4], *size, 2))).shape == shape


def test_nan_is_where_it_is_read_and_integers_refuse_it() -> None:
    photo, weights = drawn("HW", "float64"), np.ones((3, 3, H, W))
    photo[3, 4] = np.nan
    lost = np.zeros((H, W), bool)
    lost[2:5, 3:6] = True
    assert (np.isnan(images.filter(photo, weights)) == lost).all()
    weights[0, 0, 5, 5] = np.nan
    with pytest.raises(ValueError, match=r"filter: the result is NaN somewhere, which uint8 cannot hold"):
        images.filter(drawn("HW", "uint8"), weights)


# What is read at points.


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
def test_samples_are_scipys(border: str, dtype: str) -> None:
    photo = drawn("HWC", dtype)
    points = np.random.default_rng(6).uniform(-2 * W, 3 * W, (5, 8, 2))
    points[0] = np.rint(points[0])
    y = images.sample(photo, points, border=border)
    assert (y.shape, y.dtype) == ((5, 8, C), photo.dtype)
    for c in range(C):
        expected = ndi.map_coordinates(
            photo[..., c].astype(np.float64), np.moveaxis(points, -1, 0), order=1, mode=SCIPY[border]
        )
        if dtype == "float64":
            np.testing.assert_allclose(y[..., c], expected, rtol=1e-9, atol=1e-9)
        else:
            assert (y[..., c] == stored(expected, photo.dtype)).all()


@pytest.mark.parametrize("symbols", LAYOUTS)
def test_samples_lie_where_the_photograph_has_its_axes(symbols: str) -> None:
    photo, axis = drawn(symbols, "float64"), LAYOUTS[symbols]
    lead = (N,) if "N" in symbols else ()
    for inner in ((6,), (4, 5)):
        points = np.random.default_rng(7).uniform(0, 6, (*lead, *inner, 2))
        y = images.sample(photo, points, channel_axis=axis)
        for index, plane in lines(photo, symbols):
            at = dict(zip(symbols, index))
            own = points[at["N"]] if lead else points
            expected = ndi.map_coordinates(plane, np.moveaxis(own, -1, 0), order=1, mode="mirror")
            chosen = y[at["N"]] if lead and symbols[0] == "N" else y
            if "C" in at:
                rest = [s for s in symbols if s != "N" or symbols[0] != "N"]
                chosen = np.take(chosen, at["C"], -1 if rest[-1] == "C" else rest.index("C"))
            chosen = chosen[at["N"]] if lead and symbols[0] != "N" else chosen
            np.testing.assert_allclose(chosen, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("symbols", LAYOUTS)
def test_warping_reads_each_pixel_where_its_flow_points_to(symbols: str) -> None:
    photo, axis = drawn(symbols, "uint8"), LAYOUTS[symbols]
    several = "N" in symbols
    flow = 2 * np.random.default_rng(8).normal(size=(*(N,) * several, H, W, 2))
    y = images.warp(photo, flow, channel_axis=axis, border="edge")
    assert (y.shape, y.dtype, y.flags.c_contiguous) == (photo.shape, photo.dtype, True)
    for index, plane in lines(photo, symbols):
        own = flow[index[symbols.index("N")]] if several else flow
        places = np.indices((H, W)) + np.moveaxis(own, -1, 0)
        expected = ndi.map_coordinates(plane.astype(np.float64), places, order=1, mode="nearest")
        assert (y[index] == stored(expected, photo.dtype)).all()


def test_a_flow_goes_down_and_to_the_right() -> None:
    photo, flow = drawn("HWC", "uint8"), np.zeros((H, W, 2), np.int64)
    assert (images.warp(photo, flow) == photo).all()
    flow[..., 0], flow[..., 1] = 1, 2
    assert (images.warp(photo, flow)[:-1, :-2] == photo[1:, 2:]).all()


def test_few_channels_at_a_time_are_the_same() -> None:
    photo = drawn("NHWC", "uint16")
    flow = np.random.default_rng(9).normal(size=(N, H, W, 2))
    together = images.warp(photo, flow)
    with patch.object(images, "_PLANE", 1):
        assert (images.warp(photo, flow) == together).all()
