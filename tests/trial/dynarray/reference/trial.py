"""Definition of `trial_gate2d` and of its gradients."""

from typing import Any

import numpy as np


def forward(x: Any, gate: Any, *, negate: bool) -> tuple[Any, tuple]:
    """y = gate * x."""
    return np.array((-1 if negate else 1) * gate[:, None] * x, order="C"), (x, gate)


def backward(grad_output: Any, kept: tuple, needs: tuple[bool, ...], *, negate: bool) -> tuple:
    """Each factor gets the other."""
    x, gate = kept
    grad_output = -grad_output if negate else grad_output
    grad_x = np.array(gate[:, None] * grad_output, order="C") if needs[0] else None
    return grad_x, np.array((x * grad_output).sum(1), order="C") if needs[1] else None
