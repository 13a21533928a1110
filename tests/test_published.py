"""Weights under the names of those who published them: every name is used, and wrong sets are named."""

import numpy as np
import pytest
from _torch_files import Ordered, Raw, legacy_bytes, storage, tensor, zip_bytes

import dynarray as dyn
from autodiff import files, networks
from autodiff.layers import DDF, AtomConv, DDFBottleneck, DDFUp, DisplacedConv, Module

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def norm(name, channels):
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def bottleneck(name, before, width, dynamic, shortcut):
    """torchvision's ``Bottleneck``, or the one of ddfnet, where ``conv2`` is a ``DDFPack``."""
    yield f"{name}.conv1.weight", (width, before, 1, 1)
    yield from norm(f"{name}.bn1", width)
    if dynamic:
        middle, filters = f"{name}.conv2", int(width * 0.2)
        yield from (
            (f"{middle}.spatial_branch.0.weight", (9, width, 1, 1)),
            (f"{middle}.spatial_branch.0.bias", (9,)),
        )
        branch = f"{middle}.channel_branch"
        yield from ((f"{branch}.1.weight", (filters, width, 1, 1)), (f"{branch}.1.bias", (filters,)))
        yield from ((f"{branch}.3.weight", (width * 9, filters, 1, 1)), (f"{branch}.3.bias", (width * 9,)))
        yield f"{branch}.4.std", (width * 9,)
    else:
        yield f"{name}.conv2.weight", (width, width, 3, 3)
    yield from norm(f"{name}.bn2", width)
    yield f"{name}.conv3.weight", (4 * width, width, 1, 1)
    yield from norm(f"{name}.bn3", 4 * width)
    if shortcut:
        yield f"{name}.downsample.0.weight", (4 * width, before, 1, 1)
        yield from norm(f"{name}.downsample.1", 4 * width)


def published(depths, dynamic=False, classes=1000):
    """Names and shapes of the state of a ResNet, as the public code of its authors makes them."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    before = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            yield from bottleneck(f"layer{stage + 1}.{block}", before, 64 << stage, dynamic, block == 0)
            before = 256 << stage
    yield "fc.weight", (classes, before)
    yield "fc.bias", (classes,)


def drawn(names, seed=0):
    """Random weights; variances are positive."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in names:
        if name.endswith("num_batches_tracked"):
            weights[name] = np.array(7)
            continue
        value = rng.standard_normal(shape) * (2 / max(np.prod(shape[1:]), 1)) ** 0.5
        weights[name] = (abs(value) + 0.5 if name.endswith(("var", "bn3.weight")) else value).astype(
            np.float32
        )
    return weights


def published_file(weights, wrap=lambda state: state):
    """A file of PyTorch's with these weights."""
    kinds = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}
    state, data = Ordered(), {}
    for number, (name, array) in enumerate(weights.items()):
        key, strides = str(number), tuple(step // array.itemsize for step in array.strides)
        source = storage(kinds[array.dtype.str[1:]], key, array.size)
        state.entries[name] = tensor(source, 0, array.shape, strides)
        data[key] = array.tobytes()
    return zip_bytes(wrap(state), data)


@pytest.mark.parametrize("dynamic", [False, True], ids=["resnet", "ddf_resnet"])
@pytest.mark.parametrize("depth", [50, 101, 152])
def test_the_names_of_whole_networks(depth, dynamic):
    network = getattr(networks, f"{'ddf_' if dynamic else ''}resnet{depth}")(rng=0)
    names = networks.published_names(network)
    expected = {
        name: shape for name, shape in published(DEPTHS[depth], dynamic) if not name.endswith("tracked")
    }
    assert {names[path]: value.shape for path, value in network.state_dict().items()} == expected
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_ddf_networks_combine_as_asked(combine):
    layers = [m for _, m in networks.ddf_resnet50(combine=combine, rng=0).modules() if isinstance(m, DDF)]
    assert len(layers) == 16 and {layer.combine for layer in layers} == {combine}


@pytest.mark.parametrize("dynamic", [False, True], ids=["resnet", "ddf_resnet"])
def test_every_weight_arrives(tmp_path, dynamic):
    block = {"block": DDFBottleneck} if dynamic else {}
    network = networks.ResNet((2, 1), classes=5, rng=0, **block)
    weights = drawn(published((2, 1), dynamic, 5))
    wrap = {"epoch": 3, "args": Raw(b"cargparse\nNamespace\n)\x81}b")}
    (tmp_path / "a.pth").write_bytes(published_file(weights, lambda state: {**wrap, "state_dict": state}))
    networks.load_published(network, tmp_path / "a.pth")
    names = networks.published_names(network)
    for path, value in network.state_dict().items():
        np.testing.assert_array_equal(value, weights[names[path]])
    other = networks.ResNet((2, 1), classes=5, rng=1, **block)
    parallel = {f"module.{name}": value for name, value in weights.items()}
    networks.load_published(other, {"model": parallel})
    for path, value in other.state_dict().items():
        np.testing.assert_array_equal(value, weights[names[path]])


def test_half_precision_safetensors_and_backbones(tmp_path):
    weights = {
        name: value.astype(np.float16)
        for name, value in drawn(published((1, 1, 1, 1)[:4])).items()
        if "num" not in name
    }
    files.save(tmp_path / "a.safetensors", weights)
    backbone = networks.DilatedResNet((1, 1, 1, 1), rng=0)
    with pytest.raises(
        files.FileError, match=r"a.safetensors: these are not .* DilatedResNet:\n  left over: fc.bias"
    ):
        networks.load_published(backbone, tmp_path / "a.safetensors")
    networks.load_published(backbone, tmp_path / "a.safetensors", without="fc.")
    np.testing.assert_array_equal(backbone.stem.weight.data, weights["conv1.weight"].astype(np.float32))


def test_wrong_sets_are_named_and_change_nothing(tmp_path):
    network = networks.ResNet((1, 1), classes=5, rng=0)
    before = network.state_dict()
    good = drawn(published((1, 1), False, 5))
    cases = {
        r"missing: layer2.0.bn1.bias$": {k: v for k, v in good.items() if k != "layer2.0.bn1.bias"},
        r"left over: layer9.0.conv1.weight$": {**good, "layer9.0.conv1.weight": np.zeros(3)},
        r"left over: bn9.num_batches_tracked$": {**good, "bn9.num_batches_tracked": np.zeros(())},
        r"fc.weight: expected \(5, 512\), got \(1000, 512\)$": {
            **good,
            "fc.weight": np.zeros((1000, 512), "f4"),
        },
        r"fc.bias: expected float32, got int64$": {**good, "fc.bias": np.zeros(5, int)},
        r"missing: layer1.0.conv2.weight\n": drawn(published((1, 1), True, 5)),
        r"and \d\d more$": {},
        r"weights must be arrays by name; 'a' is none": {"a": 3},
        r"weights must be arrays by name, got a list": [],
    }
    for message, weights in cases.items():
        with pytest.raises(ValueError, match=message):
            networks.load_published(network, weights)
    (tmp_path / "a.pth").write_bytes(legacy_bytes({"a": 1}))
    with pytest.raises(files.FileError, match=r"a.pth: weights must be arrays by name; 'a' is none"):
        networks.load_published(network, tmp_path / "a.pth")
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_ddf_computes_what_its_authors_do(rng):
    """The layer with published weights, against the public code's formula in plain NumPy."""
    layer = DDF(10, 3, rng=0, dtype=np.float64)
    shapes = {
        "spatial_branch.0.weight": (9, 10, 1, 1),
        "spatial_branch.0.bias": (9,),
        "channel_branch.1.weight": (2, 10, 1, 1),
        "channel_branch.1.bias": (2,),
        "channel_branch.3.weight": (90, 2, 1, 1),
        "channel_branch.3.bias": (90,),
        "channel_branch.4.std": (90,),
    }
    w = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    networks.load_published(layer, w)
    x = rng.standard_normal((10, 4, 5))
    spatial = (
        np.einsum("kc,chw->khw", w["spatial_branch.0.weight"][..., 0, 0], x)
        + w["spatial_branch.0.bias"][:, None, None]
    )
    spatial = (spatial - spatial.mean(0)) / (spatial.std(0, ddof=1) + 1e-10) * (2**0.5 / 3)
    hidden = np.maximum(
        w["channel_branch.1.weight"][..., 0, 0] @ x.mean((1, 2)) + w["channel_branch.1.bias"], 0
    )
    channel = (w["channel_branch.3.weight"][..., 0, 0] @ hidden + w["channel_branch.3.bias"]).reshape(10, 9)
    channel = (channel - channel.mean(1, keepdims=True)) / (channel.std(1, ddof=1, keepdims=True) + 1e-10)
    channel = channel * w["channel_branch.4.std"].reshape(10, 9)
    expected = np.einsum("cthw,thw,ct->chw", windows_of(x), spatial, channel)
    with dyn.use_backend("reference"):
        np.testing.assert_allclose(layer(x[None]).data[0], expected, rtol=1e-9, atol=1e-12)


def upsampler_shapes(c, heads, joint, hidden=2):
    """Of the arrays of a ``DDFUpPack`` that doubles the size."""
    shapes = {}
    for i in range(4):
        inner = "0"
        if joint is None:
            shapes |= {f"spatial_branch.{i}.0.weight": (c, 1, 3, 3), f"spatial_branch.{i}.0.bias": (c,)}
            inner = "1.0"
        shapes |= {
            f"spatial_branch.{i}.{inner}.weight": (heads * 9, joint or c, 1, 1),
            f"spatial_branch.{i}.{inner}.bias": (heads * 9,),
            f"channel_branch.{i}.1.weight": (hidden, c, 1, 1),
            f"channel_branch.{i}.1.bias": (hidden,),
            f"channel_branch.{i}.3.weight": (c * 9, hidden, 1, 1),
            f"channel_branch.{i}.3.bias": (c * 9,),
            f"channel_branch.{i}.4.std": (c * 9,),
        }
    return shapes


@pytest.mark.parametrize("joint", [None, 5])
def test_ddf_upsampling_takes_the_weights_of_its_authors(joint, rng):
    """``DDFUpPack`` of the public code in plain NumPy, with two heads; in a neck, with its prefix."""
    c, heads = 10, 2
    shapes = upsampler_shapes(c, heads, joint)
    w = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    class Neck(Module):
        def __init__(self):
            self.upsample_modules = [
                DDFUp(c, 3, 2, heads=heads, joint_channels=joint, rng=0, dtype=np.float64)
            ]

    neck = Neck()
    networks.load_published(neck, {f"upsample_modules.0.{name}": value for name, value in w.items()})
    (layer,) = neck.upsample_modules
    assert set(" ".join(networks.published_names(layer).values()).split()) == set(w)

    x, guide = rng.standard_normal((c, 4, 5)), rng.standard_normal((joint or c, 4, 5))
    windows = windows_of(x)
    expected = np.zeros((c, 8, 10))
    for i in range(4):
        seen, inner = guide, "0"
        if joint is None:
            depthwise = w[f"spatial_branch.{i}.0.weight"].reshape(c, 9)
            seen = (
                np.einsum("cthw,ct->chw", windows, depthwise) + w[f"spatial_branch.{i}.0.bias"][:, None, None]
            )
            inner = "1.0"
        spatial = np.einsum("kc,chw->khw", w[f"spatial_branch.{i}.{inner}.weight"][..., 0, 0], seen)
        spatial = (spatial + w[f"spatial_branch.{i}.{inner}.bias"][:, None, None]).reshape(heads, 9, 4, 5)
        spatial = spatial - spatial.mean(1, keepdims=True)
        spatial /= (spatial.std(1, ddof=1, keepdims=True) + 1e-10) * 3
        middle = (
            w[f"channel_branch.{i}.1.weight"][..., 0, 0] @ x.mean((1, 2)) + w[f"channel_branch.{i}.1.bias"]
        )
        channel = w[f"channel_branch.{i}.3.weight"][..., 0, 0] @ np.maximum(middle, 0)
        channel = (channel + w[f"channel_branch.{i}.3.bias"]).reshape(c, 9)
        channel = channel - channel.mean(1, keepdims=True)
        channel /= channel.std(1, ddof=1, keepdims=True) + 1e-10
        channel *= w[f"channel_branch.{i}.4.std"].reshape(c, 9)
        out = np.einsum("cthw,cthw,ct->chw", windows, np.repeat(spatial, c // heads, axis=0), channel)
        expected[:, i // 2 :: 2, i % 2 :: 2] = out
    with dyn.use_backend("reference"):
        found = layer(x[None]) if joint is None else layer(x[None], guide[None])
    np.testing.assert_allclose(found.data[0], expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"missing: channel_branch.2.4.std"):
        networks.load_published(layer, {k: v for k, v in w.items() if k != "channel_branch.2.4.std"})
    with pytest.raises(ValueError, match=r"left over: spatial_branch.4.0.bias"):
        networks.load_published(layer, {**w, "spatial_branch.4.0.bias": np.zeros(c)})


def windows_of(x):
    """The 3 x 3 pixels around each of x (C, H, W), zero outside: (C, 9, H, W)."""
    h, w = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    return np.stack([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=1)


def test_atom_convolution_takes_the_weights_of_its_authors(rng):
    layer = AtomConv(4, 3, 3, num_atoms=2, num_bases=5, rng=0)
    assert layer.choose.layers[0].weight.shape == (64, 4, 3, 3)
    shapes = {
        "bases": (5, 9),
        "coef": (3, 8, 1, 1),
        "bias": (3,),
        **{
            f"bases_net.{i}.weight": s
            for i, s in {0: (64, 4, 3, 3), 1: (64,), 3: (10, 64, 3, 3), 4: (10,)}.items()
        },
        **{f"bases_net.{i}.bias": (64 if i < 3 else 10,) for i in (0, 1, 3, 4)},
        **{
            f"bases_net.{i}.running_{what}": (64 if i < 3 else 10,)
            for i in (1, 4)
            for what in ("mean", "var")
        },
    }
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    networks.load_published(layer, {**weights, "bases_net.1.num_batches_tracked": np.array(3)})
    # Channel c's coefficient for atom m is number c*M + m there.
    assert layer.coefficients.data[2, 3, 1] == weights["coef"][2, 3 * 2 + 1, 0, 0]
    assert layer.bases[4, 1, 2] == weights["bases"][4, 5]
    with pytest.raises(ValueError, match=r"coef: expected \(3, 4, 2\), got \(3, 6, 1, 1\)"):
        networks.load_published(layer, {**weights, "coef": np.zeros((3, 6, 1, 1), np.float32)})


def test_displaced_units_take_the_weights_of_their_authors(rng):
    """Variables of the authors' layer: (1, inputs, units, outputs), the displacement along x is mu1."""
    layer = DisplacedConv(2, 3, units=2, rng=0)
    weights = {
        name: rng.standard_normal((1, 2, 4, 3)).astype(np.float32) for name in ("weights", "mu1", "mu2")
    }
    weights |= {"bias": np.ones(3, np.float32), "sigma": np.array([0.5], np.float32)}
    networks.load_published(layer, weights)
    assert layer.weight.data[2, 1, 3] == weights["weights"][0, 1, 3, 2]
    y, x = layer.displacement.data[2, 1, 3]
    assert (y, x) == (weights["mu2"][0, 1, 3, 2], weights["mu1"][0, 1, 3, 2])
    with pytest.raises(ValueError, match="missing: mu1\n  missing: mu2"):
        networks.load_published(layer, {k: v for k, v in weights.items() if "mu" not in k})
    with pytest.raises(ValueError, match=r"sigma: expected 0.5 as in this layer"):
        networks.load_published(layer, {**weights, "sigma": np.array([0.7], np.float32)})
    with pytest.raises(ValueError, match="mu1 and mu2: expected those of the units"):
        networks.load_published(layer, {**weights, "mu1": np.zeros((1, 2, 4, 9), np.float32)})


def torch_logits(torch, w, x, depths, eps=1e-5):
    """The forward pass of the public ResNet, from its state, in PyTorch's functions."""
    f = torch.nn.functional

    def conv(x, name, **options):
        return f.conv2d(x, w[f"{name}.weight"], **options)

    def bn(x, name):
        parts = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return f.batch_norm(x, *parts, eps=eps)

    x = f.max_pool2d(f.relu(bn(conv(x, "conv1", stride=2, padding=3), "bn1")), 3, 2, 1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = f.relu(bn(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            y = f.relu(bn(conv(y, f"{name}.conv2", stride=stride, padding=1), f"{name}.bn2"))
            y = bn(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = bn(conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
            x = f.relu(x + y)
    return f.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])


def test_logits_are_those_of_pytorch(tmp_path, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: bench)")
    weights = drawn(published(DEPTHS[50]))
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, tmp_path / "a.pth")
    network = networks.resnet50(rng=0).eval()
    networks.load_published(network, tmp_path / "a.pth")
    x = rng.standard_normal((2, 3, 64, 64)).astype(np.float32)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    expected = torch_logits(torch, state, torch.from_numpy(x), DEPTHS[50]).numpy()
    found = network(x).data
    assert abs(found - expected).max() < 1e-4 * abs(expected).max()
