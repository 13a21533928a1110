"""The forward pass of `dynamic_sampling_conv2d` on the CPU where regions have few terms: channels and taps.

Then there is less to multiply than to move, and all that a region is made of happens while its sum is in
registers: the terms of the channels, the attention of the centre, the terms of the taps, and the attention of
samples. What samples see lies in planes, in which a sample is an offset for all outputs of a tile: those of x
and of X1, its sum over channels around each tap, are made once for all output channels, those of X1 times the
attention of positions for each.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import ZERO, borrowing_cached_jit, borrowing_jit
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear, copy
from ..engine.planes import TapPlanes, TapWindow, pack_channels, tap_planes
from ..engine.runs import RunRows, fetch_vector
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
from .boxes import sum_channels_of
from .records import MAX, SampleCall
from .writing import runs_at, runs_of, times_where, watch_each_vector

FEW_TERMS = 24  # channels and taps; of more, it is worth sharing operands between several output channels
_HELD_BYTES = 2 * 1024 * 1024  # of the planes of a tile, which are to stay in the second cache
# Outputs of a row that are worth a run of their own: with attention of positions, of which then much less is
# packed, and without. Else rows follow one another.
_LEAST_LINE, _LEAST_PLAIN_LINE = 64, 256
_HELD_POSITIONS = 4096  # of a tile, at most
_LEAST_HELD_OUTPUTS = 2  # for which the planes of a tile are made


class HeldInputs(NamedTuple):
    """The arrays of a call, of p positions; attention that is not given has no elements."""

    x: np.ndarray  # (N, C, H, W)
    total: np.ndarray  # (N, 1, H, W): its sum over channels
    channel_kernel: np.ndarray  # (N, O, C, p)
    spatial_kernel: np.ndarray  # (N, O, taps, p)
    sample_attention: np.ndarray  # (N, O, S*S, p)
    position_attention: np.ndarray  # (N, O*taps, H, W)
    residuals: tuple  # of the kernel, and of the attention

    def of(self, images: slice) -> "HeldInputs":
        """Those of some images."""
        x, total, channel_kernel, spatial_kernel, by_sample, by_position = (each[images] for each in self[:6])
        return HeldInputs(x, total, channel_kernel, spatial_kernel, by_sample, by_position, self.residuals)


class HeldPlan(NamedTuple):
    """How outputs are divided, and where what they see lies."""

    rows: int  # of a tile
    wide: int  # outputs of a row
    line: int  # elements of a row of a plane
    planes: TapPlanes  # in which a sample is an offset
    image: int  # elements of all planes of an image
    order: np.ndarray  # of the samples: those that read the same plane one after the other
    begins: np.ndarray  # where they do so in the planes of an image, in this order
    tap_y: np.ndarray  # (taps, planes): as `TapPlanes.origin_y`, for what a tap sees
    tap_x: np.ndarray
    chunks: int  # of the output channels


class HeldScratch(NamedTuple):
    """Of a tile."""

    pixels: Any  # the planes of x
    totals: Any  # of X1, for each tap
    seen: Any  # the same times the attention of positions
    factors: Any  # that attention, with its residual: of the tap on the centre, or of all
    kernels: Any  # the spatial kernels of an output channel, with their residual
    watch: Any  # zeros, or NaN where a result was not finite


class HeldTerms(NamedTuple):
    """What the regions of an output channel are made of; what there is not has no elements."""

    channels: RunRows  # kernels, channel by channel
    pixels: RunRows
    taps: RunRows  # kernels, tap by tap
    seen: RunRows
    central: RunRows
    attention: RunRows  # sample by sample
    residual: Any  # of that
    number: int  # of samples
    begins: np.ndarray  # `HeldPlan.begins`
    order: np.ndarray


class HeldRuns(NamedTuple):
    """Of the positions of a tile, which are neighbours in all arrays."""

    number: int
    length: int
    apart: int  # from one to the next, in planes


class HeldFlags(NamedTuple):
    """What there is, and what becomes of it."""

    central: bool
    attention: bool
    stacked: bool
    adding: bool  # to the sum of those before


def _next_samples(writer: Writer, terms: Any, turns: list) -> list:
    """Those that come after these: what of theirs lies in other places is fetched meanwhile."""
    builder, following = writer.builder, [writer.builder.add(turn, turn.type(len(turns))) for turn in turns]
    return [
        writer.element(
            terms.order, builder.select(builder.icmp_signed("<", each, terms.number), each, turns[0])
        )
        for each in following
    ]


def _write_regions(
    writer: Writer, target: Any, terms: Any, flags: Any, watch: Any, first: Any, size: Any, count: Any
) -> None:
    builder, number, residual = writer.builder, writer.variant, writer.broadcast(terms.residual)
    turns = [builder.add(first, first.type(n)) for n in range(number)]
    begins, samples = ([writer.element(each, turn) for turn in turns] for each in (terms.begins, terms.order))
    pixels, seen, central = (
        runs_at(writer, each, begins) for each in (terms.pixels, terms.seen, terms.central)
    )
    attention, targets = (runs_of(writer, each, samples) for each in (terms.attention, target))
    ahead = _next_samples(writer, terms, turns)
    ahead = [each for rows in (terms.attention, target) for each in runs_of(writer, rows, ahead)]
    channels, taps = (builder.extract_value(size, k) for k in range(2))

    def add_products(sums: list, kernels: Any, others: list, apart: Any, terms: Any, part: tuple) -> list:
        (shift, mask), factor = part, builder.gep(kernels.values, [kernels.at])
        with GuardedLoop(builder, terms, sums) as loop:
            value = load_part(writer, factor, builder.add(writer.place(kernels.stride, loop.k), shift), mask)
            place = builder.add(writer.place(apart, loop.k), shift)
            loop.values = [
                writer.multiply_add(total, value, load_part(writer, each, place, mask))
                for total, each in zip(loop.values, others, strict=True)
            ]
        return loop.values

    def region(part: tuple, watched: Any) -> Any:
        for pointer in ahead:
            fetch_vector(writer, pointer, part[0])
        sums = [writer.zero] * number
        sums = add_products(sums, terms.channels, pixels, terms.pixels.stride, channels, part)
        sums = times_where(writer, sums, flags.central, central, None, part)
        sums = add_products(sums, terms.taps, seen, terms.seen.stride, taps, part)
        sums = times_where(writer, sums, flags.attention, attention, residual, part)
        with builder.if_else(flags.stacked) as (apart, together):
            with apart:
                for value, to in zip(sums, targets, strict=True):
                    store_part(writer, value, to, *part)
            with together:
                to, total = targets[0], sums[0]
                for value in sums[1:]:
                    total = writer.add(total, value)
                total = writer.add(total, load_where(writer, flags.adding, to, *part))
                store_part(writer, total, to, *part)
        for value in sums:
            watched = writer.multiply_add(watched, value, writer.zero)
        return watched

    watch_each_vector(writer, count, watch, region)


WATCHED_BYTES = 2 * REGISTER_BYTES  # vectors of so many bytes: there are sums enough that none waits
_three_regions, _two_regions = (written(WATCHED_BYTES, number)(_write_regions) for number in (3, 2))


@borrowing_jit
def samples_together(left: int) -> int:
    """How many of those that are left are worked on together: two or three."""
    return 2 if left == 2 or left == 4 else 3


@borrowing_jit
def runs_of_tile(rows: int, plan: HeldPlan) -> HeldRuns:
    """Those of so many rows."""
    if plan.line == plan.wide:
        return HeldRuns(1, rows * plan.wide, ZERO)
    return HeldRuns(rows, plan.wide, plan.line)


@borrowing_jit
def moved_rows(rows: RunRows, by: int) -> RunRows:
    """The same, so many elements further."""
    return RunRows(rows.values, rows.at + by, rows.stride)


@borrowing_jit
def moved_terms(terms: HeldTerms, run: int, runs: HeldRuns) -> HeldTerms:
    """The terms of one of the runs of a tile, from those of the first one."""
    by, in_plane = run * runs.length, run * runs.apart
    return HeldTerms(
        moved_rows(terms.channels, by),
        moved_rows(terms.pixels, in_plane),
        moved_rows(terms.taps, by),
        moved_rows(terms.seen, in_plane),
        moved_rows(terms.central, in_plane),
        moved_rows(terms.attention, by),
        terms.residual,
        terms.number,
        terms.begins,
        terms.order,
    )


@borrowing_jit
def _make_regions(
    target: RunRows, terms: HeldTerms, flags: HeldFlags, watch: np.ndarray, size: tuple, runs: HeldRuns
) -> None:
    """All regions of a tile, or their sum; `size`: how many channels and taps there are."""
    s, number = 0, len(terms.order)
    while s < number:
        flags, together = (
            HeldFlags(flags.central, flags.attention, flags.stacked, s > 0),
            samples_together(number - s),
        )
        for run in range(runs.number):
            to, own = moved_rows(target, run * runs.length), moved_terms(terms, run, runs)
            if together == 2:
                _two_regions(to, own, flags, watch, s, size, runs.length)
            else:
                _three_regions(to, own, flags, watch, s, size, runs.length)
        s += together


@borrowing_jit
def planes_of_tap(plan: HeldPlan, tap: int) -> TapPlanes:
    """Those in which a sample sees what a tap does from there."""
    planes = plan.planes
    return TapPlanes(planes.stride, planes.halo, planes.reach, planes.plane, plan.tap_y[tap], plan.tap_x[tap])


@borrowing_jit
def pack_held_tile(
    scratch: HeldScratch, inputs: HeldInputs, n: int, window: TapWindow, plan: HeldPlan
) -> None:
    """What all output channels see."""
    planes, image = plan.planes, plan.image
    pack_channels(scratch.pixels, (0, image), inputs.x, (n, 0, inputs.x.shape[1]), window, planes)
    for tap in range(len(plan.tap_y)):
        moved = planes_of_tap(plan, tap)
        pack_channels(scratch.totals, (tap * image, image), inputs.total, (n, 0, 1), window, moved)


@borrowing_jit
def pack_held_attention(
    scratch: HeldScratch, inputs: HeldInputs, place: tuple, window: TapWindow, plan: HeldPlan
) -> None:
    """`HeldScratch.seen` and `factors` of an output channel (image, number)."""
    (n, o), planes, taps, image = place, plan.planes, len(plan.tap_y), plan.image
    seen, totals, factors, residual = scratch.seen, scratch.totals, scratch.factors, inputs.residuals[1]
    pack_channels(seen, (0, image), inputs.position_attention, (n, o * taps, taps), window, planes)
    count = uint64((window.rows + planes.halo) * (window.width + planes.reach))
    for tap in range(taps):
        kept = tap if len(factors) > image else 0  # that of the centre is the last one that is kept there
        for plane in range(len(planes.origin_y)):
            at = uint64(tap * image + plane * planes.plane)
            to = uint64(kept * image + plane * planes.plane)
            if len(factors) > image or tap == taps // 2:
                for w in range(count):
                    factors[to + w] = seen[at + w] + residual
            for w in range(count):
                seen[at + w] = (seen[at + w] + residual) * totals[at + w]


@borrowing_jit
def copy_held_kernels(scratch: HeldScratch, inputs: HeldInputs, number: int, begin: int, count: int) -> None:
    """The spatial kernels of an output channel at some positions, with the residual on their centre."""
    taps, positions = inputs.spatial_kernel.shape[2:]
    spatial = in_row(inputs.spatial_kernel)
    for tap in range(taps):
        copy(scratch.kernels, tap * count, spatial, (number * taps + tap) * positions + begin, count)
    for w in range(taps // 2 * count, (taps // 2 + 1) * count):
        scratch.kernels[w] += inputs.residuals[0]


@borrowing_jit
def held_terms(
    scratch: HeldScratch, inputs: HeldInputs, number: int, begin: int, count: int, plan: HeldPlan
) -> HeldTerms:
    """Those of a tile of an output channel."""
    channels, positions = inputs.channel_kernel.shape[2:]
    attended, image, taps = inputs.position_attention.size > 0, plan.image, len(plan.tap_y)
    kept = taps // 2 if len(scratch.factors) > image else 0
    return HeldTerms(
        RunRows(in_row(inputs.channel_kernel), number * channels * positions + begin, positions),
        RunRows(scratch.pixels, 0, image),
        RunRows(scratch.kernels, 0, count),
        RunRows(scratch.seen if attended else scratch.totals, 0, image),
        RunRows(scratch.factors, kept * image, image),
        RunRows(in_row(inputs.sample_attention), number * len(plan.order) * positions + begin, positions),
        inputs.residuals[1],
        len(plan.order),
        plan.begins,
        plan.order,
    )


@borrowing_jit
def all_watched_finite(watch: np.ndarray) -> bool:
    """Whether all that was watched is finite: zero times that is zero."""
    total = watch[0]
    for k in range(1, len(watch)):
        total += watch[k]
    return total == 0


@borrowing_cached_jit
def held_forward_items(
    start: int,
    stop: int,
    scratch: HeldScratch,
    y: np.ndarray,
    finite: np.ndarray,
    inputs: HeldInputs,
    plan: HeldPlan,
) -> None:
    """Items (image, tile of rows, chunk of output channels) of y, (N, 1 or S*S, O, positions).

    `finite` gets of each item whether its regions are.
    """
    (slices, outputs, positions), wide, chunks = y.shape[1:], plan.wide, plan.chunks
    channels, taps, high = inputs.channel_kernel.shape[2], inputs.spatial_kernel.shape[2], positions // wide
    tiles, packed = -(-high // plan.rows), -1
    attended, by_sample = inputs.position_attention.size > 0, inputs.sample_attention.size > 0
    flags = HeldFlags(attended, by_sample, slices > 1, False)
    target = in_row(y)
    for item in range(start, stop):
        tile, chunk = item // chunks, item % chunks
        n, row = tile // tiles, tile % tiles * plan.rows
        rows = min(plan.rows, high - row)
        window, begin, count = TapWindow(row, rows, 0, plan.line), row * wide, rows * wide
        if tile != packed:
            pack_held_tile(scratch, inputs, n, window, plan)
            packed = tile
        clear(scratch.watch, 0, len(scratch.watch))
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            number = n * outputs + o
            copy_held_kernels(scratch, inputs, number, begin, count)
            if attended:
                pack_held_attention(scratch, inputs, (n, o), window, plan)
            terms = held_terms(scratch, inputs, number, begin, count, plan)
            to = (n * slices * outputs + o) * positions + begin
            apart = outputs * positions if slices > 1 else 0
            _make_regions(
                RunRows(target, to, apart),
                terms,
                flags,
                scratch.watch,
                (channels, taps),
                runs_of_tile(rows, plan),
            )
        finite[item] = all_watched_finite(scratch.watch)


def has_few_terms(call: SampleCall, fuse: int) -> bool:
    """Whether this is the way for a call with several regions: of two ways, that do not agree in bits."""
    terms = call.channels + call.rows.kernel * call.columns.kernel
    return terms <= FEW_TERMS and fuse != MAX


@lru_cache(maxsize=64)
def held_plan(call: SampleCall, images: int, several: int) -> HeldPlan:
    """For so many images, of which `several` planes are in use at a time."""
    axes, wide = (call.rows, call.columns), call.columns.outputs
    samples = call.rows.samples
    steps = tuple(
        (each.stride, each.sample_stride, (each.samples - 1) // 2 * each.sample_stride) for each in axes
    )
    stride, dilation, padding = zip(*steps, strict=True)

    least, reach = _LEAST_LINE if call.attended else _LEAST_PLAIN_LINE, (samples - 1) * dilation[1]
    in_lines = stride[1] == 1 and wide >= least
    line = wide + reach if in_lines else wide

    def planes_of(rows: int) -> tuple:
        """In lines a sample is some columns further; else there is a plane for each of these."""
        across = (1,) if in_lines else (samples,)
        planes, number, begins = tap_planes((samples, *across), stride, dilation, padding, (rows, line))
        places = (number * planes.plane + begins).reshape(samples, *across)
        return planes, places + np.arange(samples) * dilation[1] * in_lines

    def fits(rows: int) -> bool:
        planes, _ = planes_of(rows)
        size = several * planes.plane * len(planes.origin_y) * call.itemsize
        return rows * wide <= _HELD_POSITIONS and size <= _HELD_BYTES

    high = call.rows.outputs
    rows = next((rows for rows in range(high, 1, -1) if fits(rows)), 1)
    rows = -(-high // -(-high // rows))
    planes, places = planes_of(rows)
    order = np.arange(samples * samples).reshape(samples, samples).T.reshape(-1)
    offsets = np.argwhere(np.ones((call.rows.kernel, call.columns.kernel)))
    offsets = (offsets - offsets.max(axis=0) // 2) * [call.rows.dilation, call.columns.dilation]
    tiles = images * -(-high // rows)
    chunks = max(1, min(call.outputs // _LEAST_HELD_OUTPUTS, -(-parallel.ITEMS // tiles)))
    return HeldPlan(
        rows,
        wide,
        line,
        planes,
        planes.plane * len(planes.origin_y),
        order.copy(),
        places.reshape(-1)[order],
        offsets[:, :1] + planes.origin_y,
        offsets[:, 1:] + planes.origin_x,
        chunks,
    )


def held_arrays(arrays: tuple, dtype: np.dtype) -> list[np.ndarray]:
    """The five arrays, or their gradients, as in `HeldInputs`; what there is not has no elements."""
    sizes = (), (0, 1, 2), (0, 1, slice(2, 4)), (0, 1, slice(2, 4)), (0, slice(1, 4))
    made = []
    for array, leading in zip(arrays, sizes, strict=True):
        if array is None:
            made.append(np.zeros((0, 0, 0, 0), dtype))
            continue
        shape = tuple(int(np.prod(array.shape[each])) for each in leading)
        last = array.shape[-2:] if len(shape) < 3 else (-1,)
        made.append(array.reshape(*shape, *last) if shape else array)
    return made


def held_inputs(call: SampleCall, arrays: tuple) -> HeldInputs:
    """All that regions are made of."""
    x, channel_kernel, spatial_kernel, by_sample, by_position = held_arrays(arrays, arrays[0].dtype)
    residuals = call.kernel_residual, call.attention_residual
    total = sum_channels_of(x)
    return HeldInputs(x, total, channel_kernel, spatial_kernel, by_sample, by_position, residuals)


def held_forward(y: np.ndarray, call: SampleCall, arrays: tuple) -> bool:
    """Write y, (N, 1 or S*S, O, positions); whether all regions are finite."""
    inputs = held_inputs(call, arrays)
    kept = call.channels + call.rows.kernel * call.columns.kernel * (1 + call.attended) + call.attended
    plan, (n, _, outputs, positions) = held_plan(call, len(y), kept), y.shape
    regions, taps, image = len(plan.order), len(plan.tap_y), plan.image
    scratch = HeldScratch(
        pixels=call.channels * image,
        totals=taps * image,
        seen=taps * image * call.attended,
        factors=image * call.attended,
        kernels=taps * plan.rows * plan.wide,
        watch=WATCHED_BYTES // call.itemsize,
    )
    items = n * -(-positions // (plan.rows * plan.wide)) * plan.chunks
    finite = np.empty(items, bool)
    operations = float(n * outputs * positions * regions * (call.channels + taps))
    run_with_scratch(held_forward_items, items, operations, scratch, y.dtype, y, finite, inputs, plan)
    return bool(finite.all())
