"""Calls of `local_filter2d`, its faces and `mixed_filter2d`.

Outputs that lie as the pixels do are made in place, if a row of blocks is long enough, and the others in
general. Either is compiled for no second filter, for one that multiplies, and for one that adds.
"""

from typing import Any

from . import TypicalCall

_CHANNELS, _SIDE = 2, 12
_WAYS: tuple[dict[str, Any], ...] = ({}, {"stride": 2}, {"upsample": 2})
_COMBINED = ("mul", "add")


def _plane(way: dict[str, Any]) -> tuple[int, int]:
    """The size of the output."""
    size = _SIDE * way.get("upsample", 1) // way.get("stride", 1)
    return size, size


def _shapes(way: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by what they are for; `channel` for filters of an upsampled plane where there is one."""
    scale = (way["upsample"],) * 2 if "upsample" in way else ()
    return {
        "x": (1, _CHANNELS, _SIDE, _SIDE),
        "weight": (1, 1, 3, 3, *_plane(way)),
        "channel": (1, *scale, _CHANNELS, 3, 3),
    }


def _local_filter2d() -> list[TypicalCall]:
    calls = []
    for way in _WAYS:
        shapes = _shapes(way)
        channel = {"channel_weight": shapes.pop("channel")}
        calls.append(TypicalCall(shapes, way))
        calls += [TypicalCall(shapes | channel, {**way, "combine": combine}) for combine in _COMBINED]
    return calls


def _local_filter1d() -> list[TypicalCall]:
    calls = []
    for stride in (1, 2):
        length = _SIDE * _SIDE
        shapes = {"x": (1, _CHANNELS, length), "weight": (1, 1, 3, length // stride)}
        channel = {"channel_weight": (1, _CHANNELS, 3)}
        calls.append(TypicalCall(shapes, {"stride": stride}))
        calls += [
            TypicalCall(shapes | channel, {"stride": stride, "combine": combine}) for combine in _COMBINED
        ]
    return calls


def _two_filters(channel: str, spatial: str, ways: tuple[dict[str, Any], ...]) -> list[TypicalCall]:
    """A face with two filters, which takes the scale from their shapes."""
    calls = []
    for way in ways:
        shapes = _shapes(way)
        given = {"x": shapes["x"], channel: shapes["channel"], spatial: shapes["weight"]}
        steps = {name: value for name, value in way.items() if name != "upsample"}
        calls += [TypicalCall(given, {**steps, "combine": combine}) for combine in _COMBINED]
    return calls


def _carafe(scale: int) -> TypicalCall:
    masks = (1, 9, scale * _SIDE, scale * _SIDE)
    return TypicalCall(
        {"x": (1, _CHANNELS, _SIDE, _SIDE), "masks": masks}, {"kernel_size": 3, "scale": scale}
    )


def _correlation() -> list[TypicalCall]:
    """Maps are filters of the images' size, made in place or in general."""
    shapes = dict.fromkeys(("x1", "x2"), (1, _CHANNELS, _SIDE, _SIDE))
    return [TypicalCall(shapes, {"max_displacement": 2, "step": step}) for step in (1, 2)]


def _involution(way: dict[str, Any]) -> TypicalCall:
    shapes = _shapes(way)
    return TypicalCall({"x": shapes["x"], "weight": shapes["weight"]}, way)


def _mixed(extent: tuple[int, ...]) -> TypicalCall:
    kernels = (2, *(3,) * len(extent))
    return TypicalCall({"x": (1, _CHANNELS, *extent), "kernels": kernels, "mixture": (1, 1, 2, *extent)})


CALLS = {
    "correlation2d": _correlation(),
    "local_filter2d": _local_filter2d(),
    "local_filter1d": _local_filter1d(),
    "ddf": _two_filters("channel_filter", "spatial_filter", _WAYS[:2]),
    "ddf_upsample": _two_filters("channel_filters", "spatial_filters", ({"upsample": 1}, {"upsample": 2})),
    "carafe": [_carafe(1), _carafe(2)],
    "involution": [_involution(way) for way in _WAYS[:2]],
    "mixed_filter2d": [_mixed((_SIDE, _SIDE))],
    "mixed_filter1d": [_mixed((_SIDE * _SIDE,))],
}
