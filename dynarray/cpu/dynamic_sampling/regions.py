"""What kernels with a position of their own everywhere see of an image, and their sums with it, on the CPU.

X, (N, terms, positions), is what each output position sees: pixels, or box sums of them, at some places
around it. It is made for a band of rows of outputs at a time. With kernels (N, O, terms, positions) there is
one forward kernel, `dot_items`, for the sums over terms, and one backward, `outer_items`, which reads each
element of the kernels once, for its own gradient and that of X. Positions are contiguous in all arrays, so
nothing is packed but X.

Reading the kernels and writing their gradient is the bound of all that is done with these.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import cached_jit
from ..engine.memory import borrow, run_with_memory
from ..engine.pixels import clear

TILE = 2048  # positions, forward: their X stay in the cache for several outputs; short runs are slow to read
SLOTS = 4  # shares of the outputs in the backward pass


class Steps(NamedTuple):
    """Where boxes lie, which are summed up for positions that are some steps apart."""

    size: tuple  # of an image
    stride: tuple
    rows: np.ndarray  # from a position on
    places: np.ndarray  # (places, 2): of the kernel on which boxes are centred, from a position on
    spans: np.ndarray  # (places, columns, 3): outputs that read inside, from and to, and what the first reads


@cached_jit
def box_items(
    start: int, stop: int, row: np.ndarray, target: np.ndarray, images: np.ndarray, first: int, wide: int,
    steps: Steps,
) -> None:  # fmt: skip
    """Items (image, place): box sums of `images` around places of each position, from row `first` on.

    `target` is (N, images * places, positions).
    """
    (height, width), flat, places, spans = steps.size, images.reshape(-1), steps.places, steps.spans
    to, size, step = target.reshape(-1), target.shape[2], uint64(steps.stride[1])
    for item in range(start, stop):
        image, place = item // len(places), item % len(places)
        clear(to, item * size, size)
        for r in range(size // wide):
            clear(row, 0, width)
            for offset in steps.rows:
                y = (first + r) * steps.stride[0] + places[place, 0] + offset
                if 0 <= y < height:
                    of = uint64((image * height + y) * width)
                    for w in range(uint64(width)):
                        row[w] += flat[of + w]
            for j in range(spans.shape[1]):
                low, end, column = spans[place, j, 0], spans[place, j, 1], uint64(spans[place, j, 2])
                at = uint64(item * size + r * wide + low)
                for w in range(uint64(end - low)):
                    to[at + w] += row[column + w * step]


@cached_jit
def spread_items(
    start: int, stop: int, rows: np.ndarray, grad: np.ndarray, images: np.ndarray, first: int, wide: int,
    steps: Steps,
) -> None:  # fmt: skip
    """Items (image): the adjoint of `box_items`, added to `images` (N, ., H, W).

    The gradient of boxes is the sum over slots of `grad`, (N, slots, images * places, positions).
    """
    (height, width), flat, places, spans = steps.size, images.reshape(-1), steps.places, steps.spans
    gradient, slots, terms, size = grad.reshape(-1), *grad.shape[1:]
    sums, row, step = rows[:wide], rows[wide:], uint64(steps.stride[1])
    for item in range(start * len(places), stop * len(places)):
        image, place, n, term = item // len(places), item % len(places), item // terms, item % terms
        for r in range(size // wide):
            clear(sums, 0, wide)
            for slot in range(slots):
                at = uint64(((n * slots + slot) * terms + term) * size + r * wide)
                for w in range(uint64(wide)):
                    sums[w] += gradient[at + w]
            clear(row, 0, width)
            for j in range(spans.shape[1]):
                low, end, column = uint64(spans[place, j, 0]), spans[place, j, 1], uint64(spans[place, j, 2])
                for w in range(uint64(end) - low):
                    row[column + w * step] += sums[low + w]
            for offset in steps.rows:
                y = (first + r) * steps.stride[0] + places[place, 0] + offset
                if 0 <= y < height:
                    to = uint64((image * height + y) * width)
                    for w in range(uint64(width)):
                        flat[to + w] += row[w]


@cached_jit
def dot_items(
    start: int, stop: int, y: np.ndarray, kernels: np.ndarray, x: np.ndarray, first: int, chunks: int
) -> None:
    """Items (image, tile of positions, chunk of outputs): y += sum over terms of kernels * x.

    y is (N, O, positions), x (N, terms, positions), and kernels (N, O, terms, all positions), of which these
    are those from `first` on.
    """
    (outputs, size), (terms, plane) = y.shape[1:], kernels.shape[2:]
    tiles, u, flat, to = -(-size // TILE), kernels.reshape(-1), x.reshape(-1), y.reshape(-1)
    i, j = uint64(plane), uint64(size)
    for item in range(start, stop):
        n, tile, chunk = item // (tiles * chunks), item // chunks % tiles, item % chunks
        begin = tile * TILE
        count = uint64(min(TILE, size - begin))
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            at = uint64((n * outputs + o) * size + begin)
            for k in range(0, terms, 4):
                a = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                b = uint64((n * terms + k) * size + begin)
                if k + 4 <= terms:
                    for w in range(count):
                        to[at + w] += (u[a + w] * flat[b + w] + u[a + i + w] * flat[b + j + w]) + (
                            u[a + i + i + w] * flat[b + j + j + w]
                            + u[a + i + i + i + w] * flat[b + j + j + j + w]
                        )
                else:
                    for of in range(uint64(terms - k)):
                        for w in range(count):
                            to[at + w] += u[a + of * i + w] * flat[b + of * j + w]


@cached_jit
def outer_items(
    start: int, stop: int, outer: np.ndarray, kernels: np.ndarray, x: np.ndarray, grad_kernels: np.ndarray,
    grad_x: np.ndarray, first: int, tiles: int,
) -> None:  # fmt: skip
    """Items (image, tile of positions, slot): the gradients of `dot_items` from those of y.

    Each slot, of `grad_x` (N, slots, terms, P), has a share of the outputs; so a thread writes gradients of
    kernels one after the other, into pages that are fresh from the system and in its cache. Two outputs
    share what is read of x, and added to its gradient. Gradients that are not wanted are empty.
    """
    (outputs, size), (terms, plane), slots = outer.shape[1:], kernels.shape[2:], grad_x.shape[1]
    u, flat, weights = kernels.reshape(-1), x.reshape(-1), outer.reshape(-1)
    grad_flat = grad_x.reshape(-1)
    for item in range(start, stop):
        n, tile, slot = item // (tiles * slots), item // slots % tiles, item % slots
        begin, count = size * tile // tiles, size * (tile + 1) // tiles - size * tile // tiles
        for k in range(terms if len(grad_flat) else 0):
            clear(grad_flat, ((n * slots + slot) * terms + k) * size + begin, count)
        o, end = outputs * slot // slots, outputs * (slot + 1) // slots
        next_u, next_w = uint64(terms * plane), uint64(size)
        while o < end:
            at, several = uint64((n * outputs + o) * size + begin), 2 if o + 1 < end else 1
            for k in range(terms):
                of = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                line = uint64((n * terms + k) * size + begin)
                to = uint64(((n * slots + slot) * terms + k) * size + begin)
                if len(grad_kernels) and len(grad_flat) and several == 2:
                    for w in range(uint64(count)):
                        grad_flat[to + w] += (
                            weights[at + w] * u[of + w] + weights[at + next_w + w] * u[of + next_u + w]
                        )
                        grad_kernels[of + w] = weights[at + w] * flat[line + w]
                        grad_kernels[of + next_u + w] = weights[at + next_w + w] * flat[line + w]
                    continue
                for m in range(uint64(several)):
                    if len(grad_kernels):
                        for w in range(uint64(count)):
                            grad_kernels[of + m * next_u + w] = weights[at + m * next_w + w] * flat[line + w]
                    if len(grad_flat):
                        for w in range(uint64(count)):
                            grad_flat[to + w] += weights[at + m * next_w + w] * u[of + m * next_u + w]
            o += several


def steps_of(
    size: tuple[int, int],
    stride: tuple[int, int],
    wide: int,
    places: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> Steps:
    """Boxes of these offsets around places (places, 2) of each of `wide` outputs in a row."""
    shifts = places[:, 1:] + columns
    low = np.clip(-(shifts // stride[1]), 0, wide)
    end = np.clip((size[1] - 1 - shifts) // stride[1] + 1, low, wide)
    spans = np.stack([low, end, low * stride[1] + shifts], axis=-1)
    return Steps(size, stride, rows, places, spans)


def make_boxes(name: str, images: np.ndarray, rows: slice, wide: int, steps: Steps) -> np.ndarray:
    """(n, places of all images, P): box sums of images (n, ., H, W)."""
    items, size = prod(images.shape[:2]) * len(steps.places), (rows.stop - rows.start) * wide
    boxes = borrow(name, items * size, images.dtype).reshape(len(images), -1, size)
    work = float(boxes.size) * 2 * len(steps.rows)
    arguments = (boxes, images, rows.start, wide, steps)
    run_with_memory(box_items, items, work, steps.size[1], images.dtype, *arguments)
    return boxes


def spread(grad: np.ndarray, images: np.ndarray, rows: slice, steps: Steps) -> None:
    """The adjoint of `make_boxes`, added to the images."""
    wide = grad.shape[3] // (rows.stop - rows.start)
    arguments, items = (grad, images, rows.start, wide, steps), prod(images.shape[:2])
    work = float(grad.size) * 2 * len(steps.rows)
    run_with_memory(spread_items, items, work, wide + steps.size[1], grad.dtype, *arguments)


def add_dots(y: np.ndarray, kernels: np.ndarray, x: np.ndarray, first: int) -> None:
    """y (n, O, P) += sum over terms of kernels * x."""
    (n, outputs, size), terms = y.shape, x.shape[1]
    tiles = n * -(-size // TILE)
    chunks = max(1, min(outputs, -(-parallel.ITEMS // tiles)))
    parallel.run(dot_items, tiles * chunks, float(y.size) * terms, y, kernels, x, first, chunks)


def outers(
    name: str,
    outer: np.ndarray,
    kernels: np.ndarray,
    x: np.ndarray,
    grad_kernels: Any,
    wanted: bool,
    first: int,
) -> np.ndarray:
    """From the gradient of y in `add_dots` that of kernels, if not None; returned, in slots, that of x."""
    (n, outputs, size), terms = outer.shape, x.shape[1]
    slots = min(SLOTS, outputs)
    shape = (n, slots, terms, size) if wanted else (0, slots, 0, 0)
    grad_x = borrow(name, prod(shape), x.dtype).reshape(shape)
    grad_kernels = np.zeros(0, x.dtype) if grad_kernels is None else grad_kernels.reshape(-1)
    if grad_kernels.size or grad_x.size:
        tiles = max(1, SLOTS // (n * slots))
        arguments = (outer, kernels, x, grad_kernels, grad_x, first, tiles)
        parallel.run(outer_items, n * tiles * slots, 2.0 * outer.size * terms, *arguments)
    return grad_x
