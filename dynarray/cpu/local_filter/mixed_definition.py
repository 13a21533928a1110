"""Gradients of `mixed_filter2d` as its definition has them, pixel by pixel.

The other kernels multiply zeros where there is nothing to add. That is wrong where one factor is NaN or
infinity: then these follow, which only touch what the definition does.
"""

import numpy as np

from ..engine import parallel
from ..engine.compile import borrowing_cached_jit, zero_like
from .mixed_plan import MixedCall


def mixed_definition_x(call: MixedCall, grad_output: np.ndarray, arrays: tuple) -> np.ndarray:
    """The gradient of x."""
    grad_x, operations = np.zeros(call.x, grad_output.dtype), _definition_operations(call)
    parallel.run(_x_items, call.x[0] * call.x[1], operations, grad_output, *arrays[1:], grad_x, call)
    return grad_x


def mixed_definition_kernels(call: MixedCall, grad_output: np.ndarray, arrays: tuple) -> np.ndarray:
    """The gradient of the kernels."""
    grad_kernels = np.zeros(call.kernels)
    items, operations = call.kernels[1] * call.kernels[2] * call.kernels[3], _definition_operations(call)
    parallel.run(_kernel_items, items, operations, grad_output, arrays[0], arrays[2], grad_kernels, call)
    return grad_kernels.astype(grad_output.dtype)


def _definition_operations(call: MixedCall) -> float:
    return 3.0 * np.prod(call.mixture) * np.prod(call.kernels[2:]) * call.x[1] / call.mixture[1]


@borrowing_cached_jit
def _x_items(
    start: int,
    stop: int,
    grad_output: np.ndarray,
    kernels: np.ndarray,
    mixture: np.ndarray,
    grad_x: np.ndarray,
    call: MixedCall,
) -> None:
    """Items: planes of x."""
    (bases, sets, kh, kw), channels = kernels.shape, grad_x.shape[1]
    share, height, width = channels // mixture.shape[1], grad_x.shape[2], grad_x.shape[3]
    stride, dilation, padding = call.stride, call.dilation, call.padding
    for item in range(start, stop):
        n, c = item // channels, item % channels
        of_pixels, own = mixture[n, c // share], c if sets > 1 else 0
        for h in range(mixture.shape[3]):
            for w in range(mixture.shape[4]):
                for i in range(kh):
                    for j in range(kw):
                        row = h * stride[0] - padding[0] + i * dilation[0]
                        column = w * stride[1] - padding[1] + j * dilation[1]
                        if 0 <= row < height and 0 <= column < width:
                            value = zero_like(grad_x)
                            for b in range(bases):
                                value += of_pixels[b, h, w] * kernels[b, own, i, j]
                            grad_x[n, c, row, column] += grad_output[n, c, h, w] * value


@borrowing_cached_jit
def _kernel_items(
    start: int,
    stop: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    mixture: np.ndarray,
    grad_kernels: np.ndarray,
    call: MixedCall,
) -> None:
    """Items: (set, tap)."""
    (bases, sets, kh, kw), (channels, height, width) = grad_kernels.shape, x.shape[1:]
    groups = mixture.shape[1] if sets == 1 else channels
    share, of_group = channels // groups, groups // mixture.shape[1]
    stride, dilation, padding = call.stride, call.dilation, call.padding
    for item in range(start, stop):
        own, i, j = item // (kh * kw), item // kw % kh, item % kw
        first, end = (own, own + 1) if sets > 1 else (0, groups)
        for n in range(len(x)):
            for g in range(first, end):
                of_pixels = mixture[n, g // of_group]
                for h in range(mixture.shape[3]):
                    for w in range(mixture.shape[4]):
                        row = h * stride[0] - padding[0] + i * dilation[0]
                        column = w * stride[1] - padding[1] + j * dilation[1]
                        inside = 0 <= row < height and 0 <= column < width
                        total = 0.0
                        for c in range(g * share, (g + 1) * share):
                            pixel = x[n, c, row, column] if inside else zero_like(x)
                            total += grad_output[n, c, h, w] * pixel
                        for b in range(bases):
                            grad_kernels[b, own, i, j] += of_pixels[b, h, w] * total
