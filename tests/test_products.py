"""Sums of products of planes, of which the CPU kernels of atoms and of dynamic sampling are made."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import backend_params

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
pytestmark = pytest.mark.parametrize("backend", backend_params("cpu"))


@lru_cache
def compiled(name: str) -> Callable:
    """A function of the engine, called from Python."""
    import numba

    from dynarray.cpu.engine import products

    function = getattr(products, name)
    return numba.njit(lambda *args: function(*args))


def planes(rng: np.random.Generator, lines: int, terms: int, length: int, dtype: str) -> np.ndarray:
    """(lines, terms, length)."""
    return rng.standard_normal((lines, terms, length)).astype(dtype)


def factor(array: np.ndarray, as_distance: bool, ahead: int | None = None) -> Any:
    """The record of planes (lines, terms, length); where it says nothing, a plane of NaN in front."""
    from dynarray.cpu.engine.products import Factor

    lines, terms, length = array.shape
    data = np.concatenate([np.full(length, np.nan, array.dtype), array.ravel()])
    if as_distance:
        return Factor(data, length, terms * length, length, ahead)
    return Factor(data, length, np.arange(lines) * terms * length, np.arange(terms) * length, ahead)


def expected_sums(a: np.ndarray, b: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """In float64."""
    sums = np.einsum("isw,jsw->ijw", a.astype(float), b.astype(float))
    return sums if before is None else sums + before


def check_product(
    name: str,
    rng: np.random.Generator,
    sizes: tuple,
    dtype: str,
    add: bool | None,
    kinds: tuple = (False, None),
) -> None:
    """One product, between planes of NaN that nothing may read or write; `kinds` are those of factor `a`."""
    from dynarray.cpu.engine.products import Extent, Target

    rows, columns, terms, length = sizes
    a, b = planes(rng, rows, terms, length, dtype), planes(rng, columns, terms, length, dtype)
    out = np.full((columns + 2, rows + 1, length), np.nan, dtype)
    out[1:-1, :-1] = before = rng.standard_normal((columns, rows, length)).astype(dtype)
    target = Target(out.ravel(), out[0].size, length, np.arange(columns) * out[0].size)
    flags = () if add is None else (add,)
    compiled(name)(target, factor(a, *kinds), factor(b, False), Extent(*sizes), *flags)
    expected = expected_sums(a, b, before.swapaxes(0, 1) if add else None)
    bound = np.finfo(dtype).eps * (terms + 1) * (np.abs(expected).max() + np.sqrt(terms))
    np.testing.assert_allclose(out[1:-1, :-1].swapaxes(0, 1), expected, rtol=0, atol=bound)
    assert np.isnan(out[0]).all() and np.isnan(out[-1]).all() and np.isnan(out[:, -1]).all()


def strip(dtype: str) -> int:
    from dynarray.cpu.engine.products import RUN_BYTES

    return RUN_BYTES // np.dtype(dtype).itemsize


@DTYPES
@pytest.mark.parametrize("columns", [1, 3, 4, 8, 9, 12, 19])
def test_of_terms_side_by_side(backend: Any, rng: np.random.Generator, dtype: str, columns: int) -> None:
    """Each row of b holds what several terms read, each one element behind the one before."""
    from dynarray.cpu.engine.products import MIXED_BYTES, NEIGHBOURS, Extent, Factor, Target

    length, groups = 3 * MIXED_BYTES // np.dtype(dtype).itemsize, 4
    for number in (*NEIGHBOURS, 1):
        a = planes(rng, 1, groups * number, length, dtype)
        b = rng.standard_normal((columns, groups, 2 * length)).astype(dtype)
        b[:, :, length + number - 1 :] = np.nan  # shifted in, and left out
        at = (2 * length * np.arange(groups)[:, None] + np.arange(number)).ravel()
        out = np.full((columns + 1, length), np.nan, dtype)
        found = Target(out.ravel(), 0, length, length)
        right = Factor(b.ravel(), 0, groups * 2 * length, at, None)
        extent = Extent(1, columns, groups * number, length)
        compiled("product_of_neighbours")(found, factor(a, False), right, extent, number)
        windows = np.lib.stride_tricks.sliding_window_view(b[:, :, : length + number - 1], length, axis=2)
        expected = expected_sums(a, windows.reshape(columns, -1, length), None)[0]
        bound = np.finfo(dtype).eps * (groups * number + 1) * (np.abs(expected).max() + groups * number)
        np.testing.assert_allclose(out[:-1], expected, rtol=0, atol=bound)
        assert np.isnan(out[-1]).all()


@DTYPES
def test_of_any_size(backend: Any, rng: np.random.Generator, dtype: str) -> None:
    for rows, columns, terms in product(range(1, 8), range(1, 10), (1, 2, 5)):
        for add, strips in ((False, 3), (True, 1)):
            check_product("sum_products", rng, (rows, columns, terms, strips * strip(dtype)), dtype, add)


@DTYPES
def test_of_few_rows(backend: Any, rng: np.random.Generator, dtype: str) -> None:
    from dynarray.cpu.engine.products import PRODUCT_ROWS, WIDE
    from dynarray.cpu.engine.vectors import REGISTER_BYTES

    lanes = REGISTER_BYTES // np.dtype(dtype).itemsize
    for rows, columns, terms in product(range(1, PRODUCT_ROWS + 1), range(1, 3 * WIDE), (1, 4)):
        for add, vectors in ((False, 1), (True, 3)):
            sizes = (rows, columns, terms, vectors * lanes)
            check_product("product_of_rows", rng, sizes, dtype, add, (True, None))
            if rows == 1:
                check_product("product_of_row", rng, sizes, dtype, add)
            if columns <= WIDE:
                check_product("product_of_block", rng, sizes, dtype, add, (True, 10**6))
            if columns == WIDE and rows == PRODUCT_ROWS:
                turned = (rows, columns + terms, WIDE, vectors * lanes)
                check_product("product_of_terms", rng, turned, dtype, None)


@DTYPES
@pytest.mark.parametrize("apart", [0, 1, 5])
def test_sums_are_added_where_planes_overlap(
    backend: Any, rng: np.random.Generator, dtype: str, apart: int
) -> None:
    """As where taps of one kernel add to one image; wholly or but for some elements."""
    from dynarray.cpu.engine.products import Extent, Target

    rows, columns, terms, length = 5, 7, 3, 2 * strip(dtype)
    a, b = planes(rng, rows, terms, length, dtype), planes(rng, columns, terms, length, dtype)
    wide = length + (rows + columns) * apart
    out = np.ones(wide, dtype)
    target = Target(out, 0, np.arange(rows) * apart, np.arange(columns) * apart)
    extent = Extent(rows, columns, terms, length)
    compiled("sum_products")(target, factor(a, False), factor(b, False), extent, True)
    expected, sums = np.ones(wide), expected_sums(a, b, None)
    for row, column in np.ndindex(rows, columns):
        expected[(row + column) * apart :][:length] += sums[row, column]
    bound = np.finfo(dtype).eps * rows * columns * terms * (1 + np.abs(expected).max())
    np.testing.assert_allclose(out, expected, rtol=0, atol=bound)


@DTYPES
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_gather_copies_the_planes(backend: Any, rng: np.random.Generator, dtype: str, rows: int) -> None:
    from dynarray.cpu.engine.products import Extent

    terms, length = 5, 2 * strip(dtype)
    a, copy = (
        planes(rng, rows, terms, length, dtype),
        factor(np.full((rows, terms, length), np.nan, dtype), True),
    )
    compiled("gather_planes")(copy, factor(a, False, 10**6), Extent(rows, 1, terms, length))
    np.testing.assert_array_equal(copy.data[length:].reshape(a.shape), a)
    assert np.isnan(copy.data[:length]).all()


@DTYPES
def test_mixed_planes_are_sums_of_scaled_ones(backend: Any, rng: np.random.Generator, dtype: str) -> None:
    """Each from places of its own, which overlap."""
    from dynarray.cpu.engine.products import MIXED_BYTES, Extent, Factor, Target

    length = MIXED_BYTES // np.dtype(dtype).itemsize
    for columns, terms, vectors in product((1, 2, 7), (1, 3, 8), (1, 3)):
        size = vectors * length
        scales = rng.standard_normal((columns, terms)).astype(dtype)
        source = rng.standard_normal((terms, size + 2 * columns)).astype(dtype)
        places = rng.permutation(2 * columns)[:columns]
        out = np.full((columns + 1, size), np.nan, dtype)
        numbers = np.concatenate([np.full(5, np.nan, dtype), scales.ravel()])
        planes_of = Factor(source.ravel(), 0, places, source.shape[1], None)
        extent = Extent(1, columns, terms, size)
        compiled("mix_planes")(Target(out.ravel(), 0, 0, size), numbers, 5, planes_of, extent)
        expected = [scale.astype(float) @ source[:, at : at + size] for scale, at in zip(scales, places)]
        np.testing.assert_allclose(out[:-1], expected, rtol=0, atol=8 * np.finfo(dtype).eps * terms**0.5)
        assert np.isnan(out[-1]).all()


@DTYPES
def test_mixed_rows_are_a_matrix_times_planes(backend: Any, rng: np.random.Generator, dtype: str) -> None:
    from dynarray.cpu.engine.gemm import Matrix
    from dynarray.cpu.engine.products import MIXED_BYTES, Extent, Factor, Target

    length = MIXED_BYTES // np.dtype(dtype).itemsize
    lengths = (1, length - 1, length, 3 * length + 5)
    for rows, terms, size in product((1, 4, 5, 6, 9, 12), (1, 3, 8), lengths):
        scales = rng.standard_normal((rows, terms)).astype(dtype)
        source = rng.standard_normal((terms, size)).astype(dtype)
        out = np.full((rows + 1, size), np.nan, dtype)
        matrix = Matrix(np.concatenate([np.full(5, np.nan, dtype), scales.ravel()]), 5, terms)
        behind = np.append(source, np.full(5, np.nan, dtype))
        mixed = Factor(behind, 0, 0, np.arange(terms) * size, None)
        extent = Extent(rows, 1, terms, size)
        compiled("mix_rows")(Target(out.ravel(), 0, np.arange(rows) * size, 0), matrix, mixed, extent)
        expected = scales.astype(float) @ source
        np.testing.assert_allclose(out[:-1], expected, rtol=0, atol=8 * np.finfo(dtype).eps * terms)
        assert np.isnan(out[-1]).all()
