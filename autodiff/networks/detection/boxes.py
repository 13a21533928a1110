"""Boxes: anchors, their coding as shifts and scales, clipping, suppression.

Boxes are rows ``(xmin, ymin, xmax, ymax)`` in pixels, with both ends part of the box, as PASCAL VOC counts
and `autodiff.data` and `autodiff.metrics` have it: a box of one pixel is ``(3, 3, 3, 3)``, its width is 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import dynarray as dyn

from ...functions._common import library, plain

# Codes of widths are cut here, so that no exponential overflows: 1000/16 as in later public code. The first
# publications have no such limit.
LARGEST_SCALE = math.log(1000 / 16)
ENDS = (0, 0, 1, 1)  # what is added where the end of a box is the border behind its last pixel


def anchor_boxes(
    size: tuple[int, int], stride: int, sizes: Sequence[float], ratios: Sequence[float] = (0.5, 1, 2)
) -> np.ndarray:
    """Boxes of given sizes and shapes around the centre of each cell of a feature map.

    An anchor of size s and ratio r is ``s*sqrt(r)`` high and ``s/sqrt(r)`` wide, of area s².

    Parameters
    ----------
    size : (int, int)
        Height and width of the feature map.
    stride : int
        Pixels of the image for each of its cells.
    sizes : sequence of float
        In pixels of the image.
    ratios : sequence of float
        Of height to width.

    Returns
    -------
    array of float32, (H*W*A, 4)
        Row by row, and at each cell the A anchors: all ratios of the first size come first.

    Examples
    --------
    >>> from autodiff.networks.detection import anchor_boxes
    >>> anchor_boxes((1, 2), 16, [16], [1]).tolist()
    [[0.0, 0.0, 15.0, 15.0], [16.0, 0.0, 31.0, 15.0]]
    """
    # Sizes are not rounded to whole pixels, and the centre is that of the cell; the first publication rounds.
    shapes = [(each * math.sqrt(r), each / math.sqrt(r)) for each in sizes for r in ratios]
    half = np.array([((w - 1) / 2, (h - 1) / 2) for h, w in shapes]).reshape(-1, 2)
    rows, columns = (np.arange(length) * stride + (stride - 1) / 2 for length in size)
    centres = np.stack(np.broadcast_arrays(columns, rows[:, None]), axis=-1)[:, :, None]
    anchors = np.concatenate([centres - half, centres + half], axis=-1)
    return anchors.reshape(-1, 4).astype(np.float32)


def encode_boxes(boxes: Any, anchors: Any, spread: Sequence[float] = (1, 1, 1, 1)) -> Any:
    """What has to be done to anchors to make them boxes: moved, in widths of the anchor, and scaled.

    ``(t_x, t_y, t_w, t_h) = ((x - x_a)/w_a, (y - y_a)/h_a, log(w/w_a), log(h/h_a)) / spread`` of the centres
    (x, y) and the sizes (w, h).

    Parameters
    ----------
    boxes, anchors : array, (R, 4)
        Row by row. None may be empty.
    spread : sequence of four floats
        What the codes are divided by, so that a network learns numbers of about one: standard deviations.

    Returns
    -------
    array, (R, 4)
        The codes.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks.detection import encode_boxes
    >>> encode_boxes(np.array([[5.0, 0, 14, 9]]), np.array([[0.0, 0, 9, 9]])).tolist()
    [[0.5, 0.0, 0.0, 0.0]]
    """
    boxes, anchors = plain(boxes), plain(anchors)
    xp = library(anchors)
    size, base = boxes[:, 2:] - boxes[:, :2] + 1, anchors[:, 2:] - anchors[:, :2] + 1
    moved = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2 / base
    return xp.concatenate([moved, xp.log(size / base)], axis=1) / xp.asarray(spread, anchors.dtype)


def decode_boxes(codes: Any, anchors: Any, spread: Sequence[float] = (1, 1, 1, 1)) -> Any:
    """The boxes that codes stand for: the inverse of `encode_boxes`.

    Parameters
    ----------
    codes, anchors : array, (R, 4)
        Row by row.
    spread : sequence of four floats
        As for `encode_boxes`.

    Returns
    -------
    array, (R, 4)
        The boxes. None is wider or higher than 1000/16 times its anchor.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks.detection import decode_boxes
    >>> decode_boxes(np.array([[0.5, 0, np.log(2), 0]]), np.array([[0.0, 0, 9, 9]])).round(3).tolist()
    [[0.0, 0.0, 19.0, 9.0]]
    """
    codes, xp = plain(codes), library(plain(anchors))
    anchors = xp.asarray(plain(anchors), codes.dtype)
    codes = codes * xp.asarray(spread, codes.dtype)
    base = anchors[:, 2:] - anchors[:, :2] + 1
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2 + codes[:, :2] * base
    half = (xp.exp(xp.minimum(codes[:, 2:], LARGEST_SCALE)) * base - 1) / 2
    return xp.concatenate([centre - half, centre + half], axis=1)


def clip_boxes(boxes: Any, size: tuple[int, int]) -> Any:
    """Boxes cut to an image: what lies outside becomes its nearest pixels.

    Parameters
    ----------
    boxes : array, (R, 4)
        The boxes.
    size : (int, int)
        Height and width of the image.

    Returns
    -------
    array, (R, 4)
        The parts.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks.detection import clip_boxes
    >>> clip_boxes(np.array([[-3.0, 2, 20, 30]]), (8, 10)).tolist()
    [[0.0, 2.0, 9.0, 7.0]]
    """
    xp = library(boxes)
    return xp.clip(boxes, 0, xp.asarray((size[1] - 1, size[0] - 1) * 2, boxes.dtype))


def suppressed(boxes: Any, scores: Any, overlap: float) -> Any:
    """Indices of the boxes that are left where those of higher scores do not overlap them by more.

    `dynarray.nms`, whose boxes end behind their last pixel.
    """
    return dyn.nms(boxes + library(boxes).asarray(ENDS, boxes.dtype), scores, overlap)
