"""The pictures of filters_as_atoms.py: filters, atoms and bases as small images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GAP = 1  # pixels between tiles


def tiles(filters: np.ndarray, columns: int) -> np.ndarray:
    """Filters (count, k, k) side by side, each scaled to its largest value; NaN between them."""
    count, k, _ = filters.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (k + GAP) - GAP, columns * (k + GAP) - GAP), np.nan)
    for index, one in enumerate(filters):
        top, left = (place * (k + GAP) for place in divmod(index, columns))
        sheet[top : top + k, left : left + k] = one / max(np.abs(one).max(), 1e-12)
    return sheet


def show(axis: Axes, sheet: np.ndarray, title: str = "") -> None:
    """Tiles: red above zero, blue below."""
    axis.imshow(sheet, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_frame_on(False)
    axis.set_title(title, fontsize=9)


def draw_filters(
    path: Path,
    image: np.ndarray,
    places: Sequence[tuple[int, int]],
    filters: np.ndarray,
    atoms: np.ndarray,
    rebuilt: np.ndarray,
) -> None:
    """The photograph with some pixels marked; for each of them its filters, atoms, and filters rebuilt."""
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    photo = left.subplots()
    photo.imshow(image, cmap="gray", interpolation="nearest")
    photo.set(xticks=[], yticks=[])
    axes = right.subplots(len(places), 3, width_ratios=(6, 3, 6))
    titles = (f"{len(filters)} filters", f"{len(atoms)} atoms, of bases", "filters of these atoms")
    for number, ((y, x), row) in enumerate(zip(places, axes), start=1):
        photo.plot(x, y, "o", mfc="none", mec="C1", ms=12)
        photo.annotate(str(number), (x, y), (9, 5), textcoords="offset points", color="C1", fontsize=12)
        sheets = (tiles(filters[..., y, x], 6), tiles(atoms[..., y, x], 3), tiles(rebuilt[..., y, x], 6))
        for axis, sheet, title in zip(row, sheets, titles if number == 1 else ("", "", "")):
            show(axis, sheet, title)
        row[0].set_ylabel(str(number), color="C1", fontsize=12, rotation=0, labelpad=10)
    right.supxlabel("each over its largest absolute value: red above zero, blue below", fontsize=8)
    figure.savefig(path, dpi=80)


def draw_bases(
    path: Path,
    bases: np.ndarray,
    atoms: Sequence[int],
    errors: Mapping[str, tuple[int, Sequence[float]]],
) -> None:
    """The multi-scale bases, a row for each scale, and what is missing with each set of bases."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(left, tiles(bases, len(bases) // (bases.shape[1] // 2)), "multi-scale bases: sizes 3, 5, 7")
    for name, (size, row) in errors.items():
        right.plot(atoms, 100 * np.asarray(row), "o-", ms=4, label=f"{name} ({size})")
    right.set(xlabel="atoms of a pixel", ylabel="missing of the filters, %", xticks=atoms, ylim=(0, None))
    right.legend(title="bases (numbers per atom)", fontsize=8, title_fontsize=8)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
