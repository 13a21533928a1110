"""`dynamic_sampling_conv2d` on the CPU: what is packed, how work is divided, and both passes.

The image is worked on in bands of output rows. Of each band, the rows of x that it reads are packed into
lines with zeros beside them, so that a sampled region is one offset for a whole row of outputs. The sum of x
over channels, on which the spatial kernel acts, is packed in the same way. Then

- the forward pass sums channel_kernel * x over channels for four output channels and three samples at a
  time, with the sums in registers: 7 loads for 12 multiply-adds. To this it adds the taps of the spatial
  kernel in the same way, from the lines of the sum over channels,
- the gradients of attention and spatial kernel, and the gradient of the sum over channels, are made output
  channel by output channel, with the same sums where the attention needs them, and
- the gradients of channel kernel and x are made for a few channels at a time, each by one owner.

The maximum takes part in gradients with one sample of each pixel, so there pixels are gathered one by one.
Where nothing but the position tells samples apart, without attention and with "sum", one sample of box sums
of x takes the place of S*S samples of x. What bounds this case is reading channel_kernel, and in the
backward pass writing its gradient, once; in all others it is arithmetic from S = 3 on.

(1, 128->24, 48, 64), k = 3, one thread, float32, processor time on a machine that was busy: with one region
or box sums 3.1 to 4.1 ms forward for the 38 MB of channel_kernel, whatever the number of samples; with both
attentions 15, 29 and 37 ms for S = 3, 7, 9, of which sums over channels are about half at S = 9.
"""

from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import parallel
from .compile import kernel_input
from .dynamic_sampling_backward import (
    Grads,
    Outer,
    first_items,
    second_items,
    single_second_items,
)
from .dynamic_sampling_conv import BLOCK as CONV_ROWS
from .dynamic_sampling_conv import Steps, conv_backward_items, conv_items
from .dynamic_sampling_kernels import (
    MAX,
    SINGLE_ROWS,
    STACK,
    SUM,
    Band,
    Inputs,
    forward_items,
    single_items,
)
from .dynamic_sampling_maximum import first_maximum_items, second_maximum_items
from .dynamic_sampling_packing import pack_items, unpack_items
from .dynamic_sampling_tile import ROWS
from .planes import whole_lines

BLOCK_BYTES = 768 * 1024  # packed channel kernels of ROWS output channels: most of a common L2 cache
BAND_BYTES = 16 * 1024 * 1024  # packed lines of a band
_FUSE = {"sum": SUM, "max": MAX, "stack": STACK}


class _Axis(NamedTuple):
    """Positions along one axis."""

    size: int
    outputs: int
    kernel: int
    samples: int
    sample_stride: int
    dilation: int
    stride: int

    def centres(self) -> np.ndarray:
        """Where samples lie, from the pixel of an output."""
        return (np.arange(self.samples) - (self.samples - 1) // 2) * self.sample_stride

    def taps(self) -> np.ndarray:
        """Where taps lie, from the centre of a sample."""
        return (np.arange(self.kernel) - self.kernel // 2) * self.dilation


class _Call(NamedTuple):
    """One call: what does not change from image to image."""

    rows: _Axis
    columns: _Axis
    boxed: bool
    channels: int
    kernel_residual: Any
    attention_residual: Any

    @property
    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, from that of an output, of the centres that kernels see: one of box sums."""
        if self.boxed:
            return np.zeros(1, int), np.zeros(1, int)
        return self.rows.centres(), self.columns.centres()


def _call(arrays: tuple, params: dict[str, Any]) -> _Call:
    x, channel_kernel, spatial_kernel, sample_attention, position_attention = arrays
    rows, columns = (
        _Axis(
            x.shape[2 + k],
            channel_kernel.shape[3 + k],
            spatial_kernel.shape[2 + k],
            params["samples"],
            *(params[name][k] for name in ("sample_stride", "dilation", "stride")),
        )
        for k in range(2)
    )
    plain = sample_attention is None and position_attention is None
    boxed = plain and params["fuse"] == "sum" and params["samples"] > 1
    residual = params["kernel_residual"] / x.shape[1] if x.shape[1] else 0
    number = x.dtype.type
    return _Call(rows, columns, boxed, x.shape[1], number(residual), number(params["attention_residual"]))


def _bands(call: _Call, itemsize: int) -> list[tuple[int, int]]:
    """First row and end of each band of output rows."""
    _, _, stretch, phases = _line_layout(call)
    line = call.channels * stretch * phases * itemsize
    per_row = 1 if call.boxed else min(call.rows.stride, call.rows.samples)
    halo = 0 if call.boxed else call.rows.samples * min(call.rows.sample_stride, call.rows.samples)
    most = max(1, (BAND_BYTES // max(1, line) - halo) // per_row)
    bands = -(-call.rows.outputs // most)
    edges = [call.rows.outputs * k // bands for k in range(bands + 1)]
    return list(pairwise(edges))


def _line_layout(call: _Call) -> tuple[np.ndarray, int, int, int]:
    """Offsets of the samples in a line of x, the column at its start, its stretch and its phases."""
    step = 1 if call.boxed else call.columns.stride
    columns = call.sampled[1]
    left = int(columns.min()) // step * step
    shift = (columns - left) // step
    stretch = call.columns.outputs + int(shift.max())
    phases = 1 if call.columns.samples == 1 or call.boxed else step
    at = shift if phases == 1 else (columns - left) % step * stretch + shift
    return at, left, stretch, phases


def _prepare(call: _Call, x: np.ndarray, total: np.ndarray, band: tuple[int, int]) -> tuple[Band, Any, Any]:
    """The band of rows band[0] to band[1], its lines packed; the rows of x on them, and what is summed."""
    at, left, stretch, phases = _line_layout(call)
    height = np.arange(*band) * call.rows.stride
    centre_rows = height[:, None] + call.sampled[0]
    boxes = height[:, None] + call.rows.centres() if call.boxed else np.zeros((0, 0), int)
    if call.boxed:
        line, rows, row = np.arange(len(height))[:, None], height, centre_rows
    else:
        within = (centre_rows >= 0) & (centre_rows < call.rows.size)
        rows = np.unique(centre_rows[within])
        line = np.where(within, np.searchsorted(rows, centre_rows), len(rows))
        row = np.where(within, centre_rows, -1)
    packed_totals, total_line, total_at, size = _pack_totals(call, total, centre_rows, left, phases, stretch)
    # An odd number of cache lines, so that the same pixel of many channels finds room in the cache.
    channel = whole_lines((len(rows) + 1) * stretch * phases) | 16
    kernels = call.channels * ROWS * (call.columns.outputs + 15) * x.itemsize  # of a row
    made = Band(
        lines=np.zeros(call.channels * channel + 64, x.dtype),
        line=np.ascontiguousarray(line),
        row=np.ascontiguousarray(row),
        at=at,
        totals=packed_totals,
        total_line=total_line,
        total_at=total_at,
        first=band[0],
        rows=band[1] - band[0],
        phases=phases,
        stretch=stretch,
        left=left,
        step=call.columns.stride,
        channel=channel,
        total_size=size,
        kernel_residual=call.kernel_residual,
        attention_residual=call.attention_residual,
        steps=tuple(
            step
            for name in ("stride", "sample_stride", "dilation")
            for step in (getattr(call.rows, name), getattr(call.columns, name))
        ),
        size=(call.rows.size, call.columns.size),
        block=max(1, min(8, band[1] - band[0], BLOCK_BYTES // max(1, kernels))),
    )
    sums = (boxes, call.columns.centres())
    parallel.run(pack_items, call.channels, 2.0 * made.lines.size, x, made, rows, sums)
    return made, rows, sums


def _pack_totals(
    call: _Call, total: np.ndarray, centre_rows: np.ndarray, left: int, phases: int, stretch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The lines of the sum over channels, which line and element of it each tap reads, their length."""
    step = call.columns.stride
    wanted = centre_rows[:, :, None] + call.rows.taps()
    rows = np.unique(wanted)
    # Tap b reads column left + phase + k*step + taps[b] for element k of a phase.
    starts = left + np.arange(phases)[:, None] + call.columns.taps()
    begin = int(starts.min())
    place = starts - begin
    width = int((place // step).max()) + stretch
    extended = _extended(call, total, rows, begin, width * step)
    lines = np.ascontiguousarray(extended.reshape(len(rows), width, step).transpose(0, 2, 1))
    total_at = place % step * width + place // step
    return lines.reshape(-1), np.searchsorted(rows, wanted), np.ascontiguousarray(total_at), width * step


def _extended(call: _Call, total: np.ndarray, rows: np.ndarray, begin: int, width: int) -> np.ndarray:
    """Rows of the sum over channels, or of its box sums, from column `begin`; zero outside the image."""
    found = np.zeros((len(rows), width), total.dtype)
    row_offsets, column_offsets = (
        (call.rows.centres(), call.columns.centres()) if call.boxed else (np.zeros(1, int),) * 2
    )
    columns = np.zeros((len(rows), total.shape[1]), total.dtype)
    for offset in row_offsets:
        within = (rows + offset >= 0) & (rows + offset < total.shape[0])
        columns[within] += total[rows[within] + offset]
    for offset in column_offsets:
        to, of, count = _overlap(begin + offset, width, total.shape[1])
        found[:, to : to + count] += columns[:, of : of + count]
    return found


def _overlap(begin: int, width: int, size: int) -> tuple[int, int, int]:
    """Of the columns begin, begin + 1, ..., those in range(size): the first, its number there, how many."""
    low = min(width, max(0, -begin))
    return low, begin + low, max(0, min(width - low, size - begin - low))


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


def _operations(arrays: tuple, call: _Call) -> float:
    return float(arrays[1].size) * (1 if call.boxed else call.rows.samples**2)


def sampling_forward(*arrays: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_sampling_conv2d`; keeps inputs and, for "max", which samples were the largest."""
    given: tuple[Any, ...] = tuple(None if array is None else kernel_input(array) for array in arrays)
    call, (x, channel_kernel) = _call(given, params), given[:2]
    outputs, regions = (channel_kernel.shape[1], *channel_kernel.shape[3:]), params["samples"] ** 2
    y = np.zeros((x.shape[0], regions if params["fuse"] == "stack" else 1, *outputs), x.dtype)
    largest = np.zeros((x.shape[0], *outputs) if params["fuse"] == "max" else (0,) * 4, np.int32)
    if y.size and x.size:
        for n in range(x.shape[0]):
            _forward_image(call, _inputs(given, n), y[n], largest[n : n + 1], _FUSE[params["fuse"]])
    if params["fuse"] == "stack":
        y = y.reshape(x.shape[0], params["samples"], params["samples"], *outputs)
    else:
        y = y.reshape(x.shape[0], *outputs)
    return y, (*arrays, largest) if params["fuse"] == "max" else arrays


def _forward_image(call: _Call, inputs: Inputs, y: np.ndarray, largest: np.ndarray, fuse: int) -> None:
    total = inputs.x.sum(axis=0)
    chosen = largest[0] if largest.size else np.zeros((0, 0, 0), np.int32)
    for rows in _bands(call, inputs.x.itemsize):
        band, _, _ = _prepare(call, inputs.x, total, rows)
        operations = inputs.channel_kernel.size * len(band.at) ** 2 * band.rows / call.rows.outputs
        if len(band.at) == 1:
            blocks = -(-band.rows // SINGLE_ROWS)
            chunks = max(1, min(y.shape[1], -(-parallel.ITEMS // blocks)))
            parallel.run(single_items, blocks * chunks, operations, inputs, band, chunks, y)
        else:
            blocks = -(-band.rows // band.block)
            chunks = max(1, min(-(-y.shape[1] // ROWS), -(-parallel.ITEMS // blocks)))
            parallel.run(forward_items, blocks * chunks, operations, inputs, band, chunks, fuse, y, chosen)


def sampling_backward(grad_output: Any, kept: tuple, needs: tuple[bool, ...], **params: Any) -> tuple:
    """Gradients of `dynamic_sampling_conv2d` with respect to its five arrays."""
    arrays: tuple[Any, ...] = tuple(None if array is None else kernel_input(array) for array in kept[:5])
    wanted = tuple(needed and array is not None for needed, array in zip(needs, arrays, strict=True))
    grads = tuple(
        np.zeros(array.shape if want else (0,) * array.ndim, array.dtype) if array is not None else None
        for array, want in zip(arrays, wanted, strict=True)
    )
    if grad_output.size and arrays[0].size:
        call, regions = _call(arrays, params), params["samples"] ** 2
        none = np.zeros((0, 0, 0), np.int32)
        if params["fuse"] == "max":
            largest = kept[5] if len(kept) > 5 else sampling_forward(*arrays, **params)[1][5]
        outer = kernel_input(grad_output)
        outer = outer.reshape(
            outer.shape[0],
            regions if params["fuse"] == "stack" else 1,
            *arrays[1].shape[1:2],
            *outer.shape[-2:],
        )
        for n in range(arrays[0].shape[0]):
            of_image = Outer(outer[n], largest[n] if params["fuse"] == "max" else none, _FUSE[params["fuse"]])
            _backward_image(call, arrays, n, of_image, grads, wanted)
    return tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))


def _backward_image(
    call: _Call, arrays: tuple, n: int, outer: Outer, grads: tuple, wanted: tuple[bool, ...]
) -> None:
    inputs = _inputs(arrays, n)
    total = inputs.x.sum(axis=0)
    grad_total = np.zeros(total.shape, total.dtype)
    outputs, sets = inputs.channel_kernel.shape[0], -(-inputs.channel_kernel.shape[0] // ROWS)
    items = min(sets, parallel.ITEMS)
    x, flat5 = inputs.x, np.zeros((0,) * 5, inputs.x.dtype)
    flat4 = flat5.reshape((0,) * 4)
    of_samples = flat4
    if wanted[3]:
        of_samples = grads[3][n].reshape(outputs, -1, *grads[3].shape[4:])
    for rows in _bands(call, x.itemsize):
        band, packed_rows, sums = _prepare(call, x, total, rows)
        first = Grads(
            grads[2][n] if wanted[2] else flat5,
            of_samples,
            grads[4][n] if wanted[4] else flat5,
            np.zeros((items, band.totals.size) if wanted[0] else (0, 0), x.dtype),
        )
        share = (rows[1] - rows[0]) / call.rows.outputs
        if wanted[0] or any(wanted[2:]):
            work = float(inputs.channel_kernel.size) * len(band.at) ** 2 * share
            kernel = first_maximum_items if outer.fuse == MAX else first_items
            parallel.run(kernel, items, work, inputs, outer, first, band, items)
        if wanted[0]:
            _add_totals(call, grad_total, first.totals.sum(axis=0), band, rows)
        if wanted[0] or wanted[1]:
            _second_pass(inputs, outer, grads, n, wanted, band, share, (packed_rows, sums))
    if wanted[0]:
        grads[0][n] += grad_total


def _second_pass(
    inputs: Inputs,
    outer: Outer,
    grads: tuple,
    n: int,
    wanted: tuple,
    band: Band,
    share: float,
    packing: tuple,
) -> None:
    """Gradients of channel kernel and x, but for what all channels share."""
    channels = inputs.x.shape[0]
    lines = np.zeros(band.lines.size if wanted[0] else 0, inputs.x.dtype)
    grad_kernel = grads[1][n] if wanted[1] else np.zeros((0,) * 4, inputs.x.dtype)
    work = 2.0 * inputs.channel_kernel.size * len(band.at) ** 2 * share
    if outer.fuse == MAX:
        chunk = max(8, -(-channels // parallel.ITEMS))
        arrays = (inputs, outer, grad_kernel, lines, band, chunk)
        parallel.run(second_maximum_items, -(-channels // chunk), work, *arrays)
    elif len(band.at) == 1:
        chunk = max(1, -(-channels // (2 * parallel.ITEMS)))
        weights = _single_weights(inputs, outer, band)
        kernels = (inputs.channel_kernel, grad_kernel, lines)
        parallel.run(single_second_items, -(-channels // chunk), work, weights, *kernels, band, chunk)
    else:
        # The more channels share the weights of the samples the better; results do not depend on it.
        chunk = min(64, max(8, -(-channels // (2 * parallel.get_num_threads())))) // ROWS * ROWS
        parallel.run(
            second_items, -(-channels // chunk), work, inputs, outer, grad_kernel, lines, band, chunk
        )
    if wanted[0]:
        parallel.run(unpack_items, channels, 2.0 * lines.size, grads[0][n], lines, band, *packing)


def _single_weights(inputs: Inputs, outer: Outer, band: Band) -> np.ndarray:
    """grad_output * As * Ap of a single sample, (O, rows, Wo)."""
    here = slice(band.first, band.first + band.rows)
    weights = outer.grad_output[0, :, here]
    if inputs.sample_attention.size:
        weights = weights * (inputs.sample_attention[:, 0, here] + band.attention_residual)
    if inputs.position_attention.size:
        kh, kw = inputs.spatial_kernel.shape[1:3]
        centre = inputs.position_attention[:, kh // 2, kw // 2]
        sy, sx = band.steps[:2]
        weights = weights * (centre[:, ::sy, ::sx][:, here] + band.attention_residual)
    return np.ascontiguousarray(weights)


def _add_totals(
    call: _Call, grad_total: np.ndarray, lines: np.ndarray, band: Band, rows: tuple[int, int]
) -> None:
    """From the gradient of packed lines to that of the sum over channels: the adjoint of `_pack_totals`."""
    step = call.columns.stride
    height = np.arange(*rows) * call.rows.stride
    wanted = (height[:, None] + call.sampled[0])[:, :, None] + call.rows.taps()
    found = np.unique(wanted)
    width = band.total_size // step
    extended = lines.reshape(len(found), step, width).transpose(0, 2, 1).reshape(len(found), width * step)
    begin = int((band.left + np.arange(band.phases)[:, None] + call.columns.taps()).min())
    row_offsets, column_offsets = (
        (call.rows.centres(), call.columns.centres()) if call.boxed else (np.zeros(1, int),) * 2
    )
    columns = np.zeros((len(found), grad_total.shape[1]), grad_total.dtype)
    for offset in column_offsets:
        to, of, count = _overlap(begin + offset, width * step, grad_total.shape[1])
        columns[:, of : of + count] += extended[:, to : to + count]
    for offset in row_offsets:
        within = (found + offset >= 0) & (found + offset < grad_total.shape[0])
        grad_total[found[within] + offset] += columns[within]


def _conv_steps(weight: np.ndarray, params: dict[str, tuple[int, int]]) -> Steps:
    lead = (weight.shape[4] - 1) * params["dilation"][1] // params["stride"][1]
    return Steps(params["stride"], params["dilation"], params["padding"], weight.shape[6] + lead)


def conv2d_forward(x: Any, weight: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `dynamic_conv2d`; keeps the inputs for the backward pass."""
    y = np.zeros((*weight.shape[:2], *weight.shape[5:]), x.dtype)
    if y.size and x.size:
        blocks = -(-y.shape[2] // CONV_ROWS)
        chunks = max(1, min(y.shape[1], -(-parallel.ITEMS // (x.shape[0] * blocks))))
        arrays, steps = (kernel_input(x), kernel_input(weight), y), _conv_steps(weight, params)
        parallel.run(conv_items, x.shape[0] * blocks * chunks, weight.size, *arrays, steps, blocks, chunks)
    elif weight.size:  # every tap reads a zero outside the image, which takes part in the products
        y += (weight * 0).sum(axis=(2, 3, 4))
    return y, (x, weight)


def conv2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], **params: Any
) -> tuple[Any, Any]:
    """Gradients of `dynamic_conv2d` with respect to x and weight."""
    x, weight = kept
    grads = [
        np.zeros(a.shape if needed else (0,) * a.ndim, a.dtype) for a, needed in zip(kept, needs, strict=True)
    ]
    if x.size and weight.size:
        bands = max(1, min(x.shape[2], -(-parallel.ITEMS // (x.shape[0] * x.shape[1]))))
        arrays = (kernel_input(grad_output), kernel_input(x), kernel_input(weight), *grads)
        items = x.shape[0] * x.shape[1] * bands
        parallel.run(
            conv_backward_items, items, 2.0 * weight.size, *arrays, _conv_steps(weight, params), bands
        )
    elif needs[1] and weight.size:
        grads[1] += grad_output[:, :, None, None, None] * 0
    return grads[0] if needs[0] else None, grads[1] if needs[1] else None
