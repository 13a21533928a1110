"""`correlation2d`: FlowNetC's definition in loops, identities, and that nothing is rounded twice."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import Backend

import dynarray as dyn

REACHES = pytest.mark.parametrize(("reach", "step"), [(0, 1), (2, 1), (3, 2), (4, 3), (9, 4)])


def drawn(*shape: int) -> list[np.ndarray]:
    rng = np.random.default_rng(shape)
    return [rng.standard_normal(shape) for _ in range(2)]


def correlated(backend: Backend, x1: np.ndarray, x2: np.ndarray, **params: int) -> Any:
    return backend.numpy(dyn.correlation2d(backend.array(x1), backend.array(x2), **params))


@REACHES
def test_each_map_is_what_the_definition_says(backend: Backend, reach: int, step: int) -> None:
    x1, x2 = drawn(2, 3, 5, 7)
    (n, channels, high, wide), r = x1.shape, reach // step
    expected = np.zeros((n, (2 * r + 1) ** 2, high, wide))
    for image, i, j, row, column in np.ndindex(n, 2 * r + 1, 2 * r + 1, high, wide):
        there = row + step * (i - r), column + step * (j - r)
        if 0 <= there[0] < high and 0 <= there[1] < wide:
            for c in range(channels):
                product = x1[image, c, row, column] * x2[image, c, *there]
                expected[image, i * (2 * r + 1) + j, row, column] += product / channels
    y = correlated(backend, x1, x2, max_displacement=reach, step=step)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)


@REACHES
def test_it_is_the_gradient_of_filters(backend: Backend, reach: int, step: int) -> None:
    x1, x2 = drawn(1, 4, 6, 9)
    side = 2 * (reach // step) + 1
    weight = np.zeros((1, 1, side, side, 6, 9))
    _, of_filters, _ = dyn.local_filter2d_backward(
        *map(backend.array, (x1, x2, weight)), dilation=step, needs=(False, True, False)
    )
    y = correlated(backend, x1, x2, max_displacement=reach, step=step)
    np.testing.assert_allclose(y, backend.numpy(of_filters).reshape(y.shape) / 4, rtol=1e-14, atol=1e-15)


def test_a_moved_image_is_found_where_it_moved(backend: Backend) -> None:
    """Unit vectors along the channels: the mean product is the largest, 1/C, with themselves alone."""
    pixels = np.eye(48).reshape(1, 48, 6, 8)
    moved = np.zeros_like(pixels)
    moved[:, :, :4, 4:] = pixels[:, :, 2:, :4]  # by whole steps, so that a map shows it
    y = correlated(backend, pixels, moved, max_displacement=4, step=2)
    row, column = np.divmod(y[0].argmax(axis=0), 5)
    seen = np.zeros((6, 8), bool)
    seen[2:, :4] = True  # those that stay inside
    np.testing.assert_array_equal((row - 2)[seen], -1)
    np.testing.assert_array_equal((column - 2)[seen], 2)
    np.testing.assert_array_equal(y[0].max(axis=0), np.where(seen, 1 / 48, 0))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_maps_of_16_bits_are_rounded_once(dtype: Any) -> None:
    """Sums over 512 channels are beyond what float16 holds, their means are not."""
    x1, x2 = (16 + np.abs(a).astype(dtype) for a in drawn(1, 512, 3, 3))
    with dyn.use_backend("host"):
        y = dyn.correlation2d(x1, x2, max_displacement=0)
    exact = (x1.astype("f8") * x2.astype("f8")).sum(axis=1, keepdims=True) / 512
    ulp = float(np.finfo(np.float16).eps if dtype is np.float16 else ml_dtypes.finfo(dtype).eps)
    assert (x1.astype("f8") * x2.astype("f8")).sum(axis=1).min() > 65504
    np.testing.assert_allclose(y.astype("f8"), exact, rtol=0.51 * ulp)


def test_a_displacement_that_is_no_multiple_of_the_step_is_the_multiple_below() -> None:
    x1, x2 = drawn(1, 2, 4, 4)
    y = dyn.correlation2d(x1, x2, max_displacement=5, step=2)
    np.testing.assert_array_equal(y, dyn.correlation2d(x1, x2, max_displacement=4, step=2))
    assert y.shape == (1, 25, 4, 4)


def test_without_channels_there_is_nothing_to_compare(backend: Backend) -> None:
    x = np.zeros((2, 0, 3, 4))
    np.testing.assert_array_equal(correlated(backend, x, x, max_displacement=1), np.zeros((2, 9, 3, 4)))


@pytest.mark.parametrize(
    ("shape", "reach", "step"),
    [((2, 19, 33, 70), 9, 2), ((1, 3, 45, 61), 20, 1), ((3, 33, 40, 5), 7, 3), ((1, 160, 9, 64), 3, 1)],
)
@pytest.mark.parametrize("special", [False, True])
def test_pieces_of_larger_images_are_those_of_the_definition(
    shape: tuple[int, ...], reach: int, step: int, special: bool
) -> None:
    """Several bands, blocks of maps and chunks of channels, and gradients of the maps to go with them."""
    rng = np.random.default_rng(shape)
    x1, x2 = (rng.standard_normal(shape) for _ in range(2))
    maps = rng.standard_normal(dyn.correlation2d(x1, x2, max_displacement=reach, step=step).shape)
    for array in (x1, x2, maps) if special else ():
        array.flat[rng.integers(0, array.size, 3)] = np.nan, np.inf, -np.inf
    actual, expected = [], []
    for results, backend in ((actual, "cpu"), (expected, "reference")):
        with dyn.use_backend(backend), np.errstate(all="ignore"):
            results.append(dyn.correlation2d(x1, x2, max_displacement=reach, step=step))
            results += dyn.correlation2d_backward(maps, x1, x2, max_displacement=reach, step=step)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2])
def test_many_maps_of_few_channels(channels: int) -> None:
    """So many that they are written past the caches, in several bands of images."""
    x1, x2 = drawn(1, channels, 150, 163)
    x1.flat[7], x2.flat[-7] = np.inf, np.nan
    threads, results = dyn.get_num_threads(), []
    with np.errstate(all="ignore"):
        try:
            for number in (1, 2, 7):
                dyn.set_num_threads(number)
                with dyn.use_backend("cpu"):
                    results.append(dyn.correlation2d(x1, x2, max_displacement=4))
        finally:
            dyn.set_num_threads(threads)
        with dyn.use_backend("reference"):
            expected = dyn.correlation2d(x1, x2, max_displacement=4)
    np.testing.assert_allclose(results[0], expected, rtol=1e-13, atol=1e-14)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
