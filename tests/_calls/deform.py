"""Calls of `deform_conv2d` and `sample_points`: drawn, bad, large and heavy ones."""

from typing import Any

from ._call import (
    LARGE_IMAGES,
    LARGE_STRIDE,
    Bad,
    Case,
    Good,
    Heavy,
    Large,
    Shape,
    bad_borders,
    on_a_line,
    windows,
    with_border,
    without,
)

_REACH = (-3.0, 3.0), (-1.5, 1.5), (-20.0, 20.0)  # of offsets: the last mostly leaves small images


def _deform_conv2d_cases(pick: Any, **fixed: int) -> Case:
    """Sizes that several groups have, all kinds of steps, and arrays of both shapes."""
    groups, offset_groups = pick((1, 2)), pick((1, 2, 3))
    sizes = {
        "N": pick((1, 2, 0)),
        "C": groups * offset_groups * pick((1, 2, 5, 9)),
        "O": groups * pick((1, 3, 4)),
        "H": pick(range(9)),
        "W": pick(range(9)),
        "kh": pick((3, 1, 2)),
        "kw": pick((3, 1, 4)),
        **fixed,
    }
    if groups == 1 and not fixed and sizes["H"] * sizes["W"] <= 9 and pick(range(3)) == 2:
        # So many weights are multiplied with all positions at once.
        sizes |= {"C": 174, "O": 174, "kh": 3, "kw": 3}
    kernel = sizes["kh"], sizes["kw"]
    paddings = (1, (2, 0), 0) if kernel[0] % 2 == 0 or kernel[1] % 2 == 0 else (None, 1, (2, 0), 0)
    params: dict[str, Any] = {
        "stride": pick((1, 2, (3, 1))),
        "padding": pick(paddings),
        "dilation": (pick((1, 2, 3)), pick((1, 2))),
    }
    outputs = windows((sizes["H"], sizes["W"]), kernel, params)
    n, d, taps = sizes["N"], offset_groups, kernel[0] * kernel[1]
    split = pick((True, False))
    given = {
        "x": (n, sizes["C"], sizes["H"], sizes["W"]),
        "offset": (n, d, *kernel, 2, *outputs) if split else (n, 2 * d * taps, *outputs),
        "weight": (sizes["O"], sizes["C"] // groups, *kernel),
        "mask": ((n, d, *kernel, *outputs) if split else (n, d * taps, *outputs))
        if pick((True, False))
        else None,
        "bias": (sizes["O"],) if pick((True, False)) else None,
    }
    return Case(given, params, {"offset": pick(_REACH)})


def _sample_points_cases(pick: Any, **fixed: int) -> Case:
    """Points in and around the image."""
    sizes = {"N": pick((1, 2, 0)), "H": pick(range(9)), "W": pick(range(9)), **fixed}
    n, height, width = sizes["N"], sizes["H"], sizes["W"]
    outputs = pick(((height, width), (3, 5), (1, 1), (0, 4)))
    given = {
        "x": (n, pick((1, 3, 8, 20)), height, width),
        "points": (n, pick((1, 2, 5, 9)), 2, *outputs),
    }
    return Case(given, {}, {"points": (-3.0, max(height, width) + 2.0)})


def _offset_of_a_line(shape: Shape) -> Shape:
    return without(2, 4, 5)(shape) if len(shape) == 7 else (shape[0], shape[1] // 2, shape[3])


def _mask_of_a_line(shape: Shape) -> Shape:
    return without(2, 4)(shape) if len(shape) == 6 else without(2)(shape)


CASES = {
    "deform_conv2d": with_border(_deform_conv2d_cases),
    "sample_points": with_border(_sample_points_cases),
    "deform_conv1d": with_border(
        on_a_line(
            _deform_conv2d_cases,
            {"x": without(2), "offset": _offset_of_a_line, "weight": without(2), "mask": _mask_of_a_line},
        )
    ),
}

X = (2, 4, 6, 5)
GOOD = {
    "deform_conv2d": Good(
        {
            "x": X,
            "offset": (2, 2, 3, 3, 2, 6, 5),
            "weight": (6, 2, 3, 3),
            "mask": (2, 2, 3, 3, 6, 5),
            "bias": (6,),
        },
        {"padding": 1},
        (2, 6, 6, 5),
    ),
    "sample_points": Good({"x": X, "points": (2, 3, 2, 7, 8)}, {}, (2, 4, 3, 7, 8)),
    "deform_conv1d": Good(
        {"x": (2, 4, 7), "offset": (2, 2, 3, 7), "weight": (6, 2, 3), "mask": (2, 2, 3, 7), "bias": (6,)},
        {"padding": 1},
        (2, 6, 7),
    ),
}

SYMBOLS = {
    "deform_conv2d": {
        "x": "N, C, H, W",
        "offset": "N, D, kh, kw, 2, Ho, Wo",
        "weight": "O, C/groups, kh, kw",
        "mask": "N, D, kh, kw, Ho, Wo",
        "bias": "O",
    },
    "sample_points": {"x": "N, C, H, W", "points": "N, P, 2, Ho, Wo"},
    "deform_conv1d": {
        "x": "N, C, L",
        "offset": "N, D, k, Lo",
        "weight": "O, C/groups, k",
        "mask": "N, D, k, Lo",
        "bias": "O",
    },
}


# Sizes that do not fit the other arrays, and values that parameters cannot have.
BAD = [
    Bad(
        "deform_conv2d",
        {"offset": (2, 2, 3, 3, 6, 5)},
        ValueError,
        ("offset", "N, D, kh, kw, 2, Ho, Wo", "3, 6, 5)"),
    ),
    Bad("deform_conv2d", {"offset": (2, 2, 3, 3, 3, 6, 5)}, ValueError, ("offset", "2, 6, 5)", "3, 6, 5)")),
    Bad(
        "deform_conv2d", {"offset": (2, 3, 3, 3, 2, 6, 5)}, ValueError, ("offset", "D = 3", "C = 4", "divide")
    ),
    Bad("deform_conv2d", {"offset": (2, 2, 3, 3, 2, 7, 5)}, ValueError, ("offset", "6, 5)", "7, 5)")),
    Bad("deform_conv2d", {"offset": (2, 2, 3, 1, 2, 6, 5)}, ValueError, ("offset", "3, 3, 2", "3, 1, 2")),
    Bad(
        "deform_conv2d", {"offset": (2, 35, 6, 5)}, ValueError, ("offset", "2*D*kh*kw", "9", "(2, 35, 6, 5)")
    ),
    Bad("deform_conv2d", {"offset": (2, 36, 6, 4)}, ValueError, ("offset", "6, 5)", "(2, 36, 6, 4)")),
    Bad(
        "deform_conv2d",
        {"mask": (2, 1, 3, 3, 6, 5)},
        ValueError,
        ("mask", "(2, 2, 3, 3, 6, 5)", "(2, 1, 3, 3, 6, 5)"),
    ),
    Bad("deform_conv2d", {"mask": (2, 9, 6, 5)}, ValueError, ("mask", "D = 2", "9", "(2, 9, 6, 5)")),
    Bad("deform_conv2d", {"weight": (6, 3, 3, 3)}, ValueError, ("weight", "C/groups = 3", "C = 4")),
    Bad("deform_conv2d", {"weight": (5, 2, 3, 3)}, ValueError, ("weight", "O = 5", "groups = 2")),
    Bad("deform_conv2d", {"weight": (6, 2, 0, 3)}, ValueError, ("weight", "kernel", "(0, 3)")),
    Bad("deform_conv2d", {"bias": (5,)}, ValueError, ("bias", "(O)", "(6)", "(5,)")),
    Bad("deform_conv2d", {"padding": 0}, ValueError, ("offset", "4, 3)", "6, 5)")),
    Bad("deform_conv2d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    Bad("deform_conv2d", {"stride": 0}, ValueError, ("stride", "at least 1", "0")),
    Bad("deform_conv2d", {"dilation": (1,)}, TypeError, ("dilation", "(y, x)", "(1,)")),
    Bad("deform_conv2d", {"deterministic": 1}, TypeError, ("deterministic", "bool", "1")),
    Bad("sample_points", {"points": (3, 3, 2, 7, 8)}, ValueError, ("points", "(2, P, 2", "(3, 3, 2, 7, 8)")),
    Bad("sample_points", {"points": (2, 3, 3, 7, 8)}, ValueError, ("points", "(2, P, 2", "(2, 3, 3, 7, 8)")),
    Bad("sample_points", {"points": None}, TypeError, ("points", "array", "NoneType")),
    Bad("sample_points", {"deterministic": None}, TypeError, ("deterministic", "bool", "None")),
    # Lines.
    Bad("deform_conv1d", {"offset": (2, 3, 3, 7)}, ValueError, ("offset", "D = 3", "C = 4", "divide")),
    Bad("deform_conv1d", {"offset": (2, 2, 3, 6)}, ValueError, ("offset", "3, 7)", "3, 6)")),
    Bad("deform_conv1d", {"offset": (2, 5, 7)}, ValueError, ("offset", "D*k", "3", "(2, 5, 7)")),
    Bad("deform_conv1d", {"offset": (2, 6, 6)}, ValueError, ("offset", "7)", "(2, 6, 6)")),
    Bad("deform_conv1d", {"mask": (2, 1, 3, 7)}, ValueError, ("mask", "(2, 2, 3, 7)", "(2, 1, 3, 7)")),
    Bad("deform_conv1d", {"weight": (6, 3, 3)}, ValueError, ("weight", "C/groups = 3", "C = 4")),
    Bad("deform_conv1d", {"weight": (6, 2, 0)}, ValueError, ("weight", "kernel", "(0,)")),
    Bad("deform_conv1d", {"bias": (5,)}, ValueError, ("bias", "(O)", "(6)", "(5,)")),
    Bad("deform_conv1d", {"padding": 0}, ValueError, ("offset", "3, 5)", "3, 7)")),
    Bad("deform_conv1d", {"stride": (1, 1)}, TypeError, ("stride", "int", "(1, 1)")),
    Bad("deform_conv1d", {"dilation": 0}, ValueError, ("dilation", "at least 1", "0")),
    Bad("deform_conv1d", {"deterministic": 1}, TypeError, ("deterministic", "bool", "1")),
    *bad_borders("deform_conv2d", "deform_conv1d", "sample_points"),
]


def _between_pixels_of_the_corners(points: Any) -> Any:
    points = points // 3 + 0.5
    points[:, :, 0] += LARGE_IMAGES[2] - 4
    points[:, 1:, 1] += LARGE_IMAGES[3] - 4
    return points


_N = LARGE_IMAGES[0]
LARGE = {
    "deform_conv2d": Large(
        {"offset": (_N, 1, 3, 3, 2, 2, 2), "weight": (2, 1, 3, 3)},
        {"stride": LARGE_STRIDE},
        on_host=False,
        values={"offset": lambda offset: offset // 3 / 2},
    ),
    "sample_points": Large(
        {"points": (_N, 3, 2, 1, 2)}, {}, on_host=False, values={"points": _between_pixels_of_the_corners}
    ),
}

_SMALL = {"x": (1, 1, 1, 1), "offset": (1, 2, 1, 1), "weight": (1, 1, 1, 1)}
HEAVY = {
    "deform": Heavy(
        "deform_conv2d",
        {"x": (1, 64, 384, 384), "offset": (1, 18, 384, 384), "weight": (64, 64, 3, 3)},
        {"padding": 1},
        _SMALL,
        {"padding": 0},
    ),
    "deform, large weights": Heavy(
        "deform_conv2d",
        {"x": (2, 1024, 64, 48), "offset": (2, 18, 64, 48), "weight": (1024, 1024, 3, 3)},
        {"padding": 1},
        _SMALL,
        {"padding": 0},
    ),
    "deform, parts of images": Heavy(
        "deform_conv2d",
        {"x": (3, 192, 200, 200), "offset": (3, 36, 200, 200), "weight": (8, 192, 3, 3)},
        {"padding": 1},
        _SMALL,
        {"padding": 0},
    ),
    "deform, few outputs": Heavy(
        "deform_conv2d",
        {"x": (8, 160, 128, 128), "offset": (8, 18, 128, 128), "weight": (2, 160, 3, 3)},
        {"padding": 1},
        {"x": (1, 16, 8, 8), "offset": (1, 18, 8, 8), "weight": (2, 16, 3, 3)},
        {"padding": 1},
    ),
}
