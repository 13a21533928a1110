"""What the tape costs, and its convolution: ``python -m benchmarks.tape``.

Chains of small elementwise operations measure the overhead of recording and of walking back. conv2d is set
beside its floor: the matrix products that it consists of, on arrays that are already there. With PyTorch
installed the same is timed on it in the same process, in turn, once values and gradients agree.
"""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from autodiff import Tape, Variable
from autodiff import functions as F

from .harness.machine import usable_cores
from .harness.measure import FULL, QUICK, Effort, Timing, WallClock, in_turn

ELEMENTS, OPERATIONS = 1000, 100
# Of the largest element: float32 sums in different orders.
TOLERANCE = 2e-5


def arithmetic(library: Any, x: Any, w: Any, b: Any) -> Any:
    """100 operations, 3 of 4 arithmetic."""
    y = x
    for _ in range(OPERATIONS // 4):
        y = library.tanh(y * w + b) - x
    return y


def functions(library: Any, x: Any, w: Any, b: Any) -> Any:
    """100 operations, half of them functions of one array."""
    y = x
    for _ in range(OPERATIONS // 10):
        y = library.sin(y * w) + b
        y = library.exp(-(y * y)) - w
        y = library.sigmoid(y) * 2.0 - x
    return y


def reused(library: Any, x: Any, w: Any, b: Any) -> Any:
    """100 operations whose results are used twice, so that gradients are added up."""
    y = x
    for _ in range(OPERATIONS // 5):
        y = library.relu(y * w + y) - y * b
    return y


CHAINS = (arithmetic, functions, reused)


class Convolution(NamedTuple):
    """Sizes of a convolution with "same" padding."""

    n: int
    c: int
    o: int
    size: int
    kernel: int

    def __str__(self) -> str:
        return f"conv2d ({self.n},{self.c}->{self.o},{self.size},{self.size}) k{self.kernel}"


CONVOLUTIONS = (
    Convolution(2, 256, 256, 56, 3),
    Convolution(8, 64, 64, 56, 3),
    Convolution(8, 256, 64, 56, 1),
)


def chain_calls(chain: Callable, arrays: tuple, torch: Any) -> dict[str, Callable[[], Any]]:
    """Forward and backward pass of a chain, here and on PyTorch; each call gives the gradients."""

    def ours() -> Any:
        inputs = [Variable(a) for a in arrays]
        with Tape() as tape:
            total = chain(F, *inputs).sum()
        return tape.gradient(total, inputs)

    def theirs() -> Any:
        inputs = [torch.from_numpy(a).requires_grad_() for a in arrays]
        return torch.autograd.grad(chain(torch, *inputs).sum(), inputs)

    return {"tape": ours, **({"PyTorch": theirs} if torch else {})}


def convolution_calls(
    case: Convolution, backward: bool, rng: Any, torch: Any
) -> dict[str, Callable[[], Any]]:
    """A convolution here, on PyTorch, and as the bare matrix products."""
    x = rng.standard_normal((case.n, case.c, case.size, case.size)).astype(np.float32)
    w = rng.standard_normal((case.o, case.c, case.kernel, case.kernel)).astype(np.float32)
    g = rng.standard_normal((case.n, case.o, case.size, case.size)).astype(np.float32)
    padding, taps = case.kernel // 2, case.c * case.kernel**2

    def ours() -> Any:
        if not backward:
            return [F.conv2d(x, w, padding=padding)]
        inputs = [Variable(x), Variable(w)]
        with Tape() as tape:
            y = F.conv2d(*inputs, padding=padding)
        return tape.gradient(y, inputs, grad=g)

    def theirs() -> Any:
        if not backward:
            with torch.no_grad():
                return [torch.nn.functional.conv2d(*map(torch.from_numpy, (x, w)), padding=padding)]
        inputs = [torch.from_numpy(a).requires_grad_() for a in (x, w)]
        y = torch.nn.functional.conv2d(*inputs, padding=padding)
        return torch.autograd.grad(y, inputs, torch.from_numpy(g))

    kernels, grad = w.reshape(case.o, taps), g.reshape(case.n, case.o, -1)
    columns = np.ones((case.n, taps, case.size**2), np.float32)
    y, gx, gw = np.empty_like(grad), np.empty_like(columns), np.empty((case.n, *kernels.shape), np.float32)

    def products() -> None:
        np.matmul(kernels, columns, out=y)
        if backward:
            np.matmul(kernels.T, grad, out=gx)
            np.matmul(grad, columns.swapaxes(1, 2), out=gw)

    return {"tape": ours, "products": products, **({"PyTorch": theirs} if torch else {})}


def agree(calls: dict[str, Callable[[], Any]]) -> None:
    """Complain if PyTorch computes something else."""
    if "PyTorch" in calls:
        for mine, right in zip(calls["tape"](), calls["PyTorch"](), strict=True):
            expected = right.detach().numpy()
            if not np.abs(mine - expected).max() <= TOLERANCE * np.abs(expected).max():
                raise AssertionError("the tape and PyTorch do not compute the same")


def line(name: str, times: dict[str, Timing]) -> str:
    """Milliseconds, and how many times those of the others ours are."""
    ours = times["tape"].ms
    cells = [f"{name:<40} {ours:9.3f} ms"]
    for other in ("products", "PyTorch"):
        cells.append(
            f"{times[other].ms:9.3f} ms {ours / times[other].ms:6.2f}x" if other in times else " " * 19 + "-"
        )
    return "  ".join(cells)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tape", description=__doc__)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of PyTorch; BLAS has its own")
    parser.add_argument("--quick", action="store_true", help="shows that everything runs, measures nothing")
    options = parser.parse_args(argv)
    torch = None
    if find_spec("torch"):
        import torch

    effort: Effort = QUICK if options.quick else FULL
    rng = np.random.default_rng(0)
    print(f"{'forward + backward':<40} {'tape':>12}  {'products':>20}  {'PyTorch':>20}")

    def show(name: str, calls: dict[str, Callable[[], Any]]) -> None:
        agree(calls)
        in_turns = {key: lambda _, call=call: call() for key, call in calls.items()}
        print(line(name, in_turn(in_turns, 1, WallClock(), effort)), flush=True)

    arrays = tuple(rng.standard_normal(ELEMENTS).astype(np.float32) for _ in range(3))
    if torch:
        # Its threads are of no use to so small arrays, and where another program is busy they wait for it.
        torch.set_num_threads(1)
    for chain in CHAINS:
        show(f"{OPERATIONS} operations, {chain.__name__}", chain_calls(chain, arrays, torch))
    if torch:
        torch.set_num_threads(options.threads)
    cases = [Convolution(1, 8, 8, 9, 3)] if options.quick else CONVOLUTIONS
    for case in cases:
        for backward in (False, True):
            what = "" if backward else " forward alone"
            show(f"{case}{what}", convolution_calls(case, backward, rng, torch))


if __name__ == "__main__":
    main()
