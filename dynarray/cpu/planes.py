"""Flat planes: images packed with their zero padding, so that a tap of a filter is one offset for a whole
run of pixels.

The primitives that kernels are made of: packing rows into planes and back, and sums of products along them.
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


@jit
def accumulate(
    acc: np.ndarray,
    at: int,
    run: tuple,
    a: np.ndarray,
    a_at: np.ndarray,
    b: np.ndarray,
    b_at: np.ndarray,
    scale: np.ndarray,
    add: Any,
) -> None:
    """acc[at + j] += sum over terms of (scale o a[a_at + j]) * b[b_at + j], for j from run[0] to run[1].

    `a_at`, `b_at` and `scale` have one element per term; o is + if `add` is given, else *. Four terms share a
    loop. Unsigned indices spare the compiler Python's meaning of negative ones, without which it does not
    vectorise.
    """
    t, count, fours = uint64(at + run[0]), uint64(run[1] - run[0]), len(a_at) // 4 * 4
    for k in range(0, fours, 4):
        a0, a1, a2, a3 = (
            _from(a_at[k], run),
            _from(a_at[k + 1], run),
            _from(a_at[k + 2], run),
            _from(a_at[k + 3], run),
        )
        b0, b1, b2, b3 = (
            _from(b_at[k], run),
            _from(b_at[k + 1], run),
            _from(b_at[k + 2], run),
            _from(b_at[k + 3], run),
        )
        s0, s1, s2, s3 = scale[k], scale[k + 1], scale[k + 2], scale[k + 3]
        if add is not None:
            for j in range(count):
                acc[t + j] += ((s0 + a[a0 + j]) * b[b0 + j] + (s1 + a[a1 + j]) * b[b1 + j]) + (
                    (s2 + a[a2 + j]) * b[b2 + j] + (s3 + a[a3 + j]) * b[b3 + j]
                )
        else:
            for j in range(count):
                acc[t + j] += (s0 * a[a0 + j] * b[b0 + j] + s1 * a[a1 + j] * b[b1 + j]) + (
                    s2 * a[a2 + j] * b[b2 + j] + s3 * a[a3 + j] * b[b3 + j]
                )
    for k in range(fours, len(a_at)):
        a0, b0, s0 = _from(a_at[k], run), _from(b_at[k], run), scale[k]
        if add is not None:
            for j in range(count):
                acc[t + j] += (s0 + a[a0 + j]) * b[b0 + j]
        else:
            for j in range(count):
                acc[t + j] += s0 * a[a0 + j] * b[b0 + j]


@jit
def _from(at: int, run: tuple) -> Any:
    return uint64(at + run[0])


@jit
def correlate(
    acc: np.ndarray,
    at: int,
    count: int,
    a: np.ndarray,
    a_at: tuple,
    b: np.ndarray,
    b_at: tuple,
    scale: np.ndarray,
    c: np.ndarray,
    totals: np.ndarray,
    add: Any,
) -> None:
    """With the products p_k[j] = a[a_at + j] * b[b_at + j] of four pairs, two sums over them in one pass.

    ``acc[at + j] += sum_k scale[k] * p_k[j]`` and ``totals[k] = sum_j p_k[j] * c[at + j]``, or without c if
    `add` is given. `a_at` and `b_at` are (first, distance between pairs).
    """
    t, zero, one = uint64(at), acc.dtype.type(0), acc.dtype.type(1)
    a0, a1, a2, a3 = _at(a_at, 0), _at(a_at, 1), _at(a_at, 2), _at(a_at, 3)
    b0, b1, b2, b3 = _at(b_at, 0), _at(b_at, 1), _at(b_at, 2), _at(b_at, 3)
    s0, s1, s2, s3 = scale[0], scale[1], scale[2], scale[3]
    t0, t1, t2, t3 = zero, zero, zero, zero
    for j in range(uint64(count)):
        p0, p1, p2, p3 = (
            a[a0 + j] * b[b0 + j],
            a[a1 + j] * b[b1 + j],
            a[a2 + j] * b[b2 + j],
            a[a3 + j] * b[b3 + j],
        )
        acc[t + j] += (s0 * p0 + s1 * p1) + (s2 * p2 + s3 * p3)
        factor = c[t + j] if add is None else one
        t0 += p0 * factor
        t1 += p1 * factor
        t2 += p2 * factor
        t3 += p3 * factor
    totals[0], totals[1], totals[2], totals[3] = t0, t1, t2, t3


@jit
def _at(start: tuple, k: int) -> Any:
    return uint64(start[0] + k * start[1])


@jit
def dot(
    run: tuple, a: np.ndarray, a_at: int, b: np.ndarray, b_at: int, c: np.ndarray, c_at: int, add: Any
) -> Any:
    """Sum of a[a_at + j] * b[b_at + j], times c[c_at + j] unless `add` is given, for j in the run."""
    total, count = a.dtype.type(0), uint64(run[1] - run[0])
    i, k, m = _from(a_at, run), _from(b_at, run), _from(c_at, run)
    if add is not None:
        for j in range(count):
            total += a[i + j] * b[k + j]
    else:
        for j in range(count):
            total += a[i + j] * b[k + j] * c[m + j]
    return total
