"""Scenes with digits and shapes on photographs, each with the box that it exactly fills; without end."""

from functools import cache

import numpy as np
from _scenes import Material, brighter, crop, load, warped

SIZE = 64  # of a scene, in pixels
HEIGHTS = 16, 32  # of objects, in pixels, before they are turned: the logarithm is drawn uniformly
OBJECTS = 4  # at most; at least one is tried
SHAPES = ("disc", "triangle", "cross")
DIGITS = 5  # classes of them: 0 to 4
CLASSES = (*map(str, range(DIGITS)), *SHAPES)


@cache
def material(part: str) -> Material:
    """Photographs, and pictures of 8 x 8 pixels of digits and shapes, of one part, "train" or "test"."""
    found = load(part)
    fine = (np.mgrid[:64, :64] + 0.5) / 32 - 1  # from -1 to 1
    y, x = fine
    drawn = {
        "disc": np.hypot(x, y) < 0.9,
        "triangle": (np.abs(x) < (y + 0.85) / 1.75) & (y < 0.85),
        "cross": (np.minimum(np.abs(x), np.abs(y)) < 0.32) & (np.maximum(np.abs(x), np.abs(y)) < 0.9),
    }
    shapes = np.stack([drawn[name].reshape(8, 8, 8, 8).mean((1, 3)) for name in SHAPES])
    few = found.names < DIGITS
    names = np.concatenate([found.names[few], DIGITS + np.arange(len(SHAPES))])
    return Material(found.photos, np.concatenate([found.digits[few], shapes.astype(np.float32)]), names)


def scene(part: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """An image (3, SIZE, SIZE) of bytes, boxes (n, 4) and box_labels (n,) of the objects that are in it.

    No object covers another, so that each box is exact: first and last row and column that show it.
    """
    made = material(part)
    image, taken = 0.6 * crop(made.photos, SIZE, rng), np.zeros((SIZE, SIZE), bool)
    boxes, labels = [], []
    for _ in range(rng.integers(1, OBJECTS + 1)):
        label = rng.integers(len(CLASSES))
        picture = made.digits[rng.choice(np.flatnonzero(made.names == label))]
        ink = warped(picture, np.exp(rng.uniform(*np.log(HEIGHTS))), SIZE, rng)
        shows = ink > 0.5
        if shows.sum() < 40 or (shows & taken).any():
            continue
        image += ink * (brighter(image, ink, rng) - image)
        taken |= shows
        rows, columns = (np.flatnonzero(shows.any(axis)) for axis in (1, 0))
        boxes.append((columns[0], rows[0], columns[-1], rows[-1]))
        labels.append(label)
    image = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)
    return {
        "images": np.round(255 * image).astype(np.uint8),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "box_labels": np.array(labels, np.int64),
    }


def seen(images: np.ndarray) -> np.ndarray:
    """Images of bytes as networks take them, from -1 to 1."""
    return images.astype(np.float32) / 127.5 - 1


def held_out(count: int) -> list[dict[str, np.ndarray]]:
    """The scenes that all are judged by, of photographs and digits that are in no training scene."""
    return [scene("test", np.random.default_rng(number)) for number in range(count)]
