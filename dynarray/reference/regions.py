"""Definitions of `roi_align` and `ps_roi_pool` and of their gradients, bin by bin."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rawkernels.regions import check_images

from .._boxes import Spans, pooled_edges, sample_positions, sampled_spans


class _Bin(NamedTuple):
    """One bin of a region, a weighted sum of pixels: of which rows, each times which weight, and columns.

    A row may be there twice. A bin of a box that lies nowhere is NaN times the first pixel.
    """

    where: tuple[int, int, int]  # region, and bin (i, j)
    image: int
    rows: Any
    columns: Any
    by_row: Any
    by_column: Any
    lost: bool


def _corners(spans: Spans, box: int, bin_: int, extent: int) -> tuple[Any, Any]:
    """Along one axis the pixels before and after each sample, and how much of each is in the mean."""
    if np.isnan(spans.start[box]):
        return np.zeros(1, int), np.full(1, np.nan)
    position = np.clip(sample_positions(spans, box, bin_, extent), 0, extent - 1)
    before = np.floor(position).astype(int)
    after, rest = np.minimum(before + 1, extent - 1), position - before
    share = 1 / max(spans.samples[box], 1)
    return np.concatenate([before, after]), np.concatenate([1 - rest, rest]) * share


def _sampled_bins(
    x: Any, boxes: Any, batch_index: Any, output_size: tuple[int, int], **options: Any
) -> Iterator[_Bin]:
    """The bins of `roi_align`: means of bilinear samples on a regular grid."""
    images = check_images("roi_align", batch_index, x.shape[0])
    (height, width), spans = x.shape[2:], []
    for axis, bins in ((1, output_size[0]), (0, output_size[1])):
        spans.append(sampled_spans(boxes[:, axis], boxes[:, axis + 2], bins, **options))
    for box, i, j in np.ndindex(len(boxes), *output_size):
        if height and width:
            (rows, by_row), (columns, by_column) = (
                _corners(*each) for each in ((spans[0], box, i, height), (spans[1], box, j, width))
            )
            lost = np.isnan(by_row).any() or np.isnan(by_column).any()
            weights = (by_row.astype(x.dtype), by_column.astype(x.dtype))
            yield _Bin((box, i, j), images[box], rows, columns, *weights, bool(lost))


def _pooled_bins(
    x: Any, boxes: Any, batch_index: Any, output_size: tuple[int, int], spatial_scale: float
) -> Iterator[_Bin]:
    """The bins of `ps_roi_pool`: means of whole pixels."""
    images = check_images("ps_roi_pool", batch_index, x.shape[0])
    edges = [
        pooled_edges(boxes[:, axis], boxes[:, axis + 2], bins, extent, spatial_scale=spatial_scale)
        for axis, bins, extent in zip((1, 0), output_size, x.shape[2:], strict=True)
    ]
    for box, *bins in np.ndindex(len(boxes), *output_size):
        if not (x.shape[2] and x.shape[3]):
            continue
        pixels, weights, lost = [], [], False
        for (first, stop, nowhere), bin_ in zip(edges, bins, strict=True):
            inside = np.arange(first[box, bin_], stop[box, bin_])
            pixels.append(np.zeros(1, int) if nowhere[box] else inside)
            share = np.nan if nowhere[box] else 1 / max(len(inside), 1)
            weights.append(np.full(len(pixels[-1]), share).astype(x.dtype))
            lost = lost or bool(nowhere[box])
        (rows, columns), (by_row, by_column) = pixels, weights
        yield _Bin((box, *bins), images[box], rows, columns, by_row, by_column, lost)


def roi_align_forward(x: Any, **params: Any) -> tuple[Any, tuple]:
    """y[r,:,i,j] = sum of weight * pixel."""
    y = np.zeros((len(params["boxes"]), x.shape[1], *params["output_size"]), x.dtype)
    for each in _sampled_bins(x, **params):
        r, i, j = each.where
        pixels = x[each.image][:, each.rows[:, None], each.columns]
        y[r, :, i, j] = (each.by_row[:, None] * each.by_column * pixels).sum((1, 2))
    return y, (x,)


def roi_align_backward(grad_output: Any, kept: tuple, needs: tuple[bool], **params: Any) -> tuple:
    """Each pixel gets what its bins got, times its weights in them."""
    (x,) = kept
    grad_x = np.zeros(x.shape, x.dtype)
    for each in _sampled_bins(x, **params):
        r, i, j = each.where
        if not each.lost:
            share = each.by_row[:, None] * each.by_column * grad_output[r, :, i, j][:, None, None]
            pixels: Any = (slice(None), each.rows[:, None], each.columns)
            np.add.at(grad_x[each.image], pixels, share)
    return (grad_x if needs[0] else None,)


def ps_roi_pool_forward(x: Any, **params: Any) -> tuple[Any, tuple]:
    """The same, where output o of bin (i, j) reads the channel (o*ph + i)*pw + j."""
    high, wide = params["output_size"]
    maps = x.reshape(x.shape[0], -1 if x.size else 0, high, wide, *x.shape[2:])
    y = np.zeros((len(params["boxes"]), x.shape[1] // (high * wide), high, wide), x.dtype)
    for each in _pooled_bins(x, **params):
        r, i, j = each.where
        if maps.size:
            pixels = maps[each.image, :, i, j][:, each.rows[:, None], each.columns]
            y[r, :, i, j] = (each.by_row[:, None] * each.by_column * pixels).sum((1, 2))
    return y, (x,)


def ps_roi_pool_backward(grad_output: Any, kept: tuple, needs: tuple[bool], **params: Any) -> tuple:
    """Each pixel gets what the bin got that reads its channel."""
    (x,) = kept
    high, wide = params["output_size"]
    grad_x = np.zeros(x.shape, x.dtype)
    maps = grad_x.reshape(x.shape[0], -1 if x.size else 0, high, wide, *x.shape[2:])
    for each in _pooled_bins(x, **params):
        r, i, j = each.where
        if maps.size and not each.lost:
            share = each.by_row[:, None] * each.by_column * grad_output[r, :, i, j][:, None, None]
            maps[each.image, :, i, j][:, each.rows[:, None], each.columns] += share
    return (grad_x if needs[0] else None,)


def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Kept indices, one box after the other by falling score."""
    with np.errstate(all="ignore"):
        order = np.argsort(-scores, kind="stable")
        unordered = np.isnan(scores[order])  # first, as the greatest
        order = np.concatenate([order[unordered], order[~unordered]])
        low, high = boxes[:, :2], boxes[:, 2:]
        areas = (high - low).prod(1)
        gone = np.zeros(len(boxes), bool)
        kept = []
        for at, box in enumerate(order):
            if gone[box]:
                continue
            kept.append(box)
            rest = order[at + 1 :]
            sides = np.minimum(high[box], high[rest]) - np.maximum(low[box], low[rest])
            shared = np.maximum(sides, 0).prod(1)
            gone[rest] |= shared / (areas[box] + areas[rest] - shared) > iou_threshold
    return np.array(kept, np.int64)
