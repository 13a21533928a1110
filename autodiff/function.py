"""Differentiable functions, and the record of one call.

A function is an object made by `differentiable`: how to compute it, and per array argument which values its
gradient reads and how it follows from them. Rules call differentiable functions: while a tape records, they
get Variables and are recorded, for gradients of gradients; else bare arrays, which cost nothing extra.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from itertools import chain, count
from typing import Any
from weakref import ref

import numpy as np
from numpy import ndarray

from ._binding import array, arrays_in, binder
from ._fingerprint import SMALL, fingerprint
from ._graph import Node, next_number, state
from .variable import Variable, linked

_now, _new, _generic = state.get, object.__new__, np.generic
RELEASED: tuple[None, Any] = None, {}  # what steps are left with: saved and dict


def differentiable(
    arrays: str, *, joint: Any = None, fit: Callable | None = None, residual: tuple = (), **rules: Any
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

    Returns
    -------
    callable
        A decorator; with it the function takes and gives Variables too, which tapes record.

    Examples
    --------
    >>> from autodiff import differentiable, grad
    >>> @differentiable("x", x=("x", lambda grad, saved: 3 * saved.x**2 * grad))
    ... def cube(x):
    ...     return x**3
    >>> float(grad(cube)(2.0))
    12.0
    """
    return lambda forward: _recorder(Function(forward, arrays, joint, fit, residual, rules))


class Function:
    """What `differentiable` was given, on whose result it is ``.rules``; `forward` works on plain arrays.
    `joint` is the one rule for all arrays, or `gradients` are those for each. `check` is asked about what is
    no Variable among the arguments, by place; `refuse` may raise another error in place of one.
    """

    def __init__(
        self, forward: Callable, arrays: str, joint: Any, fit: Any, residual: tuple, rules: dict
    ) -> None:
        self.forward, self.fit, self.residual = forward, fit, residual
        self.name, signature = forward.__name__.lstrip("_"), inspect.signature(forward)
        self.variadic, self.arrays = arrays.startswith("*"), tuple(arrays.strip("*").split())
        if self.variadic and rules:
            raise TypeError(f"{self.name}: {arrays} has no rule for each array, but a joint one")
        self.bind = binder(self.name, self.arrays, signature, self.variadic, dir(Step))
        # How many positional arguments make a call that needs no binding to the signature.
        self.direct = None if self.variadic or signature.parameters.keys() - self.arrays else len(self.arrays)
        given = [rules.get(name, ("", None)) for name in self.arrays]
        self.joint, self.gradients = joint and joint[1], tuple(rule for _, rule in given)
        self._named = [joint[0]] if joint else [names for names, _ in given]
        self.reads = functools.cache(self._reads)
        self.check: Callable[[int, Any], Any] = functools.partial(array, self.name)
        self.refuse: Callable[[Exception, tuple, dict], None] = lambda *_: None

    def _reads(self, traced: int) -> tuple[tuple[str, int | slice], ...]:
        """Names and places of what gradients of traced arguments (bits) read; -1: output, a slice: all."""
        rules = [names for i, names in enumerate(self._named) if self.joint or traced >> i & 1]
        places: Any = dict(zip(self.arrays, [slice(None, -1)] if self.variadic else count()), output=-1)
        return tuple((name, places[name]) for name in dict.fromkeys(" ".join(rules).split()))

    def fitted(self, part: Any, shape: tuple, dtype: Any) -> Any:
        """A gradient in the shape and dtype of its source."""
        if self.fit:
            part = self.fit(part, shape)
        if part.shape != shape:
            raise RuntimeError(f"{self.name}: gradient has shape {part.shape}, its argument {shape}")
        if part.dtype.kind == "c":
            raise TypeError(f"{self.name}: gradients of complex functions are not supported")
        return part if part.dtype == dtype else part.astype(dtype)


def _recorder(rules: Function) -> Callable:
    """The function that a caller sees: takes arrays and Variables, and tells the tapes."""
    forward, bind, direct, leaves_residual = rules.forward, rules.bind, rules.direct, bool(rules.residual)

    # Each elementwise operation on small arrays passes here: no comprehensions, which cost a call each.
    @functools.wraps(forward)
    def call(*args: Any, **params: Any) -> Any:
        values: list[Any] = []
        nodes: list[Any] = []
        shapes: list[Any] = []
        dtypes: list[Any] = []
        traced, place, level, residual = 0, 1, 0, None
        try:
            if params or len(args) != direct:
                args, params = bind(args, params)
            for arg in args:
                if type(arg) is not Variable and type(arg := rules.check(len(values), arg)) is not Variable:
                    values.append(arg)
                    nodes.append(None)
                    shapes.append(getattr(arg, "shape", ()))
                    dtypes.append(None)
                else:
                    data = arg.data
                    values.append(data)
                    node = arg.node
                    nodes.append(node)
                    if node.level > level:
                        level = node.level
                    shapes.append(data.shape)
                    dtypes.append(data.dtype)
                    traced += place
                place += place
            output = forward(*values, **params) if params else forward(*values)
        except Exception as error:
            rules.refuse(error, args, params)
            raise
        if leaves_residual:
            output, residual = output
        if not traced:
            return output
        if type(output) is not ndarray and isinstance(output, _generic):
            output = np.asarray(output)
        variable, now = _new(Variable), _now()
        variable.data, variable.name = output, None
        if tapes := now.tapes:
            given = nodes, shapes, dtypes, values, level
            variable.node = step = Step(rules, rules.reads(traced), given, params, residual, variable, now)
            for tape in tapes:
                tape.steps.append(step)
        else:
            variable.node = Node(variable, rules.name, nodes)
        if now.listener is not None:
            now.listener(rules.name, args, params, variable)
        return variable

    call.rules = rules  # type: ignore[attr-defined]
    return call


class Step:
    """One recorded call, and what its rules read: the values they named, and the parameters, as attributes.
    `inputs` are the nodes of its array arguments, None for those that were no Variables: a list, until the
    step is released. `owner` is the token of the outermost tape, which may release it. `shapes` and `dtypes`
    are those of the arguments, `residual` is what the function returned beside its output, and `saved` are
    the arrays that it keeps: names, values, and fingerprints, or what is false where nothing is watched.
    """

    # What rules read is in the dict, which goes when it is released: values, parameters, residual.
    __slots__ = (
        *("__dict__", "dtypes", "function", "inputs", "level", "number"),
        *("output_shape", "owner", "reads", "saved", "shapes", "variable"),
    )
    residual: Any = None
    cause = "released by an earlier gradient() (keep=True keeps it)"  # why it has no rules
    name = property(lambda self: self.function.name, doc="What was called.")

    def __init__(
        self, function: Function, reads: Any, given: tuple, params: dict, residual: Any, result: Any, now: Any
    ) -> None:
        self.inputs, self.shapes, self.dtypes, values, level = given
        self.function, self.reads, self.owner, self.level = function, reads, now.owner, level + 1
        self.variable, self.number, self.output_shape = ref(result), next_number(), result.data.shape
        self.__dict__ = content = params.copy()
        self.saved: Any = []
        found: Any = ()
        values.append(result.data)  # at place -1
        for name, place in reads:
            content[name] = value = values[place]
            if now.check and type(value) is ndarray and value.nbytes <= SMALL:
                self.saved.append((name, value, value.tobytes()))
            elif type(value) is list:
                found = [(f"{name}[{i}]", v) for i, v in enumerate(value)]
            elif hasattr(value, "nbytes"):  # no number, which nobody can change
                found = [*found, (name, value)]
        if params:
            found = [*found, *((name, v) for name, value in params.items() for v in arrays_in(value))]
        if residual is not None:
            content["residual"], unnamed = residual, map("intermediate {}".format, count())
            names = chain(getattr(residual, "names", function.residual), unnamed)
            found = [*found, *zip(names, residual.arrays)]
        if found:
            self.saved += [(name, v, now.check and fingerprint(v)) for name, v in found if v is not None]

    def linked(self) -> "Step":
        """The same step with its arrays as the Variables they were on the tape."""
        step, nodes = copy.copy(self), [*self.inputs, self]
        for name, place in self.reads:
            value, node = getattr(self, name), nodes[place]
            many = type(node) is list
            step.__dict__[name] = list(map(linked, value, node)) if many else linked(value, node)
        return step


@differentiable("x", x=("", lambda g, s: g))
def alias(x: Any) -> Any:
    """Another Variable of the same array, from which a call leads back to x."""
    return x
