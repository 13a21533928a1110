"""The CPU kernels of static convolutions: odd shapes, threads, what is not finite."""

import numpy as np
import pytest
from _contract import threads
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarray.cpu.engine.convolution import forms as convolution


def columns(x: np.ndarray, kernel: tuple, output: tuple, steps: convolution.ConvSteps) -> np.ndarray:
    """(N, groups, C/groups, kh, kw, Ho, Wo): what every tap reads, by the definition."""
    margins = [(0, 0), (0, 0), *((p + 99, p + 99) for p in steps.padding)]
    padded = np.pad(x, margins)[:, :, 99:, 99:]
    found = np.empty((*x.shape[:2], *kernel, *output), x.dtype)
    for a, b in np.ndindex(*kernel):
        y, z = a * steps.dilation[0], b * steps.dilation[1]
        rows = slice(y, y + output[0] * steps.stride[0], steps.stride[0])
        cols = slice(z, z + output[1] * steps.stride[1], steps.stride[1])
        found[:, :, a, b] = padded[:, :, rows, cols]
    return found.reshape(x.shape[0], steps.groups, x.shape[1] // steps.groups, *kernel, *output)


def drawn(data: st.DataObject, large: int) -> tuple:
    def size(last: int) -> int:
        return data.draw(st.integers(1, last))

    steps = convolution.ConvSteps(
        (size(3), size(3)), (size(4) - 1, size(4) - 1), (size(2), size(2)), groups := size(3)
    )
    kernel, image = (size(4), size(4)), (size(large), size(large))
    output = tuple(
        (image[i] + 2 * steps.padding[i] - steps.dilation[i] * (kernel[i] - 1) - 1) // steps.stride[i] + 1
        for i in (0, 1)
    )
    per, rows, n = size(20), size(20), size(2)
    output = tuple(max(extent, 0) for extent in output)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, groups * per, *image))
    weight = rng.standard_normal((groups * rows, per, *kernel))
    grad = rng.standard_normal((n, groups * rows, *output))
    return x, weight, grad, steps


@settings(max_examples=40)
@given(data=st.data())
def test_correlations_are_their_definition(data: st.DataObject) -> None:
    x, weight, grad, steps = drawn(data, 24)
    output = grad.shape[2:]
    n, o, (kh, kw) = len(x), len(weight), weight.shape[2:]
    per_group = weight.reshape(steps.groups, -1, *weight.shape[1:])
    read = columns(x, (kh, kw), output, steps)
    y = np.einsum("gocab,ngcabhw->ngohw", per_group, read).reshape(n, o, *output)
    np.testing.assert_allclose(convolution.conv_correlate(x, weight, output, steps), y, rtol=0, atol=1e-11)
    split = grad.reshape(n, steps.groups, o // steps.groups, *output)
    expected = np.einsum("ngohw,ngcabhw->gocab", split, read).reshape(weight.shape)
    actual = convolution.conv_correlate_weight(grad, x, weight.shape, steps)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11)
    gx = convolution.conv_correlate_input(grad, weight, x.shape, steps)
    assert gx.shape == x.shape
    # The adjoint: <y, grad> = <x, gx> for this x and for another one.
    for z in (x, np.cos(x)):
        reading = columns(z, (kh, kw), output, steps)
        y = np.einsum("gocab,ngcabhw->ngohw", per_group, reading).reshape(n, o, *output)
        np.testing.assert_allclose(np.vdot(z, gx), np.vdot(y, grad), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_any_number_of_threads(stride: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    steps = convolution.ConvSteps((stride, stride), (1, 1), (1, 1), 1)
    x, weight = (rng.standard_normal(s).astype(dtype) for s in ((3, 40, 37, 41), (50, 40, 3, 3)))
    output = (36 // stride + 1, 40 // stride + 1)
    grad = rng.standard_normal((3, 50, *output)).astype(dtype)
    found = set()
    for count in (1, 2, 7):
        with threads(count):
            results = (
                convolution.conv_correlate(x, weight, output, steps),
                convolution.conv_correlate_input(grad, weight, x.shape, steps),
                convolution.conv_correlate_weight(grad, x, weight.shape, steps),
            )
        found.add(b"".join(r.tobytes() for r in results))
    assert len(found) == 1


def test_what_is_not_finite_goes_only_where_it_is_read() -> None:
    steps = convolution.ConvSteps((1, 1), (1, 1), (1, 1), 1)
    x, weight, grad = np.ones((1, 17, 9, 33)), np.ones((9, 17, 3, 3)), np.ones((1, 9, 9, 33))
    x[0, 5, 0, 32] = np.nan
    y = convolution.conv_correlate(x, weight, (9, 33), steps)
    expected = np.zeros((9, 33), bool)
    expected[:2, 31:] = True
    assert np.array_equal(np.isnan(y), np.broadcast_to(expected, y.shape))
    gw = convolution.conv_correlate_weight(grad, x, weight.shape, steps)
    expected = np.zeros((17, 3, 3), bool)
    expected[5, :2, 1:] = True  # the corner pixel is read by these taps alone
    assert np.array_equal(np.isnan(gw), np.broadcast_to(expected, gw.shape))
    grad[0, 2, 8, 0] = np.inf
    gx = convolution.conv_correlate_input(grad, weight, x.shape, steps)
    expected = np.zeros((9, 33), bool)
    expected[7:, :2] = True
    assert np.array_equal(np.isinf(gx), np.broadcast_to(expected, gx.shape))
