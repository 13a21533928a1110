"""Scenes of many digits, at widely varying scale and shape, on photographs, with a label for each pixel."""

from typing import NamedTuple

import numpy as np
from skimage import data
from sklearn.datasets import load_digits

import dynarray as dyn

CLASSES = 11  # the background, and the digits
HEIGHTS = 10, 40  # of the digits, in pixels: the logarithm is drawn uniformly
CLASS_NAMES = ["background", *map(str, range(10))]
# Neither photographs nor digits of the training scenes are in the scenes that networks are judged by.
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "chelsea", "coffee", "grass", "immunohistochemistry"),
    "test": ("camera", "gravel", "stereo_motorcycle"),
}


class Scenes(NamedTuple):
    """Images and what is in them."""

    images: np.ndarray  # (N, 3, H, W) uint8
    labels: np.ndarray  # (N, H, W) int8: 0 where the photograph shows, 1 + d where the digit d does
    heights: np.ndarray  # (N, H, W) uint8: of the digit that shows, in pixels; 0 where none does


class Material(NamedTuple):
    """What scenes are made of."""

    photos: list  # of (3, H, W) float32, from 0 to 1
    digits: np.ndarray  # (N, 8, 8) float32, from 0 to 1
    names: np.ndarray  # (N,)


def load(part: str) -> Material:
    """Photographs and digits of one part, "train" or "test", which scikit-image and scikit-learn bring."""
    photos = []
    for name in PHOTOGRAPHS[part]:
        found = getattr(data, name)()
        photo = np.asarray(found[0] if isinstance(found, tuple) else found, np.float32) / 255
        photo = photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, 2)
        photos.append(np.ascontiguousarray(np.moveaxis(photo, 2, 0)))
    bunch = load_digits()
    rows = np.random.default_rng(0).permutation(len(bunch.target))
    rows = rows[400:] if part == "train" else rows[:400]
    return Material(photos, bunch.images[rows].astype(np.float32) / 16, bunch.target[rows])


def make(part: str, count: int, size: int, seed: int) -> Scenes:
    """So many scenes of size x size pixels."""
    material, rng = load(part), np.random.default_rng([seed, part == "test"])
    drawn = [scene(material, size, rng) for _ in range(count)]
    return Scenes(*(np.stack(arrays) for arrays in zip(*drawn)))


def scene(material: Material, size: int, rng: np.random.Generator) -> Scenes:
    """A piece of a photograph, darkened, with digits on it, each filled with a piece of another one."""
    image = 0.6 * crop(material.photos, size, rng)
    labels, heights = np.zeros((size, size), np.int8), np.zeros((size, size), np.uint8)
    for height in sorted(np.exp(rng.uniform(*np.log(HEIGHTS), max(3, round(size**2 / 500)))), reverse=True):
        which = rng.integers(len(material.names))
        ink = warped(material.digits[which], height, size, rng)
        shows = ink > 0.5
        if (labels[shows] > 0).mean() > 0.2 or not shows.any():
            continue  # it would cover too much of the others
        paint(image, ink, material.photos, rng)
        labels[shows], heights[shows] = 1 + material.names[which], round(height)
    image = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)
    return Scenes((255 * image).astype(np.uint8), labels, heights)


def paint(image: np.ndarray, ink: np.ndarray, photos: list, rng: np.random.Generator) -> None:
    """Fill what has ink with a piece of a photograph, of another brightness than what was there."""
    fill = 0.5 * crop(photos, image.shape[1], rng)
    image += ink * (fill - fill.mean((1, 2), keepdims=True) + brighter(image, ink, rng) - image)


def brighter(image: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour that stands out from what is behind the ink, (3, 1, 1)."""
    behind = (image * ink).sum((1, 2)) / ink.sum()
    return (behind + rng.uniform(0.25, 0.5) + rng.normal(0, 0.08, 3))[:, None, None]


def crop(photos: list, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square piece of one of the photographs, perhaps mirrored, (3, size, size)."""
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.integers(side - size + 1) for side in photo.shape[1:])
    return photo[:, top : top + size, left : left + size][:, :, :: rng.choice((-1, 1))].copy()


def warped(digit: np.ndarray, height: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Where the ink of a digit is, from 0 to 1, in an image of size x size pixels.

    The inverse of a random linear map takes each pixel of the scene to a point of the digit, and there the
    digit is read by bilinear interpolation: the operator that this example is about.
    """
    angle, shear = np.deg2rad(rng.normal(0, 12)), rng.normal(0, 0.15)
    stretch = np.exp(rng.normal(0, 0.2))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.array([[1, 0], [shear, stretch]]) * (height / 8)
    centre = rng.uniform(0.1 * size, 0.9 * size, 2)
    # Only the pixels around it: a corner of the digit lies at most `reach` from its centre.
    reach = int(np.ceil(np.abs(linear).sum(1).max() * 4.5))
    low = np.clip(np.round(centre).astype(int) - reach, 0, size)
    high = np.clip(np.round(centre).astype(int) + reach + 1, 0, size)
    here = tuple(map(slice, low, high))
    grid = np.mgrid[here] - centre[:, None, None]
    points = np.einsum("ij,jhw->ihw", np.linalg.inv(linear), grid) + 3.5
    read = dyn.sample_points(digit[None, None], points[None, None].astype(np.float32))[0, 0, 0]
    ink = np.zeros((size, size), np.float32)
    # Interpolation from 8 x 8 pixels is blurred; the outline is a step of about one pixel of the scene.
    ink[here] = np.clip((read - 0.4) * max(height / 8, 1.5) + 0.5, 0, 1)
    return ink
