"""A photograph of 12 million pixels, filtered with 15 x 15 kernels that are mixed at each pixel, and warped.

Prints, as JSON, the peak of the resident set, how far it rose in each call, and how many pixels of some
pieces are not what the definition gives.
"""

import json
from typing import Any

import numpy as np
from _memory import peak_of, status
from scipy.ndimage import map_coordinates

from dynarray import images

H, W, K, B = 3000, 4000, 15, 6
SIDE = 12
# Corners, rows around many beginnings of bands, and the middle.
PIECES = [(0, 0), (0, W - SIDE), (H - SIDE, 0), (H - SIDE, W - SIDE), (1490, 1990)]
LONG = [(row, 77) for row in range(0, H, 2 * SIDE)]


def filtered(
    photo: np.ndarray, kernels: np.ndarray, mixture: np.ndarray, place: tuple[int, int]
) -> np.ndarray:
    """What a pixel is by the definition."""
    h, w = place
    rows, columns = (
        np.pad(np.arange(size), K // 2, mode="reflect")[at : at + K] for size, at in zip((H, W), (h, w))
    )
    window = photo[rows[:, None], columns].astype(np.float64)
    kernel = np.einsum("b,bij->ij", mixture[:, h, w].astype(np.float64), kernels.astype(np.float64))
    return np.clip(np.rint(np.einsum("ij,ijc->c", kernel, window)), 0, 255)


def wrong_pixels(result: np.ndarray, photo: np.ndarray, kernels: np.ndarray, mixture: np.ndarray) -> int:
    """How many of those that are looked at."""
    places = [(h + i, w + j) for h, w in PIECES for i in range(SIDE) for j in range(SIDE)]
    places += [(h + i, w) for h, w in LONG for i in range(SIDE)]
    return sum((result[p] != filtered(photo, kernels, mixture, p)).any() for p in places)


def main() -> None:
    rng = np.random.default_rng(0)
    kernels = rng.random((B, K, K), np.float32) - np.float32(0.2)
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    photo = rng.integers(0, 256, (H, W, 3), np.uint8)
    mixture = np.empty((B, H, W), np.float32)
    for share in mixture:
        share[...] = rng.random((H, W), np.float32) / 3
    flow = rng.integers(-40, 40, (H, W, 2), np.int8)
    flow = flow + np.float32(0.25)
    small = tuple(slice(0, 40) for _ in range(2))
    images.filter(photo[small], kernels, mixture[:, *small])  # compiled before anything is measured
    images.warp(photo[small], flow[small])
    found: dict[str, Any] = {}
    result, found["filter"] = peak_of(lambda: images.filter(photo, kernels, mixture))
    found["peak"] = status("VmHWM")
    moved, found["warp"] = peak_of(lambda: images.warp(photo, flow))
    found["peak"] = max(found["peak"], status("VmHWM"))
    found["wrong"] = int(wrong_pixels(result, photo, kernels, mixture))
    rows = slice(1480, 1500)
    places = np.indices((20, W)) + np.moveaxis(flow[rows], -1, 0) + np.array([1480, 0])[:, None, None]
    for c in range(3):
        expected = np.rint(map_coordinates(photo[..., c].astype(np.float64), places, order=1, mode="mirror"))
        found["wrong"] += int((moved[rows, :, c] != expected).sum())
    print(json.dumps(found))
