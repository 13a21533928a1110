"""Argument checks of functions and layers, said once for each argument.

`arguments` wraps a public function with one check per argument. A check takes the names of function and
argument and the value, and gives the value as the function wants it, or refuses it: TypeError or ValueError,
with both names. What only shows when arguments meet (shapes that do not broadcast, an axis beyond the last)
NumPy refuses by itself; its message then gets the names too. Checks of operators are in `dynarray._check`.
"""

import functools
import inspect
import math
import reprlib
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from dynarray._check import check_choice, check_flag, check_int, check_pair
from dynarray._dispatch import is_masked, library_of

from ..variable import Variable
from ._common import library, plain

Check = Callable[[str, str, Any], Any]

# No extent, step or axis that memory could hold is larger.
LARGEST = 2**62 - 1
_NUMBERS = (float, int, complex, np.number, np.bool_)
_KINDS = "fbiuc"  # of dtype; complex numbers, so that functions can be differentiated by complex steps
_REFUSED = (TypeError, ValueError, IndexError, OverflowError)


class OutOfRangeError(IndexError, ValueError):
    """An index beyond the end of an array: to Python an IndexError, to callers a value that is refused."""


def arguments(**checks: Check) -> Callable[[Callable], Callable]:
    """Give a function, or the constructor of a layer, a check for each argument named."""

    def decorate(function: Callable) -> Callable:
        parameters = inspect.signature(function).parameters
        names = tuple(parameters)
        method = names[0] == "self"
        positional = tuple(checks.get(name) for name in names)
        late = _converted_defaults(function.__name__, parameters, checks)
        unknown = set(checks) - set(names)
        if unknown:
            raise TypeError(f"arguments: {function.__qualname__} has no argument {unknown.pop()!r}")

        @functools.wraps(function)
        def call(*args: Any, **params: Any) -> Any:
            name = type(args[0]).__name__ if method else call.__name__
            try:
                given = [
                    check(name, own, value) if check else value
                    for value, own, check in zip(args, names, positional)
                ]
                given += args[len(given) :]  # too many: the function says so
                for own in params:
                    if own in checks:
                        params[own] = checks[own](name, own, params[own])
                for own, place, default in late:
                    if own not in params and place >= len(args):
                        params[own] = checks[own](name, own, default)
                return function(*given, **params)
            except _REFUSED as error:
                if str(error).startswith(f"{name}: "):
                    raise
                shown = dict(zip(names, args)) | params
                shown.pop("self", None)
                raise named(error, name, shown) from error

        call.checks = checks  # type: ignore[attr-defined]
        return call

    return decorate


def _converted_defaults(name: str, parameters: Any, checks: dict[str, Check]) -> list[tuple[str, int, Any]]:
    """Arguments whose default is not yet what their check makes of it: name, place, default."""
    late = []
    for place, (own, parameter) in enumerate(parameters.items()):
        default = parameter.default
        if own in checks and default is not inspect.Parameter.empty:
            checked = checks[own](name, own, default)
            if type(checked) is not type(default) or checked != default:
                late.append((own, place, default))
    return late


def elementwise(function: Callable) -> Callable:
    """Checks for a differentiable function of one or two arrays that is called so often that each counts.

    They are left to the call itself, which asks for them only where an argument is no Variable.
    """
    name, names = function.__name__, tuple(inspect.signature(function).parameters)
    numbers = _NUMBERS if len(names) > 1 else ()

    def check(place: int, value: Any) -> Any:
        if type(value) is np.ndarray and value.dtype.kind in _KINDS:  # the most frequent, and soon told
            return value
        return value if isinstance(value, numbers) else array(name, names[place], value)

    def refuse(error: Exception, args: tuple, params: dict) -> None:
        if isinstance(error, _REFUSED) and not str(error).startswith(f"{name}: "):
            raise named(error, name, dict(zip(names, args)) | params) from error

    rules = function.rules  # type: ignore[attr-defined]
    rules.check, rules.refuse = check, refuse
    return function


def named(error: Exception, function: str, values: dict[str, Any]) -> Exception:
    """An error of NumPy or of Python as the same kind of error, with the names of function and arguments."""
    mixed = _mixed(values)
    if mixed:
        return TypeError(f"{function}: {mixed}")
    shown = ", ".join(f"{name} {_described(value)}" for name, value in values.items())
    message = f"{function}: {error}; got {shown or 'no arguments'}"
    for kind in (np.exceptions.AxisError, np.linalg.LinAlgError, TypeError):
        if isinstance(error, kind):
            return kind(message)
    return (OutOfRangeError if isinstance(error, IndexError) else ValueError)(message)


def _mixed(values: dict[str, Any]) -> str | None:
    """What to say of a call with arrays of both NumPy and CuPy, which is nobody's to move; else None."""
    first: dict[str, str] = {}
    for name, value in values.items():
        kind = library_of(plain(value))
        if kind is not None:
            first.setdefault(kind, name)
    if len(first) < 2:
        return None
    return f"{first['cupy']} is a cupy.ndarray but {first['numpy']} is a numpy.ndarray"


def _described(value: Any) -> str:
    if hasattr(value, "dtype") and isinstance(getattr(value, "shape", None), tuple):
        return f"of shape {tuple(value.shape)} and dtype {value.dtype}"
    return reprlib.repr(value)


def array(function: str, argument: str, value: Any) -> Any:
    """A Variable or an array as it is; a number or a list, or what has ``__array__``, as a NumPy array."""
    kind = type(value)
    if kind is Variable:
        return value
    if kind is not np.ndarray and library(value) is np:
        value = _converted(function, argument, value)
    if value.dtype.kind not in _KINDS and not _is_bfloat16(value.dtype):
        raise TypeError(f"{function}: {argument} must be an array of numbers, got dtype {value.dtype}")
    return value


def operand(function: str, argument: str, value: Any) -> Any:
    """As `array`, but numbers stay numbers: Python's leave the dtype to the other operand, on any device."""
    return value if isinstance(value, _NUMBERS) else array(function, argument, value)


def _converted(function: str, argument: str, value: Any) -> Any:
    if is_masked(value):
        raise TypeError(f"{function}: {argument} must not be a masked array; its mask would be lost")
    if value is None or isinstance(value, str | bytes | dict | set):
        raise TypeError(f"{function}: {argument} must be an array, got {value!r}")
    try:
        if isinstance(value, list | tuple):
            from .joining import joined

            return joined(function, argument, value)
        return np.asarray(value)
    except _REFUSED as error:
        raise TypeError(f"{function}: {argument} must be an array, got {_described(value)}") from error


def _is_bfloat16(dtype: Any) -> bool:
    return dtype.name == "bfloat16"


def is_fractional(dtype: Any) -> bool:
    """Whether values of this dtype have fractions: floating-point, bfloat16, complex."""
    return dtype.kind in "fc" or _is_bfloat16(dtype)


def fractional(function: str, argument: str, value: Any) -> Any:
    """As `array`, with integers and booleans as float64: what a function of fractions makes of them."""
    value = array(function, argument, value)
    if is_fractional(value.dtype):
        return value
    from .shapes import astype

    return astype(value, np.float64)


def images(function: str, argument: str, value: Any) -> Any:
    """An array (N, C, H, W)."""
    value = array(function, argument, value)
    if value.ndim != 4:
        raise ValueError(f"{function}: {argument} must have shape (N, C, H, W), got {tuple(value.shape)}")
    return value


def fractional_images(function: str, argument: str, value: Any) -> Any:
    """An array (N, C, H, W), integers as float64."""
    return fractional(function, argument, images(function, argument, value))


def integers(function: str, argument: str, value: Any) -> Any:
    """An array of integers."""
    value = array(function, argument, value)
    if value.size == 0 and value.dtype.kind == "f" and not isinstance(value, Variable):
        return value.astype(np.intp)  # an empty list
    if value.dtype.kind not in "iu":
        raise TypeError(f"{function}: {argument} must be integers, got dtype {value.dtype}")
    return value.data if isinstance(value, Variable) else value


def several(function: str, argument: str, value: Any) -> list[Any]:
    """A list of arrays, each as `array` gives it."""
    if not isinstance(value, list | tuple) and not (hasattr(value, "ndim") and value.ndim > 0):
        raise TypeError(f"{function}: {argument} must be a list of arrays, got {type(value).__name__}")
    if not len(value):
        raise ValueError(f"{function}: {argument} must have at least one array, got none")
    return [array(function, f"{argument}[{i}]", value[i]) for i in range(len(value))]


def optional(check: Check) -> Check:
    """None as it is, anything else as `check` has it."""
    return lambda function, argument, value: None if value is None else check(function, argument, value)


def integer(least: int = -LARGEST) -> Check:
    """An int of at least `least`, and not so large that NumPy could not take it."""

    def check(function: str, argument: str, value: Any) -> int:
        return _bounded(function, argument, check_int(function, argument, value, least))

    return check


def pair(least: int = 0) -> Check:
    """An int, or a pair (y, x) of ints, of at least `least`, as a pair."""

    def check(function: str, argument: str, value: Any) -> tuple[int, int]:
        y, x = check_pair(function, argument, value, least)
        return _bounded(function, argument, y), _bounded(function, argument, x)

    return check


def _bounded(function: str, argument: str, number: int) -> int:
    if abs(number) > LARGEST:
        raise ValueError(f"{function}: {argument} must be at most {LARGEST} in size, got {number}")
    return number


def each_integer(function: str, argument: str, value: Any, least: int = -LARGEST) -> tuple[int, ...]:
    """An int, or a sequence of ints, as a tuple."""
    if type(value) is tuple and _plain_integers(value) and (not value or min(value) >= least):
        return value  # as in nearly all calls
    if isinstance(value, np.ndarray):
        value = value.tolist()
    numbers = value if isinstance(value, list | tuple) else (value,)
    check = integer(least)
    return tuple(check(function, argument, number) for number in numbers)


def _plain_integers(values: tuple) -> bool:
    """Whether all of them are Python's ints, and not large."""
    # No generator, which costs small arrays as much as the function that is called.
    known = set(map(type, values)) <= {int}
    return known and (not values or -LARGEST <= min(values) <= max(values) <= LARGEST)


def axes(function: str, argument: str, value: Any) -> Any:
    """None, an axis, or a tuple of axes; whether the array has them shows later."""
    if value is None or _plain_integers((value,)):
        return value
    numbers = each_integer(function, argument, value)
    return numbers if isinstance(value, list | tuple | np.ndarray) else numbers[0]


def shape(function: str, argument: str, value: Any) -> tuple[int, ...]:
    """An int, or a sequence of them, as a shape; -1 stands for what is left."""
    extents = each_integer(function, argument, value, -1)
    if math.prod(abs(extent) for extent in extents if extent) > LARGEST:
        raise ValueError(f"{function}: {argument} must not have more than {LARGEST} elements, got {value!r}")
    return extents


def flag(function: str, argument: str, value: Any) -> bool:
    """A bool."""
    if value is True or value is False:
        return value
    return check_flag(function, argument, value)


def choice(*names: str) -> Check:
    """One of some words."""
    return lambda function, argument, value: check_choice(function, argument, value, names)


def number(
    least: float = -math.inf, *, above: float = -math.inf, most: float = math.inf, below: float = math.inf
) -> Check:
    """A finite number of at least `least`, more than `above`, at most `most`, and less than `below`."""
    limits = {"at least": least, "more than": above, "at most": most, "less than": below}
    words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
    expected = {"more than 0": "positive and finite", "": "finite"}.get(words, words)

    def check(function: str, argument: str, value: Any) -> float:
        if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
            value = value[()]
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
            raise TypeError(f"{function}: {argument} must be a number, got {value!r}")
        try:
            size = float(value)
        except OverflowError:
            size = math.inf
        if not (abs(size) < math.inf and least <= size <= most and above < size < below):
            raise ValueError(f"{function}: {argument} must be {expected}, got {value!r}")
        return value  # type: ignore[return-value]

    return check


def dtype(function: str, argument: str, value: Any) -> np.dtype:
    """What NumPy takes for a dtype of numbers."""
    found = np.dtype(value) if value is not None else None
    if found is None or (found.kind not in _KINDS and not _is_bfloat16(found)):
        raise TypeError(f"{function}: {argument} must be a dtype of numbers, got {value!r}")
    return found


def floating(function: str, argument: str, value: Any) -> np.dtype:
    """What NumPy takes for a real floating-point dtype: that of parameters."""
    found = dtype(function, argument, value)
    if found.kind != "f" and not _is_bfloat16(found):
        raise TypeError(f"{function}: {argument} must be real floating-point, got {value!r}")
    return found


def generator(function: str, argument: str, value: Any) -> np.random.Generator:
    """A Generator as it is; a seed, or None for a fresh one, as a new Generator."""
    if isinstance(value, bool):
        raise TypeError(f"{function}: {argument} must be a Generator or a seed, got {value!r}")
    return np.random.default_rng(value)


def as_parameters(function: str, x: Any, *, argument: str = "x", **parameters: Any) -> list[Any]:
    """x, an `argument` of `function`, and its parameters, in one dtype: that of the parameters, which decide.

    Integers and booleans are converted. Another floating-point dtype is an error: it would silently make
    every layer behind this one compute in it.
    """
    from .shapes import astype

    given = {**parameters, argument: x}
    if is_fractional(x.dtype) and {v.dtype for v in given.values() if v is not None} == {x.dtype}:
        return [x, *parameters.values()]  # as in nearly all calls
    fractions = {n: v.dtype for n, v in given.items() if v is not None and is_fractional(v.dtype)}
    if fractions:
        name, first = next(iter(fractions.items()))
        for other in (argument, *fractions):
            if fractions.get(other, first) != first:
                raise TypeError(f"{function}: {other} has dtype {fractions[other]} but {name} has {first}")
        for other, value in given.items():
            if value is not None and other not in fractions:
                given[other] = astype(value, first)
    return [given[argument], *(given[name] for name in parameters)]


def layer_input(layer: Any, argument: str, x: Any, weight: Any) -> Any:
    """Images (N, C, H, W) as a layer takes them: in the dtype of its parameters, of which `weight` is one."""
    name = type(layer).__name__
    return as_parameters(name, images(name, argument, x), argument=argument, weight=weight)[0]
