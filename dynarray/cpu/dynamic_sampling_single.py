"""`dynamic_sampling_conv2d` on the CPU where kernels see one region: one sample, or box sums of x.

Without attention, a sum over S*S regions is one region of box sums. With X the box sums of x around each
output position, T those of its sum over channels around each tap, and r the kernel's residual,

    y[o] = As[o] * (Ap[o,centre] * (sum_c channel_kernel[o,c] * X[c] + r * T[centre])
                    + sum_t spatial_kernel[o,t] * Ap[o,t] * T[t])

at every position, where attention is that of one sample and may be missing. Taps are like so many more
channels, and either sum has one kernel: `dot_items` forward, and backward `outer_items`, which reads each
element of channel_kernel once, for its own gradient and that of X. Positions are contiguous in all arrays,
so nothing is packed but X and T.

Memory is the bound: channel_kernel is read once each way and its gradient written once. For (1, 128->24, 48,
64), k = 3, S = 3, float32, on two threads of a Zen 3, where reading these 38 MB takes 3.0 ms and copying them
into fresh memory 6.7 to 7.1 ms, `dot_items` takes 3.2 ms and `outer_items` 8.4 ms. With X, T and calls the
forward pass takes 5.3 ms, the backward pass 12.6 ms.
"""

from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from . import parallel
from .compile import cached_jit
from .planes import clear
from .scratch import borrow, run_with_memory

TILE = 512  # positions whose X stay in the cache for several outputs, in the forward pass
SLOTS = 4  # shares of the outputs in the backward pass
BAND_BYTES = 16 * 1024 * 1024  # of a band: X, T, their gradients, and what is made of the attention


class Steps(NamedTuple):
    """Where boxes lie, which are summed up for positions that are some steps apart."""

    size: tuple  # of an image
    stride: tuple
    rows: np.ndarray  # from a position on
    places: np.ndarray  # (places, 2): of the kernel on which boxes are centred, from a position on
    spans: (
        np.ndarray
    )  # (places, columns, 3): outputs of a row that read inside the image, what the first reads


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
    kernels one after the other, into pages that are fresh from the system and in its cache. Gradients that
    are not wanted are empty.
    """
    (outputs, size), (terms, plane), slots = outer.shape[1:], kernels.shape[2:], grad_x.shape[1]
    u, flat, weights = kernels.reshape(-1), x.reshape(-1), outer.reshape(-1)
    grad_flat = grad_x.reshape(-1)
    for item in range(start, stop):
        n, tile, slot = item // (tiles * slots), item // slots % tiles, item % slots
        begin, count = size * tile // tiles, size * (tile + 1) // tiles - size * tile // tiles
        for k in range(terms if len(grad_flat) else 0):
            clear(grad_flat, ((n * slots + slot) * terms + k) * size + begin, count)
        for o in range(outputs * slot // slots, outputs * (slot + 1) // slots):
            at = uint64((n * outputs + o) * size + begin)
            for k in range(terms):
                of = uint64(((n * outputs + o) * terms + k) * plane + first + begin)
                line = uint64((n * terms + k) * size + begin)
                to = uint64(((n * slots + slot) * terms + k) * size + begin)
                if len(grad_kernels) and len(grad_flat):
                    for w in range(uint64(count)):
                        grad_flat[to + w] += weights[at + w] * u[of + w]
                        grad_kernels[of + w] = weights[at + w] * flat[line + w]
                elif len(grad_kernels):
                    for w in range(uint64(count)):
                        grad_kernels[of + w] = weights[at + w] * flat[line + w]
                else:
                    for w in range(uint64(count)):
                        grad_flat[to + w] += weights[at + w] * u[of + w]


class _Band(NamedTuple):
    """Some rows of outputs of some images, with all that they see; n images, P positions."""

    images: slice
    rows: slice
    first: int  # position
    channel_kernel: np.ndarray  # (n, O, C, all positions)
    x: np.ndarray  # X, (n, C, P)
    totals: np.ndarray  # T, (n, taps, P)
    by_sample: Any  # As, (n, O, P), or None
    by_position: Any  # Ap, (n, O, taps, P), or None
    kernels: (
        np.ndarray
    )  # (n, O, taps, .): what taps weigh; with the attention, and then the residual, if given
    first_of_kernels: int  # position


def single_region(arrays: tuple, params: dict[str, Any]) -> bool:
    """Whether these kernels see a single region."""
    plain = arrays[3] is None and arrays[4] is None
    return params["samples"] == 1 or (plain and params["fuse"] == "sum")


def _residual(arrays: tuple, params: dict[str, Any]) -> Any:
    return arrays[0].dtype.type(params["kernel_residual"] / arrays[0].shape[1])


def _steps(arrays: tuple, params: dict[str, Any], places: np.ndarray) -> Steps:
    size, (sy, sx), wide = arrays[0].shape[2:], params["stride"], arrays[1].shape[4]
    samples = np.arange(params["samples"]) - (params["samples"] - 1) // 2
    rows, columns = (samples * step for step in params["sample_stride"])
    shifts = places[:, 1:] + columns
    low = np.clip(-(shifts // sx), 0, wide)
    end = np.clip((size[1] - 1 - shifts) // sx + 1, low, wide)
    return Steps(size, (sy, sx), rows, places, np.stack([low, end, low * sx + shifts], axis=-1))


def _on_pixels(arrays: tuple, params: dict[str, Any]) -> Steps:
    """Boxes around each position."""
    return _steps(arrays, params, np.zeros((1, 2), int))


def _on_taps(arrays: tuple, params: dict[str, Any]) -> Steps:
    """Boxes around each tap."""
    kernel = arrays[2].shape[2:4]
    taps = (np.argwhere(np.ones(kernel)) - np.array(kernel) // 2) * params["dilation"]
    return _steps(arrays, params, np.ascontiguousarray(taps))


def _bands(arrays: tuple) -> list[tuple[slice, slice]]:
    """Images and rows of outputs of each band."""
    x, channel_kernel, spatial_kernel, *attention = arrays
    n, outputs, _, high, wide = channel_kernel.shape
    taps = spatial_kernel.shape[2] * spatial_kernel.shape[3]
    numbers = (1 + SLOTS) * (x.shape[1] + taps) + outputs * (1 if attention[1] is None else 2 * taps)
    most = max(1, BAND_BYTES // (numbers * wide * x.itemsize))  # rows
    several = max(1, min(n, most // high))
    bands = -(-high // most)
    edges = [high * k // bands for k in range(bands + 1)]
    return [
        (slice(first, first + several), slice(*rows))
        for first in range(0, n, several)
        for rows in pairwise(edges)
    ]


def _boxes(name: str, images: np.ndarray, rows: slice, wide: int, steps: Steps) -> np.ndarray:
    """(n, places of all images, P): box sums of images (n, ., H, W)."""
    items, size = prod(images.shape[:2]) * len(steps.places), (rows.stop - rows.start) * wide
    boxes = borrow(name, items * size, images.dtype).reshape(len(images), -1, size)
    work = float(boxes.size) * 2 * len(steps.rows)
    arguments = (boxes, images, rows.start, wide, steps)
    run_with_memory(box_items, items, work, steps.size[1], images.dtype, *arguments)
    return boxes


def _prepare(arrays: tuple, params: dict[str, Any], images: slice, rows: slice) -> _Band:
    of_images: tuple[Any, ...] = tuple(None if each is None else each[images] for each in arrays)
    x, channel_kernel, spatial_kernel, by_sample, by_position = of_images
    n, outputs, kh, kw, _, wide = spatial_kernel.shape
    taps, centre = kh * kw, kh * kw // 2
    boxes = _boxes("boxes", x, rows, wide, _on_pixels(arrays, params))
    totals = _boxes("totals", x.sum(axis=1)[:, None], rows, wide, _on_taps(arrays, params))
    kernels, first = spatial_kernel.reshape(n, outputs, taps, -1), rows.start * wide
    size, residual = boxes.shape[2], params["attention_residual"]
    first_of_kernels = first
    if by_sample is not None:
        by_sample = by_sample[..., rows, :].reshape(n, outputs, size) + by_sample.dtype.type(residual)
    if by_position is not None:
        at = by_position[..., :: params["stride"][0], :: params["stride"][1]][..., rows, :]
        by_position = at.reshape(n, outputs, taps, size) + x.dtype.type(residual)
        kernels, first_of_kernels = kernels[..., first : first + size] * by_position, 0
        kernels[:, :, centre] += by_position[:, :, centre] * _residual(arrays, params)
    channel_kernel = channel_kernel.reshape(*channel_kernel.shape[:3], -1)
    return _Band(
        images, rows, first, channel_kernel, boxes, totals, by_sample, by_position, kernels, first_of_kernels
    )


def _dots(y: np.ndarray, kernels: np.ndarray, x: np.ndarray, first: int) -> None:
    """y (n, O, P) += sum over terms of kernels * x."""
    (n, outputs, size), terms = y.shape, x.shape[1]
    tiles = n * -(-size // TILE)
    chunks = max(1, min(outputs, -(-parallel.ITEMS // tiles)))
    parallel.run(dot_items, tiles * chunks, float(y.size) * terms, y, kernels, x, first, chunks)


def _region(arrays: tuple, params: dict[str, Any], band: _Band) -> tuple[np.ndarray, Any]:
    """The region of a band, (n, O, P), without the attention of samples; and sum_c channel_kernel * X."""
    (n, _, size), outputs = band.x.shape, band.channel_kernel.shape[1]
    z, centre, dots = np.zeros((n, outputs, size), band.x.dtype), band.totals.shape[1] // 2, None
    if band.by_position is None:
        z += _residual(arrays, params) * band.totals[:, centre, None]
    _dots(z, band.channel_kernel, band.x, band.first)
    if band.by_position is not None:
        dots = z.copy()
        z *= band.by_position[:, :, centre]
    _dots(z, band.kernels, band.totals, band.first_of_kernels)
    return z, dots


def single_forward(arrays: tuple, params: dict[str, Any]) -> np.ndarray:
    """The output, (N, O, Ho, Wo)."""
    u = arrays[1]
    y = np.empty((*u.shape[:2], *u.shape[3:]), u.dtype)
    for images, rows in _bands(arrays):
        band = _prepare(arrays, params, images, rows)
        z, _ = _region(arrays, params, band)
        of_band = y[images, :, rows]
        of_band[...] = (z if band.by_sample is None else z * band.by_sample).reshape(of_band.shape)
    return y


def _outers(
    name: str,
    outer: np.ndarray,
    kernels: np.ndarray,
    x: np.ndarray,
    grad_kernels: Any,
    wanted: bool,
    first: int,
) -> np.ndarray:
    """From the gradient of y in `_dots` that of kernels, if not None; returned, in slots, that of x."""
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


def _spread(grad: np.ndarray, images: np.ndarray, band: _Band, steps: Steps) -> None:
    """The adjoint of `_boxes`, added to the images."""
    wide = grad.shape[3] // (band.rows.stop - band.rows.start)
    arguments, items = (grad, images, band.rows.start, wide, steps), prod(images.shape[:2])
    work = float(grad.size) * 2 * len(steps.rows)
    run_with_memory(spread_items, items, work, wide + steps.size[1], grad.dtype, *arguments)


def single_backward(outer: np.ndarray, arrays: tuple, params: dict[str, Any], grads: tuple) -> None:
    """Gradients, from that of the output (N, O, Ho, Wo), into `grads`: zeros, or None where not wanted."""
    grad_total = None if grads[0] is None else np.zeros_like(arrays[0][:, :1])
    for images, rows in _bands(arrays):
        band = _prepare(arrays, params, images, rows)
        of_images = tuple(None if grad is None else grad[images] for grad in grads)
        total = None if grad_total is None else grad_total[images]
        gradient = outer[images, :, rows].reshape(*outer[images].shape[:2], -1)
        _backward_band(gradient, arrays, params, band, of_images, total)
    if grad_total is not None:
        grads[0][...] += grad_total


def _backward_band(
    outer: np.ndarray, arrays: tuple, params: dict[str, Any], band: _Band, grads: tuple, grad_total: Any
) -> None:
    centre, attended = band.totals.shape[1] // 2, band.by_position is not None
    weights = outer if band.by_sample is None else outer * band.by_sample
    central = weights * band.by_position[:, :, centre] if attended else weights
    weights, central = np.ascontiguousarray(weights), np.ascontiguousarray(central)
    wanted = grads[0] is not None
    grad_x = _outers("grad_boxes", central, band.channel_kernel, band.x, grads[1], wanted, band.first)
    of_kernels = np.empty_like(band.kernels) if attended else grads[2]
    grad_totals = _outers(
        "grad_totals", weights, band.kernels, band.totals, of_kernels, wanted, band.first_of_kernels
    )
    if wanted:
        if not attended:
            grad_totals[:, 0, centre] += weights.sum(axis=1) * _residual(arrays, params)
        _spread(grad_totals, grad_total, band, _on_taps(arrays, params))
        _spread(grad_x, grads[0], band, _on_pixels(arrays, params))
    if attended or band.by_sample is not None:
        _attention_gradients(outer, weights, of_kernels, arrays, params, band, grads)


def _attention_gradients(
    outer: np.ndarray,
    weights: np.ndarray,
    of_kernels: np.ndarray,
    arrays: tuple,
    params: dict[str, Any],
    band: _Band,
    grads: tuple,
) -> None:
    """Gradients of the attention, and with that of positions, from `of_kernels`, of spatial_kernel."""
    of_taps, of_samples, of_positions = grads[2:]
    shape = (*outer.shape[:2], *arrays[2].shape[2:4], band.rows.stop - band.rows.start, arrays[2].shape[5])
    if band.by_position is not None and of_taps is not None:
        of_taps[..., band.rows, :] = (of_kernels * band.by_position).reshape(shape)
    if of_samples is None and of_positions is None:
        return
    region, dots = _region(arrays, params, band)
    if of_samples is not None:
        of_samples[..., band.rows, :] = (outer * region).reshape(*shape[:2], 1, 1, *shape[4:])
    if of_positions is not None:
        centre = band.totals.shape[1] // 2
        kernels = arrays[2][band.images][..., band.rows, :].reshape(of_kernels.shape)
        grad = of_kernels * kernels
        grad[:, :, centre] += of_kernels[:, :, centre] * _residual(arrays, params) + weights * dots
        sy, sx = params["stride"]
        of_positions[..., ::sy, ::sx][..., band.rows, :] = grad.reshape(shape)
