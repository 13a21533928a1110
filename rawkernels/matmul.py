"""Products of stacks of matrices: cuBLAS, or where CuPy refuses to call it, the kernel in matmul.cu."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from rawkernels import tf32
from rawkernels.launch import (
    blocks,
    capturing,
    contiguous,
    empty,
    is_cupy,
    launch,
    module_of,
    needs_wide_index,
    type_constants,
)
from rawkernels.source import Program, program

FILE = "matmul.cu"
TILE = 32  # as in matmul.cu
BLOCK = 256
SUMMED_ROWS = 64  # least that one chain of sums of `add_products` has


def choose_program(dtype: Any, *, wide_index: bool = False) -> Program:
    """The program for matrices of one dtype."""
    return program(FILE, type_constants(dtype, wide_index=wide_index))


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    return [(f"{dtype} any size", choose_program(dtype, wide_index=wide_index))]


_compute_type = threading.RLock()  # CuPy has one for all threads


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """``a @ b`` of arrays of one dtype with the same leading axes, in `out` if given, which is in C order.

    CuPy calls no library while a stream is captured; then the product is that of `multiply`, with other
    roundings than those of the library.
    """
    if not is_cupy(a):
        return np.matmul(a, b, out=out)
    if capturing(a):
        return multiply(a, b, out)
    with _as_allowed(a.dtype):
        return a @ b if out is None else module_of(a).matmul(a, b, out=out)


@contextmanager
def _as_allowed(dtype: Any) -> Iterator[None]:
    """CuPy computes in what `allow_tf32` says, and afterwards in what it did before."""
    if dtype != np.float32:
        yield
        return
    linalg = importlib.import_module("cupy._core._routines_linalg")
    exact = (linalg.COMPUTE_TYPE_DEFAULT, linalg.COMPUTE_TYPE_FP32, linalg.COMPUTE_TYPE_PEDANTIC)
    wanted = (linalg.COMPUTE_TYPE_TF32,) if tf32.is_allowed() else exact
    with _compute_type:
        before = linalg.get_compute_type(dtype)
        if before in wanted:
            yield
            return
        linalg.set_compute_type(dtype, wanted[0])
        try:
            yield
        finally:
            linalg.set_compute_type(dtype, before)


def multiply(a: Any, b: Any, out: Any = None) -> Any:
    """The same by our own kernel: a (..., M, K) and b (..., K, N) with any strides, the result in C order."""
    (*lead, rows, depth), (*other, inner, columns) = a.shape, b.shape
    if lead != other or depth != inner or a.dtype != b.dtype:
        raise ValueError(f"multiply: {a.dtype} {a.shape} and {b.dtype} {b.shape} have no product here")
    c = empty((*lead, rows, columns), a) if out is None else out
    if c.size:
        (a, a_turned), (b, b_turned) = _laid_out(a), _laid_out(b)
        count = prod(lead) * blocks(rows, TILE) * blocks(columns, TILE)
        # A tile reaches past the end of a matrix.
        wide = needs_wide_index(a, b, c, work_items=max(count, (depth + TILE) * (max(rows, columns) + TILE)))
        numbers = map(np.int32, (a_turned, b_turned, rows, columns, depth))
        launch(choose_program(a.dtype, wide_index=wide), "matmul", (count,), (BLOCK,), (a, b, c, *numbers))
    return c


def add_products(total: Any, left: Any, right: Any, room: int) -> None:
    """Add to `total`, in double precision, the sums over rows of products: of each group left^T right.

    left (groups, rows, M), right (groups, rows, K), and total as (groups, M, K) in any shape. One chain of
    sums over all rows would be off by the root of their number of roundings: runs of rows are multiplied by
    themselves, as many at once as their products take no more than `room` bytes.
    """
    groups, rows, each = left.shape
    run = max(SUMMED_ROWS, each)
    whole = rows // run * run
    step = run * max(1, room // (total.size * left.itemsize))
    edges = [*range(0, whole, step), whole, rows]
    for first, last in pairwise(edges):
        if first < last:
            size = min(run, last - first)
            turned = left[:, first:last].reshape(groups, -1, size, each).transpose(0, 1, 3, 2)
            products = matmul(turned, right[:, first:last].reshape(groups, -1, size, right.shape[2]))
            sums = products if products.shape[1] == 1 else products.sum(axis=1, dtype=total.dtype)
            total += sums.reshape(total.shape)


def _laid_out(matrices: Any) -> tuple[Any, bool]:
    """A contiguous array with these matrices, and whether they are turned in it."""
    turned = matrices.swapaxes(-1, -2)
    if turned.flags.c_contiguous and not matrices.flags.c_contiguous:
        return turned, True
    return contiguous(matrices)[0], False
