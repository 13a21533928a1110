"""Identities, hard cases and golden numbers of `dynamic_conv2d` and `dynamic_sampling_conv2d`."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from _contract import Call, check, full_call
from conftest import Backend
from scipy.ndimage import correlate

import dynarray as dyn

SAMPLING = dyn.OPERATORS["dynamic_sampling_conv2d"]
CONV = dyn.OPERATORS["dynamic_conv2d"]


def run(backend: Backend, function: Callable, *arrays: Any, **params: Any) -> Any:
    """A public function on arrays of the backend, its result or results as NumPy arrays."""
    result = function(*map(backend.array, arrays), **params)
    return type(result)(*map(backend.numpy, result)) if isinstance(result, tuple) else backend.numpy(result)


def close(actual: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12 * np.max(np.abs(expected), initial=0))


def sampling_call(
    c: int, o: int, image: tuple[int, int], kernel: tuple[int, int], attention: str = "", **params: Any
) -> Call:
    """A call with the attention named, "s" for samples and "p" for positions; sizes are worked out here."""
    rng = np.random.default_rng([c, o, *image, *kernel])
    stride = np.broadcast_to(params.get("stride", 1), 2)
    size, s = tuple(int(-(-image[k] // stride[k])) for k in range(2)), params.get("samples", 3)
    arrays = (
        rng.standard_normal((1, c, *image)),
        rng.standard_normal((1, o, c, *size)),
        rng.standard_normal((1, o, *kernel, *size)),
        rng.standard_normal((1, o, s, s, *size)) if "s" in attention else None,
        rng.standard_normal((1, o, *kernel, *image)) if "p" in attention else None,
    )
    shape = (1, s, s, o, *size) if params.get("fuse") == "stack" else (1, o, *size)
    return Call(SAMPLING, arrays, params, rng.standard_normal(shape))


def composed(channel_kernel: np.ndarray, spatial_kernel: np.ndarray, residual: bool) -> np.ndarray:
    """The whole kernel (N, O, C, kh, kw, Ho, Wo), written out tap by tap."""
    n, o, c, *size = channel_kernel.shape
    kh, kw = spatial_kernel.shape[2:4]
    kernel = np.empty((n, o, c, kh, kw, *size))
    for a, b in np.ndindex(kh, kw):
        kernel[:, :, :, a, b] = spatial_kernel[:, :, None, a, b]
        if (a, b) == (kh // 2, kw // 2):
            kernel[:, :, :, a, b] += channel_kernel + (1 / c if residual else 0)
    return kernel


# ---- golden numbers, worked out by hand

ROW = np.array([1.0, 2, 3]).reshape(1, 1, 1, 3)
ROW_GRAD = np.array([1.0, 10, 100]).reshape(1, 1, 1, 3)
ROW_U = np.array([2.0, 3, 5]).reshape(1, 1, 1, 1, 3)
# Taps of pixel 0: 1 2 3, of pixel 1: 4 5 6, of pixel 2: 7 8 9.
ROW_V = np.arange(1.0, 10).reshape(3, 3).T.reshape(1, 1, 1, 3, 1, 3)
PLAIN: dict[str, Any] = {"kernel_residual": False, "attention_residual": False}


def test_golden_conv(backend: Backend) -> None:
    x = np.array([[1.0, 2, 3], [4, 5, 6]]).reshape(1, 2, 1, 3)
    weight = np.stack([ROW_V[0, 0], 10 * ROW_V[0, 0]])[None, None]  # of two channels, one output
    y = run(backend, dyn.dynamic_conv2d, x, weight)
    # Channel 0: 2*1 + 3*2, 4*1 + 5*2 + 6*3, 7*2 + 8*3
    # Channel 1: 10 * (2*4 + 3*5, 4*4 + 5*5 + 6*6, 7*5 + 8*6)
    assert y.ravel().tolist() == [8 + 230, 32 + 770, 38 + 830]
    grads = run(backend, dyn.dynamic_conv2d_backward, ROW_GRAD, x, weight)
    # 1*2 + 10*4, 1*3 + 10*5 + 100*7, 10*6 + 100*8, and ten times that
    assert grads.x.ravel().tolist() == [42, 753, 860, 420, 7530, 8600]
    assert grads.weight[0, 0, 0, 0, :, 0].T.tolist() == [[0, 1, 2], [10, 20, 30], [200, 300, 0]]
    assert grads.weight[0, 0, 1, 0, :, 0].T.tolist() == [[0, 4, 5], [40, 50, 60], [500, 600, 0]]


def test_golden_single_sample(backend: Backend) -> None:
    arrays = ROW, ROW_U, ROW_V
    y = run(backend, dyn.dynamic_sampling_conv2d, *arrays, samples=1, kernel_residual=False)
    # As in local_filter2d with centre taps 2 + 2, 5 + 3, 8 + 5: 4*1 + 3*2, 4*1 + 8*2 + 6*3, 7*2 + 13*3
    assert y.ravel().tolist() == [10, 38, 53]
    grads = run(
        backend, dyn.dynamic_sampling_conv2d_backward, ROW_GRAD, *arrays, samples=1, kernel_residual=False
    )
    assert grads.x.ravel().tolist() == [1 * 4 + 10 * 4, 1 * 3 + 10 * 8 + 100 * 7, 10 * 6 + 100 * 13]
    assert grads.channel_kernel.ravel().tolist() == [1 * 1, 10 * 2, 100 * 3]
    assert grads.spatial_kernel[0, 0, 0, :, 0].T.tolist() == [[0, 1, 2], [10, 20, 30], [200, 300, 0]]
    assert grads.sample_attention is None and grads.position_attention is None


def test_golden_samples_of_a_row(backend: Backend) -> None:
    """A 1 x 1 kernel of 2, 3, 5 on the samples at w-1, w, w+1; those of the other rows are outside."""
    v = np.zeros((1, 1, 1, 1, 1, 3))
    arrays = ROW, ROW_U, v
    stacked = run(backend, dyn.dynamic_sampling_conv2d, *arrays, fuse="stack", **PLAIN)
    assert stacked[0, 1, :, 0, 0].T.tolist() == [[0, 2, 4], [3, 6, 9], [10, 15, 0]]
    assert not stacked[0, [0, 2]].any()
    total = run(backend, dyn.dynamic_sampling_conv2d, *arrays, **PLAIN)
    assert total.ravel().tolist() == [6, 18, 25]
    largest = run(backend, dyn.dynamic_sampling_conv2d, *arrays, fuse="max", **PLAIN)
    assert largest.ravel().tolist() == [4, 9, 15]
    grads = run(backend, dyn.dynamic_sampling_conv2d_backward, ROW_GRAD, *arrays, fuse="max", **PLAIN)
    # The largest are at pixels 1, 2, 2
    assert grads.x.ravel().tolist() == [0, 1 * 2, 10 * 3 + 100 * 5]
    assert grads.channel_kernel.ravel().tolist() == [1 * 2, 10 * 3, 100 * 3]


def test_golden_attention(backend: Backend) -> None:
    """The attention of a sample belongs to the output, that of a position to the pixel it is centred on."""
    v = np.zeros((1, 1, 1, 1, 1, 3))
    by_sample = np.zeros((1, 1, 3, 3, 1, 3))
    by_sample[0, 0, 1, :, 0] = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]).T  # [j, w]
    by_position = np.array([1.0, 10, 100]).reshape(1, 1, 1, 1, 1, 3)
    arrays = ROW, ROW_U, v, by_sample, by_position
    y = run(backend, dyn.dynamic_sampling_conv2d, *arrays, **PLAIN)
    # Sums over pixels q of As * U * x[q] * Ap[q], where x * Ap is 1, 20, 300
    assert y.ravel().tolist() == [
        2 * (2 * 1 + 3 * 20),
        3 * (4 * 1 + 5 * 20 + 6 * 300),
        5 * (7 * 20 + 8 * 300),
    ]
    grads = run(backend, dyn.dynamic_sampling_conv2d_backward, ROW_GRAD, *arrays, **PLAIN)
    assert grads.sample_attention[0, 0, 1, :, 0].T.tolist() == [
        [0, 2, 40],
        [30, 600, 9000],
        [10000, 150000, 0],
    ]
    # Ap[q]: x[q] * sum over outputs of grad * As * U
    assert grads.position_attention.ravel().tolist() == [
        1 * (1 * 2 * 2 + 10 * 4 * 3),
        2 * (1 * 3 * 2 + 10 * 5 * 3 + 100 * 7 * 5),
        3 * (10 * 6 * 3 + 100 * 8 * 5),
    ]


def test_golden_residuals(backend: Backend) -> None:
    """With everything zero, each region gives the mean of the channels at its centre."""
    x = np.array([[1.0, 2, 3], [5, 6, 9]]).reshape(1, 2, 1, 3)
    zeros = np.zeros((1, 1, 2, 1, 3)), np.zeros((1, 1, 3, 3, 1, 3))
    attention = np.zeros((1, 1, 3, 3, 1, 3)), np.zeros((1, 1, 3, 3, 1, 3))
    y = run(backend, dyn.dynamic_sampling_conv2d, x, *zeros, *attention)
    assert y.ravel().tolist() == [3 + 4, 3 + 4 + 6, 4 + 6]
    without = run(backend, dyn.dynamic_sampling_conv2d, x, *zeros, *attention, attention_residual=False)
    assert not without.any()


# ---- identities


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3)], ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), ((2, 3), 2), (1, (9, 2))], ids=str)
def test_one_sample_is_the_composed_kernel(
    backend: Backend,
    rng: np.random.Generator,
    residual: bool,
    kernel: tuple[int, int],
    stride: Any,
    dilation: Any,
) -> None:
    sy, sx = np.broadcast_to(stride, 2)
    size = -(-9 // sy), -(-19 // sx)
    x, u = rng.standard_normal((2, 5, 9, 19)), rng.standard_normal((2, 6, 5, *size))
    v, grad = rng.standard_normal((2, 6, *kernel, *size)), rng.standard_normal((2, 6, *size))
    whole, steps = composed(u, v, residual), {"stride": stride, "dilation": dilation}
    close(
        run(backend, dyn.dynamic_sampling_conv2d, x, u, v, samples=1, kernel_residual=residual, **steps),
        run(backend, dyn.dynamic_conv2d, x, whole, **steps),
    )
    factored = run(
        backend,
        dyn.dynamic_sampling_conv2d_backward,
        grad,
        x,
        u,
        v,
        samples=1,
        kernel_residual=residual,
        **steps,
    )
    direct = run(backend, dyn.dynamic_conv2d_backward, grad, x, whole, **steps)
    close(factored.x, direct.x)
    close(factored.channel_kernel, direct.weight[:, :, :, kernel[0] // 2, kernel[1] // 2])
    close(factored.spatial_kernel, direct.weight.sum(axis=2))


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("sample_stride", [1, 2, (7, 3)], ids=str)
def test_zeros_give_box_sums_of_the_channel_mean(
    backend: Backend, rng: np.random.Generator, samples: int, sample_stride: Any
) -> None:
    x = rng.standard_normal((1, 5, 11, 23))
    zeros = np.zeros((1, 2, 5, 11, 23)), np.zeros((1, 2, 3, 3, 11, 23))
    sy, sx = np.broadcast_to(sample_stride, 2)
    box = np.zeros((2 * samples * sy + 1, 2 * samples * sx + 1))  # the pixel is in the middle
    first = (samples - 1) // 2
    for i, j in np.ndindex(samples, samples):
        box[samples * sy + (i - first) * sy, samples * sx + (j - first) * sx] = 1
    expected = correlate(x[0].mean(axis=0), box, mode="constant")
    params = {"samples": samples, "sample_stride": sample_stride}
    y = run(backend, dyn.dynamic_sampling_conv2d, x, *zeros, **params)
    close(y, np.broadcast_to(expected, y.shape))
    attention = np.zeros((1, 2, samples, samples, 11, 23)), np.zeros((1, 2, 3, 3, 11, 23))
    close(run(backend, dyn.dynamic_sampling_conv2d, x, *zeros, *attention, **params), y)


@pytest.mark.parametrize("attention", ["", "s", "p", "sp"])
def test_fusions_are_made_of_the_stack(backend: Backend, attention: str) -> None:
    call = sampling_call(5, 6, (13, 18), (3, 3), attention, samples=4, sample_stride=2, fuse="stack")
    stack = run(backend, dyn.dynamic_sampling_conv2d, *call.arrays, **call.params)
    for fuse, expected in (("sum", stack.sum(axis=(1, 2))), ("max", stack.max(axis=(1, 2)))):
        close(
            run(backend, dyn.dynamic_sampling_conv2d, *call.arrays, **{**call.params, "fuse": fuse}), expected
        )


@pytest.mark.parametrize("fuse", ["sum", "max", "stack"])
def test_attention_of_ones_is_none(backend: Backend, fuse: str) -> None:
    """The factors of attention change no number, only the way it is computed."""
    call = sampling_call(5, 6, (9, 14), (3, 5), samples=3, sample_stride=(2, 1), fuse=fuse)
    x, u, v, *_ = call.arrays
    ones = np.ones((1, 6, 3, 3, 9, 14)), np.ones((1, 6, 3, 5, 9, 14))
    params = {**call.params, "attention_residual": False}
    grad = call.grad_output
    close(
        run(backend, dyn.dynamic_sampling_conv2d, x, u, v, ones[0], **params),
        run(backend, dyn.dynamic_sampling_conv2d, x, u, v, **params),
    )
    left_out = run(backend, dyn.dynamic_sampling_conv2d_backward, grad, x, u, v, **params)
    given = run(backend, dyn.dynamic_sampling_conv2d_backward, grad, x, u, v, ones[0], **params)
    for mine, right in zip(given[:3], left_out[:3], strict=True):
        close(mine, right)
    zeros = np.zeros_like(ones[1])  # with the residual, so that it is 1 outside the image too
    by_position = run(
        backend, dyn.dynamic_sampling_conv2d_backward, grad, x, u, v, None, zeros, **call.params
    )
    for mine, right in zip(by_position[:3], left_out[:3], strict=True):
        close(mine, right)


def test_equal_kernels_everywhere_are_a_static_convolution(
    backend: Backend, rng: np.random.Generator
) -> None:
    x, static = rng.standard_normal((2, 3, 8, 11)), rng.standard_normal((4, 3, 3, 5))
    weight = np.broadcast_to(static[None, ..., None, None], (2, 4, 3, 3, 5, 8, 11))
    expected = np.zeros((2, 4, 8, 11))
    for n, o, c in np.ndindex(2, 4, 3):
        expected[n, o] += correlate(x[n, c], static[o, c], mode="constant")
    close(run(backend, dyn.dynamic_conv2d, x, weight), expected)


def test_one_channel_is_an_involution(backend: Backend, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 1, 8, 11)), rng.standard_normal((2, 1, 1, 3, 3, 8, 11))
    close(
        run(backend, dyn.dynamic_conv2d, x, weight),
        run(backend, dyn.involution, x, weight.reshape(2, 1, 3, 3, 8, 11)),
    )


def test_images_do_not_mix(backend: Backend) -> None:
    call = full_call(SAMPLING, seed=3, N=5, H=7, W=9)
    order = [3, 0, 4, 1, 2]
    shuffled = call.map(lambda array: array[order])
    np.testing.assert_array_equal(
        run(backend, dyn.dynamic_sampling_conv2d, *call.arrays, **call.params)[order],
        run(backend, dyn.dynamic_sampling_conv2d, *shuffled.arrays, **call.params),
    )


def test_the_first_of_equal_samples_is_the_maximum(backend: Backend) -> None:
    """On a constant image all samples inside are equal: the gradient goes to the first of them."""
    x, u, v = np.ones((1, 1, 5, 5)), np.ones((1, 1, 1, 5, 5)), np.zeros((1, 1, 1, 1, 5, 5))
    grad = np.zeros((1, 1, 5, 5))
    grad[0, 0, 2, 2] = 1
    grads = run(backend, dyn.dynamic_sampling_conv2d_backward, grad, x, u, v, fuse="max", **PLAIN)
    assert np.argwhere(grads.x).tolist() == [[0, 0, 1, 1]]


# ---- every combination, and hard cases


@pytest.mark.parametrize("fuse", ["sum", "max", "stack"])
@pytest.mark.parametrize("attention", ["", "s", "p", "sp"])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_every_combination(backend: Backend, fuse: str, attention: str, samples: int) -> None:
    for k, (kernel_residual, attention_residual) in enumerate(product((True, False), repeat=2)):
        params = {
            "samples": samples,
            "fuse": fuse,
            "kernel_residual": kernel_residual,
            "attention_residual": attention_residual,
            "stride": (1, 2, (2, 1), (3, 2))[k],
            "dilation": (2, 1, (1, 3), 2)[k],
            "sample_stride": (1, (2, 4), 3, 5)[k],
        }
        check(sampling_call(5, 3, (7, 9), (3, 3), attention, **params), backend)


HARD = {
    "many outputs": sampling_call(3, 37, (5, 19), (3, 3), "sp", samples=2),
    "many channels": sampling_call(37, 5, (5, 19), (3, 3), "sp", samples=2),
    "one output": sampling_call(7, 1, (6, 33), (3, 3), "sp", samples=3),
    "no channels": sampling_call(0, 2, (4, 5), (3, 3), "s", samples=3),
    "no outputs": sampling_call(2, 0, (4, 5), (3, 3), "sp", samples=3),
    "six samples": sampling_call(3, 4, (9, 17), (3, 3), "s", samples=6),
    "seven samples": sampling_call(3, 4, (9, 17), (3, 3), samples=7, sample_stride=2, fuse="max"),
    "nine samples": sampling_call(3, 4, (9, 17), (3, 3), "p", samples=9, sample_stride=2),
    "nine samples stacked": sampling_call(3, 4, (9, 17), (1, 3), samples=9, sample_stride=2, fuse="stack"),
    "samples beyond the image": sampling_call(2, 3, (4, 5), (3, 3), "sp", samples=5, sample_stride=3),
    "all samples but one beyond": sampling_call(2, 3, (4, 5), (3, 3), "sp", samples=3, sample_stride=50),
    "taps beyond the image": sampling_call(2, 3, (4, 5), (3, 3), "sp", samples=3, dilation=40),
    "samples and taps that meet": sampling_call(
        2, 3, (4, 5), (3, 3), "sp", samples=3, sample_stride=40, dilation=(40, 41)
    ),
    "k 15": sampling_call(2, 3, (9, 17), (15, 15), "s", samples=2),
    "wide rows": sampling_call(2, 3, (2, 301), (3, 3), "sp", samples=3, stride=(1, 4)),
    "stride beyond the image": sampling_call(2, 3, (4, 5), (3, 3), "sp", samples=3, stride=9),
    "maximum, strided": sampling_call(5, 6, (9, 35), (3, 5), "sp", samples=4, stride=(2, 3), fuse="max"),
    "box sums, strided": sampling_call(5, 6, (9, 35), (3, 5), samples=4, stride=(2, 3), dilation=2),
    "box sums, even": sampling_call(3, 4, (9, 17), (3, 3), samples=4, sample_stride=(1, 3)),
    "box sums, taps far away": sampling_call(2, 3, (4, 5), (3, 3), samples=3, dilation=40),
    "seven samples of many": sampling_call(19, 11, (23, 9), (3, 5), "sp", samples=7, sample_stride=2),
    "five samples, strided": sampling_call(
        5, 7, (21, 18), (5, 3), "sp", samples=5, sample_stride=(4, 1), stride=(3, 2)
    ),
}


@pytest.mark.parametrize("case", HARD)
def test_hard_cases(backend: Backend, case: str) -> None:
    check(HARD[case], backend)


def conv_call(c: int, o: int, image: tuple[int, int], kernel: tuple[int, int], **params: Any) -> Call:
    """A call of dynamic_conv2d; the size of its output is worked out here, not taken from it."""
    rng = np.random.default_rng([c, o, *image, *kernel])
    stride, dilation = (np.broadcast_to(params.get(name, 1), 2) for name in ("stride", "dilation"))
    same = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    pads = same if params.get("padding") is None else np.broadcast_to(params["padding"], 2)
    reach = [max(0, image[i] + 2 * pads[i] - dilation[i] * (kernel[i] - 1) - 1 + stride[i]) for i in range(2)]
    size = tuple(int(reach[i] // stride[i]) for i in range(2))
    arrays = rng.standard_normal((1, c, *image)), rng.standard_normal((1, o, c, *kernel, *size))
    return Call(CONV, arrays, params, rng.standard_normal((1, o, *size)))


HARD_CONV = {
    "k 15": conv_call(2, 2, (9, 19), (15, 15)),
    "even": conv_call(3, 2, (9, 8), (4, 2), padding=(1, 2)),
    "strided": conv_call(3, 2, (19, 17), (3, 5), stride=(3, 4)),
    "dilated beyond the image": conv_call(3, 2, (9, 8), (5, 3), dilation=(13, 500)),
    "stride beyond the image": conv_call(3, 2, (9, 8), (3, 3), stride=100),
    "padding beyond the image": conv_call(2, 2, (4, 5), (2, 3), padding=(9, 12), stride=(3, 1)),
    "all taps outside": conv_call(2, 2, (4, 5), (1, 1), padding=(9, 9), stride=(30, 30)),
    "no channels": conv_call(0, 2, (4, 5), (3, 3)),
    "no outputs": conv_call(2, 0, (4, 5), (3, 3)),
    "many of both": conv_call(19, 18, (3, 9), (3, 3)),
}


@pytest.mark.parametrize("case", HARD_CONV)
def test_hard_cases_of_whole_kernels(backend: Backend, case: str) -> None:
    check(HARD_CONV[case], backend)


@pytest.mark.parametrize("far", [10**6, 2**31 + 1, 2**61, 2**200])
@pytest.mark.parametrize("parameter", ["sample_stride", "dilation", "stride"])
def test_steps_far_beyond_the_image(
    backend: Backend, rng: np.random.Generator, parameter: str, far: int
) -> None:
    """What is far outside counts for nothing, or there is a single output; nothing overflows."""
    x = rng.standard_normal((1, 2, 4, 5))
    size = (1, 1) if parameter == "stride" else (4, 5)
    u, v = rng.standard_normal((1, 3, 2, *size)), rng.standard_normal((1, 3, 3, 3, *size))
    params: dict[str, Any] = {parameter: far, "samples": 1 if parameter == "stride" else 2}
    y = run(backend, dyn.dynamic_sampling_conv2d, x, u, v, **params)
    near = {
        "sample_stride": {"samples": 1},
        "dilation": {"samples": 2, "dilation": 40},
        "stride": {"samples": 1, "stride": (4, 5)},
    }
    close(y, run(backend, dyn.dynamic_sampling_conv2d, x, u, v, **near[parameter]))


@pytest.mark.parametrize("attention", ["s", "p", "sp"])
def test_a_margin_changes_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    """CUDA kernels that know the samples have a margin around the image; compared to those without."""
    if backend.name in ("reference", "cpu"):
        pytest.skip("margins are how the CUDA kernels work")
    from rawkernels import dynamic_sampling as kernels

    for samples, step, values in ((3, 1, ()), (5, 2, ()), (3, 2, (np.inf, -np.inf)), (5, 1, (np.nan,))):
        call = sampling_call(4, 5, (9, 18), (3, 3), attention, samples=samples, sample_stride=(2, step))
        for k, value in enumerate(values):
            for array in filter(lambda given: given is not None, call.arrays):
                array.reshape(-1)[[0, 31 * (k + 1)]] = value
        found = []
        for known in (kernels.KNOWN, ()):
            monkeypatch.setattr(kernels, "KNOWN", known)
            y = run(backend, dyn.dynamic_sampling_conv2d, *call.arrays, **call.params)
            grads = run(
                backend, dyn.dynamic_sampling_conv2d_backward, call.grad_output, *call.arrays, **call.params
            )
            found.append((y, *(grad for grad in grads if grad is not None)))
        monkeypatch.undo()
        for ours, without in zip(*found, strict=True):
            finite = np.isfinite(without)
            np.testing.assert_array_equal(ours[~finite], without[~finite])
            close(ours[finite], without[finite])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_kernel": (1, 3, 2, 4, 4)}, r"channel_kernel must have shape \(N, O, C, Ho, Wo\) = "),
        ({"spatial_kernel": (1, 2, 3, 3, 4, 5)}, r"spatial_kernel must .* \(1, 3, kh, kw, 4, 5\), got"),
        ({"spatial_kernel": (1, 3, 2, 3, 4, 5)}, r"spatial_kernel must have odd kernel sizes, got \(2, 3\)"),
        ({"spatial_kernel": (1, 3, 0, 3, 4, 5)}, r"spatial_kernel must have kernel sizes of at least 1"),
        ({"sample_attention": (1, 3, 2, 2, 4, 5)}, r"sample_attention .* \(1, 3, 3, 3, 4, 5\), got"),
        ({"position_attention": (1, 3, 3, 3, 2, 3)}, r"position_attention .* \(1, 3, 3, 3, 4, 5\), got"),
    ],
)  # fmt: skip
def test_messages(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {
        "x": (1, 2, 4, 5),
        "channel_kernel": (1, 3, 2, 4, 5),
        "spatial_kernel": (1, 3, 3, 3, 4, 5),
        **change,
    }
    arrays = {name: np.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=rf"^dynamic_sampling_conv2d: {message}"):
        dyn.dynamic_sampling_conv2d(**arrays)


def test_positions_too_far_away_are_refused() -> None:
    """Only where both steps are large can neither be shortened: taps of one sample may reach back."""
    x, u, v = np.ones((1, 1, 4, 5)), np.ones((1, 1, 1, 4, 5)), np.ones((1, 1, 3, 3, 4, 5))
    with pytest.raises(ValueError, match=r"^dynamic_sampling_conv2d: sample_stride and dilation must not"):
        dyn.dynamic_sampling_conv2d(x, u, v, sample_stride=2**40, dilation=2**40)
