"""16-bit images beside float32 filters, offsets and masks, as automatic mixed precision gives them.

That each result is right is part of the contract, in test_every_operator.py. Here: which dtypes go together,
what the tape makes of them, and what float32 is for.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from _contract import (
    BFLOAT16,
    REFERENCE,
    check_low_precision,
    check_same_bits,
    each_mixed_operator,
    each_operator,
    evaluate,
    full_call,
    largest,
    parts,
)
from conftest import Backend, backend_params

import dynarray as dyn
from autodiff import Tape, Variable, hvp
from autodiff import functions as F
from autodiff.layers import Conv2d
from autodiff.lift import lifted
from dynarray import OPERATORS, Operator

FLOAT16 = np.dtype("float16")

each_half = pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
on_host = pytest.mark.parametrize("backend", backend_params("host"), indirect=True)
on_kernels = pytest.mark.parametrize("backend", backend_params("host", "cuda"), indirect=True)


def test_filters_and_positions_may_be_float32() -> None:
    """The whole list: what a kernel of 16 bits reads in two types, and what it does not."""
    found = {name: operator.may_be_float32 for name, operator in OPERATORS.items() if operator.may_be_float32}
    assert found == {
        "local_filter2d": ("weight", "channel_weight"),
        "local_filter1d": ("weight", "channel_weight"),
        "ddf": ("channel_filter", "spatial_filter"),
        "ddf_upsample": ("channel_filters", "spatial_filters"),
        "carafe": ("masks",),
        "involution": ("weight",),
        "mixed_filter2d": ("kernels", "mixture"),
        "mixed_filter1d": ("kernels", "mixture"),
        "deform_conv2d": ("offset", "weight", "mask", "bias"),
        "deform_conv1d": ("offset", "weight", "mask", "bias"),
        "sample_points": ("points",),
    }


@each_operator
@each_half
@on_host
def test_other_combinations_are_refused(operator: Operator, dtype: Any, backend: Backend) -> None:
    """Both passes name operator, argument, what it may be and what it is."""
    call = full_call(operator)
    other_half = BFLOAT16 if dtype == FLOAT16 else FLOAT16
    first, *others = operator.arrays
    for name, wrong in product(others, (other_half, np.float32, np.float64)):
        may = name in operator.may_be_float32
        if may and wrong == np.float32:
            continue
        changed = call.astype(dtype, {name: wrong})
        also = f", beside which it takes {dtype} or float32" if may else ""
        message = f"^{operator.name}: {name} has dtype {np.dtype(wrong)} but {first} has {dtype}{also}$"
        refused(changed, message)
    for name in others:  # nothing is narrower than the image
        message = f"^{operator.name}: {name} has dtype {dtype} but {first} has float32$"
        refused(call.astype(np.float32, {name: dtype}), message)
    changed = call.astype(dtype, dict.fromkeys(("grad_output", *operator.may_be_float32), np.float32))
    with pytest.raises(TypeError, match=f"^{operator.name}: grad_output has dtype float32 but {first} has"):
        evaluate(changed, backend)


def refused(call: Any, message: str) -> None:
    backward = getattr(dyn, f"{call.operator.name}_backward")
    positional, keywords = call.arguments
    with pytest.raises(TypeError, match=message):
        call.operator.function(*positional, **keywords)
    with pytest.raises(TypeError, match=message):
        backward(call.grad_output, *positional, **keywords)


@each_mixed_operator
@pytest.mark.parametrize("backend", backend_params("cpu", "reference"), indirect=True)
def test_the_cpu_takes_no_16_bits_whatever_is_beside_them(operator: Operator, backend: Backend) -> None:
    call = full_call(operator).astype(FLOAT16, dict.fromkeys(operator.may_be_float32, np.float32))
    with pytest.raises(TypeError, match=f"^{operator.name}: x has dtype float16; the {backend.name} backend"):
        evaluate(call, backend)


@each_mixed_operator
@on_host
def test_a_rounding_to_16_bits_on_the_way_is_found(operator: Operator, backend: Backend) -> None:
    """The check of the contract, with gradients of float32 arrays that were 16 bits once."""
    form = operator.backward[backend.name]
    for name in operator.may_be_float32:
        role = operator.roles.index(name)

        def faulty(*args: Any, role: int = role, **params: Any) -> tuple:
            results = list(form(*args, **params))
            results[role] = results[role].astype(BFLOAT16).astype(results[role].dtype)
            return tuple(results)

        table = {**operator.backward, backend.name: faulty}
        call = replace(full_call(operator), operator=replace(operator, backward=table))
        with pytest.raises(AssertionError, match=f"gradient of {name} is off"):
            check_low_precision(call, backend, BFLOAT16, operator.may_be_float32)


@each_mixed_operator
@each_half
@on_kernels
def test_the_tape_passes_on_what_the_operator_gives(operator: Operator, dtype: Any, backend: Backend) -> None:
    """To the last bit, in the dtype of each argument."""
    call = full_call(operator).astype(dtype, dict.fromkeys(operator.may_be_float32, np.float32))
    expected = evaluate(call, backend)
    variables = tuple(Variable(backend.array(array)) for array in call.arrays)
    positional, by_keyword = operator.arguments(variables)
    with Tape() as tape:
        y = lifted[operator.name](*positional, **by_keyword, **backend.params(call.params))
    found = tape.gradient(y, list(variables), grad=backend.array(call.grad_output))
    values = (y.data, *found)
    for (what, right), mine in zip(parts(call, expected), map(backend.numpy, values), strict=True):
        assert mine.dtype == right.dtype, what
        assert mine.tobytes() == right.tobytes(), what


@each_mixed_operator
@on_host
def test_arrays_that_came_by_dlpack(operator: Operator, backend: Backend) -> None:
    """They are views that cannot be written to."""
    call = full_call(operator).astype(FLOAT16, dict.fromkeys(operator.may_be_float32, np.float32))
    check_same_bits(call, evaluate(call.map(np.from_dlpack), backend), evaluate(call, backend))


@each_mixed_operator
@each_half
@on_host
def test_gradients_of_gradients_round_once(operator: Operator, dtype: Any, backend: Backend) -> None:
    """Hessian-vector products of a loss that is linear in the output: those of float32 arrays in float32."""
    call = full_call(operator, seed=1).astype(dtype, dict.fromkeys(operator.may_be_float32, np.float32))

    def loss_of(grad_output: np.ndarray) -> Any:
        def loss(*arrays: Any) -> Any:
            positional, by_keyword = operator.arguments(arrays)
            y = lifted[operator.name](*positional, **by_keyword, **backend.params(call.params))
            return F.sum(y * grad_output)

        return loss

    exact = call.astype(np.float64)
    with REFERENCE.use():
        expected = hvp(loss_of(exact.grad_output), exact.arrays, exact.arrays)
    actual = hvp(loss_of(call.grad_output), call.arrays, call.arrays)
    for name, array, mine, right in zip(operator.arrays, call.arrays, actual, expected, strict=True):
        assert mine.dtype == array.dtype, name
        # The terms of a sum are few, and may cancel: a unit or two for its rounding and for theirs.
        unit = 2.0**-8 if array.dtype == BFLOAT16 else float(np.finfo(array.dtype).eps)
        assert largest(mine.astype(np.float64) - right) <= 4 * unit * largest(right), name


# What becomes of an image (2, 4, 9, 8), of what a layer predicts for it, and of a kernel (4, 4, 3, 3).
NETWORKS: dict[str, tuple[int, Callable]] = {
    "filters": (18, lambda x, found, _: F.local_filter2d(x, F.reshape(found, (2, 2, 3, 3, 9, 8)))),
    "offsets": (18, lambda x, found, kernel: F.deform_conv2d(x, found, kernel, padding=1)),
}


@pytest.mark.parametrize("network", NETWORKS)
@each_half
@on_host
def test_a_network_of_16_bits_learns_in_float32(
    network: str, dtype: Any, backend: Backend, rng: np.random.Generator
) -> None:
    """A layer in float32 predicts what is applied to a 16-bit image; its parameters get float32 gradients.

    The loss is linear in the output, so that nothing but products of known numbers reaches the layer.
    """
    outputs, apply = NETWORKS[network]
    x, toward = (rng.standard_normal((2, 4, 9, 8)).astype(dtype) for _ in range(2))
    kernel = rng.standard_normal((4, 4, 3, 3)).astype(dtype)
    predict = Conv2d(4, outputs, 3, rng=np.random.default_rng(0))

    def gradients(predict: Any, x: Any, toward: Any, kernel: Any) -> list:
        image, weight = Variable(x), Variable(kernel)
        with Tape() as tape:
            found = predict(F.astype(image, predict.weight.dtype))
            loss = F.sum(apply(image, found, weight) * toward)
        return list(tape.gradient(loss, [image, *predict.parameters()]))

    with REFERENCE.use():
        double = Conv2d(4, outputs, 3, dtype=np.float64)
        for mine, its in zip(double.parameters(), predict.parameters(), strict=True):
            mine.data[...] = its.data
        expected = gradients(double, *(array.astype(np.float64) for array in (x, toward, kernel)))
    of_image, *of_parameters = gradients(predict, x, toward, kernel)
    assert of_image.dtype == dtype
    unit = 2.0**-8 if dtype == BFLOAT16 else 2.0**-10
    assert largest(of_image.astype(np.float64) - expected[0]) <= 2 * unit * largest(expected[0])
    for mine, right in zip(of_parameters, expected[1:], strict=True):
        assert mine.dtype == np.float32
        assert largest(mine - right) <= 1e-5 * largest(right)


@each_half
@on_kernels
def test_float32_positions_are_exact_beside_16_bits(dtype: Any, backend: Backend) -> None:
    """Column 3000.3 of an image is between the columns 3000 and 3001, which 16 bits cannot say."""
    width, place = 4096, 3000.3
    assert abs(float(np.asarray(place).astype(dtype)) - place) > 0.29
    x = np.zeros((1, 1, 1, width), dtype)
    x[..., 3000], x[..., 3001] = 8, 16
    share = np.float32(place) - 3000
    expected, unit = float(8 * (1 - share) + 16 * share), 16 * 2.0**-8
    points = np.array([0, place], np.float32).reshape(1, 1, 2, 1, 1)
    sampled = dyn.sample_points(backend.array(x), backend.array(points))
    assert sampled.dtype == dtype
    assert abs(float(sampled.item()) - expected) <= unit
    gradient = dyn.sample_points_backward(sampled * 0 + 1, backend.array(x), backend.array(points))
    assert backend.numpy(gradient.points).ravel()[1] == 8  # the slope between the columns, no other

    # From output 0 the same point is 3000.3 pixels away; from output 3000 it is 0.3.
    offset = np.zeros((1, 1, 1, 1, 2, 1, width), np.float32)
    offset[..., 1, 0, 0], offset[..., 1, 0, 3000] = place, 0.3
    weight = np.ones((1, 1, 1, 1), dtype)
    y = dyn.deform_conv2d(*map(backend.array, (x, offset, weight)))
    assert y.dtype == dtype
    for column in (0, 3000):
        assert abs(float(y[0, 0, 0, column].item()) - expected) <= unit
