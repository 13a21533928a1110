"""`dynamic_conv2d` on the CPU: what each output sees are pixels, in planes in which a tap is an offset."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import ZERO, borrowing_cached_jit, borrowing_jit, kernel_input
from ..engine.memory import borrow, empty, run_with_scratch, zeros
from ..engine.pixels import PackedRows, covered
from ..engine.planes import TapPlanes, TapWindow, pack_channels, rows_of_plane, tap_planes
from ..engine.runs import TERMS_TOGETHER, RunRows, sum_terms
from ..engine.vectors import in_row
from .boxes import box_bands
from .dots import (
    DotPlanes,
    DotShares,
    dot_gradients,
    dot_gradients_of_images,
    dot_positions,
    dot_shares,
    dot_tiles,
    dots_of_images,
    make_dots,
)

# Of channels that are packed together: what they have in common is found once, and they stay in the cache.
CONV_PIXELS_BYTES = 64 * 1024
CONV_TILE_BYTES = 512 * 1024  # of the planes of a tile, which stay in the second cache for all outputs
# Terms of a sum for each element that is packed for it, at least: packing is to take little time beside them.
_LEAST_USES = 12


class ConvCall(NamedTuple):
    """What a plan depends on."""

    weight: tuple[int, ...]
    itemsize: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]


class ConvTiles(NamedTuple):
    """How outputs are divided in the forward pass."""

    rows: int  # of a tile
    columns: int
    planes: TapPlanes  # of a tile
    terms: np.ndarray  # of the channels that are packed together: where each begins in the planes of a tile
    channels: int
    chunks: int  # of the output channels


class ConvTileScratch(NamedTuple):
    """Of a tile."""

    seen: Any  # the planes of some channels


class ConvBand(NamedTuple):
    """Some rows of outputs of some images: what the backward pass works on at a time."""

    images: slice
    rows: slice
    first: int  # position of the outputs
    window: TapWindow
    planes: TapPlanes
    places: DotPlanes
    per_image: tuple[int, int]  # planes of all channels, and the elements of each


@borrowing_jit
def _cached_channels(item: int, stop: int, images: np.ndarray) -> tuple:
    """Image and channel of an item, and how many channels, up to `stop`, go through the cache at once."""
    channels, size = images.shape[1], images.shape[2] * images.shape[3] * images.itemsize
    c = item % channels
    return item // channels, c, min(stop - item, channels - c, max(1, CONV_PIXELS_BYTES // size))


@borrowing_cached_jit
def conv_plane_items(
    start: int, stop: int, target: np.ndarray, x: np.ndarray, window: TapWindow, planes: TapPlanes
) -> None:
    """Items (image, channel): their planes, in `target` one after the other."""
    image, item = planes.plane * len(planes.origin_y), start
    while item < stop:
        some = _cached_channels(item, stop, x)
        pack_channels(in_row(target), (item * image, image), x, some, window, planes)
        item += some[2]


@borrowing_cached_jit
def conv_spread_items(
    start: int,
    stop: int,
    grad: np.ndarray,
    images: np.ndarray,
    window: TapWindow,
    planes: TapPlanes,
    tiles: int,
) -> None:
    """Items (image, channel): the adjoint of `conv_plane_items`, added to `images`.

    `grad` is (N, slots, planes of all channels, elements), in which planes lie tile after tile: of rows,
    or of columns if there is one row.
    """
    slots, number, channels, item = grad.shape[1], len(planes.origin_y), images.shape[1], start
    size, unit = (window.width, 1) if window.rows == 1 else (window.rows, window.width)
    while item < stop:
        n, first, count = _cached_channels(item, stop, images)
        for slot in range(slots):
            for tile in range(tiles):
                begin, end = size * tile // tiles, size * (tile + 1) // tiles
                part = TapWindow(window.row + begin, end - begin, 0, window.width)
                if window.rows == 1:
                    part = TapWindow(window.row, 1, begin, end - begin)
                at = begin * unit + tile * (planes.halo * window.width + planes.reach)
                for plane in range(number if end > begin else 0):
                    rows = rows_of_plane(plane, part, planes)
                    where = covered(rows, images[n, first])
                    for c in range(first, first + count):
                        own = ((n * slots + slot) * channels + c) * number + plane
                        add_rows(images, n * channels + c, grad, own * planes.plane + at, rows, where)
        item += count


@borrowing_jit
def add_rows(
    images: np.ndarray, image: int, grad: np.ndarray, at: int, rows: PackedRows, where: tuple
) -> None:
    """The adjoint of packing rows, which begin there, added to one of the images."""
    (top, bottom), (left, right) = where
    (height, width), flat, gradient = images.shape[2:], in_row(images), in_row(grad)
    y, step, number = (rows.first + top) * rows.step[0] + rows.origin[0], rows.step[1], uint64(right - left)
    line = (image * height + y) * width + left * step + rows.origin[1]
    for i in range(bottom - top):
        to, f = uint64(line + i * rows.step[0] * width), uint64(at + (top + i) * rows.width + left)
        if step == 1:
            for j in range(number):
                flat[to + j] += gradient[f + j]
        else:
            for j in range(number):
                flat[to + j * uint64(step)] += gradient[f + j]


@borrowing_cached_jit
def conv_items(
    start: int,
    stop: int,
    scratch: ConvTileScratch,
    y: np.ndarray,
    kernels: np.ndarray,
    x: np.ndarray,
    tiles: ConvTiles,
) -> None:
    """Items (image, tile, chunk of outputs) of y (N, O, rows, columns); kernels are (N, O, terms, positions).

    What a tile sees is packed by the thread that reads it, into its own cache.
    """
    (outputs, high, wide), (terms, positions), channels = y.shape[1:], kernels.shape[2:], x.shape[1]
    down, across, chunks = -(-high // tiles.rows), -(-wide // tiles.columns), tiles.chunks
    image, taps = tiles.planes.plane * len(tiles.planes.origin_y), terms // channels
    total, kernel, seen = in_row(y), in_row(kernels), scratch.seen
    for item in range(start, stop):
        chunk, tile, n = item % chunks, item // chunks % (down * across), item // (chunks * down * across)
        row, column = tile // across * tiles.rows, tile % across * tiles.columns
        rows, columns = min(tiles.rows, high - row), min(tiles.columns, wide - column)
        window, begin, count = TapWindow(row, rows, column, columns), row * wide + column, rows * columns
        for c in range(0, channels, tiles.channels):
            together = min(tiles.channels, channels - c)
            pack_channels(seen, (0, image), x, (n, c, together), window, tiles.planes)
            for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
                number = n * outputs + o
                to, at = number * positions + begin, (number * terms + c * taps) * positions + begin
                own, pixels = RunRows(kernel, at, positions), RunRows(seen, ZERO, tiles.terms)
                sum_terms(RunRows(total, to, ZERO), own, pixels, together * taps, count, c > 0)


@lru_cache(maxsize=64)
def conv_tiles(call: ConvCall) -> ConvTiles:
    """Tiles of rows, or of columns of one row, and of few enough channels."""
    n, outputs, channels, kh, kw, high, wide = call.weight
    positions = dot_positions(channels * kh * kw)
    rows = max(1, min(high, positions // wide))
    rows = -(-high // -(-high // rows))
    columns = wide if rows > 1 else -(-wide // -(-wide // positions))
    planes, number, begins = tap_planes((kh, kw), *call[2:], (rows, columns))
    image = planes.plane * len(planes.origin_y)
    # So many channels that a tile of any size adds up the same terms together.
    room = CONV_TILE_BYTES // (image * call.itemsize)
    together = min(channels, max(TERMS_TOGETHER, room - room % TERMS_TOGETHER))
    terms = np.arange(together)[:, None] * image + number * planes.plane + begins
    items = n * -(-high // rows) * -(-wide // columns)
    least = -(-_LEAST_USES * len(planes.origin_y) // (kh * kw))
    chunks = max(1, min(outputs // least, -(-parallel.ITEMS // items)))
    return ConvTiles(rows, columns, planes, terms.reshape(-1), together, chunks)


@lru_cache(maxsize=64)
def _conv_places(
    weight: tuple[int, ...], rows: int, tiles: int, *steps: tuple[int, int]
) -> tuple[TapPlanes, DotPlanes]:
    """The planes for so many rows of outputs, cut into tiles, and where terms lie in them."""
    wide = weight[6]
    planes, number, begins = tap_planes(weight[3:5], *steps, (rows, wide))
    beyond = planes.halo * wide + planes.reach
    planes = planes._replace(plane=rows * wide + tiles * beyond)
    image = planes.plane * len(planes.origin_y)
    terms = np.arange(weight[2])[:, None] * image + number * planes.plane + begins
    # A single row is cut into columns.
    return planes, DotPlanes(terms.reshape(-1), 1 if rows == 1 else wide, beyond, 0)


@lru_cache(maxsize=64)
def conv_bands(call: ConvCall, shares: DotShares) -> tuple[ConvBand, ...]:
    """All bands of the backward pass, of whose shares each has a copy of the planes."""
    n, _, channels, _, kw, high, wide = call.weight
    slots, tiles = shares
    made = list[ConvBand]()
    for images, rows in box_bands(n, high, (1 + slots) * channels * kw * wide * call.itemsize):
        count = rows.stop - rows.start
        planes, places = _conv_places(call.weight, count, tiles, *call[2:])
        window = TapWindow(rows.start, count, 0, wide)
        per_image = channels * len(planes.origin_y), planes.plane
        made.append(ConvBand(images, rows, rows.start * wide, window, planes, places, per_image))
    return tuple(made)


def _pack_planes(x: np.ndarray, band: ConvBand) -> np.ndarray:
    """(n, planes of all channels, elements)."""
    n, channels = x.shape[:2]
    seen = borrow("planes", (n, *band.per_image), x.dtype)
    parallel.run(
        conv_plane_items, n * channels, parallel.PER_NUMBER * seen.size, seen, x, band.window, band.planes
    )
    return seen


def _weight_by_term(weight: np.ndarray) -> np.ndarray:
    """(N, O, terms, positions): channels and taps are the terms of one sum."""
    n, outputs, channels, kh, kw, high, wide = weight.shape
    return weight.reshape(n, outputs, channels * kh * kw, high * wide)


def _is_pointwise(weight: np.ndarray, params: dict[str, Any]) -> bool:
    """Whether each output sees the pixels in its own place alone: then the image itself is the planes."""
    return weight.shape[3:5] == params["stride"] == (1, 1) and params["padding"] == (0, 0)


def dynamic_conv2d_forward(x: Any, weight: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_conv2d`; keeps the inputs for the backward pass."""
    y = empty((*weight.shape[:2], *weight.shape[5:]), x.dtype)
    if not y.size or not x.size:
        # Every tap reads a zero outside the image, which takes part in the products.
        with np.errstate(all="ignore"):
            return (weight * 0).sum(axis=(2, 3, 4)), (x, weight)
    kernels, pixels = _weight_by_term(kernel_input(weight)), kernel_input(x)
    if _is_pointwise(weight, params):
        pixels, sums = pixels.reshape(*x.shape[:2], -1), y.reshape(*y.shape[:2], -1)
        make_dots(sums, kernels, pixels, dots_of_images(pixels, 0), 0)
        return y, (x, weight)
    tiles = conv_tiles(ConvCall(weight.shape, x.itemsize, **params))
    items = len(x) * -(-y.shape[2] // tiles.rows) * -(-y.shape[3] // tiles.columns) * tiles.chunks
    scratch = ConvTileScratch(tiles.planes.plane * len(tiles.planes.origin_y) * tiles.channels)
    operations = parallel.PER_NUMBER * float(weight.size)
    run_with_scratch(conv_items, items, operations, scratch, x.dtype, y, kernels, pixels, tiles)
    return y, (x, weight)


def dynamic_conv2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], **params: Any
) -> tuple[Any, Any]:
    """Gradients of `dynamic_conv2d` with respect to x and weight."""
    x, weight = kept
    grad_weight = empty(weight.shape, weight.dtype) if needs[1] else None
    if not x.size or not weight.size:
        if grad_weight is not None:
            with np.errstate(all="ignore"):
                grad_weight[...] = grad_output[:, :, None, None, None] * 0
        return zeros(x.shape, x.dtype) if needs[0] else None, grad_weight
    kernels, pixels = _weight_by_term(kernel_input(weight)), kernel_input(x)
    grad_kernels, shares = None, dot_shares(*kernels.shape[1:])
    if grad_weight is not None:
        grad_kernels = _weight_by_term(grad_weight)
    tiles = dot_tiles(len(x), *kernels.shape[1:]) if _is_pointwise(weight, params) else None
    if tiles is not None:
        grad_x = empty(x.shape, x.dtype) if needs[0] else None
        pixels, gradient = pixels.reshape(*x.shape[:2], -1), kernel_input(grad_output)
        gradient = gradient.reshape(*gradient.shape[:2], -1)
        of_images: tuple = gradient, kernels, pixels, grad_kernels
        dot_gradients_of_images(dots_of_images(pixels, 0), tiles, 0, of_images, (grad_x, None))
        return grad_x, grad_weight
    grad_x = zeros(x.shape, x.dtype) if needs[0] else None
    for band in conv_bands(ConvCall(weight.shape, x.itemsize, **params), shares):
        images, seen = band.images, _pack_planes(pixels[band.images], band)
        gradient = kernel_input(grad_output[images, :, band.rows])
        gradient = gradient.reshape(*gradient.shape[:2], -1)
        own = None if grad_kernels is None else grad_kernels[images]
        given = gradient, kernels[images], seen, own, grad_x is not None
        grad_planes = dot_gradients("grad_planes", band.places, shares, band.first, given)
        if grad_x is not None:
            part, work = grad_x[images], parallel.PER_NUMBER * grad_planes.size
            items, arguments = part.shape[0] * part.shape[1], (band.window, band.planes, shares.tiles)
            parallel.run(conv_spread_items, items, work, grad_planes, part, *arguments)
    return grad_x, grad_weight
