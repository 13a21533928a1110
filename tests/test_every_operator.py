"""The contract: what holds for every entry of OPERATORS, on every backend."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from _calls import draw_case
from _calls._call import Case
from _contract import (
    BFLOAT16,
    LAYOUTS,
    REFERENCE,
    check,
    check_low_precision,
    check_nonfinite,
    check_same_bits,
    compare,
    each_array,
    each_mixed_operator,
    each_operator,
    evaluate,
    full_call,
    laid_out,
    make_call,
    parts,
    seeded_case,
    size_of,
    threads,
)
from conftest import Backend, backend_params
from hypothesis import given, settings
from hypothesis import strategies as st

import dynarray as dyn
from dynarray import OPERATORS, Operator

# No multiple of a tile or a block, and several of them; empty batches and images; single pixels, rows.
SIZES = [
    {"N": 0, "H": 5, "W": 4},
    {"N": 1, "H": 0, "W": 7},
    {"N": 2, "H": 6, "W": 0},
    {"N": 1, "H": 1, "W": 1},
    {"N": 33, "H": 5, "W": 7},
    {"N": 1, "H": 37, "W": 71},
    {"N": 2, "H": 67, "W": 35},
    {"N": 1, "H": 131, "W": 3},
    {"N": 1, "H": 2, "W": 1031},
]
each_size = pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes.values())))


def draw_and_check(operator: Operator, backend: Backend, data: st.DataObject) -> None:
    case = draw_case(operator, lambda choices: data.draw(st.sampled_from(choices)))
    check(make_call(operator, case, seed=data.draw(st.integers(0, 999))), backend)


@each_operator
@settings(max_examples=20)
@given(data=st.data())
def test_output_and_gradients_of_drawn_calls(
    operator: Operator, backend: Backend, data: st.DataObject
) -> None:
    draw_and_check(operator, backend, data)


@pytest.mark.slow
@each_operator
@settings(max_examples=200)
@given(data=st.data())
def test_output_and_gradients_of_many_drawn_calls(
    operator: Operator, backend: Backend, data: st.DataObject
) -> None:
    draw_and_check(operator, backend, data)


@each_operator
@each_size
def test_sizes(operator: Operator, backend: Backend, sizes: dict[str, int]) -> None:
    check(make_call(operator, seeded_case(operator, 1, **sizes), seed=1), backend)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 5))
@each_operator
@each_size
def test_sizes_with_other_parameters(
    operator: Operator, backend: Backend, sizes: dict[str, int], seed: int
) -> None:
    check(make_call(operator, seeded_case(operator, seed, **sizes), seed), backend)


@each_operator
@pytest.mark.parametrize("backend", backend_params("cpu", "host", "ptx", "cuda"), indirect=True)
@pytest.mark.parametrize("seed", range(2))
def test_float32(operator: Operator, backend: Backend, seed: int) -> None:
    check_low_precision(full_call(operator, seed), backend, np.dtype("float32"))
    check_low_precision(full_call(operator, seed, N=1, H=61, W=83), backend, np.dtype("float32"))


@each_operator
@pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
@pytest.mark.parametrize("dtype", [np.dtype("float16"), BFLOAT16], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_half_precision(operator: Operator, backend: Backend, dtype: Any, seed: int) -> None:
    check_low_precision(full_call(operator, seed), backend, dtype)
    check_low_precision(full_call(operator, seed, N=1, H=29, W=35), backend, dtype)


@each_mixed_operator
@pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
@pytest.mark.parametrize("dtype", [np.dtype("float16"), BFLOAT16], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_float32_beside_half_precision(operator: Operator, backend: Backend, dtype: Any, seed: int) -> None:
    """All that may be float32 together, and each alone, every second one with either seed."""
    names = operator.may_be_float32
    call = full_call(operator, seed, N=1, H=29, W=35)
    for in_float32 in {names, *((name,) for name in names[seed::2])}:
        check_low_precision(full_call(operator, seed), backend, dtype, in_float32)
        check_low_precision(call, backend, dtype, in_float32)


@each_operator
def test_every_combination_of_needs(operator: Operator, backend: Backend) -> None:
    call = full_call(operator, seed=1)
    everything = evaluate(call, backend)
    for needs in product((False, True), repeat=len(operator.arrays)):
        some = evaluate(call, backend, needs)
        for name, needed, gradient, full in zip(
            operator.arrays, needs, some.gradients, everything.gradients, strict=True
        ):
            if needed:
                assert gradient.tobytes() == full.tobytes(), f"{operator.name} {needs}: gradient of {name}"
            else:
                assert gradient is None, f"{operator.name} {needs}: gradient of {name} was not asked for"


@each_operator
def test_optional_arrays_left_out_have_no_gradient(operator: Operator, backend: Backend) -> None:
    call = full_call(operator)
    arrays = tuple(
        None if name in operator.optional else a for name, a in zip(operator.arrays, call.arrays, strict=True)
    )
    result = evaluate(replace(call, arrays=arrays), backend)
    assert [gradient is None for gradient in result.gradients] == [
        name in operator.optional for name in operator.arrays
    ]


@each_operator
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(operator: Operator, backend: Backend, layout: str) -> None:
    if layout == "unaligned" and backend.name in ("ptx", "cuda"):
        pytest.skip("refused on a GPU, which tests/test_gpu.py tests; on backend ptx a misaligned access")
    # The second call is too large for shortcuts that small work takes.
    for call in (full_call(operator, seed=2), full_call(operator, seed=2, N=1, H=41, W=53)):
        moved = call.map(lambda array: laid_out(backend.array(array), layout))
        same_values = call.map(lambda array: np.array(backend.numpy(laid_out(array, layout)), order="C"))
        expected = evaluate(same_values, backend)
        for what, mine, right in parts(call, evaluate(moved, backend), expected):
            compare(call, f"{layout}: {what}", mine, right, 1e-13)


@each_operator
def test_inputs_may_be_read_only_and_stay_as_they_are(operator: Operator, backend: Backend) -> None:
    call = full_call(operator).map(backend.array)
    before = [backend.numpy(array).copy() for array in call.everything]
    if backend.name != "cuda":  # CuPy has no read-only arrays
        for array in call.everything:
            array.flags.writeable = False
    evaluate(call, backend)
    for name, array, was in zip((*operator.arrays, "grad_output"), call.everything, before, strict=True):
        assert backend.numpy(array).tobytes() == was.tobytes(), f"{operator.name} changed {name}"


@each_operator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_new_contiguous_arrays_of_the_right_kind(
    operator: Operator, backend: Backend, dtype: str
) -> None:
    for call in (
        full_call(operator),
        *(make_call(operator, seeded_case(operator, 3, **s), 3) for s in SIZES[:4]),
    ):
        transposed = call.astype(dtype).map(LAYOUTS["transposed"]).map(backend.array)
        output, saved = operator.run(transposed.arrays, backend.params(call.params))
        gradients = operator.gradients(transposed.grad_output, saved, (True,) * len(call.arrays))
        assert output.shape == call.grad_output.shape
        results = [output]
        for name, array, gradient in zip(operator.arrays, transposed.arrays, gradients, strict=True):
            assert (gradient is None) == (array is None)
            if gradient is not None:
                assert gradient.shape == array.shape, f"{operator.name}: gradient of {name}"
                results.append(gradient)
        given = [array for array in transposed.everything if array is not None]
        for position, result in enumerate(results):
            assert type(result) is type(given[0])
            assert result.dtype == dtype
            assert result.flags.c_contiguous
            if backend.name != "cuda":
                assert result.flags.writeable
                others = given + results[:position]
                assert not any(np.shares_memory(result, other) for other in others)
        # What they lie in is theirs alone: the next call, with other values, does not write there.
        before = [backend.numpy(result).copy() for result in results]
        evaluate(transposed.map(lambda array: array + array.dtype.type(0.25)), backend)
        assert all(backend.numpy(a).tobytes() == b.tobytes() for a, b in zip(results, before, strict=True))


@each_array
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_come_out_where_they_are_read(
    operator: Operator, index: int, backend: Backend, value: float
) -> None:
    for seed in range(4):
        call = full_call(operator, seed)
        for which in (index, len(operator.arrays)):  # the array, and the gradient of the output
            everything = [array.copy() for array in call.everything]
            at = np.random.default_rng([seed, which]).integers(everything[which].size)
            everything[which].flat[at] = value
            changed = call.with_everything(tuple(everything))
            if which == index and operator.arrays[index] in operator.numbers:
                with pytest.raises(ValueError, match=f"^{operator.name}: {operator.arrays[index]} "):
                    evaluate(changed, backend)
            else:
                check_nonfinite(changed, backend)


@each_operator
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_any_number_of_threads_gives_the_same_bits(operator: Operator, backend: Backend, dtype: str) -> None:
    for sizes in ({"N": 1, "H": 131, "W": 117}, {"N": 3, "H": 67, "W": 61}, {"N": 33, "H": 19, "W": 23}):
        call = full_call(operator, seed=3, **sizes).astype(dtype)
        with threads(1):
            alone = evaluate(call, backend)
        for count in (2, 7):
            with threads(count):
                check_same_bits(call, evaluate(call, backend), alone)


@each_operator
def test_a_second_run_gives_the_same_bits(operator: Operator, backend: Backend) -> None:
    call = full_call(operator, seed=4, N=1, H=37, W=45)
    check_same_bits(call, evaluate(call, backend), evaluate(call, backend))


@each_operator
def test_public_functions_are_the_operator(operator: Operator, backend: Backend) -> None:
    function, backward = getattr(dyn, operator.name), getattr(dyn, f"{operator.name}_backward")
    call = full_call(operator)
    expected = evaluate(call, backend)
    arrays, grad_output = tuple(map(backend.array, call.arrays)), backend.array(call.grad_output)
    args, keywords = operator.arguments(arrays)
    params = backend.params(call.params)
    output = backend.numpy(function(*args, **keywords, **params))
    gradients = backward(grad_output, *args, **keywords, **params)
    assert gradients._fields == operator.arrays
    for what, mine, right in parts(
        call, type(expected)(output, tuple(map(backend.numpy, gradients))), expected
    ):
        assert mine.tobytes() == right.tobytes(), f"{operator.name}: {what}"
    first = (True,) + (False,) * (len(arrays) - 1)
    named = dict(zip(operator.arrays, arrays, strict=True))
    for needs in (first, list(first), tuple(np.array(first))):
        only = backward(grad_output, **named, **params, needs=needs)
        assert [gradient is not None for gradient in only] == list(first)


# The checks themselves.


def test_a_gradient_of_one_number_is_measured_against_the_terms_that_it_sums() -> None:
    """Two images alike with opposite gradients: nothing is left of two terms, each of which is known."""
    shapes = {"x": (1, 1, 1, 1), "weight": (1, 1, 1), "displacement": (1, 1, 1, 2), "sigma": (), "bias": None}
    one = make_call(OPERATORS["displaced_conv2d"], Case(shapes, {}, {"sigma": (0.4, 0.6)}), seed=0)
    term = abs(float(evaluate(one, REFERENCE).gradients[3]))
    x, *others = one.arrays
    grad_output = np.concatenate([one.grad_output, -one.grad_output])
    two = replace(one, arrays=(np.concatenate([x, x]), *others), grad_output=grad_output)
    left = evaluate(two, REFERENCE).gradients[3]
    assert term > 1e-3 and abs(left) < 1e-15
    assert size_of(two, "gradient of sigma", left) == pytest.approx(2**0.5 * term, rel=1e-9)
    assert size_of(two, "output", np.array([3.0, -4.0])) == 4


def _off(form: Callable, *path: int) -> Callable:
    """`form` with a relative error of 0.1 % in one of its results; `path` leads to it."""

    def faulty(*args: Any, **params: Any) -> Any:
        results = list(form(*args, **params))
        results[path[0]] = results[path[0]] * results[path[0]].dtype.type(1.001)
        return tuple(results)

    return faulty


def _with_planted_error(operator: Operator, direction: str, backend: Backend, result: int) -> Operator:
    table = dict(getattr(operator, direction))
    table[backend.name] = _off(table[backend.name], result)
    return replace(operator, **{direction: table})


@each_array
def test_a_planted_error_in_a_gradient_is_found(operator: Operator, index: int, backend: Backend) -> None:
    role = operator.roles.index(operator.arrays[index])
    faulty = _with_planted_error(operator, "backward", backend, role)
    for call in (full_call(operator), full_call(operator, N=1, H=21, W=33)):
        check(call, backend)
        with pytest.raises(
            AssertionError, match=f"of {operator.arrays[index]} is off|by {operator.arrays[index]} is off"
        ):
            check(replace(call, operator=faulty), backend)
        if backend.name != "reference":
            with pytest.raises(AssertionError, match="is off"):
                check_low_precision(replace(call, operator=faulty), backend, np.dtype("float32"))


@each_operator
def test_a_planted_error_in_the_output_is_found(operator: Operator, backend: Backend) -> None:
    faulty = _with_planted_error(operator, "forward", backend, 0)
    for call in (full_call(operator), full_call(operator, N=1, H=21, W=33)):
        with pytest.raises(AssertionError, match="is off"):
            check(replace(call, operator=faulty), backend)


@each_operator
def test_a_planted_error_in_one_element_is_found(operator: Operator, backend: Backend) -> None:
    form = operator.backward[backend.name]

    def faulty(*args: Any, **params: Any) -> tuple:
        first, *others = form(*args, **params)
        at = np.unravel_index(np.argmax(abs(backend.numpy(first))), first.shape)
        first[at] *= 1.001
        return first, *others

    table = {**operator.backward, backend.name: faulty}
    for call in (full_call(operator), full_call(operator, N=1, H=21, W=33)):
        with pytest.raises(AssertionError, match="is off"):
            check(replace(call, operator=replace(operator, backward=table)), backend)


@each_operator
@pytest.mark.parametrize("backend", backend_params("cpu", "host", "ptx", "cuda"), indirect=True)
def test_a_nan_that_is_lost_is_found(operator: Operator, backend: Backend) -> None:
    form = operator.forward[backend.name]

    def cleaned(*args: Any, **params: Any) -> tuple:
        output, kept = form(*args, **params)
        output[output != output] = 0
        return output, kept

    call = full_call(operator)
    arrays = (
        array if name in operator.numbers else np.full_like(array, np.nan)
        for name, array in zip(operator.arrays, call.arrays, strict=True)
    )
    call = replace(call, arrays=tuple(arrays), grad_output=np.full_like(call.grad_output, np.nan))
    check_nonfinite(call, backend)
    with pytest.raises(AssertionError, match="differs in what is finite"):
        check_nonfinite(
            replace(
                call,
                operator=replace(
                    operator, forward={backend.name: cleaned, "reference": operator.forward["reference"]}
                ),
            ),
            backend,
        )
