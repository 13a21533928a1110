"""Differentiable functions, and the record of one call.

A function is an object made by `differentiable`: how to compute it, and per array argument which values its
gradient reads and how it is computed from them. Rules are written in differentiable functions themselves.
While an outer tape records, they are given Variables and are recorded in turn: gradients of gradients need
nothing further. Without an outer tape they are given bare arrays and cost nothing extra.
"""

import copy
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from numpy import ndarray

from ._fingerprint import SMALL, fingerprint, unchanged
from .variable import Variable, linked, result


class _Active(threading.local):
    """The tapes that record in this thread, outermost first."""

    def __init__(self) -> None:
        self.tapes: list[Any] = []


active = _Active()


class Function:
    """What is known of a differentiable function: made by `differentiable`, on whose result it is ``.rules``.

    Attributes
    ----------
    forward : callable
        The function on plain arrays.
    arrays : tuple of str
        The names of its array arguments.
    variadic : bool
        Whether these are any number of arrays, under one name.
    joint, gradients : callable or None, tuple of them
        The one rule for all array arguments, or one for each.
    fit : callable or None
        What brings a gradient to the shape of its argument, where the function broadcasts.
    residual : tuple of str
        The names of the arrays that it returns beside its output.
    """

    def __init__(
        self,
        forward: Callable,
        arrays: str,
        joint: tuple | None,
        fit: Callable | None,
        residual: tuple,
        rules: dict,
    ) -> None:
        self.forward = forward
        self.name = forward.__name__.lstrip("_")
        self.variadic = arrays.startswith("*")
        self.arrays = tuple(arrays.strip("*").split())
        self.fit = fit
        self.residual = residual
        self.joint = joint and joint[1]
        self.gradients = tuple(rules[name][1] if name in rules else None for name in self.arrays)
        self._named = [joint[0]] if joint else [rules[n][0] if n in rules else "" for n in self.arrays]
        self.known_reads: dict[int, tuple] = {}

    def reads(self, traced: int) -> tuple[tuple[str, int | None], ...]:
        """What the gradients of the traced arguments (bits) read: names, and places among the arguments.

        The place -1 is the output, None all arguments.
        """
        found = self.known_reads.get(traced)
        if found is None:
            rules = self._named if self.joint else [r for i, r in enumerate(self._named) if traced >> i & 1]
            names = dict.fromkeys(name for rule in rules for name in rule.split())
            places = {name: None if self.variadic else i for i, name in enumerate(self.arrays)}
            found = tuple((name, -1 if name == "output" else places[name]) for name in names)
            self.known_reads[traced] = found
        return found


def _recorder(rules: Function) -> Callable:
    """The function that a caller sees: takes arrays and Variables, and tells the tapes."""
    forward, names, variadic = rules.forward, rules.arrays, rules.variadic
    leaves_residual, known_reads = bool(rules.residual), rules.known_reads
    signature = inspect.signature(forward)
    reserved = set(signature.parameters).intersection(Step.__slots__)
    if reserved:
        raise TypeError(f"{rules.name}: an argument must not be called {reserved.pop()!r}, as in a Step")
    # How many positional arguments make a call that needs no binding to the signature.
    direct = len(names) if not variadic and len(signature.parameters) == len(names) else None

    # Each elementwise operation on small arrays passes here: no comprehensions, which cost a call each.
    @functools.wraps(forward)
    def call(*args: Any, **params: Any) -> Any:
        if params or len(args) != direct:
            args, params = bind(args, params)
        values: list[Any] = []
        keys: list[int | None] = []
        shapes, dtypes, traced, place = [], [], 0, 1
        for arg in args:
            if type(arg) is Variable:
                data = arg.data
                values.append(data)
                keys.append(arg.key)
                shapes.append(data.shape)
                dtypes.append(data.dtype)
                traced += place
            else:
                values.append(arg)
                keys.append(None)
                shapes.append(getattr(arg, "shape", ()))
                dtypes.append(None)
            place += place
        output = forward(*values, **params) if params else forward(*values)
        residual = None
        if leaves_residual:
            output, residual = output
        if not traced:
            return output
        output = result(output)
        if tapes := active.tapes:
            check = False
            for tape in tapes:
                check = check or tape.check
            reads = known_reads.get(traced) or rules.reads(traced)
            step = Step(rules, reads, keys, shapes, dtypes, values, output, params, residual, check)
            for tape in tapes:
                tape.add(step, args)
        return output

    def bind(args: tuple, params: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Separate arrays, which the tape follows, from parameters, whichever way each was passed."""
        bound = signature.bind(*args, **params)
        bound.apply_defaults()
        given = bound.arguments
        if variadic:
            return given.pop(names[0]), given
        return tuple(given.pop(name) for name in names), given

    call.rules = rules  # type: ignore[attr-defined]
    return call


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
    >>> from autodiff import Tape, Variable, differentiable
    >>> @differentiable("x", x=("x", lambda grad, saved: 3 * saved.x**2 * grad))
    ... def cube(x):
    ...     return x**3
    >>> x = Variable(2.0)
    >>> with Tape() as tape:
    ...     y = cube(x)
    >>> float(tape.gradient(y, x))
    12.0
    """

    def decorate(forward: Callable) -> Callable:
        return _recorder(Function(forward, arrays, joint, fit, residual, rules))

    return decorate


class Step:
    """One recorded call, and what its rules read: the values they named, and the parameters, as attributes.

    Attributes
    ----------
    function : Function
        What was called.
    keys : list
        The key of each array argument that was a Variable, None for the others.
    shapes, dtypes : list
        Of the array arguments.
    output_key, output_shape : int, tuple
        Of the output.
    residual : object
        What the function returned beside its output.
    watched : list
        Of what is saved, names, values and fingerprints.
    """

    # Values and parameters, which differ from function to function, are in the dict.
    __slots__ = (
        "__dict__",
        "dtypes",
        "function",
        "keys",
        "output_key",
        "output_shape",
        "reads",
        "residual",
        "shapes",
        "watched",
    )

    def __init__(
        self,
        function: Function,
        reads: tuple,
        keys: list,
        shapes: list,
        dtypes: list,
        values: list,
        output: Variable,
        params: dict,
        residual: Any,
        check: bool,
    ) -> None:
        self.function = function
        self.reads = reads
        self.keys = keys
        self.output_key = output.key
        self.output_shape = output.data.shape
        self.residual = residual
        self.shapes = shapes
        self.dtypes = dtypes
        self.__dict__ = content = dict(params) if params else {}
        self.watched = watched = []
        for name, place in reads:
            value: Any = output.data if place == -1 else values if place is None else values[place]
            content[name] = value
            if check and place is not None and residual is None:
                small = type(value) is ndarray and value.nbytes <= SMALL
                watched.append((name, value, value.tobytes() if small else fingerprint(value)))
        if check and (residual is not None or function.variadic):
            self.watched = [(name, value, fingerprint(value)) for name, value in self.kept()]

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

    def pull(self, grad: Any, reached: set, grads: dict, sums: set, recording: bool, verdicts: list) -> None:
        """Add to `grads` what a gradient of the output makes of those inputs that are in `reached`.

        `sums` are the keys whose gradients were added up here, so that nobody else holds them. Complains if a
        value that the rules read was overwritten; what a device has yet to say is added to `verdicts`.
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
        joint, rules = self.function.joint, self.function.gradients
        parts = joint(grad, source, tuple(map(reached.__contains__, self.keys))) if joint else None
        place = -1
        for key in self.keys:
            place += 1
            if key not in reached:
                continue
            if parts is None:
                rule = rules[place]
                if rule is None:
                    continue
                part = rule(grad, source)
            else:
                part = parts[place]
                if part is None:
                    continue
            if part.shape != self.shapes[place] or part.dtype is not self.dtypes[place]:
                part = self._as_source(part, place)
            if key not in grads:
                grads[key] = part
            elif key in sums:
                grads[key] += part
            else:
                grads[key] = grads[key] + part
                sums.add(key)

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
        for name, place in self.reads:
            value = getattr(self, name)
            if place is None:
                setattr(step, name, [linked(v, key) for v, key in zip(value, self.keys)])
            else:
                setattr(step, name, linked(value, self.output_key if place == -1 else self.keys[place]))
        return step

    def overwritten(self, name: str) -> str:
        """The message for a saved value that changed."""
        what = "its output" if name == "output" else f"its argument {name!r}"
        return (
            f"{self.function.name}: {what} was overwritten after the forward pass, but its gradient needs "
            f"the old values; write to a copy, or take the gradient first"
        )
