"""`local_filter2d` with one tap: products of pixels and filters."""

from typing import Any

import numpy as np
import pytest

import dynarray as dyn


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("combine", ["mul", "add", None])
@pytest.mark.parametrize(
    ("stride", "image", "groups", "outputs"),
    [
        (1, (50, 83), 3, (50, 83)),
        (2, (150, 131), 3, (75, 66)),  # several runs, which begin and end within rows
        ((2, 1), (90, 61), 2, (45, 61)),
        ((1, 3), (7, 83), 6, (7, 28)),
    ],
)
def test_one_tap_on_its_own_pixel_is_a_product(
    stride: Any, image: Any, groups: int, outputs: Any, combine: str | None, special: bool
) -> None:
    """Of several chunks of pixels or channels, and channels that share filters or do not."""
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(s) for s in ((2, 6, *image), (2, groups, 1, 1, *outputs), (2, 6, 1, 1))]
    grad_output = rng.standard_normal((2, 6, *outputs))
    for array in (*arrays, grad_output) if special else ():
        array.flat[rng.integers(0, array.size, 2)] = np.nan, np.inf
    _compare(arrays, grad_output, {"combine": combine, "stride": stride})


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("combine", ["mul", "add", None])
@pytest.mark.parametrize(
    ("scale", "image", "groups"),
    [(2, (50, 83), 3), (3, (41, 64), 1), (4, (9, 130), 6), (5, (7, 3), 2), (2, (1, 1), 2), (4, (80, 2), 1)],
)
def test_one_tap_that_makes_several_outputs_of_a_pixel_is_a_product(
    scale: int, image: tuple[int, int], groups: int, combine: str | None, special: bool
) -> None:
    rng = np.random.default_rng(6)
    outputs = [scale * extent for extent in image]
    shapes = (2, 6, *image), (2, groups, 1, 1, *outputs), (2, scale, scale, 6, 1, 1), (2, 6, *outputs)
    *arrays, grad_output = [rng.standard_normal(shape) for shape in shapes]
    for array in (*arrays, grad_output) if special else ():
        array.flat[rng.integers(0, array.size, 2)] = np.nan, np.inf
    _compare(arrays, grad_output, {"combine": combine, "upsample": scale})


def _compare(arrays: list[Any], grad_output: Any, params: dict[str, Any]) -> None:
    """Kernels with the reference; without filters of channels where nothing tells how to combine them."""
    given = arrays if params["combine"] else arrays[:2]
    params["combine"] = params["combine"] or "mul"
    actual: list[Any] = []
    expected: list[Any] = []
    for results, backend in ((actual, "cpu"), (expected, "reference")):
        with dyn.use_backend(backend), np.errstate(all="ignore"):
            results.append(dyn.local_filter2d(*given, **params))
            results += dyn.local_filter2d_backward(grad_output, *given, **params)
    for ours, theirs in zip(actual, expected, strict=True):
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-11)
