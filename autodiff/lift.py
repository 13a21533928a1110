"""Every operator of dynarray as a differentiable function, made from the registry.

An operator of dynarray carries its own backward pass, so a lifted function has one joint rule: hand the
gradient of the output to it. That backward pass is not itself made of differentiable functions. Under an
outer tape its results are therefore marked: a second-order gradient that would have to pass through them is
refused by name, never wrong.
"""

import inspect
from typing import Any

import dynarray

from .function import Function, active, differentiable
from .functions._common import plain
from .variable import linked


class SecondOrderError(NotImplementedError):
    """A gradient of a gradient goes through a function that has only first-order gradients."""


def lift(operator: dynarray.Operator) -> Function:
    """A differentiable function that runs `operator`; array arguments may be Variables, arrays or None."""

    def forward(*args: Any, **params: Any) -> Any:
        bound = signature.bind(*args, **params)
        arrays = tuple(bound.arguments.pop(name) for name in operator.arrays)
        return operator.run(arrays, bound.arguments)

    def pull(grad: Any, saved: Any, needs: tuple[bool, ...]) -> tuple:
        grads = operator.gradients(plain(grad), saved.residual, needs)
        if not active.tapes:
            return grads
        keys = [key for key in (getattr(grad, "key", None), *saved.inputs) if key is not None]
        return tuple(None if g is None else _first_order(operator.name, g, keys) for g in grads)

    signature = inspect.signature(operator.function)
    forward.__name__ = forward.__qualname__ = operator.name
    forward.__doc__ = f"Differentiable `dynarray.{operator.name}`.\n\n{inspect.getdoc(operator.function)}"
    forward.__signature__ = signature  # type: ignore[attr-defined]
    forward.__module__ = __name__
    return differentiable(" ".join(operator.arrays), joint=("", pull), residual=operator.roles)(forward)


def _first_order(name: str, grad: Any, keys: list[int]) -> Any:
    """The gradient as a value that, to an outer tape, depends on `keys` in a way it cannot differentiate."""

    def refuse(*_: Any) -> Any:
        raise SecondOrderError(
            f"{name}: a gradient of its gradient was asked for, but its backward pass is not differentiable"
        )

    def backward(*sources: Any) -> Any:
        return grad

    backward.__name__ = f"{name}_backward"
    marked = differentiable("*sources", joint=("", refuse))(backward)
    # Only which Variables it depends on matters to the tape: their values are not read.
    return marked(*[linked(grad, key) for key in keys])


lifted = {name: lift(operator) for name, operator in dynarray.OPERATORS.items()}
