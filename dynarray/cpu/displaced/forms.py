"""`displaced_conv2d` on the CPU: what is packed when, so that memory stays bounded.

The blurred source channels, or the output gradients for the gradient of x, are packed into planes: as many
images, rows and channels at a time as `UNIT_PLANE_BYTES` hold (see `plan`). From these, work items make
tiles of outputs (see `tiles`), a few source channels after the other for many outputs, so that those
channels are read from the first level of cache. The gradient of x is the same sum with channels exchanged
and displacements turned round, blurred after that.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow, empty, run_with_scratch, zeros_where
from ..engine.whole import whole_of
from . import blur, gradients, kernels
from .blur import BlurTaps, UnitBlur, blur_into, blur_taps, run_blurring, within_size
from .definition import correlate_again, displace_again, product_again
from .kernels import UnitOutput, UnitParameters, UnitTargets
from .lines import find_call, line_backward_units, line_backward_x, line_forward
from .plan import (
    UNIT_CHUNK,
    UNIT_TARGETS,
    UnitPlanes,
    Units,
    UnitWork,
    plan_gradients,
    plan_units,
    unit_scratch,
)
from .tiles import UNIT_FACTORS, UNIT_ROWS, UNIT_SUMS

UNIT_GRADIENT_BYTES = 4 * 1024 * 1024  # of the blurred image: what waits for being blurred itself
PREPARED_UNITS = 1 << 18  # at a time
IN_CELLS = 128  # units of a source channel, for whose gradients it pays to put pixels into cells


class UnitInputs(NamedTuple):
    """What the backward pass reads."""

    grad_output: np.ndarray
    x: np.ndarray
    parameters: UnitParameters


def _blur_within(down: np.ndarray, along: np.ndarray, source: np.ndarray) -> UnitBlur:
    """Images that are blurred, and the taps that are needed for their size."""
    return UnitBlur(source, within_size(down, source.shape[2]), within_size(along, source.shape[3]))


def _prepared(parameters: UnitParameters, transposed: bool) -> Iterator[tuple[UnitTargets, Units]]:
    """As many target channels at a time as are prepared together, and their units."""
    weight = parameters.weight
    shape = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
    targets, sources, per_source = *shape, weight.shape[2]
    chunk = max(1, PREPARED_UNITS // (sources * per_source))
    for first in range(0, targets, chunk):
        count = min(chunk, targets - first)
        table = (count, sources, per_source)
        units = Units(
            borrow("units y", table, np.int32),
            borrow("units x", table, np.int32),
            borrow("units factors", (*table, UNIT_FACTORS), weight.dtype),
            np.empty((count, 4), np.int64),
            np.empty(count, weight.dtype),
        )
        some = UnitTargets(parameters, transposed, first)
        parallel.run(kernels.prepare_unit_items, count, 16.0 * units.y.size, some, units)
        yield some, units


def _pack_unit_planes(blurring: UnitBlur, work: UnitWork, name: str = "planes") -> UnitPlanes:
    """The planes of a block."""
    (layout, field, block), items = work, work.block.images * work.block.sources
    size = layout.plane * items
    planes = UnitPlanes(borrow(name, size, blurring.source.dtype), layout, block)
    wide = layout.cells.images * field.height * field.width if layout.cells.step > 1 else 0
    run_blurring(blur.pack_unit_items, items, size, blurring, field, planes, field=wide)
    return planes


def _displace(
    blurring: UnitBlur,
    units: Units,
    base: np.ndarray,
    target: np.ndarray,
    place: tuple[int, tuple],
) -> bool:
    """target[n, first + t] = base[t] + what the units of t read of the blurred images.

    `place` is first and the shape of the whole, of which the source may be a part.
    Returns whether all of that is finite for sure.
    """
    source, (first, whole), base = blurring.source, place, base + units.poison
    finite = bool(np.isfinite(base).all())
    for work in plan_units(source.shape, units, source.itemsize, True, whole):
        planes, block = _pack_unit_planes(blurring, work), work.block
        items = block.images * block.tiles * work.layout.parts * -(-len(base) // UNIT_CHUNK)
        operations = 4.0 * source[:, 0].size * units.y.size
        sizes = unit_scratch(planes, units, min(UNIT_TARGETS, len(base)), correlate=False)
        arguments = (planes, units, UnitOutput(base, target, first, np.zeros(items, source.dtype)))
        run_with_scratch(kernels.displace_items, items, operations, sizes, source.dtype, *arguments)
        finite = finite and bool(np.isfinite(arguments[2].squares).all())
    return finite


def displaced_conv2d_forward(
    *arrays: Any, spread: float, radius: tuple[int, int], **params: Any
) -> tuple[Any, tuple]:
    """Output of `displaced_conv2d`; keeps the inputs for the backward pass.

    `radius` is that of the blur, along y and x.
    """
    x, weight, displacement, _, bias = arrays
    base = np.zeros(len(weight), x.dtype) if bias is None else kernel_input(bias)
    if not (x.size and weight.size):
        y = empty((x.shape[0], len(weight), *x.shape[2:]), x.dtype)
        y[...] = base[:, None, None]
        return y, arrays
    x, weight, displacement = map(kernel_input, (x, weight, displacement))
    whole = whole_of(arrays)[0].shape
    if not radius[0] and (line := find_call(whole, weight, displacement, spread, radius[1])):
        return line_forward(line, x, base), arrays
    y = empty((x.shape[0], len(weight), *x.shape[2:]), x.dtype)
    down, along = (blur_taps(spread, each, x.dtype) for each in radius)
    blurring = _blur_within(down.value, along.value, x)
    for targets, units in _prepared(UnitParameters(weight, displacement, whole[2:]), False):
        some = slice(targets.first, targets.first + len(units.y))
        place = targets.first, whole
        if not _displace(blurring, units, base[some], y, place):
            own = targets._replace(parameters=targets.parameters._replace(size=x.shape[2:]))
            displace_again(blurring, own, base[some], y[:, some])
    return y, arrays


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
    grads = zeros_where(kept, needs)
    grad_bias = grads[4]
    grad_output = kernel_input(grad_output)
    if grad_bias is not None:
        totals = np.zeros(len(grad_bias))
        parallel.run(gradients.sum_channel_items, len(totals), 0.25 * grad_output.size, grad_output, totals)
        grad_bias[...] = totals
    if not grad_output.size or not kept[1].size:
        return tuple(grads)
    x, weight, displacement = map(kernel_input, kept[:3])
    if not radius[0] and (line := find_call(x.shape, weight, displacement, spread, radius[1])):
        if needs[0] or needs[3]:
            total = line_backward_x(line, grad_output, x, grads[0], needs[3])
            if needs[3]:
                grads[3] = np.asarray(total, grad_output.dtype)
        if needs[1] or needs[2]:
            line_backward_units(line, grad_output, x, grads[1:3], displacement_gradient == "smooth")
        return tuple(grads)
    inputs = UnitInputs(grad_output, x, UnitParameters(weight, displacement, x.shape[2:]))
    taps = (blur_taps(spread, radius[0], x.dtype), blur_taps(spread, radius[1], x.dtype))
    if needs[0] or needs[3]:
        total = _backward_x(inputs, taps, grads[0], needs[3])
        if needs[3]:
            grads[3] = np.asarray(total, grad_output.dtype)
    if needs[1] or needs[2]:
        _backward_units(inputs, taps, grads[1:3], displacement_gradient == "smooth")
    return tuple(grads)


def _backward_x(
    inputs: UnitInputs, taps: tuple[BlurTaps, BlurTaps], grad_x: np.ndarray | None, needs_sigma: bool
) -> float:
    """Write the gradient of x, if it is needed; return that of sigma, if it is."""
    (grad_output, x, parameters), (down, along) = inputs, taps
    one = np.ones(1, x.dtype)  # the tap of no blur
    images, size, total = x.shape[0], x.shape[2:], 0.0
    image_bytes = math.prod(size) * x.itemsize
    for targets, units in _prepared(parameters, True):
        channels = max(1, min(len(units.y), UNIT_GRADIENT_BYTES // (images * image_bytes)))
        at_once = max(1, min(images, UNIT_GRADIENT_BYTES // image_bytes))
        for start in range(0, len(units.y), channels):
            some = Units(*(part[start : start + channels] for part in units))
            own = targets._replace(first=targets.first + start)
            for image in range(0, images, at_once):
                part = UnitBlur(grad_output[image : image + at_once], one, one)
                grad = empty((len(part.source), len(some.y), *size), x.dtype)
                base, first = np.zeros(len(some.y), x.dtype), (image, own.first)
                place = 0, part.source.shape
                if not _displace(part, some, base, grad, place):
                    displace_again(part, own, base, grad)
                if grad_x is not None:
                    blur_into(grad_x, first, _blur_within(down.value, along.value, grad))
                if needs_sigma:
                    by_sigma = (down.by_sigma, along.value), (down.value, along.by_sigma)
                    both = [_blur_within(*pair, x) for pair in by_sigma]
                    product = sum(_product(blurring, grad, first) for blurring in both)
                    total += product if math.isfinite(product) else product_again(both, grad, first)
    return total


def _product(blurring: UnitBlur, grad: np.ndarray, first: tuple[int, int]) -> float:
    """Sum of the gradient times the blurred images, from the first (image, channel) on."""
    totals = np.zeros(grad.shape[0] * grad.shape[1])
    run_blurring(blur.multiply_blurred_items, len(totals), grad.size, blurring, grad, first, totals)
    return float(totals.sum())


def _backward_units(
    inputs: UnitInputs, taps: tuple[BlurTaps, BlurTaps], grads: list[np.ndarray | None], smooth: bool
) -> None:
    """Write the gradients of weight and displacement that are needed."""
    (down, along), (grad_weight, grad_displacement) = taps, grads
    by_weight = (0, grad_weight[..., None] if grad_weight is not None else None)
    by_y, by_x = (3 if smooth else 1, grad_displacement), (4 if smooth else 2, grad_displacement)
    passes = [(down.value, along.value, [by_weight] if smooth else [by_weight, by_y, by_x])]
    if smooth:
        passes += [(down.by_place, along.value, [by_y]), (down.value, along.by_place, [by_x])]
    for targets, units in _prepared(inputs.parameters, False):
        for vertical, horizontal, wanted in passes:
            results = [(kind, result) for kind, result in wanted if result is not None]
            if not results:
                continue
            sums = np.zeros((*units.y.shape, UNIT_SUMS))
            blurring = _blur_within(vertical, horizontal, inputs.x)
            _correlate(blurring, inputs.grad_output, units, sums, targets.first)
            for kind, result in results:
                arguments = (sums, targets, kind, result)
                parallel.run(gradients.finish_unit_items, len(sums), 8.0 * units.y.size, *arguments)
            correlate_again(blurring, inputs.grad_output, targets, sums, results)


def _correlate(
    blurring: UnitBlur, grad_output: np.ndarray, units: Units, sums: np.ndarray, first: int
) -> None:
    """Add to `sums` those of the blurred images with the output gradients from channel `first` on."""
    x, one = blurring.source, np.ones(1, grad_output.dtype)
    as_it_is = UnitBlur(grad_output, one, one)
    in_cells = len(sums) * units.y.shape[2] >= IN_CELLS
    for work in plan_units(x.shape, units, x.itemsize, in_cells):
        planes, layout, block = _pack_unit_planes(blurring, work), work.layout, work.block
        operations = 4.0 * block.images * block.tiles * UNIT_ROWS * layout.x.size * units.y.size
        sizes = unit_scratch(planes, units, gradients.CORRELATED_TARGETS, correlate=True)
        for own in plan_gradients(work, first, len(sums), x.itemsize):
            grads, done = _pack_unit_planes(as_it_is, own, "gradient planes"), own.block.source - first
            chunks = -(-own.block.sources // gradients.CORRELATED_TARGETS)
            items = chunks * -(-block.sources // layout.channels)
            arguments = (planes, grads, units, sums, done)
            run_with_scratch(gradients.correlate_unit_items, items, operations, sizes, x.dtype, *arguments)
