"""`atom_conv2d` on the CPU: which way a call goes.

Channels are filtered by all atoms and then mixed (`filter_first`), or, where few outputs are made of many
channels, mixed and then filtered (`mix_first`). Where images are small, and coefficients are many, the
positions of many images are mixed at once (`at_once`).
"""

from typing import Any

from ..engine.memory import empty, zeros_where
from ..engine.whole import whole_of
from .at_once import gradients_at_once, multiplied_at_once, multiplies_at_once
from .filter_first import Needs, filtered_then_mixed, gradients_by_tile
from .mix_first import mixed_then_filtered, mixed_then_filtered_backward, mixes_first
from .plan import AtomCall


def atom_conv2d_forward(x: Any, atoms: Any, coefficients: Any, bias: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `atom_conv2d`; keeps the inputs for the backward pass."""
    kept = (x, atoms, coefficients, bias)
    outputs = len(coefficients)
    if not (coefficients.size and atoms.size):
        y = empty((x.shape[0], outputs, *atoms.shape[4:]), x.dtype)
        y[...] = 0 if bias is None else bias[:, None, None]
        return y, kept
    call = AtomCall(x.shape, atoms.shape, outputs, x.itemsize, **params)
    whole_x, whole_atoms = whole_of(kept)[:2]
    whole = call._replace(x=whole_x.shape, atoms=whole_atoms.shape)
    mixed = mixed_then_filtered(kept, call, whole) if mixes_first(whole) else None
    if mixed is not None:
        return mixed, kept
    at_once = multiplies_at_once(whole, backward=False)
    return multiplied_at_once(kept, call) if at_once else filtered_then_mixed(kept, call, whole), kept


def atom_conv2d_backward(
    grad_output: Any, kept: tuple, needs: Needs, **params: Any
) -> tuple[Any, Any, Any, Any]:
    """Gradients of `atom_conv2d` with respect to x, atoms, coefficients and bias."""
    x, atoms, coefficients, _ = kept
    if not (grad_output.size and coefficients.size):
        zeros = zeros_where(kept[:3], needs[:3])
        return *zeros, grad_output.sum(axis=(0, 2, 3)) if needs[3] else None
    call = AtomCall(x.shape, atoms.shape, len(coefficients), x.itemsize, **params)
    grads = mixed_then_filtered_backward(grad_output, kept, needs, call) if mixes_first(call) else None
    if grads is not None:
        return grads
    gradients = gradients_at_once if multiplies_at_once(call, backward=True) else gradients_by_tile
    return gradients(grad_output, kept, needs, call)
