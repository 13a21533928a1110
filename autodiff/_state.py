"""What networks and optimisers do with the arrays that are their state: compare, copy, move."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .functions._common import library


def to_numpy(array: Any) -> Any:
    """The values of a NumPy or CuPy array as a NumPy array."""
    return array if library(array) is np else array.get()


def assign(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Write values, from the host or a device, into arrays, which stay where they are: all of them or
    none.
    """
    ready = [(target, _beside(target, values)) for target, values in pairs]
    for target, _ in ready:
        if isinstance(target, np.ndarray) and not target.flags.writeable:
            raise ValueError(f"an array of shape {target.shape} is read-only: nothing was loaded")
    for target, values in ready:
        target[...] = values


def _beside(target: Any, values: Any) -> Any:
    xp = library(target)
    return to_numpy(values) if xp is np else xp.asarray(values)


def mismatches(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """How the names, shapes and dtypes in `state` differ from `own`: one line each."""
    faults = [f"missing: {name}" for name in own if name not in state]
    faults += [f"unexpected: {name}" for name in state if name not in own]
    for name, value in own.items():
        if name in state and _form(state[name]) != _form(value):
            faults.append(f"{name}: expected {_form(value)}, got {_form(state[name])}")
    return faults


def _form(value: Any) -> str:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {value.dtype}"
