"""`atom_conv2d` and `compose_atoms`: what is measured, and how much arithmetic it takes."""

from dataclasses import replace
from math import prod

from dynarray._operator import Checked

from .case import Case, grid, pairs_inside
from .drawing import (
    BATCH,
    IMAGE,
    KERNEL,
    KERNEL_OF_A_LINE,
    ODD_KERNEL,
    SIDE,
    SIGNAL,
    STEPS,
    Drawn,
    among,
    beside,
)
from .drawing import (
    CHANNELS as DRAWN_CHANNELS,
)
from .growing import BASE, CHANNELS, LENGTHS, LINE, SIDES, TAPS, TAPS_OF_A_LINE, TINY_LINE, Growth, each
from .targets import THREE, Target

_PEERS = "benchmarks.peers.atoms"


def conv_flops(checked: Checked) -> tuple[int, int]:
    """Operations of the forward and the backward pass of `atom_conv2d`, with z saved and not made again.

    Forward: a multiply-add for each channel, atom and (output pixel, tap) pair inside the image, and one for
    each output, channel, atom and output pixel. Backward: twice as many of both.
    """
    (x, atoms, coefficients, _), params = checked.arrays, checked.params
    pairs = x.shape[0] * pairs_inside(x.shape[2:], atoms.shape[2:4], atoms.shape[4:], params)
    outputs, channels, m = coefficients.shape
    forward = 2 * channels * m * (pairs + outputs * x.shape[0] * prod(atoms.shape[4:]))
    return forward, 2 * forward


def compose_flops(checked: Checked) -> tuple[int, int]:
    """A multiply-add for each basis and element of the atoms; backward twice."""
    alpha, bases = checked.arrays
    forward = 2 * alpha.size * prod(bases.shape[1:])
    return forward, 2 * forward


def _conv(
    operator: str, image: tuple[int, ...], o: int, kernel: int, m: int, stride: int = 1, dilation: int = 1
) -> Case:
    n, c, *sides = image
    outputs, steps, told = grid(sides, kernel, stride, dilation)
    shapes = {
        "x": image,
        "atoms": (n, m, *(kernel for _ in sides), *outputs),
        "coefficients": (o, c, m),
        "bias": (o,),
    }
    where = ", ".join(map(str, sides))
    title = f"{operator} ({n}, {c}->{o}, {where}) M{m} k{kernel}{told}"
    return Case(title, operator, shapes, conv_flops, steps, _PEERS)


def conv(n: int, c: int, o: int, h: int, w: int, kernel: int, m: int = 6, **steps: int) -> Case:
    return _conv("atom_conv2d", (n, c, h, w), o, kernel, m, **steps)


def line(n: int, c: int, o: int, length: int, kernel: int = 9, m: int = 6, **steps: int) -> Case:
    return _conv("atom_conv1d", (n, c, length), o, kernel, m, **steps)


def compose(n: int, h: int, w: int, kernel: int, bases: int, m: int = 6) -> Case:
    shapes = {"alpha": (n, m, bases, h, w), "bases": (bases, kernel, kernel)}
    title = f"compose_atoms ({n}, {m}, {bases}, {h}, {w}) k{kernel}"
    return Case(title, "compose_atoms", shapes, compose_flops, {}, _PEERS)


CASES = (
    replace(conv(2, 64, 64, 56, 56, 3), small=conv(1, 4, 3, 9, 11, 3)),
    replace(conv(2, 64, 64, 56, 56, 5), small=conv(1, 4, 3, 9, 11, 5)),
    replace(compose(2, 56, 56, 5, 12), small=compose(1, 5, 7, 5, 12)),
    replace(line(4, 64, 64, 2048), small=line(1, 4, 3, 23)),
)

GROWTH = (
    Growth(
        "atom_conv2d",
        conv,
        {**BASE, "o": 32, "kernel": 3, "m": 6},
        {
            "pixels": SIDES,
            "channels": CHANNELS,
            "outputs": each("o", 16, 32, 64, 128),
            "taps": TAPS,
            "atoms": each("m", 2, 4, 8, 16),
        },
    ),
    Growth(
        "compose_atoms",
        compose,
        {"n": 1, "h": 64, "w": 64, "kernel": 5, "bases": 12, "m": 6},
        {
            "pixels": SIDES,
            "taps": TAPS,
            "bases": each("bases", 6, 12, 24, 48),
            "atoms": each("m", 2, 4, 8, 16),
        },
    ),
    Growth(
        "atom_conv1d",
        line,
        {**LINE, "o": 32},
        {"pixels": LENGTHS, "channels": CHANNELS, "taps": TAPS_OF_A_LINE, "atoms": each("m", 2, 4, 8, 16)},
        TINY_LINE,
    ),
)

_ATOMS = among(2, 4, 6, 6, 8, 12)
_MOST_FLOPS = 1_000_000_000
DRAWN = (
    Drawn(
        "atom_conv2d",
        conv,
        {**IMAGE, "o": DRAWN_CHANNELS, "kernel": KERNEL, "m": _ATOMS, **STEPS},
        most_flops=_MOST_FLOPS,
    ),
    Drawn(
        "atom_conv1d",
        line,
        {**SIGNAL, "o": DRAWN_CHANNELS, "kernel": KERNEL_OF_A_LINE, "m": _ATOMS, **STEPS},
        most_flops=_MOST_FLOPS,
    ),
    Drawn(
        "compose_atoms",
        compose,
        {
            "n": BATCH,
            "h": SIDE,
            "w": beside("h", SIDE),
            "kernel": ODD_KERNEL,
            "bases": among(3, 6, 6, 12, 14, 18),
            "m": _ATOMS,
        },
    ),
)

TARGETS: dict[str, tuple[Target, Target]] = {
    "atom_conv2d (2, 64->64, 56, 56) M6 k3": (THREE, THREE),
    "atom_conv2d (2, 64->64, 56, 56) M6 k5": (THREE, THREE),
}
