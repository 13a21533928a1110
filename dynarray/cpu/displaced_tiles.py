"""The innermost loops of `displaced_conv2d` on the CPU: tiles of outputs, or of sums, in registers.

A unit reads an image at one fractional displacement, so that along a row of a tile it needs a run of pixels
and the run one pixel further. The first begins at any address, and most of its vectors therefore lie across
two cache lines, which costs double; the second is shifted out of the first. Interpolated between columns, a
row is ``t = x + f * (next - x)``, and

    output row r  +=  above * t[r] + below * t[r + 1],   above = weight*(1 - f_y),  below = weight*f_y

where ``t[r + 1]`` serves the next row as well: three multiply-adds, a subtraction and little more than a load
per output and unit. The gradients of weight and displacement follow from four sums: of the output gradients
times the upper left, upper right, lower left and lower right of the four pixels that a unit reads.

Sums stay in registers over all units that a call is given, output gradients over all units of a tile. LLVM's
vectoriser does not arrive at that by itself, so these loops are written as vector instructions.
"""

import platform
from itertools import product
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
_MANY_REGISTERS = VECTOR_BYTES == 64 or platform.machine() in ("aarch64", "arm64")

ROWS = 7 if _MANY_REGISTERS else 4  # of a tile: outputs that fit into registers with the operands
VECTORS = 2  # of a row of a tile
SUMS = 4  # that the gradients of a unit are made of
FACTORS = 3  # of a unit: f_x, above, below
CHAIN = 4  # rows of products that are added up one after the other


class _Vectors:
    """Loads, stores and arithmetic on vectors of one element type."""

    def __init__(self, context: Any, builder: Any, array: Any) -> None:
        element = context.get_data_type(array.dtype)
        self.builder, self.size = builder, context.get_abi_sizeof(element)
        self.type = ir.VectorType(element, VECTOR_BYTES // self.size)
        self.zero = ir.Constant(self.type, [0.0] * self.type.count)

    def load(self, pointer: Any, offset: int = 0) -> Any:
        return self.builder.load(self._at(pointer, offset), align=self.size)

    def store(self, value: Any, pointer: Any, offset: int = 0) -> None:
        self.builder.store(value, self._at(pointer, offset), align=self.size)

    def _at(self, pointer: Any, offset: int) -> Any:
        place = self.builder.gep(pointer, [ir.IntType(64)(offset * self.type.count)])
        return self.builder.bitcast(place, self.type.as_pointer())

    def row(self, pointer: Any) -> list[tuple[Any, Any]]:
        """For each vector of a row of a tile, the pixels and the pixels next to them."""
        pixels = [self.load(pointer, j) for j in range(VECTORS)]
        ends = [*pixels[1:], self.broadcast(pointer, VECTORS * self.type.count)]
        ahead = ir.Constant(
            ir.VectorType(ir.IntType(32), self.type.count), list(range(1, self.type.count + 1))
        )
        return [(x, self.builder.shuffle_vector(x, end, ahead)) for x, end in zip(pixels, ends, strict=True)]

    def broadcast(self, pointer: Any, offset: int) -> Any:
        value = self.builder.load(self.builder.gep(pointer, [ir.IntType(64)(offset)]))
        lane = ir.IntType(32)
        single = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), value, lane(0))
        zeros = ir.Constant(ir.VectorType(lane, self.type.count), [0] * self.type.count)
        return self.builder.shuffle_vector(single, ir.Constant(self.type, ir.Undefined), zeros)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))


def _pointers(context: Any, builder: Any, signature: Any, args: Any, *places: int) -> list:
    """Of the arrays at these places among the arguments, each followed by its offset."""
    return [
        builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
        for i in places
    ]


class _Loop:
    """``for k in range(count)``, count at least 1, with vectors carried from step to step."""

    def __init__(self, builder: Any, count: Any, initial: list) -> None:
        self.builder, self.count = builder, count
        before, self.body = builder.block, builder.append_basic_block("units")
        builder.branch(self.body)
        builder.position_at_end(self.body)
        self.k = builder.phi(count.type)
        self.k.add_incoming(count.type(0), before)
        self.carried = [builder.phi(value.type) for value in initial]
        for phi, value in zip(self.carried, initial, strict=True):
            phi.add_incoming(value, before)

    def end(self, following: list) -> None:
        after = self.builder.append_basic_block("after")
        k_next = self.builder.add(self.k, self.k.type(1))
        self.k.add_incoming(k_next, self.body)
        for phi, value in zip(self.carried, following, strict=True):
            phi.add_incoming(value, self.body)
        self.builder.cbranch(self.builder.icmp_signed("<", k_next, self.count), self.body, after)
        self.builder.position_at_end(after)


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
    """Add to a tile what `count` units read; unit k begins at planes[planes_at + offsets[offsets_at + k]].

    Rows of a plane lie `stride` apart.
    """
    index = types.intp
    signature = types.void(tile, index, planes, index, index, offsets, index, factors, index, index)
    return signature, _generate_add_units


def _generate_add_units(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    tile, planes, offsets, factors = _pointers(context, builder, signature, args, 0, 2, 5, 7)
    stride, count = args[4], args[9]
    vectors = _Vectors(context, builder, signature.args[0])
    loop = _Loop(builder, count, [vectors.load(tile, i) for i in range(ROWS * VECTORS)])
    source = builder.gep(planes, [builder.sext(builder.load(builder.gep(offsets, [loop.k])), count.type)])
    own = builder.gep(factors, [builder.mul(loop.k, count.type(FACTORS))])
    fraction, above, below = (vectors.broadcast(own, i) for i in range(FACTORS))

    def between(row: Any) -> list:
        """A row of the tile, interpolated between columns."""
        return [
            vectors.multiply_add(fraction, builder.fsub(following, x), x) for x, following in vectors.row(row)
        ]

    sums, row = list(loop.carried), source
    upper = between(row)
    for i in range(ROWS):
        row = builder.gep(row, [stride])
        lower = between(row)
        for j in range(VECTORS):
            at = i * VECTORS + j
            sums[at] = vectors.multiply_add(above, upper[j], sums[at])
            sums[at] = vectors.multiply_add(below, lower[j], sums[at])
        upper = lower
    loop.end(sums)
    for i, value in enumerate(sums):
        vectors.store(value, tile, i)
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
    sums, tile, planes, offsets = _pointers(context, builder, signature, args, 0, 2, 4, 7)
    stride, count = args[6], args[9]
    vectors = _Vectors(context, builder, signature.args[0])
    gradient = [vectors.load(tile, i) for i in range(ROWS * VECTORS)]
    loop = _Loop(builder, count, [])
    row = builder.gep(planes, [builder.sext(builder.load(builder.gep(offsets, [loop.k])), count.type)])
    parts = []  # sums of a few rows each: short chains lose less to rounding
    for i in range(ROWS + 1):
        read = vectors.row(row)
        row = builder.gep(row, [stride])
        if i % CHAIN == 0 and i < ROWS:
            parts.append([[vectors.zero] * SUMS for _ in range(VECTORS)])
        for j, lower, right in product(range(VECTORS), range(2), range(2)):
            if 0 <= i - lower < ROWS:  # row i is the upper one that output i reads, the lower one for i - 1
                part = parts[(i - lower) // CHAIN][j]
                factor, at = gradient[(i - lower) * VECTORS + j], 2 * lower + right
                part[at] = vectors.multiply_add(factor, read[j][right], part[at])
    own = builder.gep(sums, [builder.mul(loop.k, count.type(SUMS * vectors.type.count))])
    for at in range(SUMS):
        terms = [totals[at] for part in parts for totals in part]
        while len(terms) > 1:  # pairwise
            terms = [builder.fadd(*pair) for pair in zip(terms[::2], terms[1::2])] + terms[len(terms) & ~1 :]
        vectors.store(builder.fadd(vectors.load(own, at), terms[0]), own, at)
    loop.end([])
    return context.get_dummy_value()
