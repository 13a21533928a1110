"""`dynamic_conv2d` on the CPU: what each output sees are pixels, in planes in which a tap is an offset."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import borrowing_cached_jit, kernel_input
from ..engine.memory import borrow, empty, zeros
from ..engine.pixels import inside
from ..engine.planes import TapPlanes, TapWindow, pack_channels, rows_of_plane, tap_planes
from ..engine.vectors import in_row
from .boxes import box_bands
from .dots import DOT_SLOTS, DotPlanes, add_dots, dot_gradients, dot_tiles


@borrowing_cached_jit
def conv_plane_items(
    start: int, stop: int, target: np.ndarray, x: np.ndarray, window: TapWindow, planes: TapPlanes
) -> None:
    """Items (image, channel): their planes, in `target` one after the other."""
    channels, image = x.shape[1], planes.plane * len(planes.origin_y)
    for item in range(start, stop):
        places = (item * image, image)
        pack_channels(in_row(target), places, x, (item // channels, item % channels, 1), window, planes)


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
    slots, number, (channels, height, width) = grad.shape[1], len(planes.origin_y), images.shape[1:]
    flat, gradient, step = in_row(images), in_row(grad), uint64(planes.stride[1])
    size, unit = (window.width, 1) if window.rows == 1 else (window.rows, window.width)
    for item in range(start, stop):
        n, c = item // channels, item % channels
        for slot in range(slots):
            for tile in range(tiles):
                begin, end = size * tile // tiles, size * (tile + 1) // tiles
                part = TapWindow(window.row + begin, end - begin, 0, window.width)
                if window.rows == 1:
                    part = TapWindow(window.row, 1, begin, end - begin)
                for plane in range(number if end > begin else 0):
                    rows = rows_of_plane(plane, part, planes)
                    top, bottom = inside(rows.number, rows.first, height, rows.origin[0], rows.step[0])
                    left, right = inside(rows.width, 0, width, rows.origin[1], rows.step[1])
                    at = ((n * slots + slot) * channels * number + c * number + plane) * planes.plane
                    at += begin * unit + tile * (planes.halo * window.width + planes.reach) + left
                    for i in range(top, bottom):
                        y = (rows.first + i) * rows.step[0] + rows.origin[0]
                        line = (item * height + y) * width + left * rows.step[1] + rows.origin[1]
                        to, f = uint64(line), uint64(at + i * rows.width)
                        if rows.step[1] == 1:
                            for j in range(uint64(right - left)):
                                flat[to + j] += gradient[f + j]
                        else:
                            for j in range(uint64(right - left)):
                                flat[to + j * step] += gradient[f + j]


def _conv_places(
    weight: tuple, rows: slice, tiles: int, params: dict[str, tuple[int, int]]
) -> tuple[TapPlanes, DotPlanes]:
    """The planes for some rows of outputs, cut into tiles, and where terms lie in them."""
    kernel, (count, wide) = weight[3:5], (rows.stop - rows.start, weight[6])
    steps = params["stride"], params["dilation"], params["padding"]
    planes, number, begins = tap_planes(kernel, *steps, (count, wide))
    beyond = planes.halo * wide + planes.reach
    planes = planes._replace(plane=count * wide + tiles * beyond)
    image = planes.plane * len(planes.origin_y)
    terms = np.arange(weight[2])[:, None] * image + number * planes.plane + begins
    # A single row is cut into columns.
    return planes, DotPlanes(terms.reshape(-1), 1 if count == 1 else wide, beyond)


def _pack_planes(x: np.ndarray, rows: slice, wide: int, planes: TapPlanes) -> np.ndarray:
    """(n, planes of all channels, elements)."""
    n, channels = x.shape[:2]
    seen = borrow("planes", (n, channels * len(planes.origin_y), planes.plane), x.dtype)
    window = TapWindow(rows.start, rows.stop - rows.start, 0, wide)
    parallel.run(conv_plane_items, n * channels, 2.0 * seen.size, seen, x, window, planes)
    return seen


def _weight_by_term(weight: np.ndarray) -> np.ndarray:
    """(N, O, terms, positions): channels and taps are the terms of one sum."""
    n, outputs, channels, kh, kw, high, wide = weight.shape
    return weight.reshape(n, outputs, channels * kh * kw, high * wide)


def _conv_bands(weight: np.ndarray, copies: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of outputs, for which there are so many copies of the planes."""
    n, _, channels, _, kw, high, wide = weight.shape
    return box_bands(n, high, copies * channels * kw * wide * weight.itemsize)


def dynamic_conv2d_forward(x: Any, weight: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_conv2d`; keeps the inputs for the backward pass."""
    y = np.zeros((*weight.shape[:2], *weight.shape[5:]), x.dtype)
    if not y.size or not x.size:
        # Every tap reads a zero outside the image, which takes part in the products.
        with np.errstate(all="ignore"):
            return y + (weight * 0).sum(axis=(2, 3, 4)), (x, weight)
    kernels, pixels, wide = _weight_by_term(kernel_input(weight)), kernel_input(x), y.shape[3]
    for images, rows in _conv_bands(weight, 1):
        planes, places = _conv_places(weight.shape, rows, 1, params)
        seen, part = _pack_planes(pixels[images], rows, wide, planes), y[images, :, rows]
        # What is one piece of memory is written in place.
        sums = part if part.flags.c_contiguous else np.zeros(part.shape, x.dtype)
        add_dots(sums.reshape(*sums.shape[:2], -1), kernels[images], seen, places, rows.start * wide)
        if sums is not part:
            part[...] = sums
    return y, (x, weight)


def dynamic_conv2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], **params: Any
) -> tuple[Any, Any]:
    """Gradients of `dynamic_conv2d` with respect to x and weight."""
    x, weight = kept
    grad_x = zeros(x.shape, x.dtype) if needs[0] else None
    grad_weight = empty(weight.shape, weight.dtype) if needs[1] else None
    if not x.size or not weight.size:
        if grad_weight is not None:
            with np.errstate(all="ignore"):
                grad_weight[...] = grad_output[:, :, None, None, None] * 0
        return grad_x, grad_weight
    kernels, pixels, wide = _weight_by_term(kernel_input(weight)), kernel_input(x), weight.shape[6]
    grad_kernels, tiles = (
        None if grad_weight is None else _weight_by_term(grad_weight),
        dot_tiles(weight.shape[1]),
    )
    for images, rows in _conv_bands(weight, 1 + DOT_SLOTS):
        planes, places = _conv_places(weight.shape, rows, tiles, params)
        seen = _pack_planes(pixels[images], rows, wide, planes)
        gradient = kernel_input(grad_output[images, :, rows])
        gradient = gradient.reshape(*gradient.shape[:2], -1)
        own, first = None if grad_kernels is None else grad_kernels[images], rows.start * wide
        arguments = (gradient, kernels[images], seen, own, grad_x is not None, first)
        grad_planes = dot_gradients("grad_planes", places, *arguments)
        if grad_x is not None:
            window, part = TapWindow(rows.start, rows.stop - rows.start, 0, wide), grad_x[images]
            items, work = part.shape[0] * part.shape[1], 2.0 * grad_planes.size
            parallel.run(conv_spread_items, items, work, grad_planes, part, window, planes, tiles)
    return grad_x, grad_weight
