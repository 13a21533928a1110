"""Points between pixels: where they lie, the image there, and its adjoint, for many channels side by side.

A point costs some dozen cycles, less than a call that hands over arrays: what is done for one point is
written as instructions in the loop over points.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..engine.compile import jit
from ..engine.vectors import REGISTER_BYTES, Loop, Writer


class Grid(NamedTuple):
    """Sizes of a call, and where its regular grid lies."""

    channels: int
    outputs: int  # channels of the output
    groups: int
    offset_groups: int
    height: int
    width: int
    pixels: int  # of a packed image
    out_width: int
    positions: int
    taps: int
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Points(NamedTuple):
    """The points of one tile and offset group: position after position, tap after tap."""

    at: np.ndarray  # top left corner, in pixels of a packed image
    ly: np.ndarray  # distance from there
    lx: np.ndarray
    factor: np.ndarray  # mask, or 1
    weights: np.ndarray  # of the four corners: top left, top right, below left, below right


@jit
def new_points(count: int, like: np.ndarray) -> Points:
    """Memory for so many points."""
    return Points(
        np.empty(count, np.int64),
        np.empty(count, like.dtype),
        np.empty(count, like.dtype),
        np.empty(count, like.dtype),
        np.empty(4 * count, like.dtype),
    )


@jit
def set_up(
    points: Points,
    offset: np.ndarray,
    mask: np.ndarray,
    grid: Grid,
    image: int,
    group: int,
    start: int,
    count: int,
) -> None:
    """The points of `count` positions from `start` on. `mask` has no elements where there is none.

    A packed image has a ring of zeros and one more row of them below: there lie all four corners of a point
    that is not near the image. Its distances are 0, or NaN where a coordinate is.
    """
    pitch, outside = grid.width + 2, (grid.height + 1) * (grid.width + 2)
    zero, one = offset.dtype.type(0), offset.dtype.type(1)
    for tap in range(grid.taps):
        plane = ((image * grid.offset_groups + group) * grid.taps + tap) * grid.positions
        base_y = tap // grid.kernel_w * grid.dilation[0] - grid.padding[0]
        base_x = tap % grid.kernel_w * grid.dilation[1] - grid.padding[1]
        row, column = start // grid.out_width, start % grid.out_width
        for i in range(count):
            p = start + i
            y = offset.dtype.type(row * grid.stride[0] + base_y) + offset[2 * plane + p]
            x = offset.dtype.type(column * grid.stride[1] + base_x) + offset[2 * plane + grid.positions + p]
            column += 1
            if column == grid.out_width:
                row, column = row + 1, 0
            k = i * grid.taps + tap
            factor = mask[plane + p] if mask.size else one
            points.factor[k] = factor
            if y > -1 and y < grid.height and x > -1 and x < grid.width:
                top, left = np.floor(y), np.floor(x)
                points.at[k] = (int(top) + 1) * pitch + int(left) + 1
                ly, lx = y - top, x - left
            else:
                lost = np.isnan(y) or np.isnan(x)
                points.at[k] = outside
                ly = lx = offset.dtype.type(np.nan) if lost else zero
            points.ly[k], points.lx[k] = ly, lx
            low, high = ly * factor, (one - ly) * factor
            points.weights[4 * k], points.weights[4 * k + 1] = high * (one - lx), high * lx
            points.weights[4 * k + 2], points.weights[4 * k + 3] = low * (one - lx), low * lx


def _over_channels(
    context: Any,
    builder: Any,
    signature: Any,
    args: Any,
    size: Any,
    write: Callable[[Writer, Any, Any], None],
) -> Any:
    """``write(writer, first, count)`` for whole vectors of channels, then for single ones that are left."""
    wide = Writer(context, builder, signature, args, REGISTER_BYTES)
    narrow = Writer(context, builder, signature, args, REGISTER_BYTES // wide.lanes)
    lanes, none = size.type(wide.lanes), size.type(0)
    vectors, rest = builder.udiv(size, lanes), builder.urem(size, lanes)
    for writer, first, count in ((wide, none, vectors), (narrow, builder.mul(vectors, lanes), rest)):
        with builder.if_then(builder.icmp_signed(">", count, none)):
            write(writer, first, count)
    return context.get_dummy_value()


def _corners(writer: Writer, image: Any, base: Any, pitch: Any, size: Any, at: Any, first: Any) -> list[Any]:
    """Pointers to channel `first` of the pixel `at`, of those to its right and below, and of that to both."""
    builder = writer.builder
    pixels = [at, builder.add(at, at.type(1)), builder.add(at, pitch)]
    pixels.append(builder.add(pixels[2], at.type(1)))
    start = builder.gep(image, [builder.add(base, first)])
    return [builder.gep(start, [builder.mul(pixel, size)]) for pixel in pixels]


def _weights(writer: Writer, weights: Any, k: Any) -> list[Any]:
    """The weights of the corners of point k."""
    own = writer.builder.gep(weights, [writer.builder.mul(k, k.type(4))])
    return [writer.broadcast(writer.element(own, k.type(i))) for i in range(4)]


@intrinsic
def sample(
    typing: Any,
    image: Any,
    base: Any,
    pitch: Any,
    size: Any,
    at: Any,
    weights: Any,
    k: Any,
    out: Any,
    to: Any,
) -> Any:
    """out[to + c] = the image at point k, for `size` channels side by side.

    `at` are the pixels of all points and `weights` those of their corners, as in `Points`.
    """
    i = types.intp
    return types.void(image, i, i, i, at, weights, i, out, i), _generate_sample


def _generate_sample(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    _, base, pitch, size, _, _, k, _, to = args

    def write(writer: Writer, first: Any, count: Any) -> None:
        image, places, weights, out = (writer.data[i] for i in (0, 4, 5, 7))
        corners = _corners(writer, image, base, pitch, size, writer.element(places, k), first)
        factors, target = _weights(writer, weights, k), builder.gep(out, [builder.add(to, first)])
        with Loop(builder, count, []) as loop:
            c = builder.mul(loop.k, count.type(writer.lanes))
            total = writer.multiply(factors[0], writer.load(corners[0], c))
            for factor, corner in zip(factors[1:], corners[1:], strict=True):
                total = writer.add(total, writer.multiply(factor, writer.load(corner, c)))
            writer.store(total, target, c)

    return _over_channels(context, builder, signature, args, size, write)


@intrinsic
def spread(
    typing: Any,
    image: Any,
    base: Any,
    pitch: Any,
    size: Any,
    at: Any,
    weights: Any,
    k: Any,
    grad: Any,
    of: Any,
) -> Any:
    """The adjoint of `sample`: add the gradient, from `of` on, to the corners of point k."""
    i = types.intp
    return types.void(image, i, i, i, at, weights, i, grad, i), _generate_spread


def _generate_spread(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    _, base, pitch, size, _, _, k, _, of = args

    def write(writer: Writer, first: Any, count: Any) -> None:
        image, places, weights, grad = (writer.data[i] for i in (0, 4, 5, 7))
        corners = _corners(writer, image, base, pitch, size, writer.element(places, k), first)
        factors, source = _weights(writer, weights, k), builder.gep(grad, [builder.add(of, first)])
        with Loop(builder, count, []) as loop:
            c = builder.mul(loop.k, count.type(writer.lanes))
            value = writer.load(source, c)
            for factor, corner in zip(factors, corners, strict=True):
                writer.store(writer.add(writer.load(corner, c), writer.multiply(factor, value)), corner, c)

    return _over_channels(context, builder, signature, args, size, write)


@intrinsic
def sums(
    typing: Any,
    image: Any,
    base: Any,
    pitch: Any,
    size: Any,
    at: Any,
    k: Any,
    grad: Any,
    of: Any,
    out: Any,
    to: Any,
) -> Any:
    """For each corner of point k, the sum over channels of gradient * corner, to four places from `to` on."""
    i = types.intp
    return types.void(image, i, i, i, at, i, grad, i, out, i), _generate_sums


def _generate_sums(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    _, base, pitch, size, _, k, _, of, _, to = args
    out = Writer(context, builder, signature, args, REGISTER_BYTES).data[8]
    targets = [builder.gep(out, [builder.add(to, to.type(i))]) for i in range(4)]
    for target in targets:
        builder.store(target.type.pointee(0.0), target)

    def write(writer: Writer, first: Any, count: Any) -> None:
        image, places, grad = (writer.data[i] for i in (0, 4, 6))
        corners = _corners(writer, image, base, pitch, size, writer.element(places, k), first)
        source = builder.gep(grad, [builder.add(of, first)])

        def step(s: Any, totals: list) -> list:
            c = builder.mul(s, count.type(writer.lanes))
            value = writer.load(source, c)
            return [
                writer.add(total, writer.multiply(value, writer.load(corner, c)))
                for total, corner in zip(totals, corners, strict=True)
            ]

        for total, target in zip(writer.sums(4, count, step), targets, strict=True):
            builder.store(builder.fadd(builder.load(target), writer.total(total)), target)

    return _over_channels(context, builder, signature, args, size, write)
