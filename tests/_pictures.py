"""Photographs of tests, and what filtering them gives by its definition."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

BORDERS = ("constant", "reflect", "symmetric", "edge", "wrap")
H, W, C, N = 7, 9, 3, 2
# Symbols of the axes, and what says so.
LAYOUTS = {
    "HW": -1,
    "HWC": -1,
    "CHW": 0,
    "HCW": 1,
    "NHW": None,
    "NHWC": -1,
    "NCHW": 1,
    "CNHW": 0,
}
EXTENTS = dict(zip("HWCN", (H, W, C, N)))


def drawn(symbols: str, dtype: Any, seed: int = 0) -> np.ndarray:
    """A photograph whose values fill the range of its dtype."""
    rng = np.random.default_rng(seed)
    shape = [EXTENTS[s] for s in symbols]
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)


def lines(photo: np.ndarray, symbols: str) -> Iterator[tuple[tuple, np.ndarray]]:
    """Every picture and channel: where it lies, and the (H, W) of it."""
    for at in itertools.product(*(range(EXTENTS[s]) for s in symbols if s in "NC")):
        given = iter(at)
        index = tuple(slice(None) if s in "HW" else next(given) for s in symbols)
        yield index, photo[index]


def naive(plane: np.ndarray, weights: np.ndarray, border: str) -> np.ndarray:
    """The definition for one plane, with a kernel (kh, kw) for each pixel, in float64."""
    kh, kw = weights.shape[:2]
    around = np.pad(
        plane.astype(np.float64), ((kh // 2, kh - 1 - kh // 2), (kw // 2, kw - 1 - kw // 2)), mode=border
    )
    out = np.zeros(plane.shape)
    for h, w in np.ndindex(*plane.shape):
        out[h, w] = (weights[:, :, h, w].astype(np.float64) * around[h : h + kh, w : w + kw]).sum()
    return out


def stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded half to even and clipped, where the dtype has integers."""
    if dtype.kind == "f":
        return values.astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(np.rint(values), info.min, info.max).astype(dtype)


def one_for_each_pixel(size: tuple[int, int] = (3, 5), dtype: Any = np.float64, seed: int = 1) -> np.ndarray:
    """Kernels, some of which leave the range of what they filter."""
    return (np.random.default_rng(seed).normal(size=(*size, H, W)) / 2).astype(dtype)


def mixed(seed: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernels, their mixture, and what they are at each pixel."""
    rng = np.random.default_rng(seed)
    fixed, mixture = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, H, W)) / 4
    return fixed, mixture, np.einsum("bij,bhw->ijhw", fixed, mixture)
