"""Has an array been written to since the tape saved it?

Small arrays are copied outright. Of a large one we keep a sum over its 64-bit words, each mixed with its
place first, so that moving words changes it like changing them: one pass at memory speed. On CuPy arrays sums
stay on the device and comparing two gives a 0-d device array, so that neither recording nor checking waits
for the GPU; the tape reads all verdicts at once when its backward pass ends.
"""

import functools
from typing import Any

import numpy as np

from dynarray._operator import load

SMALL = 16384


def fingerprint(array: Any) -> Any:
    """What `unchanged` compares; None for Python scalars, which cannot be overwritten."""
    host = isinstance(array, np.ndarray)
    if host and array.nbytes <= SMALL:
        return array.tobytes()
    if not hasattr(array, "nbytes") or isinstance(array, np.generic):
        return None
    content = _flat_bytes(array)
    whole = content.size // 8 * 8
    words, rest = content[:whole].view("u8"), content[whole:]
    if not host:
        return _device_sum()(words), rest.copy()
    return load("dynarray.cpu.engine.mixing").mixed_sum(words), rest.tobytes()


def unchanged(before: Any, array: Any) -> Any:
    """Whether `array` still has the fingerprint `before`: a bool, or a 0-d device array for CuPy."""
    return before is None or same(before, fingerprint(array))


def same(before: Any, after: Any) -> Any:
    """Whether two fingerprints are the same: a bool, or a 0-d device array for CuPy."""
    if type(before) is not tuple or type(before[1]) is bytes:
        return before == after
    return (before[0] == after[0]).all() & (before[1] == after[1]).all()


@functools.cache
def _device_sum() -> Any:
    """The sum of `dynarray.cpu.engine.mixing` on the device."""
    import cupy

    mixed = """__device__ unsigned long long mixed(unsigned long long word, unsigned long long place) {
        const unsigned long long step = 0x9E3779B97F4A7C15ull;
        word ^= (place + 1) * step;
        word = (word ^ (word >> 29)) * 0xD6E8FEB86659FD93ull;
        word = (word ^ (word >> 32)) * step;
        return word ^ (word >> 29);
    }"""
    parts = ("uint64 word", "uint64 total", "mixed(word, _i)", "a + b", "total = a", "0", "mixed_sum")
    return cupy.ReductionKernel(*parts, preamble=mixed)


def _flat_bytes(array: Any) -> Any:
    """The bytes of an array in the order of its memory; repeated elements (stride 0) count once."""
    index = tuple(
        0 if stride == 0 and size else slice(None) for size, stride in zip(array.shape, array.strides)
    )
    array = array[index]
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flat = array.transpose(order).reshape(-1)
    # Reading words needs one contiguous block: a slice with gaps is gathered first. A GPU reads no word at an
    # address that is no multiple of its size: of three floats, the last two.
    whole = flat.flags.c_contiguous and (isinstance(flat, np.ndarray) or flat.data.ptr % 8 == 0)
    return (flat if whole else flat.copy()).view("u1")
