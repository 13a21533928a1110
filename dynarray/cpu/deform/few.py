"""Calls with few channels: which they are, how they are divided, and their passes."""

from collections.abc import Iterator

import numpy as np

from ..engine import parallel
from ..engine.gemm import TILE_ROWS
from ..engine.memory import borrow, run_with_scratch
from ..engine.vectors import REGISTER_BYTES
from . import bands, planes
from .bands import BandsGradients, Bounds
from .plan import DeformCall
from .planes import PlanesInputs, PlanesPart, band_pixels, planes_scratch, weights_of
from .points import CONSTANT, DeformSizes, PointArrays, packed_rows
from .rows import QUAD

SLOTS_BYTES = 4 * 1024 * 1024  # gradients of weights of shares of the positions
FEW = 4  # channels of a group that are fewer than a vector is worth
FEW_OF_LINE = 64  # samples of a position on a line, which are more soon made than its channels are packed
COLUMNS_BYTES = 256 * 1024  # samples of a tile of positions
LEAST_SIZE, MOST_SIZE = 32, 128  # of a tile
PLANES_BYTES, PLANES_PART = (
    12 * 1024 * 1024,
    0.02,
)  # of images in their rings; and as much for their gradients


def has_few_channels(call: DeformCall) -> bool:
    """Whether a call, of which others may be parts, goes this way."""
    sizes = call.sizes
    points = sizes.channels // sizes.offset_groups
    # Backward pixels are written, too, and what fills no vector is written number by number.
    most = max(FEW, REGISTER_BYTES // call.itemsize - 1) if call.backward else FEW
    few = points <= most or sizes.group_channels <= FEW
    if sizes.image.line and not call.backward:
        few = few or points * sizes.taps <= FEW_OF_LINE
    return few and _size(call) >= LEAST_SIZE and image_bytes(call, sizes.offset_groups) <= budget(call)


def image_bytes(call: DeformCall, sets: int) -> int:
    """Of an image in its ring, or of its gradient, which is no smaller."""
    sizes = call.sizes
    channels = _gradient_channels(sizes, sets) if call.backward else sizes.channels
    return channels * sizes.image.pixels * call.itemsize


def side_by_side(channels: int, sets: int) -> int:
    """Channels that the gradient of a pixel has together."""
    return 1 if channels == sets else QUAD


def _gradient_channels(sizes: DeformSizes, sets: int) -> int:
    """Channels of the gradient of an image: of each set those side by side are filled up."""
    together = side_by_side(sizes.channels, sets)
    return sets * -(-sizes.channels // sets // together) * together


def budget(call: DeformCall) -> float:
    """Bytes of images in their rings: twice as many where there are no gradients of them."""
    return (PLANES_BYTES + PLANES_PART * call.array_bytes) * (1 if call.backward else 2)


def _size(call: DeformCall) -> int:
    """Positions of a tile, in steps of the smallest one."""
    rows = call.sizes.channels * call.sizes.taps if call.sizes.outputs else 1
    most = min(MOST_SIZE, COLUMNS_BYTES // (rows * call.itemsize))
    return min(most, -(-call.sizes.positions // LEAST_SIZE) * LEAST_SIZE) // LEAST_SIZE * LEAST_SIZE


def _few_parts(call: DeformCall) -> Iterator[PlanesPart]:
    """As many images at a time as there is room for."""
    size, sets = _size(call), call.sizes.offset_groups
    per_image = -(-call.sizes.positions // size)
    images = max(1, int(budget(call) // image_bytes(call, sets)))
    for first in range(0, call.batch, images):
        yield PlanesPart(call.sizes, size, per_image, 1, sets, first, min(images, call.batch - first))


def ring_planes(x: np.ndarray, part: PlanesPart) -> np.ndarray:
    """The images of a part in their rings."""
    planes_ = part.images * part.sizes.channels
    packed = borrow("packed", planes_ * part.sizes.image.pixels, x.dtype)
    rows = planes_ * packed_rows(part.sizes.image)
    parallel.run(planes.planes_pack_items, rows, len(packed), x, packed, part)
    return packed


def _weight_panels(weight: np.ndarray, sizes: DeformSizes, *, transposed: bool) -> np.ndarray:
    """Of each group the weights as the left matrix of a product."""
    groups, depth = sizes.channels // sizes.group_channels, sizes.group_channels * sizes.taps
    matrices = weight.reshape(groups, sizes.group_outputs, depth)
    matrices = matrices.transpose(0, 2, 1) if transposed else matrices
    _, rows, columns = matrices.shape
    padded = np.zeros((groups, -(-rows // TILE_ROWS) * TILE_ROWS, columns), weight.dtype)
    padded[:, :rows] = matrices
    return padded.reshape(groups, -1, TILE_ROWS, columns).transpose(0, 1, 3, 2).reshape(-1)


def few_forward(call: DeformCall, arrays: list, y: np.ndarray) -> None:
    """The output of `deform_conv2d` from flat x, offset, weight, mask and bias."""
    x, offset, weight, mask, bias = arrays
    sizes, target = call.sizes, y.reshape(-1)
    weights = _weight_panels(weight, sizes, transposed=False)
    for part in _few_parts(call):
        inputs = PlanesInputs(ring_planes(x, part), PointArrays(offset, mask), weights, bias)
        scratch = planes_scratch(part, x.itemsize, backward=False)
        items = part.images * part.per_image
        operations = items * part.size * sizes.channels * sizes.taps * (6 + 0.1 * sizes.group_outputs)
        args = (scratch, x.dtype, inputs, target, part)
        run_with_scratch(planes.planes_forward_items, items, operations, *args)


def divide_into_bands(
    call: DeformCall, part: PlanesPart, offset: np.ndarray, wanted: bool
) -> tuple[PlanesPart, np.ndarray, int]:
    """The part divided into bands; of each its rows and where they begin; and the elements of all.

    As many bands as there is work for, or as few as fit into memory.
    """
    splits = 1
    while part.images * splits < parallel.ITEMS and 2 * splits <= part.per_image:
        splits *= 2
    part, image = part._replace(splits=splits), part.sizes.image
    if not wanted:
        return part, np.zeros(0, np.int64), 0
    reach = np.empty((part.images * splits, 2))
    if part.sizes.coordinates == 1:
        reach[:] = -part.sizes.grid.padding[0]
    elif image.border == CONSTANT and splits > 1:
        operations = part.images * part.sizes.positions * part.sizes.taps * part.sizes.offset_groups
        args = offset, reach.reshape(-1), part
        run_with_scratch(bands.bands_reach_items, len(reach), operations, Bounds(2), offset.dtype, *args)
    else:
        reach[:] = -1, image.height
    while True:
        # In the ring, with the row below a point; none where there is none.
        low, high = np.floor(np.clip(reach, -1, image.height)).astype(np.int64).T + 1
        high = np.where(reach[:, 0] <= reach[:, 1], high + 2, low)
        pixels = np.broadcast_to(band_pixels(image, low, high), low.shape)
        sizes = pixels * _gradient_channels(part.sizes, part.sets)
        elements = int(sizes.sum())
        if part.splits == 1 or elements * call.itemsize <= budget(call):
            table = np.stack([low, high, np.cumsum(sizes) - sizes], axis=1)
            return part, table.reshape(-1), elements
        part = part._replace(splits=part.splits // 2)
        pairs = reach.reshape(-1, 2, 2)
        reach = np.stack([pairs[:, :, 0].min(1), pairs[:, :, 1].max(1)], axis=1)


def few_backward(call: DeformCall, arrays: list, grad_output: np.ndarray, grads: tuple) -> None:
    """Gradients of flat x, offset, weight and mask; all that are wanted are written wholly."""
    x, offset, weight, mask = arrays
    grad_x, grad_offset, grad_weight, grad_mask = grads
    sizes, nothing = call.sizes, np.empty(0, x.dtype)
    grad_points = PointArrays(
        *(nothing if grad is None else grad.reshape(-1) for grad in (grad_offset, grad_mask))
    )
    panels = _weight_panels(weight, sizes, transposed=True) if sizes.outputs else weight
    slot, total = 0 if grad_weight is None else weights_of(sizes, x.itemsize), 0.0
    for whole_part in _few_parts(call):
        part, table, elements = divide_into_bands(call, whole_part, offset, grad_x is not None)
        inputs = PlanesInputs(ring_planes(x, part), PointArrays(offset, mask), panels, nothing)
        image = borrow("gradients", elements, x.dtype)
        count = part.images * part.splits
        shares = min(count, max(1, SLOTS_BYTES // max(1, 8 * slot))) if sizes.outputs else count
        slots = borrow("slots", shares * slot, np.float64)
        slots[...] = 0
        together = side_by_side(sizes.channels, part.sets)
        written = BandsGradients(image, table, together, slots, grad_points, shares)
        scratch = planes_scratch(part, x.itemsize, backward=True)
        kernel = bands.bands_backward_items if sizes.outputs else bands.bands_sample_backward_items
        operations = (
            part.images * sizes.positions * sizes.channels * sizes.taps * (16 + 0.2 * sizes.group_outputs)
        )
        run_with_scratch(kernel, shares, operations, scratch, x.dtype, grad_output, inputs, written, part)
        if grad_x is not None:
            rows, target = part.images * sizes.image.height, grad_x.reshape(-1)
            parallel.run(bands.bands_unpack_items, rows, 2 * len(image), written, target, part)
        if slot:
            total = total + slots.reshape(shares, -1).sum(axis=0)
    if slot:
        groups, depth = sizes.channels // sizes.group_channels, sizes.group_channels * sizes.taps
        matrices = np.reshape(total, (groups, -(-sizes.group_outputs // TILE_ROWS) * TILE_ROWS, -1))
        grad_weight[...] = matrices[:, : sizes.group_outputs, :depth].reshape(grad_weight.shape)
