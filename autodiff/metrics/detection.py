"""Detection: average precision by the rules of PASCAL VOC."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _inputs

RULES = ("2007", "2012")


class Detections(NamedTuple):
    """What was found in an image: boxes (n, 4), scores (n,), and labels (n,)."""

    boxes: Any
    scores: Any
    labels: Any


class Truth(NamedTuple):
    """What is in an image: boxes (n, 4), labels (n,), and which are difficult and do not count, (n,)."""

    boxes: Any
    labels: Any
    difficult: Any = None


def average_precision(
    scores: Any, correct: Any, positives: int | None = None, *, rule: str = "2012"
) -> float:
    """Average precision of a ranked list, by the rules of PASCAL VOC.

    With precision p and recall r after each entry of the list, and ``P(r) = max(p at recalls >= r)``:
    "2007" is the mean of P at recalls 0, 0.1, ..., 1; "2012", the rule since 2010, is the area under P.

    Parameters
    ----------
    scores : array, (D,)
        By which the list is ranked, highest first. Entries of one score stay in the order given.
    correct : array of bool, (D,)
        Which entries are right.
    positives : int, optional
        How many there are to be found. By default those in the list.
    rule : {"2007", "2012"}
        Whose rule. Recalls are compared as fractions, so that 3 of 10 reach recall 0.3.

    Returns
    -------
    float
        From 0 to 1; 0 for an empty list, NaN if there is nothing to be found.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, a score is NaN, or more is right than is to be found.

    Examples
    --------
    >>> from autodiff.metrics import average_precision
    >>> average_precision([0.9, 0.8, 0.7], [True, False, True], rule="2012")  # 1/2 * 1 + 1/2 * 2/3
    0.8333333333333333
    >>> average_precision([0.9, 0.8, 0.7], [True, False, True], rule="2007")  # (6 * 1 + 5 * 2/3) / 11
    0.8484848484848484
    """
    name = "average_precision"
    scores = _inputs.values(name, "scores", scores)
    correct = _inputs.values(name, "correct", correct)
    if scores.ndim != 1 or correct.shape != scores.shape:
        raise ValueError(
            f"{name}: scores and correct must have shape (D,), got {scores.shape} and {correct.shape}"
        )
    if correct.size and correct.dtype != bool:
        raise TypeError(f"{name}: correct must be booleans, got {correct.dtype}")
    _check_rule(name, rule)
    _check_scores(name, scores)
    right = np.cumsum(correct[np.argsort(-scores.astype(np.float64), kind="stable")].astype(np.int64))
    found = int(right[-1]) if right.size else 0
    positives = found if positives is None else _inputs.count(name, "positives", positives, 0)
    if found > positives:
        raise ValueError(f"{name}: {found} entries are correct, of {positives} positives")
    if positives == 0:
        return float("nan")
    precision = right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "2012":
        # Where one more is found, recall grows by 1 / positives.
        return float(best[np.flatnonzero(np.diff(right, prepend=0))].sum() / positives)
    places = [int(np.searchsorted(right * 10, tenth * positives)) for tenth in range(11)]
    return float(sum(best[place] for place in places if place < len(best)) / 11)


def box_iou(first: Any, second: Any) -> np.ndarray:
    """Intersection over union of boxes, by pairs.

    Parameters
    ----------
    first, second : array, (N, 4) and (M, 4)
        Boxes ``(xmin, ymin, xmax, ymax)`` in pixels, with both ends part of the box, as PASCAL VOC counts: a
        box of one pixel is ``(3, 3, 3, 3)``. One whose end is before its beginning is empty.

    Returns
    -------
    array of float64, (N, M)
        From 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If they are no boxes.

    Examples
    --------
    >>> from autodiff.metrics import box_iou
    >>> box_iou([(0, 0, 9, 9)], [(0, 0, 9, 4), (10, 10, 12, 12)]).tolist()
    [[0.5, 0.0]]
    """
    one, other = (_boxes("box_iou", name, array) for name, array in (("first", first), ("second", second)))
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.maximum(high - low + 1, 0).prod(-1)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2] + 1, 0).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, union, out=np.zeros(both.shape), where=union > 0)


def detection_average_precision(
    detections: Sequence[Any], truth: Sequence[Any], label: int, *, threshold: float = 0.5, rule: str = "2012"
) -> float:
    """Average precision of the detections of one class, as PASCAL VOC's development kit matches them.

    From the highest score of all images down, a detection is compared with the box of its class and image
    that it overlaps most. It is right if the overlap reaches the threshold and that box was not found before;
    it is passed over if the box is difficult, and wrong otherwise: a second detection of one object is wrong.

    Parameters
    ----------
    detections : sequence of `Detections`
        Of each image. Equal scores stay in the order of images and of detections.
    truth : sequence of `Truth`
        Of each image, in the same order. Difficult objects are not among those to be found.
    label : int
        Which class.
    threshold : float
        Least overlap (intersection over union, see `box_iou`).
    rule : {"2007", "2012"}
        As for `average_precision`.

    Returns
    -------
    float
        From 0 to 1; NaN if no object of the class is to be found.

    Raises
    ------
    TypeError, ValueError
        If the images are not as many, shapes do not fit, or a number is NaN.

    Examples
    --------
    >>> from autodiff.metrics import Detections, Truth, detection_average_precision
    >>> found = [Detections([(0, 0, 9, 9), (0, 0, 9, 8)], [0.9, 0.8], [1, 1])]  # twice the same object
    >>> there = [Truth([(0, 0, 9, 9), (50, 50, 60, 60)], [1, 1])]
    >>> detection_average_precision(found, there, 1)
    0.5
    """
    label = _inputs.whole("detection_average_precision", "label", label)
    images = _images("detection_average_precision", detections, truth, threshold, rule)
    return _of_class(images, label, threshold, rule)


def mean_average_precision(
    detections: Sequence[Any],
    truth: Sequence[Any],
    classes: int,
    *,
    threshold: float = 0.5,
    rule: str = "2012",
) -> float:
    """Mean over classes of `detection_average_precision`: the mAP of PASCAL VOC.

    Parameters
    ----------
    detections, truth : sequence of `Detections`, sequence of `Truth`
        As for `detection_average_precision`.
    classes : int
        Labels are 0 to classes - 1. Classes of which nothing is to be found are left out of the mean, also if
        something was detected.
    threshold, rule
        As for `detection_average_precision`.

    Returns
    -------
    float
        From 0 to 1; NaN if nothing is to be found.

    Raises
    ------
    TypeError, ValueError
        As `detection_average_precision`, or if a label is no class.

    Examples
    --------
    >>> from autodiff.metrics import Detections, Truth, mean_average_precision
    >>> found = [Detections([(0, 0, 9, 9)], [0.9], [0])]
    >>> there = [Truth([(0, 0, 9, 9), (50, 50, 60, 60)], [0, 1])]
    >>> mean_average_precision(found, there, 3)
    0.5
    """
    classes = _inputs.count("mean_average_precision", "classes", classes, 1)
    images = _images("mean_average_precision", detections, truth, threshold, rule)
    for number, image in enumerate(images):
        for part in image:
            if part.labels.size and not (part.labels.min() >= 0 and part.labels.max() < classes):
                raise ValueError(
                    f"mean_average_precision: image {number} has a label that is none of {classes} classes"
                )
    each = [_of_class(images, label, threshold, rule) for label in range(classes)]
    known = [value for value in each if value == value]
    return _inputs.average(sum(known), len(known))


def _of_class(images: list[tuple[Detections, Truth]], label: int, threshold: float, rule: str) -> float:
    """Average precision of one class."""
    if not images:
        return float("nan")
    scores, correct, positives = [], [], 0
    for found, there in images:
        own, objects = found.labels == label, there.labels == label
        difficult = there.difficult[objects]
        overlaps = box_iou(found.boxes[own], there.boxes[objects])
        right, passed = _match(overlaps, found.scores[own], difficult, threshold)
        scores.append(found.scores[own][~passed])
        correct.append(right[~passed])
        positives += int((~difficult).sum())
    return average_precision(np.concatenate(scores), np.concatenate(correct), positives, rule=rule)


def _match(
    overlaps: np.ndarray, scores: np.ndarray, difficult: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of an image are right, and which are passed over."""
    right, passed = np.zeros(len(scores), bool), np.zeros(len(scores), bool)
    if not difficult.size:
        return right, passed
    taken = np.zeros(len(difficult), bool)
    for index in np.argsort(-scores, kind="stable"):
        best = int(np.argmax(overlaps[index]))
        if overlaps[index, best] < threshold:
            continue
        if difficult[best]:
            passed[index] = True
        else:
            right[index], taken[best] = not taken[best], True
    return right, passed


def _images(
    name: str, detections: Sequence[Any], truth: Sequence[Any], threshold: float, rule: str
) -> list[tuple[Detections, Truth]]:
    """The images, checked, as arrays."""
    _check_rule(name, rule)
    if not 0 < threshold <= 1:
        raise ValueError(f"{name}: threshold must be over 0 and at most 1, got {threshold!r}")
    if len(detections) != len(truth):
        raise ValueError(f"{name}: got detections of {len(detections)} images and truth of {len(truth)}")
    images = []
    for number, (one, other) in enumerate(zip(detections, truth)):
        found = Detections(*_parts(name, "detections", number, one, (3,)))
        there = Truth(*_parts(name, "truth", number, other, (2, 3)))
        boxes, scores = (
            _boxes(name, f"boxes of image {number}", found.boxes),
            _inputs.values(name, "scores", found.scores),
        )
        _check_scores(name, scores)
        own = Detections(boxes, scores.astype(np.float64), _inputs.labels(name, "labels", found.labels))
        objects = _inputs.labels(name, "labels", there.labels)
        hard = (
            np.zeros(objects.shape, bool)
            if there.difficult is None
            else _inputs.values(name, "difficult", there.difficult)
        )
        object_boxes = _boxes(name, f"boxes of image {number}", there.boxes)
        for part, count in (
            (own.scores, len(boxes)),
            (own.labels, len(boxes)),
            (objects, len(object_boxes)),
            (hard, len(object_boxes)),
        ):
            if part.shape != (count,):
                raise ValueError(
                    f"{name}: image {number} has {count} boxes, but other values of shape {part.shape}"
                )
        images.append((own, Truth(object_boxes, objects, hard.astype(bool))))
    return images


def _parts(name: str, argument: str, number: int, given: Any, counts: tuple[int, ...]) -> tuple[Any, ...]:
    """What an argument has of an image: as many parts as there may be."""
    if not isinstance(given, tuple | list) or len(given) not in counts:
        kind = Detections if argument == "detections" else Truth
        raise TypeError(
            f"{name}: {argument} must be a sequence with ({', '.join(kind._fields)}) of each image, "
            f"got a {type(given).__name__} of image {number}"
        )
    return tuple(given)


def _boxes(function: str, name: str, boxes: Any) -> np.ndarray:
    found = _inputs.values(function, name, boxes).astype(np.float64)
    found = found.reshape(0, 4) if found.shape == (0,) else found
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"{function}: {name} must have shape (n, 4), got {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{function}: {name} must be finite")
    return found


def _check_rule(function: str, rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"{function}: rule must be one of {', '.join(RULES)}, got {rule!r}")


def _check_scores(function: str, scores: np.ndarray) -> None:
    if np.isnan(scores.astype(np.float64)).any():
        raise ValueError(f"{function}: scores must not be NaN: they would have no rank")
