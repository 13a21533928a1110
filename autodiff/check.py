"""Checking gradients against numbers that owe nothing to the rules under test."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .tape import Tape
from .variable import Variable, plain

# Step of the complex difference: its truncation error, its square, vanishes beside rounding.
COMPLEX_STEP = 1e-30
DIRECTIONS = 4
FULL_JACOBIAN = 200
# Of the value, for a change of 1 or of the largest element if that is more: a smaller slope is rounding.
# Elements that are all tiny must not make it large: then any gradient would do.
LEAST_SLOPE = 1e-6


class Comparison(NamedTuple):
    """One input of a gradient check: the largest error relative to the largest value, and where."""

    name: str
    shape: tuple[int, ...]
    error: float
    where: str
    passed: bool


class GradientError(AssertionError):
    """A gradient disagrees with a numerical derivative; `comparisons` holds the table."""

    def __init__(self, message: str, comparisons: list[Comparison]) -> None:
        super().__init__(message)
        self.comparisons = comparisons


def check_gradients(
    f: Callable,
    *arrays: Any,
    reference: Callable | None = None,
    method: str = "auto",
    rtol: float | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> list[Comparison]:
    """Compare the gradients of a function on the tape with numerical derivatives.

    Parameters
    ----------
    f : callable
        ``f(*arrays)`` with an array as value, made of differentiable functions.
    *arrays : array
        Of float64, any shape; every one is checked.
    reference : callable, optional
        What is differentiated numerically instead of `f`: the same function in plain NumPy.
    method : {"auto", "complex", "central"}
        "complex": derivative from the imaginary part of ``reference(x + ih)``, accurate to rounding; needs a
        function that is analytic and takes complex arrays. "central": Richardson-extrapolated central
        differences, accurate to about 1e-9 for smooth functions of scale 1. "auto": complex if the function
        takes it and its real part agrees.
    rtol : float, optional
        Largest error allowed, relative to the largest entry of the expected gradient: 1e-9 by default for
        complex steps, 1e-7 for central differences. Where the gradient is zero but for rounding, it is
        relative to a millionth of the value, for a change of 1 or of the largest element.
    seed : int
        For the random weighting of outputs, and for the random directions used for inputs of over 200
        elements; smaller inputs are checked element by element.
    verbose : bool
        Print the table.

    Returns
    -------
    list of Comparison
        One per array.

    Raises
    ------
    GradientError
        If any gradient is off, with the table in its message.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import check_gradients, functions as F
    >>> (result,) = check_gradients(lambda x: F.sum(F.sin(x) * x), np.linspace(0, 1, 5), verbose=False)
    >>> result.shape, result.passed
    ((5,), True)
    """
    function = f if reference is None else reference

    def definition(*inputs: Any) -> Any:
        # A Variable where there are others than these: the parameters of a layer.
        return np.asarray(plain(function(*inputs)))

    arrays = tuple(np.asarray(a) for a in arrays)
    for number, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise TypeError(f"check_gradients: array {number} must be float64, got {array.dtype}")
    rng = np.random.default_rng(seed)
    grads, weights = _tape_gradients(f, arrays, rng)
    method = _choose(definition, arrays, weights) if method == "auto" else method
    if method not in ("complex", "central"):
        raise ValueError(f"check_gradients: method must be 'auto', 'complex' or 'central', got {method!r}")
    tolerance = rtol if rtol is not None else 1e-9 if method == "complex" else 1e-7

    def value(inputs: tuple) -> Any:
        # Sums of arrays without axes are scalars, which an operator would refuse.
        return (definition(*map(np.asarray, inputs)) * weights).sum()

    least = LEAST_SLOPE * float(np.abs(definition(*arrays) * weights).sum())
    table = [
        _compare(value, arrays, i, grads[i], (method, tolerance, least), rng) for i in range(len(arrays))
    ]
    text = _format(table, method, tolerance)
    if verbose:
        print(text)
    if not all(row.passed for row in table):
        raise GradientError(f"gradients disagree with {method} differences\n{text}", table)
    return table


def _tape_gradients(f: Callable, arrays: tuple, rng: np.random.Generator) -> tuple[list, Any]:
    """Gradients of a random weighting of the outputs: ones would hide errors that cancel in a sum."""
    with Tape() as tape:
        inputs = [Variable(a, name=f"array {i}") for i, a in enumerate(arrays)]
        output = f(*inputs)
    if not isinstance(output, Variable):
        raise TypeError(
            "check_gradients: the value of f does not depend on its arrays through differentiable functions"
        )
    weights = rng.standard_normal(output.shape)
    return tape.gradient(output, inputs, grad=weights, unused="zero"), weights


def _choose(reference: Callable, arrays: tuple, weights: Any) -> str:
    """Complex steps if the function takes complex arrays and its slope along i is i times the real one."""
    try:
        real, step = reference(*arrays), 1e-6
        along_i = reference(*(a + 1j * step for a in arrays))
        along_1 = reference(*(a + step for a in arrays))
    except (TypeError, ValueError):
        return "central"
    scale = np.abs(along_1 - real).max(initial=0) + 1e-12
    analytic = np.abs((along_i - real) - 1j * (along_1 - real)).max(initial=0) <= 1e-3 * scale
    return "complex" if np.iscomplexobj(along_i) and analytic else "central"


def _compare(
    value: Callable,
    arrays: tuple,
    i: int,
    grad: Any,
    allowed: tuple[str, float, float],
    rng: np.random.Generator,
) -> Comparison:
    """One row of the table; `least` is the change below which there is only rounding."""
    size, shape, (method, rtol, least) = arrays[i].size, arrays[i].shape, allowed
    every = size <= FULL_JACOBIAN
    directions = np.eye(size) if every else rng.standard_normal((DIRECTIONS, size))
    derivative = _complex_step if method == "complex" else _central
    expected = np.array([derivative(value, arrays, i, d.reshape(shape)) for d in directions])
    actual = directions @ np.asarray(grad).ravel() if size else expected
    if actual.shape != expected.shape or np.shape(grad) != shape:
        return Comparison(f"array {i}", shape, np.inf, "shape", False)
    errors = np.abs(actual - expected)
    finite = bool(np.isfinite(errors).all())
    worst = int(errors.argmax()) if size else 0
    largest = np.abs(arrays[i]).max(initial=0)
    scale = max(np.abs(expected).max(initial=0), least / max(1.0, largest))
    error = float(errors.max(initial=0) / scale) if scale else float(errors.max(initial=0))
    place = (
        str(tuple(int(k) for k in np.unravel_index(worst, shape))) if every and size else f"direction {worst}"
    )
    return Comparison(f"array {i}", shape, error if finite else np.nan, place, finite and error <= rtol)


def _complex_step(value: Callable, arrays: tuple, i: int, direction: Any) -> float:
    # All of them complex: operators want one dtype.
    moved = tuple(a + 1j * COMPLEX_STEP * (direction if j == i else 0) for j, a in enumerate(arrays))
    return float(np.imag(value(moved)) / COMPLEX_STEP)


def _central(value: Callable, arrays: tuple, i: int, direction: Any) -> float:
    """Central differences with steps h and h/2, combined so that errors of order h**2 cancel."""

    def slope(h: float) -> float:
        ahead = tuple(a + h * direction if j == i else a for j, a in enumerate(arrays))
        behind = tuple(a - h * direction if j == i else a for j, a in enumerate(arrays))
        return float((value(ahead) - value(behind)) / (2 * h))

    h = 1e-3 * max(1.0, float(np.abs(arrays[i]).max(initial=0)))
    return (4 * slope(h / 2) - slope(h)) / 3


def _format(table: list[Comparison], method: str, rtol: float) -> str:
    lines = [f"{'input':<10} {'shape':<24} {'worst error':>12}  {'at':<20} ({method}, allowed {rtol:g})"]
    for row in table:
        verdict = "" if row.passed else "  WRONG"
        lines.append(f"{row.name:<10} {row.shape!s:<24} {row.error:>12.2e}  {row.where:<20}{verdict}")
    return "\n".join(lines)
