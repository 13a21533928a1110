"""`atom_conv2d` for few outputs of many channels: channels are mixed first, and atoms filter the mixtures.

The sums over channels and over taps may change places,

    y[n,o,p] = sum over m and taps of atoms[n,m,tap,p] * u[n,m,o,q],
    u[n,m,o,q] = sum over c of coefficients[o,c,m] * x[n,c,q],

and there are M times as many mixtures as outputs, where there are M times as many filtered channels as
channels. Both steps are calls of operators: mixtures are composed of channels as atoms are of bases, and then
each sample and atom is a sample with one atom, whose channels are the mixtures for the outputs.

Where a result is not finite, a zero may have met an infinity here that it does not meet in the definition, or
the other way round: then these functions return None.
"""

from typing import Any

import numpy as np

from ..engine.compile import kernel_input
from ..engine.memory import empty
from .composition import compose_atoms_backward, compose_atoms_forward
from .filter_first import Needs, filtered_then_mixed, gradients_by_tile
from .plan import AtomCall

# What the second step takes for each tap and each output, where filtering channels takes one operation.
_PER_TAP, _PER_OUTPUT = 4, 8
_MIXTURE_BYTES = 8 * 1024 * 1024  # of all of them together, at most


def mixes_first(call: AtomCall) -> bool:
    """Whether this is the faster way, and takes little memory."""
    samples, channels, *size = call.x
    mixtures = samples * call.atoms[1] * call.outputs * size[0] * size[1]
    taps, outputs = call.atoms[2] * call.atoms[3], call.outputs
    pays = outputs * (_PER_TAP * taps + _PER_OUTPUT * outputs) <= channels * taps
    return 0 < mixtures * call.itemsize <= _MIXTURE_BYTES and pays


def mixed_then_filtered(arrays: tuple, call: AtomCall, whole: AtomCall) -> np.ndarray | None:
    """The output of a call that is a part of a whole, or None."""
    bias, samples = arrays[3], call.x[0]
    mixtures, _ = compose_atoms_forward(*_mixing(arrays))
    filtering = _filtering(arrays, mixtures)
    by_atom = filtered_then_mixed(filtering, *map(_filtering_call, (call, whole)))
    y = by_atom.reshape(samples, -1, *by_atom.shape[1:]).sum(axis=1)
    if bias is not None:
        y += bias[:, None, None]
    return y if np.isfinite(y).all() else None


def mixed_then_filtered_backward(
    grad_output: np.ndarray, arrays: tuple, needs: Needs, call: AtomCall
) -> tuple | None:
    """The gradients that are needed, or None."""
    atoms, coefficients = arrays[1:3]
    mixing = _mixing(arrays)
    if needs[1] or needs[2]:
        mixtures, _ = compose_atoms_forward(*mixing)
    else:
        mixtures = empty((call.x[0], call.atoms[1], call.outputs, *call.x[2:]), atoms.dtype)
    grads = np.repeat(grad_output, call.atoms[1], axis=0)
    # What the second step's coefficients would get shows an infinity of an atom that reads beside the image.
    filters_need = needs[0] or needs[2], needs[1], needs[2], False
    filtering = _filtering(arrays, mixtures)
    by_filters = gradients_by_tile(grads, filtering, filters_need, _filtering_call(call))
    grad_x: Any = None
    grad_coefficients: Any = None
    if filters_need[0]:
        grad_mixtures = by_filters[0].reshape(call.x[0], 1, *mixing[1].shape[1:], *call.x[2:])
        grad_x, grad_coefficients = compose_atoms_backward(grad_mixtures, mixing, (needs[0], needs[2]))
    if needs[0]:
        grad_x = grad_x.reshape(call.x)
    if needs[2]:
        grad_coefficients = np.ascontiguousarray(grad_coefficients.transpose(2, 0, 1))
    # That of x may have as many elements as x: it is finite where what it is made of is.
    made_of = *by_filters, grad_coefficients, coefficients
    if not all(part is None or np.isfinite(part).all() for part in made_of):
        return None
    grad_bias = grad_output.sum(axis=(0, 2, 3), dtype=np.float64).astype(atoms.dtype) if needs[3] else None
    grad_atoms = by_filters[1].reshape(atoms.shape) if needs[1] else None
    return grad_x, grad_atoms, grad_coefficients, grad_bias


def _mixing(arrays: tuple) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of the first step: channels are bases, coefficients what mixtures are composed by."""
    x, _, coefficients, _ = arrays
    return x[:, None], np.ascontiguousarray(coefficients.transpose(1, 2, 0))


def _filtering(arrays: tuple, mixtures: np.ndarray) -> tuple:
    """The arrays of the second step, for which each atom of each sample is a sample."""
    atoms, outputs = kernel_input(arrays[1]), arrays[2].shape[0]
    samples = atoms.shape[0] * atoms.shape[1]
    x = mixtures.reshape(samples, outputs, *arrays[0].shape[2:])
    identity = np.eye(outputs, dtype=atoms.dtype)[:, :, None]
    return x, atoms.reshape(samples, 1, *atoms.shape[2:]), identity, None


def _filtering_call(call: AtomCall) -> AtomCall:
    samples = call.x[0] * call.atoms[1]
    return call._replace(x=(samples, call.outputs, *call.x[2:]), atoms=(samples, 1, *call.atoms[2:]))
