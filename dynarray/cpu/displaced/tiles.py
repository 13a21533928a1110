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

from functools import partial
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..engine.vectors import MANY_REGISTERS, REGISTER_BYTES, Loop, Writer

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


class _TileWriter(Writer):
    """Vectors of one register, and rows of them."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        super().__init__(context, builder, signature, args, REGISTER_BYTES)
        self._index = args[-1].type

    def pointer(self, place: UnitPointer) -> Any:
        return self.builder.gep(place.array, [place.at])

    def at(self, number: int) -> Any:
        """Where a vector of a run of them begins."""
        return self._index(number * self.lanes)

    def row(self, pointer: Any, in_cells: bool) -> list[tuple[Any, Any]]:
        """For each vector of a row of a tile, the pixels and the pixels next to them."""
        pixels = [self.load(pointer, self.at(j)) for j in range(UNIT_VECTORS + in_cells)]
        if in_cells:  # the next pixels of all cells are the next vector
            return list(pairwise(pixels))
        if not MANY_REGISTERS:
            return [(x, self.load(pointer, self._index(j * self.lanes + 1))) for j, x in enumerate(pixels)]
        ends = [*pixels[1:], self.broadcast(self.element(pointer, self.at(UNIT_VECTORS)))]
        ahead = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), list(range(1, self.lanes + 1)))
        return [(x, self.builder.shuffle_vector(x, end, ahead)) for x, end in zip(pixels, ends, strict=True)]

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.add(self.multiply(a, b), c)


def _add_units(in_cells: bool) -> Any:
    """Either kind of `add_units`."""

    @intrinsic
    def add_units(
        typing: Any, tile: Any, planes: Any, stride: Any, offsets: Any, factors: Any, count: Any
    ) -> Any:
        """Add to the tile at a `UnitPointer` what `count` units read.

        Unit k has the factors ``factors[UNIT_FACTORS*k:]`` and begins at ``planes[offsets[k]]``, all three
        `UnitPointer`; rows of a plane lie `stride` apart.
        """
        signature = types.void(tile, planes, types.intp, offsets, factors, types.intp)
        return signature, partial(_generate_add_units, in_cells)

    return add_units


# Where lanes hold pixels side by side, and where they hold one pixel of as many cells.
add_units, add_units_in_cells = _add_units(False), _add_units(True)


def _generate_add_units(in_cells: bool, context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = _TileWriter(context, builder, signature, args)
    tile, planes, stride, offsets, factors, count = writer.arguments
    tile, planes, offsets, factors = map(writer.pointer, (tile, planes, offsets, factors))

    def between(row: Any, fraction: Any) -> list:
        """A row of the tile, interpolated between columns."""
        return [
            writer.multiply_add(fraction, builder.fsub(following, x), x)
            for x, following in writer.row(row, in_cells)
        ]

    before = [writer.load(tile, writer.at(i)) for i in range(UNIT_ROWS * UNIT_VECTORS)]
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
                    sums[at] = writer.multiply_add(above, upper[j], sums[at])
                    sums[at] = writer.multiply_add(below, lower[j], sums[at])
                elif i % 2 == 0:
                    sums[at] = writer.multiply_add(above, builder.fsub(upper[j], lower[j]), sums[at])
                    sums[shared] = writer.multiply_add(both, lower[j], sums[shared])
                else:
                    sums[at] = writer.multiply_add(below, builder.fsub(lower[j], upper[j]), sums[at])
            upper = lower
        loop.values = sums
    for i, j in product(range(UNIT_ROWS), range(UNIT_VECTORS)):
        value, shared = loop.values[i * UNIT_VECTORS + j], (UNIT_ROWS + i // 2) * UNIT_VECTORS + j
        value = builder.fadd(value, loop.values[shared]) if i < PAIRED_ROWS else value
        writer.store(value, tile, writer.at(i * UNIT_VECTORS + j))
    return context.get_dummy_value()


@intrinsic
def correlate_units(
    typing: Any, sums: Any, tile: Any, planes: Any, stride: Any, offsets: Any, count: Any
) -> Any:
    """Add to `UNIT_SUMS` vectors for each of `count` units: the tile times what each of its pixels reads.

    Arguments as those of `add_units`.
    """
    signature = types.void(sums, tile, planes, types.intp, offsets, types.intp)
    return signature, _generate_correlate_units


def _generate_correlate_units(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = _TileWriter(context, builder, signature, args)
    sums, tile, planes, stride, offsets, count = writer.arguments
    sums, tile, planes, offsets = map(writer.pointer, (sums, tile, planes, offsets))
    grad_output = [writer.load(tile, writer.at(i)) for i in range(UNIT_ROWS * UNIT_VECTORS)]
    with Loop(builder, count, []) as loop:
        row = builder.gep(planes, [builder.sext(writer.element(offsets, loop.k), count.type)])
        own = builder.gep(sums, [builder.mul(loop.k, writer.at(UNIT_SUMS))])
        for at, terms in enumerate(_partial_sums(writer, row, stride, grad_output)):
            while len(terms) > 1:  # pairwise
                pairs = zip(terms[::2], terms[1::2], strict=False)
                terms = [builder.fadd(*pair) for pair in pairs] + terms[len(terms) & ~1 :]
            writer.store(builder.fadd(writer.load(own, writer.at(at)), terms[0]), own, writer.at(at))
    return context.get_dummy_value()


def _partial_sums(writer: _TileWriter, row: Any, stride: Any, grad_output: list) -> list[list]:
    """For each of `UNIT_SUMS`, sums of a few rows each, as short chains lose less to rounding."""
    parts: list[list[list]] = []
    for i in range(UNIT_ROWS + 1):
        pixels = writer.row(row, False)
        row = writer.builder.gep(row, [stride])
        if i % UNIT_CHAIN == 0 and i < UNIT_ROWS:
            parts.append([[writer.zero] * UNIT_SUMS for _ in range(UNIT_VECTORS)])
        for j, lower, right in product(range(UNIT_VECTORS), range(2), range(2)):
            # Row i is the upper one that output i reads, and the lower one for output i - 1.
            if 0 <= i - lower < UNIT_ROWS:
                part = parts[(i - lower) // UNIT_CHAIN][j]
                factor, at = grad_output[(i - lower) * UNIT_VECTORS + j], 2 * lower + right
                part[at] = writer.multiply_add(factor, pixels[j][right], part[at])
    return [[sums[at] for part in parts for sums in part] for at in range(UNIT_SUMS)]
