"""AtomConv: counts, the formula, what it is where its atoms are constant, and where it looks."""

import numpy as np
import pytest
from _layer_cases import substituted

import dynarray
from autodiff import Tape, Variable, check_gradients
from autodiff import functions as F
from autodiff.layers import AtomConv, Conv2d
from autodiff.networks import summary


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


OPTIONS = {"rng": 0, "dtype": np.float64}


@pytest.mark.parametrize(
    ("channels", "kernel", "count"),
    [(64, 3, 82_540), (64, 5, 103_384), (256, 3, 561_964), (256, 5, 582_808), (256, 7, 603_652)],
)
def test_published_parameters(channels, kernel, count):
    assert AtomConv(channels, channels, kernel).num_parameters == count


def test_multiply_adds():
    """For a pixel: 64*6 filtered channels of 9 taps, 64 outputs of them, 6*9 taps of atoms from 6 bases."""
    found = summary(AtomConv(64, 64, 3), (2, 64, 20, 30))
    pixels = 2 * 20 * 30
    own, choose = 384 * 9 + 64 * 384 + 54 * 6, 64 * 64 * 9 + 64 * 36 * 9
    assert [row.kind for row in found if row.multiply_adds] == ["Conv2d", "Conv2d", "AtomConv"]
    assert found[-1].multiply_adds == pixels * own
    assert found.multiply_adds == pixels * (own + choose)
    assert found.parameters == 82_540


def test_strided_multiply_adds():
    found = summary(AtomConv(4, 6, 5, num_atoms=2, num_bases=3, stride=2), (1, 4, 9, 6))
    assert found[-1].multiply_adds == 5 * 3 * (4 * 2 * (25 + 6) + 2 * 6 * 25)


def test_counts_of_atoms_and_bases_are_independent():
    layer = AtomConv(3, 4, 7, num_atoms=2, num_bases=5, rng=0)
    x = array(2, 3, 8, 9).astype(np.float32)
    assert layer.alpha(x).shape == (2, 2, 15, 8, 9)
    assert layer.atoms(x).shape == (2, 2, 7, 7, 8, 9)
    assert layer(x).shape == (2, 4, 8, 9)


def test_equals_its_formula():
    layer, x = AtomConv(3, 4, 5, num_atoms=2, num_bases=4, stride=2, **OPTIONS).eval(), array(2, 3, 7, 8)
    first, norm, _, second, last_norm, _ = layer.choose.layers
    scale = 1 / np.sqrt(1 + 1e-5)  # running averages are still 0 and 1
    hidden = np.tanh(F.conv2d(x, first.weight.data, first.bias.data, stride=2, padding=1) * scale)
    chosen = np.tanh(F.conv2d(hidden, second.weight.data, second.bias.data, padding=1) * scale)
    assert norm.epsilon == last_norm.epsilon == 1e-5
    alpha = chosen.reshape(2, 2, 8, 4, 4)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    expected = np.zeros((2, 4, 4, 4)) + layer.bias.data[:, None, None]
    for a, b in np.ndindex(5, 5):
        window = padded[:, :, a : a + 7 : 2, b : b + 7 : 2]
        atom = np.einsum("nmihw,i->nmhw", alpha, layer.bases[:, a, b])
        expected += np.einsum("ocm,nmhw,nchw->nohw", layer.coefficients.data, atom, window)
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)


SMALL = {"num_atoms": 2, "num_bases": 3, "hidden_channels": 4, **OPTIONS}


# Complex steps, except where running averages or fixed bases, which stay real, stand in the way.
@pytest.mark.parametrize(
    ("layer", "method", "rtol"),
    [
        (AtomConv(2, 3, learn_bases=True, stride=2, **SMALL), "central", 1e-7),
        (AtomConv(2, 3, padding=0, **SMALL), "central", 1e-7),
        (AtomConv(2, 3, 5, learn_bases=True, padding=(3, 2), **SMALL).eval(), "complex", 1e-9),
        (AtomConv(2, 3, 5, dilation=2, bias=False, **SMALL).eval(), "central", 1e-7),
    ],
)
def test_gradients_of_input_and_parameters(layer, method, rtol):
    named = {name: p.data for name, p in layer.named_parameters().items()}
    # In training, batch normalisation takes away whatever the biases before it add.
    idle = {"choose.layers.0.bias", "choose.layers.3.bias"} if layer.training else set()
    x, busy = array(2, 2, 5, 6), [name for name in named if name not in idle]
    with substituted(layer) as put, dynarray.use_backend("reference"):

        def call(x, *values):
            put({**named, **dict(zip(busy, values, strict=True))}.values())
            return layer(x)

        check_gradients(call, x, *(named[name] for name in busy), method=method, rtol=rtol)
    parameters = layer.named_parameters()
    with Tape() as tape:
        loss = F.sum(F.square(layer(x)))
    for grad in tape.gradient(loss, [parameters[name] for name in sorted(idle)]):
        assert np.abs(grad).max() < 1e-10 * abs(float(loss))


def test_seed_decides_the_weights():
    one, same, other = (AtomConv(3, 4, rng=rng) for rng in (1, np.random.default_rng(1), 2))
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(value, same.state_dict()[name])
    for name in ("coefficients", "bias", "choose.layers.0.weight", "choose.layers.3.weight"):
        assert (one.state_dict()[name] != other.state_dict()[name]).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"dilation": (1, 2)}, {"padding": 0}, {"padding": (3, 0), "stride": (1, 2)}],
)
def test_constant_atoms_make_an_ordinary_convolution(options):
    layer = AtomConv(3, 4, 5, num_atoms=2, num_bases=3, **options, **OPTIONS)
    ordinary = Conv2d(3, 4, 5, **options, **OPTIONS)
    before = array(12, seed=1)
    last = layer.choose[4]
    last.weight.data[...] = 0
    last.bias.data[...] = before
    atoms = np.einsum("mi,iab->mab", np.tanh(before).reshape(2, 6), layer.bases)
    ordinary.weight.data[...] = np.einsum("ocm,mab->ocab", layer.coefficients.data, atoms)
    ordinary.bias.data[...] = layer.bias.data
    x = array(2, 3, 9, 8)
    np.testing.assert_allclose(layer(x).data, ordinary(x).data, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1, 3, 4, (0, 4)])
def test_atoms_belong_to_the_centre_of_their_window(padding):
    """Another padding moves the output, and only its pixels near the edges may change."""
    same = AtomConv(2, 3, 5, num_atoms=2, num_bases=2, hidden_channels=5, **OPTIONS).eval()
    other = AtomConv(2, 3, 5, num_atoms=2, num_bases=2, hidden_channels=5, padding=padding, **OPTIONS).eval()
    other.load_state_dict(same.state_dict())
    x = array(1, 2, 16, 17)
    y, moved = same(x).data, other(x).data
    py, px = padding if isinstance(padding, tuple) else (padding, padding)
    assert moved.shape == (1, 3, 12 + 2 * py, 13 + 2 * px)
    inside = y[:, :, 4:12, 4:13]
    np.testing.assert_allclose(
        moved[:, :, 2 + py : 10 + py, 2 + px : 11 + px], inside, rtol=1e-12, atol=1e-13
    )


def test_fixed_bases_are_state_and_learned_ones_are_parameters():
    fixed, learned = AtomConv(2, 3, 5, rng=0), AtomConv(2, 3, 5, rng=0, learn_bases=True)
    assert fixed.bases[0, 1:4, 1:4].round(6).tolist()[0] == pytest.approx([0.049333, 0.305299, 0.049333])
    assert not fixed.bases[:6, 0].any()
    np.testing.assert_array_equal(learned.bases.data, fixed.bases)
    assert set(learned.named_parameters()) - set(fixed.named_parameters()) == {"bases"}
    assert set(learned.state_dict()) == set(fixed.state_dict())
    assert learned.num_parameters - fixed.num_parameters == 12 * 25
    x = array(2, 2, 6, 6).astype(np.float32)
    with Tape() as tape:
        loss = F.sum(F.square(learned(x)))
    assert tape.gradient(loss, learned.bases).any()


def test_takes_arrays_and_variables_of_its_dtype():
    layer, x = AtomConv(2, 3, rng=0), array(2, 2, 6, 6).astype(np.float32)
    assert {p.dtype for p in layer.parameters()} == {np.dtype(np.float32)}
    y = layer(Variable(x))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(layer(x).data, y.data)


@pytest.mark.parametrize(("kernel", "scales"), [(3, 1), (5, 2), (7, 3)])
def test_initial_scale(kernel, scales):
    """White noise comes out with variance 2*M * 6*scales*E[tanh(g)^2], g normal."""
    layer = AtomConv(64, 64, kernel, bias=False, rng=0)
    assert layer.bias is None
    y = layer(array(2, 64, 40, 40).astype(np.float32)).data[:, :, 3:-3, 3:-3]
    mean_square = np.mean(np.tanh(array(100_000)) ** 2)
    assert y.std() == pytest.approx(np.sqrt(12 * 6 * scales * mean_square), rel=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AtomConv(2, 3, 4), "kernel_size must be odd, got 4"),
        (lambda: AtomConv(2, 3, 1), "kernel_size must be at least 3, got 1"),
        (lambda: AtomConv(2, 3, num_bases=7), "num_bases must be at most 6"),
        (lambda: AtomConv(2, 3, num_atoms=0), "AtomConv: num_atoms must be at least 1, got 0"),
        (lambda: AtomConv(0, 3), "AtomConv: in_channels must be at least 1, got 0"),
        (lambda: AtomConv(2, 3, padding=-1), "AtomConv: padding must be at least 0, got -1"),
        (lambda: AtomConv(2, 3, hidden_channels=0), "AtomConv: hidden_channels must be at least 1, got 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
