"""`dynamic_conv2d` and `dynamic_sampling_conv2d` in elementary functions."""

from typing import Any


def conv2d_forward(functions: Any, x: Any, weight: Any, *, stride: Any, dilation: Any, padding: Any) -> Any:
    """y = sum over taps and channels of weight * shifted image."""
    (n, outputs, _, kh, kw), size = weight.shape[:5], weight.shape[5:]
    y = functions.broadcast_to(x.dtype.type(0), (n, outputs, *size))
    if 0 in y.shape:
        return y
    for a in range(kh):
        for b in range(kw):
            start = [tap * dilation[axis] - padding[axis] for axis, tap in enumerate((a, b))]
            pixels = functions.expand_dims(_shifted(functions, x, start, stride, size), 1)
            y = y + functions.sum(weight[:, :, :, a, b] * pixels, axis=2)
    return y


def sampling_forward(
    functions: Any,
    x: Any,
    channel_kernel: Any,
    spatial_kernel: Any,
    sample_attention: Any,
    position_attention: Any,
    *,
    samples: int,
    sample_stride: Any,
    dilation: Any,
    stride: Any,
    kernel_residual: bool,
    attention_residual: bool,
    fuse: str,
) -> Any:
    """z[i, j] by the factors: the channel kernel on the pixels, the spatial kernel on the sum of channels."""
    n, outputs, channels, *size = channel_kernel.shape
    if 0 in channel_kernel.shape or 0 in x.shape:
        shape = (n, samples, samples, outputs, *size) if fuse == "stack" else (n, outputs, *size)
        return functions.broadcast_to(x.dtype.type(0), shape)
    kh, kw = spatial_kernel.shape[2:4]
    total = functions.sum(x, axis=1, keepdims=True)
    on_centre = channel_kernel + (1 / channels if kernel_residual else 0)

    def attention(a: int, b: int, start: Any) -> Any:
        if position_attention is None:
            return 1
        of_tap = position_attention[:, :, a, b]
        return _shifted(functions, of_tap, start, stride, size) + attention_residual

    def region(start: Any) -> Any:
        pixels = functions.expand_dims(_shifted(functions, x, start, stride, size), 1)
        z = functions.sum(on_centre * pixels, axis=2) * attention(kh // 2, kw // 2, start)
        for a in range(kh):
            for b in range(kw):
                tap = [start[0] + (a - kh // 2) * dilation[0], start[1] + (b - kw // 2) * dilation[1]]
                seen = _shifted(functions, total, tap, stride, size)
                z = z + spatial_kernel[:, :, a, b] * seen * attention(a, b, start)
        return z

    regions = []
    for i in range(samples):
        for j in range(samples):
            z = region([(k - (samples - 1) // 2) * sample_stride[axis] for axis, k in enumerate((i, j))])
            if sample_attention is not None:
                z = z * (sample_attention[:, :, i, j] + attention_residual)
            regions.append(z)
    stacked = functions.stack(regions, axis=1)
    if fuse == "stack":
        return functions.reshape(stacked, (n, samples, samples, outputs, *size))
    return functions.sum(stacked, axis=1) if fuse == "sum" else functions.max(stacked, axis=1)


def _shifted(functions: Any, image: Any, start: Any, step: Any, size: Any) -> Any:
    """image[..., start_y + h*step_y, start_x + w*step_x] for all h, w below `size`; zero outside."""
    margins, slices = [], []
    for axis, extent in enumerate(image.shape[-2:]):
        last = start[axis] + (size[axis] - 1) * step[axis]
        before, after = max(0, -start[axis]), max(0, last + 1 - extent)
        margins.append((before, after))
        slices.append(slice(start[axis] + before, last + before + 1, step[axis]))
    padded = functions.pad(image, ((0, 0),) * (len(image.shape) - 2) + tuple(margins))
    return padded[..., slices[0], slices[1]]
