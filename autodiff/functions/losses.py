"""Losses: a single number, the mean over all elements."""

from typing import Any

from ._common import library, plain
from .activations import log_softmax
from .arithmetic import abs, square, where
from .reductions import mean
from .shapes import getitem


def mse(prediction: Any, target: Any) -> Any:
    """Mean squared error."""
    return mean(square(_difference("mse", prediction, target)))


def l1(prediction: Any, target: Any) -> Any:
    """Mean absolute error."""
    return mean(abs(_difference("l1", prediction, target)))


def smooth_l1(prediction: Any, target: Any, beta: float = 1.0) -> Any:
    """Quadratic below `beta`, linear above (Huber's loss divided by beta)."""
    size = abs(_difference("smooth_l1", prediction, target))
    return mean(where(plain(size) < beta, square(size) * (0.5 / beta), size - 0.5 * beta))


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean negative log-likelihood of integer `labels` (N,) under `logits` (N, K)."""
    if (
        logits.ndim != 2
        or labels.ndim != 1
        or labels.shape[0] != logits.shape[0]
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"cross_entropy: logits must be (N, K) and labels (N,) integers, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)} {labels.dtype}"
        )
    rows = library(labels).arange(len(labels))
    return -mean(getitem(log_softmax(logits, axis=1), (rows, labels)))


def _difference(name: str, prediction: Any, target: Any) -> Any:
    # Broadcasting a loss hides mistakes, such as (N, 1) against (N,).
    if tuple(prediction.shape) != tuple(target.shape):
        raise ValueError(
            f"{name}: prediction and target must have one shape, "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    return prediction - target
