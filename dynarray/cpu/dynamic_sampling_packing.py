"""Bands of `dynamic_sampling_conv2d` on the CPU: lines of x, of its sum over channels and of attention.

Packed with NumPy, threads in turn over channels: it is a small part of the time, and needs no compiling.
"""

from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import parallel
from .dynamic_sampling_kernels import Band, Inputs
from .dynamic_sampling_tile import ROWS
from .planes import whole_lines
from .scratch import borrow

BLOCK_BYTES = 512 * 1024  # packed channel kernels of ROWS output channels: a common L2 cache
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


def step_of(call: Call) -> int:
    """Columns of x between elements of a phase of a line."""
    return call.columns.stride


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


def prepare(call: Call, inputs: Inputs, total: np.ndarray, band: tuple[int, int]) -> tuple[Band, np.ndarray]:
    """The band of rows band[0] to band[1], its lines packed, and the rows of x on them."""
    x = inputs.x
    at, left, stretch, phases = _line_layout(call)
    height = np.arange(*band) * call.rows.stride
    centre_rows = height[:, None] + call.sampled[0]
    rows, line, row = _lines(call, centre_rows)
    packed_totals, total_line, total_at, size = _pack_totals(call, total, centre_rows, left, phases, stretch)
    seen_rows = np.unique(centre_rows)
    centre = np.searchsorted(seen_rows, centre_rows)
    of_taps = _seen_by_taps(packed_totals.reshape(-1, size), total_line, total_at, centre, stretch)
    seen, factors = _seen(call, inputs.position_attention, of_taps, seen_rows, left)
    # An odd number of cache lines, so that the same pixel of many channels finds room in the cache.
    channel = whole_lines((len(rows) + 1) * stretch * phases) | 16
    kernels = call.channels * ROWS * call.columns.outputs * x.itemsize  # of a row
    block = next((rows for rows in (8, 4, 2) if rows * kernels <= BLOCK_BYTES), 1)
    made = Band(
        lines=np.zeros(call.channels * channel + 64, x.dtype),
        line=np.ascontiguousarray(line),
        row=np.ascontiguousarray(row),
        centre=centre,
        seen=seen,
        factors=factors,
        ones=np.ones(max(call.columns.outputs, stretch * phases), x.dtype),
        apart=of_taps.size if factors.size else 0,
        taps=np.arange(len(of_taps)) * of_taps[0].size,
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
    step, view = step_of(call), lines_of_x(made, made.lines, call.channels, len(rows))

    def pack(start: int, stop: int) -> None:
        extended = _extended(x[start:stop], rows, left, stretch * step)
        view[start:stop] = _to_lines(extended, phases, step)

    parallel.run(pack, call.channels, 2.0 * made.lines.size)
    return made, rows


def _lines(call: Call, centre_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of x that are packed; which of them samples lie on, and which of x."""
    within = (centre_rows >= 0) & (centre_rows < call.rows.size)
    rows = np.unique(centre_rows[within])
    line = np.where(within, np.searchsorted(rows, centre_rows), len(rows))
    return rows, line, np.where(within, centre_rows, -1)


def _seen_by_taps(
    lines: np.ndarray, total_line: np.ndarray, total_at: np.ndarray, centre: np.ndarray, stretch: int
) -> np.ndarray:
    """What each tap sees of the sum over channels around its centres, (taps, rows, phases, stretch)."""
    rows = np.empty((int(centre.max()) + 1, total_line.shape[2]), int)
    rows[centre] = total_line
    of_taps = [
        np.stack([lines[rows[:, a], start : start + stretch] for start in total_at[:, b]], axis=1)
        for a in range(total_line.shape[2])
        for b in range(total_at.shape[1])
    ]
    return np.stack(of_taps)


def _seen(
    call: Call, attention: np.ndarray, of_taps: np.ndarray, rows: np.ndarray, left: int
) -> tuple[np.ndarray, np.ndarray]:
    """What each tap sees of X1 around its centres, times the position attention, and that; see `Band`.

    `of_taps` (taps, rows, phases, stretch) is X1, for centres in these rows, inside the image or not.
    """
    if not attention.size:
        seen = borrow("seen", of_taps.size + 64, of_taps.dtype)
        seen[: of_taps.size] = of_taps.reshape(-1)
        return seen, np.zeros(0, of_taps.dtype)
    outputs, (_, _, phases, stretch), step = len(attention), of_taps.shape, step_of(call)
    maps = attention.reshape(outputs, len(of_taps), *attention.shape[3:])
    seen, factors = (borrow(name, outputs * of_taps.size + 64, of_taps.dtype) for name in ("seen", "factors"))
    of_outputs = [flat[: outputs * of_taps.size].reshape(outputs, *of_taps.shape) for flat in (seen, factors)]

    def see(start: int, stop: int) -> None:
        products, attended = (each[start:stop] for each in of_outputs)
        extended = _extended(maps[start:stop], rows, left, stretch * step)
        np.add(_to_lines(extended, phases, step), call.attention_residual, out=attended)
        np.multiply(attended, of_taps, out=products)

    parallel.run(see, outputs, 4.0 * outputs * of_taps.size)
    return seen, factors


def lines_of_x(band: Band, lines: np.ndarray, channels: int, rows: int) -> np.ndarray:
    """The lines of x, or of its gradient, (C, rows, phases, stretch)."""
    whole = lines[: channels * band.channel].reshape(channels, band.channel)
    return whole[:, : rows * band.phases * band.stretch].reshape(channels, rows, band.phases, band.stretch)


def _to_lines(extended: np.ndarray, phases: int, step: int) -> np.ndarray:
    """Rows (..., stretch*step) as lines (..., phases, stretch)."""
    return extended.reshape(*extended.shape[:-1], -1, step)[..., :phases].swapaxes(-1, -2)


def from_lines(lines: np.ndarray, step: int) -> np.ndarray:
    """The adjoint of `_to_lines`."""
    *lead, phases, stretch = lines.shape
    extended = np.zeros((*lead, stretch, step), lines.dtype)
    extended[..., :phases] = lines.swapaxes(-1, -2)
    return extended.reshape(*lead, stretch * step)


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
    rows = np.unique(wanted)
    # Tap b reads column left + phase + k*step + taps[b] for element k of a phase.
    starts = left + np.arange(phases)[:, None] + call.columns.taps()
    begin = int(starts.min())
    place = starts - begin
    width = int((place // step).max()) + stretch
    extended = _extended(total, rows, begin, width * step)
    lines = np.ascontiguousarray(_to_lines(extended, step, step))
    total_at = place % step * width + place // step
    return lines.reshape(-1), np.searchsorted(rows, wanted), np.ascontiguousarray(total_at), width * step


def _extended(images: np.ndarray, rows: np.ndarray, begin: int, width: int) -> np.ndarray:
    """Rows of images (..., H, W) from column `begin` on; zero outside."""
    *lead, height, wide = images.shape
    found = np.zeros((*lead, len(rows), width), images.dtype)
    there, of = _within(rows, height)
    to, first, count = _overlap(begin, width, wide)
    found[..., there, to : to + count] = images[..., of, first : first + count]
    return found


def add_extended(images: np.ndarray, extended: np.ndarray, rows: np.ndarray, begin: int) -> None:
    """The adjoint of `_extended`: added to the images."""
    there, of = _within(rows, images.shape[-2])
    to, first, count = _overlap(begin, extended.shape[-1], images.shape[-1])
    images[..., of, first : first + count] += extended[..., there, to : to + count]


def _within(rows: np.ndarray, height: int) -> tuple[slice, Any]:
    """Of ascending rows, which are in range(height), and an index of them: a slice if they are even."""
    low, end = (int(each) for each in np.searchsorted(rows, (0, height)))
    chosen = rows[low:end]
    steps = np.diff(chosen)
    if len(steps) and (steps == steps[0]).all():
        return slice(low, end), slice(int(chosen[0]), int(chosen[-1]) + 1, int(steps[0]))
    return slice(low, end), chosen


def _overlap(begin: int, width: int, size: int) -> tuple[int, int, int]:
    """Of the columns begin, begin + 1, ..., those in range(size): the first, its number there, how many."""
    low = min(width, max(0, -begin))
    return low, begin + low, max(0, min(width - low, size - begin - low))


def add_totals(
    call: Call, grad_total: np.ndarray, lines: np.ndarray, band: Band, rows: tuple[int, int]
) -> None:
    """From the gradient of packed lines to that of the sum over channels: the adjoint of `_pack_totals`."""
    step = call.columns.stride
    height = np.arange(*rows) * call.rows.stride
    wanted = (height[:, None] + call.sampled[0])[:, :, None] + call.rows.taps()
    found = np.unique(wanted)
    begin = int((band.left + np.arange(band.phases)[:, None] + call.columns.taps()).min())
    extended = from_lines(lines.reshape(len(found), step, -1), step)
    add_extended(grad_total, extended, found, begin)
