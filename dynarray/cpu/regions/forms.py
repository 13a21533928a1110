"""The forward and backward passes of `roi_align` and `ps_roi_pool`, as functions of arrays."""

from math import prod
from typing import Any

from rawkernels.regions import check_images

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow, empty, run_with_scratch, zeros
from .in_planes import pool_in_planes, spread_in_planes, stays_in_planes
from .plan import RegionSizes, make_parts, region_boxes
from .pooled import (
    CLEARED,
    POOLED_COST,
    PooledBoxes,
    PooledSizes,
    pooled_blocks,
    pooled_boxes,
    pooled_mean_items,
    pooled_spread_items,
)
from .pooled_loops import BINS
from .sampled import region_pack_items, region_pool_items, region_scratch, region_spread_items

_TOUCHED = 2  # elementary operations in whose time a bin of one channel is made, as part of vectors
_PACKED = 4  # elements that are packed in the time of one


def _sizes(
    x: Any, output_size: tuple[int, int], *, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> RegionSizes:
    return RegionSizes(x.shape[1], x.shape[2:], output_size, spatial_scale, sampling_ratio, aligned)


def roi_align_forward(
    x: Any, *, boxes: Any, batch_index: Any, output_size: tuple[int, int], **options: Any
) -> tuple[Any, tuple]:
    """Output of `roi_align`; keeps the input for the backward pass."""
    images = check_images("roi_align", batch_index, x.shape[0])
    y = empty((len(boxes), x.shape[1], *output_size), x.dtype)
    if not (y.size and x.size):
        y.fill(0)
        return y, (x,)
    sizes, source = _sizes(x, output_size, **options), kernel_input(x).reshape(-1)
    placed, read = region_boxes(boxes, images, sizes, shared=False)
    if stays_in_planes(placed, sizes, read):
        pool_in_planes(source, y.reshape(-1), placed, sizes, read)
        return y, (x,)
    for part, groups, elements in make_parts(placed, sizes, x.itemsize):
        packed = borrow("regions", elements, x.dtype)
        items, of = groups * part.blocks * part.bands, (placed, sizes, part)
        parallel.run(region_pack_items, items, elements // _PACKED, source, packed, *of)
        own = placed.groups[[part.group, part.group + groups], -1]
        items, scratch = int(own[1] - own[0]) * part.blocks, region_scratch(sizes, part.block)
        args = packed, y.reshape(-1), *of
        run_with_scratch(region_pool_items, items, _TOUCHED * items * scratch.sums, scratch, x.dtype, *args)
    return y, (x,)


def roi_align_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool],
    *,
    boxes: Any,
    batch_index: Any,
    output_size: tuple[int, int],
    **options: Any,
) -> tuple:
    """Gradient of `roi_align` with respect to x."""
    if not needs[0]:
        return (None,)
    (x,) = kept
    images, grad_x = check_images("roi_align", batch_index, x.shape[0]), zeros(x.shape, x.dtype)
    if not (grad_output.size and x.size):
        return (grad_x,)
    sizes = _sizes(x, output_size, **options)
    arrays = kernel_input(grad_output).reshape(-1), grad_x.reshape(-1)
    placed, read = region_boxes(boxes, images, sizes, shared=True)
    if stays_in_planes(placed, sizes, read):
        spread_in_planes(*arrays, placed, sizes, read)
        return (grad_x,)
    for part, groups, elements in make_parts(placed, sizes, x.itemsize):
        packed, scratch = borrow("regions", elements, x.dtype), region_scratch(sizes, part.block)
        work = _TOUCHED * len(boxes) * part.channels * prod(output_size) + elements // _PACKED
        args = packed, arrays, placed, sizes, part
        items = groups * part.blocks * part.bands
        run_with_scratch(region_spread_items, items, work, scratch, x.dtype, *args)
    return (grad_x,)


def _pooled(
    x: Any, boxes: Any, batch_index: Any, output_size: tuple[int, int], spatial_scale: float
) -> tuple[PooledBoxes, PooledSizes]:
    """Where boxes lie, and sizes."""
    images = check_images("ps_roi_pool", batch_index, x.shape[0])
    sizes = PooledSizes(x.shape[1], x.shape[2:], output_size, spatial_scale)
    return pooled_boxes(boxes, images, sizes, x.shape[0]), sizes


def _run_pooled(
    kernel: Any, source: Any, target: Any, boxes: PooledBoxes, sizes: PooledSizes, work: int
) -> None:
    """Run a kernel over the blocks of all images."""
    blocks, images = pooled_blocks(sizes), len(boxes.begin) - 1
    items, arrays = images * len(blocks.channel) // BINS, (kernel_input(source), target)
    parallel.run(kernel, items, work, *(each.reshape(-1) for each in arrays), boxes, blocks, sizes)


def ps_roi_pool_forward(x: Any, *, output_size: tuple[int, int], **options: Any) -> tuple[Any, tuple]:
    """Output of `ps_roi_pool`; keeps the input for the backward pass."""
    placed = _pooled(x, output_size=output_size, **options)
    y = empty((len(options["boxes"]), x.shape[1] // prod(output_size), *output_size), x.dtype)
    if not (y.size and x.size):
        y.fill(0)
        return y, (x,)
    _run_pooled(pooled_mean_items, x, y, *placed, POOLED_COST * y.size)
    return y, (x,)


def ps_roi_pool_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool], *, output_size: tuple[int, int], **options: Any
) -> tuple:
    """Gradient of `ps_roi_pool` with respect to x."""
    if not needs[0]:
        return (None,)
    (x,) = kept
    placed = _pooled(x, output_size=output_size, **options)
    if not (grad_output.size and x.size):
        return (zeros(x.shape, x.dtype),)
    grad_x = empty(x.shape, x.dtype)
    work = POOLED_COST * grad_output.size + x.size // CLEARED
    _run_pooled(pooled_spread_items, grad_output, grad_x, *placed, work)
    return (grad_x,)
