"""What networks and optimisers do with the arrays that are their state: compare, copy, move."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .functions._common import library


def to_numpy(array: Any) -> Any:
    """The values of a NumPy or CuPy array as a NumPy array."""
    return array if library(array) is np else array.get()


def assign(target: Any, values: Any) -> None:
    """Write `values`, from the host or a device, into the array `target`, which stays where it is."""
    xp = library(target)
    target[...] = to_numpy(values) if xp is np else xp.asarray(values)


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
