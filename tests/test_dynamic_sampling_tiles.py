"""Bands and tiles of dynamic sampling on the CPU: where work is cut tells in no result."""

from itertools import product

import numpy as np
import pytest
from _contract import Call, check, evaluate, full_call
from conftest import Backend
from test_dynamic_sampling import CONV, sampling_call

MANY = 23  # channels, with nine taps too many terms for the way of few


def test_bands_are_seamless(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU works on as many rows as fit in some memory; here on one after the other."""
    if backend.name != "cpu":
        pytest.skip("bands are how the CPU works")
    from dynarray.cpu.dynamic_sampling import bands

    for attention, fuse, stride in product(("", "sp"), ("sum", "max"), (1, 2)):
        call = sampling_call(
            MANY, 6, (13, 18), (3, 3), attention, samples=3, sample_stride=2, fuse=fuse, stride=stride
        )
        check(call, backend)
        for limit in ("SAMPLING_BAND_BYTES", "SAMPLING_BLOCK_BYTES", "SAMPLING_ROW_BYTES"):
            with monkeypatch.context() as patch:
                patch.setattr(bands, limit, 1)
                bands.sampling_layouts.cache_clear()
                check(call, backend)
        bands.sampling_layouts.cache_clear()


@pytest.mark.parametrize("line", [1, 1 << 30])
def test_tiles_of_few_terms_are_seamless(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, line: int
) -> None:
    """Rows follow one another or are runs of their own; tiles are of some rows, shares of images some."""
    if backend.name != "cpu":
        pytest.skip("tiles are how the CPU works")
    from dynarray.cpu.dynamic_sampling import held, held_gradients

    monkeypatch.setattr(held, "_LEAST_LINE", line)
    monkeypatch.setattr(held, "_LEAST_PLAIN_LINE", line)
    outputs = []
    for positions, share_bytes in ((1 << 20, 1 << 30), (40, 1), (1, 1)):
        monkeypatch.setattr(held, "_HELD_POSITIONS", positions)
        monkeypatch.setattr(held_gradients, "_SHARE_BYTES", share_bytes)
        held.held_plan.cache_clear()
        for attention, fuse, stride in product(("", "s", "p", "sp"), ("sum", "stack"), (1, (2, 1), (1, 3))):
            params = {"samples": 3, "sample_stride": 2, "fuse": fuse, "stride": stride}
            call = sampling_call(3, 6, (13, 18), (3, 1), attention, **params)
            check(call, backend)
            outputs.append(evaluate(call, backend).output)
    held.held_plan.cache_clear()
    third = len(outputs) // 3
    for whole, *others in zip(outputs[:third], outputs[third : 2 * third], outputs[2 * third :], strict=True):
        for other in others:
            np.testing.assert_array_equal(whole, other)


def test_bands_of_boxes_are_seamless(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise where kernels see one region."""
    if backend.name != "cpu":
        pytest.skip("bands are how the CPU works")
    from dynarray.cpu.dynamic_sampling import boxes, conv

    monkeypatch.setattr(boxes, "BOX_BAND_BYTES", 1)
    conv.conv_bands.cache_clear()
    check(full_call(CONV, seed=1, N=2, H=7, W=9), backend)
    conv.conv_bands.cache_clear()
    for attention, samples, stride in (("", 3, (2, 1)), ("sp", 1, (2, 1)), ("sp", 1, 1), ("", 1, 1)):
        check(sampling_call(5, 6, (7, 9), (3, 3), attention, samples=samples, stride=stride), backend)


def test_tiles_are_seamless(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums go through tiles of outputs: here of a row or a part of one, and of one channel at a time."""
    if backend.name != "cpu":
        pytest.skip("tiles are how the CPU works")
    from dynarray.cpu.dynamic_sampling import conv, dots

    monkeypatch.setattr(conv, "CONV_TILE_BYTES", 1)
    for tile, stride in product((5, 20), (1, (1, 2))):
        monkeypatch.setattr(dots, "DOT_TILE", tile)
        conv.conv_tiles.cache_clear()
        for high in (1, 7):
            rng, wide = np.random.default_rng(tile), 9 if stride == 1 else 5
            x, grad_output = rng.standard_normal((2, 3, high, 9)), rng.standard_normal((2, 4, high, wide))
            weight = rng.standard_normal((2, 4, 3, 3, 2, high, wide))
            padding = {"padding": (1, 1), "dilation": (1, 2)}
            check(Call(CONV, (x, weight), {**padding, "stride": stride}, grad_output), backend)
    conv.conv_tiles.cache_clear()


@pytest.mark.parametrize("most", [1, 1 << 20])
def test_taps_see_totals_of_tiles_or_of_bands(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """With one sample each tile sums up channels for its taps, unless that takes too much memory."""
    if backend.name != "cpu":
        pytest.skip("tiles are how the CPU works")
    from dynarray.cpu.dynamic_sampling import attended

    monkeypatch.setattr(attended, "_TOTALS_BYTES", most)
    monkeypatch.setattr(attended, "_LEAST_POSITIONS", 1)
    attended.tile_totals.cache_clear()
    for attention, (stride, dilation) in product(("", "s", "p", "sp"), ((1, 1), ((2, 1), 2), ((1, 3), 1))):
        params = {"stride": stride, "dilation": dilation}
        check(sampling_call(3, 5, (20, 9), (3, 5), attention, samples=1, **params), backend)
    attended.tile_totals.cache_clear()


@pytest.mark.parametrize("small, least", [(1 << 62, 256), (0, 15), (0, 256)])
def test_images_are_cut_or_copied(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, small: int, least: int
) -> None:
    """Where a position sees one pixel images are read in place: whole, in tiles, or, if too small, copied."""
    if backend.name != "cpu":
        pytest.skip("tiles are how the CPU works")
    from dynarray.cpu.dynamic_sampling import dots

    monkeypatch.setattr(dots.parallel, "SMALL", small)
    monkeypatch.setattr(dots, "_LEAST_TILE", least)
    for images in (1, 5):
        tiles = 1 if small or images == 5 else 4 if least == 15 else None
        assert dots.dot_tiles(images, 5, 3, 63) == tiles
        rng = np.random.default_rng(images)
        x, grad_output = rng.standard_normal((images, 3, 7, 9)), rng.standard_normal((images, 5, 7, 9))
        weight = rng.standard_normal((images, 5, 3, 1, 1, 7, 9))
        check(Call(CONV, (x, weight), {}, grad_output), backend)
    for kernel, attention in product(((1, 1), (3, 3)), ("", "s", "p", "sp")):
        check(sampling_call(3, 5, (7, 9), kernel, attention, samples=1), backend)
