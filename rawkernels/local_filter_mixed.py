"""Grid, block and arguments of the kernels in local_filter_mixed.cu.

Parameters arrive resolved and checked: ``stride``, ``dilation`` and ``padding`` are (y, x) pairs of ints.
Arrays are all NumPy or all CuPy, with any strides:

- x (N, C, H, W), kernels (B, K, kh, kw) with K of 1 or C, mixture (N, G, B, Ho, Wo).

They are of one dtype, but where x has 16 bits, kernels and mixture may each be float32. Kernels of CUDA take
those of filters, which are small, as float32 then in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rawkernels.launch import (
    accumulator_dtype,
    blocks,
    contiguous,
    empty,
    int32s,
    launch,
    needs_wide_index,
    type_constants,
    zeros,
)
from rawkernels.source import Program, constants, program

FILE = "local_filter_mixed.cu"
BLOCK = 128  # as the launch bounds of the kernels
BASES, STRIP = 8, 8  # as in local_filter_mixed.cu
WARP = 32
SET = WARP // STRIP

# Constants, and not properties of the device at hand, so that every device adds up in the same order.
_WARPS_WANTED = 1 << 13
_LANE_OUTPUTS = (8, 512)  # that a lane adds up in the gradient of the kernels: at least, and at most
_SLOT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Shape:
    """Sizes of one call."""

    batch: int
    channels: int
    groups: int
    bases: int
    own: bool  # whether each channel has kernels of its own
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    dtype: Any
    filter_dtype: Any

    @property
    def outputs(self) -> int:
        """Output pixels of one channel."""
        return self.out_height * self.out_width

    @property
    def share(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def taps(self) -> int:
        """Values in one kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def padded(self) -> int:
        """Kernels, and zeros beside them."""
        return blocks(self.bases, BASES) * BASES

    @property
    def arguments(self) -> tuple[np.int32, ...]:
        """The numbers that kernels take last."""
        values = (self.channels, self.groups, self.bases, self.padded)
        sizes = (self.height, self.width, self.out_height, self.out_width)
        pairs = (*self.kernel, *self.stride, *self.dilation, *self.padding)
        return int32s(*values, *sizes, *pairs)


def rows_of_a_thread(dtype: Any) -> int:
    """Pixels whose mixtures and sums fit into the registers of a thread."""
    return 2 if getattr(dtype, "name", dtype) == "float64" else 4


def choose_program(dtype: Any, filter_dtype: Any, *, own: bool, wide_index: bool = False) -> Program:
    """Program for one kind of call."""
    chosen = constants(OWN=int(own), PIXELS=rows_of_a_thread(dtype))
    return program(FILE, type_constants(dtype, wide_index=wide_index, FILTER=filter_dtype) + chosen)


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    found = []
    for filter_dtype in dict.fromkeys((dtype, "float32") if dtype in ("float16", "bfloat16") else (dtype,)):
        for own in (False, True):
            mixed = "" if filter_dtype == dtype else " float32 mixtures"
            made = choose_program(dtype, filter_dtype, own=own, wide_index=wide_index)
            found.append((f"{dtype}{mixed} {'own' if own else 'shared'} kernels", made))
    return found


def forward(
    x: Any,
    kernels: Any,
    mixture: Any,
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Output (N, C, Ho, Wo), and the arrays that `backward` needs: contiguous inputs."""
    x, kernels, mixture = contiguous(x, kernels, mixture)
    shape = _shape(x, kernels, mixture, stride, dilation, padding)
    y = empty((shape.batch, shape.channels, shape.out_height, shape.out_width), x)
    if y.size and shape.bases:
        _launch_planes("mixed_forward", shape, (x, _by_tap(kernels, shape, x), mixture, y), y)
    elif y.size:
        y[...] = 0
    return y, (x, kernels, mixture)


def backward(
    grad_output: Any,
    kept: tuple[Any, Any, Any],
    needs: tuple[bool, bool, bool],
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Any, Any, Any]:
    """Gradients of x, kernels and mixture; None where `needs` is False."""
    grad_output, x, kernels, mixture = contiguous(grad_output, *kept)
    shape = _shape(x, kernels, mixture, stride, dilation, padding)
    if not grad_output.size or not shape.bases:
        nothing = [zeros(a.shape, a) if need else None for a, need in zip(kept, needs, strict=True)]
        return nothing[0], nothing[1], nothing[2]
    by_tap = _by_tap(kernels, shape, x)
    grad_x = grad_kernels = grad_mixture = None
    if needs[0]:
        grad_x = empty(x.shape, x)
        if x.size:
            _launch_planes("mixed_grad_x", shape, (grad_output, by_tap, mixture, grad_x), grad_x)
    if needs[1]:
        total = _grad_kernels(shape, grad_output, x, mixture, kernels)
        grad_kernels = total.astype(kernels.dtype, copy=False)
    if needs[2]:
        grad_mixture = empty(mixture.shape, mixture)
        arrays = (grad_output, x, by_tap, grad_mixture)
        items = shape.batch * shape.groups * (shape.padded // BASES) * shape.outputs
        chosen, index = _choose(shape, arrays, items)
        arguments = (*arrays, index(items), *shape.arguments)
        launch(chosen, "mixed_grad_mixture", (blocks(items, BLOCK),), (BLOCK,), arguments)
    return grad_x, grad_kernels, grad_mixture


def _by_tap(kernels: Any, shape: Shape, x: Any) -> Any:
    """The kernels as their CUDA kernels read them: (1 or C, taps, padded), in the accumulator type."""
    sets = kernels.shape[1]
    packed = zeros((sets, shape.taps, shape.padded), x, accumulator_dtype(x.dtype))
    packed[..., : shape.bases] = kernels.reshape(shape.bases, sets, shape.taps).transpose(1, 2, 0)
    return packed


def _shape(x: Any, kernels: Any, mixture: Any, stride: Any, dilation: Any, padding: Any) -> Shape:
    batch, channels, height, width = x.shape
    _, groups, bases, out_height, out_width = mixture.shape
    sizes = (batch, channels, groups, bases, kernels.shape[1] > 1, height, width, out_height, out_width)
    pairs = (tuple(kernels.shape[2:]), tuple(stride), tuple(dilation), tuple(padding))
    return Shape(*sizes, *pairs, x.dtype, mixture.dtype)


def _choose(shape: Shape, arrays: tuple[Any, ...], work_items: int) -> tuple[Program, type[np.signedinteger]]:
    wide = needs_wide_index(*arrays, work_items=work_items)
    chosen = choose_program(shape.dtype, shape.filter_dtype, own=shape.own, wide_index=wide)
    return chosen, np.int64 if wide else np.int32


def _launch_planes(entry: str, shape: Shape, arrays: tuple[Any, ...], target: Any) -> None:
    """Forward and gradient of x: threads take a few rows of the target and STRIP channels of a group."""
    high, wide = target.shape[2:]
    columns = shape.batch * shape.groups * blocks(high, rows_of_a_thread(shape.dtype)) * wide
    items = columns * blocks(shape.share, STRIP)
    chosen, index = _choose(shape, arrays, items)
    arguments = (*arrays, index(items), *shape.arguments)
    launch(chosen, entry, (blocks(items, BLOCK),), (BLOCK,), arguments)


def _grad_kernels(shape: Shape, grad_output: Any, x: Any, mixture: Any, kernels: Any) -> Any:
    """In slots, of which each warp makes some taps of some kernels; their totals in the accumulator type."""
    sets = kernels.shape[1]
    count = shape.batch * shape.outputs * (1 if shape.own else shape.groups)
    warps = sets * blocks(shape.taps, STRIP) * blocks(shape.bases, SET)
    accumulator = accumulator_dtype(x.dtype)
    wanted = max(_WARPS_WANTED // warps, blocks(count, WARP * _LANE_OUTPUTS[1]))
    room = _SLOT_BYTES // (accumulator.itemsize * kernels.size)
    slots = max(1, min(wanted, count // (WARP * _LANE_OUTPUTS[0]), room))
    partial = empty((slots, *kernels.shape), x, accumulator)
    total = empty(kernels.shape, x, accumulator)
    arrays, items = (grad_output, x, mixture, partial), slots * warps
    chosen, index = _choose(shape, arrays, items * WARP)
    arguments = (*arrays, index(items), index(count), np.int32(slots), *shape.arguments)
    launch(chosen, "mixed_grad_kernels", (blocks(items * WARP, BLOCK),), (BLOCK,), arguments)
    arguments = (partial, total, index(total.size), np.int32(slots))
    launch(chosen, "mixed_sum_slots", (blocks(total.size, BLOCK),), (BLOCK,), arguments)
    return total
