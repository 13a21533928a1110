"""Definition of `atom_conv2d` and `compose_atoms`, and of their gradients, tap by tap."""

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


def _filtered(x: Any, atoms: Any, stride: Any, dilation: Any, padding: Any) -> Any:
    """z (N, C, M, Ho, Wo): every channel filtered by every atom."""
    n, m, _, _, *outputs = atoms.shape
    z = np.zeros((n, x.shape[1], m, *outputs), np.result_type(x, atoms))
    image = _ringed(x)
    for (a, b), pixels in _taps(x, atoms, stride, dilation, padding):
        z += atoms[:, None, :, a, b] * image[pixels][:, :, None]
    return z


def forward(
    x: Any, atoms: Any, coefficients: Any, bias: Any, *, stride: Any, dilation: Any, padding: Any
) -> tuple[Any, tuple]:
    """y = coefficients . z + bias."""
    z = _filtered(x, atoms, stride, dilation, padding)
    y = np.moveaxis(np.tensordot(z, coefficients, axes=((1, 2), (1, 2))), -1, 1)
    if bias is not None:
        y = y + bias[:, None, None]
    return np.ascontiguousarray(y), (x, atoms, coefficients, bias)


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
    grad_z = np.moveaxis(np.tensordot(grad_output, coefficients, axes=((1,), (0,))), (3, 4), (1, 2))
    image = _ringed(x)
    grad_image, grad_atoms = np.zeros_like(image), np.zeros_like(atoms)
    for (a, b), pixels in _taps(x, atoms, stride, dilation, padding):
        np.add.at(grad_image, pixels, (grad_z * atoms[:, None, :, a, b]).sum(axis=2))
        grad_atoms[:, :, a, b] = (grad_z * image[pixels][:, :, None]).sum(axis=1)
    grads = (
        grad_image[:, :, 1:-1, 1:-1],
        grad_atoms,
        np.tensordot(grad_output, z, axes=((0, 2, 3), (0, 3, 4))),
        None if bias is None else grad_output.sum(axis=(0, 2, 3)),
    )
    results = (
        np.ascontiguousarray(grad) if needed else None for grad, needed in zip(grads, needs, strict=True)
    )
    return tuple(results)  # type: ignore[return-value]


def compose_forward(alpha: Any, bases: Any) -> tuple[Any, tuple]:
    """Each atom a sum of bases, weighted by alpha."""
    atoms = np.moveaxis(np.tensordot(alpha, bases, axes=((2,), (0,))), (4, 5), (2, 3))
    return np.ascontiguousarray(atoms), (alpha, bases)


def compose_backward(grad_output: Any, kept: tuple, needs: tuple[bool, bool]) -> tuple[Any, Any]:
    """The product rule."""
    alpha, bases = kept
    grads = (
        np.moveaxis(np.tensordot(grad_output, bases, axes=((2, 3), (1, 2))), -1, 2),
        np.tensordot(alpha, grad_output, axes=((0, 1, 3, 4), (0, 1, 4, 5))),
    )
    results = (
        np.ascontiguousarray(grad) if needed else None for grad, needed in zip(grads, needs, strict=True)
    )
    return tuple(results)  # type: ignore[return-value]
