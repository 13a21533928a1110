"""Pictures of optical flow, in the colours of the Middlebury benchmark, and of errors against steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from _flow_data import Pairs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Steps from red to yellow, green, cyan, blue, magenta and back to red (Baker et al., "A database and
# evaluation methodology for optical flow", IJCV 2011): more where the eye tells more colours apart.
TURNS = ((15, (1, 0, 0)), (6, (1, 1, 0)), (4, (0, 1, 0)), (11, (0, 1, 1)), (13, (0, 0, 1)), (6, (1, 0, 1)))


def _wheel() -> np.ndarray:
    corners = [np.array(colour, float) for _, colour in TURNS]
    arcs = [
        corners[k] + np.arange(steps)[:, None] / steps * (corners[(k + 1) % len(TURNS)] - corners[k])
        for k, (steps, _) in enumerate(TURNS)
    ]
    return np.concatenate([*arcs, corners[:1]])


WHEEL = _wheel()
LINES = *(f"C{number}" for number in range(10)), "black", "gold"  # of curves


def colours(flow: np.ndarray, largest: float) -> np.ndarray:
    """Flow (2, H, W) as colours (H, W, 3): direction as hue, length up to `largest` as saturation."""
    y, x = flow / largest
    turn = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(WHEEL) - 1)
    below = np.minimum(turn.astype(int), len(WHEEL) - 2)
    part = (turn - below)[..., None]
    hue = WHEEL[below] * (1 - part) + WHEEL[below + 1] * part
    length = np.hypot(y, x)[..., None]
    return np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)


def wheel_picture(size: int = 64) -> np.ndarray:
    """The flow that points away from the centre, white outside the circle."""
    grid = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return np.where(np.hypot(*grid)[..., None] <= 1, colours(grid, 1.0), 1)


def draw(
    path: Path,
    pairs: Pairs,
    flows: dict[str, np.ndarray],
    stereo: Pairs,
    stereo_flows: dict[str, np.ndarray],
) -> None:
    """A row for each pair and, last, one for the disparity of the stereo pair."""
    rows, columns = len(pairs.images) + 1, 3 + len(flows)
    figure = Figure(figsize=(1.75 * columns, 1.35 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row in range(rows - 1):
        first, second = pairs.images[row]
        largest = np.hypot(*pairs.flow[row]).max()
        truth = pairs.flow[row]
        _images(axes[row], first, second)
        axes[row, 2].imshow(colours(truth, largest))
        _error(axes[row, 2], "nothing moves: ", np.hypot(*truth))
        for axis, flow in zip(axes[row, 3:], flows.values()):
            axis.imshow(colours(flow[row], largest))
            _error(axis, "error ", np.hypot(*(flow[row] - truth)))
    inset = axes[0, 2].inset_axes([0.74, 0.6, 0.26, 0.4])
    inset.imshow(wheel_picture())
    inset.axis("off")
    _images(axes[-1], *stereo.images[0])
    truth = np.where(stereo.visible[0], -stereo.flow[0, 1], np.nan)
    for axis, disparity in zip(axes[-1, 2:], [truth, *(-flow[0, 1] for flow in stereo_flows.values())]):
        mapped = axis.imshow(disparity, vmin=0, vmax=np.nanmax(truth), cmap="viridis")
        if disparity is truth:
            _error(axis, "nothing moves: ", truth)
        else:
            _error(axis, "error ", abs(disparity - truth))
        axis.set_facecolor("0.8")
    _name(axes, ["first image", "second image", "truth", *flows])
    axes[-1, 0].set_ylabel("stereo pair:\ndisparity", fontsize=8)
    figure.colorbar(mapped, ax=axes[-1, :], label="pixels").ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def draw_curves(
    path: Path, steps: Sequence[int], panels: Mapping[str, Mapping[str, np.ndarray]], still: float
) -> None:
    """Panels of curves (seeds, points), whose means are lines, and whose extremes bound what is shaded."""
    figure = Figure(figsize=(4.2 * len(panels), 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    colour = dict(zip(names, LINES, strict=False))  # the same in every panel
    for axis, (title, curves) in zip(axes, panels.items()):
        for name, errors in curves.items():
            axis.plot(steps, errors.mean(0), marker=".", label=name, linewidth=1, color=colour[name])
            axis.fill_between(steps, errors.min(0), errors.max(0), color=colour[name], alpha=0.15)
        for share, words, side in ((1, "nothing moves", "bottom"), (3, "a third of that", "top")):
            axis.axhline(still / share, color="0.5", linestyle=":" if share == 3 else "--", linewidth=1)
            axis.text(steps[-1], still / share, words, ha="right", va=side, fontsize=7, color="0.3")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("steps of training", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False, loc="lower left", ncols=2)
    axes[0].set_ylim(0, 1.2 * still)
    axes[0].set_ylabel("end-point error on held-out pairs, pixels", fontsize=8)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def _error(axis: Axes, words: str, distances: np.ndarray) -> None:
    """A mean distance, below a picture."""
    axis.set_xlabel(f"{words}{np.nanmean(distances):.2f} px", fontsize=7, labelpad=2)


def _images(axes: Sequence, first: np.ndarray, second: np.ndarray) -> None:
    for axis, image in zip(axes, (first, second)):
        axis.imshow(image, cmap="gray", vmin=-2, vmax=2)


def _name(axes: np.ndarray, names: Sequence[str]) -> None:
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8)
