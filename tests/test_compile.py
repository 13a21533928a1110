"""How kernels are compiled: what `engine.compile` and `engine.library` promise of machine code."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import numba
from numba.core.caching import NullCache
from numba.core.codegen import JitEngine

from dynarray.cpu.engine.compile import (
    borrowing_cached_jit,
    borrowing_jit,
    cached_jit,
    jit,
    literal_jit,
    rolled_jit,
    shared_jit,
)
from dynarray.cpu.engine.vectors import in_row


def _powers(value: float, number: int) -> float:
    total = 1.0
    for k in range(number):
        total = total * value + k
    return total


def _unkept(kernel: Any) -> Any:
    """The same kernel, compiled here: the name of an entry on disk tells nothing of sources of tests."""
    kernel._cache = NullCache()
    return kernel


def _kernel_calling(callee: Callable) -> Callable:
    """A kernel that calls it from two places, not yet compiled."""

    @cached_jit
    def kernel(values: np.ndarray, found: np.ndarray) -> None:
        found[0] = callee(values[0], len(values))
        if values[1] > 0:
            found[1] = callee(values[1], len(found))

    return _unkept(kernel)


def _compiled(function: Any) -> Any:
    """Its only compilation."""
    (made,) = function.overloads.values()
    return made


def _code(kernel: Any) -> str:
    """What LLVM has made of a kernel."""
    (code,) = kernel.inspect_llvm().values()
    return code


def _count(kind: str, function: Any, code: str) -> int:
    """How often code defines or calls a function, wherever else it names it."""
    name = re.escape(_compiled(function).fndesc.llvm_func_name)
    return len(re.findall(rf"^.*\b{kind}\b.*@{name}\(", code, re.MULTILINE))


@pytest.mark.parametrize("compile_callee", [jit, borrowing_jit, shared_jit, literal_jit, numba.njit])
def test_what_a_kernel_calls_has_no_machine_code_of_its_own(
    compile_callee: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, add = [], JitEngine.add_module

    def add_counted(engine: JitEngine, module: Any) -> Any:
        made.append(module.name)
        return add(engine, module)

    monkeypatch.setattr(JitEngine, "add_module", add_counted)
    kernel, found = _kernel_calling(compile_callee(_powers)), np.zeros(2)
    kernel(np.array([2.0, 3.0]), found)
    np.testing.assert_array_equal(found, [4 + 1, 9 + 1])
    made = [name for name in made if name != "nrt"]  # made at the first call in a process
    # Numba makes code of what it has compiled itself, which shows that the count can tell.
    assert len(made) == (2 if compile_callee is numba.njit else 1)


def test_shared_code_is_there_once_and_other_code_where_it_is_called() -> None:
    calls = {}
    for compile_callee in (borrowing_jit, shared_jit):
        callee = compile_callee(_powers)
        kernel = _kernel_calling(callee)
        kernel(np.array([2.0, 3.0]), np.zeros(2))
        code = _code(kernel)
        calls[compile_callee] = _count("define", callee, code), _count("call", callee, code)
    assert calls[shared_jit] == (1, 2)
    assert calls[borrowing_jit][1] == 0


def test_a_borrowing_kernel_counts_no_references() -> None:
    def reverse(array: np.ndarray, turned: np.ndarray) -> None:
        views = (array[::-1], turned)
        for k in range(len(array)):
            views[1][k] = views[0][k] if k else array[-1]

    codes = {}
    for compile_kernel in (numba.njit, borrowing_cached_jit, rolled_jit):
        kernel, turned = _unkept(compile_kernel(reverse)), np.zeros(4)
        kernel(np.arange(4.0), turned)
        np.testing.assert_array_equal(turned, [3, 2, 1, 0])
        codes[compile_kernel] = "NRT_" in _code(kernel)
    assert codes == {numba.njit: True, borrowing_cached_jit: False, rolled_jit: False}


def test_a_rolled_kernel_has_each_loop_once() -> None:
    def follow(array: np.ndarray, found: np.ndarray) -> None:
        total = 0.0
        for k in range(len(array)):
            total = total * 0.75 + array[k]  # each turn needs the one before: there is no vector of these
        found[0] = total
        for k in range(3):
            found[1] = found[1] / array[k]

    products, quotients = {}, {}
    for compile_kernel in (borrowing_cached_jit, rolled_jit):
        kernel, found = _unkept(compile_kernel(follow)), np.array([0.0, 1.0])
        kernel(np.array([4.0, 2.0, 1.0]), found)
        np.testing.assert_array_equal(found, [(4 * 0.75 + 2) * 0.75 + 1, 1 / 8])
        products[compile_kernel] = len(re.findall(r"= fmul\b", _code(kernel)))
        quotients[compile_kernel] = len(re.findall(r"= fdiv\b", _code(kernel)))
    assert (products[rolled_jit], quotients[rolled_jit]) == (1, 1)
    assert products[borrowing_cached_jit] > 1
    assert quotients[borrowing_cached_jit] > 1


def _kernel_of_literals(compile_callee: Callable) -> Any:
    """A kernel that adds numbers up, and one that lies between two others."""

    @compile_callee
    def total(array: np.ndarray) -> Any:
        result = array.dtype.type(0)
        for k in range(np.uint64(len(array))):
            result += array[k]
        return result

    @compile_callee
    def between(a: float, b: float, share: float) -> float:
        return (1 - share) * a + share * b

    @borrowing_cached_jit
    def kernel(array: np.ndarray, found: np.ndarray) -> None:
        found[0] = total(array)
        found[1] = between(found[2], found[3], found[4])

    return _unkept(kernel)


def test_literal_code_adds_up_in_order_and_keeps_infinities() -> None:
    array = (np.random.default_rng(0).standard_normal(1000) * 100).astype(np.float32)
    found = {}
    for compile_callee in (borrowing_jit, literal_jit):
        found[compile_callee] = np.array([0, 0, np.inf, np.inf, 0.5])
        _kernel_of_literals(compile_callee)(array, found[compile_callee])
    in_order = np.add.accumulate(array)[-1]
    assert (*found[literal_jit][:2],) == (in_order, np.inf)
    # Other code sums by vectors, and subtracts one infinity from the other, which shows that this can tell.
    assert found[borrowing_jit][0] != in_order
    assert np.isnan(found[borrowing_jit][1])


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4), (2, 0)])
def test_elements_in_a_row_are_those_of_the_array(shape: tuple) -> None:
    @borrowing_cached_jit
    def number(array: np.ndarray) -> None:
        row = in_row(array)
        for k in range(len(row)):
            row[k] = 10 * row[k] + k

    array = np.ones(shape, np.float32)
    _unkept(number)(array)
    np.testing.assert_array_equal(array.ravel(), 10 + np.arange(array.size))


def test_elements_that_do_not_lie_in_a_row_are_an_error() -> None:
    @borrowing_cached_jit
    def count(array: np.ndarray) -> int:
        return len(in_row(array))

    assert _unkept(count)(np.zeros((3, 4))) == 12
    with pytest.raises(numba.TypingError):
        count(np.zeros((3, 4))[:, ::2])
    with pytest.raises(numba.TypingError):
        count(np.zeros((3, 4)).T)
