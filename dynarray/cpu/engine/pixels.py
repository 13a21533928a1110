"""Moving pixels: images packed with their zero padding into flat planes, so that a tap of a filter is one
offset for a whole run of pixels; and transposes, eight rows and columns at a time.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import borrowing_jit
from .vectors import LINE_BYTES, Writer

_SIDE = 8  # of a block that is transposed in registers
_CACHE_SETS = 64  # of the first cache
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
    """At least as many elements; planes one after the other share few sets of a cache at one place."""
    lines = -(-elements * itemsize // LINE_BYTES)
    return (lines + (4 - lines) % _CACHE_SETS) * LINE_BYTES // itemsize


@intrinsic
def copy(typing: Any, target: Any, at: Any, source: Any, start: Any, count: Any) -> Any:
    """memcpy of `count` elements between contiguous arrays: for the short rows of small images."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        writer = Writer(context, builder, signature, args, LINE_BYTES)
        target, at, source, start, count = writer.arguments
        to, from_ = builder.gep(target, [at]), builder.gep(source, [start])
        cgutils.raw_memcpy(builder, to, from_, count, writer.itemsize)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate


@intrinsic
def clear(typing: Any, target: Any, at: Any, count: Any) -> Any:
    """memset of `count` elements of a contiguous array to zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        writer = Writer(context, builder, signature, args, LINE_BYTES)
        target, at, count = writer.arguments
        size = builder.mul(count, count.type(writer.itemsize))
        cgutils.memset(builder, builder.gep(target, [at]), size, 0)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp), generate


@borrowing_jit
def inside(count: int, first: int, extent: int, origin: int, step: int) -> tuple:
    """The range of those i < count for which ``(first + i)*step + origin`` lies in range(extent)."""
    start = first * step + origin
    low = min(count, max(0, -(start // step)))
    return low, max(low, min(count, (extent - 1 - start) // step + 1))


@borrowing_jit
def pack_rows(
    target: np.ndarray,
    at: int,
    image: np.ndarray,
    first: int,
    rows: int,
    width: int,
    origin: tuple,
    step: tuple,
) -> None:
    """target[at + i*width + j] = image[(first + i)*step_y + origin_y, j*step_x + origin_x] inside the image.

    The rest is left as it is: zeros, which a caller writes once for all images of one place and size.
    """
    top, bottom = inside(rows, first, image.shape[0], origin[0], step[0])
    low, end = inside(width, 0, image.shape[1], origin[1], step[1])
    for i in range(top, bottom):
        base, line = at + i * width, image[(first + i) * step[0] + origin[0]]
        if step[1] == 1:
            copy(target, base + low, line, low + origin[1], end - low)
        elif step[1] == 2:  # a constant that the compiler can vectorise for
            start, skip = uint64(base + low), uint64(2 * low + origin[1])
            for j in range(uint64(end - low)):
                target[start + j] = line[uint64(2) * j + skip]
        else:
            for j in range(low, end):
                target[base + j] = line[j * step[1] + origin[1]]


@borrowing_jit
def unpack_rows(
    source: np.ndarray,
    at: int,
    image: np.ndarray,
    first: int,
    rows: int,
    width: int,
    origin: tuple,
    step: tuple,
) -> None:
    """The reverse: the pixels of `image` that the packed rows hold."""
    top, bottom = inside(rows, first, image.shape[0], origin[0], step[0])
    low, end = inside(width, 0, image.shape[1], origin[1], step[1])
    for i in range(top, bottom):
        base, line = at + i * width, image[(first + i) * step[0] + origin[0]]
        if step[1] == 1:
            copy(line, low + origin[1], source, base + low, end - low)
        else:
            for j in range(low, end):
                line[j * step[1] + origin[1]] = source[base + j]


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
                for j in range(count):
                    line[j * u + phase] = source[phase * plane + i * width + j]


@borrowing_jit
def transpose(
    target: np.ndarray,
    to: int,
    to_stride: int,
    source: np.ndarray,
    at: int,
    stride: int,
    rows: int,
    columns: int,
) -> None:
    """target[to + j*to_stride + i] = source[at + i*stride + j] for i < rows and j < columns."""
    down, across = rows // _SIDE, columns // _SIDE
    # Along the lines of the matrix whose lines lie further apart: few of them are in use at a time.
    along = stride > to_stride
    for outer in range(down if along else across):
        for inner in range(across if along else down):
            i, j = (outer, inner) if along else (inner, outer)
            block, place = to + (j * to_stride + i) * _SIDE, at + (i * stride + j) * _SIDE
            _transpose_block(target, block, to_stride, source, place, stride)
    for i in range(rows):
        for j in range(across * _SIDE if i < down * _SIDE else 0, columns):
            target[to + j * to_stride + i] = source[at + i * stride + j]


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


@intrinsic
def _transpose_block(
    typing: Any, target: Any, to: Any, to_stride: Any, source: Any, at: Any, lines: Any
) -> Any:
    """A block, of which line i begins at ``at + i*lines`` or, if that is an array, ``at + lines[i]``."""
    index = types.intp
    lines = lines if isinstance(lines, types.Array) else index
    return types.void(target, index, index, source, index, lines), _write_transpose


def _write_transpose(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = Writer(context, builder, signature, args, LINE_BYTES)
    target, to, to_stride, source, at, lines = writer.arguments
    vector = ir.VectorType(target.type.pointee, _SIDE)

    def pointers(matrix: Any, place: Any, lines: Any) -> list:
        """Pointers to the lines of a block."""
        numbers = [place.type(i) for i in range(_SIDE)]
        apart = not isinstance(lines.type, ir.PointerType)
        begins = [builder.mul(lines, i) if apart else writer.element(lines, i) for i in numbers]
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
    return context.get_dummy_value()
