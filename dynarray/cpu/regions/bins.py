"""Sums over the pixels of a bin, and their adjoint, for channels that lie side by side.

A bin of some channels is a few vectors: they stay in registers while its pixels go by.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..engine.vectors import REGISTER_BYTES, GuardedLoop, Writer, load_part, store_part, written
from .taps import RegionTaps

_CHANNEL_VECTORS = 4  # sums enough that none waits for another


class BinTaps(NamedTuple):
    """The pixels of a bin, each of some rows in each of some columns."""

    rows: RegionTaps
    columns: RegionTaps
    row: int  # the first
    down: int  # how many
    column: int
    across: int


class PackedPixels(NamedTuple):
    """Pixels of a window, each a run of channels."""

    values: Any
    at: int  # where pixel (0, 0) would be
    line: int  # pixels from row to row
    channels: int


def _vectors_of_channels(writer: Writer, channels: Any) -> Iterator[tuple[Any, list]]:
    """Where several vectors of channels begin, and each of them; then single ones, while they are whole."""
    builder, lanes, done = writer.builder, writer.lanes, channels.type(0)
    for vectors in (_CHANNEL_VECTORS, 1):
        step = channels.type(vectors * lanes)
        with GuardedLoop(builder, builder.udiv(builder.sub(channels, done), step), []) as loop:
            first = builder.add(done, builder.mul(loop.k, step))
            yield first, [channels.type(v * lanes) for v in range(vectors)]
        done = builder.sub(channels, builder.urem(channels, step))


def _rest_of_channels(writer: Writer, channels: Any) -> Iterator[Any]:
    """Where what is left of a vector begins: a half, a quarter and so on of it, in vectors of that size.

    What a mask has just stored takes long to load, and boxes add to the same pixels one after the other.
    """
    size = REGISTER_BYTES // 2
    while size >= writer.itemsize:
        writer.resize(size)
        part = channels.type(writer.lanes)
        there = writer.builder.and_(channels, part)
        with writer.builder.if_then(writer.builder.icmp_signed("!=", there, there.type(0))):
            yield writer.builder.sub(
                channels, writer.builder.and_(channels, channels.type(2 * writer.lanes - 1))
            )
        size //= 2
    writer.resize(REGISTER_BYTES)


def _row_of_bin(writer: Writer, pixels: Any, taps: Any, k: Any, first: Any) -> tuple[Any, Any]:
    """Of a row of a bin a pointer to the first of some channels in column 0, and the weight."""
    builder, a = writer.builder, writer.builder.add(taps.row, k)
    line = builder.mul(builder.mul(writer.element(taps.rows.pixel, a), pixels.line), pixels.channels)
    start = builder.gep(pixels.values, [builder.add(builder.add(pixels.at, line), first)])
    return start, writer.element(taps.rows.weight, a)


def _tap_of_bin(writer: Writer, pixels: Any, taps: Any, k: Any, weight: Any) -> tuple[Any, Any]:
    """Of a column of a bin where its pixel lies in a row of some weight, and that of the pixel."""
    builder, b = writer.builder, writer.builder.add(taps.column, k)
    place = builder.mul(writer.element(taps.columns.pixel, b), pixels.channels)
    return place, writer.broadcast(builder.fmul(weight, writer.element(taps.columns.weight, b)))


@written(REGISTER_BYTES)
def sum_bin(writer: Writer, pixels: Any, taps: Any, out: Any, to: Any) -> None:
    """out[to + c] = the sum of the pixels of a bin times their weights, for all channels."""
    builder, lanes, channels = writer.builder, writer.lanes, pixels.channels

    def write(first: Any, steps: list, mask: Any) -> None:
        with GuardedLoop(builder, taps.down, [writer.zero] * len(steps)) as down:
            start, weight = _row_of_bin(writer, pixels, taps, down.k, first)
            with GuardedLoop(builder, taps.across, down.values) as across:
                place, factor = _tap_of_bin(writer, pixels, taps, across.k, weight)
                values = (load_part(writer, start, builder.add(place, step), mask) for step in steps)
                pairs = zip(across.values, values, strict=True)
                across.values = [writer.multiply_add(total, factor, value) for total, value in pairs]
            down.values = across.values
        target = builder.gep(out, [builder.add(to, first)])
        for total, step in zip(down.values, steps, strict=True):
            store_part(writer, total, target, step, mask)

    for first, steps in _vectors_of_channels(writer, channels):
        write(first, steps, None)
    rest = builder.urem(channels, channels.type(lanes))
    with builder.if_then(builder.icmp_signed("!=", rest, rest.type(0))):
        first = builder.sub(channels, rest)
        write(first, [rest.type(0)], writer.within(first, channels))


@written(REGISTER_BYTES)
def spread_bin(writer: Writer, pixels: Any, taps: Any, grad: Any, at: Any) -> None:
    """The adjoint: grad[at + c] times their weights is added to the pixels of a bin."""
    builder = writer.builder

    def write(first: Any, steps: list) -> None:
        source = builder.gep(grad, [builder.add(at, first)])
        gradients = [writer.load(source, step) for step in steps]
        with GuardedLoop(builder, taps.down, []) as down:
            start, weight = _row_of_bin(writer, pixels, taps, down.k, first)
            with GuardedLoop(builder, taps.across, []) as across:
                pixel, factor = _tap_of_bin(writer, pixels, taps, across.k, weight)
                for gradient, step in zip(gradients, steps, strict=True):
                    place = builder.add(pixel, step)
                    total = writer.multiply_add(writer.load(start, place), factor, gradient)
                    writer.store(total, start, place)

    for first, steps in _vectors_of_channels(writer, pixels.channels):
        write(first, steps)
    for first in _rest_of_channels(writer, pixels.channels):
        write(first, [first.type(0)])
