"""`dynamic_sampling_conv2d` on the CPU where kernels see one region: one sample, or box sums of x.

Without attention, a sum over S*S regions is one region of box sums. With X the box sums of x around each
output position, T those of its sum over channels around each tap, and r the kernel's residual,

    y[o] = As[o] * (Ap[o,centre] * (sum_c channel_kernel[o,c] * X[c] + r * T[centre])
                    + sum_t spatial_kernel[o,t] * Ap[o,t] * T[t])

at every position, where attention is that of one sample and may be missing. Taps are like so many more
channels: `dynamic_sampling_regions` makes both sums, and their gradients.

Memory is the bound: channel_kernel is read once each way and its gradient written once. For (1, 128->24, 48,
64), k = 3, S = 3, float32, on two threads of a Zen 4, where reading these 38 MB takes 1.0 to 1.4 ms and
copying them into fresh memory 2.6 to 3.7 ms, `dot_items` takes 1.7 ms and `outer_items` 4.7 ms. With X, T and
calls the forward pass takes 2.5 ms, the backward pass 6.3 to 7.0 ms.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .regions import SLOTS, Steps, add_dots, make_boxes, outers, spread, steps_of

BAND_BYTES = 16 * 1024 * 1024  # of a band: X, T, their gradients, and what is made of the attention


class _Band(NamedTuple):
    """Some rows of outputs of some images, with all that they see; n images, P positions."""

    images: slice
    rows: slice
    first: int  # position
    channel_kernel: np.ndarray  # (n, O, C, all positions)
    x: np.ndarray  # X, (n, C, P)
    totals: np.ndarray  # T, (n, taps, P)
    by_sample: Any  # As, (n, O, P), or None
    by_position: Any  # Ap, (n, O, taps, P), or None
    kernels: np.ndarray  # (n, O, taps, .): what taps weigh; with attention and residual, if given
    first_of_kernels: int  # position


def single_region(arrays: tuple, params: dict[str, Any]) -> bool:
    """Whether these kernels see a single region."""
    plain = arrays[3] is None and arrays[4] is None
    return params["samples"] == 1 or (plain and params["fuse"] == "sum")


def _residual(arrays: tuple, params: dict[str, Any]) -> Any:
    return arrays[0].dtype.type(params["kernel_residual"] / arrays[0].shape[1])


def _steps(arrays: tuple, params: dict[str, Any], places: np.ndarray) -> Steps:
    samples = np.arange(params["samples"]) - (params["samples"] - 1) // 2
    offsets = (samples * step for step in params["sample_stride"])
    return steps_of(arrays[0].shape[2:], params["stride"], arrays[1].shape[4], places, *offsets)


def _on_pixels(arrays: tuple, params: dict[str, Any]) -> Steps:
    """Boxes around each position."""
    return _steps(arrays, params, np.zeros((1, 2), int))


def _on_taps(arrays: tuple, params: dict[str, Any]) -> Steps:
    """Boxes around each tap."""
    kernel = arrays[2].shape[2:4]
    taps = (np.argwhere(np.ones(kernel)) - np.array(kernel) // 2) * params["dilation"]
    return _steps(arrays, params, np.ascontiguousarray(taps))


def _bands(arrays: tuple) -> list[tuple[slice, slice]]:
    """Images and rows of outputs of each band."""
    x, channel_kernel, spatial_kernel, *attention = arrays
    n, outputs, _, high, wide = channel_kernel.shape
    taps = spatial_kernel.shape[2] * spatial_kernel.shape[3]
    numbers = (1 + SLOTS) * (x.shape[1] + taps) + outputs * (1 if attention[1] is None else 2 * taps)
    most = max(1, BAND_BYTES // (numbers * wide * x.itemsize))  # rows
    several = max(1, min(n, most // high))
    bands = -(-high // most)
    edges = [high * k // bands for k in range(bands + 1)]
    return [
        (slice(first, first + several), slice(*rows))
        for first in range(0, n, several)
        for rows in pairwise(edges)
    ]


def _prepare(arrays: tuple, params: dict[str, Any], images: slice, rows: slice) -> _Band:
    of_images: tuple[Any, ...] = tuple(None if each is None else each[images] for each in arrays)
    x, channel_kernel, spatial_kernel, by_sample, by_position = of_images
    n, outputs, kh, kw, _, wide = spatial_kernel.shape
    taps, centre = kh * kw, kh * kw // 2
    boxes = make_boxes("boxes", x, rows, wide, _on_pixels(arrays, params))
    totals = make_boxes("totals", x.sum(axis=1)[:, None], rows, wide, _on_taps(arrays, params))
    kernels, first = spatial_kernel.reshape(n, outputs, taps, -1), rows.start * wide
    size, residual = boxes.shape[2], params["attention_residual"]
    first_of_kernels = first
    if by_sample is not None:
        by_sample = by_sample[..., rows, :].reshape(n, outputs, size) + by_sample.dtype.type(residual)
    if by_position is not None:
        at = by_position[..., :: params["stride"][0], :: params["stride"][1]][..., rows, :]
        by_position = at.reshape(n, outputs, taps, size) + x.dtype.type(residual)
        kernels, first_of_kernels = kernels[..., first : first + size] * by_position, 0
        kernels[:, :, centre] += by_position[:, :, centre] * _residual(arrays, params)
    channel_kernel = channel_kernel.reshape(*channel_kernel.shape[:3], -1)
    return _Band(
        images, rows, first, channel_kernel, boxes, totals, by_sample, by_position, kernels, first_of_kernels
    )


def _region(arrays: tuple, params: dict[str, Any], band: _Band) -> tuple[np.ndarray, Any]:
    """The region of a band, (n, O, P), without the attention of samples; and sum_c channel_kernel * X."""
    (n, _, size), outputs = band.x.shape, band.channel_kernel.shape[1]
    z, centre, dots = np.zeros((n, outputs, size), band.x.dtype), band.totals.shape[1] // 2, None
    if band.by_position is None:
        z += _residual(arrays, params) * band.totals[:, centre, None]
    add_dots(z, band.channel_kernel, band.x, band.first)
    if band.by_position is not None:
        dots = z.copy()
        z *= band.by_position[:, :, centre]
    add_dots(z, band.kernels, band.totals, band.first_of_kernels)
    return z, dots


def single_forward(arrays: tuple, params: dict[str, Any]) -> np.ndarray:
    """The output, (N, O, Ho, Wo)."""
    u = arrays[1]
    y = np.empty((*u.shape[:2], *u.shape[3:]), u.dtype)
    for images, rows in _bands(arrays):
        band = _prepare(arrays, params, images, rows)
        z, _ = _region(arrays, params, band)
        of_band = y[images, :, rows]
        of_band[...] = (z if band.by_sample is None else z * band.by_sample).reshape(of_band.shape)
    return y


def single_backward(outer: np.ndarray, arrays: tuple, params: dict[str, Any], grads: tuple) -> None:
    """Gradients, from that of the output (N, O, Ho, Wo), into `grads`, or None where not wanted.

    Those of x and of the position attention are zeros; the others are written.
    """
    grad_total = None if grads[0] is None else np.zeros_like(arrays[0][:, :1])
    for images, rows in _bands(arrays):
        band = _prepare(arrays, params, images, rows)
        of_images = tuple(None if grad is None else grad[images] for grad in grads)
        total = None if grad_total is None else grad_total[images]
        gradient = outer[images, :, rows].reshape(*outer[images].shape[:2], -1)
        _backward_band(gradient, arrays, params, band, of_images, total)
    if grad_total is not None:
        grads[0][...] += grad_total


def _backward_band(
    outer: np.ndarray, arrays: tuple, params: dict[str, Any], band: _Band, grads: tuple, grad_total: Any
) -> None:
    centre, attended = band.totals.shape[1] // 2, band.by_position is not None
    weights = outer if band.by_sample is None else outer * band.by_sample
    central = weights * band.by_position[:, :, centre] if attended else weights
    weights, central = np.ascontiguousarray(weights), np.ascontiguousarray(central)
    wanted = grads[0] is not None
    grad_x = outers("grad_boxes", central, band.channel_kernel, band.x, grads[1], wanted, band.first)
    of_kernels = np.empty_like(band.kernels) if attended else grads[2]
    grad_totals = outers(
        "grad_totals", weights, band.kernels, band.totals, of_kernels, wanted, band.first_of_kernels
    )
    if wanted:
        if not attended:
            grad_totals[:, 0, centre] += weights.sum(axis=1) * _residual(arrays, params)
        spread(grad_totals, grad_total, band.rows, _on_taps(arrays, params))
        spread(grad_x, grads[0], band.rows, _on_pixels(arrays, params))
    if attended or band.by_sample is not None:
        _attention_gradients(outer, weights, of_kernels, arrays, params, band, grads)


def _attention_gradients(
    outer: np.ndarray,
    weights: np.ndarray,
    of_kernels: np.ndarray,
    arrays: tuple,
    params: dict[str, Any],
    band: _Band,
    grads: tuple,
) -> None:
    """Gradients of the attention, and with that of positions, from `of_kernels`, of spatial_kernel."""
    of_taps, of_samples, of_positions = grads[2:]
    shape = (*outer.shape[:2], *arrays[2].shape[2:4], band.rows.stop - band.rows.start, arrays[2].shape[5])
    if band.by_position is not None and of_taps is not None:
        of_taps[..., band.rows, :] = (of_kernels * band.by_position).reshape(shape)
    if of_samples is None and of_positions is None:
        return
    region, dots = _region(arrays, params, band)
    if of_samples is not None:
        of_samples[..., band.rows, :] = (outer * region).reshape(*shape[:2], 1, 1, *shape[4:])
    if of_positions is not None:
        centre = band.totals.shape[1] // 2
        kernels = arrays[2][band.images][..., band.rows, :].reshape(of_kernels.shape)
        grad = of_kernels * kernels
        grad[:, :, centre] += of_kernels[:, :, centre] * _residual(arrays, params) + weights * dots
        sy, sx = params["stride"]
        of_positions[..., ::sy, ::sx][..., band.rows, :] = grad.reshape(shape)
