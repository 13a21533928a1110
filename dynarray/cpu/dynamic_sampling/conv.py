"""`dynamic_conv2d` on the CPU: every weight is used once, so reading them is the bound.

Channels and taps are the terms that `dynamic_sampling_regions` sums: X is x where each tap reads it, for one
band of rows of outputs after the other.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ..engine.compile import kernel_input
from ..engine.memory import empty, zeros
from .regions import SLOTS, Steps, add_dots, make_boxes, outers, spread, steps_of

BAND_BYTES = 16 * 1024 * 1024  # of a band: X, and its gradient in the backward pass


def _taps(x: np.ndarray, weight: np.ndarray, params: dict[str, tuple[int, int]]) -> Steps:
    """The pixel under each tap."""
    places = np.argwhere(np.ones(weight.shape[3:5])) * params["dilation"] - np.array(params["padding"])
    alone = np.zeros(1, int)
    return steps_of(
        x.shape[2:], params["stride"], weight.shape[6], np.ascontiguousarray(places), alone, alone
    )


def _bands(weight: np.ndarray, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of outputs, of which each position takes so many numbers for each term."""
    n, _, channels, kh, kw, high, wide = weight.shape
    most = max(1, BAND_BYTES // (numbers * channels * kh * kw * wide * weight.itemsize))  # rows
    several, bands = max(1, min(n, most // high)), -(-high // most)
    for first in range(0, n, several):
        for rows in pairwise(high * k // bands for k in range(bands + 1)):
            yield slice(first, first + several), slice(*rows)


def conv2d_forward(x: Any, weight: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_conv2d`; keeps the inputs for the backward pass."""
    y = np.zeros((*weight.shape[:2], *weight.shape[5:]), x.dtype)
    if not y.size or not x.size:
        # Every tap reads a zero outside the image, which takes part in the products.
        return y + (weight * 0).sum(axis=(2, 3, 4)), (x, weight)
    images, kernels, steps = kernel_input(x), _by_term(kernel_input(weight)), _taps(x, weight, params)
    wide = weight.shape[6]
    for several, rows in _bands(weight, 1):
        seen = make_boxes("boxes", images[several], rows, wide, steps)
        sums = np.zeros((*y[several].shape[:2], seen.shape[2]), x.dtype)
        add_dots(sums, kernels[several], seen, rows.start * wide)
        of_band = y[several, :, rows]
        of_band[...] = sums.reshape(of_band.shape)
    return y, (x, weight)


def _by_term(weight: np.ndarray) -> np.ndarray:
    """(N, O, terms, positions)."""
    n, outputs, channels, kh, kw, high, wide = weight.shape
    return weight.reshape(n, outputs, channels * kh * kw, high * wide)


def conv2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], **params: Any
) -> tuple[Any, Any]:
    """Gradients of `dynamic_conv2d` with respect to x and weight."""
    x, weight = kept
    grad_x = zeros(x.shape, x.dtype) if needs[0] else None
    grad_weight = empty(weight.shape, weight.dtype) if needs[1] else None
    if not x.size or not weight.size:
        if grad_weight is not None:
            grad_weight[...] = grad_output[:, :, None, None, None] * 0
        return grad_x, grad_weight
    images, kernels, steps = kernel_input(x), _by_term(kernel_input(weight)), _taps(x, weight, params)
    of_kernels = None if grad_weight is None else _by_term(grad_weight)
    for several, rows in _bands(weight, 1 + SLOTS):
        seen = make_boxes("boxes", images[several], rows, weight.shape[6], steps)
        outer = np.ascontiguousarray(grad_output[several, :, rows])
        outer = outer.reshape(*outer.shape[:2], seen.shape[2])
        to, first = None if of_kernels is None else of_kernels[several], rows.start * weight.shape[6]
        of_seen = outers("grad_boxes", outer, kernels[several], seen, to, grad_x is not None, first)
        if grad_x is not None:
            spread(of_seen, grad_x[several], rows, steps)
    return grad_x, grad_weight
