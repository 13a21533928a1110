"""`deform_conv2d` and `sample_points` on the CPU.

The image is packed in chunks of channels: the channels of a chunk side by side, pixel after pixel, in a ring
of zeros. A corner of a point is then one run of memory, no corner needs to be asked whether it is inside the
image, and the points of a tile of output positions, set up once, serve all channels of their group.

Forward, a thread takes a tile of output positions and samples a few taps of one chunk after the other: the
channels of a position, side by side, are a row of the left matrix as they are, and multiplied by the weights
of these taps at once.

Backward, it takes a chunk and a share of the tiles instead, so that no two threads add to the same pixel or
weight: a share is some images, or, where these are few and small, a part of the tiles of one, with gradients
of pixels and weights of its own that are added up later. For one tile after the other a thread makes the
gradients of the columns, takes from them the gradients of pixels and points, puts the columns in their place
and multiplies these by the gradient of the output. Only the gradients of points need all chunks of an offset
group: each chunk leaves four sums per point, one for each corner, which are added up at the end of a band of
tiles.
"""

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.gemm import TILE_ROW_BYTES
from ..engine.memory import borrow, empty, empty_where, run_with_scratch, zeros_where
from ..engine.whole import whole_of
from . import gradients, kernels
from .few import few_backward, few_forward, has_few_channels
from .few_outputs import few_outputs_backward, few_outputs_forward, has_few_outputs
from .flow import flow_backward, flow_forward, samples_in_place
from .kernels import DeformPart
from .plan import DeformCall, DeformPlan, deform_bands, deform_plan, deform_sizes, sample_sizes, sums_of_tile
from .points import DeformSizes, PointArrays, packed_rows
from .small_maps import (
    DeformColumns,
    has_small_maps,
    multiply_columns,
    small_maps_forward,
    small_maps_plan,
    small_maps_scratch,
    start_columns,
)


class PartMemory(NamedTuple):
    """What the parts of a call have one after the other.

    Memory for each by itself would be there twice while one follows the other.
    """

    packed: np.ndarray
    gradients: np.ndarray  # no elements where those of the images are not wanted


def deform_conv2d_forward(
    x: Any, offset: Any, weight: Any, mask: Any, bias: Any, *, deterministic: bool, **steps: Any
) -> tuple[Any, tuple]:
    """Output of `deform_conv2d`; keeps the inputs for the backward pass."""
    kept = (x, offset, weight, mask, bias)
    y = empty((x.shape[0], weight.shape[0], *offset.shape[5:]), x.dtype)
    if not x.shape[1]:
        y[:] = 0 if bias is None else bias[:, None, None]
    if not y.size or not x.shape[1]:
        return y, kept
    sizes, whole = deform_sizes(x, offset, weight, **steps), _whole_call(kept, steps)
    call = _call(sizes, (*kept, y), backward=False)
    flat = [_flat_input(array, x.dtype) for array in kept]
    if has_few_outputs(whole or call) and few_outputs_forward(call, whole or call, x, flat[1:], y):
        return y, kept
    if has_few_channels(whole or call):
        few_forward(call, flat, y)
        return y, kept
    flat_x, flat_offset, flat_weight, flat_mask, flat_bias = flat
    if has_small_maps(whole or call):
        (part,), nothing = small_maps_plan(call).parts[0], flat_x[:0]
        packed = _pack_part(flat_x, part, nothing, nothing, _part_memory([part], x.dtype))
        inputs = kernels.DeformInputs(packed, PointArrays(flat_offset, flat_mask), nothing, nothing)
        small_maps_forward(call, part, inputs, (flat_weight, flat_bias), y)
        return y, kept
    plan = deform_plan(call, whole or call)
    memory = _part_memory(chain(*plan.parts), x.dtype)
    all_weights = borrow("weights", max(plan.weight_sizes), x.dtype)
    for parts, size in zip(plan.parts, plan.weight_sizes, strict=True):
        weights = all_weights[:size]
        for number, part in enumerate(parts):
            # The first part packs the weights, for those that follow.
            packed = _pack_part(flat_x, part, flat_weight, weights[: 0 if number else size], memory)
            inputs = kernels.DeformInputs(packed, PointArrays(flat_offset, flat_mask), weights, weights[:0])
            scratch = kernels.deform_scratch(part, x.itemsize, backward=False)
            items = part.images * part.tiles.per_image
            multiplies = part.tiles.size * sizes.taps * part.channels * sizes.outputs
            operations = 0.1 * items * multiplies * sizes.group_channels / sizes.channels
            args = (inputs, flat_bias, y.reshape(-1), part)
            run_with_scratch(kernels.deform_forward_items, items, operations, scratch, x.dtype, *args)
    return y, kept


def deform_conv2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, ...], *, deterministic: bool, **steps: Any
) -> tuple:
    """Gradients of `deform_conv2d` with respect to x, offset, weight, mask and bias."""
    x, offset, weight, mask, bias = kept
    grad_bias = grad_output.sum(axis=(0, 2, 3)) if needs[4] and bias is not None else None
    wanted = [array for array, needed in zip(kept[:4], needs[:4], strict=True) if needed]
    if not any(array is not None for array in wanted) or not grad_output.size or not x.shape[1]:
        return *zeros_where(kept[:4], needs[:4]), grad_bias
    sizes = deform_sizes(x, offset, weight, **steps)
    call = _call(sizes, (*kept, grad_output, *wanted), backward=True)
    few, mixed = has_few_channels(call), has_few_outputs(call)
    grads = (empty_where if few or mixed else zeros_where)(kept[:4], needs[:4])
    flat_output, *flat = (_flat_input(array, x.dtype) for array in (grad_output, *kept[:4]))
    if mixed and few_outputs_backward(call, x, flat[1:], flat_output, tuple(grads)):
        return *grads, grad_bias
    if few:
        few_backward(call, flat, flat_output, tuple(grads))
        return *grads, grad_bias
    if mixed:  # in vain
        grads = zeros_where(kept[:4], needs[:4])
    grad_x, grad_offset, grad_weight, grad_mask = grads
    flat_x, flat_offset, flat_weight, flat_mask = flat
    arrays, nothing = [flat_output, flat_x, flat_offset, flat_mask], np.empty(0, x.dtype)
    if has_small_maps(call):
        plan = small_maps_plan(call)
        (part,), weights = plan.parts[0], flat_weight
        maps = grad_output.reshape(*grad_output.shape[:2], -1)
        columns, by_output = start_columns(call, weights, kernel_input(maps), needs)
        memory = _part_memory([part], x.dtype, 0 if grad_x is None else plan.splits)
        grad_arrays = grad_x, grad_offset, grad_mask
        _backward_part(arrays, nothing, np.empty(0), grad_arrays, plan, part, columns, memory)
        if grad_weight is not None:
            multiply_columns(call, by_output, columns, grad_weight.reshape(-1))
        return *grads, grad_bias
    plan, none = deform_plan(call, call), DeformColumns(nothing, nothing)
    memory = _part_memory(chain(*plan.parts), x.dtype, 0 if grad_x is None else plan.splits)
    most = max(plan.weight_sizes)
    all_weights = borrow("weights", most, x.dtype)
    all_slots = borrow("slots", 0 if grad_weight is None else plan.shares * most, np.float64)
    for parts, size in zip(plan.parts, plan.weight_sizes, strict=True):
        weights, rows = all_weights[:size], parts[0].chunk_count * sizes.group_outputs
        slots = all_slots[: plan.shares * size]
        args: tuple = (flat_weight, weights, slots, parts[0])
        parallel.run(gradients.deform_weight_items, rows, 2 * size, *args, 0)
        for part in parts:
            grad_arrays = grad_x, grad_offset, grad_mask
            _backward_part(arrays, weights, slots, grad_arrays, plan, part, none, memory)
        if grad_weight is not None:
            args = (grad_weight.reshape(-1), weights, slots, parts[0])
            parallel.run(gradients.deform_weight_items, rows, 2 * len(slots), *args, plan.shares)
    if len(plan.parts) > 1 and grad_offset is not None and mask is not None:
        with np.errstate(all="ignore"):
            grad_offset *= mask[:, :, :, :, None]
    return *grads, grad_bias


def _backward_part(
    arrays: list,
    weights: np.ndarray,
    slots: np.ndarray,
    grads: tuple,
    plan: DeformPlan,
    part: DeformPart,
    columns: DeformColumns,
    memory: PartMemory,
) -> None:
    """Gradients that the images and chunks of a part give: those of x, offset and mask that are wanted."""
    grad_output, x, *point_arrays = arrays
    grad_x, *grad_arrays = grads
    dtype, sizes, nothing = x.dtype, part.sizes, np.empty(0, x.dtype)
    packed = _pack_part(x, part, nothing, nothing, memory)
    inputs = kernels.DeformInputs(packed, PointArrays(*point_arrays), weights, columns.grads)
    grad_packed = memory.gradients[: plan.splits * len(packed)]
    grad_points = PointArrays(*(nothing if grad is None else grad.reshape(-1) for grad in grad_arrays))
    points, masked = any(map(len, grad_points)), inputs.points
    if len(plan.parts) > 1:  # the mask, which may be infinite, comes in front of the sum over parts
        masked = masked._replace(mask=nothing)
    kernel = gradients.deform_backward_items if sizes.outputs else gradients.sample_points_backward_items
    if columns.values.size + columns.grads.size:
        scratch, products = small_maps_scratch(part, x.itemsize), 0
    else:
        scratch, products = kernels.deform_scratch(part, x.itemsize, backward=True), sizes.group_outputs
    work = 4.0 * part.channels * sizes.taps * (products or 4)
    for band in deform_bands(part, plan, x.itemsize):
        tiles = band.stop - band.start
        sums = borrow(
            "sums", tiles * part.chunk_count * sums_of_tile(part, x.itemsize) if points else 0, dtype
        )
        written = gradients.DeformGradients(grad_packed, slots, sums, columns.values)
        items, operations = plan.shares * part.chunk_count, 0.1 * work * tiles * part.tiles.size
        args: tuple = (grad_output, inputs, written, part, band)
        run_with_scratch(kernel, items, operations, scratch, dtype, *args)
        if points:
            point_scratch = scratch.points
            operations = tiles * part.tiles.size * sizes.taps * (16 + 4 * part.chunk_count)
            args = (sums, masked, grad_points, part, band)
            run_with_scratch(gradients.deform_point_items, tiles, operations, point_scratch, dtype, *args)
    if grad_x is not None:
        items, operations = part.images * sizes.image.height, len(grad_packed)
        target = grad_x.reshape(-1)
        parallel.run(kernels.deform_unpack_items, items, operations, grad_packed, len(packed), target, part)


def sample_points_forward(x: Any, points: Any, *, deterministic: bool, border: str) -> tuple[Any, tuple]:
    """Output of `sample_points`; keeps the inputs for the backward pass."""
    y = empty((*x.shape[:2], points.shape[1], *points.shape[3:]), x.dtype)
    if y.size:
        sizes = sample_sizes(x, points, border)
        call = _call(sizes, (x, points, y), backward=False)
        flat_x, flat_points, nothing = (_flat_input(array, x.dtype) for array in (x, points, None))
        if samples_in_place(call):
            flow_forward(call, flat_x, flat_points, y)
            return y, (x, points)
        plan = deform_plan(call, call)
        memory = _part_memory(chain(*plan.parts), x.dtype)
        for part in chain(*plan.parts):
            packed = _pack_part(flat_x, part, nothing, nothing, memory)
            inputs = kernels.DeformInputs(packed, PointArrays(flat_points, nothing), nothing, nothing)
            items = part.images * part.tiles.per_image
            operations = 2.0 * items * part.tiles.size * sizes.taps * part.channels
            scratch = kernels.deform_scratch(part, x.itemsize, backward=False)
            args = (inputs, y.reshape(-1), part)
            run_with_scratch(kernels.sample_points_items, items, operations, scratch, x.dtype, *args)
    return y, (x, points)


def sample_points_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], *, deterministic: bool, border: str
) -> tuple[Any, Any]:
    """Gradients of `sample_points` with respect to x and points."""
    x, points = kept
    if not grad_output.size or not any(needs):
        return tuple(zeros_where(kept, needs))
    sizes, nothing = sample_sizes(x, points, border), np.empty(0, x.dtype)
    wanted = [array for array, needed in zip(kept, needs, strict=True) if needed]
    call = _call(sizes, (*kept, grad_output, *wanted), backward=True)
    arrays = [_flat_input(array, x.dtype) for array in (grad_output, x, points, None)]
    if samples_in_place(call):
        grad_x, grad_points = empty_where(kept, needs)
        flow_backward(call, arrays[:3], (grad_x, grad_points))
        return grad_x, grad_points
    if has_few_channels(call):
        grad_x, grad_points = empty_where(kept, needs)
        few_backward(call, [*arrays[1:3], nothing, nothing], arrays[0], (grad_x, grad_points, None, None))
        return grad_x, grad_points
    grad_x, grad_points = zeros_where(kept, needs)
    plan, none = deform_plan(call, call), DeformColumns(nothing, nothing)
    memory = _part_memory(chain(*plan.parts), x.dtype, 0 if grad_x is None else plan.splits)
    for part in chain(*plan.parts):
        grad_arrays = grad_x, grad_points, None
        _backward_part(arrays, nothing, nothing, grad_arrays, plan, part, none, memory)
    return grad_x, grad_points


def _whole_call(kept: tuple, steps: dict[str, Any]) -> DeformCall | None:
    """What the plan of the whole depends on, if a forward pass is a part of one."""
    whole = whole_of(kept)
    if whole is kept:
        return None
    x, offset, weight, *_ = whole
    outputs = x.shape[0] * weight.shape[0] * math.prod(offset.shape[5:]) * x.itemsize
    sizes = deform_sizes(x, offset, weight, **steps)
    return DeformCall(x.shape[0], sizes, x.itemsize, _bytes(whole) + outputs, backward=False)


def _flat_input(array: Any, dtype: np.dtype) -> np.ndarray:
    """An array as kernels take it; no elements for one that is not given."""
    return np.empty(0, dtype) if array is None else kernel_input(array).reshape(-1)


def _bytes(arrays: tuple) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def _call(sizes: DeformSizes, arrays: tuple, *, backward: bool) -> DeformCall:
    """A call with all its arrays, of which the first is x."""
    x = arrays[0]
    return DeformCall(x.shape[0], sizes, x.itemsize, _bytes(arrays), backward)


def _part_memory(parts: Iterable[DeformPart], dtype: np.dtype, copies: int = 0) -> PartMemory:
    """Room for each of these parts, one after the other; `copies` of gradients of the images."""
    most = max(part.images * part.channels * part.sizes.image.pixels for part in parts)
    return PartMemory(borrow("packed", most, dtype), borrow("gradients", copies * most, dtype))


def _pack_part(
    x: np.ndarray, part: DeformPart, weight: np.ndarray, weights: np.ndarray, memory: PartMemory
) -> np.ndarray:
    """The images of a part; and, if it has elements, the weights of its chunks into `weights`."""
    sizes, width = part.sizes, TILE_ROW_BYTES // x.itemsize
    packed = memory.packed[: part.images * part.channels * sizes.image.pixels]
    strips = part.chunk_count * -(-sizes.group_outputs // width) if weights.size else 0
    items = strips + part.images * packed_rows(sizes.image)
    operations = 4 * len(packed) + 2 * len(weights)
    parallel.run(kernels.deform_pack_items, items, operations, x, packed, weight, weights, strips, part)
    return packed
