"""The innermost loops of displaced units on lines: blurred pixels, tiles of outputs, tiles of sums.

All three have as many sums in registers as their latency needs, and read lines from any pixel on: a tap
further is a pixel further. Tiles of outputs are broader and lower than those of `engine.gemm`, because many
lines have few channels: of three, a tile of eight rows would waste more than half its work.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine.gemm import Matrix
from ..engine.vectors import MANY_REGISTERS, REGISTER_BYTES, GuardedLoop, Loop, Writer, written

# A tile of outputs has so many vectors: so many of each of some channels, twice as many of each of fewer
# or, for short lines, one of more.
OUTPUT_SUMS, BROAD_VECTORS = (16, 4) if MANY_REGISTERS else (8, 2)
LONG_VECTORS = 2 * BROAD_VECTORS
# Of a tile of sums: taps, and channels of the gradient.
SUMMED_TAPS = 9 if MANY_REGISTERS else 4
SUMMED_CHANNELS = 3
SUMS = -(-SUMMED_TAPS * SUMMED_CHANNELS // 16) * 16  # that such a tile has room for: whole vectors
_BLURRED_VECTORS = 4  # side by side


class BlurWeights(NamedTuple):
    """The taps of a blur in the order in which they are added up, and where they read."""

    values: np.ndarray
    places: np.ndarray  # from the first pixel that the blur reads
    number: int  # 0: what is read is not blurred


class LineTaps(NamedTuple):
    """The taps that units of a line read: pixels ``low`` to ``low + number - 1`` further on."""

    low: int
    number: int


class UnitRun(NamedTuple):
    """Units one after the other in memory."""

    first: int
    number: int


class UnitSide(NamedTuple):
    """Whether displacements are taken as they are or opposite, and where they stop."""

    sign: int
    end: int


class LineTile(NamedTuple):
    """As much of a tile of outputs as there is, and what is added up."""

    rows: int
    columns: int
    sources: int
    taps: int


class KernelRows(NamedTuple):
    """The taps of a target and a source, and those of other ones."""

    values: np.ndarray
    at: int
    target: int  # elements from one to the next
    source: int


class LineRuns(NamedTuple):
    """Runs of pixels, one of each image, and channels beside them."""

    values: np.ndarray
    at: int
    images: int  # elements from one to the next
    channels: int


@written(REGISTER_BYTES)
def blur_line(
    writer: Writer, target: Any, at: Any, source: Any, start: Any, count: Any, weights: Any
) -> None:
    """target[at + j] = sum over k of weights.values[k] * source[start + weights.places[k] + j], j < count.

    Reads as much as whole vectors need, and writes no more than it says.
    """
    builder, index, lanes = writer.builder, count.type, writer.lanes
    out, first = builder.gep(target, [at]), builder.gep(source, [start])

    def blurred(begin: Any, vectors: int) -> list:
        def step(k: Any, sums: list) -> list:
            factor = writer.broadcast(writer.element(weights.values, k))
            place = builder.add(begin, writer.element(weights.places, k))
            pixels = [writer.load(first, builder.add(place, index(i * lanes))) for i in range(vectors)]
            return [writer.multiply_add(total, x, factor) for total, x in zip(sums, pixels, strict=True)]

        return writer.sums(vectors, weights.number, step)

    width = index(_BLURRED_VECTORS * lanes)
    groups = builder.sdiv(count, width)
    with GuardedLoop(builder, groups, []) as group:
        begin = builder.mul(group.k, width)
        for i, total in enumerate(blurred(begin, _BLURRED_VECTORS)):
            writer.store(total, out, builder.add(begin, index(i * lanes)))
    done = builder.mul(groups, width)
    rest = builder.sub(count, done)
    vectors = builder.sdiv(builder.add(rest, index(lanes - 1)), index(lanes))
    with GuardedLoop(builder, vectors, []) as vector:
        before = builder.mul(vector.k, index(lanes))
        begin, mask = builder.add(done, before), writer.within(index(0), builder.sub(rest, before))
        writer.store_masked(blurred(begin, 1)[0], out, begin, mask)


def _write_output_tile(
    writer: Writer, out: Matrix, left: Any, lines: Any, tile: Any, base: Any, begins: Any, check: Any
) -> None:
    """A tile of outputs: out[i, j] = sum over s and k of left[i, s, k] * lines[s, j + k].

    Added to the base of row i where it `begins`, else to what `out` holds. Lines are read up to the end of
    the tile. What is not finite among results makes `check`, a vector, NaN. `writer.variant` is the number
    of vectors of a row.
    """
    builder, index, lanes = writer.builder, tile.rows.type, writer.lanes
    first, factors = builder.gep(lines.values, [lines.at]), builder.gep(left.values, [left.at])
    vectors, number, rows = range(writer.variant), OUTPUT_SUMS // writer.variant, [factors]
    for i in range(1, number):  # those that there are not are made like the first
        there = builder.icmp_signed("<", index(i), tile.rows)
        rows.append(
            builder.gep(factors, [builder.select(there, builder.mul(left.target, index(i)), index(0))])
        )
    with Loop(builder, tile.sources, [writer.zero] * OUTPUT_SUMS) as source:
        line = builder.gep(first, [builder.mul(source.k, lines.stride)])
        kernels = [builder.gep(row, [builder.mul(source.k, left.source)]) for row in rows]
        with Loop(builder, tile.taps, source.values) as tap:
            pixels = [writer.load(line, builder.add(tap.k, index(j * lanes))) for j in vectors]
            sums = []
            for i in range(number):
                factor = writer.broadcast(writer.element(kernels[i], tap.k))
                own = tap.values[i * len(vectors) : (i + 1) * len(vectors)]
                sums += [writer.multiply_add(total, factor, x) for total, x in zip(own, pixels, strict=True)]
            tap.values = sums
        source.values = tap.values
    place, bases = builder.gep(out.values, [out.at]), builder.gep(base.array, [base.at])
    masks = [writer.within(index(j * lanes), tile.columns) for j in vectors]
    for i in range(number):
        to = builder.mul(out.stride, index(i))
        with builder.if_then(builder.icmp_signed("<", index(i), tile.rows), likely=True):
            with builder.if_else(builder.trunc(begins, ir.IntType(1))) as branches:
                for branch, starting in zip(branches, (True, False), strict=True):
                    with branch:
                        found = writer.load(check, index(0))
                        for j in vectors:
                            at = builder.add(to, index(j * lanes))
                            if starting:
                                before = writer.broadcast(writer.element(bases, index(i)))
                            else:
                                before = writer.load_masked(place, at, masks[j])
                            value = writer.add(before, source.values[i * len(vectors) + j])
                            found = writer.multiply_add(found, value, writer.zero)
                            writer.store_masked(value, place, at, masks[j])
                        writer.store(found, check, index(0))


multiply_broad, multiply_long, multiply_narrow = (
    written(REGISTER_BYTES, vectors)(_write_output_tile) for vectors in (BROAD_VECTORS, LONG_VECTORS, 1)
)


def _write_sums(
    writer: Writer, lines: Any, grads: Any, images: Any, count: Any, totals: Any, at: Any
) -> None:
    """Add the sums over images and j < count of lines[image, j + k] * grads[image, t, j] to totals[at:].

    In float64, for each of some channels t, whose number is `writer.variant`, and all taps k of a tile. Lines
    are read as far as whole vectors of these need.
    """
    builder, index, lanes, channels = writer.builder, count.type, writer.lanes, writer.variant
    line, grad = builder.gep(lines.values, [lines.at]), builder.gep(grads.values, [grads.at])
    vectors = builder.sdiv(count, index(lanes))
    whole = builder.mul(vectors, index(lanes))
    mask = writer.within(index(0), builder.sub(count, whole))
    some_left = builder.zext(builder.icmp_signed("<", whole, count), index)

    def step(image: Any, j: Any, sums: list, mask: Any = None) -> list:
        own, place = [], builder.add(builder.mul(image, grads.images), j)
        for t in range(channels):
            of_channel = builder.add(place, builder.mul(grads.channels, index(t)))
            own.append(writer.load_masked(grad, of_channel, mask) if mask else writer.load(grad, of_channel))
        place = builder.add(builder.mul(image, lines.images), j)
        sums = list(sums)
        for k in range(SUMMED_TAPS):
            pixels = writer.load(line, builder.add(place, index(k)))
            for t in range(channels):
                number = t * SUMMED_TAPS + k
                sums[number] = writer.multiply_add(sums[number], pixels, own[t])
        return sums

    with Loop(builder, images, [writer.zero] * (channels * SUMMED_TAPS)) as image:
        with GuardedLoop(builder, vectors, image.values) as vector:
            vector.values = step(image.k, builder.mul(vector.k, index(lanes)), vector.values)
        with GuardedLoop(builder, some_left, vector.values) as rest:
            rest.values = step(image.k, whole, rest.values, mask)
        image.values = rest.values
    wide = ir.VectorType(ir.DoubleType(), lanes)
    for first in range(0, len(image.values), lanes):
        some = image.values[first : first + lanes]
        found = writer.totals(some + [writer.zero] * (lanes - len(some)))
        if found.type != wide:
            found = builder.fpext(found, wide)
        to = builder.bitcast(builder.gep(totals, [builder.add(at, index(first))]), wide.as_pointer())
        builder.store(builder.fadd(builder.load(to, align=8), found), to, align=8)


add_sums_1, add_sums_2, add_sums_3 = (written(REGISTER_BYTES, number)(_write_sums) for number in (1, 2, 3))


@written(REGISTER_BYTES)
def spread_units(
    writer: Writer, kernel: Any, at: Any, weight: Any, displacement: Any, units: Any, taps: Any, side: Any
) -> None:
    """kernel[at + k] = sum over some units of weight * max(0, 1 - |displacement - low - k|), k < number.

    Displacements are (y, x), of which x counts, times `side`, and stops at the ends. What is NaN makes all
    NaN.
    """
    builder, index, lanes = writer.builder, at.type, writer.lanes
    number, element = ir.VectorType(index, lanes), writer.zero.type.element
    one = ir.Constant(writer.zero.type, [1.0] * lanes)
    end, sign = builder.sitofp(side.end, element), builder.sitofp(side.sign, element)
    blocks = builder.sdiv(builder.add(taps.number, index(lanes - 1)), index(lanes))
    with Loop(builder, blocks, []) as block:
        begin = builder.mul(block.k, index(lanes))
        steps = ir.Constant(number, list(range(lanes)))
        places = builder.add(writer.broadcast(builder.add(taps.low, begin)), steps)
        places = builder.sitofp(places, writer.zero.type)
        with Loop(builder, units.number, [writer.zero]) as unit:
            own = builder.add(units.first, unit.k)
            x = builder.add(builder.mul(own, index(2)), index(1))
            d = builder.fmul(writer.element(displacement, x), sign)
            d = builder.select(builder.fcmp_ordered(">", d, end), end, d)
            d = builder.select(builder.fcmp_ordered("<", d, builder.fneg(end)), builder.fneg(end), d)
            behind = builder.fsub(writer.broadcast(d), places)
            left, right = builder.fadd(one, behind), builder.fsub(one, behind)
            share = builder.select(builder.fcmp_ordered("<", left, right), left, right)
            share = builder.select(builder.fcmp_ordered("<", share, writer.zero), writer.zero, share)
            factor = writer.broadcast(writer.element(weight, own))
            unit.values = [writer.multiply_add(unit.values[0], factor, share)]
        mask = writer.within(index(0), builder.sub(taps.number, begin))
        writer.store_masked(unit.values[0], builder.gep(kernel, [at]), begin, mask)


@written(REGISTER_BYTES)
def find_extremes(writer: Writer, found: Any, to: Any, numbers: Any, at: Any, count: Any) -> None:
    """Three vectors to `found`: the least and the largest of each lane, and how often that was NaN.

    Numbers that are NaN are left out of the others, infinities where there are none.
    """
    builder, index, lanes = writer.builder, count.type, count.type(writer.lanes)
    first, out = builder.gep(numbers, [at]), builder.gep(found, [to])
    one, least, largest = (
        ir.Constant(writer.zero.type, [each] * writer.lanes) for each in (1.0, float("inf"), float("-inf"))
    )
    vectors = builder.udiv(builder.add(count, index(writer.lanes - 1)), lanes)
    with GuardedLoop(builder, vectors, [least, largest, writer.zero]) as vector:
        (low, high, nan), place = vector.values, builder.mul(vector.k, lanes)
        value = writer.load_masked(first, place, writer.within(place, count))
        there = writer.within(place, count)
        lower = builder.and_(there, builder.fcmp_ordered("<", value, low))
        higher = builder.and_(there, builder.fcmp_ordered(">", value, high))
        unknown = builder.fcmp_unordered("uno", value, value)
        vector.values = [
            builder.select(lower, value, low),
            builder.select(higher, value, high),
            builder.select(unknown, builder.fadd(nan, one), nan),
        ]
    for number, value in enumerate(vector.values):
        writer.store(value, out, index(number * writer.lanes))
