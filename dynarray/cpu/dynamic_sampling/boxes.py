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
    wide: int  # positions of a row
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
    tiles, kernel, box, total = -(-size // BOX_TILE), kernels.reshape(-1), boxes.reshape(-1), y.reshape(-1)
    next_kernel, next_box = uint64(plane), uint64(size)  # from term to term
    for item in range(start, stop):
        n, tile, chunk = item // (tiles * chunks), item // chunks % tiles, item % chunks
        begin = tile * BOX_TILE
        count = uint64(min(BOX_TILE, size - begin))
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            to = uint64((n * outputs + o) * size + begin)
            for k in range(0, terms, 4):
                a = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                b = uint64((n * terms + k) * size + begin)
                if k + 4 <= terms:
                    a1, b1 = a + next_kernel, b + next_box
                    a2, b2 = a1 + next_kernel, b1 + next_box
                    a3, b3 = a2 + next_kernel, b2 + next_box
                    for w in range(count):
                        total[to + w] += (kernel[a + w] * box[b + w] + kernel[a1 + w] * box[b1 + w]) + (
                            kernel[a2 + w] * box[b2 + w] + kernel[a3 + w] * box[b3 + w]
                        )
                else:
                    for m in range(uint64(terms - k)):
                        for w in range(count):
                            total[to + w] += kernel[a + m * next_kernel + w] * box[b + m * next_box + w]


@cached_jit
def dot_gradient_items(
    start: int,
    stop: int,
    grad_output: np.ndarray,
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
    (outputs, size), (terms, plane), slots = grad_output.shape[1:], kernels.shape[2:], grads.boxes.shape[1]
    kernel, box, weights = kernels.reshape(-1), boxes.reshape(-1), grad_output.reshape(-1)
    grad_kernels, grad_boxes = grads.kernels, grads.boxes.reshape(-1)
    next_kernel, next_weight = uint64(terms * plane), uint64(size)  # from output to output
    for item in range(start, stop):
        n, tile, slot = item // (tiles * slots), item // slots % tiles, item % slots
        begin, count = size * tile // tiles, size * (tile + 1) // tiles - size * tile // tiles
        for k in range(terms if len(grad_boxes) else 0):
            clear(grad_boxes, ((n * slots + slot) * terms + k) * size + begin, count)
        o, end = outputs * slot // slots, outputs * (slot + 1) // slots
        while o < end:
            g, together = uint64((n * outputs + o) * size + begin), 2 if o + 1 < end else 1
            for k in range(terms):
                a = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                b = uint64((n * terms + k) * size + begin)
                to = uint64(((n * slots + slot) * terms + k) * size + begin)
                a1, g1 = a + next_kernel, g + next_weight
                if len(grad_kernels) and len(grad_boxes) and together == 2:
                    for w in range(uint64(count)):
                        grad_boxes[to + w] += (
                            weights[g + w] * kernel[a + w] + weights[g1 + w] * kernel[a1 + w]
                        )
                        grad_kernels[a + w] = weights[g + w] * box[b + w]
                        grad_kernels[a1 + w] = weights[g1 + w] * box[b + w]
                    continue
                for m in range(uint64(together)):
                    own, weight = a + m * next_kernel, g + m * next_weight
                    if len(grad_kernels):
                        for w in range(uint64(count)):
                            grad_kernels[own + w] = weights[weight + w] * box[b + w]
                    if len(grad_boxes):
                        for w in range(uint64(count)):
                            grad_boxes[to + w] += weights[weight + w] * kernel[own + w]
            o += together


def box_steps(
    size: tuple[int, int], stride: tuple[int, int], wide: int, places: np.ndarray, offsets: list[np.ndarray]
) -> BoxSteps:
    """Boxes of offsets, down and along, around places (places, 2) of each of `wide` outputs in a row."""
    rows, columns = offsets
    shifts = places[:, 1:] + columns
    low = np.clip(-(shifts // stride[1]), 0, wide)
    end = np.clip((size[1] - 1 - shifts) // stride[1] + 1, low, wide)
    spans = np.stack([low, end, low * stride[1] + shifts], axis=-1)
    return BoxSteps(size, stride, wide, rows, np.ascontiguousarray(places), spans)


def make_boxes(name: str, images: np.ndarray, rows: slice, steps: BoxSteps) -> np.ndarray:
    """(n, places of all images, P): box sums of images (n, ., H, W)."""
    items, size = prod(images.shape[:2]) * len(steps.places), (rows.stop - rows.start) * steps.wide
    boxes = borrow(name, (len(images), items // len(images), size), images.dtype)
    scratch, work = BoxScratch(steps.size[1], 0), float(boxes.size) * 2 * len(steps.rows)
    run_with_scratch(box_items, items, work, scratch, images.dtype, boxes, images, rows.start, steps)
    return boxes


def spread_boxes(grad: np.ndarray, images: np.ndarray, rows: slice, steps: BoxSteps) -> None:
    """The adjoint of `make_boxes`, added to the images."""
    items, work = prod(images.shape[:2]), float(grad.size) * 2 * len(steps.rows)
    scratch = BoxScratch(steps.size[1], steps.wide)
    run_with_scratch(spread_box_items, items, work, scratch, grad.dtype, grad, images, rows.start, steps)


def add_dots(y: np.ndarray, kernels: np.ndarray, boxes: np.ndarray, first: int) -> None:
    """y (n, O, P) += sum over terms of kernels * boxes."""
    (n, outputs, size), terms = y.shape, boxes.shape[1]
    tiles = n * -(-size // BOX_TILE)
    chunks = max(1, min(outputs, -(-parallel.ITEMS // tiles)))
    parallel.run(dot_items, tiles * chunks, float(y.size) * terms, y, kernels, boxes, first, chunks)


def dot_gradients(
    name: str,
    grad_output: np.ndarray,
    kernels: np.ndarray,
    boxes: np.ndarray,
    grad_kernels: Any,
    wanted: bool,
    first: int,
) -> np.ndarray:
    """From the gradient of y in `add_dots` that of kernels, if not None; returns that of boxes, in slots."""
    (n, outputs, size), terms = grad_output.shape, boxes.shape[1]
    slots = min(BOX_SLOTS, outputs)
    shape = (n, slots, terms, size) if wanted else (0, slots, 0, 0)
    grad_boxes = borrow(name, shape, boxes.dtype)
    grad_kernels = np.zeros(0, boxes.dtype) if grad_kernels is None else grad_kernels.reshape(-1)
    if grad_kernels.size or grad_boxes.size:
        tiles, grads = max(1, BOX_SLOTS // (n * slots)), DotGrads(grad_kernels, grad_boxes)
        arguments = (grad_output, kernels, boxes, grads, first, tiles)
        parallel.run(dot_gradient_items, n * tiles * slots, 2.0 * grad_output.size * terms, *arguments)
    return grad_boxes


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


def _region_call(arrays: tuple, params: dict[str, Any]) -> RegionCall:
    x, (kernel, wide), number = arrays[0], (arrays[2].shape[2:4], arrays[2].shape[5]), arrays[0].dtype.type
    samples = np.arange(params["samples"]) - (params["samples"] - 1) // 2
    offsets = [samples * step for step in params["sample_stride"]]
    taps = (np.argwhere(np.ones(kernel)) - np.array(kernel) // 2) * params["dilation"]
    pixel_steps, tap_steps = (
        box_steps(x.shape[2:], params["stride"], wide, places, offsets)
        for places in (np.zeros((1, 2), int), taps)
    )
    residuals = number(params["kernel_residual"] / x.shape[1]), number(params["attention_residual"])
    return RegionCall(_region_arrays(arrays, params["stride"]), pixel_steps, tap_steps, *residuals)


def _region_bands(call: RegionCall) -> Iterator[RegionBand]:
    x, channel_kernel, spatial_kernel, _, position_attention = call.arrays
    (n, outputs, _, positions), taps = channel_kernel.shape, spatial_kernel.shape[2]
    by_output = 1 if position_attention is None else 2 * taps
    numbers, wide = (1 + BOX_SLOTS) * (x.shape[1] + taps) + outputs * by_output, call.pixel_steps.wide
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
    add_dots(z, channel_kernel, band.boxes, band.positions.start)
    if band.position_attention is not None:
        dots = z.copy()
        z *= band.position_attention[:, :, band.centre]
    add_dots(z, band.kernels, band.totals, band.first)
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
    arguments: tuple = (central, channel_kernel, band.boxes, grads.channel_kernel, wanted, first)
    grad_boxes = dot_gradients("grad_boxes", *arguments)
    grad_kernels = np.empty_like(band.kernels) if attended else grads.spatial_kernel
    arguments = (weights, band.kernels, band.totals, grad_kernels, wanted, band.first)
    grad_totals = dot_gradients("grad_totals", *arguments)
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
