"""The image pairs of examples/optical_flow.py: their flow is exact, and what is hidden is known."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def flow_data(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import _flow_data

    return _flow_data


@pytest.fixture
def waves(flow_data):
    """Pairs made of a smooth pattern that no motion in question repeats: brightness tells places apart."""
    y, x = np.indices((300, 300))
    pattern = np.sin(y / 4) + np.cos(x / 5 + y / 31) + np.sin((x + y) / 23)
    return flow_data.make_pairs([pattern.astype(np.float32)], 6, seed=3)


def followed(pairs):
    """How much brightness differs between each pixel and where its flow leads in the second image."""
    grid = np.indices(pairs.images.shape[2:])
    there = [map_coordinates(second, grid + flow, order=1) for (_, second), flow in zip(*pairs[:2])]
    return np.abs(np.stack(there) - pairs.images[:, 0])


def test_flow_leads_to_the_same_brightness(waves):
    """Noise of 0.02 and light that changes by a few percent remain, and nothing where a pixel is hidden."""
    error, change = followed(waves), np.abs(waves.images[:, 1] - waves.images[:, 0])
    assert np.median(error[waves.visible]) < 0.15
    assert np.median(change[waves.visible]) > 3 * np.median(error[waves.visible])
    assert np.median(error[~waves.visible]) > 4 * np.median(error[waves.visible])
    assert 0.8 < waves.visible.mean() < 0.99
    assert np.hypot(*waves.flow.swapaxes(0, 1)).max() > 4


def test_a_background_alone_moves_by_its_affine_map(flow_data):
    layer = flow_data.Layer(
        photo=np.zeros((8, 8), np.float32),
        place=flow_data.Affine(np.eye(2), np.zeros(2)),
        motion=flow_data.Affine(np.array([[1.0, 0.1], [-0.1, 1.0]]), np.array([2.0, -3.0])),
        centre=np.zeros(2),
        radii=None,
    )
    _, flow, visible = flow_data.render([layer], np.random.default_rng(0))
    rows, columns = np.indices(flow_data.SIZE)
    np.testing.assert_allclose(flow, [0.1 * columns + 2, -0.1 * rows - 3], rtol=1e-6, atol=1e-5)
    ends = rows + 0.1 * columns + 2, columns - 0.1 * rows - 3
    inside = [(end > -1e-9) & (end < size - 1 + 1e-9) for end, size in zip(ends, flow_data.SIZE)]
    np.testing.assert_array_equal(visible, inside[0] & inside[1])


def test_an_object_hides_what_it_moves_over(flow_data):
    """A disc of radius 10 moves 8 pixels to the right over a background that stays."""
    still = flow_data.Affine(np.eye(2), np.zeros(2))
    right = flow_data.Affine(np.eye(2), np.array([0.0, 8.0]))
    photo, centre = np.zeros((8, 8), np.float32), np.array([30.0, 40.0])
    layers = [
        flow_data.Layer(photo, still, still, centre, None),
        flow_data.Layer(photo, still, right, centre, np.full(64, 10.0)),
    ]
    _, flow, visible = flow_data.render(layers, np.random.default_rng(0))
    rows, columns = np.indices(flow_data.SIZE)
    before, after = (np.hypot(rows - 30, columns - column) <= 10 for column in (40, 48))
    np.testing.assert_array_equal(flow[0], 0)
    np.testing.assert_array_equal(flow[1], 8 * before)
    np.testing.assert_array_equal(visible, ~after | before)


def test_mirrored_pairs_are_pairs(flow_data, waves):
    turned = flow_data.mirrored(waves, np.random.default_rng(1))
    assert any((a != b).any() for a, b in zip(turned.flow, waves.flow))
    for error, same in zip(followed(turned), followed(waves)):
        assert np.sort(error, axis=None) == pytest.approx(np.sort(same, axis=None), abs=1e-3)
    np.testing.assert_array_equal(turned.visible.sum((1, 2)), waves.visible.sum((1, 2)))


def test_stereo_pair_agrees_with_its_disparity(flow_data):
    """Followed along the disparity, the right image is much closer to the left one."""
    stereo = flow_data.motorcycle(7)
    assert stereo.images.shape == (1, 2, 64, 96)
    change = np.abs(stereo.images[:, 1] - stereo.images[:, 0])[stereo.visible]
    assert followed(stereo)[stereo.visible].mean() < 0.4 * change.mean()
    assert -9 < stereo.flow[0, 1][stereo.visible[0]].min() < -8
    assert not stereo.flow[0, 0].any()
