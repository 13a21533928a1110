"""The public face says what it takes and gives: to a type checker, to pickle, and to whoever imports it."""

import inspect
import pickle
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import get_args, get_origin

import numpy as np
import pytest
from _contract import each_operator, full_call

import dynarray as dyn
from dynarray import Operator
from dynarray._dispatch import BACKENDS
from dynarray.typing import ArrayT, Backend

ROOT = Path(__file__).parents[1]
TYPED = ROOT / "tests" / "typed_calls.py"


def test_a_type_checker_takes_right_calls_and_refuses_wrong_ones(tmp_path: Path) -> None:
    options = ("--strict", "--config-file=", "--follow-imports=silent", "--cache-dir", str(tmp_path))
    command = [sys.executable, "-m", "mypy", "--no-pretty", *options, str(TYPED.relative_to(ROOT))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    errors = re.findall(r"^[^:]+:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    found = {(int(line), code) for line, code in errors}
    wanted = {
        (number, line.rpartition("  # ")[2])
        for number, line in enumerate(TYPED.read_text().splitlines(), 1)
        if re.search(r"  # [a-z]+(-[a-z]+)*$", line)
    }
    assert len(wanted) > 25 and done.returncode == 1, done.stdout + done.stderr
    assert found == wanted, done.stdout


@each_operator
def test_a_backward_pass_takes_what_its_operator_takes(operator: Operator) -> None:
    """Both signatures are written out: here they are held to each other."""
    forward = inspect.signature(operator.function)
    backward = inspect.signature(getattr(dyn, f"{operator.name}_backward"))
    first, *others, last = backward.parameters.values()
    assert (first.name, first.annotation, first.kind.name) == ("grad_output", ArrayT, "POSITIONAL_OR_KEYWORD")
    assert (last.name, last.default, last.kind.name) == ("needs", None, "KEYWORD_ONLY")
    assert others == list(forward.parameters.values())
    assert forward.return_annotation is ArrayT


@each_operator
def test_gradients_are_of_a_type_that_says_what_they_are(operator: Operator) -> None:
    annotation = inspect.signature(getattr(dyn, f"{operator.name}_backward")).return_annotation
    kind = get_origin(annotation)
    assert get_args(annotation) == (ArrayT,)
    assert kind._fields == operator.arrays and getattr(dyn, kind.__name__) is kind
    fields = inspect.get_annotations(kind)
    for name, parameter in inspect.signature(operator.function).parameters.items():
        if name in operator.arrays:
            assert fields[name] == (ArrayT | None if name in operator.optional else ArrayT)
            assert ArrayT in (parameter.annotation, *get_args(parameter.annotation))


@each_operator
def test_gradients_can_be_pickled(operator: Operator) -> None:
    call = full_call(operator)
    args, keywords = call.arguments
    with dyn.use_backend("reference"):
        gradients = getattr(dyn, f"{operator.name}_backward")(call.grad_output, *args, **keywords)
    again = pickle.loads(pickle.dumps(gradients))
    assert type(again) is type(gradients)
    assert [a.tobytes() for a in again] == [b.tobytes() for b in gradients]


def test_gradients_come_back_from_another_process() -> None:
    x, weight = np.ones((1, 2, 3, 3)), np.ones((1, 1, 1, 1, 3, 3))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        gradients = pool.submit(dyn.involution_backward, x, x, weight).result(timeout=120)
    assert type(gradients) is dyn.InvolutionGradients
    assert gradients.x.tolist() == x.tolist() and gradients.weight.ravel().tolist() == [2.0] * 9


def test_what_the_package_offers_is_listed() -> None:
    assert isinstance(dyn.__version__, str) and re.fullmatch(r"\d+\.\d+\.\d+", dyn.__version__)
    offered = set(dyn.__all__)
    for operator in dyn.OPERATORS.values():
        assert {operator.name, f"{operator.name}_backward"} <= offered
        module = import_module(operator.function.__module__)
        assert set(module.__all__) <= offered
    assert {"OPERATORS", "Operator", "use_backend", "set_num_threads", "get_num_threads"} <= offered
    assert not [name for name in offered if inspect.ismodule(getattr(dyn, name))]
    assert get_args(Backend) == BACKENDS


@pytest.mark.parametrize("name", ["atoms", "deform"])
def test_modules_of_backends_are_named_for_editors_and_loaded_for_callers(name: str) -> None:
    """What Python takes for a module is one when it is called."""
    family = import_module(f"dynarray.{name}")
    assert family._reference.forward.module == f"dynarray.reference.{name}"
    source = inspect.getsource(family)
    for package in (".reference", ".cpu", ".composite", "rawkernels"):
        assert f"from {package} import {name} as _" in source
