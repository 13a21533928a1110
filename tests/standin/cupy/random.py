"""`cupy.random`: a generator whose numbers are NumPy's, and not those of a GPU."""

from typing import Any

import numpy as np

from . import _array


class Generator:
    """Random arrays."""

    def __init__(self, seed: Any) -> None:
        self._generator = np.random.default_rng(seed)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Of mean 0 and variance 1."""
        return _array.placed(self._generator.standard_normal(size, _real(dtype)), out)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None, dtype: Any = np.float64) -> Any:
        """Between two bounds."""
        return _array.placed(np.asarray(self._generator.uniform(low, high, size)).astype(_real(dtype)))


def default_rng(seed: Any = None) -> Generator:
    """A generator of its own."""
    return Generator(seed)


def _real(dtype: Any) -> np.dtype:
    """CuPy draws float32 and float64."""
    found = np.dtype(dtype)
    if found.name not in ("float32", "float64"):
        raise TypeError(f"cupy.random draws float32 and float64, not {found}")
    return found
