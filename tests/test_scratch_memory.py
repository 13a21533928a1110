"""What a thread keeps from call to call may hold anything: no result shows it."""

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _contract import Result, each_operator, evaluate, full_call, threads
from conftest import Backend

import dynarray as dyn
from dynarray import Operator

pytest.importorskip("numba")

from dynarray.cpu.engine import memory

CPU = Backend("cpu")
NAN_IN_BOTH = 0x7FF4_0000_7FA0_0000  # a signalling NaN of either width
DENORMAL_IN_BOTH = 0x0001_0000_0001_0000
CALLS = 12  # of each operator and dtype


def spoil(number: int = NAN_IN_BOTH) -> int:
    """Fill all that this thread keeps with a number, NaN if none is given; how many bytes that was."""
    kept = [array for array in vars(memory._own).values() if isinstance(array, np.ndarray)]
    for array in kept:
        array[: array.size // 8 * 8].view(np.uint64).fill(number)
    return sum(array.nbytes for array in kept)


def bits(result: Result) -> list[bytes]:
    return [array.tobytes() for array in (result.output, *result.gradients) if array is not None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_operator
def test_no_result_shows_what_was_there_before(operator: Operator, dtype: str) -> None:
    spoiled = 0
    for seed in range(CALLS):
        call = full_call(operator, seed, H=9, W=21).astype(dtype)
        with threads(1):  # so that this one does all
            expected = bits(evaluate(call, CPU))
            spoiled += spoil()
            assert bits(evaluate(call, CPU)) == expected, call.describe()
    assert spoiled


def meets_denormals(call: Callable[[], Any]) -> bool:
    """Whether the vector unit of this thread has met any during a call: its control register says so."""
    library, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
    library.fegetenv(environment)
    environment[7] &= ~0x3F
    library.fesetenv(environment)
    call()
    library.fegetenv(environment)
    return bool(environment[7] & 2)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def sampling(channels: int, samples: int, stride: int = 1) -> tuple[np.ndarray, ...]:
    """The arrays of `dynamic_sampling_conv2d`."""
    outputs = -(-20 // stride), -(-37 // stride)
    kernels = normal(1, 5, channels, *outputs), normal(1, 5, 3, 3, *outputs)
    attention = normal(1, 5, samples, samples, *outputs), normal(1, 5, 3, 3, 20, 37)
    return normal(1, channels, 20, 37), *kernels, *attention


X, LINE = normal(2, 4, 30, 31), normal(4, 3, 21)
EIGHT, BASES, MANY = normal(2, 8, 30, 31), normal(4, 3, 3), normal(4, 128, 21)
# Calls of kernels that would be slow if lanes that are thrown away held denormal numbers.
SLOW_IF_DENORMAL: list[tuple[str, tuple, dict[str, Any]]] = [
    ("correlation2d", (X, X + 1), {"max_displacement": 3}),
    ("local_filter2d", (X, normal(2, 1, 3, 3, 30, 31)), {}),
    ("dynamic_conv2d", (X, normal(2, 3, 4, 3, 3, 30, 31)), {}),
    ("dynamic_sampling_conv2d", sampling(7, 1), {"samples": 1}),
    ("dynamic_sampling_conv2d", sampling(3, 9), {"samples": 9, "fuse": "stack"}),  # few terms
    ("dynamic_sampling_conv2d", sampling(30, 9), {"samples": 9, "sample_stride": 3, "fuse": "stack"}),
    ("dynamic_sampling_conv2d", sampling(30, 3, 2), {"samples": 3, "stride": 2}),
    ("dynamic_sampling_conv2d", sampling(30, 3), {"samples": 3, "fuse": "max"}),
    ("deform_conv1d", (LINE, normal(4, 15, 21), normal(64, 3, 15)), {"padding": 7}),
    ("deform_conv1d", (normal(1, 178, 64), normal(1, 5, 52), normal(154, 178, 5)), {"dilation": 3}),
    ("deform_conv1d", (normal(2, 37, 90), normal(2, 3, 90), normal(19, 37, 3)), {"padding": 1}),
    ("deform_conv2d", (X[:, :1], normal(2, 18, 30, 31), normal(5, 1, 3, 3)), {"padding": 1}),
    ("sample_points", (X, 9 + normal(2, 3, 2, 13, 11)), {}),
    ("atom_conv2d", (X, normal(2, 3, 3, 3, 30, 31), normal(5, 4, 3)), {}),
    ("atom_conv2d", (X, normal(2, 2, 3, 3, 15, 16), normal(5, 4, 2)), {"stride": 2}),
    ("atom_conv1d", (MANY, normal(4, 8, 3, 21), normal(40, 128, 8)), {}),  # products of all positions
    ("atom_conv1d", (MANY, normal(4, 2, 3, 21), normal(1, 128, 2)), {}),  # mixed first
    ("compose_atoms", (normal(2, 3, 4, 30, 31), BASES), {}),
    ("displaced_conv1d", (LINE, normal(16, 3, 2), normal(16, 3, 2)), {}),
    ("displaced_conv2d", (X, normal(5, 4, 2), normal(5, 4, 2, 2)), {}),
    ("mixed_filter2d", (EIGHT, BASES, normal(2, 1, 4, 30, 31)), {}),
    ("mixed_filter2d", (EIGHT, BASES, normal(2, 8, 4, 30, 31)), {}),
    ("mixed_filter2d", (EIGHT, BASES, normal(2, 2, 4, 15, 16)), {"stride": 2}),
    ("mixed_filter2d", (EIGHT, normal(4, 8, 3, 3), normal(2, 2, 4, 30, 31)), {}),
]


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"), reason="the register is of x86-64"
)
@pytest.mark.parametrize(("name", "arrays", "params"), SLOW_IF_DENORMAL)
def test_nothing_is_computed_from_what_was_there_before(
    name: str, arrays: tuple, params: dict[str, Any]
) -> None:
    """As denormal numbers, which integers look like, it would take twenty times as long."""
    assert meets_denormals(lambda: np.float32(1e-40) * normal(1000))
    operator = dyn.OPERATORS[name]
    arrays += (None,) * (len(operator.arrays) - len(arrays))
    needs = tuple(array is not None for array in arrays)
    with threads(1), dyn.use_backend("cpu"):
        grad = np.ones_like(operator(arrays, **params))
        passes = (
            lambda: operator(arrays, **params),
            lambda: operator.backward_pass(grad, arrays, params, needs),
        )
        for one in passes:
            one()
            assert spoil(DENORMAL_IN_BOTH)
            assert not meets_denormals(one)
