"""Static convolutions on the CPU: what networks around dynamic filters are made of.

A work item is a block of output pixels of one image and group. The inputs that it reads are packed once,
with their zero padding, into flat planes, one per channel and phase of the stride; in them the inputs of
one tap are one shifted run, so that the matrix product of `gemm` reads them in place: no columns are ever
written. The gradient of x is the same correlation, of the output gradient, once per phase of the stride.
The gradient of the weight is a product over pixels: planes are packed with their channels side by side, and
a tap is again a shift. Without dilation the pixels under a row of a kernel lie one behind the other there, so
that all its taps are one run: few channels fill vectors too.
"""

from typing import Any

import numpy as np

from .. import parallel
from ..compile import available, kernel_input
from ..memory import empty, run_with_scratch
from .kernels import conv_correlate_items, conv_pack_items, conv_weight_items, conv_weight_rows
from .plan import ConvPlan, ConvSteps, Pair, conv_plan, conv_weight_plan


def conv_suits(*arrays: Any) -> bool:
    """Whether these kernels take the arrays."""
    alike = all(type(a) is np.ndarray and a.dtype == arrays[0].dtype for a in arrays)
    known = arrays[0].dtype in (np.float32, np.float64) and arrays[0].dtype.isnative
    return alike and known and available()


def conv_correlate(
    x: np.ndarray, weight: np.ndarray, output: Pair, steps: ConvSteps, out: np.ndarray | None = None
) -> np.ndarray:
    """The convolution (N, O, *output) of x (N, C, H, W) with weight (O, C/groups, kh, kw)."""
    result = empty((x.shape[0], weight.shape[0], *output), x.dtype) if out is None else out
    if not result.size or not x.size:
        result[...] = 0
        return result
    plan = conv_plan(steps, weight.shape, x.shape, result.shape, x.itemsize)
    _run_correlation(kernel_input(x), kernel_input(weight), result, plan)
    return result


def conv_correlate_input(
    grad_output: np.ndarray,
    weight: np.ndarray,
    shape: tuple,
    steps: ConvSteps,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The gradient of x, of this shape, from that of the output."""
    result = empty(shape, grad_output.dtype) if out is None else out
    if not result.size or not grad_output.size:
        result[...] = 0
        return result
    grad_output, weight, stride = kernel_input(grad_output), kernel_input(weight), steps.stride
    for y in range(min(stride[0], shape[2])):
        for x in range(min(stride[1], shape[3])):
            shapes = weight.shape, grad_output.shape, result.shape
            plan = conv_plan(steps, *shapes, grad_output.itemsize, (y, x))
            if len(plan.places):
                _run_correlation(grad_output, weight, result, plan)
            else:
                result[:, :, y :: stride[0], x :: stride[1]] = 0
    return result


def conv_correlate_weight(
    grad_output: np.ndarray, x: np.ndarray, shape: tuple, steps: ConvSteps
) -> np.ndarray:
    """The gradient of the weight, of this shape, from that of the output."""
    if not grad_output.size or not x.size:
        return np.zeros(shape, grad_output.dtype)
    o, per_group, kh, kw = shape
    plan = conv_weight_plan(steps, shape, grad_output.shape, x.shape, x.itemsize)
    sums = np.zeros(plan.sums, x.dtype)
    slots, groups, _, parts = plan.sums[:4]
    items, operations = slots * groups * parts, grad_output.size * per_group * kh * kw
    arguments = (sums, kernel_input(grad_output), kernel_input(x), plan.planes, per_group)
    run_with_scratch(conv_weight_items, items, operations, plan.scratch, x.dtype, *arguments)
    total, together = sums[0] if slots == 1 else sums.sum(axis=0), plan.planes.channels
    result = empty((o, per_group, kh * kw), x.dtype)
    total = total.reshape(o, parts, kh * kw, together)
    parallel.run(conv_weight_rows, o, 4.0 * total.size, result, total, together)
    return result.reshape(shape)


def _run_correlation(image: np.ndarray, weight: np.ndarray, result: np.ndarray, plan: ConvPlan) -> None:
    """The weights packed as the left matrices of `gemm`, and the correlation of `image` with them."""
    panels = np.empty(plan.panels, weight.dtype)
    groups, panels_of_group, depth, _ = plan.panels
    size = (weight.size // groups, plan.rows)
    items, flat = groups * panels_of_group, weight.reshape(-1)
    parallel.run(conv_pack_items, items, panels.size, panels, flat, *size, plan.distances, plan.places)
    args = (plan.target._replace(images=result), image, panels.reshape(-1), plan.planes)
    operations = result.size * depth
    run_with_scratch(conv_correlate_items, plan.items, operations, plan.scratch, image.dtype, *args)
