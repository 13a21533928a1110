"""Calls of `trial_gate2d`."""

from . import TypicalCall

CALLS = {"trial_gate2d": [TypicalCall({"x": (1, 2, 6, 6), "gate": (1, 6, 6)})]}
