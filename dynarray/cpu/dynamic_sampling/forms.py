"""`dynamic_sampling_conv2d` on the CPU: how work is divided, and both passes.

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
of x takes the place of S*S regions of x: that, and a single sample, are `boxes`.
With few channels and taps the passes above would write and read again what takes little to make: `held`
makes all of a region while its sum is in registers, and all gradients of a region at once.

Which bound holds: channel_kernel, O*C*Ho*Wo numbers, is read once, each with S*S multiply-adds; whole images
apart and not on cache lines, which takes longer than in order, so what comes next is fetched meanwhile. With
few samples memory is the bound, with many arithmetic. Then lines of x come from the second cache and lie
across cache lines, and loads keep sums from the full rate. Backward takes three times the arithmetic, reads
channel_kernel twice and writes as much into fresh memory.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow, empty, run_with_scratch, zeros
from ..engine.products import PRODUCT_ROWS
from ..engine.references import Reference
from . import boxes
from .bands import add_total_lines, pack_band, sampling_call, sampling_layouts
from .definition import backward_again, forward_again
from .gradients import channel_scratch, first_pass_items, second_pass_items
from .held import has_few_terms, held_forward
from .held_gradients import held_backward
from .kernels import sampling_forward_items, sampling_scratch
from .maximum import exact_maximum_items, first_maximum_items, second_maximum_items
from .records import (
    MAX,
    STACK,
    SUM,
    MaximumScratch,
    SampleBand,
    SampleCall,
    SampleGradOutput,
    SampleGrads,
    SampleInputs,
    SampleWork,
)

# Channels of an item of the second backward pass.
_LEAST_CHUNK, _MOST_CHUNK = 8, 64
# The work on an image, and its memory, below which others are worked on at the same time.
SMALL_IMAGE, SMALL_IMAGE_BYTES = 16 * parallel.SMALL, 1024 * 1024
# Kernels say nothing of infinities, nor may what NumPy does between them.
_quiet = np.errstate(all="ignore")
_FUSE = {"sum": SUM, "max": MAX, "stack": STACK}


def _image_arrays(arrays: tuple, n: int, dtype: np.dtype) -> SampleInputs:
    """The arrays of image n, or their gradients; what there is not has no elements."""
    own = [
        np.zeros((0,) * ndim, dtype) if array is None else array[n]
        for array, ndim in zip(arrays, (3, 4, 5, 4, 5), strict=True)
    ]
    if own[3].size:
        outputs, _, _, *size = own[3].shape
        own[3] = own[3].reshape(outputs, -1, *size)
    return SampleInputs(*own)


@_quiet
def dynamic_sampling_conv2d_forward(*arrays: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_sampling_conv2d`; keeps inputs and, for "max", which samples were the largest."""
    inputs: tuple[Any, ...] = tuple(None if array is None else kernel_input(array) for array in arrays)
    x, channel_kernel = inputs[:2]
    if x.size and channel_kernel.size and boxes.is_single_region(inputs, params):
        y = boxes.single_region_forward(inputs, params)
        y = y[:, None, None] if params["fuse"] == "stack" else y
        forward_again(y, inputs, params)
        return y, arrays
    call, fuse = sampling_call(inputs, params), _FUSE[params["fuse"]]
    outputs, regions = (channel_kernel.shape[1], *channel_kernel.shape[3:]), params["samples"] ** 2
    y = (empty if x.size else zeros)((x.shape[0], regions if fuse == STACK else 1, *outputs), x.dtype)
    largest = np.zeros((x.shape[0], *outputs), np.int32) if fuse == MAX else None
    finite = fuse == MAX  # maxima are made again where the largest samples are found
    if y.size and x.size and has_few_terms(call, fuse):
        finite = held_forward(y.reshape(*y.shape[:3], -1), call, inputs)
    elif y.size and x.size:

        def forward(n: int) -> None:
            own = None if largest is None else largest[n]
            _forward_image(call, _image_arrays(inputs, n, x.dtype), y[n], own)

        _for_each_image(forward, inputs, call)
    y = y.reshape(x.shape[0], *((params["samples"],) * 2 if fuse == STACK else ()), *outputs)
    if not finite:
        forward_again(y, inputs, params)
    return y, arrays if largest is None else (*arrays, largest)


def _for_each_image(work: Callable[[int], None], arrays: tuple, call: SampleCall) -> None:
    """Small images are dealt out to threads, to each of which all work on one is its own."""

    @_quiet  # which holds for one thread
    def images(start: int, stop: int) -> None:
        for n in range(start, stop):
            work(n)

    x, channel_kernel = arrays[:2]
    operations = float(channel_kernel.size) * call.rows.samples**2
    if operations / len(x) < SMALL_IMAGE and x[0].nbytes < SMALL_IMAGE_BYTES:
        parallel.run(images, len(x), operations)
    else:
        images(0, len(x))


def _forward_image(call: SampleCall, inputs: SampleInputs, y: np.ndarray, largest: Any) -> None:
    total, x = inputs.x.sum(axis=0), inputs.x
    for layout in sampling_layouts(call, margins=False):
        band, plan = pack_band(layout, inputs, total), layout.plan
        operations, blocks = _operations(band), -(-plan.rows // plan.block)
        chunks = max(1, min(call.groups, -(-parallel.ITEMS // blocks)))
        not_finite = np.zeros(y.shape[1:3] if largest is not None else (0, 0), bool)
        arrays = (y, largest, not_finite, Reference(band), chunks)
        kernel, scratch = sampling_forward_items, sampling_scratch(band, sums=True, gradients=False)
        run_with_scratch(kernel, blocks * chunks, operations, scratch, x.dtype, *arrays, by_reference=True)
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
    elif boxes.is_single_region(arrays, params):
        # That of the attention of positions is added to nothing, but with a stride written at some alone.
        grads = _make_grads(arrays, wanted, range(5) if params["stride"] == (1, 1) else range(4))
        size = (*arrays[1].shape[:2], *arrays[1].shape[3:])
        boxes.single_region_backward(kernel_input(grad_output).reshape(size), arrays, params, grads)
    else:
        call, largest = sampling_call(arrays, params), None
        if params["fuse"] == "max":
            largest = kept[5] if len(kept) > 5 else dynamic_sampling_conv2d_forward(*arrays, **params)[1][5]
        # With "max", kernels and attention are added to; all else is written.
        grads = _make_grads(arrays, wanted, (0,) if largest is not None else range(5))
        gradient, slices, dtype = kernel_input(grad_output), params["samples"] ** 2, grad_output.dtype
        slices = slices if params["fuse"] == "stack" else 1
        gradient = gradient.reshape(gradient.shape[0], slices, arrays[1].shape[1], *gradient.shape[-2:])
        if has_few_terms(call, _FUSE[params["fuse"]]):
            finite = held_backward(gradient.reshape(*gradient.shape[:3], -1), call, arrays, grads)
            backward_again(grads, grad_output, arrays, params, finite)
            return grads

        def backward(n: int) -> None:
            own = np.zeros((0, 0, 0), np.int32) if largest is None else largest[n]
            given = SampleGradOutput(gradient[n], own, _FUSE[params["fuse"]])
            inputs, made = (_image_arrays(several, n, dtype) for several in (arrays, grads))
            _backward_image(call, inputs, given, made)

        _for_each_image(backward, arrays, call)
    backward_again(grads, grad_output, arrays, params)
    return grads


def _make_grads(arrays: tuple, wanted: tuple[bool, ...], written: Collection[int]) -> tuple:
    """Gradients of zeros, or with any values where all are `written`; None if not wanted."""
    return tuple(
        (empty if k in written else zeros)(array.shape, array.dtype) if want else None
        for k, (array, want) in enumerate(zip(arrays, wanted, strict=True))
    )


def _backward_image(
    call: SampleCall, inputs: SampleInputs, given: SampleGradOutput, grads: SampleInputs
) -> None:
    wanted = [grad.size > 0 for grad in grads]
    total, items = inputs.x.sum(axis=0), min(call.groups, parallel.ITEMS)
    grad_total = np.zeros(total.shape, total.dtype)
    # With "max", the second pass makes the gradient of the channel kernel.
    kernel_first, kernel_later = wanted[1] and given.fuse != MAX, wanted[1] and given.fuse == MAX
    for layout in sampling_layouts(call, margins=True):
        band = pack_band(layout, inputs, total)
        totals = np.zeros((items, band.totals.size) if wanted[0] else (0, 0), total.dtype)
        lines = borrow("gradients", band.lines.size if wanted[0] else 0, total.dtype)
        work = SampleWork(given, SampleGrads(*grads, totals, lines), band)
        reference = Reference(work)
        if wanted[0] or kernel_first or any(wanted[2:]):
            _first_pass(work, reference, items)
        if wanted[0]:
            add_total_lines(grad_total, totals.sum(axis=0), band.plan.totals)
        if wanted[0] or kernel_later:
            _second_pass(work, reference)
    if wanted[0]:
        grads.x[...] += grad_total


def _first_pass(work: SampleWork, reference: Reference, items: int) -> None:
    """Gradients of what belongs to output channels, and of the sum over channels."""
    given, grads, band = work
    wide, sums = band.call.columns.outputs, grads.sample_attention.size + grads.position_attention.size > 0
    scratch: tuple = MaximumScratch(wide, wide)
    kernel, dtype = first_maximum_items, band.inputs.x.dtype
    if given.fuse != MAX:
        kernel, scratch = first_pass_items, sampling_scratch(band, sums, gradients=True)
    arguments = (reference, items)
    run_with_scratch(kernel, items, _operations(band), scratch, dtype, *arguments, by_reference=True)


def _second_pass(work: SampleWork, reference: Reference) -> None:
    """Gradients of channel kernel and x, but for what all channels share."""
    given, _, band = work
    channels, operations, dtype = band.call.channels, 2 * _operations(band), band.inputs.x.dtype
    scratch: tuple = MaximumScratch(0, band.call.columns.outputs)
    chunk, kernel = max(_LEAST_CHUNK, -(-channels // parallel.ITEMS)), second_maximum_items
    if given.fuse != MAX:
        # The more channels share the weights of the samples the better; results do not depend on it.
        chunk = min(_MOST_CHUNK, max(_LEAST_CHUNK, -(-channels // parallel.get_num_threads())))
        chunk = -(-chunk // PRODUCT_ROWS) * PRODUCT_ROWS
        kernel, scratch = second_pass_items, channel_scratch(band)
    items, arguments = -(-channels // chunk), (reference, chunk)
    run_with_scratch(kernel, items, operations, scratch, dtype, *arguments, by_reference=True)
