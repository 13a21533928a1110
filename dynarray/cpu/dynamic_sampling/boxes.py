"""`dynamic_sampling_conv2d` on the CPU where kernels see one region.

That is with one sample, or without attention, for a sum over S*S regions is one region of box sums. With X
the box sums of x around each output position, T those of its sum over channels around each tap, and r the
kernel's residual,

    y[o] = As[o] * (Ap[o,centre] * (sum_c channel_kernel[o,c] * X[c] + r * T[centre])
                    + sum_t spatial_kernel[o,t] * Ap[o,t] * T[t])

at every position, where attention is that of one sample and may be missing. Taps are like so many more
channels, and both sums those of `dots`. X and T are made for a band of rows of outputs at a time.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine.compile import cached_jit
from ..engine.memory import borrow, run_with_scratch
from ..engine.pixels import clear
from .dots import DOT_SLOTS, add_dots, dot_gradients, dot_shares, dots_of_terms

BOX_BAND_BYTES = 16 * 1024 * 1024  # of a band: boxes, their gradients, and what is made of the attention


class BoxSteps(NamedTuple):
    """Where boxes lie, which are summed up for positions that are some steps apart."""

    size: tuple  # of an image
    stride: tuple
    wide: int  # positions of a row
    rows: np.ndarray  # from a position on
    places: np.ndarray  # (places, 2): of the kernel on which boxes are centred, from a position on
    spans: np.ndarray  # (places, columns, 3): outputs that read inside, from and to, and what the first reads
    plain: bool  # what each position sees is the pixel there


class BoxScratch(NamedTuple):
    """A row of images, and of box sums."""

    row: Any
    sums: Any


@cached_jit
def box_items(
    start: int,
    stop: int,
    scratch: BoxScratch,
    target: np.ndarray,
    images: np.ndarray,
    first: int,
    steps: BoxSteps,
) -> None:
    """Items (image, place): box sums of `images` around places of each position, from row `first` on.

    `target` is (N, images * places, positions).
    """
    (height, width), flat, places, spans = steps.size, images.reshape(-1), steps.places, steps.spans
    to, size, step, row = target.reshape(-1), target.shape[2], uint64(steps.stride[1]), scratch.row
    wide = steps.wide
    for item in range(start, stop):
        image, place = item // len(places), item % len(places)
        clear(to, item * size, size)
        for r in range(size // wide):
            clear(row, 0, width)
            for offset in steps.rows:
                y = (first + r) * steps.stride[0] + places[place, 0] + offset
                if 0 <= y < height:
                    at = uint64((image * height + y) * width)
                    for w in range(uint64(width)):
                        row[w] += flat[at + w]
            for j in range(spans.shape[1]):
                low, end, column = spans[place, j, 0], spans[place, j, 1], uint64(spans[place, j, 2])
                at = uint64(item * size + r * wide + low)
                for w in range(uint64(end - low)):
                    to[at + w] += row[column + w * step]


@cached_jit
def spread_box_items(
    start: int,
    stop: int,
    scratch: BoxScratch,
    grad: np.ndarray,
    images: np.ndarray,
    first: int,
    steps: BoxSteps,
) -> None:
    """Items (image): the adjoint of `box_items`, added to `images` (N, ., H, W).

    The gradient of boxes is the sum over slots of `grad`, (N, slots, images * places, positions).
    """
    (height, width), flat, places, spans = steps.size, images.reshape(-1), steps.places, steps.spans
    gradient, slots, terms, size = grad.reshape(-1), *grad.shape[1:]
    sums, row, step, wide = scratch.sums, scratch.row, uint64(steps.stride[1]), steps.wide
    for item in range(start * len(places), stop * len(places)):
        image, place, n, term = item // len(places), item % len(places), item // terms, item % terms
        for slot in range(slots if steps.plain else 0):
            at = uint64(((n * slots + slot) * terms + term) * size)
            to = uint64(image * height * width + first * width)
            for w in range(uint64(size)):
                flat[to + w] += gradient[at + w]
        for r in range(0 if steps.plain else size // wide):
            clear(sums, 0, wide)
            for slot in range(slots):
                at = uint64(((n * slots + slot) * terms + term) * size + r * wide)
                for w in range(uint64(wide)):
                    sums[w] += gradient[at + w]
            clear(row, 0, width)
            for j in range(spans.shape[1]):
                low, end, column = uint64(spans[place, j, 0]), spans[place, j, 1], uint64(spans[place, j, 2])
                for w in range(uint64(end) - low):
                    row[column + w * step] += sums[low + w]
            for offset in steps.rows:
                y = (first + r) * steps.stride[0] + places[place, 0] + offset
                if 0 <= y < height:
                    to = uint64((image * height + y) * width)
                    for w in range(uint64(width)):
                        flat[to + w] += row[w]


def box_steps(
    size: tuple[int, int], stride: tuple[int, int], wide: int, places: np.ndarray, offsets: list[np.ndarray]
) -> BoxSteps:
    """Boxes of offsets, down and along, around places (places, 2) of each of `wide` outputs in a row."""
    rows, columns = offsets
    shifts = places[:, 1:] + columns
    low = np.clip(-(shifts // stride[1]), 0, wide)
    end = np.clip((size[1] - 1 - shifts) // stride[1] + 1, low, wide)
    spans = np.stack([low, end, low * stride[1] + shifts], axis=-1)
    plain = size[1] == wide and len(rows) == len(columns) == 1 and not places.any()
    return BoxSteps(size, stride, wide, rows, np.ascontiguousarray(places), spans, plain and stride == (1, 1))


def make_boxes(name: str, images: np.ndarray, rows: slice, steps: BoxSteps) -> np.ndarray:
    """(n, places of all images, P): box sums of images (n, ., H, W)."""
    items, size = prod(images.shape[:2]) * len(steps.places), (rows.stop - rows.start) * steps.wide
    if steps.plain and images.flags.c_contiguous and size == prod(steps.size):
        return images.reshape(*images.shape[:2], size)
    boxes = borrow(name, (len(images), items // len(images), size), images.dtype)
    scratch, work = BoxScratch(steps.size[1], 0), float(boxes.size) * 2 * len(steps.rows)
    run_with_scratch(box_items, items, work, scratch, images.dtype, boxes, images, rows.start, steps)
    return boxes


def spread_boxes(grad: np.ndarray, images: np.ndarray, rows: slice, steps: BoxSteps) -> None:
    """The adjoint of `make_boxes`, added to the images."""
    items, work = prod(images.shape[:2]), float(grad.size) * 2 * len(steps.rows)
    scratch = BoxScratch(steps.size[1], steps.wide)
    run_with_scratch(spread_box_items, items, work, scratch, grad.dtype, grad, images, rows.start, steps)


def box_bands(images: int, rows: int, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of outputs of each band, of whose rows one takes so much memory."""
    most = max(1, BOX_BAND_BYTES // row_bytes)  # rows
    together, bands = max(1, min(images, most // rows)), -(-rows // most)
    for first in range(0, images, together):
        for band in pairwise(rows * k // bands for k in range(bands + 1)):
            yield slice(first, first + together), slice(*band)


class RegionArrays(NamedTuple):
    """The five arrays of a call that sees one region, or their gradients; what there is not is None."""

    x: Any  # (N, C, H, W)
    channel_kernel: Any  # (N, O, C, P), for P positions
    spatial_kernel: Any  # (N, O, taps, P)
    sample_attention: Any  # (N, O, P)
    position_attention: Any  # (N, O, taps, Ho, Wo): of the pixels that are positions

    def of(self, images: slice) -> "RegionArrays":
        """Those of some images."""
        return RegionArrays(*(None if array is None else array[images] for array in self))


class RegionCall(NamedTuple):
    """What is the same for all bands."""

    arrays: RegionArrays
    pixel_steps: BoxSteps  # of boxes around each position
    tap_steps: BoxSteps  # of boxes around each of its taps
    channel_residual: Any
    attention_residual: Any


class RegionBand(NamedTuple):
    """Some rows of outputs of some images, with all that they read; n images, p positions."""

    images: slice
    rows: slice
    positions: slice
    boxes: np.ndarray  # X, (n, C, p)
    totals: np.ndarray  # T, (n, taps, p)
    sample_attention: Any  # As, (n, O, p), or None
    position_attention: Any  # Ap, (n, O, taps, p), or None
    kernels: np.ndarray  # (n, O, taps, .): what taps weigh; with attention and residual, if given
    first: int  # position of these

    @property
    def centre(self) -> int:
        """Number of the tap in the middle."""
        return self.totals.shape[1] // 2


def is_single_region(arrays: tuple, params: dict[str, Any]) -> bool:
    """Whether these kernels see a single region."""
    plain = arrays[3] is None and arrays[4] is None
    return params["samples"] == 1 or (plain and params["fuse"] == "sum")


def _region_arrays(arrays: tuple, stride: tuple[int, int]) -> RegionArrays:
    """The arrays as the operator has them, without copies."""
    x, channel_kernel, spatial_kernel, sample_attention, position_attention = arrays
    if channel_kernel is not None:
        channel_kernel = channel_kernel.reshape(*channel_kernel.shape[:3], -1)
    if spatial_kernel is not None:
        n, outputs, kh, kw, *_ = spatial_kernel.shape
        spatial_kernel = spatial_kernel.reshape(n, outputs, kh * kw, -1)
    if sample_attention is not None:
        sample_attention = sample_attention.reshape(*sample_attention.shape[:2], -1)
    if position_attention is not None:
        n, outputs, kh, kw, *size = position_attention.shape
        maps = position_attention.reshape(n, outputs, kh * kw, *size)
        position_attention = maps[..., :: stride[0], :: stride[1]]
    return RegionArrays(x, channel_kernel, spatial_kernel, sample_attention, position_attention)


@lru_cache(maxsize=64)
def _region_steps(
    size: tuple[int, int], wide: int, kernel: tuple[int, int], samples: int, *steps: tuple[int, int]
) -> tuple[BoxSteps, BoxSteps]:
    """Those of boxes around each position, and around each of its taps."""
    sample_stride, dilation, stride = steps
    numbers = np.arange(samples) - (samples - 1) // 2
    offsets = [numbers * step for step in sample_stride]
    taps = (np.argwhere(np.ones(kernel)) - np.array(kernel) // 2) * dilation
    both = (box_steps(size, stride, wide, places, offsets) for places in (np.zeros((1, 2), int), taps))
    return next(both), next(both)


def _region_call(arrays: tuple, params: dict[str, Any]) -> RegionCall:
    x, spatial_kernel, number = arrays[0], arrays[2], arrays[0].dtype.type
    steps = (params[name] for name in ("sample_stride", "dilation", "stride"))
    sizes = x.shape[2:], spatial_kernel.shape[5], spatial_kernel.shape[2:4]
    both = _region_steps(*sizes, params["samples"], *steps)
    residuals = number(params["kernel_residual"] / x.shape[1]), number(params["attention_residual"])
    return RegionCall(_region_arrays(arrays, params["stride"]), *both, *residuals)


def _region_bands(call: RegionCall) -> Iterator[RegionBand]:
    x, channel_kernel, spatial_kernel, _, position_attention = call.arrays
    (n, outputs, _, positions), taps = channel_kernel.shape, spatial_kernel.shape[2]
    by_output = 1 if position_attention is None else 2 * taps
    numbers, wide = (1 + DOT_SLOTS) * (x.shape[1] + taps) + outputs * by_output, call.pixel_steps.wide
    for images, rows in box_bands(n, positions // wide, numbers * wide * x.itemsize):
        own, _, kernels, by_sample, by_position = call.arrays.of(images)
        places, first = slice(rows.start * wide, rows.stop * wide), rows.start * wide
        boxes = make_boxes("boxes", own, rows, call.pixel_steps)
        totals = make_boxes("totals", own.sum(axis=1)[:, None], rows, call.tap_steps)
        if by_sample is not None:
            by_sample = by_sample[..., places] + call.attention_residual
        if by_position is not None:
            by_position = by_position[..., rows, :].reshape(*kernels.shape[:3], -1) + call.attention_residual
            kernels, first = kernels[..., places] * by_position, 0
            kernels[:, :, taps // 2] += by_position[:, :, taps // 2] * call.channel_residual
        yield RegionBand(images, rows, places, boxes, totals, by_sample, by_position, kernels, first)


def _sum_region(call: RegionCall, band: RegionBand) -> tuple[np.ndarray, Any]:
    """The region of a band, (n, O, p), without the attention of samples; and sum_c channel_kernel * X."""
    channel_kernel, dots = call.arrays.channel_kernel[band.images], None
    z = np.zeros((*channel_kernel.shape[:2], band.boxes.shape[2]), band.boxes.dtype)
    if band.position_attention is None:
        z += call.channel_residual * band.totals[:, band.centre, None]
    add_dots(z, channel_kernel, band.boxes, dots_of_terms(band.boxes), band.positions.start)
    if band.position_attention is not None:
        dots = z.copy()
        z *= band.position_attention[:, :, band.centre]
    add_dots(z, band.kernels, band.totals, dots_of_terms(band.totals), band.first)
    return z, dots


def single_region_forward(arrays: tuple, params: dict[str, Any]) -> np.ndarray:
    """The output, (N, O, Ho, Wo)."""
    n, outputs, _, high, wide = arrays[1].shape
    call, y = _region_call(arrays, params), np.empty((n, outputs, high * wide), arrays[1].dtype)
    for band in _region_bands(call):
        z, _ = _sum_region(call, band)
        y[band.images, :, band.positions] = z if band.sample_attention is None else z * band.sample_attention
    return y.reshape(n, outputs, high, wide)


def single_region_backward(
    grad_output: np.ndarray, arrays: tuple, params: dict[str, Any], grads: tuple
) -> None:
    """Gradients, from that of the output (N, O, Ho, Wo), into `grads`, or None where not wanted.

    Those of x and of the position attention are zeros; the others are written.
    """
    call, targets = _region_call(arrays, params), _region_arrays(grads, params["stride"])
    grad_output = grad_output.reshape(*grad_output.shape[:2], -1)
    grad_total = None if targets.x is None else np.zeros_like(arrays[0][:, :1])
    for band in _region_bands(call):
        given, own = grad_output[band.images, :, band.positions], targets.of(band.images)
        total = None if grad_total is None else grad_total[band.images]
        weights, grad_kernels = _kernel_gradients(given, call, band, own, total)
        if band.position_attention is not None or band.sample_attention is not None:
            _attention_gradients(given, weights, grad_kernels, call, band, own)
    if grad_total is not None:
        targets.x[...] += grad_total


def _kernel_gradients(
    grad_output: np.ndarray, call: RegionCall, band: RegionBand, grads: RegionArrays, grad_total: Any
) -> tuple[np.ndarray, Any]:
    """Gradients of x, of its sum over channels and of kernels; returns what regions weigh.

    With position attention the gradient of the spatial kernel is not written but returned, as that of
    `RegionBand.kernels`.
    """
    attended, wanted = band.position_attention is not None, grads.x is not None
    weights = grad_output if band.sample_attention is None else grad_output * band.sample_attention
    central = weights * band.position_attention[:, :, band.centre] if attended else weights
    weights, central = np.ascontiguousarray(weights), np.ascontiguousarray(central)
    channel_kernel, first = call.arrays.channel_kernel[band.images], band.positions.start
    given: tuple = (central, channel_kernel, band.boxes, grads.channel_kernel, wanted)
    shares = dot_shares(*channel_kernel.shape[1:])
    grad_boxes = dot_gradients("grad_boxes", dots_of_terms(band.boxes), shares, first, given)
    grad_kernels = np.empty_like(band.kernels) if attended else grads.spatial_kernel
    given = (weights, band.kernels, band.totals, grad_kernels, wanted)
    grad_totals = dot_gradients("grad_totals", dots_of_terms(band.totals), shares, band.first, given)
    if wanted:
        if not attended:
            grad_totals[:, 0, band.centre] += weights.sum(axis=1) * call.channel_residual
        spread_boxes(grad_totals, grad_total, band.rows, call.tap_steps)
        spread_boxes(grad_boxes, grads.x, band.rows, call.pixel_steps)
    return weights, grad_kernels


def _attention_gradients(
    grad_output: np.ndarray,
    weights: np.ndarray,
    grad_kernels: Any,
    call: RegionCall,
    band: RegionBand,
    grads: RegionArrays,
) -> None:
    """Gradients of the attention, and with that of positions, from `grad_kernels`, of the spatial kernel."""
    if band.position_attention is not None and grads.spatial_kernel is not None:
        grads.spatial_kernel[..., band.positions] = grad_kernels * band.position_attention
    if grads.sample_attention is None and grads.position_attention is None:
        return
    region, dots = _sum_region(call, band)
    if grads.sample_attention is not None:
        grads.sample_attention[..., band.positions] = grad_output * region
    if grads.position_attention is not None:
        grad = grad_kernels * call.arrays.spatial_kernel[band.images][..., band.positions]
        central = grad_kernels[:, :, band.centre] * call.channel_residual + weights * dots
        grad[:, :, band.centre] += central
        part = grads.position_attention[..., band.rows, :]
        part[...] = grad.reshape(part.shape)
