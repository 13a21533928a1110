"""The public backward pass of an operator, from a declaration of its signature."""

import inspect
from collections.abc import Callable
from functools import wraps
from textwrap import dedent
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from ._operator import Operator

F = TypeVar("F", bound=Callable[..., Any])


def backward_of(operator: "Operator", gradients: Callable[..., tuple[Any, ...]]) -> Callable[[F], F]:
    """Make a declaration the public ``<name>_backward`` of an operator; `gradients` is its type of tuple.

    What is declared is a signature, for callers and type checkers: that of the operator after `grad_output`,
    and `needs`. The docstring has the first line and the examples; what is between them is the same for all.
    """

    def decorate(declared: F) -> F:
        # Read off the function: `inspect.signature` of all of them would be much of the package's import.
        function: Any = declared
        code, last = function.__code__, function.__defaults__ or ()
        defaults, count = dict(function.__kwdefaults__ or {}), code.co_argcount
        positional, names = code.co_varnames[:count], set(code.co_varnames[: count + code.co_kwonlyargcount])
        defaults |= zip(positional[count - len(last) :], last)

        def refuse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
            signature = inspect.signature(declared)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{declared.__name__}: {error}") from None
            raise AssertionError(f"{declared.__name__}{signature} takes such arguments")

        @wraps(declared)
        def backward(*args: Any, **kwargs: Any) -> Any:
            given = {**defaults, **dict(zip(positional, args)), **kwargs}
            twice = not kwargs.keys().isdisjoint(positional[: len(args)])
            if twice or len(args) > len(positional) or given.keys() != names:
                refuse(args, kwargs)
            arrays = tuple([given[name] for name in operator.arrays])
            wants = _wanted(operator, given["needs"])
            params = {name: given[name] for name in operator.defaults}
            return gradients(*operator.backward_pass(given["grad_output"], arrays, params, wants))

        first, _, examples = (declared.__doc__ or "").partition("\n\n")
        others = [name for name in code.co_varnames[1 : len(names)] if name in operator.defaults]
        between = _BACKWARD_DOC.format(
            name=operator.name,
            arrays=", ".join(operator.arrays),
            others=_OTHERS_DOC.format(names=", ".join(others), name=operator.name) if others else "",
            title=getattr(gradients, "__name__", ""),
        )
        backward.__doc__ = f"{first}\n\n{between}\n{dedent(examples)}".rstrip()
        return cast(F, backward)

    return decorate


def _wanted(operator: "Operator", needs: Any) -> tuple[bool, ...]:
    """The gradients that are wanted, one bool for each array."""
    if needs is None:
        return (True,) * len(operator.arrays)
    wants = needs if isinstance(needs, tuple | list) else ()
    if len(wants) != len(operator.arrays) or not all(isinstance(want, bool | np.bool_) for want in wants):
        raise ValueError(
            f"{operator.name}: needs must hold one bool for each of {', '.join(operator.arrays)}, "
            f"got {needs!r}"
        )
    return tuple(wants)


_BACKWARD_DOC = """\
Parameters
----------
grad_output : array
    Gradient of a scalar with respect to the output of `{name}`; its shape and dtype.
{arrays} : array
    As in `{name}`, with the shapes and dtypes told there.
{others}needs : tuple of bool, optional
    For each of ({arrays}), whether its gradient is wanted; all of them by default.

Returns
-------
{title}
    Named tuple ({arrays}). A gradient has the shape and dtype of its array, and is
    None where it is not needed or the array was not given.

Raises
------
TypeError, ValueError
    As `{name}`, and for a `grad_output` that does not match the output.
"""

_OTHERS_DOC = """\
{names}
    As in `{name}`.
"""
