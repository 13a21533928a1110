"""Calls of `displaced_conv2d`: drawn, bad, large and heavy ones."""

from typing import Any

from ._call import Bad, Case, Good, on_a_line, without


def _displaced_conv2d_cases(pick: Any, **fixed: int) -> Case:
    sizes = {
        "N": pick((1, 2, 0)),
        "H": pick(range(9)),
        "W": pick(range(9)),
        "O": pick((2, 1, 3, 5)),
        "C": pick((3, 1, 2)),
        "G": pick((2, 1, 3)),
        **fixed,
    }
    n, h, w, o, c, g = (sizes[symbol] for symbol in ("N", "H", "W", "O", "C", "G"))
    shapes = {
        "x": (n, c, h, w),
        "weight": (o, c, g),
        "displacement": (o, c, g, 2),
        "sigma": pick(((), None)),
        "bias": pick(((o,), None)),
    }
    far = pick((3, 1, 12))
    return Case(
        shapes, {}, {"displacement": (-far, far), "sigma": pick(((0.3, 1.0), (0.1, 0.2), (1.0, 3.0)))}
    )


CASES = {
    "displaced_conv2d": _displaced_conv2d_cases,
    "displaced_conv1d": on_a_line(_displaced_conv2d_cases, {"x": without(2), "displacement": without(3)}),
}

X = (2, 4, 6, 5)
GOOD = {
    "displaced_conv2d": Good(
        {"x": X, "weight": (3, 4, 2), "displacement": (3, 4, 2, 2), "sigma": (), "bias": (3,)},
        {},
        (2, 3, 6, 5),
    ),
    "displaced_conv1d": Good(
        {"x": (2, 4, 5), "weight": (3, 4, 2), "displacement": (3, 4, 2), "sigma": (), "bias": (3,)},
        {},
        (2, 3, 5),
    ),
}

SYMBOLS = {
    "displaced_conv2d": {
        "x": "N, C, H, W",
        "weight": "O, C, G",
        "displacement": "O, C, G, 2",
        "sigma": "",
        "bias": "O",
    },
    "displaced_conv1d": {
        "x": "N, C, L",
        "weight": "O, C, G",
        "displacement": "O, C, G",
        "sigma": "",
        "bias": "O",
    },
}


# Sizes that do not fit the other arrays, and values that parameters cannot have.
BAD = [
    Bad("displaced_conv2d", {"weight": (3, 5, 2)}, ValueError, ("weight", "(O, 4, G)", "(3, 5, 2)")),
    Bad(
        "displaced_conv2d",
        {"displacement": (3, 4, 2, 3)},
        ValueError,
        ("displacement", "(3, 4, 2, 2)", "(3, 4, 2, 3)"),
    ),
    Bad(
        "displaced_conv2d",
        {"displacement": (3, 4, 1, 2)},
        ValueError,
        ("displacement", "(3, 4, 2, 2)", "(3, 4, 1, 2)"),
    ),
    Bad(
        "displaced_conv2d",
        {"displacement": (2, 4, 2, 2)},
        ValueError,
        ("displacement", "(3, 4, 2, 2)", "(2, 4, 2, 2)"),
    ),
    Bad("displaced_conv2d", {"bias": (4,)}, ValueError, ("bias", "(O)", "(3)", "(4,)")),
    Bad("displaced_conv2d", {"sigma": 0.0}, ValueError, ("sigma", "positive", "0.0")),
    Bad("displaced_conv2d", {"sigma": -1}, ValueError, ("sigma", "positive", "-1")),
    Bad("displaced_conv2d", {"sigma": float("nan")}, ValueError, ("sigma", "positive", "nan")),
    Bad("displaced_conv2d", {"sigma": float("inf")}, ValueError, ("sigma", "inf")),
    Bad("displaced_conv2d", {"sigma": True}, TypeError, ("sigma", "number", "True")),
    Bad("displaced_conv2d", {"sigma": "1"}, TypeError, ("sigma", "number", "array", "'1'")),
    Bad("displaced_conv2d", {"sigma": 1j}, TypeError, ("sigma", "number", "array", "1j")),
    Bad(
        "displaced_conv2d", {"displacement_gradient": "rough"}, ValueError, ("'exact'", "'smooth'", "'rough'")
    ),
    # Lines.
    Bad("displaced_conv1d", {"weight": (3, 5, 2)}, ValueError, ("weight", "(O, 4, G)", "(3, 5, 2)")),
    Bad(
        "displaced_conv1d",
        {"displacement": (3, 4, 1)},
        ValueError,
        ("displacement", "(3, 4, 2)", "(3, 4, 1)"),
    ),
    Bad("displaced_conv1d", {"bias": (4,)}, ValueError, ("bias", "(O)", "(3)", "(4,)")),
    Bad("displaced_conv1d", {"sigma": -1}, ValueError, ("sigma", "positive", "-1")),
    Bad("displaced_conv1d", {"displacement_gradient": 1}, ValueError, ("'exact'", "'smooth'", "got 1")),
]

# Its gradient is not the derivative, which the contract asks of what is drawn.
UNDRAWN = {
    name: {"displacement_gradient": ("exact", "smooth")} for name in ("displaced_conv2d", "displaced_conv1d")
}

# The normalised Gaussian of so small a sigma is 1 at its centre and 0 elsewhere: exp(-2048) underflows.
EXACT_VALUES = {"sigma": 1 / 64}


def is_exact(call: Any) -> bool:
    """Without a sigma that can be chosen, there is a blur."""
    return call.arrays[call.operator.arrays.index("sigma")] is not None


LARGE = {"displaced_conv2d": "it blurs the images as a whole"}
