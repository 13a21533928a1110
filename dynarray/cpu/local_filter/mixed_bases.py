"""The forward pass of `mixed_filter2d` where a filter serves one channel, or few and has few taps.

To make such a filter, and use it once, is as much as to filter the image by each kernel. So it is not made:
kernels filter the image where it lies, a vector of a row of outputs at a time, and what they make stays in
registers until it is mixed. Elements outside the image are not loaded, but zero.

Where something is not finite, neither is an output, here as in the definition; but which of NaN and infinity
it is depends on the order of sums: such calls have to go the other way.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine import parallel
from ..engine.compile import rolled_jit
from ..engine.vectors import REGISTER_BYTES, GuardedLoop, Loop, Writer, in_row, written
from .mixed_plan import MixedCall

_KERNELS = 8  # kernels: enough that no sum waits for another
_MOST_STEPS = 40  # taps of all such groups of kernels and all channels that a filter could serve


class BasesPlan(NamedTuple):
    """All that the kernel knows of a call but its arrays."""

    rows: int  # of an item
    down: int  # items of a sample and channel
    bases: int
    taps: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    kernels: int  # from the kernels of a channel to those of the next


class _Plane(NamedTuple):
    """An image."""

    data: np.ndarray
    at: int  # where it begins
    height: int
    width: int


class _Outputs(NamedTuple):
    """A row of outputs."""

    data: np.ndarray
    at: int
    width: int
    alarms: np.ndarray  # zeros; NaN where outputs are not finite
    alarm: int  # the one to raise


class _Weights(NamedTuple):
    """The same row of each plane of the mixture."""

    data: np.ndarray
    at: int
    apart: int  # from plane to plane


def _write_mixed_row(
    writer: Writer, y: Any, x: Any, kernels: Any, kernels_at: Any, mixture: Any, row: Any, plan: Any
) -> None:
    """One row of outputs of a channel. Kernels lie in groups of `_KERNELS`: (groups, taps, kernels).

    `writer.variant` is the stride along a row, of which 2 loads two vectors, and takes every second pixel.
    """
    builder, index, step = writer.builder, y.at.type, writer.variant
    lanes, one = index(writer.lanes), index(1)
    (kh, kw), (down, across), (pad_y, pad_x) = (
        [builder.extract_value(pair, k) for k in range(2)]
        for pair in (plan.taps, plan.dilation, plan.padding)
    )
    to, image = builder.gep(y.data, [y.at]), builder.gep(x.data, [x.at])
    scales, weights = builder.gep(kernels, [kernels_at]), builder.gep(mixture.data, [mixture.at])
    vectors = builder.udiv(builder.add(y.width, index(writer.lanes - 1)), lanes)
    groups = builder.udiv(builder.add(plan.bases, index(_KERNELS - 1)), index(_KERNELS))
    top = builder.mul(row, builder.extract_value(plan.stride, 0))
    first, last = builder.sub(top, pad_y), builder.sub(plan.bases, one)
    with Loop(builder, vectors, [writer.zero]) as vector:
        column = builder.mul(vector.k, lanes)
        begin = builder.sub(builder.mul(column, index(step)), pad_x)
        written_here = writer.within(column, y.width)

        def filtered(group: Any) -> list:
            """What the kernels of a group make."""
            with Loop(builder, kh, [writer.zero] * _KERNELS) as i:
                line = builder.add(first, builder.mul(i.k, down))
                there = writer.broadcast(builder.icmp_unsigned("<", line, x.height))
                start = builder.mul(line, x.width)
                tap = builder.mul(builder.add(builder.mul(group, kh), i.k), kw)
                with Loop(builder, kw, i.values) as j:
                    place = builder.add(begin, builder.mul(j.k, across))
                    places = [builder.add(place, index(k * writer.lanes)) for k in range(step)]
                    masks = [builder.and_(writer.within(each, x.width), there) for each in places]
                    loads = zip((builder.add(start, each) for each in places), masks, strict=True)
                    value = one_of_each(writer, [writer.load_masked(image, *each) for each in loads])
                    own = builder.mul(builder.add(tap, j.k), index(_KERNELS))
                    factors = (writer.element(scales, builder.add(own, index(b))) for b in range(_KERNELS))
                    j.values = [
                        writer.multiply_add(total, writer.broadcast(factor), value)
                        for total, factor in zip(j.values, factors, strict=True)
                    ]
                i.values = j.values
            return i.values

        with GuardedLoop(builder, groups, [writer.zero]) as group:
            total = group.values[0]
            for k, value in enumerate(filtered(group.k)):
                base = builder.add(builder.mul(group.k, index(_KERNELS)), index(k))
                there = builder.icmp_signed("<=", base, last)
                place = builder.mul(builder.select(there, base, last), mixture.apart)
                weight = writer.load_masked(weights, builder.add(place, column), written_here)
                total = builder.select(there, writer.multiply_add(total, weight, value), total)
            group.values = [total]
        total = group.values[0]
        writer.store_masked(total, to, column, written_here)
        vector.values = [writer.add(vector.values[0], builder.fsub(total, total))]
    alarm = builder.gep(y.alarms, [y.alarm])
    builder.store(builder.fadd(builder.load(alarm), writer.total(vector.values[0])), alarm)


def one_of_each(writer: Writer, vectors: list) -> Any:
    """Of two vectors every second element, in a vector; of one all."""
    order = ir.Constant(ir.VectorType(ir.IntType(32), writer.lanes), list(range(0, 2 * writer.lanes, 2)))
    return vectors[0] if len(vectors) == 1 else writer.builder.shuffle_vector(*vectors, order)


_mixed_row, _mixed_row_of_two = (written(REGISTER_BYTES, step)(_write_mixed_row) for step in (1, 2))


@rolled_jit
def mixed_bases_items(
    start: int, stop: int, inputs: tuple, y: np.ndarray, alarms: np.ndarray, plan: BasesPlan
) -> None:
    """Items: (sample, channel, some rows). Each has an alarm: NaN in the end if outputs are not finite."""
    x, kernels, mixture = inputs
    (channels, height, width), (high, wide), (groups, bases) = x.shape[1:], y.shape[2:], mixture.shape[1:3]
    share = channels // groups
    for item in range(start, stop):
        plane, first = item // plan.down, item % plan.down * plan.rows
        sample, channel = plane // channels, plane % channels
        image = _Plane(in_row(x), plane * height * width, height, width)
        mixed = (sample * groups + channel // share) * bases * high
        for row in range(first, min(first + plan.rows, high)):
            target = _Outputs(in_row(y), (plane * high + row) * wide, wide, alarms, item)
            weights = _Weights(in_row(mixture), (mixed + row) * wide, high * wide)
            if plan.stride[1] == 1:
                _mixed_row(target, image, kernels, channel * plan.kernels, weights, row, plan)
            else:
                _mixed_row_of_two(target, image, kernels, channel * plan.kernels, weights, row, plan)


@lru_cache(maxsize=256)
def plan_bases(call: MixedCall, whole: MixedCall) -> BasesPlan | None:
    """None where this is not the fastest way to make the whole of which the call is a part, or all."""
    (bases, sets, kh, kw), (samples, _, _, high, _) = call.kernels, call.mixture
    lanes = REGISTER_BYTES // call.itemsize
    wide = whole.mixture[-1]
    leaves_few_over = 2 * (wide + -wide % lanes) <= 3 * wide
    few_steps = call.share * -(-bases // _KERNELS) * kh * kw <= _MOST_STEPS
    pays = call.share == call.filters or few_steps
    if not (pays and whole.stride[1] <= 2 and leaves_few_over):
        return None
    rows = max(1, min(high, high * samples * call.x[1] // (4 * parallel.ITEMS)))
    each = -(-bases // _KERNELS) * _KERNELS * kh * kw if sets > 1 else 0
    down = -(-high // rows)
    return BasesPlan(-(-high // down), down, bases, (kh, kw), call.stride, call.dilation, call.padding, each)


def in_groups(kernels: np.ndarray) -> np.ndarray:
    """Kernels (B, sets, kh, kw) as `mixed_bases_items` reads them, set after set; zeros beyond the last."""
    bases, sets, kh, kw = kernels.shape
    groups = -(-bases // _KERNELS)
    filled = np.zeros((groups * _KERNELS, sets, kh * kw), kernels.dtype)
    filled[:bases] = kernels.reshape(bases, sets, kh * kw)
    ordered = filled.reshape(groups, _KERNELS, sets, kh * kw).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(ordered).reshape(-1)
