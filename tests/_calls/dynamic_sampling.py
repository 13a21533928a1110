"""Calls of `dynamic_conv2d` and `dynamic_sampling_conv2d`: drawn, bad, large and heavy ones."""

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


def _dynamic_conv2d_cases(pick: Any, **fixed: int) -> Case:
    sizes = {
        "N": pick((1, 2, 0)),
        "O": pick((1, 2, 3)),
        "C": pick((1, 2, 5)),
        "H": pick(range(9)),
        "W": pick(range(9)),
        **fixed,
    }
    stride, dilation = pick((1, 2, (3, 1))), (pick((1, 2, 3)), pick((1, 2)))
    params: dict[str, Any] = {"stride": stride, "dilation": dilation}
    if pick((False, True)):
        kernel = pick((2, 4, 1)), pick((3, 2))
        params["padding"] = pick((0, 1, 3)), pick((0, 2))
    else:
        kernel = pick((3, 1, 5)), pick((3, 1, 5))
    kernel = fixed.get("kh", kernel[0]), kernel[1]
    extent = sizes["H"], sizes["W"]
    outputs = windows(extent, kernel, params)
    weight = (sizes["N"], sizes["O"], sizes["C"], *kernel, *outputs)
    return Case({"x": (sizes["N"], sizes["C"], *extent), "weight": weight}, params)


def _dynamic_sampling_conv2d_cases(pick: Any, **fixed: int) -> Case:
    sizes = {
        "N": pick((1, 2, 0)),
        "O": pick((1, 2, 3)),
        "C": pick((1, 2, 5, 24)),  # the last are too many for the CPU's way of few terms
        "H": pick(range(9)),
        "W": pick(range(9)),
        "S": pick((1, 2, 3)),
        **fixed,
    }
    params = {
        "samples": sizes["S"],
        "sample_stride": pick((1, 2, (3, 1))),
        "dilation": (pick((1, 2)), pick((1, 3))),
        "stride": pick((1, 2, (1, 3))),
        "kernel_residual": pick((True, False)),
        "attention_residual": pick((True, False)),
        "fuse": pick(("sum", "max", "stack")),
    }
    n, kernel, extent = sizes["N"], (pick((3, 1, 5)), pick((3, 1))), (sizes["H"], sizes["W"])
    outputs = windows(extent, (1, 1), {"stride": params["stride"]})
    shapes = {
        "x": (n, sizes["C"], *extent),
        "channel_kernel": (n, sizes["O"], sizes["C"], *outputs),
        "spatial_kernel": (n, sizes["O"], *kernel, *outputs),
        "sample_attention": (n, sizes["O"], sizes["S"], sizes["S"], *outputs)
        if pick((True, False))
        else None,
        "position_attention": (n, sizes["O"], *kernel, *extent) if pick((True, False)) else None,
    }
    return Case(shapes, params)


CASES = {
    "dynamic_conv2d": with_border(_dynamic_conv2d_cases),
    "dynamic_sampling_conv2d": _dynamic_sampling_conv2d_cases,
    "dynamic_conv1d": with_border(
        on_a_line(_dynamic_conv2d_cases, {"x": without(2), "weight": without(3, 5)})
    ),
}

X = (2, 4, 6, 5)
GOOD = {
    "dynamic_conv2d": Good({"x": X, "weight": (2, 3, 4, 3, 3, 6, 5)}, {}, (2, 3, 6, 5)),
    "dynamic_sampling_conv2d": Good(
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
    "dynamic_conv1d": Good({"x": (2, 4, 5), "weight": (2, 3, 4, 3, 5)}, {}, (2, 3, 5)),
}

SYMBOLS = {
    "dynamic_conv2d": {"x": "N, C, H, W", "weight": "N, O, C, kh, kw, Ho, Wo"},
    "dynamic_sampling_conv2d": {
        "x": "N, C, H, W",
        "channel_kernel": "N, O, C, Ho, Wo",
        "spatial_kernel": "N, O, kh, kw, Ho, Wo",
        "sample_attention": "N, O, S, S, Ho, Wo",
        "position_attention": "N, O, kh, kw, H, W",
    },
    "dynamic_conv1d": {"x": "N, C, L", "weight": "N, O, C, k, Lo"},
}

_ODD = ("padding", "odd", "(2, 3)")

# Sizes that do not fit the other arrays, and values that parameters cannot have.
BAD = [
    Bad("dynamic_conv2d", {"weight": (1, 3, 4, 3, 3, 6, 5)}, ValueError, ("weight", "(2, O, 4", "(1, 3, 4,")),
    Bad("dynamic_conv2d", {"weight": (2, 3, 5, 3, 3, 6, 5)}, ValueError, ("weight", "(2, O, 4", "(2, 3, 5,")),
    Bad("dynamic_conv2d", {"weight": (2, 3, 4, 3, 3, 6, 7)}, ValueError, ("weight", "6, 5)", "6, 7)")),
    Bad("dynamic_conv2d", {"weight": (2, 3, 4, 3, 0, 6, 5)}, ValueError, ("weight", "kernel", "(3, 0)")),
    Bad("dynamic_conv2d", {"weight": (2, 3, 4, 2, 3, 6, 5)}, ValueError, _ODD),
    Bad("dynamic_conv2d", {"stride": (2, 1)}, ValueError, ("weight", "3, 5)", "6, 5)")),
    Bad("dynamic_conv2d", {"stride": -1}, ValueError, ("stride", "at least 1", "-1")),
    Bad("dynamic_conv2d", {"dilation": 0.5}, TypeError, ("dilation", "int", "0.5")),
    Bad("dynamic_conv2d", {"padding": (0, -1)}, ValueError, ("padding", "at least 0", "(0, -1)")),
    Bad(
        "dynamic_sampling_conv2d",
        {"channel_kernel": (2, 3, 5, 6, 5)},
        ValueError,
        ("channel_kernel", "4", "3, 5, 6"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"channel_kernel": (2, 3, 4, 6, 6)},
        ValueError,
        ("channel_kernel", "6, 5)", "6, 6)"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"spatial_kernel": (2, 4, 3, 1, 6, 5)},
        ValueError,
        ("spatial_kernel", "(2, 3", "(2, 4"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"spatial_kernel": (2, 3, 2, 1, 6, 5)},
        ValueError,
        ("spatial_kernel", "odd", "(2, 1)"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"spatial_kernel": (2, 3, 0, 1, 6, 5)},
        ValueError,
        ("spatial_kernel", "1", "(0, 1)"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"sample_attention": (2, 3, 3, 3, 6, 5)},
        ValueError,
        ("sample_attention", "2, 2", "3, 3, 3"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"sample_attention": (2, 3, 2, 2, 6, 4)},
        ValueError,
        ("sample_attention", "6, 5)", "6, 4)"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"position_attention": (2, 3, 3, 3, 6, 5)},
        ValueError,
        ("position_attention", "3, 1,", "3, 3, 3"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"position_attention": (2, 3, 3, 1, 5, 5)},
        ValueError,
        ("position_attention", "6, 5)", "5, 5)"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"samples": 3},
        ValueError,
        ("sample_attention", "3, 3, 6, 5)", "2, 2, 6, 5)"),
    ),
    Bad("dynamic_sampling_conv2d", {"samples": 0}, ValueError, ("samples", "at least 1", "0")),
    Bad("dynamic_sampling_conv2d", {"samples": (2, 2)}, TypeError, ("samples", "int", "(2, 2)")),
    Bad("dynamic_sampling_conv2d", {"sample_stride": 0}, ValueError, ("sample_stride", "at least 1", "0")),
    Bad("dynamic_sampling_conv2d", {"dilation": None}, TypeError, ("dilation", "int", "None")),
    Bad("dynamic_sampling_conv2d", {"stride": 2}, ValueError, ("channel_kernel", "3, 3)", "6, 5)")),
    Bad("dynamic_sampling_conv2d", {"kernel_residual": 1}, TypeError, ("kernel_residual", "bool", "1")),
    Bad(
        "dynamic_sampling_conv2d",
        {"attention_residual": None},
        TypeError,
        ("attention_residual", "bool", "None"),
    ),
    Bad(
        "dynamic_sampling_conv2d",
        {"fuse": "mean"},
        ValueError,
        ("fuse", "'sum'", "'max'", "'stack'", "'mean'"),
    ),
    # Lines.
    Bad("dynamic_conv1d", {"weight": (2, 3, 5, 3, 5)}, ValueError, ("weight", "(2, O, 4", "(2, 3, 5,")),
    Bad("dynamic_conv1d", {"weight": (2, 3, 4, 3, 6)}, ValueError, ("weight", "3, 5)", "3, 6)")),
    Bad("dynamic_conv1d", {"stride": 2}, ValueError, ("weight", "3, 3)", "3, 5)")),
    Bad("dynamic_conv1d", {"dilation": 0.5}, TypeError, ("dilation", "int", "0.5")),
    Bad("dynamic_conv1d", {"padding": -1}, ValueError, ("padding", "at least 0", "-1")),
    *bad_borders("dynamic_conv2d", "dynamic_conv1d"),
]


def is_exact(call: Any) -> bool:
    """The residual of a kernel is 1/C."""
    channels = call.arrays[0].shape[1]
    return not call.params.get("kernel_residual") or channels & (channels - 1) == 0


_N = LARGE_IMAGES[0]
LARGE = {
    "dynamic_conv2d": Large({"weight": (_N, 2, 1, 3, 3, 2, 2)}, {"stride": LARGE_STRIDE, "padding": 0}),
    "dynamic_sampling_conv2d": Large(
        {"channel_kernel": (_N, 1, 1, 2, 2), "spatial_kernel": (_N, 1, 3, 3, 2, 2)},
        {"stride": LARGE_STRIDE, "samples": 2},
        on_host=False,
    ),
}


def _samples(channels: int, samples: int, *, attention: bool = True) -> Heavy:
    """A call with so many input channels, and one of a pixel."""

    def shapes(c: int, o: int, kernel: int, h: int, w: int) -> dict[str, tuple[int, ...]]:
        given = {"x": (1, c, h, w), "channel_kernel": (1, o, c, h, w)}
        given["spatial_kernel"] = (1, o, kernel, kernel, h, w)
        if attention:
            given["sample_attention"] = (1, o, samples, samples, h, w)
            given["position_attention"] = (1, o, kernel, kernel, h, w)
        return given

    params = {"samples": samples, "sample_stride": 2}
    return Heavy(
        "dynamic_sampling_conv2d", shapes(channels, 24, 3, 96, 128), params, shapes(1, 1, 1, 1, 1), params
    )


HEAVY = {
    "samples": _samples(64, 3),
    "many samples": _samples(32, 9),
    "samples of few channels": _samples(3, 9),
    "samples without attention": _samples(64, 9, attention=False),
}
