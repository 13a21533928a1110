"""What recipes on PASCAL VOC share: parts of images, and how classes are judged."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from _recipe import IMAGENET_MEAN, ranks, share, standardized

from autodiff.data import augment
from autodiff.metrics import Confusion

CLASSES, IGNORED = 21, 255


def random_part(sample: dict[str, Any], rng: np.random.Generator, size: tuple[int, int]) -> dict[str, Any]:
    """A part of the image, perhaps mirrored, with mean grey beside it that does not count."""
    fill = 255 * np.array(IMAGENET_MEAN)
    sample = augment.random_crop(augment.random_mirror(sample, rng), rng, size, fill=fill, ignore=IGNORED)
    return {"images": standardized(sample["image"]), "labels": sample["labels"].astype(np.int64)}


def counted(images: np.ndarray, labels: np.ndarray) -> float:
    """How much the mean over the pixels of a share counts, beside those of other ranks."""
    return float((labels != IGNORED).sum())


def judge(samples: Sequence[Any], scores: Callable[[np.ndarray], Any]) -> dict[str, float]:
    """Mean intersection over union of whole images, by the scores (1, CLASSES, H, W) of each."""
    confusion = Confusion(CLASSES, ignore=IGNORED)
    for sample in share(samples):
        found = scores(standardized(sample["image"])[None])
        confusion.add(found[0].argmax(0), sample["labels"])
    confusion.counts = ranks().sum(confusion.counts)
    return {"mean_iou": confusion.mean_iou, "pixel_accuracy": confusion.pixel_accuracy}
