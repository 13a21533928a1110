"""`dynamic_sampling_conv2d` on the CPU as its definition reads, for results that are not finite.

The kernels take the two factors of a kernel apart, (u + v) * x = u * x + v * x. They sum x over channels
before they multiply, and over samples where all have the same kernel. Where infinities take part, the parts
may be opposite infinities, thus NaN, where the definition has an infinity, or the other way round. But what
is not finite in the definition is not finite in its parts: only such results are made again. And without
infinities there is but NaN, which parts and definition have in the same places. So this may be slow, for it
is rare: NaN alone, as of a training that has failed, does not come here. And an infinity reaches but some
outputs around it: those alone are made, of a piece of the image.
"""

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from ...reference.dynamic_sampling import sampling_backward, sampling_forward
from ..engine import parallel
from ..engine.compile import borrowing_cached_jit, kernel_input
from ..engine.vectors import in_row

KERNEL_BYTES = 4 * 1024 * 1024  # of the whole kernels of channels that are made together
FINITE_ELEMENTS = 32 * 1024  # that are looked through together
_OF_PIXELS = True, False, False, False, True  # which of the arrays go with pixels, the others with outputs


class SampleCutout(NamedTuple):
    """Rows and columns of outputs, and of the pixels that some of these read."""

    outputs: tuple[slice, slice]
    pixels: tuple[slice, slice]

    def of(self, arrays: tuple) -> tuple:
        """The piece of the five arrays, or of their gradients."""
        places = (self.pixels if of_pixels else self.outputs for of_pixels in _OF_PIXELS)
        return tuple(
            None if array is None else array[(..., *place)]
            for array, place in zip(arrays, places, strict=True)
        )


def _cut_out(wrong: tuple, arrays: tuple, params: dict[str, Any]) -> SampleCutout | None:
    """Around all that is wrong, with all that outputs read which have a part in it; None if nothing is."""
    outputs, pixels = [], []
    for axis in range(2):
        stride, count, size = params["stride"][axis], arrays[1].shape[3 + axis], arrays[0].shape[2 + axis]
        reach = params["samples"] // 2 * params["sample_stride"][axis]
        reach += arrays[2].shape[2 + axis] // 2 * params["dilation"][axis]
        low, end = count, 0
        for places, of_pixels in zip(wrong, _OF_PIXELS, strict=True):
            if places is None:
                continue
            others = tuple(k for k in range(places.ndim) if k != places.ndim - 2 + axis)
            lines = np.flatnonzero(places.any(axis=others)).tolist()
            if lines:
                first, last = lines[0], lines[-1]
                if of_pixels:
                    first, last = -((reach - first) // stride), (last + reach) // stride
                low, end = min(low, first), max(end, last + 1)
        if low >= end:
            return None
        low, end = max(0, low), min(count, end)
        # The first pixel belongs to an output, which may read others before it: that one is not used.
        first, stop = max(0, low * stride - reach) // stride, min(size, (end - 1) * stride + reach + 1)
        pixels.append(slice(first * stride, stop))
        outputs.append(slice(first, first + -(-(stop - first * stride) // stride)))
    return SampleCutout((outputs[0], outputs[1]), (pixels[0], pixels[1]))


@borrowing_cached_jit
def finite_items(start: int, stop: int, finite: np.ndarray, array: np.ndarray) -> None:
    """Items (piece of an array): whether all of its elements are finite."""
    flat, limit = in_row(array), array.dtype.type(np.inf)
    for item in range(start, stop):
        begin, others = uint64(item * FINITE_ELEMENTS), 0
        for w in range(uint64(min(FINITE_ELEMENTS, array.size - item * FINITE_ELEMENTS))):
            others += 0 if abs(flat[begin + w]) < limit else 1
        finite[item] = others == 0


def _all_finite(*arrays: Any) -> bool:
    """Large arrays are looked through by all threads: it is as much to read as their gradients to write."""
    for array in arrays:
        if array is not None and array.size:
            finite = np.empty(-(-array.size // FINITE_ELEMENTS), bool)
            parallel.run(finite_items, len(finite), float(array.size), finite, kernel_input(array))
            if not finite.all():
                return False
    return True


def _has_infinity(*arrays: Any) -> bool:
    return any(bool(np.isinf(array).any()) for array in arrays if array is not None)


def _of_image(arrays: tuple, n: int) -> tuple:
    """The five arrays, or their gradients, of one image."""
    return tuple(None if array is None else array[n : n + 1] for array in arrays)


def _of_channels(arrays: tuple, some: slice) -> tuple:
    """Those of some output channels; x has none. In outputs they lie behind the samples of a stack."""
    return arrays[0], *(None if array is None else array[:, some] for array in arrays[1:])


def _channels_together(arrays: tuple) -> Iterator[slice]:
    """As many output channels at a time as their whole kernels leave room for."""
    _, channel_kernel, spatial_kernel, *_ = arrays
    one = channel_kernel[:, :1].nbytes * prod(spatial_kernel.shape[2:4])
    together = max(1, KERNEL_BYTES // one)
    for o in range(0, channel_kernel.shape[1], together):
        yield slice(o, o + together)


def forward_again(y: np.ndarray, arrays: tuple, params: dict[str, Any]) -> None:
    """Write the output by the definition where it is not finite."""
    if _all_finite(y):
        return
    for n in range(len(y)):
        image, result = _of_image(arrays, n), y[n : n + 1]
        if _all_finite(result):
            continue
        cutout = _cut_out((None, ~np.isfinite(result), None, None, None), image, params)
        if cutout is None:
            continue
        image, result = cutout.of(image), result[(..., *cutout.outputs)]
        for some in _channels_together(image):
            inputs, own = _of_channels(image, some), result[..., some, :, :]
            wrong = ~np.isfinite(own)
            if wrong.any() and _has_infinity(own, *inputs):
                made, _ = sampling_forward(*inputs, **params)
                np.copyto(own, made, where=wrong)


def backward_again(
    grads: tuple, grad_output: np.ndarray, arrays: tuple, params: dict[str, Any], given_finite: bool = False
) -> None:
    """Write gradients by the definition where they are not finite; those that are None are not wanted.

    `given_finite` says that grad_output was seen to be finite.
    """
    # Kernels and attention have a part in the gradient of x, or meet only zeros outside, and those give NaN
    # either way. So where that is made these three will do, which are small beside the other gradients.
    enough = arrays[0], grads[0], *(() if given_finite else (grad_output,))
    if _all_finite(*(grads if grads[0] is None else enough)):
        return
    for n in range(len(grad_output)):
        results, inputs, given = _of_image(grads, n), _of_image(arrays, n), grad_output[n : n + 1]
        wrong = tuple(None if result is None else ~np.isfinite(result) for result in results)
        cutout = _cut_out(wrong, inputs, params) if _has_infinity(*results, *inputs, given) else None
        if cutout is not None:
            results, wrong, inputs = map(cutout.of, (results, wrong, inputs))
            _image_backward_again(results, wrong, given[(..., *cutout.outputs)], inputs, params)


def _image_backward_again(
    results: tuple, wrong: tuple, grad_output: np.ndarray, arrays: tuple, params: dict[str, Any]
) -> None:
    needs: Any = tuple(places is not None and bool(places.any()) for places in wrong)
    grad_x = np.zeros_like(arrays[0])
    for some in _channels_together(arrays):
        places = _of_channels(wrong, some)
        if not (needs[0] or any(need and own.any() for need, own in zip(needs[1:], places[1:], strict=True))):
            continue
        inputs = _of_channels(arrays, some)
        made = sampling_backward(grad_output[..., some, :, :], inputs, needs, **params)
        if needs[0]:
            grad_x += made[0]
        for k, result in enumerate(_of_channels(results, some)):
            if k and needs[k]:
                np.copyto(result, made[k], where=places[k])
    if needs[0]:
        np.copyto(results[0], grad_x, where=wrong[0])
