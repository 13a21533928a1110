"""Filters applied to several channels at once, and the gradients of filters, along runs of pixels.

A filter per pixel is as large as several channels of the image, and comes from the L2 cache each time it is
used. Here each of its values, once loaded, serves `CHANNELS` channels, and the sums over all taps stay in
registers: they are written once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from .compile import jit
from .memory import empty
from .vectors import LINE_BYTES, MANY_REGISTERS, REGISTER_BYTES, Loop, Writer

CHANNELS = 4
# As many sums as fit into the registers with the operands: CHANNELS times this.
STRIP_BYTES = (4 if MANY_REGISTERS else 2) * REGISTER_BYTES
# From this size on an output does not stay in the caches, so that it is written past them.
STREAM_BYTES = 8 * 1024 * 1024
PIECE = 1024  # products added up before they join a sum over a whole image, for its accuracy


class Planes(NamedTuple):
    """Pixel j of channel c is ``values[at + c*apart + j]``."""

    values: np.ndarray
    at: int
    apart: int


class Strips(NamedTuple):
    """Tap t has the filter ``filters[at + s*step + t*lanes + i]`` at pixel i of strip s, and reads pixel
    ``j + offset[t]`` at pixel j: the filters of all taps side by side, in the order in which they are used.
    """

    filters: np.ndarray
    at: int
    step: int
    offset: np.ndarray


class Taps(NamedTuple):
    """Tap t at pixel j has the filter ``filters[at[t] + j]`` and reads pixel ``j + offset[t]``."""

    filters: np.ndarray
    at: np.ndarray
    offset: np.ndarray


class Scale(NamedTuple):
    """The scale of channel c and tap t is ``values[at + c*apart + t]``; if `values` is None there is none."""

    values: Any
    at: int
    apart: int


def empty_to_stream(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.empty`, from a cache line on if it is to be streamed; else large pages would be slower."""
    return (empty if math.prod(shape) * dtype.itemsize >= STREAM_BYTES else np.empty)(shape, dtype)


@jit
def lanes(like: np.ndarray) -> int:
    """Pixels of a strip."""
    return STRIP_BYTES // like.itemsize


@jit
def strips_of(count: int, size: int) -> int:
    """Strips that cover `count` pixels; the last one may overlap the one before."""
    return (count + size - 1) // size


@jit
def deal(target: np.ndarray, tap: int, taps: int, plane: np.ndarray, at: int, count: int) -> None:
    """The filters of one of `taps` taps, from their plane to its places in `Strips`."""
    size = lanes(target)
    for strip in range(strips_of(count, size)):
        _move(target, (strip * taps + tap) * size, plane, at + min(strip * size, count - size))


@intrinsic
def _move(typing: Any, target: Any, to: Any, source: Any, at: Any) -> Any:
    """One strip."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        writer = Writer(context, builder, signature, args, STRIP_BYTES)
        writer.store(writer.load(writer.data[2], args[3]), writer.data[0], args[1])
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), generate


@jit
def apply(
    target: Planes,
    channels: int,
    count: int,
    taps: Strips,
    source: Planes,
    scale: Scale,
    totals: np.ndarray,
    add: Any,
    stream: bool,
) -> None:
    """Target = sum over taps of (scale o filter) * source, for `channels` and `count` pixels.

    o is + if `add` is given, else *. At most CHANNELS channels, at least a strip of pixels. All results
    are added to `totals`, one per lane of a strip, so that what is not finite is noticed. The same pixels of
    the next channels, if there are any, are fetched from memory meanwhile. With `stream` the target is
    written past the caches, where it lies on whole cache lines.
    """
    size = lanes(target.values)
    for strip in range(strips_of(count, size)):
        j, filter_at = min(strip * size, count - size), taps.at + strip * taps.step
        if channels == CHANNELS:
            _several_channels(
                *(target.values, target.at, target.apart, j, taps.filters, filter_at),
                *(source.values, source.at, source.apart, taps.offset, scale.values, scale.at, scale.apart),
                *(totals, add, stream),
            )
        else:
            for c in range(channels):
                _one_channel(
                    *(target.values, target.at + c * target.apart, 0, j, taps.filters, filter_at),
                    *(source.values, source.at + c * source.apart, 0, taps.offset),
                    *(scale.values, scale.at + c * scale.apart, 0, totals, add, stream),
                )


def _strip(channels: int) -> Callable:
    """An intrinsic: `apply` for the strip of pixels from j on."""

    @intrinsic
    def strip(
        typing: Any,
        target: Any,
        at: Any,
        apart: Any,
        j: Any,
        filters: Any,
        filter_at: Any,
        source: Any,
        source_at: Any,
        source_apart: Any,
        offset: Any,
        scale: Any,
        scale_at: Any,
        scale_apart: Any,
        totals: Any,
        add: Any,
        stream: Any,
    ) -> Any:
        i = types.intp
        sources, scales = (source, i, i, offset), (scale, i, i)
        sums = (totals, add, types.boolean)
        signature = types.void(target, i, i, i, filters, i, *sources, *scales, *sums)
        return signature, partial(_generate, channels=channels)

    return strip


_several_channels, _one_channel = _strip(CHANNELS), _strip(1)


def _generate(context: Any, builder: Any, signature: Any, args: Any, channels: int) -> Any:
    writer = Writer(context, builder, signature, args, STRIP_BYTES)
    target, _, _, _, filters, _, source, _, _, offset, scale, _, _, totals, _, _ = writer.data
    _, at, apart, j, _, filter_at, _, source_at, source_apart, _, _, scale_at, scale_apart, *_, stream = args
    combine = writer.multiply if isinstance(signature.args[-2], types.NoneType) else writer.add
    index = at.type
    taps = context.make_array(signature.args[9])(context, builder, args[9]).nitems
    filters, first = builder.gep(filters, [filter_at]), builder.add(source_at, j)
    sources = [
        builder.gep(source, [builder.add(first, builder.mul(source_apart, index(c)))])
        for c in range(channels)
    ]
    scales = [builder.add(scale_at, builder.mul(scale_apart, index(c))) for c in range(channels)]

    def step(tap: Any, sums: list) -> list:
        factor, following = writer.load(filters, builder.mul(tap, index(writer.lanes))), []
        start = writer.element(offset, tap)
        for total, pixels, place in zip(sums, sources, scales, strict=True):
            combined = factor
            if scale is not None:
                own = writer.element(scale, builder.add(place, tap))
                combined = combine(factor, writer.broadcast(own))
            following.append(writer.add(total, writer.multiply(combined, writer.load(pixels, start))))
        return following

    for pixels in sources:
        for k in range(0, writer.lanes, writer.lanes * LINE_BYTES // STRIP_BYTES):
            writer.prefetch(pixels, builder.add(builder.mul(source_apart, index(channels)), index(k)))
    results = writer.sums(channels, taps, step)
    seen = writer.load(totals, index(0))
    places = [builder.add(builder.add(at, j), builder.mul(apart, index(c))) for c in range(channels)]
    whole = writer.on_lines(target, places)
    with builder.if_else(builder.and_(stream, whole)) as (streamed, kept):
        for branch, store in ((streamed, writer.stream), (kept, writer.store)):
            with branch:
                for result, place in zip(results, places, strict=True):
                    store(result, target, place)
    for result in results:
        seen = writer.add(seen, result)
    writer.store(seen, totals, index(0))
    return context.get_dummy_value()


@jit
def correlate(
    grads: np.ndarray,
    channels: int,
    count: int,
    taps: Taps,
    fixed: Planes,
    shifted: Planes,
    scale: Scale,
    of_scale: Scale,
    add: Any,
) -> None:
    """Two sums over the products ``p[c, t, j] = fixed[c, j] * shifted[c, j + offset_t]``, for j < count.

    The gradients of the filters, ``grads[at_t + j] += sum over c of scale[c, t] * p[c, t, j]``, and of the
    scales, ``of_scale[c, t] += sum over j of p[c, t, j] * filters[at_t + j]``. If `add` is given, both are
    without these factors; if there are no scales, they have no gradient.
    """
    size = len(taps.at)
    pairs = size // 2 * 2 if channels == CHANNELS else 0
    for tap in range(0, pairs, 2):
        for start in range(0, count, PIECE):
            _products_of_several(
                *(grads, tap, start, min(start + PIECE, count), taps.filters, taps.at, taps.offset),
                *(fixed.values, fixed.at, fixed.apart, shifted.values, shifted.at, shifted.apart),
                *(scale.values, scale.at, scale.apart, of_scale.values, of_scale.at, of_scale.apart, add),
            )
    for c in range(channels):
        for tap in range(pairs, size):
            for start in range(0, count, PIECE):
                _products_of_one(
                    *(grads, tap, start, min(start + PIECE, count), taps.filters, taps.at, taps.offset),
                    *(fixed.values, fixed.at + c * fixed.apart, 0),
                    *(shifted.values, shifted.at + c * shifted.apart, 0),
                    *(scale.values, scale.at + c * scale.apart, 0),
                    *(of_scale.values, of_scale.at + c * of_scale.apart, 0, add),
                )


def _products(channels: int, taps: int) -> Callable:
    """An intrinsic: `correlate` for so many taps from `tap` on."""

    @intrinsic
    def products(
        typing: Any,
        grads: Any,
        tap: Any,
        start: Any,
        stop: Any,
        filters: Any,
        filter_at: Any,
        offset: Any,
        fixed: Any,
        fixed_at: Any,
        fixed_apart: Any,
        shifted: Any,
        shifted_at: Any,
        shifted_apart: Any,
        scale: Any,
        scale_at: Any,
        scale_apart: Any,
        of_scale: Any,
        of_scale_at: Any,
        of_scale_apart: Any,
        add: Any,
    ) -> Any:
        i = types.intp
        pixels, scales = (fixed, i, i, shifted, i, i), (scale, i, i, of_scale, i, i)
        signature = types.void(grads, i, i, i, filters, filter_at, offset, *pixels, *scales, add)
        return signature, partial(_generate_products, channels=channels, taps=taps)

    return products


# Two taps at once pass over the pixels, which come from the L2 cache, half as often.
_products_of_several, _products_of_one = _products(CHANNELS, 2), _products(1, 1)


def _generate_products(
    context: Any, builder: Any, signature: Any, args: Any, channels: int, taps: int
) -> Any:
    """Vectors as long as they go, then single elements."""
    done, stop = args[2:4]
    for size in (REGISTER_BYTES, context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))):
        writer = Writer(context, builder, signature, args, size)
        lanes = stop.type(writer.lanes)
        turns = builder.sdiv(builder.sub(stop, done), lanes)
        with builder.if_then(builder.icmp_signed(">", turns, turns.type(0))):
            _products_along(writer, signature, args, done, turns, channels, taps)
        done = builder.add(done, builder.mul(turns, lanes))
    return context.get_dummy_value()


def _products_along(
    writer: Writer, signature: Any, args: Any, start: Any, turns: Any, channels: int, taps: int
) -> None:
    builder, index = writer.builder, turns.type
    grads, _, _, _, filters, filter_at, offset, fixed, _, _, shifted, _, _, scale, _, _, of_scale, *_ = (
        writer.data
    )
    _, tap, _, _, _, _, _, _, a, a_apart, _, b, b_apart, _, s, s_apart, _, g, g_apart, _ = args
    multiplied = isinstance(signature.args[-1], types.NoneType) and scale is not None

    def places(base: Any, apart: Any) -> list:
        return [builder.add(base, builder.mul(apart, index(c))) for c in range(channels)]

    numbers = [builder.add(tap, index(t)) for t in range(taps)]
    filters_from = [writer.element(filter_at, number) for number in numbers]
    offsets = [writer.element(offset, number) for number in numbers]
    factors = [
        [writer.broadcast(writer.element(scale, builder.add(place, number))) for place in places(s, s_apart)]
        if multiplied
        else []
        for number in numbers
    ]
    with Loop(builder, turns, [writer.zero] * (channels * taps if scale is not None else 0)) as loop:
        j, sums = builder.add(start, builder.mul(loop.k, index(writer.lanes))), []
        ours = [writer.load(fixed, builder.add(place, j)) for place in places(a, a_apart)]
        for t in range(taps):
            to, shift = builder.add(filters_from[t], j), builder.add(offsets[t], j)
            grad = writer.load(grads, to)
            filter_ = writer.load(filters, to) if multiplied else None
            for c, place in enumerate(places(b, b_apart)):
                product = writer.multiply(ours[c], writer.load(shifted, builder.add(place, shift)))
                grad = writer.add(grad, writer.multiply(factors[t][c], product) if multiplied else product)
                if scale is not None:
                    own = writer.multiply(product, filter_) if multiplied else product
                    sums.append(writer.add(loop.values[t * channels + c], own))
            writer.store(grad, grads, to)
        loop.values = sums
    totals = iter(loop.values)
    for number in numbers if scale is not None else ():
        for place in places(g, g_apart):
            at = builder.add(place, number)
            total = builder.fadd(writer.element(of_scale, at), writer.total(next(totals)))
            builder.store(total, builder.gep(of_scale, [at]))
