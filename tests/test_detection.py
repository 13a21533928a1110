"""Boxes, and what they are to become: against definitions written out here, box by box."""

import math

import numpy as np
import pytest

from autodiff import functions as F
from autodiff.check import check_gradients
from autodiff.networks import detection
from autodiff.networks.detection.detector import box_losses


def drawn_boxes(rng: np.random.Generator, count: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Boxes of at least a pixel, within an image."""
    ends = rng.uniform(0, [size[1] - 1, size[0] - 1], (2, count, 2))
    return np.concatenate([ends.min(0), ends.max(0)], axis=1).astype(np.float32)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union, both ends part of the box."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    wide = min(one[2], other[2]) - max(one[0], other[0]) + 1
    high = min(one[3], other[3]) - max(one[1], other[1]) + 1
    both = max(wide, 0.0) * max(high, 0.0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return both / (sum(areas) - both)


def decoded(code: np.ndarray, anchor: np.ndarray, spread: tuple = (1, 1, 1, 1)) -> list[float]:
    """One box."""
    wide, high = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
    x = (anchor[0] + anchor[2]) / 2 + code[0] * spread[0] * wide
    y = (anchor[1] + anchor[3]) / 2 + code[1] * spread[1] * high
    wide *= math.exp(min(code[2] * spread[2], math.log(62.5)))
    high *= math.exp(min(code[3] * spread[3], math.log(62.5)))
    return [x - (wide - 1) / 2, y - (high - 1) / 2, x + (wide - 1) / 2, y + (high - 1) / 2]


def kept(boxes: np.ndarray, scores: np.ndarray, most: float) -> list[int]:
    """Greedy suppression."""
    found: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(overlap(boxes[index], boxes[other]) <= most for other in found):
            found.append(index)
    return found


def test_anchors_are_where_and_what_they_are_said_to_be():
    found = detection.anchor_boxes((2, 3), 8, (10, 20), (0.5, 2))
    expected = []
    for row in range(2):
        for column in range(3):
            for size in (10, 20):
                for ratio in (0.5, 2):
                    high, wide = size * math.sqrt(ratio), size / math.sqrt(ratio)
                    # The centre of a cell of pixels 0 to 7 is 3.5.
                    y, x = 8 * row + 3.5, 8 * column + 3.5
                    expected.append(
                        [x - (wide - 1) / 2, y - (high - 1) / 2, x + (wide - 1) / 2, y + (high - 1) / 2]
                    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert detection.anchor_boxes((0, 3), 8, (10,)).shape == (0, 4)


def test_boxes_are_coded_by_the_formula_and_decoded_to_themselves(rng):
    boxes, anchors = (drawn_boxes(rng, 50).astype(np.float64) for _ in range(2))
    spread = (0.1, 0.2, 0.3, 0.4)
    codes = detection.encode_boxes(boxes, anchors, spread)
    for code, box, anchor in zip(codes, boxes, anchors):
        wide, high = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
        assert code[0] * 0.1 == pytest.approx((box[0] + box[2] - anchor[0] - anchor[2]) / 2 / wide)
        assert code[1] * 0.2 == pytest.approx((box[1] + box[3] - anchor[1] - anchor[3]) / 2 / high)
        assert code[2] * 0.3 == pytest.approx(math.log((box[2] - box[0] + 1) / wide))
        assert code[3] * 0.4 == pytest.approx(math.log((box[3] - box[1] + 1) / high))
    np.testing.assert_allclose(detection.decode_boxes(codes, anchors, spread), boxes, atol=1e-9)


def test_codes_stand_for_the_boxes_of_the_formula_also_where_they_are_huge(rng):
    codes, anchors = rng.normal(0, 1.5, (60, 4)), drawn_boxes(rng, 60).astype(np.float64)
    codes[0], codes[1] = 1e3, -1e3
    expected = [decoded(code, anchor, (1, 1, 0.5, 0.5)) for code, anchor in zip(codes, anchors)]
    found = detection.decode_boxes(codes, anchors, (1, 1, 0.5, 0.5))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isfinite(found).all()


def test_boxes_are_clipped_to_the_pixels_of_the_image(rng):
    boxes = rng.uniform(-30, 90, (40, 4))
    expected = [
        [min(max(x0, 0), 59), min(max(y0, 0), 39), min(max(x1, 0), 59), min(max(y1, 0), 39)]
        for x0, y0, x1, y1 in boxes
    ]
    assert detection.clip_boxes(boxes, (40, 60)).tolist() == expected


def naive_anchor_labels(anchors: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[int]:
    inside = [a[0] >= 0 and a[1] >= 0 and a[2] <= size[1] - 1 and a[3] <= size[0] - 1 for a in anchors]
    table = [[overlap(anchor, box) for box in boxes] for anchor in anchors.astype(float)]
    best = [max((row[m] for row, i in zip(table, inside) if i), default=0) for m in range(len(boxes))]
    labels = []
    for row, i in zip(table, inside):
        if not i:
            labels.append(-1)
        elif max(row, default=0) >= 0.7 or any(o == b > 0 for o, b in zip(row, best)):
            labels.append(1)
        else:
            labels.append(0 if max(row, default=0) < 0.3 else -1)
    return labels


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_anchors_are_matched_by_the_rules_of_the_publication(count, seed):
    rng = np.random.default_rng(seed)
    anchors = detection.anchor_boxes((5, 7), 8, (8, 16, 30))
    boxes = drawn_boxes(rng, count)
    labels, matched = detection.match_anchors(anchors, boxes, (40, 60))
    assert labels.tolist() == naive_anchor_labels(anchors, boxes, (40, 60))
    for row in np.flatnonzero(labels == 1):
        found = [overlap(anchors[row].astype(float), box) for box in boxes]
        assert matched[row] == int(np.argmax(found))
    if count:
        assert (labels == 1).any() and (labels == 0).any() and (labels == -1).any()


def test_an_object_that_no_anchor_touches_makes_none_an_object():
    labels, _ = detection.match_anchors([(0, 0, 9, 9), (5, 5, 9, 9)], [(30, 30, 39, 39)], (50, 50))
    assert labels.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_proposals_get_the_class_of_the_object_that_they_overlap_most(seed):
    rng = np.random.default_rng(seed)
    boxes, labels = drawn_boxes(rng, 4), np.array([2, 0, 5, 2])
    moved = boxes[rng.integers(0, 4, 30)] + rng.normal(0, 4, (30, 4)).astype(np.float32)
    classes, matched = detection.match_proposals(moved, boxes, labels)
    for box, own, index in zip(moved.astype(float), classes, matched):
        found = [overlap(box, other) for other in boxes]
        assert index == int(np.argmax(found))
        assert own == (labels[index] + 1 if max(found) >= 0.5 else 0)
    assert 0 < (classes > 0).sum() < 30
    assert detection.match_proposals(moved, boxes[:0], labels[:0])[0].tolist() == [0] * 30


@pytest.mark.parametrize(
    ("objects", "background", "expected"),
    [(50, 100, (8, 8)), (3, 100, (3, 13)), (50, 4, (8, 4)), (0, 0, (0, 0))],
)
def test_samples_have_objects_and_background_in_their_share(rng, objects, background, expected):
    labels = rng.permutation(np.repeat([1, 3, 0, -1], [objects // 2, objects - objects // 2, background, 20]))
    chosen = detection.sample_labels(labels, 16, 0.5, rng)
    assert (np.diff(chosen) > 0).all()
    assert ((labels[chosen] > 0).sum(), (labels[chosen] == 0).sum()) == expected
    assert len(chosen) == sum(expected)


def test_samples_are_drawn_evenly():
    rng, counts = np.random.default_rng(0), np.zeros(12)
    for _ in range(2000):
        counts[detection.sample_labels([1] * 4 + [0] * 8, 4, 0.5, rng)] += 1
    # 2 of 4 objects and 2 of 8 others, in each of 2000 draws: six standard deviations are less than 140.
    assert abs(counts[:4] - 1000).max() < 140 and abs(counts[4:] - 500).max() < 140


def test_the_hardest_regions_are_those_of_the_largest_losses_of_each_image(rng):
    losses, images = rng.random(30), rng.integers(0, 4, 30)
    images[images == 2] = 3  # an image without regions
    expected = []
    for image in (0, 1, 3):
        own = [i for i in range(30) if images[i] == image]
        expected += sorted(own, key=lambda i: -losses[i])[:5]
    assert detection.hardest(losses, images, 5).tolist() == expected


def test_smooth_l1_of_boxes_and_cross_entropy_of_regions(rng):
    scores, moved = rng.normal(size=(6, 4)), rng.normal(0, 1.5, (6, 4))
    classes, codes = np.array([0, 1, 3, 0, 2, 0]), rng.normal(size=(6, 4))

    def smooth(beta: float, row: int) -> float:
        sizes = abs(moved[row] - codes[row])
        return sum(s * s / (2 * beta) if s < beta else s - beta / 2 for s in sizes)

    np.testing.assert_allclose(box_losses(moved, codes, 1 / 9), [smooth(1 / 9, row) for row in range(6)])
    expected = [
        -math.log(math.exp(scores[row, own]) / np.exp(scores[row]).sum()) + (smooth(1, row) if own else 0)
        for row, own in enumerate(classes)
    ]
    np.testing.assert_allclose(detection.region_losses(scores, moved, classes, codes), expected)
    check_gradients(
        lambda s, m: F.sum(detection.region_losses(s, m, classes, codes)), scores, moved, verbose=False
    )
