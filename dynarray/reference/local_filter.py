"""Definition of `local_filter2d`, `correlation2d`, `mixed_filter2d` and their gradients, tap by tap."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .._geometry import input_positions, on_ring

_COMBINE = {"mul": np.multiply, "add": np.add}


class _Tap(NamedTuple):
    """One tap of the kernel, and the pixels of x, inside a ring of zeros, that it reads for each output."""

    at: tuple[int, int]
    pixels: tuple


def _taps(
    x: Any, kernel: Any, outputs: Any, stride: Any, dilation: Any, padding: Any, upsample: int = 1
) -> Iterator[_Tap]:
    for index in np.ndindex(*kernel):
        rows, cols = (
            on_ring(
                input_positions(
                    outputs[axis], index[axis], stride[axis], dilation[axis], padding[axis], upsample
                ),
                x.shape[2 + axis],
            )
            for axis in range(2)
        )
        yield _Tap(index, (slice(None), slice(None), rows[:, None], cols[None, :]))


def _filter_of_pixels(weight: Any, index: tuple[int, int], channels: int) -> Any:
    """One tap of the filters of the pixels, (N, C, Ho, Wo)."""
    tap = weight[:, :, *index]
    return np.repeat(tap, channels // max(1, tap.shape[1]), axis=1)


def _filter_of_channels(channel_weight: Any, index: tuple[int, int], phases: tuple) -> Any:
    """One tap of the filters of the channels, spread over the output pixels by phase: (N, C, Ho, Wo)."""
    tap = channel_weight[..., *index]
    return np.moveaxis(tap[:, phases[0], phases[1]], 3, 1)


def _phases(outputs: tuple[int, int], upsample: int) -> tuple:
    return np.arange(outputs[0])[:, None] % upsample, np.arange(outputs[1])[None, :] % upsample


def _ringed(x: Any) -> Any:
    return np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))


def forward(
    x: Any,
    weight: Any,
    channel_weight: Any,
    *,
    combine: str,
    stride: Any,
    dilation: Any,
    padding: Any,
    upsample: int,
) -> tuple[Any, tuple]:
    """y = sum over taps of filter * x."""
    channels, outputs = x.shape[1], weight.shape[4:]
    dtype = np.result_type(x, weight, *([] if channel_weight is None else [channel_weight]))
    y = np.zeros((x.shape[0], channels, *outputs), dtype)
    image, phases = _ringed(x), _phases(outputs, upsample)
    for tap in _taps(x, weight.shape[2:4], outputs, stride, dilation, padding, upsample):
        filters = _filter_of_pixels(weight, tap.at, channels)
        if channel_weight is not None:
            filters = _COMBINE[combine](filters, _filter_of_channels(channel_weight, tap.at, phases))
        y += filters * image[tap.pixels]
    return y, (x, weight, channel_weight)


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, bool, bool],
    *,
    combine: str,
    stride: Any,
    dilation: Any,
    padding: Any,
    upsample: int,
) -> tuple[Any, Any, Any]:
    """The product rule, tap by tap: each factor gets grad_output times the other factors."""
    x, weight, channel_weight = kept
    n, channels = x.shape[:2]
    by_group = n, weight.shape[1], channels // max(1, weight.shape[1]), *weight.shape[4:]
    image, phases = _ringed(x), _phases(weight.shape[4:], upsample)
    grad_image, grad_weight = np.zeros_like(image), np.zeros_like(weight)
    grad_channel = None if channel_weight is None else np.zeros_like(channel_weight)
    for tap in _taps(x, weight.shape[2:4], weight.shape[4:], stride, dilation, padding, upsample):
        of_pixels = _filter_of_pixels(weight, tap.at, channels)
        filters, factor_pixel, factor_channel = of_pixels, 1, 1
        if channel_weight is not None:
            of_channels = _filter_of_channels(channel_weight, tap.at, phases)
            filters = _COMBINE[combine](of_pixels, of_channels)
            if combine == "mul":
                factor_pixel, factor_channel = of_channels, of_pixels
        np.add.at(grad_image, tap.pixels, grad_output * filters)
        grad_filters = grad_output * image[tap.pixels]
        grad_weight[:, :, *tap.at] = (grad_filters * factor_pixel).reshape(by_group).sum(axis=2)
        if grad_channel is not None:
            for i, j in np.ndindex(upsample, upsample):
                of_phase = (grad_filters * factor_channel)[:, :, i::upsample, j::upsample]
                grad_channel[:, i, j, :, *tap.at] = of_phase.sum(axis=(2, 3))
    grads = grad_image[:, :, 1:-1, 1:-1], grad_weight, grad_channel
    results = (
        np.ascontiguousarray(grad) if needed else None for grad, needed in zip(grads, needs, strict=True)
    )
    return tuple(results)  # type: ignore[return-value]


def correlation_forward(
    x1: Any, x2: Any, *, displacements: Any, stride: Any, dilation: Any, padding: Any
) -> tuple[Any, tuple]:
    """y = mean over channels of x1 * x2 displaced, (N, 1, 2r + 1, 2r + 1, H, W)."""
    n, channels, *image = x1.shape
    y = np.zeros((n, 1, *displacements, *image), np.result_type(x1, x2))
    ringed = _ringed(x2)
    for tap in _taps(x2, displacements, image, stride, dilation, padding):
        y[:, 0, *tap.at] = (x1 * ringed[tap.pixels]).sum(axis=1) / max(1, channels)
    return y, (x1, x2)


def correlation_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, bool],
    *,
    stride: Any,
    dilation: Any,
    padding: Any,
    **_: Any,
) -> tuple[Any, Any]:
    """Each of the two gets grad_output times the other, summed over displacements."""
    x1, x2 = kept
    ringed = _ringed(x2)
    grad_x1, grad_ringed = np.zeros_like(x1), np.zeros_like(ringed)
    for tap in _taps(x2, grad_output.shape[2:4], grad_output.shape[4:], stride, dilation, padding):
        of_map = grad_output[:, :, *tap.at]
        grad_x1 += of_map * ringed[tap.pixels]
        np.add.at(grad_ringed, tap.pixels, of_map * x1)
    grads = grad_x1, grad_ringed[:, :, 1:-1, 1:-1]
    results = (
        np.ascontiguousarray(grad / max(1, x1.shape[1])) if needed else None
        for grad, needed in zip(grads, needs, strict=True)
    )
    return tuple(results)  # type: ignore[return-value]


def _by_filter(kernels: Any, mixture: Any, channels: int) -> tuple[Any, int]:
    """The mixture of each filter, (N, filters, B, Ho, Wo), and how many channels a filter serves.

    A group has one filter a pixel if all channels share the kernels, else one for each channel.
    """
    filters = mixture.shape[1] if kernels.shape[1] == 1 else channels
    return np.repeat(mixture, filters // max(1, mixture.shape[1]), axis=1), channels // max(1, filters)


def _mixed(own: Any, tap: Any) -> Any:
    """One tap of the filters of the pixels, (N, filters, Ho, Wo), from that of the kernels, (B, 1 or C)."""
    return (own * tap.T[:, :, None, None]).sum(axis=2)


def mixed_forward(
    x: Any, kernels: Any, mixture: Any, *, stride: Any, dilation: Any, padding: Any
) -> tuple[Any, tuple]:
    """y = sum over taps of filter * x, where filter = sum over kernels of mixture * kernel."""
    channels, outputs = x.shape[1], mixture.shape[3:]
    own, share = _by_filter(kernels, mixture, channels)
    y = np.zeros((x.shape[0], channels, *outputs), np.result_type(x, kernels, mixture))
    image = _ringed(x)
    for tap in _taps(x, kernels.shape[2:], outputs, stride, dilation, padding):
        y += np.repeat(_mixed(own, kernels[:, :, *tap.at]), share, axis=1) * image[tap.pixels]
    return y, (x, kernels, mixture)


def mixed_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, bool, bool],
    *,
    stride: Any,
    dilation: Any,
    padding: Any,
) -> tuple[Any, Any, Any]:
    """As for one filter per pixel; the gradient of a filter goes on to both of its factors."""
    x, kernels, mixture = kept
    n, outputs = x.shape[0], mixture.shape[3:]
    own, share = _by_filter(kernels, mixture, x.shape[1])
    image = _ringed(x)
    grad_image, grad_kernels, grad_own = map(np.zeros_like, (image, kernels, own))
    for tap in _taps(x, kernels.shape[2:], outputs, stride, dilation, padding):
        kernel = kernels[:, :, *tap.at]
        filters = np.repeat(_mixed(own, kernel), share, axis=1)
        np.add.at(grad_image, tap.pixels, grad_output * filters)
        grad_filters = (grad_output * image[tap.pixels]).reshape(n, own.shape[1], share, *outputs).sum(axis=2)
        grad_own += grad_filters[:, :, None] * kernel.T[:, :, None, None]
        of_filters = (own * grad_filters[:, :, None]).sum(axis=(0, 3, 4)).T
        if kernels.shape[1] == 1:  # of all filters
            of_filters = of_filters.sum(axis=1, keepdims=True)
        grad_kernels[:, :, *tap.at] = of_filters
    of_group = own.shape[1] // max(1, mixture.shape[1])
    grad_mixture = grad_own.reshape(*mixture.shape[:2], of_group, *mixture.shape[2:]).sum(axis=2)
    grads = grad_image[:, :, 1:-1, 1:-1], grad_kernels, grad_mixture
    results = (
        np.ascontiguousarray(grad) if needed else None for grad, needed in zip(grads, needs, strict=True)
    )
    return tuple(results)  # type: ignore[return-value]
