"""The picture of joint_upsampling.py: what each method makes of the held-out part, and where it is wrong."""

from pathlib import Path

import numpy as np
from _motorcycle import Scene
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

UNKNOWN = "0.82"
WORST = 8.0  # pixels of disparity; larger errors are drawn like this one


def draw(
    path: Path,
    photo: np.ndarray,
    scene: Scene,
    comparisons: dict[int, dict[str, np.ndarray]],
    scores: dict[int, dict[str, float]],
) -> None:
    """Two rows for each scale: the disparity by every method, and its errors."""
    methods = list(next(iter(comparisons.values())))
    rows, columns = 2 * len(comparisons), 1 + len(methods)
    tile_height = 1.5 * scene.valid.shape[0] / scene.valid.shape[1]
    figure = Figure(figsize=(1.5 * columns + 0.9, tile_height * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_facecolor(UNKNOWN)
        for edge in axis.spines.values():
            edge.set_visible(False)
    for index, (scale, results) in enumerate(comparisons.items()):
        pair = axes[2 * index : 2 * index + 2]
        near, wrong = draw_scale(pair, scale, photo, scene, results, scores[scale])
    figure.colorbar(near, ax=axes[: rows // 2], shrink=0.6, aspect=30, label="disparity, pixels")
    figure.colorbar(wrong, ax=axes[rows // 2 :], shrink=0.6, aspect=30, extend="max", label="error, pixels")
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def draw_scale(
    axes: np.ndarray,
    scale: int,
    photo: np.ndarray,
    scene: Scene,
    results: dict[str, np.ndarray],
    scores: dict[str, float],
) -> tuple:
    """The two rows of one scale; returns what the colour bars need."""
    known = scene.disparity[scene.valid]
    depth = {"cmap": "viridis", "vmin": known.min(), "vmax": known.max(), "interpolation": "nearest"}
    # White where it is right, so that only the errors have colour.
    blame = LinearSegmentedColormap.from_list("blame", ["white", "#f4a582", "#b2182b", "#400010"])
    error = {"cmap": blame, "vmin": 0, "vmax": WORST, "interpolation": "nearest"}
    axes[0, 0].imshow(photo)
    near = axes[1, 0].imshow(np.where(scene.valid, scene.disparity, np.nan), **depth)
    axes[0, 0].set_title(f"1/{scale} resolution\n", fontsize=10, weight="bold", loc="left")
    label(axes[0, 0], "photograph")
    label(axes[1, 0], "true disparity")
    best = min(scores, key=lambda method: scores[method])
    for column, (method, result) in enumerate(results.items(), start=1):
        axes[0, column].imshow(result, **depth)
        mistakes = np.where(scene.valid, np.abs(result - scene.disparity), np.nan)
        wrong = axes[1, column].imshow(mistakes, **error)
        title = f"{method}\nRMSE {scores[method]:.2f}"
        axes[0, column].set_title(title, fontsize=10, weight="bold" if method == best else "normal")
    label(axes[0, 1], "= the input")
    label(axes[1, 1], "errors")
    return near, wrong


def label(axis: Axes, text: str) -> None:
    """A few words in the lower left corner of a tile."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "boxstyle": "square,pad=0.2"}
    axis.text(0.03, 0.015, text, transform=axis.transAxes, fontsize=8, bbox=box)
