"""Flat planes: images packed with their zero padding, so that a tap of a filter is one offset for a whole
run of pixels.

The primitives that kernels are made of: packing rows into planes and back.
"""

from typing import Any

import numpy as np
from numba import types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import jit


def whole_lines(elements: int) -> int:
    """At least as many elements, filling whole cache lines: so planes one after the other stay aligned."""
    return (elements + 15) // 16 * 16


def staggered(elements: int, itemsize: int) -> int:
    """At least as many elements; planes one after the other share few sets of a cache at one place."""
    lines = -(-elements * itemsize // 64)
    return (lines + (4 - lines) % 64) * 64 // itemsize


@jit
def aligned(size: int, like: np.ndarray) -> np.ndarray:
    """Scratch memory that starts on a cache line: vector loads that cross one cost double."""
    memory = np.empty(size + 64, like.dtype)
    return memory[(-memory.ctypes.data % 64) // memory.itemsize :][:size]


@intrinsic
def copy(typing: Any, target: Any, at: Any, source: Any, start: Any, count: Any) -> Any:
    """memcpy of `count` elements between contiguous arrays: for the short rows of small images."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
            for kind, array, offset in zip(signature.args[0:4:2], args[0:4:2], args[1:4:2], strict=True)
        ]
        itemsize = context.get_abi_sizeof(context.get_data_type(target.dtype))
        cgutils.raw_memcpy(builder, *pointers, args[4], itemsize)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate


@intrinsic
def clear(typing: Any, target: Any, at: Any, count: Any) -> Any:
    """memset of `count` elements of a contiguous array to zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        itemsize = context.get_abi_sizeof(context.get_data_type(target.dtype))
        size = builder.mul(args[2], context.get_constant(types.intp, itemsize))
        cgutils.memset(builder, builder.gep(data, [args[1]]), size, 0)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp), generate


@jit
def inside(count: int, first: int, extent: int, origin: int, step: int) -> tuple:
    """The range of those i < count for which ``(first + i)*step + origin`` lies in range(extent)."""
    start = first * step + origin
    low = min(count, max(0, -(start // step)))
    return low, max(low, min(count, (extent - 1 - start) // step + 1))


@jit
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


@jit
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


@jit
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
