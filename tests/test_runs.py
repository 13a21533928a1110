"""Sums of products of runs of any length, of which the CPU's dynamic convolutions are made."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from conftest import Backend, backend_params

pytestmark = pytest.mark.parametrize("backend", backend_params("cpu"))
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
# Less than a register, ends of one, of several, and what is too long to stay in the first cache.
COUNTS = pytest.mark.parametrize("count", [1, 3, 8, 15, 16, 17, 36, 63, 144, 200, 1000])
TERMS = pytest.mark.parametrize("terms", [1, 2, 3, 4, 7])
BEFORE = 5  # elements in front of each array and behind it, which nothing may read or write


@lru_cache
def compiled(name: str) -> Callable:
    """A function of the engine, called from Python."""
    import numba

    from dynarray.cpu.engine import runs

    function = getattr(runs, name)
    return numba.njit(lambda *args: function(*args))


def guarded(array: np.ndarray) -> np.ndarray:
    """All elements in a row, between NaN."""
    return np.pad(array.ravel(), BEFORE, constant_values=np.nan)


def inner(row: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What `guarded` was given, once nothing around it has changed."""
    assert np.isnan(row[:BEFORE]).all()
    assert np.isnan(row[-BEFORE:]).all()
    return row[BEFORE:-BEFORE].reshape(shape)


def check_sums(made: np.ndarray, expected: np.ndarray, size: np.ndarray) -> None:
    """Sums of terms of this size."""
    assert (abs(made - expected) <= 4 * np.finfo(made.dtype).eps * size).all()


def sum_terms(kernels: np.ndarray, seen: np.ndarray, before: np.ndarray, add: bool = True) -> np.ndarray:
    """Kernels and what is seen are (terms, count)."""
    from dynarray.cpu.engine.runs import RunRows

    (terms, count), total = kernels.shape, guarded(before)
    places = np.arange(terms)[::-1] * count  # terms in another order than they lie
    own = RunRows(guarded(kernels), BEFORE, count)
    pixels = RunRows(guarded(seen[::-1]), BEFORE, places)
    compiled("sum_terms")(RunRows(total, BEFORE, 0), own, pixels, terms, count, np.bool_(add))
    return inner(total, (count,))


@DTYPES
@COUNTS
@TERMS
def test_sums(backend: Backend, rng: np.random.Generator, dtype: str, count: int, terms: int) -> None:
    kernels, seen = (rng.standard_normal((terms, count)).astype(dtype) for _ in range(2))
    before = rng.standard_normal(count).astype(dtype)
    products = kernels.astype(float) * seen
    made = sum_terms(kernels, seen, before)
    check_sums(made, before + products.sum(axis=0), abs(before) + abs(products).sum(axis=0))
    made = sum_terms(kernels, seen, np.full_like(before, np.nan), add=False)
    check_sums(made, products.sum(axis=0), abs(products).sum(axis=0))


@DTYPES
def test_a_part_has_the_bits_of_the_whole(backend: Backend, rng: np.random.Generator, dtype: str) -> None:
    kernels, seen = (rng.standard_normal((7, 1000)).astype(dtype) for _ in range(2))
    before = rng.standard_normal(1000).astype(dtype)
    whole = sum_terms(kernels, seen, before)
    for part in (slice(0, 3), slice(5, 41), slice(900, 1000), slice(17, 800)):
        np.testing.assert_array_equal(sum_terms(kernels[:, part], seen[:, part], before[part]), whole[part])


@DTYPES
@COUNTS
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients(
    backend: Backend,
    rng: np.random.Generator,
    dtype: str,
    count: int,
    outputs: int,
    wanted: tuple[bool, bool],
) -> None:
    from dynarray.cpu.engine.runs import RunGradients, RunRows

    terms, shift = 5, 2  # elements of the planes from term to term: terms see some of the same
    size = (outputs, terms, count), (count + shift * (terms - 1),)
    weights = rng.standard_normal((outputs, count)).astype(dtype)
    kernels = rng.standard_normal(size[0]).astype(dtype)
    seen, before = (rng.standard_normal(size[1]).astype(dtype) for _ in range(2))
    untouched = np.full(size[0], 7, dtype)
    of_kernels, of_planes, places = guarded(untouched), guarded(before), np.arange(terms) * shift
    grads = RunGradients(
        RunRows(of_kernels, BEFORE, terms * count), RunRows(of_planes, BEFORE, places), *map(np.bool_, wanted)
    )
    given = (RunRows(guarded(weights), BEFORE, count), RunRows(guarded(kernels), BEFORE, count))
    compiled("add_gradients")(grads, *given, RunRows(guarded(seen), BEFORE, places), outputs, (terms, count))
    expected_planes, sizes = before.astype(float), abs(before).astype(float)
    for k, place in enumerate(places):
        part, products = slice(place, place + count), weights * kernels[:, k].astype(float)
        if wanted[0]:
            untouched[:, k] = weights * seen[part]
        if wanted[1]:
            expected_planes[part] += products.sum(axis=0)
            sizes[part] += abs(products).sum(axis=0)
    np.testing.assert_array_equal(inner(of_kernels, untouched.shape), untouched)
    check_sums(inner(of_planes, before.shape), expected_planes, sizes)
