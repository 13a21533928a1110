"""The blur of `displaced_conv2d` on the CPU, and the planes that blurred images are packed into.

Planes have zeros around their pixels: as many as units lead out of the image, or so many that a unit which
leads further can be moved to where a whole tile of zeros is. No loop asks for borders.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import ZERO, borrowing_cached_jit, borrowing_jit, shared_jit
from ..engine.gemm import Matrix
from ..engine.memory import run_with_scratch
from ..engine.pixels import clear, copy, interleave
from ..engine.vectors import in_row
from .plan import UnitField, UnitPlanes

BLUR_PIXELS = 8192  # that are blurred at once


class UnitBlur(NamedTuple):
    """Images (N, C, H, W) that are blurred, and the taps down columns and along rows."""

    source: np.ndarray
    down: np.ndarray
    along: np.ndarray


class BlurTaps(NamedTuple):
    """Of the blur along one axis, its derivative by sigma, and its derivative by place.

    A radius of 0 leaves an axis as it is.
    """

    value: np.ndarray
    by_sigma: np.ndarray
    by_place: np.ndarray


@lru_cache(maxsize=16)
def blur_taps(spread: float, radius: int, dtype: Any) -> BlurTaps:
    """The taps of a Gaussian of this standard deviation."""
    offset = np.arange(-radius, radius + 1)
    # A tap that is too small to be represented is 0, also where the caller asked NumPy to raise.
    with np.errstate(over="ignore", under="ignore"):
        place = np.clip(offset / spread, -1e3, 1e3)  # beyond, the bell is 0, and infinity times 0 is NaN
        bell = np.exp(-(place**2) / 2)
        value = bell / bell.sum()
        by_sigma = value * (place**2 - (value * place**2).sum()) / spread
        by_place = value * place / spread
        return BlurTaps(*(taps.astype(dtype) for taps in (value, by_sigma, by_place)))


def within_size(taps: np.ndarray, size: int) -> np.ndarray:
    """Without those that no two pixels of a line are far enough apart for."""
    surplus = max(0, len(taps) // 2 - (size - 1))
    return taps[surplus : len(taps) - surplus]


class BlurScratch(NamedTuple):
    """Memory of a thread that blurs: room for `BLUR_PIXELS`, or for a row if that is longer."""

    lines: Any  # rows after the first pass
    padded: Any  # the same with zeros between them
    result: Any
    field: Any  # see `UnitField`


@borrowing_jit
def _blur(image: np.ndarray, first: int, rows: int, blur: UnitBlur, scratch: BlurScratch) -> int:
    """Rows of the blurred image, to scratch.result; returns how far these rows lie apart."""
    height, width = image.shape
    flat, radius = in_row(image), len(blur.down) // 2
    clear(scratch.lines, 0, rows * width)
    for i in range(len(blur.down)):
        shift = _inwards(i, radius)
        top, bottom = max(first, -shift), min(first + rows, height - shift)
        to, count = (top - first) * width, (bottom - top) * width
        _add_scaled(scratch.lines, to, flat, (top + shift) * width, count, blur.down[radius + shift])
    radius = len(blur.along) // 2
    pitch = width + radius
    clear(scratch.padded, 0, rows * pitch + radius)
    for i in range(rows):
        copy(scratch.padded, radius + i * pitch, scratch.lines, i * width, width)
    clear(scratch.result, 0, rows * pitch)
    for i in range(len(blur.along)):
        tap = radius + _inwards(i, radius)
        _add_scaled(scratch.result, ZERO, scratch.padded, tap, rows * pitch - radius, blur.along[tap])
    return pitch


@borrowing_jit
def _inwards(i: int, radius: int) -> int:
    """The i-th of radius, -radius, radius - 1, ..., 0: with the large taps last, less is rounded off."""
    return (radius - i // 2) * (1 - i % 2 * 2)


@borrowing_jit
def _add_scaled(
    target: np.ndarray, to: int, source: np.ndarray, start: int, count: int, factor: float
) -> None:
    t, s = np.uint64(to), np.uint64(start)
    for j in range(np.uint64(max(0, count))):
        target[t + j] += factor * source[s + j]


@shared_jit
def _blur_rows(image: np.ndarray, ends: tuple, blur: UnitBlur, target: Matrix, scratch: BlurScratch) -> None:
    """The rows of the blurred image that lie between `ends`, to the rows of the target with these numbers."""
    height, width = image.shape
    first, end, group = max(0, ends[0]), min(height, ends[1]), max(1, BLUR_PIXELS // width)
    for top in range(first, end, group):
        rows = min(group, end - top)
        pitch = _blur(image, top, rows, blur, scratch)
        for row in range(rows):
            to = target.at + (top + row) * target.stride
            copy(target.values, to, scratch.result, row * pitch, width)


@borrowing_cached_jit
def pack_unit_items(
    start: int, stop: int, scratch: BlurScratch, blur: UnitBlur, field: UnitField, planes: UnitPlanes
) -> None:
    """Items: planes of the block, (images, source channel)."""
    source, layout, block, cells = blur.source, planes.layout, planes.block, planes.layout.cells
    for item in range(start, stop):
        first = (block.image + item // block.sources) * cells.images
        channel = block.source + item % block.sources
        at = layout.plane * item
        if cells.step == 1:
            clear(planes.pixels, at, layout.plane)
            at += layout.x.before - block.first * layout.stride
            ends, plane = (block.first, block.first + layout.rows), Matrix(planes.pixels, at, layout.stride)
            _blur_rows(source[first, channel], ends, blur, plane, scratch)
            continue
        for row in range(0, layout.rows, field.rows):
            clear(scratch.field, 0, scratch.field.size)
            for n in range(min(cells.images, len(source) - first)):
                image = source[first + n, channel]
                for i in range(field.bands):
                    top = block.first + row + i * cells.height
                    to = (n * field.height + i * field.rows - top) * field.width + layout.x.before
                    ends = top, top + field.height // field.bands
                    _blur_rows(image, ends, blur, Matrix(scratch.field, to, field.width), scratch)
            for k in range(min(field.rows, layout.rows - row)):
                to, begin = at + (row + k) * layout.stride, k * field.width
                columns = layout.stride // cells.step
                interleave(planes.pixels, to, scratch.field, begin, field.starts, columns)


@borrowing_cached_jit
def blur_items(
    start: int, stop: int, scratch: BlurScratch, blur: UnitBlur, target: np.ndarray, first: tuple
) -> None:
    """Items: (image, channel). The blurred image, to the place in `target` that lies `first` further."""
    source, (height, width) = blur.source, blur.source.shape[2:]
    for item in range(start, stop):
        image, channel = item // source.shape[1], item % source.shape[1]
        out = Matrix(in_row(target[first[0] + image, first[1] + channel]), ZERO, width)
        _blur_rows(source[image, channel], (ZERO, height), blur, out, scratch)


@borrowing_cached_jit
def multiply_blurred_items(
    start: int,
    stop: int,
    scratch: BlurScratch,
    blur: UnitBlur,
    grad: np.ndarray,
    first: tuple,
    totals: np.ndarray,
) -> None:
    """Items: (image, channel) of `grad`. Adds to `totals` the sum of gradient times blurred image."""
    source, (height, width) = blur.source, blur.source.shape[2:]
    group = max(1, BLUR_PIXELS // width)
    for item in range(start, stop):
        image, channel = item // grad.shape[1], item % grad.shape[1]
        blurred, own = source[first[0] + image, first[1] + channel], grad[image, channel]
        for top in range(0, height, group):
            rows = min(group, height - top)
            pitch = _blur(blurred, top, rows, blur, scratch)
            for i in range(rows):
                for j in range(width):
                    totals[item] += float(own[top + i, j]) * scratch.result[i * pitch + j]


def run_blurring(
    kernel: Callable[..., None], items: int, pixels: int, blur: UnitBlur, *args: Any, field: int = 0
) -> None:
    """Run a kernel that blurs so many pixels in all; `field`: the scratch it needs beyond."""
    (source, down, along), width = blur, blur.source.shape[3]
    rows, longest = max(1, BLUR_PIXELS // width), max(len(down), len(along))
    size = rows * (width + longest) + longest
    sizes, operations = BlurScratch(rows * width, size, size, field), float(pixels * (len(down) + len(along)))
    run_with_scratch(kernel, items, operations, sizes, source.dtype, blur, *args)


def blur_into(target: np.ndarray, first: tuple[int, int], blur: UnitBlur) -> None:
    """The blurred images to target, from the first (image, channel) on."""
    items = blur.source.shape[0] * blur.source.shape[1]
    run_blurring(blur_items, items, blur.source.size, blur, target, first)
