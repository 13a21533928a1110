"""Matrix products inside kernels: one thread, no BLAS, and a right matrix that need not exist.

NumPy's BLAS runs its AVX2 kernels on processors that it does not know, has threads of its own, and takes
matrices only. Here a kernel multiplies where it is: the right matrix is any memory in which row k begins at
``steps[k]``, so that the shifted planes of a convolution, or points just sampled, are multiplied in place.

The product is made of tiles of `ROWS` rows and `TILE_BYTES` of columns, whose sums stay in registers over the
whole depth. Per step of depth a tile loads two vectors of the right matrix, broadcasts `ROWS` elements of the
left one and does ``2*ROWS`` multiply-adds: arithmetic bounds it as long as a panel of the left matrix and the
rows of the right one come from the first two levels of cache. LLVM's vectoriser does not keep a tile in
registers, so the innermost loop is written as vector instructions.
"""

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from .compile import jit

_FEATURES = binding.get_host_cpu_features()
_VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
_VECTORS = 2
_MANY_REGISTERS = _VECTOR_BYTES == 64 or platform.machine() in ("aarch64", "arm64")

# Rows and columns of a tile: as many sums as fit into the registers with the operands.
ROWS = 8 if _MANY_REGISTERS else 6
TILE_BYTES = _VECTORS * _VECTOR_BYTES


def pack_left(matrix: np.ndarray) -> np.ndarray:
    """The left matrix (rows, depth) as `multiply` reads it: (panels, depth, ROWS), zeros in rows beyond."""
    panels = np.zeros((-(-matrix.shape[0] // ROWS), matrix.shape[1], ROWS), matrix.dtype)
    for row in range(ROWS):
        part = matrix[row::ROWS]
        panels[: len(part), :, row] = part
    return panels


@jit
def multiply(
    out: np.ndarray,
    at: int,
    stride: int,
    rows: int,
    columns: int,
    left: np.ndarray,
    left_at: int,
    panel: int,
    right: np.ndarray,
    right_at: int,
    steps: np.ndarray,
    first: int,
    count: int,
    scratch: np.ndarray,
    add: bool,
) -> None:
    """out[at + i*stride + j] = sum over k of left[i, k] * right[right_at + steps[first + k] + j].

    Parameters
    ----------
    out, left, right : array, 1-d, contiguous
        The matrices: `left` as `pack_left` makes it, flattened.
    at, stride, rows, columns : int
        Where the result begins, the distance of its rows, and its size.
    left_at, panel : int
        Where the first panel begins, at the first step of depth to be taken, and the distance of panels.
    right_at, steps : int, array of int
        Where the right matrix and each of its rows begin. Reads up to the end of a tile, ``TILE_BYTES`` or
        less behind the last column: that memory must be there, its contents do not matter.
    first, count : int
        Which of the `steps` to take; `count` is at least 1.
    scratch : array
        At least one tile, for those that reach over the edge.
    add : bool
        Add to what `out` holds, for a sum that is made in parts.
    """
    width = TILE_BYTES // out.itemsize
    for i in range(0, rows, ROWS):
        source = left_at + i // ROWS * panel
        for j in range(0, columns, width):
            place = at + i * stride + j
            if i + ROWS <= rows and j + width <= columns:
                _tile(out, place, stride, left, source, right, right_at + j, steps, first, count, add)
            else:
                _tile(scratch, 0, width, left, source, right, right_at + j, steps, first, count, False)
                _copy_part(
                    out, place, stride, min(ROWS, rows - i), min(width, columns - j), scratch, width, add
                )


@jit
def _copy_part(
    out: np.ndarray, at: int, stride: int, rows: int, columns: int, tile: np.ndarray, width: int, add: bool
) -> None:
    for i in range(rows):
        for j in range(columns):
            before = out[at + i * stride + j] if add else out.dtype.type(0)
            out[at + i * stride + j] = before + tile[i * width + j]


@intrinsic
def _tile(
    typing: Any,
    out: Any,
    at: Any,
    stride: Any,
    left: Any,
    left_at: Any,
    right: Any,
    right_at: Any,
    steps: Any,
    first: Any,
    count: Any,
    add: Any,
) -> Any:
    """One tile of `multiply`, its sums in registers."""
    index = types.intp
    signature = types.void(out, index, index, left, index, right, index, steps, index, index, types.boolean)
    return signature, _generate_tile


def _generate_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    element = context.get_data_type(signature.args[0].dtype)
    size = context.get_abi_sizeof(element)
    vector = ir.VectorType(element, _VECTOR_BYTES // size)
    out, left, right, steps = (
        builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
        for i in (0, 3, 5, 7)
    )
    stride, count, add = args[2], args[9], args[10]
    index = count.type
    before = builder.block
    loop, after = builder.append_basic_block("depth"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(index)
    sums = [builder.phi(vector) for _ in range(ROWS * _VECTORS)]
    row = builder.gep(right, [builder.load(builder.gep(steps, [k]))])
    values = [_load(builder, row, i * vector.count, vector, size) for i in range(_VECTORS)]
    panel = builder.gep(left, [builder.mul(k, index(ROWS))])
    following: list[Any] = []
    for i in range(ROWS):
        factor = _broadcast(builder, builder.load(builder.gep(panel, [index(i)])), vector)
        for j in range(_VECTORS):
            product = builder.fmul(factor, values[j], flags=("contract",))
            following.append(builder.fadd(sums[i * _VECTORS + j], product, flags=("contract",)))
    k_next = builder.add(k, index(1))
    k.add_incoming(index(0), before)
    k.add_incoming(k_next, loop)
    for now, then in zip(sums, following, strict=True):
        now.add_incoming(ir.Constant(vector, [0.0] * vector.count), before)
        now.add_incoming(then, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, count), loop, after)
    builder.position_at_end(after)
    with builder.if_else(builder.trunc(add, ir.IntType(1))) as branches:
        for branch, adding in zip(branches, (True, False), strict=True):
            with branch:
                for place, value in enumerate(following):
                    i, j = divmod(place, _VECTORS)
                    target = builder.gep(out, [builder.mul(stride, index(i))])
                    if adding:
                        value = builder.fadd(value, _load(builder, target, j * vector.count, vector, size))
                    builder.store(value, _vector_at(builder, target, j * vector.count, vector), align=size)
    return context.get_dummy_value()


def _vector_at(builder: Any, pointer: Any, offset: int, vector: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [ir.IntType(64)(offset)]), vector.as_pointer())


def _load(builder: Any, pointer: Any, offset: int, vector: Any, size: int) -> Any:
    return builder.load(_vector_at(builder, pointer, offset, vector), align=size)


def _broadcast(builder: Any, value: Any, vector: Any) -> Any:
    lane = ir.IntType(32)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane(0))
    zeros = ir.Constant(ir.VectorType(lane, vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)
