"""Definition of `dynamic_conv2d` and `dynamic_sampling_conv2d`: each pixel's kernel written out."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .._geometry import input_positions, on_ring


def _ringed(image: Any) -> Any:
    """The image inside a ring of zeros, onto which all positions outside the image fall."""
    return np.pad(image, ((0, 0),) * (image.ndim - 2) + ((1, 1), (1, 1)))


def _at(rows: np.ndarray, cols: np.ndarray, image: Any) -> tuple:
    """Index of these rows and columns of a ringed image."""
    height, width = image.shape[-2] - 2, image.shape[-1] - 2
    return ..., on_ring(rows, height)[:, None], on_ring(cols, width)[None, :]


def conv2d_forward(x: Any, weight: Any, *, stride: Any, dilation: Any, padding: Any) -> tuple[Any, tuple]:
    """y[o] = sum over channels and taps of weight[o, c, a, b] * x[c], tap by tap."""
    n, outputs, _, *kernel = weight.shape[:5]
    y = np.zeros((n, outputs, *weight.shape[5:]), np.result_type(x, weight))
    image = _ringed(x)
    for a, b in np.ndindex(*kernel):
        pixels = image[_tap_pixels(a, b, weight, image, stride, dilation, padding)]
        y += (weight[:, :, :, a, b] * pixels[:, None]).sum(axis=2)
    return y, (x, weight)


def _tap_pixels(a: int, b: int, weight: Any, image: Any, stride: Any, dilation: Any, padding: Any) -> tuple:
    high, wide = weight.shape[5:]
    rows = input_positions(high, a, stride[0], dilation[0], padding[0])
    cols = input_positions(wide, b, stride[1], dilation[1], padding[1])
    return _at(rows, cols, image)


def conv2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], *, stride: Any, dilation: Any, padding: Any
) -> tuple[Any, Any]:
    """The product rule, tap by tap."""
    x, weight = kept
    image = _ringed(x)
    grad_image, grad_weight = np.zeros_like(image), np.zeros_like(weight, order="C")
    for a, b in np.ndindex(*weight.shape[3:5]):
        at = _tap_pixels(a, b, weight, image, stride, dilation, padding)
        np.add.at(grad_image, at, (grad_output[:, :, None] * weight[:, :, :, a, b]).sum(axis=1))
        grad_weight[:, :, :, a, b] = grad_output[:, :, None] * image[at][:, None]
    grad_x = np.ascontiguousarray(grad_image[:, :, 1:-1, 1:-1])
    return grad_x if needs[0] else None, grad_weight if needs[1] else None


class _Sample(NamedTuple):
    """One sampled region: its place in the S x S grid, and its rows and columns for each output."""

    at: tuple[int, int]
    rows: np.ndarray
    cols: np.ndarray


def _samples(outputs: tuple[int, int], samples: int, sample_stride: Any, stride: Any) -> Iterator[_Sample]:
    for at in np.ndindex(samples, samples):
        rows, cols = (
            np.arange(outputs[axis]) * stride[axis] + (at[axis] - (samples - 1) // 2) * sample_stride[axis]
            for axis in range(2)
        )
        yield _Sample(at, rows, cols)


def _taps(spatial_kernel: Any, sample: _Sample, dilation: Any, image: Any) -> Iterator[tuple]:
    """Each tap of a sampled region, and the pixels that it reads."""
    kh, kw = spatial_kernel.shape[2:4]
    for a, b in np.ndindex(kh, kw):
        rows, cols = sample.rows + (a - kh // 2) * dilation[0], sample.cols + (b - kw // 2) * dilation[1]
        yield (a, b), _at(rows, cols, image)


def _composed(channel_kernel: Any, spatial_kernel: Any, kernel_residual: bool) -> Any:
    """K (N, O, C, kh, kw, Ho, Wo): the spatial kernel in every channel, the channel kernel on its centre."""
    channels, (kh, kw) = channel_kernel.shape[2], spatial_kernel.shape[2:4]
    kernel = np.repeat(spatial_kernel[:, :, None], channels, axis=2)
    residual = spatial_kernel.dtype.type(kernel_residual / max(1, channels))
    kernel[:, :, :, kh // 2, kw // 2] += channel_kernel + residual
    return kernel


def _place(tap: tuple[int, int], sample: _Sample, ringed_attention: Any) -> tuple:
    """Where the position attention of a sampled region is found, for one tap."""
    return slice(None), slice(None), *tap, *_at(sample.rows, sample.cols, ringed_attention)[1:]


def _by_position(ringed_attention: Any, tap: tuple[int, int], sample: _Sample, residual: bool) -> Any:
    """(N, O, Ho, Wo), or 1."""
    if ringed_attention is None:
        return 1
    return ringed_attention[_place(tap, sample, ringed_attention)] + ringed_attention.dtype.type(residual)


def _regions(image: Any, spatial_kernel: Any, kernel: Any, ringed_attention: Any, params: dict) -> Any:
    """(S, S, N, O, Ho, Wo): every sampled region under the kernel, before the sample attention."""
    samples, residual = params["samples"], params["attention_residual"]
    dtype = np.result_type(image, kernel, *([] if ringed_attention is None else [ringed_attention]))
    regions = np.zeros((samples, samples, *spatial_kernel.shape[:2], *spatial_kernel.shape[4:]), dtype)
    for sample in _samples(kernel.shape[5:], samples, params["sample_stride"], params["stride"]):
        for tap, at in _taps(spatial_kernel, sample, params["dilation"], image):
            products = (image[at][:, None] * kernel[:, :, :, *tap]).sum(axis=2)
            regions[sample.at] += products * _by_position(ringed_attention, tap, sample, residual)
    return regions


def _by_sample(sample_attention: Any, residual: bool) -> Any:
    """(S, S, N, O, Ho, Wo), or 1."""
    if sample_attention is None:
        return 1
    return np.moveaxis(sample_attention, (2, 3), (0, 1)) + sample_attention.dtype.type(residual)


def _flat(regions: Any) -> Any:
    """(S*S, N, O, Ho, Wo)."""
    return regions.reshape(regions.shape[0] * regions.shape[1], *regions.shape[2:])


def _first_maximum(regions: Any) -> Any:
    """(N, O, Ho, Wo): which of the S*S regions is the largest, the first of several."""
    return np.argmax(_flat(regions).real, axis=0)


def sampling_forward(
    x: Any,
    channel_kernel: Any,
    spatial_kernel: Any,
    sample_attention: Any,
    position_attention: Any,
    *,
    kernel_residual: bool,
    fuse: str,
    **params: Any,
) -> tuple[Any, tuple]:
    """z[i, j] = As[i, j] * sum over channels and taps of x * K * Ap; the output fuses z over i and j."""
    kept = (x, channel_kernel, spatial_kernel, sample_attention, position_attention)
    kernel = _composed(channel_kernel, spatial_kernel, kernel_residual)
    ringed = None if position_attention is None else _ringed(position_attention)
    z = _regions(_ringed(x), spatial_kernel, kernel, ringed, params)
    z = z * _by_sample(sample_attention, params["attention_residual"])
    if fuse == "sum":
        return z.sum(axis=(0, 1)), kept
    if fuse == "max":
        return np.take_along_axis(_flat(z), _first_maximum(z)[None], axis=0)[0], kept
    return np.ascontiguousarray(np.moveaxis(z, (0, 1), (1, 2))), kept


def _part(z: Any, fuse: str) -> Any:
    """(S, S, N, O, Ho, Wo): whether a sample has a part in the output."""
    if fuse != "max":
        return np.ones(z.shape, bool)
    return np.arange(z.shape[0] * z.shape[1]).reshape(*z.shape[:2], 1, 1, 1, 1) == _first_maximum(z)


def _product(part: Any, one: Any, other: Any) -> Any:
    """one * other of the samples that have a part; of the others nothing comes back, not even a NaN."""
    return np.where(part, one * other, one.dtype.type(0))


def sampling_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    kernel_residual: bool,
    fuse: str,
    **params: Any,
) -> tuple:
    """The product rule, sample by sample and tap by tap."""
    x, channel_kernel, spatial_kernel, sample_attention, position_attention = kept
    residual, image = params["attention_residual"], _ringed(x)
    kernel = _composed(channel_kernel, spatial_kernel, kernel_residual)
    ringed = None if position_attention is None else _ringed(position_attention)
    regions = _regions(image, spatial_kernel, kernel, ringed, params)
    by_sample = _by_sample(sample_attention, residual)
    part = _part(regions * by_sample, fuse)
    grad_z = np.moveaxis(grad_output, (1, 2), (0, 1)) if fuse == "stack" else grad_output[None, None]
    grad_regions = np.broadcast_to(grad_z * by_sample, regions.shape)
    grad_image, grad_kernel = np.zeros_like(image), np.zeros_like(kernel)
    grad_ringed = None if ringed is None else np.zeros_like(ringed)
    for sample in _samples(kernel.shape[5:], params["samples"], params["sample_stride"], params["stride"]):
        of_sample, there = grad_regions[sample.at], part[sample.at]
        for tap, at in _taps(spatial_kernel, sample, params["dilation"], image):
            of_tap, pixels = kernel[:, :, :, *tap], image[at][:, None]
            weights = (of_sample * _by_position(ringed, tap, sample, residual))[:, :, None]
            several = there[:, :, None]
            if needs[0]:
                np.add.at(grad_image, at, _product(several, weights, of_tap).sum(axis=1))
            grad_kernel[:, :, :, *tap] += _product(several, weights, pixels)
            if grad_ringed is not None:
                products = _product(there, of_sample, (pixels * of_tap).sum(axis=2))
                np.add.at(grad_ringed, _place(tap, sample, ringed), products)
    centre = spatial_kernel.shape[2] // 2, spatial_kernel.shape[3] // 2
    grads = (
        grad_image[..., 1:-1, 1:-1],
        grad_kernel[:, :, :, *centre],
        grad_kernel.sum(axis=2),
        np.moveaxis(_product(part, grad_z, regions), (0, 1), (2, 3)),
        None if grad_ringed is None else grad_ringed[..., 1:-1, 1:-1],
    )
    return tuple(
        np.ascontiguousarray(grad) if needed and grad is not None else None
        for grad, needed in zip(grads, needs, strict=True)
    )
