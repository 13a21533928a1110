"""The gradients of `mixed_filter2d` with images, outputs and mixtures read where they lie.

For a run of positions, some rows or a part of one, the gradient of filters is made: for each tap the products
of pixels and output gradients, summed over the channels of a group. While it is in the cache, it goes on to
the mixture, times the kernels, and to the kernels, times the mixture. For the gradient of x filters are made
of the mixture for the outputs that read some rows of pixels, and each pixel takes from those around it.

Elements outside an image are not loaded, but zero.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine import parallel
from ..engine.compile import ONE, ZERO, borrowing_jit, rolled_jit
from ..engine.dots import add_dots
from ..engine.gemm import Matrix
from ..engine.products import Extent, Factor, Target, mix_rows
from ..engine.runs import RunRows
from ..engine.vectors import LINE_BYTES, REGISTER_BYTES, GuardedLoop, Loop, Writer, in_row, written
from .mixed_bases import one_of_each
from .mixed_plan import MixedCall, MixedGradients, MixedInputs

_RUN_BYTES = 96 * 1024  # of the gradients of filters, or of filters, and the mixture of a run
_FILTER_BYTES = 384 * 1024  # of filters that rows of pixels read
_LEAST_RUN = 256  # positions of a run, unless there are fewer
_FEW_TAPS, _MANY_TAPS = 3, 5  # whose sums over channels are made at once
_GATHERED = 4  # channels, or else vectors of one channel, that a filter is applied to at once


class GradientPlan(NamedTuple):
    """What both kernels know of a call but its arrays; runs are rows, or pieces of rows."""

    rows: int  # of a run
    down: int  # runs, one below the other
    piece: int  # columns of a run
    across: int
    span: int  # from one filter's run in scratch to the next
    taps: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    filters: int  # of a group at a position


class GradientScratch(NamedTuple):
    """A thread's memory."""

    filters: Any  # (filters * taps, positions of a run): their gradients, or themselves


class _Maps(NamedTuple):
    """Maps of channels, one after the other; `at` is the first element of the first."""

    data: np.ndarray
    at: int
    height: int
    width: int


class _Stretch(NamedTuple):
    """A part of a row, of some channels."""

    channels: int
    row: int
    column: int
    columns: int


class _Made(NamedTuple):
    """Filters of a run of outputs: rows from `first` to `end`, columns from `begin`, a row every `pitch`."""

    data: np.ndarray
    apart: int  # from tap to tap
    first: int
    end: int
    begin: int
    pitch: int


def _both_of(writer: Writer, pair: Any) -> list:
    return [writer.builder.extract_value(pair, k) for k in range(2)]


def _write_filter_gradients(writer: Writer, target: Any, grads: Any, x: Any, place: Any, plan: Any) -> None:
    """target[tap] = sum over channels of grads * x, for the outputs of a part of a row."""
    builder, index, (number, step) = writer.builder, place.row.type, writer.variant
    (kh, kw), (down, across), (pad_y, pad_x) = (
        _both_of(writer, pair) for pair in (plan.taps, plan.dilation, plan.padding)
    )
    top = builder.sub(builder.mul(place.row, _both_of(writer, plan.stride)[0]), pad_y)
    left = builder.sub(builder.mul(place.column, index(step)), pad_x)
    lanes, taps = index(writer.lanes), builder.mul(kh, kw)
    begin = builder.add(builder.mul(place.row, grads.width), builder.add(place.column, grads.at))
    given, image = builder.gep(grads.data, [begin]), builder.gep(x.data, [x.at])
    to = builder.gep(target.values, [target.at])
    own, other = (builder.mul(each.height, each.width) for each in (grads, x))
    blocks = builder.udiv(builder.add(taps, index(number - 1)), index(number))
    vectors = builder.udiv(builder.add(place.columns, index(writer.lanes - 1)), lanes)
    last = builder.sub(taps, index(1))
    with Loop(builder, blocks, []) as block:
        numbers = [builder.add(builder.mul(block.k, index(number)), index(k)) for k in range(number)]
        numbers = [builder.select(builder.icmp_signed("<", t, last), t, last) for t in numbers]
        lines, columns, there = [], [], []
        for tap in numbers:
            i = builder.udiv(tap, kw)
            j = builder.sub(tap, builder.mul(i, kw))
            line = builder.add(top, builder.mul(i, down))
            lines.append(builder.mul(line, x.width))
            columns.append(builder.add(left, builder.mul(j, across)))
            there.append(writer.broadcast(builder.icmp_unsigned("<", line, x.height)))
        with Loop(builder, vectors, []) as vector:
            shift = builder.mul(vector.k, lanes)
            wanted = writer.within(shift, place.columns)
            pixels = []  # of each tap those at its vectors, and which there are
            for line, column, flag in zip(lines, columns, there, strict=True):
                first = builder.add(column, builder.mul(shift, index(step)))
                starts = [builder.add(first, index(k * writer.lanes)) for k in range(step)]
                masks = [builder.and_(writer.within(start, x.width), flag) for start in starts]
                pixels.append(
                    [(builder.add(line, each), mask) for each, mask in zip(starts, masks, strict=True)]
                )
            with Loop(builder, place.channels, [writer.zero] * number) as channel:
                grad = writer.load_masked(given, builder.add(shift, builder.mul(channel.k, own)), wanted)
                moved, totals = builder.mul(channel.k, other), []
                for total, each in zip(channel.values, pixels, strict=True):
                    found = [writer.load_masked(image, builder.add(moved, at), mask) for at, mask in each]
                    totals.append(writer.multiply_add(total, grad, one_of_each(writer, found)))
                channel.values = totals
            for tap, total in zip(numbers, channel.values, strict=True):
                writer.store_masked(total, to, builder.add(builder.mul(tap, target.stride), shift), wanted)


_one_tap, _few_taps, _many_taps, _taps_of_two = (
    written(REGISTER_BYTES, kind)(_write_filter_gradients)
    for kind in ((1, 1), (_FEW_TAPS, 1), (_MANY_TAPS, 1), (_FEW_TAPS, 2))
)


@borrowing_jit
def _filter_gradients(target: RunRows, grads: _Maps, x: _Maps, place: _Stretch, plan: GradientPlan) -> None:
    taps = plan.taps[0] * plan.taps[1]
    if plan.stride[1] == 2:
        _taps_of_two(target, grads, x, place, plan)
    elif taps == 1:
        _one_tap(target, grads, x, place, plan)
    elif -taps % _FEW_TAPS <= -taps % _MANY_TAPS:
        _few_taps(target, grads, x, place, plan)
    else:
        _many_taps(target, grads, x, place, plan)


@rolled_jit
def weights_in_place_items(
    start: int,
    stop: int,
    scratch: GradientScratch,
    grad_output: np.ndarray,
    inputs: MixedInputs,
    grads: MixedGradients,
    plan: GradientPlan,
) -> None:
    """Items: (range of runs, group). Kernels are a matrix (B, filters * taps) of each group, or of all."""
    x, kernels, mixture = inputs
    (channels, height, width), (high, wide), (groups, bases) = (
        x.shape[1:],
        mixture.shape[3:],
        mixture.shape[1:3],
    )
    share, depth, positions = channels // groups, plan.filters * plan.taps[0] * plan.taps[1], high * wide
    together, runs, flat = share // plan.filters, len(x) * plan.down * plan.across, in_row(mixture)
    matrices = len(kernels) // (bases * depth)
    totals, (ranges, _, tangled) = in_row(grads.kernels), grads.kernels.shape
    filters = RunRows(scratch.filters, ZERO, plan.span)
    for item in range(start, stop):
        part, group = item // groups, item % groups
        for run in range(runs * part // ranges, runs * (part + 1) // ranges):
            across, rest = run % plan.across, run // plan.across
            sample, row, column = rest // plan.down, rest % plan.down * plan.rows, across * plan.piece
            rows, columns = min(plan.rows, high - row), min(plan.piece, wide - column)
            for k in range(rows * plan.filters):
                number, i = k // rows, k % rows
                channel = sample * channels + group * share + number
                at = number * (depth // plan.filters) * plan.span + i * wide
                _filter_gradients(
                    RunRows(scratch.filters, at, plan.span),
                    _Maps(in_row(grad_output), channel * positions, high, wide),
                    _Maps(in_row(x), channel * height * width, height, width),
                    _Stretch(together, row + i, column, columns),
                    plan,
                )
            mixed = (sample * groups + group) * bases * positions + row * wide + column
            count = (rows - 1) * wide + columns
            if grads.mixture.size:
                goal = Target(in_row(grads.mixture), mixed, positions, ZERO)
                source = Factor(scratch.filters, ZERO, ZERO, plan.span, None)
                scales = Matrix(kernels, (group if matrices > 1 else 0) * bases * depth, depth)
                mix_rows(goal, scales, source, Extent(bases, ONE, depth, count))
            if tangled:
                left = RunRows(flat, mixed, positions)
                add_dots(totals, item * tangled, left, filters, (bases, depth, count))


def _write_gathered(writer: Writer, grad_x: Any, grads: Any, made: Any, place: Any, plan: Any) -> None:
    """A part of a row of pixels, from the outputs that read them and their filters.

    At stride 2 pixels are made in pairs, of which each tap leads to one.
    """
    builder, index, (channels, vectors, step) = writer.builder, place.row.type, writer.variant
    (kh, kw), (down, across) = (_both_of(writer, pair) for pair in (plan.taps, plan.dilation))
    zero, one, high = index(0), index(1), _both_of(writer, plan.stride)[0]
    top, left = (
        builder.add(*pair)
        for pair in zip((place.row, place.column), _both_of(writer, plan.padding), strict=True)
    )
    begin = builder.add(builder.mul(place.row, grad_x.width), builder.add(place.column, grad_x.at))
    to, given = builder.gep(grad_x.data, [begin]), builder.gep(grads.data, [grads.at])
    own, other = (builder.mul(each.height, each.width) for each in (grad_x, grads))
    last, together = builder.sub(place.channels, one), []
    for c in range(channels):
        together.append(builder.select(builder.icmp_signed("<", index(c), last), index(c), last))
    sources = [builder.gep(given, [builder.mul(c, other)]) for c in together]
    width = index(writer.lanes * vectors * step)
    turns = builder.udiv(builder.add(place.columns, builder.sub(width, one)), width)
    with Loop(builder, turns, []) as turn:
        shift = builder.mul(turn.k, index(writer.lanes * vectors))
        shifts = [builder.add(shift, index(writer.lanes * v)) for v in range(vectors)]
        with Loop(builder, kh, [writer.zero] * (channels * vectors * step)) as i:
            ahead = builder.sub(top, builder.mul(i.k, down))
            line = builder.sdiv(ahead, high)
            reads = builder.icmp_signed("==", builder.mul(line, high), ahead)
            inside = builder.and_(
                builder.icmp_signed(">=", line, made.first), builder.icmp_signed("<", line, made.end)
            )
            of_line = builder.mul(line, grads.width)
            of_filters = builder.mul(builder.sub(line, made.first), made.pitch)
            number = builder.select(builder.and_(reads, inside), kw, zero)
            with GuardedLoop(builder, number, i.values) as j:
                column, odd = builder.sub(left, builder.mul(j.k, across)), None
                if step == 2:
                    odd = builder.trunc(builder.and_(column, one), ir.IntType(1))
                    column = builder.ashr(builder.add(column, one), one)
                tap = builder.mul(builder.add(builder.mul(i.k, kw), j.k), made.apart)
                from_ = builder.add(tap, builder.sub(of_filters, made.begin))
                sums = list(j.values)
                for v in range(vectors):
                    at = builder.add(column, shifts[v])
                    mask = writer.within(at, grads.width)
                    factor = writer.load_masked(made.data, builder.add(from_, at), mask)
                    for c in range(channels):
                        value = writer.load_masked(sources[c], builder.add(of_line, at), mask)
                        k = (v * channels + c) * step
                        sums[k : k + step] = _with_product(writer, sums[k : k + step], (factor, value), odd)
                j.values = sums
            i.values = j.values
        for v in range(vectors):
            for c in range(channels):
                k = (v * channels + c) * step
                for number, value in enumerate(_in_turn(writer, i.values[k : k + step])):
                    at = builder.add(builder.mul(shifts[v], index(step)), index(number * writer.lanes))
                    mask = writer.within(at, place.columns)
                    writer.store_masked(value, to, builder.add(at, builder.mul(together[c], own)), mask)


def _with_product(writer: Writer, sums: list, pair: tuple, odd: Any) -> list:
    """With one more term; of two sums it is added to the second one if `odd`."""
    if len(sums) == 1:
        return [writer.multiply_add(sums[0], *pair)]
    longer = [writer.multiply_add(total, *pair) for total in sums]
    return [
        writer.builder.select(odd, sums[0], longer[0]),
        writer.builder.select(odd, longer[1], sums[1]),
    ]


def _in_turn(writer: Writer, sums: list) -> list:
    """Of two vectors the elements in turn."""
    if len(sums) == 1:
        return sums
    lanes = writer.lanes
    orders = ([k // 2 + k % 2 * lanes for k in range(first, first + lanes)] for first in (0, lanes))
    kind = ir.VectorType(ir.IntType(32), lanes)
    return [writer.builder.shuffle_vector(*sums, ir.Constant(kind, order)) for order in orders]


_gather_channels, _gather_vectors, _gather_pairs = (
    written(REGISTER_BYTES, block)(_write_gathered)
    for block in ((_GATHERED, 1, 1), (1, _GATHERED, 1), (1, 2, 2))
)


@rolled_jit
def x_in_place_items(
    start: int,
    stop: int,
    scratch: GradientScratch,
    grad_output: np.ndarray,
    inputs: MixedInputs,
    grad_x: np.ndarray,
    plan: GradientPlan,
) -> None:
    """Items: (sample, run of pixels, group). Kernels are matrices (taps, B), set after set."""
    _, kernels, mixture = inputs
    (channels, height, width), (groups, bases, high, wide) = grad_x.shape[1:], mixture.shape[1:]
    taps, share, positions = plan.taps[0] * plan.taps[1], channels // groups, high * wide
    together, sets, step = share // plan.filters, len(kernels) // (bases * taps), plan.stride
    reach = (plan.taps[0] - 1) * plan.dilation[0], (plan.taps[1] - 1) * plan.dilation[1]
    for item in range(start, stop):
        group, rest = item % groups, item // groups
        across, rest = rest % plan.across, rest // plan.across
        sample, row, column = rest // plan.down, rest % plan.down * plan.rows, across * plan.piece
        rows, columns = min(plan.rows, height - row), min(plan.piece, width - column)
        first = max(0, -(-(row + plan.padding[0] - reach[0]) // step[0]))
        end = min(high, (row + rows - 1 + plan.padding[0]) // step[0] + 1)
        begin, stop_at = (
            max(0, column + plan.padding[1] - reach[1]),
            min(wide, column + columns + plan.padding[1]),
        )
        if plan.across == 1:
            begin, stop_at = 0, wide
        count = max(0, (end - first - 1) * wide + stop_at - begin) if end > first and stop_at > begin else 0
        mixed = (sample * groups + group) * bases * positions + first * wide + begin
        for number in range(plan.filters):
            channel = group * share + number
            if count:
                own = channel if sets > 1 else 0
                goal = Target(scratch.filters, ZERO, plan.span, ZERO)
                source = Factor(in_row(mixture), mixed, ZERO, positions, None)
                scales = Matrix(kernels, own * taps * bases, bases)
                mix_rows(goal, scales, source, Extent(taps, ONE, bases, count))
            made = _Made(scratch.filters, plan.span, first, end if count else first, begin, wide)
            at_once = 1 if plan.stride[1] == 2 else _GATHERED
            for c in range(0, together, at_once):
                plane, some = sample * channels + channel + c, min(at_once, together - c)
                given = _Maps(in_row(grad_output), plane * positions, high, wide)
                target = _Maps(in_row(grad_x), plane * height * width, height, width)
                for i in range(row, row + rows):
                    place = _Stretch(some, i, column, columns)
                    if plan.stride[1] == 2:
                        _gather_pairs(target, given, made, place, plan)
                    elif some == 1:
                        _gather_vectors(target, given, made, place, plan)
                    else:
                        _gather_channels(target, given, made, place, plan)


def _suits(call: MixedCall, size: int, whole: int) -> bool:
    """Whether whole vectors of a row leave few elements over, at a stride for which there are kernels."""
    width = whole * REGISTER_BYTES // call.itemsize
    return call.stride[1] <= 2 and 2 * (size + -size % width) <= 3 * size


def _in_lines(elements: int, itemsize: int) -> int:
    """At least as many elements: an odd number of cache lines."""
    line = LINE_BYTES // itemsize
    return (-(-elements // line) | 1) * line


def _plan(call: MixedCall, rows: tuple[int, int], columns: tuple[int, int], span: int) -> GradientPlan:
    grid = call.kernels[2:], call.stride, call.dilation, call.padding
    return GradientPlan(*rows, *columns, span, *grid, call.filters)


@lru_cache(maxsize=256)
def plan_weights(call: MixedCall) -> tuple[GradientPlan, GradientScratch] | None:
    """For the gradients of kernels and mixture; None where another way is better."""
    (bases, _, kh, kw), (high, wide) = call.kernels, call.mixture[3:]
    if not _suits(call, wide, 1):
        return None
    depth = call.filters * kh * kw
    most = max(_LEAST_RUN, _RUN_BYTES // ((depth + bases) * call.itemsize))
    across = -(-wide // most)
    piece = -(-wide // across)
    down = -(-high // (1 if across > 1 else max(1, min(high, most // wide))))
    rows = -(-high // down)
    span = _in_lines(rows * piece, call.itemsize)
    return _plan(call, (rows, down), (piece, across), span), GradientScratch(depth * span)


@lru_cache(maxsize=256)
def plan_x(call: MixedCall) -> tuple[GradientPlan, GradientScratch] | None:
    """For the gradient of x; None where another way is better."""
    (_, _, kh, kw), (samples, groups, _, _, wide) = call.kernels, call.mixture
    height, width = call.x[2:]
    if not _suits(call, width, call.stride[1]):
        return None
    halo, lead = (kh - 1) * call.dilation[0], (kw - 1) * call.dilation[1]
    most, down = _FILTER_BYTES // (kh * kw * call.itemsize), call.stride[0]
    rows, across = (most // wide - 1) * down - halo, 1
    wanted = -(-height * samples * groups // parallel.ITEMS)
    if kh == 1 and rows < 1:
        across, rows = -(-width // max(_LEAST_RUN, most - lead)), 1
    elif rows < max(1, min(halo, height)):
        return None
    rows = max(1, min(height, rows, max(wanted, halo)))
    down = -(-height // rows)
    rows, piece = -(-height // down), -(-width // across)
    positions = ((rows + halo) // call.stride[0] + 1) * wide if across == 1 else piece + lead
    span = _in_lines(positions, call.itemsize)
    return _plan(call, (rows, down), (piece, across), span), GradientScratch(kh * kw * span)
