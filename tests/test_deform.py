"""Identities, hard cases and golden numbers of `deform_conv2d` and `sample_points`."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _contract import REFERENCE, Call, check_nonfinite, evaluate, parts
from conftest import Backend, backend_params
from scipy.signal import correlate

import dynarray as dyn

OPERATOR, SAMPLE = dyn.OPERATORS["deform_conv2d"], dyn.OPERATORS["sample_points"]


def run(backend: Backend, function: Callable, *arrays: Any, **params: Any) -> Any:
    """A public function on arrays of the backend, its result or results as NumPy arrays."""
    keywords = {k: backend.array(v) if isinstance(v, np.ndarray) else v for k, v in params.items()}
    result = function(*map(backend.array, arrays), **keywords)
    return type(result)(*map(backend.numpy, result)) if isinstance(result, tuple) else backend.numpy(result)


def close(actual: np.ndarray, expected: Any, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.max(np.abs(expected), initial=0))


def convolved(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    """Ordinary convolution without padding, from SciPy."""
    y = [correlate(image, kernel, "valid")[0] for image in x for kernel in weight]
    return np.reshape(y, (len(x), len(weight), *y[0].shape))[..., ::stride, ::stride]


def call_of(
    rng: np.random.Generator,
    n: int,
    c: int,
    o: int,
    image: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    *,
    offset_groups: int = 1,
    groups: int = 1,
    reach: float = 2.5,
    full: bool = True,
    **params: Any,
) -> Call:
    """A call with random arrays; the size of its output is worked out here, not taken from it."""
    stride, padding, dilation = (
        np.broadcast_to(params.get(name, default), 2)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    outputs = tuple(
        int((image[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1)
        for i in range(2)
    )
    arrays = (
        rng.standard_normal((n, c, *image)),
        rng.uniform(-reach, reach, (n, offset_groups, *kernel, 2, *outputs)),
        rng.standard_normal((o, c // groups, *kernel)),
        rng.standard_normal((n, offset_groups, *kernel, *outputs)) if full else None,
        rng.standard_normal(o) if full else None,
    )
    return Call(OPERATOR, arrays, params, rng.standard_normal((n, o, *outputs)))


def drawn(rng: np.random.Generator, kind: dict[str, Any]) -> Call:
    """Three images of a kind, which names channels, outputs, the size of an image, and what else it has."""
    others = dict(kind)
    return call_of(rng, 3, *(others.pop(name) for name in ("c", "o", "image")), **others)


def check_not_finite(
    call: Call, backend: Backend, rng: np.random.Generator, name: str, number: float
) -> None:
    """Require a number that is not finite, twice in an array, to show where the definition has it.

    With zeros beside it, which a sum in another order would not multiply by it.
    """
    arrays = dict(zip(("x", "offset", "weight", "mask", "bias"), call.arrays, strict=True))
    arrays["x"][:, ::2] = 0
    arrays["weight"][:, 1::3] = 0
    array = {**arrays, "grad_output": call.grad_output}[name].reshape(-1)
    array[rng.integers(array.size, size=2)] = number
    with np.errstate(all="ignore"):
        expected, mine = evaluate(call, REFERENCE), evaluate(call, backend)
    for _, found, right in parts(call, mine, expected):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(right))
        np.testing.assert_array_equal(found[np.isinf(right)], right[np.isinf(right)])
        np.testing.assert_allclose(found[np.isfinite(right)], right[np.isfinite(right)], rtol=1e-9, atol=1e-9)


# ---- golden numbers, worked out by hand

ROW = np.array([1.0, 2, 4]).reshape(1, 1, 1, 3)


def test_golden_row(backend: Backend) -> None:
    """One tap, moved along x: by half a pixel, to the edge of the last, and past the image."""
    offset = np.zeros((1, 1, 1, 1, 2, 1, 3))
    offset[0, 0, 0, 0, 1, 0] = [0.5, 1.75, -2.25]
    weight, mask, bias = (
        np.array([[[[10.0]]]]),
        np.array([1.0, 2, 3]).reshape(1, 1, 1, 1, 1, 3),
        np.array([7.0]),
    )
    y = run(backend, dyn.deform_conv2d, ROW, offset, weight, mask=mask, bias=bias)
    # At 0.5: (1 + 2)/2. At 2.75: 1/4 of 4 and 3/4 of the zero behind. At -0.25: 3/4 of 1, 1/4 of a zero.
    assert y.ravel().tolist() == [10 * 1.5 + 7, 10 * 2 * 1.0 + 7, 10 * 3 * 0.75 + 7]
    grad = np.array([1.0, 10, 100]).reshape(y.shape)
    grads = run(backend, dyn.deform_conv2d_backward, grad, ROW, offset, weight, mask=mask, bias=bias)
    # Times 10: 1/2 from the first point and 3/4 of 3*100; 1/2; 1/4 of 2*10.
    assert grads.x.ravel().tolist() == [10 * (0.5 + 225), 10 * 0.5, 10 * 5]
    # Times 10 and the mask: slope 2 - 1; 0 - 4; 1 - 0.
    assert grads.offset[0, 0, 0, 0, 1, 0].tolist() == [10, 10 * 20 * -4, 10 * 300 * 1]
    # Along y: the row below is zero, so that the slope is minus the value.
    assert grads.offset[0, 0, 0, 0, 0, 0].tolist() == [-15, -10 * 20 * 1, -10 * 300 * 0.75]
    assert grads.weight.ravel().tolist() == [1 * 1.5 + 10 * 2 * 1.0 + 100 * 3 * 0.75]
    assert grads.mask.ravel().tolist() == [10 * 1.5, 100 * 1.0, 1000 * 0.75]
    assert grads.bias.tolist() == [111]


def test_golden_samples(backend: Backend) -> None:
    x = np.array([[1.0, 2], [3, 5]]).reshape(1, 1, 2, 2)
    points = np.array([[0.5, 0.25], [1.5, 1], [-3, 0]]).reshape(1, 3, 2, 1, 1)
    y = run(backend, dyn.sample_points, x, points)
    # 3/8 of 1 and 3, 1/8 of 2 and 5; half of 5; outside.
    assert y.ravel().tolist() == [(3 * 1 + 2 + 3 * 3 + 5) / 8, 2.5, 0]
    grads = run(backend, dyn.sample_points_backward, np.array([8.0, 10, 100]).reshape(y.shape), x, points)
    assert grads.x.ravel().tolist() == [3, 1, 3, 1 + 5]
    # By y: 3/4 * (3 - 1) + 1/4 * (5 - 2); 0 - 5. By x: (2 - 1 + 5 - 3) / 2; half of 0 - 5.
    assert grads.points.reshape(3, 2).tolist() == [[8 * 2.25, 8 * 1.5], [-50, -25], [0, 0]]


# ---- identities


@pytest.mark.parametrize("stride", [1, 2])
def test_zero_offsets_make_a_convolution(backend: Backend, rng: np.random.Generator, stride: int) -> None:
    call = call_of(rng, 2, 3, 4, (9, 8), (3, 2), full=False, stride=stride)
    x, offset, weight, *_ = call.arrays
    y = run(backend, dyn.deform_conv2d, x, np.zeros_like(offset), weight, stride=stride)
    close(y, convolved(x, weight, stride))


def test_integer_offsets_make_a_convolution_of_a_moved_image(
    backend: Backend, rng: np.random.Generator
) -> None:
    x, weight = rng.standard_normal((2, 3, 9, 8)), rng.standard_normal((4, 3, 3, 3))
    offset = np.broadcast_to(np.array([2.0, -1]).reshape(1, 1, 1, 1, 2, 1, 1), (2, 1, 3, 3, 2, 7, 6))
    moved = np.zeros_like(x)
    moved[:, :, :-2, 1:] = x[:, :, 2:, :-1]
    close(run(backend, dyn.deform_conv2d, x, offset, weight), convolved(moved, weight))


def test_a_mask_of_zeros_leaves_the_bias(backend: Backend, rng: np.random.Generator) -> None:
    x, offset, weight, mask, bias = call_of(rng, 2, 4, 3, (6, 7)).arrays
    y = run(backend, dyn.deform_conv2d, x, offset, weight, mask=np.zeros_like(mask), bias=bias)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], y.shape))
    plain = run(backend, dyn.deform_conv2d, x, offset, weight)
    np.testing.assert_array_equal(
        plain, run(backend, dyn.deform_conv2d, x, offset, weight, mask=np.ones_like(mask))
    )


def test_images_do_not_mix(backend: Backend, rng: np.random.Generator) -> None:
    x, offset, weight, mask, bias = call_of(rng, 5, 4, 3, (6, 7), offset_groups=2).arrays
    order = [3, 0, 4, 1, 2]
    y = run(backend, dyn.deform_conv2d, x, offset, weight, mask=mask, bias=bias)
    other = run(backend, dyn.deform_conv2d, x[order], offset[order], weight, mask=mask[order], bias=bias)
    np.testing.assert_array_equal(y[order], other)


def test_groups_are_convolutions_of_their_own(backend: Backend, rng: np.random.Generator) -> None:
    """Two groups and three offset groups over twelve channels: neither divides the other's."""
    x, offset, weight, mask, _ = call_of(rng, 2, 12, 4, (6, 7), groups=2, offset_groups=3).arrays
    y = run(backend, dyn.deform_conv2d, x, offset, weight, mask=mask)
    expected = np.zeros_like(y)
    for c in range(12):
        one = run(
            backend,
            dyn.deform_conv2d,
            x[:, c : c + 1],
            offset[:, c // 4 : c // 4 + 1],
            weight[c // 6 * 2 : c // 6 * 2 + 2, c % 6 : c % 6 + 1],
            mask=mask[:, c // 4 : c // 4 + 1],
        )
        expected[:, c // 6 * 2 : c // 6 * 2 + 2] += one
    close(y, expected)


def test_both_layouts_of_offsets_and_masks(backend: Backend, rng: np.random.Generator) -> None:
    call = call_of(rng, 2, 6, 4, (7, 6), (3, 2), offset_groups=3)
    x, offset, weight, mask, bias = call.arrays
    flat = (x, offset.reshape(2, -1, 5, 5), weight, mask.reshape(2, -1, 5, 5), bias)
    expected = evaluate(call, backend)
    result = evaluate(replace(call, arrays=flat), backend)
    for (what, mine, right), array in zip(
        parts(call, result, expected), (call.grad_output, *flat), strict=True
    ):
        assert mine.shape == array.shape, what
        np.testing.assert_array_equal(mine.ravel(), right.ravel())


def test_samples_on_the_grid_are_the_image(backend: Backend, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 5, 6, 7))
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(7.0), indexing="ij"))
    points = np.broadcast_to(grid, (2, 1, 2, 6, 7))
    np.testing.assert_array_equal(run(backend, dyn.sample_points, x, points)[:, :, 0], x)


def test_a_kernel_of_one_tap_samples(backend: Backend, rng: np.random.Generator) -> None:
    x, points = rng.standard_normal((2, 3, 5, 6)), rng.uniform(-1, 7, (2, 1, 2, 5, 6))
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(6.0), indexing="ij"))
    offset = (points - grid)[:, :, None, None]
    y = run(backend, dyn.deform_conv2d, x, offset, np.eye(3)[:, :, None, None])
    close(y, run(backend, dyn.sample_points, x, points)[:, :, 0])


# ---- integer coordinates, the edge of the image, and far beyond it


def test_derivatives_at_integers_are_those_from_the_right(backend: Backend, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 1, 4, 5))
    points = np.array([1.0, 2]).reshape(1, 1, 2, 1, 1)
    grads = run(backend, dyn.sample_points_backward, np.ones((1, 1, 1, 1, 1)), x, points)
    image = x[0, 0]
    assert grads.points.ravel().tolist() == [image[2, 2] - image[1, 2], image[1, 3] - image[1, 2]]


@pytest.mark.parametrize(
    ("y", "value", "slope"),
    [
        (-1.0, 0.0, 0.0),  # one pixel before: the image is not reached
        (np.nextafter(-1, 0), 0.0, 3.0),
        (-0.5, 1.5, 3.0),
        (0.0, 3.0, 2.0),  # from the right: the second pixel minus the first
        (1.0, 5.0, -5.0),  # the last pixel: from the right, the zero behind
        (1.5, 2.5, -5.0),
        (np.nextafter(2, 0), 0.0, -5.0),
        (2.0, 0.0, 0.0),
    ],
)
def test_across_the_edge_of_the_image(backend: Backend, y: float, value: float, slope: float) -> None:
    x, points = np.array([3.0, 5]).reshape(1, 1, 2, 1), np.array([y, 0]).reshape(1, 1, 2, 1, 1)
    assert abs(run(backend, dyn.sample_points, x, points).item() - value) <= 1e-14
    grads = run(backend, dyn.sample_points_backward, np.ones((1, 1, 1, 1, 1)), x, points)
    assert grads.points.ravel()[0] == slope


FAR = [1e30, -1e30, np.inf, -np.inf, 1e300, 3e9, -3e9, 2.0**31, -(2.0**31), 2.0**63, 2.0**64, -1e19]


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_points_read_zero_and_have_zero_gradient(
    backend: Backend, rng: np.random.Generator, far: float, axis: int, dtype: str
) -> None:
    call = call_of(rng, 1, 4, 3, (5, 6), padding=1)
    x, offset, weight, mask, bias = (array.astype(dtype) for array in call.arrays)
    with np.errstate(over="ignore"):
        offset[:, :, 1, 1, axis] = np.asarray(far).astype(dtype)
    others = {"mask": mask, "bias": bias, "padding": 1}
    without, near = weight.copy(), offset.copy()
    without[:, :, 1, 1] = near[:, :, 1, 1] = 0
    y = run(backend, dyn.deform_conv2d, x, offset, weight, **others)
    np.testing.assert_array_equal(y, run(backend, dyn.deform_conv2d, x, near, without, **others))
    grad = call.grad_output.astype(dtype)
    grads = run(backend, dyn.deform_conv2d_backward, grad, x, offset, weight, **others)
    expected = run(backend, dyn.deform_conv2d_backward, grad, x, near, without, **others)
    close(grads.x, expected.x, 1e-5 if dtype == "float32" else 1e-12)
    assert not grads.offset[:, :, 1, 1].any() and not grads.mask[:, :, 1, 1].any()
    assert not grads.weight[:, :, 1, 1].any()
    assert all(np.isfinite(gradient).all() for gradient in grads)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_nan_coordinate_shows(backend: Backend, rng: np.random.Generator, axis: int) -> None:
    call = call_of(rng, 2, 4, 3, (5, 6), padding=1)
    x, offset, weight, mask, bias = call.arrays
    offset[1, 0, 2, 0, axis, 3, 4] = np.nan
    others = {"mask": mask, "bias": bias, "padding": 1}
    y = run(backend, dyn.deform_conv2d, x, offset, weight, **others)
    assert np.isnan(y[1, :, 3, 4]).all() and np.isnan(y).sum() == 3
    grads = run(backend, dyn.deform_conv2d_backward, call.grad_output, x, offset, weight, **others)
    assert np.isfinite(grads.x).all() and np.isfinite(grads.bias).all()
    assert np.isnan(grads.offset[1, 0, 2, 0, :, 3, 4]).all() and np.isnan(grads.offset).sum() == 2
    assert np.isnan(grads.mask[1, 0, 2, 0, 3, 4]) and np.isnan(grads.mask).sum() == 1
    assert np.isnan(grads.weight[:, :, 2, 0]).all() and np.isnan(grads.weight).sum() == 12


def hostile(rng: np.random.Generator, dtype: str = "float64", **sizes: Any) -> Call:
    """A call in which every fifth coordinate is far or tiny, two are NaN, and arrays lie between NaNs."""
    call = call_of(rng, 2, 8, 5, (7, 6), padding=1, offset_groups=2, reach=9, **sizes).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    with np.errstate(over="ignore"):
        worst = np.array([*FAR, tiny, -tiny]).astype(dtype)
    offset = call.arrays[1]
    chosen = rng.random(offset.shape) < 0.2
    offset[chosen] = rng.choice(worst, int(chosen.sum()))
    offset[1, 0, 0, 0, :, 2:4, 3] = np.nan

    def between_nans(array: np.ndarray) -> np.ndarray:
        memory = np.full(array.size + 2048, np.nan, dtype)
        memory[1024:-1024] = array.ravel()
        return memory[1024:-1024].reshape(array.shape)

    return call.map(between_nans)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_hostile_coordinates_read_nothing_else(
    backend: Backend, rng: np.random.Generator, dtype: str, deterministic: bool
) -> None:
    """On the host build each array has guard zones besides, which show a stray read or write."""
    call = hostile(rng, dtype)
    call = replace(call, params={**call.params, "deterministic": deterministic})
    check_nonfinite(call, backend)
    actual, expected = evaluate(call, backend), evaluate(call, Backend("reference"))
    for what, mine, right in parts(call, actual, expected):
        known = np.isfinite(right)
        assert known.mean() > 0.8, what
        close(mine[known], right[known], 1e-4 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_corners_of_hostile_points_lie_in_the_packed_image(
    backend: Backend, rng: np.random.Generator, dtype: str
) -> None:
    """What samples on the CPU is written as instructions, which `NUMBA_BOUNDSCHECK` does not see."""
    from numba import njit

    from dynarray.cpu.deform.plan import deform_sizes
    from dynarray.cpu.deform.points import PointArrays, point_sizes, set_up_points
    from dynarray.cpu.engine.memory import cut

    x, offset, weight = hostile(rng, dtype).arrays[:3]
    still = (1, 1)
    assert offset.shape == (2, 2, 3, 3, 2, 7, 6)
    sizes = deform_sizes(x, offset, weight, stride=still, padding=still, dilation=still, border="constant")
    arrays = PointArrays(offset.reshape(-1), np.empty(0, dtype))
    points = cut(point_sizes(48, 9), np.dtype(dtype))

    @njit(error_model="numpy")
    def set_up(points, arrays, sizes, image, group):  # type: ignore[no-untyped-def]
        set_up_points(points, arrays, sizes, image, group, 0, 42)

    for image, group in np.ndindex(2, 2):
        points.at.fill(-1)
        set_up(points, arrays, sizes, image, group)
        at = points.at[: 9 * 48].reshape(9, 48)[:, :42]
        assert at.min() >= 0
        assert at.max() + sizes.image.pitch + 1 < sizes.image.pixels == (7 + 3) * (6 + 2)


BOUNDS_CHECKED = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from _contract import evaluate
from conftest import Backend
from test_deform import SAMPLE, hostile, Call
import dynarray as dyn

for seed in range(3):
    rng = np.random.default_rng(seed)
    call = hostile(rng)
    assert evaluate(call, Backend("cpu")).output.shape == call.grad_output.shape
    points = call.arrays[1][:, 0, :, 0].copy()
    evaluate(Call(SAMPLE, (call.arrays[0], points), {{}}, np.ones((2, 8, 3, 7, 6))), Backend("cpu"))
try:
    from numba import njit
    njit(lambda a, i: a[i])(np.ones(3), 3)
except IndexError:
    print("bounds are checked")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_hostile_coordinates_with_checked_bounds(backend: Backend, tmp_path: Path) -> None:
    """The CPU kernels once more, compiled so that an index outside its array raises."""
    script = BOUNDS_CHECKED.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bounds are checked" in done.stdout


def test_an_image_without_pixels_has_outputs(backend: Backend, rng: np.random.Generator) -> None:
    call = call_of(rng, 2, 3, 4, (0, 5), (1, 1), padding=1)
    assert call.grad_output.shape == (2, 4, 2, 7)
    result = evaluate(call, backend)
    np.testing.assert_array_equal(result.output, np.broadcast_to(call.arrays[4][:, None, None], (2, 4, 2, 7)))
    assert result.gradients[0].shape == (2, 3, 0, 5)
    assert not result.gradients[1].any() and not result.gradients[2].any()


def test_no_channels_leave_the_bias(backend: Backend, rng: np.random.Generator) -> None:
    call = call_of(rng, 2, 0, 4, (5, 6))
    result = evaluate(call, backend)
    np.testing.assert_array_equal(result.output, np.broadcast_to(call.arrays[4][:, None, None], (2, 4, 3, 4)))
    assert not result.gradients[1].any() and not result.gradients[3].any()


@pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_coordinates_are_finer_than_16_bits(backend: Backend, dtype: str) -> None:
    """In float16, 2049 is no number and 1000.25 is next to 1000.75: points there are found all the same."""
    import ml_dtypes  # registers bfloat16 with NumPy

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    width = 4101
    x = (np.arange(width) % 2).astype(kind).reshape(1, 1, 1, width)
    offset = np.zeros((1, 1, 1, 1, 2, 1, width), kind)
    offset[:, :, :, :, 1] = 0.25
    y = run(backend, dyn.deform_conv2d, x, offset, np.ones((1, 1, 1, 1), kind)).astype(float).ravel()
    assert y.tolist() == [0.25, 0.75] * (width // 2) + [0.0]


# ---- refusals


X, OFFSET, WEIGHT = (1, 4, 5, 6), (1, 18, 3, 4), (2, 4, 3, 3)


@pytest.mark.parametrize(
    ("shapes", "params", "message"),
    [
        ([X[1:], OFFSET, WEIGHT], {}, r"x must have shape \(N, C, H, W\), got \(4, 5, 6\)"),
        ([X, OFFSET, (2, 4, 0, 3)], {}, r"weight must have kernel sizes of at least 1"),
        ([X, OFFSET, (2, 3, 3, 3)], {}, r"weight has C/groups = 3 .* divisor of C = 4"),
        ([X, OFFSET, (3, 2, 3, 3)], {}, r"weight has O = 3 .* groups = 2; it must divide O"),
        ([X, (1, 17, 3, 4), WEIGHT], {}, r"offset must have 2\*D\*kh\*kw channels with kh\*kw = 9"),
        ([X, (1, 18, 3, 3), WEIGHT], {}, r"offset must have shape .* 3, 4\), got \(1, 18, 3, 3\)"),
        ([X, (1, 54, 3, 4), WEIGHT], {}, r"offset has D = 3; .* divide C = 4"),
        ([X, (1, 1, 3, 3, 3, 3, 4), WEIGHT], {}, r"offset must have shape \(N, D, kh, kw, 2, Ho, Wo"),
        ([X, OFFSET, WEIGHT, OFFSET], {}, r"mask must have D\*kh\*kw channels .* D = 1"),
        ([X, OFFSET, WEIGHT, None, (3,)], {}, r"bias must have shape \(O\) = \(2\)"),
        ([X, (1, 18, 5, 6), (2, 4, 2, 2)], {"padding": None}, r"padding=None means 'same'"),
        (
            [X, (1, 2, 2, 2), (2, 4, 1, 1)],
            {"stride": 2**40, "padding": 2**39},
            r"stride, dilation and padding place taps \d+ pixels away",
        ),
    ],
)
def test_messages(shapes: list, params: dict[str, Any], message: str) -> None:
    x, offset, weight, *rest = (None if shape is None else np.ones(shape) for shape in shapes)
    mask, bias = [*rest, None, None][:2]
    with pytest.raises(ValueError, match=rf"^deform_conv2d: {message}"):
        dyn.deform_conv2d(x, offset, weight, mask=mask, bias=bias, **params)
