"""Memory for time: keep nothing of what happens inside a function, and run it again when it is needed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ._backward import find
from ._fingerprint import fingerprint, unchanged
from ._graph import next_number
from ._random import States, noting, replaying
from ._recording import State, state
from ._stop import stop_gradient
from .function import Function, Step
from .tape import Tape
from .variable import Variable, linked


class _Given(NamedTuple):
    """A Variable among the arguments, with the data that it had."""

    data: Any
    node: Any


class _Call(NamedTuple):
    """What must be known to run a function again; `arrays` are watched for overwriting."""

    names: list[str]
    arrays: tuple
    args: tuple
    outside: list[tuple[Variable, Any]]
    states: States
    value: Any


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
        if not state.get().tapes:
            return f(*args, **params)
        start = next_number()
        with noting() as states:
            output, used = _listened(f, args, params, start)
        if isinstance(output, tuple | list):
            raise TypeError(f"checkpoint: {rules.name} must return one array, got a {type(output).__name__}")
        if not isinstance(output, Variable) or output.node.number < start:
            return output
        before = _before(output.node, start)
        if not before <= set(used):
            raise ValueError(
                f"{rules.name}: it uses values that were computed from Variables where nothing records, such "
                "as in a thread of a pool; pass them in, or keep them as constants with stop_gradient(x)"
            )
        # An argument that is only compared, say, is watched, but the value does not depend on it.
        return _recorded(rules, [used[node] for node in used if node in before], args, params, output, states)

    name = getattr(f, "__name__", type(f).__name__)
    rules = _rules(f, f"checkpoint of {name}")
    return call


def _listened(f: Callable, args: tuple, params: dict, start: int) -> tuple[Any, dict]:
    """The value of `f`, and by their nodes the Variables from before `start` that it uses."""
    now, used = state.get(), {arg.node: arg for arg in args if isinstance(arg, Variable)}

    def listen(operands: tuple) -> None:
        used.update((v.node, v) for v in operands if isinstance(v, Variable) and v.node.number < start)
        if now.listener is not None:
            now.listener(operands)

    token = state.set(State((), listen))
    try:
        return f(*args, **params), used
    finally:
        state.reset(token)


def _before(node: Any, start: int) -> set:
    """The nodes from before `start` that a result depends on, without those that they depend on."""
    found: set = {None}
    todo = [node]
    while todo:
        new = {other for other in todo.pop().inputs if other not in found}
        found |= new
        todo += (other for other in new if other is not None and other.number > start)
    return {other for other in found if other is not None and other.number < start}


def _recorded(
    rules: Function, inputs: list[Variable], args: tuple, params: dict, output: Variable, states: States
) -> Variable:
    """One step for the whole function: a Variable that is given twice, or used inside too, counts once."""
    now, values, given = state.get(), [v.data for v in inputs], {id(arg) for arg in args}
    call = _Call(
        [variable.name or f"input {i}" for i, variable in enumerate(inputs)],
        (*values, *(array for array in map(stop_gradient, args) if hasattr(array, "nbytes"))),
        tuple(_Given(arg.data, arg.node) if isinstance(arg, Variable) else arg for arg in args),
        [(variable, variable.data) for variable in inputs if id(variable) not in given],
        states,
        fingerprint(output.data),
    )
    shapes, dtypes = [value.shape for value in values], [value.dtype for value in values]
    step = Step(rules, (), [v.node for v in inputs], shapes, dtypes, values, output, now)
    step.extend({"params": params}, call, now.check)
    for tape in now.tapes:
        tape.steps.append(step)
    output.node = step
    return output


def _rules(f: Callable, name: str) -> Function:
    def pull(grad: Any, step: Any, needs: tuple[bool, ...]) -> Sequence:
        call: _Call = step.residual
        for variable, data in call.outside:
            if variable.data is not data:
                raise RuntimeError(
                    f"{name}: {variable!r}, which it uses, got other data after the forward pass; take the "
                    "gradient first"
                )
        args = [linked(*arg) if isinstance(arg, _Given) else arg for arg in call.args]
        start = next_number()
        with replaying(call.states), Tape(check=False) as tape:
            output = f(*args, **step.params)
        same = isinstance(output, Variable) and _before(output.node, start) <= set(step.inputs)
        if not same or not unchanged(call.value, output.data):
            raise RuntimeError(
                f"{name}: run again it gave another value than before, or used other Variables: something "
                "that it uses changed, or it draws random numbers of its own"
            )
        inputs = zip(call.arrays, step.inputs, needs)
        wanted = [linked(value, node) for value, node, need in inputs if need]
        # What lies before its inputs is not its own: the pass around it will come there.
        way = find(output, wanted, "zero", stop=set(step.inputs))
        found = iter(tape._walk(way, output, wanted, grad, keep=False))
        return [next(found) if need else None for need in needs]

    def forward(*operands: Any) -> Any:
        return f(*operands)

    forward.__name__ = name
    return Function(forward, "*arguments", ("", pull), None, ("arguments",), {})
