"""`compose_atoms` on the CPU: both passes, in runs of positions that stay in the cache.

Each atom of each sample is a small matrix product, of the bases with a few rows of as many elements as there
are positions. Per position it moves B + taps numbers for B * taps multiply-adds, so that for common sizes
memory is the bound: all is read where it is and written where it belongs, once, and while a run of positions
is multiplied, what the next one reads is fetched. The backward pass makes both gradients of a run while it is
in the cache: first that of the bases, which reads a few rows at a time, and these fast.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.compile import ONE, ZERO, borrowing_cached_jit, borrowing_jit, kernel_input
from ..engine.dots import add_dots, tangled_size, untangled
from ..engine.gemm import Matrix
from ..engine.memory import empty
from ..engine.products import MIXED_BYTES, Extent, Factor, Target, mix_rows
from ..engine.runs import RunRows
from ..engine.vectors import in_row

COMPOSE_RUN_BYTES = 256 * 1024  # of all rows of a run
COMPOSE_RUN = 1024  # positions of a run, at most; sums over one are short enough to be accurate


class ComposePlan(NamedTuple):
    """How positions are cut into runs."""

    positions: int
    run: int
    runs: int  # of each atom


class ComposeGrads(NamedTuple):
    """What the backward pass writes; what is not wanted has no elements."""

    alpha: np.ndarray  # (N*M, B, positions)
    bases: np.ndarray  # (items, as `engine.dots` has them); float64


class ComposeRun(NamedTuple):
    """Some positions of an atom."""

    plane: int
    at: int
    length: int


@lru_cache(maxsize=256)
def _compose_plan(positions: int, bases: int, taps: int, itemsize: int) -> ComposePlan:
    width = MIXED_BYTES // itemsize
    most = min(COMPOSE_RUN, COMPOSE_RUN_BYTES // ((2 * bases + taps) * itemsize))
    runs = -(-positions // max(width, most))
    run = -(-positions // (runs * width)) * width
    return ComposePlan(positions, run, -(-positions // run))


@borrowing_jit
def _compose_run(number: int, plan: ComposePlan) -> ComposeRun:
    at = number % plan.runs * plan.run
    return ComposeRun(number // plan.runs, at, min(plan.run, plan.positions - at))


@borrowing_jit
def _begin(run: ComposeRun, source: np.ndarray, plan: ComposePlan) -> int:
    """The element of the source at which the first row of a run begins."""
    return run.plane * source.shape[1] * plan.positions + run.at


@borrowing_jit
def _mix_run(target: np.ndarray, scales: np.ndarray, source: Factor, run: ComposeRun, apart: int) -> None:
    """The rows of a run of the target, `apart`, from those of the source; `scales` is a matrix."""
    rows, depth = target.shape[1], scales.size // target.shape[1]
    goal = Target(in_row(target), run.plane * rows * apart + run.at, apart, ZERO)
    mix_rows(goal, Matrix(scales, ZERO, depth), source, Extent(rows, ONE, depth, run.length))


@borrowing_cached_jit
def compose_items(
    start: int,
    stop: int,
    alpha: np.ndarray,
    scales: np.ndarray,
    atoms: np.ndarray,
    plan: ComposePlan,
) -> None:
    """Items: runs. alpha is (N*M, B, positions), atoms (N*M, taps, positions), `scales` (taps, B)."""
    apart = plan.positions
    for item in range(start, stop):
        run, following = _compose_run(item, plan), _compose_run(min(item + 1, stop - 1), plan)
        at, then = _begin(run, alpha, plan), _begin(following, alpha, plan)
        _mix_run(atoms, scales, Factor(in_row(alpha), at, ZERO, apart, then - at), run, apart)


@borrowing_cached_jit
def compose_gradient_items(
    start: int,
    stop: int,
    alpha: np.ndarray,
    scales: np.ndarray,
    grad_output: np.ndarray,
    grads: ComposeGrads,
    plan: ComposePlan,
) -> None:
    """Items: shares of the runs. grad_output is (N*M, taps, positions), `scales` (B, taps)."""
    (items, tangled), apart = grads.bases.shape, plan.positions
    runs, bases, taps, totals = (
        len(alpha) * plan.runs,
        alpha.shape[1],
        grad_output.shape[1],
        in_row(grads.bases),
    )
    for item in range(start, stop):
        end = runs * (item + 1) // items
        for number in range(runs * item // items, end):
            run, following = _compose_run(number, plan), _compose_run(min(number + 1, end - 1), plan)
            at, then = _begin(run, grad_output, plan), _begin(following, grad_output, plan)
            if tangled:
                left = RunRows(in_row(alpha), _begin(run, alpha, plan), apart)
                right = RunRows(in_row(grad_output), at, apart)
                add_dots(totals, item * tangled, left, right, (bases, taps, run.length))
            if grads.alpha.size:
                source = Factor(in_row(grad_output), at, ZERO, apart, then - at)
                _mix_run(grads.alpha, scales, source, run, apart)


def _by_basis(alpha: np.ndarray) -> np.ndarray:
    """(N*M, B, positions), contiguous."""
    n, m, bases, high, wide = alpha.shape
    return kernel_input(alpha).reshape(n * m, bases, high * wide)


def compose_atoms_forward(alpha: Any, bases: Any) -> tuple[Any, tuple]:
    """Output of `compose_atoms`; keeps the inputs for the backward pass."""
    atoms = empty((*alpha.shape[:2], *bases.shape[1:], *alpha.shape[3:]), alpha.dtype)
    if not alpha.size or not atoms.size:
        atoms[...] = 0
        return atoms, (alpha, bases)
    matrices, count, taps = _by_basis(alpha), len(bases), bases.shape[1] * bases.shape[2]
    plan = _compose_plan(matrices.shape[2], count, taps, alpha.itemsize)
    scales = kernel_input(bases.reshape(count, taps).T).reshape(-1)
    arguments = (matrices, scales, atoms.reshape(len(matrices), taps, plan.positions), plan)
    operations = max(float(atoms.size) * count, parallel.PER_NUMBER * (atoms.size + alpha.size))
    parallel.run(compose_items, len(matrices) * plan.runs, operations, *arguments)
    return atoms, (alpha, bases)


def compose_atoms_backward(grad_output: Any, kept: tuple, needs: tuple[bool, bool]) -> tuple[Any, Any]:
    """Gradients of `compose_atoms` with respect to alpha and bases."""
    alpha, bases = kept
    grad_alpha = empty(alpha.shape, alpha.dtype) if needs[0] else None
    if not grad_output.size or not alpha.size:
        if grad_alpha is not None:
            grad_alpha[...] = 0
        return grad_alpha, np.zeros(bases.shape, bases.dtype) if needs[1] else None
    matrices, count, taps = _by_basis(alpha), len(bases), bases.shape[1] * bases.shape[2]
    plan = _compose_plan(matrices.shape[2], count, taps, alpha.itemsize)
    items = min(len(matrices) * plan.runs, parallel.ITEMS)
    gradient = kernel_input(grad_output).reshape(len(matrices), taps, plan.positions)
    grads = ComposeGrads(
        alpha=np.empty((0, count, 0), alpha.dtype)
        if grad_alpha is None
        else grad_alpha.reshape(matrices.shape),
        bases=np.zeros((items, tangled_size(count, taps) if needs[1] else 0)),
    )
    scales = kernel_input(bases).reshape(-1)
    arguments = (matrices, scales, gradient, grads, plan)
    operations = 2.0 * grad_output.size * count
    parallel.run(compose_gradient_items, items, operations, *arguments)
    if not needs[1]:
        return grad_alpha, None
    total = untangled(grads.bases.sum(axis=0), count, taps)
    return grad_alpha, total.reshape(bases.shape).astype(bases.dtype)
