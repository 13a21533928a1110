"""Sums with a kernel of its own for every output position, of what that sees of an image, on the CPU.

What a position sees are some terms: pixels around it, or box sums of them. They lie in planes, in which a
term is an offset, for a band of rows of outputs at a time. With kernels (N, O, terms, positions) there is one
forward kernel, `dot_items`, for the sums over terms, and one backward, `dot_gradient_items`, which reads each
element of the kernels once, for its own gradient and that of the planes. Positions are contiguous in all
arrays, so nothing is packed but the planes, and not even these where they are the images themselves.
Reading the kernels and writing their gradient is the bound.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import FALSE, ZERO, borrowing_cached_jit
from ..engine.memory import borrow
from ..engine.pixels import clear, copy
from ..engine.runs import TERMS_TOGETHER, RunGradients, RunRows, add_gradients, sum_terms
from ..engine.vectors import in_row

# Positions, forward: what they see stays in the cache for some outputs, and their sums until all terms are
# added; short runs are slow to read. Of so few terms that they are added at once, sums need not stay.
DOT_TILE, _LONG_TILE = 2048, 16384
DOT_SLOTS = 4  # shares of the outputs in the backward pass, at most
# Tiles of images that are planes: what positions see, and its gradient, is to stay in the cache for all
# outputs, and a run of kernels to be worth going there.
_TILE_TERMS, _LEAST_TILE, _MOST_TILE = 64 * 1024, 256, 8192


class DotPlanes(NamedTuple):
    """Where terms lie in the planes (N, planes, elements) that hold what positions see."""

    terms: np.ndarray  # where each begins in those of an image
    wide: int  # positions that are kept together: a row
    # Backward positions are cut into tiles of such. Terms read so many elements beyond one, and add gradients
    # there; so each tile has as many more.
    beyond: int
    first: int  # elements of a plane before those that the first position sees


class DotGrads(NamedTuple):
    """What `dot_gradient_items` makes; what is not wanted has no elements."""

    kernels: np.ndarray  # of all positions, flat
    planes: np.ndarray  # (N, slots, planes, elements)
    before: np.ndarray  # (N, elements): what is added to all planes, where they have a single slot


class DotShares(NamedTuple):
    """How the backward pass is divided."""

    slots: int  # shares of the outputs
    tiles: int  # of the positions


@borrowing_cached_jit
def dot_items(
    start: int,
    stop: int,
    y: np.ndarray,
    kernels: np.ndarray,
    seen: np.ndarray,
    places: DotPlanes,
    sizes: tuple,
) -> None:
    """Items (image, tile of positions, chunk of outputs): y = sum over terms of kernels * what is seen.

    y is (N, O, positions), `seen` the planes, and kernels (N, O, terms, all positions). `sizes` are the first
    position in the kernels, the positions of a tile, and the number of chunks.
    """
    (outputs, size), (terms, plane), image = y.shape[1:], kernels.shape[2:], seen.shape[1] * seen.shape[2]
    first, positions, chunks = sizes
    tiles, kernel, box, total = -(-size // positions), in_row(kernels), in_row(seen), in_row(y)
    for item in range(start, stop):
        n, tile, chunk = item // (tiles * chunks), item // chunks % tiles, item % chunks
        begin = tile * positions
        for o in range(outputs * chunk // chunks, outputs * (chunk + 1) // chunks):
            number = n * outputs + o
            own = RunRows(kernel, number * terms * plane + first + begin, plane)
            target, pixels = (
                RunRows(total, number * size + begin, ZERO),
                RunRows(box, n * image + places.first + begin, places.terms),
            )
            sum_terms(target, own, pixels, terms, min(positions, size - begin), FALSE)


@borrowing_cached_jit
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
    kernel, box, weights, (first, tiles) = in_row(kernels), in_row(seen), in_row(grad_output), sizes
    grad_planes, at, wide, before = in_row(grads.planes), places.terms, places.wide, in_row(grads.before)
    rows, image, own_plane = size // wide, seen.shape[1] * seen.shape[2], grads.planes.shape[3]
    own_image, wanted = grads.planes.shape[2] * own_plane, (grads.kernels.size > 0, grad_planes.size > 0)
    for item in range(start, stop):
        n, tile, slot = item // (tiles * slots), item // slots % tiles, item % slots
        begin, count = rows * tile // tiles * wide, (rows * (tile + 1) // tiles - rows * tile // tiles) * wide
        here = n * image + places.first + begin
        to_here = (n * slots + slot) * own_image + places.first + begin + tile * places.beyond
        for k in range(grads.planes.shape[2] if wanted[1] else 0):
            if grads.before.size:
                copy(
                    grad_planes, to_here + k * own_plane, before, n * own_plane + places.first + begin, count
                )
            else:
                clear(grad_planes, to_here + k * own_plane, count + places.beyond)
        end = outputs * (slot + 1) // slots
        for o in range(outputs * slot // slots, end, 2):
            g, a = (n * outputs + o) * size + begin, (n * outputs + o) * terms * plane + first + begin
            to_kernels = RunRows(grads.kernels, a, terms * plane)
            own = RunGradients(to_kernels, RunRows(grad_planes, to_here, at), wanted[0], wanted[1])
            given, pixels = (RunRows(weights, g, size), RunRows(kernel, a, plane)), RunRows(box, here, at)
            add_gradients(own, given[0], given[1], pixels, min(2, end - o), (terms, count))


def dots_of_terms(seen: np.ndarray) -> DotPlanes:
    """The planes (N, terms, positions) of terms that each have their own."""
    terms, size = seen.shape[1:]
    return _places_of_terms(terms, size, 0)


@lru_cache(maxsize=256)
def _places_of_terms(terms: int, size: int, first: int) -> DotPlanes:
    return DotPlanes(np.arange(terms) * size, 1, 0, first)


def dots_of_images(images: np.ndarray, first: int) -> DotPlanes:
    """The images (N, terms, pixels) as planes, of which positions see one pixel, from the first one on."""
    return _places_of_terms(images.shape[1], images.shape[2], first)


def dot_positions(terms: int) -> int:
    """Positions of a tile, forward, at most."""
    return DOT_TILE if terms > TERMS_TOGETHER else _LONG_TILE


def make_dots(y: np.ndarray, kernels: np.ndarray, seen: np.ndarray, places: DotPlanes, first: int) -> None:
    """y (n, O, P) = sum over terms of kernels * what is seen."""
    (n, outputs, size), terms = y.shape, len(places.terms)
    positions = dot_positions(terms)
    tiles = n * -(-size // positions)
    chunks = max(1, min(outputs, -(-parallel.ITEMS // tiles)))
    operations, sizes = parallel.PER_NUMBER * y.size * terms, (first, positions, chunks)
    parallel.run(dot_items, tiles * chunks, operations, y, kernels, seen, places, sizes)


def dot_shares(outputs: int, terms: int, positions: int) -> DotShares:
    """How to divide the gradients of an image's sums: not at all where that is work for one thread."""
    if 2.0 * outputs * terms * positions < parallel.SMALL:
        return DotShares(1, 1)
    slots = min(DOT_SLOTS, outputs)
    return DotShares(slots, max(1, DOT_SLOTS // slots))


def dot_tiles(images: int, outputs: int, terms: int, positions: int) -> int | None:
    """Tiles that share out the gradients of dots of images by themselves; None if they are too few."""
    least = 1 if 2.0 * images * outputs * terms * positions < parallel.SMALL else -(-DOT_SLOTS // images)
    size = min(_MOST_TILE, max(_LEAST_TILE, _TILE_TERMS // terms))
    tiles = max(least, positions // size)
    return tiles if tiles == 1 or positions >= tiles * _LEAST_TILE else None


def dot_gradients(name: str, places: DotPlanes, shares: DotShares, first: int, given: tuple) -> np.ndarray:
    """From the gradient of y in `make_dots` that of kernels, if not None.

    What is `given` are the gradient of y, kernels, planes, the gradient of kernels, and whether that of the
    planes is wanted. Returns that, (n, slots, planes, elements), of which slots are to be added up.
    """
    *_, seen, _, wanted = given
    shape = (len(seen), shares.slots, *seen.shape[1:]) if wanted else (0, shares.slots, 0, 0)
    grad_planes = borrow(name, shape, seen.dtype)
    before = np.empty((0, 0), seen.dtype)
    _run_gradients(places, shares, first, given[:4], (grad_planes, before))
    return grad_planes


def dot_gradients_of_images(places: DotPlanes, tiles: int, first: int, given: tuple, targets: tuple) -> None:
    """The same where planes are images, cut into `tiles`.

    What is `given` are the first four of that; the `targets` are the gradient of the images, or None, and
    what is added to those of all channels, (n, pixels), or None.
    """
    images = given[2]
    grad_images, before = targets
    if grad_images is None:
        grad_images = np.empty((0, 1, 0, 0), images.dtype)
    if before is None:
        before = np.empty((0, 0), images.dtype)
    _run_gradients(
        places, DotShares(1, tiles), first, given, (grad_images.reshape(-1, 1, *images.shape[1:]), before)
    )


def _run_gradients(places: DotPlanes, shares: DotShares, first: int, given: tuple, targets: tuple) -> None:
    grad_output, kernels, seen, grad_kernels = given
    grad_kernels = np.empty(0, seen.dtype) if grad_kernels is None else grad_kernels.reshape(-1)
    grads, sizes = DotGrads(grad_kernels, *targets), (first, shares.tiles)
    if grad_kernels.size or grads.planes.size:
        items = len(seen) * shares.slots * shares.tiles
        operations = 2.0 * parallel.PER_NUMBER * grad_output.size * len(places.terms)
        arguments = (grad_output, kernels, seen, grads, places, sizes)
        parallel.run(dot_gradient_items, items, operations, *arguments)
