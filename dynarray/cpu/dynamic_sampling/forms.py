"""`dynamic_sampling_conv2d` and `dynamic_conv2d` on the CPU: how work is divided, and both passes.

The image is worked on in bands of output rows. Of each band, the rows of x that it reads are packed into
lines with zeros beside them, so that a sampled region is one offset for a whole row of outputs. A few output
channels at a time then go through the rows of a block. What the taps of their spatial kernels read, the sum
of x over channels times the attention of positions, is packed around the block in the same way, once for all
samples. Then

- the forward pass sums channel_kernel * x over channels, for three output channels and up to nine samples
  whose sums stay in registers. The taps are further terms of these sums,
- the gradients of both kernels and of the attention, and that of the sum over channels, are made likewise,
  with the same sums where the attention needs them, and
- the gradient of x is made for some channels at a time, each by one owner.

The maximum takes part in gradients with one sample of each pixel, so there pixels are gathered one by one.
Where nothing but the position tells samples apart, without attention and with "sum", one region of box sums
of x takes the place of S*S regions of x: that, a single sample, and `dynamic_conv2d` are `boxes`.

Which bound holds: channel_kernel, O*C*Ho*Wo numbers, is read once, each with S*S multiply-adds; whole images
apart and not on cache lines, which takes longer than in order, so what comes next is fetched meanwhile. With
few samples memory is the bound, with many arithmetic. Then lines of x come from the second cache and lie
across cache lines, and loads keep sums from the full rate. Backward takes three times the arithmetic, reads
channel_kernel twice and writes as much into fresh memory.
"""

from collections.abc import Collection, Iterator
from math import prod
from typing import Any

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow, empty, run_with_scratch, zeros
from ..engine.products import PRODUCT_ROWS
from ..engine.references import Reference
from .bands import add_total_lines, pack_band, sampling_call, sampling_plans
from .boxes import (
    BOX_SLOTS,
    BoxSteps,
    add_dots,
    box_bands,
    box_steps,
    dot_gradients,
    is_single_region,
    make_boxes,
    single_region_backward,
    single_region_forward,
    spread_boxes,
)
from .definition import backward_again, forward_again
from .gradients import channel_scratch, first_pass_items, second_pass_items
from .kernels import sampling_forward_items, sampling_scratch
from .maximum import exact_maximum_items, first_maximum_items, second_maximum_items
from .records import (
    MAX,
    STACK,
    SUM,
    ChannelGrads,
    MaximumScratch,
    SampleBand,
    SampleCall,
    SampleGradOutput,
    SampleGrads,
    SampleInputs,
)

# Channels of an item of the second backward pass.
_LEAST_CHUNK, _MOST_CHUNK = 8, 64
# Kernels say nothing of infinities, nor may what NumPy does between them.
_quiet = np.errstate(all="ignore")
_FUSE = {"sum": SUM, "max": MAX, "stack": STACK}


# ---- dynamic_sampling_conv2d


def _image_inputs(arrays: tuple, n: int) -> SampleInputs:
    """The arrays of image n."""
    x, channel_kernel, spatial_kernel, sample_attention, position_attention = arrays
    none = np.zeros((0,) * 5, x.dtype)
    if sample_attention is None:
        by_sample = none.reshape((0,) * 4)
    else:
        outputs, _, _, *size = sample_attention.shape[1:]
        by_sample = sample_attention[n].reshape(outputs, prod(sample_attention.shape[2:4]), *size)
    by_position = none if position_attention is None else position_attention[n]
    return SampleInputs(x[n], channel_kernel[n], spatial_kernel[n], by_sample, by_position)


@_quiet
def dynamic_sampling_conv2d_forward(*arrays: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_sampling_conv2d`; keeps inputs and, for "max", which samples were the largest."""
    inputs: tuple[Any, ...] = tuple(None if array is None else kernel_input(array) for array in arrays)
    x, channel_kernel = inputs[:2]
    if x.size and channel_kernel.size and is_single_region(inputs, params):
        y = single_region_forward(inputs, params)
        y = y[:, None, None] if params["fuse"] == "stack" else y
        forward_again(y, inputs, params)
        return y, arrays
    call, fuse = sampling_call(inputs, params), _FUSE[params["fuse"]]
    outputs, regions = (channel_kernel.shape[1], *channel_kernel.shape[3:]), params["samples"] ** 2
    y = zeros((x.shape[0], regions if fuse == STACK else 1, *outputs), x.dtype)
    largest = np.zeros((x.shape[0], *outputs), np.int32) if fuse == MAX else None
    if y.size and x.size:
        for n in range(x.shape[0]):
            _forward_image(call, _image_inputs(inputs, n), y[n], None if largest is None else largest[n])
    if fuse == STACK:
        y = y.reshape(x.shape[0], params["samples"], params["samples"], *outputs)
    else:
        y = y.reshape(x.shape[0], *outputs)
    if fuse != MAX:  # maxima are made again where the largest samples are found
        forward_again(y, inputs, params)
    return y, arrays if largest is None else (*arrays, largest)


def _forward_image(call: SampleCall, inputs: SampleInputs, y: np.ndarray, largest: Any) -> None:
    total, x = inputs.x.sum(axis=0), inputs.x
    for plan in sampling_plans(call):
        band = pack_band(call, plan, inputs, total, margins=False)
        operations = _operations(band)
        blocks = -(-plan.rows // plan.block)
        chunks = max(1, min(call.groups, -(-parallel.ITEMS // blocks)))
        not_finite = np.zeros(y.shape[1:3] if largest is not None else (0, 0), bool)
        arrays = (y, largest, not_finite, Reference(band), chunks)
        scratch = sampling_scratch(band, sums=True, gradients=False)
        run_with_scratch(
            sampling_forward_items, blocks * chunks, operations, scratch, x.dtype, *arrays, by_reference=True
        )
        if not_finite.any():
            places = np.ascontiguousarray(np.argwhere(not_finite))
            parallel.run(exact_maximum_items, len(places), operations, places, y[0], largest, Reference(band))


def _operations(band: SampleBand) -> float:
    """Of the sums over channels of a band."""
    share = band.plan.rows / band.call.rows.outputs
    return float(band.inputs.channel_kernel.size) * band.call.rows.samples**2 * share


@_quiet
def dynamic_sampling_conv2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, ...], **params: Any
) -> tuple:
    """Gradients of `dynamic_sampling_conv2d` with respect to its five arrays."""
    arrays: tuple[Any, ...] = tuple(None if array is None else kernel_input(array) for array in kept[:5])
    wanted = tuple(needed and array is not None for needed, array in zip(needs, arrays, strict=True))
    if not (grad_output.size and arrays[0].size):
        grads = _make_grads(arrays, wanted, ())
    elif is_single_region(arrays, params):
        grads = _make_grads(arrays, wanted, (1, 2, 3))
        size = (*arrays[1].shape[:2], *arrays[1].shape[3:])
        made = tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))
        single_region_backward(kernel_input(grad_output).reshape(size), arrays, params, made)
    else:
        call, largest = sampling_call(arrays, params), None
        if params["fuse"] == "max":
            largest = kept[5] if len(kept) > 5 else dynamic_sampling_conv2d_forward(*arrays, **params)[1][5]
        # With "max", kernels and attention are added to; all else is written.
        grads = _make_grads(arrays, wanted, (0,) if largest is not None else range(5))
        gradient, slices = kernel_input(grad_output), params["samples"] ** 2
        slices = slices if params["fuse"] == "stack" else 1
        gradient = gradient.reshape(gradient.shape[0], slices, arrays[1].shape[1], *gradient.shape[-2:])
        for n in range(arrays[0].shape[0]):
            own = np.zeros((0, 0, 0), np.int32) if largest is None else largest[n]
            given = SampleGradOutput(gradient[n], own, _FUSE[params["fuse"]])
            _backward_image(call, _image_inputs(arrays, n), given, _image_grads(grads, n, call), wanted)
    grads = tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))
    backward_again(grads, grad_output, arrays, params)
    return grads


def _make_grads(arrays: tuple, wanted: tuple[bool, ...], written: Collection[int]) -> tuple:
    """Gradients of zeros, or with any values where all are `written`; no elements if not wanted."""
    return tuple(
        (empty if k in written else zeros)(array.shape if want else (0,) * array.ndim, array.dtype)
        if array is not None
        else None
        for k, (array, want) in enumerate(zip(arrays, wanted, strict=True))
    )


def _image_grads(grads: tuple, n: int, call: SampleCall) -> SampleInputs:
    """Those of image n, as its arrays; what is not wanted has no elements."""
    none = [np.zeros((0,) * ndim, grads[0].dtype) for ndim in (3, 4, 5, 4, 5)]
    own = [
        grad[n] if grad is not None and grad.size else like for grad, like in zip(grads, none, strict=True)
    ]
    if own[3].size:
        own[3] = own[3].reshape(call.outputs, -1, *own[3].shape[3:])
    return SampleInputs(*own)


def _backward_image(
    call: SampleCall,
    inputs: SampleInputs,
    given: SampleGradOutput,
    grads: SampleInputs,
    wanted: tuple[bool, ...],
) -> None:
    total = inputs.x.sum(axis=0)
    grad_total = np.zeros(total.shape, total.dtype)
    items, dtype = min(call.groups, parallel.ITEMS), inputs.x.dtype
    none = np.zeros((0,) * 4, dtype)
    # With "max", the second pass makes the gradient of the channel kernel.
    later, channel_kernel = grads.channel_kernel, none
    if given.fuse != MAX:
        later, channel_kernel = none, grads.channel_kernel
    for plan in sampling_plans(call):
        band = pack_band(call, plan, inputs, total, margins=True)
        totals = np.zeros((items, band.totals.size) if wanted[0] else (0, 0), dtype)
        first = SampleGrads(channel_kernel, *grads[2:], totals)
        if wanted[0] or channel_kernel.size or any(wanted[2:]):
            _first_pass(given, first, band, items)
        if wanted[0]:
            add_total_lines(grad_total, totals.sum(axis=0), plan.totals)
        if wanted[0] or later.size:
            lines = borrow("gradients", band.lines.size if wanted[0] else 0, dtype)
            _second_pass(given, ChannelGrads(grads.x, lines, later), band)
    if wanted[0]:
        grads.x[...] += grad_total


def _first_pass(given: SampleGradOutput, grads: SampleGrads, band: SampleBand, items: int) -> None:
    """Gradients of what belongs to output channels, and of the sum over channels."""
    wide, sums = band.call.columns.outputs, grads.sample_attention.size + grads.position_attention.size > 0
    scratch: tuple = MaximumScratch(wide, wide)
    kernel = first_maximum_items
    if given.fuse != MAX:
        kernel, scratch = first_pass_items, sampling_scratch(band, sums, gradients=True)
    arguments = (Reference(given), Reference(grads), Reference(band), items)
    run_with_scratch(
        kernel, items, _operations(band), scratch, band.inputs.x.dtype, *arguments, by_reference=True
    )


def _second_pass(given: SampleGradOutput, grads: ChannelGrads, band: SampleBand) -> None:
    """Gradients of channel kernel and x, but for what all channels share."""
    channels, operations = band.call.channels, 2 * _operations(band)
    scratch: tuple = MaximumScratch(0, band.call.columns.outputs)
    chunk, kernel = max(_LEAST_CHUNK, -(-channels // parallel.ITEMS)), second_maximum_items
    if given.fuse != MAX:
        # The more channels share the weights of the samples the better; results do not depend on it.
        chunk = min(_MOST_CHUNK, max(_LEAST_CHUNK, -(-channels // parallel.get_num_threads())))
        chunk = -(-chunk // PRODUCT_ROWS) * PRODUCT_ROWS
        kernel, scratch = second_pass_items, channel_scratch(band)
    arguments = (Reference(given), Reference(grads), Reference(band), chunk)
    run_with_scratch(
        kernel, -(-channels // chunk), operations, scratch, band.inputs.x.dtype, *arguments, by_reference=True
    )


# ---- dynamic_conv2d


def _conv_steps(x: np.ndarray, weight: np.ndarray, params: dict[str, tuple[int, int]]) -> BoxSteps:
    """The pixel under each tap."""
    places = np.argwhere(np.ones(weight.shape[3:5])) * params["dilation"] - np.array(params["padding"])
    alone, places = np.zeros(1, int), np.ascontiguousarray(places)
    return box_steps(x.shape[2:], params["stride"], weight.shape[6], places, alone, alone)


def _weight_by_term(weight: np.ndarray) -> np.ndarray:
    """(N, O, terms, positions): channels and taps are the terms of one sum."""
    n, outputs, channels, kh, kw, high, wide = weight.shape
    return weight.reshape(n, outputs, channels * kh * kw, high * wide)


def _conv_bands(weight: np.ndarray, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of outputs, of which each position takes so many numbers for each term."""
    n, _, channels, kh, kw, high, wide = weight.shape
    return box_bands(n, high, numbers * channels * kh * kw * wide * weight.itemsize)


@_quiet
def dynamic_conv2d_forward(x: Any, weight: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_conv2d`; keeps the inputs for the backward pass."""
    y = np.zeros((*weight.shape[:2], *weight.shape[5:]), x.dtype)
    if not y.size or not x.size:
        # Every tap reads a zero outside the image, which takes part in the products.
        return y + (weight * 0).sum(axis=(2, 3, 4)), (x, weight)
    kernels, steps = _weight_by_term(kernel_input(weight)), _conv_steps(x, weight, params)
    pixels, wide = kernel_input(x), weight.shape[6]
    for images, rows in _conv_bands(weight, 1):
        boxes = make_boxes("boxes", pixels[images], rows, wide, steps)
        sums = np.zeros((*y[images].shape[:2], boxes.shape[2]), x.dtype)
        add_dots(sums, kernels[images], boxes, rows.start * wide)
        part = y[images, :, rows]
        part[...] = sums.reshape(part.shape)
    return y, (x, weight)


@_quiet
def dynamic_conv2d_backward(
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
    kernels, steps = _weight_by_term(kernel_input(weight)), _conv_steps(x, weight, params)
    pixels, wide = kernel_input(x), weight.shape[6]
    grad_kernels = None if grad_weight is None else _weight_by_term(grad_weight)
    for images, rows in _conv_bands(weight, 1 + BOX_SLOTS):
        boxes = make_boxes("boxes", pixels[images], rows, wide, steps)
        gradient = kernel_input(grad_output[images, :, rows])
        gradient = gradient.reshape(*gradient.shape[:2], boxes.shape[2])
        own, first = None if grad_kernels is None else grad_kernels[images], rows.start * wide
        arguments = (gradient, kernels[images], boxes, own, grad_x is not None, first)
        grad_boxes = dot_gradients("grad_boxes", *arguments)
        if grad_x is not None:
            spread_boxes(grad_boxes, grad_x[images], rows, steps)
    return grad_x, grad_weight
