"""Ten thousand drawn calls per operator with NaN, infinities, zeros, huge and subnormal numbers anywhere.

NaN and each infinity come out where the definition has them. What a kernel pads with, leaves out or shares
between outputs shows here: zero times infinity is NaN, and so is the difference of two infinities. Whether a
sum vanishes, or overflows, must not be a matter of rounding, since the definition rounds as well:

- most calls hold multiples of 1/2, whose sums vanish exactly or not, and whole arrays of them may be scaled
  by a power of two; real numbers are left as they are;
- single huge and subnormal numbers, beside which ordinary ones are lost, meet no infinity;
- only one array of a call holds huge numbers, a thousand of which are far from an overflow.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from _calls import draw_case, family
from _calls._call import Case
from _contract import REFERENCE, Call, each_operator, evaluate, full_call, make_call, parts
from conftest import Backend, backend_params
from test_robustness_drawn import exact_call, is_exact

from dynarray import OPERATORS, Operator
from dynarray.typing import Border

DRAWN = 10_000  # calls per operator and backend, by `make test-long`
SAMPLE = 100  # the first of them, in every run
fast_backends = pytest.mark.parametrize("backend", backend_params("cpu", "host", "cuda"), indirect=True)
INFINITE = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])
SAMPLED = [name for name, each in OPERATORS.items() if each.stem == "deform" and "border" in each.defaults]
each_sampled = pytest.mark.parametrize("name", SAMPLED)


class Sizes(NamedTuple):
    """Powers of two: huge and tiny ones, with room for the products of a call, and the least of all."""

    huge: float
    tiny: float
    least: float


SIZES = {
    "float64": Sizes(2.0**1000, 2.0**-1040, 2.0**-1074),
    "float32": Sizes(2.0**105, 2.0**-130, 2.0**-149),
}


def draw_special(operator: Operator, seed: int) -> tuple[Call, str]:
    """A call, in some of whose arrays, the gradient of the output among them, are special values; its dtype.

    Its numbers are of this dtype, though the arrays are of float64.
    """
    rng = np.random.default_rng(seed)

    def pick(choices: Sequence) -> Any:
        return choices[int(rng.integers(len(choices)))]

    large = {"H": 21, "W": 33} if rng.random() < 0.1 else {}  # several tiles and blocks
    case = draw_case(operator, pick, N=int(rng.integers(1, 3)), **large)
    undrawn = getattr(family(operator), "UNDRAWN", {}).get(operator.name, {})
    case = case._replace(params={**case.params, **{name: pick(values) for name, values in undrawn.items()}})
    call, dtype = exact_call(operator, case, seed), pick(("float64", "float32"))
    exact = is_exact(call) and rng.random() < 0.7
    if not exact:
        call = make_call(operator, case, seed).astype(dtype).astype("float64")
    arrays = {
        name: array.copy()
        for name, array in zip((*operator.arrays, ""), call.everything, strict=True)
        if array is not None and array.size and name not in operator.numbers
    }
    if arrays:
        spoil = spoil_and_scale if rng.random() < 0.7 else spoil_widely
        spoil(rng, arrays, SIZES[dtype], case if exact else None)
    everything = zip((*operator.arrays, ""), call.everything, strict=True)
    return call.with_everything(tuple(arrays.get(name, array) for name, array in everything)), dtype


def spoil_and_scale(
    rng: np.random.Generator, arrays: dict[str, np.ndarray], sizes: Sizes, case: Case | None
) -> None:
    """Put NaN, infinities and zeros into some arrays; of an exact call, one array may be huge or tiny."""
    scaled = rng.choice(list(arrays))
    if case is not None and scaled not in case.ranges and rng.random() < 0.4:
        arrays[scaled] *= rng.choice([sizes.huge, sizes.tiny])
    for array in arrays.values():
        if rng.random() < 0.4:
            scatter(rng, array, INFINITE)


def spoil_widely(
    rng: np.random.Generator, arrays: dict[str, np.ndarray], sizes: Sizes, case: Case | None
) -> None:
    """Put NaN, zeros and subnormal numbers into some arrays, and huge ones into one of them."""
    huge, small = rng.choice(list(arrays)), (0.0, -0.0, sizes.least, -sizes.least, sizes.tiny)
    for name, array in arrays.items():
        if rng.random() < 0.4:
            scatter(rng, array, np.array([*small, np.nan] if rng.random() < 0.3 else small))
        if name == huge:
            scatter(rng, array, np.array([sizes.huge, -sizes.huge]))


def scatter(rng: np.random.Generator, array: np.ndarray, values: np.ndarray) -> None:
    """Overwrite a few elements."""
    some = rng.integers(array.size, size=int(rng.integers(1, 3)))
    array.flat[some] = rng.choice(values, some.shape)


def special(array: np.ndarray) -> np.ndarray:
    """0 where the array is finite, another number for NaN and each infinity."""
    return np.where(np.isnan(array), 2, np.where(np.isinf(array), np.sign(array), 0))


def check_special(call: Call, backend: Backend, dtype: str = "float64") -> None:
    """Require NaN and each infinity where the definition has them, and nowhere else."""
    with np.errstate(all="ignore"):
        actual, expected = evaluate(call.astype(dtype), backend), evaluate(call, REFERENCE)
    for what, mine, right in parts(call, actual, expected):
        wrong = np.argwhere(special(mine) != special(right))
        assert not len(wrong), (
            f"{call.describe()} in {dtype}: {what} differs at {len(wrong)} elements, for one at "
            f"{tuple(map(int, wrong[0]))}: {mine[tuple(wrong[0])]}, expected {right[tuple(wrong[0])]}"
        )


def check_drawn(operator: Operator, backend: Backend, seeds: range) -> None:
    """Require it of the calls of these seeds."""
    for seed in seeds:
        call, dtype = draw_special(operator, seed)
        try:
            check_special(call, backend, dtype)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


@fast_backends
@each_operator
def test_special_values_come_out_where_the_definition_has_them(backend: Backend, operator: Operator) -> None:
    check_drawn(operator, backend, range(SAMPLE))


@pytest.mark.long
@pytest.mark.timeout(0)
@fast_backends
@each_operator
def test_ten_thousand_calls_with_special_values(backend: Backend, operator: Operator) -> None:
    check_drawn(operator, backend, range(SAMPLE, DRAWN))


def thin_call(name: str, border: str, seed: int) -> tuple[Call, int]:
    """Real numbers on images of one row or of one column, and which of both; lines have one pixel."""
    axis, line = seed % 2, name.endswith("1d")
    call = full_call(OPERATORS[name], seed // 2, **({"H": 1, "W": 1} if line else {"HW"[axis]: 1}))
    return replace(call, params={**call.params, "border": border}), axis


@fast_backends
@each_sampled
@pytest.mark.parametrize("border", get_args(Border))
def test_special_values_on_thin_images(backend: Backend, name: str, border: str) -> None:
    for seed in range(12):
        call, _ = thin_call(name, border, seed)
        rng = np.random.default_rng(seed)
        for array in call.everything:
            if rng.random() < 0.4:
                scatter(rng, array, INFINITE)
        check_special(call, backend)


@pytest.mark.parametrize("backend", backend_params("reference", "cpu", "host", "cuda"), indirect=True)
@each_sampled
@pytest.mark.parametrize("border", get_args(Border)[1:])
def test_thin_images_have_no_slope_across(backend: Backend, name: str, border: str) -> None:
    """All pixels across are one: the slope is 0, not what rounding leaves; times infinity it is NaN."""
    for seed in range(12):
        call, axis = thin_call(name, border, seed)
        by_name = dict(zip(call.operator.arrays, call.arrays, strict=True))
        mask, axes = by_name.get("mask"), by_name["x"].ndim - 2
        shape = len(by_name["x"]), -1, axes, *call.grad_output.shape[-axes:]
        if mask is not None:
            scatter(np.random.default_rng(seed), mask, np.array([np.inf, -np.inf]))
        with np.errstate(all="ignore"):
            found = evaluate(call, backend).gradients[1].reshape(shape)[:, :, axis % axes]
            expected = np.zeros(found.shape) if mask is None else 0 * mask.reshape(found.shape)
        np.testing.assert_array_equal(found, expected)


@fast_backends
@pytest.mark.parametrize("value", INFINITE[:4])
def test_the_gradient_of_a_weight_does_not_read_it(backend: Backend, value: float) -> None:
    """Of an operator that is linear in its weight, to the last bit."""
    call = full_call(OPERATORS["displaced_conv2d"])
    weight = call.arrays[1].copy()
    weight[0, 1, 0] = value
    spoiled = replace(call, arrays=(call.arrays[0], weight, *call.arrays[2:]))
    with np.errstate(all="ignore"):
        clean, other = (evaluate(each, backend).gradients for each in (call, spoiled))
    assert np.isfinite(clean[1]).all()
    np.testing.assert_array_equal(other[1], clean[1])


@fast_backends
@pytest.mark.parametrize("change", ["lost", "turned"])
def test_a_special_value_in_the_wrong_place_is_found(backend: Backend, change: str) -> None:
    operator = OPERATORS["displaced_conv2d"]
    call = full_call(operator)
    call.arrays[4][0] = np.inf
    form = operator.forward[backend.name]
    spoil: Callable = {"lost": np.nan_to_num, "turned": np.negative}[change]

    def spoiled(*args: object, **params: object) -> tuple:
        output, kept = form(*args, **params)
        output[...] = backend.array(spoil(backend.numpy(output)))
        return output, kept

    forms = {**operator.forward, backend.name: spoiled}
    check_special(call, backend)
    with pytest.raises(AssertionError, match="output differs"):
        check_special(replace(call, operator=replace(operator, forward=forms)), backend)
