"""Derivatives of functions as functions, which nest to any depth.

Each call gives the function arguments of its own, linked to what the caller gave: so derivatives of
derivatives never take one argument for another, even where it is the same Variable. Results are arrays;
Variables while anything records, or where they depend on a Variable that the function was given or sees.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import functions as F
from ._binding import each, places, real
from ._graph import Node, nearest, next_number, recording
from .function import alias as _argument
from .functions._common import library
from .tape import Tape
from .variable import Variable, constant, stop_gradient


def value_and_grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``g(*args) -> (f(*args), gradient)`` of a function with a single number as value.

    The function is called with Variables in the places `argnums`: an int gives one gradient, a tuple gives a
    tuple of them; zeros where nothing depends.

    Examples
    --------
    >>> from autodiff import value_and_grad
    >>> value_and_grad(lambda x: x**3)(2.0)
    (array(8.), array(12.))
    """
    return _derivative("value_and_grad", f, argnums, _Run.gradients, valued=True)


def grad(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``g(*args) -> gradient`` of `f`, whose value is a single number; `argnums` as in `value_and_grad`.

    Examples
    --------
    >>> from autodiff import grad
    >>> float(grad(grad(lambda x: x**4))(3.0))
    108.0
    """
    return _derivative("grad", f, argnums, _Run.gradients)


def vjp(f: Callable, *arrays: Any) -> tuple[Any, Callable]:
    """The value of ``f(*arrays)`` and its pullback, ``pullback(grad_output) -> one gradient per array``.

    Examples
    --------
    >>> from autodiff import vjp
    >>> value, pullback = vjp(lambda x, y: x * y, 3.0, 4.0)
    >>> pullback(10.0)
    (array(40.), array(30.))
    """
    run = _Run("vjp", f, arrays, range(len(arrays)))
    return run.given(run.value), lambda g: tuple(run.given(slope, g) for slope in run.gradients(g, keep=True))


def jvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple[Any, Any]:
    """The value of ``f(*arrays)``, and its derivative along `vectors`, one per array.

    Examples
    --------
    >>> from autodiff import jvp
    >>> jvp(lambda x, y: x * y, (3.0, 4.0), (1.0, 10.0))
    (array(12.), array(34.))
    """
    with Tape() as outer:
        run = _Run("jvp", f, arrays, range(len(arrays)))
        # The gradient is linear in the one it starts from: its derivative by that is what is wanted.
        start = constant(np.zeros_like(run.value.data))
        along = _along("jvp", run.gradients(start, keep=True), vectors)
    return run.given(run.value), run.given(outer.gradient(along, start, unused="zero"), along)


def hvp(f: Callable, arrays: tuple, vectors: tuple) -> tuple:
    """Product of the Hessian of ``f(*arrays)``, a single number, with `vectors`, one per array.

    Examples
    --------
    >>> from autodiff import hvp
    >>> hvp(lambda x: x**3, (2.0,), (10.0,))
    (array(120.),)
    """
    every = tuple(range(len(arrays)))
    slopes = _derivative("hvp", f, every, _Run.gradients)
    return _derivative("hvp", lambda *at: _along("hvp", slopes(*at), vectors), every, _Run.gradients)(*arrays)


def jacobian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``J(*args)``: the derivative of each element of ``f(*args)`` by each element of an argument.

    Its shape is that of the value, followed by that of the argument; a tuple `argnums` gives a tuple of them.

    Examples
    --------
    >>> from autodiff import jacobian
    >>> jacobian(lambda x: x * x)([1.0, 2.0])
    array([[2., 0.],
           [0., 4.]])
    """
    return _derivative("jacobian", f, argnums, _Run.rows)


def hessian(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """``H(*args)``: the second derivatives of `f`, a single number; a tuple `argnums` gives a tuple of rows.

    Examples
    --------
    >>> from autodiff import hessian
    >>> hessian(lambda x, y: x * y * y, (0, 1))(2.0, 3.0)
    ((array(0.), array(6.)), (array(6.), array(4.)))
    """
    slopes = [_derivative("hessian", f, place, _Run.gradients) for place in each(argnums)]
    rows = [_derivative("hessian", slope, argnums, _Run.rows) for slope in slopes]
    return functools.wraps(f)(lambda *args, **params: _like(argnums, [row(*args, **params) for row in rows]))


class _Run:
    """One run of a function on a tape of its own, with arguments of its own in some places."""

    def __init__(self, name: str, f: Callable, args: tuple, places: Any, /, **params: Any) -> None:
        self.name, self.start = name, next_number()
        given = list(args)
        with Tape() as self.tape:
            for place in places:
                given[place] = _argument(x) if isinstance(x := args[place], Variable) else Variable(x)
            value = f(*given, **params)
        self.inputs = [given[place] for place in places]
        if not isinstance(value, Variable):
            value = constant(real(value, f"{name}: what the function returns"))
        self.value = value

    def gradients(self, grad: Any = None, keep: bool = False) -> list:
        return self.tape.gradient(self.value, self.inputs, grad=grad, keep=keep, unused="zero")

    def rows(self) -> list:
        """The gradients of each element of the value, stacked."""
        value, size = self.value, self.value.size
        ones = library(value.data).eye(size, dtype=value.dtype).reshape(size, *value.shape)
        nothing = [np.zeros_like(x.data, shape=0) for x in self.inputs]
        rows = [self.gradients(one, keep=True) for one in ones] or [nothing]
        shapes = [(*value.shape, *x.shape) for x in self.inputs]
        return [F.reshape(F.stack(column), shape) for column, shape in zip(zip(*rows), shapes)]

    def given(self, found: Any, *of: Any) -> Any:
        """A result, which depends on the value and on what else it is `of`, as it is returned: where nothing
        records, one that depends on a Variable from before counts as computed there.
        """
        if recording():
            return found
        found = stop_gradient(found)
        if known := nearest([x.node for x in (self.value, *of) if isinstance(x, Variable)], self.start):
            found = constant(found)
            found.node = Node(found, self.name, known)
        return found


def _derivative(name: str, f: Callable, argnums: Any, slopes: Callable, valued: bool = False) -> Callable:
    """``g(*args) -> slopes(run)``, one for each place (after the value, if `valued`)."""

    @functools.wraps(f)
    def evaluate(*args: Any, **params: Any) -> Any:
        run = _Run(name, f, args, places(name, argnums, len(args)), **params)
        slope = _like(argnums, [run.given(slope) for slope in slopes(run)])
        return (run.given(run.value), slope) if valued else slope

    return evaluate


def _like(argnums: Any, found: list) -> Any:
    return tuple(found) if isinstance(argnums, tuple | list) else found[0]


def _along(name: str, grads: list, vectors: tuple) -> Any:
    """The sum of products of gradients and vectors."""
    if len(vectors) != len(grads):
        raise ValueError(f"{name}: {len(vectors)} vectors for {len(grads)} arrays")
    return sum(F.sum(g * real(v, f"{name}: a vector", g, "its array")) for g, v in zip(grads, vectors))
