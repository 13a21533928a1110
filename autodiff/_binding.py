"""How a call becomes arrays and parameters, and that nobody can change these later unseen."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ._reading import Readable

# What nobody can change.
FIXED = frozenset((type(None), bool, int, float, complex, str, type, np.dtype))


def mapped(f: Callable, value: Any) -> Any:
    """`f` of what is in lists, tuples and dicts, which are copied; it need not be asked about numbers."""
    if isinstance(value, Mapping):
        return {key: mapped(f, v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        values = list(value) if FIXED.issuperset(map(type, value)) else [mapped(f, v) for v in value]
        return values if isinstance(value, list) else getattr(type(value), "_make", tuple)(values)
    return f(value)


def binder(
    name: str, arrays: tuple[str, ...], signature: inspect.Signature, variadic: bool, reserved: Iterable[str]
) -> Callable:
    """What separates `arrays`, which the tape follows, from parameters, whichever way each was passed.

    They are attributes of a step, of which `reserved` are others.
    """
    known = signature.parameters.values()
    if wrong := signature.parameters.keys() & {*reserved, *(() if variadic else ("output",))}:
        raise TypeError(f"{name}: an argument must not be called {wrong.pop()!r}, as in a Step")
    positional = tuple(p.name for p in known if p.kind <= p.POSITIONAL_OR_KEYWORD)
    names = {p.name for p in known if p.kind is not p.VAR_POSITIONAL}
    defaults = {p.name: p.default for p in known if p.default is not p.empty}
    most = math.inf if variadic else len(positional)
    if not variadic and [p.name for p in known if p.name in arrays] != list(arrays):
        in_order = "arrays are named as in its signature, in the same order"
        raise TypeError(f"{name}: {in_order}: {' '.join(arrays)}")
    if not variadic and any(p.kind is p.VAR_KEYWORD for p in known):
        raise TypeError(f"{name}: parameters have names of their own, not those of a caller (**)")

    def bind(args: tuple, params: dict) -> tuple[tuple, dict]:
        given = {**defaults, **dict(zip(positional, args)), **params}
        if given.keys() != names or len(args) > most or not params.keys().isdisjoint(positional[: len(args)]):
            bound = signature.bind(*args, **params)  # slow; it says what is wrong
            bound.apply_defaults()
            given = bound.arguments
        if not variadic:
            args = tuple([given.pop(name) for name in arrays])
        for key, value in given.items():
            if type(value) not in FIXED:
                given[key] = mapped(partial(_constant, f"{name}: {key}"), value)
        return args, given

    return bind


def _constant(what: str, value: Any) -> Any:
    if isinstance(value, Readable):  # it would be lost to the tape
        raise TypeError(f"{what} must not be a Variable: it has no gradient; a constant is stop_gradient(x)")
    return value


def array(name: str, place: int, arg: Any) -> Any:
    """An array that is none yet: a list, which may change later, or what else NumPy would take."""
    if type(arg) in FIXED or not isinstance(arg, list | tuple | range | memoryview | bytearray):
        return arg
    if any(isinstance(item, Readable) for item in arg):
        raise TypeError(f"{name}: a list of Variables is no array; F.stack makes one of it")
    return np.array(arg)


def real(value: Any, what: str, like: Any = None, whose: str = "") -> Any:
    """`value` as an array of real numbers, where NumPy takes it for one, of the shape of `like` if given."""
    try:
        array = value if hasattr(value, "dtype") else np.asarray(value)
    except (TypeError, ValueError):  # such as a tuple of Variables
        array = np.empty(0, object)
    if array.dtype.kind not in "biufV":
        kind = type(value).__name__ + (f" of {array.dtype}" if array is value else "")
        raise TypeError(f"{what} must be an array of real numbers, got {kind}")
    if like is not None and tuple(array.shape) != like.shape:
        raise ValueError(f"{what} must have the shape of {whose}, {like.shape}, got {tuple(array.shape)}")
    return array


def each(argnums: Any) -> Any:
    """One place, or several, as several."""
    return argnums if isinstance(argnums, tuple | list) else [argnums]


def places(name: str, argnums: Any, count: int) -> list[int]:
    """The places `argnums`, an int or a tuple of them, among `count` positional arguments."""
    try:
        return [range(count)[place] for place in each(argnums)]
    except IndexError:
        wrong = f"is {argnums!r}, but the function got {count} positional arguments"
    except TypeError:
        wrong = f"must be an int or a tuple of int, got {argnums!r}"
    raise TypeError(f"{name}: argnums {wrong}")


def arrays_in(value: Any) -> list:
    """The arrays in a parameter: indices, masks, bounds."""
    found: list = []
    mapped(found.append, value)
    return [v for v in found if hasattr(v, "strides") and not isinstance(v, np.generic | type)]
