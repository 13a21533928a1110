"""Differentiable functions, and the record of one call.

A function is an object made by `differentiable`: how to compute it, and per array argument which values its
gradient reads and how it is computed from them. Rules are written in differentiable functions themselves.
While an outer tape records, they are given Variables and are recorded in turn: gradients of gradients need
nothing further. Without an outer tape they are given bare arrays and cost nothing extra.
"""

import functools
import inspect
import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ._fingerprint import fingerprint, unchanged
from .variable import Variable, linked, result


class _Active(threading.local):
    """The tapes that record in this thread, outermost first."""

    def __init__(self) -> None:
        self.tapes: list[Any] = []


active = _Active()


class Function:
    """A differentiable function; made by `differentiable`, called like the function it wraps."""

    def __init__(
        self, forward: Callable, arrays: str, joint: tuple | None, residual: tuple, rules: dict
    ) -> None:
        functools.update_wrapper(self, forward)
        self.forward = forward
        self.name = forward.__name__
        self.signature = inspect.signature(forward)
        self.variadic = arrays.startswith("*")
        self.arrays = tuple(arrays.strip("*").split())
        self.plain = not self.variadic and len(self.signature.parameters) == len(self.arrays)
        self.joint = joint
        self.residual = residual
        self.rules = tuple(rules.get(name) for name in self.arrays)
        self._reads: dict[tuple[bool, ...], tuple[tuple[str, int], ...]] = {}

    def __call__(self, *args: Any, **params: Any) -> Any:  # noqa: D102 (the docstring is that of the function)
        if not self.plain or params or len(args) != len(self.arrays):
            args, params = self._bind(args, params)
        traced = tuple([isinstance(a, Variable) for a in args])
        if True not in traced:
            output = self.forward(*args, **params)
            return output[0] if self.residual else output
        values = [a.data if t else a for a, t in zip(args, traced)]
        output = self.forward(*values, **params)
        output, residual = output if self.residual else (output, None)
        output = result(output)
        tapes = active.tapes
        if tapes:
            check = True in [tape.check for tape in tapes]
            step = Step(self, args, traced, values, output, params, residual, check)
            for tape in tapes:
                tape.steps.append(step)
        return output

    def _bind(self, args: tuple, params: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Separate arrays, which the tape follows, from parameters, whichever way each was passed."""
        bound = self.signature.bind(*args, **params)
        bound.apply_defaults()
        given = bound.arguments
        if self.variadic:
            return given.pop(self.arrays[0]), given
        return tuple(given.pop(name) for name in self.arrays), given

    def reads(self, traced: tuple[bool, ...]) -> tuple[tuple[str, int], ...]:
        """The values that the gradients of the traced arguments read: names, and places (-1: the output)."""
        found = self._reads.get(traced)
        if found is None:
            rules = [self.joint] if self.joint else [r for r, t in zip(self.rules, traced) if r and t]
            names = dict.fromkeys(name for rule in rules for name in rule[0].split())
            found = tuple((name, -1 if name == "output" else self.arrays.index(name)) for name in names)
            self._reads[traced] = found
        return found

    def pull(self, grad: Any, saved: SimpleNamespace, needs: tuple[bool, ...]) -> tuple:
        """Gradients of the arguments for a gradient of the output."""
        if self.joint:
            return self.joint[1](grad, saved, needs)
        return tuple(
            [rule[1](grad, saved) if need and rule else None for need, rule in zip(needs, self.rules)]
        )


def differentiable(
    arrays: str, *, joint: tuple | None = None, residual: tuple = (), **rules: Any
) -> Callable:
    """Make a function of arrays differentiable.

    Parameters
    ----------
    arrays : str
        Names of the arguments that are arrays, in order, or ``"*name"`` for any number of them.
    joint : (str, callable), optional
        One rule for all arguments: ``f(grad, saved, needs) -> one gradient (or None) per argument``.
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

    def decorate(forward: Callable) -> Function:
        return Function(forward, arrays, joint, residual, rules)

    return decorate


class Step:
    """One recorded call: where its values came from and went, and what its gradient will read."""

    __slots__ = (
        "dtypes",
        "function",
        "inputs",
        "kept",
        "output",
        "params",
        "residual",
        "result",
        "shapes",
        "watched",
    )

    def __init__(
        self,
        function: Function,
        args: tuple,
        traced: tuple[bool, ...],
        values: list,
        output: Variable,
        params: dict,
        residual: Any,
        check: bool,
    ) -> None:
        self.function = function
        self.inputs = tuple([a.key if t else None for a, t in zip(args, traced)])
        self.output = output.key
        self.shapes = tuple([getattr(v, "shape", ()) for v in values])
        self.dtypes = tuple([v.dtype if t else None for v, t in zip(values, traced)])
        self.result = output.data.shape
        self.params = params
        self.residual = residual
        self.kept: list[tuple[str, Any, int | None]] = [
            (name, output.data, output.key) if place < 0 else (name, values[place], self.inputs[place])
            for name, place in function.reads(traced)
        ]
        watched = [(name, value) for name, value, _ in self.kept]
        if residual is not None:  # its arrays include those just kept
            names = itertools.chain(function.residual, (f"intermediate {i}" for i in itertools.count()))
            watched = [(name, value) for name, value in zip(names, residual.arrays) if value is not None]
        self.watched = [(name, value, fingerprint(value) if check else None) for name, value in watched]

    def pull(self, grad: Any, needs: tuple[bool, ...], recording: bool, verdicts: list) -> tuple:
        """Gradients of the inputs; complains if a value it reads was overwritten."""
        for name, value, before in self.watched:
            verdict = True if before is None else unchanged(before, value)
            if verdict is False:
                raise RuntimeError(self.overwritten(name))
            if verdict is not True:
                verdicts.append((verdict, self.overwritten(name)))
        saved = SimpleNamespace(shapes=self.shapes, residual=self.residual, inputs=self.inputs, **self.params)
        for name, value, key in self.kept:
            setattr(saved, name, linked(value, key) if recording else value)
        return self.function.pull(grad, saved, needs)

    def overwritten(self, name: str) -> str:
        """The message for a saved value that changed."""
        what = "its output" if name == "output" else f"its argument {name!r}"
        return (
            f"{self.function.name}: {what} was overwritten after the forward pass, but its gradient needs "
            f"the old values; write to a copy, or take the gradient first"
        )
