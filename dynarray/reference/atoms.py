"""Definition of `atom_conv2d` and `compose_atoms`, and of their gradients, tap by tap.

Sums of products are written out: a BLAS routine, which `tensordot` calls, may leave out what is times zero,
and zero times infinity is NaN.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._geometry import input_positions, on_ring


def _taps(x: Any, atoms: Any, stride: Any, dilation: Any, padding: Any) -> Iterator[tuple]:
    """Each tap of the kernel, and the pixels of x, inside a ring of zeros, that it reads for each output."""
    kernel, outputs = atoms.shape[2:4], atoms.shape[4:]
    for tap in np.ndindex(*kernel):
        rows, cols = (
            on_ring(
                input_positions(outputs[axis], tap[axis], stride[axis], dilation[axis], padding[axis]),
                x.shape[2 + axis],
            )
            for axis in range(2)
        )
        yield tap, (slice(None), slice(None), rows[:, None], cols[None, :])


def _ringed(x: Any) -> Any:
    return np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))


def _pixels_first(array: Any) -> Any:
    """(N, C, Ho, Wo) as (N, Ho, Wo, C)."""
    return np.moveaxis(array, 1, -1)


def _filtered(x: Any, atoms: Any, stride: Any, dilation: Any, padding: Any) -> Any:
    """z (N, Ho, Wo, C, M): every channel filtered by every atom."""
    n, m, _, _, *outputs = atoms.shape
    z = np.zeros((n, *outputs, x.shape[1], m), np.result_type(x, atoms))
    image = _ringed(x)
    for (a, b), pixels in _taps(x, atoms, stride, dilation, padding):
        z += _pixels_first(atoms[:, :, a, b])[..., None, :] * _pixels_first(image[pixels])[..., None]
    return z


def forward(
    x: Any, atoms: Any, coefficients: Any, bias: Any, *, stride: Any, dilation: Any, padding: Any
) -> tuple[Any, tuple]:
    """y = coefficients . z + bias."""
    z = _filtered(x, atoms, stride, dilation, padding)
    y = np.zeros((z.shape[0], len(coefficients), *z.shape[1:3]), np.result_type(z, coefficients))
    for o, factors in enumerate(coefficients):
        y[:, o] = (factors * z).sum(axis=(3, 4))
    if bias is not None:
        y = y + bias[:, None, None]
    return y, (x, atoms, coefficients, bias)


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, bool, bool, bool],
    *,
    stride: Any,
    dilation: Any,
    padding: Any,
) -> tuple[Any, Any, Any, Any]:
    """The product rule, from the output back to z and from there, tap by tap, to x and atoms."""
    x, atoms, coefficients, bias = kept
    z = _filtered(x, atoms, stride, dilation, padding)
    grad_z, grad_coefficients = np.zeros_like(z), np.zeros_like(coefficients)
    for o, factors in enumerate(coefficients):
        grad = grad_output[:, o, :, :, None, None]
        grad_z += factors * grad
        grad_coefficients[o] = (grad * z).sum(axis=(0, 1, 2))
    image = _ringed(x)
    grad_image, grad_atoms = np.zeros_like(image), np.zeros_like(atoms)
    for (a, b), pixels in _taps(x, atoms, stride, dilation, padding):
        atom, values = _pixels_first(atoms[:, :, a, b])[..., None, :], _pixels_first(image[pixels])[..., None]
        np.add.at(grad_image, pixels, np.moveaxis((grad_z * atom).sum(axis=-1), -1, 1))
        grad_atoms[:, :, a, b] = np.moveaxis((grad_z * values).sum(axis=-2), -1, 1)
    grads = (
        grad_image[:, :, 1:-1, 1:-1],
        grad_atoms,
        grad_coefficients,
        None if bias is None else grad_output.sum(axis=(0, 2, 3)),
    )
    results = (
        np.ascontiguousarray(grad) if needed else None for grad, needed in zip(grads, needs, strict=True)
    )
    return tuple(results)  # type: ignore[return-value]


def compose_forward(alpha: Any, bases: Any) -> tuple[Any, tuple]:
    """Each atom a sum of bases, weighted by alpha."""
    n, m, _, *outputs = alpha.shape
    atoms = np.zeros((n, m, *bases.shape[1:], *outputs), np.result_type(alpha, bases))
    for b, basis in enumerate(bases):
        atoms += alpha[:, :, b, None, None] * basis[:, :, None, None]
    return atoms, (alpha, bases)


def compose_backward(grad_output: Any, kept: tuple, needs: tuple[bool, bool]) -> tuple[Any, Any]:
    """The product rule."""
    alpha, bases = kept
    grad_alpha, grad_bases = np.zeros_like(alpha, order="C"), np.zeros_like(bases, order="C")
    for b, basis in enumerate(bases):
        grad_alpha[:, :, b] = (grad_output * basis[:, :, None, None]).sum(axis=(2, 3))
        grad_bases[b] = (grad_output * alpha[:, :, b, None, None]).sum(axis=(0, 1, 4, 5))
    return grad_alpha if needs[0] else None, grad_bases if needs[1] else None
