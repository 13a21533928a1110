"""Photographs that scikit-image brings along, and noise whose level changes from place to place."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import zoom
from skimage import data
from skimage.color import rgb2gray

TRAINING = ("astronaut", "rocket", "motorcycle", "brick", "gravel", "coins", "moon")
HELD_OUT = ("camera", "chelsea", "coffee", "grass")
QUIET, LOUD = 5 / 255, 60 / 255  # standard deviations of noise
CELL = 64  # pixels between places where the level of noise is drawn


class Noisy(NamedTuple):
    """A photograph, what a camera made of it, and the standard deviation of its noise at every pixel."""

    clean: np.ndarray  # (H, W) float32, black 0, white 1
    noisy: np.ndarray
    level: np.ndarray


def photograph(name: str) -> np.ndarray:
    """Grey values, 0 to 1, float32, at half the resolution: averages of 2 x 2 pixels have little noise."""
    image = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    grey = rgb2gray(image) if image.ndim == 3 else image / 255
    h, w = (size // 2 for size in grey.shape)
    return grey[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3)).astype(np.float32)


def noise_level(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A map of standard deviations: log-uniform at points 64 pixels apart, interpolated between them."""
    grid = rng.uniform(np.log(QUIET), np.log(LOUD), [2 + (size - 1) // CELL for size in shape])
    fine = zoom(grid, CELL, order=1, grid_mode=False)
    top, left = (rng.integers(0, have - want + 1) for have, want in zip(fine.shape, shape))
    return np.exp(fine[top : top + shape[0], left : left + shape[1]]).astype(np.float32)


def with_noise(clean: np.ndarray, rng: np.random.Generator) -> Noisy:
    """White Gaussian noise of a random `noise_level`."""
    level = noise_level(clean.shape, rng)
    return Noisy(clean, clean + level * rng.standard_normal(clean.shape, np.float32), level)


def held_out() -> dict[str, Noisy]:
    """The photographs that are never trained on, always with the same noise."""
    rng = np.random.default_rng(0)
    return {name: with_noise(photograph(name), rng) for name in HELD_OUT}


def patches(
    photographs: list[np.ndarray], count: int, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean squares (count, 1, size, size), perhaps mirrored and turned."""
    drawn = []
    for _ in range(count):
        photo = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(0, side - size + 1) for side in photo.shape)
        square = photo[top : top + size, left : left + size]
        square = square[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        drawn.append(with_noise(square.T if rng.random() < 0.5 else square, rng))
    return np.stack([d.noisy for d in drawn])[:, None], np.stack([d.clean for d in drawn])[:, None]
