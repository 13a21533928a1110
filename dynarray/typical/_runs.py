"""What is made of typical calls: each pass, with every choice of gradients, and with numbers not finite."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from rawkernels.source import Program

from .._dispatch import use_backend
from .._operator import OPERATORS, Operator, load
from . import TypicalCall

# Neither 0 nor 1, which formulas treat apart, and a valid offset, place, weight or width.
_VALUE = 0.5


class Plan(NamedTuple):
    """What is to be compiled: names of operators and dtypes, and for which passes on which backend."""

    operators: tuple[str, ...]
    dtypes: tuple[str, ...]
    backward: bool
    backend: str


@dataclass(frozen=True)
class Run:
    """One pass of a typical call.

    `spoiled` names the array that holds NaN, the gradient of the output by ``"grad_output"``. `needs` says
    which gradients are wanted; without it there is a forward pass alone. `kept` is whether the backward pass
    gets what the forward pass kept, as on the tape, or the arrays alone.
    """

    operator: Operator
    call: TypicalCall
    dtype: str
    backend: str
    spoiled: str | None = None
    needs: tuple[bool, ...] | None = None
    kept: bool = False

    def __call__(self) -> None:
        """Make it."""
        operator = self.operator
        arrays = tuple(
            self._array(name, self.call.shapes[name]) if name in self.call.shapes else None
            for name in operator.arrays
        )
        with use_backend(self.backend), np.errstate(all="ignore"):
            backend, checked = operator.prepare(arrays, self.call.params)
            if self.needs is None:
                operator.run_checked(backend, checked, arrays)
                return
            if self.kept:
                _, saved = operator.run_checked(backend, checked, arrays)
            else:
                saved = operator._saved(backend, checked, checked.arrays, arrays)
            operator.gradients(self._array("grad_output", checked.output_shape), saved, self.needs)

    def _array(self, name: str, shape: tuple[int, ...]) -> Any:
        array = np.full(shape, np.nan if name == self.spoiled else _VALUE, np.dtype(self.dtype))
        if name in self.call.spread and name != self.spoiled:
            half = self.call.spread[name] / 2
            array = np.linspace(-half, half, array.size).reshape(shape).astype(array.dtype)
        return import_module("cupy").asarray(array) if self.backend == "cuda" else array


@dataclass(frozen=True)
class ProgramRun:
    """A CUDA program of a family, compiled for this backend without a call."""

    program: Program
    backend: str

    def __call__(self) -> None:
        """Compile it, or load it."""
        if self.backend == "host":
            load("rawkernels.host.library").load(self.program)
        elif self.backend == "ptx":
            load("rawkernels.ptx").load(self.program)
        else:
            load("rawkernels.launch").prepare(self.program)


def make_runs(plan: Plan) -> list[Callable[[], None]]:
    """All that a plan takes, in the same order in every process."""
    if "bfloat16" in plan.dtypes:
        import_module("ml_dtypes")  # registers it with NumPy
    if plan.backend == "reference":
        return []
    operators = [OPERATORS[name] for name in plan.operators]
    runs: list[Callable[[], None]] = []
    for dtype in plan.dtypes:
        if plan.backend != "cpu":
            for module in dict.fromkeys(operator.forward["cuda"].module for operator in operators):
                programs = import_module(module).programs(dtype)
                runs += [ProgramRun(program, plan.backend) for _, program in programs]
        for operator in operators:
            for call in import_module(f"{__package__}.{operator.stem}").CALLS[operator.name]:
                runs += _runs_of(operator, call, dtype, plan)
    return runs


def _runs_of(operator: Operator, call: TypicalCall, dtype: str, plan: Plan) -> Iterator[Run]:
    # Values change what kernels are run on the CPU alone. Plain numbers are never NaN.
    on_cpu = plan.backend == "cpu"
    spoiled = [name for name in call.shapes if on_cpu and name not in operator.numbers]
    for name in (None, *spoiled):
        yield Run(operator, call, dtype, plan.backend, name)
    if not plan.backward:
        return
    names = operator.arrays
    everything = tuple(name in call.shapes for name in names)
    each = [tuple(name == one for name in names) for one in names if one in call.shapes]
    for needs in (everything, *each):
        for kept in (True, False):
            yield Run(operator, call, dtype, plan.backend, None, needs, kept)
    for name in (*spoiled, *(("grad_output",) if on_cpu else ())):
        for needs in (everything, *each):
            yield Run(operator, call, dtype, plan.backend, name, needs, True)
