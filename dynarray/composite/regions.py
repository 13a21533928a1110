"""`roi_align` and `ps_roi_pool` in elementary functions: the sum over rows and columns as two products."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .._boxes import pooled_edges, sample_positions, sampled_spans


def _sampled(low: Any, high: Any, bins: int, extent: int, **options: Any) -> Any:
    """How much of each pixel of an axis is in each bin: (R, bins, extent)."""
    spans = sampled_spans(low, high, bins, **options)
    shares = np.zeros((len(low), bins, extent))
    for box, bin_ in np.ndindex(*shares.shape[:2] if extent else (0, 0)):
        position = np.clip(sample_positions(spans, box, bin_, extent), 0, extent - 1)
        near = np.maximum(1 - np.abs(position[:, None] - np.arange(extent)), 0)
        shares[box, bin_] = near.sum(0) / max(spans.samples[box], 1)
        shares[box, bin_] += spans.start[box] * 0  # NaN stays
    return shares


def _pooled(low: Any, high: Any, bins: int, extent: int, **options: Any) -> Any:
    first, stop, lost = pooled_edges(low, high, bins, extent, **options)
    pixel = np.arange(extent)
    inside = (pixel >= first[:, :, None]) & (pixel < stop[:, :, None])
    shares = inside / np.maximum(inside.sum(2, keepdims=True), 1)
    shares[lost] = np.nan
    return shares


def _along_axes(shares: Any, x: Any, boxes: Any, output_size: tuple[int, int], **options: Any) -> Iterable:
    """The shares along y and x, where the image is, in its dtype."""
    at_home = boxes.get() if hasattr(boxes, "get") else boxes
    for axis, bins, extent in zip((1, 0), output_size, x.shape[2:], strict=True):
        found = shares(at_home[:, axis], at_home[:, axis + 2], bins, extent, **options)
        yield np.asarray(found.astype(x.dtype), like=boxes)


def roi_align_forward(functions: Any, x: Any, *, batch_index: Any, **params: Any) -> Any:
    """y[r] = shares of rows @ image @ shares of columns."""
    rows, columns = _along_axes(_sampled, x, **params)
    image = x[batch_index.astype(int)]
    return functions.matmul(functions.matmul(rows[:, None], image), columns.transpose(0, 2, 1)[:, None])


def ps_roi_pool_forward(functions: Any, x: Any, *, batch_index: Any, **params: Any) -> Any:
    """The same, each bin on channels of its own."""
    high, wide = params["output_size"]
    rows, columns = _along_axes(_pooled, x, **params)
    n, channels, height, width = x.shape
    maps = functions.reshape(x, (n, channels // (high * wide), high, wide, height, width))
    image = maps[batch_index.astype(int)]
    by_row = functions.matmul(rows[:, None, :, None, None], image)  # (R, O, ph, pw, 1, W)
    return functions.matmul(by_row, columns[:, None, None, :, :, None])[..., 0, 0]
