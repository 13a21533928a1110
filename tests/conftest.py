"""What every test shares: seeded randomness, the backends (and why one is missing), hypothesis profiles."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


def backend_params(*names: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: the named backends, by default all.

    One that is missing is skipped with the reason; one that must be there is not skipped: its tests fail.
    """
    params = []
    for name in names or tuple(PROBLEMS):
        marks = [pytest.mark.gpu] if name == "cuda" else []
        problem = PROBLEMS[name]
        if problem is not None and may_be_missing(name):
            marks.append(pytest.mark.skip(reason=f"backend {name}: {problem}"))
        params.append(pytest.param(name, marks=marks, id=name))
    return params


@dataclass(frozen=True)
class Backend:
    """One backend, and the way between NumPy arrays and its own."""

    name: str

    @contextmanager
    def use(self) -> Iterator[None]:
        """The backend, forced."""
        with dyn.use_backend(self.name):
            yield

    def array(self, values: Any) -> Any:
        """An array of this backend with these values; None stays None."""
        if values is None or self.name != "cuda":
            return values
        import cupy

        if values.dtype.name == "bfloat16" and (problem := bfloat16_problem()):
            pytest.skip(f"bfloat16 on backend cuda {problem}")
        return cupy.asarray(values)

    def numpy(self, array: Any) -> Any:
        """The values of an array of this backend; None and what is NumPy's already stay."""
        return array.get() if hasattr(array, "get") else array


@pytest.fixture(params=backend_params())
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, forced for the length of the test."""
    chosen = Backend(request.param)
    with chosen.use():
        yield chosen


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the name of the test alone: the same in any order and selection."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow half last, so that a plain failure shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_report_header() -> list[str]:
    """Say at the top which backends these tests ran on."""
    return [
        f"backend {name}: {'available' if problem is None else 'not available: ' + problem}"
        for name, problem in PROBLEMS.items()
    ]
