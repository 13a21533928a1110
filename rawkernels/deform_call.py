"""The launches that the passes of deform have in common."""

from __future__ import annotations

from functools import cache
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from rawkernels.deform_parts import WARP, Part, Tile
from rawkernels.launch import accumulator_dtype, blocks, empty, int32s, launch, type_constants
from rawkernels.source import Program, constants, program

FILE = "deform.cu"
BLOCK = 128  # as the launch bounds of the kernels
TILE = (32, 8)  # threads of a block of the transposing kernels
ACCESS_BYTES = 16
WARPS_WANTED = 132 * 24  # as many as are there at once on a large GPU
MOST_SHARES = 8  # warps that set up the same points


@cache
def choose_program(
    dtype: Any, vector: int, point_dtypes: tuple[Any, Any] | None = None, *, wide_index: bool = False
) -> Program:
    """The program whose kernels read `vector` channels at once; `point_dtypes` are of offsets and masks."""
    position, mask = point_dtypes or (dtype, dtype)
    types = type_constants(dtype, wide_index=wide_index, POSITION=position, MASK=mask)
    return program(FILE, types + constants(VEC=vector))


def largest_vector(dtype: str) -> int:
    """Elements of one access."""
    return ACCESS_BYTES // {"float64": 8, "float32": 4}.get(dtype, 2)


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    found = []
    own = {dtype: "", **({"float32": "float32 "} if dtype in ("float16", "bfloat16") else {})}
    for vector, position, mask in product((1, largest_vector(dtype)), own, own):
        others = [f" {own[kind]}{name}" for kind, name in ((position, "offset"), (mask, "mask")) if own[kind]]
        made = choose_program(dtype, vector, (position, mask), wide_index=wide_index)
        found.append((f"{dtype}{''.join(others)} vector {vector}", made))
    return found


class Call:
    """One part of a call: its sizes, the program for them, and x of a tile with its channels last."""

    def __init__(self, part: Part, like: Any, *, wide_index: bool) -> None:
        self.part, self.shape = part, part.shape
        shape = self.shape
        step = gcd(shape.channels // shape.groups, shape.channels // shape.offset_groups)
        vector = largest_vector(shape.dtype.name)
        self.vector = vector if step % vector == 0 else 1
        self.rows = part.rows
        self.index = np.int64 if wide_index else np.int32
        self.program = choose_program(shape.dtype, self.vector, shape.point_dtypes, wide_index=wide_index)
        self.accumulator = accumulator_dtype(shape.dtype)
        self.like = like
        images = max((tile.images for tile in part.tiles), default=0)
        self.x = empty((images, shape.pixels, shape.channels), self.like)

    def buffer(self, size: int, dtype: Any = None) -> Any:
        """Memory for so many numbers of each row of a tile."""
        return empty((self.rows * size,), self.like, self.accumulator if dtype is None else dtype)

    def read(self, tile: Tile, x: Any) -> None:
        """Write x of the images of a tile, channels last."""
        if tile.position == 0:
            c, pixels = self.shape.channels, self.shape.pixels
            self.transpose(
                "",
                tile.of(x),
                self.x,
                (c, pixels),
                (pixels, c),
                (tile.images, 1),
                ((c * pixels,) * 2, (0, 0)),
            )

    def launch_points(self, entry: str, arrays: tuple, tile: Tile) -> None:
        """A kernel of which each warp works on 32 points of a tile."""
        shape = self.shape
        warps = blocks(tile.rows, WARP) * shape.offset_groups * shape.taps
        vectors = blocks(shape.channels // shape.offset_groups, self.vector)
        lane_bits = min(5, max(0, vectors - 1).bit_length())
        shares = 1
        while 2 * shares <= min(1 << lane_bits, MOST_SHARES) and warps * shares < WARPS_WANTED:
            shares *= 2
        items = warps * shares
        sizes = (self.index(items), self.index(tile.position), self.index(tile.rows))
        numbers = (*sizes, *int32s(lane_bits, (1 << lane_bits) // shares))
        arguments = (*arrays, *numbers, *shape.arguments)
        launch(self.program, entry, (blocks(items * WARP, BLOCK),), (BLOCK,), arguments)

    def launch_gradients(self, tile: Tile, arrays: tuple) -> None:
        """The gradients of the points of a tile: see deform_gradients."""
        flags = np.int32(not self.part.begins_points), np.int32(self.part.ends_points)
        offset, mask, columns, *gradients = arrays
        self.launch_points("deform_gradients", (self.x, offset, mask, columns, *gradients, *flags), tile)

    def transpose(
        self,
        direction: str,
        source: Any,
        target: Any,
        size: tuple[int, int],
        row: tuple[int, int],
        count: tuple[int, int],
        steps: tuple[tuple[int, int], tuple[int, int]],
        *,
        bias: Any = None,
        add: bool = False,
    ) -> None:
        """Transpose matrices of `size`, with rows `row` apart before and after.

        There are `count` (outer, inner) ones, `steps` ((before, after) of outer, of inner) apart.
        """
        (in_outer, out_outer), (in_inner, out_inner) = steps
        numbers = (*size, *row, count[1], in_inner, out_inner, in_outer, out_outer)
        grid = (blocks(size[0], TILE[0]) * blocks(size[1], TILE[0]) * count[0] * count[1],)
        arguments = (source, bias, target, *map(self.index, numbers), np.int32(add))
        if size[0] and size[1]:
            launch(self.program, f"deform_transpose{direction}", grid, TILE, arguments)
