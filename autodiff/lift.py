"""Every operator of dynarray as a differentiable function, made from the registry.

An operator carries its own backward pass, so a lifted function has one joint rule: hand the gradient of the
output to it. That backward pass is no chain of differentiable functions. Under an outer tape each of its
results is therefore one step, whose own gradients come from the operator's `composite`, its definition in
elementary functions, differentiated twice. First-order values are always those of the operator's own passes;
the composite runs only when a gradient of a gradient is asked for. An operator without composite refuses that
by name: never a silently wrong number.
"""

import inspect
from collections.abc import Callable
from typing import Any

import dynarray

from . import functions
from ._graph import recording
from .function import Step, differentiable
from .functions._common import plain
from .tape import Tape
from .variable import Variable, linked


class SecondOrderError(NotImplementedError):
    """A gradient of a gradient goes through a function that has only first-order gradients."""


def lift(operator: dynarray.Operator) -> Callable:
    """A differentiable function that runs `operator`; array arguments may be Variables, arrays or None.

    Parameters
    ----------
    operator : dynarray.Operator
        One of `dynarray.OPERATORS`, or one of the caller's.

    Returns
    -------
    callable
        Takes what the operator's function takes; a gradient of its gradient is a SecondOrderError where the
        operator has no composite.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> from autodiff import grad, lift, functions as F
    >>> local_filter1d = lift(dyn.OPERATORS["local_filter1d"])  # F.local_filter1d is this
    >>> x = np.array([[[1.0, 2.0, 3.0]]])
    >>> grad(lambda weight: F.sum(local_filter1d(x, weight)))(np.ones((1, 1, 3, 3))).shape
    (1, 1, 3, 3)
    """

    def forward(*arrays: Any, **params: Any) -> Any:
        return operator.run(arrays, params)

    def pull(grad: Any, step: Step, needs: tuple[bool, ...]) -> tuple:
        grads = operator.gradients(plain(grad), step.residual, needs)
        if not recording():
            return grads
        arguments = _arguments(operator, step)
        return tuple(
            None if g is None else _once_more(operator, i, g, step.residual)(grad, *arguments)
            for i, g in enumerate(grads)
        )

    forward.__name__ = forward.__qualname__ = operator.name
    forward.__doc__ = f"Differentiable `dynarray.{operator.name}`.\n\n{inspect.getdoc(operator.function)}"
    forward.__signature__ = inspect.signature(operator.function)  # type: ignore[attr-defined]
    forward.__module__ = __name__
    return differentiable(" ".join(operator.arrays), joint=("", pull), residual=operator.roles)(forward)


def _arguments(operator: dynarray.Operator, step: Step) -> list:
    """The array arguments of a call, from what it kept, as the Variables that they were on the tape."""
    kept = dict(zip(operator.roles, step.residual.arrays))
    return [
        None if shape is None else linked(kept[name].reshape(shape), node)
        for name, shape, node in zip(operator.arrays, step.residual.shapes, step.inputs)
    ]


def _once_more(operator: dynarray.Operator, place: int, value: Any, saved: Any) -> Callable:
    """The gradient by one argument, known to be `value`, as a function of grad_output and the arguments."""

    def again(g: Any, step: Any, needs: tuple[bool, ...]) -> list:
        if operator.composite is None:
            raise SecondOrderError(
                f"{operator.name}: a gradient of its gradient was asked for, but there is no composite "
                "definition to take it from"
            )
        formed = dict(zip(operator.roles, saved.arrays))
        shapes = [step.shapes[0], *(getattr(formed[name], "shape", None) for name in operator.arrays)]
        # Reshaped even where the shape is right: two arguments may be one Variable, and must be told apart.
        given = [
            None if a is None else functions.reshape(a if isinstance(a, Variable) else Variable(a), shape)
            for a, shape in zip(step.arrays, shapes)
        ]
        with Tape(check=False) as outer:
            with Tape(check=False) as inner:
                g_output, *arrays = _of_one_dtype(given)
                named = dict(zip(operator.arrays, arrays))
                output = operator.compose(functions, map(named.get, operator.roles), saved)
            slope = inner.gradient(output, given[1 + place], grad=g_output, unused="zero")
        wanted = [a for a, need in zip(given, needs) if need]
        found = iter(outer.gradient(slope, wanted, grad=functions.reshape(g, slope.shape), unused="zero"))
        return [
            functions.reshape(next(found), own) if need else None for own, need in zip(step.shapes, needs)
        ]

    def backward(*arrays: Any) -> Any:
        return value

    backward.__name__ = f"{operator.name}_backward"
    return differentiable("*arrays", joint=("arrays", again))(backward)


def _of_one_dtype(given: list) -> list:
    """What an operator takes in two dtypes, 16 bits beside float32, in the wider of the two."""
    dtypes = {a.dtype for a in given if a is not None}
    if len(dtypes) == 1:
        return given
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    return [None if a is None else functions.astype(a, widest) for a in given]


lifted = {name: lift(operator) for name, operator in dynarray.OPERATORS.items()}
# They are functions like the others. Those know nothing of operators, so that imports run one way.
for _name, _function in lifted.items():
    setattr(functions, _name, _function)
# What `dynarray` builds of operators takes Variables by this, and does not know of them.
Variable.__dynarray_operator__ = staticmethod(lambda operator: lifted[operator.name])  # type: ignore[attr-defined]
