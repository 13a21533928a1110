"""NaN, infinities and zeros drawn into every argument: they come out where the definition has them.

What a kernel pads with, leaves out or shares between outputs shows here: zero times infinity is NaN, and so
is the difference of two infinities. Most calls hold multiples of 1/2, whose sums vanish exactly or not;
where an infinity is multiplied by one that does not quite, the definition itself is a matter of rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from _calls import draw_case
from _contract import REFERENCE, Call, evaluate, full_call, make_call, parts
from conftest import Backend, backend_params
from test_robustness_drawn import exact_call, is_exact

from dynarray import OPERATORS, Operator

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0])
# Operators of which every drawn call agrees, and parameters that their cases leave out.
AGREEING = [
    ("displaced_conv2d", {}),
    ("displaced_conv2d", {"displacement_gradient": "smooth"}),
    ("displaced_conv1d", {}),
    ("deform_conv2d", {}),
    ("deform_conv1d", {}),
    ("sample_points", {}),
]
fast_backends = pytest.mark.parametrize("backend", backend_params("cpu", "host", "cuda"), indirect=True)


def draw_special(operator: Operator, seed: int, **params: object) -> Call:
    """A call, in some of whose arrays, the gradient of the output among them, are special values."""
    rng = np.random.default_rng(seed)

    def pick(choices: Sequence) -> object:
        return choices[int(rng.integers(len(choices)))]

    large = {"H": 21, "W": 33} if rng.random() < 0.1 else {}  # several tiles and blocks
    case = draw_case(operator, pick, N=int(rng.integers(1, 3)), **large)
    call = exact_call(operator, case, seed)
    if not is_exact(call) or rng.random() < 0.3:
        call = make_call(operator, case, seed)
    everything = [None if array is None else array.copy() for array in call.everything]
    for name, array in zip((*operator.arrays, ""), everything, strict=True):
        if array is not None and array.size and name not in operator.numbers and rng.random() < 0.4:
            some = rng.integers(array.size, size=int(rng.integers(1, 3)))
            array.flat[some] = rng.choice(SPECIAL, some.shape)
    return replace(call.with_everything(tuple(everything)), params={**call.params, **params})


def special(array: np.ndarray) -> np.ndarray:
    """0 where the array is finite, another number for NaN and each infinity."""
    return np.where(np.isnan(array), 2, np.where(np.isinf(array), np.sign(array), 0))


def check_special(call: Call, backend: Backend) -> None:
    """Require NaN and each infinity where the definition has them, and nowhere else."""
    with np.errstate(all="ignore"):
        actual, expected = evaluate(call, backend), evaluate(call, REFERENCE)
    for what, mine, right in parts(call, actual, expected):
        wrong = np.argwhere(special(mine) != special(right))
        assert not len(wrong), (
            f"{call.describe()}: {what} differs at {len(wrong)} elements, for one at {tuple(wrong[0])}: "
            f"{mine[tuple(wrong[0])]}, expected {right[tuple(wrong[0])]}"
        )


@fast_backends
@pytest.mark.parametrize(("name", "params"), AGREEING)
def test_special_values_come_out_where_the_definition_has_them(
    backend: Backend, name: str, params: dict
) -> None:
    for seed in range(300 if backend.name == "cpu" else 60):
        check_special(draw_special(OPERATORS[name], seed, **params), backend)


@fast_backends
@pytest.mark.parametrize("value", SPECIAL)
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
