"""`correlation2d` on the CPU: kernels of its own, or those of `local_filter2d`, whose filters its maps are.

The latter are for large images, of which nearly all displaced pixels exist, and pass along long rows.
"""

from typing import Any

import numpy as np

from .correlation_few import few_maps, few_maps_apply
from .correlation_images import image_gradient, images_apply
from .correlation_maps import correlation_maps, maps_apply
from .forms import local_filter2d_backward, local_filter2d_forward
from .items import FilterWindow

_PLAIN: dict[str, Any] = {"combine": "mul", "upsample": 1}


def correlation2d_forward(
    x1: Any, x2: Any, *, displacements: tuple[int, int], **window: Any
) -> tuple[Any, tuple]:
    """Output of `correlation2d`; keeps the inputs for the backward pass."""
    shape = (len(x1), 1, *displacements, *x1.shape[2:])
    own = FilterWindow(**window, upsample=1, add=None)
    if x1.size and few_maps_apply(x1.shape):
        return few_maps(x1, x2, displacements, own), (x1, x2)
    if x1.size and maps_apply(x1.shape, x1.itemsize):
        return correlation_maps(x1, x2, displacements, own), (x1, x2)
    filters = np.broadcast_to(x1.dtype.type(0), shape)  # of no size: only their gradient is asked for
    maps = local_filter2d_backward(x1, (x2, filters, None), (False, True, False), **window, **_PLAIN)[1]
    return _mean(maps, x1), (x1, x2)


def correlation2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], *, displacements: tuple[int, int], **window: Any
) -> tuple[Any, Any]:
    """Gradients of `correlation2d` with respect to x1 and x2."""
    x1, x2 = kept
    own = FilterWindow(**window, upsample=1, add=None)
    if x1.size and images_apply(x1.shape, displacements, x1.itemsize, own):
        grad_x1 = image_gradient(grad_output, x2, displacements, own, back=False) if needs[0] else None
        grad_x2 = image_gradient(grad_output, x1, displacements, own, back=True) if needs[1] else None
        return grad_x1, grad_x2
    grad_x1 = grad_x2 = None
    if needs[0]:
        grad_x1 = _mean(local_filter2d_forward(x2, grad_output, None, **window, **_PLAIN)[0], x1)
    if needs[1]:
        filtered = (x2, grad_output, None)
        grads = local_filter2d_backward(x1, filtered, (True, False, False), **window, **_PLAIN)
        grad_x2 = _mean(grads[0], x1)
    return grad_x1, grad_x2


def _mean(sums: Any, x1: Any) -> Any:
    """Sums over channels to means, in place."""
    with np.errstate(all="ignore"):
        sums /= max(1, x1.shape[1])
    return sums
