"""Ten thousand drawn calls per operator: output and gradients against the definition.

Most calls hold multiples of 1/2 of at most 2 in magnitude. Every product and sum of them is exact, in float32
too, so that each result must be equal to the definition's in every element, whatever the order of the sums;
ties, integers and halves, which real numbers never meet, come up all the time. The others hold real numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from _contract import (
    LAYOUTS,
    REFERENCE,
    RTOL_DERIVATIVE,
    Call,
    compare,
    each_operator,
    evaluate,
    laid_out,
    make_call,
    output_shape,
    parts,
    threads,
)
from conftest import Backend, backend_params
from hypothesis import given, note, settings
from hypothesis import strategies as st

from dynarray import Operator
from dynarray._operator import Case
from dynarray.cpu.engine import parallel

# Drawn calls, each made twice, in other dtypes and layouts: the definition takes longest, and is asked once
# for both. What a call costs decides how ten thousand are shared out: on the host a CUDA thread is a fiber.
DRAWN = {"cpu": 4_500, "host": 500}
# One draw per case, a byte for each choice: a draw for each of 20 choices costs more than the call does.
# Bytes shrink one by one, and 0 is the first of the choices.
CHOICES = st.binary(min_size=40, max_size=40)
CONSTANT = ("constant-rows", "constant")  # layouts that change the values
KEEPING = ("as it is", *(layout for layout in LAYOUTS if layout not in CONSTANT))
# Sums that cancel: a gradient may be a single number, which is then small beside its terms.
RTOL_REAL = RTOL_DERIVATIVE
# The normalised Gaussian of so small a sigma is 1 at its centre and 0 elsewhere: exp(-2048) underflows.
NO_BLUR = 1 / 64


def chooser(choices: bytes) -> Callable[[Sequence], Any]:
    """``pick(sequence)``, each call deciding by the next byte."""
    following = iter(choices)
    return lambda sequence: sequence[next(following) % len(sequence)]


def exact_call(operator: Operator, case: Case, seed: int) -> Call:
    """A call whose values are multiples of 1/2, within the limits of the case."""
    rng = np.random.default_rng(seed)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "sigma":
            return np.full(shape, NO_BLUR)
        low, high = case.ranges.get(name, (-2, 2))
        return np.asarray(rng.integers(int(2 * low), int(2 * high) + 1, shape) / 2)

    arrays = tuple(
        None if case.shapes[name] is None else values(name, case.shapes[name]) for name in operator.arrays
    )
    return Call(operator, arrays, case.params, values("", output_shape(operator, arrays, case.params)))


def is_exact(call: Call) -> bool:
    """Whether the formula of this call has no division that rounds, and no blur."""
    if call.operator.name == "displaced_conv2d":
        return call.arrays[call.operator.arrays.index("sigma")] is not None
    channels = call.arrays[0].shape[1]
    return not call.params.get("kernel_residual") or channels & (channels - 1) == 0  # 1/C


class Drawn(NamedTuple):
    """A call in float64, which gradients it asks for, how it is made, and all of it in words."""

    call: Call
    needs: tuple[bool, ...]
    exact: bool
    ways: tuple[tuple[str, str], ...]  # dtype and layout
    words: str


def draw(operator: Operator, choices: bytes) -> Drawn:
    """A call from the bytes that hypothesis drew."""
    pick = chooser(choices)
    case = operator.cases(pick, N=pick((1, 2, 3, 0)))
    seed, exact, values = pick(range(256)), pick((True, True, False)), pick(("as drawn", *CONSTANT))
    call = exact_call(operator, case, seed)
    if not (exact and is_exact(call)):
        # Equal numbers would make gradients 0, and rounding errors all there is.
        exact, values, call = False, "as drawn", make_call(operator, case, seed)
    if values in CONSTANT:
        call = call.map(lambda array: laid_out(array, values))
    everything = (True,) * len(call.arrays)
    needs = everything if pick((True, False)) else tuple(pick((True, False)) for _ in everything)
    dtypes = ("float32", "float64") if exact else ("float64",) * 2
    ways = tuple((dtype, pick(KEEPING)) for dtype in dtypes)
    kind = "exact" if exact else "real"
    words = f"{call.describe()}, {kind} values of seed {seed}, {values}, needs {needs}, {ways}"
    return Drawn(call, needs, exact, ways, words)


def check_drawn(operator: Operator, backend: Backend, choices: bytes) -> None:
    """Require the results of the definition: equal ones of exact values."""
    call, needs, exact, ways, words = draw(operator, choices)
    note(words)
    expected = evaluate(call, REFERENCE, needs)
    wanted = tuple(a if needed else None for a, needed in zip(call.arrays, needs, strict=True))
    for dtype, layout in ways:
        made = call if dtype == "float64" else call.astype(dtype)
        if layout in LAYOUTS:
            made = made.map(lambda array, layout=layout: laid_out(array, layout))
        actual = evaluate(made, backend, needs)
        for what, mine, right in parts(replace(made, arrays=wanted), actual, expected):
            assert mine.dtype == dtype, f"{what} has dtype {mine.dtype}"
            compare(made, f"{what} in {dtype}, {layout},", mine, right, 0 if exact else RTOL_REAL)


@pytest.mark.slow
@each_operator
@pytest.mark.parametrize("backend", backend_params(*DRAWN), indirect=True)
def test_ten_thousand_drawn_calls(
    operator: Operator, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In some calls three threads share even the smallest work; waking them takes longer than the work.
    inline = parallel.SMALL

    @settings(max_examples=DRAWN[backend.name])
    @given(choices=CHOICES)
    def each(choices: bytes) -> None:
        monkeypatch.setattr(parallel, "SMALL", inline if choices[-1] % 8 else 0)
        check_drawn(operator, backend, choices)

    with threads(3):
        each()
