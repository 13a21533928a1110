"""FlowNets: published sizes, where the dynamic sampling layer goes, their loss, images of any size."""

import numpy as np
import pytest

from autodiff import Tape, check_gradients, networks
from autodiff import functions as F
from autodiff.networks import flownet, multi_scale_error, summary

TINY = (4, 4, 6, 6), (4, 6)
SAMPLING = {"out_channels": 3, "samples": 3, "sample_stride": 1, "post_channels": 5}


@pytest.mark.parametrize(
    ("make", "count"),
    [(networks.FlowNetS, 38_676_514), (networks.FlowNetC, 39_175_298)],
)
def test_published_parameters(make, count):
    assert make(rng=0).num_parameters == count


def test_published_maps_of_flownet_c():
    """21 x 21 comparisons and 32 channels of the first image make 473, as the published network has."""
    network = networks.FlowNetC(rng=0)
    rows = {row.path: row for row in summary(network, (1, 6, 64, 128))}
    assert network.contraction.first.weight.shape == (256, 441 + 32, 3, 3)
    assert rows["contraction.first"].shape == (1, 256, 8, 16)
    assert rows["contraction.following.2"].shape == (1, 1024, 1, 2)
    assert [layer.weight.shape[1] for layer in network.refinement.flow] == [1024, 1026, 770, 386, 194]
    assert rows["refinement.flow.4"].shape == (1, 2, 16, 32)


def test_the_thin_network_has_three_eighths_of_the_channels():
    layers = networks.flownet_thin(rng=0).contraction.following
    assert [layer.weight.shape[0] for layer in layers] == [192, 192, 384]


@pytest.mark.parametrize("placement", flownet.PLACEMENTS)
def test_where_the_sampling_layer_goes(placement):
    """Beside the third convolution it is also seen on the way up; in its place by what follows alone."""
    network = networks.FlowNetS(*TINY, sampling=SAMPLING, placement=placement, rng=0)
    beside = placement == "beside"
    assert (network.conv3 is not None) == beside
    assert network.contraction.first.weight.shape[1] == (6 + 5 if beside else 5)
    # Second convolution 4, expanded 4, flow 2; at 1/8: 6 seen, 6 expanded, 2.
    seen = [layer.weight.shape[1] for layer in network.refinement.flow]
    assert seen == [6, 6 + 6 + 2 + (5 if beside else 0), 4 + 4 + 2]
    flows = network(np.zeros((1, 6, 32, 16), np.float32))
    assert [flow.shape for flow in flows] == [(1, 2, 2, 1), (1, 2, 4, 2), (1, 2, 8, 4)]


def test_the_paper_has_24_outputs_and_128_channels():
    layer = networks.FlowNetS(sampling={"samples": 9}, rng=0).sampling
    assert (layer.out_channels, layer.post.weight.shape[0]) == (24, 128)
    assert layer.params["samples"] == 9
    assert layer.params["sample_stride"] == (2, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: networks.FlowNetS(*TINY, rng=0, dtype=np.float64),
        lambda: networks.FlowNetS(*TINY, sampling=SAMPLING, rng=0, dtype=np.float64),
        lambda: networks.FlowNetC(*TINY, max_displacement=2, step=1, rng=0, dtype=np.float64),
    ],
    ids=["simple", "sampling", "correlation"],
)
def test_gradients_of_whole_networks(make, monkeypatch):
    """With respect to the images, without the kinks of activations, and a gradient for every parameter."""
    monkeypatch.setattr(flownet, "SLOPE", 1.0)
    network, rng = make(), np.random.default_rng(1)
    images, truth = rng.standard_normal((2, 6, 16, 32)), 1000 + rng.standard_normal((2, 2, 16, 32))

    def loss(x):
        return multi_scale_error(network(x), truth, weights=(0.3, 0.2, 0.1))

    check_gradients(loss, images)
    with Tape() as tape:
        value = loss(images)
    gradients = tape.gradient(value, network.parameters())
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert sum(bool(np.any(gradient)) for gradient in gradients) == len(gradients)


def test_loss_by_loops():
    """Each coarse pixel is compared with the mean of what is known under it, and weighs as its known part."""
    rng = np.random.default_rng(2)
    truth, valid = rng.standard_normal((2, 2, 4, 8)), rng.integers(0, 2, (2, 4, 8))
    valid[0, :2, :2] = 0  # a coarse pixel of which nothing is known
    holed = np.where(valid[:, None] == 0, np.nan, truth)
    flows = [rng.standard_normal((2, 2, 2, 4)), rng.standard_normal((2, 2, 4, 8))]
    weights, expected = (0.5, 0.25), 0.0
    for flow, weight in zip(flows, weights):
        step = 4 // flow.shape[2]
        for n, i, j in np.ndindex(2, *flow.shape[2:]):
            block = np.s_[i * step : (i + 1) * step, j * step : (j + 1) * step]
            known = valid[n][block] != 0
            if known.any():
                mean = truth[n][:, block[0], block[1]][:, known].mean(1)
                expected += weight * known.mean() * np.hypot(*(flow[n, :, i, j] - mean)) / 20 / 2
    found = multi_scale_error(flows, holed, valid, weights=weights)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_wrong_calls_of_the_loss():
    flows = [np.zeros((1, 2, 3, 3))]
    with pytest.raises(ValueError, match="weights must be one for each of 1 flows"):
        multi_scale_error(flows, np.zeros((1, 2, 6, 6)))
    with pytest.raises(ValueError, match="must divide"):
        multi_scale_error(flows, np.zeros((1, 2, 4, 6)), weights=(1,))


class Still(flownet.FlowNet):
    """A FlowNet to which everything moves by one pixel along x and two along y, of what it is given."""

    def __init__(self):
        self.in_channels, self.levels = 6, 3

    def forward(self, images):
        self.check(images)
        n, _, high, wide = images.shape
        return [np.broadcast_to(np.array([1.0, 2.0])[:, None, None], (n, 2, high // 4, wide // 4)).copy()]


@pytest.mark.parametrize("size", [(16, 24), (15, 17), (1, 40)])
def test_images_of_any_size(size):
    """The flow is in pixels of the images as they were."""
    flow = Still().predict(np.zeros((3, 6, *size)))
    assert flow.shape == (3, 2, *size)
    fitting = [8 * -(-length // 8) for length in size]
    np.testing.assert_allclose(flow[:, 0], size[1] / fitting[1], rtol=1e-12)
    np.testing.assert_allclose(flow[:, 1], 2 * size[0] / fitting[0], rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 6, 16, 20), (1, 5, 16, 16), (6, 16, 16)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"FlowNetS: images must have shape \(N, 6, H, W\)"):
        networks.FlowNetS(*TINY, rng=0)(np.zeros(shape, np.float32))


def test_wrong_networks():
    with pytest.raises(ValueError, match="placement must be one of"):
        networks.FlowNetS(*TINY, placement="above")
    with pytest.raises(ValueError, match="expanded must have 2 numbers"):
        networks.FlowNetS((4, 4, 4, 4), (4,))
    with pytest.raises(ValueError, match="in_channels must be those of two images"):
        networks.FlowNetC(in_channels=3)


def test_it_learns_which_way_a_texture_moved():
    """Shifts of up to two pixels, of noise that is smooth enough to be followed."""
    from autodiff.optim import Adam

    rng = np.random.default_rng(3)
    network = networks.FlowNetC((8, 8, 8, 8), (8, 8), in_channels=2, max_displacement=1, step=1, rng=0)
    optimizer, losses = Adam(network.parameters(), 3e-3), []
    for _ in range(40):
        noise = np.repeat(np.repeat(rng.standard_normal((4, 1, 8, 8)), 4, 2), 4, 3).astype(np.float32)
        shift = rng.choice([-8, 8], 4)
        images = np.concatenate([noise, np.stack([np.roll(x, s, -1) for x, s in zip(noise, shift)])], axis=1)
        truth = np.zeros((4, 2, 32, 32), np.float32)
        truth[:, 0] = shift[:, None, None]
        with Tape() as tape:
            loss = F.end_point_error(network(images)[-1], truth[..., ::4, ::4])
        losses.append(loss.item())
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
