"""What the contract tests share: calls with random arrays, what a backend makes of them, and what is right.

Two things are right beyond doubt: the reference, because it is the definition, and its derivatives by complex
steps, because they need no gradient formula. Everything is compared with one of them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes  # registers bfloat16 with NumPy
import numpy as np
import pytest
from _calls import draw_case
from _calls._call import Case
from conftest import Backend

import dynarray as dyn
from dynarray import OPERATORS, Operator

REFERENCE = Backend("reference")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The imaginary part of f(x + i*STEP*d) is STEP * f'(x)d up to a relative STEP**2, which float64 cannot see;
# nothing is subtracted, so that nothing cancels.
STEP = 2.0**-100
# Arrays with fewer elements in all get their whole Jacobian.
SMALL = 200
# Rounding alone: a sum of n products is off by about sqrt(n) units of 1e-16.
RTOL_REFERENCE = 1e-11
RTOL_DERIVATIVE = 1e-9

each_operator = pytest.mark.parametrize("operator", list(OPERATORS.values()), ids=list(OPERATORS))
each_with_halo = pytest.mark.parametrize(
    "operator", [pytest.param(each, id=name) for name, each in OPERATORS.items() if each.reads is not None]
)
each_mixed_operator = pytest.mark.parametrize(
    "operator", [pytest.param(each, id=name) for name, each in OPERATORS.items() if each.may_be_float32]
)
each_array = pytest.mark.parametrize(
    ("operator", "index"),
    [
        pytest.param(operator, index, id=f"{operator.name}-{name}")
        for operator in OPERATORS.values()
        for index, name in enumerate(operator.arrays)
    ],
)


class Result(NamedTuple):
    """The output of a call and the gradient of each of its arrays."""

    output: Any
    gradients: tuple


@dataclass(frozen=True)
class Call:
    """An operator, its arrays (None where left out), its parameters, and the gradient of its output."""

    operator: Operator
    arrays: tuple
    params: dict[str, Any]
    grad_output: np.ndarray

    @property
    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        """Positional and keyword arguments of the public function."""
        positional, by_keyword = self.operator.arguments(self.arrays)
        return positional, {**by_keyword, **self.params}

    @property
    def everything(self) -> tuple:
        """All arrays and the gradient of the output."""
        return *self.arrays, self.grad_output

    def with_everything(self, everything: tuple) -> "Call":
        """The same call on other arrays."""
        return replace(self, arrays=tuple(everything[:-1]), grad_output=everything[-1])

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Call":
        """The same call with every array changed."""
        return self.with_everything(tuple(None if a is None else change(a) for a in self.everything))

    def astype(self, dtype: Any, others: Mapping[str, Any] = MappingProxyType({})) -> "Call":
        """The same call in another dtype; `others` has those of some arrays, by name."""
        names = (*self.operator.arrays, "grad_output")
        return self.with_everything(
            tuple(
                None if array is None else array.astype(others.get(name, dtype))
                for name, array in zip(names, self.everything, strict=True)
            )
        )

    def describe(self) -> str:
        """What one needs to repeat the call."""
        shapes = {
            name: None if array is None else array.shape
            for name, array in zip(self.operator.arrays, self.arrays, strict=True)
        }
        return f"{self.operator.name} {shapes} {self.params}"


def output_shape(operator: Operator, arrays: tuple, params: dict[str, Any]) -> tuple[int, ...]:
    """The shape that the operator's check announces."""
    return operator.check(*arrays, **{**operator.defaults, **params}).output_shape


def with_halo(call: Call) -> Call:
    """The call, with another border where it reads the other side of the image, which is refused by name."""
    if call.params.get("border") != "wrap":
        return call
    with pytest.raises(ValueError, match=f"{call.operator.name}: border 'wrap'"):
        call.operator.halo(call.params, call.arrays)
    return replace(call, params={**call.params, "border": "reflect"})


def make_call(operator: Operator, case: Case, seed: int) -> Call:
    """A call with random float64 arrays of the shapes of `case`."""
    rng = np.random.default_rng(seed)
    arrays = tuple(
        None if case.shapes[name] is None else _values(rng, case.shapes[name], case.ranges.get(name))
        for name in operator.arrays
    )
    grad_output = rng.standard_normal(output_shape(operator, arrays, case.params))
    return Call(operator, arrays, case.params, grad_output)


def _values(rng: np.random.Generator, shape: tuple, limits: tuple[float, float] | None) -> np.ndarray:
    return np.asarray(rng.uniform(*limits, shape) if limits else rng.standard_normal(shape))


def seeded_case(operator: Operator, seed: int, **fixed: int) -> Case:
    """One valid call, its free choices made by a seed."""
    rng = np.random.default_rng(seed)
    return draw_case(operator, lambda choices: choices[int(rng.integers(len(choices)))], **fixed)


def full_call(operator: Operator, seed: int = 0, **fixed: int) -> Call:
    """A call of two images of a few pixels, with every optional array and no empty one."""
    fixed = {"N": 2, "H": 6, "W": 5, **fixed}
    for attempt in range(seed * 1000, (seed + 1) * 1000):
        case = seeded_case(operator, attempt, **fixed)
        if all(shape is not None and 0 not in shape for shape in case.shapes.values()):
            call = make_call(operator, case, seed)
            if call.grad_output.size > 1:
                return call
    raise LookupError(f"{operator.name}: its cases never gave every array")


def _moved(array: Any) -> Any:
    """The same values one element past an aligned address."""
    memory = array.ravel().repeat(2)[1 : 1 + array.size]
    memory[...] = array.ravel()
    return memory.reshape(array.shape)


def _unaligned(array: np.ndarray) -> np.ndarray:
    """The same values at an odd address."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype) if array.size else array.ravel()
    view = np.ndarray(array.shape, array.dtype, memory.data, offset=1)
    view[...] = array
    return view


def _flipped(array: Any) -> Any:
    every = (slice(None, None, -1),) * array.ndim
    return array[every].copy()[every]


def _sparse(array: Any) -> Any:
    """Every second element of a larger array, which has other values in between."""
    if array.ndim == 1:
        return array.repeat(2)[1::2]
    if array.ndim == 2:
        return array.repeat(2, -1).repeat(2, 0)[1::2, ::2]
    return array.repeat(2, -1).repeat(2, 1)[:, 1::2, ..., ::2]


def _transposed(array: Any) -> Any:
    return array.T.copy().T


LAYOUTS: dict[str, Callable] = {
    "transposed": _transposed,
    "flipped": _flipped,
    "sparse": _sparse,
    "moved": _moved,
    "unaligned": _unaligned,
    # The last two change the values: stride 0 along the last axis, and along all.
    "constant-rows": lambda array: np.broadcast_to(array[..., :1], array.shape),
    "constant": lambda array: np.broadcast_to(array[(slice(1),) * array.ndim], array.shape),
}


def laid_out(array: Any, layout: str) -> Any:
    """The array in another layout; an array of no axes has but one."""
    return LAYOUTS[layout](array) if array.ndim else array


def evaluate(call: Call, backend: Backend, needs: tuple[bool, ...] | None = None) -> Result:
    """Forward and backward pass on one backend; the results as NumPy arrays."""
    needs = needs or (True,) * len(call.arrays)
    with backend.use():
        output, saved = call.operator.run(tuple(map(backend.array, call.arrays)), backend.params(call.params))
        gradients = call.operator.gradients(backend.array(call.grad_output), saved, needs)
    return Result(backend.numpy(output), tuple(map(backend.numpy, gradients)))


def naive(call: Call) -> Result:
    """The textbook formula carried out in the dtype of the call, which dispatch may not offer.

    Where arrays differ in dtype, all is done in the wider one, and each result rounded once to its own.
    """
    operator = call.operator
    given = [array.dtype for array in call.everything if array is not None]
    if len(set(given)) > 1:
        wide = naive(call.astype(max(given, key=lambda dtype: dtype.itemsize)))
        gradients = tuple(
            None if array is None else gradient.astype(array.dtype)
            for array, gradient in zip(call.arrays, wide.gradients, strict=True)
        )
        return Result(wide.output.astype(call.grad_output.dtype), gradients)
    checked = operator.check(*call.arrays, **{**operator.defaults, **call.params})
    output, saved = operator.run_checked("reference", checked, call.arrays)
    everything = (True,) * len(call.arrays)
    return Result(output, operator.gradients_checked(call.grad_output, saved, everything))


def parts(call: Call, *results: Result) -> Iterator[tuple]:
    """The name and the values, in each result, of the output and of every gradient that there is."""
    yield "output", *(result.output for result in results)
    for index, (name, array) in enumerate(zip(call.operator.arrays, call.arrays, strict=True)):
        values = [result.gradients[index] for result in results]
        if array is None:
            assert all(value is None for value in values), f"{call.describe()}: gradient of {name}, not given"
        else:
            yield f"gradient of {name}", *values


def compare(
    call: Call, what: str, actual: np.ndarray, expected: np.ndarray, rtol: float, size: float | None = None
) -> None:
    """Require two arrays to agree to `rtol` of `size`, by default that of the largest expected element."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{call.describe()}: {what} has shape {actual.shape}, expected {expected.shape}")
    error, size = largest(actual - expected), largest(expected) if size is None else size
    # Not "error > bound": a NaN must fail.
    if not error <= rtol * size:
        worst = np.unravel_index(np.argmax(np.abs(actual - expected)), actual.shape)
        raise AssertionError(
            f"{call.describe()}: {what} is off by {error:.3g}, allowed {rtol:g} of {size:.3g}; "
            f"worst at {tuple(map(int, worst))}: {actual[worst]!r}, expected {expected[worst]!r}"
        )


def largest(array: np.ndarray) -> float:
    """The largest magnitude, NaN if there is one, 0 of nothing."""
    return float(np.max(np.abs(array))) if array.size else 0.0


def least_slope(call: Call, name: str) -> float:
    """A thousandth of pixel times gradient where nothing may be left of a slope but its rounding error.

    That is between corners that are copies of one pixel.
    """
    copies = name in ("points", "offset") and call.params.get("border", "constant") != "constant"
    return 1e-3 * largest(call.grad_output) * largest(call.arrays[0]) if copies else 0.0


def size_of(call: Call, what: str, expected: np.ndarray) -> float:
    """What an error of one of the `parts` is measured against: its largest element.

    A gradient that is a single number is what is left of the terms that it sums, which may cancel. Their
    rounding errors add up as random numbers do: there it is the root of the sum of their squares.
    """
    name = what.removeprefix("gradient of ")
    if least_slope(call, name):
        return max(largest(expected), least_slope(call, name))
    if name == what or expected.size != 1:
        return largest(expected)
    call = call.astype(np.float64)
    index = call.operator.arrays.index(name)
    slope = stepped(call, index, np.ones_like(call.arrays[index])).imag / STEP
    return float(np.linalg.norm(call.grad_output * slope))


def reference_output(call: Call) -> np.ndarray:
    """The output of the definition, for real or complex arrays."""
    with REFERENCE.use():
        return call.operator(call.arrays, **call.params)


def stepped(call: Call, index: int, direction: np.ndarray) -> np.ndarray:
    """The output of the definition after a complex step along `direction` in the array `index`."""
    arrays = [None if array is None else array.astype(complex) for array in call.arrays]
    arrays[index] = np.asarray(arrays[index] + 1j * STEP * direction)
    return reference_output(replace(call, arrays=tuple(arrays)))


def derivative(call: Call, index: int, direction: np.ndarray) -> float:
    """Derivative of <grad_output, output> along `direction` in the array `index`, by a complex step."""
    return float(np.vdot(call.grad_output, stepped(call, index, direction)).imag / STEP)


def check_gradients(call: Call, gradients: tuple, directions: int = 2) -> None:
    """Require the derivatives of the reference: each element of small calls, random directions of large."""
    rng = np.random.default_rng(directions)
    small = sum(array.size for array in call.arrays if array is not None) < SMALL
    for index, (name, array) in enumerate(zip(call.operator.arrays, call.arrays, strict=True)):
        if array is None or not array.size:
            continue
        gradient, what = gradients[index], f"derivative by {name}"
        if small or array.size == 1:
            units = np.eye(array.size).reshape(-1, *array.shape)
            jacobian = np.reshape([derivative(call, index, unit) for unit in units], array.shape)
            size = size_of(call, f"gradient of {name}", jacobian)
            compare(call, what, gradient, jacobian, RTOL_DERIVATIVE, size)
            continue
        for _ in range(directions):
            direction = rng.standard_normal(array.shape)
            # Signs of the gradient, so that nothing cancels and every element counts by its size.
            direction = np.copysign(direction, gradient)
            expected = np.array(derivative(call, index, direction))
            size = max(largest(expected), least_slope(call, name))
            compare(call, what, np.vdot(gradient, direction), expected, RTOL_DERIVATIVE, size)


def ways(call: Call, backend: Backend) -> list[Call]:
    """The call and, where its kernels may add up in any order as well, the call that lets them."""
    if not call.params.get("deterministic", call.operator.defaults.get("deterministic")):
        return [call]
    others = [replace(call, params={**call.params, "deterministic": False})]
    return [call, *(others if backend.name in ("host", "ptx", "cuda") else ())]


def check(call: Call, backend: Backend) -> None:
    """Require a float64 call on `backend` to give the output and the gradients of the definition."""
    expected = evaluate(call, REFERENCE)
    results = [evaluate(way, backend) for way in ways(call, backend)]
    for result in results:
        for what, mine, right in parts(call, result, expected):
            compare(call, what, mine, right, RTOL_REFERENCE, size_of(call, what, right))
    check_gradients(call, results[0].gradients)


def check_low_precision(call: Call, backend: Backend, dtype: Any, in_float32: Collection[str] = ()) -> None:
    """Require an error, against float64, of at most twice that of the naive formula in the same dtypes.

    That is `dtype`, but for the arrays named in `in_float32`; each gradient has the dtype of its array.
    """
    low = call.astype(dtype, dict.fromkeys(in_float32, np.float32))
    exact = evaluate(low.astype(np.float64), REFERENCE)
    results = [evaluate(way, backend) for way in ways(low, backend)]
    compared = [each for result in results for each in parts(low, result, naive(low), exact)]
    own = [low.grad_output.dtype, *(array.dtype for array in low.arrays if array is not None)]
    where = f"{call.describe()} in {dtype}{', but float32 ' if in_float32 else ''}{', '.join(in_float32)}"
    for (what, mine, simple, right), expected in zip(compared, own * len(results), strict=True):
        assert mine.dtype == expected, f"{where}: {what} has dtype {mine.dtype}, expected {expected}"
        # A naive result that happens to be exact allows one unit in the last place.
        unit = float(ml_dtypes.finfo(expected).eps) * size_of(low, what, right)
        allowed = 2 * largest(simple.astype(np.float64) - right) + unit
        error = largest(mine.astype(np.float64) - right)
        if not error <= allowed:
            raise AssertionError(f"{where}: {what} is off by {error:.3g}, allowed {allowed:.3g}")


def check_nonfinite(call: Call, backend: Backend) -> None:
    """Require NaN and infinities to appear where they do in the definition, and nowhere else."""
    with np.errstate(invalid="ignore"):
        expected = evaluate(call, REFERENCE)
        results = [evaluate(way, backend) for way in ways(call, backend)]
    for what, mine, right in (each for result in results for each in parts(call, result, expected)):
        wrong = np.argwhere(np.isfinite(mine) != np.isfinite(right))
        if len(wrong):
            raise AssertionError(
                f"{call.describe()}: {what} differs in what is finite at {len(wrong)} elements, for one "
                f"at {tuple(map(int, wrong[0]))}: {mine[tuple(wrong[0])]}, expected {right[tuple(wrong[0])]}"
            )


def check_same_bits(call: Call, one: Result, other: Result) -> None:
    """Require two results to be equal to the last bit."""
    for what, a, b in parts(call, one, other):
        if a.tobytes() != b.tobytes():
            raise AssertionError(f"{call.describe()}: {what} is not the same to the last bit")


def check_threads(call: Call, backend: Backend, counts: tuple[int, ...] = (2, 3)) -> None:
    """Require the bits that one thread gives from each of these numbers of threads."""
    with threads(1):
        alone = evaluate(call, backend)
    for count in counts:
        with threads(count):
            check_same_bits(call, evaluate(call, backend), alone)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads for the CPU kernels."""
    before = dyn.get_num_threads()
    dyn.set_num_threads(count)
    try:
        yield
    finally:
        dyn.set_num_threads(before)
