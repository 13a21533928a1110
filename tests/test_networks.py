"""Whole networks: published sizes and costs, shapes, learning; the table of a network's layers."""

import numpy as np
import pytest
from conftest import backend_params

import dynarray
from autodiff import Tape, Variable, files, networks
from autodiff import functions as F
from autodiff.layers import DDF, BatchNorm2d, Conv2d, DDFBottleneck, DisplacedConv, Linear, Module, Sequential
from autodiff.optim import Adam
from autodiff.train import Trainer, minibatches


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (networks.resnet50, 25_557_032),
        (networks.ddf_resnet50, 16_843_748),
        (networks.resnet101, 44_549_160),
        (networks.ddf_resnet101, 28_146_912),
    ],
)
def test_published_network_parameters(make, count):
    assert make(rng=0).num_parameters == count


@pytest.mark.parametrize(
    ("size", "units"),
    [("small", 393_216), ("medium", 786_432), ("large", 1_523_712)],
)
def test_published_units_of_dau_alexnet(size, units):
    network = networks.dau_alexnet(size, hidden=8, rng=0)
    layers = network.convolutions[1:]
    assert sum(layer.num_units for layer in layers) == units
    biases = 256 + 384 + 384 + 256
    assert sum(layer.num_parameters for layer in layers) == 3 * units + biases
    # They start within the kernels that they replace.
    spans = [abs(layer.displacement.data).max() for layer in layers]
    assert all(span <= limit for span, limit in zip(spans, (2, 1, 1, 1)))


def test_published_parameters_of_alexnet():
    network = networks.alexnet(rng=0)
    assert network.num_parameters == 62_378_344
    assert sum(layer.weight.size for layer in network.convolutions[1:]) == 3_710_976


@pytest.mark.parametrize(
    ("units", "count"), [((1, 1), 27_936), ((2, 1), 55_872), ((2, 2), 111_744), ((3, 2), 167_616)]
)
def test_units_of_the_network_for_cifar10(units, count):
    """3 x 96, 96 x 96 and 96 x 192 pairs of channels; a unit is three numbers, a tap of a kernel is one."""
    network = networks.dau_cifar10(units, side=24, rng=0)
    layers = [layer for layer in network.layers if isinstance(layer, DisplacedConv)]
    assert sum(layer.num_units for layer in layers) == count
    assert [float(layer.sigma) ** 2 for layer in layers] == [pytest.approx(0.5**0.5)] * 3
    others = 2 * (96 + 96 + 192) + 192 * 3 * 3 * 10 + 10  # normalisation, and classes
    assert network.num_parameters == 3 * count + others
    kernels = networks.dau_cifar10(kernel_size=3, side=24, rng=0)
    assert kernels.num_parameters == 9 * 27_936 + others
    x = np.zeros((2, 3, 24, 24), np.float32)
    assert kernels(x).shape == (2, 10)


def test_alexnet_begins_as_glorot_has_it():
    """Variance 2/(fan_in + fan_out) of every weight, and biases of zero."""
    network = networks.dau_alexnet(hidden=300, classes=200, rng=0)
    fans = [(3 * 121, 96 * 121), (96 * 4, 256 * 4)]
    fans += [(2 * c, 2 * o) for c, o in ((256, 384), (384, 384), (384, 256))]
    fans += [(9216, 300), (300, 300), (300, 200)]
    linear = [layer for _, layer in network.head.modules() if isinstance(layer, Linear)]
    layers = [*network.convolutions, *linear]
    for layer, fan in zip(layers, fans, strict=True):
        weights = layer.weight.data.astype(np.float64)
        assert weights.var() == pytest.approx(2 / sum(fan), rel=0.05)
        assert abs(weights).max() <= np.sqrt(6 / sum(fan)) * (1 + 1e-6)
        assert not layer.bias.data.any()


@pytest.mark.parametrize("normalization", ["local_response", "batch"])
@pytest.mark.parametrize("make", [networks.alexnet, networks.dau_alexnet])
def test_small_alexnet(make, normalization):
    """Sizes of AlexNet's maps, and a gradient for every parameter."""
    options = {"channels": (4, 6, 5, 5, 6), "hidden": 7, "classes": 3, "in_channels": 1, "dtype": np.float64}
    network = make(rng=0, normalization=normalization, **options)
    x = np.random.default_rng(0).standard_normal((2, 1, 227, 227))
    with dynarray.use_backend("reference"):
        maps = network.eval().features(x)
        assert [m.shape[1:] for m in maps] == [
            (4, 55, 55),
            (6, 27, 27),
            (5, 13, 13),
            (5, 13, 13),
            (6, 13, 13),
        ]
        with Tape() as tape:
            loss = F.cross_entropy(network.train()(x), np.array([0, 2]))
        grads = tape.gradient(loss, network.named_parameters())
    assert [name for name, g in grads.items() if not np.isfinite(g).all() or not g.any()] == []


def test_bad_alexnets():
    with pytest.raises(ValueError, match="size must be one of small, medium, large, got 'tiny'"):
        networks.dau_alexnet("tiny")
    with pytest.raises(ValueError, match="normalization must be one of"):
        networks.alexnet(normalization="layer")
    with pytest.raises(ValueError, match="5 numbers of channels, got 4 and 2"):
        networks.alexnet(channels=(1, 2))


def test_summary_of_resnet50():
    network = networks.resnet50(rng=0)
    table = networks.summary(network, (1, 3, 224, 224))
    assert table.parameters == 25_557_032
    assert round(table.multiply_adds / 1e9, 3) == 4.089  # as published for this network
    assert table[0] == ("stem", "Conv2d", (1, 64, 112, 112), 9408, 118_013_952)
    assert table[-1] == ("head", "Linear", (1, 1000), 2_049_000, 2_048_000)
    assert str(table).splitlines()[-1].split() == ["total", "25,557,032", f"{table.multiply_adds:,}"]
    assert network.training
    assert not [m for _, m in network.modules() if "forward" in vars(m)]


def test_summary_counts_dynamic_filters_and_shared_layers_once():
    layer = DDF(10, 3, rng=0)
    with dynarray.use_backend("reference"):
        table = networks.summary(layer, (2, 10, 6, 5))
    rows = {row.path: row for row in table}
    assert rows[""].multiply_adds == 2 * 10 * 6 * 5 * 9
    assert rows["spatial"].multiply_adds == 2 * 9 * 6 * 5 * 10
    assert table.parameters == layer.num_parameters
    shared = Linear(4, 4, rng=0)
    table = networks.summary(Sequential(shared, shared), (1, 4))
    assert [row.parameters for row in table] == [20, 0]
    assert table.multiply_adds == 32


def test_small_ddf_network_learns():
    network = networks.ResNet((1, 1), DDFBottleneck, classes=2, in_channels=1, rng=0)
    rng = np.random.default_rng(0)
    labels = np.arange(8) % 2
    x = rng.standard_normal((8, 1, 16, 16)).astype(np.float32)
    x[labels == 1, :, ::2] += 2
    optimizer = Adam(network.parameters(), 3e-3)
    losses = []
    with dynarray.use_backend("reference"):
        for _ in range(8):
            with Tape() as tape:
                loss = F.cross_entropy(network(x), labels)
            optimizer.step(tape.gradient(loss, optimizer.parameters))
            losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("block", [networks.resnet.Bottleneck, DDFBottleneck])
def test_features_have_the_sizes_of_the_paper(block):
    network = networks.ResNet((1, 1, 1, 1), block, classes=7, in_channels=2, rng=0)
    x = np.random.default_rng(0).standard_normal((2, 2, 64, 96)).astype(np.float32)
    with dynarray.use_backend("reference"):
        features = network.eval().features(x)
        logits = network(x)
    assert [f.shape for f in features] == [
        (2, 256, 16, 24),
        (2, 512, 8, 12),
        (2, 1024, 4, 6),
        (2, 2048, 2, 3),
    ]
    assert logits.shape == (2, 7)
    assert logits.dtype == np.float32


def test_every_parameter_of_a_network_has_a_gradient():
    network = networks.ResNet((1, 1), DDFBottleneck, classes=3, rng=0, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16))
    with dynarray.use_backend("reference"):
        with Tape() as tape:
            loss = F.cross_entropy(network(x), np.array([0, 1, 2]))
        grads = tape.gradient(loss, network.named_parameters())
    assert len(grads) == len(network.parameters()) == 41
    assert [name for name, g in grads.items() if not np.isfinite(g).all() or not g.any()] == []


def test_a_network_goes_through_a_file_to_the_same_output(tmp_path):
    one = networks.ResNet((1, 1), classes=3, rng=0)
    other = networks.ResNet((1, 1), classes=3, rng=1)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    one(x)  # moves the running averages
    files.save(tmp_path / "a", one.state_dict())
    files.load_module(tmp_path / "a", other)
    np.testing.assert_array_equal(one.eval()(x).data, other.eval()(x).data)


def test_summary_of_a_network_with_two_inputs_and_of_one_that_fails():
    class Two(Module):
        def __init__(self):
            self.first, self.norm = Conv2d(1, 2, 3, rng=0), BatchNorm2d(2)

        def forward(self, x, y):
            if x.shape != y.shape:
                raise ValueError("two sizes")
            return self.norm(self.first(x) + y)

    network = Two()
    network.norm.eval()
    before = network.state_dict()
    table = networks.summary(network, (1, 1, 4, 4), (1, 1, 4, 4))
    assert [(row.path, row.kind, row.parameters) for row in table] == [
        ("first", "Conv2d", 20),
        ("norm", "BatchNorm2d", 4),
    ]
    with pytest.raises(ValueError, match="two sizes"):
        networks.summary(network, (1, 1, 4, 4), (1, 1, 5, 4))
    assert network.training
    assert not network.norm.training
    assert not [m for _, m in network.modules() if "forward" in vars(m)]
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)
def test_training_on_a_gpu_agrees_with_the_cpu_and_comes_back(backend, tmp_path):
    """Four steps there and here; the checkpoint written there is read here."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 3, 16, 16)), np.arange(8) % 3

    def trainer(device):
        network = networks.ResNet((1, 1), DDFBottleneck, classes=3, rng=0, dtype=np.float64).to_device(device)
        return Trainer(network, Adam(network.parameters()), lambda net, *b: F.cross_entropy(net(b[0]), b[1]))

    there, here = trainer("cuda"), trainer("cpu")
    there.fit(minibatches(4, backend.array(x), backend.array(labels)), 2, progress=False)
    with dynarray.use_backend("cpu"):
        here.fit(minibatches(4, x, labels), 2, progress=False)
    assert there.history[-1]["loss"] == pytest.approx(here.history[-1]["loss"], rel=1e-6)
    there.save(tmp_path / "a")
    read = trainer("cpu")
    read.load(tmp_path / "a")
    for name, value in there.network.to_device("cpu").state_dict().items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(read.network.state_dict()[name], value)


def test_the_auxiliary_classifier_of_dsnet_is_for_training_alone(rng):
    network = networks.DSNet(
        networks.SmallBackbone((4, 8, 8), rng=0), 5, width=4, dilations=(1,), auxiliary=True, rng=1
    ).eval()
    x = rng.standard_normal((2, 3, 16, 24)).astype(np.float32)
    main, auxiliary = (scores.data for scores in network.scores(x))
    np.testing.assert_array_equal(main, network(x).data)
    assert auxiliary.shape == (2, 5, 16, 24)
    # From the maps before the coarsest, at a quarter of the size, by a convolution of its own.
    features = network.backbone.features(x)
    expected = F.resize(network.auxiliary(features[-2]), (16, 24))
    np.testing.assert_array_equal(auxiliary, expected.data)
    without = networks.DSNet(networks.SmallBackbone((4, 8), rng=0), 5, width=4, dilations=(1,), rng=1)
    assert len(without.scores(x)) == 1


def test_probabilities_are_averaged_over_sizes_and_mirror_images(rng):
    """By loops, for a network that sees each pixel by itself and where it is."""
    x = rng.standard_normal((1, 2, 6, 8))

    def network(seen):
        assert not isinstance(seen, Variable)
        return seen * np.linspace(0, 1, seen.shape[3])

    expected = []
    for scale in (0.5, 1, 1.5):
        size = (round(6 * scale), round(8 * scale))
        seen = F.resize(x, size)
        for turned in (seen, seen[..., ::-1]):
            powers = np.exp(network(turned))
            found = powers / powers.sum(1, keepdims=True)
            found = found if turned is seen else found[..., ::-1]
            expected.append(F.resize(found, (6, 8)))
    found = networks.averaged_probabilities(network, Variable(x), scales=(0.5, 1, 1.5))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    once = networks.averaged_probabilities(network, x, scales=(1,), mirror=False)
    np.testing.assert_allclose(once, expected[2], rtol=1e-12)


TINY_ALEXNET = {"channels": (3, 4, 4, 4, 4), "dtype": np.float64}


@pytest.mark.parametrize("make", [networks.alexnet_fcn, networks.dau_alexnet_fcn])
def test_the_first_loss_of_alexnet_for_segmentation_is_that_of_a_guess(make, rng):
    network = make(21, hidden=5, rng=0, **TINY_ALEXNET)
    x, labels = rng.standard_normal((1, 3, 41, 50)), rng.integers(0, 21, (1, 41, 50))
    scores = network(x)
    assert scores.shape == (1, 21, 41, 50)
    assert float(F.cross_entropy(scores, labels)) == pytest.approx(np.log(21), rel=1e-12)


def test_alexnet_for_segmentation_has_an_eighth_of_the_resolution_and_enlarges_by_interpolation(rng):
    network = networks.alexnet_fcn(2, hidden=5, rng=0, **TINY_ALEXNET)
    network.classify.bias.data = np.array([1.0, 2.0])
    scores = network(rng.standard_normal((1, 3, 64, 80))).data
    # Of a constant, bilinear interpolation makes that constant, but for what it mixes with zeros outside.
    np.testing.assert_allclose(scores[0, :, 4:-4, 4:-4], np.broadcast_to([[[1]], [[2]]], (2, 56, 72)))
    rows = {row.path: row.shape for row in networks.summary(network, (1, 3, 64, 80))}
    assert [rows[f"convolutions.{k}"][2:] for k in range(5)] == [(16, 20), *[(8, 10)] * 4]
    assert rows["sixth"][2:] == rows["classify"][2:] == (8, 10)


def test_units_and_their_dilated_twin_see_the_same():
    """Units at whole displacements, a blur that leaves images alone: the kernels of the twin, dilated."""
    units = networks.dau_alexnet("large", layer={"sigma": 0.1}, hidden=1, classes=1, rng=0, **TINY_ALEXNET)
    kernels = networks.alexnet(hidden=1, classes=1, rng=1, **TINY_ALEXNET)
    kernels.convolutions[0] = units.convolutions[0]
    draw = np.random.default_rng(2)
    for unit, kernel in zip(units.convolutions[1:], kernels.convolutions[1:], strict=True):
        reach = kernel.weight.shape[2] // 2
        places = draw.integers(-reach, reach + 1, unit.displacement.shape)
        unit.displacement.data = places.astype(np.float64)
        weight = np.zeros(kernel.weight.shape)
        outputs, inputs, _ = np.indices(unit.weight.shape)
        taps = (outputs, inputs, places[..., 0] + reach, places[..., 1] + reach)
        np.add.at(weight, taps, unit.weight.data)
        kernel.weight.data, kernel.bias.data = weight, unit.bias.data
    pair = [networks.AlexNetFCN(each, 3, hidden=4, rng=3) for each in (units, kernels)]
    for network in pair:
        network.classify.weight.data = draw.permuted(np.ones_like(network.classify.weight.data)) + 0.5
    x = draw.standard_normal((1, 3, 64, 72))
    one, other = (network(x).data for network in pair)
    assert abs(one).max() > 1e-3
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
