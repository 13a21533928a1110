"""What all builders share."""

from collections.abc import Iterable
from itertools import chain
from math import isfinite, prod
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from rawkernels.launch import module_of

from .._check import check_int
from .._photograph import (
    Margin,
    cast,
    check_array,
    check_border,
    check_layout,
    floating,
    is_followed,
    library_of_values,
    values_of,
)


class MixedKernels(NamedTuple):
    """A few kernels, and how much of each there is at each pixel: ``filter(photo, *mixed_kernels)``.

    Attributes
    ----------
    kernels : array, (B, kh, kw)
        The fixed kernels.
    mixture : array, (B, H, W) or (N, B, H, W)
        Their amounts.
    """

    kernels: Any
    mixture: Any


def check_map(name: str, argument: str, value: Any) -> Any:
    """An array of floating-point numbers, which integers and a plain number become."""
    if isinstance(value, Real):
        value = np.asarray(value)
    value = check_array(name, argument, value)
    return cast(value, floating(value))


def check_odd(name: str, argument: str, value: Any) -> int:
    """The odd size of a kernel."""
    size = check_int(name, argument, value, 1)
    if size % 2 == 0:
        raise ValueError(f"{name}: {argument} must be odd, got {value!r}")
    return size


def check_positive(name: str, argument: str, value: Any) -> Any:
    """A positive number, which may be a Variable of one."""
    plain = values_of(value)
    if not isinstance(plain, Real) and getattr(plain, "shape", None) != ():
        raise TypeError(f"{name}: {argument} must be a number, got {value!r}")
    if not isfinite(plain) or plain <= 0:
        raise ValueError(f"{name}: {argument} must be positive, got {value!r}")
    return value


def check_no_negative(name: str, argument: str, value: Any) -> None:
    """Nothing in the map is below zero; NaN is not."""
    plain = values_of(value)
    if plain.size and bool(module_of(plain).any(plain < 0)):
        raise ValueError(f"{name}: {argument} must not be negative")


def offsets(size: int, like: Any) -> Any:
    """The steps from the centre to each tap of a line, in the library and dtype of a map."""
    return library_of_values(like).arange(size).astype(like.dtype) - size // 2


def number(name: str, argument: str, value: Any, like: Any) -> Any:
    """A positive number, or a map (H, W) of such, in the dtype of `like`, which it goes with."""
    plain = values_of(value)
    if isinstance(plain, Real) or getattr(plain, "shape", None) == ():
        value = check_positive(name, argument, value)
        return float(value) if isinstance(value, Real) else cast(value, like.dtype)
    check_array(name, argument, value)
    if tuple(plain.shape) != tuple(like.shape[-2:]):
        raise ValueError(
            f"{name}: {argument} must be a number or have shape (H, W) = {tuple(like.shape[-2:])}, "
            f"got {tuple(plain.shape)}"
        )
    if plain.size and bool(module_of(plain).any(plain <= 0)):
        raise ValueError(f"{name}: {argument} must be positive everywhere")
    return cast(value, like.dtype)


def stacked(values: Iterable[Any], shape: tuple[int, ...]) -> Any:
    """Maps (..., H, W), one for each tap, row by row, or for each kernel, as (..., *shape, H, W)."""
    several = iter(values)
    first = next(several)
    *lead, height, width = first.shape
    if is_followed(first):
        found = np.concatenate([value[..., None, :, :] for value in (first, *several)], -3)
    else:
        found = module_of(first).empty((*lead, prod(shape), height, width), first.dtype)
        for place, value in enumerate(chain((first,), several)):
            found[..., place, :, :] = value
    return found.reshape((*lead, *shape, height, width))


class Guide:
    """A photograph that says where edges are: the pixels of it around each pixel.

    `result` is the dtype of what is made of it, `dtype` the one in which that is computed.
    """

    def __init__(
        self, name: str, guide: Any, channel_axis: Any, border: Any, reach: int, dtype: Any = None
    ) -> None:
        layout = check_layout(name, "guide", check_array(name, "guide", guide, "iuf"), channel_axis)
        planes = layout.planes(guide)
        self.batch, self.shape, self.reach = "N" in layout.symbols, planes.shape, reach
        self.result = floating(guide)
        self.dtype = np.dtype(dtype or self.result)
        margin = Margin((reach, reach), (reach, reach), check_border(name, border))
        self.surroundings = margin.whole(planes, self.dtype)
        self.centre = self.at(0, 0)

    def at(self, dy: int, dx: int) -> Any:
        """(N, C, H, W): for each pixel the one so far from it."""
        return shifted(self.surroundings, self.reach, self.shape[2:], dy, dx)

    def inside(self, dy: int, dx: int) -> Any:
        """(H, W): 1 for pixels from which the one so far lies in the picture, else 0."""
        size = self.shape[2:]
        at = (step + np.arange(extent) for step, extent in zip((dy, dx), size))
        rows, columns = ((places >= 0) & (places < extent) for places, extent in zip(at, size))
        return library_of_values(self.centre).asarray((rows[:, None] & columns).astype(self.dtype))

    def given(self, kernels: Any) -> Any:
        """Kernels (N, ...), or those of the one picture."""
        return kernels if self.batch else kernels[0]


def shifted(surroundings: Any, reach: int, shape: tuple[int, ...], dy: int, dx: int) -> Any:
    """Of (N, C, H + 2*reach, W + 2*reach) the part (N, C, H, W) that lies so far from the middle."""
    rows, columns = (slice(reach + step, reach + step + size) for step, size in zip((dy, dx), shape))
    return surroundings[..., rows, columns]
