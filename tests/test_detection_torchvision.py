"""What detectors are made of, against torchvision's, whose boxes end behind their last pixel."""

import numpy as np
import pytest
from test_detection import drawn_boxes

from autodiff.metrics import box_iou
from autodiff.networks import detection
from autodiff.networks.detection.boxes import suppressed
from autodiff.networks.detection.detector import box_losses

REASON = "{} is not installed (pip install torch torchvision brings it)"
torch = pytest.importorskip("torch", reason=REASON.format("PyTorch"))
ops = pytest.importorskip("torchvision.ops", reason=REASON.format("torchvision"))
matching = pytest.importorskip("torchvision.models.detection._utils", reason=REASON.format("torchvision"))
BEHIND = np.array([0, 0, 1, 1])


def theirs(boxes: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(boxes + BEHIND)


def test_codes(rng):
    boxes, anchors = (drawn_boxes(rng, 60).astype(np.float64) for _ in range(2))
    coder = matching.BoxCoder((10, 10, 5, 5))
    codes = detection.encode_boxes(boxes, anchors, (0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(
        codes, coder.encode_single(theirs(boxes), theirs(anchors)), rtol=1e-9, atol=1e-9
    )
    codes = rng.normal(0, 8, (60, 4))
    found = detection.decode_boxes(codes, anchors, (0.1, 0.1, 0.2, 0.2)) + BEHIND
    np.testing.assert_allclose(
        found, coder.decode_single(torch.from_numpy(codes), theirs(anchors)), rtol=1e-9
    )


def test_overlaps_clipping_and_suppression(rng):
    boxes = drawn_boxes(rng, 80).astype(np.float64)
    np.testing.assert_allclose(
        box_iou(boxes, boxes[:9]), ops.box_iou(theirs(boxes), theirs(boxes[:9])), rtol=1e-12
    )
    moved = boxes + rng.normal(0, 20, boxes.shape)
    clipped = ops.clip_boxes_to_image(torch.from_numpy(moved), (39, 59))
    np.testing.assert_array_equal(detection.clip_boxes(moved, (40, 60)), clipped)
    scores = rng.random(80)
    for overlap in (0.1, 0.3, 0.7):
        kept = ops.nms(theirs(boxes), torch.from_numpy(scores), overlap)
        assert suppressed(boxes, scores, overlap).tolist() == kept.tolist()


def test_matching_of_anchors(rng):
    anchors, boxes = detection.anchor_boxes((5, 7), 8, (8, 16)), drawn_boxes(rng, 5)
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] <= (59, 39)).all(1)
    matcher = matching.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    found = matcher(ops.box_iou(theirs(boxes).double(), theirs(anchors[inside]).double())).numpy()
    labels, matched = detection.match_anchors(anchors, boxes, (40, 60))
    np.testing.assert_array_equal(labels[inside], np.select([found == -1, found == -2], [0, -1], 1))
    assert (labels[~inside] == -1).all()
    objects = found >= 0
    assert objects.any()
    np.testing.assert_array_equal(matched[inside][objects], found[objects])


def test_anchors(rng):
    """Theirs are rounded around 0 and begin at the corner of a cell; of whole halves they are ours, moved."""
    made = pytest.importorskip("torchvision.models.detection.anchor_utils").AnchorGenerator(
        ((16, 32),), ((1.0,),)
    )
    images = pytest.importorskip("torchvision.models.detection.image_list")
    (found,) = made(images.ImageList(torch.zeros(1, 3, 40, 56), [(40, 56)]), [torch.zeros(1, 1, 5, 7)])
    ours = detection.anchor_boxes((5, 7), 8, (16, 32), (1,)) + BEHIND - 4
    np.testing.assert_allclose(ours, found, atol=1e-5)


def test_smooth_l1(rng):
    one, other = rng.normal(size=(2, 9, 4))
    loss = torch.nn.functional.smooth_l1_loss(
        torch.from_numpy(one), torch.from_numpy(other), reduction="none", beta=1 / 9
    )
    np.testing.assert_allclose(box_losses(one, other, 1 / 9), loss.sum(1), rtol=1e-12)
