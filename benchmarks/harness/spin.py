"""A kernel that does nothing, for a time: what is queued behind it has begun before any of it runs."""

from typing import Any

import numpy as np

# The clock is a register of a GPU. On the stand-in for CuPy, where work is finished only when somebody waits
# for it, no time need pass.
SOURCE = r"""
extern "C" __global__ void spin(const unsigned long long nanoseconds) {
#ifdef __CUDACC_RTC__
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
#endif
}
"""


class Spin:
    """Keeps the current stream of CuPy busy."""

    def __init__(self, cupy: Any) -> None:
        self._kernel = cupy.RawKernel(SOURCE, "spin")

    def __call__(self, seconds: float) -> None:
        self._kernel((1,), (1,), (np.uint64(seconds * 1e9),))
