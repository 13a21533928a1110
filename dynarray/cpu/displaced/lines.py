"""Images of one row, in which units become the taps of a dense kernel.

A tile of outputs has several rows, of which a line has one. But units of a line that lead over few pixels are
few taps: all of them together a small matrix for each tap, and outputs are products of these with the line
moved by a pixel after the other, at the rate of arithmetic and however many units there are. The sums that
the gradients of units are made from are products too, of the gradient with the same moved lines.

Lines are blurred as they are read, a piece at a time, into memory that stays in the caches, zeros beside
them. The gradient of x is the same product with channels exchanged and taps turned round, blurred after that.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.gemm import whole
from ..engine.memory import borrow, empty, run_with_scratch
from ..engine.vectors import LINE_BYTES, REGISTER_BYTES
from . import line_kernels as kernels
from . import line_tiles
from .blur import UnitBlur, blur_taps, within_size
from .definition import correlate_again, displace_again, product_again
from .kernels import UnitParameters, UnitTargets
from .line_kernels import (
    BLURRED_PIXELS,
    SUMMED_VECTORS,
    LineBlur,
    LineKernel,
    LineOutput,
    LineParts,
    LineScratch,
    LineSums,
    SumParts,
    UnitGradients,
)
from .line_tiles import BlurWeights, LineTaps
from .tiles import UNIT_SUMS

KERNEL_ELEMENTS = 1 << 20  # of a dense kernel, or of sums, that are there at a time
LINE_GRADIENT_BYTES = 4 * 1024 * 1024  # of blurred lines: what waits for being blurred itself
LINE_CACHE_BYTES = 256 * 1024  # of blurred lines that a thread reads again and again
LEAST_COLUMNS = 128  # of outputs that it makes from these
# To have more work items: for so many targets lines are blurred once more, and sums of so many pixels are
# kept apart.
LEAST_TARGETS, SUMMED_APART = 8, 4096
LEAST_UNITS = 4096  # that a work item looks at
PRODUCTS = 16  # multiply-adds of a vector loop that take as long as an operation elsewhere
_FARTHEST = 1 << 22  # places that float32 tells apart, the pixels around them too
_LEAST_TAPS, _TAPS_PER_UNIT = 16, 8  # beyond so many taps units are dearer to spread out than to read


class LineCall(NamedTuple):
    """What both passes are given: parameters of units, the taps that these are, and sigma of the blur."""

    parameters: UnitParameters
    taps: LineTaps
    opposite: LineTaps  # of the same units, displaced to the other side
    spread: float
    radius: int


def find_call(
    shape: tuple[int, ...], weight: np.ndarray, displacement: np.ndarray, spread: float, radius: int
) -> LineCall | None:
    """A call on images of this shape; None if units are no lines, or taps too many."""
    if shape[2] != 1:
        return None
    parameters = UnitParameters(weight, displacement, (1, shape[3]))
    items = min(parallel.ITEMS, -(-weight.size // LEAST_UNITS))
    extents = np.empty((items, 5), np.int64)
    found = np.empty((items, 3 * REGISTER_BYTES // weight.itemsize), weight.dtype)
    parallel.run(kernels.find_extent_items, items, weight.size, parameters, found, extents)
    low, high, low_opposite, high_opposite, off = extents.min(axis=0).tolist()
    taps, opposite = LineTaps(low, 2 - high - low), LineTaps(low_opposite, 2 - high_opposite - low_opposite)
    too_many = taps.number > _LEAST_TAPS + _TAPS_PER_UNIT * weight.shape[2]
    if off or too_many or max(-low, -high) > _FARTHEST:
        return None
    return LineCall(parameters, taps, opposite, spread, radius)


def line_forward(call: LineCall, x: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The output, `base` included."""
    y = empty((x.shape[0], len(base), *x.shape[2:]), x.dtype)
    own = call.parameters._replace(size=x.shape[2:])  # x may be a part of the whole
    for targets, kernel in _spread_units(call, False):
        some = slice(targets.first, targets.first + kernel.targets)
        if not _displace_lines(_blurred(call, x, "value"), kernel, base[some], y, targets.first):
            blurring = _plain(call, x, "value")
            displace_again(blurring, targets._replace(parameters=own), base[some], y[:, some])
    return y


def line_backward_x(
    call: LineCall, grad_output: np.ndarray, x: np.ndarray, grad_x: np.ndarray | None, needs_sigma: bool
) -> float:
    """Write the gradient of x, if it is needed; return that of sigma, if it is."""
    (images, _, _, length), total = x.shape, 0.0
    room = LINE_GRADIENT_BYTES // (length * x.itemsize)  # lines
    at_once = max(1, min(images, room))
    for targets, kernel in _spread_units(call, True, room // at_once):
        base = np.zeros(kernel.targets, x.dtype)
        for image in range(0, images, at_once):
            part, first = grad_output[image : image + at_once], (image, targets.first)
            grad = borrow("line gradients", (len(part), kernel.targets, 1, length), x.dtype)
            if not _displace_lines(_as_they_are(part), kernel, base, grad, 0):
                one = np.ones(1, x.dtype)
                displace_again(UnitBlur(part, one, one), targets, base, grad)
            if grad_x is not None:
                _blur_into(grad_x, first, _blurred(call, grad, "value"), kernel.targets)
            if needs_sigma:
                product = _line_product(_blurred(call, x, "by_sigma"), grad, (*first, x.shape[1]))
                if not math.isfinite(product):
                    # Along y, where nothing is blurred, the definition multiplies by 0.
                    across = _plain(call, x, "value")._replace(down=np.zeros(1, x.dtype))
                    product = product_again((across, _plain(call, x, "by_sigma")), grad, first)
                total += product
    return total


def line_backward_units(
    call: LineCall, grad_output: np.ndarray, x: np.ndarray, grads: list[np.ndarray | None], smooth: bool
) -> None:
    """Write the gradients of weight and displacement that are needed."""
    passes = [("value", grads)]
    if smooth:
        passes = [("value", [grads[0], None]), ("by_place", [None, grads[1]])]
    (_, channels, _), number = call.parameters.weight.shape, call.taps.number
    size = channels * -(-number // line_tiles.SUMMED_TAPS) * line_tiles.SUMS  # of sums, for each target
    for kind, (grad_weight, grad_displacement) in passes:
        if grad_weight is None and grad_displacement is None:
            continue
        results = _unit_gradients(grad_weight, grad_displacement, x.dtype, smooth)
        for first, count in _target_chunks(grad_output.shape[1], size):
            targets = UnitTargets(call.parameters, False, first)
            sums = _correlate_lines(_blurred(call, x, kind), grad_output, call.taps, (first, count))
            if not _finish_units(sums, call.taps, targets, results):
                wanted = [(0, grad_weight[..., None])] if grad_weight is not None else []
                wanted += [(4 if smooth else 2, grad_displacement)] if grad_displacement is not None else []
                again = _plain(call, x, kind), grad_output, targets, _sums_of_units(sums, call), wanted
                correlate_again(*again)


def _unit_gradients(
    grad_weight: np.ndarray | None, grad_displacement: np.ndarray | None, dtype: np.dtype, smooth: bool
) -> UnitGradients:
    """The results, with nothing in the place of those that are not wanted."""
    by_weight, by_displacement = grad_weight is not None, grad_displacement is not None
    weight = np.empty((0, 0, 0), dtype) if grad_weight is None else grad_weight
    displacement = np.empty((0, 0, 0, 0), dtype) if grad_displacement is None else grad_displacement
    return UnitGradients(weight, displacement, by_weight, by_displacement, smooth)


def _target_chunks(count: int, each: int, most: int = KERNEL_ELEMENTS) -> Iterator[tuple[int, int]]:
    """Pieces of a range whose numbers stand for `each` elements, at most `most` numbers: first, and count."""
    size = max(1, min(most, KERNEL_ELEMENTS // each))
    for first in range(0, count, size):
        yield first, min(size, count - first)


def _spread_units(
    call: LineCall, transposed: bool, most: int = KERNEL_ELEMENTS
) -> Iterator[tuple[UnitTargets, LineKernel]]:
    """As many target channels at a time as fit, at most `most`, and the dense kernel of their units."""
    weight, taps = call.parameters.weight, call.opposite if transposed else call.taps
    (outputs, channels, per_pair), number = weight.shape, taps.number
    targets, sources = (channels, outputs) if transposed else (outputs, channels)
    for first, count in _target_chunks(targets, sources * number, most):
        values = borrow("line kernel", count * sources * number, weight.dtype)
        target, source = (number, count * number) if transposed else (sources * number, number)
        kernel = LineKernel(values, count, sources, target, source, taps)
        some, operations = UnitTargets(call.parameters, transposed, first), 4.0 * count * sources * per_pair
        items = outputs if transposed else count
        parallel.run(kernels.spread_unit_items, items, operations, some, kernel)
        yield some, kernel


def _plain(call: LineCall, source: np.ndarray, kind: str) -> UnitBlur:
    """The blur of lines, or a derivative of it, as images are blurred."""
    along = getattr(blur_taps(call.spread, call.radius, source.dtype), kind)
    return UnitBlur(source, np.ones(1, source.dtype), within_size(along, source.shape[3]))


@lru_cache(maxsize=64)
def _weights(spread: float, radius: int, dtype: Any, kind: str, length: int) -> tuple[BlurWeights, int]:
    """Taps and radius of a blur of lines: the large ones last, so that less is rounded off."""
    taps = within_size(getattr(blur_taps(spread, radius, dtype), kind), length)
    radius = len(taps) // 2
    places = np.array(sorted(range(len(taps)), key=lambda place: -abs(place - radius)), np.int64)
    return BlurWeights(taps[places], places, len(taps)), radius


def _blurred(call: LineCall, source: np.ndarray, kind: str) -> LineBlur:
    length = source.shape[3]
    reach = min(length, call.radius + 1)  # from where on all lengths are alike
    weights, radius = _weights(call.spread, call.radius, source.dtype, kind, reach)
    return LineBlur(source.reshape(-1), length, weights, radius)


def _as_they_are(source: np.ndarray) -> LineBlur:
    """Lines that are not blurred."""
    weights = BlurWeights(np.empty(0, source.dtype), np.empty(0, np.int64), 0)
    return LineBlur(source.reshape(-1), source.shape[3], weights, 0)


def _line_scratch(lines: int, pitch: int, blur: LineBlur) -> LineScratch:
    """Room for so many lines, one every `pitch` elements."""
    lanes = REGISTER_BYTES // blur.source.itemsize
    return LineScratch(lines * pitch, BLURRED_PIXELS + 2 * blur.radius + lanes, lanes)


def _line_pitch(pixels: int, blur: LineBlur) -> int:
    """From a line of so many pixels to the next: whole cache lines, an odd number of them."""
    line = LINE_BYTES // blur.source.itemsize
    return (-(-pixels // line) | 1) * line


def _tile_vectors(targets: int, length: int, itemsize: int) -> int:
    """The vectors in a row of the tiles of outputs that waste least; broad tiles are a bit faster."""
    lanes = REGISTER_BYTES // itemsize

    def cost(vectors: int) -> float:
        tiles = -(-targets * vectors // line_tiles.OUTPUT_SUMS) * -(-length // (vectors * lanes))
        return tiles if vectors == line_tiles.BROAD_VECTORS else 1.15 * tiles

    return min((line_tiles.BROAD_VECTORS, line_tiles.LONG_VECTORS, 1), key=cost)


def _displace_lines(
    blur: LineBlur, kernel: LineKernel, base: np.ndarray, target: np.ndarray, first: int
) -> bool:
    """target[n, first + t] = base[t] + what the units of t read of blurred lines; whether all is finite."""
    (images, channels, _, length), itemsize, taps = target.shape, target.itemsize, kernel.taps.number
    vectors = _tile_vectors(kernel.targets, length, itemsize)
    width = vectors * REGISTER_BYTES // itemsize
    fitting = (LINE_CACHE_BYTES // (kernel.sources * itemsize) - taps) // width * width
    # Of one line as many pieces as work items are wanted, unless what they read beside them were too much.
    piece = whole(max(LEAST_COLUMNS, -(-images * length // parallel.ITEMS)), width)
    columns = min(max(width, fitting), piece, whole(length, width))
    chunks = -(-length // columns)
    parts = max(1, min(kernel.targets // LEAST_TARGETS, -(-parallel.ITEMS // (images * chunks))))
    own = whole(-(-kernel.targets // parts), line_tiles.OUTPUT_SUMS // vectors)
    parts = -(-kernel.targets // own)
    checks, pitch = np.empty(images * chunks * parts, target.dtype), _line_pitch(columns + taps, blur)
    output = LineOutput(base, target.reshape(-1), first * length, channels * length, checks)
    work = images * length * kernel.sources * (kernel.targets * taps + blur.weights.number) / PRODUCTS
    args = (blur, kernel, output, LineParts(columns, chunks, own, parts, pitch, vectors))
    scratch = _line_scratch(kernel.sources, pitch, blur)
    run_with_scratch(kernels.displace_line_items, len(checks), work, scratch, target.dtype, *args)
    return math.isfinite(checks.sum())


def _correlate_lines(
    blur: LineBlur, grad_output: np.ndarray, taps: LineTaps, some: tuple[int, int]
) -> LineSums:
    """Sums of the gradient of some targets, the first and how many, times the lines, moved by each tap."""
    (images, channels, _, length), (first, targets) = grad_output.shape, some
    sources, lanes = blur.source.size // (images * length), REGISTER_BYTES // grad_output.itemsize
    tiles = -(-targets // line_tiles.SUMMED_CHANNELS), -(-taps.number // line_tiles.SUMMED_TAPS)
    # Parts of the images are better than others, which read the same again, but take memory.
    most = KERNEL_ELEMENTS // (sources * tiles[0] * tiles[1] * line_tiles.SUMS)
    splits = max(1, min(images, parallel.ITEMS, most, images * length // SUMMED_APART))
    image = -(-images // splits)
    splits = -(-images // image)
    down = min(sources, -(-parallel.ITEMS // splits))
    parts = max(1, min(targets // LEAST_TARGETS, -(-parallel.ITEMS // (splits * down))))
    own, of_sources = whole(-(-targets // parts), line_tiles.SUMMED_CHANNELS), -(-sources // down)
    vectors = -(-length // lanes)
    together = max(1, min(image, SUMMED_VECTORS // vectors))
    pitch = _line_pitch(min(vectors, SUMMED_VECTORS) * lanes + tiles[1] * line_tiles.SUMMED_TAPS, blur)
    totals = borrow("line sums", (splits, tiles[0], sources, tiles[1], line_tiles.SUMS), np.float64)
    sums = LineSums(grad_output.reshape(-1), channels, first, targets, sources, totals)
    items = splits * -(-sources // of_sources) * -(-targets // own)
    work = images * length * sources * (targets * taps.number + blur.weights.number) / PRODUCTS
    args = (blur, taps, sums, SumParts(images, image, of_sources, own, together, pitch))
    scratch = _line_scratch(together, pitch, blur)
    run_with_scratch(kernels.correlate_line_items, items, work, scratch, grad_output.dtype, *args)
    return sums._replace(totals=totals.sum(axis=0, keepdims=True)) if splits > 1 else sums


def _finish_units(sums: LineSums, taps: LineTaps, targets: UnitTargets, results: UnitGradients) -> bool:
    """Write results; returns whether all that they are made from is finite."""
    work = 8.0 * sums.targets * targets.parameters.weight[0].size
    checks = np.empty(sums.targets)
    parallel.run(kernels.finish_line_items, sums.targets, work, sums, taps, targets, results, checks)
    return math.isfinite(checks.sum())


def _sums_of_units(sums: LineSums, call: LineCall) -> np.ndarray:
    """The sums (targets, sources, units, UNIT_SUMS) that gradients follow from: of the row below nothing."""
    _, down, sources, across, _ = sums.totals.shape
    totals = sums.totals[0, ..., : line_tiles.SUMMED_CHANNELS * line_tiles.SUMMED_TAPS]
    totals = totals.reshape(down, sources, across, line_tiles.SUMMED_CHANNELS, line_tiles.SUMMED_TAPS)
    totals = totals.transpose(0, 3, 1, 2, 4).reshape(-1, sources, across * line_tiles.SUMMED_TAPS)
    some = slice(sums.first, sums.first + sums.targets)
    displacement, end = call.parameters.displacement[some, ..., 1], call.parameters.size[1] + 1
    place = np.floor(np.clip(np.nan_to_num(displacement), -end, end)).astype(np.intp) - call.taps.low
    t, s, _ = np.ogrid[: place.shape[0], : place.shape[1], : place.shape[2]]
    found = np.zeros((*place.shape, UNIT_SUMS))
    found[..., 0], found[..., 1] = totals[t, s, place], totals[t, s, place + 1]
    return found


def _blur_into(target: np.ndarray, first: tuple[int, int], blur: LineBlur, channels: int) -> None:
    """Blurred lines to target, from the first (image, channel) on."""
    items, work = len(blur.source) // blur.length, 2.0 * blur.source.size * blur.weights.number / PRODUCTS
    args = (blur, target, (*first, channels))
    run_with_scratch(kernels.blur_line_items, items, work, _line_scratch(0, 0, blur), target.dtype, *args)


def _line_product(blur: LineBlur, grad: np.ndarray, first: tuple[int, int, int]) -> float:
    """Sum of the gradient times the blurred lines, from the first (image, channel) on."""
    totals, work = np.zeros(grad.shape[0] * grad.shape[1]), 2.0 * grad.size
    sizes, args = _line_scratch(1, BLURRED_PIXELS, blur), (blur, grad, first, totals)
    run_with_scratch(kernels.multiply_line_items, len(totals), work, sizes, grad.dtype, *args)
    return float(totals.sum())
