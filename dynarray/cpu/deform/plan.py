"""How a call is divided: chunks of channels, tiles of positions, and parts that come one after the other.

Memory is bounded by working through large calls in parts: images, or else chunks, whose packed images and
weights are there at a time.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import numpy as np

from ...typing import Border
from ..engine import parallel
from ..engine.gemm import TILE_ROW_BYTES, TILE_ROWS, whole
from ..engine.memory import KEPT_BYTES
from ..engine.vectors import LINE_BYTES
from .gradients import DeformBand
from .kernels import DeformChunks, DeformPart, DeformTiles
from .points import CONSTANT, DeformSizes, PointGrid, PointImage

BORDERS = get_args(Border)  # as `points` numbers them
COLUMN_BYTES = 256 * 1024  # of one tile and chunk: with the chunk's weights they fit into the L2 cache
# Backward: columns of a chunk, about (channels times taps), and the most bytes of their weights.
CHUNK_COLUMNS, CHUNK_WEIGHT_BYTES = 640, 640 * 1024
IMAGE_SPLITS = 4  # shares of an image, most: each has a gradient of its own, and these are added up
LEAST_ITEMS = 4  # where more would make chunks of fewer channels: a point costs much whatever their number
# Forward: positions of a tile, channels of a chunk, and samples of a position that are multiplied at once.
TILE_POSITIONS, LEAST_POSITIONS, CHUNK_CHANNELS, SAMPLES = 128, 32, 128, 256
CHANNEL_STEP = 16  # a chunk has a multiple of this, so that vectors of any kind are whole
SUMS_BYTES = 4 * 1024 * 1024  # sums of points that wait to be added up
# Packed images and packed weights: so much, and a part of the size of all arrays.
PACKED_BYTES, PACKED_PART = 11 * 1024 * 1024, 0.03
WEIGHT_BYTES, WEIGHT_PART = 8 * 1024 * 1024, 0.01


class DeformCall(NamedTuple):
    """What a plan depends on."""

    batch: int
    sizes: DeformSizes
    itemsize: int
    array_bytes: int
    backward: bool

    @property
    def multiplies_samples(self) -> bool:
        """Whether it is the forward pass of `deform_conv2d`, whose items are positions for all channels."""
        return self.sizes.outputs > 0 and not self.backward

    @property
    def copies(self) -> int:
        """Of packed images and weights: backward there are their gradients, too."""
        return 2 if self.backward else 1

    @property
    def packed_budget(self) -> float:
        """Bytes of packed images."""
        return PACKED_BYTES + PACKED_PART * self.array_bytes

    @property
    def weight_budget(self) -> float:
        """Bytes of packed weights, or of these and as many of each of their gradients."""
        return (WEIGHT_BYTES + WEIGHT_PART * self.array_bytes) / self.copies


class DeformPlan(NamedTuple):
    """The parts of a call, by the chunks that they are made of, and what these share."""

    parts: tuple[tuple[DeformPart, ...], ...]
    weight_sizes: tuple[int, ...]  # elements of their packed weights
    shares: int  # of the tiles, backward
    splits: int  # shares of one image


def deform_sizes(x: Any, offset: Any, weight: Any, *, border: str, **steps: tuple[int, int]) -> DeformSizes:
    """Sizes of `deform_conv2d`."""
    groups = x.shape[1] // max(1, weight.shape[1]) or 1
    return DeformSizes(
        channels=x.shape[1],
        outputs=weight.shape[0],
        group_channels=x.shape[1] // groups,
        group_outputs=weight.shape[0] // groups,
        offset_groups=offset.shape[1],
        taps=offset.shape[2] * offset.shape[3],
        coordinates=offset.shape[4],
        positions=offset.shape[5] * offset.shape[6],
        image=_packed_image(x.shape[2:], offset.shape[4] == 1, BORDERS.index(border)),
        grid=PointGrid(offset.shape[6], offset.shape[3], **steps),
    )


def _packed_image(size: tuple[int, int], of_line: bool, border: int) -> PointImage:
    """How an image is packed; `of_line`: points move in its only row."""
    height, width = size
    if of_line and border == CONSTANT:
        return PointImage(height, width, width + 3, width + 3, border, 1, width + 1)
    pitch = width + 2
    return PointImage(height, width, pitch, (height + 3) * pitch, border, 0, (height + 1) * pitch)


def sample_sizes(x: Any, points: Any, border: str) -> DeformSizes:
    """`sample_points` as a convolution without weights: P taps, on a grid that stays at (0, 0)."""
    taps = points.reshape(points.shape[0], 1, points.shape[1], 1, *points.shape[2:])
    still = (0, 0)
    weight = np.empty((0, x.shape[1], 1, 1), x.dtype)
    return deform_sizes(x, taps, weight, border=border, stride=still, padding=still, dilation=still)


@lru_cache(maxsize=256)
def deform_plan(call: DeformCall, whole: DeformCall) -> DeformPlan:
    """The plan of a call that adds up its channels as the whole does, of which it is a part."""
    chunks, weights = _chunks(whole)
    weight_bytes = weights * call.itemsize
    packed_bytes = chunks.size * whole.sizes.image.pixels * call.itemsize * call.copies
    tiles = _tiles(call, int(chunks.size.max()))
    parts, weight_sizes, start, shares = [], [], 0, call.batch
    while start < len(weights):
        stop = start + 1
        while (
            stop < len(weights)
            and packed_bytes[start : stop + 1].sum() <= whole.packed_budget
            and weight_bytes[start : stop + 1].sum() <= whole.weight_budget
        ):
            stop += 1
        images = max(1, int(call.packed_budget // packed_bytes[start:stop].sum()))
        most = int(call.weight_budget // max(1, weight_bytes[start:stop].sum()))
        shares = max(1, min(shares, images, most))
        own = chunks._replace(weight_at=chunks.weight_at - chunks.weight_at[start])
        parts.append(tuple(_parts(call, own, tiles, range(start, stop), images)))
        weight_sizes.append(int(weights[start:stop].sum()))
        start = stop
    shares = min(shares, max(1, -(-parallel.ITEMS // len(weights))))
    splits = _splits(call) if len(parts) == len(parts[0]) == 1 else 1
    while splits > 1 and shares * splits * weight_bytes.sum() > call.weight_budget:
        splits //= 2
    return DeformPlan(tuple(parts), tuple(weight_sizes), shares * splits, splits)


def _chunks(call: DeformCall) -> tuple[DeformChunks, np.ndarray]:
    """The chunks, and the elements of the packed weights of each."""
    sizes = call.sizes
    channels, size = sizes.channels, _channels_of_chunk(call)
    per_offset_group = channels // sizes.offset_groups
    borders = {*range(0, channels, sizes.group_channels), *range(0, channels, per_offset_group)}
    ends = [*sorted(borders), channels]
    first = np.array([at for i, border in enumerate(ends[:-1]) for at in range(border, ends[i + 1], size)])
    number = np.diff(np.append(first, channels))
    columns, width = sizes.taps * number, TILE_ROW_BYTES // call.itemsize
    if call.backward:  # (O/G, columns), both rounded up to whole tiles of the product
        weights = whole(sizes.group_outputs, TILE_ROWS) * whole(columns, width)
    else:
        weights = columns * whole(sizes.group_outputs, width)
    chunks = DeformChunks(
        first,
        number,
        group=first // sizes.group_channels,
        offset_group=first // per_offset_group,
        begins=first % sizes.group_channels == 0,
        weight_at=np.cumsum(weights) - weights,
    )
    return chunks, weights


def _channels_of_chunk(call: DeformCall) -> int:
    """Enough for whole vectors and a product of some depth, few enough for all threads to have work."""
    sizes = call.sizes
    if call.multiplies_samples:
        wanted = CHUNK_CHANNELS
    else:
        channel_bytes = max(1, sizes.group_outputs) * sizes.taps * call.itemsize
        wanted = min(128, CHUNK_COLUMNS // sizes.taps, CHUNK_WEIGHT_BYTES // channel_bytes)
    if call.backward:  # threads take chunks, and shares of the tiles
        wanted = min(wanted, sizes.channels * max(1, call.batch) * _splits(call) // LEAST_ITEMS)
    most = int(call.packed_budget // (sizes.image.pixels * call.itemsize * call.copies))
    wanted = max(1, min(most, max(CHANNEL_STEP, wanted)))
    if call.multiplies_samples:
        return max(1, min(most, wanted // CHANNEL_STEP * CHANNEL_STEP))
    even = _even(min(sizes.group_channels, sizes.channels // sizes.offset_groups), wanted)
    return min(wanted, whole(even, CHANNEL_STEP))


def _splits(call: DeformCall) -> int:
    """Shares that each image has in the backward pass, if it is done in one part: each has tiles."""
    batch, image_bytes = max(1, call.batch), call.sizes.channels * call.sizes.image.pixels * call.itemsize
    tiles, room = -(-call.sizes.positions // TILE_POSITIONS), KEPT_BYTES // max(1, call.batch * image_bytes)
    most = min(room, parallel.ITEMS // 2 // batch, IMAGE_SPLITS, tiles)
    return 2 ** (max(1, most).bit_length() - 1)


def _tiles(call: DeformCall, channels: int) -> DeformTiles:
    """Tiles for chunks of so many channels."""
    sizes, taps = call.sizes, call.sizes.taps
    if call.multiplies_samples:
        most = max(LEAST_POSITIONS, call.batch * sizes.positions // (4 * parallel.ITEMS))
        size = whole(_even(sizes.positions, min(TILE_POSITIONS, most)), TILE_ROWS)
        taps = _even(taps, max(1, SAMPLES // channels))
    else:
        most = min(TILE_POSITIONS, COLUMN_BYTES // (taps * channels * call.itemsize))
        size = min(whole(sizes.positions, TILE_ROWS), max(TILE_ROWS, most // TILE_ROWS * TILE_ROWS))
    return DeformTiles(size, -(-sizes.positions // size), taps, taps * channels)


def _even(count: int, most: int) -> int:
    """The size of equal parts of `count` that are not larger than `most`."""
    return -(-count // -(-count // most))


def _parts(
    call: DeformCall, chunks: DeformChunks, tiles: DeformTiles, own: range, images: int
) -> Iterator[DeformPart]:
    """The chunks of the range `own` of all images, so many images at a time."""
    size = chunks.size[own.start : own.stop]
    for image in range(0, call.batch, images):
        yield DeformPart(
            call.sizes,
            chunks,
            tiles._replace(depth=tiles.taps * int(size.max())),
            first_image=image,
            images=min(images, call.batch - image),
            first_chunk=own.start,
            chunk_count=len(own),
            first_channel=int(chunks.first[own.start]),
            channels=int(size.sum()),
        )


def deform_bands(part: DeformPart, plan: DeformPlan, itemsize: int) -> Iterator[DeformBand]:
    """The tiles of a part, in bands whose sums of points may wait at a time.

    The same bands where these are not wanted: the gradient of weight is added up band by band.
    """
    tiles = part.images * part.tiles.per_image
    most = max(1, SUMS_BYTES // (part.chunk_count * sums_of_tile(part, itemsize) * itemsize))
    for start in range(0, tiles, most):
        yield DeformBand(start, min(start + most, tiles), plan.shares, plan.splits)


def sums_of_tile(part: DeformPart, itemsize: int) -> int:
    """Sums of the points of a tile for one chunk: one for each corner."""
    return 4 * whole(part.tiles.size, LINE_BYTES // itemsize) * part.sizes.taps
