"""Derivatives of functions as functions, which nest to any depth.

Each call gives the function arguments of its own. While something records, these are linked to what the
caller gave; so derivatives of derivatives never take one argument for another, even where it is the same
Variable.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import functions as F
from ._recording import recording
from .function import differentiable
from .tape import Tape
from .variable import Variable, constant


def value_and_grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``g(*args) -> (f(*args), gradient)`` of a function with a single number as value.

    Parameters
    ----------
    f : callable
        Called with Variables in the places `argnums`.
    argnums : int or tuple of int
        An int gives one gradient, a tuple gives a tuple of them; zeros where nothing depends.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, value_and_grad
    >>> value_and_grad(lambda x: F.sum(x**3))(np.array([1.0, 2.0]))
    (array(9.), array([ 3., 12.]))
    """

    @functools.wraps(f)
    def evaluate(*args: Any, **params: Any) -> tuple[Any, Any]:
        places = (argnums,) if isinstance(argnums, int) else argnums
        inputs = list(args)
        for i in places:
            inputs[i] = _argument(args[i])
        with Tape() as tape:
            value = _value(f(*inputs, **params))
        grads = tape.gradient(value, [inputs[i] for i in places], unused="zero")
        return _outward(value), grads[0] if isinstance(argnums, int) else tuple(grads)

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

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import vjp
    >>> value, pullback = vjp(lambda x, y: x * y, np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    >>> pullback(np.array([1.0, 10.0]))
    (array([ 3., 40.]), array([ 1., 20.]))
    """
    inputs = [_argument(a) for a in arrays]
    with Tape() as tape:
        value = _value(f(*inputs))
    return _outward(value), lambda g: tuple(tape.gradient(value, inputs, grad=g, keep=True, unused="zero"))


def jvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple[Any, Any]:
    """The value of ``f(*arrays)``, and its derivative along `vectors`, one per array.

    Notes
    -----
    The gradient is linear in the gradient that it starts from; its derivative by that, along `vectors`, is
    the one wanted. It costs about as much as two gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import jvp
    >>> jvp(lambda x: x * x, (np.array([1.0, 2.0]),), (np.array([1.0, 10.0]),))
    (array([1., 4.]), array([ 2., 40.]))
    """
    inputs = [_argument(a) for a in arrays]
    with Tape() as outer:
        with Tape() as inner:
            value = _value(f(*inputs))
        start = constant(np.zeros_like(value.data))
        grads = inner.gradient(value, inputs, grad=start, unused="zero")
        along = _along("jvp", grads, vectors)
    return _outward(value), outer.gradient(along, start, unused="zero")


def hvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    """Product of the Hessian of ``f(*arrays)``, a single number, with `vectors`, one per array.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, hvp
    >>> hvp(lambda x: F.sum(x**3), (np.array([1.0, 2.0]),), (np.array([1.0, 10.0]),))
    (array([  6., 120.]),)
    """
    inputs = [_argument(a) for a in arrays]
    with Tape() as outer:
        with Tape() as inner:
            value = _value(f(*inputs))
        along = _along("hvp", inner.gradient(value, inputs, unused="zero"), vectors)
    return tuple(outer.gradient(along, inputs, unused="zero"))


def jacobian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``J(*args)``: the derivative of each element of ``f(*args)`` by each element of an argument.

    Its shape is that of the value, followed by that of the argument. It takes one pass back for each element
    of the value.

    Parameters
    ----------
    f : callable
        Returns one array.
    argnums : int or tuple of int
        An int gives one Jacobian, a tuple gives a tuple of them.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import jacobian
    >>> jacobian(lambda x: x * x)(np.array([1.0, 2.0]))
    array([[2., 0.],
           [0., 4.]])
    """

    @functools.wraps(f)
    def evaluate(*args: Any, **params: Any) -> Any:
        places = (argnums,) if isinstance(argnums, int) else argnums

        def of_places(*inputs: Any) -> Any:
            given = list(args)
            for i, value in zip(places, inputs):
                given[i] = value
            return f(*given, **params)

        value, pullback = vjp(of_places, *(args[i] for i in places))
        rows = [pullback(one) for one in np.eye(value.size, dtype=value.dtype).reshape(-1, *value.shape)]
        found = tuple(_rows(value, args[i], [row[k] for row in rows]) for k, i in enumerate(places))
        return found[0] if isinstance(argnums, int) else found

    return evaluate


def hessian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``H(*args)``: the second derivatives of a single number; with a tuple `argnums`, a tuple of rows of
    them.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F, hessian
    >>> hessian(lambda x: F.sum(x**3))(np.array([1.0, 2.0]))
    array([[ 6.,  0.],
           [ 0., 12.]])
    """
    if isinstance(argnums, int):
        return jacobian(grad(f, argnums), argnums)
    rows = [jacobian(grad(f, i), argnums) for i in argnums]
    return functools.wraps(f)(lambda *args, **params: tuple(row(*args, **params) for row in rows))


@differentiable("x", x=("", lambda g, s: g))
def _linked(x: Any) -> Any:
    return x


def _argument(x: Any) -> Variable:
    """A Variable of its own; what records around it leads back to x."""
    if not isinstance(x, Variable):
        return Variable(x)
    return _linked(x) if recording() else Variable(x.data, x.name)


def _value(value: Any) -> Variable:
    """What a function returned, as a Variable also where it depends on nothing."""
    return value if isinstance(value, Variable) else constant(np.asarray(value, dtype=None))


def _outward(value: Variable) -> Any:
    """A value as it is returned: while anything records it stays a Variable, since it may depend on one."""
    return value if recording() else value.data


def _along(name: str, grads: list, vectors: Iterable) -> Any:
    """The sum of products of gradients and vectors."""
    vectors = tuple(vectors)
    if len(vectors) != len(grads):
        raise ValueError(f"{name}: {len(vectors)} vectors for {len(grads)} arrays")
    for g, v in zip(grads, vectors):
        if np.shape(v) != g.shape:
            raise ValueError(
                f"{name}: a vector must have the shape of its array, {g.shape}, got {np.shape(v)}"
            )
    return sum(F.sum(g * v) for g, v in zip(grads, vectors))


def _rows(value: Any, x: Any, rows: list) -> Any:
    """Gradients of all elements of `value` as one array."""
    shape = (*value.shape, *np.shape(x))
    if not rows:
        return (
            np.zeros_like(value, shape=shape)
            if not isinstance(value, Variable)
            else constant(np.zeros(shape, value.dtype))
        )
    return F.reshape(F.stack(rows), shape)
