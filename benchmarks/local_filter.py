"""`local_filter2d` and its faces: what is measured, and how much arithmetic it takes."""

from dataclasses import replace
from math import prod

import numpy as np

from dynarray._geometry import input_positions
from dynarray._operator import Checked

from .case import Case

_PEERS = "benchmarks.local_filter_torch"

# Operations per channel and per (output pixel, tap) pair inside the image: (forward, backward). The forward
# pass combines the two filters (1), multiplies and adds (2). The backward pass with "mul": s = gy*w and
# t = gy*x (2), then gx += s*cw, gw += t*cw, gcw += s*x (6). With "add": w + cw (1), gx += (w + cw)*gy (2),
# t (1), gw += t, gcw += t (2). Without channel weights: gx += gy*w, gw += gy*x (4).
_OPERATIONS = {None: (2, 4), "mul": (3, 8), "add": (3, 6)}


def flops(checked: Checked) -> tuple[int, int]:
    """Operations of the forward and the backward pass of any face."""
    (x, weight, channel_weight), params = checked.arrays, checked.params
    pairs = prod(
        _inside(x.shape[2 + axis], weight.shape[2 + axis], weight.shape[4 + axis], params, axis)
        for axis in range(2)
    )
    forward, backward = _OPERATIONS[None if channel_weight is None else params["combine"]]
    times = x.shape[0] * x.shape[1] * pairs
    return forward * times, backward * times


def _inside(size: int, kernel: int, outputs: int, params: dict, axis: int) -> int:
    """Along one axis, the number of (output, tap) pairs that read inside the image."""
    step = (params["stride"][axis], params["dilation"][axis], params["padding"][axis], params["upsample"])
    positions = np.stack([input_positions(outputs, tap, *step) for tap in range(kernel)])
    return int(((positions >= 0) & (positions < size)).sum())


def _ddf(n: int, c: int, h: int, w: int, combine: str = "mul", kernel: int = 3) -> Case:
    shapes = {
        "x": (n, c, h, w),
        "channel_filter": (n, c, kernel, kernel),
        "spatial_filter": (n, 1, kernel, kernel, h, w),
    }
    title = f"ddf {combine} {(n, c, h, w)} k{kernel}"
    return Case(title, "ddf", shapes, flops, {"combine": combine}, _PEERS)


def _carafe(n: int, c: int, h: int, w: int, scale: int = 2, kernel: int = 5) -> Case:
    shapes = {"x": (n, c, h, w), "masks": (n, kernel * kernel, scale * h, scale * w)}
    title = f"carafe {(n, c, h, w)} x{scale} k{kernel}"
    return Case(title, "carafe", shapes, flops, {"kernel_size": kernel, "scale": scale}, _PEERS)


def _involution(n: int, c: int, h: int, w: int, groups: int, kernel: int = 7) -> Case:
    shapes = {"x": (n, c, h, w), "weight": (n, groups, kernel, kernel, h, w)}
    title = f"involution {(n, c, h, w)} G{groups} k{kernel}"
    return Case(title, "involution", shapes, flops, {}, _PEERS)


CASES = (
    replace(_ddf(2, 256, 56, 56), small=_ddf(1, 4, 9, 11)),
    replace(_ddf(2, 256, 56, 56, "add"), small=_ddf(1, 4, 9, 11, "add")),
    replace(_ddf(1, 64, 256, 256), small=_ddf(2, 3, 8, 13)),
    replace(_carafe(1, 256, 64, 64), small=_carafe(1, 4, 6, 7)),
    replace(_involution(2, 256, 56, 56, groups=16), small=_involution(1, 4, 9, 11, groups=2)),
)
