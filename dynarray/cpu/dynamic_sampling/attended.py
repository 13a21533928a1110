"""`dynamic_sampling_conv2d` on the CPU where kernels see one region: what its kernels make of box sums.

For a tile of positions and an output channel all that `boxes` sums up is made before the next: the attention
of positions, which is as large as the spatial kernel, is read once, where it lies, and its gradient written.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import TRUE, ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.memory import borrow, run_with_scratch
from ..engine.pixels import clear
from ..engine.planes import TapPlanes, TapWindow, pack_channels, tap_planes
from ..engine.runs import RunGradients, RunRows, add_attended_terms, add_gradients, sum_terms
from ..engine.vectors import as_image, in_row
from .dots import DOT_TILE, DotPlanes, dot_shares

_TOTALS_BYTES = 1024 * 1024  # of what the taps of a tile see, which is to stay in the second cache
_LEAST_POSITIONS, _LEAST_OUTPUTS = 256, 4  # of a tile that makes it


class AttendedInputs(NamedTuple):
    """Of n images, p positions, which are those of the kernels from the first one on.

    `first` is that of the kernels, and that of the attention of positions.
    """

    channel_kernel: np.ndarray  # (n, O, C, positions)
    spatial_kernel: np.ndarray  # (n, O, taps, positions)
    sample_attention: np.ndarray  # (n, O, p), or without elements
    position_attention: np.ndarray  # (n, O, taps, .), or without elements
    boxes: np.ndarray  # (n, C, elements)
    totals: np.ndarray  # (n, taps, p), or without elements where each tile makes its own
    tap_places: np.ndarray  # of taps there, or in those of a tile
    places: DotPlanes  # of channels in the boxes
    first: tuple[int, int]
    residuals: tuple  # of channels, and of the attention


class TileTotals(NamedTuple):
    """How a tile of rows makes what its taps see: of x, summed over channels, packed into planes."""

    rows: int  # of a tile
    wide: int
    first: int  # row of positions
    lines: int  # how many there are
    height: int  # rows of x that a tile reads, or 0: then it makes nothing
    above: int  # of these before the row of its first outputs
    planes: TapPlanes


class AttendedGrads(NamedTuple):
    """What the backward pass makes; what is not wanted has no elements."""

    spatial_kernel: np.ndarray  # as that of the inputs
    sample_attention: np.ndarray  # (n, O, p)
    position_attention: np.ndarray  # as that of the inputs
    totals: np.ndarray  # (n, slots, taps, p): slots are shares of the outputs, to be added up
    central: np.ndarray  # (n, O, p): the gradient of the sums over channels; none where it is that of y


class AttendedScratch(NamedTuple):
    """A tile of positions."""

    dots: Any  # sum over channels of channel_kernel * X, and their residual
    region: Any  # without the attention of samples
    weights: Any  # its gradient, of two outputs
    image: Any  # rows of x, summed over channels
    planes: Any  # that, in planes in which a tap is an offset


class AttendedPlaces(NamedTuple):
    """Where the positions of a tile begin, for an output and one of its taps."""

    kernel: Any
    attention: Any


class SeenByTaps(NamedTuple):
    """What the taps of a tile see: a run of `totals` each, which begins so far behind `at`."""

    totals: np.ndarray  # 1-d
    at: int
    places: np.ndarray


class AttendedTile(NamedTuple):
    """Positions of an output channel."""

    n: int
    output: int
    begin: int
    count: Any


@borrowing_jit
def _attended_places(inputs: AttendedInputs, tile: AttendedTile, tap: int) -> AttendedPlaces:
    outputs, taps, plane = inputs.spatial_kernel.shape[1:]
    number = (tile.n * outputs + tile.output) * taps + tap
    return AttendedPlaces(
        uint64(number * plane + inputs.first[0] + tile.begin),
        uint64(number * inputs.position_attention.shape[3] + inputs.first[1] + tile.begin),
    )


@borrowing_jit
def _seen_by_taps(inputs: AttendedInputs, n: int, begin: int) -> SeenByTaps:
    """Where `totals` are made for all tiles."""
    taps, size = inputs.totals.shape[1:]
    return SeenByTaps(in_row(inputs.totals), n * taps * size + begin, inputs.tap_places)


@borrowing_jit
def _dot_channels(dots: np.ndarray, inputs: AttendedInputs, tile: AttendedTile, below: SeenByTaps) -> None:
    outputs, channels, plane = inputs.channel_kernel.shape[1:]
    totals, residual = below.totals, inputs.residuals[0]
    centre = uint64(below.at + below.places[len(below.places) // 2])
    for w in range(tile.count):
        dots[w] = residual * totals[centre + w]
    at = (tile.n * outputs + tile.output) * channels * plane + inputs.first[0] + tile.begin
    here = tile.n * channels * inputs.boxes.shape[2] + inputs.places.first + tile.begin
    kernels = RunRows(in_row(inputs.channel_kernel), at, plane)
    seen = RunRows(in_row(inputs.boxes), here, inputs.places.terms)
    sum_terms(RunRows(dots, ZERO, ZERO), kernels, seen, channels, tile.count, TRUE)


@borrowing_jit
def _rows_of_taps(inputs: AttendedInputs, tile: AttendedTile, below: SeenByTaps) -> tuple:
    """The spatial kernels of a tile, and what they see."""
    k, _ = _attended_places(inputs, tile, 0)
    kernels = RunRows(in_row(inputs.spatial_kernel), int(k), inputs.spatial_kernel.shape[3])
    return kernels, RunRows(below.totals, below.at, below.places)


@borrowing_jit
def _sum_region(
    scratch: AttendedScratch, inputs: AttendedInputs, tile: AttendedTile, below: SeenByTaps
) -> None:
    """The region, from the sums over channels."""
    if inputs.position_attention.size:
        _sum_attended(scratch, inputs, tile, below)
        return
    for w in range(tile.count):
        scratch.region[w] = scratch.dots[w]
    kernels, seen = _rows_of_taps(inputs, tile, below)
    sum_terms(RunRows(scratch.region, ZERO, ZERO), kernels, seen, len(below.places), tile.count, TRUE)


@borrowing_jit
def _sum_attended(
    scratch: AttendedScratch, inputs: AttendedInputs, tile: AttendedTile, below: SeenByTaps
) -> None:
    taps, residual, region = len(below.places), inputs.residuals[1], scratch.region
    attention, centre = in_row(inputs.position_attention), _attended_places(inputs, tile, taps // 2).attention
    for w in range(tile.count):
        region[w] = (attention[centre + w] + residual) * scratch.dots[w]
    (kernels, seen), own = _rows_of_taps(inputs, tile, below), _attended_places(inputs, tile, 0).attention
    factors = RunRows(attention, int(own), inputs.position_attention.shape[3])
    add_attended_terms(RunRows(region, ZERO, ZERO), kernels, factors, seen, residual, (taps, tile.count))


@borrowing_jit
def _make_totals(scratch: AttendedScratch, x: np.ndarray, n: int, rows: tuple, plan: TileTotals) -> None:
    """`TileTotals` of some rows (first, count) of outputs of an image, in `AttendedScratch.planes`."""
    (first, count), (channels, height, width) = rows, x.shape[1:]
    top, image, flat = first * plan.planes.stride[0] - plan.above, scratch.image, in_row(x)
    clear(image, 0, len(image))
    low, end = max(0, top), min(height, top + plan.height)
    to, number = uint64((low - top) * width), uint64(max(0, end - low) * width)
    for c in range(channels):
        f = uint64(((n * channels + c) * height + low) * width)
        for w in range(number):
            image[to + w] += flat[f + w]
    images, window = as_image(image, plan.height, width), TapWindow(0, count, 0, plan.wide)
    pack_channels(scratch.planes, (0, 0), images, (0, 0, 1), window, plan.planes)


@borrowing_cached_jit
def attended_items(
    start: int,
    stop: int,
    scratch: AttendedScratch,
    y: np.ndarray,
    inputs: AttendedInputs,
    x: np.ndarray,
    plan: TileTotals,
    chunks: int,
) -> None:
    """Items (image, tile of rows, chunk of outputs) of y, (n, O, positions)."""
    (outputs, positions), flat = y.shape[1:], in_row(y)
    lines, by_sample = plan.lines, in_row(inputs.sample_attention)
    tiles, size = -(-lines // plan.rows), lines * plan.wide
    region, residual = scratch.region, inputs.residuals[1]
    for item in range(start, stop):
        n, chunk, row = item // (tiles * chunks), item % chunks, item // chunks % tiles * plan.rows
        rows, begin = min(plan.rows, lines - row), row * plan.wide
        count = uint64(rows * plan.wide)
        below = _seen_by_taps(inputs, n, begin)
        if not inputs.totals.size:
            _make_totals(scratch, x, n, (plan.first + row, rows), plan)
            below = SeenByTaps(scratch.planes, 0, inputs.tap_places)
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            tile = AttendedTile(n, o, begin, count)
            _dot_channels(scratch.dots, inputs, tile, below)
            _sum_region(scratch, inputs, tile, below)
            to = uint64((n * outputs + o) * positions + inputs.first[0] + begin)
            at = uint64((n * outputs + o) * size + begin)
            if by_sample.size:
                for w in range(count):
                    flat[to + w] = region[w] * (by_sample[at + w] + residual)
            else:
                for w in range(count):
                    flat[to + w] = region[w]


@borrowing_jit
def _begin_output(
    scratch: AttendedScratch,
    grad_output: np.ndarray,
    inputs: AttendedInputs,
    grads: AttendedGrads,
    tile: AttendedTile,
    place: int,
) -> None:
    """The gradients of the region, from that place on, and of the sums over channels and the attention."""
    size, taps, residual = inputs.totals.shape[2], inputs.totals.shape[1], inputs.residuals[1]
    at = uint64((tile.n * grad_output.shape[1] + tile.output) * size + tile.begin)
    given, by_sample, weights = in_row(grad_output), in_row(inputs.sample_attention), scratch.weights
    attention, centre = in_row(inputs.position_attention), _attended_places(inputs, tile, taps // 2).attention
    central, to = in_row(grads.central), uint64(place)
    if by_sample.size:
        for w in range(tile.count):
            weights[to + w] = given[at + w] * (by_sample[at + w] + residual)
    else:
        for w in range(tile.count):
            weights[to + w] = given[at + w]
    if attention.size:
        for w in range(tile.count):
            central[at + w] = weights[to + w] * (attention[centre + w] + residual)
    elif central.size:
        for w in range(tile.count):
            central[at + w] = weights[to + w]
    if grads.sample_attention.size + grads.position_attention.size:
        below = _seen_by_taps(inputs, tile.n, tile.begin)
        _dot_channels(scratch.dots, inputs, tile, below)
    if grads.sample_attention.size:
        _sum_region(scratch, inputs, tile, _seen_by_taps(inputs, tile.n, tile.begin))
        grad = in_row(grads.sample_attention)
        for w in range(tile.count):
            grad[at + w] = given[at + w] * scratch.region[w]


@borrowing_jit
def _add_tap_gradients(
    weights: np.ndarray, inputs: AttendedInputs, grads: AttendedGrads, tile: AttendedTile, tap: int, to: int
) -> None:
    """What a tap gives; the gradient of its totals is in a row from `to` on."""
    (k, a), residual = _attended_places(inputs, tile, tap), inputs.residuals[1]
    kernel, totals = in_row(inputs.spatial_kernel), in_row(inputs.totals)
    t = uint64((tile.n * inputs.totals.shape[1] + tap) * inputs.totals.shape[2] + tile.begin)
    attention, by_totals = in_row(inputs.position_attention), in_row(grads.totals)
    by_kernel, by_attention, to = in_row(grads.spatial_kernel), in_row(grads.position_attention), uint64(to)
    if by_kernel.size and by_attention.size:
        for w in range(tile.count):
            given, attended = weights[w] * totals[t + w], attention[a + w] + residual
            by_kernel[k + w] = given * attended
            by_attention[a + w] = given * kernel[k + w]
    elif by_kernel.size:
        for w in range(tile.count):
            by_kernel[k + w] = weights[w] * totals[t + w] * (attention[a + w] + residual)
    elif by_attention.size:
        for w in range(tile.count):
            by_attention[a + w] = weights[w] * totals[t + w] * kernel[k + w]
    if by_totals.size:
        for w in range(tile.count):
            by_totals[to + w] += weights[w] * kernel[k + w] * (attention[a + w] + residual)


@borrowing_jit
def _add_gradients_of_taps(
    weights: np.ndarray,
    inputs: AttendedInputs,
    grads: AttendedGrads,
    tile: AttendedTile,
    to: int,
    together: int,
) -> None:
    """What all taps of one or two outputs give; the gradients of their totals are in rows from `to` on."""
    taps, size, wanted = inputs.totals.shape[1], inputs.totals.shape[2], grads.totals.size > 0
    if inputs.position_attention.size:
        for tap in range(taps):
            _add_tap_gradients(weights, inputs, grads, tile, tap, to + tap * size)
        return
    kernels, seen = _rows_of_taps(inputs, tile, _seen_by_taps(inputs, tile.n, tile.begin))
    by_kernel = RunRows(in_row(grads.spatial_kernel), kernels.at, taps * kernels.stride)
    own = RunGradients(by_kernel, RunRows(in_row(grads.totals), to, size), len(by_kernel.values) > 0, wanted)
    add_gradients(own, RunRows(weights, ZERO, DOT_TILE), kernels, seen, together, (taps, tile.count))


@borrowing_cached_jit
def attended_gradient_items(
    start: int,
    stop: int,
    scratch: AttendedScratch,
    grad_output: np.ndarray,
    inputs: AttendedInputs,
    grads: AttendedGrads,
    slots: int,
) -> None:
    """Items (image, tile of positions, slot), from grad_output (n, O, p)."""
    (outputs, size), taps = grad_output.shape[1:], inputs.totals.shape[1]
    tiles, residual, weights = -(-size // DOT_TILE), inputs.residuals[0], scratch.weights
    by_totals, by_attention = in_row(grads.totals), in_row(grads.position_attention)
    pair = 1 if inputs.position_attention.size else 2  # outputs at a time
    for item in range(start, stop):
        n, slot, begin = item // (tiles * slots), item % slots, item // slots % tiles * DOT_TILE
        count, own = uint64(min(DOT_TILE, size - begin)), (n * slots + slot) * taps * size + begin
        for tap in range(taps if by_totals.size else 0):
            clear(by_totals, own + tap * size, count)
        end = outputs * (slot + 1) // slots
        for o in range(outputs * slot // slots, end, pair):
            together = min(pair, end - o)
            for k in range(together - 1, -1, -1):
                tile = AttendedTile(n, o + k, begin, count)
                _begin_output(scratch, grad_output, inputs, grads, tile, k * DOT_TILE)
            _add_gradients_of_taps(weights, inputs, grads, tile, own, together)
            _, a = _attended_places(inputs, tile, taps // 2)
            if by_attention.size:
                for w in range(count):
                    by_attention[a + w] += weights[w] * scratch.dots[w]
            if by_totals.size:
                central = in_row(grads.central if grads.central.size else grad_output)
                to = uint64(own + taps // 2 * size)
                for k in range(together):
                    at = uint64((n * outputs + o + k) * size + begin)
                    for w in range(count):
                        by_totals[to + w] += residual * central[at + w]


@lru_cache(maxsize=64)
def tile_totals(
    kernel: tuple[int, int], width: int, outputs: tuple[int, ...], steps: tuple, itemsize: int
) -> tuple[TileTotals, np.ndarray]:
    """The plan for outputs (n, channels, rows, columns), and where taps lie in it."""
    (n, channels, high, wide), (dilation, stride) = outputs, steps
    share = n * max(
        1, channels // _LEAST_OUTPUTS
    )  # of items that a tile may have; the fewer tiles the better
    rows = min(DOT_TILE // wide, max(-(-high * share // parallel.ITEMS), _LEAST_POSITIONS // wide))
    rows = -(-high // -(-high // max(1, min(high, rows))))
    above, left = (kernel[k] // 2 * dilation[k] for k in range(2))
    planes, number, begins = tap_planes(kernel, stride, dilation, (0, left), (rows, wide))
    height = (rows - 1) * stride[0] + 2 * above + 1
    fits = (height * width + planes.plane * len(planes.origin_y)) * itemsize <= _TOTALS_BYTES
    plan = TileTotals(rows, wide, 0, high, height if fits else 0, above, planes)
    return plan, number * planes.plane + begins


def attended_region(y: np.ndarray, inputs: AttendedInputs, x: np.ndarray, plan: TileTotals) -> None:
    """Write y, (n, O, positions), from the first position on."""
    (n, outputs), taps = y.shape[:2], len(inputs.tap_places)
    tiles = n * -(-plan.lines // plan.rows)
    least = 1 if inputs.totals.size else _LEAST_OUTPUTS
    chunks = max(1, min(outputs // least, -(-parallel.ITEMS // tiles)))
    operations = (
        parallel.PER_NUMBER * n * outputs * plan.lines * plan.wide * (len(inputs.places.terms) + taps)
    )
    tile, planes = plan.rows * plan.wide, plan.planes.plane * len(plan.planes.origin_y)
    scratch = AttendedScratch(tile, tile, 0, plan.height * x.shape[3], planes * (plan.height > 0))
    arguments = y, inputs, x, plan, chunks
    run_with_scratch(attended_items, tiles * chunks, operations, scratch, y.dtype, *arguments)


def attended_gradients(
    grad_output: np.ndarray, inputs: AttendedInputs, targets: tuple, wanted: bool
) -> AttendedGrads:
    """Write the first three of `AttendedGrads`, the `targets`, and make the rest: of totals, if `wanted`."""
    (n, outputs, size), taps = grad_output.shape, inputs.totals.shape[1]
    slots = dot_shares(outputs, len(inputs.places.terms) + taps, size).slots
    dtype, by_slot = grad_output.dtype, (n if wanted else 0, slots, taps, size)
    attended = inputs.position_attention.size + inputs.sample_attention.size > 0
    totals = borrow("grad_totals", by_slot, dtype)
    central = borrow("central", grad_output.shape if attended else (0, 0, 0), dtype)
    by_kernel, by_sample, by_position = targets
    grads = AttendedGrads(by_kernel, by_sample, by_position, totals, central)
    operations = 2 * parallel.PER_NUMBER * grad_output.size * taps
    items, scratch = n * -(-size // DOT_TILE) * slots, AttendedScratch(DOT_TILE, DOT_TILE, 2 * DOT_TILE, 0, 0)
    args = grad_output, inputs, grads, slots
    run_with_scratch(attended_gradient_items, items, operations, scratch, dtype, *args)
    return grads
