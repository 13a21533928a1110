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
    given = arrays if combine else arrays[:2]
    params = {"combine": combine or "mul", "stride": stride}
    actual: list[Any] = []
    expected: list[Any] = []
    for results, backend in ((actual, "cpu"), (expected, "reference")):
        with dyn.use_backend(backend), np.errstate(all="ignore"):
            results.append(dyn.local_filter2d(*given, **params))
            results += dyn.local_filter2d_backward(grad_output, *given, **params)
    for ours, theirs in zip(actual, expected, strict=True):
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-11)
