"""Bands of output rows: which lines they read and where these lie, and packing them.

An image is worked on in bands, whose lines lie in memory together, and a band in blocks, whose lines of
attention lie in a cache together.
"""

from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import borrowing_cached_jit, borrowing_jit
from ..engine.memory import borrow
from ..engine.pixels import clear, copy, inside, whole_lines
from ..engine.products import PRODUCT_ROWS
from ..engine.references import Reference, keep
from ..engine.vectors import REGISTER_BYTES, in_row
from .records import (
    Lines,
    SampleAxis,
    SampleBand,
    SampleCall,
    SampleDistances,
    SampleInputs,
    SampleLayout,
    SamplePlaces,
    SamplePlan,
    SampleWidths,
    TapPlaces,
)

SAMPLING_BAND_BYTES = 16 * 1024 * 1024  # packed lines of a band
SAMPLING_BLOCK_BYTES = 4 * 1024 * 1024  # of what taps read around a block: attention, times X1, and gradients
# Of that around a single row; if it is more, a band keeps to rows with samples.
SAMPLING_ROW_BYTES = 2 * SAMPLING_BLOCK_BYTES
SAMPLING_BLOCK_ROWS = 16  # of outputs; what taps read is made once for all
ELEMENTS_BEHIND = 64  # behind the last line, which vectors reach into


# ---- where everything lies; nothing of it depends on data


def sampling_call(arrays: tuple, params: dict[str, Any]) -> SampleCall:
    """What is the same for all images of a call."""
    x, channel_kernel, spatial_kernel, _, position_attention = arrays
    rows, columns = (
        SampleAxis(
            x.shape[2 + k],
            channel_kernel.shape[3 + k],
            spatial_kernel.shape[2 + k],
            params["samples"],
            *(params[name][k] for name in ("sample_stride", "dilation", "stride")),
        )
        for k in range(2)
    )
    sizes = x.shape[1], channel_kernel.shape[1]
    number, residual = x.dtype.type, params["kernel_residual"] / max(1, x.shape[1])
    residuals = number(residual), number(params["attention_residual"])
    return SampleCall(rows, columns, *sizes, position_attention is not None, x.itemsize, *residuals)


@lru_cache(maxsize=32)
def sampling_layouts(call: SampleCall, margins: bool) -> list[SampleLayout]:
    """That of each band of output rows, whose rows in scratch have `margins` or not; none is written to."""
    plans = [_plan_band(call, rows) for rows in _rows_of_bands(call)]
    layouts = [_lay_out(call, plan, _widths(call, plan, margins)) for plan in plans]
    keep(call)
    for _, plan, widths, distances, _ in layouts:
        for record in (plan, plan.image, plan.centres, plan.totals, widths, distances):
            keep(record)
    return layouts


def _rows_of_bands(call: SampleCall) -> list[tuple[int, int]]:
    """First row and end of each band."""
    planes = call.channels + call.attended * call.outputs + min(parallel.ITEMS, call.groups)
    line = planes * _line_layout(call)[2] * call.columns.stride * call.itemsize
    per_row = min(call.rows.stride, call.rows.samples)
    halo = call.rows.samples * min(call.rows.sample_stride, call.rows.samples)
    most = max(1, (SAMPLING_BAND_BYTES // max(1, line) - halo) // per_row)
    if _tap_bytes(call) * (_sample_halo(call) + 1) > SAMPLING_ROW_BYTES:
        most = 1
    bands = -(-call.rows.outputs // most)
    edges = [call.rows.outputs * k // bands for k in range(bands + 1)]
    return list(pairwise(edges))


def _sample_halo(call: SampleCall) -> int:
    """Rows from the first to the last on which samples of a row of outputs are centred."""
    return (call.rows.samples - 1) * call.rows.sample_stride


def _tap_bytes(call: SampleCall) -> int:
    """What taps read for one row of centres, in three arrays."""
    line = _line_layout(call)[2] * call.columns.stride * call.itemsize
    return 3 * PRODUCT_ROWS * call.rows.kernel * call.columns.kernel * line


def _line_layout(call: SampleCall) -> tuple[np.ndarray, int, int]:
    """Offsets of the samples in a line of x, the column at its start, and its stretch.

    It is as long as a line of X1 has to be, so that rows of both may go on as one.
    """
    step = call.columns.stride
    columns = call.columns.centres()
    left = int(columns.min()) // step * step
    shift = (columns - left) // step
    reach = int((_tap_columns(call) // step).max())  # of taps, beyond a line
    stretch = call.columns.outputs + int(shift.max()) + reach
    return (columns - left) % step * stretch + shift, left, stretch


def _tap_columns(call: SampleCall) -> np.ndarray:
    """Which column, from the first that any reads, each tap reads for the first element of each phase."""
    place = np.arange(call.columns.stride) + call.columns.taps()[:, None]
    return place - place.min()


def _plan_band(call: SampleCall, rows: tuple[int, int]) -> SamplePlan:
    columns, left, stretch = _line_layout(call)
    step, most = call.columns.stride, SAMPLING_BLOCK_BYTES // max(1, _tap_bytes(call))
    line, fitting = stretch * step, (most - _sample_halo(call) - 1) // call.rows.stride + 1
    block = max(1, min(SAMPLING_BLOCK_ROWS, fitting))  # rows of outputs
    wanted = (np.arange(*rows) * call.rows.stride)[:, None] + call.rows.centres()
    within = (wanted >= 0) & (wanted < call.rows.size)
    image, centres = np.append(np.unique(wanted[within]), -1), np.unique(wanted)
    centre_rows = np.searchsorted(centres, wanted)
    tap_rows = centres + call.rows.taps()[:, None]
    totals, tap_columns = np.unique(tap_rows), _tap_columns(call)
    return SamplePlan(
        first=rows[0],
        rows=rows[1] - rows[0],
        block=block,
        block_centres=max(int(np.ptp(centre_rows[k : k + block])) + 1 for k in range(0, len(wanted), block)),
        image=Lines(image, stretch, left, step),
        centres=Lines(centres, stretch, left, step),
        totals=Lines(totals, stretch, left + int(call.columns.taps().min()), step),
        samples=SamplePlaces(
            image_rows=np.where(within, np.searchsorted(image[:-1], wanted), len(image) - 1),
            centre_rows=centre_rows,
            columns=columns,
            runs=_runs(columns, call.columns.outputs, stretch),
        ),
        taps=TapPlaces(
            rows=np.searchsorted(totals, tap_rows) * line,
            columns=tap_columns % step * stretch + tap_columns // step,
        ),
        # An odd number of cache lines, so that the same pixel of many channels finds room in the cache.
        channel=whole_lines(len(image) * line) | whole_lines(1),
    )


def _runs(columns: np.ndarray, outputs: int, stretch: int) -> np.ndarray:
    """The elements of a line on which samples are centred, as runs (start, end, phase)."""
    runs: list[list[int]] = []
    for start in sorted(int(each) for each in columns):
        if runs and start <= runs[-1][1] and start // stretch == runs[-1][2]:
            runs[-1][1] = start + outputs
        else:
            runs.append([start, start + outputs, start // stretch])
    return np.array(runs)


def _widths(call: SampleCall, plan: SamplePlan, margins: bool) -> SampleWidths:
    lanes = REGISTER_BYTES // call.itemsize
    line = plan.image.step * plan.image.stretch
    row, padded_line = (-(-size // lanes) * lanes for size in (call.columns.outputs, line))
    margin = whole_lines(int(plan.samples.columns.max())) if margins else 0
    pitch = margin + padded_line if margins else row
    tap = plan.block_centres * line
    output = call.rows.kernel * call.columns.kernel * tap if call.attended else 0
    return SampleWidths(row, line, padded_line, margin, pitch, tap, output)


def _lay_out(call: SampleCall, plan: SamplePlan, widths: SampleWidths) -> SampleLayout:
    taps, regions = call.rows.kernel * call.columns.kernel, call.rows.samples * call.columns.samples
    distances = SampleDistances(
        kernels=np.arange(taps) * widths.pitch,
        taps=np.arange(taps) * widths.tap,
        regions=np.arange(regions) * (PRODUCT_ROWS * widths.pitch),
        channels=np.arange(call.channels) * plan.channel,
    )
    longest = max(call.columns.outputs, widths.line) + ELEMENTS_BEHIND
    return SampleLayout(call, plan, widths, distances, np.ones(longest, f"f{call.itemsize}"))


# ---- packing


def pack_band(layout: SampleLayout, inputs: SampleInputs, total: np.ndarray) -> SampleBand:
    """A band, with its lines packed: those of x, of its sum over channels `total`, and of the attention."""
    call, plan, line, x = layout.call, layout.plan, layout.widths.line, inputs.x
    lines = borrow("lines", call.channels * plan.channel + ELEMENTS_BEHIND, x.dtype)
    behind = plan.image.stretch + ELEMENTS_BEHIND
    totals = borrow("totals", len(plan.totals.rows) * line + behind, x.dtype)
    lines[-ELEMENTS_BEHIND:] = 0  # vectors reach there, and as denormal numbers what was there takes long
    totals[-behind:] = 0
    pack_line_items(0, 1, totals, 0, total[None], Reference(plan.totals))
    parallel.run(
        pack_line_items, call.channels, 2.0 * lines.size, lines, plan.channel, x, Reference(plan.image)
    )
    central = _pack_central(inputs.position_attention, call.attention_residual, plan.centres, line)
    return SampleBand(*layout, inputs, lines, totals, central)


def _pack_central(attention: np.ndarray, residual: Any, lines: Lines, line: int) -> np.ndarray:
    """`SampleBand.central`."""
    outputs, size = len(attention), len(lines.rows) * line
    if not attention.size:
        return np.empty(0, attention.dtype)
    central = borrow("central", outputs * size + ELEMENTS_BEHIND, attention.dtype)
    maps = attention.reshape(outputs, prod(attention.shape[1:3]), *attention.shape[3:])
    maps = np.ascontiguousarray(maps[:, maps.shape[1] // 2])
    parallel.run(pack_line_items, outputs, 4.0 * outputs * size, central, size, maps, Reference(lines))
    central[: outputs * size] += residual
    central[outputs * size :] = 0
    return central


@borrowing_jit
def pack_lines(target: np.ndarray, at: int, image: np.ndarray, rows: np.ndarray, lines: Lines) -> None:
    """Lines of these rows of an image, or of zeros outside it."""
    height, width = image.shape
    stretch, step = lines.stretch, lines.step
    for r in range(len(rows)):
        y = rows[r]
        within = 0 <= y < height
        line = image[y if within else 0]
        for phase in range(step):
            to, column = at + (r * step + phase) * stretch, lines.left + phase
            low, end = inside(stretch, 0, width, column, step)
            if not within:
                low, end = stretch, stretch
            clear(target, to, low)
            clear(target, to + end, stretch - end)
            if step == 1:
                copy(target, to + low, line, low + column, end - low)
            else:
                for k in range(low, end):
                    target[to + k] = line[k * step + column]


@borrowing_cached_jit
def pack_line_items(
    start: int, stop: int, target: np.ndarray, apart: int, images: np.ndarray, lines: Lines
) -> None:
    """Items (image): their lines, `apart` from one image to the next, and zeros between them."""
    for item in range(start, stop):
        pack_lines(target, item * apart, images[item], lines.rows, lines)
        size = len(lines.rows) * lines.step * lines.stretch
        clear(target, item * apart + size, max(0, apart - size))


@borrowing_jit
def add_lines(images: np.ndarray, image: int, source: np.ndarray, at: int, lines: Lines) -> None:
    """The adjoint of `pack_lines`, added to one of the images."""
    (height, width), flat = images.shape[1:], in_row(images)
    for r in range(len(lines.rows)):
        y = lines.rows[r]
        for phase in range(lines.step if 0 <= y < height else 0):
            begin, column = at + (r * lines.step + phase) * lines.stretch, lines.left + phase
            low, end = inside(lines.stretch, 0, width, column, lines.step)
            to, by = uint64((image * height + y) * width + column + low * lines.step), uint64(lines.step)
            f = uint64(begin + low)
            if lines.step == 1:
                for k in range(uint64(end - low)):
                    flat[to + k] += source[f + k]
            else:
                for k in range(uint64(end - low)):
                    flat[to + k * by] += source[f + k]


def add_total_lines(image: np.ndarray, source: np.ndarray, lines: Lines) -> None:
    """The adjoint of packing one image, added to it."""
    (height, width), count = image.shape, len(lines.rows)
    phases = source[: count * lines.stretch * lines.step].reshape(count, lines.step, lines.stretch)
    pixels = phases.swapaxes(1, 2).reshape(count, lines.stretch * lines.step)
    within = (lines.rows >= 0) & (lines.rows < height)
    low = max(0, lines.left)
    end = max(low, min(width, lines.left + pixels.shape[1]))
    image[lines.rows[within], low:end] += pixels[within, low - lines.left : end - lines.left]
