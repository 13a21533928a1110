"""Changing the size of images."""

from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import arguments, flag, images, integer, is_fractional, pair
from ._common import library, plain
from .joining import repeat
from .linear_algebra import matmul
from .shapes import astype, reshape, transpose


@arguments(x=images, scale=integer(1))
def pixel_shuffle(x: Any, scale: int) -> Any:
    """Channels to space: (N, C*u*u, H, W) -> (N, C, u*H, u*W); channel (c*u + i)*u + j is phase (i, j).

    Parameters
    ----------
    x : array, (N, C*u*u, H, W)
        The images.
    scale : int
        Upsampling factor u.

    Returns
    -------
    array, (N, C, u*H, u*W)
        The dtype of x.

    Raises
    ------
    ValueError
        If ``scale**2`` does not divide the channels.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.pixel_shuffle(np.arange(4.0).reshape(1, 4, 1, 1), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    n, channels, h, w = x.shape
    if channels % (scale * scale):
        raise ValueError(f"pixel_shuffle: {channels} channels are no multiple of scale**2 = {scale * scale}")
    c = channels // (scale * scale)
    x = transpose(reshape(x, (n, c, scale, scale, h, w)), (0, 1, 4, 2, 5, 3))
    return reshape(x, (n, c, h * scale, w * scale))


@arguments(x=images, scale=integer(1))
def pixel_unshuffle(x: Any, scale: int) -> Any:
    """Space to channels, the inverse of `pixel_shuffle`.

    Parameters
    ----------
    x : array, (N, C, u*H, u*W)
        The images.
    scale : int
        Downsampling factor u.

    Returns
    -------
    array, (N, C*u*u, H, W)
        The dtype of x.

    Raises
    ------
    ValueError
        If `scale` does not divide height and width.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.pixel_unshuffle(np.arange(4.0).reshape(1, 1, 2, 2), 2).tolist()
    [[[[0.0]], [[1.0]], [[2.0]], [[3.0]]]]
    """
    n, c, h, w = x.shape
    if h % scale or w % scale:
        raise ValueError(f"pixel_unshuffle: scale {scale} does not divide the image {h} x {w}")
    x = transpose(reshape(x, (n, c, h // scale, scale, w // scale, scale)), (0, 1, 3, 5, 2, 4))
    return reshape(x, (n, c * scale * scale, h // scale, w // scale))


@arguments(x=images, scale=integer(1))
def upsample_nearest(x: Any, scale: int) -> Any:
    """Each pixel of x (N, C, H, W) repeated scale x scale times.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.
    scale : int
        How often each pixel stands along each axis.

    Returns
    -------
    array, (N, C, scale*H, scale*W)
        The dtype of x.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.upsample_nearest(np.array([1.0, 2.0]).reshape(1, 1, 1, 2), 2).tolist()
    [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]
    """
    return repeat(repeat(x, scale, 2), scale, 3)


@arguments(x=images, size=pair(1), align_corners=flag)
def resize(x: Any, size: Any, *, align_corners: bool = False) -> Any:
    """Bilinear interpolation of x (N, C, H, W) to ``(N, C, *size)``.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images.
    size : int or (y, x)
        The new height and width.
    align_corners : bool
        True: the centres of the corner pixels coincide. False (the default): the corners of the images
        coincide, and output i lies at ``(i + 1/2)*H/Ho - 1/2``, clamped to the image. Shrinking does not blur
        first.

    Returns
    -------
    array, ``(N, C, *size)``
        The dtype of x.

    Raises
    ------
    ValueError
        If H or W is 0.

    Notes
    -----
    Interpolation along an axis is linear: one matrix with two entries per row and axis, applied by BLAS.
    Integers and booleans are interpolated in float64 and rounded.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.resize(np.array([0.0, 4.0]).reshape(1, 1, 1, 2), (1, 4)).tolist()
    [[[[0.0, 1.0, 3.0, 4.0]]]]
    """
    high, wide = size
    if not x.shape[2] or not x.shape[3]:
        raise ValueError(f"resize: x must be (N, C, H, W) with H, W of at least 1, got {tuple(x.shape)}")
    if not is_fractional(x.dtype):
        given = x.dtype
        return astype(_rounded(resize(astype(x, np.float64), size, align_corners=align_corners)), given)
    rows = _interpolation(x, x.shape[2], high, align_corners)
    columns = _interpolation(x, x.shape[3], wide, align_corners)
    return matmul(rows, matmul(x, columns.T))


@differentiable("x", x=("", lambda g, s: np.zeros_like(plain(g))))
def _rounded(x: Any) -> Any:
    return np.rint(x)


def _interpolation(x: Any, size: int, outputs: int, align_corners: bool) -> Any:
    """The (outputs, size) matrix of bilinear interpolation along one axis, in the library and dtype of x."""
    if align_corners:
        position = np.linspace(0, size - 1, outputs)
    else:
        position = ((np.arange(outputs) + 0.5) * size / outputs - 0.5).clip(0, size - 1)
    low = np.minimum(position.astype(int), max(size - 2, 0))
    matrix = np.zeros((outputs, size))
    index = np.arange(outputs)
    matrix[index, low] = 1 - (position - low)
    if size > 1:
        matrix[index, low + 1] = position - low
    return library(plain(x)).asarray(matrix, dtype=x.dtype)
