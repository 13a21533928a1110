"""The gradient of one dynamic filter, four ways: on paper, in NumPy, by the operator, by the tape.

A dynamic filter has weights of its own at every pixel. This script derives how a loss changes with everything
that goes into such a filter, follows the derivation with the numbers of one pixel, computes the same
gradients in three more ways, and draws where they come from.

    python examples/gradient_four_ways.py

On paper
--------
The filter, for channel c at pixel p, with tap t reading at p + t (x is zero outside the image):

    y[c, p] = sum_t  w[t, p] * v[c, t] * x[c, p + t]                                                       (1)

w is a filter for each pixel, shared by the channels; v is a filter for each channel, shared by the pixels.
The loss compares y with a target:

    L = 1/2 * sum_cp (y[c, p] - target[c, p])**2,        so  g[c, p] := dL/dy[c, p] = y[c, p] - target[c, p]

By the chain rule, dL/d(anything) = sum_cp g[c, p] * dy[c, p]/d(anything): look in (1) for every y in which
that anything stands.

w[t, p]     stands in y[c, p] of every channel, with the factor v[c, t] * x[c, p + t]:

    dL/dw[t, p] = sum_c  g[c, p] * v[c, t] * x[c, p + t]                                                   (2)

v[c, t]     stands in y[c, p] at every pixel, with the factor w[t, p] * x[c, p + t]:

    dL/dv[c, t] = sum_p  g[c, p] * w[t, p] * x[c, p + t]                                                   (3)

x[c, q]     stands in y[c, p] wherever p + t = q, which is at p = q - t, once for each tap:

    dL/dx[c, q] = sum_t  g[c, q - t] * w[t, q - t] * v[c, t]                                               (4)

(4) is a filter again, with two differences to (1): it runs over -t, and each tap takes its weight from the
pixel that it reads (q - t), not from the pixel that it writes (q). In a static filter w is the same
everywhere, and only the first difference is left: the "flipped kernel" of textbooks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import dynarray as dyn
from autodiff import Tape, Variable
from autodiff import functions as F

TAPS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
PIXEL = (4, 6)  # whose gradient is followed term by term


class Problem(NamedTuple):
    """One filter and what it should give."""

    x: np.ndarray  # (C, H, W)
    w: np.ndarray  # (3, 3, H, W): tap (a, b) of the formulas is [a + 1, b + 1]
    v: np.ndarray  # (C, 3, 3)
    target: np.ndarray  # (C, H, W)


class Gradients(NamedTuple):
    """What the loss does when one of them changes."""

    x: np.ndarray
    w: np.ndarray
    v: np.ndarray


def make_problem(seed: int = 0) -> Problem:
    """A disc and a ramp with noise, filters that average along circles, and the clean images as target."""
    rng = np.random.default_rng(seed)
    size = 12
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    radius, angle = np.hypot(row, column), np.arctan2(row, column)
    clean = np.stack([np.where(radius < 3.6, 1.0, 0.0), (column + row) / size])
    offsets = np.array(TAPS, float).reshape(3, 3, 2)
    across = offsets[..., :1, None] * np.sin(angle)[None, None] + offsets[..., 1:, None] * np.cos(angle)
    w = np.exp(-2 * across**2)
    v = rng.uniform(0.5, 1.5, (2, 3, 3))
    return Problem(clean + rng.normal(0, 0.2, clean.shape), w / w.sum((0, 1)), v, clean)


# ---------------------------------------------------------------------------------------------------------
# 1. On paper: one number, term by term


def on_paper(problem: Problem, g: np.ndarray) -> float:
    """dL/dx of channel 0 at PIXEL by formula (4), printed as one would write it down."""
    (row, column), total = PIXEL, 0.0
    print(f"\nFormula (4) at q = {PIXEL}, channel 0:\n")
    print(f"{'t':>8} {'q - t':>9} {'g[0, q-t]':>11} {'w[t, q-t]':>11} {'v[0, t]':>9} {'product':>11}")
    for a, b in TAPS:
        p = row - a, column - b
        factors = g[0][p], problem.w[a + 1, b + 1][p], problem.v[0, a + 1, b + 1]
        total += np.prod(factors)
        numbers = "{:>11.6f} {:>11.6f} {:>9.6f} {:>11.6f}".format(*factors, np.prod(factors))
        print(f"{f'({a}, {b})':>8} {f'({p[0]}, {p[1]})':>9} {numbers}")
    print(f"{'sum':>8} {total:>55.6f}")
    return float(total)


# ---------------------------------------------------------------------------------------------------------
# 2. By hand in NumPy: the formulas, for all pixels at once


def shifted(image: np.ndarray, a: int, b: int) -> np.ndarray:
    """The image read at p + (a, b), zero outside."""
    h, w = image.shape[-2:]
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)])
    return padded[..., 1 + a : 1 + a + h, 1 + b : 1 + b + w]


def filter_by_hand(problem: Problem) -> np.ndarray:
    """Formula (1)."""
    x, w, v, _ = problem
    return sum(w[a + 1, b + 1] * v[:, a + 1, b + 1, None, None] * shifted(x, a, b) for a, b in TAPS)


def gradients_by_hand(problem: Problem, g: np.ndarray) -> Gradients:
    """Formulas (2), (3) and (4)."""
    x, w, v, _ = problem
    gx, gw, gv = np.zeros_like(x), np.zeros_like(w), np.zeros_like(v)
    for a, b in TAPS:
        tap = a + 1, b + 1
        per_channel = v[:, *tap, None, None]
        gw[tap] = (g * per_channel * shifted(x, a, b)).sum(axis=0)
        gv[:, *tap] = (g * w[tap] * shifted(x, a, b)).sum(axis=(1, 2))
        gx += shifted(g * w[tap], -a, -b) * per_channel
    return Gradients(gx, gw, gv)


# ---------------------------------------------------------------------------------------------------------
# 3. By the operator's own backward pass, and 4. by the tape


def gradients_by_operator(problem: Problem, g: np.ndarray) -> Gradients:
    """The kernels of the library; they take a batch, and a group of channels for each filter."""
    x, w, v, _ = problem
    grads = dyn.local_filter2d_backward(g[None], x[None], w[None, None], v[None])
    return Gradients(grads.x[0], grads.weight[0, 0], grads.channel_weight[0])


def gradients_by_tape(problem: Problem) -> Gradients:
    """Nothing derived: write the loss down and ask."""
    x, w, v = (Variable(array) for array in problem[:3])
    with Tape() as tape:
        y = F.local_filter2d(x[None], w[None, None], v[None])
        loss = 0.5 * F.sum(F.square(y - problem.target))
    return Gradients(*tape.gradient(loss, [x, w, v]))


# ---------------------------------------------------------------------------------------------------------


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def mosaic(filters: np.ndarray) -> np.ndarray:
    """(3, 3, H, W) as one picture: at the place of each pixel its filter, with a line between them."""
    h, w = filters.shape[2:]
    tiles = np.full((h, 4, w, 4), np.nan)
    tiles[:, :3, :, :3] = filters.transpose(2, 0, 3, 1)
    return tiles.reshape(4 * h, 4 * w)[:-1, :-1]


def side_by_side(filters: np.ndarray) -> np.ndarray:
    """(C, 3, 3) as one picture, with a line between the filters."""
    apart = np.pad(filters, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
    return np.hstack([*apart])[:, :-1]


def draw(path: Path, problem: Problem, y: np.ndarray, g: np.ndarray, grads: Gradients) -> None:
    """Above what goes forward, below what comes back, in the same order."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, 4)
    forward = [
        ("x, channel 0", problem.x[0]),
        ("w, a filter for each pixel", mosaic(problem.w)),
        ("v, a filter for each channel", side_by_side(problem.v)),
        ("y = filter(x, w, v), channel 0", y[0]),
    ]
    backward = [
        ("dL/dx, channel 0   (4)", grads.x[0]),
        ("dL/dw   (2)", mosaic(grads.w)),
        ("dL/dv   (3)", side_by_side(grads.v)),
        ("g = dL/dy, channel 0", g[0]),
    ]
    for axis, (title, image) in zip(axes.flat, forward + backward):
        signed = axis in axes[1]
        limit = np.nanmax(np.abs(image))
        colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if signed else {"cmap": "viridis"}
        shown = axis.imshow(image, interpolation="nearest", **colours)
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(shown, ax=axis, shrink=0.7)
    for axis in (axes[0, 0], axes[1, 0]):
        axis.plot(*PIXEL[::-1], "s", markersize=14, markerfacecolor="none", markeredgecolor="black")
    figure.suptitle("forward: left to right            backward: right to left", fontsize=11)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Derive, compute, compare, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("gradient_four_ways.png"), help="the picture")
    options = parser.parse_args(argv)
    problem = make_problem()
    print((__doc__ or "").partition("On paper\n--------\n")[2])

    y = filter_by_hand(problem)
    g = y - problem.target
    one_number = on_paper(problem, g)
    hand = gradients_by_hand(problem, g)
    operator = gradients_by_operator(problem, g)
    tape = gradients_by_tape(problem)

    print("\nLargest difference from the gradients by hand, relative to their largest value:\n")
    print(f"{'':<10} {'dL/dx':>9} {'dL/dw':>9} {'dL/dv':>9}")
    print(f"{'on paper':<10} {difference(one_number, hand.x[0][PIXEL]):>9.1e}   (at q only)")
    for name, grads in (("operator", operator), ("tape", tape)):
        errors = [f"{difference(one, other):>9.1e}" for one, other in zip(grads, hand)]
        print(f"{name:<10} {' '.join(errors)}")
    draw(options.output, problem, y, g, hand)
    print(f"\nthe picture is in {options.output}")


if __name__ == "__main__":
    main()
