"""Where `dynamic_sampling_conv2d` on the CPU finds what samples and taps read; nothing of it depends on data.

An image is worked on in bands of output rows, whose lines lie in memory together, and a band in blocks, whose
lines of attention lie in a cache together. A line is a row of an image with zeros beside it.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.pixels import whole_lines
from .lines import Lines
from .tile import ROWS

BAND_BYTES = 16 * 1024 * 1024  # packed lines of a band
BLOCK_BYTES = 4 * 1024 * 1024  # of what taps see around a block: attention, times X1, and gradients
MOST_BYTES = 2 * BLOCK_BYTES  # of that around a single row; if it is more, a band keeps to rows with samples
BLOCK_ROWS = 16  # of outputs; what they see is made once for all


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
    outputs: int
    attended: bool  # by position
    itemsize: int
    kernel_residual: Any  # on each channel
    attention_residual: Any

    @property
    def sets(self) -> int:
        """Of ROWS output channels."""
        return -(-self.outputs // ROWS)


class Plan(NamedTuple):
    """Where everything is that a band of output rows reads; see `Band`, which has most of this."""

    rows: tuple[int, int]  # of outputs: first and end
    block: int  # rows of outputs
    seen_rows: int  # rows of centres around any block
    image: Lines
    centres: Lines
    totals: Lines
    line: np.ndarray
    centre: np.ndarray
    at: np.ndarray
    runs: np.ndarray
    total_rows: np.ndarray
    total_at: np.ndarray
    channel: int


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
    sizes = x.shape[1], channel_kernel.shape[1]
    number, residual = x.dtype.type, params["kernel_residual"] / max(1, x.shape[1])
    residuals = number(residual), number(params["attention_residual"])
    return Call(rows, columns, *sizes, position_attention is not None, x.itemsize, *residuals)


@lru_cache(maxsize=16)
def plans(call: Call) -> list[Plan]:
    """The plan of each band of output rows; nobody writes to them."""
    return [_plan(call, rows) for rows in _bands(call)]


def _bands(call: Call) -> list[tuple[int, int]]:
    """First row and end of each band."""
    planes = call.channels + call.attended * call.outputs + min(parallel.ITEMS, call.sets)
    line = planes * _line_layout(call)[2] * call.columns.stride * call.itemsize
    per_row = min(call.rows.stride, call.rows.samples)
    halo = call.rows.samples * min(call.rows.sample_stride, call.rows.samples)
    most = max(1, (BAND_BYTES // max(1, line) - halo) // per_row)
    if _seen_bytes(call) * (_halo(call) + 1) > MOST_BYTES:
        most = 1
    bands = -(-call.rows.outputs // most)
    edges = [call.rows.outputs * k // bands for k in range(bands + 1)]
    return list(pairwise(edges))


def _block(call: Call) -> int:
    """Rows of outputs of a block."""
    most = BLOCK_BYTES // max(1, _seen_bytes(call))
    return max(1, min(BLOCK_ROWS, (most - _halo(call) - 1) // call.rows.stride + 1))


def _halo(call: Call) -> int:
    """Rows from the first to the last on which samples of a row of outputs are centred."""
    return (call.rows.samples - 1) * call.rows.sample_stride


def _seen_bytes(call: Call) -> int:
    """What taps see of one row of centres, in three arrays."""
    line = _line_layout(call)[2] * call.columns.stride * call.itemsize
    return 3 * ROWS * call.rows.kernel * call.columns.kernel * line


def _line_layout(call: Call) -> tuple[np.ndarray, int, int]:
    """Offsets of the samples in a line of x, the column at its start, and its stretch.

    It is as long as a line of X1 has to be, so that rows of both may go on as one.
    """
    step = call.columns.stride
    columns = call.columns.centres()
    left = int(columns.min()) // step * step
    shift = (columns - left) // step
    stretch = call.columns.outputs + int(shift.max()) + _reach(call)
    return (columns - left) % step * stretch + shift, left, stretch


def _tap_columns(call: Call) -> np.ndarray:
    """Which column, from the first that any reads, each tap reads for the first element of each phase."""
    place = np.arange(call.columns.stride) + call.columns.taps()[:, None]
    return place - place.min()


def _reach(call: Call) -> int:
    """Elements that taps reach beyond a line."""
    return int((_tap_columns(call) // call.columns.stride).max())


def _plan(call: Call, rows: tuple[int, int]) -> Plan:
    at, left, stretch = _line_layout(call)
    step = call.columns.stride
    wanted = (np.arange(*rows) * call.rows.stride)[:, None] + call.rows.centres()
    within = (wanted >= 0) & (wanted < call.rows.size)
    inside, centres = np.unique(wanted[within]), np.unique(wanted)
    centre = np.searchsorted(centres, wanted)
    of_totals = np.unique(centres + call.rows.taps()[:, None])
    total_rows = np.searchsorted(of_totals, centres + call.rows.taps()[:, None]) * stretch * step
    place = _tap_columns(call)
    block = _block(call)
    blocks = (centre[start : start + block] for start in range(0, len(centre), block))
    return Plan(
        rows=rows,
        block=block,
        seen_rows=max(int(np.ptp(each)) + 1 for each in blocks),
        image=Lines(np.append(inside, -1), stretch, left, step),
        centres=Lines(centres, stretch, left, step),
        totals=Lines(of_totals, stretch, left + int(call.columns.taps().min()), step),
        line=np.where(within, np.searchsorted(inside, wanted), len(inside)),
        centre=centre,
        at=at,
        runs=_runs(at, call.columns.outputs, stretch),
        total_rows=total_rows,
        total_at=place % step * stretch + place // step,
        # An odd number of cache lines, so that the same pixel of many channels finds room in the cache.
        channel=whole_lines((len(inside) + 1) * stretch * step) | 16,
    )


def _runs(at: np.ndarray, outputs: int, stretch: int) -> np.ndarray:
    """The elements of a line on which samples are centred, as runs (start, end, phase)."""
    runs: list[list[int]] = []
    for start in sorted(int(each) for each in at):
        if runs and start <= runs[-1][1] and start // stretch == runs[-1][2]:
            runs[-1][1] = start + outputs
        else:
            runs.append([start, start + outputs, start // stretch])
    return np.array(runs)
