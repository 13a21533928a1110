"""Whole matrices in strips, on the CPU: products, and the way there and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarray.cpu.engine import matrices, parallel
from dynarray.cpu.engine.gemm import TILE_ROW_BYTES


def in_strips(matrix: np.ndarray) -> np.ndarray:
    """NaN beyond the last column."""
    width, (rows, columns) = TILE_ROW_BYTES // matrix.itemsize, matrix.shape
    strips = np.full((matrices.strips_of(columns, matrix.itemsize), rows, width), np.nan, matrix.dtype)
    for j in range(columns):
        strips[j // width, :, j % width] = matrix[:, j]
    return strips.reshape(-1)


@settings(deadline=None)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_products_of_whole_matrices(dtype: str, data: st.DataObject) -> None:
    rows, columns, depth = (data.draw(st.integers(1, size)) for size in (150, 150, 90))
    chunk, turned = data.draw(st.integers(1, 100)), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    left, right = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, depth), (depth, columns)))
    memory = np.ascontiguousarray(left.T if turned else left).reshape(-1)
    row, step = (1, rows) if turned else (depth, 1)
    out = np.full((rows, columns + 1), np.nan, dtype)
    width = TILE_ROW_BYTES // out.itemsize
    result = matrices.Result(out.reshape(-1), columns + 1, width)
    lines = matrices.LeftMatrix(memory, row, step, chunk * step)
    matrices.multiply_matrices(result, lines, in_strips(right), (rows, columns, depth), chunk)
    expected = left.astype(np.longdouble) @ right
    scale = np.abs(left).astype(np.longdouble) @ np.abs(right)
    assert np.isnan(out[:, columns]).all()
    assert np.all(np.abs(out[:, :columns] - expected) <= (depth + 1) * np.finfo(dtype).eps * scale)


@pytest.mark.parametrize("shape", [(1, 3, 64), (5, 17, 13), (3, 40, 1), (2, 33, 71)])
def test_planes_in_strips_and_back(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    planes, bias = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[1])
    matrix = planes.transpose(1, 0, 2).reshape(shape[1], -1)
    expected = in_strips(matrix)
    strips = np.full_like(expected, np.nan)
    parallel.run(matrices.deal_items, shape[1], 1, strips, planes)
    np.testing.assert_array_equal(strips, expected)
    for added in (np.empty(0, np.float32), bias.astype(np.float32)):
        back = np.empty_like(planes)
        parallel.run(matrices.collect_items, shape[1], 1, back, strips, added)
        np.testing.assert_array_equal(back, planes + (added[:, None] if added.size else 0))
    width = TILE_ROW_BYTES // planes.itemsize
    rows, columns = shape[1], strips.size // shape[1]
    turned = np.zeros(columns * -(-rows // width) * width, np.float32)
    parallel.run(matrices.turn_items, -(-rows // width), 1, turned, strips, (rows, columns))
    turned = turned.reshape(-1, columns, width).transpose(0, 2, 1).reshape(-1, columns)[:rows]
    np.testing.assert_array_equal(turned[:, : matrix.shape[1]], matrix)
