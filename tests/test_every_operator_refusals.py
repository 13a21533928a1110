"""The contract, second half: a bad argument is refused, and the message names operator and argument."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, Literal, SupportsIndex, get_args, get_origin

import numpy as np
import pytest
from _contract import Call, check, each_array, each_operator, evaluate, full_call, seeded_case
from conftest import Backend, backend_params

import dynarray as dyn
from dynarray import OPERATORS, Operator
from dynarray._dispatch import DTYPES
from dynarray.typing import ArrayT, Pair

# For each type of parameter: what it must refuse.
NOT_POSITIVE_INTS = (
    0,
    -1,
    1.5,
    2.0,
    True,
    "2",
    None,
    (2, 2),
    [2],
    np.array([2]),
    1 + 0j,
    np.float32(2),
    b"2",
)
NOT_POSITIVE_PAIRS = (
    *(0, -1, 1.5, 2.0, True, "2", "22", (1, 2, 3), (1,), (), (1, 0), (0, 1), (1, -1), (1.5, 1), (1, True)),
    *({1, 2}, np.array([1, 2]), np.float64(1), [1, None], float("nan"), None),
)
BAD_VALUES: dict[Any, tuple] = {
    # Arrays without gradient: no array, and none of their ranks.
    ArrayT: (None, 1.0, "x", [0.0], [[0.0, 0.0, 1.0, 1.0]], np.ones(()), np.ones((1, 2, 3)), np.array("x")),
    float: (0, -1.0, float("nan"), float("inf"), True, None, "1", 1j, (1.0,), np.array([1.0])),
    bool: (0, 1, None, "yes", 1.0, (True,), np.array([True])),
    SupportsIndex: NOT_POSITIVE_INTS,
    Pair: NOT_POSITIVE_PAIRS,
    # Of zero or more, or None.
    SupportsIndex | None: (-1, 0.5, True, "same", (1,), (0, -1), [1]),
    Pair | None: (-1, 0.5, True, "same", (0, 1, 2), (1,), (0, -1), (0.0, 1), [None, 1]),
}


def bad_values(operator: Operator, parameter: str) -> tuple:
    """What a parameter must refuse, by the type that the signature gives it."""
    kind = inspect.signature(operator.function).parameters[parameter].annotation
    if get_origin(kind) is Literal:
        words = get_args(kind)
        upper, first, last = words[0].upper(), words[0].encode(), words[-1]
        return "no such word", "", upper, None, 0, True, first, (words[0],), [last], np.array([last])
    bad = BAD_VALUES[kind]
    if bad is not NOT_POSITIVE_INTS:
        return bad
    drawn = {seeded_case(operator, seed).params.get(parameter) for seed in range(20)}
    return bad[1:] if 0 in drawn else bad


each_parameter = pytest.mark.parametrize(
    ("operator", "parameter"),
    [
        pytest.param(operator, parameter, id=f"{operator.name}-{parameter}")
        for operator in OPERATORS.values()
        for parameter in operator.defaults
    ],
)
without_gpu = pytest.mark.parametrize("backend", backend_params("reference", "cpu", "host"), indirect=True)


def refusal(operator: Operator, *arguments: str, error: Any = (TypeError, ValueError)) -> Any:
    """A context that requires a refusal naming the operator and one of the arguments."""
    return pytest.raises(error, match=rf"(?s)^{operator.name}: .*\b({'|'.join(arguments)})\b")


def both(call: Call) -> tuple[Callable, Callable]:
    """The two public functions, given the arrays and parameters of a call."""
    backward = getattr(dyn, f"{call.operator.name}_backward")
    args, kwargs = call.arguments
    return (
        lambda: call.operator.function(*args, **kwargs),
        lambda: backward(call.grad_output, *args, **kwargs),
    )


@each_parameter
def test_bad_parameters_are_refused(operator: Operator, parameter: str) -> None:
    call = full_call(operator)
    for value in bad_values(operator, parameter):
        for function in both(replace(call, params={**call.params, parameter: value})):
            with refusal(operator, parameter):
                function()


@each_operator
def test_unknown_and_missing_arguments_are_refused(operator: Operator) -> None:
    call = full_call(operator)
    for function in both(replace(call, params={**call.params, "strides": 1})):
        with pytest.raises(TypeError, match=f"{operator.name}.*strides"):
            function()
    with pytest.raises(TypeError, match=f"^{operator.name}: .*strides"):
        operator.run(call.arrays, {**call.params, "strides": 1})
    for function, first in (
        (operator.function, ()),
        (getattr(dyn, f"{operator.name}_backward"), (call.grad_output,)),
    ):
        second = list(inspect.signature(operator.function).parameters)[1]
        others = {key: value for key, value in call.params.items() if key != second}
        with pytest.raises(TypeError, match=f"{operator.name}.*{second}"):
            function(*first, call.arrays[0], **others)
    required = [
        name
        for name, value in operator.defaults.items()
        if value is not None and not isinstance(value, int | float | str)
    ]
    for name in required:
        with refusal(operator, name, error=TypeError):
            operator.run(call.arrays, {key: value for key, value in call.params.items() if key != name})


def not_arrays(array: np.ndarray) -> dict[str, Any]:
    if not array.ndim:  # may be a number
        return {"complex": 1j, "string": "x", "bytes": array.tobytes(), "bool": True, "list": [1.0]}
    return {
        "list": array.tolist(),
        "nested tuple": tuple(array),
        "number": 1.0,
        "numpy number": np.float64(1),
        "string": "x",
        "bytes": array.tobytes(),
        "memoryview": memoryview(array),
        "masked": np.ma.masked_array(array, array > 0),
    }


@without_gpu
@each_array
def test_what_is_no_array_is_refused(operator: Operator, index: int, backend: Backend) -> None:
    call, name = full_call(operator), operator.arrays[index]
    for value in (*not_arrays(call.arrays[index]).values(), *([None] * (name not in operator.optional))):
        arrays = (*call.arrays[:index], value, *call.arrays[index + 1 :])
        for function in both(replace(call, arrays=arrays)):
            with refusal(operator, name, error=TypeError):
                function()


@without_gpu
@each_array
def test_other_dtypes_are_refused(operator: Operator, index: int, backend: Backend) -> None:
    call, name = full_call(operator), operator.arrays[index]
    alone = DTYPES[backend.name] if len(operator.arrays) == 1 else ()  # there is none to agree with
    for dtype in ("float32", "float16", "int64", "uint8", "bool", "complex128", "object", "U8", ">f8"):
        if dtype in alone:
            continue
        array = call.arrays[index].astype(dtype)
        for function in both(replace(call, arrays=(*call.arrays[:index], array, *call.arrays[index + 1 :]))):
            with refusal(operator, name, error=TypeError):
                function()
    swapped = call.astype(">f8")  # all alike, and still not what the kernels read
    for function in both(swapped):
        with refusal(operator, operator.arrays[0], error=TypeError):
            function()


@without_gpu
@each_array
def test_other_ranks_are_refused(operator: Operator, index: int, backend: Backend) -> None:
    call, name = full_call(operator, seed=1), operator.arrays[index]
    array = call.arrays[index]
    shapes = {(1, *array.shape), (*array.shape, 1), array.shape[1:], (array.size,), (), array.shape[2:]}
    for shape in shapes - {array.shape}:
        wrong = np.ones(shape)
        for function in both(replace(call, arrays=(*call.arrays[:index], wrong, *call.arrays[index + 1 :]))):
            with refusal(operator, name, error=ValueError):
                function()


@without_gpu
@each_array
def test_other_sizes_are_refused_or_right(operator: Operator, index: int, backend: Backend) -> None:
    """A size may be free, a group for instance; then the result must be right."""
    call, refused = full_call(operator, seed=1), 0
    shape = call.arrays[index].shape
    for axis, change in product(range(len(shape)), (1, -1, 7, None)):
        size = 0 if change is None else shape[axis] + change
        array = np.ones((*shape[:axis], size, *shape[axis + 1 :]))
        arrays = (*call.arrays[:index], array, *call.arrays[index + 1 :])
        try:
            output = operator(arrays, **call.params)
        except (TypeError, ValueError) as error:
            refused += 1
            message = str(error)
            assert message.startswith(f"{operator.name}: "), message
            assert any(name in message for name in operator.arrays), message
        else:
            changed = replace(call, arrays=arrays, grad_output=np.ones(output.shape))
            check(changed, backend)
    assert refused > 0 or not shape  # an array of no axes has no size that could be wrong


@without_gpu
@each_operator
def test_bad_gradients_of_the_output_are_refused(operator: Operator, backend: Backend) -> None:
    call = full_call(operator)
    grad = call.grad_output
    _, saved = operator.run(call.arrays, call.params)
    backward, needs = getattr(dyn, f"{operator.name}_backward"), (True,) * len(call.arrays)
    args, kwargs = call.arguments
    wrong_kinds = (
        *not_arrays(grad).values(),
        None,
        *(grad.astype(t) for t in ("float32", "int64", ">f8", "complex")),
    )
    wrong_sizes = (
        grad[:1],
        grad[..., :-1],
        grad[None],
        grad[0],
        grad.ravel(),
        grad.T,
        np.array(1.0),
        np.ones((0,)),
    )
    wrong_sizes = tuple(value for value in wrong_sizes if value.shape != grad.shape)
    for error, values in ((TypeError, wrong_kinds), (ValueError, wrong_sizes)):
        for value in values:
            with refusal(operator, "grad_output", error=error):
                backward(value, *args, **kwargs)
            with refusal(operator, "grad_output", error=error):
                operator.gradients(value, saved, needs)


@each_operator
def test_bad_needs_are_refused(operator: Operator) -> None:
    call = full_call(operator)
    backward, count = getattr(dyn, f"{operator.name}_backward"), len(call.arrays)
    args, kwargs = call.arguments
    for needs in (
        (),
        (True,) * (count - 1),
        (True,) * (count + 1),
        True,
        "x",
        "x" * count,
        (None,) * count,
        (1,) * count,
    ):
        with refusal(operator, "needs"):
            backward(call.grad_output, *args, **kwargs, needs=needs)


@each_operator
def test_a_backward_on_another_backend_is_refused(operator: Operator) -> None:
    call = full_call(operator)
    with dyn.use_backend("reference"):
        _, saved = operator.run(call.arrays, call.params)
    with pytest.raises(ValueError, match=f"^{operator.name}: .*'reference'"):
        operator.gradients(call.grad_output, saved, (True,) * len(call.arrays))


@pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)
@each_array
def test_arrays_of_two_libraries_are_refused(operator: Operator, index: int, backend: Backend) -> None:
    call, name = full_call(operator), operator.arrays[index]
    arrays = [backend.array(array) for array in call.arrays]
    arrays[index] = call.arrays[index]
    with refusal(operator, name, error=TypeError):
        operator(tuple(arrays), **call.params)


@each_operator
@pytest.mark.parametrize("backend", backend_params("reference", "cpu"), indirect=True)
def test_dtypes_that_a_backend_does_not_offer_are_refused(operator: Operator, backend: Backend) -> None:
    for dtype in (
        "float16",
        "int64",
        "bool",
        "object",
        "U4",
        "datetime64[s]",
        *(["complex128"] * (backend.name == "cpu")),
    ):
        call = full_call(operator).map(lambda array, dtype=dtype: np.zeros(array.shape, dtype))
        with pytest.raises(TypeError, match=rf"^{operator.name}: {operator.arrays[0]} has dtype"):
            evaluate(call, backend)
