"""The matrix product that kernels call: against NumPy, on every width of vector registers."""

import importlib
import importlib.util
import sys
from types import ModuleType

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import binding

GUARD = 300


def load(name: str, features: dict[str, bool] | None, patch: pytest.MonkeyPatch) -> ModuleType:
    """The module `name` of dynarray.cpu.engine as it is on a machine with these features."""
    if features is None:
        return importlib.import_module(f"dynarray.cpu.engine.{name}")
    patch.setattr(binding, "get_host_cpu_features", lambda: features)
    for each in dict.fromkeys(("vectors", name)):
        full = f"dynarray.cpu.engine.{each}"
        spec = importlib.util.find_spec(full)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, full, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["this machine", "AVX", "neither"])
def product(request: pytest.FixtureRequest):
    """out (rows, columns) (+)= left @ right, whose rows begin at `steps` and whose strips lie `gap` apart."""
    features = {"this machine": None, "AVX": {"avx": True}, "neither": {}}[request.param]
    with pytest.MonkeyPatch.context() as patch:
        gemm = load("gemm", features, patch)
        if features is not None:
            register_bytes = 32 if features else 16
            assert register_bytes == gemm.TILE_ROW_BYTES / 2
        multiply, tile = gemm.multiply, gemm.TILE_ROWS * gemm.TILE_ROW_BYTES

        @numba.njit(nogil=True, error_model="numpy")
        def kernel(out, left, right, size, corner, add):
            multiply(out, left, right, size, corner, add)

        def run(left, right, steps, columns, first, count, out, add, gap=0):
            rows, depth = left.shape
            stride = columns + 3
            memory = np.full(2 * GUARD + rows * stride, np.nan, left.dtype)
            view = memory[GUARD:-GUARD].reshape(rows, stride)
            view[:, :columns] = out
            before = memory.copy()
            packed = gemm.pack_left(left).reshape(-1)
            strip = gemm.TILE_ROW_BYTES // left.itemsize + gap
            kernel(
                gemm.Matrix(memory, GUARD, stride),
                gemm.Matrix(packed, first * gemm.TILE_ROWS, depth * gemm.TILE_ROWS),
                gemm.RightStrips(right, 0, strip, steps[first : first + count]),
                (rows, columns),
                np.full(tile // left.itemsize, np.nan, left.dtype),
                add,
            )
            result = view[:, :columns].copy()
            view[:, :columns] = out
            assert memory.tobytes() == before.tobytes(), "a write beside the result"
            return result

        run.tile_bytes = gemm.TILE_ROW_BYTES
        yield run


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_products(product, dtype, data) -> None:
    rows, columns, depth = (data.draw(st.integers(1, size)) for size in (20, 70, 30))
    first = data.draw(st.integers(0, depth - 1))
    count = data.draw(st.integers(1, depth - first))
    add = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    left = rng.standard_normal((rows, depth)).astype(dtype)
    # Rows of the right matrix may begin anywhere and overlap.
    steps = rng.integers(0, 50, depth)
    right = rng.standard_normal(400).astype(dtype)
    rest = np.full(300, np.nan, dtype)  # read by the last tiles, and of no consequence
    out = rng.standard_normal((rows, columns)).astype(dtype)
    gap = data.draw(st.integers(0, 9))
    result = product(left, np.concatenate([right, rest]), steps, columns, first, count, out, add, gap)
    wide = np.float64 if dtype == "float32" else np.longdouble
    taken = slice(first, first + count)
    at = np.arange(columns) + np.arange(columns) // (product.tile_bytes // out.itemsize) * gap
    matrix = right[steps[taken][:, None] + at].astype(wide)
    expected = left[:, taken].astype(wide) @ matrix + (out if add else 0)
    scale = np.abs(left[:, taken]).astype(wide) @ np.abs(matrix) + np.abs(out)
    assert np.all(np.abs(result - expected) <= (count + 1) * np.finfo(dtype).eps * scale)


def test_infinities_and_nan_stay_where_they_are(product) -> None:
    left = np.ones((9, 4))
    right = np.ones(4 * 40 + 300)
    right[40 + 5], right[80 + 7] = np.nan, np.inf
    out = np.zeros((9, 35))
    result = product(left, right, np.arange(4) * 40, 35, 0, 4, out, False)
    assert np.all(np.isnan(result[:, 5])) and np.all(np.isposinf(result[:, 7]))
    assert np.all(np.delete(result, [5, 7], axis=1) == 4)


@pytest.fixture(scope="module", params=["this machine", "AVX", "neither"])
def product_of_rows(request: pytest.FixtureRequest):
    """out (rows, columns) (+)= left[:, first : first + count] @ right[first : first + count]."""
    features = {"this machine": None, "AVX": {"avx": True}, "neither": {}}[request.param]
    with pytest.MonkeyPatch.context() as patch:
        gemm = load("gemm", features, patch)
        multiply_rows = gemm.multiply_rows

        @numba.njit(nogil=True, error_model="numpy")
        def kernel(out, left, right, size, depth, add):
            multiply_rows(out, left, right, size, depth, add)

        def run(left, right, first, count, out, add, in_strips):
            (rows, depth), columns = left.shape, right.shape[1]
            width = gemm.TILE_ROW_BYTES // left.itemsize
            high, wide = -(-rows // gemm.TILE_ROWS) * gemm.TILE_ROWS, -(-columns // width) * width
            stride, gap = wide + 3, depth + 5
            memory = np.full(2 * GUARD + high * stride, np.nan, left.dtype)
            view = memory[GUARD:-GUARD].reshape(high, stride)
            view[:rows, :columns] = out
            before = memory.copy()
            lines = np.full((high, gap), np.nan, left.dtype)
            lines[:rows, :depth] = left
            strips = np.full((wide // width, depth, width), np.nan, left.dtype)
            for j in range(columns):
                strips[j // width, :, j % width] = right[:, j]
            step, strip = width, depth * width
            if not in_strips:
                strips = strips.transpose(1, 0, 2)
                step, strip = wide, width
            kernel(
                gemm.Matrix(memory, GUARD, stride),
                gemm.Matrix(lines.reshape(-1), first, gap),
                gemm.RightStrips(strips.reshape(-1), first * step, strip, step),
                (rows, columns),
                count,
                add,
            )
            result = view[:rows, :columns].copy()
            view[:rows, :columns] = out
            view[:, :wide] = before[GUARD:-GUARD].reshape(high, stride)[:, :wide]
            assert memory.tobytes() == before.tobytes(), "a write beside the tiles"
            return result

        yield run


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_products_of_rows(product_of_rows, dtype, data) -> None:
    rows, columns, depth = (data.draw(st.integers(1, size)) for size in (20, 70, 30))
    first = data.draw(st.integers(0, depth - 1))
    count = data.draw(st.integers(1, depth - first))
    add = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    left, right = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, depth), (depth, columns)))
    out = rng.standard_normal((rows, columns)).astype(dtype)
    in_strips = data.draw(st.booleans())
    result = product_of_rows(left, right, first, count, out, add, in_strips)
    wide = np.float64 if dtype == "float32" else np.longdouble
    taken = slice(first, first + count)
    expected = left[:, taken].astype(wide) @ right[taken].astype(wide) + (out if add else 0)
    scale = np.abs(left[:, taken]).astype(wide) @ np.abs(right[taken]) + np.abs(out)
    assert np.all(np.abs(result - expected) <= (count + 1) * np.finfo(dtype).eps * scale)


def test_rows_beyond_the_matrix_reach_no_result(product_of_rows) -> None:
    left, right = np.ones((9, 4)), np.ones((4, 35))
    right[1, 5], left[3, 2] = np.nan, np.inf
    result = product_of_rows(left, right, 0, 4, np.zeros((9, 35)), False, True)
    assert np.all(np.isnan(result[:, 5])) and np.all(np.isposinf(np.delete(result[3], 5)))
    assert np.all(np.delete(np.delete(result, 5, axis=1), 3, axis=0) == 4)
