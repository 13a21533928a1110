"""Variable: an array whose uses tapes record."""

from collections.abc import Mapping
from typing import Any
from weakref import ref

import numpy as np

from ._graph import Leaf, recording

_new = object.__new__


class Variable:
    """An array whose uses tapes record.

    Parameters
    ----------
    data : array
        A floating-point NumPy or CuPy array (a Python float or list becomes a NumPy array). It is not copied.
    name : str, optional
        Shown by ``repr`` and in messages.

    Notes
    -----
    Functions of Variables give Variables, whether or not a tape is active. `data` is the plain array: the way
    out, and what is done through it is not followed. Assigning to ``data`` (as optimisers do) keeps the
    identity of the Variable. A copy, by whatever way, is another Variable, which nothing leads to.

    While a tape records, ``float(v)``, ``int(v)``, ``math.exp(v)`` and ``array[i] = v`` are errors, since it
    would lose the value. ``v.item()``, formatting, printing, comparisons and ``bool(v)`` only read, and
    always work.
    """

    __slots__ = ("__weakref__", "data", "name", "node")

    def __init__(self, data: Any, name: str | None = None) -> None:
        if isinstance(data, Variable):
            raise TypeError("Variable: data must be an array, got a Variable")
        if not hasattr(data, "dtype") or isinstance(data, np.generic):
            data = np.asarray(data)
        if data.dtype.kind not in "fV":  # V: bfloat16, which NumPy knows only as an extension type
            raise TypeError(
                f"Variable: data must be real floating-point, got dtype {data.dtype}; use .astype"
            )
        self.data, self.name = data, name
        self.node: Any = Leaf(self)

    def __init_subclass__(cls) -> None:
        raise TypeError(f"{cls.__name__}: a Variable cannot be subclassed; let an object have one")

    value = property(lambda self: self.data, doc="The plain array: another name for `data`.")
    shape = property(lambda self: self.data.shape, doc="The shape of the array.")
    dtype = property(lambda self: self.data.dtype, doc="The dtype of the array.")
    ndim = property(lambda self: self.data.ndim, doc="The number of axes.")
    size = property(lambda self: self.data.size, doc="The number of elements.")
    key = property(lambda self: self.node.number, doc="A number that no other Variable of this process has.")

    def __reduce__(self) -> tuple:
        if recording() and self.node.reads is not None:
            raise TypeError(
                "Variable: a result cannot be copied while a tape records, for the copy would not know "
                "where it is from; copy stop_gradient(x), or copy outside"
            )
        return constant, (self.data, self.name)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "a Variable is not an array: take .data, or call the function of autodiff of that name"
        )

    def __len__(self) -> int:
        return len(self.data)

    def item(self) -> float:
        """The number that an array of one element holds, for reading: a tape does not follow it."""
        return self.data.item()

    def __float__(self) -> float:
        return self._number(float)

    def __int__(self) -> int:
        return self._number(int)

    def _number(self, kind: type) -> Any:
        if recording():
            raise TypeError(
                f"{kind.__name__}() of a Variable while a tape records, which would lose it: stay with "
                "functions of autodiff (F.stack instead of storing into an array); .item() reads the number"
            )
        return kind(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __format__(self, form: str) -> str:
        return format(self.data.item() if self.data.size == 1 else self.data, form) if form else str(self)

    def __str__(self) -> str:
        return repr(self) if self.data.ndim else str(self.data)

    def __repr__(self) -> str:
        label = f"{self.name!r}, " if self.name else ""
        return f"Variable({label}shape {self.shape}, {self.dtype})"


def constant(data: Any, name: str | None = None) -> Variable:
    """A Variable that depends on nothing, without the checks of the constructor."""
    variable = _new(Variable)
    variable.data, variable.name = np.asarray(data) if isinstance(data, np.generic) else data, name
    variable.node = Leaf(variable)
    return variable


def real(value: Any, what: str) -> Any:
    """`value` as an array of real numbers, where NumPy takes it for one."""
    array = value
    if not hasattr(value, "dtype"):
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):  # such as a tuple of Variables
            array = np.empty(0, object)
    if array.dtype.kind not in "biufV":
        kind = type(value).__name__ + (f" of {array.dtype}" if array is value else "")
        raise TypeError(f"{what} must be an array of real numbers, got {kind}")
    return array


def linked(data: Any, node: Any) -> Any:
    """The array as the Variable that it was, of which the node is left."""
    if node is None:
        return data
    variable = node.variable()
    if variable is None or variable.data is not data:
        known, variable = variable, _new(Variable)
        variable.data, variable.name, variable.node = data, None, node
        node.variable = node.variable if known is not None else ref(variable)
    return variable


def stop_gradient(x: Any) -> Any:
    """The plain array of `x`: what is computed from it is a constant to every tape.

    Parameters
    ----------
    x : Variable, array, or tuple, list or dict of them
        Of tuples, lists and dicts, at any depth, one of the same kind is made. Anything else is returned as
        it is.

    Examples
    --------
    >>> from autodiff import Variable, grad, stop_gradient
    >>> float(grad(lambda x: x * stop_gradient(x))(3.0))
    3.0
    >>> stop_gradient({"state": [Variable(1.0), 2]})
    {'state': [array(1.), 2]}
    """
    if isinstance(x, Variable):
        return x.data
    if isinstance(x, Mapping):
        return {key: stop_gradient(value) for key, value in x.items()}
    if isinstance(x, list):
        return [stop_gradient(value) for value in x]
    if isinstance(x, tuple):
        values = [stop_gradient(value) for value in x]
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    return x
