"""Dropout."""

from typing import Any, NamedTuple

import numpy as np

from .._random import drawing
from ..function import differentiable
from ._arguments import arguments, fractional, number
from ._common import library
from .arithmetic import multiply
from .selection import where


class _Mask(NamedTuple):
    """Which elements stay, a byte each; `arrays` is what the tape watches."""

    arrays: tuple[Any]


def _scaled(values: Any, kept: Any, rate: float) -> Any:
    return where(kept, multiply(values, values.dtype.type(1 / (1 - rate))), values.dtype.type(0))


@differentiable(
    "x", x=("", lambda g, s: _scaled(g, s.residual.arrays[0], s.rate)), residual=("the mask of dropout",)
)
def _dropout(x: Any, rate: float, rng: Any) -> Any:
    kept = drawing(rng, "dropout").random(x.shape, np.float32) >= np.float32(rate)
    kept = library(x).asarray(kept)
    return _scaled(x, kept, rate), _Mask((kept,))


@arguments(x=fractional, rate=number(0, below=1))
def dropout(x: Any, rate: float, *, rng: np.random.Generator) -> Any:
    """Each element of x set to zero with probability `rate`, the others divided by ``1 - rate``.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    rate : float
        At least 0 and less than 1; with 0 the result is x, and nothing is drawn.
    rng : numpy.random.Generator
        Where the random numbers come from. The mask of a CuPy array too is drawn on the host, and copied.

    Returns
    -------
    array
        The shape of x; floats keep their dtype, integers give float64.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> y = F.dropout(np.ones(1000), 0.5, rng=np.random.default_rng(0))
    >>> np.unique(y).tolist()
    [0.0, 2.0]
    """
    return _dropout(x, float(rate), rng) if rate else x
