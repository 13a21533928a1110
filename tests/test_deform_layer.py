"""DeformConv, CGDS, ASPP and DSNet: definitions, identities, published sizes, learning."""

import numpy as np
import pytest

import dynarray
from autodiff import Tape, Variable, networks
from autodiff import functions as F
from autodiff.layers import ASPP, CGDS, Conv2d, DeformConv, Module
from autodiff.optim import Adam
from dynarray.reference.deform import forward as reference

OPTIONS = {"rng": 0, "dtype": np.float64}


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def scattered(layer, scale=0.3):
    """The layer with points away from the regular grid, and from integers."""
    points = layer.sample.points if isinstance(layer, CGDS) else layer.points
    for seed, parameter in enumerate(points.parameters()):
        parameter.data[...] = scale * array(*parameter.shape, seed=seed)
    return layer


# ---------------------------------------------------------------------------------------------------------
# DeformConv


@pytest.mark.parametrize(
    "grid",
    [{}, {"stride": 2}, {"padding": 0}, {"dilation": (2, 1)}, {"groups": 2}, {"offset_groups": 2}],
    ids=str,
)
def test_it_begins_as_a_convolution(grid):
    layer, x = DeformConv(4, 6, (3, 5), **grid, **OPTIONS), array(2, 4, 9, 8)
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    expected = F.conv2d(x, layer.weight.data, layer.bias.data, **options)
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)


def test_the_modulated_one_begins_as_half_a_convolution():
    layer, x = DeformConv(3, 4, modulated=True, bias=False, **OPTIONS), array(2, 3, 6, 5)
    expected = F.conv2d(x, layer.weight.data, padding=1)
    np.testing.assert_allclose(layer(x).data, expected / 2, rtol=1e-10, atol=1e-12)
    plain = DeformConv(3, 4, bias=False, **OPTIONS)
    np.testing.assert_array_equal(plain.weight.data, layer.weight.data)


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (-2, 1)])
def test_offsets_are_pixels_along_y_and_x(shift):
    """Offsets that are the same everywhere move the image that the convolution sees."""
    layer, x = DeformConv(2, 3, padding=0, **OPTIONS), array(1, 2, 9, 9)
    layer.points.bias.data[...] = np.tile(shift, 9)
    (dy, dx), moved = shift, np.zeros((1, 2, 13, 13))
    moved[:, :, 2:11, 2:11] = x
    window = moved[:, :, 2 + dy : 11 + dy, 2 + dx : 11 + dx]
    expected = F.conv2d(window, layer.weight.data, layer.bias.data)
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_it_equals_its_definition(modulated, guided):
    guide_channels = 3 if guided else None
    layer = scattered(
        DeformConv(4, 5, offset_groups=2, modulated=modulated, guide_channels=guide_channels, **OPTIONS)
    )
    x, guide = array(2, 4, 6, 7), array(2, 3, 6, 7, seed=1)
    maps = F.conv2d(guide if guided else x, layer.points.weight.data, layer.points.bias.data, padding=1)
    offset = maps[:, :36].reshape(2, 2, 3, 3, 2, 6, 7)
    mask = 1 / (1 + np.exp(-maps[:, 36:].reshape(2, 2, 3, 3, 6, 7))) if modulated else None
    grid = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "deterministic": True}
    grid["border"] = "constant"
    expected, _ = reference(x, offset, layer.weight.data, mask, layer.bias.data, **grid)
    found = layer(x, guide).data if guided else layer(x).data
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    given, weights = layer.predict(guide if guided else x)
    np.testing.assert_allclose(given.data, offset, rtol=1e-12)
    assert (weights is None) == (mask is None)


def test_a_tap_of_weight_zero_does_not_count():
    """The weights of the points are the last third of the numbers, one per tap, row by row."""
    layer, x = DeformConv(2, 2, modulated=True, **OPTIONS), array(1, 2, 5, 6)
    layer.points.bias.data[18:] = 1000
    layer.points.bias.data[18 + 5] = -1000
    kernel = layer.weight.data.copy()
    kernel[:, :, 1, 2] = 0
    expected = F.conv2d(x, kernel, layer.bias.data, padding=1)
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)


def test_the_points_begin_to_move_at_the_first_step():
    """All zero, they have a gradient all the same: nothing behind them is zero."""
    for modulated in (False, True):
        layer = DeformConv(3, 4, modulated=modulated, rng=0)
        with Tape() as tape:
            loss = F.mean(F.square(layer(array(2, 3, 8, 8).astype(np.float32)) - 1))
        grads = tape.gradient(loss, layer.points.parameters())
        assert all(abs(g.reshape(len(g), -1)).max(1).all() for g in grads)


def test_a_guide_says_which_way_to_look():
    """The target is the image, shifted by one pixel to the left or right, as the sign of the guide demands.

    An ordinary convolution of image and guide is linear in either and cannot do it; the points can.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 1, 12, 16)).astype(np.float32)
    # Neighbours alike: with white noise, nothing says in which direction the right pixel lies.
    x = F.conv2d(np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))), np.full((1, 1, 5, 5), 0.2, np.float32))
    guide = np.repeat(rng.choice((-1.0, 1.0), (4, 1, 3, 4)), 4, 2).repeat(4, 3).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)))
    target = np.where(guide > 0, padded[..., 2:], padded[..., :-2])
    inside = (slice(None), slice(None), slice(None), slice(1, -1))

    def trained(layer, call):
        optimizer = Adam(layer.parameters(), 0.03)
        for _ in range(150):
            with Tape() as tape:
                loss = F.mse(call(layer)[inside], target[inside])
            optimizer.step(tape.gradient(loss, optimizer.parameters))
        return layer, float(loss)

    guided = DeformConv(1, 1, 1, guide_channels=1, rng=1)
    guided.weight.data[...] = 1
    layer, loss = trained(guided, lambda layer: layer(x, guide))
    both = np.concatenate([x, guide], 1)
    _, plain = trained(Conv2d(2, 1, 3, rng=1), lambda layer: layer(both))
    assert loss < 0.02 * plain
    offset, _ = layer.predict(guide)
    horizontal = offset.data[:, 0, 0, 0, 1]
    np.testing.assert_allclose(horizontal, guide[:, 0], atol=0.05)
    np.testing.assert_allclose(offset.data[:, 0, 0, 0, 0], 0, atol=0.05)


# ---------------------------------------------------------------------------------------------------------
# CGDS


def test_cgds_is_modified_sampled_guide():
    layer, low, guide = scattered(CGDS(3, 5, 4, **OPTIONS)), array(2, 3, 8, 12), array(2, 5, 2, 3, seed=1)
    output = layer(low, guide).data
    assert output.shape == (2, layer.out_channels, 8, 12) == (2, 4 + 4 + 5, 8, 12)
    modified = F.conv2d(low, layer.modify.weight.data, layer.modify.bias.data, padding=1)
    large = F.resize(guide, (8, 12))
    points = F.conv2d(large, layer.sample.points.weight.data, layer.sample.points.bias.data, padding=1)
    assert points.shape[1] == 2 * 3 * 3
    sampled = dynarray.deform_conv2d(
        modified, points, layer.sample.weight.data, bias=layer.sample.bias.data, padding=1
    )
    np.testing.assert_allclose(output[:, :4], modified, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(output[:, 4:8], sampled, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(output[:, 8:], large)


def test_cgds_begins_on_the_regular_grid():
    layer, low, guide = CGDS(3, 5, 4, 5, **OPTIONS), array(1, 3, 8, 8), array(1, 5, 4, 4, seed=1)
    output = layer(low, guide).data
    plain = F.conv2d(output[:, :4], layer.sample.weight.data, layer.sample.bias.data, padding=2)
    np.testing.assert_allclose(output[:, 4:8], plain, rtol=1e-10, atol=1e-12)


def test_a_guide_of_the_same_size_is_taken_as_it_is():
    layer, low, guide = CGDS(3, 5, 4, **OPTIONS), array(1, 3, 6, 7), array(1, 5, 6, 7, seed=1)
    np.testing.assert_array_equal(layer(low, guide).data[:, 8:], guide)


# ---------------------------------------------------------------------------------------------------------
# ASPP


def test_parameters_of_aspp():
    """Those of DeepLab v3: 2048 channels to 256, five branches, their batch normalisations, no bias."""
    expected = 2048 * 256 * (1 + 3 * 9 + 1) + 5 * 256 * 256 + 6 * 2 * 256
    assert ASPP(2048, 256, (12, 24, 36), rng=0).num_parameters == expected == 15_535_104


@pytest.mark.parametrize("image_pooling", [False, True])
def test_aspp_equals_its_definition(image_pooling):
    layer = ASPP(3, 4, (1, (2, 3)), image_pooling=image_pooling, **OPTIONS).eval()
    x = array(2, 3, 7, 6)
    standard = np.sqrt(1 / (1 + 1e-5))  # batch normalisation that has not seen anything yet

    def seen(part, values, **options):
        return np.maximum(F.conv2d(values, part[0].weight.data, **options) * standard, 0)

    maps = [
        seen(layer.branches[0], x),
        seen(layer.branches[1], x, padding=1),
        seen(layer.branches[2], x, padding=(2, 3), dilation=(2, 3)),
    ]
    if image_pooling:
        mean = seen(layer.pooled, x.mean((2, 3), keepdims=True))
        maps.append(np.broadcast_to(mean, (2, 4, 7, 6)))
    expected = seen(layer.project, np.concatenate(maps, 1))
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# DSNet


def small(**options):
    rng = np.random.default_rng(0)
    backbone = networks.SmallBackbone((4, 6, 8), rng=rng, dtype=options.get("dtype", np.float32))
    return networks.DSNet(backbone, 5, width=6, dilations=(1, 2), rng=rng, **options)


def test_the_dilated_resnet_is_the_resnet_between_whose_features_are_more():
    depths = (1, 1, 1, 3)
    dilated = networks.DilatedResNet(depths, rng=0)
    plain = networks.ResNet(depths, rng=0)
    state = {name: v for name, v in plain.state_dict().items() if not name.startswith("head")}
    dilated.load_state_dict(state)
    x = array(1, 3, 64, 96).astype(np.float32)
    ours, theirs = dilated.eval()(x), plain.eval().features(x)
    assert [f.shape for f in ours] == [(1, 256, 16, 24), (1, 512, 8, 12), (1, 1024, 4, 6), (1, 2048, 4, 6)]
    for own, other in zip(ours[:3], theirs):
        np.testing.assert_array_equal(own.data, other.data)
    expected = theirs[3].data
    np.testing.assert_allclose(ours[3].data[:, :, ::2, ::2], expected, atol=1e-4 * abs(expected).max())


def test_sizes_of_dsnet_over_resnet50():
    network = networks.dsnet50(21, rng=0)
    backbone = 25_557_032 - (2048 * 1000 + 1000)
    context = 2048 * 256 * 29 + 5 * 256 * 256 + 6 * 512
    cgds = (512 * 256 * 9 + 256) + (256 * 256 * 9 + 256) + (256 * 18 * 9 + 18)
    rest = 3 * 256 * 256 * 9 + 512 + 256 * 21 + 21
    assert network.num_parameters == backbone + context + cgds + rest
    table = networks.summary(network, (1, 3, 64, 96))
    rows = {row.path: row for row in table}
    assert rows["head.modify"].shape == (1, 256, 8, 12)
    assert rows["context.project.layers.0"].shape == (1, 256, 4, 6)
    assert rows["classify"].shape == (1, 21, 8, 12)
    assert rows["head.sample"].multiply_adds == 8 * 12 * 9 * (256 * 256 + 4 * 256)
    assert table.parameters == network.num_parameters


def test_dsnet101_has_the_deeper_backbone():
    assert networks.dsnet101(21, rng=0).num_parameters - networks.dsnet50(21, rng=0).num_parameters == (
        44_549_160 - 25_557_032
    )


def test_every_parameter_of_dsnet_has_a_gradient():
    network = small(dtype=np.float64)
    scattered(network.head)
    labels = np.random.default_rng(1).integers(0, 5, (3, 24, 16))
    with Tape() as tape:
        logits = network(array(3, 3, 24, 16))
        loss = F.cross_entropy(logits, labels)
    assert logits.shape == (3, 5, 24, 16)
    grads = tape.gradient(loss, network.named_parameters())
    assert [name for name, g in grads.items() if not np.isfinite(g).all() or not g.any()] == []


def test_dsnet_takes_another_head_and_another_stage():
    class Joined(Module):
        out_channels = 10

        def forward(self, low, guide):
            seen.append((low.shape, guide.shape))
            return F.concatenate([low, F.resize(guide, low.shape[2:])], axis=1)

    seen = []
    network = small(head=Joined(), low_stage=0)
    assert network(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 5, 32, 32)
    assert seen == [((2, 4, 16, 16), (2, 6, 4, 4))]


def test_dsnet_learns():
    """Left and right halves are classes 1 and 2 where the image is bright, else 0."""
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 32, 32), np.int64)
    labels[:, 8:24, 4:12], labels[:, 8:24, 20:28] = 1, 2
    x = 0.3 * rng.standard_normal((4, 3, 32, 32)) + (labels > 0)[:, None]
    network = small()
    optimizer = Adam(network.parameters(), 0.01)
    losses = []
    for _ in range(40):
        with Tape() as tape:
            loss = F.cross_entropy(network(x.astype(np.float32)), labels)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


# ---------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: DeformConv(3, 4, offset_groups=2), "offset_groups 2 must divide 3 channels"),
        (lambda x: DeformConv(3, 4, 2), "padding must be given for an even kernel size"),
        (lambda x: DeformConv(3, 4)(x, x), "a guide must be given exactly with guide_channels"),
        (lambda x: DeformConv(3, 4, guide_channels=3)(x), "a guide must be given exactly with"),
        (
            lambda x: DeformConv(3, 4, guide_channels=3)(x, x[:, :, 1:]),
            r"guide must have the height and width of x, \(6, 5\), got \(2, 3, 5, 5\)",
        ),
        (
            lambda x: CGDS(3, 3, 4)(x[:, :, 1:], x),
            r"CGDS: guide of \(6, 5\) pixels must not be finer than the \(5, 5\)",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(Variable(np.zeros((2, 3, 6, 5), np.float32)))
