"""Every call of the table of bad calls is refused, in words that help."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from _bad_calls import BAD, GOOD, Bad
from conftest import Backend, backend_params

import dynarray as dyn
from dynarray import OPERATORS

NAMES = Counter[str]()


def name(bad: Bad) -> str:
    """A short name for a row of the table."""
    label = f"{bad.operator}-{'-'.join(bad.changes)}"
    NAMES[label] += 1
    return f"{label}-{NAMES[label]}"


each_backend = pytest.mark.parametrize("backend", backend_params("cpu", "host"), indirect=True)
each_bad_call = pytest.mark.parametrize("bad", BAD, ids=list(map(name, BAD)))


def arguments(bad: Bad) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """The gradient of the output, what forward and backward pass take, and what only the backward takes."""
    shapes, params, output = GOOD[bad.operator]
    given = {**shapes, "grad_output": output, **bad.changes}
    arrays = {
        key: np.ones(value) if isinstance(value, tuple) else value
        for key, value in given.items()
        if key in (*shapes, "grad_output")
    }
    others = {**params, **{key: value for key, value in bad.changes.items() if key not in arrays}}
    only_backward = {key: others.pop(key) for key in ("needs",) if key in others}
    return arrays.pop("grad_output"), {**arrays, **others}, only_backward


def check_refused(bad: Bad) -> None:
    """Require the exception and the words from the operator and from its backward."""
    grad_output, keywords, only_backward = arguments(bad)
    function, backward = getattr(dyn, bad.operator), getattr(dyn, f"{bad.operator}_backward")
    calls = [lambda: backward(grad_output, **keywords, **only_backward)]
    if not {"needs", "grad_output"} & set(bad.changes):
        calls.append(lambda: function(**keywords))
    for call in calls:
        try:
            call()
        except Exception as error:
            message = str(error)
            assert type(error) is bad.error, f"{type(error).__name__}: {message}"
        else:
            raise AssertionError(f"{bad.operator} took {bad.changes}")
        assert message.startswith(bad.operator), message
        missing = [word for word in bad.words if word not in message]
        assert not missing, f"{missing} not in: {message}"


@each_bad_call
@each_backend
def test_a_bad_call_is_refused_in_words(backend: Backend, bad: Bad) -> None:
    check_refused(bad)


def test_the_table_is_whole() -> None:
    assert len(BAD) >= 200
    assert len(NAMES) == len({(bad.operator, *bad.changes) for bad in BAD})
    for operator in OPERATORS.values():
        shapes, _, _ = GOOD[operator.name]
        assert tuple(shapes) == operator.arrays
        changed = {key for bad in BAD if bad.operator == operator.name for key in bad.changes}
        assert {*operator.arrays, *operator.defaults, "needs", "grad_output", "strides"} == changed


@pytest.mark.parametrize("operator", GOOD)
@each_backend
def test_what_the_table_changes_is_a_good_call(backend: Backend, operator: str) -> None:
    shapes, _, output = GOOD[operator]
    grad_output, keywords, _ = arguments(Bad(operator, {}, Exception, ()))
    assert getattr(dyn, operator)(**keywords).shape == output
    gradients = getattr(dyn, f"{operator}_backward")(grad_output, **keywords)
    assert [gradient.shape for gradient in gradients] == list(shapes.values())


@pytest.mark.parametrize(
    ("changes", "error", "words", "complaint"),
    [
        ({"stride": 1}, ValueError, (), "involution took"),
        ({"stride": 0}, TypeError, (), "ValueError: involution: stride"),
        ({"stride": 0}, ValueError, ("stride", "at least 2"), r"\['at least 2'\] not in: involution"),
    ],
)
def test_a_call_that_is_taken_or_refused_in_other_words_is_found(
    changes: dict, error: type[Exception], words: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_refused(Bad("involution", changes, error, words))
