"""The motorcycle of the Middlebury 2014 stereo data, which scikit-image brings along."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.color import rgb2lab
from skimage.data import stereo_motorcycle

LARGEST_FACTOR = 8  # both parts of the scene have sides that it divides


class Scene(NamedTuple):
    """A photograph and its disparity map.

    Disparity is the distance, in pixels, between the places where the left and the right camera see one
    point; it is proportional to 1/depth. Where one of the cameras cannot see the point, it is unknown.
    """

    photo: np.ndarray  # (3, H, W) float32, CIELAB/100: distances between colours are close to what eyes see
    disparity: np.ndarray  # (H, W) float32, 0 where unknown
    valid: np.ndarray  # (H, W) bool, where it is known

    def cut(self, rows: slice, columns: slice) -> "Scene":
        """A rectangle of the scene."""
        return Scene(self.photo[:, rows, columns], self.disparity[rows, columns], self.valid[rows, columns])


def load() -> tuple[Scene, Scene, np.ndarray]:
    """The left two thirds, the right third, and the right third of the photograph in RGB (H, W, 3)."""
    rgb, _, disparity = stereo_motorcycle()
    valid = np.isfinite(disparity)
    photo = np.moveaxis(rgb2lab(rgb), 2, 0).astype(np.float32) / 100
    scene = Scene(photo, np.where(valid, disparity, 0).astype(np.float32), valid)
    height, width = valid.shape
    rows = slice(height % LARGEST_FACTOR, None)
    third = -(-width // (3 * LARGEST_FACTOR)) * LARGEST_FACTOR
    right = slice(width - third, None)
    # The columns lost to divisibility are a gap between the two parts.
    left = slice(0, (width - third) // LARGEST_FACTOR * LARGEST_FACTOR)
    return scene.cut(rows, left), scene.cut(rows, right), rgb[rows, right]


def shrink(array: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks of factor x factor pixels; array (..., H, W)."""
    *rest, h, w = array.shape
    blocks = array.reshape(*rest, h // factor, factor, w // factor, factor)
    return blocks.mean((-3, -1), dtype=np.float32)


def shrink_disparity(disparity: np.ndarray, valid: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over the known pixels of each block, and the fraction of the block that is known."""
    known = shrink(valid, factor)
    total = shrink(np.where(valid, disparity, 0), factor)
    return total / np.maximum(known, 1e-6), known


def low_resolution(scene: Scene, factor: int) -> np.ndarray:
    """The disparity of a coarser sensor: blocks without a known pixel take the nearest known value."""
    low, known = shrink_disparity(scene.disparity, scene.valid, factor)
    nearest = distance_transform_edt(known == 0, return_distances=False, return_indices=True)
    return low[tuple(nearest)]
