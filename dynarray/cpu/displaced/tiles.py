"""The innermost loops of `displaced_conv2d` on the CPU: tiles of outputs, or of sums, in registers.

A unit reads an image at one fractional displacement, so that along a row of a tile it needs a run of pixels
and the run one pixel further. In planes of cells (see `displaced_plan`) both are whole vectors, at addresses
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
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..engine.vectors import MANY_REGISTERS, REGISTER_BYTES, Loop, Writer

ROWS = 7  # of a tile
VECTORS = 2 if MANY_REGISTERS else 1  # of a row of a tile: outputs fit into registers with the operands
PAIRED = ROWS // 2 * 2 if MANY_REGISTERS else 0  # of these, rows that share sums in pairs
SUMS = 4  # that the gradients of a unit are made of
FACTORS = 3  # of a unit: f_x, above, below
CHAIN = 4  # rows of products that are added up one after the other


class _Tiles(Writer):
    """Vectors of one register, and rows of them."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        super().__init__(context, builder, signature, args, REGISTER_BYTES)
        self._index = args[-1].type

    def at(self, number: int) -> Any:
        """Where a vector of a run of them begins."""
        return self._index(number * self.lanes)

    def row(self, pointer: Any, of_cells: bool) -> list[tuple[Any, Any]]:
        """For each vector of a row of a tile, the pixels and the pixels next to them."""
        pixels = [self.load(pointer, self.at(j)) for j in range(VECTORS + of_cells)]
        if of_cells:  # the next pixels of all cells are the next vector
            return list(pairwise(pixels))
        if not MANY_REGISTERS:
            return [(x, self.load(pointer, self._index(j * self.lanes + 1))) for j, x in enumerate(pixels)]
        ends = [*pixels[1:], self.broadcast(self.element(pointer, self.at(VECTORS)))]
        ahead = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), list(range(1, self.lanes + 1)))
        return [(x, self.builder.shuffle_vector(x, end, ahead)) for x, end in zip(pixels, ends, strict=True)]

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.add(self.multiply(a, b), c)


def _add_units(of_cells: bool) -> Any:
    """Either kind of `add_units`."""

    @intrinsic
    def add_units(
        typing: Any,
        tile: Any,
        tile_at: Any,
        planes: Any,
        planes_at: Any,
        stride: Any,
        offsets: Any,
        offsets_at: Any,
        factors: Any,
        factors_at: Any,
        count: Any,
    ) -> Any:
        """Add to a tile what `count` units read.

        Unit k begins at planes[planes_at + offsets[offsets_at + k]]; rows of a plane lie `stride` apart.
        """
        index = types.intp
        signature = types.void(tile, index, planes, index, index, offsets, index, factors, index, index)
        return signature, partial(_generate_add_units, of_cells)

    return add_units


# Where lanes hold pixels side by side, and where they hold one pixel of as many cells.
add_units, add_units_of_cells = _add_units(False), _add_units(True)


def _generate_add_units(of_cells: bool, context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = _Tiles(context, builder, signature, args)
    tile, planes, offsets, factors = (builder.gep(writer.data[i], [args[i + 1]]) for i in (0, 2, 5, 7))
    stride, count = args[4], args[9]

    def between(row: Any, fraction: Any) -> list:
        """A row of the tile, interpolated between columns."""
        return [
            writer.multiply_add(fraction, builder.fsub(following, x), x)
            for x, following in writer.row(row, of_cells)
        ]

    of_rows = [writer.load(tile, writer.at(i)) for i in range(ROWS * VECTORS)]
    with Loop(builder, count, of_rows + [writer.zero] * (PAIRED // 2 * VECTORS)) as loop:
        row = builder.gep(planes, [builder.sext(writer.element(offsets, loop.k), count.type)])
        own = builder.gep(factors, [builder.mul(loop.k, count.type(FACTORS))])
        fraction, above, below = (
            writer.broadcast(writer.element(own, count.type(i))) for i in range(FACTORS)
        )
        sums, upper, both = list(loop.values), between(row, fraction), builder.fadd(above, below)
        for i in range(ROWS):
            row = builder.gep(row, [stride])
            lower = between(row, fraction)
            for j in range(VECTORS):
                at, shared = i * VECTORS + j, (ROWS + i // 2) * VECTORS + j
                if i >= PAIRED:
                    sums[at] = writer.multiply_add(above, upper[j], sums[at])
                    sums[at] = writer.multiply_add(below, lower[j], sums[at])
                elif i % 2 == 0:
                    sums[at] = writer.multiply_add(above, builder.fsub(upper[j], lower[j]), sums[at])
                    sums[shared] = writer.multiply_add(both, lower[j], sums[shared])
                else:
                    sums[at] = writer.multiply_add(below, builder.fsub(lower[j], upper[j]), sums[at])
            upper = lower
        loop.values = sums
    for i, j in product(range(ROWS), range(VECTORS)):
        value, shared = loop.values[i * VECTORS + j], (ROWS + i // 2) * VECTORS + j
        value = builder.fadd(value, loop.values[shared]) if i < PAIRED else value
        writer.store(value, tile, writer.at(i * VECTORS + j))
    return context.get_dummy_value()


@intrinsic
def correlate_units(
    typing: Any,
    sums: Any,
    sums_at: Any,
    tile: Any,
    tile_at: Any,
    planes: Any,
    planes_at: Any,
    stride: Any,
    offsets: Any,
    offsets_at: Any,
    count: Any,
) -> Any:
    """Add to `SUMS` vectors for each of `count` units: the tile times what each of its pixels reads."""
    index = types.intp
    signature = types.void(sums, index, tile, index, planes, index, index, offsets, index, index)
    return signature, _generate_correlate_units


def _generate_correlate_units(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    writer = _Tiles(context, builder, signature, args)
    sums, tile, planes, offsets = (builder.gep(writer.data[i], [args[i + 1]]) for i in (0, 2, 4, 7))
    stride, count = args[6], args[9]
    gradient = [writer.load(tile, writer.at(i)) for i in range(ROWS * VECTORS)]
    with Loop(builder, count, []) as loop:
        row = builder.gep(planes, [builder.sext(writer.element(offsets, loop.k), count.type)])
        own = builder.gep(sums, [builder.mul(loop.k, writer.at(SUMS))])
        for at, parts in enumerate(_correlate(writer, row, stride, gradient)):
            terms = parts
            while len(terms) > 1:  # pairwise
                pairs = zip(terms[::2], terms[1::2], strict=False)
                terms = [builder.fadd(*pair) for pair in pairs] + terms[len(terms) & ~1 :]
            writer.store(builder.fadd(writer.load(own, writer.at(at)), terms[0]), own, writer.at(at))
    return context.get_dummy_value()


def _correlate(writer: _Tiles, row: Any, stride: Any, gradient: list) -> list[list]:
    """For each of `SUMS`, its parts: sums of a few rows each, as short chains lose less to rounding."""
    parts: list[list[list]] = []
    for i in range(ROWS + 1):
        read = writer.row(row, False)
        row = writer.builder.gep(row, [stride])
        if i % CHAIN == 0 and i < ROWS:
            parts.append([[writer.zero] * SUMS for _ in range(VECTORS)])
        for j, lower, right in product(range(VECTORS), range(2), range(2)):
            if 0 <= i - lower < ROWS:  # row i is the upper one that output i reads, the lower one for i - 1
                part = parts[(i - lower) // CHAIN][j]
                factor, at = gradient[(i - lower) * VECTORS + j], 2 * lower + right
                part[at] = writer.multiply_add(factor, read[j][right], part[at])
    return [[totals[at] for part in parts for totals in part] for at in range(SUMS)]
