"""The pictures of segmentation.py: what each network saw where, and where it looked."""

from pathlib import Path

import numpy as np
from _heads import STEP
from _scenes import CLASS_NAMES, Scenes
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = ["#202020", *colormaps["tab10"].colors]
CLASSES = {"cmap": ListedColormap(COLOURS), "vmin": 0, "vmax": len(COLOURS) - 1, "interpolation": "nearest"}
PIXELS = ("background", "small", "medium", "large")


def tiles(rows: int, columns: int) -> tuple:
    """A figure of squares without ticks."""
    figure = Figure(figsize=(1.45 * columns, 1.45 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0.01, hspace=0.01)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def picture(scenes: Scenes, row: int) -> np.ndarray:
    """One image as matplotlib wants it."""
    return np.moveaxis(scenes.images[row], 0, 2)


def draw_segmentations(
    path: Path, scenes: Scenes, predictions: dict[str, np.ndarray], scores: dict[str, float]
) -> None:
    """A row for each scene: the image, the truth, and what each network made of it."""
    count = len(next(iter(predictions.values())))
    figure, axes = tiles(count, 2 + len(predictions))
    for row in range(count):
        axes[row, 0].imshow(picture(scenes, row))
        axes[row, 1].imshow(scenes.labels[row], **CLASSES)
        for axis, found in zip(axes[row, 2:], predictions.values()):
            axis.imshow(found[row], **CLASSES)
    scored = [
        f"{method.replace(' on ', chr(10) + 'on ')}\nmIoU {scores[method]:.1f} %" for method in predictions
    ]
    titles = ["scene", "truth", *scored]
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    handles = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, CLASS_NAMES)]
    figure.legend(handles=handles, loc="outside lower center", ncols=11, fontsize=8, frameon=False)
    save(figure, path)


def chosen(scenes: Scenes, rows: int) -> list[tuple[int, int, int]]:
    """(row, y, x) on the low-level grid: far inside the background, a small, a medium, a large digit."""
    found = []
    for low, high in ((-1, 0), (0, 15), (18, 24), (30, 99)):
        heights = scenes.heights[:rows, ::STEP, ::STEP].astype(int)
        inside = (heights > low) & (heights <= high)
        # As many like it as possible in the 7 x 7 neighbourhood; nothing at the edge of the image.
        like = np.zeros(inside.shape)
        for dy, dx in np.ndindex(7, 7):
            like += np.roll(inside, (dy - 3, dx - 3), (1, 2))
        like[~inside] = -1
        like[:, :8] = like[:, -8:] = like[:, :, :8] = like[:, :, -8:] = -1
        row, y, x = np.unravel_index(np.argmax(like), like.shape)
        found.append((int(row), int(y), int(x)))
    return found


def draw_points(path: Path, scenes: Scenes, points: dict[str, np.ndarray]) -> None:
    """A row for each network, a column for each chosen pixel: the nine points that are read for it."""
    count = len(next(iter(points.values())))
    places = chosen(scenes, count)
    figure, axes = tiles(len(points), len(places))
    for method, line in zip(points, axes):
        line[0].set_ylabel(method, fontsize=9)
        for axis, (row, y, x) in zip(line, places):
            axis.imshow(picture(scenes, row), interpolation="nearest")
            regular = STEP * (np.mgrid[-1:2, -1:2].reshape(2, 9) + np.array([[y], [x]]))
            dots(axis, regular, "none", "white")
            dots(axis, points[method][row, :, :, y, x].T, "#ff2020", "white")
            axis.plot(STEP * x, STEP * y, "x", color="#ffe000", markersize=5)
            # The neighbourhood, but all of the points.
            reach = max(16, np.abs(points[method][row, :, :, y, x] - [STEP * y, STEP * x]).max() + 3)
            axis.set_xlim(STEP * x - reach, STEP * x + reach)
            axis.set_ylim(STEP * y + reach, STEP * y - reach)
    for axis, title in zip(axes[0], PIXELS):
        axis.set_title(title if title == "background" else f"{title} digit", fontsize=9)
    figure.supxlabel("x: the position; circles: the regular grid; dots: the points that are read", fontsize=8)
    save(figure, path)


def dots(axis: Axes, places: np.ndarray, fill: str, edge: str) -> None:
    """Points (2, n), (y, x)."""
    axis.scatter(places[1], places[0], s=14, facecolors=fill, edgecolors=edge, linewidths=0.7)


def save(figure: Figure, path: Path) -> None:
    """A small file: a few hundred colours are enough."""
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
