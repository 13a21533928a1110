"""Augmentations: labels, flow and boxes go where their pixels go."""

import numpy as np
import pytest

from autodiff.data import augment


def sample_of(rng, height=7, width=10):
    """A sample in which each pixel of every entry says where it was."""
    places = np.arange(height * width).reshape(height, width)
    return {
        "image": np.stack([places, places + 100, places + 50]).astype(np.uint8),
        "second": rng.integers(0, 256, (3, height, width)).astype(np.uint8),
        "labels": (places % 21).astype(np.uint8),
        "valid": places % 3 > 0,
        "flow": rng.standard_normal((2, height, width)).astype(np.float32),
        "boxes": np.array([[0, 0, 3, 2], [4, 3, 9, 6], [5, 1, 5, 1]], np.float32),
        "box_labels": np.array([7, 8, 9]),
        "difficult": np.array([False, True, False]),
        "name": "a",
    }


def frozen(sample):
    for value in sample.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return sample


def test_mirror(rng):
    sample = frozen(sample_of(rng))
    found = augment.mirror(sample)
    for key in ("image", "second", "labels", "valid"):
        np.testing.assert_array_equal(found[key], sample[key][..., ::-1])
    np.testing.assert_array_equal(found["flow"][0], -sample["flow"][0][:, ::-1])
    np.testing.assert_array_equal(found["flow"][1], sample["flow"][1][:, ::-1])
    assert found["boxes"].tolist() == [[6, 0, 9, 2], [0, 3, 5, 6], [4, 1, 4, 1]]
    assert found["name"] == "a" and found["boxes"].dtype == np.float32
    again = augment.mirror(found)
    for key, value in sample.items():
        np.testing.assert_array_equal(again[key], value)


def test_flow_still_leads_from_the_first_image_to_the_second():
    """A pixel of the first image is found in the second, where the flow says, also when both are mirrored."""
    first, second = np.zeros((3, 5, 8)), np.zeros((3, 5, 8))
    first[:, 1, 2], second[:, 3, 6] = 9, 9
    flow = np.zeros((2, 5, 8))
    flow[:, 1, 2] = 4, 2
    for change in (
        augment.mirror,
        lambda s: augment.crop(s, (1, 1), (4, 7)),
        lambda s: augment.crop(s, (-2, -3), (9, 12)),
    ):
        found = change({"image": first, "second": second, "flow": flow})
        ((y, x),) = np.argwhere(found["image"][0] == 9)
        along_x, along_y = found["flow"][:, y, x]
        assert found["second"][0, y + int(along_y), x + int(along_x)] == 9


def test_resize(rng):
    sample = frozen(sample_of(rng))
    found = augment.resize(sample, (14, 30))
    assert {found[key].shape[-2:] for key in ("image", "second", "labels", "valid", "flow")} == {(14, 30)}
    for key in ("labels", "valid"):
        np.testing.assert_array_equal(found[key], sample[key].repeat(2, 0).repeat(3, 1))
    expected = sample["flow"].repeat(2, 1).repeat(3, 2) * np.float32([3, 2])[:, None, None]
    np.testing.assert_array_equal(found["flow"], expected)
    # A box of 4 x 3 pixels covers 12 x 6 of the new ones.
    assert found["boxes"].tolist() == [[0, 0, 11, 5], [12, 6, 29, 13], [15, 2, 17, 3]]
    assert {key: found[key].dtype for key in sample if key != "name"} == {
        key: sample[key].dtype for key in sample if key != "name"
    }
    same = augment.resize(sample, (7, 10))
    for key, value in sample.items():
        np.testing.assert_array_equal(same[key], value)


def test_flow_that_is_known_everywhere_is_interpolated():
    flow = np.zeros((2, 1, 2))
    flow[0, 0] = 0, 4
    found = augment.resize({"flow": flow}, (1, 4))
    # Halfway between the pixels lie 1/4 and 3/4; vectors along x are twice as long.
    assert found["flow"][0].tolist() == [[0, 2, 6, 8]]
    image = augment.resize({"image": np.float32([[[0, 4]]])}, (1, 4))["image"]
    assert image.tolist() == [[[0, 1, 3, 4]]]


def test_unknown_flow_is_never_mixed_with_known():
    flow = np.full((2, 4, 4), np.nan)
    flow[:, ::2] = 1
    valid = ~np.isnan(flow[0])
    for size in ((3, 3), (7, 9), (2, 2)):
        found = augment.resize({"flow": flow, "valid": valid}, size)
        assert not np.isnan(found["flow"][:, found["valid"]]).any()


def test_crop(rng):
    sample = frozen(sample_of(rng))
    found = augment.crop(sample, (2, 3), (4, 5))
    for key in ("image", "second", "labels", "valid", "flow"):
        np.testing.assert_array_equal(found[key], sample[key][..., 2:6, 3:8])
    # The centres (1.5, 1), (6.5, 4.5) and (5, 1): only the second is inside; it is cut.
    assert found["boxes"].tolist() == [[1, 1, 4, 3]]
    assert found["box_labels"].tolist() == [8] and found["difficult"].tolist() == [True]


def test_crop_beyond_the_image(rng):
    sample = frozen(sample_of(rng))
    found = augment.crop(sample, (-1, -2), (9, 14), fill=(1, 2, 3), ignore=99)
    inside = (slice(1, 8), slice(2, 12))
    for key, outside in (
        ("image", (1, 2, 3)),
        ("second", (1, 2, 3)),
        ("labels", 99),
        ("valid", False),
        ("flow", 0),
    ):
        np.testing.assert_array_equal(found[key][(..., *inside)], sample[key])
        around = np.ones((9, 14), bool)
        around[inside] = False
        expected = (
            np.broadcast_to(np.reshape(outside, (-1, 1)), (*found[key].shape[:-2], 1))
            if np.ndim(outside)
            else outside
        )
        np.testing.assert_array_equal(
            found[key][..., around], np.broadcast_to(expected, found[key][..., around].shape)
        )
    assert found["boxes"][0].tolist() == [2, 1, 5, 3]
    far = augment.crop(sample, (50, -50), (2, 3))
    assert (far["labels"] == 255).all() and not far["image"].any() and not len(far["boxes"])


def test_random_ones_follow_their_generator(rng):
    sample = sample_of(rng)

    def chain(seed):
        generator = np.random.default_rng(seed)
        found = augment.random_scale(augment.random_mirror(sample, generator), generator)
        return augment.random_crop(found, generator, (6, 6), fill=128)

    first, again = chain(1), chain(1)
    for key, value in first.items():
        np.testing.assert_array_equal(again[key], value)
    assert any(not np.array_equal(chain(seed)["image"], first["image"]) for seed in range(2, 6))
    sizes = {
        augment.random_scale(sample, np.random.default_rng(seed))["image"].shape[1:] for seed in range(60)
    }
    assert min(sizes) >= (4, 5) and max(sizes) <= (14, 20) and len(sizes) > 10
    mirrored = [
        augment.random_mirror(sample, np.random.default_rng(seed))["boxes"][0, 0] for seed in range(60)
    ]
    assert set(mirrored) == {0, 6} and 15 < mirrored.count(6) < 45
    places = {
        augment.random_crop(sample, np.random.default_rng(seed), (7, 9))["image"][0, 0, 0]
        for seed in range(30)
    }
    assert places == {0, 1}
    larger = augment.random_crop(sample, np.random.default_rng(0), (9, 12))
    np.testing.assert_array_equal(larger["labels"][:7, :10], sample["labels"])
    assert (larger["labels"][7:] == 255).all() and (larger["labels"][:, 10:] == 255).all()


def test_wrong_samples_and_sizes(rng):
    sample = sample_of(rng)
    with pytest.raises(
        ValueError, match=r"one height and width, got .*'image': \(7, 10\).*'labels': \(6, 10\)"
    ):
        augment.mirror({**sample, "labels": sample["labels"][1:]})
    with pytest.raises(ValueError, match=r"one height and width, got \{\}"):
        augment.mirror({"name": "a"})
    for change in (lambda: augment.resize(sample, (0, 3)), lambda: augment.crop(sample, (0, 0), (3, 0))):
        with pytest.raises(ValueError, match="size must be at least 1 x 1"):
            change()
    with pytest.raises(ValueError, match="needs 0 < low <= high, got 0 and 2"):
        augment.random_scale(sample, rng, 0)


def test_boxes_of_integers_are_moved_as_those_of_floats():
    image = np.zeros((3, 300, 400), np.uint8)
    boxes = np.array([[2, 3, 7, 8], [0, 0, 255, 99]])
    expected = {
        "mirror": [[392, 3, 397, 8], [144, 0, 399, 99]],
        "halved": [[1, 1.5, 3, 3.5], [0, 0, 127, 49]],
        "cropped": [[12, 8, 17, 13], [10, 5, 265, 104]],
    }
    for dtype in (np.uint8, np.int16, np.int64, np.float32, np.float64):
        sample = {"image": image, "boxes": boxes.astype(dtype)}
        found = {
            "mirror": augment.mirror(sample)["boxes"],
            "halved": augment.resize(sample, (150, 200))["boxes"],
            "cropped": augment.crop(sample, (-5, -10), (400, 500))["boxes"],
        }
        for name, right in expected.items():
            assert found[name].tolist() == right, (name, dtype)
            assert found[name].dtype == (dtype if np.dtype(dtype).kind == "f" else np.float32)


def test_what_is_outside_fits_the_type_of_the_entry():
    sample = {"image": np.zeros((3, 2, 2), np.uint8), "labels": np.zeros((2, 2), np.uint8)}
    with pytest.raises(ValueError, match=r"augment\.crop: labels of uint8 cannot be -1"):
        augment.crop(sample, (0, 0), (2, 3), ignore=-1)
    with pytest.raises(ValueError, match=r"augment\.crop: image of uint8 cannot be 300"):
        augment.crop(sample, (0, 0), (2, 3), fill=300)
    with pytest.raises(ValueError, match="fill must be a number, or one for each channel"):
        augment.crop(sample, (0, 0), (2, 3), fill=[1, 2])
    assert augment.crop(sample, (0, 0), (2, 2), ignore=-1)["labels"].tolist() == [[0, 0], [0, 0]]
    found = augment.crop(sample, (0, 1), (2, 2), fill=[123.675, 116.28, 103.53])["image"]
    assert found[:, 0, 1].tolist() == [124, 116, 104]
    signed = {"labels": np.zeros((2, 2), np.int8)}
    assert augment.crop(signed, (1, 1), (1, 2), ignore=-1)["labels"].tolist() == [[0, -1]]


def test_sizes_and_places_that_are_no_pairs_are_named():
    sample, rng = {"labels": np.zeros((4, 4), np.uint8)}, np.random.default_rng(0)
    for call, name in (
        (lambda: augment.resize(sample, (2.0, 2)), "augment.resize: size"),
        (lambda: augment.crop(sample, (0.5, 0), (2, 2)), "augment.crop: place"),
        (lambda: augment.random_crop(sample, rng, 2), "augment.random_crop: size"),
    ):
        with pytest.raises(TypeError, match=name):
            call()


def test_colours_are_those_of_the_formula_and_alike_in_both_images():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 256, (2, 3, 5, 7), dtype=np.uint8)
    sample = {"image": first, "second": second, "labels": np.ones((5, 7))}
    ranges = {"factor": (0.5, 2), "gamma": (0.7, 1.5), "contrast": (-0.8, 0.4)}
    options = {**ranges, "brightness": 0.2, "noise": 0}
    found = augment.random_colors(sample, np.random.default_rng(5), **options)
    drawn = np.random.default_rng(5)
    factors, gamma, contrast = drawn.uniform(0.5, 2, 3), drawn.uniform(0.7, 1.5), drawn.uniform(-0.8, 0.4)
    shift = 0.2 * drawn.standard_normal()
    for key, image in (("image", first), ("second", second)):
        for c, i, j in np.ndindex(image.shape):
            value = min(image[c, i, j] / 255 * factors[c], 1) ** gamma
            value = min(max((value - 0.5) * (1 + contrast) + 0.5 + shift, 0), 1)
            assert found[key][c, i, j] == pytest.approx(value, abs=1e-5)
        assert found[key].dtype == np.float32
    assert found["labels"] is sample["labels"]
    floats = {key: sample[key].astype(np.float64) / 255 for key in ("image", "second")}
    same = augment.random_colors(floats, np.random.default_rng(5), **options)
    np.testing.assert_allclose(same["image"], found["image"], atol=1e-6)


def test_noise_of_colours_is_as_strong_as_was_drawn_and_differs_between_images():
    grey = np.full((3, 100, 100), 0.5)
    still = {"factor": (1, 1), "gamma": (1, 1), "contrast": (0, 0), "brightness": 0, "noise": 0.1}
    found = augment.random_colors({"image": grey, "second": grey}, np.random.default_rng(2), **still)
    drawn = np.random.default_rng(2)
    drawn.random(5), drawn.standard_normal()
    strength = drawn.uniform(0, 0.1)
    assert np.std(found["image"] - 0.5) == pytest.approx(strength, rel=0.03)
    assert not np.array_equal(found["image"], found["second"])
    with pytest.raises(TypeError, match=r"random_colors: image must be of uint8 or floats, got int16"):
        augment.random_colors({"image": grey.astype(np.int16)}, np.random.default_rng(2))


def test_resized_parts_have_the_share_and_shape_that_was_asked_for():
    """Seen in an image of which each pixel knows its place."""
    height, width = 200, 300
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.float64)
    places = np.concatenate([places, np.zeros((1, height, width))])
    shares, shapes, rng = [], [], np.random.default_rng(3)
    for _ in range(300):
        sample = {"image": places}
        found = augment.random_resized_crop(sample, rng, (8, 8), area=(0.1, 0.5), ratio=(0.5, 2))["image"]
        assert found.shape == (3, 8, 8)
        # Centres of the first and the last of eight pixels are 7/8 of the side apart.
        high, wide = (float(found[k, -1, -1] - found[k, 0, 0]) * 8 / 7 for k in (0, 1))
        shares.append(high * wide / (height * width))
        shapes.append(wide / high)
    assert 0.09 < min(shares) < 0.15 and 0.42 < max(shares) < 0.52
    assert 0.48 < min(shapes) < 0.6 and 1.7 < max(shapes) < 2.1
    assert abs(np.mean(np.log(shapes))) < 0.1
    # What never fits is the whole image.
    whole = augment.random_resized_crop({"image": places}, rng, (200, 300), area=(1, 1), ratio=(9, 9))
    np.testing.assert_allclose(whole["image"], places)
