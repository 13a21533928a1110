"""Boxes on images: where the bins of each lie, along one axis. All of it in float64, whatever the arrays."""

from typing import Any, NamedTuple

import numpy as np


class Spans(NamedTuple):
    """The bins of R boxes along one axis, all (R,); NaN for a box that lies nowhere."""

    start: Any  # of the first bin, in pixels of the image
    size: Any  # of a bin
    samples: Any  # of a bin, whole numbers; no more than 0 if there are none


def sampled_spans(
    low: Any, high: Any, bins: int, *, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Spans:
    """The bins that `roi_align` samples, of boxes from `low` to `high`."""
    with np.errstate(all="ignore"):
        half = 0.5 if aligned else 0.0
        start = low.astype(np.float64) * spatial_scale - half
        start, extent = _if_finite(start, (high.astype(np.float64) * spatial_scale - half) - start)
        size = (extent if aligned else np.maximum(extent, 1.0)) / bins
        count = np.full(len(low), float(sampling_ratio)) if sampling_ratio else np.ceil(size)
        return Spans(start, size, np.where(np.isnan(count), 1.0, count))


def sample_positions(spans: Spans, box: int, bin_: int, extent: int) -> Any:
    """Where a bin is sampled, but for what lies outside of an image of this extent."""
    start, size, count = (each[box] for each in spans)
    if count < 1:
        return np.empty(0)
    base, step = start + bin_ * size, size / count
    first, number = 0.0, count  # in a bin of no extent all samples are at one place
    if step:
        ends = (np.array([-1.0, extent]) - base) / step - 0.5
        # One more at either end, as these are rounded; far away they are rounded to more than that.
        first = min(max(np.floor(ends.min()) - 1, 0.0), count)
        most = (extent + 1) / abs(step) + 5
        number = min(max(np.ceil(ends.max()) + 2 - first, 0.0), count - first, most)
    positions = base + (first + np.arange(number) + 0.5) * step
    return positions[(positions >= -1) & (positions <= extent)]


def pooled_edges(
    low: Any, high: Any, bins: int, extent: int, *, spatial_scale: float
) -> tuple[Any, Any, Any]:
    """The pixels of the bins that `ps_roi_pool` averages, first and one beyond the last, and boxes nowhere.

    These are (R, bins), (R, bins) and (R,).
    """
    with np.errstate(all="ignore"):
        start = _rounded(low.astype(np.float64)) * spatial_scale
        end = (_rounded(high.astype(np.float64)) + 1.0) * spatial_scale
        start, extents = _if_finite(start, end - start)
        extents = np.maximum(extents, 0.1)
        # In this order edges between whole pixels are whole numbers, as they would be without rounding.
        edges = np.arange(bins + 1.0) * extents[:, None] / bins + start[:, None]
        lost = np.isnan(start)
        edges = np.where(lost[:, None], 0.0, edges)
        first, stop = np.floor(edges[:, :-1]), np.ceil(edges[:, 1:])
        first, stop = (np.clip(each, 0, extent).astype(np.int64) for each in (first, stop))
        return first, np.where(lost[:, None], first, stop), lost


def _if_finite(start: Any, extent: Any) -> tuple[Any, Any]:
    """Both NaN where one is not finite."""
    lost = ~(np.isfinite(start) & np.isfinite(extent))
    return np.where(lost, np.nan, start), np.where(lost, np.nan, extent)


def _rounded(values: Any) -> Any:
    """To whole numbers, halves away from zero."""
    whole = np.trunc(values)
    return whole + np.where(np.abs(values - whole) >= 0.5, np.copysign(1.0, values), 0.0)
