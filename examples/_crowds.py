"""Crowds whose every member is known: small figures on photographs, far ones smaller, and their density."""

from collections.abc import Sequence

import numpy as np

MOST = 40  # figures in an image
HEIGHTS = 3.0, 8.0  # of figures at the upper and at the lower edge, in pixels
SPREAD = 1.5  # standard deviation of the density of a figure, in pixels


def crowd(
    photos: Sequence[np.ndarray], side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """An image (side, side) from 0 to 1, the density (side, side), and the number of figures: its sum.

    A figure has a body and a head, darker or brighter than what is behind it, and may hide others in part.
    Its density is a Gaussian that is cut off at the edges of the image and scaled to a sum of one.
    """
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.integers(0, length - side + 1) for length in photo.shape)
    image = photo[top : top + side, left : left + side][:, :: rng.choice((-1, 1))].copy()
    count = int(rng.integers(0, MOST + 1))
    # Dense somewhere, sparse elsewhere: half of the figures stand around a few places.
    places = rng.uniform(0, side - 1, (count, 2))
    groups = rng.uniform(0, side - 1, (3, 2))
    near = rng.random(count) < 0.5
    places[near] = groups[rng.integers(0, 3, near.sum())] + rng.normal(0, side / 12, (near.sum(), 2))
    places = np.clip(places, 0, side - 1)
    density = np.zeros((side, side))
    grid = np.mgrid[:side, :side]
    for place in places[np.argsort(places[:, 0])]:  # those in front are lower, and come last
        height = np.interp(place[0], (0, side - 1), HEIGHTS)
        y, x = grid - place[:, None, None]
        body = np.square(x / (0.22 * height)) + np.square(y / (0.4 * height))
        head = np.square(x / (0.16 * height)) + np.square((y + 0.52 * height) / (0.16 * height))
        ink = np.clip((1.2 - np.minimum(body, head)) / 0.4, 0, 1)
        tone = image[tuple(np.rint(place).astype(int))] + rng.choice((-1, 1)) * rng.uniform(0.2, 0.5)
        image += ink * (np.clip(tone, 0, 1) - image)
        bump = np.exp(-(np.square(y) + np.square(x)) / (2 * SPREAD**2))
        density += bump / bump.sum()
    image = image + rng.normal(0, 0.02, image.shape)
    return image.astype(np.float32), density.astype(np.float32), count


def crowds(
    photos: Sequence[np.ndarray], count: int, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and densities (count, 1, side, side), and numbers of figures (count,)."""
    images, densities, counts = zip(*(crowd(photos, side, rng) for _ in range(count)))
    return np.stack(images)[:, None], np.stack(densities)[:, None], np.array(counts)
