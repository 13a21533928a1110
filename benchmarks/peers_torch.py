"""PyTorch on the same memory as ours, eager and compiled, checked before it is timed. Imported on request."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
import torch._inductor.config

from .case import Buffers, Case
from .measure import Call

KINDS = ("eager", "compiled")

# Of the largest element. float32 sums of 65536 terms in different orders differ by a few 1e-6 of it.
TOLERANCE = 2e-5


class Mismatch(AssertionError):
    """A peer and ours do not compute the same."""


class Peer(NamedTuple):
    """One formulation, eager or compiled, on buffers that it shares with ours."""

    kind: str
    formulation: str
    calls: dict[str, Call]


def prepare(
    case: Case, buffers: list[Buffers], expected: tuple, threads: int, problem: Callable[[str], None]
) -> Iterator[Peer]:
    """Each peer that runs, once its results on the first buffers agree with `expected` (output, gradients).

    A peer that cannot be compiled or run is reported through `problem` and left out.
    """
    if case.peers is None:
        return
    torch.set_num_threads(threads)
    torch._inductor.config.compile_threads = (
        1  # its worker processes would outlive the compiling, beside what is timed
    )
    tensors = [_tensors(each) for each in buffers]
    for formulation, function in import_module(case.peers).FORMULATIONS[case.operator](**case.params).items():
        for kind in KINDS:
            name = f"{kind} {formulation}"
            calls = _calls(function, tensors, compiled=kind == "compiled")
            try:
                results = calls["forward"](0), *calls["forward_backward"](0)
            except Exception as error:  # whatever a compiler may raise
                problem(f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
                continue
            _compare(f"{case.title}: {name}", results, expected)
            del results
            yield Peer(kind, formulation, calls)


def _tensors(buffers: Buffers) -> tuple[list, list, Any]:
    """Tensors on the memory of the arrays, without and with gradients, and the gradient of the output."""
    plain = [torch.from_dlpack(array) for array in buffers.arrays if array is not None]
    return (
        plain,
        [tensor.detach().requires_grad_() for tensor in plain],
        torch.from_dlpack(buffers.grad_output),
    )


def _calls(function: Callable, tensors: list[tuple[list, list, Any]], *, compiled: bool) -> dict[str, Call]:
    # One compiled function for each use, so that neither meets the other's guards.
    forward_only, differentiable = (_compile(function) if compiled else function for _ in range(2))

    def forward(index: int) -> Any:
        with torch.no_grad():
            return forward_only(*tensors[index][0])

    def forward_backward(index: int) -> tuple:
        _, leaves, grad_output = tensors[index]
        output = differentiable(*leaves)
        return output, *torch.autograd.grad(output, leaves, grad_output)

    return {"forward": forward, "forward_backward": forward_backward}


def _compile(function: Callable) -> Callable:
    torch._dynamo.reset()  # formulations share code objects; without this they would count as recompilations
    return torch.compile(function, fullgraph=True, dynamic=False)


def _compare(name: str, results: tuple, expected: tuple) -> None:
    """`results` has the output twice: from the forward pass alone, then from the pass with gradients."""
    given = [array for array in expected if array is not None]
    for what, result, ours in zip(
        ("output", "output", *(f"gradient {i}" for i in range(len(given) - 1))),
        results,
        (given[0], *given),
        strict=True,
    ):
        theirs = result.detach().cpu().numpy()
        ours = ours if isinstance(ours, np.ndarray) else ours.get()
        if theirs.shape != ours.shape:
            raise Mismatch(f"{name}: {what} has shape {theirs.shape}, ours {ours.shape}")
        error = np.abs(theirs - ours).max(initial=0) / max(
            np.abs(ours).max(initial=0), np.finfo(ours.dtype).tiny
        )
        if not error <= TOLERANCE:
            raise Mismatch(f"{name}: {what} differs from ours by {error:.1e} of its largest element")
