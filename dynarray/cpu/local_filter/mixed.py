"""`mixed_filter2d` on the CPU.

The filter of a position is a sum of the kernels, and serves all channels of a group. To make it costs B
multiply-adds a tap, to apply it one for each channel; to filter the image by each kernel, and mix the
results, would cost B for each channel. So filters are made, for a strip of positions at a time:

- the output is their products with what the taps read, summed over taps (but see `mixed_bases`),
- the gradient of x is the same, with what the taps lead back to, where filters are made once more, and
- the gradient of filters, products of pixels and output gradients summed over channels, goes on to the
  mixture (times kernels, summed over taps) and to the kernels (times mixture, summed over positions).

Where rows fill vectors, gradients read everything where it lies (see `mixed_gradients`), else packed planes.
"""

import math
from typing import Any

import numpy as np

from ..engine import gemm, parallel
from ..engine.compile import kernel_input
from ..engine.dots import tangled_size, untangled
from ..engine.memory import empty, run_with_scratch
from ..engine.whole import whole_of, whole_params
from .mixed_bases import in_groups, mixed_bases_items, plan_bases
from .mixed_definition import mixed_definition_kernels, mixed_definition_x
from .mixed_gradients import plan_weights, plan_x, weights_in_place_items, x_in_place_items
from .mixed_kernels import (
    MixedRanges,
    mixed_forward_items,
    mixed_pixels_items,
    mixed_weights_items,
)
from .mixed_plan import MixedCall, MixedGradients, MixedInputs, plan_outputs, plan_pixels
from .mixed_rows import mixed_rows_items, plan_rows

_MIXED_SLOT_BYTES = 8 * 1024 * 1024  # gradients of kernels waiting to be added up
_RANGES = 4 * parallel.ITEMS  # of tiles, at most: their sums are then short


def mixed_filter2d_forward(x: Any, kernels: Any, mixture: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `mixed_filter2d`; keeps the inputs for the backward pass."""
    y = empty((*x.shape[:2], *mixture.shape[3:]), x.dtype)
    kept = (x, kernels, mixture)
    if not y.size or not kernels.size:
        y[...] = 0
        return y, kept
    call = MixedCall(x.shape, kernels.shape, mixture.shape, x.itemsize, **params)
    operations = (mixture.size * call.filters + y.size) * math.prod(kernels.shape[2:])
    whole = call._replace(mixture=whole_of(kept)[2].shape, stride=whole_params(params)["stride"])
    if by_bases := plan_bases(call, whole):
        inputs = MixedInputs(kernel_input(x), in_groups(kernels), kernel_input(mixture))
        alarms = np.zeros(x.shape[0] * x.shape[1] * by_bases.down, x.dtype)
        parallel.run(mixed_bases_items, len(alarms), operations, inputs, y, alarms, by_bases)
        if not alarms.any():  # NaN is not zero
            return y, kept
    inputs = MixedInputs(kernel_input(x), _panels(kernels, (1, 2, 0)), kernel_input(mixture))
    if in_rows := plan_rows(call):
        items = x.shape[0] * in_rows[0].down * mixture.shape[1]
        arguments = (in_rows[1], x.dtype, inputs, y, in_rows[0])
        run_with_scratch(mixed_rows_items, items, operations, *arguments)
    else:
        plan, scratch = plan_outputs(call, backward=False)
        items = x.shape[0] * plan.tiles.down * plan.tiles.across * mixture.shape[1]
        run_with_scratch(mixed_forward_items, items, operations, scratch, x.dtype, inputs, y, plan)
    return y, kept


def mixed_filter2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool, bool], **params: Any
) -> tuple[Any, Any, Any]:
    """Gradients of `mixed_filter2d` with respect to x, kernels and mixture."""
    x, kernels, mixture = kept
    if not grad_output.size or not kernels.size:
        zeros = (np.zeros(a.shape, a.dtype) if need else None for a, need in zip(kept, needs, strict=True))
        return tuple(zeros)  # type: ignore[return-value]
    call = MixedCall(x.shape, kernels.shape, mixture.shape, x.itemsize, **params)
    grad_output, arrays = kernel_input(grad_output), tuple(map(kernel_input, kept))
    grad_x = _grad_x(call, grad_output, arrays) if needs[0] else None
    if not any(needs[1:]):
        return grad_x, None, None
    return grad_x, *_grad_weights(call, grad_output, arrays, needs)


def _panels(kernels: np.ndarray, order: tuple[int, int, int]) -> np.ndarray:
    """Kernels (B, sets, taps) as left matrices in panels, set after set; `order` puts sets first."""
    b, sets, kh, kw = kernels.shape
    matrices = kernels.reshape(b, sets, kh * kw).transpose(order)
    return np.stack([gemm.pack_left(matrix) for matrix in matrices]).reshape(-1)


def _grad_x(call: MixedCall, grad_output: np.ndarray, arrays: tuple) -> np.ndarray:
    x, kernels, mixture = arrays
    if not x.size:
        return np.zeros(x.shape, x.dtype)
    operations = mixture.size * math.prod(kernels.shape[2:]) * call.filters
    if in_place := plan_x(call):
        own, sizes = in_place
        grad_x, by_tap = empty(x.shape, x.dtype), kernels.reshape(*kernels.shape[:2], -1).transpose(1, 2, 0)
        inputs = MixedInputs(x, np.ascontiguousarray(by_tap).reshape(-1), mixture)
        items = x.shape[0] * own.down * own.across * mixture.shape[1]
        operands = grad_output, inputs, grad_x, own
        run_with_scratch(x_in_place_items, items, operations, sizes, x.dtype, *operands)
        return grad_x
    if not np.isfinite(kernels).all():  # packed zeros may meet them
        return mixed_definition_x(call, grad_output, arrays)
    plan, scratch = plan_pixels(call)
    every_pixel = len(plan.taps.origin_y) == math.prod(call.stride)
    grad_x = (np.empty if every_pixel else np.zeros)(x.shape, x.dtype)
    taps = kernels.reshape(*kernels.shape[:2], -1).transpose(1, 2, 0)
    ordered = np.ascontiguousarray(taps[:, plan.taps.number]).reshape(-1)
    inputs = MixedInputs(x, ordered, mixture)
    items = x.shape[0] * plan.tiles.down * plan.tiles.across * mixture.shape[1]
    arguments = (grad_output, inputs, grad_x, plan)
    run_with_scratch(mixed_pixels_items, items, operations, scratch, x.dtype, *arguments)
    return grad_x


def _grad_weights(
    call: MixedCall, grad_output: np.ndarray, arrays: tuple, needs: tuple[bool, bool, bool]
) -> tuple[Any, Any]:
    """The gradients of kernels and mixture."""
    grad_mixture = empty(call.mixture if needs[2] else (0,) * 5, grad_output.dtype)
    groups, bases, taps = call.mixture[1], call.kernels[0], math.prod(call.kernels[2:])
    slot = 8 * groups * call.filters * tangled_size(bases, taps)
    ranges = max(1, min(-(-_RANGES // groups), _MIXED_SLOT_BYTES // slot))
    in_place = plan_weights(call)
    make, columns = (_weights_in_place, call.filters * taps) if in_place else (_weights_by_tile, taps)
    totals = make(call, ranges, grad_output, arrays, grad_mixture, needs[1])
    total = None
    if needs[1]:
        matrices = untangled(totals, bases, columns).reshape(-1, bases, columns)
        total = matrices.swapaxes(0, 1).reshape(bases, -1, *call.kernels[2:])
        total = total.astype(grad_output.dtype, order="C")
        if not np.isfinite(total).all():
            total = mixed_definition_kernels(call, grad_output, arrays)
    return total, grad_mixture if needs[2] else None


def _added_up(grad_kernels: np.ndarray, call: MixedCall) -> np.ndarray:
    """Over ranges and, where all groups have the same kernels, over these."""
    total = grad_kernels.sum(axis=0)
    return total.sum(axis=0, keepdims=True) if call.kernels[1] == 1 else total


def _weights_in_place(
    call: MixedCall, most: int, grad_output: np.ndarray, arrays: tuple, grad_mixture: np.ndarray, needed: bool
) -> np.ndarray:
    """Write the gradient of the mixture; that of the kernels, if it is needed, group by group."""
    x, kernels, mixture = arrays
    plan, scratch = plan_weights(call)  # type: ignore[misc]
    ranges = min(most, len(x) * plan.down * plan.across)
    bases, groups, depth = len(kernels), mixture.shape[1], call.filters * math.prod(kernels.shape[2:])
    tangled = tangled_size(bases, depth) if needed else 0
    grad_kernels = np.zeros((ranges, groups, tangled))
    by_group = kernels.reshape(bases, -1, depth).swapaxes(0, 1)
    inputs = MixedInputs(x, np.ascontiguousarray(by_group).reshape(-1), mixture)
    operations = 2 * mixture.size * depth
    arguments = (grad_output, inputs, MixedGradients(grad_kernels, grad_mixture), plan)
    run_with_scratch(weights_in_place_items, ranges * groups, operations, scratch, x.dtype, *arguments)
    return _added_up(grad_kernels, call)


def _weights_by_tile(
    call: MixedCall, most: int, grad_output: np.ndarray, arrays: tuple, grad_mixture: np.ndarray, needed: bool
) -> np.ndarray:
    """The same, filter by filter."""
    x, kernels, mixture = arrays
    (bases, _, kh, kw), groups = kernels.shape, mixture.shape[1]
    plan, scratch = plan_outputs(call, backward=True)
    tiles = x.shape[0] * plan.tiles.down * plan.tiles.across
    ranges, tangled = min(tiles, most), tangled_size(bases, kh * kw) if needed else 0
    grad_kernels = np.zeros((ranges, groups, call.filters * tangled))
    inputs = MixedInputs(x, _panels(kernels, (1, 0, 2)), mixture)
    operations = 2 * mixture.size * kh * kw * call.filters
    grads = MixedGradients(grad_kernels, grad_mixture)
    arguments = (grad_output, inputs, grads, plan, MixedRanges(ranges, tiles))
    run_with_scratch(mixed_weights_items, ranges * groups, operations, scratch, x.dtype, *arguments)
    total = _added_up(grad_kernels, call)
    return total.reshape(len(total) * call.filters, tangled)
