"""Where the arrays live, and what differs there: library, clock, size of the cache, waiting."""

import gc
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from .measure import Clock, CudaEvents, WallClock


class Cpu:
    """NumPy arrays."""

    library: Any = np

    def rng(self) -> Any:
        """A source of random arrays that live here."""
        return np.random.default_rng(0)

    def clock(self) -> Clock:
        return WallClock()

    def cache_bytes(self) -> int:
        """Size of the last-level cache; 32 MiB where the system does not tell."""
        sizes = [
            _bytes(path.read_text())
            for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        ]
        return max(sizes, default=32 << 20)

    def wait(self) -> None:
        """Nothing is queued."""

    def release(self) -> None:
        """Memory goes back when its arrays do."""

    def blas_threads(self, threads: int) -> AbstractContextManager:
        """Hold NumPy's BLAS to this many threads."""
        from threadpoolctl import threadpool_limits

        return threadpool_limits(threads, user_api="blas")


class Cuda:
    """CuPy arrays on the current device."""

    def __init__(self) -> None:
        import cupy

        self.library: Any = cupy

    def rng(self) -> Any:
        """A source of random arrays that live here: large ones take long to make and to bring."""
        return self.library.random.default_rng(0)

    def clock(self) -> Clock:
        return CudaEvents(self.library)

    def cache_bytes(self) -> int:
        """Size of the L2 cache."""
        return int(self.library.cuda.Device().attributes["L2CacheSize"])

    def wait(self) -> None:
        """Until the current stream is empty."""
        self.library.cuda.get_current_stream().synchronize()

    def release(self) -> None:
        """Give back what CuPy's pool and PyTorch's keep: each could use what the other holds."""
        gc.collect()
        self.library.get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.cuda.empty_cache()

    def blas_threads(self, threads: int) -> AbstractContextManager:
        return nullcontext()


Device = Cpu | Cuda


def device_of(backend: str) -> Device:
    """The device that a backend of dynarray works on."""
    return Cuda() if backend == "cuda" else Cpu()


def _bytes(text: str) -> int:
    """``"32768K"`` -> 33554432."""
    number = text.strip()
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(number[-1:].upper())
    return int(number[:-1]) * unit if unit else int(number)
