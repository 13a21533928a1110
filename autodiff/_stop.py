"""Values that are constants to every tape."""

from collections.abc import Mapping
from typing import Any

from .variable import Variable


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
