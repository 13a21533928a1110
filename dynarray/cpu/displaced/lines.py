"""Images of one row, in which units become the taps of a dense kernel.

A tile of outputs has several rows, of which a line has one. But units of a line that lead over few pixels are
few taps: all of them together a small matrix for each tap, and outputs are products of these with the line
moved by a pixel after the other, at the rate of arithmetic and however many units there are. The sums that
the gradients of units are made from are products too, of the gradient with the same moved lines.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import FALSE, TRUE, ZERO, borrowing_cached_jit
from ..engine.gemm import (
    TILE_ROW_BYTES,
    TILE_ROWS,
    Matrix,
    RightStrips,
    multiply,
    multiply_rows,
    pack_left,
    whole,
)
from ..engine.memory import borrow, run_with_scratch
from ..engine.pixels import transpose
from .blur import UnitBlur, blur_into
from .plan import Units

MOVED_BYTES = 4 * 1024 * 1024  # of lines, or of their gradients, that are moved or transposed at a time
LINE_COLUMNS = 256  # of outputs, that a work item makes
SUMMED_PIXELS = 32  # products added up in float32 before they join a sum in float64
_LEAST_TAPS, _TAPS_PER_UNIT = 16, 8  # beyond so many taps units are dearer to spread out than to read


class LineTaps(NamedTuple):
    """The taps that units of a line read: pixels ``low`` to ``low + number - 1`` further on."""

    low: int
    number: int


class LineWork(NamedTuple):
    """Some images of one row."""

    images: int
    targets: int
    sources: int
    length: int  # of a row
    plane: int  # elements from a source row, with zeros beside it, to the next
    begin: int  # where the outputs of the first image begin
    channels: int  # of all outputs
    chunk: int  # columns of a work item
    part: int  # targets of a work item


class LineScratch(NamedTuple):
    """Memory of a thread."""

    corner: Any
    sums: Any


def find_taps(units: Units, shape: tuple[int, ...]) -> LineTaps | None:
    """The taps of units on images of this shape, or None if they are no lines, or taps too many."""
    low_y, high_y = units.extent[:, 0].min(), units.extent[:, 1].max()
    if shape[2] != 1 or low_y != 0 or high_y != 0:
        return None
    low, high = int(units.extent[:, 2].min()), int(units.extent[:, 3].max())
    count = high - low + 2
    most = _LEAST_TAPS + _TAPS_PER_UNIT * units.x.shape[2]
    return LineTaps(low, count) if count <= most else None


def displace_lines(
    blurring: UnitBlur, units: Units, taps: LineTaps, base: np.ndarray, target: np.ndarray, first: int
) -> bool:
    """target[n, first + t] = base[t] + what the units of t read; whether all of it is finite."""
    source = blurring.source
    targets, sources = units.x.shape[:2]
    left = pack_left(_dense(units, taps).reshape(targets, sources * taps.number)).reshape(-1)
    width, length = TILE_ROW_BYTES // source.itemsize, source.shape[3]
    finite = True
    for image, planes, plane in _moved(blurring, taps):
        part = target[image : image + len(planes), first : first + targets]
        part[...] = base[:, None, None]
        chunk = min(LINE_COLUMNS, whole(length, width))
        items = len(planes) * -(-length // chunk)
        parts = min(-(-targets // TILE_ROWS), -(-parallel.ITEMS // items))
        own = whole(-(-targets // parts), TILE_ROWS)
        begin = (image * target.shape[1] + first) * length
        work = LineWork(
            len(planes), targets, sources, length, plane, begin, target.shape[1], chunk, own
        )
        rows = (np.arange(sources)[:, None] * plane + np.arange(taps.number)).reshape(-1)
        sizes, operations = LineScratch(TILE_ROWS * width, 0), 2.0 * part.size * len(rows)
        args = (planes.reshape(-1), left, rows, target.reshape(-1), work)
        run_with_scratch(line_items, items * -(-targets // own), operations, sizes, source.dtype, *args)
        finite = finite and bool(np.isfinite(part).all())
    return finite


def correlate_lines(
    blurring: UnitBlur, grad_output: np.ndarray, units: Units, taps: LineTaps, sums: np.ndarray, first: int
) -> None:
    """Add to `sums` (targets, sources, units, 4) those of the pixels that units read, times the gradient.

    Of the row below the line there is nothing.
    """
    source = blurring.source
    targets, sources, per_source = units.x.shape
    width, length = TILE_ROW_BYTES // source.itemsize, source.shape[3]
    across, down = whole(targets, width), whole(taps.number, TILE_ROWS)
    totals = np.zeros((sources, taps.number, targets))
    for image, planes, plane in _moved(blurring, taps, grad_output.shape[1]):
        count = len(planes)
        begin = (image * grad_output.shape[1] + first) * length
        work = LineWork(
            count, targets, sources, length, plane, begin, grad_output.shape[1], SUMMED_PIXELS, targets
        )
        turned = borrow("turned lines", count * across * length, source.dtype)
        operations = 2.0 * count * length * across
        strips = count * (across // width)
        parallel.run(turn_line_items, strips, operations, turned, grad_output.reshape(-1), work)
        sizes = LineScratch(0, down * across)
        operations *= sources * taps.number
        args = (planes.reshape(-1), turned, totals, work)
        run_with_scratch(correlate_line_items, sources, operations, sizes, source.dtype, *args)
    place = units.x - taps.low
    t, s, _ = np.ogrid[:targets, :sources, :per_source]
    sums[..., 0] += totals[s, place, t]
    sums[..., 1] += totals[s, place + 1, t]


def _dense(units: Units, taps: LineTaps) -> np.ndarray:
    """The kernel (targets, sources, taps) that units are together."""
    kernel = np.zeros((*units.x.shape[:2], taps.number), units.factors.dtype)
    t, s = np.ogrid[: units.x.shape[0], : units.x.shape[1]]
    for g in range(units.x.shape[2]):
        place, (fraction, weight) = units.x[..., g] - taps.low, np.moveaxis(units.factors[:, :, g, :2], -1, 0)
        kernel[t, s, place] += weight * (1 - fraction)
        kernel[t, s, place + 1] += weight * fraction
    return kernel


def _moved(
    blurring: UnitBlur, taps: LineTaps, channels: int = 0
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Blurred lines with zeros beside them, so that tap k reads at place + k: some images at a time.

    As many as fit, they or their gradients of so many channels. With the first of them comes how far lines
    lie apart.
    """
    source, width = blurring.source, TILE_ROW_BYTES // blurring.source.itemsize
    images, sources, _, length = source.shape
    plane = whole(length, width) + whole(taps.number + TILE_ROWS, width) + width
    size = max(sources, channels) * plane * source.itemsize
    at_once = max(1, min(images, MOVED_BYTES // size))
    for image in range(0, images, at_once):
        count = min(at_once, images - image)
        planes = borrow("planes", count * sources * plane, source.dtype).reshape(count, sources, plane)
        blurred = borrow("blurred lines", count * sources * length, source.dtype)
        blurred = blurred.reshape(count, sources, 1, length)
        blur_into(blurred, (0, 0), blurring._replace(source=source[image : image + count]))
        low, high = max(0, -taps.low), min(plane, length - taps.low)
        planes[...] = 0
        if high > low:  # else all units lead out of the image
            start = max(0, taps.low)
            planes[:, :, low:high] = blurred[:, :, 0, start : start + high - low]
        yield image, planes, plane


@borrowing_cached_jit
def line_items(
    start: int,
    stop: int,
    scratch: LineScratch,
    planes: np.ndarray,
    left: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    work: LineWork,
) -> None:
    """Items: (image, chunk of columns, part of the targets)."""
    width, depth = TILE_ROW_BYTES // planes.itemsize, len(rows)
    chunks, parts = (work.length + work.chunk - 1) // work.chunk, (work.targets + work.part - 1) // work.part
    for item in range(start, stop):
        image, column = item // parts // chunks, item // parts % chunks * work.chunk
        target = item % parts * work.part
        at = work.begin + (image * work.channels + target) * work.length + column
        size = min(work.part, work.targets - target), min(work.chunk, work.length - column)
        right = RightStrips(planes, image * work.sources * work.plane + column, width, rows)
        panel = Matrix(left, target * depth, depth * TILE_ROWS)
        multiply(Matrix(out, at, work.length), panel, right, size, scratch.corner, TRUE)


@borrowing_cached_jit
def turn_line_items(start: int, stop: int, turned: np.ndarray, grad: np.ndarray, work: LineWork) -> None:
    """Items: (image, strip of targets), a row for each pixel."""
    width, length = TILE_ROW_BYTES // grad.itemsize, work.length
    strips = (work.targets + width - 1) // width
    for item in range(start, stop):
        image, target = item // strips, item % strips * width
        lines = Matrix(grad, work.begin + (image * work.channels + target) * length, length)
        transpose(
            Matrix(turned, item * length * width, width), lines, min(width, work.targets - target), length
        )


@borrowing_cached_jit
def correlate_line_items(
    start: int,
    stop: int,
    scratch: LineScratch,
    planes: np.ndarray,
    turned: np.ndarray,
    totals: np.ndarray,
    work: LineWork,
) -> None:
    """Items: source channels. Adds to `totals` (sources, taps, targets)."""
    width, length = TILE_ROW_BYTES // planes.itemsize, work.length
    taps, across = totals.shape[1], whole(work.targets, width)
    out = Matrix(scratch.sums, ZERO, across)
    for source in range(start, stop):
        for image in range(work.images):
            line = (image * work.sources + source) * work.plane
            for pixel in range(0, length, work.chunk):
                depth = min(work.chunk, length - pixel)
                at = image * across * length + pixel * width
                right = RightStrips(turned, at, length * width, width)
                left = Matrix(planes, line + pixel, 1)
                multiply_rows(out, left, right, (taps, across), depth, FALSE)
                for tap in range(taps):
                    for target in range(work.targets):
                        totals[source, tap, target] += scratch.sums[tap * across + target]
