"""Arrays of other libraries, taken where they lie: by DLPack, the CUDA array interface, or ``__array__``.

No library is imported but the one whose arrays stand for those here: NumPy for what lies in the memory of the
machine, CuPy for that of a GPU.
"""

from numbers import Number
from typing import Any

import numpy as np

from ._dispatch import any_dask, library_of

_HOST, _GPU = (1, 3), (2, 13)  # devices of DLPack: memory, pinned memory; a GPU's, managed memory
# The types that nothing is done about, which the class of CuPy's arrays joins: a call looks no further.
OWN: set[type] = {np.ndarray, type(None), float, int}
_PLAIN = (np.ndarray, np.generic, Number, str, bytes, list, tuple, type(None))


def view(operator: str, name: str, array: Any) -> Any:
    """An array of another library as one of NumPy or CuPy, which shares its memory where that can be."""
    kind = type(array)
    if isinstance(array, _PLAIN) or any_dask((array,)):  # those of dask are computed with, or refused
        return array
    if library_of(array):
        OWN.add(kind)
        return array
    try:
        if hasattr(kind, "__dlpack__"):
            where = array.__dlpack_device__()[0]
            if where in _HOST:
                return np.from_dlpack(array)
            if where in _GPU:
                return _cupy(operator, name).from_dlpack(array)
        elif hasattr(kind, "__cuda_array_interface__"):
            return _cupy(operator, name).asarray(array)
    # A library may refuse with an error of its own, as for a tensor that waits for a gradient.
    except Exception as error:
        raise TypeError(
            f"{operator}: {name}, a {kind.__module__}.{kind.__name__}, cannot be read in place: {error}"
        ) from error
    if hasattr(kind, "__array__"):
        try:
            return np.asarray(array)
        except TypeError:  # it will not be an array: the operator says that it is none
            return array
    return array


def _cupy(operator: str, name: str) -> Any:
    try:
        import cupy
    except ImportError:
        where = "lies on a GPU, where CuPy reads it, which is not installed"
        raise TypeError(f"{operator}: {name} {where}") from None
    return cupy
