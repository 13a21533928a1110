"""Identities, hard cases and golden numbers of `local_filter2d` and its faces."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import KERNELS, Backend, backend_params
from scipy.ndimage import correlate

import dynarray as dyn
from dynarray._geometry import shorten_steps
from dynarray.cpu.engine import strips

fast_backends = pytest.mark.parametrize("backend", backend_params(*KERNELS), indirect=True)
each_combine = pytest.mark.parametrize("combine", ["mul", "add"])


def run(backend: Backend, function: Callable, *arrays: Any, **params: Any) -> Any:
    """A public function on arrays of the backend, its result or results as NumPy arrays."""
    result = function(*map(backend.array, arrays), **params)
    return type(result)(*map(backend.numpy, result)) if isinstance(result, tuple) else backend.numpy(result)


def close(actual: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12 * np.max(np.abs(expected), initial=0))


def depthwise(x: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Each image and channel of x with its own (kh, kw) filter, zero outside the image."""
    y = np.empty_like(x)
    for n, c in np.ndindex(x.shape[:2]):
        y[n, c] = correlate(x[n, c], filters[n, c], mode="constant")
    return y


# ---- golden numbers, worked out by hand

ROW = np.array([1.0, 2, 3]).reshape(1, 1, 1, 3)
# Taps of pixel 0: 1 2 3, of pixel 1: 4 5 6, of pixel 2: 7 8 9.
ROW_WEIGHT = np.arange(1.0, 10).reshape(3, 3).T.reshape(1, 1, 1, 3, 1, 3)
ROW_CHANNEL = np.array([2.0, 3, 5]).reshape(1, 1, 1, 3)
ROW_GRAD = np.array([1.0, 10, 100]).reshape(1, 1, 1, 3)


def test_golden_row(backend: Backend) -> None:
    y = run(backend, dyn.local_filter2d, ROW, ROW_WEIGHT)
    # 2*1 + 3*2, 4*1 + 5*2 + 6*3, 7*2 + 8*3
    assert y.ravel().tolist() == [8, 32, 38]
    grads = run(backend, dyn.local_filter2d_backward, ROW_GRAD, ROW, ROW_WEIGHT)
    # 1*2 + 10*4, 1*3 + 10*5 + 100*7, 10*6 + 100*8
    assert grads.x.ravel().tolist() == [42, 753, 860]
    assert grads.weight[0, 0, 0, :, 0].T.tolist() == [[0, 1, 2], [10, 20, 30], [200, 300, 0]]
    assert grads.channel_weight is None


def test_golden_row_with_channel_weights(backend: Backend) -> None:
    arrays = ROW, ROW_WEIGHT, ROW_CHANNEL
    y = run(backend, dyn.local_filter2d, *arrays)
    # 6*1 + 15*2, 8*1 + 15*2 + 30*3, 14*2 + 24*3
    assert y.ravel().tolist() == [36, 128, 100]
    grads = run(backend, dyn.local_filter2d_backward, ROW_GRAD, *arrays)
    # 1*6 + 10*8, 1*15 + 10*15 + 100*14, 10*30 + 100*24
    assert grads.x.ravel().tolist() == [86, 1565, 2700]
    assert grads.weight[0, 0, 0, :, 0].T.tolist() == [[0, 3, 10], [20, 60, 150], [400, 900, 0]]
    # 10*4*1 + 100*7*2, 1*2*1 + 10*5*2 + 100*8*3, 1*3*2 + 10*6*3
    assert grads.channel_weight.ravel().tolist() == [1440, 2502, 186]


def test_golden_row_with_added_channel_weights(backend: Backend) -> None:
    arrays = ROW, ROW_WEIGHT, ROW_CHANNEL
    y = run(backend, dyn.local_filter2d, *arrays, combine="add")
    # Filters 3 5 8, 6 8 11, 9 11 14: 5*1 + 8*2, 6*1 + 8*2 + 11*3, 9*2 + 11*3
    assert y.ravel().tolist() == [21, 55, 51]
    grads = run(backend, dyn.local_filter2d_backward, ROW_GRAD, *arrays, combine="add")
    # 1*5 + 10*6, 1*8 + 10*8 + 100*9, 10*11 + 100*11
    assert grads.x.ravel().tolist() == [65, 988, 1210]
    assert grads.weight[0, 0, 0, :, 0].T.tolist() == [[0, 1, 2], [10, 20, 30], [200, 300, 0]]
    assert grads.channel_weight.ravel().tolist() == [10 + 200, 1 + 20 + 300, 2 + 30]


def test_golden_even_kernel_with_stride(backend: Backend) -> None:
    x = np.array([1.0, 2, 3, 4, 5]).reshape(1, 1, 1, 5)
    weight = np.array([[1.0, 100], [10, 1000]]).reshape(1, 1, 1, 2, 1, 2)
    y = run(backend, dyn.involution, x, weight, stride=2, padding=0)
    # 1*1 + 10*2, 100*3 + 1000*4; the last pixel is not read
    assert y.ravel().tolist() == [21, 4300]
    grads = run(backend, dyn.involution_backward, np.ones((1, 1, 1, 2)), x, weight, stride=2, padding=0)
    assert grads.x.ravel().tolist() == [1, 10, 100, 1000, 0]


def test_golden_phases(backend: Backend) -> None:
    x = np.array([5.0, 7]).reshape(1, 1, 1, 2)
    weight = np.arange(1.0, 9).reshape(1, 1, 1, 1, 2, 4)
    phases = np.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1, 1, 1)
    y = run(backend, dyn.local_filter2d, x, weight, phases, upsample=2)
    assert y[0, 0].tolist() == [
        [1 * 1 * 5, 2 * 2 * 5, 3 * 1 * 7, 4 * 2 * 7],
        [5 * 3 * 5, 6 * 4 * 5, 7 * 3 * 7, 8 * 4 * 7],
    ]
    grads = run(backend, dyn.local_filter2d_backward, np.ones((1, 1, 2, 4)), x, weight, phases, upsample=2)
    assert grads.x.ravel().tolist() == [1 * 1 + 2 * 2 + 5 * 3 + 6 * 4, 3 * 1 + 4 * 2 + 7 * 3 + 8 * 4]
    assert grads.channel_weight.ravel().tolist() == [
        1 * 5 + 3 * 7,
        2 * 5 + 4 * 7,
        5 * 5 + 7 * 7,
        6 * 5 + 8 * 7,
    ]


def test_golden_groups(backend: Backend) -> None:
    """Channels 0 and 1 share one filter, 2 and 3 the other; its gradient is the sum over both channels."""
    x = np.array([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)
    weight = np.array([10.0, 100]).reshape(1, 2, 1, 1, 1, 1)
    assert run(backend, dyn.involution, x, weight).ravel().tolist() == [10, 20, 300, 400]
    grads = run(backend, dyn.involution_backward, np.array([1.0, 2, 3, 4]).reshape(x.shape), x, weight)
    assert grads.weight.ravel().tolist() == [1 * 1 + 2 * 2, 3 * 3 + 4 * 4]
    assert grads.x.ravel().tolist() == [10, 20, 300, 400]


# ---- identities


@each_combine
def test_neutral_pixel_filters_leave_a_depthwise_filter(
    backend: Backend, rng: np.random.Generator, combine: str
) -> None:
    x, channel = rng.standard_normal((2, 6, 9, 11)), rng.standard_normal((2, 6, 3, 5))
    weight = np.full((2, 3, 3, 5, 9, 11), {"mul": 1.0, "add": 0.0}[combine])
    close(run(backend, dyn.local_filter2d, x, weight, channel, combine=combine), depthwise(x, channel))
    close(run(backend, dyn.ddf, x, channel, weight, combine=combine), depthwise(x, channel))


@each_combine
def test_neutral_channel_filters_leave_an_involution(
    backend: Backend, rng: np.random.Generator, combine: str
) -> None:
    x, weight = rng.standard_normal((2, 6, 9, 11)), rng.standard_normal((2, 3, 3, 5, 9, 11))
    channel = np.full((2, 6, 3, 5), {"mul": 1.0, "add": 0.0}[combine])
    expected = run(backend, dyn.involution, x, weight)
    close(run(backend, dyn.ddf, x, channel, weight, combine=combine), expected)
    close(run(backend, dyn.local_filter2d, x, weight), expected)


@each_combine
def test_equal_filters_everywhere_are_a_static_convolution(
    backend: Backend, rng: np.random.Generator, combine: str
) -> None:
    x, static = rng.standard_normal((2, 4, 13, 10)), rng.standard_normal((2, 2, 5, 3))
    channel = rng.standard_normal((2, 4, 5, 3))
    weight = np.broadcast_to(static[..., None, None], (2, 2, 5, 3, 13, 10))
    per_channel = static.repeat(2, axis=1)
    together = per_channel * channel if combine == "mul" else per_channel + channel
    close(run(backend, dyn.involution, x, weight), depthwise(x, per_channel))
    close(run(backend, dyn.ddf, x, channel, weight, combine=combine), depthwise(x, together))


def test_added_filters_are_the_sum_of_both(backend: Backend, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((1, 4, 8, 9)), rng.standard_normal((1, 2, 3, 3, 8, 9))
    channel = rng.standard_normal((1, 4, 3, 3))
    expected = run(backend, dyn.involution, x, weight) + depthwise(x, channel)
    close(run(backend, dyn.ddf, x, channel, weight, combine="add"), expected)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 1), (3, 7)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("dilation", [1, (2, 9)], ids=str)
def test_a_centre_delta_is_the_identity(
    backend: Backend, rng: np.random.Generator, kernel: tuple[int, int], stride: Any, dilation: Any
) -> None:
    x = rng.standard_normal((2, 3, 10, 7))
    sy, sx = np.broadcast_to(stride, 2)
    expected = x[:, :, ::sy, ::sx]
    weight = np.zeros((2, 1, *kernel, *expected.shape[2:]))
    weight[:, :, kernel[0] // 2, kernel[1] // 2] = 1
    y = run(backend, dyn.involution, x, weight, stride=stride, dilation=dilation)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("scale", [1, 2, 3, 5])
def test_a_centre_delta_upsamples_by_nearest_neighbours(
    backend: Backend, rng: np.random.Generator, scale: int
) -> None:
    x = rng.standard_normal((2, 3, 4, 5))
    expected = x.repeat(scale, axis=2).repeat(scale, axis=3)
    weight = np.zeros((2, 1, 3, 5, *expected.shape[2:]))
    weight[:, :, 1, 2] = 1
    np.testing.assert_array_equal(run(backend, dyn.local_filter2d, x, weight, upsample=scale), expected)
    masks = weight.reshape(2, 15, *expected.shape[2:])
    np.testing.assert_array_equal(
        run(backend, dyn.carafe, x, masks, kernel_size=(3, 5), scale=scale), expected
    )
    phases = np.ones((2, scale, scale, 3, 3, 5))
    np.testing.assert_array_equal(run(backend, dyn.ddf_upsample, x, phases, weight), expected)


def test_carafe_masks_are_ordered_by_group_then_row_then_column(
    backend: Backend, rng: np.random.Generator
) -> None:
    """A mask of ones in channel (g*kh + a)*kw + b moves the channels of group g by tap (a, b), no others."""
    x, (kh, kw), groups = rng.standard_normal((1, 4, 6, 5)), (3, 5), 2
    ringed = np.pad(x, ((0, 0), (0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2)))
    for g, a, b in np.ndindex(groups, kh, kw):
        masks = np.zeros((1, groups * kh * kw, 12, 10))
        masks[:, (g * kh + a) * kw + b] = 1
        y = run(backend, dyn.carafe, x, masks, kernel_size=(kh, kw), groups=groups)
        moved = ringed[:, :, a : a + 6, b : b + 5].repeat(2, axis=2).repeat(2, axis=3)
        expected = np.zeros_like(y)
        expected[:, 2 * g : 2 * g + 2] = moved[:, 2 * g : 2 * g + 2]
        np.testing.assert_array_equal(y, expected)


def test_phases_filter_one_image_each(backend: Backend, rng: np.random.Generator) -> None:
    """Sub-pixel (i, j) of an upsampled output is an ordinary filter of x with the filters of that phase."""
    x, u = rng.standard_normal((2, 4, 5, 6)), 3
    spatial = rng.standard_normal((2, 2, 3, 3, 5 * u, 6 * u))
    channel = rng.standard_normal((2, u, u, 4, 3, 3))
    y = run(backend, dyn.ddf_upsample, x, channel, spatial, dilation=2)
    for i, j in np.ndindex(u, u):
        close(
            y[:, :, i::u, j::u],
            run(backend, dyn.ddf, x, channel[:, i, j], spatial[..., i::u, j::u], dilation=2),
        )


@each_combine
def test_faces_are_local_filter2d(backend: Backend, rng: np.random.Generator, combine: str) -> None:
    x, grad = rng.standard_normal((2, 6, 7, 8)), rng.standard_normal((2, 6, 4, 8))
    weight, channel = rng.standard_normal((2, 2, 3, 5, 4, 8)), rng.standard_normal((2, 6, 3, 5))
    params: dict[str, Any] = {"stride": (2, 1), "dilation": (1, 2)}
    base = run(backend, dyn.local_filter2d_backward, grad, x, weight, channel, combine=combine, **params)
    face = run(backend, dyn.ddf_backward, grad, x, channel, weight, combine=combine, **params)
    for mine, right in zip((face.x, face.spatial_filter, face.channel_filter), base, strict=True):
        np.testing.assert_array_equal(mine, right)
    base = run(backend, dyn.local_filter2d_backward, grad, x, weight, **params)
    face = run(backend, dyn.involution_backward, grad, x, weight, **params)
    np.testing.assert_array_equal(face.x, base.x)
    np.testing.assert_array_equal(face.weight, base.weight)


@each_combine
def test_upsampling_faces_are_local_filter2d(
    backend: Backend, rng: np.random.Generator, combine: str
) -> None:
    x, grad = rng.standard_normal((2, 6, 4, 5)), rng.standard_normal((2, 6, 8, 10))
    weight, channel = rng.standard_normal((2, 3, 3, 5, 8, 10)), rng.standard_normal((2, 2, 2, 6, 3, 5))
    arrays = x, weight, channel
    base = run(backend, dyn.local_filter2d_backward, grad, *arrays, combine=combine, upsample=2)
    face = run(backend, dyn.ddf_upsample_backward, grad, x, channel, weight, combine=combine)
    for mine, right in zip((face.x, face.spatial_filters, face.channel_filters), base, strict=True):
        np.testing.assert_array_equal(mine, right)
    masks = weight.reshape(2, -1, 8, 10)
    base = run(backend, dyn.local_filter2d_backward, grad, x, weight, upsample=2)
    face = run(backend, dyn.carafe_backward, grad, x, masks, kernel_size=(3, 5), groups=3)
    np.testing.assert_array_equal(face.x, base.x)
    np.testing.assert_array_equal(face.masks, base.weight.reshape(masks.shape))


def test_channel_weights_may_have_one_phase(backend: Backend, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((2, 1, 3, 3, 5, 6))
    channel = rng.standard_normal((2, 4, 3, 3))
    phases = channel.reshape(2, 1, 1, 4, 3, 3)
    with_phases, without = (run(backend, dyn.local_filter2d, x, weight, each) for each in (phases, channel))
    np.testing.assert_array_equal(with_phases, without)
    grad = run(backend, dyn.local_filter2d_backward, x, x, weight, phases).channel_weight
    assert grad.shape == phases.shape


def test_images_do_not_mix(backend: Backend, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((5, 4, 6, 7)), rng.standard_normal((5, 2, 3, 3, 6, 7))
    order = [3, 0, 4, 1, 2]
    np.testing.assert_array_equal(
        run(backend, dyn.involution, x, weight)[order], run(backend, dyn.involution, x[order], weight[order])
    )


# ---- far steps, and refusals


@pytest.mark.parametrize("far", [10_001, 10**6, 2**31 - 1, 2**31 + 1, 2**33, 2**61 + 1, 2**200])
@pytest.mark.parametrize("parameter", ["dilation", "stride"])
def test_steps_far_beyond_the_image(
    backend: Backend, rng: np.random.Generator, parameter: str, far: int
) -> None:
    """All taps but the centre are outside (dilation), or there is one output (stride); nothing overflows."""
    x = rng.standard_normal((1, 2, 4, 5))
    expected = x if parameter == "dilation" else x[:, :, :1, :1]
    weight = rng.standard_normal((1, 1, 3, 3, *expected.shape[2:]))
    if parameter == "stride":
        weight[:, :, [0, 2]], weight[..., [0, 2], :, :] = 0, 0
    expected = expected * weight[:, :, 1, 1]
    np.testing.assert_array_equal(run(backend, dyn.involution, x, weight, **{parameter: far}), expected)
    grads = run(backend, dyn.involution_backward, expected, x, weight, **{parameter: far})
    by_weight = np.zeros_like(weight) if parameter == "dilation" else None
    if by_weight is not None:
        by_weight[:, 0, 1, 1] = (expected * x).sum(axis=1)
        close(grads.weight, by_weight)
    by_x = np.zeros_like(x)
    by_x[:, :, : expected.shape[2], : expected.shape[3]] = expected * weight[:, :, 1, 1]
    close(grads.x, by_x)


def test_shortened_steps_read_the_same_pixels(rng: np.random.Generator) -> None:
    """Windows placed at random near a small image, by the pixel that each tap of each output reads."""
    for _ in range(3000):
        size, kernel, outputs = (int(n) for n in rng.integers(1, 6, 3))
        steps = tuple(int(n) for n in (*rng.integers(1, 40, 2), rng.integers(0, 80)))
        shorter = shorten_steps(size, kernel, outputs, *steps)
        assert shorter[0] <= steps[0] and shorter[1] <= steps[1] and min(shorter[:2]) >= 1
        reads = []
        for stride, dilation, padding in (steps, shorter):
            at = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - padding
            reads.append(np.where((at >= 0) & (at < size), at, -1).tolist())
        assert reads[0] == reads[1], f"{size} {kernel} {outputs} {steps} became {shorter}"


def test_same_padding_needs_odd_kernels() -> None:
    x = np.ones((1, 1, 4, 5))
    for kernel in ((2, 3), (3, 4)):
        with pytest.raises(ValueError, match=r"^involution: padding=None .*odd.*give padding"):
            dyn.involution(x, np.ones((1, 1, *kernel, 4, 5)))


@pytest.mark.parametrize(
    ("shapes", "params", "message"),
    [
        ([(1, 4, 5), (1, 1, 3, 3, 4, 5)], {}, r"x must have shape \(N, C, H, W\), got \(1, 4, 5\)"),
        ([(1, 4, 5, 6), (1, 9, 5, 6)], {}, r"weight must have shape \(N, G, kh, kw, Ho, Wo\) = "),
        ([(1, 4, 5, 6), (2, 1, 3, 3, 5, 6)], {}, r"weight must have shape .* = \(1, .*got \(2, 1, 3"),
        ([(1, 4, 5, 6), (1, 3, 3, 3, 5, 6)], {}, r"weight has G = 3; .* divide C = 4"),
        ([(1, 4, 5, 6), (1, 0, 3, 3, 5, 6)], {}, r"weight has G = 0; .* positive"),
        ([(1, 4, 5, 6), (1, 1, 0, 3, 5, 6)], {}, r"weight must have kernel sizes of at least 1, got"),
        ([(1, 4, 5, 6), (1, 1, 3, 3, 5, 5)], {}, r"weight must .* 5, 6\), got \(1, 1, 3, 3, 5, 5\)"),
        ([(1, 4, 5, 6), (1, 1, 3, 3, 5, 6)], {"stride": 2}, r"weight must have shape .* 3, 3\), got"),
        ([(1, 4, 5, 6), (1, 1, 3, 3, 5, 6), (1, 3, 3, 3)], {}, r"channel_weight .* \(1, 4, 3, 3\), got"),
        ([(1, 4, 5, 6), (1, 1, 3, 3, 5, 6), (1, 4, 3, 5)], {}, r"channel_weight .* \(1, 4, 3, 3\), got"),
        ([(1, 4, 5, 6), (1, 1, 3, 3, 10, 12), (1, 4, 3, 3)], {"upsample": 2}, r"channel_weight .*N, u, u"),
        ([(1, 4, 5, 6), (1, 1, 3, 3, 10, 12)], {"upsample": 2, "stride": 2}, r"stride must be 1 when"),
        ([(1, 4, 5, 6), (1, 1, 3, 3, 10, 12)], {"upsample": 2, "padding": 1}, r"padding must be None"),
    ],
)  # fmt: skip
def test_messages(shapes: list, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^local_filter2d: {message}"):
        dyn.local_filter2d(*map(np.ones, shapes), **params)


# ---- large images


@pytest.mark.slow
@fast_backends
@pytest.mark.parametrize(("n", "c"), [(1, 2), (2, 1)])
def test_1024_squared_with_k_7(backend: Backend, rng: np.random.Generator, n: int, c: int) -> None:
    """Float32 against sums written out in float64 at random pixels, corners and where blocks may meet."""
    size, k = 1024, 7
    x = rng.standard_normal((n, c, size, size), np.float32)
    weight = rng.standard_normal((n, 1, k, k, size, size), np.float32)
    channel = rng.standard_normal((n, c, k, k), np.float32)
    grad = rng.standard_normal((n, c, size, size), np.float32)
    y = run(backend, dyn.local_filter2d, x, weight, channel)
    grads = run(backend, dyn.local_filter2d_backward, grad, x, weight, channel)
    edges = [0, 1, 3, 31, 32, 127, 128, 511, 512, 1020, 1023]
    pixels = [*rng.integers(size, size=(300, 2)).tolist(), *product(edges, edges)]
    ring, grad_ring = (np.pad(a.astype(float), ((0, 0), (0, 0), (3, 3), (3, 3))) for a in (x, grad))
    eps = np.finfo(np.float32).eps
    rows, cols = np.arange(k)[:, None], np.arange(k)
    for h, w in pixels:
        window, pixel_filter = ring[:, :, h : h + k, w : w + k], weight[..., h, w].astype(float)
        terms = pixel_filter * channel * window
        assert_sum(y[:, :, h, w], terms, (2, 3), eps)
        terms = grad[:, :, h, w, None, None].astype(float) * channel * window
        assert_sum(grads.weight[..., h, w], terms[:, None], 2, eps)
        # Output pixel (h + 3 - a, w + 3 - b) reads (h, w) by its tap (a, b).
        out_h, out_w = h + 3 - rows, w + 3 - cols
        inside = (out_h >= 0) & (out_h < size) & (out_w >= 0) & (out_w < size)
        readers = weight[:, :, rows, cols, out_h.clip(0, size - 1), out_w.clip(0, size - 1)] * inside
        terms = readers.astype(float) * channel * grad_ring[:, :, out_h + 3, out_w + 3]
        assert_sum(grads.x[:, :, h, w], terms, (2, 3), eps)
    for a, b in np.ndindex(k, k):
        terms = grad.astype(float) * weight[:, :, a, b] * ring[:, :, a : a + size, b : b + size]
        assert_sum(grads.channel_weight[:, :, a, b], terms, (2, 3), eps, units=4)


@pytest.mark.parametrize("width", [512, 509])
def test_outputs_larger_than_the_caches(rng: np.random.Generator, width: int) -> None:
    """On the CPU these are written past the caches, where four channels begin on whole cache lines."""
    x, grad = rng.standard_normal((2, 1, 5, 420, width))
    weight, channel = rng.standard_normal((1, 1, 3, 3, 420, width)), rng.standard_normal((1, 5, 3, 3))
    assert x.nbytes >= strips.STREAM_BYTES
    y, grads = dyn.local_filter2d(x, weight, channel), dyn.local_filter2d_backward(grad, x, weight, channel)
    with dyn.use_backend("reference"):
        close(y, dyn.local_filter2d(x, weight, channel))
        for actual, expected in zip(grads, dyn.local_filter2d_backward(grad, x, weight, channel)):
            close(actual, expected)


def assert_sum(
    actual: np.ndarray, terms: np.ndarray, axis: Any, eps: float, units: float | None = None
) -> None:
    """Require a rounded sum, by default within the bound that holds for any order of summation."""
    expected, magnitude = terms.sum(axis), np.abs(terms).sum(axis)
    units = terms.size / expected.size + 2 if units is None else units
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= units * eps * magnitude)


@pytest.mark.slow
@fast_backends
def test_long_sums_stay_accurate_in_float32(backend: Backend, rng: np.random.Generator) -> None:
    """A million terms of one sign: a running sum in float32 would be off by hundreds of last places."""
    x, grad = (rng.uniform(0.5, 1.5, (1, 1, 1024, 1024)).astype(np.float32) for _ in range(2))
    weight = rng.uniform(0.5, 1.5, (1, 1, 1, 1, 1024, 1024)).astype(np.float32)
    channel = np.ones((1, 1, 1, 1), np.float32)
    grads = run(backend, dyn.local_filter2d_backward, grad, x, weight, channel)
    expected = float((grad.astype(float) * weight[0, 0, 0, 0] * x).sum())
    assert abs(float(grads.channel_weight[0, 0, 0, 0]) - expected) <= 32 * np.finfo(np.float32).eps * expected


@each_combine
@pytest.mark.parametrize("params", [{}, {"stride": 2, "dilation": 2}, {"upsample": 2}])
def test_gradients_by_the_definition(rng: np.random.Generator, combine: str, params: dict[str, Any]) -> None:
    """The CPU takes them where something is not finite; here everything is, so that they can be compared."""
    from dynarray.cpu.local_filter.definition import definition_backward
    from dynarray.cpu.local_filter.items import FilterArrays, FilterWindow

    u, s = params.get("upsample", 1), params.get("stride", 1)
    x, grad = rng.standard_normal((2, 4, 6, 8)), rng.standard_normal((2, 4, 6 * u // s, 8 * u // s))
    weight = rng.standard_normal((2, 2, 3, 3, *grad.shape[2:]))
    channel_weight = rng.standard_normal((2, u, u, 4, 3, 3))
    arrays, params = (x, weight, channel_weight), {"combine": combine, **params}
    _, checked = dyn.OPERATORS["local_filter2d"].prepare(arrays, params)
    taken = {name: checked.params[name] for name in FilterWindow._fields if name != "add"}
    window = FilterWindow(**taken, add=True if combine == "add" else None)
    grads = definition_backward(grad, FilterArrays(*checked.arrays), (True, True, True), window)
    with dyn.use_backend("reference"):
        expected = dyn.local_filter2d_backward(grad, *arrays, **params)
    for actual, wanted in zip(grads, expected, strict=True):
        close(actual, wanted)
