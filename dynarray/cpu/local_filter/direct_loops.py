"""The innermost loops of `direct`: filters applied where they are in memory, and their gradients, row by row.

Vectors are read from any address. Where a row has fewer elements than a vector, the vector is masked.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import uint64

from ..engine.compile import ZERO, borrowing_jit, shared_jit, zero_like
from ..engine.gemm import Matrix
from ..engine.pixels import copy
from ..engine.strips import STRIP_BYTES
from ..engine.vectors import LINE_BYTES, REGISTER_BYTES, GuardedLoop, Loop, Writer, written

_TOGETHER = 3  # channels whose sums stay in registers
_AHEAD = 4 * STRIP_BYTES  # filters are fetched so long before they are used


class TapRows(NamedTuple):
    """Rows of taps: the first tap of each, and where its filters and pixels are, but for the column."""

    tap: np.ndarray
    filter_at: np.ndarray
    source_at: np.ndarray


class TapColumns(NamedTuple):
    """Columns of taps: what they add to `TapRows`, and the results, from `low` to `end`, that have them."""

    tap: np.ndarray
    filter_at: np.ndarray
    source_at: np.ndarray
    low: np.ndarray
    end: np.ndarray


class TapScale(NamedTuple):
    """What filters are multiplied with, or what is added to them: a number for each channel and tap.

    That of channel c is ``values[at + c*stride + tap*apart]``. With a `period` it is one of so many, of which
    result j has number ``j % period``: they lie there in order, again and again, for a strip from any of them
    on. If `given` is None, there are none.
    """

    given: Any
    values: np.ndarray
    at: int
    stride: int
    apart: int
    add: bool | None
    period: Any


class RowSum(NamedTuple):
    """``sum over taps of (scale[c, tap] o filters[tap, j]) * source[c, tap, j]``, for j < length.

    Taps are so many rows times the columns from `first` on.
    """

    filters: np.ndarray
    rows: TapRows
    row_number: int
    columns: TapColumns
    first: int
    number: int
    source: Matrix  # a row for each channel
    scale: TapScale
    length: int
    corner: np.ndarray  # room for a strip of each channel


class RowProducts(NamedTuple):
    """Products ``p[c, j] = fixed[c, j] * shifted[c, j]`` of a row and a tap, and what they are part of.

    The gradient of the filter is ``grads[at + j] = sum over c of scale[c, tap] * p[c, j]``. Those of the
    scales are the sums over the lanes of ``totals[c, tap] += p[c, j] * filters[at + j]``, strips of pixels;
    with a period, strips that begin with its number 0 each. With scales that are added both are without these
    factors; if there are none, there are no totals.
    """

    grads: np.ndarray
    filters: np.ndarray
    at: int
    fixed: Matrix  # a row for each channel
    shifted: Matrix
    scale: TapScale
    tap: int
    totals: Matrix  # a strip for each channel
    channels: int
    wanted: bool  # the gradient of the filter


@written(REGISTER_BYTES)
def spread_scale(writer: Writer, scale: Any, to: Any, given_at: Any, apart: Any, count: Any) -> None:
    """The numbers of a tap, at least `count`, from those that are given, which lie so far apart."""
    if scale.given is None:
        return
    builder, index = writer.builder, count.type
    if scale.period is None:
        builder.store(writer.element(scale.given, given_at), builder.gep(scale.values, [to]))
        return
    # Whole periods, one by one, of which there are more than a vector; the others are copies of vectors.
    lanes, one = index(writer.lanes), index(1)
    whole = builder.add(scale.period, builder.sub(lanes, one))
    whole = builder.mul(builder.sdiv(whole, scale.period), scale.period)
    with Loop(builder, whole, [index(0)]) as loop:
        number = loop.values[0]
        value = writer.element(scale.given, builder.add(given_at, builder.mul(number, apart)))
        builder.store(value, builder.gep(scale.values, [builder.add(to, loop.k)]))
        following = builder.add(number, one)
        again = builder.icmp_signed("==", following, scale.period)
        loop.values = [builder.select(again, index(0), following)]
    vectors = builder.sdiv(builder.sub(builder.add(count, index(writer.lanes - 1)), whole), lanes)
    with GuardedLoop(builder, vectors, []) as loop:
        at = builder.add(to, builder.mul(loop.k, lanes))
        writer.store(writer.load(scale.values, at), scale.values, builder.add(at, whole))


@shared_jit
def sum_row(target: Matrix, sums: RowSum, channels: int, low: int, end: int, stream: bool) -> None:
    """A row of results of some channels; from `low` to `end` all taps have filters.

    Some results may be made twice. Before and behind these, sources are zero where a tap has no filter, and
    what lies in its place counts for nothing unless it is not finite: then results are made again without.
    """
    strip, size = STRIP_BYTES // sums.filters.itemsize, LINE_BYTES // sums.filters.itemsize
    least, most = find_ends(sums)
    begin = -target.at % size if stream else ZERO  # from a line on
    for start in range(begin - size if begin else begin, sums.length, strip):
        j = max(ZERO, min(start, sums.length - strip))
        stop = min(sums.length, j + strip)
        inside = least + j >= 0 and most + j + strip <= sums.filters.size
        whole = j + strip <= sums.length
        part = target if whole else Matrix(sums.corner, -j, strip)
        together = channels // _TOGETHER * _TOGETHER if inside else ZERO
        for c in range(0, together, _TOGETHER):
            _sum_together(part, sums, c, j, stream)
        for c in range(together, channels if inside else together):
            _sum_one(part, sums, c, j, stream)
        for c in range(0 if whole or not inside else channels):
            copy(target.values, target.at + c * target.stride + j, sums.corner, c * strip, stop - j)
        if not inside or ((j < low or stop > end) and not finite(target, channels, j, stop)):
            for c in range(channels):
                for at in range(j, stop, REGISTER_BYTES // sums.filters.itemsize):
                    _sum_masked(target, sums, c, at)


@borrowing_jit
def find_ends(sums: RowSum) -> tuple:
    """Where filters begin for result 0: the first of all, and the last."""
    rows, columns = sums.rows.filter_at, sums.columns.filter_at
    least = most = rows[0]
    for k in range(1, sums.row_number):
        least, most = min(least, rows[k]), max(most, rows[k])
    low = high = columns[sums.first]
    for k in range(sums.first + 1, sums.first + sums.number):
        low, high = min(low, columns[k]), max(high, columns[k])
    return least + low, most + high


@borrowing_jit
def finite(target: Matrix, channels: int, start: int, stop: int) -> bool:
    """Whether these results of some channels are finite."""
    total = zero_like(target.values)
    for c in range(channels):
        first = uint64(target.at + c * target.stride + start)
        for j in range(uint64(stop - start)):
            total += target.values[first + j] * zero_like(target.values)
    return total == 0


def _row_places(builder: Any, planes: Any, first: Any, channels: int) -> list:
    """Where the rows of so many channels begin, from the `first` on."""
    numbers = [builder.add(first, first.type(c)) for c in range(channels)]
    return [builder.add(planes.at, builder.mul(planes.stride, number)) for number in numbers]


def _own_scale(writer: Writer, scale: Any, place: Any, tap: Any, j: Any) -> Any:
    """What results from j on have for a tap, in the channel whose scales begin at that place."""
    at = writer.builder.add(place, writer.builder.mul(tap, scale.apart))
    if scale.period is None:
        return writer.broadcast(writer.element(scale.values, at))
    return writer.load(scale.values, writer.builder.add(at, _turn(writer, scale, j)))


def _turn(writer: Writer, scale: Any, j: Any) -> Any:
    """The number of result j in a period."""
    return j.type(0) if scale.period is None else writer.builder.srem(j, scale.period)


def _sum_over_taps(writer: Writer, sums: Any, channel: Any, j: Any) -> list:
    """The results from j on of so many channels as the variant says."""
    builder, (channels, masked) = writer.builder, writer.variant
    combine = writer.multiply if sums.scale.add is None else writer.add
    places = _row_places(builder, sums.source, channel, channels)
    sources = [builder.gep(sums.source.values, [builder.add(place, j)]) for place in places]
    scales = _row_places(builder, sums.scale, channel, channels)
    filters = builder.gep(sums.filters, [j])
    with Loop(builder, sums.row_number, [writer.zero] * channels) as down:
        row = TapRows(*(writer.element(values, down.k) for values in sums.rows))
        with Loop(builder, sums.number, down.values) as across:
            number = builder.add(sums.first, across.k)
            column = TapColumns(*(writer.element(values, number) for values in sums.columns))
            at = builder.add(row.filter_at, column.filter_at)
            start = builder.add(row.source_at, column.source_at)
            if masked:
                mask = _mask(writer, builder.sub(column.low, j), builder.sub(column.end, j))
                factor = _load_masked(writer, filters, at, mask)
            else:
                factor = writer.load(filters, at)
                for line in range(_AHEAD, _AHEAD + STRIP_BYTES, LINE_BYTES):
                    writer.prefetch(filters, builder.add(at, at.type(line // writer.itemsize)))
            following = []
            for total, pixels, place in zip(across.values, sources, scales, strict=True):
                combined = factor
                if sums.scale.given is not None:
                    tap = builder.add(row.tap, column.tap)
                    combined = combine(factor, _own_scale(writer, sums.scale, place, tap, j))
                following.append(writer.multiply_add(total, combined, writer.load(pixels, start)))
            across.values = following
        down.values = across.values
    return down.values


def _write_sum(writer: Writer, target: Any, sums: Any, channel: Any, j: Any, stream: Any) -> None:
    """A strip of pixels."""
    builder, results = writer.builder, _sum_over_taps(writer, sums, channel, j)
    places = [builder.add(place, j) for place in _row_places(builder, target, channel, len(results))]
    _store_strips(writer, results, target.values, places, stream)


def _store_strips(writer: Writer, results: list, target: Any, places: list, stream: Any) -> None:
    """Strips, past the caches with `stream` where they fill lines."""
    builder = writer.builder
    streamed = builder.and_(stream, writer.on_lines(target, places))
    with builder.if_else(streamed) as branches:
        for branch, store in zip(branches, (writer.stream, writer.store), strict=True):
            with branch:
                for result, place in zip(results, places, strict=True):
                    store(result, target, place)


def _write_masked_sum(writer: Writer, target: Any, sums: Any, channel: Any, j: Any) -> None:
    """A vector of pixels of which some lanes may be outside of the row, or without filters."""
    builder, (result,) = writer.builder, _sum_over_taps(writer, sums, channel, j)
    place = builder.add(_row_places(builder, target, channel, 1)[0], j)
    mask = _mask(writer, j.type(0), builder.sub(sums.length, j))
    _store_masked(writer, result, target.values, place, mask)


# A channel that is left over finds the filters in the first cache: fewer loops are less to compile.
_sum_one, _sum_together = (written(STRIP_BYTES, (n, False))(_write_sum) for n in (1, _TOGETHER))
_sum_masked = written(REGISTER_BYTES, (1, True))(_write_masked_sum)


@borrowing_jit
def multiply_row(products: RowProducts, count: int, stream: bool) -> None:
    """Use the products for j < count."""
    itemsize = products.fixed.values.itemsize
    lanes, strip = REGISTER_BYTES // itemsize, STRIP_BYTES // itemsize
    j = ZERO
    if stream:  # from a line on
        head = min(count, -products.at % (LINE_BYTES // itemsize))
        while j < head:
            _multiply_masked(products, j, head)
            j += lanes
        j = head
    while j + strip <= count:
        _multiply_strip(products, j, stream)
        j += strip
    while j < count:
        if count - j > 2 * lanes:
            _multiply_masked_strip(products, j, count)
            j += strip
        else:
            _multiply_masked(products, j, count)
            j += lanes


def _write_products(writer: Writer, products: Any, j: Any, stream: Any) -> None:
    """A strip of pixels."""
    _write_product(
        writer,
        products,
        j,
        writer.load,
        lambda results, values, places: _store_strips(writer, results, values, places, stream),
    )


def _write_masked_products(writer: Writer, products: Any, j: Any, count: Any) -> None:
    """A vector of pixels, of which those from `count` on are outside of the row."""
    mask = _mask(writer, j.type(0), writer.builder.sub(count, j))
    _write_product(
        writer,
        products,
        j,
        lambda values, at: _load_masked(writer, values, at, mask),
        lambda results, values, places: _store_masked(writer, results[0], values, places[0], mask),
    )


def _write_product(writer: Writer, products: Any, j: Any, load: Any, store: Any) -> None:
    """The products from j on, with vectors read and written that way."""
    builder, scale = writer.builder, products.scale
    has_scale = scale.given is not None
    multiplied = has_scale and scale.add is None
    factor = load(products.filters, builder.add(products.at, j)) if multiplied else None
    with Loop(builder, products.channels, [writer.zero]) as loop:
        ours, other = (
            load(rows.values, builder.add(_row_places(builder, rows, loop.k, 1)[0], j))
            for rows in (products.fixed, products.shifted)
        )
        product = grad = writer.multiply(ours, other)
        if has_scale:
            (at,) = _row_places(builder, products.totals, loop.k, 1)
            at = builder.add(at, _turn(writer, scale, j))
            own = writer.multiply(product, factor) if multiplied else product
            writer.store(writer.add(writer.load(products.totals.values, at), own), products.totals.values, at)
        if multiplied:
            place = _row_places(builder, scale, loop.k, 1)[0]
            grad = writer.multiply(product, _own_scale(writer, scale, place, products.tap, j))
        loop.values = [writer.add(loop.values[0], grad)]
    with builder.if_then(products.wanted):
        store(loop.values, products.grads, [builder.add(products.at, j)])


_multiply_strip = written(STRIP_BYTES)(_write_products)
_multiply_masked, _multiply_masked_strip = (
    written(size)(_write_masked_products) for size in (REGISTER_BYTES, STRIP_BYTES)
)


def _mask(writer: Writer, low: Any, end: Any) -> Any:
    """Which lanes are from `low` to `end`; either may be far from all of them."""
    builder, number, lanes = writer.builder, ir.IntType(32), writer.lanes
    kind = ir.VectorType(number, lanes)
    undefined, zeros = ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * lanes)
    numbers = ir.Constant(kind, list(range(lanes)))

    def spread(value: Any) -> Any:
        least, most = value.type(0), value.type(lanes)
        value = builder.select(builder.icmp_signed("<", value, least), least, value)
        value = builder.trunc(builder.select(builder.icmp_signed(">", value, most), most, value), number)
        return builder.shuffle_vector(builder.insert_element(undefined, value, number(0)), undefined, zeros)

    above = builder.icmp_signed(">=", numbers, spread(low))
    return builder.and_(above, builder.icmp_signed("<", numbers, spread(end)))


def _load_masked(writer: Writer, pointer: Any, at: Any, mask: Any) -> Any:
    """A vector, from any address; zero, and not read, where the mask is not set."""
    vector = writer.zero.type
    return _call_masked(writer, "load", vector, (pointer, at), (), (mask, writer.zero))


def _store_masked(writer: Writer, value: Any, pointer: Any, at: Any, mask: Any) -> None:
    """Those elements of a vector for which the mask is set, to any address."""
    _call_masked(writer, "store", ir.VoidType(), (pointer, at), (value,), (mask,))


def _call_masked(writer: Writer, what: str, result: Any, place: tuple, before: tuple, behind: tuple) -> Any:
    builder, vector = writer.builder, writer.zero.type
    where = builder.bitcast(builder.gep(place[0], [place[1]]), vector.as_pointer())
    args = (*before, where, ir.IntType(32)(writer.itemsize), *behind)
    kind = ir.FunctionType(result, [arg.type for arg in args])
    element = f"v{writer.lanes}f{8 * writer.itemsize}"
    name = f"llvm.masked.{what}.{element}.p0{element}"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)
