"""Images: peak signal-to-noise ratio and structural similarity."""

from typing import Any

import numpy as np

from . import _inputs

# The constants of Wang et al., 2004.
K1, K2 = 0.01, 0.03
SIGMA, RADIUS = 1.5, 5  # of the Gaussian window


def psnr(prediction: Any, target: Any, *, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio, ``10 * log10(data_range**2 / mean((prediction - target)**2))``, in dB.

    Parameters
    ----------
    prediction, target : array
        Of one shape.
    data_range : float, optional
        The largest difference that there can be: 1 for images from 0 to 1. Must be given for floating types;
        for integers it is by default that of their type, from 0 where no value of the target is negative.

    Returns
    -------
    float
        Infinite if both are equal, NaN if they are empty or one is NaN.

    Raises
    ------
    TypeError, ValueError
        If shapes differ, or `data_range` is missing or not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import psnr
    >>> psnr(np.full((4, 4), 0.6), np.full((4, 4), 0.5), data_range=1)  # doctest: +ELLIPSIS
    20.0...
    """
    prediction, target, limit = _images("psnr", prediction, target, data_range)
    with np.errstate(divide="ignore"):
        error = _inputs.average(np.square(prediction - target).sum(), target.size)
        return float(10 * np.log10(np.divide(limit**2, error)))


def ssim(
    prediction: Any, target: Any, *, data_range: float | None = None, window: int = 7, gaussian: bool = False
) -> float:
    """Mean structural similarity (Wang et al., 2004) of images, as scikit-image computes it.

    In a window around each pixel, with means m, variances v and covariance c of both images x and y::

        ((2*mx*my + C1) * (2*c + C2)) / ((mx**2 + my**2 + C1) * (vx + vy + C2))

    with ``C1 = (0.01*data_range)**2`` and ``C2 = (0.03*data_range)**2``; the mean over all pixels whose
    window is inside the image.

    Parameters
    ----------
    prediction, target : array, (..., H, W)
        Of one shape. The result is the mean over all images and channels, each by itself.
    data_range : float, optional
        As for `psnr`.
    window : int
        Odd size of the square window, whose pixels have the same weight; variances have ``ddof=1``.
    gaussian : bool
        Weight the pixels of a window of 11 by a Gaussian of sigma 1.5, as the authors do; variances then have
        ``ddof=0``, and `window` is without effect.

    Returns
    -------
    float
        1 for equal images, at least -1; NaN if there is no image, or a pixel is NaN.

    Raises
    ------
    TypeError, ValueError
        If shapes differ, images are smaller than the window, or `data_range` is missing or not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.metrics import ssim
    >>> x = np.random.default_rng(0).random((3, 16, 16))
    >>> ssim(x, x, data_range=1), ssim(1 - x, x, data_range=1) < 0
    (1.0, True)
    """
    from scipy.ndimage import gaussian_filter, uniform_filter

    window = 2 * RADIUS + 1 if gaussian else _inputs.count("ssim", "window", window, 2)
    if window % 2 == 0:
        raise ValueError(f"ssim: window must be odd, got {window}")
    x, y, limit = _images("ssim", prediction, target, data_range)
    if x.ndim < 2 or min(x.shape[-2:]) < window:
        raise ValueError(f"ssim: images must have shape (..., H, W) with H, W >= {window}, got {x.shape}")
    if not x.size:
        return float("nan")
    axes = (x.ndim - 2, x.ndim - 1)

    def mean(array: np.ndarray) -> np.ndarray:
        if gaussian:
            found = gaussian_filter(array, SIGMA, radius=RADIUS, axes=axes)
        else:
            found = uniform_filter(array, window, axes=axes)
        edge = slice(window // 2, -(window // 2))
        return found[..., edge, edge]

    unbiased = 1 if gaussian else window**2 / (window**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy, c = (
        unbiased * (mean(a * b) - ma * mb)
        for a, b, ma, mb in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my))
    )
    c1, c2 = (K1 * limit) ** 2, (K2 * limit) ** 2
    similarity = (2 * mx * my + c1) * (2 * c + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(similarity.mean())


def _images(
    function: str, prediction: Any, target: Any, data_range: Any
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both images as float64, and the range of their values."""
    prediction = _inputs.values(function, "prediction", prediction)
    target = _inputs.values(function, "target", target)
    _inputs.same_shape(function, prediction, target)
    if data_range is None:
        if prediction.dtype != target.dtype or target.dtype.kind not in "iu":
            raise ValueError(
                f"{function}: data_range must be given for {prediction.dtype} and {target.dtype}, "
                "such as 1 for images from 0 to 1"
            )
        limits = np.iinfo(target.dtype)
        data_range = int(limits.max) - (int(limits.min) if target.size and target.min() < 0 else 0)
    limit = float(data_range)
    if not 0 < limit < float("inf"):
        raise ValueError(f"{function}: data_range must be positive, got {data_range!r}")
    return prediction.astype(np.float64), target.astype(np.float64), limit
