"""The gradients of `held`: all that a region adds to them, in one pass over what it is made of.

What samples see has its gradient in planes of the same kind, to which each position adds. The planes of a
tile are added to images of their own for each share of the output channels, and these, in order, to the
gradient of x. Every other element has one owner: nothing depends on the threads.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import borrowing_cached_jit, borrowing_jit
from ..engine.memory import borrow, run_with_scratch
from ..engine.pixels import clear, covered
from ..engine.planes import TapPlanes, TapWindow, rows_of_plane
from ..engine.runs import RunRows
from ..engine.vectors import (
    REGISTER_BYTES,
    GuardedLoop,
    Writer,
    in_row,
    load_part,
    load_where,
    store_part,
    written,
)
from .conv import add_rows
from .held import (
    HeldInputs,
    HeldPlan,
    HeldRuns,
    HeldScratch,
    HeldTerms,
    all_watched_finite,
    copy_held_kernels,
    held_arrays,
    held_inputs,
    held_plan,
    held_terms,
    moved_rows,
    moved_terms,
    pack_held_attention,
    pack_held_tile,
    planes_of_tap,
    runs_of_tile,
    samples_together,
)
from .records import SampleCall
from .writing import runs_at, runs_of, times_where, watch_each_vector

_SHARES = 4  # of the output channels, at most
_SHARE_BYTES = 24 * 1024 * 1024  # of the images of all shares, of images that are worked on together


class HeldGrads(NamedTuple):
    """What the kernel writes; what is not wanted has no elements."""

    channel_kernel: np.ndarray  # as those of `HeldInputs`
    spatial_kernel: np.ndarray
    sample_attention: np.ndarray
    position_attention: np.ndarray
    images: np.ndarray  # (N*shares, C + 1, H, W): of x, and of its sum over channels


class HeldGradScratch(NamedTuple):
    """Of a tile."""

    forward: HeldScratch
    pixels: Any  # the gradient of the planes of x
    totals: Any  # of those of X1, for each tap
    seen: Any  # the same of an output channel, times nothing but its kernels
    central: Any  # of its attention on the centre, by the channels


class HeldTargets(NamedTuple):
    """Where the gradients of `HeldTerms` are, and that of the regions, or of their sum."""

    given: RunRows
    channels: RunRows
    taps: RunRows
    attention: RunRows
    pixels: RunRows
    seen: RunRows
    central: RunRows


class HeldWanted(NamedTuple):
    """What there is, and what is wanted."""

    attended: bool
    by_sample: bool
    of_channels: bool
    of_taps: bool
    of_attention: bool
    of_pixels: bool
    of_seen: bool
    of_central: bool


def _add_product(writer: Writer, pointer: Any, part: tuple, *factors: Any) -> None:
    """Add a product to what lies behind a pointer; a `part` are the place of a vector, and its mask."""
    store_part(writer, writer.multiply_add(load_part(writer, pointer, *part), *factors), pointer, *part)


def _write_region_gradients(
    writer: Writer, targets: Any, terms: Any, wanted: Any, watch: Any, first: Any, size: Any, count: Any
) -> None:
    builder, number, residual = writer.builder, writer.variant, writer.broadcast(terms.residual)
    turns = [builder.add(first, first.type(n)) for n in range(number)]
    goes_on = builder.icmp_signed(">", first, first.type(0))
    begins, samples = ([writer.element(each, turn) for turn in turns] for each in (terms.begins, terms.order))
    pixels, seen, central, to_pixels, to_seen, to_central = (
        runs_at(writer, each, begins)
        for each in (terms.pixels, terms.seen, terms.central, targets.pixels, targets.seen, targets.central)
    )
    given, attention, to_attention = (
        runs_of(writer, each, samples) for each in (targets.given, terms.attention, targets.attention)
    )
    channels, taps = (builder.extract_value(size, k) for k in range(2))

    def products(
        sums: list, kernels: tuple, others: tuple, flags: tuple, weights: list, terms: Any, part: tuple
    ) -> list:
        """Sums with all terms added, whose gradients are made meanwhile from `weights`, those of the sums."""
        (own, to_own), (read, to_read, apart), (shift, mask) = kernels, others, part
        factor, to_factor = (builder.gep(each.values, [each.at]) for each in kernels)
        with GuardedLoop(builder, terms, sums) as loop:
            value = load_part(writer, factor, builder.add(writer.place(own.stride, loop.k), shift), mask)
            place, to = (builder.add(writer.place(by, loop.k), shift) for by in (apart, to_own.stride))
            values, following = [load_part(writer, each, place, mask) for each in read], []
            for total, other in zip(loop.values, values, strict=True):
                following.append(writer.multiply_add(total, value, other))
            with builder.if_then(flags[0]):
                total = load_where(writer, goes_on, to_factor, to, mask)
                for pair in zip(weights, values, strict=True):
                    total = writer.multiply_add(total, *pair)
                store_part(writer, total, to_factor, to, mask)
            with builder.if_then(flags[1]):
                for weight, each in zip(weights, to_read, strict=True):
                    _add_product(writer, each, (place, mask), weight, value)
            loop.values = following
        return loop.values

    def region(part: tuple, watched: Any) -> Any:
        grads = [load_part(writer, each, *part) for each in given]
        for grad in grads:
            watched = writer.multiply_add(watched, grad, writer.zero)
        weights = times_where(writer, grads, wanted.by_sample, attention, residual, part)
        centred = times_where(writer, weights, wanted.attended, central, None, part)
        kernels, others = (terms.channels, targets.channels), (pixels, to_pixels, terms.pixels.stride)
        flags, sums = (wanted.of_channels, wanted.of_pixels), [writer.zero] * number
        sums = products(sums, kernels, others, flags, centred, channels, part)
        with builder.if_then(wanted.of_central):
            for weight, total, each in zip(weights, sums, to_central, strict=True):
                _add_product(writer, each, part, weight, total)
        sums = times_where(writer, sums, wanted.attended, central, None, part)
        kernels, others = (terms.taps, targets.taps), (seen, to_seen, terms.seen.stride)
        sums = products(sums, kernels, others, (wanted.of_taps, wanted.of_seen), weights, taps, part)
        with builder.if_then(wanted.of_attention):
            for grad, total, each in zip(grads, sums, to_attention, strict=True):
                store_part(writer, writer.multiply(grad, total), each, *part)
        return watched

    watch_each_vector(writer, count, watch, region)


_gradients_of_three, _gradients_of_two = (
    written(REGISTER_BYTES, number)(_write_region_gradients) for number in (3, 2)
)


@borrowing_jit
def _moved_targets(targets: HeldTargets, run: int, runs: HeldRuns) -> HeldTargets:
    """The targets of one of the runs of a tile, from those of the first one."""
    by, in_plane = run * runs.length, run * runs.apart
    return HeldTargets(
        moved_rows(targets.given, by),
        moved_rows(targets.channels, by),
        moved_rows(targets.taps, by),
        moved_rows(targets.attention, by),
        moved_rows(targets.pixels, in_plane),
        moved_rows(targets.seen, in_plane),
        moved_rows(targets.central, in_plane),
    )


@borrowing_jit
def _make_region_gradients(
    targets: HeldTargets, terms: HeldTerms, wanted: HeldWanted, watch: np.ndarray, size: tuple, runs: HeldRuns
) -> None:
    """Those of all regions of a tile; `size`: how many channels and taps there are."""
    s, number = 0, len(terms.order)
    while s < number:
        together = samples_together(number - s)
        for run in range(runs.number):
            to, own = _moved_targets(targets, run, runs), moved_terms(terms, run, runs)
            if together == 2:
                _gradients_of_two(to, own, wanted, watch, s, size, runs.length)
            else:
                _gradients_of_three(to, own, wanted, watch, s, size, runs.length)
        s += together


@borrowing_jit
def _spread_planes(
    images: np.ndarray, image: int, grad: np.ndarray, at: int, window: TapWindow, planes: TapPlanes
) -> None:
    """The adjoint of packing the planes of an image, added to one of `images`, (., ., H, W)."""
    for plane in range(len(planes.origin_y)):
        rows = rows_of_plane(plane, window, planes)
        add_rows(images, image, grad, at + plane * planes.plane, rows, covered(rows, images[0, 0]))


@borrowing_jit
def _spread_attention(
    scratch: HeldGradScratch,
    grads: HeldGrads,
    place: tuple,
    window: TapWindow,
    plan: HeldPlan,
    wanted: HeldWanted,
) -> None:
    """From the gradient of what the taps of an output channel see to those of X1 and of their attention."""
    (n, o), planes, taps, image = place, plan.planes, len(plan.tap_y), plan.image
    seen, totals, central = scratch.seen, scratch.totals, scratch.central
    factors, values = scratch.forward.factors, scratch.forward.totals
    count = uint64((window.rows + planes.halo) * (window.width + planes.reach))
    for tap in range(taps):
        for plane in range(len(planes.origin_y)):
            at, c = uint64(tap * image + plane * planes.plane), uint64(plane * planes.plane)
            if wanted.of_pixels:
                for w in range(count):
                    totals[at + w] += seen[at + w] * factors[at + w]
            if wanted.of_central and tap == taps // 2:
                for w in range(count):
                    seen[at + w] = seen[at + w] * values[at + w] + central[c + w]
            elif wanted.of_central:
                for w in range(count):
                    seen[at + w] *= values[at + w]
        if wanted.of_central:
            outputs = grads.position_attention.shape[1]
            _spread_planes(
                grads.position_attention, n * outputs + o * taps + tap, seen, tap * image, window, planes
            )


@borrowing_jit
def _spread_held_tile(
    scratch: HeldGradScratch, images: np.ndarray, first: int, window: TapWindow, plan: HeldPlan
) -> None:
    """From the gradients of planes to those of images from the first one on: of channels, and their sum."""
    channels, image = images.shape[1] - 1, plan.image
    for c in range(channels):
        _spread_planes(images, first + c, scratch.pixels, c * image, window, plan.planes)
    for tap in range(len(plan.tap_y)):
        moved = planes_of_tap(plan, tap)
        _spread_planes(images, first + channels, scratch.totals, tap * image, window, moved)


@borrowing_jit
def _what_is_wanted(inputs: HeldInputs, grads: HeldGrads) -> HeldWanted:
    of_x, of_position = grads.images.size > 0, grads.position_attention.size > 0
    return HeldWanted(
        inputs.position_attention.size > 0,
        inputs.sample_attention.size > 0,
        grads.channel_kernel.size > 0,
        grads.spatial_kernel.size > 0,
        grads.sample_attention.size > 0,
        of_x,
        of_x or of_position,
        of_position,
    )


@borrowing_jit
def _targets_of(
    scratch: HeldGradScratch,
    given: np.ndarray,
    inputs: HeldInputs,
    grads: HeldGrads,
    place: tuple,
    plan: HeldPlan,
) -> HeldTargets:
    """Those of a tile of an output channel: image, number, first position."""
    (n, o, begin), (slices, outputs, positions) = place, given.shape[1:]
    number, image = n * outputs + o, plan.image
    channels, taps = inputs.channel_kernel.shape[2], inputs.spatial_kernel.shape[2]
    seen = scratch.seen if inputs.position_attention.size else scratch.totals
    return HeldTargets(
        RunRows(
            in_row(given), (n * slices * outputs + o) * positions + begin, outputs * positions * (slices > 1)
        ),
        RunRows(in_row(grads.channel_kernel), number * channels * positions + begin, positions),
        RunRows(in_row(grads.spatial_kernel), number * taps * positions + begin, positions),
        RunRows(in_row(grads.sample_attention), number * len(plan.order) * positions + begin, positions),
        RunRows(scratch.pixels, 0, image),
        RunRows(seen, 0, image),
        RunRows(scratch.central, 0, image),
    )


@borrowing_cached_jit
def held_gradient_items(
    start: int,
    stop: int,
    scratch: HeldGradScratch,
    given: np.ndarray,
    finite: np.ndarray,
    inputs: HeldInputs,
    grads: HeldGrads,
    plan: HeldPlan,
) -> None:
    """Items (image, share of the output channels), from the gradient of y, (N, 1 or S*S, O, positions).

    `finite` gets of each item whether what it was given is.
    """
    (outputs, positions), wide, shares = given.shape[2:], plan.wide, plan.chunks
    channels, taps = inputs.channel_kernel.shape[2], inputs.spatial_kernel.shape[2]
    watch, wanted, size = (
        scratch.forward.watch,
        _what_is_wanted(inputs, grads),
        inputs.x.shape[2] * inputs.x.shape[3],
    )
    images, by_position = in_row(grads.images), in_row(grads.position_attention)
    for item in range(start, stop):
        n, share = item // shares, item % shares
        low, end = outputs * share // shares, outputs * (share + 1) // shares
        clear(watch, 0, len(watch))
        if wanted.of_pixels:
            clear(images, item * (channels + 1) * size, (channels + 1) * size)
        if wanted.of_central:
            clear(by_position, (n * outputs + low) * taps * size, (end - low) * taps * size)
        for row in range(0, positions // wide, plan.rows):
            rows = min(plan.rows, positions // wide - row)
            window, begin, count = TapWindow(row, rows, 0, plan.line), row * wide, rows * wide
            pack_held_tile(scratch.forward, inputs, n, window, plan)
            clear(scratch.pixels, 0, len(scratch.pixels))
            clear(scratch.totals, 0, len(scratch.totals))
            for o in range(low, end):
                copy_held_kernels(scratch.forward, inputs, n * outputs + o, begin, count)
                if wanted.attended:
                    pack_held_attention(scratch.forward, inputs, (n, o), window, plan)
                    clear(scratch.seen, 0, len(scratch.seen))
                    clear(scratch.central, 0, len(scratch.central))
                terms = held_terms(scratch.forward, inputs, n * outputs + o, begin, count, plan)
                targets = _targets_of(scratch, given, inputs, grads, (n, o, begin), plan)
                _make_region_gradients(
                    targets, terms, wanted, watch, (channels, taps), runs_of_tile(rows, plan)
                )
                if wanted.attended and wanted.of_seen:
                    _spread_attention(scratch, grads, (n, o), window, plan, wanted)
            if wanted.of_pixels:
                _spread_held_tile(scratch, grads.images, item * (channels + 1), window, plan)
        finite[item] = all_watched_finite(watch)


@borrowing_cached_jit
def join_share_items(start: int, stop: int, target: np.ndarray, images: np.ndarray) -> None:
    """Items (image, channel) of the gradient of x, from `HeldGrads.images`."""
    (n, channels), planes = target.shape[:2], images.shape[1]
    shares = images.shape[0] // n
    size, to, flat = uint64(target.shape[2] * target.shape[3]), in_row(target), in_row(images)
    for item in range(start, stop):
        at, channel = uint64(item) * size, item % channels
        clear(to, item * target.shape[2] * target.shape[3], target.shape[2] * target.shape[3])
        for share in range(shares):
            first = (item // channels * shares + share) * planes
            own, total = uint64(first + channel) * size, uint64(first + channels) * size
            for w in range(size):
                to[at + w] += flat[own + w] + flat[total + w]


def held_backward(given: np.ndarray, call: SampleCall, arrays: tuple, grads: tuple) -> bool:
    """Write gradients, from that of y, (N, 1 or S*S, O, positions); whether all that is given is finite.

    Those that are not wanted are None.
    """
    inputs, (grad_x, of_channels, of_taps, of_samples, of_positions) = (
        held_inputs(call, arrays),
        held_arrays(grads, given.dtype),
    )
    channels, taps, (n, _, outputs, positions) = (
        call.channels,
        call.rows.kernel * call.columns.kernel,
        given.shape,
    )
    several = 2 * channels + taps * (2 + 3 * call.attended) + call.attended
    image_bytes = (channels + 1) * call.rows.size * call.columns.size * call.itemsize
    together = max(1, min(n, _SHARE_BYTES // image_bytes))
    shares = max(
        1, min(outputs, _SHARES, -(-parallel.ITEMS // together), _SHARE_BYTES // image_bytes // together)
    )
    plan = held_plan(call, n, several)._replace(chunks=shares)
    image, of_x = plan.image, grad_x.size > 0
    forward = HeldScratch(
        pixels=channels * image,
        totals=taps * image,
        seen=taps * image * call.attended,
        factors=taps * image * call.attended,
        kernels=taps * plan.rows * plan.wide,
        watch=REGISTER_BYTES // call.itemsize,
    )
    scratch = HeldGradScratch(
        forward, channels * image * of_x, taps * image, taps * image * call.attended, image * call.attended
    )
    all_finite, dtype = True, given.dtype
    for first in range(0, n, together):
        some = slice(first, min(first + together, n))
        number, finite = some.stop - first, np.empty((some.stop - first) * shares, bool)
        own = inputs.of(some)
        size = (number * shares if of_x else 0, channels + 1, *inputs.x.shape[2:])
        images = borrow("gradients", size, dtype)
        made = HeldGrads(of_channels[some], of_taps[some], of_samples[some], of_positions[some], images)
        operations = 4.0 * (number * outputs * positions) * len(plan.order) * (channels + taps)
        arguments = given[some], finite, own, made, plan
        run_with_scratch(held_gradient_items, number * shares, operations, scratch, dtype, *arguments)
        if of_x:
            work = parallel.PER_NUMBER * images.size
            parallel.run(join_share_items, number * channels, work, grad_x[some], images)
        all_finite &= bool(finite.all())
    return all_finite
