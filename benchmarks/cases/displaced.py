"""`displaced_conv2d`: what is measured, and how much arithmetic it takes."""

from dataclasses import replace
from math import prod

from dynarray._operator import Checked

from .case import Case
from .drawing import CHANNELS as DRAWN_CHANNELS
from .drawing import GATHERS, IMAGE, SIGNAL, Drawn, among
from .growing import CHANNELS, LINE, TINY_LINE, Growth, each, pixels
from .targets import PRICE, THREE, Target

_PEERS = "benchmarks.peers.displaced"
REACH = 4.0  # of the units in pixels: their corners lie on 9 x 9 pixels


def flops(checked: Checked) -> tuple[int, int]:
    """Operations of the forward and the backward pass.

    Per unit and pixel, forward: a row interpolated between columns (3), which serves two rows of outputs, and
    two multiply-adds (4). Backward: the same for x, and four multiply-adds (8). The blur takes a multiply-add
    per tap, axis and pixel, and once more backward.
    """
    x, weight, *_ = checked.arrays
    pairs = x.shape[0] * prod(x.shape[2:]) * weight.size
    blur = 2 * x.size * sum(2 * radius + 1 for radius in checked.params["radius"] if radius)
    return 7 * pairs + blur, 15 * pairs + 2 * blur


def displaced(n: int, c: int, o: int, h: int, w: int, units: int) -> Case:
    shapes = {"x": (n, c, h, w), "weight": (o, c, units), "displacement": (o, c, units, 2), "bias": (o,)}
    title = f"displaced_conv2d ({n}, {c}->{o}, {h}, {w}) G{units}"
    return Case(
        title, "displaced_conv2d", shapes, flops, {}, _PEERS, ranges={"displacement": (-REACH, REACH)}
    )


def line(n: int, c: int, o: int, length: int, units: int) -> Case:
    shapes = {"x": (n, c, length), "weight": (o, c, units), "displacement": (o, c, units), "bias": (o,)}
    title = f"displaced_conv1d ({n}, {c}->{o}, {length}) G{units}"
    return Case(
        title, "displaced_conv1d", shapes, flops, {}, _PEERS, ranges={"displacement": (-REACH, REACH)}
    )


CASES = (
    replace(displaced(2, 256, 256, 28, 28, 2), small=displaced(1, 3, 4, 9, 11, 2)),
    replace(displaced(2, 96, 256, 27, 27, 4), small=displaced(1, 2, 3, 8, 7, 4)),
    replace(line(4, 64, 64, 2048, 2), small=line(1, 3, 4, 23, 2)),
)

GROWTH = (
    Growth(
        "displaced_conv2d",
        displaced,
        {"n": 1, "c": 32, "o": 32, "h": 32, "w": 32, "units": 2},
        {
            "pixels": pixels(16, 32, 64, 128),
            "channels": CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "units": each("units", 1, 2, 4, 8),
        },
    ),
    Growth(
        "displaced_conv1d",
        line,
        {**LINE, "o": 32, "units": 2},
        {
            "pixels": each("length", 256, 1024, 4096, 16384),
            "channels": CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "units": each("units", 1, 2, 4, 8),
        },
        TINY_LINE,
    ),
)

_OTHER = {"o": DRAWN_CHANNELS, "units": among(1, 2, 2, 4, 4, 6, 9)}
_MOST_FLOPS = 1_000_000_000
DRAWN = (
    Drawn("displaced_conv2d", displaced, {**IMAGE, **_OTHER}, most_flops=_MOST_FLOPS, least_share=GATHERS),
    Drawn("displaced_conv1d", line, {**SIGNAL, **_OTHER}, most_flops=_MOST_FLOPS, least_share=GATHERS),
)

TARGETS: dict[str, tuple[Target, Target]] = {
    "displaced_conv2d (2, 256->256, 28, 28) G2": ({**THREE, PRICE: 1}, THREE),
}
