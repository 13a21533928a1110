"""The stand-in for CuPy inside of a test: arrays as there are on a machine with a GPU."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

from rawkernels import launch, mixing

FOLDER = Path(__file__).with_name("standin")
MODULES = ("cupy", "cupyx", "standin_names")


@contextmanager
def standing_in() -> Iterator[Any]:
    """The stand-in as the module `cupy`, imported for this alone, whatever CuPy there is."""

    def of_cupy() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in MODULES}

    ours = of_cupy()
    for name in ours:
        del sys.modules[name]
    sys.path.insert(0, str(FOLDER))
    mixing._reduction.cache_clear()  # another CuPy's, as well
    try:
        with patch.object(launch, "_kernels", {}):  # those that are there are another CuPy's
            import cupy
            import cupyx.distributed
            import cupyx.scipy.special  # noqa: F401

            yield cupy
    finally:
        mixing._reduction.cache_clear()
        sys.path.remove(str(FOLDER))
        for name in of_cupy():
            del sys.modules[name]
        sys.modules.update(ours)


class Launch(NamedTuple):
    """One launch, as a machine gets it."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Any, ...]
    shared_bytes: int


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """What the stand-in would run: it is noted down instead."""
    noted: list[Launch] = []
    machine = ModuleType("machine_of_a_test")
    machine.run = lambda program, *launched: noted.append(Launch(*launched))  # type: ignore[attr-defined]
    with (
        patch.dict(sys.modules, {machine.__name__: machine}),
        patch.object(sys.modules["cupy._kernels"], "MACHINE", machine.__name__),
    ):
        yield noted


class Used:
    """Bytes of arrays: those there were at first, and most of all."""

    def __init__(self, first: int) -> None:
        self.first = self.most = first

    @property
    def rise(self) -> int:
        """How many more there were at most."""
        return self.most - self.first


@contextmanager
def memory() -> Iterator[Used]:
    """What arrays of the stand-in take inside the block."""
    pool = sys.modules["cupy"].get_default_memory_pool()
    used, take = Used(pool.used_bytes()), pool.take

    def noting(key: tuple[int, int, int]) -> Any:
        taken = take(key)
        used.most = max(used.most, pool.used_bytes())
        return taken

    with patch.object(pool, "take", noting):
        yield used
