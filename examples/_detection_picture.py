"""The picture of detection.py: scenes, the boxes that are there, and those that were found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from _detection_scenes import CLASSES
from _picture import save_in_few_colours
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from autodiff.metrics import Detections

LEAST = 0.5  # probability of what is drawn
COLOURS = colormaps["tab20"].colors


def draw(path: Path, scenes: Sequence[dict], found: Mapping[str, Sequence[Detections]]) -> None:
    """A column for each scene; the truth in the first row, what a detector found in each other."""
    rows, columns = 1 + len(found), len(scenes)
    figure = Figure(figsize=(1.6 * columns, 1.6 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    truth = [Detections(each["boxes"], np.ones(len(each["boxes"])), each["box_labels"]) for each in scenes]
    for line, (name, boxes) in zip(axes, {"truth": truth, **found}.items()):
        line[0].set_ylabel(name, fontsize=9)
        for axis, scene, own in zip(line, scenes, boxes):
            axis.imshow(np.moveaxis(scene["images"], 0, 2))
            axis.set(xticks=[], yticks=[])
            draw_boxes(axis, own)
    save_in_few_colours(figure, path, dpi=100)


def draw_boxes(axis: Axes, found: Detections) -> None:
    """Those that are more likely than not; a box reaches to the outer edge of its last pixel."""
    for box, score, label in zip(*found):
        if score >= LEAST:
            low, size = box[:2] - 0.5, box[2:] - box[:2] + 1
            colour = COLOURS[label % len(COLOURS)]
            axis.add_patch(Rectangle(low, *size, fill=False, color=colour, linewidth=1.5))
            place = (low[0] + 1, max(low[1], 8) - 1)
            axis.text(*place, CLASSES[label], fontsize=6, color="white", backgroundcolor=(*colour[:3], 0.7))
