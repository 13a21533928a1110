"""What CUDA kernels of deform use beside their arrays, counted on the stand-in for CuPy."""

from typing import Any

import numpy as np
import pytest
from _standin import launches, memory, standing_in

import dynarray as dyn

# N, C, O, H and W, kernel, groups, offset groups, dtype.
CALLS: dict[str, tuple] = {
    "many channels": (2, 256, 256, (56, 56), 3, 1, 1, "float32"),
    "a batch": (16, 64, 64, (64, 64), 3, 1, 1, "float32"),
    "a large image": (1, 64, 64, (256, 256), 3, 1, 1, "float32"),
    "a larger image": (1, 40, 8, (640, 480), 3, 1, 1, "float32"),
    "a larger image of 16 bits": (1, 40, 8, (640, 480), 3, 1, 2, "float16"),
    "double precision": (1, 64, 16, (160, 160), 3, 4, 4, "float64"),
    "each channel by itself": (2, 96, 96, (64, 64), 3, 96, 96, "float32"),
    "a large kernel": (1, 32, 16, (128, 128), 7, 1, 1, "float32"),
}


def bound(*arrays: Any) -> int:
    """Bytes that may be used beside inputs and outputs."""
    return (32 << 20) + sum(array.nbytes for array in arrays if array is not None) // 20


def draw(cupy: Any, size: tuple[int, ...], dtype: str) -> Any:
    return cupy.asarray(np.ones(size, dtype))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("title", CALLS)
def test_deform_conv2d(title: str, deterministic: bool) -> None:
    n, c, o, image, k, groups, offset_groups, dtype = CALLS[title]
    params = {"padding": k // 2, "deterministic": deterministic}
    with standing_in() as cupy, launches() as launched:
        sizes = (n, c, *image), (n, offset_groups, k, k, 2, *image), (o, c // groups, k, k)
        x, offset, weight = (draw(cupy, size, dtype) for size in sizes)
        mask = draw(cupy, (n, offset_groups, k, k, *image), dtype)
        with memory() as used:
            y = dyn.deform_conv2d(x, offset, weight, mask=mask, **params)
        assert used.rise - y.nbytes <= bound(x, offset, weight, mask, y)
        with memory() as used:
            gradients = dyn.deform_conv2d_backward(y, x, offset, weight, mask=mask, **params)
        found = [array for array in gradients if array is not None]
        assert used.rise - sum(array.nbytes for array in found) <= bound(x, offset, weight, mask, y, *found)
        entries = {launch.entry for launch in launched}
        assert ("deform_list_points" in entries) == deterministic


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("n", "points"), [(8, 9), (1, 100)])
def test_sample_points(n: int, points: int, deterministic: bool) -> None:
    with standing_in() as cupy, launches():
        x, at = draw(cupy, (n, 64, 96, 96), "float32"), draw(cupy, (n, points, 2, 48, 48), "float32")
        with memory() as used:
            y = dyn.sample_points(x, at)
        assert used.rise - y.nbytes <= bound(x, at, y)
        with memory() as used:
            gradients = dyn.sample_points_backward(y, x, at, deterministic=deterministic)
        own = sum(array.nbytes for array in gradients)
        assert used.rise - own <= bound(x, at, y, *gradients)
