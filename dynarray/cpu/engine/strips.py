"""Filters applied to several channels at once, and the gradients of filters, along runs of pixels.

A filter per pixel is as large as several channels of the image, and comes from the L2 cache each time it is
used. Here each of its values, once loaded, serves `CHANNELS` channels, and the sums over all taps stay in
registers: they are written once.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .compile import borrowing_jit
from .gemm import Matrix
from .memory import empty
from .vectors import LINE_BYTES, MANY_REGISTERS, REGISTER_BYTES, Loop, Writer, written

CHANNELS = 4
# As many sums as fit into the registers with the operands: CHANNELS times this.
STRIP_BYTES = (4 if MANY_REGISTERS else 2) * REGISTER_BYTES
# From this size on an output does not stay in the caches, so that it is written past them.
STREAM_BYTES = 8 * 1024 * 1024
_SUMMED_PIXELS = 1024  # products added up before they join a sum over a whole image, for its accuracy


class StripTarget(NamedTuple):
    """Where results go, past the caches with `stream` if they fill whole cache lines.

    All results are added to `totals`, one for each pixel of a strip, so that what is not finite is noticed.
    """

    planes: Matrix  # a row for each channel
    totals: np.ndarray
    stream: bool


class Taps(NamedTuple):
    """Filters of `number` taps, from `first` on, which read pixel ``j + offset[t]`` at pixel j.

    If there is an array `at`, they lie in planes: tap t has the filter ``filters[at[t] + j]`` at pixel j.
    Else they lie side by side, in the order in which they are used: tap t has the filter
    ``filters[(s*len(offset) + t)*strip_pixels + i]`` at pixel i of strip s.
    """

    filters: np.ndarray
    at: Any
    offset: np.ndarray
    first: int
    number: int


class Scale(NamedTuple):
    """Channel c has the filter of tap t times ``values[at + c*stride + t]``, or plus that if `add` is given.

    If `values` is None all channels have the filter as it is.
    """

    values: Any
    at: int
    stride: int
    add: bool | None


class Correlation(NamedTuple):
    """Two sums over the products ``p[c, t, j] = fixed[c, j] * shifted[c, j + offset_t]``.

    The gradients of the filters, ``grad_filters[at_t + j] += sum over c of scale[c, t] * p[c, t, j]``, and of
    the scales, ``grad_scale[c, t] += sum over j of p[c, t, j] * filters[at_t + j]``. If scales are added,
    both are without these factors; if there are none, they have no gradient.
    """

    grad_filters: np.ndarray
    grad_scale: Matrix
    taps: Taps
    fixed: Matrix
    shifted: Matrix
    scale: Scale


class _Piece(NamedTuple):
    """Pixels start to stop of the channels and taps from these on."""

    channel: int
    tap: int
    start: int
    stop: int


def empty_to_stream(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.empty`, from a cache line on if it is to be streamed; else large pages would be slower."""
    return (empty if math.prod(shape) * dtype.itemsize >= STREAM_BYTES else np.empty)(shape, dtype)


@borrowing_jit
def strip_pixels(like: np.ndarray) -> int:
    """Pixels of a strip."""
    return STRIP_BYTES // like.itemsize


@borrowing_jit
def deal(strips: np.ndarray, tap: int, taps: int, plane: np.ndarray, at: int, count: int) -> None:
    """The filters of one of `taps` taps, from their plane to its places in strips."""
    size = strip_pixels(strips)
    for strip in range((count + size - 1) // size):
        _copy_strip(strips, (strip * taps + tap) * size, plane, at + min(strip * size, count - size))


@written(STRIP_BYTES)
def _copy_strip(writer: Writer, target: Any, to: Any, source: Any, at: Any) -> None:
    writer.store(writer.load(source, at), target, to)


@borrowing_jit
def apply(target: StripTarget, channels: int, count: int, taps: Taps, source: Matrix, scale: Scale) -> None:
    """target = sum over taps of (scale o filter) * source, for `channels` and `count` pixels.

    o is + or *, as the scale says. At most CHANNELS channels, at least a strip of pixels. The same pixels of
    the next channels, if there are any, are fetched from memory meanwhile.
    """
    size = strip_pixels(taps.filters)
    for strip in range((count + size - 1) // size):  # the last one may overlap the one before
        j, at = min(strip * size, count - size), (strip * len(taps.offset) + taps.first) * size
        if channels == CHANNELS:
            _apply_to_all(target, 0, j, taps, at, source, scale)
        else:
            for c in range(channels):
                _apply_to_one(target, c, j, taps, at, source, scale)


def _write_apply(
    writer: Writer, target: Any, c: Any, j: Any, taps: Any, filters_at: Any, source: Any, scale: Any
) -> None:
    """`apply` for the strip of pixels from j on, and the channels from c on."""
    builder, channels, index = writer.builder, writer.variant, j.type
    combine = writer.multiply if scale.add is None else writer.add
    filters, offset = builder.gep(taps.filters, [filters_at]), builder.gep(taps.offset, [taps.first])
    sources = [
        builder.gep(source.values, [builder.add(place, j)])
        for place in strip_places(builder, source, c, channels)
    ]
    scales = [builder.add(place, taps.first) for place in strip_places(builder, scale, c, channels)]

    def step(tap: Any, sums: list) -> list:
        factor, following = writer.load(filters, builder.mul(tap, index(writer.lanes))), []
        start = writer.element(offset, tap)
        for total, pixels, place in zip(sums, sources, scales, strict=True):
            combined = factor
            if scale.values is not None:
                own = writer.element(scale.values, builder.add(place, tap))
                combined = combine(factor, writer.broadcast(own))
            following.append(writer.multiply_add(total, combined, writer.load(pixels, start)))
        return following

    for pixels in sources:
        for k in range(0, writer.lanes, writer.lanes * LINE_BYTES // STRIP_BYTES):
            writer.prefetch(pixels, builder.add(builder.mul(source.stride, index(channels)), index(k)))
    results = writer.sums(channels, taps.number, step)
    total = writer.load(target.totals, index(0))
    places = [builder.add(place, j) for place in strip_places(builder, target.planes, c, channels)]
    whole = writer.on_lines(target.planes.values, places)
    with builder.if_else(builder.and_(target.stream, whole)) as (streamed, kept):
        for branch, store in ((streamed, writer.stream), (kept, writer.store)):
            with branch:
                for result, place in zip(results, places, strict=True):
                    store(result, target.planes.values, place)
    for result in results:
        total = writer.add(total, result)
    writer.store(total, target.totals, index(0))


_apply_to_all, _apply_to_one = (written(STRIP_BYTES, n)(_write_apply) for n in (CHANNELS, 1))


def strip_places(builder: Any, planes: Any, first: Any, channels: int) -> list:
    """Where planes begin: `channels` of them, from the `first` on."""
    numbers = [builder.add(first, first.type(c)) for c in range(channels)]
    return [builder.add(planes.at, builder.mul(planes.stride, number)) for number in numbers]


@borrowing_jit
def correlate(sums: Correlation, channels: int, count: int) -> None:
    """Make two sums over the products of so many channels, for j < count."""
    number = sums.taps.number
    pairs = number // 2 * 2 if channels == CHANNELS else 0
    for tap in range(0, pairs, 2):
        for start in range(0, count, _SUMMED_PIXELS):
            _correlate_all(sums, _Piece(0, tap, start, min(start + _SUMMED_PIXELS, count)))
    for c in range(channels):
        for tap in range(pairs, number):
            for start in range(0, count, _SUMMED_PIXELS):
                _correlate_one(sums, _Piece(c, tap, start, min(start + _SUMMED_PIXELS, count)))


def _write_correlate(writer: Writer, sums: Any, piece: Any) -> None:
    """`correlate` for a piece: vectors as long as they go, then single elements."""
    builder, done = writer.builder, piece.start
    for size in (REGISTER_BYTES, writer.itemsize):
        writer.resize(size)
        lanes = done.type(writer.lanes)
        turns = builder.sdiv(builder.sub(piece.stop, done), lanes)
        with builder.if_then(builder.icmp_signed(">", turns, turns.type(0))):
            _correlate_along(writer, done, turns)
        done = builder.add(done, builder.mul(turns, lanes))


def _correlate_along(writer: Writer, start: Any, turns: Any) -> None:
    """`turns` vectors of pixels from `start` on."""
    builder, index, (channels, together) = writer.builder, turns.type, writer.variant
    (grad_filters, grad_scale, taps, fixed, shifted, scale), piece = writer.arguments
    has_scale = scale.values is not None
    multiplied = has_scale and scale.add is None

    def places(planes: Any) -> list:
        return strip_places(builder, planes, piece.channel, channels)

    first = builder.add(taps.first, piece.tap)
    numbers = [builder.add(first, index(t)) for t in range(together)]
    filters_at = [writer.element(taps.at, number) for number in numbers]
    offsets = [writer.element(taps.offset, number) for number in numbers]
    factors = [
        [
            writer.broadcast(writer.element(scale.values, builder.add(place, number)))
            for place in places(scale)
        ]
        if multiplied
        else []
        for number in numbers
    ]
    with Loop(builder, turns, [writer.zero] * (channels * len(numbers) if has_scale else 0)) as loop:
        j, sums = builder.add(start, builder.mul(loop.k, index(writer.lanes))), []
        ours = [writer.load(fixed.values, builder.add(place, j)) for place in places(fixed)]
        for t in range(len(numbers)):
            to, shift = builder.add(filters_at[t], j), builder.add(offsets[t], j)
            grad = writer.load(grad_filters, to)
            filter_ = writer.load(taps.filters, to) if multiplied else None
            for c, place in enumerate(places(shifted)):
                product = writer.multiply(ours[c], writer.load(shifted.values, builder.add(place, shift)))
                grad = writer.add(grad, writer.multiply(factors[t][c], product) if multiplied else product)
                if has_scale:
                    own = writer.multiply(product, filter_) if multiplied else product
                    sums.append(writer.add(loop.values[t * channels + c], own))
            writer.store(grad, grad_filters, to)
        loop.values = sums
    if has_scale:
        totals = writer.totals(loop.values)
        ends = [builder.add(place, number) for number in numbers for place in places(grad_scale)]
        for lane, at in enumerate(ends):
            total = builder.extract_element(totals, ir.IntType(32)(lane))
            total = builder.fadd(writer.element(grad_scale.values, at), total)
            builder.store(total, builder.gep(grad_scale.values, [at]))


# Two taps at once pass over the pixels, which come from the L2 cache, half as often.
_correlate_all, _correlate_one = (
    written(REGISTER_BYTES, size)(_write_correlate) for size in ((CHANNELS, 2), (1, 1))
)
