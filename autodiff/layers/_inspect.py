"""What a module holds: as a tree, and where parameters are that it does not look for."""

import functools
from collections.abc import Collection, Iterator, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from .._graph import nearest
from ..variable import Variable

if TYPE_CHECKING:
    from .module import Module


def flattened(name: str, value: Any, above: tuple = ()) -> Iterator[tuple[str, Any]]:
    """The entries of lists, tuples and dicts at any depth, with their names; anything else as it is."""
    if not isinstance(value, list | tuple | Mapping):
        yield name, value
        return
    if any(value is container for container in above):
        raise ValueError(f"Module: {name} is a list or dict that contains itself")
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in entries:
        yield from flattened(f"{name}.{key}", item, (*above, value))


def is_parameter(value: Any) -> bool:
    """A result is none, unless what it was computed from is gone, as for ``Variable(array) * 0.1``."""
    if not isinstance(value, Variable):
        return False
    return value.node.saved is None and not nearest(value.node.inputs)


def is_array(value: Any) -> bool:
    """NumPy's scalars have dtype and strides too, but cannot be written to."""
    return hasattr(value, "dtype") and hasattr(value, "strides") and not isinstance(value, np.generic)


def ignored(module: "Module") -> dict[str, str]:
    """By name, what a module holds that is neither parameter nor part nor buffer of it, and looks as if it
    should be.
    """
    found = {}
    for name, value in module._members():
        if is_array(value) and name not in vars(module):
            found[name] = "an array in a list or dict is no buffer"
        elif isinstance(value, Variable) and not is_parameter(value):
            found[name] = "the result of a function is no parameter; Variable(x.data) is one"
        elif what := _inside(value):
            found[name] = f"a {type(value).__name__} is not searched, and it holds a {what}"
    for kind in type(module).__mro__:
        for name, value in vars(kind).items():
            if _kind(value):
                found[name] = f"a {_kind(value)} of the class {kind.__name__} belongs to all of its objects"
    return found


def _kind(value: Any) -> str:
    from .module import Module

    return "Variable" if isinstance(value, Variable) else "Module" if isinstance(value, Module) else ""


def _inside(value: Any) -> str:
    """Which of the two is in a set, an object, or what a function refers to."""
    if _kind(value) or isinstance(value, type | str | bytes | range) or is_array(value):
        return ""
    parts: Collection = ()
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        parts = [value.__self__]
    elif isinstance(value, FunctionType):
        parts = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    elif isinstance(value, Collection):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    items = [item for part in parts for _, item in flattened("", part)]
    return next(filter(None, map(_kind, items)), "")


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def tree(module: "Module", name: str = "", indent: str = "") -> str:
    """A line for each module: its kind, how many values are trained, parameters and buffers with their
    shapes.
    """
    children = module.children()
    own = {n: v for n, v in module._members() if is_parameter(v)}
    buffers = {n: v for n, v in vars(module).items() if is_array(v)}
    line = f"{indent}{name}: {module._label()}" if name else f"{indent}{module._label()}"
    if module.num_parameters:
        line += f", {module.num_parameters:,} parameters"
    if own:
        line += ": " + ", ".join(f"{n} {tuple(v.shape)}" for n, v in own.items())
    if buffers:
        line += "; buffers " + ", ".join(f"{n} {tuple(v.shape)}" for n, v in buffers.items())
    lines = [line, *(tree(child, n, indent + "  ") for n, child in children.items())]
    lines += [f"{indent}  not part of it: {n} ({reason})" for n, reason in ignored(module).items()]
    return "\n".join(lines)
