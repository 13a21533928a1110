"""Calls of `dynamic_sampling_conv2d`, `dynamic_conv2d` and `dynamic_conv1d`.

One sample, or several that nothing but their position tells apart, are one region; otherwise the samples are
summed or stacked, or the largest is taken, each with attention of samples, of positions, of both or of none,
of few channels or of many.
"""

from itertools import product

from . import TypicalCall

_PLANE, _LINE = (6, 6), (24,)


def _sampling(channels: int, samples: int, fuse: str, by_sample: bool, by_position: bool) -> TypicalCall:
    shapes: dict[str, tuple[int, ...]] = {
        "x": (2, channels, *_PLANE),
        "channel_kernel": (2, 3, channels, *_PLANE),
        "spatial_kernel": (2, 3, 3, 3, *_PLANE),
    }
    if by_sample:
        shapes["sample_attention"] = (2, 3, samples, samples, *_PLANE)
    if by_position:
        shapes["position_attention"] = (2, 3, 3, 3, *_PLANE)
    return TypicalCall(shapes, {"samples": samples, "fuse": fuse})


def _conv(extent: tuple[int, ...], kernel: int) -> TypicalCall:
    """Kernels of a single tap see images in place, others pixels that are packed for them."""
    return TypicalCall({"x": (1, 2, *extent), "weight": (1, 3, 2, *(kernel,) * len(extent), *extent)})


_BOTH = (False, True)
CALLS = {
    "dynamic_sampling_conv2d": [
        _sampling(*way) for way in product((2, 24), (1, 3), ("sum", "max", "stack"), _BOTH, _BOTH)
    ],
    "dynamic_conv2d": [_conv(_PLANE, 3), _conv(_PLANE, 1)],
    "dynamic_conv1d": [_conv(_LINE, 3), _conv(_LINE, 1)],
}
