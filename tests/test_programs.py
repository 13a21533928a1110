"""Random programs, run with the library and in forward mode: every gradient is right, or refused by name."""

import asyncio
import contextvars
import copy
import itertools
import pickle
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import _forward_mode as forward
import _forward_values as values
import numpy as np
import pytest
from _programs import HEADER, Program, features, make, shrunk, source

import autodiff
from autodiff import Variable, derivatives, function
from autodiff import functions as F
from autodiff.function import Step
from autodiff.layers import Module
from autodiff.tape import Way

# What the library says when it refuses, by reason: function, source, cause, and the way out.
_CONSTANT = r".*source \d.*stop_gradient\(x\)"
REFUSALS = {
    values.UNUSED: (ValueError, r"does not depend on source \d.*no path.*unused='zero' or 'none'"),
    values.OUTSIDE: (
        ValueError,
        rf"result of '[^']+' that was not computed on this tape.*no tape recorded there{_CONSTANT}"
        r"|checkpoint of .*where nothing records.*stop_gradient\(x\)",
    ),
    values.RELEASED: (ValueError, rf"result of '[^']+' that was released.*keep=True{_CONSTANT}"),
    values.COPIED: (TypeError, r"a result cannot be copied while a tape records.*stop_gradient\(x\)"),
    values.CHANGED: (RuntimeError, r"checkpoint of .*(got other data|another value|other Variables)"),
}
# So many times the largest number of a program is rounding; larger numbers than LARGE are not looked at.
ROUNDING, LARGE = 1e-10, 1e3
# A pool starts a thread whenever none is idle, up to so many: tasks that wait for tasks never use them up.
THREADS = 1 << 16


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

    def __init__(self, code: Any) -> None:
        self.outputs: list = []
        self.error: Exception | None = None
        self.lines: list[int] = []
        names = {name: getattr(autodiff, name) for name in dir(autodiff)}
        names |= {"F": F, "Dense": Dense, "out": self.outputs.append, **SHARED}
        try:
            # A pool of its own: no task outlives its program, or waits for one of another.
            with ThreadPoolExecutor(THREADS) as pool:
                contextvars.Context().run(exec, code, {**names, "pool": pool})
        except Exception as error:
            self.error = error
            frames = traceback.extract_tb(error.__traceback__)
            self.lines = [f.lineno or 0 for f in frames if f.filename == values.PROGRAM]

    def reason(self) -> str:
        """The reason of the refusal, or what is wrong with its text."""
        for reason, (kind, text) in REFUSALS.items():
            if type(self.error) is kind and re.search(text, str(self.error)):
                return reason
        return f"not a refusal that is documented: {type(self.error).__name__}: {self.error}"


SHARED: dict[str, Any] = {"np": np, "copy": copy, "pickle": pickle, "asyncio": asyncio}
exec(HEADER, SHARED)


def drawn(number: int) -> tuple[Program, values.World]:
    """A program that means something, and its run; what the library may refuse is in one of eight only."""
    for seed in itertools.count(number << 20):
        program = make(seed)
        want = expected(compiled(program))
        if want is not None and (number % 8 == 0 or not want.may):
            return program, want
    raise AssertionError


def compiled(program: Program) -> Any:
    return compile(source(program), values.PROGRAM, "exec")


def judge(program: Program, want: Any = None) -> Outcome:
    """Run a program both ways and compare; `want` is its run in forward mode, if that is known."""
    try:
        code = compiled(program)
    except SyntaxError:
        return Outcome("no program")
    want = want or expected(code)
    if want is None:
        return Outcome("no program")
    got = Library(code)
    used = frozenset(features(program) | measured(want))
    for place, (mine, theirs) in enumerate(zip(got.outputs, want.outputs)):
        problem = difference(mine, theirs, ROUNDING * want.scale)
        if problem:
            return Outcome("wrong", f"output {place}: {problem}")
    if got.error is not None:
        reason = got.reason()
        # What a checkpoint uses of a loop is another value when it runs again.
        late = {values.CHANGED} if {"checkpoint", "loop"} <= used else set()
        if any(reason in want.may.get(line, set()) | late for line in got.lines):
            return Outcome("refused", reason, used)
        return Outcome("wrong", f"line {got.lines[-1:]} is refused without cause: {reason}: {got.error}")
    if want.must:
        return Outcome("wrong", f"not refused: {want.must}")
    return Outcome("right", "", used)


def expected(code: Any) -> values.World | None:
    """The run in forward mode; None if the program means nothing, or if its numbers become large."""
    try:
        world = forward.run(code, SHARED)
    except Exception:
        return None
    return world if world.scale <= LARGE else None


def measured(world: values.World) -> set[str]:
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
    if isinstance(got, Variable) != isinstance(want, values.Variable) and not getattr(want, "perhaps", False):
        return f"a {type(got).__name__}, expected a {type(want).__name__}"
    got, want = np.asarray(getattr(got, "data", got)), np.asarray(getattr(want, "data", want))
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype} of shape {got.shape}, expected {want.dtype} of shape {want.shape}"
    wrong = not np.all(np.abs(got - want) <= tolerance)
    return f"{got.tolist()}, expected {want.tolist()}" if wrong else ""


class Soak:
    """Many programs, and what became of them; those that are wrong with their numbers."""

    def __init__(self, numbers: range) -> None:
        self.outcomes: Counter = Counter()
        self.refused: Counter = Counter()
        self.accepted: Counter = Counter()
        self.wrong: list[tuple[int, Outcome]] = []
        for number in numbers:
            outcome = judge(*drawn(number))
            self.outcomes[outcome.kind] += 1
            if outcome.kind == "right":
                self.accepted.update(outcome.used)
            elif outcome.kind == "refused":
                self.refused[outcome.why] += 1
            else:
                self.wrong.append((number, outcome))

    def report(self, shown: int = 3) -> str:
        """What became of them, and of each kind of fault a few programs, made small."""
        lines = [f"{dict(self.outcomes)}, refused: {dict(self.refused)}"]
        kinds = Counter(kind(outcome) for _, outcome in self.wrong)
        lines += [f"{count} times {of}" for of, count in kinds.most_common()]
        left = Counter(dict.fromkeys(kinds, shown))
        for number, outcome in self.wrong:
            of = kind(outcome)
            left[of] -= 1
            if left[of] >= 0:
                program = shrunk(drawn(number)[0], lambda p, of=of: kind(judge(p)) == of)
                lines += [f"---- program {number}: {judge(program).why}", source(program)]
        return "\n".join(lines)


def kind(outcome: Outcome) -> str:
    """A fault without its numbers, to tell kinds apart."""
    return outcome.kind + " " + re.sub(r"\[.*?\]|[\d.-]+", "", outcome.why)[:70]


FEATURES = (
    "shared Variable", "gradients nested to depth 2", "gradients nested to depth 3", "closure", "function",
    "grad", "value_and_grad", "vjp", "jvp", "hvp", "jacobian", "hessian", "late pullback", "loop", "reads",
    "argument that escapes", "deepcopy", "copy", "pickle", "layer", "layer copy", "checkpoint", "in-place",
    "gradient in the block", "gradient in the block, keep", "gradient after the block", "source is a result",
    "gradient after the block, keep", "unused zero", "unused none", "nested tapes", "tape entered again",
    "release", "exception", "asyncio", "thread within the tape", "thread without the tape",
    "value computed outside", "derivative taken outside", "derivative in a thread without the tape",
    "data changed", "stop_gradient",
)  # fmt: skip


def check(soak: Soak, count: int) -> None:
    assert not soak.wrong, soak.report()
    assert soak.outcomes["refused"] <= count // 10, soak.report()
    # All reasons for refusals occur, so that their texts are compared.
    assert set(soak.refused) == set(REFUSALS), soak.report()
    rare = {feature: soak.accepted[feature] for feature in FEATURES if soak.accepted[feature] < 100}
    assert not rare


@pytest.mark.timeout(1800)  # many times what it takes, for it may share a processor with much else
def test_no_program_is_silently_wrong() -> None:
    check(Soak(range(2000)), 2000)


# --- what the programs are good for: faults of the engine, planted one at a time, are found ---


def no_argument_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested derivatives by one Variable mix: a tag is dropped."""
    given = derivatives._argument
    monkeypatch.setattr(derivatives, "_argument", lambda x: x if isinstance(x, Variable) else given(x))


def last_part_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is added up in a gradient, only the last counts."""

    class Forgetful(dict):
        def get(self, *node: Any) -> None:
            return None

    right = Way._pull

    def pull(way: Way, *rest: Any) -> Any:
        way.grads = Forgetful(way.grads)
        return right(way, *rest)

    monkeypatch.setattr(Way, "_pull", pull)


def rules_that_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second derivatives lose what the rules read."""
    monkeypatch.setattr(Step, "linked", lambda step: step)


def constants_where_nothing_records(monkeypatch: pytest.MonkeyPatch) -> None:
    right = function.Node
    monkeypatch.setattr(function, "Node", lambda variable, name, nodes: right(variable, name))


def copies_that_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(variable: Variable, *memo: Any) -> Variable:
        other = Variable(variable.data.copy())
        other.node = variable.node
        return other

    monkeypatch.setattr(Variable, "__deepcopy__", copied, raising=False)


FAULTS = (
    no_argument_of_its_own, last_part_of_a_sum, rules_that_are_not_recorded, constants_where_nothing_records,
    copies_that_are_the_same,
)  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(400):
        program, want = drawn(number)
        with monkeypatch.context() as planted:
            plant(planted)
            found = judge(program, want).kind == "wrong"
        if found and judge(program, want).kind == "right":
            return
    pytest.fail("no program is wrong because of it")


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(10))
def test_none_of_100_000_programs_is_silently_wrong(part: int) -> None:
    first = 2000 + part * 10_000
    check(Soak(range(first, first + 10_000)), 10_000)


if __name__ == "__main__":
    soak = Soak(range(int(sys.argv[1]), int(sys.argv[1]) + int(sys.argv[2])))
    print(autodiff.__file__, sorted(soak.accepted.items(), key=lambda kv: kv[1])[:20])
    print(soak.report(int(sys.argv[3])))
