"""Image pairs with exact optical flow, made from photographs by layers that move affinely."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from _motorcycle import shrink, shrink_disparity
from numba import njit
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.color import rgb2gray

SIZE = 64, 96
FARTHEST = 6.0  # pixels that the centre of an object moves, at most
TRAINING = (
    *("astronaut", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry"),
    *("brick", "grass", "gravel", "coins", "moon", "page"),
)
HELD_OUT = ("chelsea", "camera", "clock", "text")
ROUND = 64  # angles at which an outline is known
WAVES = np.arange(2, 6)  # of an outline: their number all around
ANGLES = WAVES[:, None] * np.linspace(0, 2 * np.pi, ROUND, endpoint=False)
TILE = 512  # sides of photographs: powers of two, after which they begin again
NEARBY = 6.0  # pixels, within which contrast is evened
ENDLESS = np.full(ROUND, np.inf)  # the radii of a background


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

    def after(self, first: "Affine") -> "Affine":
        """Both, one after the other."""
        return Affine(self.matrix @ first.matrix, self.matrix @ first.shift + self.shift)

    def inverse(self) -> "Affine":
        """The motion back."""
        back = np.linalg.inv(self.matrix)
        return Affine(back, -back @ self.shift)

    def rows(self) -> np.ndarray:
        """Matrix and shift side by side, (2, 3)."""
        return np.hstack((self.matrix, self.shift[:, None]))


STILL = Affine(np.eye(2), np.zeros(2))


class Layer(NamedTuple):
    """A piece of a photograph, where it is in the first image, and how it moves from there to the second."""

    photo: np.ndarray
    place: Affine  # from the first image into the photograph
    motion: Affine
    centre: np.ndarray
    radii: np.ndarray  # of the outline at equal angles around the centre

    def opacity(self, back: Affine = STILL) -> np.ndarray:
        """In an image whose pixels `back` leads to the first image."""
        if self.radii is ENDLESS:
            return np.ones(SIZE, np.float32)
        return _opacities(self.radii, self.around(back), *SIZE)

    def paint(self, image: np.ndarray, back: Affine = STILL) -> np.ndarray:
        """Paint it over an image whose pixels `back` leads to the first image; its opacity there."""
        opacity = self.opacity(back)
        _blend(image, opacity, self.photo, self.place.after(back).rows())
        return opacity

    def around(self, back: Affine) -> np.ndarray:
        """Where `back` leads a pixel to, from the centre of the outline."""
        return back._replace(shift=back.shift - self.centre).rows()


def photographs(names: Sequence[str], factor: int = 2) -> list[np.ndarray]:
    """Photographs of scikit-image, gray, at 1/factor of their size, of zero mean and unit variance.

    Beyond its edges each goes on mirrored, up to `TILE` pixels.
    """
    found = []
    for name in names:
        photo = getattr(data, name)()
        gray = rgb2gray(photo) if photo.ndim == 3 else photo
        rows, columns = (length // factor * factor for length in gray.shape)
        photo = _standard(shrink(gray[:rows, :columns], factor))
        found.append(np.pad(photo, [(0, TILE - length) for length in photo.shape], "reflect"))
    return found


def _standard(image: np.ndarray) -> np.ndarray:
    return ((image - image.mean()) / image.std()).astype(np.float32)


def evened(image: np.ndarray) -> np.ndarray:
    """Its local contrast made the same everywhere: where nothing is to be seen, no flow can be told."""
    detail = image - gaussian_filter(image, NEARBY)
    return np.clip(_standard(detail / (np.sqrt(gaussian_filter(detail**2, NEARBY)) + 0.02)), -4, 4)


def to_learn_from() -> list[np.ndarray]:
    """Those that pairs are made of in training, and their negatives."""
    photos = [evened(photo) for photo in photographs(TRAINING, 3)]
    return [*photos, *(-photo for photo in photos)]


def to_judge_on() -> list[np.ndarray]:
    """Others."""
    return [evened(photo) for photo in photographs(HELD_OUT, 3)]


def make_pairs(photos: Sequence[np.ndarray], count: int, seed: int | Sequence[int]) -> Pairs:
    """Scenes of one moving background and one to three objects that move on their own.

    The seed decides all of it: which pieces of which photographs are seen, turned and scaled by how much; the
    outlines of objects, where they are, and what is before what; all motions; light and noise.
    """
    rng = np.random.default_rng(seed)
    scenes = [render(random_layers(photos, rng), rng) for _ in range(count)]
    return Pairs(*(np.stack(arrays) for arrays in zip(*scenes)))


def random_layers(photos: Sequence[np.ndarray], rng: np.random.Generator) -> list[Layer]:
    """From the background to the front."""
    size = np.array(SIZE, float)
    layers = [_random_layer(photos, size / 2, ENDLESS, 0.5, rng)]
    for _ in range(rng.integers(1, 4)):
        # A smooth outline: a circle with some waves, that of n periods of a height that falls as n^-1.5.
        heights = rng.normal(0, 0.5, len(WAVES)) / WAVES**1.5
        waves = heights @ np.cos(ANGLES + rng.uniform(0, 2 * np.pi, (len(WAVES), 1)))
        radii = rng.uniform(8, 22) * np.clip(1 + waves, 0.3, 2)
        layers.append(_random_layer(photos, rng.uniform(0.1, 0.9, 2) * size, radii, 1.0, rng))
    return layers


def _random_layer(
    photos: Sequence[np.ndarray],
    centre: np.ndarray,
    radii: np.ndarray,
    speed: float,
    rng: np.random.Generator,
) -> Layer:
    photo = photos[rng.integers(len(photos))]
    place = _turned(rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2), np.zeros(2))
    place = place._replace(shift=rng.uniform(0, photo.shape))
    motion = _turned(rng.normal(0, 0.06) * speed, 1 + rng.normal(0, 0.04) * speed, centre)
    # Long and short ways are equally likely; with independent shifts along y and x most would be long.
    way, angle = rng.uniform(0, FARTHEST) * speed, rng.uniform(0, 2 * np.pi)
    shift = motion.shift + way * np.array((math.sin(angle), math.cos(angle)))
    return Layer(photo, place, motion._replace(shift=shift), centre, radii)


def _turned(angle: float, scale: float, centre: np.ndarray) -> Affine:
    """Rotation and scaling about a centre."""
    along, across = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.array(((along, -across), (across, along)))
    return Affine(matrix, centre - matrix @ centre)


def render(layers: Sequence[Layer], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both images, the flow, and where it leads to something visible.

    A pixel belongs to the front layer that covers at least half of it. Its flow is the motion of this layer,
    and it is visible in the second image where the front layer is the same there.
    """
    images, owner = np.zeros((2, *SIZE), np.float32), np.zeros(SIZE, np.int64)
    backs = [layer.motion.inverse() for layer in layers]
    for number, (layer, back) in enumerate(zip(layers, backs)):
        owner[layer.paint(images[0]) >= 0.5] = number
        layer.paint(images[1], back)
    motions = np.stack([layer.motion.rows() for layer in layers])
    around = np.stack([layer.around(back) for layer, back in zip(layers, backs)])
    flow, visible = _follow(owner, np.stack([layer.radii for layer in layers]), motions, around)
    gain, light = rng.normal((1, 0), 0.05, (2, 1, 1, 2)).astype(np.float32).transpose(3, 0, 1, 2)
    noise = rng.random(images.shape, np.float32) - np.float32(0.5)
    return images * gain + light + np.float32(0.07) * noise, flow, visible


# ---------------------------------------------------------------------------------------------------------
# Pixel by pixel: what is drawn anew for every step of a training must take less time than the step.
# Each process compiles for itself: Numba's own cache tells sources apart by their size and time alone.


@njit
def _blend(image: Any, opacity: Any, photo: Any, into: Any) -> None:
    """Paint over an image what is between the pixels of a photograph, to whose places `into` leads.

    Without branches, and with sides that are powers of two, compilers do several pixels at a time.
    """
    rows, columns = np.uint64(photo.shape[0] - 1), np.uint64(photo.shape[1] - 1)
    for i in range(image.shape[0]):
        for k in range(image.shape[1]):
            y, x = _moved(into, i, k)
            top, left = math.floor(y), math.floor(x)
            down, right = np.float32(y - top), np.float32(x - left)
            above, below = np.uint64(top) & rows, np.uint64(top + 1) & rows
            before, behind = np.uint64(left) & columns, np.uint64(left + 1) & columns
            upper = photo[above, before] + right * (photo[above, behind] - photo[above, before])
            lower = photo[below, before] + right * (photo[below, behind] - photo[below, before])
            image[i, k] += opacity[i, k] * (upper + down * (lower - upper) - image[i, k])


@njit
def _opacities(radii: Any, around: Any, high: int, wide: int) -> Any:
    """Of a layer, from whose centre `around` leads to pixels."""
    opacity, reach = np.zeros((high, wide), np.float32), radii.max() + 0.5
    for i in range(high):
        for k in range(wide):
            opacity[i, k] = _opacity(radii, reach, *_moved(around, i, k))
    return opacity


@njit
def _follow(owner: Any, radii: Any, motions: Any, around: Any) -> Any:
    """The flow, and what is visible; `around` leads there from the second image, for each layer."""
    high, wide = owner.shape
    reach = [each.max() + 0.5 for each in radii]
    flow, visible = np.zeros((2, high, wide), np.float32), np.zeros((high, wide), np.bool_)
    for i in range(high):
        for k in range(wide):
            y, x = _moved(motions[owner[i, k]], i, k)
            flow[0, i, k], flow[1, i, k] = y - i, x - k
            seen = 0 <= y <= high - 1 and 0 <= x <= wide - 1
            for front in range(owner[i, k] + 1, len(motions)):
                seen = seen and _opacity(radii[front], reach[front], *_moved(around[front], y, x)) < 0.5
            visible[i, k] = seen
    return flow, visible


@njit
def _moved(rows: Any, y: float, x: float) -> Any:
    """A point after an affine map."""
    return rows[0, 0] * y + rows[0, 1] * x + rows[0, 2], rows[1, 0] * y + rows[1, 1] * x + rows[1, 2]


@njit
def _opacity(radii: Any, reach: float, y: float, x: float) -> float:
    """Of a layer at a point, seen from its centre: from 1 to 0 across one pixel of its outline."""
    squared = y * y + x * x
    if squared >= reach * reach:
        return 0.0
    turn = (math.atan2(y, x) / (2 * math.pi) + 1) * ROUND
    before = int(turn)
    outline = radii[before % ROUND] * (before + 1 - turn) + radii[(before + 1) % ROUND] * (turn - before)
    return min(max(outline - math.sqrt(squared) + 0.5, 0.0), 1.0)


def motorcycle(factor: int) -> Pairs:
    """The stereo pair of Middlebury's motorcycle at 1/factor of its size, evened: what the left image sees.

    Its flow is horizontal: minus the disparity; `visible` says where this is known.
    """
    left, right, disparity = data.stereo_motorcycle()
    rows, columns = (size // (16 * factor) * 16 * factor for size in disparity.shape)
    images = [shrink(rgb2gray(photo)[:rows, :columns], factor) for photo in (left, right)]
    known = np.isfinite(disparity[:rows, :columns])
    far, share = shrink_disparity(disparity[:rows, :columns], known, factor)
    flow = np.stack((np.zeros_like(far), -far / factor))
    images = [evened(image) for image in images]
    return Pairs(np.stack(images)[None], flow[None].astype(np.float32), (share > 0.5)[None])
