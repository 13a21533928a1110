"""Margins around arrays: `pad`, with the five borders of the operators."""

import itertools
from typing import Any, get_args

import numpy as np

from dynarray.typing import Border

from ..function import differentiable
from ._arguments import arguments, array, choice, integer, number
from ._common import library
from .indexing import getitem
from .shapes import narrow, wide

MODES: tuple[str, ...] = get_args(Border)
Widths = tuple[tuple[int, int], ...]


def _widths(function: str, argument: str, value: Any) -> Any:
    """An int, (before, after), or one pair per axis, of ints of at least 0."""
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(plain, list | tuple):
        return tuple(_widths(function, argument, part) for part in plain)
    return integer(0)(function, argument, plain)


@arguments(x=array, pad_width=_widths, mode=choice(*MODES), constant_values=number())
def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: float = 0) -> Any:
    """`x` with a margin on each side.

    Parameters
    ----------
    x : array
        Any shape; numbers of any dtype.
    pad_width : int, (before, after), or one such pair per axis
        Width of the margin, as `numpy.pad` takes it.
    mode : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What stands there: one value; x mirrored about its last element, or behind it; its last element; x
        again from the other end. These are the names of `numpy.pad`; ``scipy.ndimage`` calls "symmetric"
        "reflect".
    constant_values : float
        The value for "constant".

    Returns
    -------
    array
        Each axis longer by its two margins; the dtype of x.

    Raises
    ------
    ValueError
        If `pad_width` does not fit the axes of x, or `constant_values` is given with another mode.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.pad(np.array([1.0, 2.0, 3.0]), 2, "reflect").tolist()
    [3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0]
    """
    if mode != "constant" and constant_values != 0:
        raise ValueError(f"pad: constant_values goes with mode 'constant', got {constant_values!r}")
    if np.size(pad_width) and x.ndim:
        pad_width = np.broadcast_to(pad_width, (x.ndim, 2)).tolist()
    widths = tuple((int(before), int(after)) for before, after in pad_width) if x.ndim else ()
    if mode == "constant":
        return _surround(x, widths, constant_values)
    return _extend(x, widths, mode)


@differentiable("x", x=("", lambda g, s: getitem(g, _inside(s.widths, s.shapes[0]))))
def _surround(x: Any, widths: Widths, constant: float) -> Any:
    shape = tuple(b + size + a for size, (b, a) in zip(x.shape, widths))
    out = library(x).full(shape, constant, x.dtype)
    out[_inside(widths, x.shape)] = x
    return out


def _inside(widths: Widths, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(b, b + size) for size, (b, _) in zip(shape, widths))


@differentiable("x", x=("", lambda g, s: _fold(g, s.widths, s.mode)))
def _extend(x: Any, widths: Widths, mode: str) -> Any:
    xp = library(x)
    for axis, (before, after) in enumerate(widths):
        if before or after:
            x = xp.take(x, xp.asarray(_sources(x.shape[axis], before, after, mode)), axis)
    return x.copy() if not any(map(any, widths)) else x


@differentiable("grad", grad=("", lambda g, s: _extend(g, s.widths, s.mode)))
def _fold(grad: Any, widths: Widths, mode: str) -> Any:
    """The adjoint of `_extend`: what stands in a margin is added to where it came from."""
    dtype = grad.dtype
    grad = wide(grad)
    for axis, (before, after) in enumerate(widths):
        size = grad.shape[axis] - before - after
        lead = (slice(None),) * axis
        result = grad[(*lead, slice(before, before + size))].copy()
        places = _sources(size, before, after, mode).tolist()
        for place in itertools.chain(range(before), range(before + size, len(places))):
            result[(*lead, places[place])] += grad[(*lead, place)]
        grad = result
    return narrow(grad, dtype)


def _sources(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """The index that each place along an axis, with its margins, reads."""
    return np.pad(np.arange(size), (before, after), mode)  # type: ignore[call-overload]
