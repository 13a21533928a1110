"""The innermost loops of `displaced_conv2d` on the CPU: tiles of outputs, or of sums, in registers.

A unit reads an image at one fractional displacement, so that along a row of a tile it needs a run of pixels
and the run one pixel further. In planes of cells (see `plan`) both are whole vectors, at addresses
that are multiples of their size. In planes of whole rows the first begins anywhere, and many of its vectors
lie across two cache lines, which costs double; where registers are many, the second is shifted out of the
first; where they are few and a shift takes two instructions, it is loaded as well. Interpolated between
columns, a row is ``t = x + f * (next - x)``, and

    output row r  +=  above * t[r] + below * t[r + 1],   above = weight*(1 - f_y),  below = weight*f_y

where ``t[r + 1]`` serves the next row as well: three multiply-adds, a subtraction and little more than two
loads per output vector and unit. Multiply-adds bound that. With registers for half as many sums again, the
two rows of a pair share one (Winograd's filter of two taps for two outputs),

    shared += (above + below) * t[r + 1],   row r += above * (t[r] - t[r + 1]),
                                            row r + 1 += below * (t[r + 2] - t[r + 1])

which is a multiply-add less for a subtraction more, and that many processors do beside it.

The gradients of weight and displacement follow from four sums: of the output gradients times the upper left,
upper right, lower left and lower right of the four pixels that a unit reads.

Sums stay in registers over all units that a call is given, output gradients over all units of a tile. LLVM's
vectoriser does not arrive at that by itself, so these loops are written as vector instructions.
"""

from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine.vectors import MANY_REGISTERS, REGISTER_BYTES, Loop, Writer, written

UNIT_ROWS = 7  # of a tile
# Of a row of a tile: its outputs fit into registers with the operands.
UNIT_VECTORS = 2 if MANY_REGISTERS else 1
PAIRED_ROWS = UNIT_ROWS // 2 * 2 if MANY_REGISTERS else 0  # those that share sums in pairs
UNIT_SUMS = 4  # that the gradients of a unit are made of
UNIT_FACTORS = 3  # of a unit: f_x, above, below
UNIT_CHAIN = 4  # rows of products that are added up one after the other


class UnitPointer(NamedTuple):
    """The elements of an array from number `at` on."""

    array: np.ndarray
    at: int


def _pointer(writer: Writer, place: UnitPointer) -> Any:
    return writer.builder.gep(place.array, [place.at])


def _vector_at(writer: Writer, number: int) -> Any:
    """Where a vector of a run of them begins."""
    return ir.IntType(64)(number * writer.lanes)


def _row(writer: Writer, pointer: Any) -> list[tuple[Any, Any]]:
    """For each vector of a row of a tile, the pixels and the pixels next to them."""
    builder, lanes, in_cells = writer.builder, writer.lanes, writer.variant
    pixels = [writer.load(pointer, _vector_at(writer, j)) for j in range(UNIT_VECTORS + in_cells)]
    if in_cells:  # the next pixels of all cells are the next vector
        return list(pairwise(pixels))
    if not MANY_REGISTERS:
        number = ir.IntType(64)
        return [(x, writer.load(pointer, number(j * lanes + 1))) for j, x in enumerate(pixels)]
    ends = [*pixels[1:], writer.broadcast(writer.element(pointer, _vector_at(writer, UNIT_VECTORS)))]
    ahead = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(1, lanes + 1)))
    return [(x, builder.shuffle_vector(x, end, ahead)) for x, end in zip(pixels, ends, strict=True)]


def _write_add_units(
    writer: Writer, tile: Any, planes: Any, stride: Any, offsets: Any, factors: Any, count: Any
) -> None:
    """Add to the tile at a `UnitPointer` what `count` units read.

    Unit k has the factors ``factors[UNIT_FACTORS*k:]`` and begins at ``planes[offsets[k]]``, all three
    `UnitPointer`; rows of a plane lie `stride` apart.
    """
    builder = writer.builder
    tile, planes, offsets, factors = (_pointer(writer, each) for each in (tile, planes, offsets, factors))

    def between(row: Any, fraction: Any) -> list:
        """A row of the tile, interpolated between columns."""
        return [
            writer.multiply_add(x, fraction, builder.fsub(following, x)) for x, following in _row(writer, row)
        ]

    before = [writer.load(tile, _vector_at(writer, i)) for i in range(UNIT_ROWS * UNIT_VECTORS)]
    with Loop(builder, count, before + [writer.zero] * (PAIRED_ROWS // 2 * UNIT_VECTORS)) as loop:
        row = builder.gep(planes, [builder.sext(writer.element(offsets, loop.k), count.type)])
        own = builder.gep(factors, [builder.mul(loop.k, count.type(UNIT_FACTORS))])
        fraction, above, below = (
            writer.broadcast(writer.element(own, count.type(i))) for i in range(UNIT_FACTORS)
        )
        sums, upper, both = list(loop.values), between(row, fraction), builder.fadd(above, below)
        for i in range(UNIT_ROWS):
            row = builder.gep(row, [stride])
            lower = between(row, fraction)
            for j in range(UNIT_VECTORS):
                at, shared = i * UNIT_VECTORS + j, (UNIT_ROWS + i // 2) * UNIT_VECTORS + j
                if i >= PAIRED_ROWS:
                    sums[at] = writer.multiply_add(sums[at], above, upper[j])
                    sums[at] = writer.multiply_add(sums[at], below, lower[j])
                elif i % 2 == 0:
                    sums[at] = writer.multiply_add(sums[at], above, builder.fsub(upper[j], lower[j]))
                    sums[shared] = writer.multiply_add(sums[shared], both, lower[j])
                else:
                    sums[at] = writer.multiply_add(sums[at], below, builder.fsub(lower[j], upper[j]))
            upper = lower
        loop.values = sums
    for i, j in product(range(UNIT_ROWS), range(UNIT_VECTORS)):
        value, shared = loop.values[i * UNIT_VECTORS + j], (UNIT_ROWS + i // 2) * UNIT_VECTORS + j
        value = builder.fadd(value, loop.values[shared]) if i < PAIRED_ROWS else value
        writer.store(value, tile, _vector_at(writer, i * UNIT_VECTORS + j))


# Where lanes hold pixels side by side, and where they hold one pixel of as many cells.
add_units, add_units_in_cells = (
    written(REGISTER_BYTES, in_cells)(_write_add_units) for in_cells in (False, True)
)


def _write_correlate_units(
    writer: Writer, sums: Any, tile: Any, planes: Any, strides: Any, offsets: Any, count: Any
) -> None:
    """Add to `UNIT_SUMS` vectors for each of `count` units: the tile times what each of its pixels reads.

    Arguments as those of `add_units`; `strides` are those of the tile and of planes.
    """
    builder = writer.builder
    sums, tile, planes, offsets = (_pointer(writer, each) for each in (sums, tile, planes, offsets))
    apart, stride = (builder.extract_value(strides, k) for k in range(2))
    grad_output = [
        writer.load(tile, builder.add(builder.mul(apart, count.type(i)), _vector_at(writer, j)))
        for i, j in product(range(UNIT_ROWS), range(UNIT_VECTORS))
    ]
    with Loop(builder, count, []) as loop:
        row = builder.gep(planes, [builder.sext(writer.element(offsets, loop.k), count.type)])
        own = builder.gep(sums, [builder.mul(loop.k, _vector_at(writer, UNIT_SUMS))])
        for number, terms in enumerate(_partial_sums(writer, row, stride, grad_output)):
            while len(terms) > 1:  # pairwise
                pairs = zip(terms[::2], terms[1::2], strict=False)
                terms = [builder.fadd(*pair) for pair in pairs] + terms[len(terms) & ~1 :]
            at = _vector_at(writer, number)
            writer.store(builder.fadd(writer.load(own, at), terms[0]), own, at)


correlate_units, correlate_units_in_cells = (
    written(REGISTER_BYTES, in_cells)(_write_correlate_units) for in_cells in (False, True)
)


@written(REGISTER_BYTES)
def flush_units(writer: Writer, sums: Any, target: Any, at: Any, count: Any) -> None:
    """Move what the lanes of `UNIT_SUMS` vectors for each of `count` units have added up to target[at:].

    That is in float64.
    """
    builder, index = writer.builder, count.type
    wide = ir.VectorType(ir.DoubleType(), UNIT_SUMS)
    with Loop(builder, count, []) as loop:
        own = builder.gep(sums, [builder.mul(loop.k, _vector_at(writer, UNIT_SUMS))])
        places = [_vector_at(writer, number) for number in range(UNIT_SUMS)]
        found = writer.totals([writer.load(own, place) for place in places])
        for place in places:
            writer.store(writer.zero, own, place)
        if found.type != wide:
            found = builder.fpext(found, wide)
        to = builder.add(at, builder.mul(loop.k, index(UNIT_SUMS)))
        to = builder.bitcast(builder.gep(target, [to]), wide.as_pointer())
        builder.store(builder.fadd(builder.load(to, align=8), found), to, align=8)


def _partial_sums(writer: Writer, row: Any, stride: Any, grad_output: list) -> list[list]:
    """For each of `UNIT_SUMS`, sums of a few rows each, as short chains lose less to rounding."""
    parts: list[list[list]] = []
    for i in range(UNIT_ROWS + 1):
        pixels = _row(writer, row)
        row = writer.builder.gep(row, [stride])
        if i % UNIT_CHAIN == 0 and i < UNIT_ROWS:
            parts.append([[writer.zero] * UNIT_SUMS for _ in range(UNIT_VECTORS)])
        for j, lower, right in product(range(UNIT_VECTORS), range(2), range(2)):
            # Row i is the upper one that output i reads, and the lower one for output i - 1.
            if 0 <= i - lower < UNIT_ROWS:
                part = parts[(i - lower) // UNIT_CHAIN][j]
                factor, at = grad_output[(i - lower) * UNIT_VECTORS + j], 2 * lower + right
                part[at] = writer.multiply_add(part[at], factor, pixels[j][right])
    return [[sums[at] for part in parts for sums in part] for at in range(UNIT_SUMS)]
