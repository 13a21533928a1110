"""`atom_conv2d` on the CPU: filtered channels are made in tiles that stay in the cache, and multiplied there.

For each tile of output positions and group of channels the pixels that are read are packed into planes, in
which a tap of the filter is one offset (see `plan`), so that

- z, the channels filtered by the atoms, is a sum over taps of atom times plane,
- the gradient of the atoms is a sum over channels of grad_z times plane, and
- the gradient of the planes, from which pixels get theirs, is a sum over atoms of atom times grad_z:

`engine.products` does all three. In between are three matrix products: ``y = coefficients z``, ``grad_z =
coefficients^T grad_y`` and, added up over the tiles of an item, ``grad_coefficients^T = z grad_y^T``.
Forward, z of a strip of positions is multiplied before it leaves the first level of cache.

Neighbouring tiles of rows read some of the same rows of x. A share of them adds up what belongs to rows that
the share before reads as well in a place of its own, its edge; edges are added last, in order. Where shares
are few, an item of work is a share and some of the channels, whose gradients of the atoms are added last too.
"""

import math
from typing import NamedTuple

import numpy as np

from ..engine import gemm, parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow, empty, run_with_scratch
from .gradients import AtomGradients, AtomShares, AtomWork, atom_backward_items
from .kernels import AtomInputs, atom_forward_items
from .plan import AtomCall, channel_groups, deal_tiles, edge_rows, plan_atoms

Needs = tuple[bool, bool, bool, bool]

ATOM_SLOT_BYTES = 8 * 1024 * 1024  # gradients of coefficients, and edges, waiting to be added up


class Filtered(NamedTuple):
    """z, which is written, and its gradient, for all positions; what is not wanted has no elements."""

    z: np.ndarray
    grad_z: np.ndarray


def by_tap(atoms: np.ndarray) -> np.ndarray:
    """(N, M*taps, positions), contiguous."""
    n, m, kh, kw, high, wide = atoms.shape
    return kernel_input(atoms).reshape(n, m * kh * kw, high * wide)


def by_position(array: np.ndarray) -> np.ndarray:
    """(N, channels, positions), contiguous."""
    return kernel_input(array).reshape(*array.shape[:2], array.shape[2] * array.shape[3])


def filtered_then_mixed(arrays: tuple, call: AtomCall, whole: AtomCall) -> np.ndarray:
    """The output of a call that is a part of a whole."""
    x, atoms, coefficients, bias = arrays
    outputs, channels, m = coefficients.shape
    y = empty((x.shape[0], outputs, *atoms.shape[4:]), x.dtype)
    plan, sizes = plan_atoms(call, whole, backward=False)
    packed = gemm.pack_left(coefficients.reshape(outputs, channels * m)).reshape(-1)
    bias = np.empty(0, x.dtype) if bias is None else kernel_input(bias)
    inputs = AtomInputs(kernel_input(x), by_tap(atoms), packed, bias)
    items = x.shape[0] * plan.tiles.row_tiles * plan.tiles.pieces
    operations = coefficients.size * y.size // outputs
    args = (inputs, by_position(y), plan)
    run_with_scratch(atom_forward_items, items, operations, sizes, x.dtype, *args)
    return y


def gradients_by_tile(
    grad_output: np.ndarray, arrays: tuple, needs: Needs, call: AtomCall, filtered: Filtered | None = None
) -> tuple:
    """The gradients of x, atoms, coefficients and bias that are needed.

    With `filtered` there is none of the coefficients, which is made of the z that is then kept.
    """
    x, atoms, coefficients, _ = arrays
    nothing = np.empty(0, x.dtype)
    made_here = filtered is None
    sums_here = needs[2] and made_here
    z, grad_z = filtered or Filtered(nothing, nothing)
    outputs, channels, m = coefficients.shape
    plan, sizes = plan_atoms(call, call, backward=True)
    depth, edge = channels * m, (channels, min(edge_rows(call), x.shape[2]), x.shape[3])
    strip = gemm.TILE_ROW_BYTES // x.itemsize
    product = (-(-depth // gemm.TILE_ROWS) * gemm.TILE_ROWS, -(-outputs // strip) * strip)
    waiting = x.itemsize * max(math.prod(product) if sums_here else 1, math.prod(edge))
    row_tiles = plan.tiles.row_tiles
    items = max(1, min(x.shape[0] * row_tiles, parallel.ITEMS, ATOM_SLOT_BYTES // waiting))
    groups = channel_groups(call, plan, items, ATOM_SLOT_BYTES)
    shares = AtomShares(*deal_tiles(call, plan.tiles, items), groups)
    packed = gemm.pack_left(coefficients.reshape(outputs, depth).T).reshape(-1) if made_here else nothing
    inputs = AtomInputs(kernel_input(x), by_tap(atoms), packed, nothing)
    by_group = len(groups) - 1, *inputs.atoms.shape
    # Borrowed is what nobody sees after the call; every item clears its own.
    grads = AtomGradients(
        x=np.zeros(x.shape if needs[0] else (0,) * 4, x.dtype),
        edges=borrow("edges", (items, *edge) if needs[0] else (0,) * 4, x.dtype),
        atoms=np.empty(by_group if needs[1] else (0,) * 4, x.dtype),
        coefficients=borrow("coefficients", (items, *product) if sums_here else (0,) * 3, x.dtype),
        bias=np.zeros((items, outputs) if needs[3] else (0,) * 2),
    )
    operations = 3.0 * coefficients.size * grad_output.size / outputs
    work = AtomWork(inputs, by_position(grad_output), grads, shares, z, grad_z)
    run_with_scratch(atom_backward_items, items * by_group[0], operations, sizes, x.dtype, work, plan)
    if needs[0]:
        for first, (low, high), rows in zip(shares.first_of, shares.shared, grads.edges):
            grads.x[first // row_tiles, :, low:high] += rows[:, : high - low]
    grad_coefficients = None
    if sums_here:
        total = grads.coefficients[:, :depth, :outputs].sum(axis=0)
        grad_coefficients = np.ascontiguousarray(total.T).reshape(coefficients.shape)
    grad_atoms = grads.atoms.sum(axis=0) if by_group[0] > 1 else grads.atoms
    return (
        grads.x if needs[0] else None,
        grad_atoms.reshape(atoms.shape) if needs[1] else None,
        grad_coefficients,
        grads.bias.sum(axis=0).astype(x.dtype) if needs[3] else None,
    )
