"""A stand-in for CuPy in the memory of the host: what this project uses of it, for tests without a GPU.

Put its folder on ``PYTHONPATH``, and it is what ``import cupy`` finds. Kernels run on a machine of the
project's own: the host build (`rawkernels.host`), or the module that ``DYNARRAY_STANDIN_MACHINE`` names,
whose `run` takes the same arguments. Where CuPy refuses, so does the stand-in: arguments that CuPy's
signatures do not take (`standin_names.py`), NumPy arrays beside its own, implicit conversion, arrays of
another device, cuBLAS and synchronisation while a stream is captured. Names that are not listed there are not
here.

Work is done at once, but for graphs: what is called while a stream is captured is done when the graph is
launched. A stream counts as busy until somebody waits for it. Fresh memory holds NaN, and blocks go back to a
pool when their last array is gone.
"""

import sys
from typing import Any

import numpy as _np

from . import _array, _functions, _kernels, _memory, linalg
from . import cuda as cuda
from . import random as random

__version__ = "14.2.0"

ndarray = _array.ndarray
RawKernel, RawModule, ReductionKernel = _kernels.RawKernel, _kernels.RawModule, _kernels.ReductionKernel
get_default_memory_pool = _memory.get_default_memory_pool
float32, float64, uint8 = _np.float32, _np.float64, _np.uint8

_functions.fill(sys.modules[__name__], linalg)


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"the stand-in for CuPy has no {name}: if CuPy has it, standin_names.py is the place"
    )
