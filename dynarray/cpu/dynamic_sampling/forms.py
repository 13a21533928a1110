"""`dynamic_sampling_conv2d` on the CPU: how work is divided, and both passes.

The image is worked on in bands of output rows. Of each band, the rows of x that it reads are packed into
lines with zeros beside them, so that a sampled region is one offset for a whole row of outputs. A few output
channels at a time then go through the rows of a block. What the taps of their spatial kernels see, the sum of
x over channels times the attention of positions, is packed around the block in the same way, once for all
samples. Then

- the forward pass sums channel_kernel * x over channels, for three output channels and up to nine samples
  whose sums stay in registers. The taps are further terms of these sums,
- the gradients of both kernels and of the attention, and that of the sum over channels, are made likewise,
  with the same sums where the attention needs them, and
- the gradient of x is made for some channels at a time, each by one owner.

The maximum takes part in gradients with one sample of each pixel, so there pixels are gathered one by one.
Where nothing but the position tells samples apart, without attention and with "sum", one region of box sums
of x takes the place of S*S regions of x: that, and a single sample, is `dynamic_sampling_single`.

Which bound holds, for (1, 128->24, 48, 64), k = 3, float32, on two threads of a Zen 4 (AVX-512). Reading
the 38 MB of channel_kernel in order takes 0.7 ms; whole images apart, and not on cache lines, 1.3 to 1.7.
With both attentions S = 3, 7, 9 take 91, 495 and 818 million multiply-adds. The innermost loop makes 53 of
them per nanosecond and thread on data in the second cache, which is 0.9, 4.7 and 7.7 ms: memory is the
bound at S = 3, arithmetic from S = 7 on. The forward kernel takes 2.8, 9 and 13 ms, and what goes before it
0.7. At S = 3 the sums over channels are 2.0 of that, for kernels are fetched while others are multiplied;
the rest is what taps see (0.3), the taps (0.2) and the sample attention. At S = 7 the sums make 35
multiply-adds per nanosecond, for lines come from the second cache and lie across cache lines. Backward
takes three times the arithmetic, reads channel_kernel twice and writes as much into fresh memory, which
alone takes 1.7 ms: at S = 3 the sums take 2.3, the gradient of channel_kernel 3.3, that of x 3.1, all else
3.5 and what goes before 1.4 ms.
"""

from collections.abc import Collection
from math import prod
from typing import Any

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow, empty, zeros
from .backward import (
    Grads,
    Outer,
    first_items,
    second_items,
)
from .conv import conv2d_backward as conv2d_backward
from .conv import conv2d_forward as conv2d_forward
from .kernels import (
    MAX,
    STACK,
    SUM,
    Band,
    Inputs,
    forward_items,
    whole_items,
)
from .maximum import first_maximum_items, second_maximum_items
from .packing import add_totals, prepare
from .plan import Call, Plan, describe, plans
from .scratch import cut, make_columns, make_rows, make_weights, row_sizes, widths_of
from .single import single_backward, single_forward, single_region
from .tile import ROWS

_FUSE = {"sum": SUM, "max": MAX, "stack": STACK}


def _inputs(arrays: tuple, n: int) -> Inputs:
    x, channel_kernel, spatial_kernel, sample_attention, position_attention = arrays
    none = np.zeros((0,) * 5, x.dtype)
    if sample_attention is None:
        by_sample = none[0:0].reshape((0,) * 4)
    else:
        outputs, _, _, *size = sample_attention.shape[1:]
        by_sample = sample_attention[n].reshape(outputs, prod(sample_attention.shape[2:4]), *size)
    by_position = none if position_attention is None else position_attention[n]
    return Inputs(x[n], channel_kernel[n], spatial_kernel[n], by_sample, by_position)


def sampling_forward(*arrays: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_sampling_conv2d`; keeps inputs and, for "max", which samples were the largest."""
    given: tuple[Any, ...] = tuple(None if array is None else kernel_input(array) for array in arrays)
    x, channel_kernel = given[:2]
    if x.size and channel_kernel.size and single_region(given, params):
        y = single_forward(given, params)
        return y[:, None, None] if params["fuse"] == "stack" else y, arrays
    call, fuse = describe(given, params), _FUSE[params["fuse"]]
    outputs, regions = (channel_kernel.shape[1], *channel_kernel.shape[3:]), params["samples"] ** 2
    y = zeros((x.shape[0], regions if params["fuse"] == "stack" else 1, *outputs), x.dtype)
    largest = np.zeros((x.shape[0], *outputs) if params["fuse"] == "max" else (0,) * 4, np.int32)
    if y.size and x.size:
        for n in range(x.shape[0]):
            _forward_image(call, _inputs(given, n), y[n], largest[n : n + 1], fuse)
    if params["fuse"] == "stack":
        y = y.reshape(x.shape[0], params["samples"], params["samples"], *outputs)
    else:
        y = y.reshape(x.shape[0], *outputs)
    return y, (*arrays, largest) if params["fuse"] == "max" else arrays


def _forward_image(call: Call, inputs: Inputs, y: np.ndarray, largest: np.ndarray, fuse: int) -> None:
    total = inputs.x.sum(axis=0)
    chosen = largest[0] if largest.size else np.zeros((0, 0, 0), np.int32)
    for of_band in plans(call):
        band = prepare(call, of_band, inputs, total)
        operations = inputs.channel_kernel.size * len(band.at) ** 2 * band.rows / call.rows.outputs
        blocks = -(-band.rows // band.block)
        chunks = max(1, min(call.sets, -(-parallel.ITEMS // blocks)))
        odd = np.zeros(chosen.shape[:2], bool)
        arrays = (inputs, band, chunks, y, chosen if fuse == MAX else None, odd)
        parallel.run(_forward_piece, blocks * chunks, operations, *arrays)
        if odd.any():
            places = np.argwhere(odd)
            parallel.run(whole_items, len(places), operations, inputs, band, places, y[0], chosen)


def _forward_piece(start: int, stop: int, inputs: Inputs, band: Band, *args: Any) -> None:
    pitch = widths_of(inputs, band).row
    memory = cut(inputs.x.dtype, *row_sizes(inputs, band, pitch, True, False))
    forward_items(start, stop, make_rows(inputs, band, memory, 0, pitch), inputs, band, *args)


def _first_piece(start: int, stop: int, inputs: Inputs, outer: Outer, grads: Grads, *args: Any) -> None:
    dots = grads.sample_attention.size + grads.position_attention.size > 0
    first_items(start, stop, *make_weights(inputs, args[0], dots), inputs, outer, grads, *args)


def _second_piece(start: int, stop: int, inputs: Inputs, outer: Outer, *args: Any) -> None:
    second_items(start, stop, make_columns(inputs, args[3]), inputs, outer, *args)


def sampling_backward(grad_output: Any, kept: tuple, needs: tuple[bool, ...], **params: Any) -> tuple:
    """Gradients of `dynamic_sampling_conv2d` with respect to its five arrays."""
    arrays: tuple[Any, ...] = tuple(None if array is None else kernel_input(array) for array in kept[:5])
    wanted = tuple(needed and array is not None for needed, array in zip(needs, arrays, strict=True))
    if not (grad_output.size and arrays[0].size):
        grads = _make_grads(arrays, wanted, ())
    elif single_region(arrays, params):
        grads = _make_grads(arrays, wanted, (1, 2, 3))
        size = (*arrays[1].shape[:2], *arrays[1].shape[3:])
        made = tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))
        single_backward(grad_output.reshape(size), arrays, params, made)
    else:
        call, chosen = describe(arrays, params), None
        if params["fuse"] == "max":
            chosen = kept[5] if len(kept) > 5 else sampling_forward(*arrays, **params)[1][5]
        # With "max", kernels and attention are added to; all else is written.
        grads = _make_grads(arrays, wanted, (0,) if chosen is not None else range(5))
        outer, slices = kernel_input(grad_output), params["samples"] ** 2 if params["fuse"] == "stack" else 1
        outer = outer.reshape(outer.shape[0], slices, arrays[1].shape[1], *outer.shape[-2:])
        for n in range(arrays[0].shape[0]):
            largest = np.zeros((0, 0, 0), np.int32) if chosen is None else chosen[n]
            of_image = Outer(outer[n], largest, _FUSE[params["fuse"]])
            _backward_image(call, arrays, n, of_image, grads, wanted)
    return tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))


def _make_grads(arrays: tuple, wanted: tuple[bool, ...], written: Collection[int]) -> tuple:
    """Gradients of zeros, or with any values where all are `written`; no elements if not wanted."""
    return tuple(
        (empty if k in written else zeros)(array.shape if want else (0,) * array.ndim, array.dtype)
        if array is not None
        else None
        for k, (array, want) in enumerate(zip(arrays, wanted, strict=True))
    )


def _backward_image(
    call: Call, arrays: tuple, n: int, outer: Outer, grads: tuple, wanted: tuple[bool, ...]
) -> None:
    inputs = _inputs(arrays, n)
    total = inputs.x.sum(axis=0)
    grad_total = np.zeros(total.shape, total.dtype)
    items = min(call.sets, parallel.ITEMS)
    x, flat5 = inputs.x, np.zeros((0,) * 5, inputs.x.dtype)
    flat4 = flat5.reshape((0,) * 4)
    of_samples = flat4
    if wanted[3]:
        of_samples = grads[3][n].reshape(call.outputs, -1, *grads[3].shape[4:])
    for of_band in plans(call):
        band = prepare(call, of_band, inputs, total)
        owned = wanted[1] and outer.fuse != MAX  # else the second pass makes it
        first = Grads(
            grads[1][n] if owned else flat4,
            grads[2][n] if wanted[2] else flat5,
            of_samples,
            grads[4][n] if wanted[4] else flat5,
            np.zeros((items, band.totals.size) if wanted[0] else (0, 0), x.dtype),
        )
        share = band.rows / call.rows.outputs
        if wanted[0] or owned or any(wanted[2:]):
            work = float(inputs.channel_kernel.size) * len(band.at) ** 2 * share
            kernel = first_maximum_items if outer.fuse == MAX else _first_piece
            parallel.run(kernel, items, work, inputs, outer, first, band, items)
        if wanted[0]:
            add_totals(grad_total, first.totals.sum(axis=0), of_band)
        if wanted[0] or (wanted[1] and not owned):
            _second_pass(call, inputs, outer, grads, n, wanted, band, share, of_band)
    if wanted[0]:
        grads[0][n] += grad_total


def _second_pass(
    call: Call,
    inputs: Inputs,
    outer: Outer,
    grads: tuple,
    n: int,
    wanted: tuple,
    band: Band,
    share: float,
    of_band: Plan,
) -> None:
    """Gradients of channel kernel and x, but for what all channels share."""
    channels, dtype = inputs.x.shape[0], inputs.x.dtype
    lines = borrow("gradients", band.lines.size if wanted[0] else 0, dtype)
    grad_x = grads[0][n] if wanted[0] else np.zeros((0,) * 3, dtype)
    work = 2.0 * inputs.channel_kernel.size * len(band.at) ** 2 * share
    if outer.fuse == MAX:
        chunk, kernel = max(8, -(-channels // parallel.ITEMS)), second_maximum_items
        made: tuple = (grads[1][n] if wanted[1] else np.zeros((0,) * 4, dtype),)
    else:
        # The more channels share the weights of the samples the better; results do not depend on it.
        chunk = min(64, max(8, -(-channels // parallel.get_num_threads())))
        chunk, kernel, made = -(-chunk // ROWS) * ROWS, _second_piece, ()
    arrays = (inputs, outer, *made, grad_x, lines, of_band.image, band, chunk)
    parallel.run(kernel, -(-channels // chunk), work, *arrays)
