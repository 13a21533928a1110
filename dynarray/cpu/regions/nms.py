"""`nms` on the CPU: boxes in order, side by side, of which each that is kept strikes out later ones."""

from typing import Any

import numpy as np
from numba import uint64

from ..engine.compile import borrowing_cached_jit


@borrowing_cached_jit
def nms_items(
    start: int, stop: int, sides: np.ndarray, areas: np.ndarray, gone: np.ndarray, threshold: float
) -> None:
    """Of boxes start to stop, in order, strike out later ones. `sides` has rows x0, y0, x1, y1."""
    left, top, right, bottom = sides[0], sides[1], sides[2], sides[3]
    zero = areas.dtype.type(0)
    for i in range(start, stop):
        if gone[i]:
            continue
        x0, y0, x1, y1, area = left[i], top[i], right[i], bottom[i], areas[i]
        for j in range(uint64(i + 1), uint64(len(areas))):
            width = min(x1, right[j]) - max(x0, left[j])
            height = min(y1, bottom[j]) - max(y0, top[j])
            shared = max(width, zero) * max(height, zero)
            gone[j] |= shared / (area + areas[j] - shared) > threshold


def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Kept indices by falling score."""
    order = np.argsort(-scores, kind="stable")
    unordered = np.isnan(scores[order])
    if unordered.any():  # NaN is the greatest
        order = np.concatenate([order[unordered], order[~unordered]])
    sides = np.ascontiguousarray(boxes[order].T)
    with np.errstate(all="ignore"):
        areas = (sides[2] - sides[0]) * (sides[3] - sides[1])
    gone = np.zeros(len(order), np.bool_)
    nms_items(0, len(order), sides, areas, gone, iou_threshold)
    return order[~gone]
