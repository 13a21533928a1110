"""A sum over the words of a CuPy array that tells when one of them changed or moved.

It is that of `dynarray.cpu.engine.mixing`, made by CuPy's own reduction.
"""

import functools
from typing import Any

_MIXED = """__device__ unsigned long long mixed(unsigned long long word, unsigned long long place) {
    const unsigned long long step = 0x9E3779B97F4A7C15ull;
    word ^= (place + 1) * step;
    word = (word ^ (word >> 29)) * 0xD6E8FEB86659FD93ull;
    word = (word ^ (word >> 32)) * step;
    return word ^ (word >> 29);
}"""


def mixed_sum(words: Any) -> Any:
    """The sum modulo 2**64 of all 64-bit words, each mixed with its place, as a 0-d array on the device."""
    return _reduction()(words)


@functools.cache
def _reduction() -> Any:
    import cupy

    parts = ("uint64 word", "uint64 total", "mixed(word, _i)", "a + b", "total = a", "0", "mixed_sum")
    return cupy.ReductionKernel(*parts, preamble=_MIXED)
