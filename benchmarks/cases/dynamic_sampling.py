"""`dynamic_conv2d` and `dynamic_sampling_conv2d`: what is measured, and how much arithmetic it takes."""

from dataclasses import replace
from math import prod

from dynarray._operator import Checked

from .case import Case, grid, pairs_inside
from .drawing import FEW_CHANNELS, IMAGE, KERNEL, KERNEL_OF_A_LINE, SIGNAL, STEPS, Drawn, among
from .growing import BASE, CHANNELS, LINE, TAPS, TAPS_OF_A_LINE, TINY_LINE, Growth, each, pixels, squared
from .targets import Target

_PEERS = "benchmarks.peers.dynamic_sampling"


def conv_flops(checked: Checked) -> tuple[int, int]:
    """A multiply-add for each weight inside the image; backward one for x and a product for the weight."""
    (x, weight), params = checked.arrays, checked.params
    pairs = pairs_inside(x.shape[2:], weight.shape[3:5], weight.shape[5:], params)
    times = prod(weight.shape[:3]) * pairs
    return 2 * times, 3 * times


def sampling_flops(checked: Checked) -> tuple[int, int]:
    """Operations of the factored formula: C + kh*kw multiply-adds per region, and with the attention more.

    Without attention, a sum over regions needs a single region, of box sums. Backward, the channel and the
    spatial kernel, x and the sum over channels take as much each; the attention takes the regions once more.
    """
    x, channel_kernel, spatial_kernel, sample_attention, position_attention = checked.arrays
    plain = sample_attention is None and position_attention is None
    outputs, taps = channel_kernel.size // max(1, x.shape[1]), prod(spatial_kernel.shape[2:4])
    regions = 1 if plain and checked.params["fuse"] == "sum" else checked.params["samples"] ** 2
    forward = 2 * outputs * regions * (x.shape[1] + taps * (1 if position_attention is None else 2))
    return forward, (2 if plain else 3) * forward


def _conv(
    operator: str, image: tuple[int, ...], o: int, kernel: int, stride: int = 1, dilation: int = 1
) -> Case:
    n, c, *sides = image
    outputs, steps, told = grid(sides, kernel, stride, dilation)
    shapes = {"x": image, "weight": (n, o, c, *(kernel for _ in sides), *outputs)}
    title = f"{operator} ({n}, {c}->{o}, {', '.join(map(str, sides))}) k{kernel}{told}"
    return Case(title, operator, shapes, conv_flops, steps, _PEERS)


def conv(n: int, c: int, o: int, h: int, w: int, kernel: int = 3, **steps: int) -> Case:
    return _conv("dynamic_conv2d", (n, c, h, w), o, kernel, **steps)


def line(n: int, c: int, o: int, length: int, kernel: int = 9, **steps: int) -> Case:
    return _conv("dynamic_conv1d", (n, c, length), o, kernel, **steps)


def sampling(
    n: int,
    c: int,
    o: int,
    h: int,
    w: int,
    samples: int,
    attention: bool = True,
    kernel: int = 3,
    step: int = 2,
    fuse: str = "sum",
) -> Case:
    shapes = {
        "x": (n, c, h, w),
        "channel_kernel": (n, o, c, h, w),
        "spatial_kernel": (n, o, kernel, kernel, h, w),
    }
    if attention:
        shapes["sample_attention"] = (n, o, samples, samples, h, w)
        shapes["position_attention"] = (n, o, kernel, kernel, h, w)
    given = "" if attention else " no attention"
    title = f"dynamic_sampling_conv2d ({n}, {c}->{o}, {h}, {w}) k{kernel} S{samples}{given}"
    title += (f" step {step}" if step != 2 else "") + (f" {fuse}" if fuse != "sum" else "")
    params = {"samples": samples, "sample_stride": step, **({"fuse": fuse} if fuse != "sum" else {})}
    return Case(title, "dynamic_sampling_conv2d", shapes, sampling_flops, params, _PEERS)


CASES = (
    *(
        replace(
            sampling(1, 128, 24, 48, 64, samples, attention),
            small=sampling(1, 5, 6, 5, 7, samples, attention),
        )
        for attention in (True, False)
        for samples in (3, 7, 9)
    ),
    replace(conv(2, 16, 16, 64, 64), small=conv(1, 3, 4, 9, 11)),
    replace(line(4, 16, 16, 2048), small=line(1, 3, 4, 23)),
)

GROWTH = (
    Growth(
        "dynamic_conv2d",
        conv,
        {**BASE, "c": 8, "o": 8},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": each("c", 4, 8, 16, 32),
            "outputs": each("o", 4, 8, 16, 32),
            "taps": TAPS,
        },
    ),
    Growth(
        "dynamic_sampling_conv2d",
        sampling,
        {"n": 1, "c": 32, "o": 8, "h": 32, "w": 32, "samples": 3},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": CHANNELS,
            "outputs": each("o", 4, 8, 16, 32),
            "taps": TAPS,
            "regions": squared("samples", 1, 3, 5, 7, 9),
        },
    ),
    Growth(
        "dynamic_conv1d",
        line,
        {**LINE, "c": 8, "o": 8},
        {
            "pixels": each("length", 256, 1024, 4096, 16384),
            "channels": each("c", 4, 8, 16, 32),
            "outputs": each("o", 4, 8, 16, 32),
            "taps": TAPS_OF_A_LINE,
        },
        TINY_LINE,
    ),
)

_FEW = {"c": FEW_CHANNELS, "o": FEW_CHANNELS}
DRAWN = (
    Drawn("dynamic_conv2d", conv, {**IMAGE, **_FEW, "kernel": KERNEL, **STEPS}),
    Drawn("dynamic_conv1d", line, {**SIGNAL, **_FEW, "kernel": KERNEL_OF_A_LINE, **STEPS}),
    Drawn(
        "dynamic_sampling_conv2d",
        sampling,
        {
            **IMAGE,
            "o": FEW_CHANNELS,
            "samples": among(1, 3, 3, 5, 7, 9),
            "attention": among(False, True, True),
            "kernel": among(1, 3, 3, 3, 5),
            "step": among(1, 2, 2, 3),
            "fuse": among("sum", "sum", "sum", "max", "stack"),
        },
        most_flops=500_000_000,
    ),
)

_SAMPLING = {"paper": 10.0, "factored": 3.0}

TARGETS: dict[str, tuple[Target, Target]] = {
    "dynamic_sampling_conv2d (1, 128->24, 48, 64) k3 S3": (_SAMPLING, _SAMPLING),
    "dynamic_sampling_conv2d (1, 128->24, 48, 64) k3 S7": (_SAMPLING, _SAMPLING),
    "dynamic_sampling_conv2d (1, 128->24, 48, 64) k3 S9": (_SAMPLING, _SAMPLING),
}
