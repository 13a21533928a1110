"""`trial_gate2d` in elementary functions."""

from typing import Any


def forward(functions: Any, x: Any, gate: Any, *, negate: bool) -> Any:
    """y = gate * x."""
    n, _, h, w = x.shape
    y = functions.reshape(gate, (n, 1, h, w)) * x
    return -y if negate else y
