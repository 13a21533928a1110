"""What anchors and proposals are to become: their objects, and which of them are learned from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...functions._common import plain
from ...metrics import box_iou


def match_anchors(
    anchors: Any, boxes: Any, size: tuple[int, int], *, positive: float = 0.7, negative: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Which anchors are objects, which are background, and which are left out, by what they overlap.

    An anchor is an object if it overlaps one by `positive` or more (intersection over union), or if none
    overlaps this object more; it is background if it overlaps all by less than `negative`.

    Parameters
    ----------
    anchors : array, (K, 4)
        Those that leave the image are left out, as the publication does it in training.
    boxes : array, (M, 4)
        The objects.
    size : (int, int)
        Height and width of the image.
    positive, negative : float
        The bounds.

    Returns
    -------
    labels : array of int64, (K,)
        1 for objects, 0 for background, -1 for what is left out.
    matched : array of int64, (K,)
        The object that each anchor overlaps most; 0 if there are none.

    Examples
    --------
    >>> from autodiff.networks.detection import match_anchors
    >>> anchors = [(0, 0, 9, 9), (10, 0, 19, 9), (0, 10, 9, 19), (3, 0, 12, 9)]
    >>> match_anchors(anchors, [(0, 0, 9, 7)], (20, 20))[0].tolist()
    [1, 0, 0, -1]
    """
    anchors = np.asarray(plain(anchors))
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] <= (size[1] - 1, size[0] - 1)).all(1)
    labels, matched = np.where(inside, 0, -1), np.zeros(len(anchors), np.int64)
    if not len(boxes) or not inside.any():
        return labels, matched
    overlaps = box_iou(anchors[inside], boxes)
    matched[inside], most = overlaps.argmax(1), overlaps.max(1)
    best = overlaps.max(0)
    # The best anchors of an object are objects, however little they overlap it, but not if they miss it.
    nearest = ((overlaps == best) & (best > 0)).any(1)
    found = np.where(most < negative, 0, -1)
    found[nearest | (most >= positive)] = 1
    labels[inside] = found
    return labels, matched


def match_proposals(
    proposals: Any, boxes: Any, labels: Any, *, positive: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each proposal: that of the object that it overlaps most, or background.

    Parameters
    ----------
    proposals : array, (R, 4)
        Regions.
    boxes, labels : array, (M, 4) and (M,)
        The objects and their classes, from 0 on.
    positive : float
        Least overlap with an object (intersection over union).

    Returns
    -------
    classes : array of int64, (R,)
        0 for the background, ``label + 1`` for objects.
    matched : array of int64, (R,)
        The object that each overlaps most; 0 if there are none.

    Examples
    --------
    >>> from autodiff.networks.detection import match_proposals
    >>> match_proposals([(0, 0, 9, 9), (50, 50, 59, 59)], [(0, 0, 9, 6)], [7])[0].tolist()
    [8, 0]
    """
    classes = matched = np.zeros(len(proposals), np.int64)
    if len(boxes) and len(proposals):
        overlaps = box_iou(proposals, boxes)
        matched = overlaps.argmax(1)
        classes = np.where(overlaps.max(1) >= positive, np.asarray(labels)[matched] + 1, 0)
    return classes, matched


def sample_labels(labels: Any, count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw so many anchors or proposals to learn from, of which a share at most are objects.

    Parameters
    ----------
    labels : array of int, (K,)
        Above 0 for objects, 0 for background; others are never drawn.
    count : int
        How many. If there are fewer objects, more of the background are drawn; if that does not suffice
        either, there are fewer.
    share : float
        Of objects, at most.
    rng : Generator
        Where the random numbers come from.

    Returns
    -------
    array of int64
        Their indices, rising.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks.detection import sample_labels
    >>> sample_labels([1, 0, -1, 0, 2], 3, 0.7, np.random.default_rng(0)).tolist()
    [0, 3, 4]
    """
    labels = np.asarray(labels)
    objects, background = np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)
    most = min(len(objects), round(count * share))
    chosen = rng.choice(objects, most, replace=False) if most < len(objects) else objects
    most = min(len(background), count - len(chosen))
    others = rng.choice(background, most, replace=False) if most < len(background) else background
    return np.sort(np.concatenate([chosen, others]))


def hardest(losses: Any, images: Any, count: int) -> np.ndarray:
    """Online hard example mining: of each image the so many regions of the largest loss.

    Parameters
    ----------
    losses : array, (R,)
        Of each region. Only values are read.
    images : array of int, (R,)
        The image of each.
    count : int
        How many of an image at most.

    Returns
    -------
    array of int64
        Their indices, image by image, by falling loss.

    References
    ----------
    Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016.

    Examples
    --------
    >>> from autodiff.networks.detection import hardest
    >>> hardest([0.1, 0.3, 0.2, 0.5], [0, 0, 0, 1], 2).tolist()
    [1, 2, 3]
    """
    losses, images = np.asarray(losses), np.asarray(images)
    order = np.lexsort((-losses, images))
    # The place of each within its image: images are runs of the order.
    ranks = np.arange(len(order)) - np.searchsorted(images[order], images[order])
    return order[ranks < count]


def of_images(parts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (R, 4) of all images in one array of float32, and the image of each, (R,)."""
    boxes = [np.asarray(part, np.float32).reshape(-1, 4) for part in parts]
    index = np.repeat(np.arange(len(boxes)), [len(part) for part in boxes])
    return np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32), index
