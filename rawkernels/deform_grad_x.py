"""The gradient of x: in a fixed order from lists of points, or by atomics."""

from __future__ import annotations

from typing import Any

import numpy as np

from rawkernels.deform_call import BLOCK, Call
from rawkernels.deform_parts import WARP, Costs, Shape, Tile
from rawkernels.launch import accumulator_dtype, blocks, empty, launch

PATCH = (4, 8)  # as in deform_lists.cuh, like the next ones
CORNERS = 4
LEAST_RUN = 64  # points that one warp appends to the lists
STARTING = 16  # warps that share the runs of 32 lists
INT = np.dtype(np.int32)


def grad_x_costs(costs: Costs, shape: Shape, deterministic: bool) -> Costs:
    """`costs`, and what the gradient of x takes."""
    size = accumulator_dtype(shape.dtype).itemsize
    wide = shape.pixels * shape.channels * size
    if not deterministic:
        return costs._replace(image=costs.image + wide)
    points, patches = shape.taps * shape.offset_groups, _patches(shape)
    image = INT.itemsize * shape.offset_groups * 3 * patches + (wide if size > shape.dtype.itemsize else 0)
    row = INT.itemsize * points * (CORNERS + blocks(patches, _run(shape)))
    return costs._replace(image=costs.image + image, row=costs.row + row)


def _patches(shape: Shape) -> int:
    return blocks(shape.height, PATCH[0]) * blocks(shape.width, PATCH[1])


def _run(shape: Shape) -> int:
    """Points of a run: so many that the counts of all patches take half as much as their columns, or less."""
    most = max(CORNERS, shape.channels // shape.offset_groups // 2)  # counts for each point
    return max(LEAST_RUN, WARP * blocks(_patches(shape), WARP * most))


class GradX:
    """The gradient of x of a part of a call, while it is added up."""

    def __init__(self, call: Call, result: Any, deterministic: bool) -> None:
        self.call, self.result = call, result
        self.needed = result is not None and result.size > 0
        self.ordered = self.needed and deterministic
        self.sums: Any = None  # channels last, where kernels add up by atomics
        self.wide: Any = None  # where an image of 16 bits is added up from several tiles
        shape, tiles = call.shape, call.part.tiles
        if self.ordered:
            sets = tiles[0].images * shape.offset_groups
            self.run, self.patches = _run(shape), _patches(shape)
            runs = blocks(tiles[0].positions * shape.taps, self.run)
            self.counts = empty((sets * runs * self.patches + 1,), result, INT)
            self.bounds = empty((sets * self.patches * 2,), result, INT)
            self.lists = call.buffer(CORNERS * shape.taps * shape.offset_groups, INT)
            if call.accumulator != result.dtype and tiles[0].positions < shape.positions:
                self.wide = empty((1, *result.shape[1:]), result, call.accumulator)
        elif self.needed:
            size = (tiles[0].images, shape.pixels, shape.channels)
            self.sums = empty(size, result, call.accumulator)

    def begin(self, tile: Tile, offset: Any, mask: Any, columns: Any) -> None:
        """Add what the gradients of the columns of a tile give, or make `sums` ready for them."""
        if self.ordered:
            self._list_points(tile, offset)
            self._add_lists(tile, offset, mask, columns)
        elif self.needed and tile.position == 0:
            self.sums[...] = 0

    def _list_points(self, tile: Tile, offset: Any) -> None:
        call, shape = self.call, self.call.shape
        runs = blocks(tile.positions * shape.taps, self.run)
        sets = tile.images * shape.offset_groups
        numbers = (call.index(sets * runs), *self._of_tile(tile))
        grid = (blocks(sets * runs * WARP, BLOCK),)
        launch(call.program, "deform_count_points", grid, (BLOCK,), (offset, self.counts, *numbers))
        arguments = (self.counts, self.bounds, np.int32(sets), np.int32(runs), np.int32(self.patches))
        starting = (sets * blocks(self.patches, WARP),)
        launch(call.program, "deform_start_lists", starting, (STARTING * WARP,), arguments)
        arguments = (offset, self.counts, self.lists, *numbers)
        launch(call.program, "deform_list_points", grid, (BLOCK,), arguments)

    def _of_tile(self, tile: Tile) -> tuple[Any, ...]:
        index = self.call.index
        sizes = (index(tile.position), index(tile.rows), np.int32(tile.images), np.int32(self.run))
        return (*sizes, *self.call.shape.arguments)

    def _add_lists(self, tile: Tile, offset: Any, mask: Any, columns: Any) -> None:
        call, shape = self.call, self.call.shape
        chunks = blocks(shape.channels // shape.offset_groups, WARP)
        grid = (tile.images * shape.offset_groups * self.patches * chunks,)
        entry, target = "deform_add_lists", tile.of(self.result)
        if self.wide is not None:
            entry, target = "deform_add_lists_wide", self.wide
        lists = (self.bounds, self.lists, target, np.int32(tile.position > 0))
        launch(call.program, entry, grid, (BLOCK,), (offset, mask, columns, *lists, *self._of_tile(tile)))

    def finish(self, tile: Tile) -> None:
        """Write the result where the images of a tile are complete with it."""
        shape = self.call.shape
        if not self.needed or tile.position + tile.positions < shape.positions:
            return
        target = tile.of(self.result)
        if self.wide is not None:
            target[...] = self.wide
        elif not self.ordered:
            c, pixels = shape.channels, shape.pixels
            steps = ((c * pixels, c * pixels), (0, 0))
            size, row, count = (pixels, c), (c, pixels), (tile.images, 1)
            self.call.transpose("_out", self.sums, target, size, row, count, steps)
