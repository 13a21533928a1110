"""`atom_conv2d` and `compose_atoms` in PyTorch: the formulations that ours are timed against.

Each takes the tensors of the operator's array arguments in order, and lets autograd find the gradients.
Whichever is fastest in a run, eager and compiled, is the peer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import Window, on_lines


def _mixed(z: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """z (N, C, M, H, W) by a 1 x 1 convolution."""
    return F.conv2d(z.flatten(1, 2), coefficients.flatten(1)[:, :, None, None], bias)


def _atom_conv(stride: int = 1, dilation: int = 1, padding: int | None = None) -> dict[str, Callable]:
    window = Window(stride, dilation, padding)

    def unfold_einsum(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
        """All shifted copies of x at once, a product for each pixel, a 1 x 1 convolution."""
        columns = window.unfolded(x, atoms.shape[2:4], atoms.shape[4:])
        z = torch.einsum("nckhw,nmkhw->ncmhw", columns, atoms.flatten(2, 3))
        return _mixed(z, coefficients, bias)

    def unfold_sum(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
        """The same with a product and a sum, which a compiler may fuse."""
        columns = window.unfolded(x, atoms.shape[2:4], atoms.shape[4:])
        return _mixed((columns[:, :, None] * atoms.flatten(2, 3)[:, None]).sum(3), coefficients, bias)

    def shifts(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
        """A shifted multiply-add for each tap."""
        kernel = atoms.shape[2:4]
        z: Any = 0
        for a, b, here in window.shifts(window.padded(x, kernel)[:, :, None], kernel, atoms.shape[4:]):
            z = z + atoms[:, None, :, a, b] * here
        return _mixed(z, coefficients, bias)

    def shifts_in_place(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
        """The same, added up in place."""
        kernel, size = atoms.shape[2:4], atoms.shape[4:]
        z = x.new_zeros((*x.shape[:2], atoms.shape[1], *size))
        for a, b, here in window.shifts(window.padded(x, kernel)[:, :, None], kernel, size):
            z.addcmul_(atoms[:, None, :, a, b], here)
        return _mixed(z, coefficients, bias)

    def atom_after_atom(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
        """One atom at a time, so that less has to stay in the cache."""
        kernel, size = atoms.shape[2:4], atoms.shape[4:]
        image = window.padded(x, kernel)
        y: Any = bias[:, None, None]
        for m in range(atoms.shape[1]):
            z = x.new_zeros((*x.shape[:2], *size))
            for a, b, here in window.shifts(image, kernel, size):
                z.addcmul_(atoms[:, m : m + 1, a, b], here)
            y = y + F.conv2d(z, coefficients[:, :, m, None, None])
        return y

    def mixed_first(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
        """A 1 x 1 convolution to O*M channels first, then the atoms: as much arithmetic where O equals C."""
        kernel, size = atoms.shape[2:4], atoms.shape[4:]
        u = F.conv2d(x, coefficients.transpose(1, 2).flatten(0, 1)[:, :, None, None])
        image = window.padded(u, kernel).unflatten(1, (-1, atoms.shape[1]))
        y = x.new_zeros((*image.shape[:3], *size))
        for a, b, here in window.shifts(image, kernel, size):
            y.addcmul_(atoms[:, None, :, a, b], here)
        return y.sum(2) + bias[:, None, None]

    return {
        "unfold, einsum, 1x1": unfold_einsum,
        "unfold, sum, 1x1": unfold_sum,
        "shifts, 1x1": shifts,
        "shifts in place, 1x1": shifts_in_place,
        "atom after atom": atom_after_atom,
        "1x1, shifts": mixed_first,
    }


def _compose_matmul(alpha: Tensor, bases: Tensor) -> Tensor:
    atoms = bases.flatten(1).T @ alpha.flatten(3)
    return atoms.view(*alpha.shape[:2], *bases.shape[1:], *alpha.shape[3:])


def _compose_einsum(alpha: Tensor, bases: Tensor) -> Tensor:
    return torch.einsum("nmbhw,bij->nmijhw", alpha, bases)


def _compose_convolution(alpha: Tensor, bases: Tensor) -> Tensor:
    """A 1 x 1 convolution, the atoms its batch."""
    atoms = F.conv2d(alpha.flatten(0, 1), bases.flatten(1).T[:, :, None, None])
    return atoms.view(*alpha.shape[:2], *bases.shape[1:], *alpha.shape[3:])


def _compose_atoms() -> dict[str, Callable]:
    return {"matmul": _compose_matmul, "einsum": _compose_einsum, "1x1": _compose_convolution}


# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {
    "atom_conv2d": _atom_conv,
    "atom_conv1d": lambda **params: on_lines(_atom_conv(**params), (2,), (2, 4)),
    "compose_atoms": _compose_atoms,
}
