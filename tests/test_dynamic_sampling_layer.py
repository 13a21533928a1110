"""The layer of dynamic sampling convolution: its definition pixel by pixel, its branches, what it reaches."""

import numpy as np
import pytest
from _layer_cases import substituted

import dynarray as dyn
from autodiff import Tape, Variable, check_gradients
from autodiff import functions as F
from autodiff.layers import DynamicSamplingConv
from autodiff.networks import summary

OPTIONS = {"rng": 0, "dtype": np.float64}


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def zeroed(layer, *branches):
    """The layer with the weights of some branches set to zero."""
    for branch in branches:
        branch.weight.data[...] = 0
        branch.bias.data[...] = 0
    return layer


@pytest.fixture(autouse=True)
def reference():
    with dyn.use_backend("reference"):
        yield


def linear(branch, pixels):
    """A 1 x 1 convolution of pixels (C, H, W) by matrix product."""
    weight, bias = branch.weight.data[:, :, 0, 0], branch.bias.data
    return np.einsum("oc,chw->ohw", weight, pixels) + bias[:, None, None]


def regions_by_definition(layer, x, samples, steps, residuals):
    """Every region z (S, S, O, Ho, Wo) of an image x (C, H, W), from the weights, by loops over pixels."""
    (step_y, step_x), (space_y, space_x) = steps
    features, strided = linear(layer.feature, x), x[:, ::step_y, ::step_x]
    outputs, (channels, height, width), (high, wide) = layer.out_channels, features.shape, strided.shape[1:]
    kernel = linear(layer.kernel, strided).reshape(outputs, channels + 9, high, wide)
    by_sample = linear(layer.sample_attention, strided).reshape(outputs, samples, samples, high, wide)
    by_position = linear(layer.position_attention, x).reshape(outputs, 3, 3, height, width)
    z = np.zeros((samples, samples, outputs, high, wide))
    for i, j, o, h, w in np.ndindex(z.shape):
        row = h * step_y + (i - (samples - 1) // 2) * space_y
        column = w * step_x + (j - (samples - 1) // 2) * space_x
        inside = 0 <= row < height and 0 <= column < width
        for a, b in np.ndindex(3, 3):
            y, x_ = row + a - 1, column + b - 1
            if not (0 <= y < height and 0 <= x_ < width):
                continue
            attention = residuals[1] + (by_position[o, a, b, row, column] if inside else 0)
            for c in range(channels):
                tap = kernel[o, channels + 3 * a + b, h, w]
                if (a, b) == (1, 1):
                    tap += kernel[o, c, h, w] + residuals[0] / channels
                z[i, j, o, h, w] += features[c, y, x_] * tap * attention
        z[i, j, o, h, w] *= by_sample[o, i, j, h, w] + residuals[1]
    return z


@pytest.mark.parametrize("residuals", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("fuse", ["sum", "mean", "max"])
def test_definition(fuse, residuals):
    layer = DynamicSamplingConv(
        3,
        2,
        features=4,
        samples=2,
        sample_stride=(2, 3),
        stride=(2, 1),
        kernel_residual=residuals[0],
        attention_residual=residuals[1],
        fuse=fuse,
        feature_kernel=1,
        branch_kernel=1,
        gain=1.0,
        **OPTIONS,
    )
    x = array(2, 3, 5, 4, seed=1)
    y = layer(x).data
    assert y.shape == (2, 2, 3, 4)
    fused = {"sum": np.sum, "mean": np.mean, "max": np.max}[fuse]
    for n in range(2):
        z = regions_by_definition(layer, x[n], 2, ((2, 1), (2, 3)), residuals)
        np.testing.assert_allclose(y[n], fused(z, axis=(0, 1)), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (DynamicSamplingConv(3, 2, features=4, samples=2, stride=2, gain=1.0, post_channels=3, **OPTIONS), 3),
        (DynamicSamplingConv(2, 3, (1, 3), sample_stride=2, fuse="max", branch_kernel=1, **OPTIONS), 2),
        (DynamicSamplingConv(2, 3, dilation=2, attention=False, fuse="mean", **OPTIONS), 2),
    ],
    ids=["two samples", "max", "without attention"],
)
def test_gradients_of_input_and_parameters(layer, channels):
    with substituted(layer) as put:

        def call(x, *values):
            put(values)
            return layer(x)

        parameters = [parameter.data for parameter in layer.parameters()]
        check_gradients(call, array(1, channels, 4, 3), *parameters, method="complex", rtol=1e-9)


def test_the_fast_kernels_train_it_as_the_reference_does():
    """Shapes that the layer hands over, reshaped and sliced, reach the kernels as they are meant."""
    layer, x = DynamicSamplingConv(3, 2, features=5, stride=2, post_channels=3, **OPTIONS), array(2, 3, 7, 6)
    found = []
    for backend in ("reference", "cpu"):
        with dyn.use_backend(backend), Tape() as tape:
            loss = F.sum(F.square(layer(x)))
        with dyn.use_backend(backend):
            found.append([loss.data, *tape.gradient(loss, layer.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12 * np.abs(a).max())


def test_seed_decides_the_weights():
    one, same, other = (DynamicSamplingConv(3, 4, post_channels=2, rng=seed) for seed in (1, 1, 2))
    assert {p.dtype for p in one.parameters()} == {np.dtype(np.float32)}
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters()):
        np.testing.assert_array_equal(a.data, b.data)
        assert (a.data != c.data).all()


def test_without_attention_and_samples_it_is_a_dynamic_filter_network():
    layer = DynamicSamplingConv(
        3, 2, (3, 5), samples=1, attention=False, kernel_residual=False, gain=1.0, **OPTIONS
    )
    x = array(2, 3, 6, 5)
    channel, spatial = layer.kernels(x)
    kernels = np.repeat(spatial.data[:, :, None], 3, axis=2)
    kernels[:, :, :, 1, 2] += channel.data
    expected = dyn.dynamic_conv2d(layer.feature(x).data, kernels)
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("fuse", "share"), [("sum", 25), ("mean", 1), ("max", 1)])
def test_residuals_alone_average_over_the_channels(fuse, share):
    """With generators of zeros, each of the S*S regions gives the mean of the features on it."""
    layer = DynamicSamplingConv(3, 4, features=6, samples=5, fuse=fuse, feature_kernel=1, **OPTIONS)
    zeroed(layer, layer.kernel, layer.sample_attention, layer.position_attention)
    x = np.broadcast_to(array(1, 3, 1, 1), (1, 3, 9, 9))
    mean = np.mean(linear(layer.feature, x[0]), axis=0)[4, 4]
    np.testing.assert_allclose(layer(x).data[0, :, 4, 4], share * mean, rtol=1e-12)


def test_without_residuals_generators_of_zeros_give_nothing():
    layer = DynamicSamplingConv(3, 4, kernel_residual=False, attention_residual=False, **OPTIONS)
    zeroed(layer, layer.kernel, layer.sample_attention, layer.position_attention)
    assert not layer(array(1, 3, 6, 6)).data.any()


@pytest.mark.parametrize(("samples", "sample_stride", "side"), [(1, 1, 3), (3, 2, 7), (4, 2, 9), (9, 2, 19)])
def test_receptive_field(samples, sample_stride, side):
    """An output depends on a square of (S-1)*sample_stride + k pixels, and on all of it."""
    layer = DynamicSamplingConv(
        2, 3, samples=samples, sample_stride=sample_stride, feature_kernel=1, branch_kernel=1, **OPTIONS
    )
    x = Variable(array(1, 2, 31, 31))
    with Tape() as tape:
        y = F.sum(layer(x)[:, :, 15, 15])
    seen = (tape.gradient(y, x) != 0).any(axis=(0, 1))
    assert (seen.sum(0) == side).sum() == (seen.sum(1) == side).sum() == side
    assert seen.sum() == side * side
    first = 15 - (samples - 1) // 2 * sample_stride - 1
    assert np.flatnonzero(seen.any(0))[0] == np.flatnonzero(seen.any(1))[0] == first


@pytest.mark.parametrize("attention", [True, False])
def test_parameters(attention):
    """A 5 x 5 convolution makes features; 3 x 3 ones O*(C + k*k) kernels, O*S*S and O*k*k attention."""
    layer = DynamicSamplingConv(
        32, 24, features=40, samples=7, attention=attention, feature_kernel=5, post_channels=64
    )
    generated = 24 * (40 + 9) + (24 * (49 + 9) if attention else 0)
    assert layer.num_parameters == 40 * (32 * 25 + 1) + generated * (32 * 9 + 1) + 64 * (24 + 1)


@pytest.mark.parametrize(
    ("attention", "fuse", "regions"), [(True, "sum", 25), (False, "max", 25), (False, "mean", 1)]
)
def test_multiply_adds(attention, fuse, regions):
    layer = DynamicSamplingConv(
        6, 4, samples=5, stride=2, attention=attention, fuse=fuse, post_channels=8, rng=0
    )
    (row,) = [row for row in summary(layer, (2, 6, 8, 12)) if row.kind == "DynamicSamplingConv"]
    assert row.multiply_adds == 2 * 4 * (4 * 6) * regions * (6 + 9)
    assert row.shape == (2, 8, 4, 6)


def test_generators_begin_small():
    """`gain` scales what generates kernels and attention, and nothing else."""
    small, large = (DynamicSamplingConv(3, 4, gain=gain, post_channels=2, **OPTIONS) for gain in (0.25, 1.0))
    for name, value in large.state_dict().items():
        scale = 1.0 if name.startswith(("feature", "post")) else 0.25
        np.testing.assert_array_equal(small.state_dict()[name], scale * value)
        assert value.any()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"fuse": "stack"}, "DynamicSamplingConv: fuse must be one of 'sum', 'mean', 'max', got 'stack'"),
        ({"kernel_size": 0}, "DynamicSamplingConv: kernel_size must be at least 1"),
        ({"feature_kernel": 2}, "Conv2d: padding must be given for an even kernel size"),
        ({"branch_kernel": 2}, "Conv2d: padding must be given for an even kernel size"),
    ],
)
def test_bad_arguments(params, message):
    with pytest.raises(ValueError, match=message):
        DynamicSamplingConv(3, 4, **params)


def test_even_kernels_are_refused_by_the_operator():
    with pytest.raises(ValueError, match="spatial_kernel must have odd kernel sizes"):
        DynamicSamplingConv(3, 4, 2)(np.zeros((1, 3, 4, 4), np.float32))
