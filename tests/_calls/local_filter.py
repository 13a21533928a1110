"""Calls of `local_filter2d`, its faces, `correlation2d` and `mixed_filter2d`: drawn, bad and heavy ones."""

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


def _draw(
    pick: Any, fixed: dict[str, int], *, upsampling: bool = False, combining: bool = True
) -> tuple[dict[str, int], dict[str, tuple[int, ...]], dict[str, Any]]:
    """Sizes, shapes and parameters of one valid call; `fixed` sizes are taken as they are."""
    groups = pick((1, 2, 3))
    sizes = {
        "N": pick((1, 2, 0)),
        "G": groups,
        "C": groups * pick((2, 1, 10) if upsampling else (1, 2, 5)),  # of ten, each pixel is repeated
        "H": pick(range(9)),
        "W": pick(range(9)),
        "kh": pick((3, 1, 5)),
        "kw": pick((3, 1, 5)),
        "u": pick((2, 1, 3)) if upsampling else 1,
        **fixed,
    }
    params: dict[str, Any] = {"dilation": (pick((1, 2, 3)), pick((1, 2)))}
    if not upsampling:
        params["stride"] = pick((1, 2, (3, 1)))
        way = pick(range(4)) if not fixed.keys() & {"C", "kh", "kw"} else 0
        if way == 2:  # many channels on an image that fills registers
            sizes |= {"C": 5 * groups, "H": 8, "W": 8, **fixed}
        if way == 3:
            sizes |= {"kh": 1, "kw": 1}
        params["stride"] = 1 if way > 1 else params["stride"]
    if combining:
        params["combine"] = pick(("mul", "add"))
    return sizes, _shapes(sizes, params), params


def _shapes(sizes: dict[str, int], params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    n, c, u, kernel = sizes["N"], sizes["C"], sizes["u"], (sizes["kh"], sizes["kw"])
    extent = sizes["H"], sizes["W"]
    outputs = windows(extent, kernel, {**params, "upsample": u})
    return {
        "x": (n, c, *extent),
        "weight": (n, sizes["G"], *kernel, *outputs),
        "channel_weight": (n, c, *kernel),
        "channel_weights": (n, u, u, c, *kernel),
    }


def _local_filter2d_cases(pick: Any, **fixed: int) -> Case:
    upsampling = pick((False, True))
    sizes, shapes, params = _draw(pick, fixed, upsampling=upsampling)
    if not upsampling and pick((False, True)):
        sizes["kh"], sizes["kw"] = pick((2, 4, 1)), pick((3, 2))
        params["padding"] = (pick((0, 1, 3)), pick((0, 2)))
        shapes = _shapes(sizes, params)
    channel = shapes["channel_weights" if upsampling else "channel_weight"]
    given = {
        "x": shapes["x"],
        "weight": shapes["weight"],
        "channel_weight": channel if pick((True, False)) else None,
    }
    return Case(given, {**params, "upsample": sizes["u"]})


def _ddf_cases(pick: Any, **fixed: int) -> Case:
    _, shapes, params = _draw(pick, fixed)
    given = {"channel_filter": shapes["channel_weight"], "spatial_filter": shapes["weight"]}
    return Case({"x": shapes["x"], **given}, params)


def _ddf_upsample_cases(pick: Any, **fixed: int) -> Case:
    _, shapes, params = _draw(pick, fixed, upsampling=True)
    given = {"channel_filters": shapes["channel_weights"], "spatial_filters": shapes["weight"]}
    return Case({"x": shapes["x"], **given}, params)


def _carafe_cases(pick: Any, **fixed: int) -> Case:
    sizes, *_ = _draw(pick, fixed, upsampling=True, combining=False)
    shapes, kernel = _shapes(sizes, {}), (sizes["kh"], sizes["kw"])
    n, groups, *_, high, wide = shapes["weight"]
    masks = (n, groups * kernel[0] * kernel[1], high, wide)
    return Case(
        {"x": shapes["x"], "masks": masks}, {"kernel_size": kernel, "groups": groups, "scale": sizes["u"]}
    )


def _involution_cases(pick: Any, **fixed: int) -> Case:
    _, shapes, params = _draw(pick, fixed, combining=False)
    return Case({"x": shapes["x"], "weight": shapes["weight"]}, params)


def _plain_cases(pick: Any, **fixed: int) -> Case:
    sizes, shapes, params = _draw(pick, fixed)
    if pick((False, True)):
        params["padding"] = pick((0, 1)), pick((0, 2))
        shapes = _shapes(sizes, params)
    names = ("x", "weight", "channel_weight") if pick((True, False)) else ("x", "weight")
    return Case({"channel_weight": None, **{name: shapes[name] for name in names}}, params)


def _mixed_filter2d_cases(pick: Any, **fixed: int) -> Case:
    groups = pick((1, 2, 3))
    # Rows that fill a register of float32, too.
    sizes = {"N": pick((1, 2, 0)), "H": pick(range(9)), "W": pick((*range(9), 18, 18, 19)), **fixed}
    channels, bases = groups * pick((1, 2, 5)), pick((1, 2, 4, 9))
    params = {"stride": (pick((1, 2, 3)), pick((1, 2))), "dilation": (pick((1, 2, 3)), pick((1, 2)))}
    if pick((True, False)):
        kernel, padding = (pick((3, 1)), pick((3, 1, 5))), None
    else:
        kernel, padding = (pick((2, 4, 1)), pick((3, 2))), (pick((0, 1, 3)), pick((0, 2)))
    kernel = fixed.get("kh", kernel[0]), kernel[1]
    params["padding"] = padding
    extent = sizes["H"], sizes["W"]
    of_channels = (channels,) if pick((False, True)) else ()
    shapes = {
        "x": (sizes["N"], channels, *extent),
        "kernels": (bases, *of_channels, *kernel),
        "mixture": (sizes["N"], groups, bases, *windows(extent, kernel, params)),
    }
    return Case(shapes, params, {"mixture": (-0.5, 0.5)})


def _without_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Kernels of one row, for all channels or for each."""
    return (*shape[:-2], shape[-1])


def _correlation2d_cases(pick: Any, **fixed: int) -> Case:
    names = ("N", (1, 2, 0)), ("C", (1, 2, 4, 16)), ("H", range(9)), ("W", range(9))
    shape = tuple(fixed.get(name, pick(values)) for name, values in names)
    params = {"max_displacement": pick((2, 0, 1, 3, 11)), "step": pick((1, 2, 3))}
    return Case({"x1": shape, "x2": shape}, params)


_WITH_BORDER = {
    "local_filter2d": _local_filter2d_cases,
    "ddf": _ddf_cases,
    "ddf_upsample": _ddf_upsample_cases,
    "carafe": _carafe_cases,
    "involution": _involution_cases,
    "local_filter1d": on_a_line(
        _plain_cases, {"x": without(2), "weight": without(2, 4), "channel_weight": without(2)}
    ),
    "mixed_filter2d": _mixed_filter2d_cases,
    "mixed_filter1d": on_a_line(
        _mixed_filter2d_cases, {"x": without(2), "kernels": _without_row, "mixture": without(3)}
    ),
}
CASES = {
    "correlation2d": _correlation2d_cases,
    **{name: with_border(cases) for name, cases in _WITH_BORDER.items()},
}

X = (2, 4, 6, 5)
GOOD = {
    "correlation2d": Good({"x1": X, "x2": X}, {"max_displacement": 3, "step": 2}, (2, 9, 6, 5)),
    "local_filter2d": Good({"x": X, "weight": (2, 2, 3, 3, 6, 5), "channel_weight": (2, 4, 3, 3)}, {}, X),
    "ddf": Good({"x": X, "channel_filter": (2, 4, 3, 3), "spatial_filter": (2, 2, 3, 3, 6, 5)}, {}, X),
    "ddf_upsample": Good(
        {"x": X, "channel_filters": (2, 2, 2, 4, 3, 3), "spatial_filters": (2, 2, 3, 3, 12, 10)},
        {},
        (2, 4, 12, 10),
    ),
    "carafe": Good(
        {"x": X, "masks": (2, 18, 12, 10)},
        {"kernel_size": 3, "groups": 2, "scale": 2},
        (2, 4, 12, 10),
    ),
    "involution": Good({"x": X, "weight": (2, 2, 3, 3, 6, 5)}, {}, X),
    "local_filter1d": Good(
        {"x": (2, 4, 7), "weight": (2, 2, 3, 7), "channel_weight": (2, 4, 3)}, {}, (2, 4, 7)
    ),
    "mixed_filter2d": Good({"x": X, "kernels": (5, 4, 3, 3), "mixture": (2, 2, 5, 6, 5)}, {}, X),
    "mixed_filter1d": Good({"x": (2, 4, 7), "kernels": (5, 4, 3), "mixture": (2, 2, 5, 7)}, {}, (2, 4, 7)),
}

SYMBOLS = {
    "correlation2d": {"x1": "N, C, H, W", "x2": "N, C, H, W"},
    "local_filter2d": {"x": "N, C, H, W", "weight": "N, G, kh, kw, Ho, Wo", "channel_weight": "N, C, kh, kw"},
    "ddf": {"x": "N, C, H, W", "channel_filter": "N, C, kh, kw", "spatial_filter": "N, G, kh, kw, Ho, Wo"},
    "ddf_upsample": {
        "x": "N, C, H, W",
        "channel_filters": "N, u, u, C, kh, kw",
        "spatial_filters": "N, G, kh, kw, Ho, Wo",
    },
    "carafe": {"x": "N, C, H, W", "masks": "N, G*kh*kw, scale*H, scale*W"},
    "involution": {"x": "N, C, H, W", "weight": "N, G, kh, kw, Ho, Wo"},
    "local_filter1d": {"x": "N, C, L", "weight": "N, G, k, Lo", "channel_weight": "N, C, k"},
    "mixed_filter2d": {"x": "N, C, H, W", "kernels": "B, C, kh, kw", "mixture": "N, G, B, Ho, Wo"},
    "mixed_filter1d": {"x": "N, C, L", "kernels": "B, C, k", "mixture": "N, G, B, Lo"},
}

_TAPS = "N, G, kh, kw, Ho, Wo"
_ODD = ("padding", "odd", "(2, 3)")

# Sizes that do not fit the other arrays, and values that parameters cannot have.
BAD = [
    Bad("local_filter2d", {"weight": (3, 2, 3, 3, 6, 5)}, ValueError, ("weight", _TAPS, "(2,", "(3, 2, 3,")),
    Bad("local_filter2d", {"weight": (2, 2, 3, 3, 7, 5)}, ValueError, ("weight", "6, 5)", "3, 3, 7, 5)")),
    Bad("local_filter2d", {"weight": (2, 2, 3, 3, 6, 4)}, ValueError, ("weight", "6, 5)", "3, 3, 6, 4)")),
    Bad("local_filter2d", {"weight": (2, 3, 3, 3, 6, 5)}, ValueError, ("weight", "G = 3", "C = 4", "divide")),
    Bad("local_filter2d", {"weight": (2, 0, 3, 3, 6, 5)}, ValueError, ("weight", "G = 0", "C = 4")),
    Bad("local_filter2d", {"weight": (2, 2, 0, 3, 6, 5)}, ValueError, ("weight", "kernel", "(0, 3)")),
    Bad("local_filter2d", {"weight": (2, 2, 2, 3, 6, 5)}, ValueError, _ODD),
    Bad("local_filter2d", {"channel_weight": (2, 4, 3, 1)}, ValueError, ("channel_weight", "3)", "3, 1)")),
    Bad(
        "local_filter2d",
        {"channel_weight": (2, 5, 3, 3)},
        ValueError,
        ("channel_weight", "4,", "(2, 5, 3, 3)"),
    ),
    Bad("local_filter2d", {"channel_weight": (1, 4, 3, 3)}, ValueError, ("channel_weight", "(1, 4, 3, 3)")),
    Bad("local_filter2d", {"stride": 2}, ValueError, ("weight", "3, 3)", "(2, 2, 3, 3, 6, 5)")),
    Bad("local_filter2d", {"stride": 0}, ValueError, ("stride", "at least 1", "got 0")),
    Bad("local_filter2d", {"stride": (1, 2, 3)}, TypeError, ("stride", "int", "(y, x)", "(1, 2, 3)")),
    Bad("local_filter2d", {"stride": 1.5}, TypeError, ("stride", "int", "1.5")),
    Bad("local_filter2d", {"dilation": (1, -1)}, ValueError, ("dilation", "at least 1", "(1, -1)")),
    Bad("local_filter2d", {"dilation": "2"}, TypeError, ("dilation", "int", "'2'")),
    Bad("local_filter2d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    Bad("local_filter2d", {"padding": "same"}, TypeError, ("padding", "int", "'same'")),
    Bad("local_filter2d", {"padding": 5}, ValueError, ("weight", "14, 13)", "6, 5)")),
    Bad("local_filter2d", {"combine": "sub"}, ValueError, ("combine", "'mul'", "'add'", "'sub'")),
    Bad("local_filter2d", {"combine": None}, ValueError, ("combine", "'mul'", "'add'", "None")),
    Bad("local_filter2d", {"upsample": 0}, ValueError, ("upsample", "at least 1", "got 0")),
    Bad("local_filter2d", {"upsample": 2.0}, TypeError, ("upsample", "int", "2.0")),
    Bad("local_filter2d", {"upsample": 2}, ValueError, ("weight", "12, 10)", "6, 5)")),
    Bad("local_filter2d", {"upsample": 2, "stride": 2}, ValueError, ("stride", "1", "upsampling", "got 2")),
    Bad("local_filter2d", {"upsample": 2, "padding": 1}, ValueError, ("padding", "None", "upsampling", "1")),
    Bad("ddf", {"spatial_filter": (2, 2, 3, 3, 5, 6)}, ValueError, ("spatial_filter", "6, 5)", "5, 6)")),
    Bad("ddf", {"spatial_filter": (2, 3, 3, 3, 6, 5)}, ValueError, ("spatial_filter", "G = 3", "C = 4")),
    Bad("ddf", {"spatial_filter": (2, 2, 3, 2, 6, 5)}, ValueError, ("odd", "(3, 2)")),
    Bad(
        "ddf",
        {"channel_filter": (2, 4, 5, 3)},
        ValueError,
        ("channel_filter", "N, C, kh, kw", "(2, 4, 5, 3)"),
    ),
    Bad(
        "ddf",
        {"channel_filter": (2, 2, 3, 3)},
        ValueError,
        ("channel_filter", "(2, 4, 3, 3)", "(2, 2, 3, 3)"),
    ),
    Bad("ddf", {"channel_filter": None}, TypeError, ("channel_filter", "array", "NoneType")),
    Bad("ddf", {"combine": 1}, ValueError, ("combine", "'mul'", "'add'", "got 1")),
    Bad("ddf", {"stride": (0, 1)}, ValueError, ("stride", "at least 1", "(0, 1)")),
    Bad("ddf", {"dilation": True}, TypeError, ("dilation", "int", "True")),
    Bad(
        "ddf_upsample",
        {"channel_filters": (2, 2, 3, 4, 3, 3)},
        ValueError,
        ("channel_filters", "N, u, u", "2, 3"),
    ),
    Bad(
        "ddf_upsample",
        {"channel_filters": (2, 0, 0, 4, 3, 3)},
        ValueError,
        ("channel_filters", "at least 1", "0"),
    ),
    Bad(
        "ddf_upsample",
        {"channel_filters": (2, 3, 3, 4, 3, 3)},
        ValueError,
        ("spatial_filters", "18, 15)", "12, 10)"),
    ),
    Bad(
        "ddf_upsample",
        {"channel_filters": (2, 2, 2, 5, 3, 3)},
        ValueError,
        ("channel_filters", "4, 3, 3)", "5, 3, 3)"),
    ),
    Bad(
        "ddf_upsample",
        {"spatial_filters": (2, 2, 3, 3, 12, 11)},
        ValueError,
        ("spatial_filters", "12, 10)", "12, 11)"),
    ),
    Bad(
        "ddf_upsample",
        {"spatial_filters": (2, 2, 3, 3, 6, 5)},
        ValueError,
        ("spatial_filters", "12, 10)", "6, 5)"),
    ),
    Bad("ddf_upsample", {"dilation": 0}, ValueError, ("dilation", "at least 1", "got 0")),
    Bad("ddf_upsample", {"combine": "MUL"}, ValueError, ("combine", "'mul'", "'add'", "'MUL'")),
    Bad("carafe", {"masks": (2, 17, 12, 10)}, ValueError, ("masks", "G*kh*kw", "18", "(2, 17, 12, 10)")),
    Bad("carafe", {"masks": (2, 18, 6, 5)}, ValueError, ("masks", "12, 10)", "(2, 18, 6, 5)")),
    Bad("carafe", {"masks": (1, 18, 12, 10)}, ValueError, ("masks", "(2, 18, 12, 10)", "(1, 18, 12, 10)")),
    Bad("carafe", {"kernel_size": 5}, ValueError, ("masks", "(2, 50, 12, 10)", "(2, 18, 12, 10)")),
    Bad("carafe", {"kernel_size": 4}, ValueError, ("kernel_size", "odd", "4")),
    Bad("carafe", {"kernel_size": (3, 2)}, ValueError, ("kernel_size", "odd", "(3, 2)")),
    Bad("carafe", {"kernel_size": 0}, ValueError, ("kernel_size", "at least 1", "0")),
    Bad("carafe", {"kernel_size": None}, TypeError, ("kernel_size", "int", "None")),
    Bad("carafe", {"groups": 3, "masks": (2, 27, 12, 10)}, ValueError, ("masks", "G = 3", "C = 4")),
    Bad("carafe", {"groups": 0}, ValueError, ("groups", "at least 1", "0")),
    Bad("carafe", {"groups": (2, 2)}, TypeError, ("groups", "int", "(2, 2)")),
    Bad("carafe", {"scale": 3}, ValueError, ("masks", "(2, 18, 18, 15)", "(2, 18, 12, 10)")),
    Bad("carafe", {"scale": -2}, ValueError, ("scale", "at least 1", "-2")),
    Bad("carafe", {"scale": 1.0}, TypeError, ("scale", "int", "1.0")),
    Bad("involution", {"weight": (2, 3, 3, 3, 6, 5)}, ValueError, ("weight", "G = 3", "C = 4")),
    Bad("involution", {"weight": (2, 2, 3, 3, 6, 6)}, ValueError, ("weight", "6, 5)", "6, 6)")),
    Bad("involution", {"weight": (2, 2, 2, 3, 6, 5)}, ValueError, _ODD),
    Bad("involution", {"stride": None}, TypeError, ("stride", "int", "None")),
    Bad("involution", {"padding": (1, 2, 3)}, TypeError, ("padding", "(y, x)", "(1, 2, 3)")),
    Bad("involution", {"dilation": [0, 1]}, ValueError, ("dilation", "at least 1", "[0, 1]")),
    Bad("correlation2d", {"x2": (2, 4, 6, 6)}, ValueError, ("x2", "(2, 4, 6, 5)", "(2, 4, 6, 6)")),
    Bad("correlation2d", {"x2": (2, 3, 6, 5)}, ValueError, ("x2", "(2, 4, 6, 5)", "(2, 3, 6, 5)")),
    Bad("correlation2d", {"max_displacement": -1}, ValueError, ("max_displacement", "at least 0", "-1")),
    Bad("correlation2d", {"max_displacement": 2**70}, ValueError, ("max_displacement", "at most", "got")),
    Bad("correlation2d", {"max_displacement": None}, TypeError, ("max_displacement", "int", "None")),
    Bad("correlation2d", {"max_displacement": (1, 1)}, TypeError, ("max_displacement", "int", "(1, 1)")),
    Bad("correlation2d", {"step": 0}, ValueError, ("step", "at least 1", "got 0")),
    Bad("correlation2d", {"step": 1.0}, TypeError, ("step", "int", "1.0")),
    # Lines.
    Bad("local_filter1d", {"weight": (2, 3, 3, 7)}, ValueError, ("weight", "G = 3", "C = 4", "divide")),
    Bad("local_filter1d", {"weight": (2, 2, 3, 6)}, ValueError, ("weight", "3, 7)", "3, 6)")),
    Bad("local_filter1d", {"weight": (2, 2, 0, 7)}, ValueError, ("weight", "kernel", "(0,)")),
    Bad("local_filter1d", {"weight": (2, 2, 2, 7)}, ValueError, ("padding", "odd", "(2,)")),
    Bad("local_filter1d", {"channel_weight": (2, 4, 5)}, ValueError, ("channel_weight", "4, 3)", "4, 5)")),
    Bad("local_filter1d", {"combine": "sub"}, ValueError, ("combine", "'mul'", "'add'", "'sub'")),
    Bad("local_filter1d", {"stride": 2}, ValueError, ("weight", "3, 4)", "3, 7)")),
    Bad("local_filter1d", {"stride": (1, 1)}, TypeError, ("stride", "int", "(1, 1)")),
    Bad("local_filter1d", {"dilation": 0}, ValueError, ("dilation", "at least 1", "got 0")),
    Bad("local_filter1d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    # Mixtures of kernels.
    Bad("mixed_filter2d", {"kernels": (3, 3)}, ValueError, ("kernels", "(B, kh, kw)", "(3, 3)")),
    Bad("mixed_filter2d", {"kernels": (5, 1, 3, 3)}, ValueError, ("kernels", "(B, 4, kh, kw)", "(5, 1, 3,")),
    Bad("mixed_filter2d", {"kernels": (4, 3, 3)}, ValueError, ("mixture", "(2, G, 4, Ho", "(2, 2, 5, 6, 5)")),
    Bad("mixed_filter2d", {"kernels": (5, 0, 3)}, ValueError, ("kernels", "kernel", "(0, 3)")),
    Bad("mixed_filter2d", {"kernels": (5, 2, 3)}, ValueError, _ODD),
    Bad("mixed_filter2d", {"mixture": (1, 2, 5, 6, 5)}, ValueError, ("mixture", "(2, G, 5,", "(1, 2, 5,")),
    Bad("mixed_filter2d", {"mixture": (2, 3, 5, 6, 5)}, ValueError, ("mixture", "G = 3", "C = 4", "divide")),
    Bad("mixed_filter2d", {"mixture": (2, 0, 5, 6, 5)}, ValueError, ("mixture", "G = 0", "C = 4")),
    Bad("mixed_filter2d", {"mixture": (2, 2, 5, 6, 4)}, ValueError, ("mixture", "6, 5)", "6, 4)")),
    Bad("mixed_filter2d", {"stride": 2}, ValueError, ("mixture", "3, 3)", "6, 5)")),
    Bad("mixed_filter2d", {"stride": 0}, ValueError, ("stride", "at least 1", "got 0")),
    Bad("mixed_filter2d", {"dilation": "2"}, TypeError, ("dilation", "int", "'2'")),
    Bad("mixed_filter2d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    Bad("mixed_filter2d", {"padding": 5}, ValueError, ("mixture", "14, 13)", "6, 5)")),
    Bad("mixed_filter2d", {"border": "zero"}, ValueError, ("border", "'constant'", "'zero'")),
    Bad("mixed_filter2d", {"border": 0}, ValueError, ("border", "'constant'", "got 0")),
    Bad("mixed_filter1d", {"kernels": (3,)}, ValueError, ("kernels", "(B, k)", "(B, C, k)", "(3,)")),
    Bad("mixed_filter1d", {"kernels": (5, 3, 3)}, ValueError, ("kernels", "(B, 4, k)", "(5, 3, 3)")),
    Bad("mixed_filter1d", {"kernels": (5, 2)}, ValueError, ("padding", "odd", "(2,)")),
    Bad("mixed_filter1d", {"mixture": (2, 2, 5, 6)}, ValueError, ("mixture", "5, 7)", "5, 6)")),
    Bad("mixed_filter1d", {"stride": (1, 1)}, TypeError, ("stride", "int", "(1, 1)")),
    Bad("mixed_filter1d", {"dilation": 0}, ValueError, ("dilation", "at least 1", "got 0")),
    Bad("mixed_filter1d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    Bad("mixed_filter1d", {"border": None}, ValueError, ("border", "'constant'", "None")),
    *bad_borders("local_filter2d", "local_filter1d", "ddf", "ddf_upsample", "carafe", "involution"),
]

_N = LARGE_IMAGES[0]
_WHOLE = "its outputs are larger than the images"
LARGE = {
    "local_filter2d": Large(
        {"weight": (_N, 1, 3, 3, 2, 2), "channel_weight": (_N, 1, 3, 3)},
        {"stride": LARGE_STRIDE, "padding": 0},
    ),
    "ddf_upsample": _WHOLE,
    "carafe": _WHOLE,
    "correlation2d": _WHOLE,
    "mixed_filter2d": Large(
        {"kernels": (2, 3, 3), "mixture": (_N, 1, 2, 2, 2)}, {"stride": LARGE_STRIDE, "padding": 0}
    ),
}

# Of so many channels as to go the same way as large calls of many, or of few.
_SMALL = {"x": (1, 9, 12, 12), "weight": (1, 1, 3, 3, 12, 12), "channel_weight": (1, 9, 3, 3)}
_SMALL_OF_FEW = {"x": (1, 2, 12, 12), "weight": (1, 1, 3, 3, 12, 12)}
HEAVY = {
    "ddf": Heavy(
        "local_filter2d",
        {"x": (1, 64, 512, 512), "weight": (1, 1, 3, 3, 512, 512), "channel_weight": (1, 64, 3, 3)},
        {},
        _SMALL,
        {},
    ),
    "strided": Heavy(
        "local_filter2d",
        {"x": (1, 64, 512, 512), "weight": (1, 1, 3, 3, 256, 256), "channel_weight": (1, 64, 3, 3)},
        {"stride": 2},
        {**_SMALL, "weight": (1, 1, 3, 3, 6, 6)},
        {"stride": 2},
    ),
    "involution": Heavy(
        "involution",
        {"x": (1, 64, 160, 160), "weight": (1, 16, 7, 7, 160, 160)},
        {},
        _SMALL_OF_FEW,
        {},
    ),
    "carafe": Heavy(
        "carafe",
        {"x": (1, 64, 256, 256), "masks": (1, 25, 512, 512)},
        {"kernel_size": 5},
        {"x": (1, 9, 12, 12), "masks": (1, 9, 24, 24)},
        {"kernel_size": 3},
    ),
    "correlation": Heavy(
        "correlation2d",
        {"x1": (1, 64, 512, 512), "x2": (1, 64, 512, 512)},
        {"max_displacement": 2, "step": 1},
        {"x1": (1, 150, 8, 1800), "x2": (1, 150, 8, 1800)},  # as large as it has to be to go the same way
        {"max_displacement": 1},
    ),
    "one wide image": Heavy(
        "local_filter2d",
        {"x": (1, 1, 64, 262144), "weight": (1, 1, 3, 3, 64, 262144)},
        {},
        _SMALL_OF_FEW,
        {},
    ),
    "mixed": Heavy(
        "mixed_filter2d",
        {"x": (1, 3, 1024, 2048), "kernels": (6, 15, 15), "mixture": (1, 1, 6, 1024, 2048)},
        {},
        {"x": (1, 1, 1, 1), "kernels": (1, 1, 1), "mixture": (1, 1, 1, 1, 1)},
        {"padding": 0},
    ),
}
