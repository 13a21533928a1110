"""Sums with a kernel of its own for every output position, of what that sees of an image, on the CPU.

X, (N, terms, positions), in the code `boxes`, is what each output position sees: pixels, or box sums of
them, at some places around it. It is made for a band of rows of outputs at a time. With kernels (N, O, terms,
positions) there is one forward kernel, `dot_items`, for the sums over terms, and one backward,
`dot_gradient_items`, which reads each element of the kernels once, for its own gradient and that of X.
Positions are contiguous in all arrays, so nothing is packed but X. Reading the kernels and writing their
gradient is the bound of all that is done with these.

That is `dynamic_conv2d`, where X is x under each tap. And it is `dynamic_sampling_conv2d` where kernels see
one region: with one sample, or without attention, for a sum over S*S regions is one region of box sums. With
X the box sums of x around each output position, T those of its sum over channels around each tap, and r the
kernel's residual,

    y[o] = As[o] * (Ap[o,centre] * (sum_c channel_kernel[o,c] * X[c] + r * T[centre])
                    + sum_t spatial_kernel[o,t] * Ap[o,t] * T[t])

at every position, where attention is that of one sample and may be missing. Taps are like so many more
channels.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import cached_jit
from ..engine.memory import borrow, run_with_scratch
from ..engine.pixels import clear

# Positions, forward: their boxes stay in the cache for some outputs; short runs are slow to read.
BOX_TILE = 2048
BOX_BAND_BYTES = 16 * 1024 * 1024  # of a band: boxes, their gradients, and what is made of the attention
BOX_SLOTS = 4  # shares of the outputs in the backward pass


class BoxSteps(NamedTuple):
    """Where boxes lie, which are summed up for positions that are some steps apart."""

    size: tuple  # of an image
    stride: tuple
    rows: np.ndarray  # from a position on
    places: np.ndarray  # (places, 2): of the kernel on which boxes are centred, from a position on
    spans: np.ndarray  # (places, columns, 3): outputs that read inside, from and to, and what the first reads


class BoxScratch(NamedTuple):
    """A row of images, and of box sums."""

    row: Any
    sums: Any


class DotGrads(NamedTuple):
    """What `dot_gradient_items` makes; what is not wanted has no elements."""

    kernels: np.ndarray  # of all positions, flat
    boxes: np.ndarray  # (N, slots, terms, positions)


@cached_jit
def box_items(
    start: int,
    stop: int,
    scratch: BoxScratch,
    target: np.ndarray,
    images: np.ndarray,
    first: int,
    wide: int,
    steps: BoxSteps,
) -> None:
    """Items (image, place): box sums of `images` around places of each position, from row `first` on.

    `target` is (N, images * places, positions).
    """
    (height, width), flat, places, spans = steps.size, images.reshape(-1), steps.places, steps.spans
    to, size, step, row = target.reshape(-1), target.shape[2], uint64(steps.stride[1]), scratch.row
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
    wide: int,
    steps: BoxSteps,
) -> None:
    """Items (image): the adjoint of `box_items`, added to `images` (N, ., H, W).

    The gradient of boxes is the sum over slots of `grad`, (N, slots, images * places, positions).
    """
    (height, width), flat, places, spans = steps.size, images.reshape(-1), steps.places, steps.spans
    gradient, slots, terms, size = grad.reshape(-1), *grad.shape[1:]
    sums, row, step = scratch.sums, scratch.row, uint64(steps.stride[1])
    for item in range(start * len(places), stop * len(places)):
        image, place, n, term = item // len(places), item % len(places), item // terms, item % terms
        for r in range(size // wide):
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


@cached_jit
def dot_items(
    start: int, stop: int, y: np.ndarray, kernels: np.ndarray, boxes: np.ndarray, first: int, chunks: int
) -> None:
    """Items (image, tile of positions, chunk of outputs): y += sum over terms of kernels * boxes.

    y is (N, O, positions), boxes (N, terms, positions), and kernels (N, O, terms, all positions), of which
    these are those from `first` on.
    """
    (outputs, size), (terms, plane) = y.shape[1:], kernels.shape[2:]
    tiles, u, flat, to = -(-size // BOX_TILE), kernels.reshape(-1), boxes.reshape(-1), y.reshape(-1)
    i, j = uint64(plane), uint64(size)  # from term to term, in kernels and in boxes
    for item in range(start, stop):
        n, tile, chunk = item // (tiles * chunks), item // chunks % tiles, item % chunks
        begin = tile * BOX_TILE
        count = uint64(min(BOX_TILE, size - begin))
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            at = uint64((n * outputs + o) * size + begin)
            for k in range(0, terms, 4):
                a = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                b = uint64((n * terms + k) * size + begin)
                if k + 4 <= terms:
                    for w in range(count):
                        to[at + w] += (u[a + w] * flat[b + w] + u[a + i + w] * flat[b + j + w]) + (
                            u[a + i + i + w] * flat[b + j + j + w]
                            + u[a + i + i + i + w] * flat[b + j + j + j + w]
                        )
                else:
                    for m in range(uint64(terms - k)):
                        for w in range(count):
                            to[at + w] += u[a + m * i + w] * flat[b + m * j + w]


@cached_jit
def dot_gradient_items(
    start: int,
    stop: int,
    grad_y: np.ndarray,
    kernels: np.ndarray,
    boxes: np.ndarray,
    grads: DotGrads,
    first: int,
    tiles: int,
) -> None:
    """Items (image, tile of positions, slot): the gradients of `dot_items` from those of y.

    Each slot has a share of the outputs; so a thread writes gradients of kernels one after the other, into
    pages that are fresh from the system and in its cache. Two outputs share what is read of the boxes,
    and added to their gradient.
    """
    (outputs, size), (terms, plane), slots = grad_y.shape[1:], kernels.shape[2:], grads.boxes.shape[1]
    u, flat, weights = kernels.reshape(-1), boxes.reshape(-1), grad_y.reshape(-1)
    grad_u, grad_flat = grads.kernels, grads.boxes.reshape(-1)
    next_u, next_w = uint64(terms * plane), uint64(size)
    for item in range(start, stop):
        n, tile, slot = item // (tiles * slots), item // slots % tiles, item % slots
        begin, count = size * tile // tiles, size * (tile + 1) // tiles - size * tile // tiles
        for k in range(terms if len(grad_flat) else 0):
            clear(grad_flat, ((n * slots + slot) * terms + k) * size + begin, count)
        o, end = outputs * slot // slots, outputs * (slot + 1) // slots
        while o < end:
            at, together = uint64((n * outputs + o) * size + begin), 2 if o + 1 < end else 1
            for k in range(terms):
                i = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                line = uint64((n * terms + k) * size + begin)
                to = uint64(((n * slots + slot) * terms + k) * size + begin)
                if len(grad_u) and len(grad_flat) and together == 2:
                    for w in range(uint64(count)):
                        grad_flat[to + w] += (
                            weights[at + w] * u[i + w] + weights[at + next_w + w] * u[i + next_u + w]
                        )
                        grad_u[i + w] = weights[at + w] * flat[line + w]
                        grad_u[i + next_u + w] = weights[at + next_w + w] * flat[line + w]
                    continue
                for m in range(uint64(together)):
                    if len(grad_u):
                        for w in range(uint64(count)):
                            grad_u[i + m * next_u + w] = weights[at + m * next_w + w] * flat[line + w]
                    if len(grad_flat):
                        for w in range(uint64(count)):
                            grad_flat[to + w] += weights[at + m * next_w + w] * u[i + m * next_u + w]
            o += together


def box_steps(
    size: tuple[int, int],
    stride: tuple[int, int],
    wide: int,
    places: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> BoxSteps:
    """Boxes of these offsets around places (places, 2) of each of `wide` outputs in a row."""
    shifts = places[:, 1:] + columns
    low = np.clip(-(shifts // stride[1]), 0, wide)
    end = np.clip((size[1] - 1 - shifts) // stride[1] + 1, low, wide)
    spans = np.stack([low, end, low * stride[1] + shifts], axis=-1)
    return BoxSteps(size, stride, rows, places, spans)


def make_boxes(name: str, images: np.ndarray, rows: slice, wide: int, steps: BoxSteps) -> np.ndarray:
    """(n, places of all images, P): box sums of images (n, ., H, W)."""
    items, size = prod(images.shape[:2]) * len(steps.places), (rows.stop - rows.start) * wide
    boxes = borrow(name, items * size, images.dtype).reshape(len(images), -1, size)
    work = float(boxes.size) * 2 * len(steps.rows)
    arguments = (boxes, images, rows.start, wide, steps)
    run_with_scratch(box_items, items, work, BoxScratch(steps.size[1], 0), images.dtype, *arguments)
    return boxes


def spread_boxes(grad: np.ndarray, images: np.ndarray, rows: slice, steps: BoxSteps) -> None:
    """The adjoint of `make_boxes`, added to the images."""
    wide = grad.shape[3] // (rows.stop - rows.start)
    arguments, scratch = (grad, images, rows.start, wide, steps), BoxScratch(steps.size[1], wide)
    items, work = prod(images.shape[:2]), float(grad.size) * 2 * len(steps.rows)
    run_with_scratch(spread_box_items, items, work, scratch, grad.dtype, *arguments)


def add_dots(y: np.ndarray, kernels: np.ndarray, boxes: np.ndarray, first: int) -> None:
    """y (n, O, P) += sum over terms of kernels * boxes."""
    (n, outputs, size), terms = y.shape, boxes.shape[1]
    tiles = n * -(-size // BOX_TILE)
    chunks = max(1, min(outputs, -(-parallel.ITEMS // tiles)))
    parallel.run(dot_items, tiles * chunks, float(y.size) * terms, y, kernels, boxes, first, chunks)


def dot_gradients(
    name: str,
    grad_y: np.ndarray,
    kernels: np.ndarray,
    boxes: np.ndarray,
    grad_kernels: Any,
    wanted: bool,
    first: int,
) -> np.ndarray:
    """From the gradient of y in `add_dots` that of kernels, if not None; returns that of boxes, in slots."""
    (n, outputs, size), terms = grad_y.shape, boxes.shape[1]
    slots = min(BOX_SLOTS, outputs)
    shape = (n, slots, terms, size) if wanted else (0, slots, 0, 0)
    grad_boxes = borrow(name, prod(shape), boxes.dtype).reshape(shape)
    grad_kernels = np.zeros(0, boxes.dtype) if grad_kernels is None else grad_kernels.reshape(-1)
    if grad_kernels.size or grad_boxes.size:
        tiles, grads = max(1, BOX_SLOTS // (n * slots)), DotGrads(grad_kernels, grad_boxes)
        arguments = (grad_y, kernels, boxes, grads, first, tiles)
        parallel.run(dot_gradient_items, n * tiles * slots, 2.0 * grad_y.size * terms, *arguments)
    return grad_boxes


def box_bands(images: int, rows: int, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of outputs of each band, of whose rows one takes so much memory."""
    most = max(1, BOX_BAND_BYTES // row_bytes)  # rows
    together, bands = max(1, min(images, most // rows)), -(-rows // most)
    for first in range(0, images, together):
        for band in pairwise(rows * k // bands for k in range(bands + 1)):
            yield slice(first, first + together), slice(*band)


# ---- `dynamic_sampling_conv2d` where kernels see one region


class _RegionBand(NamedTuple):
    """Some rows of outputs of some images, with all that they read; n images, P positions."""

    images: slice
    rows: slice
    first: int  # position
    channel_kernel: np.ndarray  # (n, O, C, all positions)
    boxes: np.ndarray  # X, (n, C, P)
    totals: np.ndarray  # T, (n, taps, P)
    by_sample: Any  # As, (n, O, P), or None
    by_position: Any  # Ap, (n, O, taps, P), or None
    kernels: np.ndarray  # (n, O, taps, .): what taps weigh; with attention and residual, if given
    kernel_start: int  # position


def is_single_region(arrays: tuple, params: dict[str, Any]) -> bool:
    """Whether these kernels see a single region."""
    plain = arrays[3] is None and arrays[4] is None
    return params["samples"] == 1 or (plain and params["fuse"] == "sum")


def _channel_residual(arrays: tuple, params: dict[str, Any]) -> Any:
    return arrays[0].dtype.type(params["kernel_residual"] / arrays[0].shape[1])


def _region_steps(arrays: tuple, params: dict[str, Any], places: np.ndarray) -> BoxSteps:
    samples = np.arange(params["samples"]) - (params["samples"] - 1) // 2
    offsets = (samples * step for step in params["sample_stride"])
    return box_steps(arrays[0].shape[2:], params["stride"], arrays[1].shape[4], places, *offsets)


def _pixel_steps(arrays: tuple, params: dict[str, Any]) -> BoxSteps:
    """Boxes around each position."""
    return _region_steps(arrays, params, np.zeros((1, 2), int))


def _tap_steps(arrays: tuple, params: dict[str, Any]) -> BoxSteps:
    """Boxes around each tap."""
    kernel = arrays[2].shape[2:4]
    taps = (np.argwhere(np.ones(kernel)) - np.array(kernel) // 2) * params["dilation"]
    return _region_steps(arrays, params, np.ascontiguousarray(taps))


def _region_bands(arrays: tuple) -> Iterator[tuple[slice, slice]]:
    """Images and rows of outputs of each band."""
    x, channel_kernel, spatial_kernel, *attention = arrays
    n, outputs, _, high, wide = channel_kernel.shape
    taps = spatial_kernel.shape[2] * spatial_kernel.shape[3]
    numbers = (1 + BOX_SLOTS) * (x.shape[1] + taps) + outputs * (1 if attention[1] is None else 2 * taps)
    return box_bands(n, high, numbers * wide * x.itemsize)


def _read_band(arrays: tuple, params: dict[str, Any], images: slice, rows: slice) -> _RegionBand:
    own: tuple[Any, ...] = tuple(None if each is None else each[images] for each in arrays)
    x, channel_kernel, spatial_kernel, by_sample, by_position = own
    n, outputs, kh, kw, _, wide = spatial_kernel.shape
    taps, centre = kh * kw, kh * kw // 2
    boxes = make_boxes("boxes", x, rows, wide, _pixel_steps(arrays, params))
    totals = make_boxes("totals", x.sum(axis=1)[:, None], rows, wide, _tap_steps(arrays, params))
    kernels, first = spatial_kernel.reshape(n, outputs, taps, -1), rows.start * wide
    size, residual = boxes.shape[2], params["attention_residual"]
    kernel_start = first
    if by_sample is not None:
        by_sample = by_sample[..., rows, :].reshape(n, outputs, size) + by_sample.dtype.type(residual)
    if by_position is not None:
        at = by_position[..., :: params["stride"][0], :: params["stride"][1]][..., rows, :]
        by_position = at.reshape(n, outputs, taps, size) + x.dtype.type(residual)
        kernels, kernel_start = kernels[..., first : first + size] * by_position, 0
        kernels[:, :, centre] += by_position[:, :, centre] * _channel_residual(arrays, params)
    channel_kernel = channel_kernel.reshape(*channel_kernel.shape[:3], -1)
    return _RegionBand(
        images, rows, first, channel_kernel, boxes, totals, by_sample, by_position, kernels, kernel_start
    )


def _sum_region(arrays: tuple, params: dict[str, Any], band: _RegionBand) -> tuple[np.ndarray, Any]:
    """The region of a band, (n, O, P), without the attention of samples; and sum_c channel_kernel * X."""
    (n, _, size), outputs = band.boxes.shape, band.channel_kernel.shape[1]
    z, centre, dots = np.zeros((n, outputs, size), band.boxes.dtype), band.totals.shape[1] // 2, None
    if band.by_position is None:
        z += _channel_residual(arrays, params) * band.totals[:, centre, None]
    add_dots(z, band.channel_kernel, band.boxes, band.first)
    if band.by_position is not None:
        dots = z.copy()
        z *= band.by_position[:, :, centre]
    add_dots(z, band.kernels, band.totals, band.kernel_start)
    return z, dots


def single_region_forward(arrays: tuple, params: dict[str, Any]) -> np.ndarray:
    """The output, (N, O, Ho, Wo)."""
    channel_kernel = arrays[1]
    y = np.empty((*channel_kernel.shape[:2], *channel_kernel.shape[3:]), channel_kernel.dtype)
    for images, rows in _region_bands(arrays):
        band = _read_band(arrays, params, images, rows)
        z, _ = _sum_region(arrays, params, band)
        part = y[images, :, rows]
        part[...] = (z if band.by_sample is None else z * band.by_sample).reshape(part.shape)
    return y


def single_region_backward(
    grad_output: np.ndarray, arrays: tuple, params: dict[str, Any], grads: tuple
) -> None:
    """Gradients, from that of the output (N, O, Ho, Wo), into `grads`, or None where not wanted.

    Those of x and of the position attention are zeros; the others are written.
    """
    grad_total = None if grads[0] is None else np.zeros_like(arrays[0][:, :1])
    for images, rows in _region_bands(arrays):
        band = _read_band(arrays, params, images, rows)
        parts = tuple(None if grad is None else grad[images] for grad in grads)
        total = None if grad_total is None else grad_total[images]
        gradient = grad_output[images, :, rows].reshape(*grad_output[images].shape[:2], -1)
        _backward_band(gradient, arrays, params, band, parts, total)
    if grad_total is not None:
        grads[0][...] += grad_total


def _backward_band(
    grad_output: np.ndarray,
    arrays: tuple,
    params: dict[str, Any],
    band: _RegionBand,
    grads: tuple,
    grad_total: Any,
) -> None:
    centre, attended = band.totals.shape[1] // 2, band.by_position is not None
    weights = grad_output if band.by_sample is None else grad_output * band.by_sample
    central = weights * band.by_position[:, :, centre] if attended else weights
    weights, central = np.ascontiguousarray(weights), np.ascontiguousarray(central)
    wanted = grads[0] is not None
    grad_boxes = dot_gradients(
        "grad_boxes", central, band.channel_kernel, band.boxes, grads[1], wanted, band.first
    )
    grad_kernels = np.empty_like(band.kernels) if attended else grads[2]
    grad_totals = dot_gradients(
        "grad_totals", weights, band.kernels, band.totals, grad_kernels, wanted, band.kernel_start
    )
    if wanted:
        if not attended:
            grad_totals[:, 0, centre] += weights.sum(axis=1) * _channel_residual(arrays, params)
        spread_boxes(grad_totals, grad_total, band.rows, _tap_steps(arrays, params))
        spread_boxes(grad_boxes, grads[0], band.rows, _pixel_steps(arrays, params))
    if attended or band.by_sample is not None:
        _attention_gradients(grad_output, weights, grad_kernels, arrays, params, band, grads)


def _attention_gradients(
    grad_output: np.ndarray,
    weights: np.ndarray,
    grad_kernels: np.ndarray,
    arrays: tuple,
    params: dict[str, Any],
    band: _RegionBand,
    grads: tuple,
) -> None:
    """Gradients of the attention, and with that of positions, from `grad_kernels`, of spatial_kernel."""
    grad_taps, grad_samples, grad_positions = grads[2:]
    shape = (
        *grad_output.shape[:2],
        *arrays[2].shape[2:4],
        band.rows.stop - band.rows.start,
        arrays[2].shape[5],
    )
    if band.by_position is not None and grad_taps is not None:
        grad_taps[..., band.rows, :] = (grad_kernels * band.by_position).reshape(shape)
    if grad_samples is None and grad_positions is None:
        return
    region, dots = _sum_region(arrays, params, band)
    if grad_samples is not None:
        grad_samples[..., band.rows, :] = (grad_output * region).reshape(*shape[:2], 1, 1, *shape[4:])
    if grad_positions is not None:
        centre = band.totals.shape[1] // 2
        kernels = arrays[2][band.images][..., band.rows, :].reshape(grad_kernels.shape)
        grad = grad_kernels * kernels
        grad[:, :, centre] += grad_kernels[:, :, centre] * _channel_residual(arrays, params) + weights * dots
        sy, sx = params["stride"]
        grad_positions[..., ::sy, ::sx][..., band.rows, :] = grad.reshape(shape)
