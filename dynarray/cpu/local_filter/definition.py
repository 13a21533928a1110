"""The gradients of `local_filter2d` as its definition has them, pixel by pixel.

The other kernels multiply zeros where there is nothing to add. That is wrong where one factor is NaN or
infinity: then they hand the call over to this one, which only touches what the definition does.
"""

from typing import Any

import numpy as np

from ..engine import parallel
from ..engine.compile import cached_jit, flag, kernel_input


def backward(grad_output: Any, kept: tuple, needs: tuple[bool, bool, bool], params: dict[str, Any]) -> tuple:
    """The gradients of x, weight and channel_weight, or None where they are not needed."""
    x, weight, channel_weight = kept
    scales = None if channel_weight is None else kernel_input(channel_weight)
    grad_x = np.zeros(x.shape, x.dtype)
    grad_weight = np.zeros(weight.shape, x.dtype)
    # In double precision, as these sums run over all pixels.
    grad_scales = np.zeros(channel_weight.shape if needs[2] else (0,) * 6)
    arrays = (*map(kernel_input, (grad_output, x, weight)), scales)
    steps = (*params["stride"], *params["dilation"], *params["padding"], params["upsample"])
    add = flag(params["combine"] == "add" and channel_weight is not None)
    items, operations = (
        x.shape[0] * weight.shape[1],
        9.0 * grad_output.size * weight.shape[2] * weight.shape[3],
    )
    parallel.run(definition_items, items, operations, *arrays, grad_x, grad_weight, grad_scales, steps, add)
    grads = (grad_x, grad_weight, grad_scales.astype(x.dtype))
    return tuple(grad if needed else None for grad, needed in zip(grads, needs, strict=True))


@cached_jit
def definition_items(
    start: int,
    stop: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    scales: Any,
    grad_x: np.ndarray,
    grad_weight: np.ndarray,
    grad_scales: np.ndarray,
    steps: tuple,
    add: bool | None,
) -> None:
    """Items (n, group)."""
    stride_y, stride_x, dilation_y, dilation_x, padding_y, padding_x, u = steps
    groups, kh, kw, high, wide = weight.shape[1:]
    per_group, rows, width = x.shape[1] // groups, x.shape[2], x.shape[3]
    for item in range(start, stop):
        n, g = item // groups, item % groups
        for c in range(g * per_group, (g + 1) * per_group):
            for h in range(high):
                for w in range(wide):
                    grad = grad_output[n, c, h, w]
                    for a in range(kh):
                        for b in range(kw):
                            y = h // u * stride_y - padding_y + a * dilation_y
                            z = w // u * stride_x - padding_x + b * dilation_x
                            inside = 0 <= y < rows and 0 <= z < width
                            pixel = x[n, c, y, z] if inside else x.dtype.type(0)
                            own = weight[n, g, a, b, h, w]
                            one = x.dtype.type(1)
                            scale = one if scales is None else scales[n, h % u, w % u, c, a, b]
                            if inside:
                                grad_x[n, c, y, z] += grad * (own + scale if add is not None else own * scale)
                            grad_weight[n, g, a, b, h, w] += (
                                grad * pixel * (one if add is not None else scale)
                            )
                            if grad_scales.size:
                                factor = one if add is not None else own
                                grad_scales[n, h % u, w % u, c, a, b] += grad * pixel * factor
