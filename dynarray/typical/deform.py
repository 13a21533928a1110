"""Calls of `deform_conv2d`, `deform_conv1d` and `sample_points`."""

from . import TypicalCall

_PLANE, _LINE = (6, 6), (24,)


# Channels and outputs: few of one or the other have kernels of their own, and many weights of small maps.
_MANY, _FEW_CHANNELS, _FEW_OUTPUTS, _SMALL_MAPS = (30, 8), (3, 4), (16, 2), (300, 300)


def _deform(extent: tuple[int, ...], axes: tuple[int, ...]) -> list[TypicalCall]:
    """With the mask and the bias, and without; `axes` are those of an offset."""
    kernel, calls = (3,) * len(extent), []
    for channels, outputs in (_MANY, _FEW_CHANNELS, _FEW_OUTPUTS, _SMALL_MAPS):
        shapes = {
            "x": (1, channels, *extent),
            "offset": (1, 1, *kernel, *axes, *extent),
            "weight": (outputs, channels, *kernel),
        }
        mask, bias = {"mask": (1, 1, *kernel, *extent)}, {"bias": (outputs,)}
        for given in (shapes, shapes | mask, shapes | mask | bias):
            calls.append(TypicalCall(given, {"padding": 1}))
    return calls


CALLS = {
    "deform_conv2d": _deform(_PLANE, (2,)),
    "deform_conv1d": _deform(_LINE, ()),
    # Many points for each pixel of many channels, points of few channels, and of a single one.
    "sample_points": [
        TypicalCall({"x": (1, channels, *_PLANE), "points": (1, points, 2, *_PLANE)})
        for channels, points in ((20, 9), (3, 3), (1, 3))
    ],
}
