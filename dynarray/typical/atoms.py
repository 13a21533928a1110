"""Calls of `atom_conv2d`, `atom_conv1d` and `compose_atoms`."""

from . import TypicalCall

_PLANE, _LINE = (8, 8), (24,)


def _atoms(extent: tuple[int, ...]) -> list[TypicalCall]:
    """With a bias and without, and few outputs of many channels, which are mixed first."""
    shapes = {
        "x": (1, 2, *extent),
        "atoms": (1, 2, *(3,) * len(extent), *extent),
        "coefficients": (3, 2, 2),
    }
    few = shapes | {"x": (1, 8, *extent), "coefficients": (1, 8, 2)}
    return [TypicalCall(shapes), TypicalCall(shapes | {"bias": (3,)}), TypicalCall(few)]


CALLS = {
    "atom_conv2d": _atoms(_PLANE),
    "atom_conv1d": _atoms(_LINE),
    "compose_atoms": [TypicalCall({"alpha": (1, 2, 3, *_PLANE), "bases": (3, 3, 3)})],
}
