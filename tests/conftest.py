"""What every test shares: seeded randomness, the backends (and why one is missing), hypothesis profiles."""

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import dynarray as dyn
from dynarray._info import backend_problems, bfloat16_problem

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
REQUIRE_GPU = os.environ.get("DYNARRAY_REQUIRE_GPU", "") == "1"
# The GPU is the stand-in for CuPy, whose kernels run on one core: tests choose small sizes.
REHEARSAL = os.environ.get("DYNARRAY_GPU_REHEARSAL", "") == "1"

# Kernels compile on their first call, so a deadline would measure the compiler.
# Where the result decides something, the same examples are drawn each time; at home each run draws new ones.
_COMMON: dict[str, Any] = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("ci", derandomize=True, **_COMMON)
settings.register_profile("home", **_COMMON)
settings.load_profile("ci" if IN_CI else "home")

PROBLEMS = backend_problems()


def may_be_missing(backend: str) -> bool:
    """Whether its tests may be skipped here: in CI only those of the GPU, under gpu-test not even those."""
    if backend == "cuda":
        return not REQUIRE_GPU
    return not IN_CI


# What backend "ptx" runs: the code of two architectures, subnormal numbers kept, and wide indices.
PTX_WAYS: dict[str, dict[str, Any]] = {
    "ptx": {"architecture": "sm_90"},
    "ptx-sm_75": {"architecture": "sm_75"},
    "ptx-subnormals": {"ftz": False},
    "ptx-wide": {},
}


KERNELS = ("cpu", "host", "ptx", "cuda")  # all backends but the reference


def backend_params(*names: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: the named backends, by default all; "ptx" in all its ways.

    One that is missing is skipped with the reason; one that must be there is not skipped: its tests fail.
    """
    params = []
    wanted = [way for name in names or PROBLEMS for way in (PTX_WAYS if name == "ptx" else (name,))]
    for way in wanted:
        name = way.partition("-")[0]
        marks = [pytest.mark.gpu] if name == "cuda" else []
        problem = PROBLEMS[name]
        if problem is not None and may_be_missing(name):
            marks.append(pytest.mark.skip(reason=f"backend {name}: {problem}"))
        params.append(pytest.param(way, marks=marks, id=way))
    return params


@dataclass(frozen=True)
class Backend:
    """One backend, in one of its ways if it has several, and the way between NumPy arrays and its own."""

    name: str
    way: str = ""

    @contextmanager
    def use(self) -> Iterator[None]:
        """The backend, forced."""
        with dyn.use_backend(self.name), self._target():
            yield

    @contextmanager
    def _target(self) -> Iterator[None]:
        if self.name != "ptx":
            yield
            return
        from rawkernels import launch, ptx

        with ExitStack() as stack:
            stack.enter_context(launch.numpy_runner("ptx"))  # also of what calls no operator
            stack.enter_context(ptx.use_target(ptx.Target(**PTX_WAYS[self.way or "ptx"])))
            if self.way == "ptx-wide":
                for source in Path(launch.__file__).parent.glob("*.cu"):
                    always = f"rawkernels.{source.stem}.needs_wide_index"
                    stack.enter_context(patch(always, lambda *arrays, work_items=0: True))
            yield

    def array(self, values: Any) -> Any:
        """An array of this backend with these values; None stays None."""
        if values is None or self.name != "cuda":
            return values
        import cupy

        if values.dtype.name == "bfloat16" and (problem := bfloat16_problem()):
            pytest.skip(f"bfloat16 on backend cuda {problem}")
        return cupy.asarray(values)

    def params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a call with the arrays among them, which have no gradient, on this backend."""
        return {name: self.array(v) if isinstance(v, np.ndarray) else v for name, v in params.items()}

    def numpy(self, array: Any) -> Any:
        """The values of an array of this backend; None and what is NumPy's already stay."""
        return array.get() if hasattr(array, "get") else array


@pytest.fixture(params=backend_params())
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, forced for the length of the test."""
    chosen = Backend(request.param.partition("-")[0], request.param)
    with chosen.use():
        yield chosen


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the name of the test alone: the same in any order and selection."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make test-long` most of what runs on backend "ptx"; put the slow half last.

    Of each test, operator and dtype, one call in one way is drawn, by the names, if it is not slow.
    """
    kinds: dict[tuple[str, ...], list[pytest.Item]] = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("backend") in PTX_WAYS:
            slow = item.get_closest_marker("slow") is not None
            kind = (item.nodeid.partition("[")[0], getattr(params.get("operator"), "name", ""))
            kinds.setdefault((*kind, str(params.get("dtype")), str(slow)), []).append(item)
    for kind, alike in kinds.items():
        drawn = min(alike, key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in alike:
            if item is not drawn or kind[-1] == "True":
                item.add_marker(pytest.mark.long)
                item.add_marker(pytest.mark.timeout(1800))  # some compile dozens of programs
    # A plain failure shows early.
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_report_header() -> list[str]:
    """Say at the top which backends these tests ran on."""
    return [
        f"backend {name}: {'available' if problem is None else 'not available: ' + problem}"
        for name, problem in PROBLEMS.items()
    ]
