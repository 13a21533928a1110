"""Calls of `trial_gate2d`: drawn, bad and large ones."""

from typing import Any

from ._call import Bad, Case, Good


def _trial_gate2d_cases(pick: Any, **fixed: int) -> Case:
    sizes = {"N": pick((1, 2, 0)), "H": pick(range(9)), "W": pick(range(9)), **fixed}
    n, h, w = (sizes[symbol] for symbol in ("N", "H", "W"))
    return Case({"x": (n, pick((3, 1, 2)), h, w), "gate": (n, h, w)}, {"negate": pick((True, False))})


CASES = {"trial_gate2d": _trial_gate2d_cases}
GOOD = {"trial_gate2d": Good({"x": (2, 4, 6, 5), "gate": (2, 6, 5)}, {}, (2, 4, 6, 5))}
SYMBOLS = {"trial_gate2d": {"x": "N, C, H, W", "gate": "N, H, W"}}
BAD = [
    Bad("trial_gate2d", {"gate": (2, 6, 4)}, ValueError, ("gate", "(2, 6, 5)", "(2, 6, 4)")),
    Bad("trial_gate2d", {"negate": 1}, TypeError, ("negate", "bool", "1")),
]
LARGE = {"trial_gate2d": "its output is as large as the images"}
