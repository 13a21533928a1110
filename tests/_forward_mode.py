"""Differentiation that shares nothing with the tape: forward mode with tags, behind the same names.

A program that is run with these names instead of the library's computes the same in another way. Every
value is a polynomial in infinitesimals whose squares vanish; each source of each gradient that the program
takes has an infinitesimal of its own, its *tag*. A gradient reads the coefficient of its tag. Since the
sources of a later gradient are not known when they are computed, a program runs more than once: each run
notes which values were sources, numbered in the order of their creation, and the next run tags them.

What leads to what is kept too, in `Variable.inputs`, apart from the slopes. From it `Tape.gradient` notes
for each line of the program why the library may refuse there, and where it must.
"""

import contextvars
import copy
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from _duals import Dual, linear, product, reshaped, summed, total
from _forward_values import (
    CHANGED,
    OUTSIDE,
    RELEASED,
    UNUSED,
    F,
    Variable,
    World,
    dual,
    plain,
    pooled,
    tapes,
    world,
)


class Tape:
    """Says where values are recorded; what is outside of all tapes has no way back through it."""

    def __init__(self, check: bool = True) -> None:
        self.made: list[Variable] = []

    def __enter__(self) -> "Tape":
        tapes.set((*tapes.get(), self))
        return self

    def __exit__(self, *error: Any) -> None:
        tapes.set(tapes.get()[:-1])

    def release(self) -> None:
        for value in self.made:
            value.blocked = value.blocked or RELEASED

    def gradient(
        self,
        target: Variable,
        sources: Any,
        *,
        grad: Any = None,
        keep: bool = False,
        unused: str = "raise",
        start: int = 0,
    ) -> Any:
        """As the library's, whatever the path; what that may or must refuse is noted.

        `start` is that of a derivative function, whose results from elsewhere know what is older.
        """
        group = sources if isinstance(sources, list | tuple | Mapping) else [sources]
        members = list(group.values()) if isinstance(group, Mapping) else list(group)
        if grad is None and target.size != 1:
            raise ValueError("the target is no single number")
        seed = np.ones(target.shape) if grad is None else grad
        world.taken += 1
        found: dict = {}  # a source that is named twice has one gradient
        with Question(members) as question:
            for place, source in enumerate(members):
                slope = pulled(question.slope(target, place), dual(seed), source.shape)
                verdict = _verdict(target, source, slope, unused)
                if source not in found:
                    found[source] = verdict or deliver(slope, (target, seed), members, start)
        if not keep and self not in tapes.get():
            self.release()
        grads = [None if found[source] is UNUSED else found[source] for source in members]
        if isinstance(group, Mapping):
            return dict(zip(group, grads))
        return grads if group is sources else grads[0]


class Question:
    """One gradient: a tag for each source."""

    def __init__(self, sources: list) -> None:
        self.number, self.sources = len(world.questions), sources
        world.questions.append([s.number for s in sources])
        if world.rebound and world.checkpoints:
            world.refuse(CHANGED)

    def __enter__(self) -> "Question":
        return self

    def __exit__(self, *error: Any) -> None:
        world.answered.update((self.number, place) for place in range(len(self.sources)))

    def slope(self, target: Variable, place: int) -> Dual:
        """d target / d source: an axis for the elements of the source, then those of the target."""
        tag, size, parts = (self.number, place), self.sources[place].size, {}
        for tags, part in dual(target).parts.items():
            if tag in tags:
                rest = tuple(t for t in tags if t != tag)
                parts[rest] = np.moveaxis(part, tags.index(tag), len(rest))
        parts.setdefault((), np.zeros((size, *target.shape)))
        return Dual(parts, (size, *target.shape))


def pulled(slope: Dual, seed: Dual, shape: tuple) -> Dual:
    """The slope weighted by a seed of the target's shape: one number for each element of the source."""
    rank = len(slope.shape) - 1
    weighted = product(slope, seed)
    weighted = linear(weighted, lambda p, k: p.sum(axis=tuple(range(k + 1, k + 1 + rank))))
    return reshaped(weighted, shape)


def pushed(slope: Dual, vector: Any) -> Dual:
    """The slope along a vector of the source's shape."""
    vector = reshaped(dual(vector), (-1, *(1,) * (len(slope.shape) - 1)))
    return summed(product(slope, vector), 0)


def deliver(slope: Dual, inputs: tuple, by: list, start: int = 0) -> Any:
    """A result of differentiation: a Variable where a tape records, or if it depends on one from before
    `start`; else an array.
    """
    inputs = tuple(v for v in inputs if isinstance(v, Variable))
    world.order = max(world.order, *(v.order + 1 for v in inputs))
    if stays_inside(inputs, start):
        return slope.parts[()]
    gradient = Variable(slope, inputs=inputs, kind="gradient")
    gradient.by = by
    return perhaps(gradient, inputs, start)


def stays_inside(values: tuple, start: int) -> bool:
    """Whether nothing records, and what the values were computed from is younger than `start`."""
    return not tapes.get() and all(v.number >= start for value in values for v in ancestors(value))


def perhaps(result: Variable, values: tuple, start: int) -> Variable:
    """The result, marked if only gradients, whose rules may not have read them, lead to older Variables."""
    older = {}
    for v in sorted({v for value in values for v in ancestors(value)}, key=lambda v: v.number):
        if v.number < start:
            older[v] = not v.perhaps
        else:
            older[v] = v.kind != "gradient" and any(older[i] for i in v.inputs)
    result.perhaps = not tapes.get() and not any(older[value] for value in values)
    return result


class Ambiguous(Exception):
    """A derivative that depends on how gradients are computed.

    By a result that was on the way of a gradient, whose rules may have read it or not; or by one of several
    gradients of a call, of which one may have been computed from another, or be the same Variable.
    """


def ancestors(target: Variable) -> list[Variable]:
    """What a value was computed from, and itself, in the order of creation."""
    found, todo = {target}, [target]
    while todo:
        new = [v for v in todo.pop().inputs if v not in found]
        found.update(new)
        todo += new
    return sorted(found, key=lambda v: v.number)


def paths(target: Variable, source: Variable) -> tuple[bool, bool, set]:
    """Whether the source leads to the target for certain, or perhaps, and what blocks any of the ways."""
    sure, maybe, why = {}, {}, {}
    for v in ancestors(target):
        sure[v] = v is source or (v.kind != "gradient" and any(sure[i] for i in v.inputs))
        maybe[v] = v is source or any(maybe[i] for i in v.inputs)
        why[v] = set().union(*(why[i] for i in v.inputs)) if v is not source else set()
        if maybe[v] and v is not source and v.blocked:
            why[v].add(v.blocked)
        if maybe[v] and v is not source and source.kind == "step" and set(v.by) & set(ancestors(source)):
            raise Ambiguous
        of_one_call = source.kind == "gradient" and v.by is source.by
        if of_one_call and (v is not source or len(set(v.by)) < len(v.by)):
            raise Ambiguous
    return sure[target], maybe[target], why[target]


def _verdict(target: Variable, source: Variable, slope: Dual, unused: str) -> Any:
    """Note what may be refused; None where there is a slope, UNUSED where None is returned for certain."""
    sure, maybe, why = paths(target, source)
    for reason in why:
        world.refuse(reason)
    flat = all(not part.any() for part in slope.parts.values())
    if unused == "raise" and not sure and flat:
        world.refuse(UNUSED, must=not maybe)
    if unused == "none" and not sure and flat:
        return UNUSED if not maybe else ZERO_OR_NONE
    return None


ZERO_OR_NONE = "zero or None"


def own(x: Any) -> Variable:
    """An argument of a function that is differentiated, linked to what is given for it."""
    return Variable(dual(x), inputs=(x,), kind="argument") if isinstance(x, Variable) else Variable(x)


def _outward(value: Variable, start: int) -> Any:
    if tapes.get():
        return value
    if stays_inside((value,), start):
        return value.data
    return perhaps(Variable(dual(value), inputs=(value,), kind="step"), (value,), start)


def _begun() -> int:
    return next(world.numbers)


def _variable(value: Any) -> Variable:
    return value if isinstance(value, Variable) else Variable(value)


def value_and_grad(f: Callable, argnums: int | tuple = 0) -> Callable:
    places = argnums if isinstance(argnums, tuple) else (argnums,)

    def evaluate(*args: Any) -> tuple:
        start = _begun()
        with Tape() as tape:
            inputs = [own(a) if i in places else a for i, a in enumerate(args)]
            value = _variable(f(*inputs))
        grads = tape.gradient(value, [inputs[i] for i in places], unused="zero", start=start)
        return _outward(value, start), tuple(grads) if isinstance(argnums, tuple) else grads[0]

    return evaluate


def grad(f: Callable, argnums: int | tuple = 0) -> Callable:
    return lambda *args: value_and_grad(f, argnums)(*args)[1]


def vjp(f: Callable, *arrays: Any) -> tuple:
    start = _begun()
    with Tape() as tape:
        inputs = [own(a) for a in arrays]
        value = _variable(f(*inputs))

    def pullback(g: Any) -> tuple:
        return tuple(tape.gradient(value, inputs, grad=g, keep=True, unused="zero", start=start))

    return _outward(value, start), pullback


def jvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    start = _begun()
    with Tape():
        inputs = [own(a) for a in arrays]
        value = _variable(f(*inputs))
    with Question(inputs) as question:
        slope = total(*(pushed(question.slope(value, i), v) for i, v in enumerate(vectors)))
    return _outward(value, start), deliver(slope, (value, *vectors), inputs, start)


def hvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    start = _begun()
    with Tape() as tape:
        inputs = [own(a) for a in arrays]
        grads = tape.gradient(f(*inputs), inputs, unused="zero")
    with Question(inputs) as question:
        slopes = [total(*(pushed(question.slope(g, i), v) for i, v in enumerate(vectors))) for g in grads]
    return tuple(deliver(slope, (g, *vectors), inputs, start) for slope, g in zip(slopes, grads))


def jacobian(f: Callable, argnum: int = 0) -> Callable:
    def evaluate(*args: Any) -> Any:
        start = _begun()
        with Tape():
            inputs = [own(a) if i == argnum else a for i, a in enumerate(args)]
            value = _variable(f(*inputs))
        with Question([inputs[argnum]]) as question:
            slope = question.slope(value, 0)
        slope = linear(slope, lambda p, k: np.moveaxis(p, k, -1))
        shape = value.shape + inputs[argnum].shape
        return deliver(reshaped(slope, shape), (value,), [inputs[argnum]], start)

    return evaluate


def hessian(f: Callable, argnum: int = 0) -> Callable:
    return jacobian(grad(f, argnum), argnum)


def stop_gradient(x: Any) -> Any:
    return type(x)(map(stop_gradient, x)) if isinstance(x, tuple | list) else plain(x)


def checkpoint(f: Callable) -> Callable:
    def call(*args: Any) -> Any:
        start, taken, value = next(world.numbers), world.taken, f(*args)
        world.checkpoints = True
        if world.taken > taken:  # inside nothing records but tapes that are entered there
            world.refuse(OUTSIDE)
        todo = [value] if isinstance(value, Variable) else []
        while todo:  # it may refuse what it cannot follow inside
            v = todo.pop()
            if v.blocked or v.pooled:
                world.refuse(OUTSIDE)
            todo += [i for i in v.inputs if i.number > start]
        return value

    return call


class Pool:
    """Like a pool of threads, which know nothing of the tapes of the caller; one task after the other."""

    def submit(self, f: Callable, *args: Any) -> Any:
        context = contextvars.Context()
        context.run(pooled.set, True)
        value = context.run(f, *args)
        return SimpleNamespace(result=lambda: value)

    def map(self, f: Callable, *columns: Any) -> Any:
        return iter([self.submit(f, *row).result() for row in zip(*columns)])


class Dense:
    """A layer: one weight and one bias for each element."""

    def __init__(self, weight: Any, bias: Any) -> None:
        self.weight, self.bias = Variable(weight), Variable(bias)

    def __call__(self, x: Any) -> Any:
        return F.tanh(self.weight * x + self.bias)


NAMES = (
    Variable, Tape, F, grad, value_and_grad, vjp, jvp, hvp, jacobian, hessian, stop_gradient, checkpoint,
    Dense,
)  # fmt: skip


def run(code: Any, shared: dict) -> World:
    """Run a compiled program, with these names too, until a run finds the sources that the last one found."""
    plan: dict = {}
    for _ in range(6):
        world.begin(plan)
        names = {**{item.__name__: item for item in NAMES}, "pool": Pool(), "out": world.outputs.append}
        context = contextvars.Context()
        context.run(np.seterr, all="ignore")
        context.run(exec, code, {**shared, **names})
        plan = {}
        for number, sources in enumerate(world.questions):
            for place, source in enumerate(sources):
                plan.setdefault(source, []).append((number, place))
        if plan == world.plan:
            return copy.copy(world)
    raise RuntimeError("the sources of its gradients do not settle")
