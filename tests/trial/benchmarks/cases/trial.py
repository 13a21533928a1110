"""`trial_gate2d`: what is measured, and how much arithmetic it takes."""

from dataclasses import replace

from dynarray._operator import Checked

from .case import Case
from .drawing import IMAGE, Drawn
from .growing import BASE, CHANNELS, SIDES, Growth, each


def flops(checked: Checked) -> tuple[int, int]:
    """A product per element; backward one more, and an addition."""
    size = checked.arrays[0].size
    return size, 3 * size


def gate(n: int, c: int, h: int, w: int) -> Case:
    shapes = {"x": (n, c, h, w), "gate": (n, h, w)}
    return Case(f"trial_gate2d {(n, c, h, w)}", "trial_gate2d", shapes, flops)


CASES = (replace(gate(2, 64, 56, 56), small=gate(1, 4, 9, 11)),)
_AXES = {"pixels": SIDES, "channels": CHANNELS, "images": each("n", 1, 2, 4, 8)}
GROWTH = (Growth("trial_gate2d", gate, BASE, _AXES),)
DRAWN = (Drawn("trial_gate2d", gate, IMAGE),)
