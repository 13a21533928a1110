"""Losses: a single number, the mean over all elements."""

from typing import Any

import numpy as np

from ._arguments import arguments, array, fractional, integer, integers, number, optional
from ._common import library, plain
from .activations import log_softmax
from .arithmetic import abs, square
from .indexing import getitem
from .reductions import mean, root
from .selection import where
from .shapes import astype, expand_dims, moveaxis, narrow, reshape, sum, wide


@arguments(prediction=fractional, target=fractional)
def mse(prediction: Any, target: Any) -> Any:
    """Mean squared error.

    Parameters
    ----------
    prediction, target : array
        Of one shape, which may be any.

    Returns
    -------
    array, ()
        A single number; floats keep their dtype, integers give float64.

    Raises
    ------
    ValueError
        If the shapes differ: nothing broadcasts.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> float(F.mse(np.array([1.0, 2.0]), np.array([0.0, 4.0])))
    2.5
    """
    return mean(square(_difference("mse", prediction, target)))


@arguments(prediction=fractional, target=fractional)
def l1(prediction: Any, target: Any) -> Any:
    """Mean absolute error.

    Parameters
    ----------
    prediction, target : array
        Of one shape, which may be any.

    Returns
    -------
    array, ()
        A single number; floats keep their dtype, integers give float64.

    Raises
    ------
    ValueError
        If the shapes differ: nothing broadcasts.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> float(F.l1(np.array([1.0, 2.0]), np.array([0.0, 4.0])))
    1.5
    """
    return mean(abs(_difference("l1", prediction, target)))


@arguments(prediction=fractional, target=fractional, beta=number(above=0))
def smooth_l1(prediction: Any, target: Any, beta: float = 1.0) -> Any:
    """Quadratic below `beta`, linear above (Huber's loss divided by beta).

    Parameters
    ----------
    prediction, target : array
        Of one shape, which may be any.
    beta : float
        Where the two parts meet, in the unit of the difference; more than 0.

    Returns
    -------
    array, ()
        A single number; floats keep their dtype, integers give float64.

    Raises
    ------
    ValueError
        If the shapes differ: nothing broadcasts.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> float(F.smooth_l1(np.array([0.5]), np.zeros(1))), float(F.smooth_l1(np.array([3.0]), np.zeros(1)))
    (0.125, 2.5)
    """
    difference = _difference("smooth_l1", prediction, target)
    return narrow(mean(huber(difference, beta)), difference.dtype)


def huber(difference: Any, beta: float) -> Any:
    """What `smooth_l1` takes the mean of, element by element; 16 bits become float32."""
    size = abs(difference)
    small = plain(size) < beta
    near = where(
        small, size, size.dtype.type(0)
    )  # the square of what is infinite has no slope, not even 0 of it
    return where(small, square(near) * (0.5 / beta), size - 0.5 * beta)


@arguments(flow=fractional, target=fractional, valid=optional(array))
def end_point_error(flow: Any, target: Any, valid: Any = None) -> Any:
    """Mean length of the difference of two vector fields (N, 2, H, W), the error of optical flow.

    Parameters
    ----------
    flow, target : array, (N, D, ...)
        Vectors along axis 1.
    valid : array, (N, ...), optional
        Weights of the pixels, for example 1 where the target is known and 0 elsewhere: the mean is weighted,
        and 0 if all weights are. Where the weight is 0 the target may be anything, NaN too.

    Returns
    -------
    array, ()
        A single number, in the unit of the vectors.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Notes
    -----
    The slope of the length of a vector at 0 is taken as 0.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> flow, target = np.zeros((1, 2, 1, 2)), np.array([[3.0, 0.0], [4.0, 1.0]]).reshape(1, 2, 1, 2)
    >>> float(F.end_point_error(flow, target))  # the mean of 5 and 1
    3.0
    """
    if flow.ndim < 2:
        raise ValueError(f"end_point_error: flow must have shape (N, D, ...), got {tuple(flow.shape)}")
    if valid is None:
        return mean(_length(_difference("end_point_error", flow, target)))
    shape = (*target.shape[:1], *target.shape[2:])
    if tuple(valid.shape) != shape:
        raise ValueError(f"end_point_error: valid must have shape {shape}, got {tuple(valid.shape)}")
    difference = _difference("end_point_error", flow, target)
    known = expand_dims(valid, 1) != 0
    lengths = wide(_length(where(known, difference, difference.dtype.type(0))))
    weights = astype(valid, lengths.dtype)
    total = sum(weights)
    return narrow(sum(lengths * weights) / (total + (plain(total) == 0)), difference.dtype)


def _length(vectors: Any) -> Any:
    """Length along axis 1."""
    return root(sum(square(vectors), 1))


@arguments(logits=fractional, labels=integers, ignore_index=optional(integer()))
def cross_entropy(logits: Any, labels: Any, *, ignore_index: int | None = None) -> Any:
    """Mean negative log-likelihood of integer labels.

    Parameters
    ----------
    logits : array, (N, K, ...)
        Logarithms of the probabilities of K classes, up to a constant for each element.
    labels : array of int, (N, ...)
        The classes, from 0 to K - 1.
    ignore_index : int, optional
        Elements with this label do not count, whatever their logits are; if none is left, the loss is 0.

    Returns
    -------
    array, ()
        A single number, in nats, with the dtype of the logits.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a label is not one of the classes; on a device, where looking would mean
        waiting, the loss is then NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> logits = np.array([[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]])
    >>> float(F.cross_entropy(logits, np.array([0, 1, 255]), ignore_index=255).round(4))
    0.3466
    """
    shape = (*logits.shape[:1], *logits.shape[2:])
    if logits.ndim < 2 or tuple(labels.shape) != shape:
        raise ValueError(
            f"cross_entropy: logits must be (N, K, ...) and labels (N, ...), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    xp, classes = library(labels), logits.shape[1]
    counted = labels != ignore_index if ignore_index is not None else xp.ones(shape, bool)
    inside = (labels >= 0) & (labels < classes)
    if xp is np and not inside[counted].all():
        wrong = labels[counted & ~inside].ravel()[0]
        raise ValueError(f"cross_entropy: labels must be from 0 to {classes - 1}, got {wrong}")
    if ignore_index is not None:
        logits = where(counted[:, None], logits, logits.dtype.type(0))
    scores = reshape(moveaxis(log_softmax(logits, axis=1), 1, -1), (-1, classes))
    picked = getitem(scores, (xp.arange(labels.size), xp.where(inside, labels, 0).ravel()))
    # A label out of range on a device, where looking would mean waiting, makes the loss NaN.
    picked = wide(picked)
    weights = xp.where(counted, xp.where(inside, 1.0, np.nan), 0.0).ravel().astype(picked.dtype)
    total = counted.sum().astype(picked.dtype)
    return narrow(-sum(picked * weights) / (total + (total == 0)), logits.dtype)


def _difference(name: str, prediction: Any, target: Any) -> Any:
    # Broadcasting a loss hides mistakes, such as (N, 1) against (N,).
    if tuple(prediction.shape) != tuple(target.shape):
        raise ValueError(
            f"{name}: prediction and target must have one shape, "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    return prediction - target
