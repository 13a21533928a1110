"""What public classes offer is held to the rules of functions; of properties a sentence is enough."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpydoc.docscrape import get_doc_object
from test_docstring_examples import CALLABLES, reference
from test_docstrings import arrays_without_shape, faults, refuses

from autodiff import Variable

OURS = ("rawkernels", "dynarray", "autodiff")


def classes() -> set[type]:
    """Every public one, also those of results, errors and protocols, and what they inherit from."""
    site = reference()
    modules = [importlib.import_module(name) for name in site.MODULES]
    public = [getattr(module, name) for module in modules for name in site.public_names(module)]
    every = {base for value in public if inspect.isclass(value) for base in value.__mro__}
    return {each for each in every if each.__module__.split(".")[0] in OURS}


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """What a class itself offers to be called or read: its own functions, and properties."""
    for name, value in vars(owner).items():
        made = getattr(value, "__func__", value)  # of static methods and those of classes
        if name[0] != "_" and (inspect.isfunction(made) or isinstance(made, property)):
            yield name, made


MEMBERS = {
    f"{owner.__module__}.{owner.__qualname__}.{name}": (owner, name, value)
    for owner in classes()
    for name, value in members(owner)
}
PROPERTIES = {name for name, (_, _, value) in MEMBERS.items() if isinstance(value, property)}
# Public functions that a class only names, as layers without parameters do, have rules of their own.
BORROWED = {name for name, (_, _, value) in MEMBERS.items() if any(value is f for f in CALLABLES.values())}
# Methods of Variables that are functions say so, and are not described again.
FORWARDED = {
    name for name, (_, _, value) in MEMBERS.items() if "of this Variable" in (inspect.getdoc(value) or "")
}
METHODS = MEMBERS.keys() - PROPERTIES - BORROWED - FORWARDED
# Of what lies in files that are at their bounds, of the engine of the tape or of a file, a sentence says it.
OPERATOR = "dynarray._operator.Operator."
IN_PROSE = {name for name in METHODS if name.startswith(OPERATOR)} - {f"{OPERATOR}halo"}
IN_PROSE |= {"autodiff.tape.Tape.gradient"}
# How a property that is an array may tell what it is.
TOLD = {"shape": r"\(|\bshape\b|\b0-d\b", "dtype": r"\bdtype\b|\b(?:u?int|float|bool)\d*\b"}


def taken(value: Any) -> list[tuple[str, Any]]:
    """The parameters of a method: names and kinds."""
    made = getattr(value, "__func__", value)
    return [(each.name, each.kind) for each in inspect.signature(made).parameters.values()]


def is_described_above(owner: type, name: str) -> bool:
    """Whether it overrides a method with the same parameters, which describes them and the result."""
    for base in owner.__mro__[1:]:
        if name in vars(base):
            return taken(vars(base)[name]) == taken(vars(owner)[name])
    return False


def method_faults(owner: type, name: str, value: Any) -> set[str]:
    """What is missing in the docstring of a method, its own or that of what it overrides."""
    found = set() if inspect.getdoc(value) and is_described_above(owner, name) else faults(value)
    if refuses(value) and not get_doc_object(value)["Raises"]:
        found.add("what it raises")
    sections = ("Parameters", "Returns")
    shapeless = [each for section in sections for each in arrays_without_shape(value, section)]
    return found | {f"shape of {each}" for each in shapeless}


def prose_faults(value: Any) -> set[str]:
    """What is missing where sentences describe a method."""
    text = inspect.getdoc(value) or ""
    found = {name for name, _ in taken(value)} - {"self", "cls"} - set(re.findall(r"\w+", text))
    return found | ({"what it raises"} if refuses(value) and not re.search(r"\w+Error\b", text) else set())


def is_of_arrays(owner: type, name: str, value: property) -> bool:
    """Whether a property is an array: by its annotation, or by trial of a Variable, where there is none."""
    told = inspect.signature(value.fget).return_annotation if value.fget else Any
    if told in (inspect.Signature.empty, Any) and owner in Variable.__mro__:
        return isinstance(getattr(Variable([1.0]), name), np.ndarray | Variable)
    return "array" in str(told).lower()


def property_faults(owner: type, name: str, value: property) -> set[str]:
    """What is missing in the docstring of a property."""
    text = inspect.getdoc(value) or ""
    found = set() if text else {"GL08: no docstring"}
    if get_doc_object(value)["Parameters"]:
        found.add("a property that takes parameters")
    if is_of_arrays(owner, name, value):
        found |= {word for word, pattern in TOLD.items() if not re.search(pattern, text)}
    return found


@pytest.mark.parametrize("name", sorted(METHODS - IN_PROSE))
def test_methods_say_what_they_take_give_and_refuse(name: str) -> None:
    assert not method_faults(*MEMBERS[name])


@pytest.mark.parametrize("name", sorted(IN_PROSE))
def test_what_is_said_in_prose_names_parameters_and_errors(name: str) -> None:
    assert not prose_faults(MEMBERS[name][2])


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_properties_say_what_they_are(name: str) -> None:
    assert not property_faults(*MEMBERS[name])


@pytest.mark.parametrize("name", sorted(FORWARDED))
def test_methods_of_variables_name_their_function(name: str) -> None:
    (named,) = re.findall(r"^`([\w.]+)` of this Variable", inspect.getdoc(MEMBERS[name][2]) or "")
    assert named in CALLABLES


def test_all_that_is_public_is_found() -> None:
    assert len(METHODS) > 110
    assert len(PROPERTIES) > 15
    assert len(FORWARDED) > 15
    assert METHODS >= IN_PROSE


class Base:
    def take(self, x: np.ndarray, size: int) -> np.ndarray:
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
        """
        return x[:size]

    @property
    def bare(self) -> np.ndarray:
        """All of it."""
        return np.zeros(1)

    @property
    def told(self) -> np.ndarray:
        """All of it, (1,), in float64."""
        return np.zeros(1)

    @property
    def count(self) -> int:
        """How many."""
        return 1


class Same(Base):
    def take(self, x: np.ndarray, size: int) -> np.ndarray:
        """Take the last ones."""
        return x[-size:]


class Refusing(Base):
    def take(self, x: np.ndarray, size: int) -> np.ndarray:
        """Take the last ones."""
        raise ValueError(f"Refusing: none of {len(x)}, got {size}")


class Silent(Base):
    def take(self, x: np.ndarray, size: int) -> np.ndarray:
        return x[-size:]


class Other(Base):
    def take(self, x: np.ndarray, count: int) -> np.ndarray:  # type: ignore[override]
        """Take the last ones."""
        return x[-count:]


def codes(found: set[str]) -> set[str]:
    return {fault.partition(":")[0] for fault in found}


@pytest.mark.parametrize(
    ("owner", "missing"),
    [
        (Base, set()),
        (Same, set()),
        (Silent, set()),
        (Refusing, {"what it raises"}),
        (Other, {"PR01", "RT01"}),
    ],
)
def test_what_is_missing_in_a_method_is_seen(owner: type, missing: set[str]) -> None:
    assert codes(method_faults(owner, "take", vars(owner)["take"])) == missing


def test_a_method_without_docstring_or_shape_is_seen() -> None:
    def shapeless(x: np.ndarray) -> np.ndarray:
        """Take all.

        Parameters
        ----------
        x : array
            The numbers.

        Returns
        -------
        array
            All of them.
        """
        return x

    def silent(x: np.ndarray) -> np.ndarray:
        return x

    assert codes(method_faults(object, "silent", silent)) >= {"GL08"}
    assert method_faults(object, "shapeless", shapeless) == {"shape of x", "shape of array"}


def test_what_is_missing_in_prose_is_seen() -> None:
    def said(x: np.ndarray, size: int) -> np.ndarray:
        """Take `x`, and no more than `size`; a ValueError if there are not so many."""
        raise ValueError(f"said: size {size} of {len(x)}")

    def unsaid(x: np.ndarray, size: int) -> np.ndarray:
        """Take `x`."""
        raise ValueError(f"unsaid: size {size} of {len(x)}")

    assert not prose_faults(said)
    assert prose_faults(unsaid) == {"size", "what it raises"}


@pytest.mark.parametrize(
    ("name", "missing"), [("bare", {"shape", "dtype"}), ("told", set()), ("count", set())]
)
def test_what_is_missing_in_a_property_is_seen(name: str, missing: set[str]) -> None:
    assert property_faults(Base, name, vars(Base)[name]) == missing
