"""`dynamic_sampling_conv2d` on the CPU where kernels see one region.

That is with one sample, or without attention, for a sum over S*S regions is one region of box sums. With X
the box sums of x around each output position, T those of its sum over channels around each tap, and r the
kernel's residual,

    y[o] = As[o] * (Ap[o,centre] * (sum_c channel_kernel[o,c] * X[c] + r * T[centre])
                    + sum_t spatial_kernel[o,t] * Ap[o,t] * T[t])

at every position, where attention is that of one sample and may be missing. Taps are like so many more
channels, and both sums those of `dots`, or, with Ap, of `attended`. X and T are made for a band of rows of
outputs at a time.
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
from .attended import AttendedInputs, attended_gradients, attended_region
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
    sample_attention: Any  # (n, O, p), or None

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
    x, channel_kernel, spatial_kernel, _, attention = call.arrays
    (n, outputs, _, positions), taps = channel_kernel.shape, spatial_kernel.shape[2]
    by_output = 2 if attention is None or attention.flags.c_contiguous else 2 + 2 * taps
    numbers, wide = (1 + DOT_SLOTS) * (x.shape[1] + taps) + outputs * by_output, call.pixel_steps.wide
    for images, rows in box_bands(n, positions // wide, numbers * wide * x.itemsize):
        own, _, _, by_sample, _ = call.arrays.of(images)
        places = slice(rows.start * wide, rows.stop * wide)
        boxes = make_boxes("boxes", own, rows, call.pixel_steps)
        totals = make_boxes("totals", own.sum(axis=1)[:, None], rows, call.tap_steps)
        by_sample = None if by_sample is None else np.ascontiguousarray(by_sample[..., places])
        yield RegionBand(images, rows, places, boxes, totals, by_sample)


def _sum_region(call: RegionCall, band: RegionBand) -> np.ndarray:
    """The region of a band, (n, O, p), without the attention of samples."""
    own, first = call.arrays.of(band.images), band.positions.start
    z = np.zeros((*own.channel_kernel.shape[:2], band.boxes.shape[2]), band.boxes.dtype)
    z += call.channel_residual * band.totals[:, band.centre, None]
    add_dots(z, own.channel_kernel, band.boxes, dots_of_terms(band.boxes), first)
    add_dots(z, own.spatial_kernel, band.totals, dots_of_terms(band.totals), first)
    return z


def single_region_forward(arrays: tuple, params: dict[str, Any]) -> np.ndarray:
    """The output, (N, O, Ho, Wo)."""
    n, outputs, _, high, wide = arrays[1].shape
    call, y = _region_call(arrays, params), np.empty((n, outputs, high * wide), arrays[1].dtype)
    for band in _region_bands(call):
        if call.arrays.position_attention is not None:
            attended_region(y[band.images], _attended_inputs(call, band))
            continue
        z = _sum_region(call, band)
        if band.sample_attention is not None:
            z *= band.sample_attention + call.attention_residual
        y[band.images, :, band.positions] = z
    return y.reshape(n, outputs, high, wide)


def single_region_backward(
    grad_output: np.ndarray, arrays: tuple, params: dict[str, Any], grads: tuple
) -> None:
    """Gradients, from that of the output (N, O, Ho, Wo), into `grads`, or None where not wanted.

    That of x is zeros, and that of the position attention where it is not read; the others are written.
    """
    call, targets = _region_call(arrays, params), _region_arrays(grads, params["stride"])
    grad_output = grad_output.reshape(*grad_output.shape[:2], -1)
    grad_total = None if targets.x is None else np.zeros_like(arrays[0][:, :1])
    backward = _plain_backward if call.arrays.position_attention is None else _attended_backward
    for band in _region_bands(call):
        own = targets.of(band.images)
        grad = np.ascontiguousarray(grad_output[band.images, :, band.positions])
        central, grad_totals = backward(grad, call, band, own)
        channel_kernel, first = call.arrays.channel_kernel[band.images], band.positions.start
        given = central, channel_kernel, band.boxes, own.channel_kernel, grad_total is not None
        shares = dot_shares(*channel_kernel.shape[1:])
        grad_boxes = dot_gradients("grad_boxes", dots_of_terms(band.boxes), shares, first, given)
        if grad_total is not None:
            spread_boxes(grad_totals, grad_total[band.images], band.rows, call.tap_steps)
            spread_boxes(grad_boxes, own.x, band.rows, call.pixel_steps)
    if grad_total is not None:
        targets.x[...] += grad_total


def _plain_backward(
    grad_output: np.ndarray, call: RegionCall, band: RegionBand, grads: RegionArrays
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of spatial kernel and attention of samples; those of the sums over channels and of T."""
    own, weights = call.arrays.of(band.images), grad_output
    if band.sample_attention is not None:
        weights = grad_output * (band.sample_attention + call.attention_residual)
        if grads.sample_attention is not None:
            grads.sample_attention[..., band.positions] = grad_output * _sum_region(call, band)
    wanted, first = grads.x is not None, band.positions.start
    given = weights, own.spatial_kernel, band.totals, grads.spatial_kernel, wanted
    shares = dot_shares(*own.channel_kernel.shape[1:])
    grad_totals = dot_gradients("grad_totals", dots_of_terms(band.totals), shares, first, given)
    if wanted:
        grad_totals[:, 0, band.centre] += weights.sum(axis=1) * call.channel_residual
    return weights, grad_totals


def _attended_inputs(call: RegionCall, band: RegionBand) -> AttendedInputs:
    own, first = call.arrays.of(band.images), band.positions.start
    attention, first_attended = own.position_attention, first
    if not attention.flags.c_contiguous:  # one of several pixels is a position
        attention, first_attended = np.ascontiguousarray(attention[..., band.rows, :]), 0
    by_sample = band.sample_attention
    return AttendedInputs(
        own.channel_kernel,
        own.spatial_kernel,
        _nothing(3, attention) if by_sample is None else by_sample,
        attention.reshape(*own.spatial_kernel.shape[:3], -1),
        band.boxes,
        band.totals,
        dots_of_terms(band.boxes).terms,
        (first, first_attended),
        (call.channel_residual, call.attention_residual),
    )


def _nothing(ndim: int, like: np.ndarray) -> np.ndarray:
    return np.zeros((0,) * ndim, like.dtype)


def _attended_backward(
    grad_output: np.ndarray, call: RegionCall, band: RegionBand, grads: RegionArrays
) -> tuple[np.ndarray, np.ndarray]:
    """The same where positions have attention, with its gradient."""
    inputs, (by_kernel, by_sample, by_position) = _attended_inputs(call, band), grads[2:]
    in_place = by_position is not None and by_position.flags.c_contiguous
    maps = _nothing(4, grad_output)
    if by_position is not None:
        shape = inputs.position_attention.shape
        maps = by_position.reshape(shape) if in_place else np.empty(shape, grad_output.dtype)
    targets = (
        _nothing(4, grad_output) if by_kernel is None else by_kernel,
        _nothing(3, grad_output) if by_sample is None else np.empty_like(grad_output),
        maps,
    )
    made = attended_gradients(grad_output, inputs, targets, grads.x is not None)
    if by_sample is not None:
        by_sample[..., band.positions] = made.sample_attention
    if by_position is not None and not in_place:
        part = by_position[..., band.rows, :]
        part[...] = maps.reshape(part.shape)
    return made.central, made.totals
