"""Every example in the docstrings and in the README runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import autodiff
import dynarray
import rawkernels

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for package in (rawkernels, dynarray, autodiff)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith("__main__")
)
README_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("name", ["rawkernels", "dynarray", "autodiff", *MODULES])
def test_docstring_examples_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_public_functions_have_examples():
    finder = doctest.DocTestFinder()
    for name, operator in dynarray.OPERATORS.items():
        examples = [test for test in finder.find(operator.function, name) if test.examples]
        assert examples, f"{name} has no example that runs"


@pytest.mark.parametrize("number", range(len(README_BLOCKS)))
def test_readme_blocks_run(number, capsys):
    exec(compile(README_BLOCKS[number], f"README.md, block {number}", "exec"), {"__name__": "readme"})


def test_readme_has_blocks_to_run():
    assert len(README_BLOCKS) >= 2
