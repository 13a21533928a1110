"""After `dyn.warm_up` a call finds all that it needs: drawn calls of each operator, and those measured.

In processes of their own, where nothing else has called. What is drawn are shapes, parameters, layouts,
which gradients are wanted, and where NaN and infinities stand. What is counted is whatever Numba asks the
cache for, so that it does not matter what that holds.
"""

import json

import pytest
from _contract import each_operator
from _processes import output_of

from dynarray import OPERATORS, Operator

SCRIPT = """
import json, sys
import numpy as np
import dynarray as dyn
from _calls import draw_case
from _contract import LAYOUTS, laid_out, make_call
from benchmarks.cases import CASES
from dynarray import OPERATORS
from dynarray.cpu.engine.cache import KernelCache

operator, number, warm = OPERATORS[sys.argv[1]], int(sys.argv[2]), sys.argv[3] == "warm"
rng = np.random.default_rng(0)
np.seterr(all="ignore")
asked, during = [], ""
load = KernelCache.load_overload


def counted(self, signature, target):
    asked.append(f"{self._name}{signature} in {during}")
    return load(self, signature, target)


KernelCache.load_overload = counted


def pick(choices):
    return choices[int(rng.integers(len(choices)))]


def passes(arrays, params, grad_output, backward):
    output, saved = operator.run(arrays, params)
    if not backward:
        return
    positional, by_keyword = operator.arguments(arrays)
    arguments = {**by_keyword, **params}
    for needs in ((True,) * len(arrays), tuple(pick((True, False)) for _ in arrays)):
        operator.gradients(grad_output, saved, needs)
        getattr(dyn, f"{operator.name}_backward")(grad_output, *positional, **arguments, needs=needs)


def drawn(dtype, backward):
    global during
    for _ in range(number):
        # Half of them as large as they get: some kernels need rows that fill registers.
        fixed = {"H": 8, "W": 8} if rng.integers(2) else {}
        call = make_call(operator, draw_case(operator, pick, **fixed), int(rng.integers(1000))).astype(dtype)
        for name, array in zip((*operator.arrays, "grad_output"), call.everything):
            if array is not None and array.size and name not in operator.numbers and not rng.integers(6):
                array.flat[rng.integers(array.size)] = pick((np.nan, np.inf, -np.inf))
        if not rng.integers(3):
            layout = pick(tuple(LAYOUTS))
            call = call.map(lambda array: laid_out(array, layout))
        during = call.describe()
        passes(call.arrays, call.params, call.grad_output, backward)


def measured(dtype, backward):
    global during
    for row in (case for case in CASES if case.operator == operator.name):
        for case in (row, row.small):
            if case.input_bytes < 16e6:
                during = case.title
                arrays = tuple(None if a is None else a.astype(dtype) for a in case.arrays(rng))
                passes(arrays, case.params, case.grad_output(rng).astype(dtype), backward)


by_warming, by_calls = [], []
for dtype in ("float32", "float64"):
    for backward in (False, True):
        if warm:
            dyn.warm_up(operator.name, dtype, backward)
        by_warming += asked
        asked.clear()
        drawn(dtype, backward)
        measured(dtype, backward)
        by_calls += asked
        asked.clear()
print(json.dumps([by_warming, by_calls]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@each_operator
def test_nothing_is_compiled_or_loaded_after_a_warm_up(operator: Operator) -> None:
    _, by_calls = json.loads(output_of(SCRIPT, operator.name, "100", "warm", timeout=1000))
    assert by_calls == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stem", sorted({operator.stem for operator in OPERATORS.values()}))
def test_without_a_warm_up_the_same_calls_need_what_it_loads(stem: str) -> None:
    """And it compiles nothing that they do not need."""
    name = next(name for name, operator in OPERATORS.items() if operator.stem == stem)
    _, cold = json.loads(output_of(SCRIPT, name, "2000", "cold", timeout=1000))
    by_warming, _ = json.loads(output_of(SCRIPT, name, "1", "warm", timeout=1000))
    needed, warmed = ({line.split(" in ")[0] for line in lines} for lines in (cold, by_warming))
    assert warmed == needed
