"""Has an array been written to since the tape saved it?

Small arrays are copied outright. Of a large one we keep a sum over its 64-bit words, each mixed with its
place first, so that moving words changes it like changing them: one pass at memory speed. Sums over CuPy
arrays stay on the device, as do verdicts, which the tape reads all at once when its backward pass ends.
"""

from typing import Any

import numpy as np

from dynarray._operator import load

SMALL = 16384


class DevicePrint(tuple):
    """The fingerprint of a CuPy array, which equals another by a 0-d device array."""

    def __eq__(self, other: Any) -> Any:
        return type(other) is DevicePrint and (self[0] == other[0]).all() & (self[1] == other[1]).all()


def fingerprint(array: Any) -> Any:
    """What equals that of the same values in the same places; None for scalars, which nobody can change."""
    host = isinstance(array, np.ndarray)
    if host and array.nbytes <= SMALL:
        return array.tobytes()
    if not hasattr(array, "nbytes") or isinstance(array, np.generic):
        return None
    content = _flat_bytes(array)
    whole = content.size // 8 * 8
    words, rest = content[:whole].view("u8"), content[whole:]
    if host:
        return load("dynarray.cpu.engine.mixing").mixed_sum(words), rest.tobytes()
    return DevicePrint((load("rawkernels.mixing").mixed_sum(words), rest.copy()))


def _flat_bytes(array: Any) -> Any:
    """The bytes of an array in the order of its memory; repeated elements (stride 0) count once."""
    sizes = zip(array.shape, array.strides)
    array = array[tuple(0 if stride == 0 and size else slice(None) for size, stride in sizes)]
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flat = array.transpose(order).reshape(-1)
    # Reading words needs one contiguous block: a slice with gaps is gathered first. A GPU reads no word at an
    # address that is no multiple of its size: of three floats, the last two.
    whole = flat.flags.c_contiguous and (isinstance(flat, np.ndarray) or flat.data.ptr % 8 == 0)
    return (flat if whole else flat.copy()).view("u1")
