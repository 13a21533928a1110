"""The forward and backward passes of `roi_align` and `ps_roi_pool`, as functions of arrays."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ..._boxes import check_images
from ..engine.compile import kernel_input
from ..engine.memory import borrow, empty, run_with_scratch, zeros
from ..engine import parallel
from .kernels import region_pack_items, region_pool_items, region_scratch, region_spread_items
from .plan import make_parts, pooled_axis, sampled_axis
from .taps import BoxAxis

_TOUCHED = 8  # pixels of a bin, roughly, each with a product and a sum


def _forward(
    x: Any, images: Any, axes: tuple[BoxAxis, BoxAxis], shape: tuple, *, by_position: bool
) -> tuple[Any, tuple]:
    source, y = kernel_input(x).reshape(-1), empty(shape, x.dtype)
    if not (y.size and x.size):
        y.fill(0)
        return y, (x,)
    for part, elements in make_parts(x, images, axes, by_position=by_position):
        packed = borrow("regions", elements, x.dtype)
        sizes, number = part.sizes, len(part.slots.image)
        parallel.run(region_pack_items, number * sizes.rows, elements, source, packed, part)
        pairs, scratch = len(part.items.slots), region_scratch(axes, part)
        work = _TOUCHED * pairs * scratch.sums
        args = packed, y.reshape(-1), axes, part
        run_with_scratch(region_pool_items, pairs, work, scratch, x.dtype, *args)
    return y, (x,)


def _backward(
    grad_output: Any, x: Any, images: Any, axes: tuple[BoxAxis, BoxAxis], *, by_position: bool
) -> Any:
    grad_x = zeros(x.shape, x.dtype)
    if not (grad_output.size and x.size):
        return grad_x
    grad, target = kernel_input(grad_output).reshape(-1), grad_x.reshape(-1)
    for part, elements in make_parts(x, images, axes, by_position=by_position):
        packed, scratch = borrow("regions", elements, x.dtype), region_scratch(axes, part)
        items, work = len(part.slots.image) * part.bands, _TOUCHED * len(part.items.slots) * scratch.sums
        args = packed, grad, target, axes, part
        run_with_scratch(region_spread_items, items, work + elements, scratch, x.dtype, *args)
    return grad_x


def _axes(
    make: Callable[..., BoxAxis], x: Any, boxes: Any, output_size: tuple[int, int], options: dict
) -> tuple[BoxAxis, BoxAxis]:
    """Along y and x."""
    y_axis, x_axis = (
        make(boxes[:, axis], boxes[:, axis + 2], bins, extent, **options)
        for axis, bins, extent in zip((1, 0), output_size, x.shape[2:], strict=True)
    )
    return y_axis, x_axis


def roi_align_forward(
    x: Any, *, boxes: Any, batch_index: Any, output_size: tuple[int, int], **options: Any
) -> tuple[Any, tuple]:
    """Output of `roi_align`; keeps the input for the backward pass."""
    images = check_images("roi_align", batch_index, x.shape[0])
    shape = (len(boxes), x.shape[1], *output_size)
    axes = _axes(sampled_axis, x, boxes, output_size, options)
    return _forward(x, images, axes, shape, by_position=False)


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
    images = check_images("roi_align", batch_index, kept[0].shape[0])
    axes = _axes(sampled_axis, kept[0], boxes, output_size, options)
    return (_backward(grad_output, kept[0], images, axes, by_position=False),)


def ps_roi_pool_forward(
    x: Any, *, boxes: Any, batch_index: Any, output_size: tuple[int, int], **options: Any
) -> tuple[Any, tuple]:
    """Output of `ps_roi_pool`; keeps the input for the backward pass."""
    images = check_images("ps_roi_pool", batch_index, x.shape[0])
    shape = (len(boxes), x.shape[1] // prod(output_size), *output_size)
    axes = _axes(pooled_axis, x, boxes, output_size, options)
    return _forward(x, images, axes, shape, by_position=True)


def ps_roi_pool_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool],
    *,
    boxes: Any,
    batch_index: Any,
    output_size: tuple[int, int],
    **options: Any,
) -> tuple:
    """Gradient of `ps_roi_pool` with respect to x."""
    if not needs[0]:
        return (None,)
    images = check_images("ps_roi_pool", batch_index, kept[0].shape[0])
    axes = _axes(pooled_axis, kept[0], boxes, output_size, options)
    return (_backward(grad_output, kept[0], images, axes, by_position=True),)
