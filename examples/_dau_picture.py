"""The pictures of dau_classification.py: where units end up, and how networks learn at each rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from _dau_training import Outcome
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullFormatter

REACH = 4.0  # pixels from the centre that are drawn
THRESHOLDS = (0.0, 0.25, 0.5)  # relative amplitude, for the distances
COLOURS = ("0.55", "C0", "C3")


Layers = Sequence[tuple[np.ndarray, np.ndarray]]  # displacements and weights of the units of each


def draw_places(path: Path, networks: Mapping[str, Sequence[Layers]]) -> None:
    """For each network and layer, the places of units by weight; for each layer, how far they are."""
    columns = len(networks) + 1
    figure = Figure(figsize=(2.7 * columns + 0.5, 5.2), layout="constrained")
    axes = figure.subplots(2, columns)
    for row, layer in zip(axes, (0, 1)):
        for axis, (name, own) in zip(row, networks.items()):
            shade = _density(axis, own, layer)
            axis.set_title(f"layer {layer + 2}, {name}", fontsize=9)
        row[0].set_ylabel("displacement along y, pixels", fontsize=8)
        bar = figure.colorbar(shade, ax=list(row[:-1]), pad=0.01)
        bar.set_label("log(1 + 20 x sum of relative amplitudes)", fontsize=7)
        bar.ax.tick_params(labelsize=7)
        _distances(row[-1], networks["4 units"], layer)
    for axis in axes[-1, :-1]:
        axis.set_xlabel("displacement along x, pixels", fontsize=8)
    axes[-1, -1].set_xlabel("distance from the centre, pixels", fontsize=8)
    figure.savefig(path, dpi=100)


def _relative(layers: Layers, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Displacements, and weights relative to the largest of the layer."""
    displacement, weight = layers[layer][0], np.abs(layers[layer][1])
    return displacement, weight / weight.max()


def _density(axis: Axes, networks: Sequence[Layers], layer: int) -> AxesImage:
    """Sum of the weights of all seeds over small squares, on a logarithmic scale."""
    both = [_relative(each, layer) for each in networks]
    place, weight = np.concatenate([p for p, _ in both]), np.concatenate([w for _, w in both])
    # An odd number of squares: the middle one is around zero.
    density, _, _ = np.histogram2d(*place.T, bins=61, range=[[-REACH, REACH]] * 2, weights=weight)
    extent = (-REACH, REACH, REACH, -REACH)
    shade = axis.imshow(np.log1p(20 * density), cmap="magma", vmin=0, vmax=5, extent=extent)
    for side in (1.5, 2.5):  # of 3 x 3 and 5 x 5 kernels
        x, y = np.array([-1, 1, 1, -1, -1]) * side, np.array([-1, -1, 1, 1, -1]) * side
        axis.plot(x, y, color="w", linewidth=0.6, linestyle=":")
    axis.tick_params(labelsize=7)
    return shade


def _distances(axis: Axes, networks: Sequence[Layers], layer: int) -> None:
    """How far from the centre the units above each relative amplitude lie, each as much as its amplitude."""
    for threshold, colour in zip(THRESHOLDS, COLOURS):
        distance, amplitude = distances([_relative(each, layer) for each in networks], threshold)
        shares, edges = histogram(distance, amplitude)
        label = f"above {threshold:g}: {len(distance):,}" if threshold else f"all {len(distance):,}"
        axis.stairs(shares, edges, color=colour, label=label)
    axis.set_title(f"layer {layer + 2}, 4 units", fontsize=9)
    axis.set_ylabel("share of the amplitude", fontsize=8)
    axis.legend(fontsize=7, title="relative amplitude", title_fontsize=7)
    axis.tick_params(labelsize=7)


def distances(
    units: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the centre and amplitudes of the units whose amplitude is at least the threshold."""
    place = np.concatenate([place for place, _ in units])
    amplitude = np.concatenate([amplitude for _, amplitude in units])
    strong = amplitude >= threshold
    return np.hypot(*place[strong].T), amplitude[strong]


def histogram(distance: np.ndarray, amplitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the amplitude of all units that lie so far from the centre, and the edges of the bins."""
    sums, edges = np.histogram(distance, bins=32, range=(0, REACH), weights=amplitude)
    return sums / max(amplitude.sum(), 1e-30), edges


def draw_rates(path: Path, curves: Mapping[str, Mapping[float, Sequence[Outcome]]]) -> None:
    """Loss on the images trained on and error on the others after each epoch, means over the seeds."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for (name, rates), style in zip(curves.items(), ("--", "-")):
        for number, (lr, outcomes) in enumerate(rates.items()):
            loss = np.mean([outcome.loss for outcome in outcomes], axis=0)
            error = 100 - 100 * np.mean([outcome.curve for outcome in outcomes], axis=0)
            epochs = np.arange(1, len(loss) + 1)
            for axis, values in zip(axes, (loss, error)):
                axis.plot(epochs, values, style, color=f"C{number}", label=f"{name}, {lr:g}", linewidth=1.2)
    axes[0].set(title="cross-entropy on digits trained on, nats", xlabel="epoch", yscale="log")
    axes[1].set(title="error on held-out digits, %", xlabel="epoch", yscale="log")
    for axis in axes:
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes[1].get_ylim()
    axes[1].set_yticks([tick for tick in (1, 2, 3, 5, 10, 20, 30, 50) if low < tick < high])
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, fontsize=8, title="filters, learning rate", loc="outside right center")
    figure.savefig(path, dpi=100)
