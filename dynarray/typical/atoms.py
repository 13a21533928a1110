"""Calls of `atom_conv2d`, `atom_conv1d` and `compose_atoms`."""

from . import TypicalCall

_PLANE, _LINE = (8, 8), (24,)


def _atoms(extent: tuple[int, ...]) -> list[TypicalCall]:
    """With a bias and without; few outputs of many channels, which are mixed first; many of both, at once."""
    shapes = {
        "x": (1, 2, *extent),
        "atoms": (1, 2, *(3,) * len(extent), *extent),
        "coefficients": (3, 2, 2),
    }
    few = shapes | {"x": (1, 8, *extent), "coefficients": (1, 8, 2)}
    small = (2,) * len(extent)
    many = {
        "x": (1, 256, *small),
        "atoms": (1, 2, *(3,) * len(extent), *small),
        "coefficients": (256, 256, 2),
    }
    return [TypicalCall(each) for each in (shapes, shapes | {"bias": (3,)}, few, many)]


CALLS = {
    "atom_conv2d": _atoms(_PLANE),
    "atom_conv1d": _atoms(_LINE),
    "compose_atoms": [TypicalCall({"alpha": (1, 2, 3, *_PLANE), "bases": (3, 3, 3)})],
}
