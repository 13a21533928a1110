"""`dynamic_sampling_conv2d` on the CPU as its definition reads, for results that are not finite.

The kernels take the two factors of a kernel apart, (u + v) * x = u * x + v * x. They sum x over channels
before they multiply, and over samples where all have the same kernel. Where infinities take part, the parts
may be opposite infinities, thus NaN, where the definition has an infinity, or the other way round. But what
is not finite in the definition is not finite in its parts: only such results are made again. And without
infinities there is but NaN, which parts and definition have in the same places. So this may be slow, for it
is rare: NaN alone, as of a training that has failed, does not come here.
"""

from typing import Any

import numpy as np

from ...reference.dynamic_sampling import sampling_backward, sampling_forward


def _all_finite(*arrays: Any) -> bool:
    """Image by image, which is little memory."""
    return all(bool(np.isfinite(image).all()) for array in arrays if array is not None for image in array)


def _has_infinity(*arrays: Any) -> bool:
    return any(bool(np.isinf(array).any()) for array in arrays if array is not None)


def _of_image(arrays: tuple, n: int) -> tuple:
    """The five arrays, or their gradients, of one image."""
    return tuple(None if array is None else array[n : n + 1] for array in arrays)


def _of_channel(arrays: tuple, o: int) -> tuple:
    """Those of one output channel; x has none."""
    return arrays[0], *(None if array is None else array[:, o : o + 1] for array in arrays[1:])


def _of_output(y: np.ndarray, o: int) -> np.ndarray:
    """One channel of the output or its gradient; they lie behind the samples of a stack."""
    return y[..., o : o + 1, :, :]


def forward_again(y: np.ndarray, arrays: tuple, params: dict[str, Any]) -> None:
    """Write the output by the definition where it is not finite."""
    if _all_finite(y):
        return
    for n, o in np.ndindex(*arrays[1].shape[:2]):
        inputs, result = _of_channel(_of_image(arrays, n), o), _of_output(y[n : n + 1], o)
        wrong = ~np.isfinite(result)
        if wrong.any() and _has_infinity(result, *inputs):
            with np.errstate(all="ignore"):
                made, _ = sampling_forward(*inputs, **params)
            np.copyto(result, made, where=wrong)


def backward_again(grads: tuple, grad_output: np.ndarray, arrays: tuple, params: dict[str, Any]) -> None:
    """Write gradients by the definition where they are not finite; those that are None are not wanted."""
    # Kernels and attention have a part in the gradient of x, or meet only zeros outside, and those give NaN
    # either way. So where that is made these three will do, which are small beside the other gradients.
    if _all_finite(*(grads if grads[0] is None else (grad_output, arrays[0], grads[0]))):
        return
    for n in range(len(grad_output)):
        results, inputs, given = _of_image(grads, n), _of_image(arrays, n), grad_output[n : n + 1]
        wrong = tuple(None if result is None else ~np.isfinite(result) for result in results)
        if _has_infinity(*results, *inputs, given):
            with np.errstate(all="ignore"):
                _image_backward_again(results, wrong, given, inputs, params)


def _image_backward_again(
    results: tuple, wrong: tuple, grad_output: np.ndarray, arrays: tuple, params: dict[str, Any]
) -> None:
    """Channel by channel of the output: the whole kernels of one of them are many numbers."""
    needs: Any = tuple(places is not None and bool(places.any()) for places in wrong)
    grad_x = np.zeros_like(arrays[0])
    for o in range(arrays[1].shape[1]):
        places = _of_channel(wrong, o)
        if not (needs[0] or any(need and own.any() for need, own in zip(needs[1:], places[1:], strict=True))):
            continue
        made = sampling_backward(_of_output(grad_output, o), _of_channel(arrays, o), needs, **params)
        if needs[0]:
            grad_x += made[0]
        for k, result in enumerate(_of_channel(results, o)):
            if k and needs[k]:
                np.copyto(result, made[k], where=places[k])
    if needs[0]:
        np.copyto(results[0], grad_x, where=wrong[0])
