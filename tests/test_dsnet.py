"""DSNet and what its authors compare it with: definitions by hand, mirrored passes, levels."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from autodiff import Tape, networks
from autodiff import functions as F
from autodiff.layers import BatchNorm2d, Conv2d, DeformConv
from autodiff.networks.dsnet_variants import SAMPLINGS


def made(sampling: str, seed: int = 0) -> networks.DSNet:
    """In float64, evaluated, with nothing at zero: neither offsets nor biases nor running averages."""
    rng = np.random.default_rng(seed)
    backbone = networks.SmallBackbone((4, 6, 8), rng=rng, dtype=np.float64)
    network = networks.dsnet_variant(
        sampling, backbone, 5, low_stage=0, width=6, dilations=(1, 2), rng=rng, dtype=np.float64
    )
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape)
    for _, layer in network.modules():
        if isinstance(layer, DeformConv):
            layer.points.weight.data *= 3  # as far as a pixel or two
        if isinstance(layer, BatchNorm2d):
            layer.running_mean[...] = 0.1 * rng.standard_normal(layer.running_mean.shape)
    return network.eval()


def mirror(network: networks.DSNet) -> None:
    """Left and right exchanged in kernels; offsets are those of the mirrored taps, x with another sign."""
    for _, layer in network.modules():
        if isinstance(layer, Conv2d):
            layer.weight.data = layer.weight.data[..., ::-1].copy()
    for _, layer in network.modules():
        if not isinstance(layer, DeformConv):
            continue
        high, wide = layer.kernel_size
        taps = high * wide
        for parameter in layer.points.parameters():
            numbers = parameter.data.copy()
            offsets = numbers[: 2 * taps].reshape(high, wide, 2, *numbers.shape[1:])[:, ::-1].copy()
            offsets[:, :, 1] *= -1
            weights = numbers[2 * taps :].reshape(-1, wide, *numbers.shape[1:])[:, ::-1]
            parameter.data = np.concatenate(
                [part.reshape(-1, *numbers.shape[1:]) for part in (offsets, weights)]
            )


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_mirrored_pass_gives_the_mirrored_output(sampling, rng):
    """At sizes of 2**k * n + 1 steps of two pixels end at the last one, so that left and right are alike."""
    x = rng.standard_normal((2, 3, 33, 41))
    network = made(sampling)
    expected = network(x).data
    assert abs(network(x[..., ::-1].copy()).data[..., ::-1] - expected).max() > 1e-2
    mirror(network)
    found = network(x[..., ::-1].copy()).data[..., ::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * abs(expected).max())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_parameter_has_a_gradient(sampling, rng):
    network = made(sampling).train()
    x, labels = rng.standard_normal((2, 3, 16, 24)), rng.integers(0, 5, (2, 16, 24))
    with Tape() as tape:
        loss = F.cross_entropy(network(x), labels)
    grads = tape.gradient(loss, network.named_parameters())
    assert [name for name, g in grads.items() if not np.isfinite(g).all() or not g.any()] == []


def test_an_image_filter_is_one_kernel_for_the_image(rng):
    layer = networks.ImageFilter(3, 4, 3, rng=0, dtype=np.float64).eval()
    x, guide = rng.standard_normal((2, 3, 7, 9)), rng.standard_normal((2, 4, 12, 15))
    seen = layer.look(guide).data
    pooled = seen.reshape(2, 4, 3, 4, 3, 5).mean((3, 5))
    kernels = np.einsum("oc,ncij->noij", layer.generate.weight.data[:, :, 0, 0], pooled)
    kernels += layer.generate.bias.data[:, None, None]
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    expected = np.einsum("ncyxij,ncij->ncyx", windows, kernels)
    np.testing.assert_allclose(layer(x, guide).data, expected, rtol=1e-12, atol=1e-14)
    assert abs(kernels[0] - kernels[1]).max() > 1e-3


def test_non_local_attention_by_loops(rng):
    layer = networks.NonLocal(4, rng=0, dtype=np.float64)
    layer.expand.weight.data = rng.standard_normal(layer.expand.weight.shape)
    x = rng.standard_normal((2, 4, 3, 5))
    expected = x.copy()
    parts = [
        (each.weight.data[:, :, 0, 0], np.zeros(2) if each.bias is None else each.bias.data)
        for each in (layer.query, layer.key, layer.value)
    ]
    for n, p in np.ndindex(2, 15):
        columns = x[n].reshape(4, 15)
        query, key, value = (weight @ columns + bias[:, None] for weight, bias in parts)
        likeness = np.exp([query[:, p] @ key[:, q] for q in range(15)])
        seen = sum(likeness[q] * value[:, q] for q in range(15)) / likeness.sum()
        expected[(n, slice(None), *divmod(p, 5))] += layer.expand.weight.data[:, :, 0, 0] @ seen
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10)


def test_levels_can_be_chosen(rng):
    """Each pair of maps, the finer of which is sampled; of maps, or of ASPP."""
    x = rng.standard_normal((2, 3, 16, 24)).astype(np.float32)
    for low in range(3):
        for guide in (None, *range(low, 3)):
            backbone = networks.SmallBackbone((4, 6, 8), rng=0)
            network = networks.DSNet(
                backbone, 5, low_stage=low, guide_stage=guide, width=6, dilations=(1,), rng=1
            )
            assert network(x).shape == (2, 5, 16, 24)
            features = backbone.features(x)
            assert network.head.modify(features[low]).shape[1] == 6
            level = 2 if guide is None else guide
            assert network.guide(features).shape == (2, 6, *features[level].shape[2:])
    network = networks.DSNet(backbone, 5, low_stage=2, guide_stage=0, width=6, rng=1)
    with pytest.raises(ValueError, match="must not be finer"):
        network(x)


def test_an_unknown_sampling_is_named():
    with pytest.raises(ValueError, match=r"sampling must be one of CGDS, .*non-local guide, got 'DF'"):
        networks.dsnet_variant("DF", networks.SmallBackbone((4, 4), rng=0), 3)
