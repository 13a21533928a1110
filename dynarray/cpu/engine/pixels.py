"""Moving pixels: images packed with their zero padding into flat planes, so that a tap of a filter is one
offset for a whole run of pixels; and transposes, eight rows and columns at a time.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import uint64
from numba.core import cgutils

from .compile import ONE, ZERO, borrowing_jit
from .gemm import Matrix
from .vectors import (
    LINE_BYTES,
    REGISTER_BYTES,
    GuardedLoop,
    Loop,
    Writer,
    each_vector,
    load_part,
    written,
)

_SIDE = 8  # of a block that is transposed in registers
# Of two vectors: pairs of neighbours and pairs of these pairs, each in both halves by itself, then halves.
_PAIRS = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
_FOURS = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
_HALVES = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]


def whole_lines(elements: int) -> int:
    """At least as many elements, filling whole cache lines: so planes one after the other stay aligned.

    A line holds 16 elements of float32; those of float64 fill two.
    """
    return (elements + 15) // 16 * 16


def staggered(elements: int, itemsize: int) -> int:
    """At least as many elements; planes one after the other share few sets of a cache at one place.

    What is read there, of sixteen planes, are four lines each: these lie in sets of their own.
    """
    lines = -(-elements * itemsize // LINE_BYTES)
    return (lines + (4 - lines) % 8) * LINE_BYTES // itemsize


@written(LINE_BYTES)
def copy(writer: Writer, target: Any, at: Any, source: Any, start: Any, count: Any) -> None:
    """memcpy of `count` elements between contiguous arrays: for the short rows of small images."""
    to, from_ = writer.builder.gep(target, [at]), writer.builder.gep(source, [start])
    cgutils.raw_memcpy(writer.builder, to, from_, count, writer.itemsize)


@written(REGISTER_BYTES)
def _copy_rows(
    writer: Writer, target: Any, at: Any, pitch: Any, source: Any, start: Any, line: Any, size: Any
) -> None:
    """target[at + i*pitch + j] = source[start + i*line + j] for i, j below `size`, of the elements in a row.

    Most rows are so short that a call of memcpy for each takes longer than its work.
    """
    builder, lanes = writer.builder, at.type(writer.lanes)
    number, count = (builder.extract_value(size, k) for k in range(2))
    vectors, long = builder.udiv(count, lanes), builder.icmp_signed(">=", count, lanes)
    with GuardedLoop(builder, number, []) as row:
        to = builder.gep(target, [builder.add(at, builder.mul(row.k, pitch))])
        from_ = builder.gep(source, [builder.add(start, builder.mul(row.k, line))])
        with builder.if_else(long) as (by_vectors, one_by_one):
            with by_vectors:
                with Loop(builder, vectors, []) as vector:
                    place = builder.mul(vector.k, lanes)
                    writer.store(writer.load(from_, place), to, place)
                last = builder.sub(count, lanes)  # may hold again what others did
                writer.store(writer.load(from_, last), to, last)
            with one_by_one, GuardedLoop(builder, count, []) as element:
                value = writer.element(from_, element.k)
                builder.store(value, builder.gep(to, [element.k]))


@written(LINE_BYTES)
def clear(writer: Writer, target: Any, at: Any, count: Any) -> None:
    """memset of `count` elements of a contiguous array to zero."""
    size = writer.builder.mul(count, count.type(writer.itemsize))
    cgutils.memset(writer.builder, writer.builder.gep(target, [at]), size, 0)


@written(LINE_BYTES)
def stream(writer: Writer, target: Any, at: Any, source: Any, start: Any, count: Any) -> None:
    """As `copy`; whole cache lines are written past the caches, without reading what was there."""
    builder, index = writer.builder, count.type
    to, from_ = builder.gep(target, [at]), builder.gep(source, [start])
    byte = builder.and_(builder.neg(builder.ptrtoint(to, index)), index(LINE_BYTES - 1))
    before = builder.udiv(byte, index(writer.itemsize))
    before = builder.select(builder.icmp_unsigned("<", before, count), before, count)
    lines = builder.udiv(builder.sub(count, before), index(writer.lanes))
    cgutils.raw_memcpy(builder, to, from_, before, writer.itemsize)
    with GuardedLoop(builder, lines, []) as line:
        place = builder.add(before, builder.mul(line.k, index(writer.lanes)))
        writer.stream(writer.load(from_, place), to, place)
    done = builder.add(before, builder.mul(lines, index(writer.lanes)))
    rest = builder.sub(count, done)
    cgutils.raw_memcpy(builder, builder.gep(to, [done]), builder.gep(from_, [done]), rest, writer.itemsize)


def _write_copy_every(writer: Writer, target: Any, at: Any, source: Any, start: Any, count: Any) -> None:
    """target[at + j] = source[start + j*step] for j < count, which reads nothing beyond the last of them.

    The variant is the step.
    """
    builder, index, lanes, step = writer.builder, count.type, writer.lanes, writer.variant
    to, from_ = builder.gep(target, [at]), builder.gep(source, [start])
    # The last one has no neighbours.
    read = builder.sub(builder.mul(count, index(step)), index(step - 1))
    turns = builder.sdiv(builder.sub(count, index(1)), index(lanes))

    def places(j: Any) -> list:
        first = builder.mul(j, index(step))
        return [builder.add(first, index(part * lanes)) for part in range(step)]

    def every(parts: list) -> Any:
        made = parts[0]
        for part in range(1, step):
            wanted = [lane * step - part * lanes for lane in range(lanes)]
            order = [lanes + k if 0 <= k < lanes else lane for lane, k in enumerate(wanted)]
            if part == 1:  # those of the first part are not in their places yet
                order = [min(lane * step, 2 * lanes - 1) for lane in range(lanes)]
            made = builder.shuffle_vector(made, parts[part], _lane_numbers(order))
        return made

    with GuardedLoop(builder, turns, []) as loop:
        j = builder.mul(loop.k, index(lanes))
        writer.store(every([writer.load(from_, place) for place in places(j)]), to, j)
    # Rows are short: what is left is a vector too.
    done = builder.mul(turns, index(lanes))
    parts = [writer.load_masked(from_, place, writer.within(place, read)) for place in places(done)]
    writer.store_masked(every(parts), to, done, writer.within(done, count))


def _write_spread_every(writer: Writer, target: Any, at: Any, source: Any, start: Any, count: Any) -> None:
    """The reverse: target[at + j*step] = source[start + j] for j < count; between them nothing is changed."""
    builder, index, lanes, step = writer.builder, count.type, writer.lanes, writer.variant
    to, from_ = builder.gep(target, [at]), builder.gep(source, [start])
    end, bit = builder.mul(count, index(step)), ir.IntType(1)

    def spread(j: Any, mask: Any) -> None:
        values, first = load_part(writer, from_, j, mask), builder.mul(j, index(step))
        for part in range(step):
            numbers = range(part * lanes, (part + 1) * lanes)
            order = _lane_numbers([number // step for number in numbers])
            hit = ir.Constant(ir.VectorType(bit, lanes), [bit(number % step == 0) for number in numbers])
            place = builder.add(first, index(part * lanes))
            if mask is not None:
                hit = builder.and_(hit, writer.within(place, end))
            writer.store_masked(builder.shuffle_vector(values, values, order), to, place, hit)

    each_vector(writer, count, spread)


def _lane_numbers(numbers: list[int]) -> Any:
    """What a shuffle takes."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


_copy_every_second, _copy_every_third, _copy_every_fourth = (
    written(REGISTER_BYTES, step)(_write_copy_every) for step in (2, 3, 4)
)
_spread_to_second, _spread_to_third, _spread_to_fourth = (
    written(REGISTER_BYTES, step)(_write_spread_every) for step in (2, 3, 4)
)


@borrowing_jit
def copy_apart(target: np.ndarray, at: int, source: np.ndarray, start: int, count: int, step: int) -> None:
    """target[at + j] = source[start + j*step] for j < count."""
    if count > 0:
        if step == 2:
            _copy_every_second(target, at, source, start, count)
        elif step == 3:
            _copy_every_third(target, at, source, start, count)
        elif step == 4:
            _copy_every_fourth(target, at, source, start, count)
        else:
            for j in range(count):
                _copy_rows(target, at + j, ZERO, source, start + j * step, ZERO, (ONE, ONE))


@borrowing_jit
def spread_apart(target: np.ndarray, at: int, source: np.ndarray, start: int, count: int, step: int) -> None:
    """The reverse: target[at + j*step] = source[start + j] for j < count."""
    if step == 2:
        _spread_to_second(target, at, source, start, count)
    elif step == 3:
        _spread_to_third(target, at, source, start, count)
    elif step == 4:
        _spread_to_fourth(target, at, source, start, count)
    else:
        for j in range(count):
            _copy_rows(target, at + j * step, ZERO, source, start + j, ZERO, (ONE, ONE))


@borrowing_jit
def inside(count: int, first: int, extent: int, origin: int, step: int) -> tuple:
    """The range of those i < count for which ``(first + i)*step + origin`` lies in range(extent)."""
    start = first * step + origin
    low = min(count, max(0, -(start // step)))
    return low, max(low, min(count, (extent - 1 - start) // step + 1))


class PackedRows(NamedTuple):
    """Rows of a plane, with pixel ``((first + i)*step_y + origin_y, j*step_x + origin_x)`` at (i, j)."""

    first: int
    number: int
    width: int  # from row to row
    origin: tuple[int, int]
    step: tuple[int, int]


@borrowing_jit
def covered(rows: PackedRows, image: np.ndarray) -> tuple:
    """Of packed rows those with pixels of the image, from and to, and their columns."""
    vertical = inside(rows.number, rows.first, image.shape[0], rows.origin[0], rows.step[0])
    return vertical, inside(rows.width, 0, image.shape[1], rows.origin[1], rows.step[1])


@borrowing_jit
def _in_image(image: np.ndarray, rows: PackedRows, i: int, j: int) -> tuple:
    """Where the pixel at (i, j) of packed rows lies among an image's elements, and that of the next row."""
    line = image.strides[0] // image.itemsize
    return ((rows.first + i) * rows.step[0] + rows.origin[0]) * line + j + rows.origin[1], rows.step[0] * line


@borrowing_jit
def pack_rows(target: np.ndarray, at: int, image: np.ndarray, rows: PackedRows) -> None:
    """The pixels of an image that packed rows hold, which begin there.

    The rest is left as it is: zeros, which a caller writes once for all images of one place and size.
    """
    pack_covered(target, at, image, rows, covered(rows, image))


@borrowing_jit
def pack_covered(target: np.ndarray, at: int, image: np.ndarray, rows: PackedRows, where: tuple) -> None:
    """The same, for callers that know `where` there are pixels: see `covered`."""
    ((top, bottom), (low, end)), step = where, rows.step
    start, line = _in_image(image, rows, top, low * step[1])
    to, size = at + top * rows.width + low, (bottom - top, end - low)
    if step[1] == 1:
        _copy_rows(target, to, rows.width, image, start, line, size)
    elif step[1] == 2:  # the usual one: rows are short beside a call
        for i in range(bottom - top if end > low else 0):
            _copy_every_second(target, to + i * rows.width, image, start + i * line, end - low)
    else:
        for i in range(bottom - top):
            copy_apart(target, to + i * rows.width, image, start + i * line, end - low, step[1])


@borrowing_jit
def unpack_rows(source: np.ndarray, at: int, image: np.ndarray, rows: PackedRows) -> None:
    """The reverse of `pack_rows`."""
    (top, bottom), (low, end) = covered(rows, image)
    to, line = _in_image(image, rows, top, low * rows.step[1])
    start, size = at + top * rows.width + low, (bottom - top, end - low)
    if rows.step[1] == 1:
        _copy_rows(image, to, line, source, start, rows.width, size)
    elif rows.step[1] == 2:
        for i in range(bottom - top):
            _spread_to_second(image, to + i * line, source, start + i * rows.width, end - low)
    else:
        for i in range(bottom - top):
            spread_apart(image, to + i * line, source, start + i * rows.width, end - low, rows.step[1])


@borrowing_jit
def unpack_phases(
    source: np.ndarray, plane: int, image: np.ndarray, first: int, rows: int, width: int, row: int, u: int
) -> None:
    """image[(first + i)*u + row, j*u + phase] = source[phase*plane + i*width + j] for all phases < u."""
    count = image.shape[1] // u
    for i in range(rows):
        base, line = uint64(i * width), image[(first + i) * u + row]
        if u == 1:
            copy(line, 0, source, i * width, count)
        elif u == 2:
            even, odd = base, base + uint64(plane)
            for j in range(uint64(count)):
                line[uint64(2) * j] = source[even + j]
                line[uint64(2) * j + uint64(1)] = source[odd + j]
        else:
            for phase in range(u):
                spread_apart(line, phase, source, phase * plane + i * width, count, u)


@borrowing_jit
def transpose(target: Matrix, source: Matrix, rows: int, columns: int) -> None:
    """target[j, i] = source[i, j] for i < rows and j < columns."""
    down, across = rows // _SIDE, columns // _SIDE
    # Along the lines of the matrix whose lines lie further apart: few of them are in use at a time.
    along = source.stride > target.stride
    for outer in range(down if along else across):
        for inner in range(across if along else down):
            i, j = (outer, inner) if along else (inner, outer)
            to = target.at + (j * target.stride + i) * _SIDE
            at = source.at + (i * source.stride + j) * _SIDE
            _transpose_block(target.values, to, target.stride, source.values, at, source.stride)
    for i in range(rows):
        at = source.at + i * source.stride
        for j in range(across * _SIDE if i < down * _SIDE else 0, columns):
            target.values[target.at + j * target.stride + i] = source.values[at + j]


@borrowing_jit
def interleave(
    target: np.ndarray, to: int, source: np.ndarray, at: int, starts: np.ndarray, columns: int
) -> None:
    """target[to + j*len(starts) + i] = source[at + starts[i] + j] for j < columns."""
    rows = len(starts)
    blocks = -(-columns // _SIDE) if rows % _SIDE == 0 and columns >= _SIDE else 0
    for i in range(0, rows if blocks else 0, _SIDE):
        for block in range(blocks):
            j = min(block * _SIDE, columns - _SIDE)  # the last one may do again what another has done
            _transpose_block(target, to + j * rows + i, rows, source, at + j, starts[i:])
    for i in range(0 if blocks else rows):
        for j in range(columns):
            target[to + j * rows + i] = source[at + starts[i] + j]


@written(LINE_BYTES)
def _transpose_block(
    writer: Writer, target: Any, to: Any, to_stride: Any, source: Any, at: Any, lines: Any
) -> None:
    """A block, of which line i begins at ``at + i*lines`` or, if that is an array, ``at + lines[i]``."""
    builder, vector = writer.builder, ir.VectorType(target.type.pointee, _SIDE)

    def pointers(matrix: Any, place: Any, lines: Any) -> list:
        """Pointers to the lines of a block."""
        begins = (writer.place(lines, place.type(i)) for i in range(_SIDE))
        places = (builder.gep(matrix, [builder.add(place, begin)]) for begin in begins)
        return [builder.bitcast(place, vector.as_pointer()) for place in places]

    def dealt(vectors: list, apart: int, masks: tuple) -> list:
        """Pairs of vectors that are `apart`, dealt out by both masks."""
        orders = [ir.Constant(ir.VectorType(ir.IntType(32), _SIDE), mask) for mask in masks]
        first = [i for i in range(_SIDE) if not i & apart]
        return [
            builder.shuffle_vector(vectors[i], vectors[i + apart], order) for i in first for order in orders
        ]

    vectors = [builder.load(line, align=writer.itemsize) for line in pointers(source, at, lines)]
    vectors = dealt(vectors, 1, _PAIRS)  # of rows 2i, 2i + 1: columns 0 and 1, then 2 and 3; and 4 further
    vectors = dealt(vectors, 2, _FOURS)
    vectors = dealt(vectors, 4, _HALVES)
    # Now vectors[2*c + half] is a column.
    for line, value in zip(pointers(target, to, to_stride), vectors[::2] + vectors[1::2], strict=True):
        builder.store(value, line, align=writer.itemsize)
