"""Calls of `displaced_conv2d` and `displaced_conv1d`."""

from . import TypicalCall

_PLANE, _LINE = (6, 6), (48,)
_FAR = {"displacement": 80.0}  # units of a line that are too far apart to be the taps of a kernel


def _displaced(
    extent: tuple[int, ...], axes: tuple[int, ...], spread: dict[str, float] | None = None
) -> list[TypicalCall]:
    """With sigma and a bias, and without, for both gradients of the displacement; `axes` are those of one."""
    shapes = {"x": (1, 2, *extent), "weight": (3, 2, 2), "displacement": (3, 2, 2, *axes)}
    return [
        TypicalCall(given, {"displacement_gradient": gradient}, spread or {})
        for given in (shapes, shapes | {"sigma": (), "bias": (3,)})
        for gradient in ("exact", "smooth")
    ]


CALLS = {
    "displaced_conv2d": _displaced(_PLANE, (2,)),
    "displaced_conv1d": _displaced(_LINE, ()) + _displaced(_LINE, (), _FAR),
}
