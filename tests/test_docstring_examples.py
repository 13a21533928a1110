"""Every public callable shows how it is used, by lines that run as they stand; there are no others."""

import doctest
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import autodiff
import dynarray
import rawkernels

ROOT = Path(__file__).resolve().parent.parent

MODULES = sorted(
    module.name
    for package in (rawkernels, dynarray, autodiff)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith("__main__")
)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def reference() -> ModuleType:
    """What writes the API reference, and so says what is public; `docs` is no package."""
    spec = importlib.util.spec_from_file_location("_reference", ROOT / "docs" / "_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_called(value: Any) -> bool:
    """Whether it is there to be called, and not, as types of results, errors and protocols, to be met."""
    if not inspect.isclass(value):
        return callable(value)
    kinds = ("_fields", "_is_protocol")
    return not issubclass(value, BaseException) and not any(hasattr(value, kind) for kind in kinds)


def public_callables() -> dict[str, Any]:
    """All of them, by full name."""
    site = reference()
    modules = [importlib.import_module(name) for name in site.MODULES]
    found = {f"{m.__name__}.{name}": getattr(m, name) for m in modules for name in site.public_names(m)}
    return {name: value for name, value in found.items() if is_called(value)}


CALLABLES = public_callables()


def examples(value: Any) -> list[doctest.DocTest]:
    """The examples in its docstring, and, of a class, in those of its methods, with no name given to them."""
    found = doctest.DocTestFinder().find(value, "example", module=False, globs={})
    return [test for test in found if test.examples]


def in_section(value: Any) -> bool:
    """Whether there is a section of that name, as numpydoc and readers look for it."""
    lines = (inspect.getdoc(value) or "").splitlines()
    titled = ("Examples", "--------") in itertools.pairwise(lines)
    return titled and any(line.startswith(">>> ") for line in lines)


def run(test: doctest.DocTest) -> str:
    """What goes wrong in an example; nothing if all is as it says."""
    told: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=told.append)
    return "".join(told)


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_public_callable_has_an_example_that_runs(name: str) -> None:
    value = CALLABLES[name]
    assert in_section(value)
    assert not "".join(run(test) for test in examples(value))


def test_no_example_stands_where_it_is_not_run() -> None:
    run_above = {test.docstring for value in CALLABLES.values() for test in examples(value)}
    modules = map(importlib.import_module, ["rawkernels", "dynarray", "autodiff", *MODULES])
    found = [test for module in modules for test in doctest.DocTestFinder().find(module) if test.examples]
    assert not [test.name for test in found if test.docstring not in run_above]


def test_all_that_is_public_is_found() -> None:
    assert len(CALLABLES) > 300


def test_missing_and_wrong_examples_are_seen() -> None:
    def bare() -> int:
        """Give one."""
        return 1

    def wrong() -> int:
        """Give one.

        Examples
        --------
        >>> 1 + 1
        1
        """
        return 1

    def borrowed() -> int:
        """Give one.

        Examples
        --------
        >>> np.ones(1).size
        1
        """
        return 1

    assert not in_section(bare)
    assert in_section(wrong)
    assert "Expected" in run(examples(wrong)[0])
    assert "NameError" in run(examples(borrowed)[0])
