"""Planes of `direct` where outputs do not lie as the pixels do: with a stride, or with other borders.

For each column of taps, and each phase of the rows of a stride, there is a plane of what its taps read of a
band, with the row length of the outputs. Then a tap is one offset for all outputs of a band, however short
its rows are. For the gradient of x what taps lead to is added up in such planes, and these are added to the
pixels: no filter meets a pixel that is not its own. Larger strides than 2 are not for vectors.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..engine.compile import borrowing_jit
from ..engine.gemm import Matrix
from ..engine.pixels import clear
from ..engine.vectors import REGISTER_BYTES, Loop, Writer, each_vector, load_part, store_part, written
from .direct_loops import TapScale


class _PlaneRow(NamedTuple):
    """A row of `length` elements of a plane from `at` on: column ``first + j*step`` of a row of an image."""

    at: int
    length: int
    begin: int  # of the row of the image
    width: int
    first: int
    step: int  # 1 or 2


class PlaneTerms(NamedTuple):
    """Products ``(scale[c, tap] o filters[at + j]) * source[c, j]`` of a tap, for a row of each channel."""

    filters: np.ndarray
    at: int
    source: Matrix
    scale: TapScale
    tap: int
    channels: int


@borrowing_jit
def _place_of_row(channel: int, phase: int, first: int, number: int, plan: Any) -> tuple[int, int]:
    """For a row of the planes of a phase its row of the image, and where it begins for the first column."""
    row = (first + number) * plan.window.stride[0] + plan.planes.phase[phase] - plan.window.padding[0]
    planes = channel * plan.planes.channel + phase * plan.kernel[1] * plan.planes.plane
    return row, planes + number * plan.outputs[1]


@borrowing_jit
def pack_planes(
    planes: np.ndarray, image: np.ndarray, channel: int, first: int, rows: int, plan: Any
) -> None:
    """What taps read for these rows of outputs, of the channels of a group from number `channel` on."""
    for c in range(plan.items.per_group):
        for q in range(len(plan.planes.phase)):
            for r in range(rows + plan.planes.below[q]):
                row, at = _place_of_row(c, q, first, r, plan)
                for b in range(plan.kernel[1]):
                    if 0 <= row < plan.lines.rows:
                        begin = ((channel + c) * plan.lines.rows + row) * plan.lines.width
                        _pack_row(planes, image, _plane_row(at, begin, plan.lines.width, b, plan))
                    else:
                        clear(planes, at, plan.outputs[1])
                    at += plan.planes.plane


@borrowing_jit
def add_planes(
    image: np.ndarray, channel: int, planes: np.ndarray, first: int, rows: int, item: Any, plan: Any
) -> None:
    """The rows of an item's band of an image: sums of what planes for these rows of outputs have there."""
    high, width = plan.planes.image
    for c in range(plan.items.per_group):
        own = (channel + c) * high
        clear(image, (own + item.first) * width, (item.end - item.first) * width)
        for q in range(len(plan.planes.phase)):
            for r in range(rows + plan.planes.below[q]):
                row, at = _place_of_row(c, q, first, r, plan)
                for b in range(plan.kernel[1] if item.first <= row < item.end else 0):
                    place = at + b * plan.planes.plane
                    _add_row(planes, image, _plane_row(place, (own + row) * width, width, b, plan))


@borrowing_jit
def _plane_row(at: int, begin: int, width: int, column: int, plan: Any) -> _PlaneRow:
    """That of a column of taps."""
    first = column * plan.window.dilation[1] - plan.window.padding[1]
    return _PlaneRow(at, plan.outputs[1], begin, width, first, plan.window.stride[1])


@borrowing_jit
def _pack_row(planes: np.ndarray, image: np.ndarray, row: _PlaneRow) -> None:
    """A row of a plane, with zeros outside of the image; what lies behind it may change."""
    if row.step == 1:
        _pack_each(planes, image, row)
    else:
        _pack_other(planes, image, row)


@borrowing_jit
def _add_row(planes: np.ndarray, image: np.ndarray, row: _PlaneRow) -> None:
    """A row of a plane to those pixels of its row of the image that there are."""
    if row.step == 1:
        _add_each(planes, image, row)
    else:
        _add_other(planes, image, row)


def _pixels_of(writer: Writer, row: Any, j: Any) -> tuple[list, list]:
    """Vectors of a row of the image that belong to one of a plane: where they are, and which pixels exist."""
    builder, index, step = writer.builder, j.type, writer.variant
    columns = [
        builder.add(row.first, builder.add(builder.mul(j, index(step)), index(k * writer.lanes)))
        for k in range(step)
    ]
    places = [builder.add(row.begin, column) for column in columns]
    return places, [writer.within(column, row.width) for column in columns]


def _order(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _write_packed_row(writer: Writer, planes: Any, image: Any, row: Any) -> None:
    """Every pixel of a row, or every other."""
    builder, step, lanes = writer.builder, writer.variant, writer.lanes
    vectors = builder.udiv(builder.add(row.length, row.length.type(lanes - 1)), row.length.type(lanes))
    with Loop(builder, vectors, []) as loop:
        j = builder.mul(loop.k, row.length.type(lanes))
        parts = [writer.load_masked(image, *pair) for pair in zip(*_pixels_of(writer, row, j), strict=True)]
        order = _order([step * k for k in range(lanes)])
        value = parts[0] if step == 1 else builder.shuffle_vector(*parts, order)
        writer.store(value, planes, builder.add(row.at, j))


def _write_added_row(writer: Writer, planes: Any, image: Any, row: Any) -> None:
    """To every pixel of a row, or every other."""
    builder, step, lanes = writer.builder, writer.variant, writer.lanes

    def add(j: Any, mask: Any) -> None:
        value = load_part(writer, planes, builder.add(row.at, j), mask)
        for k, (place, there) in enumerate(zip(*_pixels_of(writer, row, j), strict=True)):
            if step == 1:
                part, there = value, there if mask is None else builder.and_(there, mask)
            else:
                numbers = [n for i in range(lanes // 2) for n in (k * lanes // 2 + i, lanes)]
                part = builder.shuffle_vector(value, writer.zero, _order(numbers))
            total = writer.add(writer.load_masked(image, place, there), part)
            writer.store_masked(total, image, place, there)

    each_vector(writer, row.length, add)


_pack_each, _pack_other = (written(REGISTER_BYTES, step)(_write_packed_row) for step in (1, 2))
_add_each, _add_other = (written(REGISTER_BYTES, step)(_write_added_row) for step in (1, 2))


@written(REGISTER_BYTES)
def scatter_terms(writer: Writer, target: Any, terms: Any, count: Any) -> None:
    """Add products for j < `count` to rows of a matrix."""
    builder, scale = writer.builder, terms.scale
    combine = writer.multiply if scale.add is None else writer.add

    def add(j: Any, mask: Any) -> None:
        factor = load_part(writer, terms.filters, builder.add(terms.at, j), mask)
        with Loop(builder, terms.channels, []) as loop:
            to, source, own = (
                builder.add(rows.at, builder.mul(rows.stride, loop.k))
                for rows in (target, terms.source, scale)
            )
            combined = factor
            if scale.given is not None:
                each = writer.element(scale.values, builder.add(own, builder.mul(terms.tap, scale.apart)))
                combined = combine(factor, writer.broadcast(each))
            pixels = load_part(writer, terms.source.values, builder.add(source, j), mask)
            place = builder.add(to, j)
            total = load_part(writer, target.values, place, mask)
            store_part(writer, writer.multiply_add(total, combined, pixels), target.values, place, mask)

    each_vector(writer, count, add)
