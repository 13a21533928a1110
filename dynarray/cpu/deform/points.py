"""Points between pixels: where they lie, the image there, and its adjoint, for many channels side by side.

A point costs some dozen cycles, less than a call that hands over arrays: what is done for one point is
written as instructions in the loop over points.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..._geometry import FARTHEST_OFFSET
from ..engine.compile import FALSE, TRUE, borrowing_jit, zero_like
from ..engine.vectors import REGISTER_BYTES, Loop, Writer, written


class PointGrid(NamedTuple):
    """The regular grid that points are displaced from."""

    width: int  # of the output
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


CONSTANT, REFLECT, SYMMETRIC, EDGE, WRAP = range(5)


class PointImage(NamedTuple):
    """Sizes of an image, and of the same packed: with a ring of zeros, and one more row of them below."""

    height: int
    width: int
    pitch: int  # pixels of a packed row
    pixels: int  # packed
    border: int  # what is outside: one of these


class DeformSizes(NamedTuple):
    """Sizes of a call, and where its regular grid lies."""

    channels: int
    outputs: int  # channels of the output
    group_channels: int
    group_outputs: int
    offset_groups: int
    taps: int
    positions: int
    image: PointImage
    grid: PointGrid


class PointSource(NamedTuple):
    """Channels of a packed image, side by side, pixel after pixel."""

    values: np.ndarray
    at: int  # where they begin
    pitch: int  # pixels of a packed row
    channels: int


class PointArrays(NamedTuple):
    """What displaces and weighs points, or its gradients; an array that there is not has no elements."""

    offset: np.ndarray
    mask: np.ndarray


class Points(NamedTuple):
    """The points of one tile and offset group: position after position, tap after tap."""

    at: Any  # top left corner, in pixels of a packed image
    right: Any  # pixels from there to the next corner in the row, and to that in the column
    below: Any
    ly: Any  # distance from there
    lx: Any
    factor: Any  # mask, or 1
    weights: Any  # of the four corners: top left, top right, below left, below right


def point_sizes(count: int) -> Points:
    """What so many points need as scratch memory."""
    index = (count, np.int64)
    return Points(index, index, index, ly=count, lx=count, factor=count, weights=4 * count)


@borrowing_jit
def _period(size: int, border: int) -> int:
    """After how many pixels outside all is as it was; for an edge any number will do."""
    return 2 * size if border == SYMMETRIC else max(1, 2 * size - 2) if border == REFLECT else size


@borrowing_jit
def _copied(at: int, size: int, border: int) -> int:
    """The pixel of an axis that one outside is a copy of."""
    if border == EDGE:
        return min(max(at, 0), size - 1)
    period = _period(size, border)
    at %= period
    return at if border == WRAP else min(at, (period if border == REFLECT else period - 1) - at)


@borrowing_jit
def _between(base: int, offset: float, size: int, border: int) -> tuple:
    """The pixels on either side of a coordinate, each a copy if outside, and how far it is from the first.

    Both are -1 for NaN and, but for an edge, for infinity. From some place on all of an edge is alike;
    elsewhere all is again after a period, and a remainder is exact.
    """
    if np.isnan(offset) or (np.isinf(offset) and border != EDGE):
        return -1, -1, offset
    steps, rest = np.float64(np.floor(offset)), offset - np.floor(offset)
    if not abs(offset) < FARTHEST_OFFSET:
        far = np.copysign(FARTHEST_OFFSET, steps)
        steps = far if border == EDGE else np.fmod(steps, np.float64(_period(size, border)))
        if np.isinf(offset):
            rest = type(offset)(0)
    at = base + int(steps)
    if 0 <= at < size - 1:
        return at, at + 1, rest
    return _copied(at, size, border), _copied(at + 1, size, border), rest


@borrowing_jit
def _place_copies(points: Points, k: int, y: tuple, x: tuple, image: PointImage) -> tuple:
    """Whether point k has corners, some of them copies, and its distances from the first one."""
    top, bottom, ly = _between(y[0], y[1], image.height, image.border)
    left, right, lx = _between(x[0], x[1], image.width, image.border)
    if top < 0 or left < 0:
        return FALSE, ly, lx
    points.at[k] = (top + 1) * image.pitch + left + 1
    points.right[k], points.below[k] = right - left, (bottom - top) * image.pitch
    return TRUE, ly, lx


@borrowing_jit
def set_up_points(
    points: Points, arrays: PointArrays, sizes: DeformSizes, image: int, group: int, start: int, count: int
) -> None:
    """The points of `count` positions from `start` on: whole pixels from the grid, and the rest of an offset.

    Far from the origin the sum of both would round the rest away. So it is the offset that is compared, with
    its bounds at a place of the grid, whole numbers that double precision holds.
    All four corners of a point that is not near the image lie in the zeros below it, where those outside are
    not copies. Its distances are 0, or NaN where a coordinate is.
    """
    offset, mask = arrays
    grid, (height, width, pitch, _, border), taps = sizes.grid, sizes.image, uint64(sizes.taps)
    zero, one, outside = zero_like(offset), offset.dtype.type(1), (height + 1) * pitch
    x_from_y = uint64(sizes.positions)
    for tap in range(sizes.taps):
        plane = ((image * sizes.offset_groups + group) * sizes.taps + tap) * sizes.positions
        y_at, factor_at, k = uint64(2 * plane + start), uint64(plane + start), uint64(tap)
        left = tap % grid.kernel_w * grid.dilation[1] - grid.padding[1]
        y = tap // grid.kernel_w * grid.dilation[0] - grid.padding[0] + start // grid.width * grid.stride[0]
        x, end = left + start % grid.width * grid.stride[1], left + grid.width * grid.stride[1]
        for i in range(uint64(count)):
            dy, dx = offset[y_at + i], offset[y_at + i + x_from_y]
            # One branch alone, as there is no telling which way it goes; NaN and infinity are outside.
            near = (dy > float(-1 - y)) & (dy < float(height - y))
            near &= (dx > float(-1 - x)) & (dx < float(width - x))
            points.right[k], points.below[k] = 1, pitch
            if border != CONSTANT:
                found, ly, lx = _place_copies(points, k, (y, dy), (x, dx), sizes.image)
                if not found:
                    points.at[k] = outside
                    ly = lx = offset.dtype.type(np.nan)
            elif near:
                whole_y, whole_x = np.floor(dy), np.floor(dx)
                points.at[k] = (y + int(whole_y) + 1) * pitch + x + int(whole_x) + 1
                ly, lx = dy - whole_y, dx - whole_x
            else:
                points.at[k] = outside
                ly = lx = offset.dtype.type(np.nan) if np.isnan(dy) or np.isnan(dx) else zero
            factor = mask[factor_at + i] if mask.size else one
            points.factor[k], points.ly[k], points.lx[k] = factor, ly, lx
            low, high, w = ly * factor, (one - ly) * factor, uint64(4) * k
            points.weights[w], points.weights[w + uint64(1)] = high * (one - lx), high * lx
            points.weights[w + uint64(2)], points.weights[w + uint64(3)] = low * (one - lx), low * lx
            k += taps
            x += grid.stride[1]
            if x == end:
                x, y = left, y + grid.stride[0]


def _over_channels(writer: Writer, write: Callable[[list, Any, Any], None]) -> None:
    """``write(corners, own, count)`` for whole vectors of channels, then for single ones that are left.

    These are pointers to the first channel: of each corner of point k, and in the array from `at` on.
    """
    builder, (image, points, k, array, at) = writer.builder, writer.arguments[:5]
    channels, lanes = image.channels, image.channels.type(writer.lanes)
    vectors, rest = builder.udiv(channels, lanes), builder.urem(channels, lanes)
    singles = writer.itemsize, builder.mul(vectors, lanes), rest
    for size, first, count in ((REGISTER_BYTES, lanes.type(0), vectors), singles):
        writer.resize(size)
        with builder.if_then(builder.icmp_signed(">", count, count.type(0))):
            pixel = writer.element(points.at, k)
            right, below = (
                writer.element(points.right, k),
                builder.add(pixel, writer.element(points.below, k)),
            )
            pixels = pixel, builder.add(pixel, right), below, builder.add(below, right)
            start = builder.gep(image.values, [builder.add(image.at, first)])
            corners = [builder.gep(start, [builder.mul(pixel, channels)]) for pixel in pixels]
            write(corners, builder.gep(array, [builder.add(at, first)]), count)


def _corner_weights(writer: Writer) -> list[Any]:
    """The weights of the corners of point k."""
    _, points, k = writer.arguments[:3]
    own = writer.builder.gep(points.weights, [writer.builder.mul(k, k.type(4))])
    return [writer.broadcast(writer.element(own, k.type(i))) for i in range(4)]


@written(REGISTER_BYTES)
def sample_point(writer: Writer, image: Any, points: Any, k: Any, out: Any, at: Any) -> None:
    """out[at + c] = the image at point k, for all channels of a `PointSource`."""

    def write(corners: list, target: Any, count: Any) -> None:
        weights = _corner_weights(writer)
        with Loop(writer.builder, count, []) as loop:
            c = writer.builder.mul(loop.k, count.type(writer.lanes))
            total = writer.multiply(weights[0], writer.load(corners[0], c))
            for weight, corner in zip(weights[1:], corners[1:], strict=True):
                total = writer.multiply_add(total, weight, writer.load(corner, c))
            writer.store(total, target, c)

    _over_channels(writer, write)


@written(REGISTER_BYTES)
def spread_point(writer: Writer, image: Any, points: Any, k: Any, grad: Any, at: Any) -> None:
    """The adjoint of `sample_point`: add the gradient, from `at` on, to the corners of point k."""

    def write(corners: list, source: Any, count: Any) -> None:
        weights = _corner_weights(writer)
        with Loop(writer.builder, count, []) as loop:
            c = writer.builder.mul(loop.k, count.type(writer.lanes))
            value = writer.load(source, c)
            for weight, corner in zip(weights, corners, strict=True):
                writer.store(writer.multiply_add(writer.load(corner, c), weight, value), corner, c)

    _over_channels(writer, write)


@written(REGISTER_BYTES)
def sum_corners(
    writer: Writer, image: Any, points: Any, k: Any, grad: Any, at: Any, out: Any, to: Any
) -> None:
    """For each corner of point k, the sum over channels of gradient * corner, to four places from `to` on."""
    builder = writer.builder
    targets = [builder.gep(out, [builder.add(to, to.type(i))]) for i in range(4)]
    for target in targets:
        builder.store(target.type.pointee(0.0), target)

    def write(corners: list, source: Any, count: Any) -> None:
        def step(s: Any, totals: list) -> list:
            c = builder.mul(s, count.type(writer.lanes))
            value = writer.load(source, c)
            loaded = (writer.load(corner, c) for corner in corners)
            return [writer.multiply_add(*pair, value) for pair in zip(totals, loaded, strict=True)]

        for total, target in zip(writer.sums(4, count, step), targets, strict=True):
            builder.store(builder.fadd(builder.load(target), writer.total(total)), target)

    _over_channels(writer, write)
