"""The gradients of `local_filter2d` as its definition has them, pixel by pixel.

The other kernels multiply zeros where there is nothing to add. That is wrong where one factor is NaN or
infinity: then they hand the call over to this one, which only touches what the definition does.
"""

import math

import numpy as np

from ..engine import parallel
from ..engine.compile import borrowing_cached_jit, kernel_input, zero_like
from .items import FilterArrays, FilterWindow, FilterWork


def definition_backward(
    grad_output: np.ndarray, inputs: FilterArrays, needs: tuple[bool, bool, bool], window: FilterWindow
) -> FilterArrays:
    """The gradients of x, weight and channel_weight, or None where they are not needed."""
    x, weight, channel_weight = inputs
    grads = FilterArrays(
        x=np.zeros(x.shape, x.dtype),
        weight=np.zeros(weight.shape, x.dtype),
        # In double precision, as these sums run over all pixels.
        channel_weight=np.zeros(channel_weight.shape if needs[2] else (0,) * 6),
    )
    if channel_weight is None:  # as if all were 1
        u = window.upsample
        channel_weight = np.ones((weight.shape[0], u, u, x.shape[1], *weight.shape[2:4]), x.dtype)
    arrays = FilterArrays(*map(kernel_input, (x, weight, channel_weight)))
    work = FilterWork(kernel_input(grad_output), arrays, grads)
    operations = 9.0 * grad_output.size * math.prod(weight.shape[2:4])
    parallel.run(definition_items, math.prod(weight.shape[:2]), operations, work, window)
    grads = grads._replace(channel_weight=grads.channel_weight.astype(x.dtype))
    return FilterArrays(*(grad if need else None for grad, need in zip(grads, needs, strict=True)))


@borrowing_cached_jit
def definition_items(start: int, stop: int, work: FilterWork, window: FilterWindow) -> None:
    """Items (n, group)."""
    grad_output, (x, weight, channel_weight), grads = work
    stride, dilation, padding, u, add = window
    groups, kh, kw, high, wide = weight.shape[1:]
    per_group, rows, width, one = x.shape[1] // groups, x.shape[2], x.shape[3], x.dtype.type(1)
    for item in range(start, stop):
        n, g = item // groups, item % groups
        for c in range(g * per_group, (g + 1) * per_group):
            for h in range(high):
                for w in range(wide):
                    grad = grad_output[n, c, h, w]
                    for a in range(kh):
                        for b in range(kw):
                            row = h // u * stride[0] - padding[0] + a * dilation[0]
                            column = w // u * stride[1] - padding[1] + b * dilation[1]
                            inside = 0 <= row < rows and 0 <= column < width
                            pixel = x[n, c, row, column] if inside else zero_like(x)
                            own = weight[n, g, a, b, h, w]
                            scale = channel_weight[n, h % u, w % u, c, a, b]
                            if inside:
                                both = own + scale if add is not None else own * scale
                                grads.x[n, c, row, column] += grad * both
                            factor = one if add is not None else scale
                            grads.weight[n, g, a, b, h, w] += grad * pixel * factor
                            if grads.channel_weight.size:
                                factor = one if add is not None else own
                                grads.channel_weight[n, h % u, w % u, c, a, b] += grad * pixel * factor
