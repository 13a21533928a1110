"""`dynamic_sampling_conv2d` on the CPU where kernels see one region: what its kernels make of box sums.

For a tile of positions and an output channel all that `boxes` sums up is made before the next: the attention
of positions, which is as large as the spatial kernel, is read once, where it lies, and its gradient written.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.memory import borrow, run_with_scratch
from ..engine.pixels import clear
from ..engine.runs import RunGradients, RunRows, add_gradients, add_terms
from ..engine.vectors import in_row
from .dots import DOT_READS, DOT_TILE, DotPlanes, dot_shares


class AttendedInputs(NamedTuple):
    """Of n images, p positions, which are those of the kernels from the first one on.

    `first` is that of the kernels, and that of the attention of positions.
    """

    channel_kernel: np.ndarray  # (n, O, C, positions)
    spatial_kernel: np.ndarray  # (n, O, taps, positions)
    sample_attention: np.ndarray  # (n, O, p), or without elements
    position_attention: np.ndarray  # (n, O, taps, .), or without elements
    boxes: np.ndarray  # (n, C, elements)
    totals: np.ndarray  # (n, taps, p)
    places: DotPlanes  # of channels in the boxes
    first: tuple[int, int]
    residuals: tuple  # of channels, and of the attention


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


class AttendedPlaces(NamedTuple):
    """Where the positions of a tile begin, for an output and one of its taps."""

    kernel: Any
    attention: Any
    totals: Any


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
        uint64((tile.n * taps + tap) * inputs.totals.shape[2] + tile.begin),
    )


@borrowing_jit
def _dot_channels(dots: np.ndarray, inputs: AttendedInputs, tile: AttendedTile) -> None:
    outputs, channels, plane = inputs.channel_kernel.shape[1:]
    centre = _attended_places(inputs, tile, inputs.totals.shape[1] // 2).totals
    totals, residual = in_row(inputs.totals), inputs.residuals[0]
    for w in range(tile.count):
        dots[w] = residual * totals[centre + w]
    at = (tile.n * outputs + tile.output) * channels * plane + inputs.first[0] + tile.begin
    here = tile.n * channels * inputs.boxes.shape[2] + inputs.places.first + tile.begin
    kernels = RunRows(in_row(inputs.channel_kernel), at, plane)
    seen = RunRows(in_row(inputs.boxes), here, inputs.places.terms)
    add_terms(RunRows(dots, ZERO, ZERO), kernels, seen, channels, tile.count)


@borrowing_jit
def _rows_of_taps(inputs: AttendedInputs, tile: AttendedTile) -> tuple:
    """The spatial kernels of a tile, and what they see."""
    (k, _, t), size = _attended_places(inputs, tile, 0), inputs.totals.shape[2]
    kernels = RunRows(in_row(inputs.spatial_kernel), int(k), inputs.spatial_kernel.shape[3])
    return kernels, RunRows(in_row(inputs.totals), int(t), size)


@borrowing_jit
def _sum_region(scratch: AttendedScratch, inputs: AttendedInputs, tile: AttendedTile) -> None:
    """The region, from the sums over channels."""
    if inputs.position_attention.size:
        _sum_attended(scratch, inputs, tile)
        return
    for w in range(tile.count):
        scratch.region[w] = scratch.dots[w]
    kernels, seen = _rows_of_taps(inputs, tile)
    add_terms(RunRows(scratch.region, ZERO, ZERO), kernels, seen, inputs.totals.shape[1], tile.count)


@borrowing_jit
def _sum_attended(scratch: AttendedScratch, inputs: AttendedInputs, tile: AttendedTile) -> None:
    taps, residual, region = inputs.totals.shape[1], inputs.residuals[1], scratch.region
    kernel, totals = in_row(inputs.spatial_kernel), in_row(inputs.totals)
    attention, centre = in_row(inputs.position_attention), _attended_places(inputs, tile, taps // 2).attention
    for w in range(tile.count):
        region[w] = (attention[centre + w] + residual) * scratch.dots[w]
    for tap in range(0, taps - 1, 2):  # of which there is an odd number
        k, a, t = _attended_places(inputs, tile, tap)
        k1, a1, t1 = _attended_places(inputs, tile, tap + 1)
        for w in range(tile.count):
            one = kernel[k + w] * (attention[a + w] + residual) * totals[t + w]
            region[w] += one + kernel[k1 + w] * (attention[a1 + w] + residual) * totals[t1 + w]
    k, a, t = _attended_places(inputs, tile, taps - 1)
    for w in range(tile.count):
        region[w] += kernel[k + w] * (attention[a + w] + residual) * totals[t + w]


@borrowing_cached_jit
def attended_items(
    start: int, stop: int, scratch: AttendedScratch, y: np.ndarray, inputs: AttendedInputs, chunks: int
) -> None:
    """Items (image, tile of positions, chunk of outputs) of y, (n, O, positions)."""
    (outputs, positions), size, flat = y.shape[1:], inputs.totals.shape[2], in_row(y)
    tiles, by_sample = -(-size // DOT_TILE), in_row(inputs.sample_attention)
    region, residual = scratch.region, inputs.residuals[1]
    for item in range(start, stop):
        n, chunk, begin = item // (tiles * chunks), item % chunks, item // chunks % tiles * DOT_TILE
        count = uint64(min(DOT_TILE, size - begin))
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            tile = AttendedTile(n, o, begin, count)
            _dot_channels(scratch.dots, inputs, tile)
            _sum_region(scratch, inputs, tile)
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
        _dot_channels(scratch.dots, inputs, tile)
    if grads.sample_attention.size:
        _sum_region(scratch, inputs, tile)
        grad = in_row(grads.sample_attention)
        for w in range(tile.count):
            grad[at + w] = given[at + w] * scratch.region[w]


@borrowing_jit
def _add_tap_gradients(
    weights: np.ndarray, inputs: AttendedInputs, grads: AttendedGrads, tile: AttendedTile, tap: int, to: int
) -> None:
    """What a tap gives; the gradient of its totals is in a row from `to` on."""
    (k, a, t), residual = _attended_places(inputs, tile, tap), inputs.residuals[1]
    kernel, totals = in_row(inputs.spatial_kernel), in_row(inputs.totals)
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
    kernels, seen = _rows_of_taps(inputs, tile)
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
            _, a, _ = _attended_places(inputs, tile, taps // 2)
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


def attended_region(y: np.ndarray, inputs: AttendedInputs) -> None:
    """Write y, (n, O, positions), from the first position on."""
    (n, outputs), size = y.shape[:2], inputs.totals.shape[2]
    tiles = n * -(-size // DOT_TILE)
    chunks = max(1, min(outputs, -(-parallel.ITEMS // tiles)))
    operations = DOT_READS * n * outputs * size * (len(inputs.places.terms) + inputs.totals.shape[1])
    scratch = AttendedScratch(DOT_TILE, DOT_TILE, 0)
    run_with_scratch(attended_items, tiles * chunks, operations, scratch, y.dtype, y, inputs, chunks)


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
    operations = 2 * DOT_READS * grad_output.size * taps
    items, scratch = n * -(-size // DOT_TILE) * slots, AttendedScratch(DOT_TILE, DOT_TILE, 2 * DOT_TILE)
    args = grad_output, inputs, grads, slots
    run_with_scratch(attended_gradient_items, items, operations, scratch, dtype, *args)
    return grads
