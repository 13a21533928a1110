"""Argument checks. Every message names operator and argument and says what was expected and what came."""

import operator as _operator
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np


def check_shape(
    operator: str, argument: str, array: Any, pattern: str, sizes: Mapping[str, int]
) -> dict[str, int]:
    """Match an array's shape with a pattern of symbols such as ``"N C H W"``.

    Symbols found in `sizes` must agree; the others are bound. Returns `sizes` with the bound symbols added.
    """
    symbols, shape, bound = _split(pattern), array.shape, dict(sizes)
    if len(shape) == len(symbols):
        for symbol, extent in zip(symbols, shape, strict=True):
            if bound.setdefault(symbol, extent) != extent:
                break
        else:
            return bound
    expected = f"({', '.join(symbols)})"
    numbers = f"({', '.join(str(sizes.get(symbol, symbol)) for symbol in symbols)})"
    also = f" = {numbers}" if numbers != expected else ""
    raise ValueError(f"{operator}: {argument} must have shape {expected}{also}, got {tuple(shape)}")


_split = lru_cache(str.split)  # a small call spends more time on its checks than anywhere else


def check_count(caller: str, function: str, names: Sequence[str], arrays: Sequence[Any]) -> None:
    """Require an array, or None, for each of the names."""
    if len(arrays) != len(names):
        raise ValueError(
            f"{caller}: arrays must be those of {function}, ({', '.join(names)}), with None where one is "
            f"left out; got {len(arrays)}"
        )


def check_divides(
    operator: str, argument: str, divisor: str, dividend: str, sizes: Mapping[str, int]
) -> None:
    """Require ``sizes[divisor]``, an extent of `argument`, to be positive and divide ``sizes[dividend]``."""
    small, large = sizes[divisor], sizes[dividend]
    if small < 1 or large % small:
        raise ValueError(
            f"{operator}: {argument} has {divisor} = {small}; "
            f"it must be positive and divide {dividend} = {large}"
        )


def check_int(operator: str, argument: str, value: Any, minimum: int) -> int:
    """An integer of at least `minimum`; NumPy integers pass, floats and booleans do not."""
    number = _as_int(value)
    if number is None:
        raise TypeError(f"{operator}: {argument} must be an int, got {value!r}")
    if number < minimum:
        raise ValueError(f"{operator}: {argument} must be at least {minimum}, got {value!r}")
    return number


def check_pair(operator: str, argument: str, value: Any, minimum: int) -> tuple[int, int]:
    """An int, or a (y, x) pair of ints, each at least `minimum`; always returned as a pair."""
    if type(value) is int and value >= minimum:  # as in nearly all calls
        return value, value
    pair: Sequence[Any] = value if isinstance(value, tuple | list) else (value, value)
    numbers = tuple(_as_int(number) for number in pair)
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise TypeError(f"{operator}: {argument} must be an int or a pair (y, x) of ints, got {value!r}")
    if min(numbers[0], numbers[1]) < minimum:
        raise ValueError(f"{operator}: {argument} must be at least {minimum}, got {value!r}")
    return numbers[0], numbers[1]


def check_choice(operator: str, argument: str, value: Any, choices: Iterable[str]) -> str:
    """One of the given strings."""
    names = tuple(choices)
    if not isinstance(value, str) or value not in names:
        expected = ", ".join(repr(name) for name in names)
        raise ValueError(f"{operator}: {argument} must be one of {expected}, got {value!r}")
    return value


def check_flag(operator: str, argument: str, value: Any) -> bool:
    """A bool, Python's or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{operator}: {argument} must be a bool, got {value!r}")
    return bool(value)


def check_real(operator: str, argument: str, value: Any) -> float:
    """A finite real number; NumPy's pass, booleans do not."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{operator}: {argument} must be a real number, got {value!r}")
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{operator}: {argument} must be finite, got {value!r}")
    return number


def _as_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return _operator.index(value)
    except TypeError:
        return None
