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
import itertools
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import _duals as duals
import numpy as np
from _duals import Dual, chosen, constant, linear, product, reshaped, summed, total

PROGRAM = "<program>"
# Reasons for which a gradient, a copy, or a checkpoint that runs again may be refused.
UNUSED, OUTSIDE, RELEASED, COPIED, CHANGED = "unused", "outside", "released", "copied", "changed"


class World:
    """One run of a program: which values are tagged, and what happened.

    `plan` maps the numbers of values to their tags, (gradient, place among its sources); `questions` holds
    the numbers of the sources of each gradient; `may` and `must` the reasons for refusals by line.
    """

    def __init__(self, plan: dict) -> None:
        self.plan = plan
        self.questions: list[list[int]] = []
        self.answered: set = set()
        self.numbers = itertools.count()
        self.may: dict[int, set] = {}
        self.must: dict[int, str] = {}
        self.outputs: list = []
        self.order, self.scale, self.shared = 0, 1.0, False
        self.rebound = self.checkpoints = False
        self.taken = 0  # gradients by tapes

    def refuse(self, reason: str, must: bool = False) -> None:
        line = _line()
        self.may.setdefault(line, set()).add(reason)
        if must:
            self.must[line] = reason


_world: World
_tapes: contextvars.ContextVar[tuple] = contextvars.ContextVar("tapes", default=())
_pooled: contextvars.ContextVar[bool] = contextvars.ContextVar("pooled", default=False)


def _line() -> int:
    """The line of the program that is running."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != PROGRAM:
        frame = frame.f_back
    return frame.f_lineno if frame else 0


class Variable:
    """A value with its slopes and with what it was computed from.

    `kind` is "leaf", "step", "argument" or "gradient": what leads to a gradient, which was taken by the
    Variables `by`, is not known exactly, since that depends on what the rules read. `blocked` says why
    there is no way back through it, if so.
    """

    def __array_ufunc__(self, f: Any, method: str, *inputs: Any, **params: Any) -> Any:
        if method != "__call__" or params:
            raise TypeError("a Variable is not written into an array")
        return getattr(F, "abs" if f is np.absolute else f.__name__)(*inputs)

    def __array_function__(self, f: Any, types: Any, args: tuple, params: dict) -> Any:
        return getattr(F, f.__name__)(*args, **params)

    def __init__(self, data: Any, name: Any = None, inputs: tuple = (), kind: str = "leaf") -> None:
        dual = data if isinstance(data, Dual) else constant(data)
        parts = {tags: part for tags, part in dual.parts.items() if _world.answered.isdisjoint(tags)}
        self.number = next(_world.numbers)
        for tag in _world.plan.get(self.number, ()):
            size = dual.parts[()].size
            parts[tag,] = np.eye(size).reshape(size, *dual.shape)
        self.dual = Dual(parts, dual.shape)
        self.inputs, self.kind, self.blocked, self.uses = inputs, kind, None, 0
        self.pooled = _pooled.get()
        self.by: list[Variable] = []
        self.owner = _tapes.get()[0] if _tapes.get() else None
        if self.owner is not None:
            self.owner.made.append(self)
        elif kind in ("step", "argument"):
            self.blocked = OUTSIDE
        self.order = max((v.order for v in inputs), default=0) + (kind == "gradient")
        for v in inputs:
            v.uses += 1
            _world.shared = _world.shared or v.uses > 1
        largest = max(float(np.abs(part).max(initial=0)) for part in parts.values())
        _world.scale = max(_world.scale, largest if largest < np.inf else np.inf)

    @property
    def data(self) -> Any:
        return self.dual.parts[()]

    @data.setter
    def data(self, value: Any) -> None:
        self.dual = Dual({**self.dual.parts, (): np.asarray(value, dtype=float)}, self.dual.shape)
        _world.rebound = True

    shape = property(lambda self: self.dual.shape)
    ndim = property(lambda self: len(self.dual.shape))
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)

    def item(self) -> float:
        return self.data.item()

    def __float__(self) -> float:
        return float(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __format__(self, form: str) -> str:
        return format(self.data.item() if self.data.size == 1 else str(self.data), form)

    def __copy__(self) -> "Variable":
        if self.kind != "leaf" and _tapes.get():
            _world.refuse(COPIED, must=self.kind == "step" and not self.blocked)
        return Variable(self.data)

    def __deepcopy__(self, memo: dict) -> "Variable":
        return copy.copy(self)

    def __reduce__(self) -> tuple:
        return Variable, (copy.copy(self).data,)

    def sum(self, axis: Any = None) -> Any:
        return F.sum(self, axis)

    def mean(self) -> Any:
        return F.mean(self)

    def reshape(self, *shape: int) -> Any:
        return F.reshape(self, shape)

    T = property(lambda self: F.transpose(self))
    __hash__ = object.__hash__


def plain(x: Any) -> Any:
    return x.data if isinstance(x, Variable) else x


def dual(x: Any) -> Dual:
    """As a Dual, without the tags of gradients that have been taken: nobody asks for them again."""
    if not isinstance(x, Variable):
        return constant(x)
    if not all(map(_world.answered.isdisjoint, x.dual.parts)):
        live = {tags: part for tags, part in x.dual.parts.items() if _world.answered.isdisjoint(tags)}
        x.dual = Dual(live, x.dual.shape)
    return x.dual


def function(f: Callable, arrays: int = 1) -> Callable:
    """A function of so many Duals, and of parameters behind them, as one of Variables or arrays."""

    def call(*args: Any) -> Any:
        operands = tuple(a for a in args[:arrays] if isinstance(a, Variable))
        value = f(*map(dual, args[:arrays]), *args[arrays:])
        return Variable(value, inputs=operands, kind="step") if operands else value.parts[()]

    return call


class F:
    """The functions of the library that programs use."""

    sin, cos, exp, tanh, log = map(function, (duals.sin, duals.cos, duals.exp, duals.tanh, duals.log))
    square, sigmoid, abs, max = map(function, (duals.square, duals.sigmoid, duals.absolute, duals.largest))
    power, clip, astype, mean = map(function, (duals.power, duals.clip, duals.astype, duals.mean))
    sum, reshape, getitem = map(function, (duals.summed, duals.reshaped, duals.picked))
    transpose, sqrt, negative = map(function, (duals.transposed, duals.root, duals.negative))
    add, multiply, matmul = function(total, 2), function(product, 2), function(duals.matmul, 2)
    subtract, divide = function(duals.subtract, 2), function(duals.divide, 2)
    maximum, minimum = function(duals.larger, 2), function(duals.smaller, 2)

    @staticmethod
    def where(mask: Any, a: Any, b: Any) -> Any:
        return function(lambda x, y: chosen(plain(mask), x, y), 2)(a, b)

    @staticmethod
    def stack(parts: list) -> Any:
        return function(duals.stacked, len(parts))(*parts)

    @staticmethod
    def concatenate(parts: list) -> Any:
        return function(duals.joined, len(parts))(*parts)


_BINARY = {"add": F.add, "sub": F.subtract, "mul": F.multiply, "truediv": F.divide, "matmul": F.matmul}
for _name, _f in _BINARY.items():
    setattr(Variable, f"__{_name}__", lambda self, other, f=_f: f(self, other))
    setattr(Variable, f"__r{_name}__", lambda self, other, f=_f: f(other, self))
for _name, _f in {"neg": F.negative, "abs": F.abs, "pow": F.power, "getitem": F.getitem}.items():
    setattr(Variable, f"__{_name}__", lambda self, *args, f=_f: f(self, *args))
Variable.__rpow__ = lambda self, base: F.exp(self * np.log(base))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Variable, f"__{_name}__", lambda self, o, f=f"__{_name}__": getattr(self.data, f)(plain(o)))


class Tape:
    """Says where values are recorded; what is outside of all tapes has no way back through it."""

    def __init__(self, check: bool = True) -> None:
        self.made: list[Variable] = []

    def __enter__(self) -> "Tape":
        _tapes.set((*_tapes.get(), self))
        return self

    def __exit__(self, *error: Any) -> None:
        _tapes.set(_tapes.get()[:-1])

    def release(self) -> None:
        for value in self.made:
            value.blocked = value.blocked or RELEASED

    def gradient(
        self, target: Variable, sources: Any, *, grad: Any = None, keep: bool = False, unused: str = "raise"
    ) -> Any:
        """As the library's, whatever the path; what that may or must refuse is noted."""
        group = sources if isinstance(sources, list | tuple | Mapping) else [sources]
        members = list(group.values()) if isinstance(group, Mapping) else list(group)
        if grad is None and target.size != 1:
            raise ValueError("the target is no single number")
        seed = np.ones(target.shape) if grad is None else grad
        _world.taken += 1
        found: dict = {}  # a source that is named twice has one gradient
        with Question(members) as question:
            for place, source in enumerate(members):
                slope = pulled(question.slope(target, place), dual(seed), source.shape)
                verdict = _verdict(target, source, slope, unused)
                if source not in found:
                    found[source] = verdict or deliver(slope, (target, seed), members)
        if not keep and self not in _tapes.get():
            self.release()
        grads = [None if found[source] is UNUSED else found[source] for source in members]
        if isinstance(group, Mapping):
            return dict(zip(group, grads))
        return grads if group is sources else grads[0]


class Question:
    """One gradient: a tag for each source."""

    def __init__(self, sources: list) -> None:
        self.number, self.sources = len(_world.questions), sources
        _world.questions.append([s.number for s in sources])
        if _world.rebound and _world.checkpoints:
            _world.refuse(CHANGED)

    def __enter__(self) -> "Question":
        return self

    def __exit__(self, *error: Any) -> None:
        _world.answered.update((self.number, place) for place in range(len(self.sources)))

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


def deliver(slope: Dual, inputs: tuple, by: list) -> Any:
    """A result of differentiation: a Variable where a tape records, an array elsewhere."""
    inputs = tuple(v for v in inputs if isinstance(v, Variable))
    _world.order = max(_world.order, *(v.order + 1 for v in inputs))
    if not _tapes.get():
        return slope.parts[()]
    gradient = Variable(slope, inputs=inputs, kind="gradient")
    gradient.by = by
    return gradient


class Ambiguous(Exception):
    """The derivative by a result that was on the way of a gradient, whose rules may have read it or not."""


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
    return sure[target], maybe[target], why[target]


def _verdict(target: Variable, source: Variable, slope: Dual, unused: str) -> Any:
    """Note what may be refused; None where there is a slope, UNUSED where None is returned for certain."""
    sure, maybe, why = paths(target, source)
    for reason in why:
        _world.refuse(reason)
    flat = all(not part.any() for part in slope.parts.values())
    if unused == "raise" and not sure and flat:
        _world.refuse(UNUSED, must=not maybe)
    if unused == "none" and not sure and flat:
        return UNUSED if not maybe else ZERO_OR_NONE
    return None


ZERO_OR_NONE = "zero or None"


def own(x: Any) -> Variable:
    """An argument of a function that is differentiated, linked to what is given for it."""
    return Variable(dual(x), inputs=(x,), kind="argument") if isinstance(x, Variable) else Variable(x)


def _outward(value: Variable) -> Any:
    return value if _tapes.get() else value.data


def _variable(value: Any) -> Variable:
    return value if isinstance(value, Variable) else Variable(value)


def value_and_grad(f: Callable, argnums: int | tuple = 0) -> Callable:
    places = argnums if isinstance(argnums, tuple) else (argnums,)

    def evaluate(*args: Any) -> tuple:
        with Tape() as tape:
            inputs = [own(a) if i in places else a for i, a in enumerate(args)]
            value = _variable(f(*inputs))
        grads = tape.gradient(value, [inputs[i] for i in places], unused="zero")
        return _outward(value), tuple(grads) if isinstance(argnums, tuple) else grads[0]

    return evaluate


def grad(f: Callable, argnums: int | tuple = 0) -> Callable:
    return lambda *args: value_and_grad(f, argnums)(*args)[1]


def vjp(f: Callable, *arrays: Any) -> tuple:
    with Tape() as tape:
        inputs = [own(a) for a in arrays]
        value = _variable(f(*inputs))
    return _outward(value), lambda g: tuple(tape.gradient(value, inputs, grad=g, keep=True, unused="zero"))


def jvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    with Tape():
        inputs = [own(a) for a in arrays]
        value = _variable(f(*inputs))
    with Question(inputs) as question:
        slope = total(*(pushed(question.slope(value, i), v) for i, v in enumerate(vectors)))
    return _outward(value), deliver(slope, (value, *vectors), inputs)


def hvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    with Tape() as tape:
        inputs = [own(a) for a in arrays]
        grads = tape.gradient(f(*inputs), inputs, unused="zero")
    with Question(inputs) as question:
        slopes = [total(*(pushed(question.slope(g, i), v) for i, v in enumerate(vectors))) for g in grads]
    return tuple(deliver(slope, (g, *vectors), inputs) for slope, g in zip(slopes, grads))


def jacobian(f: Callable, argnum: int = 0) -> Callable:
    def evaluate(*args: Any) -> Any:
        with Tape():
            inputs = [own(a) if i == argnum else a for i, a in enumerate(args)]
            value = _variable(f(*inputs))
        with Question([inputs[argnum]]) as question:
            slope = question.slope(value, 0)
        slope = linear(slope, lambda p, k: np.moveaxis(p, k, -1))
        return deliver(reshaped(slope, value.shape + inputs[argnum].shape), (value,), [inputs[argnum]])

    return evaluate


def hessian(f: Callable, argnum: int = 0) -> Callable:
    return jacobian(grad(f, argnum), argnum)


def stop_gradient(x: Any) -> Any:
    return type(x)(map(stop_gradient, x)) if isinstance(x, tuple | list) else plain(x)


def checkpoint(f: Callable) -> Callable:
    def call(*args: Any) -> Any:
        start, taken, value = next(_world.numbers), _world.taken, f(*args)
        _world.checkpoints = True
        if _world.taken > taken:  # inside nothing records but tapes that are entered there
            _world.refuse(OUTSIDE)
        todo = [value] if isinstance(value, Variable) else []
        while todo:  # it may refuse what it cannot follow inside
            v = todo.pop()
            if v.blocked or v.pooled:
                _world.refuse(OUTSIDE)
            todo += [i for i in v.inputs if i.number > start]
        return value

    return call


class Pool:
    """Like a pool of threads, which know nothing of the tapes of the caller; one task after the other."""

    def submit(self, f: Callable, *args: Any) -> Any:
        context = contextvars.Context()
        context.run(_pooled.set, True)
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
    global _world
    plan: dict = {}
    for _ in range(6):
        _world = world = World(plan)
        names = {**{item.__name__: item for item in NAMES}, "pool": Pool(), "out": world.outputs.append}
        context = contextvars.Context()
        context.run(np.seterr, all="ignore")
        context.run(exec, code, {**shared, **names})
        plan = {}
        for number, sources in enumerate(world.questions):
            for place, source in enumerate(sources):
                plan.setdefault(source, []).append((number, place))
        if plan == world.plan:
            return world
    raise RuntimeError("the sources of its gradients do not settle")
