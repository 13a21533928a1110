"""Derivatives of functions as functions: `grad`, `value_and_grad`, `vjp`, `hvp`. They nest."""

import functools
from collections.abc import Callable
from typing import Any

from .function import active
from .tape import Tape
from .variable import Variable


def value_and_grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``g(*args) -> (f(*args), gradient)`` of a function with a single number as value.

    Parameters
    ----------
    f : callable
        Called with Variables in the places `argnums`.
    argnums : int or tuple of int
        An int gives one gradient, a tuple gives a tuple of them.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, value_and_grad
    >>> value_and_grad(lambda x: F.sum(x**3))(np.array([1.0, 2.0]))
    (array(9.), array([ 3., 12.]))
    """

    @functools.wraps(f)
    def evaluate(*args: Any, **params: Any) -> tuple[Any, Any]:
        single = isinstance(argnums, int)
        places = (argnums,) if isinstance(argnums, int) else argnums
        with Tape() as tape:
            inputs = list(args)
            for i in places:
                inputs[i] = inputs[i] if isinstance(inputs[i], Variable) else Variable(inputs[i])
            value = f(*inputs, **params)
        grads = tape.gradient(value, [inputs[i] for i in places])
        return _outward(value), grads[0] if single else tuple(grads)

    return evaluate


def grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``g(*args) -> gradient`` of a function with a single number as value; see `value_and_grad`.

    Examples
    --------
    >>> from autodiff import grad
    >>> float(grad(grad(lambda x: x**4))(3.0))
    108.0
    """
    evaluate = value_and_grad(f, argnums)
    return functools.wraps(f)(lambda *args, **params: evaluate(*args, **params)[1])


def vjp(f: Callable, *arrays: Any) -> tuple[Any, Callable]:
    """The value of ``f(*arrays)`` and its pullback: ``pullback(grad_output) -> one gradient per array``.

    The pullback may be called repeatedly.
    """
    with Tape() as tape:
        inputs = [a if isinstance(a, Variable) else Variable(a) for a in arrays]
        value = f(*inputs)
    return _outward(value), lambda g: tuple(tape.gradient(value, inputs, grad=g, keep=True))


def hvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    """Product of the Hessian of ``f(*arrays)``, a single number, with `vectors` (one per array)."""
    if len(arrays) != len(vectors):
        raise ValueError(f"hvp: {len(vectors)} vectors for {len(arrays)} arrays")
    with Tape() as outer:
        inputs = [a if isinstance(a, Variable) else Variable(a) for a in arrays]
        with Tape() as inner:
            value = f(*inputs)
        grads = inner.gradient(value, inputs)
        slope = sum((g * v).sum() for g, v in zip(grads, vectors))
    return tuple(outer.gradient(slope, inputs))


def _outward(value: Variable) -> Any:
    """A value as it is returned: to an outer tape it stays a Variable, since it may depend on one."""
    return value if active.tapes else value.data
