"""Memory for time: keep nothing of what happens inside a function, and run it again when it is needed."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._fingerprint import fingerprint
from ._graph import State, nearest, next_number, recording, state
from ._random import States, noting, replaying
from .function import Function, Step
from .tape import Tape, Way
from .variable import Variable, linked, stop_gradient

_WORDS = (bool, int, float, complex, str, type, np.dtype, np.generic, slice, range)


class _Call(NamedTuple):
    """What must be known to run a function again.

    `arrays` are watched for overwriting. `args` come with their nodes; they, and those `outside` of them,
    with the data that they had.
    """

    names: list[str]
    arrays: tuple
    args: list[tuple[Any, Any]]
    outside: list[tuple[Variable, Any]]
    states: States
    heard: "_Listener"


def checkpoint(f: Callable) -> Callable:
    """`f`, of which the tape keeps the arguments only; the backward pass runs it again.

    A chain of n layers, cut into pieces of k that are each made a checkpoint, keeps about n/k + k results
    instead of n, for one more forward pass. Checkpoints may be nested.

    Parameters
    ----------
    f : callable
        Returns one array. Array arguments are positional. It may also use Variables from outside, such as the
        parameters of a layer: they get their gradients. It must compute the same from the same each time, or
        the gradient is a RuntimeError; random numbers drawn by functions of this package
        (`functions.dropout`) are the same when it runs again. Gradients that it takes by tapes of its own go
        through what these recorded.

    Returns
    -------
    callable
        Called like `f`.

    Raises
    ------
    TypeError
        When it is called: if `f` returns something else than one array.
    ValueError
        When it is called: if `f` uses what was computed from Variables where nothing records.

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
        heard = _Listener(state.get().check)
        heard.used = {arg.node: arg for arg in args if isinstance(arg, Variable)}
        with noting() as states:
            output = heard.run(f, args, params)
        if isinstance(output, tuple | list):
            raise TypeError(f"checkpoint: {rules.name} must return one array, got a {type(output).__name__}")
        if not isinstance(output, Variable) or output.node.number < heard.start:
            return output
        known = set(nearest([output.node], heard.start))
        if not known <= set(heard.used):
            raise ValueError(
                f"{rules.name}: it uses values that were computed from Variables where nothing records, or "
                "in another thread; pass them in, or keep them as constants with stop_gradient(x)"
            )
        # An argument that is only compared, say, is watched, but the value does not depend on it.
        inputs = [variable for node, variable in heard.used.items() if node in known]
        heard.used = {}
        return _recorded(rules, inputs, args, params, output, states, heard)

    name = getattr(f, "__name__", type(f).__name__)
    rules = _rules(f, f"checkpoint of {name}")
    return call


class _Listener:
    """Hears the calls that a function makes as it runs.

    `used` are the Variables from before that it uses, by their nodes. `mark` is a hash of the calls that led
    to its value, and of all that they were given: two runs that make the same of the same have the same, in
    whichever order. `prints` are fingerprints of the value, and of arrays that only a device can compare.
    """

    def __init__(self, check: bool) -> None:
        self.check, self.start, self.outer = check, next_number(), state.get().listener
        self.used: dict[Any, Variable] = {}
        self.mark = 0
        self.prints: list = []
        self._made: dict[int, int] = {}

    def run(self, f: Callable, args: tuple, params: dict, entered: tuple = ()) -> Any:
        """The value of `f`."""
        token = state.set(State(entered, self))
        try:
            output = f(*args, **params)
        finally:
            state.reset(token)
        self.mark, self._made = hash(self._mark(output)), {}
        if isinstance(output, Variable):
            self.prints.append(fingerprint(output.data))
        return output

    def __call__(self, name: str, args: Any, params: dict, result: Variable) -> None:
        self._made[result.node.number] = hash((name, self._mark(args), self._mark(params)))
        if self.outer is not None:
            self.outer(name, args, params, result)

    def same(self, other: "_Listener") -> Any:
        """Whether two runs made the same of the same."""
        if self.mark != other.mark or len(self.prints) != len(other.prints):
            return False
        verdicts = [mine == theirs for mine, theirs in zip(self.prints, other.prints)]
        return functools.reduce(operator.and_, verdicts, True)

    def _mark(self, value: Any) -> Any:
        if isinstance(value, Variable):
            number = value.node.number
            if number < self.start:
                self.used.setdefault(value.node, value)
                return "outside", number
            if number in self._made:
                return "inside", self._made[number]
            value = value.data  # as good as an array: no call made it
        if isinstance(value, list | tuple | dict):
            values = value.items() if isinstance(value, dict) else value
            return tuple([self._mark(v) for v in values])
        if hasattr(value, "dtype") and hasattr(value, "strides") and not isinstance(value, np.generic):
            content = fingerprint(value) if self.check else None
            if not isinstance(value, np.ndarray):
                self.prints.append(content)
                content = None
            return value.shape, value.strides, str(value.dtype), content
        # In words, for -1 and -2 have the same hash, and a NaN is not equal to itself.
        return repr(value) if isinstance(value, _WORDS) else type(value).__name__


def _recorded(
    rules: Function,
    inputs: list[Variable],
    args: tuple,
    params: dict,
    output: Variable,
    states: States,
    heard: _Listener,
) -> Variable:
    """One step for the whole function: a Variable that is given twice, or used inside too, counts once."""
    now, values, given = state.get(), [v.data for v in inputs], {id(arg) for arg in args}
    call = _Call(
        [variable.name or f"input {i}" for i, variable in enumerate(inputs)],
        (*values, *(array for array in map(stop_gradient, args) if hasattr(array, "nbytes"))),
        [(arg.data, arg.node) if isinstance(arg, Variable) else (arg, None) for arg in args],
        [(variable, variable.data) for variable in inputs if id(variable) not in given],
        states,
        heard,
    )
    nodes, level = [v.node for v in inputs], max((v.node.level for v in inputs), default=0)
    shapes, dtypes = [value.shape for value in values], [value.dtype for value in values]
    step = Step(rules, (), (nodes, shapes, dtypes, values, level), {"params": params}, call, output, now)
    step.number = output.node.number  # by which a checkpoint around this one knows it
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
        args = tuple([linked(*arg) for arg in call.args])
        with replaying(call.states), Tape(check=False) as tape:
            heard = _Listener(call.heard.check)
            output = heard.run(f, args, step.params, state.get().entered)
        if not call.heard.same(heard):
            raise RuntimeError(
                f"{name}: run again it gave another value than before, or used other Variables or arrays: "
                "something that it uses changed, or it draws random numbers of its own"
            )
        inputs = enumerate(zip(call.arrays, step.inputs))
        wanted = {place: linked(*given) for place, given in inputs if needs[place]}
        # What lies before its inputs is not its own: the pass around it will come there.
        way = Way(output, wanted, stop=set(step.inputs))
        found = way.go(grad, owner=None if recording() else tape.token)
        return [found.get(place) for place in range(len(needs))]

    def forward(*operands: Any) -> Any:
        return f(*operands)

    forward.__name__ = name
    return Function(forward, "*arguments", ("", pull), None, ("arguments",), {})
