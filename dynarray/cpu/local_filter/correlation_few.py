"""The maps of `correlation2d` for few channels, which take longer to write than to sum up.

A map is written in long runs, past the caches where none would keep it, from bands of both images that stay
near for all maps. Rows follow one another without a gap; pixels of x2 that do not exist are masked: zero, as
the definition has them.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine import parallel, strips
from ..engine.compile import borrowing_jit, kernel_input, rolled_jit
from ..engine.gemm import Matrix
from ..engine.memory import run_with_scratch
from ..engine.vectors import LINE_BYTES, REGISTER_BYTES, GuardedLoop, Loop, Writer, in_row, load_part, written
from .items import FilterWindow, Shape

_FEW_CHANNELS = 2  # with more, sums take longer than it takes to write them
_VECTORS_OF_MAP = 4  # of pixels at a time
_BAND_BYTES = 256 * 1024  # of both images


class FewPlan(NamedTuple):
    """How work is divided: into items (sample, band of pixels, row of maps)."""

    window: FilterWindow
    maps: Shape
    size: Shape  # of the images
    channels: int
    band: int  # pixels
    bands: int


class FewScratch(NamedTuple):
    """A thread's memory."""

    columns: Any  # of the pixels of some rows


class _MapRun(NamedTuple):
    """Pixels of a map side by side, and those of both images that it is made from."""

    first: Matrix  # a row for each channel
    second: Matrix
    columns: np.ndarray
    column: int  # where those of this run begin
    shift: int  # to the columns of x2
    width: int  # of x2; of rows that are displaced outside, none
    channels: int
    share: Any  # of a channel in the mean
    stream: bool


def few_maps_apply(x1: Shape) -> bool:
    """Whether images of this shape are of few channels."""
    return x1[1] <= _FEW_CHANNELS


def few_maps(x1: np.ndarray, x2: np.ndarray, maps: Shape, window: FilterWindow) -> np.ndarray:
    """The maps (N, 1, *maps, H, W)."""
    plan, scratch = _few_plan(x1.shape, maps, x1.itemsize, window)
    y = strips.empty_to_stream((len(x1), 1, *maps, *x1.shape[2:]), x1.dtype)
    args = y, kernel_input(x1), kernel_input(x2), plan
    operations = float(y.size) * (plan.channels + parallel.PER_NUMBER)
    run_with_scratch(few_map_items, len(x1) * plan.bands * maps[0], operations, scratch, x1.dtype, *args)
    return y


@lru_cache(maxsize=256)
def _few_plan(x1: Shape, maps: Shape, itemsize: int, window: FilterWindow) -> tuple[FewPlan, FewScratch]:
    """For images of this shape."""
    samples, channels, high, wide = x1
    line, pixels = LINE_BYTES // itemsize, high * wide
    bands = max(
        -(-2 * pixels * channels * itemsize // _BAND_BYTES), -(-parallel.ITEMS // (samples * maps[0]))
    )
    band = -(-pixels // (bands * line)) * line
    plan = FewPlan(window, maps, x1[2:], channels, band, -(-pixels // band))
    return plan, FewScratch((min(band, pixels) + wide + REGISTER_BYTES // itemsize, np.int32))


@rolled_jit
def few_map_items(
    start: int, stop: int, scratch: FewScratch, y: np.ndarray, x1: np.ndarray, x2: np.ndarray, plan: FewPlan
) -> None:
    """Items of the plan."""
    (high, wide), (kh, kw), target = plan.size, plan.maps, in_row(y)
    for row in range(0, len(scratch.columns), wide):
        for j in range(min(wide, len(scratch.columns) - row)):
            scratch.columns[row + j] = j
    for number in range(start, stop):
        rest, a = number // kh, number % kh
        sample, first = rest // plan.bands, rest % plan.bands * plan.band
        end = min(high * wide, first + plan.band)
        down = (a * plan.window.dilation[0] - plan.window.padding[0]) * wide
        # Rows of x2 are there for the pixels from `low` to `until`.
        low = max(first, min(end, -down))
        until = max(low, min(end, high * wide - down))
        for b in range(kw):
            shift = b * plan.window.dilation[1] - plan.window.padding[1]
            at = ((sample * kh + a) * kw + b) * high * wide
            ends = first, low, until, end
            for part in range(3):
                width = wide if part == 1 else 0
                images, places = (in_row(x1), in_row(x2)), (sample, ends[part], ends[part + 1])
                _fill_run(target, at, images, places, (down, shift, width), scratch, plan)


@borrowing_jit
def _fill_run(
    target: np.ndarray,
    at: int,
    images: tuple,
    places: tuple,
    displaced: tuple,
    scratch: FewScratch,
    plan: FewPlan,
) -> None:
    """The pixels of a map that begins at `at`, of a sample, from one to another."""
    (sample, first, end), (down, shift, width), (high, wide) = places, displaced, plan.size
    stream, channels = target.size * target.itemsize >= strips.STREAM_BYTES, plan.channels
    base, share = sample * channels * high * wide, target.dtype.type(1) / target.dtype.type(channels)
    head = min(end, first + -(at + first) % (LINE_BYTES // target.itemsize)) if stream else first
    for begin, stop in ((first, head), (head, end)):
        if begin < stop:
            ours = Matrix(images[0], base + begin, high * wide)
            theirs = Matrix(images[1], base + begin + down + shift, high * wide)
            run = _MapRun(ours, theirs, scratch.columns, begin % wide, shift, width, channels, share, stream)
            _write_run(target, at + begin, run, stop - begin)


@written(REGISTER_BYTES)
def _write_run(writer: Writer, target: Any, to: Any, run: Any, count: Any) -> None:
    """`count` pixels of a map."""
    builder, lanes = writer.builder, count.type(writer.lanes)
    several = count.type(_VECTORS_OF_MAP * writer.lanes)
    turns = builder.udiv(count, several)
    with GuardedLoop(builder, turns, []) as loop:
        j = builder.mul(loop.k, several)
        means = _means(
            writer, run, [builder.add(j, j.type(v * writer.lanes)) for v in range(_VECTORS_OF_MAP)], None
        )
        place = builder.add(to, j)
        streamed = builder.and_(run.stream, writer.on_lines(target, [place]))
        with builder.if_else(streamed) as branches:
            for branch, store in zip(branches, (writer.stream, writer.store), strict=True):
                with branch:
                    for v, mean in enumerate(means):
                        store(mean, target, builder.add(place, place.type(v * writer.lanes)))
    done = builder.mul(turns, several)
    rest = builder.udiv(builder.add(builder.sub(count, done), lanes.type(writer.lanes - 1)), lanes)
    with GuardedLoop(builder, rest, []) as loop:
        j = builder.add(done, builder.mul(loop.k, lanes))
        mask = writer.within(j.type(0), builder.sub(count, j))
        (mean,) = _means(writer, run, [j], mask)
        writer.store_masked(mean, target, builder.add(to, j), mask)


def _means(writer: Writer, run: Any, places: list, mask: Any) -> list:
    """Vectors of means at these pixels of a run."""
    builder, number = writer.builder, ir.IntType(32)
    kind = ir.VectorType(number, writer.lanes)
    shift, width = (writer.broadcast(builder.trunc(each, number)) for each in (run.shift, run.width))
    inside = []
    for j in places:
        pointer = builder.gep(run.columns, [builder.add(run.column, j)])
        columns = builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)
        there = builder.icmp_unsigned("<", builder.add(columns, shift), width)
        inside.append(there if mask is None else builder.and_(there, mask))
    with Loop(builder, run.channels, [writer.zero] * len(places)) as loop:
        ours, theirs = (
            builder.gep(rows.values, [builder.add(rows.at, builder.mul(loop.k, rows.stride))])
            for rows in (run.first, run.second)
        )
        following = []
        for j, there, total in zip(places, inside, loop.values, strict=True):
            pixels = load_part(writer, ours, j, mask)
            following.append(writer.multiply_add(total, pixels, writer.load_masked(theirs, j, there)))
        loop.values = following
    share = writer.broadcast(run.share)
    return [writer.multiply(total, share) for total in loop.values]
