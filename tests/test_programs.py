"""Random programs, run with the library and with forward mode: every gradient is right, or refused by name."""

import asyncio
import contextvars
import copy
import pickle
import re
import sys
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import _forward_mode as forward
import numpy as np
import pytest
from _programs import HEADER, Program, features, make, shrunk, source

import autodiff
from autodiff import Tape, Variable
from autodiff import functions as F
from autodiff.layers import Module

# What the library says when it refuses, by reason.
REFUSALS = {
    forward.UNUSED: (ValueError, "does not depend on source"),
    forward.OUTSIDE: (ValueError, "was not computed on this tape|where nothing records"),
    forward.RELEASED: (ValueError, "was released"),
    forward.COPIED: (TypeError, "cop(y|ied)"),
    forward.CHANGED: (RuntimeError, "got other data|another value"),
}
# So many times the largest number of a program is rounding; larger numbers than LARGE are not looked at.
ROUNDING, LARGE = 1e-10, 1e3


class Dense(Module):
    """A layer: one weight and one bias for each element."""

    def __init__(self, weight: Any, bias: Any) -> None:
        self.weight, self.bias = Variable(weight), Variable(bias)

    def forward(self, x: Any) -> Any:
        return F.tanh(self.weight * x + self.bias)


class Outcome(NamedTuple):
    """What became of a program: "right", "refused", "wrong", or "no program" if it means nothing."""

    kind: str
    why: str = ""
    used: frozenset = frozenset()


class Library:
    """One run with the names of the library: what it gave, or what it refused and in which lines."""

    def __init__(self, code: Any, pool: ThreadPoolExecutor) -> None:
        self.outputs: list = []
        self.error: Exception | None = None
        self.lines: list[int] = []
        names = {name: getattr(autodiff, name) for name in dir(autodiff)}
        names |= {"F": F, "Dense": Dense, "pool": pool, "out": self.outputs.append, **SHARED}
        try:
            contextvars.Context().run(exec, code, names)
        except Exception as error:
            self.error = error
            frames = traceback.extract_tb(error.__traceback__)
            self.lines = [f.lineno or 0 for f in frames if f.filename == forward.PROGRAM]

    def reason(self) -> str:
        """The reason of the refusal, or what is wrong with its text."""
        for reason, (kind, text) in REFUSALS.items():
            if type(self.error) is kind and re.search(text, str(self.error)):
                return reason
        return f"not a refusal that is documented: {type(self.error).__name__}: {self.error}"


SHARED: dict[str, Any] = {"np": np, "copy": copy, "pickle": pickle, "asyncio": asyncio}
exec(HEADER, SHARED)


def judge(program: Program, pool: ThreadPoolExecutor, want: Any = None) -> Outcome:
    """Run a program both ways and compare."""
    code = compile(source(program), forward.PROGRAM, "exec")
    if want is None:
        want = expected(code)
    if want is None:
        return Outcome("no program")
    got = Library(code, pool)
    used = frozenset(features(program) | measured(want))
    for place, (mine, theirs) in enumerate(zip(got.outputs, want.outputs)):
        problem = difference(mine, theirs, ROUNDING * want.scale)
        if problem:
            return Outcome("wrong", f"output {place}: {problem}")
    if got.error is not None:
        reason = got.reason()
        if any(reason in want.may.get(line, ()) for line in got.lines):
            return Outcome("refused", reason, used)
        return Outcome("wrong", f"line {got.lines[-1:]} is refused without cause: {reason}: {got.error}")
    if want.must:
        return Outcome("wrong", f"not refused: {want.must}")
    return Outcome("right", "", used)


def expected(code: Any) -> forward.World | None:
    """The run in forward mode; None if the program means nothing, or if its numbers become large."""
    try:
        with np.errstate(all="raise"):
            world = forward.run(code, SHARED)
    except (NameError, TypeError, ValueError, FloatingPointError, AttributeError, IndexError):
        return None
    return world if world.scale <= LARGE else None


def measured(world: forward.World) -> set[str]:
    """Features that only a run shows."""
    found = {f"gradients nested to depth {order}" for order in range(2, min(world.order, 4) + 1)}
    return found | ({"shared Variable"} if world.shared else set())


def difference(got: Any, want: Any, tolerance: float) -> str:
    """How an output differs, empty if it does not."""
    if want is forward.ZERO_OR_NONE:
        return "" if got is None or not np.any(getattr(got, "data", got)) else f"{got}, expected zero"
    if (got is None) != (want is None):
        return f"{got}, expected {want}"
    if want is None or isinstance(want, float):
        return "" if got == want or abs(got - want) <= tolerance else f"{got}, expected {want}"
    if isinstance(got, Variable) != isinstance(want, forward.Variable):
        return f"a {type(got).__name__}, expected a {type(want).__name__}"
    got, want = np.asarray(getattr(got, "data", got)), np.asarray(getattr(want, "data", want))
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype} of shape {got.shape}, expected {want.dtype} of shape {want.shape}"
    wrong = not np.all(np.abs(got - want) <= tolerance)
    return f"{got.tolist()}, expected {want.tolist()}" if wrong else ""


class Soak:
    """Many programs, and what became of them."""

    def __init__(self, seeds: range) -> None:
        self.outcomes: Counter = Counter()
        self.reasons: Counter = Counter()
        self.accepted: Counter = Counter()
        self.wrong: list[tuple[int, Outcome]] = []
        with ThreadPoolExecutor(2) as pool:
            for seed in seeds:
                outcome = judge(make(seed), pool)
                self.outcomes[outcome.kind] += 1
                self.reasons[outcome.why if outcome.kind == "refused" else ""] += 1
                self.accepted.update(outcome.used if outcome.kind == "right" else ())
                if outcome.kind == "wrong":
                    self.wrong.append((seed, outcome))


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    soak = Soak(range(first, first + count))
    print(soak.outcomes, soak.reasons)
    print(sorted(soak.accepted.items(), key=lambda kv: kv[1]))
    for seed, outcome in soak.wrong[: int(sys.argv[3])]:
        print("-----", seed, outcome.why)
        if len(sys.argv) > 4:
            key = outcome.why.split(":")[0]
            with ThreadPoolExecutor(2) as pool:
                less = shrunk(make(seed), lambda p: judge(p, pool).why.split(":")[0][:6] == key[:6] and judge(p, pool).kind == "wrong")
                print(judge(less, pool).why)
            print(source(less))
