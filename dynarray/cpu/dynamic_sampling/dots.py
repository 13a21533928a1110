"""Sums with a kernel of its own for every output position, of what that sees of an image, on the CPU.

What a position sees are some terms: pixels around it, or box sums of them. They lie in planes, in which a
term is an offset, for a band of rows of outputs at a time. With kernels (N, O, terms, positions) there is one
forward kernel, `dot_items`, for the sums over terms, and one backward, `dot_gradient_items`, which reads each
element of the kernels once, for its own gradient and that of the planes. Positions are contiguous in all
arrays, so nothing is packed but the planes. Reading the kernels and writing their gradient is the bound.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ..engine import parallel
from ..engine.compile import borrowing_jit, cached_jit
from ..engine.memory import borrow
from ..engine.pixels import clear

# Positions, forward: what they see stays in the cache for some outputs; short runs are slow to read.
DOT_TILE = 2048
DOT_SLOTS = 4  # shares of the outputs in the backward pass


class DotPlanes(NamedTuple):
    """Where terms lie in the planes (N, planes, elements) that hold what positions see."""

    terms: np.ndarray  # where each begins in those of an image
    wide: int  # positions that are kept together: a row
    # Backward positions are cut into tiles of such. Terms read so many elements beyond one, and add gradients
    # there; so each tile has as many more.
    beyond: int


class DotGrads(NamedTuple):
    """What `dot_gradient_items` makes; what is not wanted has no elements."""

    kernels: np.ndarray  # of all positions, flat
    planes: np.ndarray  # (N, slots, planes, elements)


class TermSums(NamedTuple):
    """Sums over terms of kernels times what is seen, both in a row."""

    kernels: np.ndarray
    plane: int  # in the kernels from term to term
    seen: np.ndarray
    terms: np.ndarray  # where each begins in what an image sees


@borrowing_jit
def add_terms(total: np.ndarray, to: int, sums: TermSums, at: int, here: int, count: int) -> None:
    """total[to + w] += the sum at w < count, for kernels from `at` on, of what is seen from `here` on."""
    kernel, box, terms, to, count = sums.kernels, sums.seen, len(sums.terms), uint64(to), uint64(count)
    step, places = uint64(sums.plane), sums.terms
    for k in range(0, terms, 4):
        a = uint64(at) + uint64(k) * step
        if k + 4 <= terms:
            a1, a2, a3 = a + step, a + uint64(2) * step, a + uint64(3) * step
            b, b1 = uint64(here + places[k]), uint64(here + places[k + 1])
            b2, b3 = uint64(here + places[k + 2]), uint64(here + places[k + 3])
            for w in range(count):
                total[to + w] += (kernel[a + w] * box[b + w] + kernel[a1 + w] * box[b1 + w]) + (
                    kernel[a2 + w] * box[b2 + w] + kernel[a3 + w] * box[b3 + w]
                )
        else:
            for m in range(terms - k):
                own, b = a + uint64(m) * step, uint64(here + places[k + m])
                for w in range(count):
                    total[to + w] += kernel[own + w] * box[b + w]


@cached_jit
def dot_items(
    start: int,
    stop: int,
    y: np.ndarray,
    kernels: np.ndarray,
    seen: np.ndarray,
    places: DotPlanes,
    first: int,
    chunks: int,
) -> None:
    """Items (image, tile of positions, chunk of outputs): y += sum over terms of kernels * what is seen.

    y is (N, O, positions), `seen` the planes, and kernels (N, O, terms, all positions), of which these are
    those from `first` on.
    """
    (outputs, size), (terms, plane) = y.shape[1:], kernels.shape[2:]
    sums, total = TermSums(kernels.reshape(-1), plane, seen.reshape(-1), places.terms), y.reshape(-1)
    tiles, image = -(-size // DOT_TILE), seen.shape[1] * seen.shape[2]
    for item in range(start, stop):
        n, tile, chunk = item // (tiles * chunks), item // chunks % tiles, item % chunks
        begin = tile * DOT_TILE
        count = min(DOT_TILE, size - begin)
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            to, at = (n * outputs + o) * size + begin, (n * outputs + o) * terms * plane + first + begin
            add_terms(total, to, sums, at, n * image + begin, count)


@cached_jit
def dot_gradient_items(
    start: int,
    stop: int,
    grad_output: np.ndarray,
    kernels: np.ndarray,
    seen: np.ndarray,
    grads: DotGrads,
    places: DotPlanes,
    sizes: tuple,
) -> None:
    """Items (image, tile, slot): the gradients of `dot_items` from those of y.

    `sizes` are the first position in the kernels, and the number of tiles. Each slot has a share of the
    outputs; so a thread writes gradients of kernels one after the other, into pages that are fresh from the
    system and in its cache. Two outputs share what is read of the planes, and added to their gradient.
    """
    (outputs, size), (terms, plane), slots = grad_output.shape[1:], kernels.shape[2:], grads.planes.shape[1]
    kernel, box, weights = kernels.reshape(-1), seen.reshape(-1), grad_output.reshape(-1)
    grad_kernels, grad_planes, (first, tiles), at = (
        grads.kernels,
        grads.planes.reshape(-1),
        sizes,
        places.terms,
    )
    next_kernel, next_weight = uint64(terms * plane), uint64(size)  # from output to output
    rows, image, wide = size // places.wide, seen.shape[1] * seen.shape[2], places.wide
    own_image = grads.planes.shape[2] * grads.planes.shape[3]
    for item in range(start, stop):
        n, tile, slot = item // (tiles * slots), item // slots % tiles, item % slots
        begin, count = rows * tile // tiles * wide, (rows * (tile + 1) // tiles - rows * tile // tiles) * wide
        here, to_here = n * image + begin, (n * slots + slot) * own_image + begin + tile * places.beyond
        for k in range(grads.planes.shape[2] if len(grad_planes) else 0):
            clear(grad_planes, to_here + k * grads.planes.shape[3], count + places.beyond)
        o, end = outputs * slot // slots, outputs * (slot + 1) // slots
        while o < end:
            g, together = uint64((n * outputs + o) * size + begin), 2 if o + 1 < end else 1
            for k in range(terms):
                a = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                b, to = uint64(here + at[k]), uint64(to_here + at[k])
                a1, g1 = a + next_kernel, g + next_weight
                if len(grad_kernels) and len(grad_planes) and together == 2:
                    for w in range(uint64(count)):
                        grad_planes[to + w] += (
                            weights[g + w] * kernel[a + w] + weights[g1 + w] * kernel[a1 + w]
                        )
                        grad_kernels[a + w] = weights[g + w] * box[b + w]
                        grad_kernels[a1 + w] = weights[g1 + w] * box[b + w]
                    continue
                for m in range(uint64(together)):
                    own, weight = a + m * next_kernel, g + m * next_weight
                    if len(grad_kernels):
                        for w in range(uint64(count)):
                            grad_kernels[own + w] = weights[weight + w] * box[b + w]
                    if len(grad_planes):
                        for w in range(uint64(count)):
                            grad_planes[to + w] += weights[weight + w] * kernel[own + w]
            o += together


def dots_of_terms(seen: np.ndarray) -> DotPlanes:
    """The planes (N, terms, positions) of terms that each have their own."""
    terms, size = seen.shape[1:]
    return DotPlanes(np.arange(terms) * size, 1, 0)


def add_dots(y: np.ndarray, kernels: np.ndarray, seen: np.ndarray, places: DotPlanes, first: int) -> None:
    """y (n, O, P) += sum over terms of kernels * what is seen."""
    (n, outputs, size), terms = y.shape, len(places.terms)
    tiles = n * -(-size // DOT_TILE)
    chunks = max(1, min(outputs, -(-parallel.ITEMS // tiles)))
    operations = float(y.size) * terms
    parallel.run(dot_items, tiles * chunks, operations, y, kernels, seen, places, first, chunks)


def dot_tiles(outputs: int) -> int:
    """Tiles into which `dot_gradients` cuts the positions of an image."""
    return max(1, DOT_SLOTS // min(DOT_SLOTS, outputs))


def dot_gradients(
    name: str,
    places: DotPlanes,
    grad_output: np.ndarray,
    kernels: np.ndarray,
    seen: np.ndarray,
    grad_kernels: Any,
    wanted: bool,
    first: int,
) -> np.ndarray:
    """From the gradient of y in `add_dots` that of kernels, if not None.

    Returns that of the planes, (n, slots, planes, elements), of which slots are to be added up.
    """
    (n, outputs, _), terms = grad_output.shape, len(places.terms)
    slots, tiles = min(DOT_SLOTS, outputs), dot_tiles(outputs)
    shape = (n, slots, seen.shape[1], seen.shape[2]) if wanted else (0, slots, 0, 0)
    grad_planes = borrow(name, shape, seen.dtype)
    grad_kernels = np.zeros(0, seen.dtype) if grad_kernels is None else grad_kernels.reshape(-1)
    if grad_kernels.size or grad_planes.size:
        grads = DotGrads(grad_kernels, grad_planes)
        arguments = (grad_output, kernels, seen, grads, places, (first, tiles))
        parallel.run(dot_gradient_items, n * tiles * slots, 2.0 * grad_output.size * terms, *arguments)
    return grad_planes
