"""Segmentation: intersection over union, and the share of pixels that are right."""

from typing import Any

import numpy as np

from . import _inputs


class Confusion:
    """Counts which class was taken for which, over as many images as there are.

    The measures of a data set are those of its counts, not the means of those of its images.

    Parameters
    ----------
    classes : int
        Number of classes; labels are 0 to classes - 1.
    ignore : int, optional
        The one label of the target whose pixels do not count, such as 255 for the borders of objects in
        PASCAL VOC.

    Attributes
    ----------
    counts : array of int64, (classes, classes)
        ``counts[i, j]`` pixels of class i were predicted to be of class j.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import Confusion
    >>> confusion = Confusion(2, ignore=255)
    >>> confusion.add(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]))
    >>> confusion.counts.tolist(), confusion.iou.tolist(), confusion.mean_iou
    ([[1, 0], [1, 1]], [0.5, 0.5], 0.5)
    """

    def __init__(self, classes: int, *, ignore: int | None = None) -> None:
        self.classes = _inputs.count("Confusion", "classes", classes, 1)
        self.ignore = _inputs.ignored("Confusion", ignore)
        self.counts = np.zeros((self.classes, self.classes), np.int64)

    def add(self, prediction: Any, target: Any) -> None:
        """Count the pixels of an image, or of a batch.

        Parameters
        ----------
        prediction, target : array of int, any shape
            The labels that were found, and the true ones; both of one shape.

        Raises
        ------
        TypeError, ValueError
            If they are no integers, of two shapes, or a pixel that counts has a label that is no class.
        """
        prediction = _inputs.labels("Confusion.add", "prediction", prediction)
        target = _inputs.labels("Confusion.add", "target", target)
        _inputs.same_shape("Confusion.add", prediction, target)
        prediction, target = prediction.ravel(), target.ravel()
        if self.ignore is not None:
            counted = target != self.ignore
            prediction, target = prediction[counted], target[counted]
        for name, array in (("prediction", prediction), ("target", target)):
            if array.size and not (array.min() >= 0 and array.max() < self.classes):
                wrong = array[(array < 0) | (array >= self.classes)][0]
                raise ValueError(f"Confusion.add: {name} has label {wrong}, of {self.classes} classes")
        pairs = target.astype(np.int64) * self.classes + prediction.astype(np.int64)
        self.counts += np.bincount(pairs, minlength=self.classes**2).reshape(self.counts.shape)

    @property
    def iou(self) -> np.ndarray:
        """Of each class, (classes,) in float64: pixels of it that were found, over pixels of it or taken for
        it. NaN for a class of which there are neither.
        """
        found = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - found
        return np.divide(found, union, out=np.full(self.classes, np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        """The mean of `iou` over the classes that have one; NaN if none has."""
        found = self.iou[~np.isnan(self.iou)]
        return _inputs.average(found.sum(), found.size)

    @property
    def pixel_accuracy(self) -> float:
        """The share of pixels whose class was found; NaN if no pixel counts."""
        return _inputs.average(np.trace(self.counts), self.counts.sum())

    @property
    def mean_accuracy(self) -> float:
        """The mean, over the classes that occur, of the share of their pixels that were found, or NaN."""
        pixels = self.counts.sum(1)
        there = pixels > 0
        return _inputs.average((np.diag(self.counts)[there] / pixels[there]).sum(), there.sum())


def mean_iou(prediction: Any, target: Any, classes: int, *, ignore: int | None = None) -> float:
    """Mean over classes of intersection over union, as PASCAL VOC measures segmentation.

    ``IoU = true positives / (true positives + false positives + false negatives)``, of all pixels together.

    Parameters
    ----------
    prediction, target : array of int
        Labels of one shape. For more images than fit in memory see `Confusion`.
    classes : int
        Number of classes. Those that occur in neither are left out of the mean.
    ignore : int, optional
        The one label of the target whose pixels do not count.

    Returns
    -------
    float
        From 0 to 1; NaN if no pixel counts.

    Raises
    ------
    TypeError, ValueError
        As `Confusion.add`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import mean_iou
    >>> mean_iou(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]), 2, ignore=255)
    0.5
    """
    confusion = Confusion(classes, ignore=ignore)
    confusion.add(prediction, target)
    return confusion.mean_iou


def pixel_accuracy(prediction: Any, target: Any, *, ignore: int | None = None) -> float:
    """The share of pixels whose label was found.

    Parameters
    ----------
    prediction, target : array of int
        Labels of one shape.
    ignore : int, optional
        The one label of the target whose pixels do not count.

    Returns
    -------
    float
        From 0 to 1; NaN if no pixel counts.

    Raises
    ------
    TypeError, ValueError
        If they are no integers, or of two shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import pixel_accuracy
    >>> pixel_accuracy(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]), ignore=255) == 2 / 3
    True
    """
    prediction = _inputs.labels("pixel_accuracy", "prediction", prediction)
    target = _inputs.labels("pixel_accuracy", "target", target)
    _inputs.same_shape("pixel_accuracy", prediction, target)
    ignore = _inputs.ignored("pixel_accuracy", ignore)
    counted = np.ones(target.shape, bool) if ignore is None else target != ignore
    return _inputs.average(((prediction == target) & counted).sum(), counted.sum())
