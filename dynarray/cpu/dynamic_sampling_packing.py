"""Bands of `dynamic_sampling_conv2d` on the CPU: lines of x, of its sum over channels and of attention."""

from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import parallel
from .dynamic_sampling_kernels import CHANNELS, Band, Inputs
from .dynamic_sampling_lines import Lines, add_items, pack_items, see_items
from .dynamic_sampling_tile import ROWS
from .planes import whole_lines
from .scratch import borrow

BLOCK_BYTES = 256 * 1024  # sums over channels of a block of rows, or their kernels: part of an L2 cache
BAND_BYTES = 16 * 1024 * 1024  # packed lines of a band


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


class Call(NamedTuple):
    """One call: what does not change from image to image."""

    rows: _Axis
    columns: _Axis
    channels: int
    sets: int  # of output channels
    attended: int  # maps of position attention
    kernel_residual: Any
    attention_residual: Any

    @property
    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, from that of an output, of the centres that kernels see."""
        return self.rows.centres(), self.columns.centres()


def describe(arrays: tuple, params: dict[str, Any]) -> Call:
    """What is the same for all images of a call."""
    x, channel_kernel, spatial_kernel, _, position_attention = arrays
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
    residual = params["kernel_residual"] / x.shape[1] if x.shape[1] else 0
    number = x.dtype.type
    sets = -(-channel_kernel.shape[1] // ROWS)
    attended = 0 if position_attention is None else prod(position_attention.shape[1:4])
    residuals = number(residual), number(params["attention_residual"])
    return Call(rows, columns, x.shape[1], sets, attended, *residuals)


def bands(call: Call, itemsize: int) -> list[tuple[int, int]]:
    """First row and end of each band of output rows."""
    _, _, stretch, phases = _line_layout(call)
    planes = call.channels + 2 * call.attended + min(parallel.ITEMS, call.sets)
    line = planes * stretch * phases * itemsize
    per_row = min(call.rows.stride, call.rows.samples)
    halo = call.rows.samples * min(call.rows.sample_stride, call.rows.samples)
    most = max(1, (BAND_BYTES // max(1, line) - halo) // per_row)
    bands = -(-call.rows.outputs // most)
    edges = [call.rows.outputs * k // bands for k in range(bands + 1)]
    return list(pairwise(edges))


def _line_layout(call: Call) -> tuple[np.ndarray, int, int, int]:
    """Offsets of the samples in a line of x, the column at its start, its stretch and its phases."""
    step = call.columns.stride
    columns = call.sampled[1]
    left = int(columns.min()) // step * step
    shift = (columns - left) // step
    stretch = call.columns.outputs + int(shift.max())
    phases = step
    at = (columns - left) % step * stretch + shift
    return at, left, stretch, phases


def prepare(call: Call, inputs: Inputs, total: np.ndarray, band: tuple[int, int]) -> tuple[Band, Lines]:
    """The band of rows band[0] to band[1], its lines packed, and where those of x lie."""
    x = inputs.x
    at, left, stretch, phases = _line_layout(call)
    height = np.arange(*band) * call.rows.stride
    centre_rows = height[:, None] + call.sampled[0]
    rows, line, row = _lines(call, centre_rows)
    packed_totals, total_line, total_at, size = _pack_totals(call, total, centre_rows, left, phases, stretch)
    seen_rows = np.unique(centre_rows)
    centre = np.searchsorted(seen_rows, centre_rows)
    total_rows = np.empty((len(seen_rows), total_line.shape[2]), int)
    total_rows[centre] = total_line * size
    of_image, of_centres = (Lines(each, stretch, left, call.columns.stride) for each in (rows, seen_rows))
    seen, factors = _seen(call, inputs.position_attention, of_centres, packed_totals, total_rows, total_at)
    taps, of_tap = total_rows.shape[1] * total_at.shape[1], len(seen_rows) * phases * stretch
    # An odd number of cache lines, so that the same pixel of many channels finds room in the cache.
    channel = whole_lines(len(rows) * stretch * phases) | 16
    lines = borrow("lines", call.channels * channel + 64, x.dtype)
    sums = max(CHANNELS, call.rows.samples**2) * ROWS * call.columns.outputs * x.itemsize  # of a row
    block = next((rows for rows in (16, 8, 4, 2) if rows * sums <= BLOCK_BYTES), 1)
    made = Band(
        lines=lines,
        line=np.ascontiguousarray(line),
        row=np.ascontiguousarray(row),
        centre=centre,
        seen=seen,
        factors=factors,
        ones=np.ones(max(call.columns.outputs, stretch * phases) + 64, x.dtype),
        apart=taps * of_tap if factors.size else 0,
        taps=np.arange(taps) * of_tap,
        runs=_runs(at, call.columns.outputs, stretch),
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
        block=block,
    )
    parallel.run(pack_items, call.channels, 2.0 * lines.size, lines, channel, x, of_image)
    return made, of_image


def _lines(call: Call, centre_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of x that are packed, with one outside; which of them samples lie on, and which of x."""
    within = (centre_rows >= 0) & (centre_rows < call.rows.size)
    rows = np.unique(centre_rows[within])
    line = np.where(within, np.searchsorted(rows, centre_rows), len(rows))
    return np.append(rows, -1), line, np.where(within, centre_rows, -1)


def _seen(
    call: Call,
    attention: np.ndarray,
    lines: Lines,
    totals: np.ndarray,
    total_rows: np.ndarray,
    total_at: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What each tap sees of X1 around its centres, times the position attention, and that; see `Band`."""
    outputs, taps = max(1, len(attention)), total_rows.shape[1] * total_at.shape[1]
    size = outputs * taps * len(lines.rows) * lines.step * lines.stretch
    seen = borrow("seen", size + 64, totals.dtype)
    factors = borrow("factors", size + 64 if attention.size else 0, totals.dtype)
    maps = attention.reshape(len(attention) * taps, *(call.rows.size, call.columns.size))
    arguments = (seen, factors, maps, call.attention_residual, lines, totals, total_rows, total_at)
    parallel.run(see_items, outputs * taps, 4.0 * size, *arguments)
    return seen, factors


def _runs(at: np.ndarray, outputs: int, stretch: int) -> np.ndarray:
    """The elements of a line on which samples are centred, as runs (start, end, phase)."""
    runs: list[list[int]] = []
    for start in sorted(int(each) for each in at):
        if runs and start <= runs[-1][1] and start // stretch == runs[-1][2]:
            runs[-1][1] = start + outputs
        else:
            runs.append([start, start + outputs, start // stretch])
    return np.array(runs)


def _pack_totals(
    call: Call, total: np.ndarray, centre_rows: np.ndarray, left: int, phases: int, stretch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The lines of the sum over channels, which line and element of it each tap reads, their length."""
    step = call.columns.stride
    wanted = centre_rows[:, :, None] + call.rows.taps()
    # Tap b reads column left + phase + k*step + taps[b] for element k of a phase.
    place = left + np.arange(phases)[:, None] + call.columns.taps()
    place -= place.min()
    width = int((place // step).max()) + stretch
    lines = _lines_of_totals(call, wanted, left, width)
    packed = np.empty(len(lines.rows) * width * step, total.dtype)
    pack_items(0, 1, packed, 0, total[None], lines)
    total_at = place % step * width + place // step
    return packed, np.searchsorted(lines.rows, wanted), np.ascontiguousarray(total_at), width * step


def _lines_of_totals(call: Call, wanted: np.ndarray, left: int, width: int) -> Lines:
    """The lines of the sum over channels that taps read on rows `wanted`, of which each has all phases."""
    return Lines(np.unique(wanted), width, left + int(call.columns.taps().min()), call.columns.stride)


def add_totals(
    call: Call, grad_total: np.ndarray, packed: np.ndarray, band: Band, rows: tuple[int, int]
) -> None:
    """From the gradient of packed lines to that of the sum over channels: the adjoint of `_pack_totals`."""
    height = np.arange(*rows) * call.rows.stride
    wanted = (height[:, None] + call.sampled[0])[:, :, None] + call.rows.taps()
    lines = _lines_of_totals(call, wanted, band.left, band.total_size // call.columns.stride)
    add_items(0, 1, grad_total[None], packed, 0, lines)
