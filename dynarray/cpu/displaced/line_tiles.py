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

LINE_ROWS = 4  # of a tile of outputs: channels
_OUTPUT_VECTORS = 4 if MANY_REGISTERS else 2
LINE_STRIP_BYTES = _OUTPUT_VECTORS * REGISTER_BYTES  # of a row of it
# Of a tile of sums: taps, and channels of the gradient.
SUMMED_TAPS = 9 if MANY_REGISTERS else 4
SUMMED_CHANNELS = 3
_BLURRED_VECTORS = 4  # side by side


class BlurWeights(NamedTuple):
    """The taps of a blur in the order in which they are added up, and where they read."""

    values: np.ndarray
    places: np.ndarray  # from the first pixel that the blur reads
    number: int  # 0: what is read is not blurred


class LineTile(NamedTuple):
    """As much of a tile of outputs as there is, and what is added up."""

    rows: int
    columns: int
    sources: int
    taps: int


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


@written(LINE_STRIP_BYTES // _OUTPUT_VECTORS)
def multiply_lines(
    writer: Writer, out: Matrix, left: Any, lines: Any, tile: Any, base: Any, begins: Any, check: Any
) -> None:
    """A tile of outputs: out[i, j] = sum over s and k of left[s, k, i] * lines[s, j + k].

    Added to the base of row i where it `begins`, else to what `out` holds. Lines are read up to the end of
    the tile. What is not finite among results makes `check`, a vector, NaN.
    """
    builder, index, lanes = writer.builder, tile.rows.type, writer.lanes
    factors, first = builder.gep(left.array, [left.at]), builder.gep(lines.values, [lines.at])
    vectors = range(_OUTPUT_VECTORS)
    with Loop(builder, tile.sources, [writer.zero] * (LINE_ROWS * len(vectors))) as source:
        line = builder.gep(first, [builder.mul(source.k, lines.stride)])
        panel = builder.gep(factors, [builder.mul(source.k, builder.mul(tile.taps, index(LINE_ROWS)))])
        with Loop(builder, tile.taps, source.values) as tap:
            pixels = [writer.load(line, builder.add(tap.k, index(j * lanes))) for j in vectors]
            row, sums = builder.mul(tap.k, index(LINE_ROWS)), []
            for i in range(LINE_ROWS):
                factor = writer.broadcast(writer.element(panel, builder.add(row, index(i))))
                own = tap.values[i * len(vectors) : (i + 1) * len(vectors)]
                sums += [writer.multiply_add(total, factor, x) for total, x in zip(own, pixels, strict=True)]
            tap.values = sums
        source.values = tap.values
    place, bases = builder.gep(out.values, [out.at]), builder.gep(base.array, [base.at])
    masks = [writer.within(index(j * lanes), tile.columns) for j in vectors]
    for i in range(LINE_ROWS):
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


def _write_sums(writer: Writer, sums: Any, lines: Any, grads: Any, images: Any, count: Any) -> None:
    """sums[k*channels + t] = sum over images and j < count of lines[image, j + k] * grads[image, t, j].

    `writer.variant` is the number of channels. Lines are read as far as whole vectors of all taps need.
    """
    builder, index, lanes, channels = writer.builder, count.type, writer.lanes, writer.variant
    number = SUMMED_TAPS * channels
    line, grad = builder.gep(lines.values, [lines.at]), builder.gep(grads.values, [grads.at])
    vectors = builder.sdiv(count, index(lanes))
    whole = builder.mul(vectors, index(lanes))
    mask = writer.within(index(0), builder.sub(count, whole))
    some_left = builder.zext(builder.icmp_signed("<", whole, count), index)

    def step(image: Any, j: Any, totals: list, mask: Any = None) -> list:
        own, at = [], builder.add(builder.mul(image, grads.images), j)
        for t in range(channels):
            place = builder.add(at, builder.mul(grads.channels, index(t)))
            own.append(writer.load_masked(grad, place, mask) if mask else writer.load(grad, place))
        at, result = builder.add(builder.mul(image, lines.images), j), []
        for k in range(SUMMED_TAPS):
            pixels = writer.load(line, builder.add(at, index(k)))
            part = totals[k * channels : (k + 1) * channels]
            result += [writer.multiply_add(total, pixels, g) for total, g in zip(part, own, strict=True)]
        return result

    with Loop(builder, images, [writer.zero] * number) as image:
        with GuardedLoop(builder, vectors, image.values) as vector:
            vector.values = step(image.k, builder.mul(vector.k, index(lanes)), vector.values)
        with GuardedLoop(builder, some_left, vector.values) as rest:
            rest.values = step(image.k, whole, rest.values, mask)
        image.values = rest.values
    for first in range(0, number, lanes):
        some = image.values[first : first + lanes]
        writer.store(writer.totals(some + [writer.zero] * (lanes - len(some))), sums, index(first))


sum_lines_1, sum_lines_2, sum_lines_3 = (written(REGISTER_BYTES, number)(_write_sums) for number in (1, 2, 3))
