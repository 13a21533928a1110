"""PyTorch on the same memory as ours, eager and compiled, checked before it is timed. Imported on request.

Most cases have several formulations and none is known to be the best, so each is looked at; but compiling
and timing all of them to the end would take most of a run. A formulation is called once, its results are
compared with ours, and a call or a few are timed. If that look took more than `SLOW` times the best of its
kind, it is not timed any further: the look is what the results file says of it.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from math import inf
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch._dynamo.config
import torch._inductor.config

from ..cases.case import Buffers, Case
from ..cases.targets import KINDS, PRICE
from ..harness.measure import Call, Clock
from .windows import Cannot

PASSES = ("forward", "forward_backward")

# Of the largest element; of a few elements, of what a sum of so many random terms usually is. float32 sums of
# 65536 terms in different orders differ by a few 1e-6 of it.
TOLERANCE = 2e-5
# Where a peer rounds positions, a point may come to lie on the other side of a pixel's border, where the
# derivative jumps: in few elements, and the others differ by a rounding of a position times a slope.
LOOSE_TOLERANCE, FEW = 1e-3, 2e-3
# A look this many times the best of its kind is the last; a call with gradients is left out where the one
# without took this long, or where it would have to be compiled first.
SLOW, SHORT_MS, LONG_MS = 3.0, 200.0, 5000.0
# For compiling all formulations of one case, those first that look best: for the forward passes, then for
# those with gradients. A graph of some thousand operations takes a compiler many minutes.
COMPILE_S = {"forward": 600.0, "forward_backward": 600.0}


class Mismatch(AssertionError):
    """A peer and ours do not compute the same."""


@dataclass(frozen=True)
class Peer:
    """One formulation, eager or compiled, on buffers that it shares with ours.

    `looks` has the milliseconds of a call of each pass that was tried, `contends` the passes that are to be
    timed in turn with ours.
    """

    kind: str
    formulation: str
    calls: dict[str, Call]
    looks: dict[str, float] = field(default_factory=dict)
    contends: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.kind} {self.formulation}"


def prepare(
    case: Case,
    buffers: list[Buffers],
    expected: tuple,
    threads: int,
    clock: Clock,
    problem: Callable[[str], None],
    compile_s: float | None = None,
) -> list[Peer]:
    """The peers whose results on the first buffers agree with `expected` (output, gradients).

    One that cannot be compiled or run, or that does not agree, is reported through `problem` and left out.
    Last comes the plain convolution of the same size, if the case has one: it is timed forward, not compared.
    `compile_s` are the seconds for compiling in each pass; none, and nothing is compiled.
    """
    if case.peers is None:
        return []
    limits = COMPILE_S if compile_s is None else dict.fromkeys(PASSES, compile_s)
    _configure(threads)
    if any(limits.values()):
        _begin_to_compile()
    module = import_module(case.peers)
    formulations = module.FORMULATIONS[case.operator](**case.params)
    loosely = case.operator in getattr(module, "ROUNDING", ())
    tensors = [_tensors(each) for each in buffers]
    found: list[Peer] = []
    for kind in KINDS:
        compiled = kind == "compiled"
        if compiled and not any(limits.values()):
            continue
        looks = _eager_looks(found)
        peers = [
            Peer(kind, formulation, _calls(function, tensors, compiled=compiled))
            for formulation, function in formulations.items()
            if not compiled or _worth_compiling(formulation, formulations, looks)
        ]
        for name in PASSES:
            until = _until(limits[name] if compiled else None)
            # The best forward pass so far first; of the compiled, the best eager one.
            peers.sort(key=lambda peer: peer.looks.get("forward", looks.get(peer.formulation, inf)))
            for peer in [each for each in peers if name == "forward" or _goes_on(each)]:
                agree = partial(_compare, f"{case.title}: {peer.name}", expected=expected, loosely=loosely)
                try:
                    with until():
                        peer.looks[name] = _look(peer.calls[name], clock, kind, agree)
                except _TimeUp:
                    problem(f"{peer.name}: {name} not compiled within {limits[name]:.0f} s for this case")
                except Cannot as reason:
                    problem(f"{peer.name}: {reason}")
                except Exception as error:  # whatever a compiler may raise; a Mismatch too
                    problem(f"{peer.name}: {type(error).__name__}: {_first_line(error)}")
            _choose(peers, name)
        found += [peer for peer in peers if peer.looks]
    price = getattr(module, "PRICES", {}).get(case.operator)
    if price is not None:
        calls = _calls(price, tensors, compiled=False)
        found.append(Peer(PRICE, "3 x 3", calls, contends={"forward"}))
    return found


@cache
def _begin_to_compile() -> None:
    """What is compiled once in the life of a cache, such as headers, is not part of any case's time."""
    with suppress(Exception):  # without a compiler, each formulation will say so
        _compile(torch.neg)(torch.ones(8))


def _configure(threads: int) -> None:
    torch.set_num_threads(threads)
    # Exact float32, as ours.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # Worker processes would outlive the compiling, beside what is timed.
    torch._inductor.config.compile_threads = 1
    # Formulations share code objects, and each is compiled with and without gradients: not a recompilation
    # that should make anyone give up. What the last case left is forgotten.
    torch._dynamo.reset()
    for limit in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, 64)


def _eager_looks(found: Iterable[Peer]) -> dict[str, float]:
    """Of each formulation that went through, the best forward pass, its own or that of its twin in place."""
    looks: dict[str, float] = {}
    for peer in found:
        look = peer.looks.get("forward", inf)
        for formulation in (peer.formulation, _out_of_place(peer.formulation) or peer.formulation):
            looks[formulation] = min(look, looks.get(formulation, inf))
    return looks


def _worth_compiling(formulation: str, formulations: Iterable[str], eager: Mapping[str, float]) -> bool:
    """Not what is wrong or impossible without a compiler, nor what differs only by adding up in place."""
    return formulation in eager and _out_of_place(formulation) not in formulations


def _out_of_place(formulation: str) -> str | None:
    """The formulation that differs only by not adding up in place: to the compiler they are one."""
    name = formulation.replace(", in place", "").replace(" in place", "")
    return name if name != formulation else None


def _goes_on(peer: Peer) -> bool:
    """Whether a call with gradients is worth a look."""
    if "forward" in peer.contends:
        return True
    return peer.kind == "eager" and peer.looks.get("forward", LONG_MS) < LONG_MS


def _choose(peers: list[Peer], name: str) -> None:
    """Who contends: those not much slower than the best."""
    best = min((peer.looks[name] for peer in peers if name in peer.looks), default=0.0)
    for peer in peers:
        if name in peer.looks and peer.looks[name] <= SLOW * best:
            peer.contends.add(name)


def _look(call: Call, clock: Clock, kind: str, compare: Callable[[tuple], None]) -> float:
    """Milliseconds of the best of a few calls, after one whose results are compared.

    A slow one is called once more, a very slow one not again.
    """
    results: list[Any] = []
    (first,) = clock.times(lambda index: results.append(call(index)), 0, 1)
    compare(results.pop())
    if first > LONG_MS and kind == "eager":
        return first
    (second,) = clock.times(call, 0, 1)
    if second > SHORT_MS:
        return second
    return min(second, *(clock.times(call, 0, 1)[0] for _ in range(2)))


class _TimeUp(BaseException):
    """Not an Exception: a compiler must not catch it."""


def _until(seconds: float | None) -> Callable[[], AbstractContextManager[None]]:
    """Contexts that share some time from now on, after which the one that is entered raises `_TimeUp`.

    Where that is possible: in the main thread of a Unix process.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not possible:
        return nullcontext
    deadline = monotonic() + seconds

    @contextmanager
    def limited() -> Iterator[None]:
        if deadline <= monotonic():
            raise _TimeUp

        def stop(*_: Any) -> None:
            raise _TimeUp

        before = signal.signal(signal.SIGALRM, stop)
        # Again each second, should something swallow the first.
        signal.setitimer(signal.ITIMER_REAL, deadline - monotonic(), 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return limited


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _tensors(buffers: Buffers) -> tuple[list, list, Any]:
    """Tensors on the memory of the arrays, without and with gradients, and the gradient of the output."""
    plain = [torch.from_dlpack(array) for array in buffers.arrays if array is not None]
    return (
        plain,
        [tensor.detach().requires_grad_() for tensor in plain],
        torch.from_dlpack(buffers.grad_output),
    )


def _calls(function: Callable, tensors: list[tuple[list, list, Any]], *, compiled: bool) -> dict[str, Call]:
    """Both passes; each gives a tuple that begins with the output."""
    # One compiled function for each use, so that neither meets the other's guards.
    forward_only, differentiable = (_compile(function) if compiled else function for _ in range(2))

    def forward(index: int) -> tuple:
        with torch.no_grad():
            return (forward_only(*tensors[index][0]),)

    def forward_backward(index: int) -> tuple:
        _, leaves, grad_output = tensors[index]
        output = differentiable(*leaves)
        return output, *torch.autograd.grad(output, leaves, grad_output)

    return {"forward": forward, "forward_backward": forward_backward}


def _compile(function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _compare(name: str, results: tuple, expected: tuple, *, loosely: bool = False) -> None:
    """`results`: the output, or the output and all gradients."""
    given = [array for array in expected if array is not None]
    if len(results) not in (1, len(given)):
        raise Mismatch(f"{name}: {len(results)} results, ours {len(given)}")
    tolerance, few = (LOOSE_TOLERANCE, FEW) if loosely else (TOLERANCE, 0.0)
    for index, (result, ours) in enumerate(zip(results, given)):
        what = f"gradient {index - 1}" if index else "output"
        theirs = result.detach().cpu().numpy()
        ours = ours if isinstance(ours, np.ndarray) else ours.get()
        if theirs.shape != ours.shape:
            raise Mismatch(f"{name}: {what} has shape {theirs.shape}, ours {ours.shape}")
        # Of few elements all may be small by chance, where many terms cancel.
        usual = np.sqrt(given[0].size / ours.size) if 0 < ours.size < 16 else np.finfo(ours.dtype).tiny
        errors = np.abs(theirs - ours) / max(np.abs(ours).max(initial=0), usual)
        if not np.count_nonzero(~(errors <= tolerance)) <= few * errors.size:
            error = errors.max(initial=0)
            raise Mismatch(f"{name}: {what} differs from ours by {error:.1e} of its largest element")
