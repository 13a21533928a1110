"""Results files as figures. An SVG names what it shows, so that a stale one is noticed."""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..cases.targets import PASSES, reached

Results = list[dict[str, Any]]

_GREY = "#9a9a9a"
_COLOURS = {"eager": "#d1662b", "compiled": "#2b6cb0"}
_PASS_NAMES = dict(zip(PASSES, ("forward", "forward + backward"), strict=True))


def digest(results: Results) -> str:
    """Stands for everything that was measured."""
    rows = [[result["backend"], result["date"], result["rows"]] for result in results]
    return sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def shown(path: Path) -> str | None:
    """The digest of what a figure shows; None if there is no such figure."""
    found = re.search(r"shows ([0-9a-f]{16})", path.read_text(encoding="utf-8")) if path.exists() else None
    return found.group(1) if found else None


def ratios(results: Results, path: Path) -> None:
    """Per case, the peers' times over ours and the floor's share, on an axis of powers."""
    plt = _pyplot()
    rows = [(result["backend"], row) for result in results for row in result["rows"]]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 1 + 0.27 * len(rows)), sharey=True, width_ratios=(3, 1.2), layout="constrained"
    )
    for name, marker in zip(PASSES, ("o", "D"), strict=True):
        for kind, colour in _COLOURS.items():
            points = [
                (reached({kind: row["passes"][name]["peers"].get(kind, [])}, "best"), -index)
                for index, (_, row) in enumerate(rows)
            ]
            xs, ys = zip(*[point for point in points if point[0]] or [((), ())], strict=True)
            face = "none" if name == "forward" else colour
            label = f"PyTorch {kind}, {_PASS_NAMES[name]}"
            left.scatter(xs, ys, s=26, marker=marker, facecolors=face, edgecolors=colour, label=label)
        shares = [row["passes"][name]["of_floor"] for _, row in rows]
        face = "none" if name == "forward" else _GREY
        right.scatter(
            shares,
            [-i for i in range(len(rows))],
            s=26,
            marker=marker,
            facecolors=face,
            edgecolors=_GREY,
            label=_PASS_NAMES[name],
        )
    left.set_yticks(
        [-i for i in range(len(rows))],
        [row["title"] + (" (CUDA)" if backend == "cuda" else "") for backend, row in rows],
        fontsize=7,
    )
    left.set(xscale="log", xlabel="time of the peer / ours")
    left.xaxis.set_major_formatter("{x:g}x")
    left.axvline(1, color=_GREY, linewidth=0.8)
    right.set(xlabel="time of the floor / ours", xlim=(0, None))
    right.axvline(1, color=_GREY, linewidth=0.8)
    right.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes in (left, right):
        axes.grid(axis="x", linewidth=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    figure.get_layout_engine().set(rect=(0.06, 0, 0.94, 1))  # a browser's font may be wider than this one
    _save(plt, figure, path, results)


def growth(results: Results, path: Path) -> None:
    """Per operator, time of both passes against each size, relative to the smallest; dashed: linear."""
    plt = _pyplot()
    operators = list(dict.fromkeys((r["backend"], row["operator"]) for r in results for row in r["rows"]))
    columns = 3
    lines = -(-len(operators) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(9, 0.6 + 2.4 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    axes_names = list(dict.fromkeys(row["axis"] for r in results for row in r["rows"]))
    colours = dict(zip(axes_names, plt.get_cmap("tab10").colors, strict=False))
    for panel, (backend, operator) in zip(panels.flat, operators, strict=False):
        largest = 1.0
        for result in results:
            for row in result["rows"]:
                if (result["backend"], row["operator"]) == (backend, operator):
                    largest = max(largest, _lines(panel, row, colours[row["axis"]]))
        panel.plot([1, largest], [1, largest], "--", color=_GREY, linewidth=0.8)
        panel.set(xscale="log", yscale="log")
        panel.set_title(operator + (" (CUDA)" if backend == "cuda" else ""), fontsize=8)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat[len(operators) :]:
        panel.set_visible(False)
    handles = [plt.Line2D([], [], color=colours[name], marker="o", markersize=3) for name in axes_names]
    handles += [plt.Line2D([], [], color=_GREY, linestyle="--")]
    labels = [*axes_names, "linear"]
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=7, frameon=False)
    figure.supxlabel("size / smallest size", fontsize=8)
    figure.supylabel("time of forward + backward / that at the smallest size", fontsize=8)
    _save(plt, figure, path, results)


def _lines(panel: Any, row: dict[str, Any], colour: Any) -> float:
    """Forward and backward along one axis; the largest size, relative to the smallest."""
    sizes = [point["size"] / row["points"][0]["size"] for point in row["points"]]
    times = [point["passes"][PASSES[-1]]["ms"] for point in row["points"]]
    relative = [time / times[0] for time in times]
    panel.plot(sizes, relative, marker="o", markersize=3, linewidth=1.2, color=colour)
    return sizes[-1]


DRAWN: dict[str, Callable[[Results, Path], None]] = {"benchmarks.svg": ratios, "growth.svg": growth}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same data give the same file; a browser's own fonts draw the text.
    plt.rcParams.update({"svg.hashsalt": "dynarray", "svg.fonttype": "none", "font.family": "sans-serif"})
    return plt


def _save(plt: Any, figure: Any, path: Path, results: Results) -> None:
    figure.savefig(path, metadata={"Date": None, "Description": f"shows {digest(results)}"})
    plt.close(figure)
