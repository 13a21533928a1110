"""Values of the forward mode in `_forward_mode`, and the functions of the library that act on them."""

import contextvars
import copy
import itertools
import sys
from collections.abc import Callable
from typing import Any

import _duals as duals
import numpy as np
from _duals import Dual, chosen, constant, product, total

PROGRAM = "<program>"
# Reasons for which a gradient, a copy, or a checkpoint that runs again may be refused.
UNUSED, OUTSIDE, RELEASED, COPIED, CHANGED = "unused", "outside", "released", "copied", "changed"


class World:
    """One run of a program: which values are tagged, and what happened.

    `plan` maps the numbers of values to their tags, (gradient, place among its sources); `questions` holds
    the numbers of the sources of each gradient; `may` and `must` the reasons for refusals by line.
    """

    def __init__(self) -> None:
        self.begin({})

    def begin(self, plan: dict) -> None:
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


world = World()
tapes: contextvars.ContextVar[tuple] = contextvars.ContextVar("tapes", default=())
pooled: contextvars.ContextVar[bool] = contextvars.ContextVar("pooled", default=False)


def _line() -> int:
    """The line of the program that is running."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != PROGRAM:
        frame = frame.f_back
    return frame.f_lineno if frame else 0


class Variable:
    """A value with its slopes and with what it was computed from.

    `kind` is "leaf", "step", "argument" or "gradient": what leads to a gradient, which was taken by the
    Variables `by`, is not known exactly, since that depends on what the rules read; so `perhaps` an array
    stands in its place. `blocked` says why there is no way back through it, if so.
    """

    def __array_ufunc__(self, f: Any, method: str, *inputs: Any, **params: Any) -> Any:
        if method != "__call__" or params:
            raise TypeError("a Variable is not written into an array")
        return getattr(F, "abs" if f is np.absolute else f.__name__)(*inputs)

    def __array_function__(self, f: Any, types: Any, args: tuple, params: dict) -> Any:
        return getattr(F, f.__name__)(*args, **params)

    def __init__(self, data: Any, name: Any = None, inputs: tuple = (), kind: str = "leaf") -> None:
        dual = data if isinstance(data, Dual) else constant(data)
        parts = {tags: part for tags, part in dual.parts.items() if world.answered.isdisjoint(tags)}
        self.number = next(world.numbers)
        for tag in world.plan.get(self.number, ()):
            size = dual.parts[()].size
            parts[tag,] = np.eye(size).reshape(size, *dual.shape)
        self.dual = Dual(parts, dual.shape)
        self.inputs, self.kind, self.blocked, self.uses = inputs, kind, None, 0
        self.pooled = pooled.get()
        self.by: list[Variable] = []
        # What is computed of arrays alone is an array.
        self.perhaps = kind == "step" and bool(inputs) and all(v.perhaps for v in inputs)
        self.owner = tapes.get()[0] if tapes.get() else None
        if self.owner is not None:
            self.owner.made.append(self)
        elif kind != "leaf":
            self.blocked = OUTSIDE
        self.order = max((v.order for v in inputs), default=0) + (kind == "gradient")
        for v in inputs:
            v.uses += 1
            world.shared = world.shared or v.uses > 1
        largest = max(float(np.abs(part).max(initial=0)) for part in parts.values())
        world.scale = max(world.scale, largest if largest < np.inf else np.inf)

    @property
    def data(self) -> Any:
        return self.dual.parts[()]

    @data.setter
    def data(self, value: Any) -> None:
        self.dual = Dual({**self.dual.parts, (): np.asarray(value, dtype=float)}, self.dual.shape)
        world.rebound = True

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
        if self.kind != "leaf" and tapes.get():
            world.refuse(COPIED, must=self.kind == "step" and not self.blocked)
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
    if not all(map(world.answered.isdisjoint, x.dual.parts)):
        live = {tags: part for tags, part in x.dual.parts.items() if world.answered.isdisjoint(tags)}
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
