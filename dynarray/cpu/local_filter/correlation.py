"""`correlation2d` on the CPU: its maps are filters of `local_filter2d`, whose kernels make them."""

from typing import Any

import numpy as np

from .forms import local_filter2d_backward, local_filter2d_forward

_PLAIN: dict[str, Any] = {"combine": "mul", "upsample": 1}


def correlation2d_forward(
    x1: Any, x2: Any, *, displacements: tuple[int, int], **window: Any
) -> tuple[Any, tuple]:
    """Output of `correlation2d`; keeps the inputs for the backward pass."""
    shape = (len(x1), 1, *displacements, *x1.shape[2:])
    filters = np.broadcast_to(x1.dtype.type(0), shape)  # of no size: only their gradient is asked for
    maps = local_filter2d_backward(x1, (x2, filters, None), (False, True, False), **window, **_PLAIN)[1]
    return _mean(maps, x1), (x1, x2)


def correlation2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], *, displacements: tuple[int, int], **window: Any
) -> tuple[Any, Any]:
    """Gradients of `correlation2d` with respect to x1 and x2."""
    x1, x2 = kept
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
