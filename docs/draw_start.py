"""The picture of the start page: one filter for all pixels, and one for each.

A noisy photograph is averaged twice, over windows of the same size: with a Gaussian, the same everywhere, and
with the kernels that `dynarray.kernels.bilateral` makes of the photograph, one for each pixel, which leave
out what lies on the other side of an edge. Three pixels are marked, and their kernels shown. The width of the
Gaussian is the best for this photograph, and the widths of the bilateral filter are those of a coarse search.

    python docs/draw_start.py
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data

from dynarray import images, kernels

SIDE, SIZE = 96, 11
PIXELS = {"A": (23, 21), "B": (47, 63), "C": (84, 40)}  # (y, x) of the marked ones
COLOURS = {"A": "#d62728", "B": "#1f77b4", "C": "#c77c00"}


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A part of a photograph in 0...1, (SIDE, SIDE), and the same with noise of deviation 0.1."""
    photo = data.chelsea()[60 : 60 + SIDE, 120 : 120 + SIDE].mean(axis=2) / 255
    return photo, photo + np.random.default_rng(0).normal(0, 0.1, photo.shape)


def psnr(found: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio of values in 0...1, in dB."""
    return float(-10 * np.log10(np.mean((found - true) ** 2)))


def filtered() -> tuple[np.ndarray, np.ndarray, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Photograph, noisy photograph, and by title the kernels (SIZE, SIZE, SIDE, SIDE) and what they give."""
    photo, noisy = scene()
    widths = np.arange(0.5, 2.5, 0.1)  # the best Gaussian for this photograph: no straw man
    gaussians = [np.asarray(kernels.gaussian(width, SIZE)) for width in widths]
    fixed = max(gaussians, key=lambda kernel: psnr(images.filter(noisy, kernel), photo))
    guide = images.filter(noisy, np.asarray(kernels.gaussian(1.0, SIZE)))
    each = np.asarray(kernels.bilateral(guide, sigma_space=2.5, sigma_color=0.07, size=SIZE))
    same = np.broadcast_to(fixed[:, :, None, None], each.shape)
    rows = {"One filter for all pixels": same, "A filter for each pixel": each}
    return photo, noisy, [(title, kernel, images.filter(noisy, kernel)) for title, kernel in rows.items()]


def show(axes: Axes, picture: np.ndarray, title: str) -> None:
    """A photograph, with the windows of the marked pixels."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()
    for name, (y, x) in PIXELS.items():
        corner = (x - SIZE / 2, y - SIZE / 2)
        axes.add_patch(Rectangle(corner, SIZE, SIZE, fill=False, ec=COLOURS[name], lw=1.8))
        axes.text(x + SIZE / 2 + 1, y, name, color=COLOURS[name], va="center", fontsize=12, fontweight="bold")


def draw(path: Path) -> None:
    """Filter, and draw what each of three pixels was averaged with."""
    photo, noisy, rows = filtered()
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1.25, 1.65, 0.95])
    show(left.subplots(), noisy, f"photograph with noise ({psnr(noisy, photo):.1f} dB)")
    results = right.subplots(2, 1)
    for part, axes, (title, weights, result) in zip(middle.subfigures(2, 1), results, rows):
        part.suptitle(title, fontsize=13, fontweight="bold")
        for inner, (name, (y, x)) in zip(part.subplots(1, 3), PIXELS.items()):
            inner.imshow(weights[:, :, y, x], cmap="magma", vmin=0, interpolation="nearest")
            inner.set_title(f"of {name}, ({y}, {x})", fontsize=10, color=COLOURS[name])
            inner.set_axis_off()
        show(axes, result, f"result ({psnr(result, photo):.1f} dB)")
    figure.savefig(path, dpi=100)
    print(f"drawn: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "dynamic_filter.png")
    draw(parser.parse_args().out)
