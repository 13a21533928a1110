"""Image pairs with exact optical flow, made from photographs by layers that move affinely."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from _motorcycle import shrink, shrink_disparity
from scipy.ndimage import map_coordinates
from skimage import data
from skimage.color import rgb2gray

SIZE = 64, 96
FARTHEST = 8.0  # pixels that the centre of an object moves, at most
TRAINING = (
    *("astronaut", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry"),
    *("brick", "grass", "gravel", "coins", "moon", "page"),
)
HELD_OUT = ("chelsea", "camera", "clock", "text")


class Pairs(NamedTuple):
    """Image pairs, how far each pixel of the first image moves, and which pixels the second one shows."""

    images: np.ndarray  # (N, 2, H, W) float32: first and second image, zero mean and unit variance at most
    flow: np.ndarray  # (N, 2, H, W) float32, pixels, (y, x)
    visible: np.ndarray  # (N, H, W) bool: neither hidden nor outside in the second image


class Affine(NamedTuple):
    """p -> matrix @ p + shift, for pixels (y, x)."""

    matrix: np.ndarray
    shift: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return np.tensordot(self.matrix, points, 1) + self.shift[:, None, None]

    def inverse(self) -> "Affine":
        """The motion back."""
        back = np.linalg.inv(self.matrix)
        return Affine(back, -back @ self.shift)


class Layer(NamedTuple):
    """A piece of a photograph, where it is in the first image, and how it moves from there to the second."""

    photo: np.ndarray
    place: Affine  # from the first image into the photograph
    motion: Affine
    centre: np.ndarray
    radii: np.ndarray | None  # of the outline at equal angles; None: without end

    def brightness(self, points: np.ndarray) -> np.ndarray:
        """At points of the first image."""
        return map_coordinates(self.photo, self.place(points), order=1, mode="mirror")

    def opacity(self, points: np.ndarray) -> np.ndarray:
        """At points of the first image."""
        if self.radii is None:
            return np.ones(points.shape[1:])
        y, x = points - self.centre[:, None, None]
        turns = np.arctan2(y, x) / (2 * np.pi) % 1 * len(self.radii)
        outline = np.interp(turns, np.arange(len(self.radii) + 1), np.append(self.radii, self.radii[0]))
        return np.clip(outline - np.hypot(y, x) + 0.5, 0, 1)


def photographs(names: Sequence[str]) -> list[np.ndarray]:
    """Photographs of scikit-image, gray, at half their size, of zero mean and unit variance."""
    found = []
    for name in names:
        photo = getattr(data, name)()
        gray = rgb2gray(photo) if photo.ndim == 3 else photo
        gray = shrink(gray[: len(gray) // 2 * 2, : gray.shape[1] // 2 * 2], 2)
        found.append(_standard(gray))
    return found


def _standard(image: np.ndarray) -> np.ndarray:
    return ((image - image.mean()) / image.std()).astype(np.float32)


def make_pairs(photos: Sequence[np.ndarray], count: int, seed: int) -> Pairs:
    """Scenes of one moving background and one to three objects that move on their own."""
    rng = np.random.default_rng(seed)
    scenes = [render(random_layers(photos, rng), rng) for _ in range(count)]
    return Pairs(*(np.stack(arrays) for arrays in zip(*scenes)))


def random_layers(photos: Sequence[np.ndarray], rng: np.random.Generator) -> list[Layer]:
    """From the background to the front."""
    size = np.array(SIZE, float)
    layers = [_random_layer(photos, size / 2, None, 0.5, rng)]
    for _ in range(rng.integers(1, 4)):
        # A smooth outline: a circle with some waves.
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        waves = sum(
            rng.normal(0, 0.5 / order**1.5) * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
            for order in (2, 3, 4, 5)
        )
        radii = rng.uniform(8, 22) * np.clip(1 + waves, 0.3, 2)
        layers.append(_random_layer(photos, rng.uniform(0.1, 0.9, 2) * size, radii, 1.0, rng))
    return layers


def _random_layer(
    photos: Sequence[np.ndarray],
    centre: np.ndarray,
    radii: np.ndarray | None,
    speed: float,
    rng: np.random.Generator,
) -> Layer:
    photo = photos[rng.integers(len(photos))]
    place = _turned(rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2), np.zeros(2))
    place = place._replace(shift=rng.uniform(0, photo.shape))
    motion = _turned(rng.normal(0, 0.06) * speed, 1 + rng.normal(0, 0.04) * speed, centre)
    # Long and short ways are equally likely; with independent shifts along y and x most would be long.
    way, angle = rng.uniform(0, FARTHEST) * speed, rng.uniform(0, 2 * np.pi)
    shift = motion.shift + way * np.array((np.sin(angle), np.cos(angle)))
    return Layer(photo, place, motion._replace(shift=shift), centre, radii)


def _turned(angle: float, scale: float, centre: np.ndarray) -> Affine:
    """Rotation and scaling about a centre."""
    matrix = scale * np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    return Affine(matrix, centre - matrix @ centre)


def render(layers: Sequence[Layer], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both images, the flow, and where it leads to something visible.

    A pixel belongs to the front layer that covers at least half of it. Its flow is the motion of this layer,
    and it is visible in the second image where the front layer is the same there.
    """
    grid = np.indices(SIZE).astype(float)
    first, second = np.zeros(SIZE), np.zeros(SIZE)
    owner, flow = np.zeros(SIZE, int), np.zeros((2, *SIZE))
    for number, layer in enumerate(layers):
        opacity = layer.opacity(grid)
        first += opacity * (layer.brightness(grid) - first)
        owner[opacity >= 0.5] = number
        flow = np.where(opacity >= 0.5, layer.motion(grid) - grid, flow)
        source = layer.motion.inverse()(grid)
        second += layer.opacity(source) * (layer.brightness(source) - second)
    target = grid + flow
    visible = np.all((target >= 0) & (target <= np.array(SIZE)[:, None, None] - 1), axis=0)
    for number, layer in enumerate(layers):
        visible &= (owner >= number) | (layer.opacity(layer.motion.inverse()(target)) < 0.5)
    gain, light = rng.normal(1, 0.05, (2, 1, 1)), rng.normal(0, 0.05, (2, 1, 1))
    noise = rng.normal(0, 0.02, (2, *SIZE))
    images = np.stack((first, second)) * gain + light + noise
    return images.astype(np.float32), flow.astype(np.float32), visible


def mirrored(pairs: Pairs, rng: np.random.Generator) -> Pairs:
    """Each pair perhaps upside down, left to right, or in negative."""
    count = len(pairs.images)
    images, flow, visible = (array.copy() for array in pairs)
    images *= rng.choice((-1, 1), (count, 1, 1, 1)).astype(np.float32)
    for axis in (0, 1):
        turn = rng.random(count) < 0.5
        images[turn] = np.flip(images[turn], 2 + axis)
        flow[turn] = np.flip(flow[turn], 2 + axis)
        flow[turn, axis] *= -1
        visible[turn] = np.flip(visible[turn], 1 + axis)
    return Pairs(images, flow, visible)


def motorcycle(factor: int) -> Pairs:
    """The stereo pair of Middlebury's motorcycle at 1/factor of its size: what the left image sees.

    Its flow is horizontal: minus the disparity; `visible` says where this is known.
    """
    left, right, disparity = data.stereo_motorcycle()
    rows, columns = (size // (16 * factor) * 16 * factor for size in disparity.shape)
    images = [shrink(rgb2gray(photo)[:rows, :columns], factor) for photo in (left, right)]
    known = np.isfinite(disparity[:rows, :columns])
    far, share = shrink_disparity(disparity[:rows, :columns], known, factor)
    flow = np.stack((np.zeros_like(far), -far / factor))
    standard = [_standard(image) for image in images]
    return Pairs(np.stack(standard)[None], flow[None].astype(np.float32), (share > 0.5)[None])
