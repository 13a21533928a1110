"""Differentiable functions, and the record of one call.

A function is an object made by `differentiable`: how to compute it, and per array argument which values its
gradient reads and how it is computed from them. Rules are written in differentiable functions themselves.
While a tape records, they are given Variables and are recorded in turn: gradients of gradients need nothing
further. Where nothing records they are given bare arrays and cost nothing extra.
"""

import copy
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import numpy as np
from numpy import ndarray

from ._fingerprint import SMALL, fingerprint, unchanged
from ._graph import State, Unrecorded, next_number, state
from .variable import Variable, linked

_now, _new, _generic = state.get, object.__new__, np.generic
_NOTHING: dict = {}  # what released steps hold
# What a call may hold as it is: nobody can change it, or, if it is an array, it is watched.
_FIXED = frozenset((type(None), bool, int, float, complex, str, type, np.dtype))
_TAKEN = _FIXED | {ndarray}


class Function:
    """What `differentiable` was given, on whose result it is ``.rules``; `forward` works on plain arrays.

    `joint` is the one rule for all arrays, or `gradients` are those for each.
    """

    def __init__(
        self, forward: Callable, arrays: str, joint: tuple | None, fit: Any, residual: tuple, rules: dict
    ) -> None:
        self.forward = forward
        self.name = forward.__name__.lstrip("_")
        self.variadic = arrays.startswith("*")
        self.arrays = tuple(arrays.strip("*").split())
        self.fit, self.residual = fit, residual
        self.joint = joint and joint[1]
        self.gradients = tuple(rules[name][1] if name in rules else None for name in self.arrays)
        self._named = [joint[0]] if joint else [rules[n][0] if n in rules else "" for n in self.arrays]
        self.reads = functools.cache(self._reads)

    def _reads(self, traced: int) -> tuple[tuple[str, int | None], ...]:
        """What the gradients of the traced arguments (bits) read: names, and places among the arguments.

        The place -1 is the output, None all arguments.
        """
        rules = self._named if self.joint else [r for i, r in enumerate(self._named) if traced >> i & 1]
        names = dict.fromkeys(name for rule in rules for name in rule.split())
        places = {name: None if self.variadic else i for i, name in enumerate(self.arrays)}
        return tuple((name, -1 if name == "output" else places[name]) for name in names)


def _recorder(rules: Function) -> Callable:
    """The function that a caller sees: takes arrays and Variables, and tells the tapes."""
    forward, name, signature = rules.forward, rules.name, inspect.signature(rules.forward)
    leaves_residual, bind = bool(rules.residual), _binder(rules, signature)
    if reserved := set(signature.parameters).intersection(Step.__slots__):
        raise TypeError(f"{name}: an argument must not be called {reserved.pop()!r}, as in a Step")
    # How many positional arguments make a call that needs no binding to the signature.
    direct = None if rules.variadic or len(signature.parameters) > len(rules.arrays) else len(rules.arrays)

    # Each elementwise operation on small arrays passes here: no comprehensions, which cost a call each.
    @functools.wraps(forward)
    def call(*args: Any, **params: Any) -> Any:
        if params or len(args) != direct:
            args, params = bind(args, params)
        values: list[Any] = []
        nodes: list[Any] = []
        shapes, dtypes, traced, place = [], [], 0, 1
        for arg in args:
            if type(arg) is Variable:
                data = arg.data
                values.append(data)
                nodes.append(arg.node)
                shapes.append(data.shape)
                dtypes.append(data.dtype)
                traced += place
            else:
                if type(arg) not in _TAKEN:
                    arg = _array(arg, name)
                values.append(arg)
                nodes.append(None)
                shapes.append(getattr(arg, "shape", ()))
                dtypes.append(None)
            place += place
        output = forward(*values, **params) if params else forward(*values)
        residual = None
        if leaves_residual:
            output, residual = output
        if not traced:
            return output
        if isinstance(output, _generic):
            output = np.asarray(output)
        variable, now = _new(Variable), _now()
        variable.data, variable.name = output, None
        if tapes := now.tapes:
            step = Step(rules, rules.reads(traced), nodes, shapes, dtypes, values, variable, now)
            if params or residual is not None:
                step.extend(params, residual, now.check)
            for tape in tapes:
                tape.steps.append(step)
            variable.node = step
        else:
            variable.node = Unrecorded(name, nodes, variable)
        if now.listener is not None:
            now.listener(name, args, params, variable)
        return variable

    call.rules = rules  # type: ignore[attr-defined]
    return call


def _binder(rules: Function, signature: inspect.Signature) -> Callable:
    """What separates arrays, which the tape follows, from parameters, whichever way each was passed."""
    known = signature.parameters.values()
    positional = tuple(p.name for p in known if p.kind <= p.POSITIONAL_OR_KEYWORD)
    names = {p.name for p in known if p.kind is not p.VAR_POSITIONAL}
    defaults = {p.name: p.default for p in known if p.default is not p.empty}
    most = math.inf if rules.variadic else len(positional)

    def bind(args: tuple, params: dict) -> tuple[tuple, dict]:
        given = {**defaults, **dict(zip(positional, args)), **params}
        if given.keys() != names or len(args) > most or not params.keys().isdisjoint(positional[: len(args)]):
            bound = signature.bind(*args, **params)  # slow; it says what is wrong
            bound.apply_defaults()
            given = bound.arguments
        if not rules.variadic:
            args = tuple([given.pop(name) for name in rules.arrays])
        for key, value in given.items():
            if type(value) not in _FIXED:
                given[key] = _own(value, f"{rules.name}: {key}")
        return args, given

    return bind


def _array(arg: Any, name: str) -> Any:
    """An array argument that is none yet: a list, which may change later, or what else NumPy would take."""
    if not isinstance(arg, list | tuple | range | memoryview | bytearray):
        return arg
    if any(isinstance(item, Variable) for item in arg):
        raise TypeError(f"{name}: a list of Variables is no array; F.stack makes one of it")
    return np.array(arg)


def _own(value: Any, what: str) -> Any:
    """A parameter whose lists nobody else can change; a Variable in it would be lost to the tape."""
    if isinstance(value, Variable):
        raise TypeError(f"{what} must not be a Variable: it has no gradient; a constant is stop_gradient(x)")
    if isinstance(value, list | tuple):
        values = list(value) if _FIXED.issuperset(map(type, value)) else [_own(v, what) for v in value]
        return values if isinstance(value, list) else getattr(type(value), "_make", tuple)(values)
    return {key: _own(v, what) for key, v in value.items()} if type(value) is dict else value


def _arrays(value: Any) -> Iterator[Any]:
    """The arrays in a parameter: indices, masks, bounds."""
    if isinstance(value, list | tuple | dict):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _arrays(v)
    elif hasattr(value, "nbytes") and hasattr(value, "strides") and not isinstance(value, _generic | type):
        yield value


def differentiable(
    arrays: str,
    *,
    joint: tuple | None = None,
    fit: Callable | None = None,
    residual: tuple = (),
    **rules: Any,
) -> Callable:
    """Make a function of arrays differentiable.

    Parameters
    ----------
    arrays : str
        Names of the arguments that are arrays, in order, or ``"*name"`` for any number of them.
    joint : (str, callable), optional
        One rule for all arguments: ``f(grad, saved, needs) -> one gradient (or None) per argument``.
    fit : callable, optional
        For functions that broadcast: ``fit(gradient, shape)`` brings a gradient to the shape of its argument.
    residual : tuple of str
        If given, the function returns ``(output, residual)``, and these are names for ``residual.arrays``.
    **rules : (str, callable)
        Per array argument: the names of the values that the gradient reads (array arguments or ``output``),
        and ``f(grad, saved) -> gradient``. `saved` has these values, the parameters of the call, ``shapes``
        (one per array argument) and ``residual`` as attributes. An argument without a rule has no gradient.

    Examples
    --------
    >>> from autodiff import differentiable, grad
    >>> @differentiable("x", x=("x", lambda grad, saved: 3 * saved.x**2 * grad))
    ... def cube(x):
    ...     return x**3
    >>> float(grad(cube)(2.0))
    12.0
    """

    def decorate(forward: Callable) -> Callable:
        return _recorder(Function(forward, arrays, joint, fit, residual, rules))

    return decorate


class Step:
    """One recorded call, and what its rules read: the values they named, and the parameters, as attributes.

    `inputs` are the nodes of its array arguments, None for those that were no Variables: a list, until the
    step is released. `number` is higher than that of every input, `owner` the token of the outermost tape,
    which may release it. `shapes` and `dtypes` are those of the arguments, `residual` is what the function
    returned beside its output, and `watched` are names, values and fingerprints of what is saved.
    """

    # Values and parameters, which differ from function to function, are in the dict.
    __slots__ = (
        *("__dict__", "function", "inputs", "number", "owner"),
        *("dtypes", "output_shape", "reads", "residual", "shapes", "variable", "watched"),
    )

    def __init__(
        self,
        function: Function,
        reads: tuple,
        inputs: list,
        shapes: list,
        dtypes: list,
        values: list,
        variable: Variable,
        now: State,
    ) -> None:
        output = variable.data
        self.variable = ref(variable)
        self.function = function
        self.reads: Any = reads
        self.inputs: Any = inputs
        self.number = next_number()
        self.owner = now.owner
        self.shapes = shapes
        self.dtypes = dtypes
        self.output_shape = output.shape
        self.residual: Any = None
        self.watched: Any = []
        self.__dict__ = content = {}
        check = now.check and not function.residual
        for name, place in reads:
            value: Any = output if place == -1 else values if place is None else values[place]
            content[name] = value
            if check and place is not None:
                small = type(value) is ndarray and value.nbytes <= SMALL
                self.watched.append((name, value, value.tobytes() if small else fingerprint(value)))
            elif check:
                self.watched += [(f"{name}[{i}]", v, fingerprint(v)) for i, v in enumerate(value)]

    def extend(self, params: dict, residual: Any, check: bool) -> None:
        """Keep the parameters, and what the function returned beside its output."""
        self.__dict__.update(params)
        self.residual = residual
        if check:
            found = [(name, array) for name, value in params.items() for array in _arrays(value)]
            found += self.kept() if residual is not None else ()
            self.watched += [(name, array, fingerprint(array)) for name, array in found]

    name = property(lambda self: self.function.name, doc="What was called.")

    def kept(self) -> Iterator[tuple[str, Any]]:
        """Names and values of the arrays that the gradient reads."""
        if self.residual is not None:
            # The arrays of a residual include those kept by name.
            known = getattr(self.residual, "names", self.function.residual)
            names = itertools.chain(known, (f"intermediate {i}" for i in itertools.count()))
            named = zip(names, self.residual.arrays)
            yield from ((name, array) for name, array in named if array is not None)
            return
        for name, place in self.reads:
            value = getattr(self, name)
            if place is None:
                yield from ((f"{name}[{i}]", array) for i, array in enumerate(value))
            else:
                yield name, value

    def release(self) -> None:
        """Let go of all arrays; what is left is a node without rules."""
        self.__dict__, self.residual, self.watched, self.reads = _NOTHING, None, (), None

    def pull(self, grad: Any, reached: set, grads: dict, sums: dict, recording: bool, verdicts: list) -> None:
        """Add to `grads` what a gradient of the output makes of those inputs that are in `reached`.

        `sums` are the nodes whose gradients were added up here, so that nobody else holds them, with the
        dtype of the parts; sums of 16-bit parts are in float32. Complains if a value that the rules read was
        overwritten; what a device has yet to say is added to `verdicts`.
        """
        for name, value, before in self.watched:
            if type(before) is bytes and before == value.tobytes():
                continue
            verdict = unchanged(before, value)
            if verdict is False:
                raise RuntimeError(self.overwritten(name))
            if verdict is not True:
                verdicts.append((verdict, self.overwritten(name)))
        source = self._linked() if recording else self
        joint: Any = self.function.joint
        parts: Any = self.function.gradients
        if joint is not None:
            parts = joint(grad, source, tuple(map(reached.__contains__, self.inputs)))
        place = -1
        for node in self.inputs:
            place += 1
            if node not in reached:
                continue
            part = parts[place]
            if part is None:
                continue
            if joint is None:
                part = part(grad, source)
            if part.shape != self.shapes[place] or part.dtype is not self.dtypes[place]:
                part = self._as_source(part, place)
            total = grads.get(node)
            if total is None:
                grads[node] = part
            elif node not in sums:
                sums[node] = part.dtype
                grads[node] = (total.astype(np.float32) if part.dtype.itemsize == 2 else total) + part
            elif recording:  # what is recorded is not written to
                grads[node] = total + part
            else:
                total += part
                grads[node] = total

    def _as_source(self, part: Any, place: int) -> Any:
        """A gradient in the shape and dtype of its source."""
        name, shape, dtype = self.function.name, self.shapes[place], self.dtypes[place]
        if self.function.fit:
            part = self.function.fit(part, shape)
        if part.shape != shape:
            raise RuntimeError(f"{name}: gradient has shape {part.shape}, its argument {shape}")
        if part.dtype == dtype:
            return part
        if part.dtype.kind == "c":
            raise TypeError(f"{name}: gradients of complex functions are not supported")
        return part.astype(dtype)

    def _linked(self) -> "Step":
        """The same step with its arrays as the Variables they were on the tape."""
        step = copy.copy(self)
        content = step.__dict__
        for name, place in self.reads:
            if place is None:
                content[name] = [linked(v, node) for v, node in zip(content[name], self.inputs)]
            else:
                content[name] = linked(content[name], self if place == -1 else self.inputs[place])
        return step

    def overwritten(self, name: str) -> str:
        """The message for a saved value that changed."""
        what = "its output" if name == "output" else f"its argument {name!r}"
        return (
            f"{self.name}: {what} was overwritten after the forward pass, but its gradient needs the old "
            "values; write to a copy, or take the gradient first"
        )
