"""`local_filter2d`, its faces, `correlation2d` and `mixed_filter2d`: what is measured, their arithmetic."""

from dataclasses import replace

from dynarray._operator import Checked

from .case import Case, grid, pairs_inside
from .drawing import (
    DILATION,
    IMAGE,
    KERNEL,
    KERNEL_OF_A_LINE,
    ODD_KERNEL,
    SIGNAL,
    STEPS,
    Drawn,
    among,
    divisor,
)
from .growing import (
    BASE,
    CHANNELS,
    LENGTHS,
    LINE,
    SIDES,
    TAPS,
    TAPS_OF_A_LINE,
    TINY_LINE,
    Growth,
    each,
    pixels,
)
from .targets import THREE, Target

_PEERS = "benchmarks.peers.local_filter"

# Operations per channel and per (output pixel, tap) pair inside the image: (forward, backward). The forward
# pass combines the two filters (1), multiplies and adds (2). The backward pass with "mul": s = gy*w and
# t = gy*x (2), then gx += s*cw, gw += t*cw, gcw += s*x (6). With "add": w + cw (1), gx += (w + cw)*gy (2),
# t (1), gw += t, gcw += t (2). Without channel weights: gx += gy*w, gw += gy*x (4).
_OPERATIONS = {None: (2, 4), "mul": (3, 8), "add": (3, 6)}


def flops(checked: Checked) -> tuple[int, int]:
    """Operations of the forward and the backward pass of any face."""
    (x, weight, channel_weight), params = checked.arrays, checked.params
    pairs = pairs_inside(x.shape[2:], weight.shape[2:4], weight.shape[4:], params)
    forward, backward = _OPERATIONS[None if channel_weight is None else params["combine"]]
    times = x.shape[0] * x.shape[1] * pairs
    return forward * times, backward * times


def _groups(number: int) -> str:
    """What a title says of groups where there is usually one."""
    return f" G{number}" if number > 1 else ""


def correlation_flops(checked: Checked) -> tuple[int, int]:
    """Operations of `correlation2d`: a multiplication and an addition a pair, and two of each backward."""
    (x1, _), params = checked.arrays, checked.params
    pairs = pairs_inside(x1.shape[2:], params["displacements"], x1.shape[2:], {**params, "upsample": 1})
    times = x1.shape[0] * x1.shape[1] * pairs
    return 2 * times, 4 * times


def correlation(n: int, c: int, h: int, w: int, displacement: int, step: int) -> Case:
    shapes = dict.fromkeys(("x1", "x2"), (n, c, h, w))
    title = f"correlation2d {(n, c, h, w)} d{displacement} step {step}"
    params = {"max_displacement": displacement, "step": step}
    return Case(title, "correlation2d", shapes, correlation_flops, params, _PEERS)


def ddf(
    n: int,
    c: int,
    h: int,
    w: int,
    combine: str = "mul",
    kernel: int = 3,
    heads: int = 1,
    stride: int = 1,
    dilation: int = 1,
) -> Case:
    outputs, steps, told = grid((h, w), kernel, stride, dilation)
    shapes = {
        "x": (n, c, h, w),
        "channel_filter": (n, c, kernel, kernel),
        "spatial_filter": (n, heads, kernel, kernel, *outputs),
    }
    title = f"ddf {combine} {(n, c, h, w)} k{kernel}{_groups(heads)}{told}"
    return Case(title, "ddf", shapes, flops, {"combine": combine, **steps}, _PEERS)


def carafe(n: int, c: int, h: int, w: int, scale: int = 2, kernel: int = 5, groups: int = 1) -> Case:
    shapes = {"x": (n, c, h, w), "masks": (n, groups * kernel * kernel, scale * h, scale * w)}
    title = f"carafe {(n, c, h, w)} x{scale} k{kernel}{_groups(groups)}"
    params = {"kernel_size": kernel, "scale": scale, **({"groups": groups} if groups > 1 else {})}
    return Case(title, "carafe", shapes, flops, params, _PEERS)


def _by_pixel(
    operator: str, image: tuple[int, ...], groups: int, kernel: int, stride: int, dilation: int
) -> Case:
    """A filter a pixel and group, without filters of channels."""
    n, _, *sides = image
    outputs, steps, told = grid(sides, kernel, stride, dilation)
    shapes = {"x": image, "weight": (n, groups, *(kernel for _ in sides), *outputs)}
    return Case(f"{operator} {image} G{groups} k{kernel}{told}", operator, shapes, flops, steps, _PEERS)


def involution(
    n: int, c: int, h: int, w: int, groups: int, kernel: int = 7, stride: int = 1, dilation: int = 1
) -> Case:
    return _by_pixel("involution", (n, c, h, w), groups, kernel, stride, dilation)


def plain(
    n: int, c: int, h: int, w: int, groups: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> Case:
    return _by_pixel("local_filter2d", (n, c, h, w), groups, kernel, stride, dilation)


def line(
    n: int, c: int, length: int, groups: int, kernel: int = 9, stride: int = 1, dilation: int = 1
) -> Case:
    return _by_pixel("local_filter1d", (n, c, length), groups, kernel, stride, dilation)


def upsample(
    n: int,
    c: int,
    h: int,
    w: int,
    scale: int = 2,
    kernel: int = 3,
    combine: str = "mul",
    heads: int = 1,
    dilation: int = 1,
) -> Case:
    shapes = {
        "x": (n, c, h, w),
        "channel_filters": (n, scale, scale, c, kernel, kernel),
        "spatial_filters": (n, heads, kernel, kernel, scale * h, scale * w),
    }
    _, steps, told = grid((h, w), kernel, 1, dilation)
    params = ({"combine": combine} if combine != "mul" else {}) | steps
    added = " add" if combine == "add" else ""
    title = f"ddf_upsample{added} {(n, c, h, w)} x{scale} k{kernel}{_groups(heads)}{told}"
    return Case(title, "ddf_upsample", shapes, flops, params, _PEERS)


def mixed_flops(checked: Checked) -> tuple[int, int]:
    """Operations of the forward and the backward pass of a mixed filter, filters saved and not made again.

    Forward, per (output pixel, tap) pair inside the image: a multiply-add for each kernel of each filter, and
    one for each channel; or, where that is less, one for each kernel and channel. Backward: twice as many.
    """
    (x, kernels, mixture), params = checked.arrays, checked.params
    pairs = x.shape[0] * pairs_inside(x.shape[2:], kernels.shape[2:], mixture.shape[3:], params)
    channels, bases = x.shape[1], kernels.shape[0]
    filters = mixture.shape[1] if kernels.shape[1] == 1 else channels
    forward = 2 * pairs * min(bases * filters + channels, bases * channels)
    return forward, 2 * forward


def _mixed(
    operator: str,
    image: tuple[int, ...],
    kernel: int,
    bases: int,
    groups: int = 1,
    own: bool = False,
    stride: int = 1,
    dilation: int = 1,
) -> Case:
    """`own`: kernels for each channel."""
    n, c, *sides = image
    outputs, steps, told = grid(sides, kernel, stride, dilation)
    shapes = {
        "x": image,
        "kernels": (bases, *([c] if own else []), *(kernel for _ in sides)),
        "mixture": (n, groups, bases, *outputs),
    }
    of_channels = " of each channel" if own else ""
    title = f"{operator} {image} k{kernel} B{bases}{of_channels}{_groups(groups)}{told}"
    return Case(title, operator, shapes, mixed_flops, steps, _PEERS)


def mixed(n: int, c: int, h: int, w: int, kernel: int = 5, bases: int = 6, **other: int) -> Case:
    return _mixed("mixed_filter2d", (n, c, h, w), kernel, bases, **other)


def mixed_line(n: int, c: int, length: int, kernel: int = 9, bases: int = 6, **other: int) -> Case:
    return _mixed("mixed_filter1d", (n, c, length), kernel, bases, **other)


CASES = (
    replace(ddf(2, 256, 56, 56), small=ddf(1, 4, 9, 11)),
    replace(ddf(2, 256, 56, 56, "add"), small=ddf(1, 4, 9, 11, "add")),
    replace(ddf(1, 64, 256, 256), small=ddf(2, 3, 8, 13)),
    replace(upsample(1, 256, 64, 64), small=upsample(1, 4, 6, 7)),
    replace(carafe(1, 256, 64, 64), small=carafe(1, 4, 6, 7)),
    replace(involution(2, 256, 56, 56, groups=16), small=involution(1, 4, 9, 11, groups=2)),
    replace(plain(2, 256, 56, 56, groups=8), small=plain(1, 4, 9, 11, groups=2)),
    replace(line(4, 256, 2048, groups=8), small=line(1, 4, 23, groups=2)),
    replace(correlation(1, 256, 48, 64, 20, 2), small=correlation(1, 4, 9, 11, 20, 2)),  # that of FlowNetC
    replace(mixed(1, 3, 1024, 1536, 9), small=mixed(1, 3, 9, 11, 9)),
    replace(mixed(2, 64, 56, 56, 5, 8), small=mixed(1, 4, 9, 11, 5, 8)),
    replace(mixed_line(4, 64, 2048), small=mixed_line(1, 4, 23)),
)

# The feature maps of a ResNet, and a large image.
CUDA_CASES = tuple(
    replace(ddf(n, 256, h, w), small=ddf(1, 4, 9, 11))
    for n, h, w in ((2, 200, 300), *((32, side, side) for side in (7, 14, 28, 56, 112)))
)

_DISPLACEMENTS = [((2 * reach + 1) ** 2, {"displacement": reach}) for reach in (1, 2, 3, 4)]
_KERNELS = each("bases", 2, 4, 8, 16)
GROWTH = (
    Growth(
        "local_filter2d",
        plain,
        {**BASE, "groups": 4},
        {"pixels": SIDES, "channels": CHANNELS, "taps": TAPS},
    ),
    Growth("ddf", ddf, BASE, {"pixels": SIDES, "channels": CHANNELS, "taps": TAPS}),
    Growth(
        "ddf_upsample",
        upsample,
        BASE,
        {"pixels": pixels(16, 32, 64, 128), "channels": CHANNELS, "taps": TAPS},
    ),
    Growth(
        "carafe",
        carafe,
        BASE,
        {"pixels": pixels(16, 32, 64, 128), "channels": CHANNELS, "taps": TAPS},
    ),
    Growth(
        "involution",
        involution,
        {**BASE, "groups": 4},
        {"pixels": SIDES, "channels": CHANNELS, "taps": TAPS},
    ),
    Growth(
        "local_filter1d",
        line,
        {**LINE, "groups": 4},
        {"pixels": LENGTHS, "channels": CHANNELS, "taps": TAPS_OF_A_LINE},
        TINY_LINE,
    ),
    Growth(
        "correlation2d",
        correlation,
        {**BASE, "displacement": 4, "step": 1},
        {"pixels": SIDES, "channels": CHANNELS, "displacements": _DISPLACEMENTS},
    ),
    Growth(
        "mixed_filter2d",
        mixed,
        BASE,
        {"pixels": SIDES, "channels": CHANNELS, "taps": TAPS, "kernels": _KERNELS},
    ),
    Growth(
        "mixed_filter1d",
        mixed_line,
        LINE,
        {"pixels": LENGTHS, "channels": CHANNELS, "taps": TAPS_OF_A_LINE, "kernels": _KERNELS},
        TINY_LINE,
    ),
)

_GROUPS = {"groups": divisor("c")}
_COMBINE = {"combine": among("mul", "mul", "add")}
_HEADS = {"heads": divisor("c", 8)}
_SCALE = {"scale": among(2, 2, 2, 3, 4)}
_BASES = {"bases": among(2, 4, 6, 8, 12, 16), "groups": divisor("c"), "own": among(False, False, True)}
DRAWN = (
    Drawn("local_filter2d", plain, {**IMAGE, "kernel": KERNEL, **_GROUPS, **STEPS}),
    Drawn("involution", involution, {**IMAGE, "kernel": KERNEL, **_GROUPS, **STEPS}),
    Drawn("ddf", ddf, {**IMAGE, "kernel": ODD_KERNEL, **_COMBINE, **_HEADS, **STEPS}),
    Drawn(
        "ddf_upsample",
        upsample,
        {**IMAGE, "kernel": ODD_KERNEL, **_SCALE, **_COMBINE, **_HEADS, "dilation": DILATION},
    ),
    Drawn("carafe", carafe, {**IMAGE, "kernel": ODD_KERNEL, **_SCALE, "groups": divisor("c", 8)}),
    Drawn("local_filter1d", line, {**SIGNAL, "kernel": KERNEL_OF_A_LINE, **_GROUPS, **STEPS}),
    Drawn(
        "correlation2d",
        correlation,
        {**IMAGE, "displacement": among(1, 2, 3, 4, 4, 8, 10, 20), "step": among(1, 1, 2)},
    ),
    Drawn("mixed_filter2d", mixed, {**IMAGE, "kernel": KERNEL, **_BASES, **STEPS}),
    Drawn("mixed_filter1d", mixed_line, {**SIGNAL, "kernel": KERNEL_OF_A_LINE, **_BASES, **STEPS}),
)

TARGETS: dict[str, tuple[Target, Target]] = {
    "ddf mul (2, 256, 56, 56) k3": ({"compiled": 3, "eager": 10}, {"compiled": 4, "eager": 10}),
    "ddf mul (1, 64, 256, 256) k3": ({"compiled": 2.5, "eager": 10}, {"compiled": 4, "eager": 10}),
    "carafe (1, 256, 64, 64) x2 k5": (THREE, THREE),
    "involution (2, 256, 56, 56) G16 k7": (THREE, THREE),
    "mixed_filter2d (1, 3, 1024, 1536) k9 B6": (THREE, THREE),
    "mixed_filter2d (2, 64, 56, 56) k5 B8": (THREE, THREE),
}
