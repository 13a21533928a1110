"""`deform_conv2d` and `sample_points` on the CPU.

The image is packed in chunks of channels: the channels of a chunk side by side, pixel after pixel, in a ring
of zeros. A corner of a point is then one run of memory, no corner needs to be asked whether it is inside the
image, and the points of a tile of output positions, set up once, serve all channels of their group.

Forward, a thread takes a tile of output positions and samples a few taps of one chunk after the other: the
channels of a position, side by side, are a row of the left matrix as they are, and multiplied by the weights
of these taps at once.

Backward, it takes a chunk and a share of the tiles instead, so that no two threads add to the same pixel or
weight: a share is some images, or, where these are few and small, a part of the tiles of one, with gradients
of pixels and weights of its own that are added up later. For one tile after the other a thread makes the
gradients of the columns, takes from them the gradients of pixels and points, puts the columns in their place
and multiplies these by the gradient of the output. Only the gradients of points need all chunks of an offset
group: each chunk leaves four sums per point, one for each corner, which are added up at the end of a band of
tiles.

Memory is bounded by working through large calls in parts: images, or else chunks, whose packed images and
weights are there at a time.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
from ..engine.gemm import ROWS, TILE_BYTES
from ..engine.memory import KEPT_BYTES, borrow, run_with_memory
from .gradients import (
    Band,
    Gradients,
    Inputs,
    Wanted,
    backward_items,
    backward_memory,
    point_items,
    sample_backward_items,
    sample_items,
    weight_items,
)
from .kernels import (
    Chunks,
    Part,
    forward_items,
    forward_memory,
    pack_items,
    unpack_items,
)
from .points import Grid

COLUMN_BYTES = 256 * 1024  # of one tile and chunk: with the chunk's weights they fit into the L2 cache
# Backward: columns of a chunk, about (channels times taps), and the most bytes of their weights.
DEPTH, CHUNK_WEIGHT_BYTES = 640, 640 * 1024
SPLITS = 4  # shares of an image, most: each has a gradient of its own, and these are added up
LEAST_ITEMS = 4  # where more would make chunks of fewer channels: a point costs much whatever their number
# Forward: positions of a tile, channels of a chunk, and samples of a position that are multiplied at once.
TILE, LEAST_TILE, CHANNELS, SAMPLES = 128, 32, 128, 256
SUMS_BYTES = 4 * 1024 * 1024  # sums of points that wait to be added up
# Packed images and packed weights: so much, and a part of the size of all arrays.
PACKED_BYTES, PACKED_PART = 12 * 1024 * 1024, 0.03
WEIGHT_BYTES, WEIGHT_PART = 8 * 1024 * 1024, 0.01


class _Call(NamedTuple):
    """What a plan depends on."""

    batch: int
    grid: Grid
    itemsize: int
    array_bytes: int
    backward: bool


class _Plan(NamedTuple):
    """How a call is divided: its chunks, and the parts that are worked on one after the other."""

    chunks: Chunks
    parts: tuple[tuple[Part, ...], ...]  # by the chunks that they are made of
    weights: tuple[tuple[Chunks, int], ...]  # of each of these: chunks with where theirs begin, and the size
    shares: int  # of the tiles, backward
    splits: int  # shares of one image


def _grid(x: np.ndarray, offset: np.ndarray, weight: np.ndarray, **steps: tuple[int, int]) -> Grid:
    groups = x.shape[1] // max(1, weight.shape[1]) or 1
    return Grid(
        channels=x.shape[1],
        outputs=weight.shape[0],
        groups=groups,
        offset_groups=offset.shape[1],
        height=x.shape[2],
        width=x.shape[3],
        pixels=(x.shape[2] + 3) * (x.shape[3] + 2),
        out_width=offset.shape[6],
        positions=offset.shape[5] * offset.shape[6],
        taps=offset.shape[2] * offset.shape[3],
        kernel_w=offset.shape[3],
        **steps,
    )


def _sample_grid(x: np.ndarray, points: np.ndarray) -> Grid:
    """`sample_points` as a convolution without weights: P taps, on a grid that stays at (0, 0)."""
    taps = points.reshape(points.shape[0], 1, points.shape[1], 1, *points.shape[2:])
    still = (0, 0)
    weight = np.empty((0, x.shape[1], 1, 1), x.dtype)
    return _grid(x, taps, weight, stride=still, padding=still, dilation=still)


def _channels_of_chunk(call: _Call) -> int:
    """Enough for whole vectors and a product of some depth, few enough for all threads to have work."""
    grid = call.grid
    if _multiplies_samples(call):
        wanted = CHANNELS
    else:
        of_channel = max(1, grid.outputs // grid.groups) * grid.taps * call.itemsize
        wanted = min(128, DEPTH // grid.taps, CHUNK_WEIGHT_BYTES // of_channel)
    if call.backward:  # threads take chunks, and shares of the tiles
        wanted = min(wanted, grid.channels * max(1, call.batch) * _splits(call) // LEAST_ITEMS)
    copies = 2 if call.backward else 1
    most = int(_budget(PACKED_BYTES, PACKED_PART, call) // (grid.pixels * call.itemsize * copies))
    return max(1, min(most, max(16, wanted // 16 * 16)))


def _splits(call: _Call) -> int:
    """Shares that each image has in the backward pass, if it is done in one part."""
    image = call.grid.channels * call.grid.pixels * call.itemsize
    most = min(KEPT_BYTES // max(1, call.batch * image), parallel.ITEMS // 2 // max(1, call.batch), SPLITS)
    return 2 ** (max(1, most).bit_length() - 1)


def _multiplies_samples(call: _Call) -> bool:
    """Whether it is the forward pass of `deform_conv2d`, whose items are positions for all channels."""
    return call.grid.outputs > 0 and not call.backward


def _budget(least: int, part: float, call: _Call) -> float:
    return least + part * call.array_bytes


def _chunks(call: _Call) -> Chunks:
    grid = call.grid
    per_group, per_offset_group = grid.channels // grid.groups, grid.channels // grid.offset_groups
    size = _channels_of_chunk(call)
    borders = {*range(0, grid.channels, per_group), *range(0, grid.channels, per_offset_group)}
    ends = [*sorted(borders), grid.channels]
    first = np.array([at for i, border in enumerate(ends[:-1]) for at in range(border, ends[i + 1], size)])
    sizes = np.diff(np.append(first, grid.channels))
    width, each = TILE_BYTES // call.itemsize, grid.outputs // grid.groups
    if call.backward:  # (O/G, columns), both rounded up to whole tiles of the product
        weights = _round(each, ROWS) * np.array([_round(grid.taps * s, width) for s in sizes])
    else:
        weights = grid.taps * sizes * _round(each, width)
    return Chunks(
        first,
        sizes,
        group=first // per_group,
        offset_group=first // per_offset_group,
        begins=first % per_group == 0,
        weight_at=np.cumsum(weights) - weights,
    )


def _round(count: int, step: int) -> int:
    return -(-count // step) * step


@lru_cache(maxsize=256)
def _plan(call: _Call) -> _Plan:
    grid, chunks = call.grid, _chunks(call)
    tile, step = _tile(call, int(chunks.size.max()))
    copies = 2 if call.backward else 1
    weight_sizes = np.diff(chunks.weight_at, append=_weight_size(call, chunks)) * call.itemsize
    packed_sizes = chunks.size * grid.pixels * call.itemsize * copies
    budgets = (_budget(PACKED_BYTES, PACKED_PART, call), _budget(WEIGHT_BYTES, WEIGHT_PART, call) / copies)
    parts, weights, start = [], [], 0
    shares = call.batch
    while start < len(chunks.first):
        stop = start + 1
        while stop < len(chunks.first) and all(
            sizes[start : stop + 1].sum() <= budget
            for sizes, budget in zip((packed_sizes, weight_sizes), budgets, strict=True)
        ):
            stop += 1
        images = max(1, int(budgets[0] // packed_sizes[start:stop].sum()))
        shares = max(1, min(shares, images, int(budgets[1] // max(1, weight_sizes[start:stop].sum()))))
        parts.append(tuple(_parts(call, chunks, start, stop, images, tile, step)))
        of_part = chunks._replace(weight_at=chunks.weight_at - chunks.weight_at[start])
        weights.append((of_part, int(weight_sizes[start:stop].sum()) // call.itemsize))
        start = stop
    shares = min(shares, max(1, -(-parallel.ITEMS // len(chunks.first))))
    splits = _splits(call) if len(parts) == len(parts[0]) == 1 else 1
    while splits > 1 and shares * splits * weight_sizes.sum() > budgets[1]:
        splits //= 2
    return _Plan(chunks, tuple(parts), tuple(weights), shares * splits, splits)


def _tile(call: _Call, channels: int) -> tuple[int, int]:
    """Positions of a tile, and taps that are sampled at once."""
    grid = call.grid
    if not _multiplies_samples(call):
        columns = COLUMN_BYTES // (grid.taps * channels * call.itemsize)
        return min(_round(grid.positions, ROWS), max(ROWS, min(128, columns) // ROWS * ROWS)), grid.taps
    wanted = min(TILE, max(LEAST_TILE, call.batch * grid.positions // (4 * parallel.ITEMS)))
    tile = _round(_even(grid.positions, wanted), ROWS)
    return tile, _even(grid.taps, max(1, SAMPLES // channels))


def _even(count: int, most: int) -> int:
    """The size of equal parts of `count` that are not larger than `most`."""
    return -(-count // -(-count // most))


def _weight_size(call: _Call, chunks: Chunks) -> int:
    grid = call.grid
    width, each, last = TILE_BYTES // call.itemsize, grid.outputs // grid.groups, int(chunks.size[-1])
    if call.backward:
        size = _round(each, ROWS) * _round(grid.taps * last, width)
    else:
        size = grid.taps * last * _round(each, width)
    return int(chunks.weight_at[-1]) + size


def _parts(
    call: _Call, chunks: Chunks, start: int, stop: int, images: int, tile: int, step: int
) -> Iterator[Part]:
    for image in range(0, call.batch, images):
        yield Part(
            image=image,
            images=min(images, call.batch - image),
            chunk=start,
            chunks=stop - start,
            first_channel=int(chunks.first[start]),
            channels=int(chunks.size[start:stop].sum()),
            tile=tile,
            tiles=-(-call.grid.positions // tile),
            step=step,
            depth=step * int(chunks.size[start:stop].max()),
        )


def _pack(
    x: np.ndarray, grid: Grid, chunks: Chunks, part: Part, weight: Any = None, weights: Any = None
) -> np.ndarray:
    """The images of a part; and, if given, the weights of its chunks into `weights`, as right matrices."""
    packed = borrow("packed", part.images * part.channels * grid.pixels, x.dtype)
    if weight is None:
        weight = weights = np.empty(0, x.dtype)
    width = TILE_BYTES // x.itemsize
    strips = part.chunks * -(-(grid.outputs // grid.groups) // width) if weights.size else 0
    arrays, items = (x, packed, weight, weights), strips + part.images * (grid.height + 3)
    operations = 4 * len(packed) + 2 * len(weights)
    parallel.run(pack_items, items, operations, *arrays, strips, grid, chunks, part)
    return packed


def _flat(*arrays: Any) -> Iterator[np.ndarray]:
    """Arrays as kernels take them; no elements for one that is not given."""
    like = arrays[0]
    for array in arrays:
        yield np.empty(0, like.dtype) if array is None else kernel_input(array).reshape(-1)


def _bytes(*arrays: Any) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def forward(
    x: Any, offset: Any, weight: Any, mask: Any, bias: Any, *, deterministic: bool, **steps: tuple[int, int]
) -> tuple[Any, tuple]:
    """Output of `deform_conv2d`; keeps the inputs for the backward pass."""
    kept = (x, offset, weight, mask, bias)
    y = np.empty((x.shape[0], weight.shape[0], *offset.shape[5:]), x.dtype)
    if not x.shape[1]:
        y[:] = 0 if bias is None else bias[:, None, None]
        return y, kept
    if not y.size:
        return y, kept
    grid = _grid(x, offset, weight, **steps)
    call = _Call(x.shape[0], grid, x.itemsize, _bytes(*kept, y), backward=False)
    plan = _plan(call)
    pixels, places, factors, biases, given = _flat(x, offset, mask, bias, weight)
    for parts, (of_part, size) in zip(plan.parts, plan.weights, strict=True):
        weights = borrow("weights", size, x.dtype)
        for part in parts:
            first = (given, weights) if part is parts[0] else ()
            packed = _pack(pixels, grid, of_part, part, *first)
            items = part.images * part.tiles
            operations = 0.1 * items * part.tile * grid.taps * part.channels * grid.outputs / grid.groups
            arrays = (packed, places, factors, weights, biases, y.reshape(-1))
            memory = forward_memory(grid, part, y.itemsize)
            run_with_memory(forward_items, items, operations, memory, y.dtype, *arrays, grid, of_part, part)
    return y, kept


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    deterministic: bool,
    **steps: tuple[int, int],
) -> tuple:
    """Gradients of `deform_conv2d` with respect to x, offset, weight, mask and bias."""
    x, offset, weight, mask, bias = kept
    wanted = Wanted(needs[0], needs[1] or (needs[3] and mask is not None), needs[2])
    grad_bias = grad_output.sum(axis=(0, 2, 3)) if needs[4] and bias is not None else None
    grads: list[Any] = [
        np.zeros(a.shape, a.dtype) if a is not None and needed else None
        for a, needed in zip(kept[:4], needs[:4], strict=True)
    ]
    if not any(wanted) or not grad_output.size or not x.shape[1]:
        return *grads, grad_bias
    grid = _grid(x, offset, weight, **steps)
    array_bytes = _bytes(*kept, grad_output, *grads)
    call = _Call(x.shape[0], grid, x.itemsize, array_bytes, backward=True)
    plan = _plan(call)
    pixels, places, factors, given = _flat(x, offset, mask, weight)
    gradient = kernel_input(grad_output).reshape(-1)
    for parts, (of_part, size) in zip(plan.parts, plan.weights, strict=True):
        weights, rows = borrow("weights", size, x.dtype), parts[0].chunks * (grid.outputs // grid.groups)
        parallel.run(weight_items, rows, 2 * size, given, weights, grid, of_part, parts[0], 0)
        slots = borrow("slots", plan.shares * len(weights) if wanted.weight else 0, x.dtype)
        slots[...] = 0
        for part in parts:
            inputs = (gradient, pixels, places, factors, weights)
            _backward_part(inputs, slots, grads, grid, plan._replace(chunks=of_part), part, wanted)
        if wanted.weight:
            arrays, last = (grads[2].reshape(-1), slots), (grid, of_part, parts[0], plan.shares)
            parallel.run(weight_items, rows, 2 * len(slots), *arrays, *last)
    return *grads, grad_bias


def _backward_part(
    inputs: tuple, slots: np.ndarray, grads: list, grid: Grid, plan: _Plan, part: Part, wanted: Wanted
) -> None:
    """Gradients that the images and chunks of a part give."""
    gradient, pixels, places, factors, weights = inputs
    chunks, size = plan.chunks, pixels.itemsize
    packed = _pack(pixels, grid, chunks, part)
    of_part = Inputs(gradient, packed, places, factors, weights)
    grad_packed = borrow("gradients", plan.splits * len(packed) if wanted.x else 0, packed.dtype)
    grad_points = tuple(
        np.empty(0, packed.dtype) if grad is None else grad.reshape(-1) for grad in grads[1::2]
    )
    work = 4.0 * part.channels * grid.taps * (grid.outputs // grid.groups if len(weights) else 4)
    for band in _bands(grid, part, size, plan, wanted):
        tiles = band.stop - band.start
        sums = borrow(
            "sums", tiles * part.chunks * _sums_of_tile(grid, part) if wanted.points else 0, packed.dtype
        )
        operations = 0.1 * work * tiles * part.tile
        args = (of_part, Gradients(grad_packed, slots, sums), grid, chunks, part, band)
        items = plan.shares * part.chunks
        if len(weights):
            memory = backward_memory(grid, part, size)
            run_with_memory(
                backward_items, items, operations, sum(memory), packed.dtype, memory, *args, wanted
            )
        else:
            parallel.run(sample_backward_items, items, operations, *args, wanted)
        if wanted.points:
            count = tiles * part.tile * grid.taps * (16 + 4 * part.chunks)
            parallel.run(point_items, tiles, count, sums, places, factors, *grad_points, *args[2:])
    if wanted.x:
        target, last = grads[0].reshape(-1), (grid, chunks, part)
        items = part.images * grid.height
        parallel.run(unpack_items, items, len(grad_packed), grad_packed, len(packed), target, *last)


def _sums_of_tile(grid: Grid, part: Part) -> int:
    return 4 * part.tile * grid.taps


def _bands(grid: Grid, part: Part, itemsize: int, plan: _Plan, wanted: Wanted) -> Iterator[Band]:
    tiles = part.images * part.tiles
    most = SUMS_BYTES // (part.chunks * _sums_of_tile(grid, part) * itemsize) if wanted.points else tiles
    count = max(1, most)
    for start in range(0, tiles, count):
        yield Band(start, min(start + count, tiles), plan.shares, plan.splits)


def sample_forward(x: Any, points: Any, *, deterministic: bool) -> tuple[Any, tuple]:
    """Output of `sample_points`; keeps the inputs for the backward pass."""
    y = np.empty((*x.shape[:2], points.shape[1], *points.shape[3:]), x.dtype)
    if y.size:
        grid = _sample_grid(x, points)
        call = _Call(x.shape[0], grid, x.itemsize, _bytes(x, points, y), backward=False)
        chunks, groups_of_parts, *_ = _plan(call)
        pixels, places, factors = _flat(x, points, None)
        for part in (part for parts in groups_of_parts for part in parts):
            packed = _pack(pixels, grid, chunks, part)
            items = part.images * part.tiles
            operations = 2.0 * items * part.tile * grid.taps * part.channels
            arrays = (packed, places, factors, y.reshape(-1))
            parallel.run(sample_items, items, operations, *arrays, grid, chunks, part)
    return y, (x, points)


def sample_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], *, deterministic: bool
) -> tuple[Any, Any]:
    """Gradients of `sample_points` with respect to x and points."""
    x, points = kept
    grads = [np.zeros(a.shape, a.dtype) if needed else None for a, needed in zip(kept, needs, strict=True)]
    if grad_output.size and any(needs):
        grid, wanted = _sample_grid(x, points), Wanted(*needs, weight=False)
        call = _Call(x.shape[0], grid, x.itemsize, _bytes(*kept, grad_output, *grads), backward=True)
        plan = _plan(call)
        gradient, (pixels, places, factors) = kernel_input(grad_output).reshape(-1), _flat(x, points, None)
        nothing = np.empty(0, x.dtype)
        for part in (part for parts in plan.parts for part in parts):
            inputs = (gradient, pixels, places, factors, nothing)
            _backward_part(inputs, nothing, [*grads, None, None], grid, plan, part, wanted)
    return grads[0], grads[1]
