"""Into which parts a call of deform is divided, so that what it needs beside its arrays stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from rawkernels.launch import blocks, int32s

WARP = 32
BORDERS = ("constant", "reflect", "symmetric", "edge", "wrap")  # as bilinear.cuh numbers them

# Constants, and not properties of the device at hand, so that every device adds up in the same order.
EXTRA_BYTES = 32 * 1024 * 1024  # beside inputs and outputs
EXTRA_SHARE = 20  # and one of so many bytes of theirs


@dataclass(frozen=True)
class Shape:
    """Sizes of one call."""

    batch: int
    channels: int
    groups: int
    offset_groups: int
    height: int
    width: int
    outputs: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    dtype: Any
    point_dtypes: tuple[Any, Any]  # of offsets and masks
    border: str

    @property
    def positions(self) -> int:
        """Output positions of an image."""
        return self.outputs[0] * self.outputs[1]

    @property
    def taps(self) -> int:
        """Points per output position and offset group."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width

    @property
    def arguments(self) -> tuple[np.int32, ...]:
        """The numbers that kernels take last."""
        sizes = (self.channels, self.groups, self.offset_groups, self.height, self.width, self.outputs[1])
        steps = (*self.stride, *self.dilation, *self.padding)
        return int32s(*sizes, self.positions, self.taps, self.kernel[1], *steps, BORDERS.index(self.border))


class Tile(NamedTuple):
    """Some whole images, or some output positions of one image."""

    image: int
    images: int
    position: int
    positions: int  # of each image

    @property
    def rows(self) -> int:
        """Rows of the columns."""
        return self.images * self.positions

    def of_rows(self, memory: Any, groups: int, size: int) -> Any:
        """Matrices (groups, rows, size) in memory for those of the largest tile."""
        return memory[: groups * self.rows * size].reshape(groups, self.rows, size)

    def of(self, array: Any) -> Any:
        """Its images of an array."""
        if array is None or len(array) == self.images:
            return array
        return array[self.image : self.image + self.images]


class Costs(NamedTuple):
    """Bytes that a call needs beside its arrays: in all, for each image of a tile, and for each row."""

    call: int
    image: int
    row: int


class Part(NamedTuple):
    """All channels of all images or, of images that are large, some channels of one image."""

    whole: Shape
    shape: Shape
    image: int
    channel: int
    tiles: tuple[Tile, ...]

    @property
    def rows(self) -> int:
        """Rows of the largest tile."""
        return max((tile.rows for tile in self.tiles), default=0)

    @property
    def complete(self) -> bool:
        """Whether it is all of the call."""
        return self.shape is self.whole

    def _among(self, groups: int) -> tuple[slice, slice]:
        """Of so many groups of channels those that it has, and of each of them its channels."""
        size = self.whole.channels // groups
        if self.complete:
            return slice(0, groups), slice(0, size)
        first, inside = divmod(self.channel, size)
        each = min(size, self.shape.channels)
        return slice(first, first + self.shape.channels // each), slice(inside, inside + each)

    @property
    def filters(self) -> tuple[slice, slice]:
        """The groups of weight, and the channels of them."""
        return self._among(self.whole.groups)

    @property
    def begins_groups(self) -> bool:
        """Whether no part before it has channels of the same groups of weight."""
        return self.filters[1].start == 0

    @property
    def begins_points(self) -> bool:
        """Whether no part before it has channels of the same offset groups."""
        return self._among(self.whole.offset_groups)[1].start == 0

    @property
    def ends_points(self) -> bool:
        """Whether no part after it has."""
        return self._among(self.whole.offset_groups)[1].stop * self.whole.offset_groups == self.whole.channels

    def of_image(self, array: Any) -> Any:
        """Its images of an array (N, C, ...): a view in one piece."""
        if array is None or self.complete:
            return array
        return array[self.image, None, self.channel : self.channel + self.shape.channels]

    def of_points(self, array: Any) -> Any:
        """Its part of an array (N, D, ...)."""
        if array is None or self.complete:
            return array
        return array[self.image, None, self._among(self.whole.offset_groups)[0]]

    def of_outputs(self, array: Any) -> Any:
        """Its part of an array (N, O, ...)."""
        if self.complete:
            return array
        each = array.shape[1] // self.whole.groups
        groups = self.filters[0]
        return array[self.image, None, groups.start * each : groups.stop * each]


def make_parts(
    shape: Shape, costs: Callable[[Shape, int], Costs], outputs: int, arrays: tuple[Any, ...]
) -> tuple[Part, ...]:
    """Parts that need no more than what may be used beside the inputs and outputs in `arrays`, in order.

    `costs` takes the sizes of a part and the output channels of each group.
    """
    given = sum([array.nbytes for array in arrays if array is not None])
    return _make_parts(shape, costs, outputs, EXTRA_BYTES + given // EXTRA_SHARE)


@lru_cache(maxsize=1024)  # the calls of a program are the same again and again
def _make_parts(
    shape: Shape, costs: Callable[[Shape, int], Costs], outputs: int, extra: int
) -> tuple[Part, ...]:
    for part in _divisions(shape):
        cost = costs(part, outputs)
        room = max(extra - cost.call, extra // 4)
        # At most half of it is for images: the columns of few rows are multiplied slowly.
        if 2 * cost.image <= room or cost.image + shape.positions * cost.row <= room:
            break
    if part.channels == shape.channels:
        return (Part(shape, shape, 0, 0, tuple(_tiles(shape, cost, room))),)
    tiles = tuple(_tiles(part, cost, room))
    return tuple(
        Part(shape, part, image, channel, tiles)
        for image in range(shape.batch)
        for channel in range(0, shape.channels, part.channels)
    )


def _divisions(shape: Shape) -> Iterator[Shape]:
    """The call, and then one image with fewer and fewer channels: whole groups, or parts of one group."""
    yield shape
    for channels in range(shape.channels - 1, 0, -1):
        groups, offset_groups = (
            _groups_of(shape.channels, count, channels) for count in (shape.groups, shape.offset_groups)
        )
        if groups and offset_groups and shape.channels % channels == 0:
            yield replace(shape, batch=1, channels=channels, groups=groups, offset_groups=offset_groups)


def _groups_of(channels: int, groups: int, part: int) -> int:
    """How many groups so many channels are, or lie in; 0 where they are parts of several."""
    each = channels // groups
    if part % each == 0:
        return part // each
    return 1 if each % part == 0 else 0


def _tiles(shape: Shape, cost: Costs, room: int) -> Iterator[Tile]:
    """All output positions of the images, in tiles as large as there is room."""
    if not shape.positions:
        return
    whole = room // (cost.image + shape.positions * cost.row)
    if whole:
        whole = _even(shape.batch, whole)
        for image in range(0, shape.batch, whole):
            yield Tile(image, min(whole, shape.batch - image), 0, shape.positions)
        return
    rows = max(room - cost.image, room // 4) // cost.row
    rows = WARP * _even(blocks(shape.positions, WARP), max(1, rows // WARP))
    for image in range(shape.batch):
        for position in range(0, shape.positions, rows):
            yield Tile(image, 1, position, min(rows, shape.positions - position))


def _even(number: int, most: int) -> int:
    """How many go together, of so many, so that no more than that do, and all parts are about as large."""
    return blocks(number, blocks(number, most)) if number else 1
