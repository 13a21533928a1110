"""Classification: is the label among the highest scores?"""

from typing import Any

import numpy as np

from . import _inputs


def top_k_accuracy(scores: Any, target: Any, k: int = 1) -> float:
    """The share of images whose label has one of the k highest scores, as ImageNet measures.

    An image counts if fewer than k other classes have a score that is as high as that of its label: where
    scores are equal, the label is taken to be the last of them. So a network that gives all classes the same
    score is right nowhere, and the order of the classes changes nothing.

    Parameters
    ----------
    scores : array, (N, C)
        Of each class; logits or probabilities. Where one is NaN, it is taken to be higher than all others,
        but a label whose score is NaN is not found.
    target : array of int, (N,)
        The labels, 0 to C - 1.
    k : int
        From 1 to C.

    Returns
    -------
    float
        From 0 to 1; NaN if there is no image.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, or a label is no class.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import top_k_accuracy
    >>> scores = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    >>> top_k_accuracy(scores, np.array([0, 1])), top_k_accuracy(scores, np.array([0, 1]), k=2)
    (0.5, 1.0)
    """
    name = "top_k_accuracy"
    scores, target = _inputs.values(name, "scores", scores), _inputs.labels(name, "target", target)
    k = _inputs.count(name, "k", k, 1)
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"{name}: scores must have shape (N, C) and target (N,), got {scores.shape} and {target.shape}"
        )
    classes = scores.shape[1]
    if k > classes:
        raise ValueError(f"{name}: k must be at most the number of classes, {classes}, got {k}")
    if target.size and not (target.min() >= 0 and target.max() < classes):
        wrong = target[(target < 0) | (target >= classes)][0]
        raise ValueError(f"{name}: target has label {wrong}, of {classes} classes")
    own = scores[np.arange(len(scores)), target.astype(np.int64)][:, None]
    # The label itself is among those that are not lower. A score that is NaN is not lower than any.
    ahead = (~(scores < own)).sum(1) - 1
    return _inputs.average(((ahead < k) & ~np.isnan(own[:, 0])).sum(), len(scores))
