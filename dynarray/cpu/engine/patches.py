"""Filters applied to several channels at once, patch by patch of pixels.

A patch is some rows of an image, `PATCH_ROWS` of them, and one vector of pixels of each. Its sums over all
taps, for `PATCH_CHANNELS` channels, stay in registers. Where taps lie below one another, a row of pixels that
was loaded once serves all rows of the patch that read it; each filter value, once loaded, serves all
channels. Both matter: pixels lie at any address, and loads across the border of a cache line take twice as
long as a multiply-add.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from .compile import ZERO, borrowing_jit
from .gemm import Matrix
from .strips import Scale, strip_places
from .vectors import MANY_REGISTERS, REGISTER_BYTES, GuardedLoop, Writer, written

PATCH_CHANNELS = 4
# As many sums as fit into the registers with the operands: PATCH_CHANNELS times this.
PATCH_ROWS = 4 if MANY_REGISTERS else 2
RUNS = 3, 2, 1  # taps below one another that may be taken together, in the order in which they are


class Runs(NamedTuple):
    """How many runs of taps there are of each length."""

    threes: int
    twos: int
    ones: int


class PatchTaps(NamedTuple):
    """Packed filters of a patch, in the order in which they are used, and what they read."""

    filters: np.ndarray  # (taps, PATCH_ROWS, lanes)
    offset: np.ndarray  # from output to source, of the first tap of each run
    number: np.ndarray  # which scale belongs to each tap
    runs: Runs
    pitch: int  # from row to row of the patch


@register_jitable(error_model="numpy")
def patch_lanes(itemsize: int) -> int:
    """Pixels of a row of a patch."""
    return REGISTER_BYTES // itemsize


@written(REGISTER_BYTES)
def deal_patch(writer: Writer, target: Any, to: Any, source: Any, at: Any, pitch: Any) -> None:
    """The rows of a patch, one after the other."""
    builder = writer.builder
    for row in range(PATCH_ROWS):
        values = writer.load(source, builder.add(at, builder.mul(pitch, pitch.type(row))))
        writer.store(values, target, builder.add(to, to.type(row * writer.lanes)))


def runs_below(steps: list[tuple[Any, int]]) -> list[list[int]]:
    """The numbers of these steps, each (which line of taps, how far down), in runs straight downwards.

    Long ones first, as `Runs` counts them.
    """
    runs: list[list[int]] = []
    lines: dict[Any, list[tuple[int, int]]] = {}
    for number, (line, down) in enumerate(steps):
        lines.setdefault(line, []).append((down, number))
    for line in lines.values():
        line.sort()
        start = 0
        for end in range(1, len(line) + 1):
            if end == len(line) or line[end][0] != line[end - 1][0] + 1:
                numbers = [number for _, number in line[start:end]]
                while numbers:
                    length = 2 if len(numbers) == 4 else min(3, len(numbers))
                    runs.append(numbers[:length])
                    numbers = numbers[length:]
                start = end
    return sorted(runs, key=len, reverse=True)


@borrowing_jit
def apply_patch(
    target: Matrix, channels: int, j: int, at: int, taps: PatchTaps, source: Matrix, scale: Scale
) -> None:
    """target = sum over taps of (scale o filter) * source, for `channels` and the patch from pixel j on.

    o is + or *, as the scale says. At most PATCH_CHANNELS channels. The filters begin at `at`.
    """
    if channels == PATCH_CHANNELS:
        _patch_all(target, ZERO, j, at, taps, source, scale)
    else:
        for c in range(channels):
            _patch_one(target, c, j, at, taps, source, scale)


def _write_apply_patch(
    writer: Writer, target: Any, c: Any, j: Any, at: Any, taps: Any, source: Any, scale: Any
) -> None:
    builder, channels, index, lanes = writer.builder, writer.variant, j.type, writer.lanes
    combine = writer.multiply if scale.add is None else writer.add
    sources = [
        builder.gep(source.values, [builder.add(place, j)])
        for place in strip_places(builder, source, c, channels)
    ]
    scales = strip_places(builder, scale, c, channels)
    rows = [builder.mul(taps.pitch, index(row)) for row in range(PATCH_ROWS + max(RUNS) - 1)]
    sums = [writer.zero] * (PATCH_ROWS * channels)
    first_run, first_tap = index(0), index(0)
    for length, count in zip(RUNS, taps.runs, strict=True):
        with GuardedLoop(builder, count, sums) as loop:
            sums = list(loop.values)
            start = writer.element(taps.offset, builder.add(first_run, loop.k))
            tap = builder.add(first_tap, builder.mul(loop.k, index(length)))
            skipped = builder.mul(tap, index(PATCH_ROWS * lanes))
            filters = builder.gep(taps.filters, [builder.add(at, skipped)])
            own = []
            for t in range(length if scale.values is not None else 0):
                number = writer.element(taps.number, builder.add(tap, index(t)))
                places = [builder.add(place, number) for place in scales]
                own.append([writer.broadcast(writer.element(scale.values, place)) for place in places])
            for line in range(PATCH_ROWS + length - 1):
                place = builder.add(start, rows[line])
                pixels = [writer.load(each, place) for each in sources]
                for row in range(PATCH_ROWS):
                    t = line - row
                    if not 0 <= t < length:
                        continue
                    factor = writer.load(filters, index((t * PATCH_ROWS + row) * lanes))
                    for k in range(channels):
                        combined = combine(factor, own[t][k]) if own else factor
                        place = row * channels + k
                        sums[place] = writer.multiply_add(sums[place], combined, pixels[k])
            loop.values = sums
        sums = loop.values
        first_run = builder.add(first_run, count)
        first_tap = builder.add(first_tap, builder.mul(count, index(length)))
    for k, place in enumerate(strip_places(builder, target, c, channels)):
        for row in range(PATCH_ROWS):
            to = builder.add(builder.add(place, j), rows[row])
            writer.store(sums[row * channels + k], target.values, to)


_patch_all, _patch_one = (written(REGISTER_BYTES, n)(_write_apply_patch) for n in (PATCH_CHANNELS, 1))
