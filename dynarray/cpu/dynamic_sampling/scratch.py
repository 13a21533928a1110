"""What a thread needs of memory in `dynamic_sampling_conv2d` on the CPU."""

from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..engine.memory import borrow
from ..engine.pixels import whole_lines
from ..engine.vectors import REGISTER_BYTES
from .backward import SET, Columns, Weights
from .kernels import CHANNELS, Band, Inputs, Kernels, Rows
from .tile import ROWS, WIDE

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
    sizes = inputs.channel_kernel.shape[3], band.step * band.stretch
    return _Widths(strip, *(-(-size // strip) * strip for size in sizes))


def make_rows(inputs: Inputs, band: Band, memory: list[np.ndarray], margin: int, pitch: int) -> Rows:
    """Scratch of a row of outputs, in the first five pieces of the memory."""
    memory[0][:] = 0
    channels, plane = np.arange(CHANNELS), prod(inputs.channel_kernel.shape[2:])
    kernels = _make_kernels(channels * plane, memory[2], widths_of(inputs, band).row)
    terms: Any = channels * band.channel, np.arange(len(band.taps)) * pitch, *memory[3:5]
    terms += tuple(np.empty((3, len(band.at) ** 2), int))
    return Rows(memory[0], margin, pitch, memory[1], kernels, *terms)


def _make_kernels(terms: np.ndarray, memory: np.ndarray, padded: int) -> Kernels:
    rows = np.arange(ROWS) * padded
    return Kernels(np.empty(ROWS, int), terms, memory, rows, np.arange(len(terms)) * ROWS * padded)


def row_sizes(inputs: Inputs, band: Band, pitch: int, dots: bool, factors: bool) -> tuple[int, ...]:
    """Of the pieces of memory that `make_rows` takes.

    `dots`, `factors`: whether sums over channels are made, and whether Ap is wanted for each tap.
    """
    row = widths_of(inputs, band).row
    seen = ROWS if band.apart else 1
    seen = seen * len(band.taps) * band.seen_rows * band.step * band.stretch + 64
    return (
        ROWS * len(band.taps) * pitch,
        len(band.at) ** 2 * ROWS * pitch + row if dots else 0,
        CHANNELS * ROWS * row if dots else 0,
        seen,
        seen if factors and band.apart else 0,
    )


def make_weights(inputs: Inputs, band: Band, dots: bool) -> tuple[Rows, Weights]:
    """Scratch of the first pass."""
    samples, taps, widths = len(band.at), len(band.taps), widths_of(inputs, band)
    margin = whole_lines(int(band.at.max()))
    pitch, regions = margin + widths.line, samples * samples
    memory = cut(
        inputs.x.dtype,
        *row_sizes(inputs, band, pitch, dots, True),
        *(regions * ROWS * pitch, regions * ROWS * widths.row),
        *(ROWS * taps * band.seen_rows * widths.line, ROWS * band.seen_rows * widths.line),
        *(taps * widths.row, WIDE * ROWS * widths.row),
    )
    memory[1][:] = memory[5][:] = 0
    of_samples = np.arange(regions) * ROWS * pitch
    terms: Any = (
        of_samples,
        of_samples[:samples] - band.at,
        -band.at,
        np.zeros(1, int),
        np.arange(ROWS) * widths.row,
        np.arange(regions) * ROWS * widths.row,
        np.arange(WIDE) * band.channel,
    )
    arrays: Any = (*memory[5:7], widths.line, *memory[7:], *terms)
    weights = Weights(margin, pitch, *arrays)
    return make_rows(inputs, band, memory, margin, pitch), weights


def make_columns(inputs: Inputs, band: Band) -> Columns:
    """Scratch of the second pass."""
    widths, regions = widths_of(inputs, band), len(band.at) ** 2
    most = min(SET, inputs.channel_kernel.shape[0])
    batch = min(regions, max(WIDE, WEIGHTS_BYTES // (most * widths.row * inputs.x.itemsize)))
    sizes = batch * most * widths.row, batch * ROWS * widths.row, most * ROWS * widths.row
    weights, moved, copy = cut(inputs.x.dtype, *sizes)
    outputs, apart = np.arange(most), prod(inputs.channel_kernel.shape[1:])
    kernels = _make_kernels(outputs * apart, copy, widths.row)
    return Columns(weights, moved, kernels, outputs * widths.row, np.empty(batch, int))
