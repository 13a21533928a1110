"""Points in planes that are read where they are: vectors of positions, two neighbours of a row at once.

Where an image is read about once, as by an optical flow, to move it into another order takes longer than all
that is read there. So planes have no ring of zeros here: vectors of points whose corners are all pixels are
told from those that need asking.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from ..engine.compile import borrowing_jit, shared_jit
from ..engine.vectors import GuardedLoop, Loop, Writer, load_part, store_part, written
from .points import CONSTANT, PointImage, pixels_between
from .rows import GATHERED_BYTES

FLOW_TILE = 256  # positions whose points are there at a time: whole vectors of any kind
_OF_WEIGHTS, _OF_PLACES, _CORNERS = 6, 5, 4  # fields of points, and corners of each
FARTHEST_PIXEL = 2**24  # rows and columns as far as this are whole numbers of float32


class FlowPoints(NamedTuple):
    """The points of a tile: sizes, or the arrays, of one field after the other."""

    weights: Any  # of the four corners; distances from the first one by row and by column
    places: Any  # as `_FlowFields` names them


class FlowPlanes(NamedTuple):
    """Planes of images, or of their gradients, one after the other."""

    values: np.ndarray
    at: int  # where the first one begins
    height: int
    width: int
    number: int


class FlowRows(NamedTuple):
    """A run of positions in the planes of samples: one row for each channel."""

    values: np.ndarray
    at: int
    apart: int  # from row to row
    length: int


class FlowCoordinates(NamedTuple):
    """Where rows of points are, and how many."""

    values: np.ndarray
    y_at: int
    x_at: int
    number: int


class _FlowFields(NamedTuple):
    """Pointers to the fields of points."""

    weights: list[Any]
    ly: Any
    lx: Any
    at: Any  # bytes from the first pixel of a plane to that above and to the left
    right: Any  # bytes from there to the next in the row
    below: Any  # and in the column
    corners: Any  # bit by bit, which of them are pixels
    inside: Any  # of the first point of a vector: whether all are, each beside and below the first one


_AT, _RIGHT, _BELOW, _FOUND, _INSIDE = (number * FLOW_TILE for number in range(_OF_PLACES))


def flow_points_size() -> FlowPoints:
    """What the points of a tile need as scratch memory."""
    return FlowPoints(_OF_WEIGHTS * FLOW_TILE, (_OF_PLACES * FLOW_TILE, np.int64))


def _fields(writer: Writer, points: Any) -> _FlowFields:
    def parts(pointer: Any, number: int) -> list:
        return [writer.builder.gep(pointer, [ir.IntType(64)(k * FLOW_TILE)]) for k in range(number)]

    *weights, ly, lx = parts(points.weights, _OF_WEIGHTS)
    return _FlowFields(weights, ly, lx, *parts(points.places, _OF_PLACES))


def _numbers_at(writer: Writer, pointer: Any, index: Any) -> Any:
    """Where a vector of whole numbers lies."""
    kind = ir.VectorType(pointer.type.pointee, writer.lanes)
    return writer.builder.bitcast(writer.builder.gep(pointer, [index]), kind.as_pointer())


def _each_part(writer: Writer, count: Any, write: Callable[[Any, Any], None]) -> None:
    """``write(first, mask)`` for the vectors of a run, of which the last may be a part."""
    builder, lanes = writer.builder, count.type(writer.lanes)
    vectors = builder.udiv(builder.add(count, lanes.type(writer.lanes - 1)), lanes)
    with GuardedLoop(builder, vectors, []) as loop:
        k = builder.mul(loop.k, lanes)
        write(k, writer.within(k, count))


def _sides(writer: Writer, place: Any, pixel: Any, size: Any) -> tuple:
    """Of one coordinate whether it is near the image, and whether there is a pixel before and behind it."""
    builder, element = writer.builder, writer.zero.type.element
    last = writer.broadcast(builder.sitofp(builder.sub(size, size.type(1)), element))
    size = writer.broadcast(builder.sitofp(size, element))
    before = ir.Constant(writer.zero.type, [-1.0] * writer.lanes)
    near = builder.and_(builder.fcmp_ordered(">", place, before), builder.fcmp_ordered("<", place, size))
    first, second = builder.fcmp_ordered(">=", pixel, writer.zero), builder.fcmp_ordered("<", pixel, last)
    return near, builder.and_(near, first), builder.and_(near, second)


@written(GATHERED_BYTES)
def _set_up_vectors(writer: Writer, coordinates: Any, image: Any, points: Any) -> None:
    """The points at some coordinates, as if all outside the image were zeros.

    Behind them, to the end of a vector, there are others, which nobody asks for.
    """
    builder, fields, index = writer.builder, _fields(writer, points), coordinates.number.type
    one, nan = (ir.Constant(writer.zero.type, [number] * writer.lanes) for number in (1.0, float("nan")))
    short, long = (ir.VectorType(ir.IntType(bits), writer.lanes) for bits in (32, 64))
    width = builder.sext(writer.broadcast(builder.trunc(image.width, short.element)), long)
    size = index(writer.itemsize)
    steps = writer.broadcast(size), writer.broadcast(builder.mul(image.width, size))

    def write(k: Any, mask: Any) -> None:
        starts = coordinates.y_at, coordinates.x_at
        y, x = (load_part(writer, coordinates.values, builder.add(at, k), mask) for at in starts)
        row, column = (writer.floor(place) for place in (y, x))
        near_y, *vertical = _sides(writer, y, row, image.height)
        near_x, *across = _sides(writer, x, column, image.width)
        near = builder.and_(near_y, near_x)
        # What is far may be no number that an integer holds.
        row_, column_ = (
            builder.sext(builder.fptosi(builder.select(near, pixel, writer.zero), short), long)
            for pixel in (row, column)
        )
        at = builder.mul(builder.add(builder.mul(row_, width), column_), steps[0])
        corners, inside = ir.Constant(long, [0] * writer.lanes), near
        for number, pair in enumerate((a, b) for a in vertical for b in across):
            found = builder.and_(near, builder.and_(*pair))
            bit = builder.shl(builder.zext(found, long), writer.broadcast(index(number)))
            corners, inside = builder.or_(corners, bit), builder.and_(inside, found)
        places = (
            (at, fields.at),
            (steps[0], fields.right),
            (steps[1], fields.below),
            (corners, fields.corners),
        )
        for value, pointer in places:
            builder.store(value, _numbers_at(writer, pointer, k), align=8)
        bits = builder.bitcast(inside, ir.IntType(writer.lanes))
        every = builder.icmp_unsigned("==", bits, bits.type((1 << writer.lanes) - 1))
        builder.store(builder.zext(every, index), builder.gep(fields.inside, [k]))
        far = builder.select(builder.fcmp_unordered("uno", y, x), nan, writer.zero)
        ly, lx = (
            builder.select(near, builder.fsub(place, pixel), far) for place, pixel in ((y, row), (x, column))
        )
        high, left = builder.fsub(one, ly), builder.fsub(one, lx)
        weights = (builder.fmul(part, side) for part in (high, ly) for side in (left, lx))
        for value, pointer in zip((ly, lx, *weights), (fields.ly, fields.lx, *fields.weights), strict=True):
            writer.store(value, pointer, k)

    _each_part(writer, coordinates.number, write)


@shared_jit
def _copy_outside(coordinates: FlowCoordinates, image: PointImage, points: FlowPoints) -> None:
    """The same for points beside pixels that are copies of others."""
    weights, places, itemsize = points.weights, points.places, points.weights.itemsize
    one, lanes = weights.dtype.type(1), GATHERED_BYTES // itemsize
    for k in range(coordinates.number):
        if places[_INSIDE + k // lanes * lanes]:
            continue
        y, x = coordinates.values[coordinates.y_at + k], coordinates.values[coordinates.x_at + k]
        top, bottom, ly = pixels_between(0, y, image.height, image.border)
        left, right, lx = pixels_between(0, x, image.width, image.border)
        places[_FOUND + k] = (1 << _CORNERS) - 1
        if top < 0 or left < 0:
            top = bottom = left = right = places[_FOUND + k] = 0
            ly = lx = type(one)(np.nan)
        places[_AT + k] = (top * image.width + left) * itemsize
        places[_RIGHT + k] = (right - left) * itemsize
        places[_BELOW + k] = (bottom - top) * image.width * itemsize
        weights[k], weights[FLOW_TILE + k] = (one - ly) * (one - lx), (one - ly) * lx
        weights[2 * FLOW_TILE + k], weights[3 * FLOW_TILE + k] = ly * (one - lx), ly * lx
        weights[4 * FLOW_TILE + k], weights[5 * FLOW_TILE + k] = ly, lx


@borrowing_jit
def set_up_flow(coordinates: FlowCoordinates, image: PointImage, points: FlowPoints) -> None:
    """The points at some coordinates."""
    _set_up_vectors(coordinates, image, points)
    if image.border != CONSTANT:
        _copy_outside(coordinates, image, points)


def _gathered(writer: Writer, addresses: Any, kind: Any, mask: Any) -> Any:
    """A vector of one number of a kind from each address; zero where a mask says that there is none."""
    builder, lanes = writer.builder, writer.lanes
    pointers = builder.inttoptr(addresses, ir.VectorType(kind.as_pointer(), lanes))
    numbers, tests = ir.VectorType(kind, lanes), ir.VectorType(ir.IntType(1), lanes)
    function = ir.FunctionType(numbers, [pointers.type, ir.IntType(32), tests, numbers])
    name = f"llvm.masked.gather.v{lanes}{kind.intrinsic_name}.v{lanes}p0"
    gather = cgutils.get_or_insert_function(builder.module, function, name)
    mask = ir.Constant(tests, [1] * lanes) if mask is None else mask
    zeros = ir.Constant(numbers, [0.0] * lanes)
    return builder.call(gather, [pointers, ir.IntType(32)(writer.itemsize), mask, zeros])


class _Place(NamedTuple):
    """A vector of points: the first one, whether all of their corners are pixels, which there are or None."""

    k: Any
    inside: bool
    mask: Any


def _each_place(writer: Writer, fields: _FlowFields, count: Any, write: Callable[[_Place], None]) -> None:
    """``write(place)`` for all vectors of points."""
    builder, lanes = writer.builder, count.type(writer.lanes)
    whole = builder.mul(builder.udiv(count, lanes), lanes)
    with GuardedLoop(builder, builder.udiv(count, lanes), []) as loop:
        k = builder.mul(loop.k, lanes)
        inside = builder.icmp_unsigned("!=", writer.element(fields.inside, k), lanes.type(0))
        with builder.if_else(inside, likely=True) as (then, otherwise):
            with then:
                write(_Place(k, True, None))
            with otherwise:
                write(_Place(k, False, None))
    with builder.if_then(builder.icmp_unsigned("<", whole, count)):
        write(_Place(whole, False, writer.within(whole, count)))


def _corner_values(writer: Writer, fields: _FlowFields, place: _Place, planes: Any, start: Any) -> list:
    """Of a plane the pixels at the corners; zeros where there are none."""
    builder, index, element = writer.builder, ir.IntType(64), writer.zero.type.element

    def numbers(pointer: Any) -> Any:
        return builder.load(_numbers_at(writer, pointer, place.k), align=8)

    first, at = builder.ptrtoint(start, index), numbers(fields.at)
    above = builder.add(at, writer.broadcast(first))
    if place.inside:
        line = builder.mul(planes.width, index(writer.itemsize))
        below = builder.add(at, writer.broadcast(builder.add(first, line)))
        if writer.itemsize == 4:
            both = (_gathered(writer, row, ir.DoubleType(), None) for row in (above, below))
            return [half for row in both for half in _halves(writer, row)]
        right, tests = writer.broadcast(index(writer.itemsize)), [None] * _CORNERS
    else:
        below, right, corners = (
            builder.add(above, numbers(fields.below)),
            numbers(fields.right),
            numbers(fields.corners),
        )
        tests = [
            builder.trunc(
                builder.lshr(corners, writer.broadcast(index(number))),
                ir.VectorType(ir.IntType(1), writer.lanes),
            )
            for number in range(_CORNERS)
        ]
    addresses = above, builder.add(above, right), below, builder.add(below, right)
    return [_gathered(writer, *pair[:1], element, pair[1]) for pair in zip(addresses, tests, strict=True)]


def _halves(writer: Writer, pairs: Any) -> list:
    """Of pairs of numbers the first and the second ones."""
    pairs = writer.builder.bitcast(pairs, ir.VectorType(writer.zero.type.element, 2 * writer.lanes))
    nothing, lane = ir.Constant(pairs.type, ir.Undefined), ir.VectorType(ir.IntType(32), writer.lanes)
    orders = (ir.Constant(lane, [2 * k + side for k in range(writer.lanes)]) for side in range(2))
    return [writer.builder.shuffle_vector(pairs, nothing, order) for order in orders]


@written(GATHERED_BYTES)
def sample_flow(writer: Writer, planes: Any, points: Any, rows: Any) -> None:
    """Rows of samples of as many planes."""
    builder, fields = writer.builder, _fields(writer, points)
    size = builder.mul(planes.height, planes.width)
    with GuardedLoop(builder, planes.number, []) as plane:
        start = builder.gep(planes.values, [builder.add(planes.at, builder.mul(plane.k, size))])
        target = builder.gep(rows.values, [builder.add(rows.at, builder.mul(plane.k, rows.apart))])

        def write(place: _Place) -> None:
            corners = _corner_values(writer, fields, place, planes, start)
            weights = [writer.load(weight, place.k) for weight in fields.weights]
            total = writer.multiply(weights[0], corners[0])
            for pair in zip(weights[1:], corners[1:], strict=True):
                total = writer.multiply_add(total, *pair)
            store_part(writer, total, target, place.k, place.mask)

        _each_place(writer, fields, rows.length, write)


@written(GATHERED_BYTES)
def pull_flow(writer: Writer, planes: Any, points: Any, rows: Any, sums: Any, add: Any) -> None:
    """Sums over as many planes of gradient * pixel, of each corner and point; `add`: to what there is."""
    builder, fields, index = writer.builder, _fields(writer, points), rows.at.type
    size = builder.mul(planes.height, planes.width)
    targets = [builder.gep(sums, [index(number * FLOW_TILE)]) for number in range(_CORNERS)]

    def write(place: _Place) -> None:
        before = [builder.select(add, writer.load(target, place.k), writer.zero) for target in targets]
        with Loop(builder, planes.number, before) as plane:
            start = builder.gep(planes.values, [builder.add(planes.at, builder.mul(plane.k, size))])
            source = builder.gep(rows.values, [builder.add(rows.at, builder.mul(plane.k, rows.apart))])
            grad = load_part(writer, source, place.k, place.mask)
            corners = _corner_values(writer, fields, place, planes, start)
            pairs = zip(plane.values, corners, strict=True)
            plane.values = [writer.multiply_add(total, grad, corner) for total, corner in pairs]
        for target, total in zip(targets, plane.values, strict=True):
            writer.store(total, target, place.k)

    _each_place(writer, fields, rows.length, write)


@written(GATHERED_BYTES)
def differentiate_flow(writer: Writer, sums: Any, points: Any, grads: Any) -> None:
    """The derivatives by coordinates, from the sums over channels of gradient * pixel."""
    builder, fields = writer.builder, _fields(writer, points)
    one, index = ir.Constant(writer.zero.type, [1.0] * writer.lanes), grads.number.type
    corners = [builder.gep(sums, [index(number * FLOW_TILE)]) for number in range(_CORNERS)]

    def between(part: Any, low: Any, high: Any) -> Any:
        return writer.multiply_add(writer.multiply(builder.fsub(one, part), low), part, high)

    def write(k: Any, mask: Any) -> None:
        s0, s1, s2, s3, ly, lx = (writer.load(each, k) for each in (*corners, fields.ly, fields.lx))
        by_y = between(lx, builder.fsub(s2, s0), builder.fsub(s3, s1))
        by_x = between(ly, builder.fsub(s1, s0), builder.fsub(s3, s2))
        for value, at in ((by_y, grads.y_at), (by_x, grads.x_at)):
            store_part(writer, value, grads.values, builder.add(at, k), mask)

    _each_part(writer, grads.number, write)


def _write_flow_spread(writer: Writer, planes: Any, points: Any, rows: Any) -> None:
    """`spread_flow` for so many planes."""
    builder, fields, index = writer.builder, _fields(writer, points), rows.at.type
    size, itemsize = builder.mul(planes.height, planes.width), index(writer.itemsize)
    starts, sources = (
        [
            builder.gep(pointer, [builder.add(first, builder.mul(step, index(c)))])
            for c in range(writer.variant)
        ]
        for pointer, first, step in ((planes.values, planes.at, size), (rows.values, rows.at, rows.apart))
    )

    def add(values: list, weight: Any, to: Any) -> None:
        """Loads come before stores, since the same places of all planes may look alike to the processor."""
        pixels = [builder.gep(start, [to]) for start in starts]
        before = [builder.load(pixel) for pixel in pixels]
        products = [builder.fmul(value, weight, flags=("contract",)) for value in values]
        for pixel, old, product in zip(pixels, before, products, strict=True):
            builder.store(builder.fadd(old, product, flags=("contract",)), pixel)

    def spread(k: Any, inside: bool) -> None:
        values = [writer.element(source, k) for source in sources]
        at = builder.sdiv(writer.element(fields.at, k), itemsize)
        right, below = index(1), planes.width
        if not inside:
            right, below = (
                builder.sdiv(writer.element(each, k), itemsize) for each in (fields.right, fields.below)
            )
        under = builder.add(at, below)
        places = at, builder.add(at, right), under, builder.add(under, right)
        for number, (place, weights) in enumerate(zip(places, fields.weights, strict=True)):
            weight = writer.element(weights, k)
            if inside:
                add(values, weight, place)
                continue
            bit = builder.and_(writer.element(fields.corners, k), index(1 << number))
            with builder.if_then(builder.icmp_unsigned("!=", bit, index(0))):
                add(values, weight, place)

    lanes = index(writer.lanes)
    vectors = builder.udiv(builder.add(rows.length, index(writer.lanes - 1)), lanes)
    with GuardedLoop(builder, vectors, []) as loop:
        first = builder.mul(loop.k, lanes)
        rest, there = builder.sub(rows.length, first), writer.element(fields.inside, first)
        whole = builder.icmp_unsigned(">=", rest, lanes)
        inside = builder.and_(whole, builder.icmp_unsigned("!=", there, index(0)))
        with builder.if_else(inside, likely=True) as (then, otherwise):
            with then, Loop(builder, lanes, []) as lane:
                spread(builder.add(first, lane.k), inside=True)
            with otherwise, Loop(builder, builder.select(whole, lanes, rest), []) as lane:
                spread(builder.add(first, lane.k), inside=False)


SPREAD_PLANES = 2
_spread_two, _spread_one = (written(GATHERED_BYTES, n)(_write_flow_spread) for n in (SPREAD_PLANES, 1))


@borrowing_jit
def spread_flow(planes: FlowPlanes, points: FlowPoints, rows: FlowRows) -> None:
    """Add gradients, from rows of as many planes, to the corners of one point after the other."""
    size, c = planes.height * planes.width, 0
    while c < planes.number:
        number = SPREAD_PLANES if planes.number - c >= SPREAD_PLANES else 1
        some = FlowPlanes(planes.values, planes.at + c * size, planes.height, planes.width, number)
        own = FlowRows(rows.values, rows.at + c * rows.apart, rows.apart, rows.length)
        if number == 1:
            _spread_one(some, points, own)
        else:
            _spread_two(some, points, own)
        c += number
