"""Optical flow: how far the end of a vector is from where it should be."""

from typing import Any

import numpy as np

from . import _inputs


def end_point_error(prediction: Any, target: Any, valid: Any = None) -> float:
    """Mean length of the difference between two fields of vectors, in pixels.

    Parameters
    ----------
    prediction, target : array, (..., 2, H, W)
        Displacements along x and y; one shape.
    valid : array, (..., H, W), optional
        Which pixels count: those that are not 0. What the others hold, NaN too, has no influence.

    Returns
    -------
    float
        NaN if no pixel counts, or one that counts is NaN.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import end_point_error
    >>> target = np.zeros((2, 1, 2))
    >>> prediction = np.array([[[3.0, 0.0]], [[4.0, 1.0]]])
    >>> end_point_error(prediction, target), end_point_error(prediction, target, np.array([[1, 0]]))
    (3.0, 5.0)
    """
    error, _ = _errors("end_point_error", prediction, target, valid)
    return _inputs.average(error.sum(), error.size)


def flow_outliers(prediction: Any, target: Any, valid: Any = None) -> float:
    """The share of pixels whose vector is wrong, KITTI's Fl: by more than 3 pixels and by more than 5 %.

    Parameters
    ----------
    prediction, target : array, (..., 2, H, W)
        Displacements along x and y; one shape.
    valid : array, (..., H, W), optional
        Which pixels count: those that are not 0.

    Returns
    -------
    float
        From 0 to 1, where KITTI's tables have percents; NaN if no pixel counts, or one that counts is NaN.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import flow_outliers
    >>> target = np.array([[[0.0, 100.0]], [[0.0, 0.0]]])
    >>> flow_outliers(target + 3.0, target)  # both are wrong by 4.2 pixels, which is 4.2 % of the second
    0.5
    """
    error, length = _errors("flow_outliers", prediction, target, valid)
    if np.isnan(error).any() or np.isnan(length).any():
        return float("nan")
    return _inputs.average(((error > 3) & (error > 0.05 * length)).sum(), error.size)


def _errors(function: str, prediction: Any, target: Any, valid: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel that counts: the length of the difference, and that of the target."""
    prediction = _inputs.values(function, "prediction", prediction)
    target = _inputs.values(function, "target", target)
    _inputs.same_shape(function, prediction, target)
    if target.ndim < 3 or target.shape[-3] != 2:
        raise ValueError(
            f"{function}: prediction and target must have shape (..., 2, H, W), got {target.shape}"
        )
    shape = (*target.shape[:-3], *target.shape[-2:])
    counted = np.ones(shape, bool)
    if valid is not None:
        counted = _inputs.values(function, "valid", valid) != 0
        if counted.shape != shape:
            raise ValueError(f"{function}: valid must have shape (..., H, W) = {shape}, got {counted.shape}")

    def along(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        array = np.moveaxis(array, -3, 0)
        return array[0][counted].astype(np.float64), array[1][counted].astype(np.float64)

    (x, y), (target_x, target_y) = along(prediction), along(target)
    return np.hypot(x - target_x, y - target_y), np.hypot(target_x, target_y)
