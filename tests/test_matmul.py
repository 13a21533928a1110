"""The product for captured streams, on the host, as PTX, and on a GPU, against NumPy's."""

from typing import Any

import ml_dtypes  # noqa: F401  # registers bfloat16 with NumPy
import numpy as np
import pytest
from conftest import Backend, backend_params

from rawkernels import launch
from rawkernels import matmul as module
from rawkernels.matmul import matmul

each_backend = pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
EPSILON = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-24, "bfloat16": 2.0**-24}  # of sums
ROUNDED = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # results
# Batch, rows, depth, columns: single elements, less than a tile, one, more, none at all.
SIZES = [
    *(((), 1, 1, 1), ((3,), 5, 7, 2), ((), 32, 16, 32), ((2, 2), 33, 17, 31), ((1,), 70, 3, 64)),
    *(((), 4, 100, 65), ((2,), 0, 3, 4), ((0,), 2, 3, 4), ((2,), 2, 0, 4)),
]


def multiply(a: Any, b: Any, backend: Backend) -> Any:
    """Our own product, by the machine of the backend."""
    with launch.numpy_runner("ptx" if backend.name == "ptx" else "host"):
        return backend.numpy(module.multiply(backend.array(a), backend.array(b)))


@each_backend
@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products_of_stacks(sizes: tuple, turned: str, dtype: str, backend: Backend, rng: Any) -> None:
    lead, rows, depth, columns = sizes
    a, b = (
        np.ascontiguousarray(values.swapaxes(-1, -2)).swapaxes(-1, -2) if name in turned else values
        for name, values in (
            ("a", rng.standard_normal((*lead, rows, depth)).astype(dtype)),
            ("b", rng.standard_normal((*lead, depth, columns)).astype(dtype)),
        )
    )
    found = multiply(a, b, backend)
    right = a.astype(np.longdouble) @ b.astype(np.longdouble)
    bound = (depth + 1) * EPSILON[dtype] * (abs(a).astype(np.longdouble) @ abs(b).astype(np.longdouble))
    bound += ROUNDED.get(dtype, 0) * (abs(right) + bound)
    assert found.dtype == dtype and found.shape == right.shape and found.flags.c_contiguous
    assert (abs(found - right) <= bound).all()


@each_backend
def test_any_strides(backend: Backend, rng: Any) -> None:
    a, b = rng.standard_normal((2, 9, 14)), rng.standard_normal((2, 20, 7))
    a, b = backend.array(a)[:, ::2, ::-2], backend.array(b)[:, 3:17:2]
    with launch.numpy_runner("ptx" if backend.name == "ptx" else "host"):
        found = backend.numpy(module.multiply(a, b))
    right = backend.numpy(a) @ backend.numpy(b)
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-14 * abs(right).max())


@each_backend
def test_nan_reaches_the_row_and_the_column_that_read_it(backend: Backend) -> None:
    a, b = np.ones((40, 20)), np.ones((20, 40))
    a[35, 3] = np.nan
    assert np.array_equal(np.isnan(multiply(a, b, backend)), np.isnan(a @ b))


@each_backend
def test_what_has_no_product_is_refused(backend: Backend) -> None:
    a = np.ones((2, 3, 4))
    for other in (np.ones((2, 3, 4)), np.ones((3, 4, 2)), np.ones((2, 4, 3), np.float32), np.ones((4, 3))):
        with pytest.raises(ValueError, match="have no product here"):
            multiply(a, other, backend)


@pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)
def test_a_captured_product_is_our_own_and_others_are_the_librarys(backend: Backend, rng: Any) -> None:
    import cupy

    a, b = (backend.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((70, 50), (50, 40)))
    library, ours = (a @ b).get(), module.multiply(a, b).get()
    assert matmul(a, b).get().tobytes() == library.tobytes()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            made = matmul(a, b)
        finally:
            graph = stream.end_capture()
        graph.launch(stream)
        assert made.get().tobytes() == ours.tobytes()
