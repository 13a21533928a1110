"""Points of few channels: vectors of positions, for one channel and tap after the other.

Where a point has one to four channels, these fill no vector. Here neighbouring positions do: the corners of
as many points as a vector has lanes are read one by one, two neighbours at once, and dealt out to vectors.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine.compile import borrowing_jit
from ..engine.vectors import REGISTER_BYTES, Loop, Writer, written
from .points import CONSTANT, PointFields, Points, point_fields

# Of vectors that are gathered: more addresses than these have elements find no room in registers.
GATHERED_BYTES = min(32, REGISTER_BYTES)


class PointPlane(NamedTuple):
    """A plane of an image in its ring, or of its gradient."""

    values: np.ndarray
    at: int  # where it begins
    last: int  # no point begins further on: to spread points
    points: int  # that there is room for
    line: int  # as of the image


def _elements(writer: Writer, start: Any, places: list, kind: Any) -> Any:
    """A vector of one number of a kind from each place."""
    numbers = ir.Constant(ir.VectorType(kind, writer.lanes), ir.Undefined)
    for lane, place in enumerate(places):
        pointer = writer.builder.bitcast(writer.builder.gep(start, [place]), kind.as_pointer())
        value = writer.builder.load(pointer, align=writer.itemsize)
        numbers = writer.builder.insert_element(numbers, value, ir.IntType(32)(lane))
    return numbers


def _corners(writer: Writer, plane: Any, points: PointFields, k: Any) -> list:
    """Of the points from k on the pixels at the four corners; neighbours of float32 at once, if they are.

    Below a line are zeros.
    """
    builder, lanes, (neighbours, line) = writer.builder, range(writer.lanes), writer.variant
    below_line = [writer.zero] * 2 if line else []
    start = builder.gep(plane.values, [plane.at])
    element, pair = plane.values.type.pointee, ir.DoubleType()
    number = [builder.add(k, k.type(lane)) for lane in lanes]
    top = [writer.element(points.at, each) for each in number]
    pairs = neighbours and writer.itemsize == 4
    down = [writer.element(points.below, k if pairs else each) for each in number]
    below = [builder.add(*each) for each in zip(top, down, strict=True)]
    if not pairs:
        rights = [writer.element(points.right, each) for each in number]
        found = []
        for left in (top,) if line else (top, below):
            right = [builder.add(*each) for each in zip(left, rights, strict=True)]
            found += [_elements(writer, start, left, element), _elements(writer, start, right, element)]
        return found + below_line
    found = []
    for left in (top,) if line else (top, below):
        both = builder.bitcast(_elements(writer, start, left, pair), ir.VectorType(element, 2 * writer.lanes))
        for side in range(2):
            order = ir.Constant(
                ir.VectorType(ir.IntType(32), writer.lanes), [2 * lane + side for lane in lanes]
            )
            found.append(builder.shuffle_vector(both, ir.Constant(both.type, ir.Undefined), order))
    return found + below_line


def _sampled(writer: Writer, points: PointFields, k: Any, corners: list) -> Any:
    """The image at the points from k on."""
    weights = [writer.load(weight, k) for weight in points.weights]
    total = writer.multiply(weights[0], corners[0])
    for pair in zip(weights[1:], corners[1:], strict=True):
        total = writer.multiply_add(total, *pair)
    return total


def _write_samples(writer: Writer, plane: Any, points: Any, out: Any, to: Any, vectors: Any) -> None:
    points = point_fields(writer, points, plane.points)
    with Loop(writer.builder, vectors, []) as loop:
        k = writer.builder.mul(loop.k, vectors.type(writer.lanes))
        value = _sampled(writer, points, k, _corners(writer, plane, points, k))
        writer.store(value, out, writer.builder.add(to, k))


def _write_pulled(
    writer: Writer, plane: Any, points: Any, columns: Any, grads: Any, at: Any, sums: Any, vectors: Any
) -> None:
    builder, distance = writer.builder, _distance(writer, vectors)
    points = point_fields(writer, points, plane.points)
    with Loop(builder, vectors, []) as loop:
        k = builder.mul(loop.k, vectors.type(writer.lanes))
        place, corners = builder.add(at, k), _corners(writer, plane, points, k)
        writer.store(_sampled(writer, points, k, corners), columns, place)
        grad = writer.load(grads, place)
        for number, corner in enumerate(corners):
            own = builder.add(k, builder.mul(distance, k.type(number)))
            writer.store(writer.multiply_add(writer.load(sums, own), grad, corner), sums, own)


def _distance(writer: Writer, vectors: Any) -> Any:
    """From the sums of a corner to those of the next one."""
    return writer.builder.mul(vectors, vectors.type(writer.lanes))


# Whether corners of a row are neighbours, and whether it is a line.
_KINDS = (True, True), (True, False), (False, False)
_sample_line, _sample_pairs, _sample_any = (written(GATHERED_BYTES, kind)(_write_samples) for kind in _KINDS)
_pull_line, _pull_pairs, _pull_any = (written(GATHERED_BYTES, kind)(_write_pulled) for kind in _KINDS)


@borrowing_jit
def sample_row(
    plane: PointPlane, points: Points, out: np.ndarray, to: int, vectors: int, border: int
) -> None:
    """out[to + i] = the plane at point i, for so many vectors of points."""
    if plane.line:
        _sample_line(plane, points, out, to, vectors)
    elif border == CONSTANT:
        _sample_pairs(plane, points, out, to, vectors)
    else:
        _sample_any(plane, points, out, to, vectors)


@borrowing_jit
def pull_row(
    plane: PointPlane,
    points: Points,
    columns: np.ndarray,
    grads: np.ndarray,
    at: int,
    sums: np.ndarray,
    vectors: int,
    border: int,
) -> None:
    """The same into columns; and gradient * corner is added to the sums of each point and corner."""
    if plane.line:
        _pull_line(plane, points, columns, grads, at, sums, vectors)
    elif border == CONSTANT:
        _pull_pairs(plane, points, columns, grads, at, sums, vectors)
    else:
        _pull_any(plane, points, columns, grads, at, sums, vectors)


class GradientRows(NamedTuple):
    """Gradients of samples: where those of a channel begin, how far on those of the next, and how many."""

    at: int
    distance: int
    number: int


def _interleaved(writer: Writer, values: list) -> Any:
    """First elements of all vectors, then second ones and so on."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    low, high = (_interleaved(writer, values[i::2]) for i in range(2))
    order = [place for i in range(half * writer.lanes) for place in (i, i + half * writer.lanes)]
    return writer.builder.shuffle_vector(
        low, high, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
    )


def _write_spread(
    writer: Writer, plane: Any, points: Any, grads: Any, rows: Any, products: Any, count: Any
) -> None:
    """Add gradients of some channels, side by side in the plane, to the corners of so many points.

    On a line, to the first two of them.
    Neighbours add to the same pixels, one after the other, and each would wait for the last: so every point
    is followed by one that is as many points further on as a vector has lanes.
    """
    builder, (channels, number) = writer.builder, writer.variant
    points = point_fields(writer, points, plane.points)
    lanes, start = count.type(writer.lanes), builder.gep(plane.values, [plane.at])
    pixel = ir.VectorType(plane.values.type.pointee, channels)
    vectors = builder.udiv(builder.add(count, lanes.type(writer.lanes - 1)), lanes)

    def at(pointer: Any, place: Any) -> Any:
        place = builder.mul(place, place.type(channels))
        return builder.bitcast(builder.gep(pointer, [place]), pixel.as_pointer())

    with Loop(builder, vectors, []) as loop:
        k, values = builder.mul(loop.k, lanes), []
        for channel in range(channels):
            there = builder.icmp_signed("<", lanes.type(channel), rows.number)
            row = builder.select(there, lanes.type(channel), lanes.type(0))
            place = builder.add(rows.at, builder.mul(row, rows.distance))
            values.append(writer.load(grads, builder.add(place, k)))
        together = _interleaved(writer, values)
        target = builder.bitcast(at(products, k), together.type.as_pointer())
        builder.store(together, target, align=writer.itemsize)
    with Loop(builder, lanes, []) as lane, Loop(builder, vectors, []) as loop:
        k = builder.add(builder.mul(loop.k, lanes), lane.k)
        place, right, below = (writer.element(array, k) for array in (points.at, points.right, points.below))
        found = builder.and_(builder.icmp_signed("<", k, count), builder.icmp_signed("<", place, plane.last))
        place = builder.select(found, place, plane.last)
        value, under = builder.load(at(products, k), align=writer.itemsize), builder.add(place, below)
        corners = place, builder.add(place, right), under, builder.add(under, right)
        for weight, corner in zip(points.weights[:number], corners[:number], strict=True):
            factor, target = ir.Constant(pixel, ir.Undefined), at(start, corner)
            for channel in range(channels):
                number = ir.IntType(32)(channel)
                factor = builder.insert_element(factor, writer.element(weight, k), number)
            before = builder.load(target, align=writer.itemsize)
            builder.store(writer.multiply_add(before, factor, value), target, align=writer.itemsize)


QUAD = 4
# By channels of a pixel, and corners.
_spread_quads, _spread_quads_of_line, _spread_singles, _spread_singles_of_line = (
    written(REGISTER_BYTES, kind)(_write_spread) for kind in ((QUAD, 4), (QUAD, 2), (1, 4), (1, 2))
)


@borrowing_jit
def spread_rows(
    plane: PointPlane,
    points: Points,
    grads: np.ndarray,
    rows: GradientRows,
    products: np.ndarray,
    count: int,
    channels: int,
) -> None:
    """Add the gradients of one channel, or of up to four, to the corners of so many points.

    Those below the points of a line are zeros around it, whose gradients nobody asks for.
    """
    if channels == 1 and plane.line:
        _spread_singles_of_line(plane, points, grads, rows, products, count)
    elif channels == 1:
        _spread_singles(plane, points, grads, rows, products, count)
    elif plane.line:
        _spread_quads_of_line(plane, points, grads, rows, products, count)
    else:
        _spread_quads(plane, points, grads, rows, products, count)


@written(GATHERED_BYTES)
def differentiate_row(writer: Writer, sums: Any, points: Any, number: Any, vectors: Any) -> None:
    """Put derivatives by row, column and mask in the place of the first three sums, in rows of so many."""
    builder, distance = writer.builder, _distance(writer, vectors)
    one, points = ir.Constant(writer.zero.type, [1.0] * writer.lanes), point_fields(writer, points, number)

    def between(part: Any, low: Any, high: Any) -> Any:
        return writer.multiply_add(writer.multiply(builder.fsub(one, part), low), part, high)

    with Loop(builder, vectors, []) as loop:
        k = builder.mul(loop.k, vectors.type(writer.lanes))
        own = [builder.add(k, builder.mul(distance, k.type(number))) for number in range(4)]
        s0, s1, s2, s3 = (writer.load(sums, place) for place in own)
        ly, lx, factor = (writer.load(array, k) for array in (points.ly, points.lx, points.factor))
        by_y = between(lx, builder.fsub(s2, s0), builder.fsub(s3, s1))
        by_x = between(ly, builder.fsub(s1, s0), builder.fsub(s3, s2))
        by_mask = between(ly, between(lx, s0, s1), between(lx, s2, s3))
        for value, place in zip(
            (writer.multiply(factor, by_y), writer.multiply(factor, by_x), by_mask), own[:3], strict=True
        ):
            writer.store(value, sums, place)


@written(REGISTER_BYTES)
def find_bounds(writer: Writer, values: Any, at: Any, bounds: Any, count: Any) -> None:
    """Lower bounds[0] and raise bounds[1] to the smallest and largest of so many values; NaN is neither."""
    builder, lanes = writer.builder, count.type(writer.lanes)

    def wider(found: list, value: Any) -> list:
        pairs = zip((">", "<"), found, strict=True)
        return [builder.select(builder.fcmp_ordered(sign, old, value), value, old) for sign, old in pairs]

    vectors, rest = builder.udiv(count, lanes), builder.urem(count, lanes)
    with builder.if_then(builder.icmp_signed(">", vectors, vectors.type(0))):
        before = [writer.broadcast(writer.element(bounds, count.type(i))) for i in range(2)]
        with Loop(builder, vectors, before) as loop:
            k = builder.add(at, builder.mul(loop.k, lanes))
            loop.values = wider(loop.values, writer.load(values, k))
        found = [writer.element(bounds, count.type(i)) for i in range(2)]
        for lane in range(writer.lanes):
            single = [builder.extract_element(value, ir.IntType(32)(lane)) for value in loop.values]
            found = [wider(found, value)[i] for i, value in enumerate(single)]
        for i, value in enumerate(found):
            builder.store(value, builder.gep(bounds, [count.type(i)]))
    with builder.if_then(builder.icmp_signed(">", rest, rest.type(0))):
        with Loop(builder, rest, [writer.element(bounds, count.type(i)) for i in range(2)]) as loop:
            k = builder.add(builder.add(at, builder.mul(vectors, lanes)), loop.k)
            loop.values = wider(loop.values, writer.element(values, k))
        for i, value in enumerate(loop.values):
            builder.store(value, builder.gep(bounds, [count.type(i)]))
