"""Memory for time: keep nothing of what happens inside a function, and run it again when it is needed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ._random import States, noting, replaying
from .function import Function, Step, active
from .tape import Tape
from .variable import Variable, linked


class _Listener:
    """In the place of a tape: keeps no step, only the Variables that come from outside."""

    check = False

    def __init__(self, given: list[Variable]) -> None:
        self.outside = {variable.key: variable for variable in given}
        self._made: set[int] = set()

    def add(self, step: Step, args: tuple) -> None:
        """Note the arguments that no step before has made."""
        for arg in args:
            if isinstance(arg, Variable) and arg.key not in self._made:
                self.outside.setdefault(arg.key, arg)
        self._made.add(step.output_key)


class _Call(NamedTuple):
    """What must be known to run a function again; `arrays` are watched for overwriting."""

    names: list[str]
    arrays: tuple
    args: tuple
    outside: tuple[Variable, ...]
    values: tuple
    states: States


def checkpoint(f: Callable) -> Callable:
    """`f`, of which the tape keeps the arguments only; the backward pass runs it again.

    A chain of n layers, cut into pieces of k that are each made a checkpoint, keeps about n/k + k results
    instead of n, for one more forward pass. Checkpoints may be nested.

    Parameters
    ----------
    f : callable
        Returns one array. Array arguments are positional. It may also use Variables from outside, such as the
        parameters of a layer: they get their gradients. It must compute the same each time; random numbers
        drawn by functions of this package (`functions.dropout`) are the same when it runs again.

    Returns
    -------
    callable
        Called like `f`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import Tape, Variable, checkpoint, functions as F
    >>> x = Variable(np.array([0.5, 1.0]))
    >>> with Tape() as tape:
    ...     y = F.sum(checkpoint(lambda x: F.exp(F.sin(F.exp(x))))(x))
    >>> [step.function.name for step in tape.steps]
    ['checkpoint of <lambda>', 'sum']
    >>> tape.gradient(y, x).round(3)
    array([-0.348, -3.737])
    """

    @functools.wraps(f)
    def call(*args: Any, **params: Any) -> Any:
        if not active.tapes:
            return f(*args, **params)
        given = [arg for arg in args if isinstance(arg, Variable)]
        listener = _Listener(given)
        tapes, active.tapes = active.tapes, [listener]
        try:
            with noting() as states:
                output = f(*args, **params)
        finally:
            active.tapes = tapes
        if isinstance(output, tuple | list):
            raise TypeError(f"checkpoint: {rules.name} must return one array, got a {type(output).__name__}")
        if not isinstance(output, Variable) or output.key in listener.outside:
            return output
        outside = tuple(listener.outside.values())
        values = tuple(variable.data for variable in outside)
        names = [variable.name or f"input {i}" for i, variable in enumerate(outside)]
        arrays = (*values, *(arg for arg in args if hasattr(arg, "nbytes")))
        call_again = _Call(names, arrays, args, outside[len({v.key for v in given}) :], values, states)
        _record(rules, outside, values, output, params, call_again, tapes)
        return output

    name = getattr(f, "__name__", type(f).__name__)
    rules = _rules(f, f"checkpoint of {name}")
    return call


def _record(
    rules: Function,
    inputs: tuple[Variable, ...],
    values: tuple,
    output: Variable,
    params: dict,
    residual: _Call,
    tapes: list,
) -> None:
    """One step for the whole function: a Variable that is given twice, or used inside too, counts once."""
    step = Step(
        rules,
        (),
        [variable.key for variable in inputs],
        [value.shape for value in values],
        [value.dtype for value in values],
        list(values),
        output,
        {"params": params},
        residual,
        any(tape.check for tape in tapes),
    )
    for tape in tapes:
        tape.add(step, inputs)


def _rules(f: Callable, name: str) -> Function:
    def pull(grad: Any, step: Any, needs: tuple[bool, ...]) -> Sequence:
        call: _Call = step.residual
        inside = call.values[len(call.values) - len(call.outside) :]
        for variable, value in zip(call.outside, inside):
            if variable.data is not value:
                raise RuntimeError(
                    f"{name}: {variable!r}, which it uses, got other data after the forward pass; take the "
                    "gradient first"
                )
        inputs = [linked(value, key) for value, key in zip(call.values, step.keys)]
        by_key = dict(zip(step.keys, inputs))
        args = [by_key[arg.key] if isinstance(arg, Variable) else arg for arg in call.args]
        with replaying(call.states), Tape(check=False) as tape:
            output = f(*args, **step.params)
        wanted = [variable for variable, need in zip(inputs, needs) if need]
        found = iter(tape.gradient(output, wanted, grad=grad))
        return [next(found) if need else None for need in needs]

    def forward(*operands: Any) -> Any:
        return f(*operands)

    forward.__name__ = name
    return Function(forward, "*arguments", ("", pull), None, ("arguments",), {})
