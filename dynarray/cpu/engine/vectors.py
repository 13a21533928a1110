"""Writing vector instructions, for innermost loops whose sums must stay in registers.

LLVM's vectoriser keeps one sum or a few in registers, not the dozen that share their operands in a matrix
product or under a filter. Such loops are intrinsics of Numba: functions `written` with a `Writer`.
"""

import platform
from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

binding.initialize_native_asmparser()
_FEATURES = binding.get_host_cpu_features()
# Of one register; and whether there are 32 of them, not 16.
REGISTER_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
MANY_REGISTERS = REGISTER_BYTES == 64 or platform.machine() in ("aarch64", "arm64")

LINE_BYTES = 64  # of the caches
# How LLVM's inline assembly calls a vector register.
_REGISTER = {"x86_64": "v", "amd64": "v", "aarch64": "w", "arm64": "w"}.get(platform.machine().lower())


class Loop:
    """Writes ``for k in range(count)`` around what is written in its ``with`` block; `count` is at least 1.

    `values` pass from turn to turn: in the block they are those of the last turn, to be replaced by those of
    the next one; after it they are the results.
    """

    def __init__(self, builder: Any, count: Any, values: list) -> None:
        self._builder, self._count, self._initial = builder, count, values

    def __enter__(self) -> "Loop":
        builder, before = self._builder, self._builder.block
        self._turn = builder.append_basic_block("turn")
        builder.branch(self._turn)
        builder.position_at_end(self._turn)
        initial = (self._count.type(0), *self._initial)
        self._phis = [builder.phi(value.type) for value in initial]
        for phi, value in zip(self._phis, initial, strict=True):
            phi.add_incoming(value, before)
        self.k, *self.values = self._phis
        return self

    def __exit__(self, *error: Any) -> None:
        builder, following = self._builder, self._pass_on()
        after = builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", following, self._count), self._turn, after)
        builder.position_at_end(after)

    def _pass_on(self) -> Any:
        """Values to the next turn; returns its number."""
        builder, last = self._builder, self._builder.block
        following = builder.add(self.k, self._count.type(1))
        for phi, value in zip(self._phis, (following, *self.values), strict=True):
            phi.add_incoming(value, last)
        return following


class GuardedLoop(Loop):
    """The same for a `count` that may be 0: then the results are the initial values."""

    def __enter__(self) -> "GuardedLoop":
        super().__enter__()
        builder = self._builder
        body, self._after = map(builder.append_basic_block, ("body", "after"))
        builder.cbranch(builder.icmp_signed("<", self.k, self._count), body, self._after)
        builder.position_at_end(body)
        return self

    def __exit__(self, *error: Any) -> None:
        self._pass_on()
        self._builder.branch(self._turn)
        self._builder.position_at_end(self._after)
        self.k, *self.values = self._phis


class Writer:
    """Writes instructions on vectors; where these are larger than a register, LLVM splits them.

    `arguments` are those of the intrinsic: of an array the pointer to its first element, of a record the same
    record, with the like of its fields. Elements are of the type of the first array. `variant` tells which of
    several intrinsics is written.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, variant: Any) -> None:
        self.builder, self._context, self.variant = builder, context, variant
        self._arrays: list[Any] = []
        self.arguments = [self._unpack(*pair) for pair in zip(signature.args, args, strict=True)]
        self._element = context.get_data_type(self._arrays[0].dtype)
        self.itemsize = context.get_abi_sizeof(self._element)

    def resize(self, size: int) -> None:
        """From here on vectors are of so many bytes."""
        self._vector = ir.VectorType(self._element, size // self.itemsize)
        self.lanes = self._vector.count
        self.zero = ir.Constant(self._vector, [0.0] * self.lanes)

    def _unpack(self, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.Array):
            self._arrays.append(kind)
            return self._context.make_array(kind)(self._context, self.builder, value).data
        if isinstance(kind, types.BaseNamedTuple):
            fields = (self.builder.extract_value(value, k) for k in range(len(kind)))
            return kind.instance_class(*map(self._unpack, kind, fields))
        return None if isinstance(kind, types.NoneType) else value

    def element(self, pointer: Any, index: Any) -> Any:
        """One element behind a pointer."""
        return self.builder.load(self.builder.gep(pointer, [index]))

    def place(self, places: Any, number: Any) -> Any:
        """Where something begins: an element of an array of places, or so many times their distance."""
        if isinstance(places.type, ir.PointerType):
            return self.element(places, number)
        return self.builder.mul(places, number)

    def load(self, pointer: Any, index: Any) -> Any:
        """A vector, from any address."""
        return self.builder.load(self._at(pointer, index), align=self.itemsize)

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        """A vector, to any address."""
        self.builder.store(value, self._at(pointer, index), align=self.itemsize)

    def within(self, first: Any, end: Any) -> Any:
        """A mask: of the numbers from `first` on, one for each element, those from 0 to below `end`."""
        kind = ir.VectorType(first.type, self.lanes)
        steps = ir.Constant(kind, list(range(self.lanes)))
        numbers = self.builder.add(self.broadcast(first), steps)
        return self.builder.icmp_unsigned("<", numbers, self.broadcast(end))

    def load_masked(self, pointer: Any, index: Any, mask: Any) -> Any:
        """A vector, zero where the mask says that there is nothing to read."""
        place = self._at(pointer, index)
        return self._masked("load", self._vector, place, ir.IntType(32)(self.itemsize), mask, self.zero)

    def store_masked(self, value: Any, pointer: Any, index: Any, mask: Any) -> None:
        """A vector, but for the elements that a mask leaves out."""
        place = self._at(pointer, index)
        self._masked("store", ir.VoidType(), value, place, ir.IntType(32)(self.itemsize), mask)

    def _masked(self, what: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [each.type for each in arguments])
        name = f"llvm.masked.{what}.v{self.lanes}{self._element.intrinsic_name}.p0"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def on_lines(self, pointer: Any, indices: list) -> Any:
        """Whether elements behind a pointer are the first of their cache lines."""
        number = ir.IntType(64)
        bits = number(0)
        for index in indices:
            bits = self.builder.or_(bits, self.builder.ptrtoint(self.builder.gep(pointer, [index]), number))
        rest = self.builder.and_(bits, number(LINE_BYTES - 1))
        return self.builder.icmp_unsigned("==", rest, number(0))

    def stream(self, value: Any, pointer: Any, index: Any) -> None:
        """A vector, to the start of a cache line: past the caches, without reading the line before."""
        once = self.builder.module.add_metadata([ir.IntType(32)(1)])
        store = self.builder.store(value, self._at(pointer, index), align=LINE_BYTES)
        store.set_metadata("nontemporal", once)

    def prefetch(self, pointer: Any, index: Any) -> None:
        """Fetch a cache line, which need not exist, that is soon to be read."""
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = self.builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = self.builder.bitcast(self.builder.gep(pointer, [index]), byte)
        self.builder.call(fetch, [place, number(0), number(2), number(1)])  # to read, second cache, data

    def broadcast(self, value: Any) -> Any:
        """A vector of equal elements."""
        lane, undefined = ir.IntType(32), ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        single = self.builder.insert_element(undefined, value, lane(0))
        zeros = ir.Constant(ir.VectorType(lane, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(single, undefined, zeros)

    def multiply(self, a: Any, b: Any) -> Any:
        """a * b."""
        return self.builder.fmul(a, b, flags=("contract",))

    def add(self, a: Any, b: Any) -> Any:
        """a + b, in one instruction with the product that b may be."""
        return self.builder.fadd(a, b, flags=("contract",))

    def multiply_add(self, total: Any, a: Any, b: Any) -> Any:
        """total + a * b."""
        return self.add(total, self.multiply(a, b))

    def floor(self, value: Any) -> Any:
        """The largest whole numbers that are no larger."""
        kind = ir.FunctionType(self._vector, [self._vector])
        name = f"llvm.floor.v{self.lanes}{self._element.intrinsic_name}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [value])

    def neighbours(self, first: Any, second: Any, number: int) -> list:
        """Of two vectors in a row, those that begin at element 0, 1, ... of the first: so many of them.

        Only where `REGISTER_BYTES` are those of AVX-512. Loads from there would cross cache lines, and take
        twice the time; so would, nearly, the instructions that LLVM takes for such a shuffle.
        """
        name = "valignd" if self.itemsize == 4 else "valignq"
        kind = ir.FunctionType(self._vector, [self._vector] * 2)
        shifted = (
            self.builder.asm(kind, f"{name} $${start}, $1, $2, $0", "=v,v,v", [first, second], False)
            for start in range(1, number)
        )
        return [first, *shifted]

    def total(self, vector: Any) -> Any:
        """The sum of a vector's elements, halves added until one is left."""
        return self.builder.extract_element(self.totals([vector]), ir.IntType(32)(0))

    def totals(self, vectors: list) -> Any:
        """A vector of these sums of several vectors, whose number is a power of 2."""
        length = self.lanes
        while length > 1:
            length //= 2
            vectors = [self._add_halves(vectors[k : k + 2], length) for k in range(0, len(vectors), 2)]
        while len(vectors) > 1:  # more than there are lanes
            vectors = [self._parts(vectors[k : k + 2], 1, 0, 1) for k in range(0, len(vectors), 2)]
        return vectors[0]

    def _add_halves(self, vectors: list, half: int) -> Any:
        """Of each `2*half` elements the first half plus the second, of one vector or two in a row."""
        low, high = (self._parts(vectors, 2 * half, start, half) for start in (0, half))
        return self.builder.fadd(low, high)

    def _parts(self, vectors: list, every: int, start: int, count: int) -> Any:
        """Of `every` so many elements, of one vector or two in a row, `count` from `start` on."""
        whole = len(vectors) * vectors[0].type.count
        lanes = [first + start + k for first in range(0, whole, every) for k in range(count)]
        order = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(vectors[0], vectors[-1], order)

    def in_order(self, values: list) -> list:
        """The same values, made before anything is read from memory that is read behind this.

        Of a loop with as many sums as there are registers, LLVM would otherwise read all operands first, and
        move sums to memory and back to make room for them. Between instructions it takes no time.
        """
        if _REGISTER is None:
            return values
        kinds, single = [value.type for value in values], len(values) == 1
        made = kinds[0] if single else ir.LiteralStructType(kinds)
        same = ",".join([f"={_REGISTER}"] * len(values) + [str(k) for k in range(len(values))])
        nothing = self.builder.asm(ir.FunctionType(made, kinds), "", f"{same},~{{memory}}", values, True)
        return [nothing] if single else [self.builder.extract_value(nothing, k) for k in range(len(values))]

    def sums(self, number: int, count: Any, step: Callable[[Any, list], list]) -> list:
        """`number` sums from zero over ``k < count``; ``step(k, sums)`` writes how they go on."""
        with Loop(self.builder, count, [self.zero] * number) as loop:
            loop.values = step(loop.k, loop.values)
        return loop.values

    def _at(self, pointer: Any, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [index]), self._vector.as_pointer())


def each_vector(writer: Writer, count: Any, work: Callable[[Any, Any], None]) -> None:
    """``work(first, mask)`` for the vectors of a run; the mask is None but for a part of one, the last."""
    builder, lanes = writer.builder, count.type(writer.lanes)
    whole = builder.mul(builder.udiv(count, lanes), lanes)
    with GuardedLoop(builder, builder.udiv(count, lanes), []) as loop:
        work(builder.mul(loop.k, lanes), None)
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        work(whole, writer.within(whole, count))


def load_part(writer: Writer, pointer: Any, index: Any, mask: Any) -> Any:
    """A vector, or what a mask that is not None leaves of it."""
    return writer.load(pointer, index) if mask is None else writer.load_masked(pointer, index, mask)


def load_where(writer: Writer, wanted: Any, pointer: Any, index: Any, mask: Any) -> Any:
    """`load_part`, or zeros if not wanted: then nothing is read, of memory that may not be there yet."""
    before = writer.builder.block
    with writer.builder.if_then(wanted):
        value = load_part(writer, pointer, index, mask)
        inside = writer.builder.block
    held = writer.builder.phi(value.type)
    held.add_incoming(writer.zero, before)
    held.add_incoming(value, inside)
    return held


def store_part(writer: Writer, value: Any, pointer: Any, index: Any, mask: Any) -> None:
    """The same to memory."""
    if mask is None:
        writer.store(value, pointer, index)
    else:
        writer.store_masked(value, pointer, index, mask)


def written(size: int, variant: Any = None) -> Callable[[Callable[..., None]], Callable[..., Any]]:
    """Makes an intrinsic of ``write(writer, *arguments)``, for kernels to call with these arguments.

    Vectors are of `size` bytes; numbers among the arguments are indices or flags.
    """

    def make(write: Callable[..., None]) -> Callable[..., Any]:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            writer = Writer(context, builder, signature, args, variant)
            writer.resize(size)
            write(writer, *writer.arguments)
            return context.get_dummy_value()

        @wraps(write)  # Numba takes the names of arguments from there
        def definition(_typing: Any, *kinds: Any) -> Any:
            return types.void(*map(_argument_kind, kinds)), generate

        return intrinsic(definition)

    return make


def _argument_kind(kind: Any) -> Any:
    if isinstance(kind, types.Boolean):
        return types.boolean
    return types.intp if isinstance(kind, types.Integer) else kind


@written(REGISTER_BYTES)
def prefetch(writer: Writer, array: Any, at: Any) -> None:
    """Fetch the cache line of array[at], which need not exist, that is soon to be read."""
    writer.prefetch(array, at)


@intrinsic
def in_row(typing: Any, array: Any) -> Any:
    """The elements of a contiguous array in a row: as `reshape`, which is much to compile.

    Nothing counts references to the result: the array must be there while it is used.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (kind,), row = signature.args, signature.return_type
        whole, part = (context.make_array(each) for each in (kind, row))
        whole, part = whole(context, builder, args[0]), part(context, builder)
        size, itemsize = whole.nitems, whole.itemsize
        populate_array(part, whole.data, [size], [itemsize], itemsize, meminfo=None)
        return part._getvalue()

    return (types.Array(array.dtype, 1, "C")(array), generate) if array.layout == "C" else None


@intrinsic
def as_image(typing: Any, array: Any, height: Any, width: Any) -> Any:
    """A contiguous array as images (1, 1, height, width), likewise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, made = signature.args[0], signature.return_type
        whole = context.make_array(kind)(context, builder, args[0])
        image, one, size = context.make_array(made)(context, builder), args[1].type(1), whole.itemsize
        shape = [one, one, args[1], args[2]]
        line = builder.mul(args[2], size)
        plane = builder.mul(args[1], line)
        populate_array(image, whole.data, shape, [plane, plane, line, size], size, meminfo=None)
        return image._getvalue()

    made = types.Array(array.dtype, 4, "C")
    return (made(array, types.intp, types.intp), generate) if array.layout == "C" else None
