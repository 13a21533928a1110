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
    LineTaps,
    PlacesScratch,
)
from .line_tiles import LINE_ROWS, LINE_STRIP_BYTES, SUMMED_CHANNELS, SUMMED_TAPS, BlurWeights
from .tiles import UNIT_SUMS

KERNEL_ELEMENTS = 1 << 20  # of a dense kernel, or of sums, that are there at a time
LINE_GRADIENT_BYTES = 4 * 1024 * 1024  # of blurred lines: what waits for being blurred itself
LINE_CACHE_BYTES = 256 * 1024  # of blurred lines that a thread reads again and again
MOST_COLUMNS = 1024  # of outputs that it makes from these
LEAST_TARGETS = 8  # for which lines are blurred once more, to have more work items
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
    extents = np.empty((len(weight), 5), np.int64)
    parallel.run(kernels.find_extent_items, len(weight), 4.0 * weight.size, parameters, extents)
    least, most = extents.min(axis=0).tolist(), extents.max(axis=0).tolist()
    taps, opposite = (LineTaps(least[k], most[k + 1] - least[k] + 2) for k in (0, 2))
    if most[4] or taps.number > _LEAST_TAPS + _TAPS_PER_UNIT * weight.shape[2]:
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
    grad_weight, grad_displacement = grads
    by_weight = (0, grad_weight[..., None] if grad_weight is not None else None)
    by_x = (4 if smooth else 2, grad_displacement)
    passes = [("value", [by_weight] if smooth else [by_weight, by_x])]
    if smooth:
        passes.append(("by_place", [by_x]))
    (_, channels, _), number = call.parameters.weight.shape, call.taps.number
    for blurred, wanted in passes:
        results = [(kind, result) for kind, result in wanted if result is not None]
        if not results:
            continue
        for first, count in _target_chunks(grad_output.shape[1], channels * number):
            targets = UnitTargets(call.parameters, False, first)
            totals = np.zeros((count, channels, number))
            _correlate_lines(_blurred(call, x, blurred), grad_output, call.taps, totals, first)
            for kind, result in results:
                _finish_units(totals, call.taps, targets, kind, result)
            with np.errstate(all="ignore"):
                finite = np.isfinite(totals.sum())
            if not finite:
                sums = _sums_of_units(totals, call, first)
                correlate_again(_plain(call, x, blurred), grad_output, targets, sums, results)


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
    outputs, channels, per_pair = weight.shape
    targets, sources = (channels, outputs) if transposed else (outputs, channels)
    sizes = _places_scratch((LINE_ROWS if transposed else channels) * per_pair)
    for first, count in _target_chunks(targets, sources * taps.number, most):
        panels = -(-count // LINE_ROWS)
        values = borrow("line kernel", panels * sources * taps.number * LINE_ROWS, weight.dtype)
        some = UnitTargets(call.parameters, transposed, first)
        kernel = LineKernel(values, count, sources, taps)
        operations = 8.0 * count * sources * per_pair
        run_with_scratch(kernels.spread_unit_items, panels, operations, sizes, weight.dtype, some, kernel)
        yield some, kernel


def _places_scratch(units: int) -> PlacesScratch:
    return PlacesScratch((units, np.int32), units)


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


def _line_scratch(lines: int, columns: int, taps: int, blur: LineBlur) -> LineScratch:
    """Room for so many lines of so many columns, and the taps beside them."""
    lanes = REGISTER_BYTES // blur.source.itemsize
    return LineScratch(
        lines=lines * _line_pitch(columns, taps, blur),
        padded=BLURRED_PIXELS + 2 * blur.radius + lanes,
        found=whole(SUMMED_TAPS * SUMMED_CHANNELS, lanes),
    )


def _line_pitch(columns: int, taps: int, blur: LineBlur) -> int:
    """From a line of scratch memory to the next: whole cache lines, an odd number of them."""
    line = LINE_BYTES // blur.source.itemsize
    return (-(-(columns + taps) // line) | 1) * line


def _displace_lines(
    blur: LineBlur, kernel: LineKernel, base: np.ndarray, target: np.ndarray, first: int
) -> bool:
    """target[n, first + t] = base[t] + what the units of t read of blurred lines; whether all is finite."""
    (images, channels, _, length), itemsize, taps = target.shape, target.itemsize, kernel.taps.number
    width = LINE_STRIP_BYTES // itemsize
    columns = LINE_CACHE_BYTES // (kernel.sources * itemsize) - taps
    columns = min(max(width, columns // width * width), MOST_COLUMNS, whole(length, width))
    chunks = -(-length // columns)
    parts = max(1, min(kernel.targets // LEAST_TARGETS, -(-parallel.ITEMS // (images * chunks))))
    own = whole(-(-kernel.targets // parts), LINE_ROWS)
    parts = -(-kernel.targets // own)
    checks = np.empty(images * chunks * parts, target.dtype)
    pitch = _line_pitch(columns, taps, blur)
    output = LineOutput(base, target.reshape(-1), first * length, channels * length, checks)
    scratch = _line_scratch(kernel.sources, columns, taps, blur)
    operations = 2.0 * images * kernel.targets * length * kernel.sources * taps
    args = (blur, kernel, output, LineParts(columns, chunks, own, parts, pitch))
    run_with_scratch(kernels.displace_line_items, len(checks), operations, scratch, target.dtype, *args)
    return math.isfinite(checks.sum())


def _correlate_lines(
    blur: LineBlur, grad_output: np.ndarray, taps: LineTaps, totals: np.ndarray, first: int
) -> None:
    """Add to `totals` (targets, sources, taps) the products of the gradient with the lines, moved by taps."""
    (images, channels, _, length), (targets, sources, _) = grad_output.shape, totals.shape
    lanes = REGISTER_BYTES // grad_output.itemsize
    vectors = -(-length // lanes)
    together = max(1, min(images, SUMMED_VECTORS // vectors))
    parts = max(1, min(targets // LEAST_TARGETS, -(-parallel.ITEMS // sources)))
    own = whole(-(-targets // parts), SUMMED_CHANNELS)
    columns, reads = min(vectors, SUMMED_VECTORS) * lanes, whole(taps.number, SUMMED_TAPS)
    sums = LineSums(
        grad_output.reshape(-1), images, channels, first, own, together, _line_pitch(columns, reads, blur)
    )
    scratch = _line_scratch(together, columns, reads, blur)
    operations = 2.0 * images * length * totals.size
    args = (blur, taps, sums, totals)
    items = sources * -(-targets // own)
    run_with_scratch(kernels.correlate_line_items, items, operations, scratch, grad_output.dtype, *args)


def _finish_units(
    totals: np.ndarray, taps: LineTaps, targets: UnitTargets, kind: int, result: np.ndarray
) -> None:
    """The gradients of units, of a kind as in `finish_unit_items`."""
    weight = targets.parameters.weight
    sizes, operations = _places_scratch(weight[0].size), 8.0 * len(totals) * weight[0].size
    args = (totals, taps.low, targets, kind, result)
    run_with_scratch(kernels.finish_line_items, len(totals), operations, sizes, weight.dtype, *args)


def _sums_of_units(totals: np.ndarray, call: LineCall, first: int) -> np.ndarray:
    """The sums (targets, sources, units, UNIT_SUMS) that gradients follow from: of the row below nothing."""
    displacement = call.parameters.displacement[first : first + len(totals), ..., 1]
    end = call.parameters.size[1] + 1
    place = np.floor(np.clip(np.nan_to_num(displacement), -end, end)).astype(np.intp) - call.taps.low
    t, s, _ = np.ogrid[: place.shape[0], : place.shape[1], : place.shape[2]]
    sums = np.zeros((*place.shape, UNIT_SUMS))
    sums[..., 0], sums[..., 1] = totals[t, s, place], totals[t, s, place + 1]
    return sums


def _blur_into(target: np.ndarray, first: tuple[int, int], blur: LineBlur, channels: int) -> None:
    """Blurred lines to target, from the first (image, channel) on."""
    items, operations = len(blur.source) // blur.length, 2.0 * blur.source.size * blur.weights.number
    args = (blur, target, (*first, channels))
    run_with_scratch(
        kernels.blur_line_items, items, operations, _line_scratch(0, 0, 0, blur), target.dtype, *args
    )


def _line_product(blur: LineBlur, grad: np.ndarray, first: tuple[int, int, int]) -> float:
    """Sum of the gradient times the blurred lines, from the first (image, channel) on."""
    totals = np.zeros(grad.shape[0] * grad.shape[1])
    operations = 2.0 * grad.size * blur.weights.number
    sizes, args = _line_scratch(1, BLURRED_PIXELS, 0, blur), (blur, grad, first, totals)
    run_with_scratch(kernels.multiply_line_items, len(totals), operations, sizes, grad.dtype, *args)
    return float(totals.sum())
