"""`atom_conv2d` and `compose_atoms` in PyTorch: the formulations that ours are timed against.

Each takes the tensors of the operator's array arguments in order, at stride 1, and lets autograd find the
gradients. Whichever is fastest in a run, eager and compiled, is the peer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _padded(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    ry, rx = kernel[0] // 2, kernel[1] // 2
    return F.pad(x, (rx, rx, ry, ry))


def _mixed(z: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """z (N, C, M, H, W) by a 1 x 1 convolution."""
    return F.conv2d(z.flatten(1, 2), coefficients.flatten(1)[:, :, None, None], bias)


def _unfold_einsum(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """All shifted copies of x at once, a product for each pixel, a 1 x 1 convolution."""
    kernel, size = atoms.shape[2:4], x.shape[2:]
    columns = F.unfold(x, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    columns = columns.view(*x.shape[:2], kernel[0] * kernel[1], *size)
    return _mixed(torch.einsum("nckhw,nmkhw->ncmhw", columns, atoms.flatten(2, 3)), coefficients, bias)


def _unfold_sum(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """The same with a product and a sum, which a compiler may fuse."""
    kernel, size = atoms.shape[2:4], x.shape[2:]
    columns = F.unfold(x, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    columns = columns.view(*x.shape[:2], 1, kernel[0] * kernel[1], *size)
    return _mixed((columns * atoms.flatten(2, 3)[:, None]).sum(3), coefficients, bias)


def _shifts(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """A shifted multiply-add for each tap."""
    kernel, (h, w) = atoms.shape[2:4], x.shape[2:]
    image = _padded(x, kernel)[:, :, None]
    z: Any = 0
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            z = z + atoms[:, None, :, a, b] * image[..., a : a + h, b : b + w]
    return _mixed(z, coefficients, bias)


def _shifts_in_place(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """The same, added up in place."""
    kernel, (h, w) = atoms.shape[2:4], x.shape[2:]
    image = _padded(x, kernel)[:, :, None]
    z = x.new_zeros((*x.shape[:2], atoms.shape[1], h, w))
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            z.addcmul_(atoms[:, None, :, a, b], image[..., a : a + h, b : b + w])
    return _mixed(z, coefficients, bias)


def _atom_after_atom(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """One atom at a time, so that less has to stay in the cache."""
    kernel, (h, w) = atoms.shape[2:4], x.shape[2:]
    image = _padded(x, kernel)
    y: Any = bias[:, None, None]
    for m in range(atoms.shape[1]):
        z = torch.zeros_like(x)
        for a in range(kernel[0]):
            for b in range(kernel[1]):
                z.addcmul_(atoms[:, m : m + 1, a, b], image[..., a : a + h, b : b + w])
        y = y + F.conv2d(z, coefficients[:, :, m, None, None])
    return y


def _mixed_first(x: Tensor, atoms: Tensor, coefficients: Tensor, bias: Tensor) -> Tensor:
    """A 1 x 1 convolution to O*M channels first, then the atoms: as much arithmetic where O equals C."""
    kernel, (h, w) = atoms.shape[2:4], x.shape[2:]
    u = F.conv2d(x, coefficients.transpose(1, 2).flatten(0, 1)[:, :, None, None])
    image = _padded(u, kernel).unflatten(1, (-1, atoms.shape[1]))
    y = torch.zeros_like(image[..., :h, :w])
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            y.addcmul_(atoms[:, None, :, a, b], image[..., a : a + h, b : b + w])
    return y.sum(2) + bias[:, None, None]


def _atom_conv2d() -> dict[str, Callable]:
    return {
        "unfold, einsum, 1x1": _unfold_einsum,
        "unfold, sum, 1x1": _unfold_sum,
        "shifts, 1x1": _shifts,
        "shifts in place, 1x1": _shifts_in_place,
        "atom after atom": _atom_after_atom,
        "1x1, shifts": _mixed_first,
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
    "atom_conv2d": _atom_conv2d,
    "compose_atoms": _compose_atoms,
}
