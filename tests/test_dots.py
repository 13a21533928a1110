"""Dot products of rows with rows, read where they lie, of which the gradients of small matrices are made."""

import numba
import numpy as np
import pytest
from conftest import backend_params

from dynarray.cpu.engine import dots
from dynarray.cpu.engine.runs import RunRows

SIZES = [(1, 1, 1), (1, 9, 40), (4, 5, 256), (6, 2, 257), (3, 10, 1000), (11, 7, 33)]  # rows, columns, run


@numba.njit
def add(totals: np.ndarray, a: RunRows, b: RunRows, size: tuple) -> None:
    dots.add_dots(totals, 0, a, b, size)


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_pair_of_rows(
    backend: object, rng: np.random.Generator, size: tuple[int, int, int], dtype: str
) -> None:
    rows, columns, count = size
    # NaN lies around the rows, which are further apart than they are long.
    left, right = (np.full((lines + 1, count + 3), np.nan, dtype) for lines in (rows, columns))
    a, b = (rng.standard_normal((lines, count)).astype(dtype) for lines in (rows, columns))
    left[:rows, 2:-1], right[:columns, 2:-1] = a, b
    totals = np.ones(dots.tangled_size(rows, columns))
    for _ in range(2):  # they are added to what is there
        add(totals, *(RunRows(each.ravel(), 2, count + 3) for each in (left, right)), size)
    exact, scale = a.astype(float) @ b.astype(float).T, abs(a.astype(float)) @ abs(b.astype(float)).T
    error = dots.untangled(totals, rows, columns) - 1 - 2 * exact
    # A sum in float32 is of as many vectors at the most as are added up before float64.
    assert np.all(abs(error) <= 2 * 32 * np.finfo(dtype).eps * scale + 1e-14)


@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_long_sums_round_no_worse_than_short_ones(backend: object, rng: np.random.Generator) -> None:
    count = 1_000_000
    ones = np.full((1, count), 1.1, np.float32)
    totals = np.zeros(dots.tangled_size(1, 1))
    add(totals, RunRows(ones.ravel(), 0, count), RunRows(ones.ravel(), 0, count), (1, 1, count))
    exact = count * float(np.float32(1.1)) ** 2
    assert abs(dots.untangled(totals, 1, 1)[0, 0] - exact) <= 1e-6 * exact
