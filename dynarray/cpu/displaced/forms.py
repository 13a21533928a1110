"""`displaced_conv2d` on the CPU: what is packed when, so that memory stays bounded.

The blurred source channels, or the output gradients for the gradient of x, are packed into planes: as many
images, rows and channels at a time as `UNIT_PLANE_BYTES` hold (see `plan`). From these, work items make
tiles of outputs (see `tiles`), a few source channels after the other for many outputs, so that those
channels are read from the first level of cache. The gradient of x is the same sum with channels exchanged
and displacements turned round, blurred after that.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow, run_with_scratch
from ..engine.whole import whole_of
from . import blur, gradients, kernels
from .blur import UnitBlur, blur_into, run_blurring
from .definition import UnitTargets, correlate_again, displace_again, product_again
from .kernels import UnitOutput, UnitParameters
from .plan import UNIT_CHUNK, UNIT_TARGETS, UnitPlanes, Units, UnitWork, plan_units, unit_scratch
from .tiles import UNIT_FACTORS, UNIT_ROWS, UNIT_SUMS

UNIT_GRADIENT_BYTES = 4 * 1024 * 1024  # of the blurred image: what waits for being blurred itself
PREPARED_UNITS = 1 << 18  # at a time


class UnitInputs(NamedTuple):
    """What the backward pass reads."""

    grad_output: np.ndarray
    x: np.ndarray
    weight: np.ndarray
    displacement: np.ndarray


class BlurTaps(NamedTuple):
    """Of the blur along one axis, its derivative by sigma, and its derivative by place."""

    value: np.ndarray
    by_sigma: np.ndarray
    by_place: np.ndarray


@lru_cache(maxsize=16)
def _blur_taps(spread: float, radius: int, dtype: Any) -> BlurTaps:
    offset = np.arange(-radius, radius + 1)
    # A tap that is too small to be represented is 0, also where the caller asked NumPy to raise.
    with np.errstate(over="ignore", under="ignore"):
        place = np.clip(offset / spread, -1e3, 1e3)  # beyond, the bell is 0, and infinity times 0 is NaN
        bell = np.exp(-(place**2) / 2)
        value = bell / bell.sum()
        by_sigma = value * (place**2 - (value * place**2).sum()) / spread
        by_place = value * place / spread
        return BlurTaps(*(taps.astype(dtype) for taps in (value, by_sigma, by_place)))


def _taps_of_axes(spread: float, radius: tuple[int, int], dtype: Any) -> tuple[BlurTaps, BlurTaps]:
    """Down the columns and along the rows: a radius of 0 leaves an axis as it is."""
    return _blur_taps(spread, radius[0], dtype), _blur_taps(spread, radius[1], dtype)


def _within(taps: np.ndarray, size: int) -> np.ndarray:
    """Without those that no two pixels of a line are far enough apart for."""
    surplus = max(0, len(taps) // 2 - (size - 1))
    return taps[surplus : len(taps) - surplus]


def _blur_within(down: np.ndarray, along: np.ndarray, source: np.ndarray) -> UnitBlur:
    """The taps that are needed for images of this size."""
    return UnitBlur(_within(down, source.shape[2]), _within(along, source.shape[3]))


def _prepared(parameters: UnitParameters, transposed: bool) -> Iterator[tuple[int, Units]]:
    """The units of as many target channels at a time as are prepared together, and the first of these."""
    weight = parameters.weight
    shape = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
    targets, sources, per_source = *shape, weight.shape[2]
    chunk = max(1, PREPARED_UNITS // (sources * per_source))
    for first in range(0, targets, chunk):
        count = min(chunk, targets - first)
        table = (count, sources, per_source)
        units = Units(
            borrow("units y", math.prod(table), np.dtype(np.int32)).reshape(table),
            borrow("units x", math.prod(table), np.dtype(np.int32)).reshape(table),
            borrow("units factors", math.prod(table) * UNIT_FACTORS, weight.dtype).reshape(
                *table, UNIT_FACTORS
            ),
            np.empty((count, 4), np.int64),
            np.empty(count, weight.dtype),
        )
        arguments = (parameters, transposed, first, units)
        parallel.run(kernels.prepare_unit_items, count, 16.0 * math.prod(table), *arguments)
        yield first, units


def _pack_unit_planes(source: np.ndarray, taps: UnitBlur, work: UnitWork) -> UnitPlanes:
    """The planes of a block."""
    (layout, field, block), items = work, work.block.images * work.block.sources
    size = layout.plane * items
    planes = UnitPlanes(borrow("planes", size, source.dtype), layout, block)
    wide = layout.cells.images * field.height * field.width if layout.cells.step > 1 else 0
    run_blurring(blur.pack_unit_items, items, size, source, taps, field, planes, field=wide)
    return planes


def _displace(
    source: np.ndarray, taps: UnitBlur, units: Units, base: np.ndarray, target: np.ndarray, place: tuple
) -> bool:
    """target[n, first + t] = base[t] + what the units of t read of the blurred source.

    `place` is first and the shape of the whole, of which the source may be a part.
    Returns whether all of that is finite for sure.
    """
    (first, whole), base = place, base + units.poison
    finite = bool(np.isfinite(base).all())
    for work in plan_units(source.shape, units, source.itemsize, True, whole):
        planes, block = _pack_unit_planes(source, taps, work), work.block
        items = block.images * block.tiles * work.layout.parts * -(-len(base) // UNIT_CHUNK)
        operations = 4.0 * source[:, 0].size * units.y.size
        sizes = unit_scratch(planes, units, min(UNIT_TARGETS, len(base)), correlate=False)
        arguments = (planes, units, UnitOutput(base, target, first, np.zeros(items, source.dtype)))
        run_with_scratch(kernels.displace_items, items, operations, sizes, source.dtype, *arguments)
        finite = finite and bool(np.isfinite(arguments[2].squares).all())
    return finite


def displaced_conv2d_forward(
    x: Any,
    weight: Any,
    displacement: Any,
    sigma: Any,
    bias: Any,
    *,
    spread: float,
    radius: tuple[int, int],
    **params: Any,
) -> tuple[Any, tuple]:
    """Output of `displaced_conv2d`; keeps the inputs for the backward pass.

    `radius` is that of the blur, along y and x.
    """
    kept = (x, weight, displacement, sigma, bias)
    targets = len(weight)
    base = np.zeros(targets, x.dtype) if bias is None else kernel_input(bias)
    y = np.empty((x.shape[0], targets, *x.shape[2:]), x.dtype)
    if not y.size:
        return y, kept
    if not weight.size:
        y[...] = base[:, None, None]
        return y, kept
    x, weight, displacement = map(kernel_input, (x, weight, displacement))
    down, along = _taps_of_axes(spread, radius, x.dtype)
    taps = _blur_within(down.value, along.value, x)
    whole = whole_of(kept)[0].shape
    parameters = UnitParameters(weight, displacement, whole[2:])
    for first, units in _prepared(parameters, False):
        some = slice(first, first + len(units.y))
        if not _displace(x, taps, units, base[some], y, (first, whole)):
            own = parameters._replace(size=x.shape[2:])
            displace_again(x, taps, UnitTargets(own, False, first), base[some], y[:, some])
    return y, kept


def displaced_conv2d_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    spread: float,
    radius: tuple[int, int],
    displacement_gradient: str,
) -> tuple:
    """Gradients of `displaced_conv2d` with respect to x, weight, displacement, sigma and bias."""
    grads = [
        np.zeros(a.shape, a.dtype) if needed and a is not None else None for a, needed in zip(kept, needs)
    ]
    grad_bias = grads[4]
    if grad_bias is not None:
        grad_bias[...] = grad_output.sum(axis=(0, 2, 3), dtype=np.float64)
    if not grad_output.size or not kept[1].size:
        return tuple(grads)
    inputs = UnitInputs(*map(kernel_input, (grad_output, *kept[:3])))
    taps = _taps_of_axes(spread, radius, grad_output.dtype)
    if needs[0] or needs[3]:
        total = _backward_x(inputs, taps, grads[0], needs[3])
        if needs[3]:
            grads[3] = np.asarray(total, grad_output.dtype)
    if needs[1] or needs[2]:
        _backward_units(inputs, taps, grads[1], grads[2], displacement_gradient == "smooth")
    return tuple(grads)


def _backward_x(
    inputs: UnitInputs,
    taps: tuple[BlurTaps, BlurTaps],
    grad_x: np.ndarray | None,
    needs_sigma: bool,
) -> float:
    """Write the gradient of x, if it is needed; return that of sigma, if it is."""
    grad_output, x, weight, displacement = inputs
    down, along = taps
    one = np.ones(1, x.dtype)  # the tap of no blur
    images, size, total = x.shape[0], x.shape[2:], 0.0
    image_bytes = math.prod(size) * x.itemsize
    parameters = UnitParameters(weight, displacement, size)
    for begin, units in _prepared(parameters, True):
        channels = max(1, min(len(units.y), UNIT_GRADIENT_BYTES // (images * image_bytes)))
        at_once = max(1, min(images, UNIT_GRADIENT_BYTES // image_bytes))
        for start in range(0, len(units.y), channels):
            some = Units(*(part[start : start + channels] for part in units))
            for image in range(0, images, at_once):
                part = grad_output[image : image + at_once]
                grad = np.empty((len(part), len(some.y), *size), x.dtype)
                base, first = np.zeros(len(some.y), x.dtype), (image, begin + start)
                if not _displace(part, UnitBlur(one, one), some, base, grad, (0, part.shape)):
                    targets = UnitTargets(parameters, True, begin + start)
                    displace_again(part, UnitBlur(one, one), targets, base, grad)
                if grad_x is not None:
                    blur_into(grad_x, first, grad, _blur_within(down.value, along.value, x))
                if needs_sigma:
                    by_sigma = (down.by_sigma, along.value), (down.value, along.by_sigma)
                    both = [_blur_within(*pair, x) for pair in by_sigma]
                    product = sum(_product(x, taps, grad, first) for taps in both)
                    total += product if math.isfinite(product) else product_again(x, both, grad, first)
    return total


def _product(x: np.ndarray, taps: UnitBlur, grad: np.ndarray, first: tuple[int, int]) -> float:
    """Sum of the gradient times the blurred x."""
    totals = np.zeros(grad.shape[0] * grad.shape[1])
    run_blurring(blur.multiply_blurred_items, len(totals), grad.size, x, taps, grad, first, totals)
    return float(totals.sum())


def _backward_units(
    inputs: UnitInputs,
    taps: tuple[BlurTaps, BlurTaps],
    grad_weight: np.ndarray | None,
    grad_displacement: np.ndarray | None,
    smooth: bool,
) -> None:
    """Write the gradients of weight and displacement that are needed."""
    _, x, weight, displacement = inputs
    parameters, (down, along) = UnitParameters(weight, displacement, x.shape[2:]), taps
    by_weight = (0, grad_weight[..., None] if grad_weight is not None else None)
    by_y, by_x = (3 if smooth else 1, grad_displacement), (4 if smooth else 2, grad_displacement)
    if smooth:
        passes = [
            (down.value, along.value, [by_weight]),
            (down.by_place, along.value, [by_y]),
            (down.value, along.by_place, [by_x]),
        ]
    else:
        passes = [(down.value, along.value, [by_weight, by_y, by_x])]
    for first, units in _prepared(parameters, False):
        for vertical, horizontal, wanted in passes:
            results = [(kind, result) for kind, result in wanted if result is not None]
            if not results:
                continue
            sums = np.zeros((*units.y.shape, UNIT_SUMS))
            blur_taps = _blur_within(vertical, horizontal, x)
            _correlate(inputs, blur_taps, units, sums, first)
            for kind, result in results:
                arguments = (sums, parameters, first, kind, result)
                parallel.run(gradients.finish_unit_items, len(sums), 8.0 * units.y.size, *arguments)
            targets = UnitTargets(parameters, False, first)
            correlate_again(x, inputs.grad_output, blur_taps, targets, sums, results)


def _correlate(inputs: UnitInputs, taps: UnitBlur, units: Units, sums: np.ndarray, first: int) -> None:
    """Add to `sums` those of the blurred x with the output gradients from channel `first` on."""
    x, targets = inputs.x, gradients.CORRELATED_TARGETS
    for work in plan_units(x.shape, units, x.itemsize, False):
        planes, layout, block = _pack_unit_planes(x, taps, work), work.layout, work.block
        items = -(-len(sums) // targets) * -(-block.sources // layout.channels)
        operations = 4.0 * block.images * block.tiles * UNIT_ROWS * layout.x.size * units.y.size
        sizes = unit_scratch(planes, units, targets, correlate=True)
        arguments = (planes, inputs.grad_output, units, sums, first)
        run_with_scratch(gradients.correlate_unit_items, items, operations, sizes, x.dtype, *arguments)
