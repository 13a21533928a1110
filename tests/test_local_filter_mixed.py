"""Mixed filters: identities, sums over many pixels, and tiles of every kind; the contract says the rest."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from _calls._call import windows
from _contract import REFERENCE
from conftest import Backend, backend_params

import dynarray as dyn

each_backend = pytest.mark.parametrize("backend", backend_params("reference", "cpu", "host"), indirect=True)
on_kernels = pytest.mark.parametrize("backend", backend_params("cpu", "host"), indirect=True)
CALLS: list[dict[str, Any]] = [
    {},
    {"stride": (2, 3), "padding": (1, 4)},
    {"dilation": (2, 1), "border": "reflect"},
    {"stride": 2, "dilation": 3, "padding": 2, "border": "wrap"},
]


def draw(
    rng: np.random.Generator, x: tuple[int, ...], kernels: tuple[int, ...], groups: int, **params: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of a call; the outputs are as many as `local_filter2d` says."""
    steps = {name: value for name, value in params.items() if name != "border"}
    outputs = windows(x[2:], kernels[-2:], steps)
    shapes = x, kernels, (x[0], groups, kernels[0], *outputs)
    return tuple(rng.standard_normal(shape) for shape in shapes)  # type: ignore[return-value]


def composed(kernels: np.ndarray, mixture: np.ndarray, channels: int) -> np.ndarray:
    """The filters of all pixels."""
    if kernels.ndim == 3:
        return np.einsum("ngbhw,bij->ngijhw", mixture, kernels)
    of_channels = np.repeat(mixture, channels // mixture.shape[1], axis=1)
    return np.einsum("ncbhw,bcij->ncijhw", of_channels, kernels)


@pytest.mark.parametrize("params", CALLS, ids=str)
@pytest.mark.parametrize("kernels", [(5, 3, 5), (5, 6, 3, 5)], ids=["shared", "own"])
@each_backend
def test_it_is_a_local_filter_with_the_sums_of_the_kernels(
    kernels: tuple[int, ...], params: dict[str, Any], backend: Backend, rng: np.random.Generator
) -> None:
    arrays = draw(rng, (2, 6, 13, 12), kernels, 2, **params)
    x, k, mixture = arrays
    filters = composed(k, mixture, 6)
    y = dyn.mixed_filter2d(*arrays, **params)
    with REFERENCE.use():
        expected = dyn.local_filter2d(x, filters, **params)
        grad = rng.standard_normal(expected.shape)
        of_filters = dyn.local_filter2d_backward(grad, x, filters, **params)
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-11)
    found = dyn.mixed_filter2d_backward(grad, *arrays, **params)
    np.testing.assert_allclose(found.x, of_filters.x, rtol=1e-11, atol=1e-11)
    # By the chain rule, through the sums.
    if k.ndim == 3:
        of_kernels = np.einsum("ngijhw,ngbhw->bij", of_filters.weight, mixture)
        of_mixture = np.einsum("ngijhw,bij->ngbhw", of_filters.weight, k)
    else:
        of_kernels = np.einsum("ncijhw,ncbhw->bcij", of_filters.weight, np.repeat(mixture, 3, axis=1))
        of_mixture = np.einsum("ngcijhw,bgcij->ngbhw", split(of_filters.weight, 1), split(k, 1))
    np.testing.assert_allclose(found.kernels, of_kernels, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found.mixture, of_mixture, rtol=1e-11, atol=1e-11)


def split(array: np.ndarray, axis: int) -> np.ndarray:
    """Channels as two groups of three."""
    return array.reshape(*array.shape[:axis], 2, 3, *array.shape[axis + 1 :])


@each_backend
def test_a_pixel_is_what_the_formula_says(backend: Backend, rng: np.random.Generator) -> None:
    x, kernels, mixture = draw(rng, (1, 4, 7, 8), (3, 4, 3, 3), 2)
    y = dyn.mixed_filter2d(x, kernels, mixture)
    for c, h, w in ((0, 0, 0), (1, 3, 4), (2, 6, 7), (3, 6, 2)):
        total = 0.0
        for b, i, j in product(range(3), repeat=3):
            row, column = h - 1 + i, w - 1 + j
            if 0 <= row < 7 and 0 <= column < 8:
                total += mixture[0, c // 2, b, h, w] * kernels[b, c, i, j] * x[0, c, row, column]
        assert y[0, c, h, w] == pytest.approx(total, rel=1e-12)


@each_backend
def test_one_kernel_in_equal_parts_is_a_filter_for_all_pixels(
    backend: Backend, rng: np.random.Generator
) -> None:
    x, kernel = rng.standard_normal((2, 3, 9, 11)), rng.standard_normal((1, 5, 3))
    y = dyn.mixed_filter2d(x, kernel, np.full((2, 1, 1, 9, 11), 2.0), border="symmetric")
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (1, 1)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 3), axis=(2, 3))
    np.testing.assert_allclose(
        y, 2 * np.einsum("nchwij,ij->nchw", windows, kernel[0]), rtol=1e-11, atol=1e-11
    )


@each_backend
def test_no_kernels_make_zeros(backend: Backend) -> None:
    x, kernels, mixture = np.ones((1, 2, 3, 4)), np.ones((0, 3, 3)), np.ones((1, 1, 0, 3, 4))
    y = dyn.mixed_filter2d(x, kernels, mixture)
    assert y.shape == x.shape and not y.any()
    found = dyn.mixed_filter2d_backward(y + 1, x, kernels, mixture)
    assert not found.x.any() and (found.kernels.shape, found.mixture.shape) == (kernels.shape, mixture.shape)


def large_calls() -> Iterator[Any]:
    """Calls whose tiles are parts of rows, single rows, and of many channels, in whole and broken strides."""
    yield pytest.param((1, 3, 5, 3001), (6, 5, 5), 1, {}, id="parts of rows")
    yield pytest.param((1, 1, 40, 2500), (2, 15, 15), 1, {}, id="a large kernel")
    yield pytest.param((1, 2, 6, 5000), (13, 3, 3), 2, {"stride": (1, 2)}, id="strided")
    yield pytest.param((1, 600, 9, 40), (3, 3, 3), 1, {}, id="many channels")
    yield pytest.param((1, 300, 9, 40), (2, 300, 3, 2), 1, {"padding": 1}, id="many kernels")
    yield pytest.param((3, 2, 1, 4000), (4, 1, 81), 1, {"dilation": 3}, id="a line")


@pytest.mark.parametrize("x, kernels, groups, params", list(large_calls()))
@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_tiles_of_every_kind_fit_together(
    x: tuple[int, ...],
    kernels: tuple[int, ...],
    groups: int,
    params: dict[str, Any],
    backend: Backend,
    rng: np.random.Generator,
) -> None:
    arrays = draw(rng, x, kernels, groups, **params)
    with REFERENCE.use():
        expected = dyn.mixed_filter2d(*arrays, **params)
        grad = rng.standard_normal(expected.shape)
        gradients = dyn.mixed_filter2d_backward(grad, *arrays, **params)
    found = dyn.mixed_filter2d(*arrays, **params), *dyn.mixed_filter2d_backward(grad, *arrays, **params)
    for mine, right in zip(found, (expected, *gradients), strict=True):
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-12 * abs(right).max())


@on_kernels
def test_sums_over_all_pixels_are_as_accurate_as_short_ones(backend: Backend) -> None:
    """Of equal numbers, whose rounding errors do not cancel: one by one they would be off by 9e-4."""
    high, wide = 300, 301
    x, one = np.full((1, 1, high, wide), 0.1, np.float32), np.ones((1, 1, 1), np.float32)
    mixture = np.full((1, 1, 1, high, wide), 0.7, np.float32)
    found = dyn.mixed_filter2d_backward(np.full_like(x, 1.3), x, one, mixture).kernels
    exact = float(np.float32(1.3)) * float(np.float32(0.1)) * float(np.float32(0.7)) * high * wide
    assert abs(float(found[0, 0, 0]) - exact) < 1e-5 * exact
