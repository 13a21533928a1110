"""`deform_conv2d` and `sample_points`: what is measured, and how much arithmetic it takes."""

from dataclasses import replace
from math import prod

from dynarray._operator import Checked

from .case import Case, grid
from .drawing import CHANNELS as DRAWN_CHANNELS
from .drawing import GATHERS, IMAGE, KERNEL, KERNEL_OF_A_LINE, SIGNAL, STEPS, Drawn, among, divisor
from .growing import BASE, CHANNELS, LENGTHS, LINE, TAPS, TAPS_OF_A_LINE, TINY_LINE, Growth, each, pixels
from .targets import PRICE, Target

_PEERS = "benchmarks.peers.deform"

# Operations per channel and point. Forward: four corners times their weights, added up (7), and the mask (1).
# Backward: four products with the gradient of the sample are summed for the point (8), and four products
# are added to the pixels (8). The samples that the gradient of the weights needs could have been kept.
_SAMPLE, _MASK, _GRADIENTS = 7, 1, 16


def flops(checked: Checked) -> tuple[int, int]:
    """Operations of the forward and the backward pass of `deform_conv2d`: products and sampling."""
    x, _, weight, mask, _ = checked.arrays
    points = x.shape[0] * prod(weight.shape[2:]) * prod(checked.output_shape[2:])
    product = 2 * points * weight.shape[0] * weight.shape[1]
    samples = points * x.shape[1]
    forward = product + samples * (_SAMPLE + (_MASK if mask is not None else 0))
    return forward, 2 * product + samples * _GRADIENTS


def sample_flops(checked: Checked) -> tuple[int, int]:
    """Operations of the forward and the backward pass of `sample_points`."""
    samples = prod(checked.output_shape)
    return _SAMPLE * samples, _GRADIENTS * samples


def _deform(
    operator: str,
    image: tuple[int, ...],
    o: int,
    kernel: int,
    masked: bool,
    groups: int = 1,
    parts: int = 1,
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Case, str]:
    """A call without its title, and what that says of grid and groups; `parts` of the channels move alike."""
    n, c, *sides = image
    outputs, steps, told = grid(sides, kernel, stride, dilation, padded=True)
    taps = tuple(kernel for _ in sides)
    if c % groups or o % groups or c % parts:
        raise ValueError(f"{groups} groups, {parts} parts of {c} channels, {o} outputs")
    moved = (len(sides),) if len(sides) > 1 else ()
    shapes = {
        "x": image,
        "offset": (n, parts, *taps, *moved, *outputs),
        "weight": (o, c // groups, *taps),
    }
    if masked:
        shapes["mask"] = (n, parts, *taps, *outputs)
    of_groups = (f" G{groups}" if groups > 1 else "") + (f" D{parts}" if parts > 1 else "")
    return Case("", operator, shapes, flops, steps, _PEERS), of_groups + told


def deform(
    n: int, c: int, o: int, h: int, w: int, *, masked: bool = False, kernel: int = 3, **other: int
) -> Case:
    case, told = _deform("deform_conv2d", (n, c, h, w), o, kernel, masked, **other)
    title = f"deform {'v2 ' if masked else ''}{(n, c, h, w)} to {o} k{kernel}{told}"
    return replace(case, title=title)


def sample(n: int, c: int, h: int, w: int, points: int) -> Case:
    shapes = {"x": (n, c, h, w), "points": (n, points, 2, h, w)}
    return Case(
        f"sample {(n, c, h, w)} at {points} points", "sample_points", shapes, sample_flops, {}, _PEERS
    )


def sample_nearby(n: int, c: int, h: int, w: int, points: int) -> Case:
    """As people sample: each point some pixels from the output's own place."""
    case = sample(n, c, h, w, points)
    return replace(case, title=f"{case.title} nearby", places=("points",))


def line(n: int, c: int, o: int, length: int, kernel: int = 9, *, masked: bool = False, **other: int) -> Case:
    case, told = _deform("deform_conv1d", (n, c, length), o, kernel, masked, **other)
    title = f"deform_conv1d{' v2' if masked else ''} ({n}, {c}->{o}, {length}) k{kernel}{told}"
    return replace(case, title=title)


CASES = (
    replace(deform(1, 64, 64, 64, 64), small=deform(1, 8, 3, 9, 11)),
    replace(deform(2, 256, 256, 56, 56), small=deform(2, 6, 5, 8, 7)),
    replace(deform(2, 256, 256, 56, 56, masked=True), small=deform(2, 6, 5, 8, 7, masked=True)),
    replace(sample(2, 64, 56, 56, points=9), small=sample(1, 8, 6, 7, points=3)),
    replace(line(4, 64, 64, 2048), small=line(1, 8, 3, 23)),
)

GROWTH = (
    Growth(
        "deform_conv2d",
        deform,
        {**BASE, "o": 32, "h": 32, "w": 32},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "taps": TAPS,
        },
    ),
    Growth(
        "sample_points",
        sample,
        {**BASE, "h": 32, "w": 32, "points": 9},
        {"pixels": pixels(16, 32, 64, 128), "channels": CHANNELS, "points": each("points", 4, 8, 16, 32)},
    ),
    Growth(
        "deform_conv1d",
        line,
        {**LINE, "o": 32},
        {
            "pixels": LENGTHS,
            "channels": CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "taps": TAPS_OF_A_LINE,
        },
        TINY_LINE,
    ),
)

_OTHER = {
    "o": DRAWN_CHANNELS,
    "masked": among(False, True),
    "groups": among(1, 1, 1, 2, 4),
    "parts": divisor("c", 8),
    **STEPS,
}
_MOST_FLOPS = 1_000_000_000
DRAWN = (
    Drawn(
        "deform_conv2d",
        deform,
        {**IMAGE, "kernel": KERNEL, **_OTHER},
        most_flops=_MOST_FLOPS,
        least_share=GATHERS,
    ),
    Drawn(
        "deform_conv1d",
        line,
        {**SIGNAL, "kernel": KERNEL_OF_A_LINE, **_OTHER},
        most_flops=_MOST_FLOPS,
        least_share=GATHERS,
    ),
    Drawn("sample_points", sample_nearby, {**IMAGE, "points": among(1, 1, 4, 8, 9, 16)}, least_share=GATHERS),
)

TARGETS: dict[str, tuple[Target, Target]] = {
    "deform (1, 64, 64, 64) to 64 k3": ({"torchvision": 8, PRICE: 1 / 1.4}, {"torchvision": 12}),
    "deform (2, 256, 56, 56) to 256 k3": ({"torchvision": 3, PRICE: 1 / 1.4}, {"torchvision": 5}),
}
