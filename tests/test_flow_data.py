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
    y, x = np.indices((flow_data.TILE, flow_data.TILE))
    pattern = np.sin(y / 4) + np.cos(x / 5 + y / 31) + np.sin((x + y) / 23)
    return flow_data.make_pairs([pattern.astype(np.float32)], 12, seed=3)


def followed(pairs):
    """How much brightness differs between each pixel and where its flow leads in the second image.

    Light, a factor and a shift of each image, is taken off as far as visible pixels tell it.
    """
    grid, errors = np.indices(pairs.images.shape[2:]), []
    for (first, second), flow, visible in zip(*pairs):
        there = map_coordinates(second, grid + flow, order=1)
        light = np.polynomial.Polynomial.fit(there[visible], first[visible], 1)
        errors.append(np.abs(light(there) - first))
    return np.stack(errors)


def test_flow_leads_to_the_same_brightness(waves):
    """Little noise remains, and nothing where a pixel is hidden."""
    error, change = followed(waves), np.abs(waves.images[:, 1] - waves.images[:, 0])
    assert np.median(error[waves.visible]) < 0.03
    assert np.median(change[waves.visible]) > 5 * np.median(error[waves.visible])
    assert np.median(error[~waves.visible]) > 4 * np.median(error[waves.visible])
    assert 0.8 < waves.visible.mean() < 0.99
    assert np.hypot(*waves.flow.swapaxes(0, 1)).max() > 4


def test_a_background_alone_moves_by_its_affine_map(flow_data):
    layer = flow_data.Layer(
        photo=np.zeros((8, 8), np.float32),
        place=flow_data.Affine(np.eye(2), np.zeros(2)),
        motion=flow_data.Affine(np.array([[1.0, 0.1], [-0.1, 1.0]]), np.array([2.0, -3.0])),
        centre=np.zeros(2),
        radii=flow_data.ENDLESS,
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
        flow_data.Layer(photo, still, still, centre, flow_data.ENDLESS),
        flow_data.Layer(photo, still, right, centre, np.full(64, 10.0)),
    ]
    _, flow, visible = flow_data.render(layers, np.random.default_rng(0))
    rows, columns = np.indices(flow_data.SIZE)
    before, after = (np.hypot(rows - 30, columns - column) <= 10 for column in (40, 48))
    np.testing.assert_array_equal(flow[0], 0)
    np.testing.assert_array_equal(flow[1], 8 * before)
    np.testing.assert_array_equal(visible, ~after | before)


def test_a_layer_is_painted_as_its_definition_says(flow_data):
    """Opacity by the outline between equal angles, brightness between pixels, past the end from the start."""
    rng = np.random.default_rng(5)
    photo = rng.standard_normal((64, 128)).astype(np.float32)
    radii = rng.uniform(6, 14, flow_data.ROUND)
    place = flow_data.Affine(np.array([[0.8, 0.5], [-0.4, 0.9]]), np.array([-31.3, 99.6]))
    back = flow_data.Affine(np.array([[0.9, 0.1], [-0.2, 1.1]]), np.array([1.7, -2.4]))
    layer = flow_data.Layer(photo, place, back.inverse(), np.array([30.2, 41.7]), radii)
    image = rng.standard_normal(flow_data.SIZE).astype(np.float32)
    before = image.copy()
    opacity = layer.paint(image, back)
    points = back(np.indices(flow_data.SIZE).astype(float))
    y, x = points - layer.centre[:, None, None]
    angles = np.arange(flow_data.ROUND + 1) * 2 * np.pi / flow_data.ROUND
    outline = np.interp(np.arctan2(y, x) % (2 * np.pi), angles, np.append(radii, radii[0]))
    covered = np.clip(outline - np.hypot(y, x) + 0.5, 0, 1)
    seen = map_coordinates(photo, place(points), order=1, mode="grid-wrap")
    np.testing.assert_allclose(opacity, covered, atol=1e-5)
    np.testing.assert_allclose(image, before + covered * (seen - before), atol=1e-4)
    assert 0.03 < covered.mean() < 0.2


def test_every_step_has_pairs_of_its_own(flow_data):
    """Seed and step decide everything, and another step or seed has other flow, not only other noise."""
    photos = flow_data.to_learn_from()[:3]
    one, same, *others = (flow_data.make_pairs(photos, 2, seed) for seed in ((0, 7), (0, 7), (0, 8), (1, 7)))
    for array, again in zip(one, same):
        np.testing.assert_array_equal(array, again)
    scenes = [flow.tobytes() for pairs in (one, *others) for flow in pairs.flow]
    assert len(set(scenes)) == 6


def test_photographs_are_other_than_those_of_training_and_even(flow_data):
    """In any window of some size there is as much to see; before, some windows had nothing."""
    assert not set(flow_data.TRAINING) & set(flow_data.HELD_OUT)
    quietest = []
    for photos in (flow_data.photographs(("rocket", "clock"), 3), flow_data.to_judge_on()):
        windows = [photo[:48, :64].reshape(2, 24, 2, 32).std((1, 3)) for photo in photos]
        quietest.append(np.min(windows))
        assert all(photo.shape == (flow_data.TILE, flow_data.TILE) for photo in photos)
    assert quietest[0] < 0.15 < 0.4 < quietest[1]


def test_stereo_pair_agrees_with_its_disparity(flow_data):
    """Followed along the disparity, the right image is much closer to the left one."""
    stereo = flow_data.motorcycle(7)
    assert stereo.images.shape == (1, 2, 64, 96)
    change = np.abs(stereo.images[:, 1] - stereo.images[:, 0])[stereo.visible]
    assert followed(stereo)[stereo.visible].mean() < 0.4 * change.mean()
    assert -9 < stereo.flow[0, 1][stereo.visible[0]].min() < -8
    assert not stereo.flow[0, 0].any()
