"""Few outputs: channels are mixed first, by the weights of each tap, and the mixtures are sampled.

Sampling is linear in the image: whether channels are sampled and then multiplied by weights, or multiplied
by the weights of a tap and then sampled there, is the same sum in another order. A point costs as many reads
as it has channels, four each. Of an image of hundreds of channels that gives a few outputs, mixtures are few:
for each tap as many as there are outputs. They come from a convolution by single pixels, and so do the
gradients of x and the weights, from the gradient of the mixtures; what lies between is done as with few
channels, but that every tap reads channels of its own.

Infinity and NaN tell the order of sums: times zero, or of both signs, they are NaN, wherever they are. So a
call where a weight or a result is not finite is not answered here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..engine import convolution, parallel
from ..engine.memory import KEPT_BYTES, borrow, run_with_scratch
from . import bands, planes
from .bands import BandsGradients
from .few import (
    LEAST_SIZE,
    MOST_SIZE,
    divide_into_bands,
    image_bytes,
    ring_planes,
    side_by_side,
)
from .plan import DeformCall
from .planes import PlanesInputs, PlanesPart, mixed_scratch
from .points import DeformSizes, PointArrays

LEAST_CHANNELS = 4  # of an image, for each that a mixture has
MIXTURE_PART = 0.01  # of the size of all arrays, beyond what memory is kept, that a mixture may have


class Mixing(NamedTuple):
    """The convolution that mixes the channels of each offset group, for one tap after the other."""

    groups: int  # of the channels of a weight
    offset_groups: int
    taps: int
    outputs: int  # of a group

    @property
    def steps(self) -> convolution.Steps:
        """Of a convolution by single pixels, with as many groups as points have."""
        return convolution.Steps((1, 1), (0, 0), (1, 1), self.offset_groups)

    @property
    def channels(self) -> int:
        """Of a mixture."""
        return self.offset_groups * self.taps * self.outputs

    @property
    def sets(self) -> int:
        """Of the channels of a mixture: one for each tap of an offset group."""
        return self.offset_groups * self.taps

    def pixel_weights(self, weight: np.ndarray) -> np.ndarray:
        """From the weights (O, C/G, kh, kw) those of the convolution."""
        split = self.groups, self.outputs, self.offset_groups // self.groups, -1, self.taps
        return weight.reshape(split).transpose(0, 2, 4, 1, 3).reshape(self.channels, -1, 1, 1)

    def weights(self, pixel_weights: np.ndarray, shape: tuple) -> np.ndarray:
        """The other way round."""
        split = self.groups, self.offset_groups // self.groups, self.taps, self.outputs, -1
        return pixel_weights.reshape(split).transpose(0, 3, 1, 4, 2).reshape(shape)


def has_few_outputs(call: DeformCall) -> bool:
    """Whether a call, of which others may be parts, goes this way."""
    sizes = call.sizes
    groups = sizes.channels // sizes.group_channels
    if not sizes.outputs or sizes.offset_groups % groups:
        return False
    few = LEAST_CHANNELS * sizes.offset_groups * sizes.group_outputs <= sizes.channels
    return few and _taps_at_once(call) >= (sizes.taps if call.backward else 1)


def _taps_at_once(call: DeformCall) -> int:
    """Taps whose mixtures there is room for, in equal parts of all; none: 0."""
    mixing, taps = _mixing_of(call.sizes), call.sizes.taps
    of_all = image_bytes(_mixed_call(call, mixing), mixing.sets)
    most = int((KEPT_BYTES + MIXTURE_PART * call.array_bytes) * taps // of_all)
    return -(-taps // -(-taps // most)) if most else 0


def _mixing_of(sizes: DeformSizes) -> Mixing:
    """What mixes the channels of a call."""
    groups = sizes.channels // sizes.group_channels
    return Mixing(groups, sizes.offset_groups, sizes.taps, sizes.group_outputs)


def _mixed_call(call: DeformCall, mixing: Mixing) -> DeformCall:
    """The call on mixtures."""
    return call._replace(sizes=call.sizes._replace(channels=mixing.channels))


def _mixed_parts(call: DeformCall, sets: int, first_tap: int) -> Iterator[PlanesPart]:
    """As many mixtures at a time as fit into memory that is kept, in which they are twice: also in rings."""
    sizes = call.sizes
    size = min(MOST_SIZE, -(-sizes.positions // LEAST_SIZE) * LEAST_SIZE)
    images = max(1, KEPT_BYTES // image_bytes(call, sets))
    for first in range(0, call.batch, images):
        number = min(images, call.batch - first)
        yield PlanesPart(sizes, size, -(-sizes.positions // size), 1, sets, first, number, first_tap)


def few_outputs_forward(
    call: DeformCall, whole: DeformCall, x: np.ndarray, arrays: list, y: np.ndarray
) -> bool:
    """The output of `deform_conv2d` from x and flat offset, weight, mask and bias, if all is finite.

    Taps are added up as many at once as the whole call has room for, of which this one is a part.
    """
    offset, weight, mask, bias = arrays
    if not np.isfinite(weight).all():
        return False
    target, taps, at_once = y.reshape(-1), call.sizes.taps, _taps_at_once(whole)
    for tap in range(0, taps, at_once):
        mixing = _mixing_of(call.sizes)._replace(taps=min(at_once, taps - tap))
        pixel_weights = mixing.pixel_weights(weight.reshape(-1, taps)[:, tap : tap + at_once])
        for part in _mixed_parts(_mixed_call(call, mixing), mixing.sets, tap):
            packed = _packed(_mixture(x, pixel_weights, part, mixing), part)
            inputs = PlanesInputs(packed, PointArrays(offset, mask), weight, bias)
            items = part.images * part.per_image
            operations = 6.0 * items * part.size * mixing.channels
            args = (mixed_scratch(part), x.dtype, inputs, target, part)
            run_with_scratch(planes.planes_mixed_items, items, operations, *args)
            del packed, inputs, args  # what is too large to be kept is given back before there is another
    return bool(np.isfinite(y).all())


def _mixture(x: np.ndarray, pixel_weights: np.ndarray, part: PlanesPart, mixing: Mixing) -> np.ndarray:
    """Of the images of a part."""
    shape = part.images, mixing.channels, *x.shape[2:]
    images = x[part.first_image : part.first_image + part.images]
    target = borrow("mixture", shape, x.dtype)
    return convolution.correlate(images, pixel_weights, shape[2:], mixing.steps, target)


def _packed(mixture: np.ndarray, part: PlanesPart) -> np.ndarray:
    """The same in their rings."""
    return ring_planes(mixture.reshape(-1), part._replace(first_image=0))


def few_outputs_backward(
    call: DeformCall, x: np.ndarray, arrays: list, grad_output: np.ndarray, grads: tuple
) -> bool:
    """Gradients of x and flat offset, weight and mask, if all is finite; those wanted are written wholly."""
    offset, weight, mask = arrays
    grad_x, grad_offset, grad_weight, grad_mask = grads
    if not np.isfinite(weight).all():
        return False
    mixing, nothing = _mixing_of(call.sizes), np.empty(0, x.dtype)
    mixed = _mixed_call(call, mixing)
    pixel_weights = mixing.pixel_weights(weight)
    total = np.zeros(pixel_weights.shape)
    grad_points = PointArrays(
        *(nothing if grad is None else grad.reshape(-1) for grad in (grad_offset, grad_mask))
    )
    wanted = grad_x is not None or grad_weight is not None
    for whole_part in _mixed_parts(mixed, mixing.sets, 0):
        part, table, elements = divide_into_bands(mixed, whole_part, offset, wanted)
        together = side_by_side(mixed.sizes.channels, part.sets)
        mixture = _mixture(x, pixel_weights, part, mixing)
        inputs = PlanesInputs(_packed(mixture, part), PointArrays(offset, mask), weight, nothing)
        count = part.images * part.splits
        written = BandsGradients(
            borrow("gradients", elements, x.dtype), table, together, np.empty(0), grad_points, count
        )
        operations = 24.0 * part.images * mixed.sizes.positions * mixed.sizes.channels
        args = (mixed_scratch(part), x.dtype, grad_output, inputs, written, part)
        run_with_scratch(bands.bands_sample_backward_items, count, operations, *args)
        if wanted:
            part = part._replace(first_image=0)
            rows, flat = part.images * mixed.sizes.image.height, mixture.reshape(-1)
            parallel.run(bands.bands_unpack_items, rows, 2 * elements, written, flat, part)
            if not np.isfinite(mixture).all():
                return False
            images = slice(whole_part.first_image, whole_part.first_image + part.images)
            own = x[images]
            if grad_x is not None:
                target = grad_x[images]
                convolution.correlate_input(mixture, pixel_weights, own.shape, mixing.steps, target)
            if grad_weight is not None:
                total += convolution.correlate_weight(mixture, own, pixel_weights.shape, mixing.steps)
        del mixture, inputs, written, args
    if grad_weight is not None:
        grad_weight[...] = mixing.weights(total, grad_weight.shape)
    small = (grad_offset, grad_weight, grad_mask)
    return all(grad is None or bool(np.isfinite(grad).all()) for grad in small)
