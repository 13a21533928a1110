"""`local_filter2d`, `correlation2d` and `mixed_filter2d` in elementary functions."""

from collections.abc import Callable
from typing import Any


def forward(
    functions: Any,
    x: Any,
    weight: Any,
    channel_weight: Any,
    *,
    combine: str,
    stride: Any,
    dilation: Any,
    padding: Any,
    upsample: int,
) -> Any:
    """y = sum over taps of filter * shifted image."""
    channels, (kh, kw), outputs = x.shape[1], weight.shape[2:4], weight.shape[4:]
    steps = [size // upsample for size in outputs]
    read = _shifts(functions, x, (kh, kw), steps, stride, dilation, padding)

    def of_channels(a: int, b: int) -> Any:
        tap = channel_weight[..., a, b]
        if upsample == 1:
            return functions.reshape(tap, (*tap.shape[:1], channels, 1, 1))
        # (N, u, u, C) -> (N, C, 1, u, 1, u), repeated over the pixels of the input.
        n, u = tap.shape[0], upsample
        phases = functions.reshape(functions.transpose(tap, (0, 3, 1, 2)), (n, channels, 1, u, 1, u))
        spread = functions.broadcast_to(phases, (n, channels, steps[0], u, steps[1], u))
        return functions.reshape(spread, (n, channels, *outputs))

    def pixels(a: int, b: int) -> Any:
        tap = read(a, b)
        return functions.repeat(functions.repeat(tap, upsample, 2), upsample, 3) if upsample > 1 else tap

    y = functions.broadcast_to(x.dtype.type(0), (x.shape[0], channels, *outputs))
    if 0 in y.shape:
        return y
    for a in range(kh):
        for b in range(kw):
            filters = functions.repeat(weight[:, :, a, b], channels // weight.shape[1], 1)
            if channel_weight is not None:
                other = of_channels(a, b)
                filters = filters * other if combine == "mul" else filters + other
            y = y + filters * pixels(a, b)
    return y


def correlation_forward(
    functions: Any, x1: Any, x2: Any, *, displacements: Any, dilation: Any, padding: Any, **_: Any
) -> Any:
    """Means of x1 * shifted x2, one map after the other."""
    (n, channels, height, width), (high, wide) = x1.shape, displacements
    if 0 in x1.shape:
        return functions.broadcast_to(x1.dtype.type(0), (n, high * wide, height, width))
    margins = [
        (before, (count - 1) * step - before)
        for count, step, before in zip(displacements, dilation, padding, strict=True)
    ]
    image = functions.pad(x2, ((0, 0), (0, 0), *margins))
    maps = [
        functions.sum(x1 * image[:, :, a : a + height, b : b + width], axis=1) / channels
        for a in range(0, high * dilation[0], dilation[0])
        for b in range(0, wide * dilation[1], dilation[1])
    ]
    return functions.stack(maps, axis=1)


def mixed_forward(
    functions: Any, x: Any, kernels: Any, mixture: Any, *, stride: Any, dilation: Any, padding: Any
) -> Any:
    """y = sum over taps of (sum over kernels of mixture * kernel) * shifted image."""
    channels, groups, outputs = x.shape[1], mixture.shape[1], mixture.shape[3:]
    read = _shifts(functions, x, kernels.shape[2:], outputs, stride, dilation, padding)
    y = functions.broadcast_to(x.dtype.type(0), (x.shape[0], channels, *outputs))
    if 0 in y.shape or 0 in kernels.shape:
        return y
    if kernels.shape[1] > 1:  # each channel has filters of its own
        mixture, groups = functions.repeat(mixture, channels // groups, 1), channels
    for a in range(kernels.shape[2]):
        for b in range(kernels.shape[3]):
            tap = functions.transpose(kernels[:, :, a, b], (1, 0))
            filters = functions.sum(mixture * functions.reshape(tap, (1, *tap.shape, 1, 1)), axis=2)
            y = y + functions.repeat(filters, channels // groups, 1) * read(a, b)
    return y


def _shifts(
    functions: Any, x: Any, kernel: Any, outputs: Any, stride: Any, dilation: Any, padding: Any
) -> Callable[[int, int], Any]:
    """A function that gives what a tap reads for all outputs."""
    margins = [
        # Zeros before, and as many after as the last tap of the last output reads.
        (padding[i], max(0, (outputs[i] - 1) * stride[i] + (k - 1) * dilation[i] + 1 - padding[i] - size))
        for i, (k, size) in enumerate(zip(kernel, x.shape[2:]))
    ]
    image = functions.pad(x, ((0, 0), (0, 0), *margins))

    def read(a: int, b: int) -> Any:
        rows, columns = (
            slice(tap * dilation[i], tap * dilation[i] + (outputs[i] - 1) * stride[i] + 1, stride[i])
            for i, tap in enumerate((a, b))
        )
        return image[:, :, rows, columns]

    return read
