"""Records by reference: kernels read the same as of the record itself, whatever the field and its depth."""

from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba")

from dynarray.cpu.engine.compile import borrowing_jit, cached_jit
from dynarray.cpu.engine.references import Reference


class Inner(NamedTuple):
    pair: tuple
    line: np.ndarray
    nothing: Any


class Outer(NamedTuple):
    whole: int
    flag: bool
    single: Any
    inner: Inner
    double: float
    plane: np.ndarray


@borrowing_jit
def _inner_sum(inner: Inner) -> float:
    return inner.pair[0] + 10 * inner.pair[1] + inner.line.sum() + (1000 if inner.nothing is None else 0)


@cached_jit
def _read(record: Outer, found: np.ndarray) -> None:
    found[0], found[1], found[2], found[3] = record.whole, record.flag, record.single, record.double
    found[4], found[5] = _inner_sum(record.inner), len(record.plane)
    for i in range(record.plane.shape[0]):
        for j in range(record.plane.shape[1]):
            found[6] += (1 + i) * (10 + j) * record.plane[i, j]
            record.plane[i, j] = -1


def _record(plane: np.ndarray, *, flag: bool, nothing: Any) -> Outer:
    inner = Inner((-3, 4), np.array([1.5, 2.5]), nothing)
    return Outer(-7, flag, np.float32(0.25), inner, -1.75, plane)


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("nothing", [None, np.zeros(0)])
def test_a_kernel_reads_each_field_by_reference_as_by_value(flag: bool, nothing: Any) -> None:
    for plane in (
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(24.0)[::-1].reshape(4, 6)[::2, ::3],
    ):
        by_value, by_reference = np.zeros(7), np.zeros(7)
        weights = np.arange(1, 3)[:, None] * np.arange(10, 10 + plane.shape[1])
        total = 37 + 4.0 + (1000 if nothing is None else 0)
        right = [-7, flag, 0.25, -1.75, total, 2, (weights * plane).sum()]
        _read(_record(plane.copy(), flag=flag, nothing=nothing), by_value)
        _read(Reference(_record(plane, flag=flag, nothing=nothing)), by_reference)
        np.testing.assert_array_equal(by_value, right)
        np.testing.assert_array_equal(by_reference, right)
        assert (plane == -1).all()


def test_a_reference_keeps_its_record() -> None:
    plane, found = np.ones((2, 3), np.float32), np.zeros(7)
    reference = Reference(_record(plane.copy(), flag=True, nothing=None))
    others = [np.full((2, 3), np.nan, np.float32) for _ in range(100)]
    _read(reference, found)
    assert found[6] == 33 + 66
    assert len(others) == 100


def test_what_a_record_has_not_is_an_error() -> None:
    @cached_jit
    def wrong(record: Outer, found: np.ndarray) -> None:
        found[0] = record.missing

    with pytest.raises(Exception, match="missing"):
        wrong(Reference(_record(np.zeros((1, 1)), flag=True, nothing=None)), np.zeros(1))
