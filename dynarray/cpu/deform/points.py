"""Points between pixels: where they lie, the image there, and its adjoint, for many channels side by side.

A point costs some dozen cycles, less than a call that hands over arrays: what is done for one point is
written as instructions in the loop over points.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import uint64
from numba.extending import register_jitable

from ..._geometry import FARTHEST_OFFSET
from ..engine.compile import borrowing_jit, shared_jit
from ..engine.gemm import TILE_ROW_BYTES, whole
from ..engine.pixels import clear, copy
from ..engine.vectors import (
    LINE_BYTES,
    REGISTER_BYTES,
    GuardedLoop,
    Loop,
    Writer,
    each_vector,
    load_part,
    prefetch,
    store_part,
    written,
)


class PointGrid(NamedTuple):
    """The regular grid that points are displaced from."""

    width: int  # of the output
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


CONSTANT, REFLECT, SYMMETRIC, EDGE, WRAP = range(5)


class PointImage(NamedTuple):
    """Sizes of an image, and of the same packed: with a ring of zeros, and one more row of them below.

    A line has no rows of zeros, but one more zero at its end: the two corners of a point that are below it
    are not read.
    """

    height: int
    width: int
    pitch: int  # pixels of a packed row
    pixels: int  # packed
    border: int  # what is outside: one of these
    line: int  # 1 for a line, else 0
    outside: int  # a packed pixel whose corners are zeros


@register_jitable(error_model="numpy")
def packed_rows(image: PointImage) -> int:
    """Rows of a packed image."""
    return image.pixels // image.pitch


class DeformSizes(NamedTuple):
    """Sizes of a call, and where its regular grid lies."""

    channels: int
    outputs: int  # channels of the output
    group_channels: int
    group_outputs: int
    offset_groups: int
    taps: int
    coordinates: int  # of offsets: y and x, or x alone
    positions: int
    image: PointImage
    grid: PointGrid


class PointSource(NamedTuple):
    """Channels of a packed image, side by side, pixel after pixel."""

    values: np.ndarray
    at: int  # where they begin
    channels: int
    points: int  # of all taps
    line: int  # as of the image


class PointArrays(NamedTuple):
    """What displaces and weighs points, or its gradients; an array that there is not has no elements."""

    offset: np.ndarray
    mask: np.ndarray


class Points(NamedTuple):
    """The points of one tile and offset group: tap after tap, position after position.

    A row of them has room for whole vectors of positions, of which what lies beyond the tile is not used.
    Arrays are few, as all that takes points is compiled for each of them: one holds several fields.
    """

    at: Any  # top left corner, in pixels of a packed image; from there to the next in the row; in the column
    values: Any  # distances from there by row and column; mask, or 1; weights of the four corners
    places: Any  # of the tile's positions: the row of its first tap, then the column
    rows: Any  # offsets, by row and by column, and the mask, of the positions of a tap


_PLACES, _VALUES = 3, 7  # fields of points


def point_sizes(room: int, taps: int) -> Points:
    """What the points of so many positions, which fill whole vectors, need as scratch memory."""
    count = room * taps
    return Points((_PLACES * count, np.int64), _VALUES * count, (2 * room, np.float64), rows=3 * room)


class PointFields(NamedTuple):
    """Pointers to the fields of points."""

    at: Any
    right: Any
    below: Any
    ly: Any
    lx: Any
    factor: Any
    weights: list[Any]


def point_fields(writer: Writer, points: Any, number: Any) -> PointFields:
    """Where the fields of so many points begin."""
    pairs = [(points.at, i) for i in range(_PLACES)] + [(points.values, i) for i in range(_VALUES)]
    fields = [writer.builder.gep(array, [writer.builder.mul(number, number.type(i))]) for array, i in pairs]
    at, right, below, ly, lx, factor, *weights = fields
    return PointFields(at, right, below, ly, lx, factor, weights)


@borrowing_jit
def _period(size: int, border: int) -> int:
    """After how many pixels outside all is as it was; for an edge any number will do."""
    return 2 * size if border == SYMMETRIC else max(1, 2 * size - 2) if border == REFLECT else size


@borrowing_jit
def _copied(at: int, size: int, border: int) -> int:
    """The pixel of an axis that one outside is a copy of."""
    if border == EDGE:
        return min(max(at, 0), size - 1)
    period = _period(size, border)
    at %= period
    return at if border == WRAP else min(at, (period if border == REFLECT else period - 1) - at)


@shared_jit
def pixels_between(base: int, offset: float, size: int, border: int) -> tuple:
    """The pixels on either side of a coordinate, each a copy if outside, and how far it is from the first.

    Both are -1 for NaN and, but for an edge, for infinity. From some place on all of an edge is alike;
    elsewhere all is again after a period, and a remainder is exact.
    """
    if np.isnan(offset) or (np.isinf(offset) and border != EDGE):
        return -1, -1, offset
    steps, rest = np.float64(np.floor(offset)), offset - np.floor(offset)
    if not abs(offset) < FARTHEST_OFFSET:
        far = np.copysign(FARTHEST_OFFSET, steps)
        steps = far if border == EDGE else np.fmod(steps, np.float64(_period(size, border)))
        if np.isinf(offset):
            rest = type(offset)(0)
    at = base + int(steps)
    if 0 <= at < size - 1:
        return at, at + 1, rest
    return _copied(at, size, border), _copied(at + 1, size, border), rest


class _Row(NamedTuple):
    """Points of one tap: where they begin, the positions of a row of points, and those that there are."""

    first: int
    room: int
    number: int
    points: int  # of all taps
    down: float  # of the tap, from its place at the first one
    across: float


@borrowing_jit
def point_number(points: Points) -> int:
    """Points that there is room for."""
    return len(points.at) // _PLACES


@borrowing_jit
def point_room(points: Points) -> int:
    """Positions in a row of points."""
    return len(points.places) // 2


def _broadcast(writer: Writer, value: Any) -> Any:
    """A vector of equal numbers, of whatever type."""
    numbers = ir.Constant(ir.VectorType(value.type, writer.lanes), ir.Undefined)
    for lane in range(writer.lanes):
        numbers = writer.builder.insert_element(numbers, value, ir.IntType(32)(lane))
    return numbers


def _field_at(writer: Writer, pointer: Any, index: Any) -> Any:
    """Where a vector of numbers of the type behind a pointer lies."""
    kind = ir.VectorType(pointer.type.pointee, writer.lanes)
    return writer.builder.bitcast(writer.builder.gep(pointer, [index]), kind.as_pointer())


@written(REGISTER_BYTES)
def _set_up_row(writer: Writer, rows: Any, points: Any, row: Any, image: Any) -> None:
    """The points of a row, as if all outside the image were zeros.

    Far from the origin the sum of place and offset would round the rest away. So it is the offset that is
    compared, with its bounds at a place, whole numbers that double precision holds.
    """
    fields = point_fields(writer, points, row.points)
    builder, double, lanes = writer.builder, ir.DoubleType(), row.number.type(writer.lanes)
    wide, whole = (ir.VectorType(kind, writer.lanes) for kind in (double, row.number.type))
    height, width, pitch, outside = (builder.sitofp(size, double) for size in (*image[:3], image.outside))
    above = _broadcast(writer, builder.sitofp(builder.mul(image.line, image.pitch), double))
    one, nan = (ir.Constant(writer.zero.type, [value] * writer.lanes) for value in (1.0, float("nan")))
    last, steps, pitches = (_broadcast(writer, each) for each in (outside, image.pitch, pitch))

    def widened(value: Any) -> Any:
        return value if value.type == wide else builder.fpext(value, wide)

    def between(k: Any, number: int, step: Any, size: Any) -> tuple:
        """Of one coordinate whether it is near, its pixel in the ring, the offset and the rest of it."""
        at = builder.add(k, builder.mul(row.room, k.type(number)))
        offset, place = writer.load(rows, at), builder.load(_field_at(writer, points.places, at), align=8)
        place = builder.fadd(place, _broadcast(writer, step))
        before = builder.fsub(_broadcast(writer, double(-1.0)), place)
        after, pixels = builder.fsub(_broadcast(writer, size), place), writer.floor(offset)
        near = builder.and_(
            builder.fcmp_ordered(">", widened(offset), before),
            builder.fcmp_ordered("<", widened(offset), after),
        )
        return near, builder.fsub(widened(pixels), before), offset, builder.fsub(offset, pixels)

    with Loop(
        builder, builder.udiv(builder.add(row.number, lanes.type(writer.lanes - 1)), lanes), []
    ) as loop:
        k = builder.mul(loop.k, lanes)
        to = builder.add(row.first, k)
        near_y, y, dy, ly = between(k, 0, row.down, height)
        near_x, x, dx, lx = between(k, 1, row.across, width)
        near, lost = builder.and_(near_y, near_x), builder.fcmp_unordered("uno", dy, dx)
        # What is far may be no number that an integer holds.
        inside = builder.fadd(builder.fsub(builder.fmul(y, pitches), above), x)
        at = builder.select(near, inside, last)
        builder.store(builder.fptosi(at, whole), _field_at(writer, fields.at, to), align=8)
        builder.store(_broadcast(writer, to.type(1)), _field_at(writer, fields.right, to), align=8)
        builder.store(steps, _field_at(writer, fields.below, to), align=8)
        far = builder.select(lost, nan, writer.zero)
        ly, lx = (builder.select(near, rest, far) for rest in (ly, lx))
        factor = writer.load(rows, builder.add(k, builder.mul(row.room, k.type(2))))
        low, high = builder.fmul(ly, factor), builder.fmul(builder.fsub(one, ly), factor)
        weights = (builder.fmul(part, side) for part in (high, low) for side in (builder.fsub(one, lx), lx))
        values, targets = (ly, lx, factor, *weights), (fields.ly, fields.lx, fields.factor, *fields.weights)
        for value, target in zip(values, targets, strict=True):
            writer.store(value, target, to)


@shared_jit
def _place_copies(points: Points, row: _Row, count: int, image: PointImage) -> None:
    """The same of `count` where pixels outside are copies of others, from what rows and places hold."""
    one, room, number, values = points.values.dtype.type(1), row.room, row.points, points.values
    for i in range(count):
        k, y, x = row.first + i, int(points.places[i] + row.down), int(points.places[room + i] + row.across)
        top, bottom, ly = pixels_between(y, points.rows[i], image.height, image.border)
        left, right, lx = pixels_between(x, points.rows[room + i], image.width, image.border)
        at, right, below = (top + 1) * image.pitch + left + 1, right - left, (bottom - top) * image.pitch
        if top < 0 or left < 0:
            at, right, below = image.outside, 1, image.pitch
            ly = lx = type(one)(np.nan)
        points.at[k], points.at[number + k], points.at[2 * number + k] = at, right, below
        factor, values[k], values[number + k] = values[2 * number + k], ly, lx
        low, high = ly * factor, (one - ly) * factor
        values[3 * number + k], values[4 * number + k] = high * (one - lx), high * lx
        values[5 * number + k], values[6 * number + k] = low * (one - lx), low * lx


@borrowing_jit
def _set_up_positions(points: Points, count: int) -> int:
    """The positions of a row of points that are set up where `count` are asked for: those of whole strips.

    Vectors are read to their end, and what memory held before may be numbers so small that processors take a
    hundred times as long with them.
    """
    return min(point_room(points), whole(count, TILE_ROW_BYTES // points.rows.itemsize))


@borrowing_jit
def place_points(points: Points, grid: PointGrid, start: int, count: int) -> None:
    """The places on the regular grid of `count` positions from `start` on, and to the end of their strip."""
    i, x, done = start // grid.width, start % grid.width, 0
    room, filled = point_room(points), _set_up_positions(points, count)
    while done < filled:
        run, y = min(filled - done, grid.width - x), i * grid.stride[0] - grid.padding[0]
        for k in range(uint64(done), uint64(done + run)):
            points.places[k] = y
        for k in range(uint64(run)):
            points.places[uint64(room + done) + k] = (x + np.int64(k)) * grid.stride[1] - grid.padding[1]
        i, x, done = i + 1, 0, done + run


@borrowing_jit
def offset_by_x(sizes: DeformSizes, plane: int) -> int:
    """Where the offsets by x of a plane of points begin; behind those by y, if there are such."""
    return (sizes.coordinates * (plane + 1) - 1) * sizes.positions


@borrowing_jit
def set_up_tap(
    points: Points, arrays: PointArrays, sizes: DeformSizes, of: tuple, to: int, start: int, count: int
) -> None:
    """The points of an image, offset group and tap, at `count` positions whose places are there."""
    (image, group, tap), grid = of, sizes.grid
    room, filled = point_room(points), _set_up_positions(points, count)
    plane, line = (image * sizes.offset_groups + group) * sizes.taps + tap, LINE_BYTES // points.rows.itemsize
    x_at, factor_at = offset_by_x(sizes, plane) + start, plane * sizes.positions + start
    y_at = x_at - sizes.positions if sizes.coordinates == 2 else x_at
    if sizes.coordinates == 2:
        copy(points.rows, 0, arrays.offset, y_at, count)
    else:
        clear(points.rows, 0, count)
    copy(points.rows, room, arrays.offset, x_at, count)
    for field in range(3 if filled > count else 0):
        clear(points.rows, field * room + count, filled - count)
    # Planes of offsets are many, and a tile reads too little of each for the processor to foresee what comes.
    for k in range(count, 2 * count, line):
        prefetch(arrays.offset, y_at + k)
        prefetch(arrays.offset, x_at + k)
    if arrays.mask.size:
        copy(points.rows, 2 * room, arrays.mask, factor_at, count)
        for k in range(count, 2 * count, line):
            prefetch(arrays.mask, factor_at + k)
    else:
        for k in range(uint64(2 * room), uint64(2 * room + count)):
            points.rows[k] = 1
    down, across = tap // grid.kernel_w * grid.dilation[0], tap % grid.kernel_w * grid.dilation[1]
    row = _Row(to, room, filled, point_number(points), np.float64(down), np.float64(across))
    _set_up_row(points.rows, points, row, sizes.image)
    if sizes.image.border != CONSTANT:
        _place_copies(points, row, count, sizes.image)


@borrowing_jit
def set_up_points(
    points: Points, arrays: PointArrays, sizes: DeformSizes, image: int, group: int, start: int, count: int
) -> None:
    """The points of `count` positions from `start` on: whole pixels from the grid, and the rest of an offset.

    All four corners of a point that is not near the image lie in the zeros below it, where those outside are
    not copies. Its distances are 0, or NaN where a coordinate is.
    """
    place_points(points, sizes.grid, start, count)
    for tap in range(sizes.taps):
        set_up_tap(points, arrays, sizes, (image, group, tap), tap * point_room(points), start, count)


def _corner_pixels(writer: Writer) -> list:
    """Pointers to the first channel of the corners of point k."""
    builder, (image, points, k) = writer.builder, writer.arguments[:3]
    fields = point_fields(writer, points, image.points)
    pixel, right, below = (writer.element(array, k) for array in fields[:3])
    below = builder.add(pixel, below)
    pixels = pixel, builder.add(pixel, right), below, builder.add(below, right)
    start = builder.gep(image.values, [image.at])
    return [builder.gep(start, [builder.mul(pixel, image.channels)]) for pixel in pixels]


def _corner_weights(writer: Writer) -> list:
    """The weights of the corners of point k."""
    image, points, k = writer.arguments[:3]
    weights = point_fields(writer, points, image.points).weights
    return [writer.broadcast(writer.element(weight, k)) for weight in weights]


def _by_corners(writer: Writer, line: Any) -> Iterator[int]:
    """How many corners of a point are pixels, two of a line, else four: what follows is written for both."""
    with writer.builder.if_else(writer.builder.icmp_signed("!=", line, line.type(0))) as branches:
        for branch, corners in zip(branches, (2, 4), strict=True):
            with branch:
                writer.resize(REGISTER_BYTES)
                yield corners


@written(REGISTER_BYTES)
def sample_point(writer: Writer, image: Any, points: Any, k: Any, out: Any, at: Any) -> None:
    """out[at + c] = the image at point k, for all channels of a `PointSource`."""
    target, pixels = writer.builder.gep(out, [at]), _corner_pixels(writer)
    for corners in _by_corners(writer, image.line):
        weights = _corner_weights(writer)
        # Below a line are zeros; weights that are not finite make NaN of them.
        below = [writer.multiply(weight, writer.zero) for weight in weights[corners:]]

        def write(c: Any, mask: Any, weights: list = weights[:corners], below: list = below) -> None:
            values = [load_part(writer, pixel, c, mask) for pixel in pixels[: len(weights)]]
            products = [writer.multiply(*pair) for pair in zip(weights, values, strict=True)]
            store_part(writer, reduce(writer.add, [*below, *products]), target, c, mask)

        each_vector(writer, image.channels, write)


@written(REGISTER_BYTES)
def spread_point(writer: Writer, image: Any, points: Any, k: Any, grad: Any, at: Any) -> None:
    """The adjoint of `sample_point`: add the gradient, from `at` on, to the corners of point k.

    Whole vectors of channels, then single ones: the next point often adds to the same pixels, and what a mask
    has just stored takes long to load.
    """
    builder, channels, pixels = writer.builder, image.channels, _corner_pixels(writer)
    source, lanes = builder.gep(grad, [at]), channels.type(writer.lanes)
    vectors, rest = builder.udiv(channels, lanes), builder.urem(channels, lanes)
    for corners in _by_corners(writer, image.line):
        for size, first, count in (
            (REGISTER_BYTES, lanes.type(0), vectors),
            (writer.itemsize, builder.mul(vectors, lanes), rest),
        ):
            writer.resize(size)
            weights = _corner_weights(writer)
            with GuardedLoop(builder, count, []) as loop:
                c = builder.add(first, builder.mul(loop.k, lanes.type(writer.lanes)))
                value = writer.load(source, c)
                for weight, pixel in zip(weights[:corners], pixels[:corners], strict=True):
                    writer.store(writer.multiply_add(writer.load(pixel, c), weight, value), pixel, c)


@written(REGISTER_BYTES)
def sum_corners(
    writer: Writer, image: Any, points: Any, k: Any, grad: Any, at: Any, out: Any, to: Any
) -> None:
    """For each corner of point k, the sum over channels of gradient * corner, to four places from `to` on."""
    builder, channels, pixels = writer.builder, image.channels, _corner_pixels(writer)
    source, lanes = builder.gep(grad, [at]), channels.type(writer.lanes)
    vectors, rest = builder.udiv(channels, lanes), builder.urem(channels, lanes)
    whole, there = builder.mul(vectors, lanes), builder.icmp_signed(">", rest, rest.type(0))
    for corners in _by_corners(writer, image.line):

        def added(c: Any, totals: list, mask: Any = None, corners: int = corners) -> list:
            value = load_part(writer, source, c, mask)
            values = [load_part(writer, pixel, c, mask) for pixel in pixels[:corners]]
            values += [writer.zero] * (len(totals) - corners)
            return [writer.multiply_add(*pair, value) for pair in zip(totals, values, strict=True)]

        # Both corners below a line have one sum.
        with GuardedLoop(builder, vectors, min(4, corners + 1) * [writer.zero]) as loop:
            loop.values = added(builder.mul(loop.k, lanes), loop.values)
        with GuardedLoop(builder, builder.zext(there, rest.type), loop.values) as tail:
            tail.values = added(whole, tail.values, writer.within(whole, channels))
        for i in range(4):
            total = writer.total(tail.values[min(i, corners)])
            builder.store(total, builder.gep(out, [builder.add(to, to.type(i))]))
