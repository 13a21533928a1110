"""Variable: an array whose uses tapes record."""

from typing import Any
from weakref import ref

import numpy as np

from ._binding import mapped
from ._graph import Node, recording
from ._reading import Readable


class Variable(Readable):
    """An array whose uses tapes record.

    Functions of Variables give Variables, whether or not a tape is active. `data` is the plain array, and
    what is done through it is not followed; assigning to it (as optimisers do) keeps the identity of the
    Variable. A copy, by whatever way, is another Variable, which nothing leads to.

    Parameters
    ----------
    data : array of float, any shape
        Of NumPy or CuPy (a Python float or list becomes a NumPy array). It is not copied.
    name : str, optional
        Shown by ``repr`` and in messages.

    Raises
    ------
    TypeError
        If `data` is a Variable, or has another dtype: integers are not converted.

    Examples
    --------
    >>> from autodiff import Variable
    >>> (2.0 * Variable([1.0, 2.0])).data
    array([2., 4.])
    """

    __slots__ = ("__weakref__", "data", "name", "node")

    def __init__(self, data: Any, name: str | None = None) -> None:
        if isinstance(data, Variable):
            raise TypeError("Variable: data must be an array, got a Variable")
        if not hasattr(data, "dtype") or isinstance(data, np.generic):
            data = np.asarray(data)
        if data.dtype.kind not in "fV":  # V: bfloat16, which NumPy knows only as an extension type
            raise TypeError(f"Variable: data must be real floats, got dtype {data.dtype}; use .astype")
        self.data, self.name = data, name
        self.node: Any = Node(self)

    def __init_subclass__(cls) -> None:
        raise TypeError(f"{cls.__name__}: a Variable cannot be subclassed; let an object have one")

    key = property(lambda self: self.node.number, doc="A number that no other Variable of this process has.")

    def __reduce__(self) -> tuple:
        if recording() and self.node.saved is not None:
            raise TypeError(
                "Variable: a result cannot be copied while a tape records, for the copy would not know "
                "where it is from; copy stop_gradient(x), or copy outside"
            )
        return constant, (self.data, self.name)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a Variable is not an array: take .data, or call the function of autodiff so named")


def constant(data: Any, name: str | None = None, node: Any = None) -> Variable:
    """A Variable without the checks of the constructor; it depends on nothing, unless `node` is given."""
    variable = object.__new__(Variable)
    variable.data, variable.name = np.asarray(data) if isinstance(data, np.generic) else data, name
    variable.node = node or Node(variable)
    return variable


def linked(data: Any, node: Any) -> Any:
    """The array as the Variable that it was, of which the node is left."""
    if node is None:
        return data
    known = node.variable()
    if known is not None and known.data is data:
        return known
    variable = constant(data, node=node)
    if known is None:
        node.variable = ref(variable)
    return variable


def plain(value: Any) -> Any:
    """The array itself, where a rule needs a value whose derivative is zero or not wanted (masks, signs)."""
    return value.data if isinstance(value, Variable) else value


def stop_gradient(x: Any) -> Any:
    """The plain array of `x`: what is computed from it is a constant to every tape.

    Parameters
    ----------
    x : Variable, or tuple, list or dict, nested as deep as need be
        Anything else in it, or in its place, stays as it is.

    Returns
    -------
    array, or tuple, list or dict
        The same with arrays in place of Variables; these are not copied.

    Examples
    --------
    >>> from autodiff import Variable, grad, stop_gradient
    >>> float(grad(lambda x: x * stop_gradient(x))(3.0))
    3.0
    >>> stop_gradient({"state": [Variable(1.0), 2]})
    {'state': [array(1.), 2]}
    """
    return mapped(plain, x)
