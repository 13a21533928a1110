"""Derivatives of functions as functions, which nest to any depth.

Each call gives the function arguments of its own. While something records, these are linked to what the
caller gave; so derivatives of derivatives never take one argument for another, even where it is the same
Variable.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np

from . import functions as F
from ._graph import Unrecorded, before, next_number, recording
from .function import differentiable
from .functions._common import library
from .tape import Tape
from .variable import Variable, constant, real, stop_gradient


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
    >>> from autodiff import value_and_grad
    >>> value_and_grad(lambda x: x**3)(2.0)
    (array(8.), array(12.))
    """
    return _derivative("value_and_grad", f, argnums, _gradients, valued=True)


def grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``g(*args) -> gradient`` of a function with a single number as value; see `value_and_grad`.

    Examples
    --------
    >>> from autodiff import grad
    >>> float(grad(grad(lambda x: x**4))(3.0))
    108.0
    """
    return _derivative("grad", f, argnums, _gradients)


def vjp(f: Callable, *arrays: Any) -> tuple[Any, Callable]:
    """The value of ``f(*arrays)`` and its pullback, ``pullback(grad_output) -> one gradient per array``.

    Examples
    --------
    >>> from autodiff import vjp
    >>> value, pullback = vjp(lambda x, y: x * y, 3.0, 4.0)
    >>> pullback(10.0)
    (array(40.), array(30.))
    """
    start, inputs = next_number(), [_argument(a) for a in arrays]
    value, tape = _recorded("vjp", f, inputs)

    def pullback(g: Any) -> tuple:
        grads = tape.gradient(value, inputs, grad=g, keep=True, unused="zero")
        return tuple([_outward("vjp", found, (value, g), start) for found in grads])

    return _outward("vjp", value, (value,), start), pullback


def jvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple[Any, Any]:
    """The value of ``f(*arrays)``, and its derivative along `vectors`, one per array.

    Examples
    --------
    >>> from autodiff import jvp
    >>> jvp(lambda x, y: x * y, (3.0, 4.0), (1.0, 10.0))
    (array(12.), array(34.))
    """
    first, inputs = next_number(), [_argument(a) for a in arrays]
    with Tape() as outer:
        value, inner = _recorded("jvp", f, inputs)
        # The gradient is linear in the one it starts from: its derivative by that is what is wanted.
        start = constant(np.zeros_like(value.data))
        along = _along("jvp", inner.gradient(value, inputs, grad=start, unused="zero"), vectors)
    slope = outer.gradient(along, start, unused="zero")
    return _outward("jvp", value, (value,), first), _outward("jvp", slope, (along,), first)


def hvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    """Product of the Hessian of ``f(*arrays)``, a single number, with `vectors`, one per array.

    Examples
    --------
    >>> from autodiff import hvp
    >>> hvp(lambda x: x**3, (2.0,), (10.0,))
    (array(120.),)
    """
    every = tuple(range(len(arrays)))
    slopes = _derivative("hvp", f, every, _gradients)
    return _derivative("hvp", lambda *at: _along("hvp", slopes(*at), vectors), every, _gradients)(*arrays)


def jacobian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``J(*args)``: the derivative of each element of ``f(*args)``, one array, by each element of an
    argument.

    Its shape is that of the value, followed by that of the argument; a tuple `argnums` gives a tuple of them.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import jacobian
    >>> jacobian(lambda x: x * x)(np.array([1.0, 2.0]))
    array([[2., 0.],
           [0., 4.]])
    """
    return _derivative("jacobian", f, argnums, _rows)


def hessian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``H(*args)``: the second derivatives of a single number; with a tuple `argnums`, a tuple of rows of
    them.

    Examples
    --------
    >>> from autodiff import hessian
    >>> hessian(lambda x, y: x * y * y, (0, 1))(2.0, 3.0)
    ((array(0.), array(6.)), (array(6.), array(4.)))
    """

    def row(i: Any) -> Callable:
        return _derivative("hessian", _derivative("hessian", f, i, _gradients), argnums, _rows)

    if not _many(argnums):
        return row(argnums)
    rows = [row(i) for i in argnums]
    return functools.wraps(f)(lambda *args, **params: tuple(row(*args, **params) for row in rows))


def _derivative(name: str, f: Callable, argnums: Any, slopes: Callable, valued: bool = False) -> Callable:
    """``g(*args) -> slopes(value, inputs, tape)``, one for each place (after the value, if `valued`)."""

    @functools.wraps(f)
    def evaluate(*args: Any, **params: Any) -> Any:
        places, given, start = _places(name, argnums, len(args)), list(args), next_number()
        for place in places:
            given[place] = _argument(args[place])
        value, tape = _recorded(name, f, given, **params)
        found = slopes(value, [given[place] for place in places], tape)
        *found, value = [_outward(name, x, (value,), start) for x in (*found, value)]
        found = tuple(found) if _many(argnums) else found[0]
        return (value, found) if valued else found

    return evaluate


def _gradients(value: Variable, inputs: list[Variable], tape: Tape) -> list:
    return tape.gradient(value, inputs, unused="zero")


def _rows(value: Variable, inputs: list[Variable], tape: Tape) -> list:
    """The gradient of each element of a value, stacked."""
    ones = library(value.data).eye(value.size, dtype=value.dtype).reshape(value.size, *value.shape)
    rows = [tape.gradient(value, inputs, grad=one, keep=True, unused="zero") for one in ones]
    shapes = [(*value.shape, *x.shape) for x in inputs]
    empty = [np.zeros_like(x.data, shape=shape) for x, shape in zip(inputs, shapes)]
    columns = [F.stack(column) for column in zip(*rows)] or empty
    return [F.reshape(column, shape) for column, shape in zip(columns, shapes)]


@differentiable("x", x=("", lambda g, s: g))
def _linked(x: Any) -> Any:
    return x


def _argument(x: Any) -> Variable:
    """A Variable of its own, from which calls lead back to x."""
    return _linked(x) if isinstance(x, Variable) else Variable(x)


def _many(argnums: Any) -> TypeGuard[tuple[int, ...]]:
    return isinstance(argnums, tuple | list)


def _places(name: str, argnums: Any, count: int) -> list[int]:
    """The places `argnums` among `count` arguments."""
    try:
        return [range(count)[place] for place in (argnums if _many(argnums) else [argnums])]
    except IndexError:
        raise TypeError(
            f"{name}: argnums is {argnums!r}, but the function got {count} positional arguments"
        ) from None
    except TypeError:
        raise TypeError(f"{name}: argnums must be an int or a tuple of int, got {argnums!r}") from None


def _recorded(name: str, f: Callable, args: list, /, **params: Any) -> tuple[Variable, Tape]:
    """What a function returns, as a Variable also where it depends on nothing, and the tape of it."""
    with Tape() as tape:
        value = f(*args, **params)
    if not isinstance(value, Variable):
        value = constant(real(value, f"{name}: what the function returns"))
    return value, tape


def _outward(name: str, found: Any, of: tuple, start: int) -> Any:
    """A result as it is returned: a Variable if it depends on one from before `start`, or while anything
    records.

    It depends on what `of` do. Where nothing records it counts as computed there, like all results.
    """
    if recording():
        return found
    known = set().union(*(before(x.node, start) for x in of if isinstance(x, Variable)))
    found = stop_gradient(found)
    if known:
        found = constant(found)
        found.node = Unrecorded(name, known, found)
    return found


def _along(name: str, grads: list, vectors: tuple) -> Any:
    """The sum of products of gradients and vectors."""
    if len(vectors) != len(grads):
        raise ValueError(f"{name}: {len(vectors)} vectors for {len(grads)} arrays")
    vectors = tuple([real(v, f"{name}: a vector") for v in vectors])
    for g, v in zip(grads, vectors):
        if v.shape != g.shape:
            raise ValueError(f"{name}: a vector must have the shape of its array, {g.shape}, got {v.shape}")
    return sum(F.sum(g * v) for g, v in zip(grads, vectors))
