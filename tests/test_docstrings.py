"""Docstrings say of every public callable what goes in, what comes out, and what is refused."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate
from test_docstring_examples import CALLABLES

import dynarray as dyn

# The engine of the tape has a bound of 950 lines, docstrings among them: there a sentence says it.
IN_PROSE = {
    f"autodiff.{name}" for name in ("grad", "value_and_grad", "vjp", "jvp", "hvp", "jacobian", "hessian")
}
# numpydoc's names: no docstring; a parameter that is missing, unknown, out of order or without a description;
# a result that is missing or without a description. Its other checks are of style, which ruff looks after.
CODES = {"GL08", "PR01", "PR02", "PR03", "PR07", "RT01", "RT03"}


def gives_a_result(value: Any) -> bool:
    """Whether its signature says so: of a declaration numpydoc finds no `return` to go by."""
    if inspect.isclass(value) or inspect.isgeneratorfunction(inspect.unwrap(value)):
        return False
    return inspect.signature(value).return_annotation not in (None, "None", inspect.Signature.empty)


def faults(value: Any) -> set[str]:
    """What numpydoc's validation finds, as its code and in words."""
    doc = get_doc_object(value)
    found = {f"{code}: {text}" for code, text in validate(doc)["errors"] if code in CODES}
    if gives_a_result(value) and not doc["Returns"] and not doc["Yields"]:
        found.add("RT01: No Returns section found")
    return found


def body(value: Any) -> ast.AST | None:
    """The source of a function, or of what makes an object of a class; None if that is not written down."""
    made: Any = inspect.unwrap(value.__init__ if inspect.isclass(value) else value)
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(made)))
    except (OSError, TypeError):  # of a dataclass, or a class that has nothing to make
        return None


def refuses(value: Any) -> bool:
    """Whether its own lines raise an error, or call a check by that name, which does."""
    tree = body(value)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            if called.startswith(("check_", "_check")):
                return True
    return False


def arrays_without_shape(value: Any, section: str = "Parameters") -> Iterator[str]:
    """Parameters or results that are arrays, of which neither the type nor the text tells a shape."""
    for name, kind, text in get_doc_object(value)[section]:
        told = f"{kind} {' '.join(text)}"
        if re.search(r"\barrays?\b", kind) and not re.search(r"\(|\bshapes?\b|\b0-d\b", told):
            yield name or kind


@pytest.mark.parametrize("name", sorted(CALLABLES.keys() - IN_PROSE))
def test_parameters_and_results_are_all_described(name: str) -> None:
    assert not faults(CALLABLES[name])


@pytest.mark.parametrize("name", sorted(IN_PROSE))
def test_what_is_said_in_prose_names_each_parameter(name: str) -> None:
    words = set(re.findall(r"\w+", inspect.getdoc(CALLABLES[name]) or ""))
    assert words >= set(inspect.signature(CALLABLES[name]).parameters)


@pytest.mark.parametrize("name", sorted(name for name, value in CALLABLES.items() if refuses(value)))
def test_what_raises_says_so(name: str) -> None:
    assert get_doc_object(CALLABLES[name])["Raises"]


@pytest.mark.parametrize("name", sorted(name for name in CALLABLES if name.startswith("dynarray.")))
def test_arrays_have_shapes(name: str) -> None:
    assert not list(arrays_without_shape(CALLABLES[name]))


@pytest.mark.parametrize("name", sorted(dyn.OPERATORS))
def test_operators_tell_errors_and_dtypes(name: str) -> None:
    doc = get_doc_object(dyn.OPERATORS[name].function)
    assert doc["Raises"]
    first = " ".join(doc["Parameters"][0].desc)
    assert "float32 or float64" in first or re.search(r"\b[Dd]types .*as in `\w+`", first)


def described(x: np.ndarray, *, size: int) -> np.ndarray:
    """Take so many.

    Parameters
    ----------
    x : array, (N,)
        The numbers.
    size : int
        How many.

    Returns
    -------
    array, (size,)
        The first of them.

    Raises
    ------
    ValueError
        If there are not so many.
    """
    if size > len(x):
        raise ValueError(f"size must be at most {len(x)}, got {size}")
    return x[:size]


def changed(old: str, new: str) -> Callable[..., Any]:
    """The function above with another docstring."""
    text = inspect.getdoc(described) or ""
    assert old in text

    def other(x: np.ndarray, *, size: int) -> np.ndarray:
        return x[:size]

    other.__doc__ = text.replace(old, new)
    return other


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("size : int\n    How many.\n", "", "PR01"),
        ("size : int", "count : int", "PR02"),
        ("x : array, (N,)\n    The numbers.\nsize : int\n", "size : int\n    How many.\nx : array\n", "PR03"),
        ("    How many.\n", "", "PR07"),
        ("Returns\n-------\narray, (size,)\n    The first of them.\n", "", "RT01"),
        ("    The first of them.\n", "", "RT03"),
    ],
)
def test_what_is_missing_is_seen(old: str, new: str, code: str) -> None:
    assert not faults(changed("", ""))
    assert code in {fault.partition(":")[0] for fault in faults(changed(old, new))}


def test_a_declaration_without_returns_is_seen() -> None:
    def declared() -> int:  # type: ignore[empty-body]
        """Give one."""

    assert faults(declared) == {"RT01: No Returns section found"}


def test_errors_and_arrays_without_shape_are_seen() -> None:
    assert refuses(described)
    assert not refuses(changed("", ""))
    assert list(arrays_without_shape(described)) == []
    assert list(arrays_without_shape(changed("array, (N,)", "array"))) == ["x"]
