"""The pictures of denoising.py: what each method makes of noisy photographs, and how its filters vary."""

from pathlib import Path

import numpy as np
from _photographs import Noisy
from _picture import save_in_few_colours
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from autodiff.metrics import psnr

SIDE = 80  # of the squares that are shown


def draw_results(path: Path, scenes: dict[str, Noisy], results: dict[str, dict[str, np.ndarray]]) -> None:
    """A row for each photograph: a square with a large range of noise, what becomes of it, and its PSNR."""
    columns = ["level of noise", "noisy", *results, "true"]
    figure = Figure(figsize=(1.5 * len(columns), 1.7 * len(scenes) + 0.4), layout="constrained")
    axes = figure.subplots(len(scenes), len(columns))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for row, (name, scene) in zip(axes, scenes.items()):
        square = most_varied(scene.level)
        images = [scene.noisy, *(images[name] for images in results.values()), scene.clean]
        show(row[0], scene.level[square], "magma", 0, 60 / 255)
        for axis, image in zip(row[1:], images):
            show(axis, image[square], "gray", 0, 1)
            if image is not scene.clean:
                found = psnr(image[square], scene.clean[square], data_range=1)
                axis.set_xlabel(f"{found:.1f} dB", fontsize=8, labelpad=2)
        row[0].set_ylabel(name, fontsize=9)
    for axis, title in zip(axes[0], columns):
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=80)


def most_varied(level: np.ndarray) -> tuple[slice, slice]:
    """The square with the largest range of levels."""
    corners = [
        (top, left)
        for top in range(0, level.shape[0] - SIDE + 1, 8)
        for left in range(0, level.shape[1] - SIDE + 1, 8)
    ]

    def ratio(corner: tuple[int, int]) -> float:
        part = level[corner[0] : corner[0] + SIDE, corner[1] : corner[1] + SIDE]
        return float(part.max() / part.min())

    top, left = max(corners, key=ratio)
    return slice(top, top + SIDE), slice(left, left + SIDE)


def show(axis: Axes, image: np.ndarray, colours: str | None, low: float, high: float) -> AxesImage:
    """An image without ticks."""
    axis.set(xticks=[], yticks=[])
    return axis.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def draw_maps(path: Path, scene: Noisy, atoms: list[np.ndarray], kernels: np.ndarray) -> None:
    """How filters vary over an image: atoms of each layer as colours, the width of predicted kernels."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(2, 3)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    top, bottom = axes
    show(top[0], scene.noisy, "gray", 0, 1)
    top[0].set_title("noisy", fontsize=9)
    width = kernel_width(kernels)
    shades = (
        show(top[1], 255 * scene.level, "magma", 0, 60),
        show(top[2], width, "viridis", 0, float(np.quantile(width, 0.99))),
    )
    titles = "level of noise, of 255 grey levels", "width of the predicted kernels, pixels"
    for axis, shade, title in zip(top[1:], shades, titles):
        axis.set_title(title, fontsize=9)
        figure.colorbar(shade, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    for number, (axis, maps) in enumerate(zip(bottom, atoms), start=1):
        show(axis, as_colours(maps), None, 0, 1)
        axis.set_title(f"atoms of layer {number}: 3 components", fontsize=9)
    save_in_few_colours(figure, path)


def kernel_width(kernels: np.ndarray) -> np.ndarray:
    """Standard deviation, in pixels, of kernels (k, k, H, W) that are positive and of sum 1."""
    step = np.arange(len(kernels)) - len(kernels) // 2
    far = step[:, None] ** 2 + step**2
    return np.sqrt(np.tensordot(far, kernels, axes=((0, 1), (0, 1))) / 2)


def as_colours(maps: np.ndarray) -> np.ndarray:
    """Maps (maps, H, W) as an image in colour: their three principal components, between two quantiles."""
    flat = maps.reshape(len(maps), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    _, directions = np.linalg.eigh(flat @ flat.T)
    parts = directions[:, -3:].T @ flat
    low, high = np.quantile(parts, (0.02, 0.98), axis=1)
    unit = (parts - low[:, None]) / (high - low)[:, None]
    return np.clip(unit, 0, 1).T.reshape(*maps.shape[1:], 3)
