"""Whether cuBLAS may multiply float32 in TF32: a choice of the caller, for a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_tf32: ContextVar[bool] = ContextVar("tf32", default=False)


def is_allowed() -> bool:
    """Whether it may here."""
    return _tf32.get()


@contextmanager
def allow_tf32(allowed: bool = True) -> Iterator[None]:
    """Let cuBLAS round float32 to TF32 (11 significant bits) in products of deformable and atom convolutions.

    Without it products of float32 are made in float32, also where CuPy has been told otherwise for its own
    (``CUPY_TF32=1``). Each pass asks for itself, a backward pass too. It holds for this thread, and for
    asyncio tasks that are started inside the block. On GPUs without TF32 (before compute capability 8.0), for
    other dtypes, for CUDA kernels, and where a CUDA graph is captured, it changes nothing.

    Parameters
    ----------
    allowed : bool
        False takes back, inside the block, what a block around it has allowed.

    Raises
    ------
    TypeError
        Where `allowed` is no bool.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, offset, weight = np.ones((1, 2, 4, 4)), np.zeros((1, 1, 1, 1, 2, 4, 4)), np.ones((3, 2, 1, 1))
    >>> with dyn.allow_tf32():  # no difference for arrays of NumPy
    ...     y = dyn.deform_conv2d(x, offset, weight)
    >>> float(y[0, 0, 0, 0])
    2.0
    """
    if not isinstance(allowed, bool):
        raise TypeError(f"allow_tf32: allowed must be a bool, got {allowed!r}")
    before = _tf32.set(allowed)
    try:
        yield
    finally:
        _tf32.reset(before)
