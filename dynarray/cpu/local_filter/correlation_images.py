"""The gradients of `correlation2d`: of each image, sums over all displacements of the other times the maps'.

Lanes are pixels. A tile of them keeps the sums of some channels in registers over all displacements for which
one of its pixels has another in the image; each vector of a map's gradient serves all of these channels. The
pixels are read where they are, through masks: zero outside, as the definition has them.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine import parallel
from ..engine.compile import borrowing_jit, kernel_input, rolled_jit
from ..engine.gemm import Matrix
from ..engine.memory import empty, run_with_scratch
from ..engine.pixels import clear
from ..engine.vectors import MANY_REGISTERS, REGISTER_BYTES, GuardedLoop, Loop, Writer, in_row, written
from .items import FilterWindow, Shape

_CHANNELS_TOGETHER = 8 if MANY_REGISTERS else 4
_TILE_VECTORS = 2  # of pixels
_CHUNK_BYTES = 512 * 1024  # half of a common L2 cache
_NEAR_BYTES = 8 * 1024 * 1024  # of an image: larger ones are better read once, in long rows
_SETS_BYTES = 128 * 1024  # places so far apart, or several times that, share a set of one


class ImagesPlan(NamedTuple):
    """How work is divided: into items (sample, band of tiles, chunk of channels)."""

    window: FilterWindow
    maps: Shape
    size: Shape  # of the images
    channels: int
    tiles: int
    bands: int
    chunk: int  # channels
    chunks: int


class ImagesScratch(NamedTuple):
    """A thread's memory for a tile."""

    start: Any  # of the sums of each pixel: zeros, but where a map's gradient is not finite
    rows: Any  # of the pixels
    columns: Any


class _Displaced(NamedTuple):
    """Numbers of displacements, to the end, along an axis; and how far the first of them leads."""

    first: int
    end: int
    shift: int
    step: int


class _ImageTile(NamedTuple):
    """A tile, and where its first pixel finds what is summed up, for the first of the displacements."""

    source: Matrix  # a row for each channel
    maps: np.ndarray
    at: int  # in the maps
    map_row: int  # from there to what the next displacement downwards reads
    map_column: int  # and to the right
    down: _Displaced
    right: _Displaced
    size: Shape
    pixels: int  # up to a whole tile
    share: Any  # of a channel in the mean


def image_gradient(
    grad_output: np.ndarray, source: np.ndarray, maps: Shape, window: FilterWindow, *, back: bool
) -> np.ndarray:
    """The gradient of x1, from x2 as the source; or on the way `back` that of x2, from x1."""
    plan, scratch, operations = _images_plan(source.shape, maps, source.itemsize, window)
    grad = empty(source.shape, source.dtype)
    args = grad, kernel_input(grad_output), kernel_input(source), back, plan
    total = len(source) * plan.bands * plan.chunks
    run_with_scratch(correlation_image_items, total, operations, scratch, source.dtype, *args)
    return grad


@lru_cache(maxsize=256)
def images_apply(images: Shape, maps: Shape, itemsize: int, window: FilterWindow) -> bool:
    """Whether images are small, and not of so few channels that most of those in registers would be none.

    With few, `direct` takes all displacements for the channels that there are, here only those inside count.
    """
    if math.prod(images[1:]) * itemsize > _NEAR_BYTES:
        return False
    inside = 1.0
    for axis in range(2):
        reach = np.abs(np.arange(maps[axis]) * window.dilation[axis] - window.padding[axis])
        inside *= np.maximum(0, 1 - reach / images[2 + axis]).mean()
    return bool(_CHANNELS_TOGETHER * inside <= 2 * images[1])


@lru_cache(maxsize=256)
def _images_plan(
    images: Shape, maps: Shape, itemsize: int, window: FilterWindow
) -> tuple[ImagesPlan, ImagesScratch, float]:
    """For images of this shape."""
    samples, channels, high, wide = images
    size = _TILE_VECTORS * REGISTER_BYTES // itemsize
    tiles = -(-high * wide // size)
    bands = min(tiles, -(-parallel.ITEMS // samples))
    parts = -(-parallel.ITEMS // (samples * bands))
    chunk = -(-channels // (parts * _CHANNELS_TOGETHER))
    # What displacements read around a tile is to stay in the cache for the next one.
    rows = min(high, (maps[0] - 1) * window.dilation[0] + 1)
    chunk = min(chunk, _CHUNK_BYTES // (_CHANNELS_TOGETHER * rows * wide * itemsize))
    chunk = min(chunk, _SETS_BYTES // math.gcd(high * wide * itemsize, _SETS_BYTES))
    chunk = max(1, chunk) * _CHANNELS_TOGETHER
    plan = ImagesPlan(window, maps, images[2:], channels, tiles, bands, chunk, -(-channels // chunk))
    operations = samples * maps[0] * maps[1] * high * wide * (channels + 4) / 4
    return plan, ImagesScratch(size, (size, np.int32), (size, np.int32)), operations


@rolled_jit
def correlation_image_items(
    start: int,
    stop: int,
    scratch: ImagesScratch,
    grad: np.ndarray,
    grad_output: np.ndarray,
    source: np.ndarray,
    back: bool,
    plan: ImagesPlan,
) -> None:
    """Items of the plan."""
    size = len(scratch.start)
    target, maps, pixels = in_row(grad), in_row(grad_output), in_row(source)
    for number in range(start, stop):
        rest, chunk = number // plan.chunks, number % plan.chunks
        sample, band = rest // plan.bands, rest % plan.bands
        begin = chunk * plan.chunk
        end = min(plan.channels, begin + plan.chunk)
        for tile in range(plan.tiles * band // plan.bands, plan.tiles * (band + 1) // plan.bands):
            _sum_tile(target, maps, pixels, (sample, tile * size), (begin, end), scratch, back, plan)


@borrowing_jit
def _sum_tile(
    target: np.ndarray,
    maps: np.ndarray,
    source: np.ndarray,
    place: tuple,
    channels: tuple,
    scratch: ImagesScratch,
    back: bool,
    plan: ImagesPlan,
) -> None:
    """The tile of a sample from a pixel on, of a range of channels."""
    (high, wide), (sample, at), taps, kw = plan.size, place, plan.maps[0] * plan.maps[1], plan.maps[1]
    image, size = high * wide, len(scratch.start)
    pixels = min(size, image - at)
    top, bottom = at // wide, (at + pixels - 1) // wide
    row, column = top, at - top * wide
    left, right = (column, column + pixels - 1) if top == bottom else (0, wide - 1)
    for k in range(size):
        scratch.rows[k], scratch.columns[k] = row, column
        column += 1
        if column == wide:
            row, column = row + 1, 0
    down = _reaching(0, top, bottom, back, plan)
    beside = _reaching(1, left, right, back, plan)
    clear(scratch.start, 0, size)
    maps_at = sample * taps * image + at
    if not back:
        _add_outside(scratch.start, maps, maps_at, pixels, down, beside, plan)
    shift = down.shift * wide + beside.shift if back else 0
    first = maps_at + (down.first * kw + beside.first) * image + shift
    map_row, map_column = kw * image, image
    if back:
        map_row, map_column = map_row + down.step * wide, image + beside.step
    share = target.dtype.type(1) / target.dtype.type(plan.channels)
    for c in range(channels[0], channels[1], _CHANNELS_TOGETHER):
        begin = (sample * plan.channels + c) * image + at
        rows = Matrix(source, begin + down.shift * wide + beside.shift, image)
        tile = _ImageTile(rows, maps, first, map_row, map_column, down, beside, plan.size, pixels, share)
        number = min(_CHANNELS_TOGETHER, channels[1] - c)
        if back:
            _gather_back(Matrix(target, begin, image), tile, scratch, number)
        else:
            _gather_there(Matrix(target, begin, image), tile, scratch, number)


@borrowing_jit
def _reaching(axis: int, first: int, last: int, back: bool, plan: ImagesPlan) -> _Displaced:
    """The displacements that lead from one of these rows or columns, `first` to `last`, into the image."""
    extent, step, ahead = plan.size[axis], plan.window.dilation[axis], plan.window.padding[axis]
    if back:  # from p to p - (k*step - ahead)
        low, end = (first + ahead - extent) // step + 1, (last + ahead) // step + 1
    else:
        low, end = -((last - ahead) // step), (extent - 1 - first + ahead) // step + 1
    low, end = max(0, low), min(plan.maps[axis], end)
    shift = low * step - ahead
    return _Displaced(low, end, -shift if back else shift, -step if back else step)


@borrowing_jit
def _add_outside(
    start: np.ndarray,
    maps: np.ndarray,
    at: int,
    pixels: int,
    down: _Displaced,
    right: _Displaced,
    plan: ImagesPlan,
) -> None:
    """Zero times the gradients of maps for displacements that lead all pixels outside."""
    image, kw = plan.size[0] * plan.size[1], plan.maps[1]
    for a in range(plan.maps[0]):
        low, end = (right.first, right.end) if down.first <= a < down.end else (0, 0)
        begin = at + a * kw * image
        if low < end:
            _add_zeros(start, maps, begin, image, low, pixels)
            _add_zeros(start, maps, begin + end * image, image, kw - end, pixels)
        else:
            _add_zeros(start, maps, begin, image, kw, pixels)


@written(_TILE_VECTORS * REGISTER_BYTES)
def _add_zeros(writer: Writer, start: Any, maps: Any, at: Any, apart: Any, number: Any, pixels: Any) -> None:
    """Zero times so many rows, `apart` from each other."""
    builder = writer.builder
    with builder.if_then(builder.icmp_signed(">", number, number.type(0))):
        mask = writer.within(number.type(0), pixels)
        with Loop(builder, number, [writer.load(start, number.type(0))]) as loop:
            value = writer.load_masked(maps, builder.add(at, builder.mul(loop.k, apart)), mask)
            loop.values = [writer.multiply_add(loop.values[0], writer.zero, value)]
        writer.store(loop.values[0], start, number.type(0))


def _write_image_means(writer: Writer, target: Any, tile: Any, sums: list, number: Any) -> None:
    """What becomes of the sums of `number` channels."""
    builder, index = writer.builder, number.type
    places = [index(v * writer.lanes) for v in range(_TILE_VECTORS)]
    existing = [writer.within(place, tile.pixels) for place in places]
    share = writer.broadcast(tile.share)
    for c in range(_CHANNELS_TOGETHER):
        with builder.if_then(builder.icmp_signed("<", index(c), number)):
            to = builder.add(target.at, builder.mul(index(c), target.stride))
            for v, (place, mask) in enumerate(zip(places, existing, strict=True)):
                mean = writer.multiply(sums[c * _TILE_VECTORS + v], share)
                writer.store_masked(mean, target.values, builder.add(to, place), mask)


def _write_gather(writer: Writer, target: Any, tile: Any, scratch: Any, number: Any) -> None:
    """The sums of `number` channels, up to _CHANNELS_TOGETHER, a row of the target for each."""
    builder, index, back, lanes = writer.builder, number.type, writer.variant, writer.lanes
    kind = ir.VectorType(ir.IntType(32), lanes)
    places, sources = [index(v * lanes) for v in range(_TILE_VECTORS)], []
    for c in range(_CHANNELS_TOGETHER):
        each = builder.select(builder.icmp_signed("<", index(c), number), index(c), index(0))
        at = builder.add(tile.source.at, builder.mul(each, tile.source.stride))
        sources.append(builder.gep(tile.source.values, [at]))
    high, wide = (builder.extract_value(tile.size, k) for k in range(2))
    small = [writer.broadcast(builder.trunc(extent, ir.IntType(32))) for extent in (high, wide)]

    def numbers(array: Any) -> list:
        pointers = [builder.bitcast(builder.gep(array, [place]), kind.as_pointer()) for place in places]
        return [builder.load(pointer, align=4) for pointer in pointers]

    rows, columns = numbers(scratch.rows), numbers(scratch.columns)
    existing = [writer.within(place, tile.pixels) for place in places]
    start = [writer.load(scratch.start, place) for place in places]
    count = builder.sub(tile.down.end, tile.down.first), builder.sub(tile.right.end, tile.right.first)

    def inside(positions: list, moved: Any, extent: Any) -> list:
        moved = writer.broadcast(builder.trunc(moved, ir.IntType(32)))
        return [builder.icmp_unsigned("<", builder.add(each, moved), extent) for each in positions]

    sums = start * _CHANNELS_TOGETHER
    some = [builder.select(builder.icmp_signed(">", n, index(0)), n, index(0)) for n in count]
    some[0] = builder.select(builder.icmp_signed(">", some[1], index(0)), some[0], index(0))
    with GuardedLoop(builder, some[0], sums) as down:
        below = inside(rows, builder.add(tile.down.shift, builder.mul(down.k, tile.down.step)), small[0])
        below = [builder.and_(*pair) for pair in zip(below, existing, strict=True)]
        row = builder.mul(builder.mul(down.k, tile.down.step), wide)
        map_row = builder.add(tile.at, builder.mul(down.k, tile.map_row))
        with Loop(builder, count[1], down.values) as right:
            moved = builder.mul(right.k, tile.right.step)
            beside = inside(columns, builder.add(tile.right.shift, moved), small[1])
            masks = [builder.and_(*pair) for pair in zip(below, beside, strict=True)]
            at, map_at = builder.add(row, moved), builder.add(map_row, builder.mul(right.k, tile.map_column))
            for place in places:  # what the next tile reads: too many rows for the processor to foresee
                writer.prefetch(
                    tile.maps, builder.add(builder.add(map_at, place), index(lanes * _TILE_VECTORS))
                )
            factors = [
                writer.load_masked(tile.maps, builder.add(map_at, place), mask)
                for place, mask in zip(places, masks if back else existing, strict=True)
            ]
            pixels = [
                writer.load_masked(each, builder.add(at, place), mask)
                for each in sources
                for place, mask in zip(places, masks, strict=True)
            ]
            right.values = [
                writer.multiply_add(*three)
                for three in zip(right.values, factors * _CHANNELS_TOGETHER, pixels, strict=True)
            ]
        down.values = right.values
    _write_image_means(writer, target, tile, down.values, number)


_gather_there, _gather_back = (written(REGISTER_BYTES, back)(_write_gather) for back in (False, True))
