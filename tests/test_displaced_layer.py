"""DisplacedConv: where units start, what they compute, how they are trained, bounded, rescaled and pruned."""

import numpy as np
import pytest
from conftest import backend_params
from scipy.ndimage import correlate1d, map_coordinates

import dynarray
from autodiff import Tape, files
from autodiff import functions as F
from autodiff.layers import BatchNorm2d, Conv2d, DisplacedConv, Sequential, parameter_groups, project
from autodiff.networks import summary
from autodiff.optim import SGD, Adam, AdamW

OPTIONS = {"rng": 0, "dtype": np.float64}


@pytest.fixture(autouse=True)
def _reference():
    """The layer is the same on every backend; the reference compiles nothing."""
    with dynarray.use_backend("reference"):
        yield


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def blurred(x, sigma):
    """x under the normalised Gaussian of radius ceil(5*sigma), zero outside."""
    steps = np.arange(-int(np.ceil(5 * sigma)), int(np.ceil(5 * sigma)) + 1)
    kernel = np.exp(-(steps**2) / (2 * sigma**2))
    for axis in (2, 3):
        x = correlate1d(x, kernel / kernel.sum(), axis, mode="constant")
    return x


def formula(layer, x, sigma):
    """The units summed one by one, read by SciPy's bilinear interpolation."""
    xb, (o, c, g) = blurred(x, sigma), layer.weight.shape
    place = np.mgrid[: x.shape[2], : x.shape[3]]
    y = np.zeros((len(x), o, *x.shape[2:])) + layer.bias.data[:, None, None]
    for n, i, j, k in np.ndindex(len(x), o, c, g):
        at = place + layer.displacement.data[i, j, k][:, None, None]
        y[n, i] += layer.weight.data[i, j, k] * map_coordinates(xb[n, j], at, order=1, mode="grid-constant")
    return y


@pytest.mark.parametrize(
    ("units", "extent", "rows", "columns"),
    [
        (3, 1, (-1, 0, 1), (-1, 0, 1)),  # the taps of a 3 x 3 kernel
        (2, 4, (-2.25, 2.25), (-2.25, 2.25)),  # the published example for small images
        ((3, 2), 2, (-5 / 3, 0, 5 / 3), (-1.25, 1.25)),
        (1, 7, (0,), (0,)),
    ],
)
def test_units_start_on_a_grid(units, extent, rows, columns):
    layer = DisplacedConv(2, 3, units, extent=extent, **OPTIONS)
    expected = [(y, x) for y in rows for x in columns]
    assert layer.displacement.shape == (3, 2, len(expected), 2)
    np.testing.assert_allclose(
        layer.displacement.data, np.broadcast_to(expected, layer.displacement.shape), atol=1e-15
    )


def test_weights_start_with_the_variance_of_he():
    weight = DisplacedConv(64, 64, (3, 2), rng=0).weight.data
    assert weight.var() == pytest.approx(2 / (64 * 6), rel=0.02)
    assert abs(weight.mean()) < 0.02 * weight.std()


def test_output_equals_the_formula():
    layer, x = DisplacedConv(2, 3, (2, 1), sigma=0.7, **OPTIONS), array(2, 2, 5, 6)
    layer.displacement.data += 2.5 * array(*layer.displacement.shape, seed=1)
    np.testing.assert_allclose(layer(x).data, formula(layer, x, 0.7), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("sigma", "whole", "same"), [(0.1, True, True), (0.1, False, False), (0.6, True, False)]
)
def test_when_a_rescaled_layer_sees_what_it_saw_before(sigma, whole, same):
    """At twice the resolution, read at the pixels that there were."""
    layer, x = DisplacedConv(2, 3, 2, sigma=sigma, bias=False, **OPTIONS), array(1, 2, 24, 24)
    steps = np.random.default_rng(4).integers(-2, 3, layer.displacement.shape)
    layer.displacement.data = steps + (0.0 if whole else 0.4)
    before = layer(x[:, :, ::2, ::2])
    layer.rescale(2)
    after = layer(x)[:, :, ::2, ::2]
    worst = abs(before - after)[:, :, 3:-3, 3:-3].max() / abs(before).max()
    assert worst < 1e-12 if same else worst > 0.05


def test_a_unit_per_tap_is_a_convolution_and_rescaled_a_dilated_one():
    layer, x = DisplacedConv(3, 4, 3, extent=1, sigma=0.6, bound=1.5, **OPTIONS), array(2, 3, 9, 8)
    kernels = layer.weight.data.reshape(4, 3, 3, 3)
    for dilation, factor in ((1, 1), (2, 2), (4, 2)):
        layer.rescale(factor)
        expected = F.conv2d(blurred(x, 0.6), kernels, layer.bias.data, padding=dilation, dilation=dilation)
        np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)
    assert layer.bound == 6
    layer.project()
    assert abs(layer.displacement.data).max() == 4


def smooth_images(seed):
    """Three smooth images with which a displacement can be found from far away."""
    return blurred(array(3, 1, 24, 24, seed=seed), 2.5) * 5


@pytest.mark.parametrize("gradient", ["exact", "smooth"])
def test_a_unit_finds_a_displacement(gradient):
    """The images are shown shifted by (2.3, -1.6): that is where the unit has to go."""
    x = smooth_images(0)
    layer = DisplacedConv(1, 1, 1, bias=False, displacement_rate=2, displacement_gradient=gradient, **OPTIONS)
    truth = DisplacedConv(1, 1, 1, bias=False, **OPTIONS)
    truth.displacement.data[...] = 2.3, -1.6
    truth.weight.data[...] = 1
    target = truth(x).data
    optimizer = Adam(parameter_groups(layer), 0.03)
    for _ in range(150):
        with Tape() as tape:
            loss = F.mse(layer(x), target)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    np.testing.assert_allclose(layer.displacement.data.ravel(), (2.3, -1.6), atol=0.05)
    np.testing.assert_allclose(layer.weight.data.ravel(), 1, atol=0.05)


def test_only_weights_decay_and_displacements_have_their_own_rate():
    network = Sequential(
        Conv2d(2, 2, 3, **OPTIONS),
        BatchNorm2d(2, dtype=np.float64),
        DisplacedConv(2, 3, displacement_rate=20, learn_sigma=True, **OPTIONS),
    )
    layer = network[2]
    optimizer = SGD(parameter_groups(network), 0.1, weight_decay=0.5)
    assert {p.key for p in optimizer.parameters} == {p.key for p in network.parameters()}
    before = {name: p.data.copy() for name, p in network.named_parameters().items()}
    optimizer.step([np.ones(p.shape) for p in optimizer.parameters])
    step = {name: before[name] - p.data for name, p in network.named_parameters().items()}
    np.testing.assert_allclose(
        step["layers.2.weight"], 0.1 * (1 + 0.5 * before["layers.2.weight"]), rtol=1e-12
    )
    np.testing.assert_allclose(step["layers.2.displacement"], 0.1 * 20, rtol=1e-12)
    np.testing.assert_allclose(step["layers.2.sigma"], 0.1, rtol=1e-12)
    np.testing.assert_allclose(step["layers.2.bias"], 0.1, rtol=1e-12)
    # Everything else is left to the optimiser.
    np.testing.assert_allclose(step["layers.0.bias"], 0.1 * (1 + 0.5 * before["layers.0.bias"]), rtol=1e-12)
    project(network)
    assert layer.sigma.data == pytest.approx(0.4)
    layer.sigma.data -= 0.3
    project(network)
    assert layer.sigma.data == 0.25


def test_a_shared_layer_is_listed_once():
    layer = DisplacedConv(2, 2, **OPTIONS)
    groups = parameter_groups(Sequential(layer, layer))
    keys = [p.key for group in groups for p in group["parameters"]]
    assert sorted(keys) == sorted(p.key for p in layer.parameters())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projection_goes_to_the_bound_and_no_further(dtype):
    layer = DisplacedConv(2, 3, bound=1.1, rng=0, dtype=dtype)
    moved = (3 * array(*layer.displacement.shape)).astype(dtype)
    layer.displacement.data[...] = moved
    layer.displacement.data[0, 0, 0, 0] = np.nan
    layer.project()
    found = layer.displacement.data
    assert np.isnan(found[0, 0, 0, 0])
    inside = abs(moved) <= 1.1
    np.testing.assert_array_equal(found[inside][1:], moved[inside][1:])
    outside = ~inside
    assert outside.sum() > 5
    assert (abs(found[outside].astype(np.float64)) <= 1.1).all()
    np.testing.assert_allclose(found[outside], np.sign(moved[outside]) * 1.1, rtol=1e-6)
    assert abs(DisplacedConv(2, 3, 2, extent=9, bound=2, rng=0).displacement.data).max() == 2


def test_a_unit_at_the_bound_finds_its_way_back():
    """Limited in the forward pass it would have no gradient; outside the image it has none either."""
    x = smooth_images(1)
    layer = DisplacedConv(1, 1, 1, bias=False, bound=4, displacement_rate=5, **OPTIONS)
    layer.weight.data[...] = 1
    layer.displacement.data[...] = 1, -1
    target = layer(x).data
    layer.displacement.data[...] = 40, -40
    with Tape() as tape:
        loss = F.mse(layer(x), target)
    assert not tape.gradient(loss, layer.displacement).any()
    layer.project()
    np.testing.assert_array_equal(layer.displacement.data.ravel(), (4, -4))
    optimizer = Adam([{"parameters": [layer.displacement], "lr_scale": 5}], 0.01)
    for _ in range(200):
        with Tape() as tape:
            loss = F.mse(layer(x), target)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
        layer.project()
    np.testing.assert_allclose(layer.displacement.data.ravel(), (1, -1), atol=0.05)


def test_pruning_removes_small_units_and_says_how_many():
    layer, x = DisplacedConv(2, 2, (2, 2), **OPTIONS), array(2, 2, 6, 5)
    layer.displacement.data += array(*layer.displacement.shape, seed=1)
    # One filter keeps three units, none keeps four.
    layer.weight.data[...] = [
        [[0.1, -2.0, 0.01, 0.5], [0.19, 0.19, -0.19, 0.1]],
        [[1.0, 1.0, 1.0, 0.0], [0.0, 0.1, 0.0, -0.2]],
    ]
    places = layer.displacement.data.copy()
    kept = abs(layer.weight.data) >= 0.2
    expected = DisplacedConv(2, 2, (2, 2), **OPTIONS)
    expected.weight.data[...] = np.where(kept, layer.weight.data, 0)
    expected.displacement.data[...] = places
    expected.bias = layer.bias
    assert layer.prune(0) == 0
    assert layer.weight.shape == (2, 2, 4)
    assert layer.prune(0.1) == 16 - kept.sum() == 10
    assert layer.weight.shape == layer.alive.shape == (2, 2, 3)
    assert layer.displacement.shape == (2, 2, 3, 2)
    assert layer.num_units == 6
    np.testing.assert_allclose(layer(x).data, expected(x).data, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(layer.displacement.data[0, 0, :2], places[0, 0, [1, 3]])
    assert layer.prune(0.1) == 0
    assert layer.prune(1) == 5
    assert layer.weight.shape == (2, 2, 1)


def test_pruned_units_stay_removed():
    layer, x = DisplacedConv(2, 3, **OPTIONS), array(2, 2, 6, 5)
    removed = layer.prune(0.5)
    assert 0 < removed < 24
    dead = ~layer.alive
    optimizer = AdamW(parameter_groups(layer), 0.1)
    for _ in range(3):
        with Tape() as tape:
            loss = F.mean(F.square(layer(x) - 1))
        grads = dict(zip(("weight", "displacement", "bias"), tape.gradient(loss, optimizer.parameters)))
        assert not grads["weight"][dead].any()
        assert not grads["displacement"][dead].any()
        assert grads["displacement"][layer.alive].any()
        optimizer.step(grads.values())
    layer.weight.data[dead] = 7  # whoever writes there changes nothing
    with_weights = layer(x).data
    layer.weight.data[dead] = 0
    np.testing.assert_array_equal(layer(x).data, with_weights)
    assert layer.num_units == 24 - removed


def test_pruning_hides_no_nan():
    layer = DisplacedConv(2, 2, **OPTIONS)
    layer.weight.data[1, 0, 0] = np.nan
    layer.prune(0.5)
    assert np.isnan(layer.displacements().weight).sum() == 1


def test_displacements_are_those_of_living_units():
    layer = DisplacedConv(2, 3, (2, 1), **OPTIONS)
    layer.weight.data[...] = np.arange(1, 13).reshape(3, 2, 2)
    layer.displacement.data += array(*layer.displacement.shape)
    before = layer.displacement.data.copy()
    assert layer.prune(0.5) == 5
    units = layer.displacements()
    np.testing.assert_array_equal(units.weight, np.arange(6, 13))
    np.testing.assert_array_equal(units.output, [1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(units.input, [0, 1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(units.displacement, before.reshape(12, 2)[5:])


def test_pruned_layers_go_through_a_file(tmp_path):
    one, other = DisplacedConv(2, 3, rng=0), DisplacedConv(2, 3, rng=1)
    one.weight.data[:, :, 0] = 1  # so that every slot is needed, and the shapes stay
    one.weight.data[0, 0] = 1
    assert one.prune(0.9) > 0
    files.save(tmp_path / "a", one.state_dict())
    files.load_module(tmp_path / "a", other)
    x = array(1, 2, 5, 5).astype(np.float32)
    assert other.num_units == one.num_units < 24
    np.testing.assert_array_equal(one(x).data, other(x).data)


def test_multiply_adds():
    """Four per unit and output; two passes of 7 taps for the blur of radius 3."""
    layer = DisplacedConv(5, 6, (3, 2), rng=0)
    (row,) = summary(layer, (2, 5, 8, 7))
    assert row.multiply_adds == 2 * 6 * 8 * 7 * 5 * (4 * 6) + 2 * 5 * 8 * 7 * 14
    assert row.parameters == 3 * 5 * 6 * 6 + 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0}, "sigma must be positive and finite, got 0"),
        ({"sigma": np.nan}, "sigma must be positive"),
        ({"sigma": 0.1, "learn_sigma": True}, "a learned sigma must be at least 0.25, got 0.1"),
        ({"bound": 0.0}, "bound must be positive"),
        ({"bound": np.inf}, "bound must be positive"),
        ({"displacement_rate": -1}, "displacement_rate must be positive"),
        ({"extent": -1}, "extent must be at least 0, got -1"),
        ({"extent": np.nan}, "extent must be at least 0"),
        ({"units": 0}, "DisplacedConv: units must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DisplacedConv(2, 3, **options)


@pytest.mark.parametrize("factor", [0, -1, np.nan, np.inf])
def test_bad_factors(factor):
    with pytest.raises(ValueError, match="factor must be positive and finite"):
        DisplacedConv(1, 1).rescale(factor)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, np.nan])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match="threshold must be at least 0 and at most 1"):
        DisplacedConv(1, 1).prune(threshold)


@pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)
def test_on_a_gpu(backend):
    """The same steps there and here: train, project, rescale, prune."""
    layers = [DisplacedConv(2, 3, bound=1, learn_sigma=True, **OPTIONS) for _ in range(2)]
    x = array(2, 2, 6, 5)
    for layer, device, image in zip(layers, ("cuda", "cpu"), (backend.array(x), x)):
        layer.to_device(device)
        optimizer = Adam(parameter_groups(layer), 0.1)
        with dynarray.use_backend(device):
            for _ in range(3):
                with Tape() as tape:
                    loss = F.mean(F.square(layer(image) - 1))
                optimizer.step(tape.gradient(loss, optimizer.parameters))
                layer.project()
        layer.rescale(2)
        assert layer.prune(0.3) > 0
    there, here = (layer.displacements() for layer in layers)
    for a, b in zip(there, here):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
