"""Calls of `local_filter2d`, its faces and `mixed_filter2d`.

Filters of one tap are products, also where pixels count several times. Others of few channels are applied
directly. With more, outputs that lie as the pixels do are made in place, if a row of blocks is long enough,
and the others in general. Each is compiled for no second filter, for one that multiplies, and for one that
adds.
"""

from itertools import product
from typing import Any

from . import TypicalCall

_CHANNELS, _SIDE, _VECTOR, _SHORT = (2, 9), 12, 16, 9
_WAYS: tuple[dict[str, Any], ...] = ({}, {"stride": 2}, {"upsample": 2})
# A border makes outputs smaller than the image around them, as a stride does.
_SCALES: tuple[dict[str, Any], ...] = ({"upsample": 1}, {"upsample": 2}, {"upsample": 1, "border": "wrap"})
_COMBINED = ("mul", "add")


def _plane(way: dict[str, Any]) -> tuple[int, int]:
    """The size of the output."""
    size = _SIDE * way.get("upsample", 1) // way.get("stride", 1)
    return size, size


def _shapes(way: dict[str, Any], channels: int, side: int = 3) -> dict[str, tuple[int, ...]]:
    """Shapes by what they are for; `channel` for filters of an upsampled plane where there is one."""
    scale = (way["upsample"],) * 2 if "upsample" in way else ()
    return {
        "x": (1, channels, _SIDE, _SIDE),
        "weight": (1, 1, side, side, *_plane(way)),
        "channel": (1, *scale, channels, side, side),
    }


def _local_filter2d() -> list[TypicalCall]:
    calls = []
    for way, channels, side in [*product(_WAYS, _CHANNELS, (3,)), ({}, 2, 1), (_WAYS[2], 2, 1)]:
        shapes = _shapes(way, channels, side)
        channel = {"channel_weight": shapes.pop("channel")}
        calls.append(TypicalCall(shapes, way))
        calls += [TypicalCall(shapes | channel, {**way, "combine": combine}) for combine in _COMBINED]
    return calls


def _local_filter1d() -> list[TypicalCall]:
    calls = []
    for stride, channels, taps in [*product((1, 2), _CHANNELS, (3,)), (1, 2, 1)]:
        length = _SIDE * _SIDE // stride  # rows of outputs that are short go a way of their own
        shapes = {"x": (1, channels, length), "weight": (1, 1, taps, length // stride)}
        channel = {"channel_weight": (1, channels, taps)}
        calls.append(TypicalCall(shapes, {"stride": stride}))
        calls += [
            TypicalCall(shapes | channel, {"stride": stride, "combine": combine}) for combine in _COMBINED
        ]
    return calls


def _two_filters(channel: str, spatial: str, ways: tuple[dict[str, Any], ...]) -> list[TypicalCall]:
    """A face with two filters, which takes the scale from their shapes."""
    calls = []
    for way, channels, side in [*product(ways, _CHANNELS, (3,)), *product(ways[:2], (2,), (1,))]:
        shapes = _shapes(way, channels, side)
        given = {"x": shapes["x"], channel: shapes["channel"], spatial: shapes["weight"]}
        steps = {name: value for name, value in way.items() if name != "upsample"}
        calls += [TypicalCall(given, {**steps, "combine": combine}) for combine in _COMBINED]
    return calls


def _carafe(way: dict[str, Any], channels: int, side: int) -> TypicalCall:
    masks = (1, side * side, *_plane(way))
    steps = {name: value for name, value in way.items() if name != "upsample"}
    params = {"kernel_size": side, "scale": way["upsample"], **steps}
    return TypicalCall({"x": (1, channels, _SIDE, _SIDE), "masks": masks}, params)


def _correlation() -> list[TypicalCall]:
    """Maps are filters of the images' size; so are made those of large images, and a single one."""
    sizes = *((1, channels, _SIDE, _SIDE) for channels in _CHANNELS), (1, 150, 8, 1800)
    ways = [*product((1, 2), sizes), (0, sizes[0])]
    return [
        TypicalCall(dict.fromkeys(("x1", "x2"), size), {"max_displacement": far, "step": max(1, far)})
        for far, size in ways
    ]


def _involution(way: dict[str, Any], channels: int, side: int) -> TypicalCall:
    shapes = _shapes(way, channels, side)
    return TypicalCall({"x": shapes["x"], "weight": shapes["weight"]}, way)


def _mixed(channels: int, extent: tuple[int, ...]) -> TypicalCall:
    """Rows of whole vectors are filtered where they lie, and for few channels those that nearly fill one.

    Gradients are made where everything lies unless rows are much shorter than a vector.
    """
    kernels = (2, *(3,) * len(extent))
    return TypicalCall({"x": (1, channels, *extent), "kernels": kernels, "mixture": (1, 1, 2, *extent)})


CALLS = {
    "correlation2d": _correlation(),
    "local_filter2d": _local_filter2d(),
    "local_filter1d": _local_filter1d(),
    "ddf": _two_filters("channel_filter", "spatial_filter", _WAYS[:2]),
    "ddf_upsample": _two_filters("channel_filters", "spatial_filters", _SCALES),
    "carafe": [
        _carafe(*each) for each in [*product(_SCALES, _CHANNELS, (3,)), *product(_SCALES[:2], (2,), (1,))]
    ],
    "involution": [_involution(*each) for each in [*product(_WAYS[:2], _CHANNELS, (3,)), ({}, 2, 1)]],
    "mixed_filter2d": [
        _mixed(*each) for each in product(_CHANNELS, [(_VECTOR,) * 2, (_SIDE,) * 2, (_SHORT,) * 2])
    ],
    "mixed_filter1d": [
        _mixed(*each) for each in product(_CHANNELS, [(_SIDE * _VECTOR,), (_SIDE,), (_SHORT,)])
    ],
}
