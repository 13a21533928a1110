"""What a thread needs of memory in `dynamic_sampling_conv2d` on the CPU."""

from typing import Any, NamedTuple

import numpy as np

from .dynamic_sampling_backward import SET, Columns, Weights
from .dynamic_sampling_kernels import CHANNELS, Band, Inputs, Rows
from .dynamic_sampling_tile import ROWS, WIDE
from .planes import whole_lines
from .scratch import borrow
from .vectors import REGISTER_BYTES

WEIGHTS_BYTES = 512 * 1024  # of the samples that take part together in the gradient of x: part of an L2 cache


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
    kernels, channels = memory[1], np.arange(CHANNELS)
    kernels[:] = 0
    strip = widths_of(inputs, band).strip
    terms: Any = channels * ROWS * strip, channels * band.channel, np.arange(len(band.taps)) * pitch
    terms += tuple(np.empty((2, band.block, len(band.at) ** 2), int))
    return Rows(memory[0], kernels, margin, pitch, memory[2], *terms)


def row_sizes(inputs: Inputs, band: Band, pitch: int, dots: bool) -> tuple[int, int, int]:
    """Of the pieces of memory that `make_rows` takes; `dots`: whether sums over channels are made."""
    row = widths_of(inputs, band).row
    return (
        band.block * (CHANNELS * ROWS + 1) * row if dots else 0,
        ROWS * len(band.taps) * pitch,
        band.block * len(band.at) ** 2 * ROWS * row if dots else 0,
    )


def make_weights(inputs: Inputs, band: Band, dots: bool) -> tuple[Rows, Weights]:
    """Scratch of the first pass."""
    samples, taps, widths = len(band.at), len(band.taps), widths_of(inputs, band)
    margin = whole_lines(int(band.at.max()))
    pitch, regions = margin + widths.line, samples * samples
    run = band.block * inputs.channel_kernel.shape[3] + widths.strip
    memory = cut(
        inputs.x.dtype,
        *row_sizes(inputs, band, pitch, dots),
        *(regions * ROWS * pitch, band.block * regions * ROWS * widths.row),
        *(taps * widths.line, widths.line, taps * widths.row, WIDE * ROWS * run),
    )
    memory[3][:] = 0
    of_samples = np.arange(regions) * ROWS * pitch
    terms: Any = (
        of_samples,
        of_samples[:samples] - band.at,
        -band.at,
        np.arange(regions) * ROWS * widths.strip,
        np.arange(WIDE) * band.channel,
    )
    arrays: Any = (*memory[3:], *terms)
    weights = Weights(margin, pitch, run, *arrays)
    return make_rows(inputs, band, memory, margin, pitch), weights


def make_columns(inputs: Inputs, band: Band) -> Columns:
    """Scratch of the second pass."""
    widths, regions = widths_of(inputs, band), len(band.at) ** 2
    most = min(SET, inputs.channel_kernel.shape[0])
    batch = min(regions, max(WIDE, WEIGHTS_BYTES // (most * widths.row * inputs.x.itemsize)))
    sizes = batch * most * widths.row, most * ROWS * widths.row, batch * ROWS * widths.row
    terms: Any = np.arange(most) * ROWS * widths.strip, np.arange(most) * widths.row, np.empty(batch, int)
    arrays: Any = (*cut(inputs.x.dtype, *sizes), *terms)
    return Columns(*arrays)
