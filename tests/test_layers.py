"""Layers: definitions, parameter counts, gradients of every parameter, state."""

import inspect

import numpy as np
import pytest
from _layer_cases import LAYERS, OPTIONS, array

import dynarray
from autodiff import Tape, Variable, checkpoint
from autodiff import functions as F
from autodiff.layers import (
    ASPP,
    CARAFE,
    CGDS,
    DDF,
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    DDFBottleneck,
    DDFUp,
    DeformConv,
    DisplacedConv,
    Dropout,
    FilterNorm,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Involution,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    LogSoftmax,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)

every_layer = pytest.mark.parametrize(("layer", "shapes", "output"), LAYERS.values(), ids=LAYERS.keys())


@every_layer
def test_shape(layer, shapes, output):
    inputs = [array(*shape, seed=i + 1) for i, shape in enumerate(shapes)]
    with dynarray.use_backend("reference"):
        assert layer(*inputs).shape == output


@every_layer
def test_dtype(layer, shapes, output):
    assert {p.dtype for p in layer.parameters()} <= {np.dtype(np.float64)}


def test_seed_decides_the_weights():
    for make in (
        lambda **o: Conv2d(3, 4, 3, **o),
        lambda **o: ConvTranspose2d(3, 4, 3, **o),
        lambda **o: Linear(3, 4, **o),
        lambda **o: DDF(8, **o),
        lambda **o: DDFUp(8, **o),
        lambda **o: CARAFE(8, **o),
        lambda **o: Involution(16, **o),
        lambda **o: DDFBottleneck(8, 8, 16, **o),
        lambda **o: DisplacedConv(3, 4, **o),
        lambda **o: FilterNorm(3, 4, **o),
        lambda **o: DeformConv(4, 6, **o),
        lambda **o: CGDS(3, 4, 5, **o),
        lambda **o: ASPP(3, 4, **o),
    ):
        one, same, other = make(rng=1), make(rng=np.random.default_rng(1)), make(rng=2)
        assert {p.dtype for p in one.parameters()} == {np.dtype(np.float32)}
        for a, b in zip(one.parameters(), same.parameters()):
            np.testing.assert_array_equal(a.data, b.data)
        assert any((a.data != b.data).any() for a, b in zip(one.parameters(), other.parameters()))


@pytest.mark.parametrize(("channels", "count"), [(64, 9_429), (128, 35_490), (256, 137_532), (512, 536_175)])
def test_published_ddf_parameters(channels, count):
    assert DDF(channels).num_parameters == count


def test_published_carafe_parameters():
    assert CARAFE(256, 2).num_parameters == 74_148


def test_involution_parameters():
    # 1x1 to C/4, batch normalisation, 1x1 with bias to G*k*k: the layer of the paper's ResNet50 at C = 64.
    assert Involution(64, 7).num_parameters == 64 * 16 + 2 * 16 + 16 * (4 * 49) + 4 * 49


@pytest.mark.parametrize(("nonlinearity", "gain"), [("relu", np.sqrt(2)), ("linear", 1)])
@pytest.mark.parametrize("kernel", [3, 5, (3, 1)])
def test_filter_norm_sets_mean_and_deviation(nonlinearity, gain, kernel):
    norm = FilterNorm(kernel, nonlinearity=nonlinearity)
    kh, kw = norm.kernel_size
    raw = 5 + 3 * array(2, 4 * kh * kw, 6, 5)
    filters = norm(raw)
    assert filters.shape == (2, 4, kh, kw, 6, 5)
    np.testing.assert_allclose(filters.mean((2, 3)), 0, atol=1e-12)
    before = raw.reshape(2, 4, kh * kw, 6, 5).std(2, ddof=1)
    alpha = gain / np.sqrt(kh * kw)
    np.testing.assert_allclose(filters.std((2, 3), ddof=1), alpha * before / (before + 1e-10), rtol=1e-12)
    assert norm.num_parameters == 0


def test_filter_norm_of_a_constant_filter():
    norm = FilterNorm(3)
    x = Variable(np.full((1, 9, 1, 2), 0.5))
    x.data[0, 0, 0, 1] = 1
    with Tape() as tape:
        y = norm(x)
    assert (y.data[..., 0] == 0).all()
    assert np.isfinite(tape.gradient(y, x, grad=array(*y.shape))).all()


def test_every_spatial_filter_of_ddf_is_normalised():
    seen = []
    layer = DDF(16, 5, heads=2, rng=0)
    norm = layer.spatial_norm
    layer.spatial_norm = lambda x: seen.append(norm(x)) or seen[-1]
    with dynarray.use_backend("reference"):
        layer(array(2, 16, 6, 6).astype(np.float32))
    filters = seen[0].data.astype(np.float64)
    np.testing.assert_allclose(filters.mean((2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(filters.std((2, 3), ddof=1), np.sqrt(2) / 5, rtol=1e-4)


def test_ddf_equals_its_formula():
    layer, x = DDF(4, stride=2, **OPTIONS), array(2, 4, 5, 6)

    def normed(f, alpha):
        return (f - f.mean(1, keepdims=True)) / (f.std(1, ddof=1, keepdims=True) + 1e-10) * alpha

    weight, bias = layer.spatial.weight.data[:, :, 0, 0], layer.spatial.bias.data
    maps = np.einsum("oc,nchw->nohw", weight, x[:, :, ::2, ::2]) + bias[:, None, None]
    spatial = normed(maps, np.sqrt(2) / 3)
    first, second = layer.channel[0], layer.channel[2]
    hidden = np.maximum(x.mean((2, 3)) @ first.weight.data[:, :, 0, 0].T + first.bias.data, 0)
    channel = hidden @ second.weight.data[:, :, 0, 0].T + second.bias.data
    alpha = layer.channel_norm.alpha.data.reshape(1, 4, 9)
    channel = normed(channel.reshape(8, 9), 1).reshape(2, 4, 9) * alpha
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((2, 4, 3, 3))
    for tap in range(9):
        a, b = divmod(tap, 3)
        window = padded[:, :, a : a + 5 : 2, b : b + 6 : 2]
        expected += window * spatial[:, None, tap] * channel[:, :, tap, None, None]
    with dynarray.use_backend("reference"):
        np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)


def test_ddf_up_phases_are_separate_filters():
    """Phase (i, j) of the output is a DDF of the low-resolution input with the filters of branch i*u + j."""
    layer, x, guide = DDFUp(3, joint_channels=2, **OPTIONS), array(1, 3, 4, 5), array(1, 2, 4, 5, seed=1)
    with dynarray.use_backend("reference"):
        y = layer(x, guide).data
        maps = layer.spatial(guide).data
        pooled = layer.channel(x.mean((2, 3), keepdims=True))
        channel = layer.channel_norm(pooled).data.reshape(4, 1, 3, 3, 3)
        for branch in range(4):
            spatial = FilterNorm(3, nonlinearity="linear")(maps[:, 9 * branch : 9 * branch + 9])
            expected = dynarray.ddf(x, channel[branch], spatial)
            np.testing.assert_allclose(
                y[:, :, branch // 2 :: 2, branch % 2 :: 2], expected, rtol=1e-10, atol=1e-12
            )


def test_ddf_up_wants_a_guide_exactly_when_joint():
    x = np.zeros((1, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="a guide must be given exactly with joint_channels"):
        DDFUp(3)(x, x)
    with pytest.raises(ValueError, match="a guide must be given exactly with joint_channels"):
        DDFUp(3, joint_channels=3)(x)
    with pytest.raises(ValueError, match=r"height and width of x, \(4, 4\)"):
        DDFUp(3, joint_channels=3)(x, np.zeros((1, 3, 8, 8), np.float32))


def test_carafe_weights_sum_to_one():
    """A constant image stays constant wherever the window lies inside it."""
    layer = CARAFE(4, compressed=3, **OPTIONS)
    with dynarray.use_backend("reference"):
        y = layer(np.ones((1, 4, 8, 8))).data
    np.testing.assert_allclose(y[:, :, 4:-4, 4:-4], 1, rtol=1e-12)


def test_batch_norm_statistics():
    layer, x = BatchNorm2d(3, momentum=0.25, dtype=np.float64), 2 + 3 * array(4, 3, 5, 6)
    y = layer(x).data
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var((0, 2, 3)), 1, rtol=1e-4)
    np.testing.assert_allclose(layer.running_mean, 0.25 * x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(layer.running_variance, 0.75 + 0.25 * x.var((0, 2, 3), ddof=1), rtol=1e-12)
    before = layer.state_dict()
    centre, variance = (layer.state_dict()[k][:, None, None] for k in ("running_mean", "running_variance"))
    np.testing.assert_allclose(layer.eval()(x).data, (x - centre) / np.sqrt(variance + 1e-5), rtol=1e-12)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer.train()(np.ones((1, 3, 1, 1)))


def test_group_norm_statistics():
    layer, x = GroupNorm(3, 6, dtype=np.float64), 2 + 3 * array(4, 6, 5, 7)
    blocks = layer(x).data.reshape(4, 3, 2 * 5 * 7)
    np.testing.assert_allclose(blocks.mean(2), 0, atol=1e-12)
    np.testing.assert_allclose(blocks.var(2), 1, rtol=1e-4)
    one = layer(x[:1]).data  # an image does not depend on the others
    np.testing.assert_array_equal(one, layer(x).data[:1])


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_keeps_the_scale(groups):
    """The weights start so that relu of white noise comes out with the mean square of white noise."""
    layer = ConvTranspose2d(64, 32, 4, stride=2, groups=groups, bias=False, rng=0)
    x = np.maximum(array(2, 64, 16, 16), 0).astype(np.float32)
    y = layer(x).data[:, :, 4:-4, 4:-4]
    assert y.shape == (2, 32, 26, 26)
    assert np.mean(y**2) == pytest.approx(1, rel=0.1)


def test_dropout():
    x = Variable(np.ones((20, 50)))
    layer, same = Dropout(0.25, rng=3), Dropout(0.25, rng=np.random.default_rng(3))
    with Tape() as tape:
        y = layer(x)
    assert set(np.unique(y.data)) == {0, 1 / 0.75}
    assert 0.2 < np.mean(y.data == 0) < 0.3
    np.testing.assert_array_equal(tape.gradient(y, x, grad=np.ones(y.shape)), y.data)
    np.testing.assert_array_equal(same(x).data, y.data)
    assert (layer(x).data != y.data).any()
    assert layer.eval()(x) is x
    assert layer.generators() == {"rng": layer.rng}


def test_a_checkpoint_changes_neither_gradients_nor_state():
    """Running averages move once and random numbers are drawn once, though the layers run twice."""
    results = []
    for wrap in (lambda f: f, checkpoint):
        network = Sequential(
            Conv2d(2, 3, 3, **OPTIONS), BatchNorm2d(3, dtype=np.float64), Dropout(0.5, rng=1)
        )
        with Tape() as tape:
            loss = F.mean(F.square(wrap(network)(array(4, 2, 5, 5))))
        grads = tape.gradient(loss, network.parameters())
        results.append((grads, network.state_dict(), network[2].rng.random(5)))
    (plain, state, drawn), (grads, state_too, drawn_too) = results
    assert all(g.any() for g in plain[:1])
    for a, b in zip(plain, grads, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, value in state.items():
        np.testing.assert_array_equal(value, state_too[name])
    np.testing.assert_array_equal(drawn, drawn_too)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (ReLU(), F.relu),
        (LeakyReLU(slope=0.3), lambda x: F.leaky_relu(x, 0.3)),
        (Sigmoid(), F.sigmoid),
        (Tanh(), F.tanh),
        (Softmax(axis=1), lambda x: F.softmax(x, 1)),
        (GELU(), F.gelu),
        (SiLU(), F.silu),
        (Softplus(), F.softplus),
        (LogSoftmax(1), lambda x: F.log_softmax(x, 1)),
        (LocalResponseNorm(2, k=2.0), lambda x: F.local_response_norm(x, 2, k=2.0)),
        (MaxPool2d(kernel_size=2), lambda x: F.max_pool2d(x, 2)),
        (MaxPool2d(3, 2, padding=1), lambda x: F.max_pool2d(x, 3, 2, 1)),
        (AvgPool2d(2, stride=1), lambda x: F.avg_pool2d(x, 2, 1)),
        (AdaptiveAvgPool2d((2, 3)), lambda x: F.adaptive_avg_pool2d(x, (2, 3))),
        (GlobalAvgPool(), F.global_avg_pool),
        (Flatten(), F.flatten),
        (Flatten(2), lambda x: x.reshape(2, 3, 16)),
    ],
    ids=lambda value: "" if "0x" in repr(value) else repr(value),  # the same in every process
)
def test_layers_without_parameters(layer, function):
    x = array(2, 3, 4, 4)
    np.testing.assert_array_equal(layer(x), function(x))
    assert layer.num_parameters == 0
    assert layer.state_dict() == {}


def test_arguments_of_a_layer_without_parameters_are_checked_when_it_is_made():
    with pytest.raises(TypeError, match="MaxPool2d: missing a required argument: 'kernel_size'"):
        MaxPool2d()
    with pytest.raises(TypeError, match="LeakyReLU: got an unexpected keyword argument 'alpha'; see"):
        LeakyReLU(alpha=0.1)
    with pytest.raises(TypeError, match="ReLU: too many positional arguments"):
        ReLU(True)


class Network(Module):
    def __init__(self, rng=0):
        self.first = Conv2d(2, 3, 3, rng=rng)
        self.blocks = [Sequential(BatchNorm2d(3), ReLU()), Conv2d(3, 3, 1, bias=False, rng=rng)]
        self.heads = {"a": Linear(3, 2, rng=rng)}
        self.shared = self.first
        self.scale = Variable(np.ones((), np.float32))


def test_names_of_parameters_and_state():
    network = Network()
    assert list(network.named_parameters()) == [
        "scale",
        "first.weight",
        "first.bias",
        "blocks.0.layers.0.weight",
        "blocks.0.layers.0.bias",
        "blocks.1.weight",
        "heads.a.weight",
        "heads.a.bias",
        "shared.weight",
        "shared.bias",
    ]
    assert len(network.parameters()) == 8
    assert network.num_parameters == 1 + (54 + 3) + 6 + 9 + 8
    extra = {"blocks.0.layers.0.running_mean", "blocks.0.layers.0.running_variance"}
    assert set(network.state_dict()) == set(network.named_parameters()) | extra


def test_train_and_eval_reach_every_part():
    network = Network()
    assert network.eval() is network
    assert not any(m.training for _, m in network.modules())
    network.train()
    assert all(m.training for _, m in network.modules())


def test_state_goes_from_one_network_to_another():
    one, other = Network(1), Network(2)
    state = one.state_dict()
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
        assert not np.shares_memory(value, state[name])


def test_state_mismatch_names_every_fault_and_changes_nothing():
    network = Network()
    before = network.state_dict()
    state = {k: v + 1 for k, v in before.items()}
    del state["scale"]
    state["extra"] = np.zeros(2)
    state["first.weight"] = np.zeros((3, 2, 5, 5), np.float32)
    state["first.bias"] = np.zeros(3)
    with pytest.raises(ValueError) as caught:
        network.load_state_dict(state)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: scale",
        "  unexpected: extra",
        "  first.weight: expected (3, 2, 3, 3) float32, got (3, 2, 5, 5) float32",
        "  first.bias: expected (3,) float32, got (3,) float64",
    ]
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(ValueError, match=r"scale: expected \(\) float32, got a float"):
        network.load_state_dict({**before, "scale": 1.0})


def test_parameters_in_lists_count_and_scalars_do_not():
    class Odd(Module):
        def __init__(self):
            self.weights = [Variable(np.ones(2)), Variable(np.ones(3))]
            self.named = {"a": Variable(np.ones(()))}
            self.size = np.float32(3)
            self.note = "text"

    module = Odd()
    assert list(module.state_dict()) == ["weights.0", "weights.1", "named.a"]
    assert len(module.parameters()) == 3
    state = {name: value + 1 for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    np.testing.assert_array_equal(module.weights[1].data, [2, 2, 2])
    assert module.to_device("cpu") is module


def test_generators_are_found_by_their_paths():
    inner = Module()
    inner.rng = np.random.default_rng(0)
    network = Sequential(Linear(2, 2, rng=0), inner)
    assert network.generators() == {"layers.1.rng": inner.rng}
    assert "layers.1.rng" not in network.state_dict()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Conv2d(3, 4, 2), ValueError, "padding must be given for an even kernel size"),
        (lambda: Conv2d(3, 4, 3, groups=2), ValueError, "groups 2 must divide 3 and 4"),
        (lambda: ConvTranspose2d(3, 4, 2, groups=2), ValueError, "groups 2 must divide 3 and 4"),
        (lambda: GroupNorm(2, 5), ValueError, "groups 2 must divide channels 5"),
        (lambda: Dropout(1.0), ValueError, "rate must be at least 0 and less than 1, got 1.0"),
        (lambda: FilterNorm(1), ValueError, "one tap"),
        (lambda: FilterNorm(3, nonlinearity="gelu"), ValueError, "must be one of 'relu', 'linear'"),
        (lambda: Involution(20), ValueError, "group_channels 16 must divide channels 20"),
        (lambda: Module()(1), NotImplementedError, "Module does not define forward"),
        (lambda: Linear(2, 2).to_device("tpu"), ValueError, "'cpu' or 'cuda'"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_layers_without_parameters_show_the_arguments_of_their_function():
    class Own(MaxPool2d):
        def __init__(self, size):
            super().__init__(size)

    assert list(inspect.signature(MaxPool2d).parameters) == ["kernel_size", "stride", "padding"]
    assert list(inspect.signature(ReLU).parameters) == []
    assert list(inspect.signature(Own).parameters) == ["size"]
