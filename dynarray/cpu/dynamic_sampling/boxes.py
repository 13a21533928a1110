"""`dynamic_sampling_conv2d` on the CPU where kernels see one region.

That is with one sample, or without attention, for a sum over S*S regions is one region of box sums. With X
the box sums of x around each output position, T those of its sum over channels around each tap, and r the
kernel's residual,

    y[o] = As[o] * (Ap[o,centre] * (sum_c channel_kernel[o,c] * X[c] + r * T[centre])
                    + sum_t spatial_kernel[o,t] * Ap[o,t] * T[t])

at every position, where attention is that of one sample and may be missing. `attended` makes the sums, and
`dots` the gradients of those over channels. X and T are made for a band of rows of outputs at a time; where a
position sees one pixel, X is x.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import uint64

from ..engine import parallel
from ..engine.compile import ZERO, borrowing_cached_jit, cached_jit
from ..engine.memory import borrow, empty, run_with_scratch
from ..engine.pixels import clear
from ..engine.vectors import (
    REGISTER_BYTES,
    Writer,
    each_vector,
    in_row,
    load_part,
    store_part,
    written,
)
from .attended import AttendedInputs, attended_gradients, attended_region, tile_totals
from .dots import (
    DOT_SLOTS,
    DOT_TILE,
    DotPlanes,
    dot_gradients,
    dot_gradients_of_images,
    dot_shares,
    dot_tiles,
    dots_of_images,
    dots_of_terms,
)

# Rows that are shorter are worked on several at a time, as one of so many elements.
JOINED_ELEMENTS, LEAST_JOINED = 512, 4
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
    joined: int  # rows that are worked on as one
    columns: np.ndarray  # of their elements, if they are several, and of a vector behind these
    margin: int  # elements before and behind them that may be read, too


class BoxScratch(NamedTuple):
    """A row of images, and of box sums; or rows that are worked on as one."""

    row: Any
    sums: Any


@borrowing_cached_jit
def channel_sum_items(start: int, stop: int, target: np.ndarray, images: np.ndarray) -> None:
    """Items (image, tile of pixels): sums over channels of images, (N, C, pixels)."""
    channels, size = images.shape[1:]
    tiles, flat, to = -(-size // DOT_TILE), in_row(images), in_row(target)
    for item in range(start, stop):
        n, begin = item // tiles, item % tiles * DOT_TILE
        count, at = uint64(min(DOT_TILE, size - begin)), uint64(n * size + begin)
        clear(to, n * size + begin, count)
        for c in range(channels):
            f = uint64((n * channels + c) * size + begin)
            for w in range(count):
                to[at + w] += flat[f + w]


@written(REGISTER_BYTES)
def _add_inside(
    writer: Writer, target: Any, at: Any, source: Any, start: Any, columns: Any, span: Any, count: Any
) -> None:
    """target[at + k] += source[start + k] for those k < count whose column is within the span."""
    builder, short = writer.builder, ir.IntType(32)
    low, end = (writer.broadcast(builder.trunc(builder.extract_value(span, k), short)) for k in range(2))
    to, from_ = builder.gep(target, [at]), builder.gep(source, [start])
    kind, length = ir.VectorType(short, writer.lanes).as_pointer(), builder.sub(end, low)

    def add(k: Any, mask: Any) -> None:
        column = builder.load(builder.bitcast(builder.gep(columns, [k]), kind), align=4)
        inside = builder.icmp_unsigned("<", builder.sub(column, low), length)
        value = builder.select(inside, load_part(writer, from_, k, mask), writer.zero)
        store_part(writer, writer.add(load_part(writer, to, k, mask), value), to, k, mask)

    each_vector(writer, count, add)


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
    wide, columns, margin = steps.wide, steps.columns, uint64(steps.margin)
    lines, joined = size // wide, steps.joined
    for item in range(start, stop):
        image, place = item // len(places), item % len(places)
        clear(to, item * size, size)
        for r in range(0, lines, joined):
            number = min(joined, lines - r)
            clear(row, 0, len(row))
            for offset in steps.rows:
                y = (first + r) * steps.stride[0] + places[place, 0] + offset
                top, bottom = max(0, -y), min(number, height - y)
                at, begin = uint64((image * height + y + top) * width), margin + uint64(top * width)
                for w in range(uint64(max(0, bottom - top) * width)):
                    row[begin + w] += flat[at + w]
            for j in range(spans.shape[1]):
                low, end, column = spans[place, j, 0], spans[place, j, 1], spans[place, j, 2]
                if len(columns):
                    begin = steps.margin + column - low
                    _add_inside(to, item * size + r * wide, row, begin, columns, (low, end), number * wide)
                    continue
                at, begin = uint64(item * size + r * wide + low), uint64(column)
                for w in range(uint64(end - low)):
                    to[at + w] += row[begin + w * step]


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
    columns, margin = steps.columns, uint64(steps.margin)
    lines, joined = size // wide, steps.joined
    for item in range(start * len(places), stop * len(places)):
        image, place, n, term = item // len(places), item % len(places), item // terms, item % terms
        for slot in range(slots if steps.plain else 0):
            at = uint64(((n * slots + slot) * terms + term) * size)
            to = uint64(image * height * width + first * width)
            for w in range(uint64(size)):
                flat[to + w] += gradient[at + w]
        for r in range(0, 0 if steps.plain else lines, joined):
            number = min(joined, lines - r)
            clear(sums, 0, len(sums))
            for slot in range(slots):
                at = uint64(((n * slots + slot) * terms + term) * size + r * wide)
                for w in range(uint64(number * wide)):
                    sums[w] += gradient[at + w]
            clear(row, 0, len(row))
            for j in range(spans.shape[1]):
                low, end, column = spans[place, j, 0], spans[place, j, 1], spans[place, j, 2]
                if len(columns):
                    begin = steps.margin + column - low
                    _add_inside(row, begin, sums, ZERO, columns, (low, end), number * wide)
                    continue
                at, begin = uint64(low), uint64(column)
                for w in range(uint64(end - low)):
                    row[begin + w * step] += sums[at + w]
            for offset in steps.rows:
                y = (first + r) * steps.stride[0] + places[place, 0] + offset
                top, bottom = max(0, -y), min(number, height - y)
                to, begin = uint64((image * height + y + top) * width), margin + uint64(top * width)
                for w in range(uint64(max(0, bottom - top) * width)):
                    flat[to + w] += row[begin + w]


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
    plain, margin = plain and stride == (1, 1), int(np.abs(shifts).max())
    joined = JOINED_ELEMENTS // max(1, wide)
    if stride != (1, 1) or size[1] != wide or joined < LEAST_JOINED or margin > JOINED_ELEMENTS:
        joined, margin = 1, 0
    elements = joined * wide + REGISTER_BYTES // np.dtype(np.int32).itemsize if joined > 1 else 0
    along = np.arange(elements, dtype=np.int32) % max(1, wide)
    places = np.ascontiguousarray(places)
    return BoxSteps(size, stride, wide, rows, places, spans, plain, joined, along, margin)


def _box_scratch(steps: BoxSteps) -> BoxScratch:
    return BoxScratch(steps.joined * steps.size[1] + 2 * steps.margin, steps.joined * steps.wide)


def make_boxes(name: str, images: np.ndarray, rows: slice, steps: BoxSteps) -> np.ndarray:
    """(n, places of all images, P): box sums of images (n, ., H, W)."""
    items, size = prod(images.shape[:2]) * len(steps.places), (rows.stop - rows.start) * steps.wide
    if steps.plain and images.flags.c_contiguous and size == prod(steps.size):
        return images.reshape(*images.shape[:2], size)
    boxes = borrow(name, (len(images), items // len(images), size), images.dtype)
    scratch, work = _box_scratch(steps), parallel.PER_NUMBER * boxes.size * len(steps.rows)
    run_with_scratch(box_items, items, work, scratch, images.dtype, boxes, images, rows.start, steps)
    return boxes


def spread_boxes(grad: np.ndarray, images: np.ndarray, rows: slice, steps: BoxSteps) -> None:
    """The adjoint of `make_boxes`, added to the images."""
    items, work = prod(images.shape[:2]), parallel.PER_NUMBER * grad.size * len(steps.rows)
    scratch = _box_scratch(steps)
    run_with_scratch(spread_box_items, items, work, scratch, grad.dtype, grad, images, rows.start, steps)


def sum_channels_of(images: np.ndarray) -> np.ndarray:
    """(N, 1, H, W), of images (N, C, H, W)."""
    target = borrow("channel_sum", (len(images), 1, *images.shape[2:]), images.dtype)
    items = len(images) * -(-prod(images.shape[2:]) // DOT_TILE)
    parallel.run(
        channel_sum_items,
        items,
        parallel.PER_NUMBER * images.size,
        target,
        images.reshape(*images.shape[:2], -1),
    )
    return target


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
    tiles: int | None  # of images that are their own boxes; None if there are none
    tile_totals: tuple  # how tiles make T, and where taps lie there
    channel_residual: Any
    attention_residual: Any


class RegionBand(NamedTuple):
    """Some rows of outputs of some images, with all that they read; n images, p positions."""

    images: slice
    rows: slice
    positions: slice
    boxes: np.ndarray  # X, (n, C, p), or x itself
    places: DotPlanes  # of channels there
    totals: Any  # T, (n, taps, p), or None
    sample_attention: Any  # (n, O, p), or None


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
    steps = tuple(params[name] for name in ("sample_stride", "dilation", "stride"))
    sizes = x.shape[2:], spatial_kernel.shape[5], spatial_kernel.shape[2:4]
    both = _region_steps(*sizes, params["samples"], *steps)
    residuals = number(params["kernel_residual"] / x.shape[1]), number(params["attention_residual"])
    own = _region_arrays(arrays, params["stride"])
    tiles = dot_tiles(len(x), *own.channel_kernel.shape[1:]) if both[0].plain else None
    outputs = len(x), spatial_kernel.shape[1], spatial_kernel.shape[4], sizes[1]
    totals = tile_totals(sizes[2], x.shape[3], outputs, steps[1:], x.itemsize)
    if params["samples"] > 1:  # T is of boxes
        totals = totals[0]._replace(height=0), totals[1]
    return RegionCall(own, *both, tiles, totals, *residuals)


def _region_bands(call: RegionCall, slots: int) -> Iterator[RegionBand]:
    """All bands; with `slots`, shares of the outputs, of the backward pass."""
    x, channel_kernel, spatial_kernel, _, attention = call.arrays
    (n, outputs, _, positions), taps = channel_kernel.shape, spatial_kernel.shape[2]
    by_output = 2 if attention is None or attention.flags.c_contiguous else 2 + 2 * taps
    wide, plain = call.pixel_steps.wide, call.pixel_steps.plain if not slots else call.tiles is not None
    in_tiles = not slots and call.tile_totals[0].height > 0
    copied = (0 if plain else x.shape[1]) + (0 if in_tiles else taps)
    numbers = (1 + slots) * copied + outputs * by_output
    for images, rows in box_bands(n, positions // wide, numbers * wide * x.itemsize):
        own, _, _, by_sample, _ = call.arrays.of(images)
        places = slice(rows.start * wide, rows.stop * wide)
        boxes = own.reshape(*own.shape[:2], -1) if plain else make_boxes("boxes", own, rows, call.pixel_steps)
        terms = dots_of_images(boxes, places.start) if plain else dots_of_terms(boxes)
        totals = None if in_tiles else make_boxes("totals", sum_channels_of(own), rows, call.tap_steps)
        by_sample = None if by_sample is None else np.ascontiguousarray(by_sample[..., places])
        yield RegionBand(images, rows, places, boxes, terms, totals, by_sample)


def single_region_forward(arrays: tuple, params: dict[str, Any]) -> np.ndarray:
    """The output, (N, O, Ho, Wo)."""
    n, outputs, _, high, wide = arrays[1].shape
    call, y = _region_call(arrays, params), empty((n, outputs, high * wide), arrays[1].dtype)
    for band in _region_bands(call, 0):
        rows = band.rows
        plan = call.tile_totals[0]._replace(first=rows.start, lines=rows.stop - rows.start)
        attended_region(y[band.images], _attended_inputs(call, band), arrays[0][band.images], plan)
    return y.reshape(n, outputs, high, wide)


def single_region_backward(
    grad_output: np.ndarray, arrays: tuple, params: dict[str, Any], grads: tuple
) -> None:
    """Gradients, from that of the output (N, O, Ho, Wo), into `grads`, or None where not wanted.

    That of the position attention is zeros where it is not read; the others are written.
    """
    call, targets = _region_call(arrays, params), _region_arrays(grads, params["stride"])
    grad_output, x, kernels = grad_output.reshape(*grad_output.shape[:2], -1), targets.x, call.arrays[1]
    grad_total = None if x is None else np.zeros_like(arrays[0][:, :1])
    tiles = call.tiles
    if tiles is None and x is not None:
        x.fill(0)
    added = False  # that of the sum over channels, to that of x
    for band in _region_bands(call, min(DOT_SLOTS, kernels.shape[1])):
        own, first, total = targets.of(band.images), band.positions.start, None
        grad = np.ascontiguousarray(grad_output[band.images, :, band.positions])
        central, grad_totals = _spread_region(grad, call, band, own)
        if grad_total is not None:
            total = grad_total[band.images]
            spread_boxes(grad_totals, total, band.rows, call.tap_steps)
        given = central, kernels[band.images], band.boxes, own.channel_kernel
        if tiles is not None:
            added = grad.shape[2] == grad_output.shape[2]
            before = total if added else None
            dot_gradients_of_images(band.places, tiles, first, given, (own.x, before))
            continue
        shares = dot_shares(*kernels.shape[1:])
        grad_boxes = dot_gradients("grad_boxes", band.places, shares, first, (*given, x is not None))
        if x is not None:
            spread_boxes(grad_boxes, own.x, band.rows, call.pixel_steps)
    if x is not None and not added:
        x += grad_total


def _attended_inputs(call: RegionCall, band: RegionBand) -> AttendedInputs:
    own, first = call.arrays.of(band.images), band.positions.start
    attention, first_attended = own.position_attention, first
    if attention is None:
        attention, first_attended = _nothing(4, own.x), 0
    elif not attention.flags.c_contiguous:  # one of several pixels is a position
        attention, first_attended = np.ascontiguousarray(attention[..., band.rows, :]), 0
    if attention.size:
        attention = attention.reshape(*own.spatial_kernel.shape[:3], -1)
    by_sample, totals, tap_places = band.sample_attention, band.totals, call.tile_totals[1]
    if totals is None:
        totals = _nothing(3, own.x)
    else:
        tap_places = np.arange(totals.shape[1]) * totals.shape[2]
    return AttendedInputs(
        own.channel_kernel,
        own.spatial_kernel,
        _nothing(3, attention) if by_sample is None else by_sample,
        attention,
        band.boxes,
        totals,
        tap_places,
        band.places,
        (first, first_attended),
        (call.channel_residual, call.attention_residual),
    )


def _nothing(ndim: int, like: np.ndarray) -> np.ndarray:
    return np.zeros((0,) * ndim, like.dtype)


def _spread_region(
    grad_output: np.ndarray, call: RegionCall, band: RegionBand, grads: RegionArrays
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of spatial kernel and attention; those of the sums over channels and of T."""
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
    return made.central if made.central.size else grad_output, made.totals
