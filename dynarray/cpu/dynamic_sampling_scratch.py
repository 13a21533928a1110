"""What a thread needs of memory in `dynamic_sampling_conv2d` on the CPU."""

from typing import Any, NamedTuple

import numpy as np

from .dynamic_sampling_backward import SET, Columns, Weights
from .dynamic_sampling_kernels import Band, Inputs, Rows
from .dynamic_sampling_tile import ROWS
from .planes import whole_lines
from .scratch import borrow
from .vectors import REGISTER_BYTES


def cut(dtype: np.dtype, *sizes: int) -> list[np.ndarray]:
    """Arrays in the memory of this thread, with any values."""
    starts = np.cumsum([0, *map(whole_lines, sizes)])
    memory = borrow("memory", int(starts[-1]), dtype)
    return [memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]


class _Widths(NamedTuple):
    """Sizes of scratch, in elements: a strip, a row of outputs and a line of x in whole strips."""

    strip: int
    row: int
    line: int


def widths_of(inputs: Inputs, band: Band) -> _Widths:
    """The sizes for these arrays."""
    strip = REGISTER_BYTES // inputs.x.itemsize
    sizes = inputs.channel_kernel.shape[3], band.phases * band.stretch
    return _Widths(strip, *(-(-size // strip) * strip for size in sizes))


def make_rows(inputs: Inputs, band: Band, memory: list[np.ndarray], margin: int, pitch: int) -> Rows:
    """Scratch of a row of outputs, in the first three pieces of the memory."""
    kernels, channels = memory[1], np.arange(inputs.x.shape[0])
    kernels[:] = 0
    strip = widths_of(inputs, band).strip
    terms = channels * ROWS * strip, channels * band.channel, np.arange(len(band.taps)) * pitch
    return Rows(memory[0], kernels, margin, pitch, memory[2], *terms)


def row_sizes(inputs: Inputs, band: Band, pitch: int, dots: bool) -> tuple[int, int, int]:
    """Of the pieces of memory that `make_rows` takes; `dots`: whether sums over channels are made."""
    row = widths_of(inputs, band).row
    return (
        band.block * inputs.x.shape[0] * ROWS * row if dots else 0,
        ROWS * len(band.taps) * pitch,
        len(band.at) * ROWS * row,
    )


def make_weights(inputs: Inputs, band: Band, dots: bool) -> tuple[Rows, Weights]:
    """Scratch of the first pass."""
    samples, taps, widths = len(band.at), len(band.taps), widths_of(inputs, band)
    margin = whole_lines(int(band.at.max()))
    pitch, regions = margin + widths.line, samples * samples
    whole = regions * ROWS * pitch
    memory = cut(
        inputs.x.dtype,
        *row_sizes(inputs, band, pitch, dots),
        *(whole, whole if len(band.factors) else 0, taps * widths.line, widths.line, taps * widths.row),
        inputs.x.shape[0] * ROWS * widths.row,
    )
    memory[3][:] = 0
    memory[4][:] = 0
    of_samples = np.arange(regions) * ROWS * pitch
    terms: Any = (
        of_samples,
        of_samples[:samples] - band.at,
        -band.at,
        np.empty(regions, int),
        np.empty(regions, int),
    )
    arrays: Any = (*memory[3:], *terms, np.arange(inputs.x.shape[0]) * band.channel)
    weights = Weights(margin, pitch, *arrays)
    return make_rows(inputs, band, memory, margin, pitch), weights


def make_columns(inputs: Inputs, band: Band, chunk: int) -> Columns:
    """Scratch of the second pass."""
    samples, widths, most = len(band.at), widths_of(inputs, band), min(SET, inputs.channel_kernel.shape[0])
    sizes = most * samples * widths.row, chunk * most * widths.row, samples * ROWS * widths.row
    terms: Any = np.arange(most) * ROWS * widths.strip, np.arange(most) * widths.row, np.empty(samples, int)
    arrays: Any = (*cut(inputs.x.dtype, *sizes), *terms)
    return Columns(*arrays)
