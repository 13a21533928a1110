"""Rows of a matrix, dealt out as `gemm` reads its left operand."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import gemm
from .compile import jit

_LANES = 64  # bytes of each row that one step takes
_SHUFFLED = gemm.ROWS == 8  # pairs of pairs of pairs


@jit
def interleave(target: np.ndarray, source: np.ndarray, stride: int, rows: int, columns: int) -> None:
    """target[panel, j, i] = source[(panel*ROWS + i)*stride + j], with the panels of `gemm.pack_left`.

    `source` has whole steps of 64 bytes in memory, and rows up to a whole panel.
    """
    step = _LANES // source.itemsize
    for panel in range((rows + gemm.ROWS - 1) // gemm.ROWS):
        to, at = panel * columns * gemm.ROWS, panel * gemm.ROWS * stride
        whole = columns // step * step if _SHUFFLED else 0
        for j in range(0, whole, step):
            _deal(target, to + j * gemm.ROWS, source, at + j, stride)
        for j in range(whole, columns):
            for i in range(gemm.ROWS):
                target[to + j * gemm.ROWS + i] = source[at + i * stride + j]


@intrinsic
def _deal(typing: Any, target: Any, to: Any, source: Any, at: Any, stride: Any) -> Any:
    """One step of 8 rows: neighbours are dealt out last, so that each shuffle has two operands."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = context.get_data_type(signature.args[0].dtype)
        size = context.get_abi_sizeof(element)
        lanes = _LANES // size
        out, base = (
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
            for i in (0, 2)
        )
        vectors = []
        for i in range(8):
            row = builder.gep(base, [builder.mul(args[4], args[4].type(i))])
            pointer = builder.bitcast(row, ir.VectorType(element, lanes).as_pointer())
            vectors.append(builder.load(pointer, align=size))
        while len(vectors) > 1:
            half, width = len(vectors) // 2, vectors[0].type.count
            mask = [lane + side * width for lane in range(width) for side in range(2)]
            order = ir.Constant(ir.VectorType(ir.IntType(32), 2 * width), mask)
            pairs = zip(vectors[:half], vectors[half:], strict=True)
            vectors = [builder.shuffle_vector(a, b, order) for a, b in pairs]
        pointer = builder.bitcast(out, vectors[0].type.as_pointer())
        builder.store(vectors[0], pointer, align=size)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate
