"""`local_filter2d` for few channels: filters are read once, where they are, and their gradients written once.

Where a filter serves one to four channels, nearly all that passes through memory is filters, and packing them
takes longer than using them. Here a row of results is summed up at a time: along it, lanes are pixels, and
each tap has a row of filters, read in place, and a row of the image. Of the image the rows that taps lead to
are kept, in a ring, amid the zeros that stand around it; with a stride, each phase of its columns by itself,
and with upsampling each pixel as often as it counts. So a tap is one offset in any of these cases. Where all
that a band of rows reads is small, the band is summed up as if it were a single row.

The gradient of x is such a sum as well, over the output gradient. There, columns of taps have filters for
some of the results only, and no others are read. The gradients of the filters are products of rows.
"""

from typing import Any

import numpy as np

from ..engine import strips
from ..engine.compile import kernel_input
from ..engine.memory import run_with_scratch
from .direct_kernels import (
    DirectProducts,
    DirectSums,
    direct_product_items,
    direct_scatter_items,
    direct_sum_items,
)
from .direct_plan import direct_plan, is_direct
from .items import FilterArrays, FilterWindow


def direct_applies(inputs: FilterArrays, window: FilterWindow) -> bool:
    """Whether few channels share filters, and the rows that are kept for them are not too many."""
    x, weight, channel_weight = inputs
    return is_direct(x.shape, weight.shape, x.itemsize, window, scaled=channel_weight is not None)


def direct_forward(inputs: FilterArrays, window: FilterWindow) -> np.ndarray:
    """The output."""
    x, weight, _ = inputs
    y = strips.empty_to_stream((*x.shape[:2], *weight.shape[4:]), x.dtype)
    _sum_taps(y, x, inputs, window, back=False)
    return y


def direct_backward(
    grad_output: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], window: FilterWindow
) -> FilterArrays | None:
    """The gradients of x, weight and channel_weight.

    None if a filter of channels is not finite: it may meet zeros that stand for nothing.
    """
    x, _, channel_weight = inputs
    if channel_weight is not None and not np.isfinite(channel_weight).all():
        return None
    grad_x = None
    if needs[0]:
        grad_x = strips.empty_to_stream(x.shape, x.dtype)
        _sum_taps(grad_x, grad_output, inputs, window, back=True)
    if not (needs[1] or needs[2]):
        return FilterArrays(grad_x, None, None)
    return FilterArrays(grad_x, *_multiply_rows(grad_output, inputs, needs, window))


def _sum_taps(
    target: np.ndarray, source: np.ndarray, inputs: FilterArrays, window: FilterWindow, *, back: bool
) -> None:
    """Sums over taps of filters times the source."""
    x, weight, channel_weight = inputs
    scaled = channel_weight is not None
    plan = direct_plan(x.shape, weight.shape, x.itemsize, window, back=back, scaled=scaled)
    work = DirectSums(target, kernel_input(weight), kernel_input(source), _in_row(channel_weight))
    args = plan.scratch, x.dtype, work, plan.reference
    kernel = direct_scatter_items if plan.scatters else direct_sum_items
    run_with_scratch(kernel, plan.total, plan.operations, *args)


def _multiply_rows(
    grad_output: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], window: FilterWindow
) -> tuple[Any, Any]:
    """The gradients of weight and channel_weight."""
    x, weight, channel_weight = inputs
    scaled = channel_weight is not None
    plan = direct_plan(x.shape, weight.shape, x.itemsize, window, back=False, scaled=scaled)
    grad_weight = strips.empty_to_stream(weight.shape if needs[1] else (0,) * 6, x.dtype)
    by_band = np.empty((plan.bands, *channel_weight.shape) if needs[2] else (1, 0), x.dtype)
    arrays = FilterArrays(kernel_input(x), kernel_input(weight), _in_row(channel_weight))
    work = DirectProducts(kernel_input(grad_output), arrays, grad_weight, by_band.reshape(-1))
    args = plan.scratch, x.dtype, work, plan.reference
    run_with_scratch(direct_product_items, plan.total, plan.operations, *args)
    return grad_weight if needs[1] else None, by_band.sum(axis=0) if needs[2] else None


def _in_row(array: Any) -> Any:
    """All elements in a row; None stays None."""
    return None if array is None else kernel_input(array).reshape(-1)
