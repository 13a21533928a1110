"""Calls that must be refused, and the words that their messages must hold.

Written from the definitions of the operators, not from what the code says: each message names the operator
and the argument, and says what was expected (a shape in symbols, with numbers where other arguments give
them) and what was given.
"""

from typing import Any, NamedTuple

import numpy as np

# One good call of each operator: shapes of its arrays, its parameters, the shape of its output.
X = (2, 4, 6, 5)
GOOD: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any], tuple[int, ...]]] = {
    "local_filter2d": ({"x": X, "weight": (2, 2, 3, 3, 6, 5), "channel_weight": (2, 4, 3, 3)}, {}, X),
    "ddf": ({"x": X, "channel_filter": (2, 4, 3, 3), "spatial_filter": (2, 2, 3, 3, 6, 5)}, {}, X),
    "ddf_upsample": (
        {"x": X, "channel_filters": (2, 2, 2, 4, 3, 3), "spatial_filters": (2, 2, 3, 3, 12, 10)},
        {},
        (2, 4, 12, 10),
    ),
    "carafe": (
        {"x": X, "masks": (2, 18, 12, 10)},
        {"kernel_size": 3, "groups": 2, "scale": 2},
        (2, 4, 12, 10),
    ),
    "involution": ({"x": X, "weight": (2, 2, 3, 3, 6, 5)}, {}, X),
    "dynamic_conv2d": ({"x": X, "weight": (2, 3, 4, 3, 3, 6, 5)}, {}, (2, 3, 6, 5)),
    "dynamic_sampling_conv2d": (
        {
            "x": X,
            "channel_kernel": (2, 3, 4, 6, 5),
            "spatial_kernel": (2, 3, 3, 1, 6, 5),
            "sample_attention": (2, 3, 2, 2, 6, 5),
            "position_attention": (2, 3, 3, 1, 6, 5),
        },
        {"samples": 2},
        (2, 3, 6, 5),
    ),
    "displaced_conv2d": (
        {"x": X, "weight": (3, 4, 2), "displacement": (3, 4, 2, 2), "sigma": (), "bias": (3,)},
        {},
        (2, 3, 6, 5),
    ),
    "deform_conv2d": (
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
    "sample_points": ({"x": X, "points": (2, 3, 2, 7, 8)}, {}, (2, 4, 3, 7, 8)),
    "atom_conv2d": (
        {"x": X, "atoms": (2, 3, 3, 3, 6, 5), "coefficients": (7, 4, 3), "bias": (7,)},
        {},
        (2, 7, 6, 5),
    ),
    "compose_atoms": ({"alpha": (2, 3, 4, 6, 5), "bases": (4, 3, 1)}, {}, (2, 3, 3, 1, 6, 5)),
}

# The shape of every array in symbols.
SYMBOLS = {
    "local_filter2d": {"x": "N, C, H, W", "weight": "N, G, kh, kw, Ho, Wo", "channel_weight": "N, C, kh, kw"},
    "ddf": {"x": "N, C, H, W", "channel_filter": "N, C, kh, kw", "spatial_filter": "N, G, kh, kw, Ho, Wo"},
    "ddf_upsample": {
        "x": "N, C, H, W",
        "channel_filters": "N, u, u, C, kh, kw",
        "spatial_filters": "N, G, kh, kw, Ho, Wo",
    },
    "carafe": {"x": "N, C, H, W", "masks": "N, G*kh*kw, scale*H, scale*W"},
    "involution": {"x": "N, C, H, W", "weight": "N, G, kh, kw, Ho, Wo"},
    "dynamic_conv2d": {"x": "N, C, H, W", "weight": "N, O, C, kh, kw, Ho, Wo"},
    "dynamic_sampling_conv2d": {
        "x": "N, C, H, W",
        "channel_kernel": "N, O, C, Ho, Wo",
        "spatial_kernel": "N, O, kh, kw, Ho, Wo",
        "sample_attention": "N, O, S, S, Ho, Wo",
        "position_attention": "N, O, kh, kw, H, W",
    },
    "displaced_conv2d": {
        "x": "N, C, H, W",
        "weight": "O, C, G",
        "displacement": "O, C, G, 2",
        "sigma": "",
        "bias": "O",
    },
    "deform_conv2d": {
        "x": "N, C, H, W",
        "offset": "N, D, kh, kw, 2, Ho, Wo",
        "weight": "O, C/groups, kh, kw",
        "mask": "N, D, kh, kw, Ho, Wo",
        "bias": "O",
    },
    "sample_points": {"x": "N, C, H, W", "points": "N, P, 2, Ho, Wo"},
    "atom_conv2d": {
        "x": "N, C, H, W",
        "atoms": "N, M, kh, kw, Ho, Wo",
        "coefficients": "O, C, M",
        "bias": "O",
    },
    "compose_atoms": {"alpha": "N, M, B, Ho, Wo", "bases": "B, kh, kw"},
}


class Bad(NamedTuple):
    """A good call with other arguments, the exception, and words of its message.

    Of an array a tuple is the shape; anything else, and any value of a parameter, is given as it is.
    """

    operator: str
    changes: dict[str, Any]
    error: type[Exception]
    words: tuple[str, ...]


def _of_every_array() -> list[Bad]:
    rows = []
    for operator, (shapes, _, _) in GOOD.items():
        first = next(iter(shapes))
        for name, shape in shapes.items():
            symbols, single, higher = SYMBOLS[operator][name], np.ones(shape, np.float32), (1, *shape)
            other = name if name != first else list(shapes)[1]  # the first array is what others are held to
            rows += [
                Bad(operator, {name: [1.0]}, TypeError, (name, "array", "[1.0]" if not shape else "list")),
                Bad(operator, {name: single}, TypeError, (other, "dtype", "float32", "float64")),
                Bad(operator, {name: higher}, ValueError, (name, "shape", f"({symbols})", str(higher))),
            ]
    return rows


def _of_every_operator() -> list[Bad]:
    rows = []
    for operator, (shapes, _, output) in GOOD.items():
        first, *_ = shapes
        wrong = (*output[:-1], output[-1] + 1)
        rows += [
            Bad(operator, {"strides": 2}, TypeError, ("strides",)),
            Bad(operator, {first: None}, TypeError, (first, "array", "NoneType")),
            Bad(operator, {"grad_output": wrong}, ValueError, ("grad_output", str(output), str(wrong))),
            Bad(operator, {"grad_output": None}, TypeError, ("grad_output", "array", "NoneType")),
            Bad(operator, {"needs": (True,)}, ValueError, ("needs", "bool", *shapes, "(True,)")),
        ]
    return rows


_TAPS = "N, G, kh, kw, Ho, Wo"
_ODD = ("padding", "odd", "(2, 3)")

# Sizes that do not fit the other arrays, and values that parameters cannot have.
_BY_HAND = [
    # Local filters.
    ("local_filter2d", {"weight": (3, 2, 3, 3, 6, 5)}, ValueError, ("weight", _TAPS, "(2,", "(3, 2, 3,")),
    ("local_filter2d", {"weight": (2, 2, 3, 3, 7, 5)}, ValueError, ("weight", "6, 5)", "3, 3, 7, 5)")),
    ("local_filter2d", {"weight": (2, 2, 3, 3, 6, 4)}, ValueError, ("weight", "6, 5)", "3, 3, 6, 4)")),
    ("local_filter2d", {"weight": (2, 3, 3, 3, 6, 5)}, ValueError, ("weight", "G = 3", "C = 4", "divide")),
    ("local_filter2d", {"weight": (2, 0, 3, 3, 6, 5)}, ValueError, ("weight", "G = 0", "C = 4")),
    ("local_filter2d", {"weight": (2, 2, 0, 3, 6, 5)}, ValueError, ("weight", "kernel", "(0, 3)")),
    ("local_filter2d", {"weight": (2, 2, 2, 3, 6, 5)}, ValueError, _ODD),
    ("local_filter2d", {"channel_weight": (2, 4, 3, 1)}, ValueError, ("channel_weight", "3)", "3, 1)")),
    (
        "local_filter2d",
        {"channel_weight": (2, 5, 3, 3)},
        ValueError,
        ("channel_weight", "4,", "(2, 5, 3, 3)"),
    ),
    ("local_filter2d", {"channel_weight": (1, 4, 3, 3)}, ValueError, ("channel_weight", "(1, 4, 3, 3)")),
    ("local_filter2d", {"stride": 2}, ValueError, ("weight", "3, 3)", "(2, 2, 3, 3, 6, 5)")),
    ("local_filter2d", {"stride": 0}, ValueError, ("stride", "at least 1", "got 0")),
    ("local_filter2d", {"stride": (1, 2, 3)}, TypeError, ("stride", "int", "(y, x)", "(1, 2, 3)")),
    ("local_filter2d", {"stride": 1.5}, TypeError, ("stride", "int", "1.5")),
    ("local_filter2d", {"dilation": (1, -1)}, ValueError, ("dilation", "at least 1", "(1, -1)")),
    ("local_filter2d", {"dilation": "2"}, TypeError, ("dilation", "int", "'2'")),
    ("local_filter2d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    ("local_filter2d", {"padding": "same"}, TypeError, ("padding", "int", "'same'")),
    ("local_filter2d", {"padding": 5}, ValueError, ("weight", "14, 13)", "6, 5)")),
    ("local_filter2d", {"combine": "sub"}, ValueError, ("combine", "'mul'", "'add'", "'sub'")),
    ("local_filter2d", {"combine": None}, ValueError, ("combine", "'mul'", "'add'", "None")),
    ("local_filter2d", {"upsample": 0}, ValueError, ("upsample", "at least 1", "got 0")),
    ("local_filter2d", {"upsample": 2.0}, TypeError, ("upsample", "int", "2.0")),
    ("local_filter2d", {"upsample": 2}, ValueError, ("weight", "12, 10)", "6, 5)")),
    ("local_filter2d", {"upsample": 2, "stride": 2}, ValueError, ("stride", "1", "upsampling", "got 2")),
    ("local_filter2d", {"upsample": 2, "padding": 1}, ValueError, ("padding", "None", "upsampling", "1")),
    ("ddf", {"spatial_filter": (2, 2, 3, 3, 5, 6)}, ValueError, ("spatial_filter", "6, 5)", "5, 6)")),
    ("ddf", {"spatial_filter": (2, 3, 3, 3, 6, 5)}, ValueError, ("spatial_filter", "G = 3", "C = 4")),
    ("ddf", {"spatial_filter": (2, 2, 3, 2, 6, 5)}, ValueError, ("odd", "(3, 2)")),
    ("ddf", {"channel_filter": (2, 4, 5, 3)}, ValueError, ("channel_filter", "N, C, kh, kw", "(2, 4, 5, 3)")),
    ("ddf", {"channel_filter": (2, 2, 3, 3)}, ValueError, ("channel_filter", "(2, 4, 3, 3)", "(2, 2, 3, 3)")),
    ("ddf", {"channel_filter": None}, TypeError, ("channel_filter", "array", "NoneType")),
    ("ddf", {"combine": 1}, ValueError, ("combine", "'mul'", "'add'", "got 1")),
    ("ddf", {"stride": (0, 1)}, ValueError, ("stride", "at least 1", "(0, 1)")),
    ("ddf", {"dilation": True}, TypeError, ("dilation", "int", "True")),
    (
        "ddf_upsample",
        {"channel_filters": (2, 2, 3, 4, 3, 3)},
        ValueError,
        ("channel_filters", "N, u, u", "2, 3"),
    ),
    (
        "ddf_upsample",
        {"channel_filters": (2, 0, 0, 4, 3, 3)},
        ValueError,
        ("channel_filters", "at least 1", "0"),
    ),
    (
        "ddf_upsample",
        {"channel_filters": (2, 3, 3, 4, 3, 3)},
        ValueError,
        ("spatial_filters", "18, 15)", "12, 10)"),
    ),
    (
        "ddf_upsample",
        {"channel_filters": (2, 2, 2, 5, 3, 3)},
        ValueError,
        ("channel_filters", "4, 3, 3)", "5, 3, 3)"),
    ),
    (
        "ddf_upsample",
        {"spatial_filters": (2, 2, 3, 3, 12, 11)},
        ValueError,
        ("spatial_filters", "12, 10)", "12, 11)"),
    ),
    (
        "ddf_upsample",
        {"spatial_filters": (2, 2, 3, 3, 6, 5)},
        ValueError,
        ("spatial_filters", "12, 10)", "6, 5)"),
    ),
    ("ddf_upsample", {"dilation": 0}, ValueError, ("dilation", "at least 1", "got 0")),
    ("ddf_upsample", {"combine": "MUL"}, ValueError, ("combine", "'mul'", "'add'", "'MUL'")),
    ("carafe", {"masks": (2, 17, 12, 10)}, ValueError, ("masks", "G*kh*kw", "18", "(2, 17, 12, 10)")),
    ("carafe", {"masks": (2, 18, 6, 5)}, ValueError, ("masks", "12, 10)", "(2, 18, 6, 5)")),
    ("carafe", {"masks": (1, 18, 12, 10)}, ValueError, ("masks", "(2, 18, 12, 10)", "(1, 18, 12, 10)")),
    ("carafe", {"kernel_size": 5}, ValueError, ("masks", "(2, 50, 12, 10)", "(2, 18, 12, 10)")),
    ("carafe", {"kernel_size": 4}, ValueError, ("kernel_size", "odd", "4")),
    ("carafe", {"kernel_size": 0}, ValueError, ("kernel_size", "at least 1", "0")),
    ("carafe", {"kernel_size": None}, TypeError, ("kernel_size", "int", "None")),
    ("carafe", {"groups": 3, "masks": (2, 27, 12, 10)}, ValueError, ("masks", "G = 3", "C = 4")),
    ("carafe", {"groups": 0}, ValueError, ("groups", "at least 1", "0")),
    ("carafe", {"groups": (2, 2)}, TypeError, ("groups", "int", "(2, 2)")),
    ("carafe", {"scale": 3}, ValueError, ("masks", "(2, 18, 18, 15)", "(2, 18, 12, 10)")),
    ("carafe", {"scale": -2}, ValueError, ("scale", "at least 1", "-2")),
    ("carafe", {"scale": 1.0}, TypeError, ("scale", "int", "1.0")),
    ("involution", {"weight": (2, 3, 3, 3, 6, 5)}, ValueError, ("weight", "G = 3", "C = 4")),
    ("involution", {"weight": (2, 2, 3, 3, 6, 6)}, ValueError, ("weight", "6, 5)", "6, 6)")),
    ("involution", {"weight": (2, 2, 2, 3, 6, 5)}, ValueError, _ODD),
    ("involution", {"stride": None}, TypeError, ("stride", "int", "None")),
    ("involution", {"padding": (1, 2, 3)}, TypeError, ("padding", "(y, x)", "(1, 2, 3)")),
    ("involution", {"dilation": [0, 1]}, ValueError, ("dilation", "at least 1", "[0, 1]")),
    # Kernels per pixel.
    ("dynamic_conv2d", {"weight": (1, 3, 4, 3, 3, 6, 5)}, ValueError, ("weight", "(2, O, 4", "(1, 3, 4,")),
    ("dynamic_conv2d", {"weight": (2, 3, 5, 3, 3, 6, 5)}, ValueError, ("weight", "(2, O, 4", "(2, 3, 5,")),
    ("dynamic_conv2d", {"weight": (2, 3, 4, 3, 3, 6, 7)}, ValueError, ("weight", "6, 5)", "6, 7)")),
    ("dynamic_conv2d", {"weight": (2, 3, 4, 3, 0, 6, 5)}, ValueError, ("weight", "kernel", "(3, 0)")),
    ("dynamic_conv2d", {"weight": (2, 3, 4, 2, 3, 6, 5)}, ValueError, _ODD),
    ("dynamic_conv2d", {"stride": (2, 1)}, ValueError, ("weight", "3, 5)", "6, 5)")),
    ("dynamic_conv2d", {"stride": -1}, ValueError, ("stride", "at least 1", "-1")),
    ("dynamic_conv2d", {"dilation": 0.5}, TypeError, ("dilation", "int", "0.5")),
    ("dynamic_conv2d", {"padding": (0, -1)}, ValueError, ("padding", "at least 0", "(0, -1)")),
    (
        "dynamic_sampling_conv2d",
        {"channel_kernel": (2, 3, 5, 6, 5)},
        ValueError,
        ("channel_kernel", "4", "3, 5, 6"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"channel_kernel": (2, 3, 4, 6, 6)},
        ValueError,
        ("channel_kernel", "6, 5)", "6, 6)"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"spatial_kernel": (2, 4, 3, 1, 6, 5)},
        ValueError,
        ("spatial_kernel", "(2, 3", "(2, 4"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"spatial_kernel": (2, 3, 2, 1, 6, 5)},
        ValueError,
        ("spatial_kernel", "odd", "(2, 1)"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"spatial_kernel": (2, 3, 0, 1, 6, 5)},
        ValueError,
        ("spatial_kernel", "1", "(0, 1)"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"sample_attention": (2, 3, 3, 3, 6, 5)},
        ValueError,
        ("sample_attention", "2, 2", "3, 3, 3"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"sample_attention": (2, 3, 2, 2, 6, 4)},
        ValueError,
        ("sample_attention", "6, 5)", "6, 4)"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"position_attention": (2, 3, 3, 3, 6, 5)},
        ValueError,
        ("position_attention", "3, 1,", "3, 3, 3"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"position_attention": (2, 3, 3, 1, 5, 5)},
        ValueError,
        ("position_attention", "6, 5)", "5, 5)"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"samples": 3},
        ValueError,
        ("sample_attention", "3, 3, 6, 5)", "2, 2, 6, 5)"),
    ),
    ("dynamic_sampling_conv2d", {"samples": 0}, ValueError, ("samples", "at least 1", "0")),
    ("dynamic_sampling_conv2d", {"samples": (2, 2)}, TypeError, ("samples", "int", "(2, 2)")),
    ("dynamic_sampling_conv2d", {"sample_stride": 0}, ValueError, ("sample_stride", "at least 1", "0")),
    ("dynamic_sampling_conv2d", {"dilation": None}, TypeError, ("dilation", "int", "None")),
    ("dynamic_sampling_conv2d", {"stride": 2}, ValueError, ("channel_kernel", "3, 3)", "6, 5)")),
    ("dynamic_sampling_conv2d", {"kernel_residual": 1}, TypeError, ("kernel_residual", "bool", "1")),
    (
        "dynamic_sampling_conv2d",
        {"attention_residual": None},
        TypeError,
        ("attention_residual", "bool", "None"),
    ),
    (
        "dynamic_sampling_conv2d",
        {"fuse": "mean"},
        ValueError,
        ("fuse", "'sum'", "'max'", "'stack'", "'mean'"),
    ),
    # Displacements.
    ("displaced_conv2d", {"weight": (3, 5, 2)}, ValueError, ("weight", "(O, 4, G)", "(3, 5, 2)")),
    (
        "displaced_conv2d",
        {"displacement": (3, 4, 2, 3)},
        ValueError,
        ("displacement", "(3, 4, 2, 2)", "(3, 4, 2, 3)"),
    ),
    (
        "displaced_conv2d",
        {"displacement": (3, 4, 1, 2)},
        ValueError,
        ("displacement", "(3, 4, 2, 2)", "(3, 4, 1, 2)"),
    ),
    (
        "displaced_conv2d",
        {"displacement": (2, 4, 2, 2)},
        ValueError,
        ("displacement", "(3, 4, 2, 2)", "(2, 4, 2, 2)"),
    ),
    ("displaced_conv2d", {"bias": (4,)}, ValueError, ("bias", "(O)", "(3)", "(4,)")),
    ("displaced_conv2d", {"sigma": 0.0}, ValueError, ("sigma", "positive", "0.0")),
    ("displaced_conv2d", {"sigma": -1}, ValueError, ("sigma", "positive", "-1")),
    ("displaced_conv2d", {"sigma": float("nan")}, ValueError, ("sigma", "positive", "nan")),
    ("displaced_conv2d", {"sigma": float("inf")}, ValueError, ("sigma", "inf")),
    ("displaced_conv2d", {"sigma": True}, TypeError, ("sigma", "number", "True")),
    ("displaced_conv2d", {"sigma": "1"}, TypeError, ("sigma", "number", "array", "'1'")),
    ("displaced_conv2d", {"sigma": 1j}, TypeError, ("sigma", "number", "array", "1j")),
    ("displaced_conv2d", {"displacement_gradient": "rough"}, ValueError, ("'exact'", "'smooth'", "'rough'")),
    # Points.
    (
        "deform_conv2d",
        {"offset": (2, 2, 3, 3, 6, 5)},
        ValueError,
        ("offset", "N, D, kh, kw, 2, Ho, Wo", "3, 6, 5)"),
    ),
    ("deform_conv2d", {"offset": (2, 2, 3, 3, 3, 6, 5)}, ValueError, ("offset", "2, 6, 5)", "3, 6, 5)")),
    ("deform_conv2d", {"offset": (2, 3, 3, 3, 2, 6, 5)}, ValueError, ("offset", "D = 3", "C = 4", "divide")),
    ("deform_conv2d", {"offset": (2, 2, 3, 3, 2, 7, 5)}, ValueError, ("offset", "6, 5)", "7, 5)")),
    ("deform_conv2d", {"offset": (2, 2, 3, 1, 2, 6, 5)}, ValueError, ("offset", "3, 3, 2", "3, 1, 2")),
    ("deform_conv2d", {"offset": (2, 35, 6, 5)}, ValueError, ("offset", "2*D*kh*kw", "9", "(2, 35, 6, 5)")),
    ("deform_conv2d", {"offset": (2, 36, 6, 4)}, ValueError, ("offset", "6, 5)", "(2, 36, 6, 4)")),
    (
        "deform_conv2d",
        {"mask": (2, 1, 3, 3, 6, 5)},
        ValueError,
        ("mask", "(2, 2, 3, 3, 6, 5)", "(2, 1, 3, 3, 6, 5)"),
    ),
    ("deform_conv2d", {"mask": (2, 9, 6, 5)}, ValueError, ("mask", "D = 2", "9", "(2, 9, 6, 5)")),
    ("deform_conv2d", {"weight": (6, 3, 3, 3)}, ValueError, ("weight", "C/groups = 3", "C = 4")),
    ("deform_conv2d", {"weight": (5, 2, 3, 3)}, ValueError, ("weight", "O = 5", "groups = 2")),
    ("deform_conv2d", {"weight": (6, 2, 0, 3)}, ValueError, ("weight", "kernel", "(0, 3)")),
    ("deform_conv2d", {"bias": (5,)}, ValueError, ("bias", "(O)", "(6)", "(5,)")),
    ("deform_conv2d", {"padding": 0}, ValueError, ("offset", "4, 3)", "6, 5)")),
    ("deform_conv2d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    ("deform_conv2d", {"stride": 0}, ValueError, ("stride", "at least 1", "0")),
    ("deform_conv2d", {"dilation": (1,)}, TypeError, ("dilation", "(y, x)", "(1,)")),
    ("deform_conv2d", {"deterministic": 1}, TypeError, ("deterministic", "bool", "1")),
    ("sample_points", {"points": (3, 3, 2, 7, 8)}, ValueError, ("points", "(2, P, 2", "(3, 3, 2, 7, 8)")),
    ("sample_points", {"points": (2, 3, 3, 7, 8)}, ValueError, ("points", "(2, P, 2", "(2, 3, 3, 7, 8)")),
    ("sample_points", {"points": None}, TypeError, ("points", "array", "NoneType")),
    ("sample_points", {"deterministic": None}, TypeError, ("deterministic", "bool", "None")),
    # Atoms.
    (
        "atom_conv2d",
        {"atoms": (1, 3, 3, 3, 6, 5)},
        ValueError,
        ("atoms", "N, M, kh, kw, Ho, Wo", "(1, 3, 3, 3, 6, 5)"),
    ),
    ("atom_conv2d", {"atoms": (2, 3, 3, 3, 6, 4)}, ValueError, ("atoms", "6, 5)", "6, 4)")),
    ("atom_conv2d", {"atoms": (2, 3, 2, 3, 6, 5)}, ValueError, _ODD),
    ("atom_conv2d", {"atoms": (2, 3, 3, 0, 6, 5)}, ValueError, ("atoms", "kernel", "(3, 0)")),
    ("atom_conv2d", {"coefficients": (7, 5, 3)}, ValueError, ("coefficients", "(O, 4, 3)", "(7, 5, 3)")),
    ("atom_conv2d", {"coefficients": (7, 4, 2)}, ValueError, ("coefficients", "(O, 4, 3)", "(7, 4, 2)")),
    ("atom_conv2d", {"bias": (3,)}, ValueError, ("bias", "(O)", "(7)", "(3,)")),
    ("atom_conv2d", {"stride": 2}, ValueError, ("atoms", "3, 3)", "6, 5)")),
    ("atom_conv2d", {"stride": "1"}, TypeError, ("stride", "int", "'1'")),
    ("atom_conv2d", {"dilation": -3}, ValueError, ("dilation", "at least 1", "-3")),
    ("atom_conv2d", {"padding": 0.0}, TypeError, ("padding", "int", "0.0")),
    ("compose_atoms", {"bases": (5, 3, 1)}, ValueError, ("bases", "(4, kh, kw)", "(5, 3, 1)")),
    ("compose_atoms", {"bases": (4, 0, 1)}, ValueError, ("bases", "kernel", "(0, 1)")),
    ("compose_atoms", {"bases": None}, TypeError, ("bases", "array", "NoneType")),
]

BAD = [*_of_every_array(), *_of_every_operator(), *(Bad(*row) for row in _BY_HAND)]
