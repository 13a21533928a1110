"""Calls of `atom_conv2d` and `compose_atoms`: drawn, bad, large and heavy ones."""

from typing import Any

from ._call import (
    LARGE_IMAGES,
    LARGE_STRIDE,
    Bad,
    Case,
    Good,
    Heavy,
    Large,
    bad_borders,
    on_a_line,
    windows,
    with_border,
    without,
)


def _atom_conv2d_cases(pick: Any, **fixed: int) -> Case:
    sizes = {
        "N": pick((1, 2, 0)),
        "C": pick((1, 2, 5)),
        "H": pick(range(9)),
        "W": pick(range(9)),
        **fixed,
    }
    atoms, outputs = pick((1, 2, 3)), pick((1, 2, 7))
    if not fixed and sizes["H"] * sizes["W"] <= 16 and pick(range(12)) == 11:
        # So many are multiplied in another way.
        sizes["C"], atoms, outputs = 149, 3, 307
    stride, dilation = (pick((1, 2, 3)), pick((1, 2))), (pick((1, 2, 3)), pick((1, 2)))
    if pick((True, False)):
        kernel, padding = (pick((3, 1, 5)), pick((3, 1, 5))), None
    else:
        kernel, padding = (pick((2, 4, 1)), pick((3, 2))), (pick((0, 1, 3)), pick((0, 2)))
    kernel = fixed.get("kh", kernel[0]), kernel[1]
    params = {"stride": stride, "dilation": dilation, "padding": padding}
    extent = sizes["H"], sizes["W"]
    grid = windows(extent, kernel, params)
    shapes = {
        "x": (sizes["N"], sizes["C"], *extent),
        "atoms": (sizes["N"], atoms, *kernel, *grid),
        "coefficients": (outputs, sizes["C"], atoms),
        "bias": (outputs,) if pick((True, False)) else None,
    }
    return Case(shapes, params)


def _compose_atoms_cases(pick: Any, **fixed: int) -> Case:
    sizes = {"N": pick((1, 2, 0)), "H": pick(range(9)), "W": pick(range(9)), **fixed}
    bases = pick((1, 2, 6, 13))
    shapes = {
        "alpha": (sizes["N"], pick((1, 2, 3)), bases, sizes["H"], sizes["W"]),
        "bases": (bases, pick((3, 1, 4)), pick((3, 1, 2))),
    }
    return Case(shapes, {})


CASES = {
    "atom_conv2d": with_border(_atom_conv2d_cases),
    "compose_atoms": _compose_atoms_cases,
    "atom_conv1d": with_border(on_a_line(_atom_conv2d_cases, {"x": without(2), "atoms": without(2, 4)})),
}

X = (2, 4, 6, 5)
GOOD = {
    "atom_conv2d": Good(
        {"x": X, "atoms": (2, 3, 3, 3, 6, 5), "coefficients": (7, 4, 3), "bias": (7,)},
        {},
        (2, 7, 6, 5),
    ),
    "compose_atoms": Good({"alpha": (2, 3, 4, 6, 5), "bases": (4, 3, 1)}, {}, (2, 3, 3, 1, 6, 5)),
    "atom_conv1d": Good(
        {"x": (2, 4, 5), "atoms": (2, 3, 3, 5), "coefficients": (7, 4, 3), "bias": (7,)}, {}, (2, 7, 5)
    ),
}

SYMBOLS = {
    "atom_conv2d": {
        "x": "N, C, H, W",
        "atoms": "N, M, kh, kw, Ho, Wo",
        "coefficients": "O, C, M",
        "bias": "O",
    },
    "compose_atoms": {"alpha": "N, M, B, Ho, Wo", "bases": "B, kh, kw"},
    "atom_conv1d": {"x": "N, C, L", "atoms": "N, M, k, Lo", "coefficients": "O, C, M", "bias": "O"},
}

_ODD = ("padding", "odd", "(2, 3)")

# Sizes that do not fit the other arrays, and values that parameters cannot have.
BAD = [
    Bad(
        "atom_conv2d",
        {"atoms": (1, 3, 3, 3, 6, 5)},
        ValueError,
        ("atoms", "N, M, kh, kw, Ho, Wo", "(1, 3, 3, 3, 6, 5)"),
    ),
    Bad("atom_conv2d", {"atoms": (2, 3, 3, 3, 6, 4)}, ValueError, ("atoms", "6, 5)", "6, 4)")),
    Bad("atom_conv2d", {"atoms": (2, 3, 2, 3, 6, 5)}, ValueError, _ODD),
    Bad("atom_conv2d", {"atoms": (2, 3, 3, 0, 6, 5)}, ValueError, ("atoms", "kernel", "(3, 0)")),
    Bad("atom_conv2d", {"coefficients": (7, 5, 3)}, ValueError, ("coefficients", "(O, 4, 3)", "(7, 5, 3)")),
    Bad("atom_conv2d", {"coefficients": (7, 4, 2)}, ValueError, ("coefficients", "(O, 4, 3)", "(7, 4, 2)")),
    Bad("atom_conv2d", {"bias": (3,)}, ValueError, ("bias", "(O)", "(7)", "(3,)")),
    Bad("atom_conv2d", {"stride": 2}, ValueError, ("atoms", "3, 3)", "6, 5)")),
    Bad("atom_conv2d", {"stride": "1"}, TypeError, ("stride", "int", "'1'")),
    Bad("atom_conv2d", {"dilation": -3}, ValueError, ("dilation", "at least 1", "-3")),
    Bad("atom_conv2d", {"padding": 0.0}, TypeError, ("padding", "int", "0.0")),
    Bad("compose_atoms", {"bases": (5, 3, 1)}, ValueError, ("bases", "(4, kh, kw)", "(5, 3, 1)")),
    Bad("compose_atoms", {"bases": (4, 0, 1)}, ValueError, ("bases", "kernel", "(0, 1)")),
    Bad("compose_atoms", {"bases": None}, TypeError, ("bases", "array", "NoneType")),
    # Lines.
    Bad("atom_conv1d", {"atoms": (2, 3, 3, 4)}, ValueError, ("atoms", "3, 5)", "3, 4)")),
    Bad("atom_conv1d", {"atoms": (2, 3, 0, 5)}, ValueError, ("atoms", "kernel", "(0,)")),
    Bad("atom_conv1d", {"coefficients": (7, 4, 2)}, ValueError, ("coefficients", "(O, 4, 3)", "(7, 4, 2)")),
    Bad("atom_conv1d", {"bias": (3,)}, ValueError, ("bias", "(O)", "(7)", "(3,)")),
    Bad("atom_conv1d", {"stride": "1"}, TypeError, ("stride", "int", "'1'")),
    Bad("atom_conv1d", {"dilation": -3}, ValueError, ("dilation", "at least 1", "-3")),
    Bad("atom_conv1d", {"padding": (0, 1)}, TypeError, ("padding", "int", "(0, 1)")),
    *bad_borders("atom_conv2d", "atom_conv1d"),
]

_N = LARGE_IMAGES[0]
LARGE = {
    "atom_conv2d": Large(
        {"atoms": (_N, 2, 3, 3, 2, 2), "coefficients": (2, 1, 2)}, {"stride": LARGE_STRIDE, "padding": 0}
    ),
    "compose_atoms": "it has no images",
}

HEAVY = {
    "atoms": Heavy(
        "atom_conv2d",
        {"x": (1, 64, 256, 512), "atoms": (1, 6, 3, 3, 256, 512), "coefficients": (64, 64, 6)},
        {},
        {"x": (1, 1, 1, 1), "atoms": (1, 1, 1, 1, 1, 1), "coefficients": (1, 1, 1)},
        {"padding": 0},
    )
}
