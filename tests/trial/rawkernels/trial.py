"""Grid, block and arguments of the kernels in trial.cu."""

from typing import Any

import numpy as np

from rawkernels.launch import blocks, contiguous, empty, launch, needs_wide_index, type_constants
from rawkernels.source import Program, program

BLOCK = 128


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    return [(f"{dtype} one", program("trial.cu", type_constants(dtype, wide_index=wide_index)))]


def _run(entry: str, a: Any, b: Any, result: Any, channels: int, positions: int, negate: bool) -> Any:
    if result.size:
        wide = needs_wide_index(a, b, result, work_items=result.size)
        chosen = program("trial.cu", type_constants(result.dtype, wide_index=wide))
        items = (np.int64 if wide else np.int32)(result.size)
        numbers = (items, *map(np.int32, (channels, positions, -1 if negate else 1)))
        launch(chosen, entry, (blocks(result.size, BLOCK),), (BLOCK,), (a, b, result, *numbers))
    return result


def forward(x: Any, gate: Any, *, negate: bool) -> tuple[Any, tuple]:
    """Output (N, C, H, W), and the contiguous inputs."""
    x, gate = contiguous(x, gate)
    sizes = x.shape[1], x.shape[2] * x.shape[3]
    return _run("trial_multiply", x, gate, empty(x.shape, x), *sizes, negate), (x, gate)


def backward(grad_output: Any, kept: tuple, needs: tuple[bool, ...], *, negate: bool) -> tuple:
    """Gradients of x and gate; None where not needed."""
    grad_output, x, gate = contiguous(grad_output, *kept[:2])
    sizes = x.shape[1], x.shape[2] * x.shape[3]
    grad_x = empty(x.shape, x) if needs[0] else None
    grad_gate = empty(gate.shape, gate) if needs[1] else None
    if grad_x is not None:
        _run("trial_multiply", grad_output, gate, grad_x, *sizes, negate)
    if grad_gate is not None:
        _run("trial_grad_gate", x, grad_output, grad_gate, *sizes, negate)
    return grad_x, grad_gate
