"""Transposes of matrices in memory, eight rows and columns at a time."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import jit

_SIDE = 8  # of a block
# Of two vectors: pairs of neighbours and pairs of these pairs, each in both halves by itself, then halves.
_PAIRS = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
_FOURS = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
_HALVES = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]


@jit
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
            _block(
                target, to + (j * to_stride + i) * _SIDE, to_stride,
                source, at + (i * stride + j) * _SIDE, stride,
            )  # fmt: skip
    for i in range(rows):
        for j in range(across * _SIDE if i < down * _SIDE else 0, columns):
            target[to + j * to_stride + i] = source[at + i * stride + j]


@jit
def interleave(
    target: np.ndarray, to: int, source: np.ndarray, at: int, starts: np.ndarray, columns: int
) -> None:
    """target[to + j*len(starts) + i] = source[at + starts[i] + j] for j < columns."""
    rows = len(starts)
    blocks = -(-columns // _SIDE) if rows % _SIDE == 0 and columns >= _SIDE else 0
    for i in range(0, rows if blocks else 0, _SIDE):
        for block in range(blocks):
            j = min(block * _SIDE, columns - _SIDE)  # the last one may do again what another has done
            _block(target, to + j * rows + i, rows, source, at + j, starts[i:])
    for i in range(0 if blocks else rows):
        for j in range(columns):
            target[to + j * rows + i] = source[at + starts[i] + j]


@intrinsic
def _block(typing: Any, target: Any, to: Any, to_stride: Any, source: Any, at: Any, lines: Any) -> Any:
    """A block, of which line i begins at ``at + i*lines`` or, if that is an array, ``at + lines[i]``."""
    index = types.intp
    lines = lines if isinstance(lines, types.Array) else index
    return types.void(target, index, index, source, index, lines), _generate


def _generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    element = context.get_data_type(signature.args[0].dtype)
    align, vector = context.get_abi_sizeof(element), ir.VectorType(element, _SIDE)

    def memory(array: int) -> Any:
        return context.make_array(signature.args[array])(context, builder, args[array]).data

    def lines(array: int) -> list:
        """Pointers to the lines of a block."""
        data = memory(array)
        offset, apart = args[array + 1], args[array + 2]
        number = [offset.type(i) for i in range(_SIDE)]
        if isinstance(signature.args[array + 2], types.Array):
            begins = [builder.load(builder.gep(memory(array + 2), [i])) for i in number]
        else:
            begins = [builder.mul(apart, i) for i in number]
        places = (builder.gep(data, [builder.add(offset, begin)]) for begin in begins)
        return [builder.bitcast(place, vector.as_pointer()) for place in places]

    def dealt(vectors: list, apart: int, masks: tuple) -> list:
        """Pairs of vectors that are `apart`, dealt out by both masks."""
        orders = [ir.Constant(ir.VectorType(ir.IntType(32), _SIDE), mask) for mask in masks]
        first = [i for i in range(_SIDE) if not i & apart]
        return [
            builder.shuffle_vector(vectors[i], vectors[i + apart], order) for i in first for order in orders
        ]

    vectors = [builder.load(line, align=align) for line in lines(3)]
    vectors = dealt(vectors, 1, _PAIRS)  # of rows 2i, 2i + 1: columns 0 and 1, then 2 and 3; and 4 further
    vectors = dealt(vectors, 2, _FOURS)
    vectors = dealt(vectors, 4, _HALVES)
    # Now vectors[2*c + half] is a column.
    for line, value in zip(lines(0), vectors[::2] + vectors[1::2], strict=True):
        builder.store(value, line, align=align)
    return context.get_dummy_value()
