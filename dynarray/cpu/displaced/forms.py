"""`displaced_conv2d` on the CPU: what is packed when, so that memory stays bounded.

The blurred source channels, or the output gradients for the gradient of x, are packed into planes: as many
images, rows and channels at a time as `PLANE_BYTES` hold (see `displaced_plan`). From these, work items make
tiles of outputs (see `displaced_tiles`), a few source channels after the other for many outputs, so that
those channels are read from the first level of cache. The gradient of x is the same sum with channels
exchanged and displacements turned round, blurred after that.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow
from . import gradients, kernels
from .plan import CHUNK, Block, Layout, Units, plan
from .tiles import FACTORS, ROWS, SUMS

GRADIENT_BYTES = 4 * 1024 * 1024  # of the blurred image: what waits for being blurred itself
UNITS = 1 << 18  # that are prepared at a time


class _Arrays(NamedTuple):
    """What the backward pass reads."""

    grad_output: np.ndarray
    x: np.ndarray
    weight: np.ndarray
    displacement: np.ndarray


class Taps(NamedTuple):
    """Of the blur, its derivative by sigma, and its derivative by place."""

    value: np.ndarray
    by_sigma: np.ndarray
    by_place: np.ndarray


@lru_cache(maxsize=16)
def _taps(spread: float, radius: int, dtype: Any) -> Taps:
    offset = np.arange(-radius, radius + 1)
    with np.errstate(over="ignore"):
        place = np.clip(offset / spread, -1e3, 1e3)  # beyond, the bell is 0, and infinity times 0 is NaN
    bell = np.exp(-(place**2) / 2)
    value = bell / bell.sum()
    by_sigma = value * (place**2 - (value * place**2).sum()) / spread
    by_place = value * place / spread
    return Taps(*(taps.astype(dtype) for taps in (value, by_sigma, by_place)))


def _within(taps: np.ndarray, size: int) -> np.ndarray:
    """Without those that no two pixels of a line are far enough apart for."""
    surplus = max(0, len(taps) // 2 - (size - 1))
    return taps[surplus : len(taps) - surplus]


def _units(
    weight: np.ndarray, displacement: np.ndarray, size: tuple[int, int], transposed: bool
) -> Iterator[tuple[int, Units]]:
    """The units of as many target channels at a time as are prepared together, and the first of these."""
    shape = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
    targets, sources, per_source = *shape, weight.shape[2]
    chunk = max(1, UNITS // (sources * per_source))
    for first in range(0, targets, chunk):
        count = min(chunk, targets - first)
        table = (count, sources, per_source)
        units = Units(
            borrow("units y", math.prod(table), np.dtype(np.int32)).reshape(table),
            borrow("units x", math.prod(table), np.dtype(np.int32)).reshape(table),
            borrow("units factors", math.prod(table) * FACTORS, weight.dtype).reshape(*table, FACTORS),
            np.empty((count, 4), np.int64),
            np.empty(count, weight.dtype),
        )
        operations = 16.0 * math.prod(table)
        arguments = (weight, displacement, size, transposed, first, units)
        parallel.run(kernels.prepare_items, count, operations, *arguments)
        yield first, units


def _packed(
    source: np.ndarray, vertical: np.ndarray, across: np.ndarray, layout: Layout, block: Block
) -> np.ndarray:
    """The planes of a block."""
    count = block.images * block.sources
    size = layout.plane * count
    planes = borrow("planes", size, source.dtype)
    operations = float(size * (len(vertical) + len(across)))
    parallel.run(kernels.pack_items, count, operations, source, vertical, across, planes, layout, block)
    return planes


def _displace(
    source: np.ndarray, taps: np.ndarray, units: Units, base: np.ndarray, target: np.ndarray, first: int
) -> None:
    """target[n, first + t] = base[t] + what the units of t read of the blurred source."""
    vertical, across = (_within(taps, size) for size in source.shape[2:])
    base = base + units.poison
    for layout, block in plan(source.shape, units, source.itemsize, True):
        planes = _packed(source, vertical, across, layout, block)
        items = block.images * block.tiles * layout.parts * -(-len(base) // CHUNK)
        operations = 4.0 * source[:, 0].size * units.y.size
        arguments = (planes, units, base, target, first, layout, block)
        parallel.run(kernels.displace_items, items, operations, *arguments)


def forward(
    x: Any,
    weight: Any,
    displacement: Any,
    sigma: Any,
    bias: Any,
    *,
    spread: float,
    radius: int,
    **params: Any,
) -> tuple[Any, tuple]:
    """Output of `displaced_conv2d`; keeps the inputs for the backward pass."""
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
    taps = _taps(spread, radius, x.dtype).value
    for first, units in _units(weight, displacement, x.shape[2:], False):
        these = slice(first, first + len(units.y))
        _displace(x, taps, units, base[these], y, first)
    return y, kept


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    spread: float,
    radius: int,
    displacement_gradient: str,
) -> tuple:
    """Gradients of `displaced_conv2d` with respect to x, weight, displacement, sigma and bias."""
    inputs = kept[:5]
    grads = [
        np.zeros(a.shape, a.dtype) if needed and a is not None else None for a, needed in zip(inputs, needs)
    ]
    grad_bias = grads[4]
    if grad_bias is not None:
        grad_bias[...] = grad_output.sum(axis=(0, 2, 3), dtype=np.float64)
    if not grad_output.size or not inputs[1].size:
        return tuple(grads)
    arrays = _Arrays(*map(kernel_input, (grad_output, *inputs[:3])))
    taps = _taps(spread, radius, grad_output.dtype)
    if needs[0] or needs[3]:
        total = _backward_of_x(arrays, taps, grads[0], needs[3])
        if needs[3]:
            grads[3] = np.asarray(total, grad_output.dtype)
    if needs[1] or needs[2]:
        _backward_of_units(arrays, taps, grads[1], grads[2], displacement_gradient == "smooth")
    return tuple(grads)


def _backward_of_x(
    arrays: _Arrays,
    taps: Taps,
    grad_x: np.ndarray | None,
    needs_sigma: bool,
) -> float:
    """Write the gradient of x, if it is needed; return that of sigma, if it is."""
    grad_output, x, weight, displacement = arrays
    images, size, total = x.shape[0], x.shape[2:], 0.0
    plane = math.prod(size)
    for begin, units in _units(weight, displacement, size, True):
        channels = max(1, min(len(units.y), GRADIENT_BYTES // (images * plane * x.itemsize)))
        several = max(1, min(images, GRADIENT_BYTES // (plane * x.itemsize)))
        for start in range(0, len(units.y), channels):
            some = Units(*(part[start : start + channels] for part in units))
            for image in range(0, images, several):
                part = grad_output[image : image + several]
                grad = np.empty((len(part), len(some.y), *size), x.dtype)
                _displace(part, np.ones(1, x.dtype), some, np.zeros(len(some.y), x.dtype), grad, 0)
                first = (image, begin + start)
                if grad_x is not None:
                    _blur(grad, taps.value, taps.value, grad_x, first)
                if needs_sigma:
                    total += _product(x, taps.by_sigma, taps.value, grad, first)
                    total += _product(x, taps.value, taps.by_sigma, grad, first)
    return total


def _blur(
    source: np.ndarray, vertical: np.ndarray, across: np.ndarray, target: np.ndarray, first: tuple
) -> None:
    vertical, across = _within(vertical, source.shape[2]), _within(across, source.shape[3])
    operations = float(source.size * (len(vertical) + len(across)))
    items = source.shape[0] * source.shape[1]
    parallel.run(gradients.blur_items, items, operations, source, vertical, across, target, first)


def _product(
    x: np.ndarray, vertical: np.ndarray, across: np.ndarray, grad: np.ndarray, first: tuple
) -> float:
    """Sum of the gradient times the blurred x."""
    vertical, across = _within(vertical, x.shape[2]), _within(across, x.shape[3])
    totals = np.zeros(grad.shape[0] * grad.shape[1])
    operations = float(grad.size * (len(vertical) + len(across)))
    arguments = (x, vertical, across, grad, first, totals)
    parallel.run(gradients.product_items, len(totals), operations, *arguments)
    return float(totals.sum())


def _backward_of_units(
    arrays: _Arrays,
    taps: Taps,
    grad_weight: np.ndarray | None,
    grad_displacement: np.ndarray | None,
    smooth: bool,
) -> None:
    """Write the gradients of weight and displacement that are needed."""
    grad_output, x, weight, displacement = arrays
    size = x.shape[2:]
    by_weight = (0, grad_weight[..., None] if grad_weight is not None else None)
    by_y, by_x = (3 if smooth else 1, grad_displacement), (4 if smooth else 2, grad_displacement)
    if smooth:
        passes = [
            (taps.value, taps.value, [by_weight]),
            (taps.by_place, taps.value, [by_y]),
            (taps.value, taps.by_place, [by_x]),
        ]
    else:
        passes = [(taps.value, taps.value, [by_weight, by_y, by_x])]
    for first, units in _units(weight, displacement, size, False):
        for vertical, across, wanted in passes:
            results = [(kind, result) for kind, result in wanted if result is not None]
            if not results:
                continue
            sums = np.zeros((*units.y.shape, SUMS))
            _correlate(x, vertical, across, grad_output, units, sums, first)
            for kind, result in results:
                arguments = (sums, weight, displacement, size, first, kind, result)
                parallel.run(gradients.finish_items, len(sums), 8.0 * units.y.size, *arguments)


def _correlate(
    x: np.ndarray,
    vertical: np.ndarray,
    across: np.ndarray,
    grad_output: np.ndarray,
    units: Units,
    sums: np.ndarray,
    first: int,
) -> None:
    """Add to `sums` those of the blurred x with the output gradients from channel `first` on."""
    vertical, across = _within(vertical, x.shape[2]), _within(across, x.shape[3])
    for layout, block in plan(x.shape, units, x.itemsize, False):
        planes = _packed(x, vertical, across, layout, block)
        items = -(-len(sums) // gradients.TARGETS) * -(-block.sources // layout.channels)
        operations = 4.0 * block.images * block.tiles * ROWS * layout.width * units.y.size
        arguments = (planes, grad_output, units, sums, first, layout, block)
        parallel.run(gradients.correlate_items, items, operations, *arguments)
